"""What an output costs: memory counted by hand, turns taken, and what is refused."""

import pytest
import torch
from torch import nn

import auxnet
from auxnet import latency, machine


class Flat(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("batch", [1, 1000])
def test_peak_memory_is_weights_images_and_the_two_largest_neighbours(batch):
    weights = 10 * 100 + 100 + 100 * 5 + 5
    model = Flat(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 5))
    # While ReLU works, its input and its result are both held, and the images are the caller's throughout.
    assert latency.peak_bytes(model, (10, 1, 1), batch) == 4 * (weights + batch * (10 + 100 + 100))


def test_work_in_place_holds_nothing_more():
    model = Flat(nn.Linear(10, 100), nn.ReLU(inplace=True), nn.Linear(100, 5))
    assert latency.peak_bytes(model, (10, 1, 1), 1000) == 4 * (1605 + 1000 * (10 + 100 + 5))


def test_peak_memory_is_the_same_every_time_and_leaves_the_model_as_it_was():
    model = auxnet.resnet(depth=8, outputs=2).truncate(1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert latency.peak_bytes(model, (3, 8, 8)) == latency.peak_bytes(model, (3, 8, 8))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_each_output_is_measured_at_each_batch_size_with_the_threads_stated():
    net = auxnet.resnet(depth=8, outputs=3)
    found = latency.latencies(net, (3, 8, 8), batch_sizes=(1, 4), seconds=0.05)
    assert [one.output for one in found] == [1, 2, 3]
    for one in found:
        assert (one.device, one.threads) == ("cpu", 1)
        assert [timing.batch for timing in one.timings] == [1, 4]
        for timing in one.timings:
            assert 0 < timing.low_ms <= timing.median_ms <= timing.high_ms
            assert timing.images_per_second == pytest.approx(1000 * timing.batch / timing.median_ms)
            assert timing.runs >= 7
    for one in found:
        alone = net.truncate(one.output)
        assert one.peak_bytes == tuple(latency.peak_bytes(alone, (3, 8, 8), batch) for batch in (1, 4))
    assert [one.peak_bytes for one in found] == sorted(one.peak_bytes for one in found)


def test_models_take_turns():
    turns = []

    class Noted(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.weight = name, nn.Parameter(torch.zeros(1))

        def forward(self, images):
            turns.append((self.name, images.shape[0], self.training))
            return images

    latency.time_in_turns([Noted("a"), Noted("b")], (1, 2, 2), 3, seconds=1e-6, least=5)
    assert turns == [("a", 3, False), ("b", 3, False)] * (2 + 5)


def test_a_slow_first_call_does_not_count_in_how_many_turns_are_measured(monkeypatch):
    calls = iter([500.0])
    monkeypatch.setattr(latency, "_milliseconds", lambda model, images: next(calls, 1.0))
    monkeypatch.setattr(latency, "MOST_TURNS", 1000)
    (timing,) = latency.time_in_turns([nn.Linear(1, 1)], (1, 2, 2), 3, seconds=0.2)
    assert (timing.runs, timing.median_ms) == (200, 1.0)


def test_the_threads_are_those_at_hand_and_more_than_the_cores_are_told():
    net = auxnet.resnet(depth=8, outputs=1)
    torch.set_num_threads(machine.cores() + 1)
    with pytest.warns(UserWarning, match="measured may be too long: .* threads for .* CPU cores wait for each other"):
        found = latency.latencies(net, (3, 8, 8), (1,), seconds=0.01)
    assert found[0].threads == torch.get_num_threads() == machine.cores() + 1


def test_threads_are_given_back():
    with machine.threads_set(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("number", "rule"), [(0, "1 or more"), (2**31, r"below 2\*\*31")])
def test_no_threads_and_more_than_can_be_counted_are_refused(number, rule):
    with pytest.raises(ValueError, match=f"threads must be {rule}, got {number}"), machine.threads_set(number):
        pass
