"""`freeze: trunk`: outputs added to a finished net, whose own answers stay the same to the bit."""

from collections import OrderedDict
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import auxnet
from auxnet import build, cli, rundir
from auxnet.advice import notes_of, training_doubts
from auxnet.averaging import recalibrate_norms
from auxnet.data import load_data
from auxnet.distributed import Team
from auxnet.modules import copied
from auxnet.plan import plan, planned_outputs
from auxnet.recipe import Recipe
from auxnet.resuming import newest_checkpoint

PLAIN = Recipe(depth=8, outputs=1, epochs=1, train_images=96, batch_size=32, threads=1, device="cpu")
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
METHODS = {
    "joint": {"method": "joint", "weights": (1.0,)},
    "pairwise": {"method": "pairwise"},
    "live": {"mode": "live"},
    "frozen": {"mode": "frozen"},
    "fused": {"mode": "fused"},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*has no head for output:UserWarning")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.set_num_threads(1)
    return auxnet.fit(PLAIN, tmp_path_factory.mktemp("runs") / "plain")


@torch.no_grad()  # with gradients other kernels are at work
def answers(net):
    return net(IMAGES)[-1]


@pytest.fixture
def recipe(plain):
    return replace(PLAIN, outputs=3, epochs=2, freeze="trunk", pretrained=str(plain))


@pytest.mark.parametrize("fields", METHODS.values(), ids=METHODS)
@pytest.mark.enough(1)
def test_the_final_answers_are_the_same_bits_and_the_other_outputs_learn(fields, plain, recipe, tmp_path):
    for more in ({}, {"ema": 0.9, "clip": 1.0, "weight_decay": 0.1}):
        run = auxnet.fit(replace(recipe, **fields, **more), tmp_path / f"{len(more)}")
        assert torch.equal(answers(auxnet.load(run)), answers(auxnet.load(plain)))
        *auxiliary, final = run.summary["last"]
        assert (final["val_error"], final["test_error"]) == tuple(
            plain.summary["last"][0][key] for key in ("val_error", "test_error")
        )
        losses = [row for row in newest_checkpoint(run.folder)["standing"]["history"] if row["split"] == "train"]
        for k, _ in enumerate(auxiliary, start=1):
            first, second = (row["loss"] for row in losses if row["output"] == k)
            assert second < first


@pytest.mark.long
def test_a_training_that_was_stopped_in_an_epoch_goes_on_with_a_frozen_trunk(plain, recipe, tmp_path):
    def stop(progress):
        if (progress.epoch, progress.step) == (1, 2):
            raise KeyboardInterrupt

    whole = auxnet.fit(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(recipe, tmp_path / "torn", save_every=0, watch=stop)
    torn = auxnet.fit(recipe, tmp_path / "torn", resume=True)
    assert all(map(torch.equal, torn.net.state_dict().values(), whole.net.state_dict().values()))
    assert torch.equal(answers(torn.net), answers(plain.net))


def test_all_methods_are_one_where_the_trunk_is_frozen(recipe):
    """Joint weighs the gradients of heads, the others do not."""
    dataset, made = load_data(recipe), {}
    for optimizer in ("SGD", "AdamW"):
        for name, fields in METHODS.items():
            net, method = build.build(replace(recipe, optimizer=optimizer, **fields), dataset, torch.device("cpu"))
            net.train()
            for n in range(3):
                method.step(IMAGES + n, torch.tensor([0, 1, 2, 3, 4]))
            made[name] = net.state_dict()
        assert all(torch.equal(tensor, made["live"][key]) for state in made.values() for key, tensor in state.items())


def test_a_run_hands_back_its_net_as_frozen_as_it_was(recipe, tmp_path):
    net = auxnet.fit(replace(recipe, epochs=1), tmp_path / "a").net
    before = answers(net.eval())
    method = auxnet.multiway(net.train(), partial(torch.optim.SGD, lr=0.1), mode="fused")
    method.step(torch.randn(4, *IMAGES.shape[1:]), torch.arange(4))
    assert torch.equal(answers(net.eval()), before)


def test_what_is_frozen_is_in_evaluation_whatever_mode_is_set():
    net = auxnet.resnet(depth=8, outputs=2)
    assert net.train().trained is net
    net.freeze_trunk()
    kept = [module for part in (*net.segments, net.heads[-1]) for module in part.modules()]
    assert not any(part.training for part in kept)
    assert all(part.training for part in net.train().heads[0].modules())
    assert not any(part.training for part in kept)
    assert [*net.trained] == [net.heads[0]]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    recalibrate_norms(net, [torch.rand(4, 3, 8, 8)])
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".bn.")[0] for name in moved} == {"heads.0"}


def test_a_trunk_that_is_freed_trains_again_and_one_freed_by_half_is_refused():
    net, optimizer = auxnet.resnet(depth=8, outputs=2), partial(torch.optim.SGD, lr=0.1)
    net.freeze_trunk()
    auxnet.pairwise(net, optimizer)
    net.requires_grad_(True)  # its norms would stay in evaluation mode
    for make in (auxnet.joint, auxnet.pairwise, auxnet.multiway):
        with pytest.raises(ValueError, match=r"to train again: net\.freeze_trunk\(False\) first unfreezes them all$"):
            make(net.train(), optimizer)
    net.freeze_trunk(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    auxnet.joint(net, optimizer).step(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert not [name for name, tensor in net.state_dict().items() if torch.equal(tensor, before[name])]
    one = auxnet.resnet(depth=8)
    one.freeze_trunk()
    with pytest.raises(ValueError, match=r"^the net has nothing to train, .*: net\.freeze_trunk\(False\) first$"):
        auxnet.joint(one, optimizer)


PARTS = {"up to": lambda net: net.up_to(2), "alone": lambda net: net.alone(2), "copied": copied}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_what_is_frozen_is_frozen_in_parts_of_the_net_and_copies_too(part):
    net = auxnet.resnet(depth=8, outputs=3)
    net.freeze_trunk()
    made = part(net).train()
    before = {name: tensor.clone() for name, tensor in made.named_buffers()}
    made(torch.rand(4, 3, 8, 8))
    moved = {name for name, tensor in made.named_buffers() if not torch.equal(tensor, before[name])}
    trained = {name for name, _ in made.named_buffers() if name.startswith("heads.") and name.split(".")[1] != "2"}
    assert moved == trained
    assert [*made.trained] == [*made.heads][:2]


@pytest.mark.long
def test_processes_average_the_statistics_of_what_is_trained_alone(plain, recipe, tmp_path, monkeypatch):
    """The mean of equal numbers over three processes need not be that number."""

    def average_buffers(self, net):
        for buffer in net.buffers():
            buffer += 1

    monkeypatch.setattr(Team, "average_buffers", average_buffers)
    for more in ({}, {"ema": 0.9}):
        run = auxnet.fit(replace(recipe, epochs=1, **more), tmp_path / f"{len(more)}")
        assert torch.equal(answers(run.net), answers(plain.net))
        assert run.net.heads[0].bn.num_batches_tracked > 3


@pytest.mark.long
def test_a_backbone_keeps_its_own_classifier(tmp_path):
    backbone = small(10)
    torch.save(backbone.state_dict(), tmp_path / "w.pt")
    recipe = Recipe(
        backbone="test_freezing:small",
        cuts=("a",),
        pretrained=str(tmp_path / "w.pt"),
        freeze="trunk",
        epochs=1,
        train_images=96,
        threads=1,
        device="cpu",
    )
    run = auxnet.fit(recipe, tmp_path / "run")
    backbone.eval()
    assert torch.equal(answers(auxnet.load(run)), answers(lambda x: [backbone(x)]))
    for lack in (small(7).state_dict(), {n: w for n, w in backbone.state_dict().items() if not n.startswith("fc")}):
        torch.save(lack, tmp_path / "w.pt")
        with (
            pytest.warns(UserWarning, match="the last layer of the classifier is not loaded"),
            pytest.raises(ValueError, match=r"and .*/w\.pt has no last layer for these classes: leave --freeze out$"),
        ):
            auxnet.fit(recipe, tmp_path / "other")


def small(num_classes):
    """A backbone for --backbone."""
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    end = {
        "b": nn.Conv2d(4, 8, 3),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(8, num_classes),
    }
    return nn.Sequential(OrderedDict(a=body, **end))


def test_a_run_of_other_classes_gives_no_answers_to_keep(recipe):
    dataset = load_data(recipe)
    other = replace(dataset, classes=("x", *dataset.classes[1:]))
    with (
        pytest.warns(UserWarning, match="the last layers of all outputs are not loaded"),
        pytest.raises(ValueError, match=r"plain has no last layer for these classes: leave --freeze out$"),
    ):
        build.build(recipe, other, torch.device("cpu"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pretrained": None}, "and there are none: name them with --pretrained"),
        ({"outputs": 1}, "one output leaves none: ask for more"),
        ({"alone": 2}, "alone=2 has no meaning beside freeze='trunk'"),
        ({"method": "joint", "aggregator": "UPGrad"}, "aggregator='UPGrad' has no meaning beside"),
        ({"weights": (0.0, 1.0, 1.0)}, "one of weight 0 would not train: give it more"),
        ({"step_scale": "none"}, "step_scale='none' has no meaning beside"),
        ({"discard_after": 1}, "discard_after=1.0 has no meaning beside"),
        ({"precision": "bfloat16"}, "precision='bfloat16' has no meaning beside"),
    ],
)
def test_what_leaves_nothing_to_freeze_or_to_train_is_refused(fields, message, recipe, tmp_path):
    for use in (lambda made: auxnet.fit(made, tmp_path / "run"), plan):
        with pytest.raises(ValueError, match=message):
            use(replace(recipe, **fields))


def test_the_trunk_is_planned_not_to_move(recipe):
    planned = planned_outputs(recipe, load_data(recipe))
    assert {(row.step, row.steps_above, row.decay) for row in planned} == {(0.0, 0.0, 0.0)}
    (note,) = notes_of(recipe, (3, 5, 8))
    kept = "freeze trunk: the trunk and the final output stay as they are; auxiliary heads take"
    assert note == f"{kept} the full step, whatever lambda"
    assert [*notes_of(replace(recipe, method="joint"), (3, 5, 8))] == [f"{kept} lambda times the step"]
    assert not [each for each in plan(recipe).warnings if "over-fit" in each]
    assert [*training_doubts(replace(recipe, optimizer="AdamW", lr=0.001, weight_decay=0.02), (3, 5, 8))] == []


def test_all_commands_work_on_such_a_run(recipe, tmp_path, capsys):
    run = auxnet.fit(recipe, tmp_path / "run")
    for words in (
        ["plan", "--config", str(run.folder / "recipe.yaml")],
        ["report", str(run)],
        ["select", str(run)],
        ["exits", str(run), "--max-error-increase", "5"],
        ["export", str(run), "--output", "1", "--format", "safetensors", "--out", str(tmp_path / "one")],
    ):
        assert cli.main(words) == 0, capsys.readouterr().err
    assert cli.main(["diagnose", str(run)]) == 2
    assert "no supervision reached its trunk, which was frozen" in capsys.readouterr().err
    with pytest.raises(ValueError, match="what supervises the trunk, and freeze='trunk' lets nothing"):
        auxnet.fit(recipe, tmp_path / "diagnosed", diagnose=True)


def test_the_best_epoch_is_that_of_the_mean_over_outputs(recipe, tmp_path):
    run = auxnet.fit(replace(recipe, epochs=3), tmp_path / "run")
    rows = [row for row in rundir.read_metrics(run.folder) if row["split"] == "val"]
    means = [sum(row["error"] for row in rows if row["epoch"] == epoch) for epoch in (1, 2, 3)]
    assert run.summary["epochs"]["best"] == 1 + means.index(min(means))
