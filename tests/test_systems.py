"""The systems that AuxNet grew from: each a handful of recipe fields, that train and are what they are called."""

from dataclasses import replace

import pytest
import torch

import auxnet
from auxnet import build, rundir, schedules
from auxnet.data import load_data
from auxnet.studies.spec import read_study

SCALES = ("smoke", "small", "full")
STUDIES = {scale: read_study("systems", scale) for scale in SCALES}
SYSTEMS = STUDIES["smoke"].variants


def recipe_of(system, scale="smoke", **more):
    return replace(STUDIES[scale].recipe(system, STUDIES[scale].datasets[0]), **more)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.enough(10)
def test_every_system_is_a_recipe_at_every_scale(system, scale):
    """Its net can be built, and its weights fit the outputs in every epoch."""
    recipe = recipe_of(system, scale)
    digits = load_data(recipe_of(system))
    options = build.network_options(recipe, digits)
    with torch.device("meta"):
        net = build.net_from(options)
    build.build_method(recipe, net, torch.nn.functional.cross_entropy)
    for epoch in range(1, recipe.epochs + 1):
        assert len(schedules.lambdas_at(recipe, net.depths, epoch)) == net.outputs


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.enough(2)
def test_every_system_trains(system, tmp_path):
    recipe = recipe_of(system, depth=8, epochs=1, batch_size=256, threads=1, device="cpu")
    run = auxnet.fit(recipe, tmp_path / "a")
    assert len(run.summary["last"]) == run.net.outputs
    losses = [row["loss"] for row in rundir.read_metrics(run.folder)]
    assert all(0 < loss < 100 for loss in losses)


def depths_of(system, scale):
    options = build.network_options(recipe_of(system, scale), load_data(recipe_of(system)))
    with torch.device("meta"):
        return build.net_from(options).depths


def test_outputs_sit_where_each_system_has_them():
    assert depths_of("resnet", "full") == (56,)
    assert depths_of("dsn", "full") == (19, 37, 56)  # the ends of the three stages of nine blocks
    assert depths_of("deepid", "small") == (3, 5, 7, 9, 11, 13, 15, 17, 20)
    assert len(depths_of("googlenet", "full")) == 3
    assert depths_of("auxnet-multiway", "full") == (19, 37, 56)


def test_loss_weights_are_those_of_each_system():
    def weights(system, epoch):
        return schedules.lambdas_at(recipe_of(system, "full"), depths_of(system, "full"), epoch)

    assert weights("googlenet", 400) == [0.3, 0.3, 1.0]
    assert weights("branchynet", 400) == [1.0, 0.3, 0.3]
    assert weights("dsn", 1) == [0.3, 0.3, 1.0]
    assert weights("dsn", 101) == pytest.approx([0.225, 0.225, 1.0])
    assert weights("dsn", 200)[0] > 0
    assert weights("dsn", 201) == [0.0, 0.0, 1.0]
    assert weights("auxnet-multiway", 1) == pytest.approx([(d / 56) ** 2 for d in (19, 37, 56)])
