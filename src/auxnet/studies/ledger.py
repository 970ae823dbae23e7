"""The ledger of a study: a row per training, with all that says where its figures come from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from auxnet.documents import json_value, read_json
from auxnet.files import whole
from auxnet.studies.running import folder_of, is_done, why_failed
from auxnet.studies.spec import Study, Trial, differing
from auxnet.studies.supervising import share_of
from auxnet.studies.verdicts import Verdict, judge_all

Row = dict[str, Any]
MeanAndSpread = tuple[float, float | None]
"""over the seeds: mean and standard deviation; None with a single one"""


@dataclass(frozen=True)
class Findings:
    """What a study found so far."""

    study: Study
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Average:
    """One output of one variant over its seeds; errors are fractions, None where nothing is trained yet."""

    variant: str
    data: str
    output: int
    final: bool
    """whether it is the variant's final one"""
    depth: int
    params: int
    macs: int
    n: int
    val_error: float
    test: MeanAndSpread
    """test error of the last epoch"""
    best_test: MeanAndSpread
    """of the epoch that was best on validation"""


def findings_of(study: Study, out: Path) -> Findings:
    """What the trainings in `out` that are done say of a study.

    Raises ValueError for a claim that fits none, RuntimeError for a summary that is damaged.
    """
    rows = tuple(_row(study, out, trial) for trial in study.trials())
    return found_in(study, rows)


def found_in(study: Study, rows: Sequence[Row]) -> Findings:
    """What the rows of a ledger say of a study. Raises ValueError for a claim that fits none."""
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
                cost = {key: last[0][key] for key in ("output", "depth", "params", "macs")}
                yield Average(
                    variant,
                    data,
                    **cost,
                    final=k == len(done[0]["last"]),
                    n=len(done),
                    val_error=mean(each["val_error"] for each in last),
                    test=(mean(errors), _spread(errors)),
                    best_test=(mean(best), _spread(best)),
                )


def write_rows(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ledger.jsonl, a line per training, and outputs.csv, a line per output of each; say which."""
    paths = [folder / "ledger.jsonl", folder / "outputs.csv"]
    with whole(paths[0]) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with whole(paths[1]) as partial, partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows(_lines(rows))
    return paths


def stranger(study: Study, path: Path) -> str | None:
    """A variant in a ledger file that this study does not have, or trains by another recipe; None if there is none.

    How many seeds either has makes no difference. Raises ValueError for a file that is no ledger.
    """
    try:
        for row in map(json_value, path.read_text(encoding="utf-8").splitlines()):
            variant, data, seed = str(row["variant"]), row["data"], row["seed"]
            if variant not in study.variants or data not in study.datasets:
                return f"{variant} on {data}"
            if Trial(variant, seed, study.recipe(variant, data, seed)).name != row["training"]:
                return variant
    except (KeyError, TypeError):
        raise ValueError(f"{path} is no ledger of a study") from None
    return None


def _row(study: Study, out: Path, trial: Trial) -> Row:
    row: Row = {
        "study": study.name,
        "scale": study.scale,
        "variant": trial.variant,
        "data": trial.recipe.data,
        "seed": trial.seed,
        "training": trial.name,
        "recipe": differing(trial.recipe),
        "failed": why_failed(out, trial),
        "last": [],
        "best": [],
        "share": None,
    }
    if not is_done(out, trial):
        return row
    path, kept = (
        folder_of(out, trial) / "summary.json",
        ("output", "depth", "params", "macs", "val_error", "test_error"),
    )
    summary = read_json(path)
    try:
        tables = {which: [{key: line[key] for key in kept} for line in summary[which]] for which in ("last", "best")}
        about = {key: summary[key] for key in ("epochs", "data", "wall_seconds", "commit", "versions", "device")}
    except (KeyError, TypeError) as error:
        raise RuntimeError(f"{path} is damaged: it lacks {error}; remove {path.parent} to train it again") from None
    if study.measures:
        row["share"] = share_of(out, trial)
    return {**row, **tables, **{("images" if key == "data" else key): value for key, value in about.items()}}


def _lines(rows: Sequence[Row]) -> Iterator[list[Any]]:
    """The lines of outputs.csv; errors are fractions."""
    cost = ("output", "depth", "params", "macs", "val_error", "test_error")
    about = ("study", "scale", "variant", "data", "seed")
    yield [*about, *cost, "best_val_error", "best_test_error", "wall_seconds", "commit", "training", "failed"]
    for row in rows:
        told = [row[key] for key in about]
        end = [row.get("wall_seconds"), row.get("commit"), row["training"], row["failed"]]
        if not row["last"]:
            yield [*told, *[None] * (len(cost) + 2), *end]
        for last, best in zip(row["last"], row["best"], strict=True):
            yield [*told, *(last[key] for key in cost), best["val_error"], best["test_error"], *end]


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
