"""The moving average of a net: its weights by hand, its norms those of its own weights, at every output."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import auxnet
from auxnet import averaging, build, epochs, resuming, rundir, train
from auxnet.averaging import copy_buffers, recalibrate_norms, update_average
from auxnet.data import load_data
from auxnet.evaluation import tally
from auxnet.recipe import Recipe

TINY = Recipe(
    depth=8, outputs=3, epochs=3, train_images=96, batch_size=16, threads=1, device="cpu", ema=0.9, augment="crop+flip"
)


def norms_of(net):
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_the_average_is_the_recursion_written_out():
    net = nn.Linear(2, 2).double()
    average, by_hand = copy.deepcopy(net), net.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            net.weight += step
        update_average(average, net, 0.6, step)
        d = min(0.6, step / (9 + step))
        by_hand = d * by_hand + (1 - d) * net.weight.detach()
    torch.testing.assert_close(average.weight.detach(), by_hand)


def test_settled_norms_hold_the_mean_over_images_of_what_reaches_them():
    """Every norm, heads' too, against its input caught on the way, in float64; and all else is left as it was."""
    torch.manual_seed(0)
    net = auxnet.resnet(depth=8, outputs=3).double().train()
    before = {name: p.clone() for name, p in net.named_parameters()}
    batches = [torch.randn(n, 3, 8, 8, dtype=torch.float64) + 1 for n in (4, 6, 5, 1)]
    seen = {name: [] for name in norms_of(net)}
    hooks = [
        norm.register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0].detach().clone()))
        for name, norm in norms_of(net).items()
    ]
    recalibrate_norms(net, batches)
    for hook in hooks:
        hook.remove()
    assert any(name.startswith("heads.") for name in seen)
    for name, norm in norms_of(net).items():
        assert [len(x) for x in seen[name]] == [4, 6, 5, 1]
        torch.testing.assert_close(norm.running_mean, torch.cat(seen[name]).mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, sum(len(x) * x.var((0, 2, 3)) for x in seen[name]) / 16)
        assert norm.momentum == 0.1
    assert not any(m.training for m in net.modules())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_norms_that_a_net_keeps_in_evaluation_keep_their_statistics():
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Frozen(4), nn.BatchNorm2d(4))
    recalibrate_norms(net, [torch.randn(2, 3, 4, 4) + 3])
    assert torch.equal(net[1].running_mean, torch.zeros(4))
    assert torch.equal(net[1].running_var, torch.ones(4))
    assert net[2].running_mean.all()


def test_the_norms_of_an_average_are_right_at_every_output_where_those_of_the_net_are_wrong():
    """In a batch, a net in evaluation mode should say what it says when it normalises by the batch itself."""
    data = load_data(TINY)
    net, method = build.build(TINY, data, torch.device("cpu"))
    average = copy.deepcopy(net)
    net.train()
    for epoch in (1, 2, 3):
        for step, (x, y) in enumerate(build.training_batches(TINY, data, torch.device("cpu"), epoch), start=1):
            method.step(x, y)
            update_average(average, net, 0.95, 6 * (epoch - 1) + step)
    x = torch.cat([x for x, _ in build.training_batches(TINY, data, torch.device("cpu"), 3)])
    with torch.no_grad():
        expected = copy.deepcopy(average).train()(x)
        borrowed = copy.deepcopy(average).eval()
        for mine, own in zip(borrowed.buffers(), net.buffers(), strict=True):
            mine.copy_(own)
        wrong = [float((a - b).abs().mean()) for a, b in zip(borrowed(x), expected, strict=True)]
        recalibrate_norms(average, (x for x, _ in build.training_batches(TINY, data, torch.device("cpu"), 3)))
        right = [float((a - b).abs().mean()) for a, b in zip(average(x), expected, strict=True)]
    assert all(r < 0.2 * w for r, w in zip(right, wrong, strict=True)), (right, wrong)


class Placed(nn.Module):
    """Adds a grid of positions, made anew for images of another size."""

    def __init__(self):
        super().__init__()
        self.grid, self.seen = nn.Buffer(None), nn.Buffer(torch.zeros(1))
        self.filters = nn.Buffer(torch.ones(1, 1, 3, 3).expand(4, 1, 3, 3))

    def forward(self, x):
        self.seen += 1
        if self.grid is None or self.grid.shape != x.shape[1:]:
            self.grid = torch.arange(float(x[0].numel())).view_as(x[0])
        return x + self.grid


def test_buffers_that_take_another_shape_in_training_are_taken_too():
    net = nn.Sequential(Placed())
    average = copy.deepcopy(net)
    seen = average[0].seen
    for size in (4, 6):
        net(torch.zeros(1, 3, size, size))
        copy_buffers(average, net)
        assert all(map(torch.equal, average.buffers(), net.buffers()))
        assert average[0].grid is not net[0].grid
        assert average[0].seen is seen


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return auxnet.fit(TINY, tmp_path_factory.mktemp("runs") / "a")


def test_the_average_is_what_is_validated_saved_and_handed_back(run):
    dataset, cpu = load_data(TINY), torch.device("cpu")
    state = resuming.newest_checkpoint(run.folder)
    loaded = auxnet.load(run.folder)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, run.net.state_dict()[name])
        assert torch.equal(tensor, state["average"][name])
    trained = state["net"]["segments.0.0.weight"]
    assert not torch.equal(trained, loaded.state_dict()["segments.0.0.weight"])
    said = tally(loaded, build.evaluation_batches(dataset.val, dataset, cpu))
    rows = [row for row in rundir.read_metrics(run.folder) if row["epoch"] == 3 and row["split"] == "val"]
    assert [row["error"] for row in rows] == (said[1].double() / len(dataset.val)).tolist()
    assert train.tables(run.folder, dataset, cpu)["best"] == run.summary["best"]


def test_training_itself_does_not_feel_the_average(run, tmp_path):
    auxnet.fit(replace(TINY, ema=None), tmp_path / "b")
    net = resuming.newest_checkpoint(tmp_path / "b")["net"]
    for name, tensor in resuming.newest_checkpoint(run.folder)["net"].items():
        assert torch.equal(tensor, net[name])


def test_norms_are_measured_on_so_many_batches_at_most(run, tmp_path, monkeypatch):
    counts = []

    def counted(net, batches):
        images = list(batches)
        counts.append(len(images))
        averaging.recalibrate_norms(net, images)

    monkeypatch.setattr(epochs, "recalibrate_norms", counted)
    monkeypatch.setattr(epochs, "RECALIBRATION_BATCHES", 4)
    auxnet.fit(replace(TINY, epochs=2), tmp_path / "b")
    assert counts == [4, 4]  # of 6 batches


def test_no_norm_of_an_average_waits_for_the_device():
    """On "meta" reading a value is an error."""
    net = auxnet.resnet(8, 2).to("meta")
    recalibrate_norms(net, [torch.randn(4, 3, 8, 8, device="meta")] * 2)
