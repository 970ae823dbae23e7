"""The ledger of a study: a row per training, with all that says where its figures come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from auxnet.evaluation import COSTS
from auxnet.files import write_csv, write_text
from auxnet.lineage import in_doubt
from auxnet.run_data import tested_alike
from auxnet.rundir import summary_of
from auxnet.studies.running import is_done, training_folder, why_failed
from auxnet.studies.spec import Study, Training, differing
from auxnet.studies.supervising import shares_of
from auxnet.studies.verdicts import Verdict, judge_all

Row = dict[str, Any]
MeanAndSpread = tuple[float, float | None]
"""over the seeds: mean and standard deviation; None with a single one"""
MOST = 2**53  # that any count may be


@dataclass(frozen=True)
class Findings:
    """What a study found so far."""

    study: Study
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Average:
    """One output of one variant over its seeds; errors are fractions."""

    variant: str
    data: str
    output: int
    final: bool
    """whether it is the variant's final output"""
    depth: int
    params: int
    macs: int
    n: int
    test: MeanAndSpread
    """test error of the last epoch"""
    best_test: MeanAndSpread
    """test error of the epoch that was best on validation"""


def findings_of(study: Study, out: Path) -> Findings:
    """The findings of a study from the trainings done in `out`. Raises RuntimeError for a summary that is damaged."""
    rows = tuple(_row(study, out, training) for training in study.trainings())
    return found_in(study, rows)


def found_in(study: Study, rows: Sequence[Row]) -> Findings:
    """The findings of a study from the rows of a ledger."""
    return Findings(study, tuple(rows), tuple(judge_all(study.claims, study.datasets, rows)))


def averages(rows: Sequence[Row]) -> Iterator[Average]:
    """Every output of every variant, over the seeds that are trained."""
    for data in dict.fromkeys(row["data"] for row in rows):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            done = [row for row in rows if row["variant"] == variant and row["data"] == data and row["last"]]
            for last in zip(*(row["last"] for row in done), strict=True):
                k = last[0]["output"]
                best = [row["best"][k - 1]["test_error"] for row in done]
                errors = [each["test_error"] for each in last]
                cost = {key: last[0][key] for key in COSTS}
                yield Average(
                    variant,
                    data,
                    **cost,
                    final=k == len(done[0]["last"]),
                    n=len(done),
                    test=(mean(errors), _spread(errors)),
                    best_test=(mean(best), _spread(best)),
                )


def write_rows(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ledger.jsonl, a line per training, and outputs.csv, a line per output of each; return their paths."""
    paths = [folder / "ledger.jsonl", folder / "outputs.csv"]
    write_text(paths[0], "".join(json.dumps(row) + "\n" for row in rows))
    write_csv(paths[1], _lines(rows))
    return paths


def _row(study: Study, out: Path, training: Training) -> Row:
    row: Row = {
        "study": study.name,
        "scale": study.scale,
        "variant": training.variant,
        "data": training.recipe.data,
        "seed": training.seed,
        "training": training.name,
        "recipe": differing(training.recipe),
        "failed": why_failed(out, training),
        "last": [],
        "best": [],
        "share": None,
        "shares": None,
    }
    if not is_done(out, training):
        return row
    folder = training_folder(out, training)
    with summary_of(folder, f"remove {folder} to train it again") as summary:
        row |= _results(summary)
    if study.measures:
        row["shares"] = shares_of(out, training)
        row["share"] = max(row["shares"].values(), default=None) if row["shares"] is not None else None
    return row


def _results(summary: Any) -> Row:
    """What a row takes from a summary.json. Raises, for `parsing`, if that is not as a training writes it."""
    tables = {which: [_output(line) for line in summary[which]] for which in ("last", "best")}
    about = {key: summary[key] for key in ("epochs", "commit", "versions", "device")}
    made_by = f"{about['commit']} {about['versions']['torch']} {about['device']['name']} {about['device']['threads']}"
    _number(about["device"]["threads"])
    made_by.encode()  # raises ValueError for half a character (a lone surrogate), which cannot be written
    images = summary["data"]
    if min(_number(images[part]) for part in ("train", "val", "test")) < 1 or not tested_alike([images]):
        raise ValueError("it does not say on which images")
    in_doubt(images.get("may_be_seen_by", {}))  # raises if this does not name splits and runs
    if any([line["output"] for line in table] != [*range(1, len(table) + 1)] for table in tables.values()):
        raise ValueError("its tables are not of outputs 1, 2, ...")
    if len(tables["last"]) != len(tables["best"]):
        raise ValueError("its tables are of different outputs")
    weights = summary.get("pretrained_sha256")
    if not isinstance(weights, str | None):
        raise ValueError("it does not say with which weights it began")
    about["pretrained_sha256"] = weights
    return {**tables, **about, "images": images, "wall_seconds": _number(summary["wall_seconds"])}


def _output(line: Any) -> dict[str, Any]:
    costs = {key: int(_number(line[key])) for key in COSTS}
    return costs | {key: _number(line[key], 1.0) for key in ("val_error", "test_error")}


def _number(value: Any, most: float = MOST) -> float:
    if not 0 <= value <= most:
        raise ValueError(f"{value!r:.80} stands for a number")
    return float(value)


def _lines(rows: Sequence[Row]) -> Iterator[list[Any]]:
    """The lines of outputs.csv; errors are fractions."""
    cost = (*COSTS, "val_error", "test_error")
    about = ("study", "scale", "variant", "data", "seed")
    yield [*about, *cost, "best_val_error", "best_test_error", "wall_seconds", "commit", "training", "failed"]
    for row in rows:
        beginning = [row[key] for key in about]
        end = [row.get("wall_seconds"), row.get("commit"), row["training"], row["failed"]]
        if not row["last"]:
            yield [*beginning, *[None] * (len(cost) + 2), *end]
        for last, best in zip(row["last"], row["best"], strict=True):
            yield [*beginning, *(last[key] for key in cost), best["val_error"], best["test_error"], *end]


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
