"""What changes from epoch to epoch: step sizes and loss weights."""

import math

import pytest

from auxnet.recipe import Recipe
from auxnet.schedules import lambdas_at, lr_at

DEPTHS = (7, 13, 20)


def lrs(**fields):
    recipe = Recipe(lr=1.0, **fields)
    return [lr_at(recipe, epoch) for epoch in range(1, recipe.epochs + 1)]


def lambdas(epoch=1, **fields):
    return lambdas_at(Recipe(**{"epochs": 10, **fields}), DEPTHS, epoch)


def test_a_cosine_falls_from_the_full_step_along_half_a_wave():
    assert lrs(epochs=8, schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)])


def test_warming_up_the_step_rises_evenly_and_then_the_cosine_begins():
    expected = [0.25, 0.5, 0.75, *((1 + math.cos(math.pi * t / 5)) / 2 for t in range(5))]
    assert lrs(epochs=8, warmup=3, schedule="cosine") == pytest.approx(expected)


def test_milestones_stay_where_they_are_under_a_warm_up():
    assert lrs(epochs=10, warmup=1) == pytest.approx([0.5] + [1] * 3 + [0.1] * 2 + [0.01] * 4)


def test_own_weights_take_the_place_of_those_from_the_depths():
    assert lambdas(weights=(0.3,)) == [0.3, 0.3, 1.0]
    assert lambdas(weights=(1.0, 0.3, 0.5)) == [1.0, 0.3, 0.5]
    assert lambdas() == pytest.approx([(7 / 20) ** 2, (13 / 20) ** 2, 1.0])
    assert lambdas_at(Recipe(weights=(0.3,)), (20,)) == [1.0]
    assert lambdas_at(Recipe(weights=(1.0, 0.3, 0.5), alone=2), (13,)) == [1.0]


@pytest.mark.parametrize("weights", [(0.1,) * 4, (1.0, 1.0, 0.0)])
def test_weights_that_do_not_fit_the_outputs_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be one number for all auxiliary outputs, or 3, one for each"):
        lambdas(weights=weights)


def test_weights_never_mean_another_output_where_there_are_more_outputs():
    written = Recipe(weights=(0.3, 0.7))
    assert lambdas_at(written, (13, 20)) == [0.3, 0.7]
    with pytest.raises(ValueError, match=r"or 3, one for each .* got 0\.3 0\.7; add the final output's, such as 1$"):
        lambdas_at(written, DEPTHS)


def test_linear_weights_fall_evenly_and_the_final_ones_stays():
    for epoch in range(1, 11):
        share = 1 - (epoch - 1) / 10
        assert lambdas(epoch, weights=(0.4, 0.8, 1.0), weight_schedule="linear") == pytest.approx(
            [0.4 * share, 0.8 * share, 1]
        )


def test_auxiliary_losses_are_discarded_from_their_epoch_on():
    weights = [lambdas(epoch, weights=(0.3,), discard_after=0.7) for epoch in range(1, 11)]
    assert weights == [[0.3, 0.3, 1.0]] * 7 + [[0.0, 0.0, 1.0]] * 3
    assert weights == [lambdas(epoch, weights=(0.3,), discard_after=7) for epoch in range(1, 11)]
