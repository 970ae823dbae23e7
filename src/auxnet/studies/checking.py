"""What is refused before the first training of a study: variants, claims, data and folders that cannot be."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from auxnet.build import depths_of
from auxnet.documents import json_value, parsing
from auxnet.errors import error_prefix, one_line
from auxnet.feasible import check_recipe
from auxnet.fetching import may_move, pinned
from auxnet.machine import device_of
from auxnet.reading.sources import find
from auxnet.recipe import Recipe
from auxnet.rundir import check_outside_data
from auxnet.studies.spec import Side, Study, Training
from auxnet.words import plural

MARK = "<!-- made by auxnet study -->"  # in each study.md
STUDY_FILES = ("study.md", "study.html", "ledger.jsonl", "outputs.csv", "diagnosis.json", "diagnosis.html")


def check_claims(study: Study) -> None:
    """Raise ValueError for a claim about an output that its variant does not have, or about unlike means."""
    for claim in study.claims:
        sides, about = claim.variants, f"study {study.name}: the claim {claim.says!r}"
        if all(side.output == "mean" for side in sides):
            over = [_depths(study, side) for side in sides]
            if over[0] != over[1]:
                means = (f"{s} is over layers {', '.join(map(str, d))}" for s, d in zip(sides, over, strict=True))
                raise ValueError(
                    f"{about} compares means over different outputs: {' and '.join(means)}; give both the same "
                    "outputs, or name one of them"
                )
        for side in sides:
            if side.output in ("", "mean"):
                continue
            outputs, method = len(_depths(study, side)), study.recipe(side.variant, study.datasets[0]).method
            if claim.of == "share" and outputs > 1 and method == "joint":
                raise ValueError(f"{about} names {side}, but joint training has one share: name {side.variant}")
            if side.output != "final" and not 1 <= int(side.output) <= outputs:
                raise ValueError(f"{about} names {side}, but {side.variant} has {plural(outputs, 'output')}")


def _depths(study: Study, side: Side) -> tuple[int, ...]:
    return depths_of(study.recipe(side.variant, study.datasets[0]))


def check_variants(study: Study, where: Mapping[str, Any]) -> None:
    """Raise ValueError for a variant that cannot be trained, or a `where` (`recipe.WHERE`) that is not to be had here.

    And for weights on the hub without a commit, which may be others when the next training begins; and for a frozen
    trunk in a study that measures the supervision that reaches the trunk.
    """
    device_of(Recipe(**where).device)
    for variant in study.variants:
        with error_prefix(f"study {study.name}: variant {variant}"):
            recipe = study.recipe(variant, study.datasets[0], where=where)
            check_recipe(recipe)
            if (weights := recipe.pretrained) is not None and may_move(weights):
                raise ValueError(f"pretrained: {weights} may be others at the next training: give {pinned(weights)}")
            if study.measures and recipe.freeze == "trunk":
                raise ValueError(
                    "no supervision reaches a frozen trunk: leave out freeze: trunk, or measures: supervision"
                )


def check_data_found(out: Path, trainings: Sequence[Training]) -> None:
    """Raise FileNotFoundError or ValueError if the data of a training are not there, or if `out` is within them."""
    for name, data_dir in dict.fromkeys((training.recipe.data, training.recipe.data_dir) for training in trainings):
        find(name, data_dir)
        check_outside_data(out, name, data_dir)


def check_folder(folder: Path, study: Study, kept: Collection[str]) -> None:
    """Raise FileExistsError for a folder whose files are not this study's, or in which a training would be lost.

    `kept` are the names of the trainings that the new ledger has, or will have. Files of the same study with other
    claims, fewer seeds or fewer variants may be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder for the study's tables")
    page, ledger = folder / "study.md", folder / "ledger.jsonl"
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    if MARK not in text:
        for name in STUDY_FILES:
            if (folder / name).exists():
                raise FileExistsError(f"{folder / name} is not a study's, and is left alone: give another --report")
        return
    try:
        with parsing(f"{ledger} is no ledger of a study"):
            lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.is_file() else []
            rows = [json_value(line) for line in lines]
            other = _of_another(study, text, rows)
            lost = [row["seed"] for row in rows if row["last"] and row["training"] not in kept]
    except RuntimeError:
        other = f"its {ledger.name} cannot be read"
    if other:
        raise FileExistsError(f"{folder} holds another study: {one_line(other)}; give another --report, or remove it")
    if lost:
        seeds = sorted({*lost})
        more = f"--seeds {1 + seeds[-1]}, " if seeds[-1] >= study.seeds else ""
        raise FileExistsError(
            f"{folder} holds {plural(len(lost), 'training')} that would be lost, of seed{'s' * (len(seeds) > 1)} "
            f"{', '.join(map(str, seeds))}: give {more}the --out that holds the runs, or another --report"
        )


def _of_another(study: Study, page: str, ledger: Sequence[Mapping[str, Any]]) -> str:
    """What shows that a study.md and the rows of a ledger are another study's; "" if they are this one's.

    How many seeds either has makes no difference.
    """
    heading = next((line.removeprefix("# ") for line in page.splitlines() if line.startswith("# ")), "")
    if not heading.endswith(f": {study.question}"):
        return f"it is {heading!r}" if heading else "it is without a heading"
    for row in ledger:
        variant, data, seed = str(row["variant"]), row["data"], row["seed"]
        if variant not in study.variants or data not in study.datasets:
            return f"its variant {variant} on {data} is not this one's"
        if Training(variant, seed, study.recipe(variant, data, seed)).name != row["training"]:
            return f"its variant {variant} is not this one's"
    return ""
