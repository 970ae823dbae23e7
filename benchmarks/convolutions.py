"""What a training step could reach at most: its convolutions one by one, against the machine's own matrix products.

    python benchmarks/convolutions.py [--depth 20] [--batch-size 128] [--rounds 15] [--threads N] [--json FILE]

Each convolution of a plain ResNet runs by itself, forward, to its input and to its weights; the last line is the share
of the rate of a large matrix product that a step would have if it needed no time but theirs (see `parts.py`).
"""

from __future__ import annotations

from collections import Counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import auxnet
from auxnet.machine import keep_freed_memory
from measured import Task, batch_of, in_turns, operations, options, ratio, save, shown

SIDE = 2048  # of the matrices
PASSES = ("forward", "to the input", "to the weights")


def main() -> None:
    asked = options(__doc__, rounds=15, depth=20, batch_size=128).parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as `auxnet train` does

    found = _convolutions(auxnet.resnet(asked.depth), batch_of(asked.batch_size)[0])
    often = Counter(name for name, _, _ in found)
    a, b = torch.randn(2, SIDE, SIDE)
    tasks: dict[tuple[str, str], Task] = {("matrix product", ""): lambda: a @ b}
    for name, (conv, x) in {name: (conv, x) for name, conv, x in found}.items():
        tasks |= {(name, each): task for each, task in _passes(conv, x).items()}
    times = in_turns(tasks, asked.rounds, warm_up=2)
    product = times.pop(("matrix product", ""))
    work = {key: operations(tasks[key]) / (2 * SIDE**3) for key in times}  # in matrix products
    shares = {key: ratio(product, took, work[key]) for key, took in times.items()}
    needed = [sum(often[key[0]] * took[i] for key, took in times.items()) for i in range(asked.rounds)]
    together = ratio(product, needed, sum(often[key[0]] * work[key] for key in times))

    table = Table("convolution", "in a step", *PASSES, title="share of the rate of a matrix product")
    for name, count in often.items():
        table.add_row(name, str(count), *(shown(shares[name, p]) if (name, p) in shares else "" for p in PASSES))
    Console(width=120).print(table)
    print(f"all that a step needs: {shown(together, 3)}")
    rows = [{"convolution": name, "pass": each, "share": share} for (name, each), share in shares.items()]
    save(asked, together=together, in_a_step=often, rows=rows)


def _convolutions(net: nn.Module, images: Tensor) -> list[tuple[str, nn.Conv2d, Tensor]]:
    """What each convolution of a step is called, the convolution, and what it is given."""
    found: list[tuple[str, nn.Conv2d, Tensor]] = []

    def note(conv: nn.Conv2d, given: tuple[Tensor], out: Tensor) -> None:
        (x,), (side, stride) = given, (conv.kernel_size[0], conv.stride[0])
        name = f"{conv.in_channels} to {conv.out_channels}, {side}x{side} on {x.shape[2]}x{x.shape[3]}"
        found.append((name + (f", stride {stride}" if stride > 1 else ""), conv, x.detach()))

    hooks = [conv.register_forward_hook(note) for conv in net.modules() if isinstance(conv, nn.Conv2d)]
    net.to(memory_format=torch.channels_last)(images)
    for hook in hooks:
        hook.remove()
    return found


def _passes(conv: nn.Conv2d, x: Tensor) -> dict[str, Task]:
    """Its forward, and its backward to the input (images need none) and to the weights."""
    with torch.no_grad():
        gradient = torch.randn_like(conv(x))

    def forward() -> None:
        with torch.no_grad():
            conv(x)

    def backward(*wanted: bool) -> None:
        geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), 1)
        torch.ops.aten.convolution_backward(gradient, x, conv.weight, None, *geometry, [*wanted, False])

    tasks = dict(zip(PASSES, (forward, lambda: backward(True, False), lambda: backward(False, True)), strict=True))
    if x.shape[1] == 3:
        del tasks["to the input"]
    return tasks


if __name__ == "__main__":
    main()
