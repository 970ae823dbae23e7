"""The earlier runs that a run's weights come from, and which of its held-out images they may have trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from auxnet.backbones.weights import config_of, run_of
from auxnet.documents import parsing, read_json
from auxnet.rundir import checkpoints
from auxnet.words import command

Earlier = dict[str, Any]
"""a run: its name, "run"; its "classes"; and "held_out", the SHA-256 of its validation and of its test images"""


def earlier_runs(pretrained: str) -> tuple[Earlier, ...]:
    """The runs in which weights were trained, the first run first; () if the weights are no run's.

    Raises ValueError for weights of a run that is not finished, of which nothing is known yet, and RuntimeError if what
    a run says of itself is damaged.
    """
    run = run_of(pretrained)
    begun, finished = ((run / name).is_file() for name in ("recipe.yaml", "summary.json"))
    if begun and not finished and checkpoints(run):
        mend = f"`{command('train', '--out', run, '--resume')}` finishes it first"
        raise ValueError(f"pretrained: {run} is not finished: {mend}")
    with parsing(f"{run} is damaged: what it says of its training cannot be read"):
        config = config_of(run)
        source = config.get("source")  # what `PretrainedAuxNet.save_pretrained` keeps of a run
        if begun and finished:
            source = {"run": run.name, "data": read_json(run / "summary.json")["data"]}
        if not source:
            return ()
        data = source["data"]
        held_out = [data.get(f"{split}_sha256") for split in ("val", "test")]
        last = {"run": source["run"], "classes": config["classes"], "held_out": held_out}
        return tuple(
            {"run": str(each["run"]), **{key: [str(name) for name in each[key]] for key in ("classes", "held_out")}}
            for each in (*data.get("earlier_runs", ()), last)
        )


def may_be_seen_by(
    classes: Iterable[str], judged_on: Mapping[str, Any], earlier: Iterable[Earlier]
) -> dict[str, list[str]]:
    """By split, "val" and "test", the earlier runs that may have been trained on its images; {} if none may.

    `judged_on` is `DataSet.judged_on`. A run counts if it shares classes with the data and did not hold out the very
    same images, brought to the same frame.
    """
    alike = [each for each in earlier if not {*classes}.isdisjoint(each["classes"])]
    doubts = {
        split: [run["run"] for run in alike if judged_on[f"{split}_sha256"] not in run["held_out"]]
        for split in ("val", "test")
    }
    return {split: runs for split, runs in doubts.items() if runs}


def in_doubt(seen: Mapping[str, Sequence[str]]) -> str | None:
    """A sentence: on which validation or test images earlier runs may have trained; None if on none.

    `seen` is what `may_be_seen_by` gives.
    """
    if not seen:
        return None
    splits = " and ".join({"val": "validation", "test": "test"}[split] for split in seen)
    runs = " and ".join(dict.fromkeys(run for runs in seen.values() for run in runs))
    return (
        f"its {splits} images may be among those that its weights were trained on before, in {runs}, and errors on "
        "them may come out too low"
    )
