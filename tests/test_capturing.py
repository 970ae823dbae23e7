"""Steps as graphs: what is recorded and replayed trains to the bits of steps one by one. The graph here is a CPU's."""

import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial, wraps

import pytest
import torch
from torch.utils._pytree import tree_leaves

import auxnet
from auxnet import Recipe, build, capturing, signals
from auxnet import plan as planning
from auxnet.capturing import captured
from auxnet.losses import cross_entropy, distilled
from auxnet.plan import MEASURED_STEPS
from auxnet.precision import to_bfloat16
from auxnet.wavefront import ordered_passes
from cpu_graphs import Device, Graph, Recorder
from test_methods import sgd

LAMBDAS = (0.5, 0.8, 1.0)
LOSS = cross_entropy
DISTILL = partial(distilled, loss=LOSS, share=0.3, temperature=2.0)
METHODS = {
    "joint": auxnet.joint,
    "joint, distilled": partial(auxnet.joint, distill=DISTILL),
    "pair-wise": auxnet.pairwise,
    "live": auxnet.multiway,
    "live, clipped": partial(auxnet.multiway, clip=0.1),
    "live, distilled": partial(auxnet.multiway, distill=DISTILL),
    "live, one momentum": partial(auxnet.multiway, state="shared"),
    "live, deep first": partial(auxnet.multiway, order="deep_first"),
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "fused": partial(auxnet.multiway, mode="fused"),
}


def conv_net():
    """With norms: BatchNorm's statistics are among what a graph could lose."""
    torch.manual_seed(3)
    return auxnet.resnet(depth=8, outputs=3, num_classes=3)


def batches(*sizes, dtype=torch.float32):
    g = torch.Generator().manual_seed(4)
    return [(torch.randn(n, 3, 8, 8, generator=g).to(dtype), torch.randint(3, (n,), generator=g)) for n in sizes]


def everything(net, method):
    states = [update.optimizer.state_dict()["state"] for update in method.updates]
    return [*net.state_dict().values(), *method.masters(), *tree_leaves(states)]


def trained(make, recorder=None, happens=None, sizes=(6,) * 12, optimizer=None, dtype=torch.float32, change=None):
    """What is left of a net after steps, its losses, and the recorder: `happens` is done, by number, before a step."""
    net = conv_net() if dtype == torch.float32 else to_bfloat16(conv_net())
    if change is not None:
        change(net.segments)
    method = make(net, optimizer or sgd(), LAMBDAS, loss=LOSS)
    made = recorder and recorder(net, method)
    stepping = captured(method, made, nullcontext) if made else method
    losses = []
    for number, batch in enumerate(batches(*sizes, dtype=dtype)):
        (happens or {}).get(number, lambda method: None)(stepping)
        losses.append(stepping.step(*batch))
    return [*everything(net, method), *losses], made


@cache
def one_by_one(make):
    """What is left of a net after steps one by one: the same for all laws of them."""
    return trained(make)[0]


def same_bits(make, recorder=Recorder, **options):
    """The recorder of a training by graphs, whose every bit is that of steps one by one."""
    by_itself = trained(make, **options)[0] if options else one_by_one(make)
    replayed, made = trained(make, recorder, **options)
    assert len(by_itself) == len(replayed) > 20
    for a, b in zip(by_itself, replayed, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return made


def slower(method):
    method.set_lr(0.01)


def reweighed(method):
    method.set_weights([0.2, 0.0, 1.0])


def taken_back(method):
    method.load_state_dict(method.state_dict())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "happens", [{}, {"happens": {5: slower}}, {"happens": {5: reweighed, 9: slower}}, {"happens": {6: taken_back}}]
)
@pytest.mark.enough(9)
def test_replayed_steps_train_to_the_bits_of_steps_one_by_one(name, happens):
    assert same_bits(METHODS[name], **happens).replayed >= 3


@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.bfloat16}, {"optimizer": partial(torch.optim.AdamW, lr=1e-3, fused=True)}],
    ids=["masters", "AdamW"],
)
def test_so_do_those_of_bfloat16_and_of_an_optimizer_that_counts(options):
    assert same_bits(auxnet.multiway, happens={6: slower}, **options).replayed > 3


LIVE = ("live", "live, distilled", "live, one momentum", "live, deep first")


@pytest.mark.enough(5)
@pytest.mark.parametrize("name", METHODS)
def test_live_is_recorded_in_pieces_of_a_backward_and_a_segment_which_take_any_order_that_they_allow(name):
    """Three outputs have the backwards 1, 2 and 3, through one, two and three segments, and a forward."""
    recorder = same_bits(METHODS[name])
    pieces = {len(order) for order in recorder.orders}
    assert pieces == {1 + 1 + 2 + 3 if name in LIVE else 1}
    assert (len(recorder.orders) > 1) == (name in LIVE)


class Cut(torch.nn.Module):
    """Lets no gradient through."""

    def forward(self, x):
        return x.detach()


class Shifted(torch.nn.Module):
    """Its parameter's gradient may be the very tensor that goes on downwards."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.full((6, 16, 8, 8), 0.1))

    def forward(self, x):
        return x + self.shift


def frozen(*numbers):
    def change(segments):
        for number in numbers:
            segments[number - 1].requires_grad_(False)

    return change


def followed_by(number, module):
    def change(segments):
        segments[number - 1] = torch.nn.Sequential(segments[number - 1], module())

    return change


def begun_by(number, module):
    def change(segments):
        segments[number - 1] = torch.nn.Sequential(module(), segments[number - 1])

    return change


@pytest.mark.parametrize(
    ("change", "pieces"),
    [
        (frozen(1), 1 + 1 + 1 + 2),
        (frozen(1, 2), 1 + 1 + 1 + 1),
        (frozen(1, 2, 3), 1 + 1 + 1 + 1),
        (frozen(2), 1 + 1 + 2 + 3),
        (followed_by(1, Cut), 1 + 1 + 2 + 3),
        (begun_by(2, Shifted), 1 + 1 + 2 + 3),
    ],
    ids=["frozen below", "frozen up to the last", "frozen", "frozen in the middle", "cut", "shifted"],
)
def test_so_are_nets_through_which_gradients_go_in_other_ways(change, pieces):
    optimizer = partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True, foreach=True)  # writes over gradients
    recorder = same_bits(auxnet.multiway, change=change, optimizer=optimizer)
    assert recorder.replayed == 9
    assert {len(order) for order in recorder.orders} == {pieces}


@pytest.mark.parametrize("turns", [(1, 2, 3, 4), (4, 3, 2, 1), (1, 3, 4), (2,)])
def test_a_backward_goes_through_a_segment_as_soon_as_the_one_before_it_has_updated_it(turns):
    parts = list(ordered_passes(turns))
    assert sorted(parts) == [(k, j) for k in sorted(turns) for j in range(1, k + 1)]
    for k, j in parts:
        others = [earlier for earlier in turns[: turns.index(k)] if earlier >= j]
        needed = [(k, j + 1)] * (j < k) + [(each, j) for each in others[-1:]]
        assert ordered_passes(turns)[k, j] == needed
        assert all(parts.index(each) < parts.index((k, j)) for each in needed)


def test_what_couples_parameters_is_not_taken_apart():
    class Normed(torch.optim.SGD):
        """A user's own, which may look at all gradients at once."""

    def pieces(optimizer, hooked=False, **options):
        method = auxnet.multiway(conv_net(), optimizer, LAMBDAS, **options)
        if hooked:
            method.updates[0].optimizer.register_step_pre_hook(lambda *given: None)
        return len(method.in_pieces(*batches(6)[0]))

    assert pieces(sgd()) == 7
    assert pieces(sgd(), hooked=True) == 1
    assert pieces(partial(Normed, lr=0.1)) == 1
    assert pieces(sgd(), clip=1.0) == 1
    assert pieces(sgd(), average=lambda mean: mean) == 1
    assert pieces(sgd(), step_scale="adaptive") == 1


def test_a_hook_on_a_feature_is_not_called_twice():
    class Hooked(torch.nn.Module):
        def forward(self, x):
            y = x * 1
            y.register_hook(lambda gradient: 0.5 * gradient)
            return y

    with pytest.raises(RuntimeError, match=r"cannot be a CUDA graph \(segment 1 hooks the gradient of its feature"):
        trained(auxnet.multiway, Recorder, change=followed_by(1, Hooked))


def test_a_piece_writes_the_weights_of_its_segment_and_head_alone():
    """Others may be read at the same time: also where what is written is what is there."""
    net = to_bfloat16(conv_net())
    method = auxnet.multiway(net, sgd(), LAMBDAS, loss=LOSS)
    (batch,) = batches(6, dtype=torch.bfloat16)
    method.step(*batch)
    owners = {p.data_ptr(): ("head" if "head" in name else "segment", name) for name, p in net.named_parameters()}
    forward, *pieces = method.in_pieces(*batch)
    forward.run()
    for (k, j), piece in zip(ordered_passes((1, 2, 3)), pieces, strict=True):
        with Graph() as graph:
            piece.run()
        written = {owners[t.data_ptr()][1] for t in graph.written() if t.data_ptr() in owners}
        own = {f"segments.{j - 1}."} | ({f"heads.{k - 1}."} if j == k else set())
        assert {".".join(name.split(".")[:2]) + "." for name in written} == own


def test_a_graph_that_leaves_no_room_for_other_steps_is_let_go(monkeypatch):
    class Small(Device):
        def __init__(self, *given):
            super().__init__(*given)
            self.free = 9

    with pytest.warns(UserWarning, match="for want of memory .a graph of .* leaves no room for the steps"):
        same_bits(auxnet.joint, recorder=partial(Small, monkeypatch))


def test_a_step_is_recorded_once_and_anew_only_when_something_it_decides_has_changed():
    def again(method):
        method.set_lr(0.3)
        method.set_weights(LAMBDAS)

    def recorded(happens):
        return trained(auxnet.multiway, Recorder, happens)[1].recorded

    assert recorded({}) == 1
    assert recorded({6: again, 9: again}) == 1
    assert recorded({6: slower}) == 2
    assert recorded({6: taken_back}) == 2


@pytest.mark.long
def test_where_numbers_alone_have_changed_one_step_goes_by_before_they_are_recorded():
    """Where they change in every step nothing is: a recording takes longer than a step."""

    def with_momentum(method):
        for update in method.updates:
            update.optimizer.param_groups[0]["momentum"] = 0.5

    def replayed(happens, **options):
        return same_bits(auxnet.multiway, happens=happens, **options).replayed

    assert replayed({}) == 12 - 3
    assert replayed({6: slower, 9: lambda method: method.set_weights([0.1, 0.2, 1.0])}) == 12 - 3 - 2
    assert replayed({n: lambda method, n=n: method.set_lr(0.01 / n) for n in range(4, 12)}) == 1
    assert replayed({6: reweighed}) == 12 - 6  # an output is discarded
    assert replayed({6: taken_back}) == 12 - 6
    plain = partial(torch.optim.SGD, lr=0.02, fused=True)
    assert replayed({6: with_momentum}, optimizer=plain) == 12 - 6  # momenta are made


@pytest.mark.long
def test_one_momentum_and_a_discarded_output_are_no_reason_to_record_anew():
    """The smaller batches are steps by themselves, in which the discarded output has its turn."""

    def discarded(method):
        method.set_weights([0.5, 1.8, 0.0])

    make = METHODS["live, one momentum"]
    assert same_bits(make, happens={0: discarded}, sizes=(6, 6, 6, 6, 6, 4) * 3).recorded == 1


def test_a_shape_is_recorded_after_steps_of_that_shape():
    """In the first of them libraries choose how they compute it, which cannot be recorded."""
    small, large = ([(torch.randn(6, 3, n, n), torch.arange(6) % 3)] for n in (8, 16))
    net = conv_net()
    method = auxnet.joint(net, sgd(), LAMBDAS)
    recorder = Recorder(net, method)
    stepping = captured(method, recorder, nullcontext)

    def replayed(batches):
        before = recorder.replayed
        for batch in batches:
            stepping.step(*batch)
        return recorder.replayed - before

    assert replayed(small * 5) == 2
    assert replayed(large) == 0  # beside the recording of the small ones
    slower(stepping)
    assert replayed(large * 5) == 2
    assert replayed(small) == 0


@pytest.mark.parametrize(
    ("sizes", "recorded", "replayed"),
    [
        ((6, 6, 6, 6, 6, 4, 6, 6), 1, 4),  # the small one is a step by itself
        ((6, 4, 4, 6, 6, 6), 1, 1),  # and counts for nothing: libraries choose how they compute each size
        ((6, 6, 6, 4, 6, 6, 6, 4, 6), 1, 4),  # it is not what is recorded, though its turn would come first
        ((4, 4, 4, 4, 6, 6, 6, 6, 6, 4), 2, 3),  # taken up at the end of an epoch: the larger ones take its place
    ],
)
@pytest.mark.enough(1)
def test_the_largest_batches_are_recorded(sizes, recorded, replayed):
    recorder = same_bits(auxnet.multiway, sizes=sizes)
    assert (recorder.recorded, recorder.replayed) == (recorded, replayed)


def test_a_net_that_was_moved_is_said_by_a_graph_too():
    net = conv_net()
    method = auxnet.multiway(net, sgd(), LAMBDAS)
    stepping = captured(method, Recorder(net, method), nullcontext)
    for batch in batches(*(6,) * 5):
        stepping.step(*batch)
    for parameter in net.parameters():
        parameter.data = parameter.data.clone()
    with pytest.raises(RuntimeError, match="parameters were moved"):
        stepping.step(*batches(6)[0])


@pytest.fixture
def graphs_on_cpus(monkeypatch):
    """The recorders of trainings by recipe: graphs are those of a CPU."""
    nets, recorders, made = [], [], build.net_of

    def on_this_cpu(method, device):
        recorders.append(Recorder(nets[-1], method))
        return captured(method, recorders[-1], nullcontext)

    for module in (build, planning):
        monkeypatch.setattr(module, "in_graphs", lambda recipe, *where: recipe.cuda_graph)
    monkeypatch.setattr(build, "can_be_graphs", lambda method: True)
    monkeypatch.setattr(build, "as_cuda_graph", on_this_cpu)
    monkeypatch.setattr(build, "net_of", lambda *given: nets.append(made(*given)) or nets[-1])
    return recorders


TINY = Recipe(data="digits", depth=8, epochs=2, train_images=300, batch_size=64, threads=1, milestones=(0.5,))


@pytest.mark.parametrize("fields", [{}, {"precision": "bfloat16", "mixup": 0.2}, {"ema": 0.9}], ids=str)
@pytest.mark.enough(1)
def test_a_recipe_with_graphs_trains_the_same_weights(fields, graphs_on_cpus, tmp_path):
    recipe = replace(TINY, **fields)
    auxnet.fit(replace(recipe, cuda_graph=False), tmp_path / "one by one")
    auxnet.fit(recipe, tmp_path / "graphs")
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one by one", "graphs")]
    assert weights[0] == weights[1]
    assert [each.recorded for each in graphs_on_cpus] == [2]  # anew in the second epoch, for its step size


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.enough(1)
def test_a_run_goes_on_with_or_without_graphs(before, after, optimizer, graphs_on_cpus, monkeypatch, tmp_path):
    """To the same weights, from within an epoch: whether there are graphs is a matter of where it runs."""
    monkeypatch.setattr(torch.optim.AdamW, "__init__", without_capturable(torch.optim.AdamW.__init__))
    recipe = replace(TINY, optimizer=optimizer, lr=0.01, batch_size=32)
    auxnet.fit(replace(recipe, cuda_graph=False), tmp_path / "whole")

    def stop(progress):
        if (progress.epoch, progress.step) == (1, 6):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(signals.Stopped):
        auxnet.fit(replace(recipe, cuda_graph=before), tmp_path / "run", watch=stop)
    auxnet.fit(replace(recipe, cuda_graph=after), tmp_path / "run", resume=True)
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]


def without_capturable(init):
    """An optimizer's beginning on a CPU, which has no graphs."""
    return wraps(init)(lambda self, *args, capturable=False, **options: init(self, *args, **options))


def test_whether_steps_can_be_recorded_is_not_taken_from_a_state():
    def method(capturable):
        return auxnet.joint(conv_net(), partial(torch.optim.AdamW, lr=1e-3, capturable=capturable), LAMBDAS)

    saved = method(False)
    saved.step(*batches(6)[0])
    for capturable in (False, True):
        begun = method(capturable)
        begun.load_state_dict(saved.state_dict())
        assert {group["capturable"] for group in begun.updates[0].optimizer.param_groups} == {capturable}
    assert not saved.updates[0].optimizer.param_groups[0]["capturable"]


def test_nor_is_whether_there_is_a_fused_kernel():
    def method(fused):
        return auxnet.joint(conv_net(), partial(torch.optim.Adagrad, lr=1e-3, fused=fused), LAMBDAS)

    begun = method(False)
    begun.load_state_dict(method(True).state_dict())
    assert not begun.updates[0].optimizer.param_groups[0]["fused"]


def test_a_plan_measures_replays(graphs_on_cpus):
    planning.plan(TINY)
    assert graphs_on_cpus[0].replayed == MEASURED_STEPS + 1


@pytest.mark.parametrize(
    ("fields", "device", "processes", "recorded"),
    [
        ({}, "cuda", 1, True),
        ({}, "cpu", 1, False),
        ({}, "meta", 1, False),
        ({}, "cuda", 2, False),
        ({"cuda_graph": False}, "cuda", 1, False),
        ({"step_scale": "adaptive"}, "cuda", 1, False),
        ({"method": "joint", "aggregator": "Mean"}, "cuda", 1, False),
        ({"backbone": "timm:resnet18"}, "cuda", 1, False),
    ],
)
def test_steps_are_graphs_where_one_process_computes_them_on_a_gpu(fields, device, processes, recorded):
    assert build.in_graphs(Recipe(**fields), torch.device(device), processes) == recorded


@pytest.mark.parametrize("name", ["AdamW", "RMSprop", "SGD"])
def test_the_optimizer_of_a_recipe_is_made_to_be_recorded_where_steps_are(name):
    recipe = Recipe(depth=8, optimizer=name, method="joint")
    with torch.device("meta"):
        net = auxnet.resnet(8, 3)
    assert capturing.can_be_graphs(build.build_method(recipe, net, LOSS, capturable=True))
    assert capturing.can_be_graphs(build.build_method(recipe, net, LOSS)) == (name == "SGD")


def test_an_optimizer_that_counts_its_steps_elsewhere_cannot_be_in_a_graph():
    def method(optimizer):
        return auxnet.joint(conv_net(), optimizer, LAMBDAS)

    assert capturing.can_be_graphs(method(sgd()))
    assert capturing.can_be_graphs(method(partial(torch.optim.AdamW, capturable=True)))
    for optimizer in (torch.optim.AdamW, torch.optim.Adagrad):
        assert not capturing.can_be_graphs(method(optimizer))
        with pytest.raises(ValueError, match="a CUDA graph holds SGD, and optimizers with capturable=True"):
            capturing.as_cuda_graph(method(optimizer), torch.device("cuda"))


def failing(fault, monkeypatch):
    """A recorder whose step raises; its end fails too, as CUDA's does."""

    class Failed:
        def capture_begin(self, pool):
            pass

        def capture_end(self):
            raise RuntimeError("operation failed due to a previous error during capture")

    def record(pieces):
        def run():
            raise fault

        return capturing._graph_of(run, None)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Failed)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    return lambda net, method: record


def test_for_want_of_memory_steps_go_on_one_by_one_and_a_warning_says_so(monkeypatch):
    plain, _ = trained(auxnet.multiway)
    with pytest.warns(UserWarning, match="not CUDA graphs here, and take longer, for want of mem.*of memory") as warned:
        same, _ = trained(auxnet.multiway, failing(torch.OutOfMemoryError("CUDA out of memory"), monkeypatch))
    assert len(warned) == 1
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(plain, same, strict=True))


def test_a_recording_that_fails_says_why(monkeypatch):
    says = r"cannot be a CUDA graph \(operation not permitted\): train without, by --no-cuda-graph"
    with pytest.raises(RuntimeError, match=says):
        trained(auxnet.multiway, failing(RuntimeError("operation not permitted\nMore"), monkeypatch))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.enough(3)  # joint, live, one momentum
def test_a_device_that_does_what_it_may_in_any_order_trains_to_the_same_bits(name, monkeypatch):
    """The streams, events and graphs that CUDA is asked for are these; only what they make of it is a CPU's."""
    device = same_bits(METHODS[name], recorder=partial(Device, monkeypatch))
    assert device.replayed == 9
    outputs = 3 if name in LIVE else 0
    assert len(device.streams) == 1 + outputs
    assert [len(set(device.pools[lane])) for lane in sorted(device.pools)] == [1] * (1 + outputs)
    assert len({pool for pools in device.pools.values() for pool in pools}) == 1 + outputs
    assert (len(device.orders) > 1) == (name in LIVE)
