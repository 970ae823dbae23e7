"""The laws of training in many processes: real ones, that talk by gloo, against one process with the whole batch."""

import copy
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore
from torch.utils._python_dispatch import TorchDispatchMode

import auxnet
from auxnet.distributed import Team, team
from auxnet.synchronised import synchronise_norms
from auxnet.update import Update, averaged
from teamwork import (
    METHODS,
    SCENARIOS,
    SGD,
    WEIGHTS,
    batches,
    free_ports,
    main,
    norms_and_inputs,
    small_net,
    small_resnet,
    started,
    trained,
)

TEAMWORK = str(Path(__file__).with_name("teamwork.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PARTS = {  # the parts of batches of 8, 5 and 2 images; one of fewer images than processes is taken whole by each
    2: {8: [4, 4], 5: [2, 3], 2: [1, 1]},
    3: {8: [2, 3, 3], 5: [1, 2, 2], 2: [2]},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes saw that torchrun started."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, TEAMWORK, str(folder)], check=True, timeout=120, env=ENVIRONMENT)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """What each of three processes saw, of which the last is then killed and the one before it stopped."""
    folder = tmp_path_factory.mktemp("three")
    processes = started(3, main, folder, *free_ports(1))
    try:
        processes[0].join(120)
        processes[2].join(10)
        assert (processes[0].exitcode, processes[2].exitcode) == (0, -signal.SIGKILL)
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(3)]


@pytest.fixture(params=[pytest.param("two", marks=pytest.mark.long), "three"])
def saw(request):
    """What each process of a team saw."""
    return request.getfixturevalue(request.param)


def assert_equal(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance)


class NormOfParts(nn.BatchNorm2d):
    """In one process, what BatchNorm does in many: each part of the batch is normalised by itself, out by hand."""

    parts: dict

    def forward(self, x):
        parts = x.split(self.parts[len(x)])
        means = [part.mean((0, 2, 3), keepdim=True) for part in parts]
        variances = [((part - m) ** 2).mean((0, 2, 3), keepdim=True) for part, m in zip(parts, means, strict=True)]
        if self.track_running_stats:
            self.num_batches_tracked += 1
            values = [part.numel() / part.shape[1] for part in parts]
            unbiased = [v.detach() * n / (n - 1) for v, n in zip(variances, values, strict=True)]
            for running, new in (self.running_mean, means), (self.running_var, unbiased):
                running.mul_(0.9).add_(0.1 * torch.stack(new).mean(0).detach().flatten())
        normalised = torch.cat(
            [(part - m) / (v + self.eps).sqrt() for part, m, v in zip(parts, means, variances, strict=True)]
        )
        return normalised * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def net_of_parts(size):
    net = small_net()
    for norm in [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.__class__, norm.parts = NormOfParts, PARTS[size]
    return net


# ---- every method, in many processes and in one ----------------------------------------------------------------------


def test_the_adaptive_rule_acts_in_these_scenarios():
    _, adaptive = trained(small_net(), METHODS["adaptive"])
    _, cumulative = trained(small_net(), METHODS["live"])
    assert max(float((adaptive[key] - cumulative[key]).abs().max()) for key in adaptive) > 1e-3


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_weights_and_losses_are_the_same_to_the_bit_in_every_process(saw, scenario):
    (losses, weights, _, buffers), *others = (each["scenarios"][scenario] for each in saw)
    for other_losses, other_weights, _, other_buffers in others:
        assert torch.equal(losses, other_losses)
        assert_equal(weights, other_weights)
        assert_equal(buffers, other_buffers)


@pytest.mark.parametrize(("name", "clip"), [s[:2] for s in SCENARIOS if s[2] == "synchronised"])
def test_with_synchronised_norms_many_processes_are_one_with_the_whole_batch(saw, name, clip):
    net = small_net()
    losses, weights = trained(net, METHODS[name], clip=clip)
    made_losses, made_weights, own, averaged_buffers = saw[0]["scenarios"][name, clip, "synchronised"]
    torch.testing.assert_close(made_losses, losses, rtol=1e-10, atol=1e-10)
    assert_equal(made_weights, weights, 1e-10)
    assert_equal(own, dict(net.named_buffers()), 1e-10)
    assert_equal(averaged_buffers, dict(net.named_buffers()), 1e-10)


@pytest.mark.parametrize(("name", "clip"), [s[:2] for s in SCENARIOS if s[2] == "per process"])
def test_with_norms_per_process_each_part_is_normalised_by_itself(saw, name, clip):
    net = net_of_parts(len(saw))
    losses, weights = trained(net, METHODS[name], clip=clip)
    made_losses, made_weights, own, averaged_buffers = saw[0]["scenarios"][name, clip, "per process"]
    torch.testing.assert_close(made_losses, losses, rtol=1e-10, atol=1e-10)
    assert_equal(made_weights, weights, 1e-10)
    assert_equal(averaged_buffers, dict(net.named_buffers()), 1e-10)
    assert not torch.allclose(own["segments.0.1.running_mean"], averaged_buffers["segments.0.1.running_mean"])


def test_a_resnet_trains_as_in_one_process_and_evaluates_by_its_running_statistics(saw):
    net = small_resnet()
    losses, weights = trained(net, auxnet.multiway)
    made_losses, made_weights, made_logits = saw[0]["resnet"]
    torch.testing.assert_close(made_losses, losses, rtol=1e-10, atol=1e-10)
    assert_equal(made_weights, weights, 1e-10)
    for made, logits in zip(made_logits, net.eval()(torch.ones(1, 2, 4, 4).double()), strict=True):
        torch.testing.assert_close(made, logits, rtol=1e-8, atol=1e-8)  # logits of a thousand


def test_every_kind_of_synchronised_norm_is_batchnorm_of_the_whole_batch(saw):
    for i, (norm, x, weight) in enumerate(norms_and_inputs()):
        y = norm(x.requires_grad_())
        gradients = torch.autograd.grad((y * weight).sum() / len(x), [x, *norm.parameters()])
        outputs, made, states = zip(*(each["norms"][i] for each in saw), strict=True)
        tolerance = 1e-12 if x.dtype == torch.float64 else 2e-3  # 1000 +- 1 in float32: squares would lose the 1
        torch.testing.assert_close(torch.cat(outputs), y.detach(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(torch.cat([g[0] for g in made]), gradients[0], rtol=tolerance, atol=tolerance)
        for a, b in zip(made[0][1:], gradients[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert_equal(states[0], norm.state_dict(), tolerance)


# ---- what a team does ------------------------------------------------------------------------------------------------


def test_the_parts_hold_every_thing_once_and_differ_by_one_at_most(saw):
    assert [(each["rank"], each["size"], each["leads"]) for each in saw] == [
        (r, len(saw), r == 0) for r in range(len(saw))
    ]
    for n in range(10):
        parts = [each["slices"][n] for each in saw]
        assert list(chain.from_iterable(parts)) == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_is_shared_in_order_and_weighted_by_images(saw):
    for n in range(1, 10):
        shares = [each["shares"][n - 1] for each in saw]
        whole = torch.arange(n)
        assert sum(weight for _, weight in shares) == pytest.approx(1)
        for (part, beside), weight in shares:
            assert torch.equal(beside, part + 0.5)
            assert weight == pytest.approx(len(part) / n if n >= len(saw) else 1 / len(saw))
        if n >= len(saw):
            assert torch.equal(torch.cat([part for (part, _), _ in shares]), whole)
        else:
            assert all(torch.equal(part, whole) for (part, _), _ in shares)


def test_sums_are_exact_and_leave_their_terms_alone(saw):
    size = len(saw)
    for each in saw:
        assert each["sum"].tolist() == [size * 2**60 + sum(range(size)), -size, sum(range(size))]
        assert torch.equal(each["strided sum"], size * each["untouched"])
        assert torch.equal(each["untouched"], torch.arange(6.0).view(2, 3).T)
        assert each["any"] == [False, True, True]


def test_the_first_process_gives_the_others_its_net_and_its_state(saw):
    first = saw[0]
    for each in saw:
        assert_equal(each["after"], first["before"])
        assert each["handed out"]["name"] == first["mine"]["name"]
        assert torch.equal(each["handed out"]["weights"][0], first["mine"]["weights"][0])
    assert not torch.equal(saw[1]["before"]["segments.0.0.weight"], first["before"]["segments.0.0.weight"])


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_when_a_process_is_killed_the_others_fail_within_seconds(three):
    for each in three[:2]:
        message, seconds = each["killed"]
        assert f"process {each['rank']} (of 3, from 0) lost the others: " in message
        assert "\n" not in message
        assert ".cc" not in message
        assert seconds < 10


@pytest.mark.long
def test_no_thread_of_a_team_is_left_to_need_python_while_it_shuts_down(two):
    """One that did aborted the process, now and then."""
    for each in two:
        assert not [name for name in each["threads left"] if "gloo" in name]


def test_when_a_process_stops_answering_the_others_fail_after_the_timeout(three):
    message, seconds = three[0]["stopped"]  # the timeout is 2 seconds there
    assert "process 0 (of 2, from 0) lost the others: Timed out" in message
    assert 1.5 < seconds < 10


def test_a_team_that_cannot_be_says_why(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"), team():
        pass
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"'cpu' or 'cuda'.* got 'mps'"), team("mps"):
        pass
    with pytest.raises(ValueError, match=r"'cpu' or 'cuda'.* got 'cuda:0'"), team("cuda:0"):
        pass
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"no GPU is left for process 1 .* --nproc-per-node 1"), team("cuda"):
        pass
    with pytest.raises(RuntimeError, match=r"process 1 \(of 2, from 0\) did not find the others"), team(joining=0.5):
        pass


def test_a_team_that_torchrun_starts_anew_finds_itself_beside_the_addresses_of_the_dead(monkeypatch):
    """Its store lives through all restarts."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def join_and_die():
        os.environ["MASTER_PORT"] = str(store.port)
        with team(joining=5.0) as joined:
            os._exit(int(joined.sum(torch.ones(1))))

    for restart in "01":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        processes = started(2, join_and_die)
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [2, 2]


def test_teams_that_follow_each_other_take_no_addresses_of_those_before(monkeypatch):
    """As in a script that trains several recipes under torchrun, where one process may be ahead of the others."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def join_again_and_again():
        os.environ["MASTER_PORT"] = str(store.port)
        for number in range(3):
            if os.environ["RANK"] == "0":
                time.sleep(0.2 * number)
            with team(joining=5.0) as joined:
                assert int(joined.sum(torch.ones(1))) == 2

    processes = started(2, join_again_and_again)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


# ---- alone -----------------------------------------------------------------------------------------------------------


def test_a_team_of_one_changes_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with team() as t:
        assert not torch.distributed.is_initialized()
        net, x = small_net(), torch.randn(3)
        kinds = [type(m) for m in net.modules()]
        before = copy.deepcopy(net.state_dict())
        t.broadcast(net)
        t.average_buffers(net)
        synchronise_norms(net, t)
        assert_equal(net.state_dict(), before)
        assert [type(m) for m in net.modules()] == kinds
        assert t.leads
        assert t.average(x) is x
        assert t.sum(x) is x
        assert t.from_leader(lambda: before) is before
        assert (t.any(True), t.any(False)) == (True, False)
        assert torch.equal(x[t.part(len(x))], x)
        assert list(range(5))[t.own(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", METHODS)
def test_to_average_over_one_process_is_to_do_nothing_to_the_bit(name):
    _, plain = trained(small_net(), METHODS[name])
    _, made = trained(small_net(), METHODS[name], average=Team().average)
    assert_equal(made, plain)


@pytest.mark.parametrize(
    ("name", "messages"), [("joint", 1), ("pairwise", 3), ("live", 3), ("frozen", 3), ("fused", 1)]
)
def test_an_update_sends_one_message_and_the_losses_one_more(name, messages):
    sent = []

    def average(tensor):
        sent.append(tensor.numel())
        return tensor

    net = small_net()
    for p in net.segments[0].parameters():
        p.requires_grad_(False)
    method = METHODS[name](net, SGD, WEIGHTS, average=average)
    method.step(*next(batches()))
    assert sorted(sent) == sorted([3, *(sum(p.numel() for p in update.parameters) for update in method.updates)])
    assert len(sent) == messages + 1


class Called(TorchDispatchMode):
    """The operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_gradients_are_averaged_to_the_bit_in_their_strides_and_copied_once():
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    given = [image, torch.randn(()), torch.randn(5, 3).T, torch.randn(9)[2:6].double()]
    with Called() as called:
        first, none, *others = averaged([given[0], None, *given[1:]], lambda flat: flat * 0.7)
    assert none is None
    for g, mean in zip(given, [first, *others], strict=True):
        assert torch.equal(mean, (g.double() * 0.7).to(g.dtype))
        assert (mean.stride(), mean.dtype) == (g.stride(), g.dtype)
    assert [name for name in called.names if name in ("cat", "mul", "clone", "copy_")] == ["cat", "mul"]


def test_an_update_averages_gradients_of_any_kind():
    """With gaps between them, expanded, transposed, sparse, of another type than the weights."""
    wide = torch.randn(4, 6)
    kinds = [wide[:, :2], wide[:, 2:], torch.ones(1).expand(3), torch.randn(3, 2).T, torch.randn(3, 2).to_sparse()]
    weights = [torch.zeros(4, 6)[:, :2], torch.zeros(4, 6)[:, 2:], torch.zeros(3), torch.zeros(2, 3), torch.zeros(3, 2)]
    kinds, weights = [*kinds, torch.randn(3)], [*weights, torch.zeros(3, dtype=torch.float64)]
    update = Update(partial(torch.optim.SGD, lr=1.0), [[nn.Parameter(w) for w in weights]], average=torch.clone)
    update([*kinds])
    for p, g in zip(update.parameters, kinds, strict=True):
        assert torch.equal(p, -g.to_dense().to(p.dtype))


class AsOnCuda(TorchDispatchMode):
    """BatchNorm's backward as CUDA has it: no sums without a weight, and the derivative of images in NCHW."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.native_batch_norm_backward.default:
            return out
        dx, *sums = out
        return dx if dx is None else dx.contiguous(), *(each if args[2] is not None else each[:0] for each in sums)


@pytest.mark.parametrize("affine", [True, False])
def test_a_synchronised_norm_goes_back_as_an_ordinary_one_in_the_layout_of_its_images(affine):
    norm = nn.BatchNorm2d(4, affine=affine).double()
    mine = copy.deepcopy(norm)
    synchronise_norms(mine, Team(0, 2))
    mine.team = Team()
    mine.team.weigh(6)
    x = torch.randn(6, 4, 5, 5).double().contiguous(memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn(6, 4, 5, 5).double()
    with AsOnCuda():
        made = torch.autograd.grad(mine(x), [x, *mine.parameters()], dy)
    torch.testing.assert_close(made, torch.autograd.grad(norm(x), [x, *norm.parameters()], dy))
    assert made[0].stride() == x.stride()


def test_synchronised_norms_without_a_shared_batch_say_so():
    net = nn.BatchNorm2d(3)
    synchronise_norms(net, Team(0, 2))
    net.team = Team()  # nobody to talk to here, and no batch shared
    with pytest.raises(ValueError, match=r"was Team\.weigh told its size"):
        net(torch.randn(2, 3, 4, 4))


def test_a_copied_net_stays_in_its_team():
    net, t = nn.Sequential(nn.BatchNorm2d(3)), Team(0, 2)
    synchronise_norms(net, t)
    assert copy.deepcopy(net)[0].team is t
    assert list(net.state_dict()) == list(nn.Sequential(nn.BatchNorm2d(3)).state_dict())
