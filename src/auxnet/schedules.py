"""What a recipe changes from epoch to epoch: the step size, and the weights of the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from auxnet.network import loss_weights
from auxnet.recipe import Recipe, words_of


def lr_at(recipe: Recipe, epoch: int) -> float:
    """The step size in an epoch (1-based), the same in all its steps.

    It rises linearly over the `warmup` epochs. After them "multistep" multiplies it by lr_decay at each milestone that
    has passed, and "cosine" lowers it along half a cosine wave, from lr to nearly 0 in the last epoch.
    """
    rising = min(1.0, epoch / (recipe.warmup + 1))
    if recipe.schedule == "cosine":
        gone = max(0, epoch - 1 - recipe.warmup) / (recipe.epochs - recipe.warmup)
        return recipe.lr * rising * (1 + math.cos(math.pi * gone)) / 2
    passed = sum(epoch - 1 >= share * recipe.epochs - 1e-9 for share in recipe.milestones)
    return float(recipe.lr * rising * recipe.lr_decay**passed)


def lambdas_at(recipe: Recipe, depths: Sequence[int], epoch: int = 1) -> list[float]:
    """The loss weights [K] in an epoch (1-based) of a net with outputs at these depths; 0 discards a loss.

    Raises ValueError for weights that do not fit the outputs.
    """
    *auxiliary, final = weights_of(recipe, depths)
    if recipe.weight_schedule == "linear":  # DSN: lambda (1 - t / N)
        auxiliary = [w * (1 - (epoch - 1) / recipe.epochs) for w in auxiliary]
    if recipe.discards_from is not None and epoch >= recipe.discards_from:
        auxiliary = [0.0 for _ in auxiliary]
    return [*auxiliary, final]


def trained_outputs_only(recipe: Recipe, depths: Sequence[int], values: Sequence[float]) -> list[float]:
    """Of one value per output, those of the outputs whose loss still counts in the last epoch.

    Epochs and trials are compared by these values: outputs of weight 0, or discarded later, do not count.
    """
    weights = lambdas_at(recipe, depths, recipe.epochs)
    return [value for value, weight in zip(values, weights, strict=True) if weight > 0]


def weights_of(recipe: Recipe, depths: Sequence[int]) -> list[float]:
    """The loss weights [K] that a recipe begins with: its own, or those that follow from the depths."""
    K, own = len(depths), None if recipe.alone else recipe.weights  # these are for all outputs, not for one alone
    if own is None:
        return [float(w) for w in loss_weights(depths, recipe.gamma, recipe.floor, recipe.relative_to)]
    if len(own) == 1:
        return [*own * (K - 1), 1.0]
    if len(own) == K and own[-1] > 0:
        return [*own]
    mend = "; add the final output's, such as 1" if len(own) == K - 1 else ""
    raise ValueError(
        f"weights must be one number for all auxiliary outputs, or {K}, one for each output and the final one's above "
        f"0, got {words_of(own)}{mend}"
    )
