"""What a prediction costs: each output standing alone, all at once, early exit, exported; in turns, ratios first.

    python benchmarks/inference.py [--depth 56] [--outputs 5] [--rounds 15] [--threads 1] [--json FILE]

Times are in units of the final output's, standing alone in PyTorch, beside the share of its multiply-adds. Weights are
random: they do not change the work. ("exported" needs the extra `export`.)
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.cost import costs
from auxnet.exits import EarlyExit
from auxnet.export_graphs import OneOutput, write_onnx
from measured import batch_of, in_turns, options, ratio, save, shown

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


def main() -> None:
    asked = options(__doc__, rounds=15, depth=56, outputs=5).parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    net = auxnet.resnet(asked.depth, asked.outputs).to(memory_format=torch.channels_last).eval()
    macs = [each for _, each in costs(net, (3, 32, 32))]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        exported = [_exported(net, k, Path(folder), asked.threads) for k in (1, net.outputs)]
        for batch in (1, 128):
            images, _ = batch_of(batch)
            pixels = torch.randint(256, (batch, 32, 32, 3), dtype=torch.uint8).numpy()
            tasks = {f"output {k}": _forward(net.truncate(k), images) for k in range(1, net.outputs + 1)}
            tasks["all outputs"] = _forward(net, images)
            for name, threshold in (("first", 0.0), ("final", 1.1)):
                exits = EarlyExit(net, thresholds=[threshold] * (net.outputs - 1), confidence="top")
                tasks[f"early exit, all at the {name} output"] = _forward(exits, images)
            for k, session in zip((1, net.outputs), exported, strict=True):
                tasks[f"output {k}, exported"] = lambda s=session, x=pixels: s.run(None, {"images": x})
            with torch.inference_mode():
                times = in_turns(tasks, asked.rounds, warm_up=3)
            final = times[f"output {net.outputs}"]
            table = Table(f"batch {batch}", "time / final output", "MACs / final output", "ms")
            for name, took in times.items():
                work = macs[int(name.split()[1].strip(",")) - 1] / macs[-1] if name.startswith("output") else None
                measured = {"time": ratio(took, final), "macs": work, "ms": 1e3 * statistics.median(took)}
                rows[f"batch {batch}, {name}"] = measured
                share = "" if work is None else f"{work:.3f}"
                table.add_row(name, shown(measured["time"], 3), share, f"{measured['ms']:.2f}")
            Console(width=120).print(table)
    save(asked, rows=rows)


def _forward(model, images):
    return lambda: model(images)


def _exported(net, k, folder, threads):
    """Output k as ONNX, from uint8 pixels to probabilities, in onnxruntime."""
    import onnxruntime

    path = folder / f"{k}.onnx"
    alone = copy.deepcopy(net).to(memory_format=torch.contiguous_format).truncate(k).eval()
    write_onnx(OneOutput(alone, MEAN, STD), torch.zeros(2, 32, 32, 3, dtype=torch.uint8), path, {})
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
