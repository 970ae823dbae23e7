"""Whether a study can be trained, and its claims be judged: known without a training, and said before the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from auxnet.build import check, check_machine, depths_of
from auxnet.reading.sources import find
from auxnet.recipe import Recipe
from auxnet.studies.spec import Side, Study, Trial


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
                has = f"{side.variant} has {outputs} output{'s' if outputs > 1 else ''}"
                raise ValueError(f"{about} names {side}, but {has}")


def _depths(study: Study, side: Side) -> tuple[int, ...]:
    return depths_of(study.recipe(side.variant, study.datasets[0]))


def check_variants(study: Study, where: Mapping[str, Any]) -> None:
    """Raise ValueError for a variant that cannot be trained, or a `where` (`recipe.WHERE`) that cannot be had here."""
    check_machine(Recipe(**where))
    for variant in study.variants:
        try:
            check(study.recipe(variant, study.datasets[0], where=where))
        except ValueError as error:
            raise ValueError(f"study {study.name}: variant {variant}: {error}") from None


def check_data_found(trials: Sequence[Trial]) -> None:
    """Raise ValueError or FileNotFoundError if the data of a trial that is to be trained are not there."""
    for name, data_dir in dict.fromkeys((trial.recipe.data, trial.recipe.data_dir) for trial in trials):
        find(name, data_dir)
