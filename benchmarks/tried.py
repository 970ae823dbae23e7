"""What was tried to make a training step faster, each against the step as it is: what is kept, and what was given up.

    python benchmarks/tried.py [--batch-size 128] [--rounds 15] [--threads N] [--json FILE]

The step is that of a plain ResNet-20 in channels_last. docs/performance.md says what each was predicted to bring.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.blocks import PreActivationBlock
from auxnet.compiling import compiled
from auxnet.machine import keep_freed_memory
from measured import METHODS, SGD, Task, batch_of, in_turns, options, ratio, save, shown

Forward = Callable[[PreActivationBlock, torch.Tensor], torch.Tensor]


def main() -> None:
    asked = options(__doc__, rounds=15, batch_size=128).parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()  # as `auxnet train` does
    batch = batch_of(asked.batch_size)
    as_it_is = PreActivationBlock.forward
    tasks: dict[str, Task] = {
        "as it is": _step(batch, as_it_is),
        "sums in place": _step(batch, _sum_in_place),
        "BN and ReLU as one function, its backward in place": _step(batch, _joined),
        "images in contiguous memory format": _step(batch, as_it_is, torch.contiguous_format),
        "optimizer not fused": _step(batch, as_it_is, fused=False),
    }
    began = time.perf_counter()
    try:
        tasks["torch.compile"] = _step(batch, as_it_is, is_compiled=True)
        tasks["torch.compile"]()
    except Exception as failure:  # where there is no C++ compiler, for one
        print(f"torch.compile: {str(failure).splitlines()[0]}")
        tasks.pop("torch.compile", None)
    compiling = time.perf_counter() - began
    times = in_turns(tasks, asked.rounds, warm_up=2)
    ratios = {name: ratio(took, times["as it is"]) for name, took in times.items()}
    table = Table("step of ResNet-20", "time / as it is")
    for name, three in ratios.items():
        table.add_row(name, shown(three, 3))
    Console(width=120).print(table)
    print(f"torch.compile: {compiling:.0f} s before the second step")
    save(asked, ratios=ratios, seconds=times, seconds_to_compile=compiling)


def _step(
    batch: tuple[torch.Tensor, torch.Tensor],
    forward: Forward,
    memory_format: torch.memory_format = torch.channels_last,
    *,
    fused: bool = True,
    is_compiled: bool = False,
) -> Task:
    torch.manual_seed(0)
    net = auxnet.resnet(20).to(memory_format=memory_format).train()
    method = METHODS["joint"](net, lambda parameters: SGD(parameters, fused=fused), net.loss_weights())
    images, labels = batch[0].contiguous(memory_format=memory_format), batch[1]
    if is_compiled:
        method = compiled(method, images)

    def task() -> None:
        PreActivationBlock.forward = forward  # type: ignore[method-assign]
        method.step(images, labels)

    return task


def _sum_in_place(self: PreActivationBlock, x: torch.Tensor) -> torch.Tensor:
    activated = F.relu(self.bn1(x), inplace=True)
    shortcut = x if self.project is None else self.project(activated)
    return self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True)).add_(shortcut)


def _joined(self: PreActivationBlock, x: torch.Tensor) -> torch.Tensor:
    activated = _bn_relu(self.bn1, x)
    shortcut = x if self.project is None else self.project(activated)
    return self.conv2(_bn_relu(self.bn2, self.conv1(activated))) + shortcut


def _bn_relu(bn: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    bn.num_batches_tracked.add_(1)
    return BNReLU.apply(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.momentum, bn.eps)


class BNReLU(torch.autograd.Function):
    """ReLU's backward writes over the gradient that it is given, in place of a map of its own."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        y, *moments = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        y.relu_()
        ctx.save_for_backward(x, weight, y, *moments)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, weight, y, mean, inverse = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward.grad_input(gradient, y, 0, grad_input=gradient)
        of = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        return (*of, None, None, None, None)


if __name__ == "__main__":
    main()
