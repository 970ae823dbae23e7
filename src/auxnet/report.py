"""The report on runs: their facts, gathered as plain values, and the page that shows them.

Facts of a finished run are what it saved and what its net says of its images (`examining`); facts of an unfinished run
are its learning curves so far.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from auxnet import report_page, rundir
from auxnet.documents import parsing, read_json
from auxnet.errors import one_line
from auxnet.evaluation import COSTS
from auxnet.examining import examine, time_of
from auxnet.files import to_write, unwritable, write_text
from auxnet.lineage import in_doubt
from auxnet.loading import read_config
from auxnet.machine import device_of
from auxnet.page_frame import check_ours, check_runs, names_of
from auxnet.precision import usual_defaults
from auxnet.recipe import Recipe, RunDir, data_name, method_name, network_name, read_run_recipe, run_path
from auxnet.run_data import changed_since, data_dirs, data_of, with_data_in
from auxnet.scores import interval_of, no_better_than_guessing
from auxnet.selection import MARGIN, cheapest_within
from auxnet.unfinished import RunFacts
from auxnet.words import as_flag, command

_OF_IMAGES = b'"confusion":['  # is in a page that shows a finished run whose images were found


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    path: Path
    headlines: list[str]
    """one per run"""
    missing: list[str]
    """what could not be shown, and why, one per run that lacks something"""


def write_report(
    runs: RunDir | Iterable[RunDir],
    out: Path | str | None = None,
    data_dir: str | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
) -> Report:
    """One HTML file for a run, or several in a list; `out` is by default report.html in the one run.

    Data directory, device and threads are as in training if they are not given. If `data_dir` does not hold the data of
    some of several runs, those runs are shown on the data that they were trained on.

    Raises ValueError for several runs without `out`, or a device that cannot be used; FileExistsError if `out` is
    something else than a report, or the run's own report shows images that the new one would lack; FileNotFoundError if
    a run or the folder of `out` does not exist, or a run has not finished an epoch, or `data_dir` does not hold the
    data of the one run; PermissionError, before any run is evaluated, if the report cannot be written; RuntimeError if
    a run is damaged.
    """
    if isinstance(runs, str | os.PathLike) or not isinstance(runs, Iterable):  # `run_path` refuses what is no path
        runs = [runs]
    folders = [*map(run_path, runs)]
    path = checked_path(folders, None if out is None else to_write(out))
    for run in folders:  # before the first is evaluated
        read_run_recipe(run)
    each = zip(folders, names_of(folders), data_dirs(folders, data_dir), strict=True)
    gathered = [facts_of_run(run, name, place, device, threads) for run, name, place in each]
    with parsing(f"{' or '.join(map(str, folders))} is damaged: it cannot be shown"):
        html = report_page.page(gathered, 100 * MARGIN)
    missing = [f"{run['name']}: {run['missing']}" for run in gathered if run["missing"]]
    if missing and out is None and path.exists() and _OF_IMAGES in path.read_bytes():
        raise FileExistsError(
            f"{path} shows images, which a new one would lack, and is left alone: {missing[0]}; give --out FILE.html"
        )
    write_text(path.resolve(), html)  # a link is followed
    several = len(gathered) > 1
    headlines = [f"{run['name']}: " * several + report_page.headline(run) for run in gathered]
    return Report(path, headlines, missing)


def checked_path(runs: Sequence[Path], out: Path | None) -> Path:
    """The path of the report. Refuses, before anything is computed, one at which a file of the user's would be lost."""
    check_runs(runs, out, "a report", "give --out FILE.html")
    path = out or runs[0] / "report.html"
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file for the report")
    if path.suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(f"a report is HTML, and {path} ends in {path.suffix}: give --out FILE.html")
    if out is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to put {path.name} in")
    check_ours(path, report_page.COMMAND)
    if path.parent.is_dir() and (why := unwritable(path.parent)):
        raise PermissionError(f"{path} cannot be written ({why}): give --out FILE.html")
    return path


@usual_defaults()
def facts_of_run(
    run: Path, name: str, data_dir: str | None = None, device: str | None = None, threads: int | None = None
) -> RunFacts:
    """All that the page shows of a run; "missing" says why a part is absent.

    Data directory, device and threads are as in training if they are None.
    """
    recipe = read_run_recipe(run)
    asked = {"data_dir": data_dir, "device": device, "threads": threads}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value not in (None, "")}
    flags = [word for key, value in given.items() for word in (as_flag(key), value)]
    with parsing(f"{run} is damaged: its summary, config or metrics cannot be read"):
        facts: dict[str, Any] = {
            "name": name,
            "folder": str(run),
            "recipe": asdict(recipe),
            "network": network_name(recipe),
            "method": method_name(recipe),
            "seed": recipe.seed,
            "select": command("select", run, *flags),
            **dict.fromkeys(("exits", "p_values", "calibration", "confusion", "gallery")),
            **dict.fromkeys(
                ("missing", "measured", "changed", "seen", "lost", "balanced", "val_wrong", "val_pictures")
            ),
        }
        rows = rundir.whole_epochs(rundir.read_metrics(run))
        facts |= {"curves": curves(rows)}
        facts |= so_far(run, recipe, rows) if rows and not rundir.is_finished(run) else saved(run)
    if not facts["finished"]:
        return cast(RunFacts, facts)
    recipe = replace(recipe, **{key: value for key, value in given.items() if key != "data_dir"})
    device_of(recipe.device)  # an error of its own, and not one of the images
    recipe = with_data_in(data_dir, run, recipe)
    try:
        dataset = data_of(run, recipe)
    except (OSError, RuntimeError, ValueError) as error:
        facts["missing"] = f"the images of {recipe.data} are not available ({one_line(error)})"
        return cast(RunFacts, facts)
    facts["changed"] = changed_since(dataset, facts["data"])
    facts["data"] = {**facts["data"], "val": len(dataset.val), "test": len(dataset.test), **dataset.judged_on}
    return cast(RunFacts, facts | examine(run, recipe, dataset))


def saved(run: Path) -> dict[str, Any]:
    """The facts that a finished run saved. Raises FileNotFoundError for another, and says how to continue that one."""
    config, summary = read_config(run), read_json(run / "summary.json")
    outputs = [_saved(row, summary["data"]) for row in summary["last"]]
    return {
        "finished": True,
        "classes": [str(each) for each in config["classes"]],
        "outputs": outputs,
        "seen": in_doubt(summary["data"].get("may_be_seen_by", {})),
        **{key: summary[key] for key in ("epochs", "data", "wall_seconds", "versions", "commit", "device")},
        **_chosen_by_rows(outputs, summary["data"]["guessing"]),
    }


def so_far(run: Path, recipe: Recipe, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The facts of an unfinished run beside its curves; `rows` are the metrics of its whole epochs, one or more.

    (config.json, summary.json and the weights are written at the end of a training; metrics.jsonl grows as it runs.)
    """
    done = max(row["epoch"] for row in rows)
    resume = command("train", "--out", run, "--resume")
    return {
        "finished": False,
        "outputs": [],
        "epochs": {"last": done},
        "data": {"name": data_name(recipe.data)},
        "wall_seconds": sum(row["seconds"] for row in rows if row["output"] == 1),
        "missing": f"it is not finished ({done} of {recipe.epochs} epochs are done): report it again when it is; "
        f"if it was stopped, `{resume}` goes on with it",
    }


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The learning curves of each output, and the epochs at whose beginning the step size fell to half or less."""
    epochs = sorted({row["epoch"] for row in rows})
    at = {(row["epoch"], row["split"], row["output"]): row for row in rows}
    outputs = [
        {
            "output": k,
            "depth": depth,
            **{
                f"{split}_{what}": [at.get((epoch, split, k), {}).get(what) for epoch in epochs]
                for split, what in (("val", "error"), ("val", "loss"), ("train", "loss"))
            },
        }
        for k, depth in sorted({(row["output"], row["depth"]) for row in rows})
    ]
    lr = {row["epoch"]: row["lr"] for row in rows}
    drops = [after for before, after in itertools.pairwise(epochs) if lr[after] <= lr[before] / 2]
    return {"epochs": epochs, "outputs": outputs, "drops": drops}


def _saved(row: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
    """The facts of an output, from its row in summary.json."""
    worth = {}
    for split in ("val", "test"):
        n, error = images[split], row[f"{split}_error"]
        low, high = interval_of(error, n)
        worth[split] = {"error": error, "low": low, "high": high, "images": n, "loss": row[f"{split}_loss"]}
    return {**{key: row[key] for key in COSTS}, **time_of(None), **worth}


def _chosen_by_rows(outputs: list[dict[str, Any]], guessing: float) -> dict[str, Any]:
    """The output that `selection.choose` would choose without budgets, if only the errors of a run are known."""
    index = cheapest_within([row["val"]["error"] for row in outputs], [int(row["macs"]) for row in outputs], MARGIN)
    val = outputs[index]["val"]
    no_better = no_better_than_guessing(val["error"], val["images"], guessing)
    return {"chosen": outputs[index]["output"], "reason": None, "alike": None, "no_better": no_better}
