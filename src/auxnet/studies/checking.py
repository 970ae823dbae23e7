"""Whether a study can be trained, and its claims be judged: known without a training, and said before the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from auxnet.build import check, check_place, outputs_of
from auxnet.recipe import Recipe
from auxnet.studies.spec import Study


def check_claims(study: Study) -> None:
    """Raise ValueError for a claim about an output that its variant does not have."""
    for claim in study.claims:
        for side in (claim.better, claim.worse):
            if side.output in ("final", "mean"):
                continue
            outputs = outputs_of(study.recipe(side.variant, study.datasets[0]))
            if not 1 <= int(side.output) <= outputs:
                has = f"{side.variant} has {outputs} output{'s' if outputs > 1 else ''}"
                raise ValueError(f"study {study.name}: the claim {claim.says!r} names {side}, but {has}")


def check_variants(study: Study, where: Mapping[str, Any]) -> None:
    """Raise ValueError for a variant that cannot be trained, or a `where` (`recipe.WHERE`) that cannot be had here."""
    check_place(Recipe(**where))
    for variant in study.variants:
        try:
            check(study.recipe(variant, study.datasets[0], where=where))
        except ValueError as error:
            raise ValueError(f"study {study.name}: variant {variant}: {error}") from None
