"""Whether what is tested on CPUs alone holds on a GPU: numbers of every method, graphs, no waiting, runs that go on.

    python benchmarks/gpu_check.py [--only REGEX] [--json FILE]   # on a CPU too, but for the graphs

Each check is by itself: one that fails says so in its line and the others go on. Recordings come last, since one that
fails can leave a process without a usable device.
"""

from __future__ import annotations

import argparse
import copy
import re
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import auxnet
import measured
from auxnet import Recipe, build, synchronised
from auxnet.capturing import as_cuda_graph
from auxnet.compiling import compiled
from auxnet.data import DataSet, Split
from auxnet.distributed import Team
from auxnet.errors import first_line
from auxnet.machine import to_device
from auxnet.mixing import mixed
from auxnet.precision import to_bfloat16

GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
ADAMW = partial(torch.optim.AdamW, lr=1e-3, fused=True)
LAMBDAS = [0.5, 0.8, 1.0]
METHODS = measured.METHODS | {
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "shared": partial(auxnet.multiway, state="shared"),
    "deep first": partial(auxnet.multiway, order="deep_first"),
    "clipped": partial(auxnet.multiway, clip=0.1),
}


def batches(n, device, dtype=torch.float32, sizes=None):
    g = torch.Generator().manual_seed(4)
    for size in sizes or [16] * n:
        x = torch.randn(size, 3, 16, 16, generator=g).contiguous(memory_format=torch.channels_last)
        yield x.to(device, dtype), torch.randint(3, (size,), generator=g).to(device)


def trained(
    name, device, steps=3, optimizer=SGD, dtype=torch.float32, graph=False, compile=False, sizes=None, events=None
):
    torch.manual_seed(3)
    net = to_device(auxnet.resnet(8, 3, num_classes=3), device).train()
    net = to_bfloat16(net) if dtype == torch.bfloat16 else net
    opt = optimizer if not (graph and optimizer is ADAMW) else partial(ADAMW, capturable=True)
    method = METHODS[name](net, opt, LAMBDAS)
    if compile:
        images, _ = next(batches(1, device, dtype))
        method = compiled(method, images)
    method = as_cuda_graph(method, device) if graph else method
    losses = []
    for n, batch in enumerate(batches(steps, device, dtype, sizes)):
        (events or {}).get(n, lambda m: None)(method)
        losses.append(method.step(*batch))
    weights = torch.cat([getattr(p, "master", p).detach().float().flatten().cpu() for p in net.parameters()])
    return weights, torch.stack(losses).cpu(), torch.cat([b.float().flatten().cpu() for b in net.buffers()])


def apart(a, b):
    return float((a - b).norm() / b.norm())


def numbers(name):
    """A few steps here and on the CPU, in float32 proper."""
    here, there = (trained(name, each, optimizer=SGD) for each in (GPU, CPU))
    worst = max(apart(a, b) for a, b in zip(here, there, strict=True))
    assert worst < 1e-3, f"{worst:.1e} from the CPU's"
    return f"{worst:.0e} from the CPU's"


def live_is_live(dtype, compile=False):
    """What live changes of frozen is there, and it is what it is on the CPU."""
    options = {"steps": 1, "dtype": dtype, "optimizer": partial(SGD, lr=1.0)}
    far = {
        d: trained("live", d, compile=compile and d == GPU, **options)[0] - trained("frozen", d, **options)[0]
        for d in (GPU, CPU)
    }
    cosine, size = float(F.cosine_similarity(far[GPU], far[CPU], 0)), float(far[GPU].norm() / far[CPU].norm())
    assert cosine > (0.99 if dtype == torch.float32 else 0.9), f"cosine {cosine:.3f}: frozen?"
    assert 0.5 < size < 2, f"size {size:.2f}: frozen?"
    return f"cosine {cosine:.4f} with the CPU's, {size:.3f} of its size"


def compiled_numbers(name, graph):
    """Compiled steps, one of them on a smaller batch, against steps as they are; perhaps in a graph."""
    options = {"steps": 8, "sizes": [16] * 5 + [7] + [16] * 2}
    one, other = (trained(name, GPU, **options, **each) for each in ({}, {"compile": True, "graph": graph}))
    worst = max(apart(b, a) for a, b in zip(one, other, strict=True))
    assert worst < 1e-2, f"{worst:.1e} from steps as they are"
    return f"{worst:.0e} from steps as they are"


def nothing_waits(fields):
    """An epoch's batches and steps with PyTorch's own alarm for what waits for the device."""
    g = torch.Generator().manual_seed(1)
    split = Split(
        torch.randint(256, (64, 16, 16, 3), dtype=torch.uint8, generator=g), torch.randint(3, (64,), generator=g)
    )
    dataset = DataSet("random", tuple("abc"), split, split, split, (125.0,) * 3, (63.0,) * 3, pad=2, flip=True)
    dataset = build.resident(dataset, GPU)
    recipe = replace(Recipe(depth=8, batch_size=16), **fields)
    net, method = build.build(recipe, dataset, GPU)
    net.train()

    for n, (x, y) in enumerate(build.training_batches(recipe, dataset, GPU, 1)):
        if recipe.mixup or recipe.cutmix:
            x, y = mixed(x, y, 3, recipe.mixup, recipe.cutmix, Random(n))
        method.step(x, y)
        if n == 0 and GPU.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
    return "no wait"


def synchronised_norm():
    """Its backward against autograd's of an ordinary norm, and in the layout of the images."""
    team = Team()
    team.weigh(6)
    x = torch.randn(6, 4, 5, 5, device=GPU).contiguous(memory_format=torch.channels_last).requires_grad_()
    w, b = (torch.rand(4, device=GPU).requires_grad_() for _ in range(2))
    var, mean = torch.var_mean(x.detach(), (0, 2, 3), unbiased=False)
    g = torch.randn_like(x)
    for affine in ((w, b), ()):
        weight, bias = affine or (None, None)
        mine = synchronised._Normalise.apply(x, weight, bias, mean, var, 1e-5, team)
        plain = F.batch_norm(x, None, None, weight, bias, True, eps=1e-5)
        made, expected = (torch.autograd.grad(y, (x, *affine), g) for y in (mine, plain))
        assert made[0].stride() == x.stride()
        for one, other in zip(made, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    return "as an ordinary norm's"


def another_layout():
    """Images in channels_last, weights not: a fused kernel needs the gradients as the weights are."""
    torch.manual_seed(3)
    net = auxnet.resnet(8, 3, num_classes=3).train().to(GPU)
    twin = copy.deepcopy(net)
    for each, opt in ((net, SGD), (twin, partial(SGD.func, **{**SGD.keywords, "fused": False}))):
        method = auxnet.multiway(each, opt, LAMBDAS)
        for batch in batches(2, GPU):
            method.step(*batch)
    worst = max(
        apart(p.detach(), q.detach()) for p, q in zip(net.parameters(), twin.parameters(), strict=True) if q.norm() > 0
    )
    assert worst < 1e-4, f"{worst:.1e} from steps that are not fused"
    return f"{worst:.0e}"


def a_run(fields, then):
    """A run, and the same one stopped in its first epoch and resumed, perhaps otherwise."""
    recipe = replace(
        Recipe(data="digits", depth=8, epochs=2, batch_size=64, train_images=640, device=GPU.type, lr=0.02), **fields
    )

    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        whole = auxnet.fit(recipe, Path(folder) / "whole")
        with suppress(KeyboardInterrupt):
            auxnet.fit(recipe, Path(folder) / "torn", watch=stop)
        torn = auxnet.fit(replace(recipe, **then), Path(folder) / "torn", resume=True)
        a, b = (torch.cat([p.detach().flatten().cpu() for p in run.net.parameters()]) for run in (whole, torn))
    assert a.isfinite().all(), "not finite"
    assert apart(a, b) < 1e-2, f"{apart(a, b):.1e} apart"
    return f"{apart(a, b):.0e} apart, error {whole.summary['last'][-1]['test_error']:.3f}"


def graphs(name, optimizer=SGD, dtype=torch.float32):
    """Steps recorded and replayed, through another step size, other weights and smaller batches."""
    events = {6: lambda m: m.set_lr(0.005), 12: lambda m: m.set_weights([0.2, 0.0, 1.0])}
    options = {"optimizer": optimizer, "dtype": dtype, "sizes": [16] * 5 + [7] + [16] * 14, "events": events}
    by_itself, replayed = (trained(name, GPU, graph=graph, **options) for graph in (False, True))
    worst = max(apart(a, b) for a, b in zip(replayed, by_itself, strict=True))
    assert worst < 1e-5, f"{worst:.1e} from steps one by one"
    return "the same bits" if worst == 0 else f"{worst:.0e} apart"


class Looks(torch.nn.Module):
    """Decides by a number that the device has computed, which no graph can hold."""

    def forward(self, x):
        return -x if float(x.detach().sum()) > 1e30 else x


def not_recorded():
    """A step that cannot be recorded says so. (Last: the device may be taken to be recording still.)"""
    torch.manual_seed(3)
    net = to_device(auxnet.resnet(8, 3, num_classes=3), GPU).train()
    net.segments[1] = torch.nn.Sequential(net.segments[1], Looks())
    method = as_cuda_graph(auxnet.multiway(net, SGD, LAMBDAS), GPU)
    try:
        for batch in batches(8, GPU):
            method.step(*batch)
    except RuntimeError as error:
        if "train without, by --no-cuda-graph" in str(error):
            return str(error)
        raise
    raise AssertionError("nothing was said")


def at_once(depth, outputs, dtype, compile):
    """Live's backwards at once, many steps of many pieces, against one after the other."""
    weights = []
    for pieces in (False, True):
        torch.manual_seed(3)
        net = to_device(auxnet.resnet(depth, outputs), GPU).train()
        net = to_bfloat16(net) if dtype == torch.bfloat16 else net
        method = auxnet.multiway(net, SGD)
        g = torch.Generator().manual_seed(4)
        x = torch.randn(8, 128, 3, 32, 32, generator=g).to(GPU, dtype)
        y = torch.randint(10, (8, 128), generator=g).to(GPU)
        batch = [each.contiguous(memory_format=torch.channels_last) for each in x]
        method = compiled(method, batch[0]) if compile else method
        method = as_cuda_graph(method if pieces else replace(method, pieces=None), GPU)
        for n in range(100):
            method.step(batch[n % 8], y[n % 8])
        weights.append(torch.cat([p.detach().float().flatten() for p in net.parameters()]))
    assert weights[0].isfinite().all(), "not finite"
    assert torch.equal(*weights), f"{apart(*weights):.1e} apart"
    return "the same bits after 100 steps"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="checks whose name this regular expression is found in")
    asked = parser.parse_args()
    warnings.filterwarnings("error", "steps are not CUDA graphs")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    checks = {f"numbers, {name}": partial(numbers, name) for name in METHODS}
    checks |= {f"live is live, {str(d)[6:]}": partial(live_is_live, d) for d in (torch.float32, torch.bfloat16)}
    for fields in (
        {},
        {"precision": "bfloat16"},
        {"method": "joint", "mixup": 0.2},
        {"method": "pairwise", "cutmix": 1.0},
        {"mode": "fused", "class_weights": "balanced", "label_smoothing": 0.1},
        {"state": "shared"},
        {"clip": 1.0},
        {"distill": 0.5},
        {"optimizer": "AdamW", "lr": 0.001},
        {"optimizer": "Adagrad", "lr": 0.01},
        {"loss": "square_hinge"},
    ):
        checks[f"no wait, {fields}"] = partial(nothing_waits, fields)
    checks |= {
        "synchronised norm": synchronised_norm,
        "another layout": another_layout,
        "a run": partial(a_run, {}, {}),
        "a run, EMA": partial(a_run, {"ema": 0.9}, {}),
        "a run, bfloat16": partial(a_run, {"precision": "bfloat16"}, {}),
    }
    checks |= {f"compiled, {name}": partial(compiled_numbers, name, False) for name in METHODS}
    checks |= {
        f"live is live, compiled, {str(d)[6:]}": partial(live_is_live, d, compile=True)
        for d in (torch.float32, torch.bfloat16)
    }
    checks["a run, compiled"] = partial(a_run, {"compile": True}, {})
    if GPU.type == "cuda":
        checks |= {f"compiled graph, {name}": partial(compiled_numbers, name, True) for name in METHODS}
        checks |= {f"graph, {name}": partial(graphs, name) for name in METHODS}
        checks |= {
            f"graph, at once, {depth}-{K}, {str(dtype)[6:]}{', compiled' * each}": partial(
                at_once, depth, K, dtype, each
            )
            for depth, K, dtype, each in (
                (56, 5, torch.bfloat16, False),
                (20, 9, torch.float32, False),
                (20, 3, torch.bfloat16, True),
            )
        }
        checks |= {
            "graph, AdamW": partial(graphs, "live", ADAMW),
            "graph, bfloat16": partial(graphs, "live", SGD, torch.bfloat16),
        }
        checks |= {
            "a run, then with graphs": partial(
                a_run, {"optimizer": "AdamW", "lr": 0.001, "state": "shared", "cuda_graph": False}, {"cuda_graph": True}
            ),
            "a run with graphs, then without": partial(a_run, {"cuda_graph": True}, {"cuda_graph": False}),
            "graph, not recorded": not_recorded,
        }
    checks = {name: check for name, check in checks.items() if re.search(asked.only, name)}
    rows, shown = [], Table("", "check", "", "s", box=SIMPLE_HEAD, title=f"{GPU}, torch {torch.__version__}")
    for name, check in checks.items():
        began = time.perf_counter()
        try:
            said, ok = check(), True
        except Exception as error:  # the next check goes on
            said, ok = f"{type(error).__name__}: {first_line(error)[:150]}", False
            traceback.print_exc()
        finally:
            if GPU.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        took = time.perf_counter() - began
        rows.append({"check": name, "ok": ok, "said": said, "seconds": round(took, 1)})
        shown.add_row("ok" if ok else "FAILS", escape(name), escape(said), f"{took:.1f}")
        measured.save(asked, GPU, rows=rows)  # whatever comes after
    Console(width=160).print(shown)
    print(f"{sum(r['ok'] for r in rows)} of {len(rows)} hold on {GPU}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
