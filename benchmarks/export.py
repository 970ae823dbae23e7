"""An exported output against the same trunk exported alone, in onnxruntime: ratios of medians, 1.0 is as fast.

"Alone" is torch.onnx.export of net.truncate(k) and nothing else, fed with normalised floats; ours starts from uint8
pixels and ends in probabilities. Also: what the early exit costs and skips at batch 1. Weights are random: they do not
change the work. Tasks take turns, on one thread.

    python benchmarks/export.py [--depth 20] [--outputs 3] [--output 2] [--rounds 40] [--json FILE]
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import auxnet
from auxnet.batches import normalise
from auxnet.export_graphs import EarlyExitGraph, OneOutput, write_onnx
from auxnet.policy import Policy
from measured import in_turns, options, ratio, save, shown

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


def session(path):
    single = onnxruntime.SessionOptions()
    single.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), single, providers=["CPUExecutionProvider"])


def row_of(name, times, ours, other):
    """One row of the table, printed at once."""
    medians = {task: 1000 * statistics.median(took) for task, took in times.items()}
    three = ratio(times[ours], times[other])
    said = ", ".join(f"{task} {median:.2f} ms" for task, median in medians.items())
    print(f"{shown(three, 3)}  {name}: {said}", flush=True)
    return {"what": name, "ratio": three, "medians_ms": medians}


def main():
    asked = options(__doc__, depth=20, outputs=3, output=2, rounds=40, threads=1).parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    net = auxnet.resnet(depth=asked.depth, outputs=asked.outputs).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    floats = normalise(torch.from_numpy(pixels), MEAN, STD).contiguous()
    model = net.truncate(asked.output).eval()
    rows = []
    with tempfile.TemporaryDirectory() as home, torch.inference_mode():
        folder = Path(home)
        with torch.inference_mode(False), torch.no_grad():
            write_onnx(OneOutput(model, MEAN, STD), torch.from_numpy(pixels[:2]), folder / "ours.onnx", {})
            dynamic = ({0: torch.export.Dim("N")},)
            torch.onnx.export(
                model,
                (floats[:2].clone(),),
                folder / "alone.onnx",
                dynamo=True,
                external_data=False,
                input_names=["images"],
                dynamic_shapes=dynamic,
                verbose=False,
            )
            ones = (1.0,) * net.outputs
            for name, threshold in (("first", 0.0), ("never", 2.0)):
                policy = Policy((threshold,) * (net.outputs - 1), "top", ones)
                path = folder / f"{name}.onnx"
                write_onnx(EarlyExitGraph(net, policy, MEAN, STD), torch.from_numpy(pixels[:1]), path, {})
            write_onnx(
                OneOutput(net.truncate(net.outputs), MEAN, STD), torch.from_numpy(pixels[:2]), folder / "last.onnx", {}
            )
        ask = {path.stem: session(path) for path in folder.glob("*.onnx")}
        for n in (1, 32):
            few, few_floats = pixels[:n], floats[:n].numpy()
            tasks = {
                "ours": lambda few=few: ask["ours"].run(None, {"images": few}),
                "alone": lambda few=few_floats: ask["alone"].run(None, {"images": few}),
            }
            times = in_turns(tasks, asked.rounds)
            rows.append(row_of(f"output {asked.output} as exported / alone, batch {n}", times, "ours", "alone"))
        one = pixels[:1]
        names = ("first", "never", "last")
        times = in_turns({k: lambda k=k: ask[k].run(None, {"images": one}) for k in names}, asked.rounds)
        rows.append(row_of("early exit, left at output 1 / at the final one, batch 1", times, "first", "never"))
        rows.append(
            row_of("early exit, left at the final output / final output exported, batch 1", times, "never", "last")
        )
    save(asked, rows=rows, onnxruntime=onnxruntime.__version__)


if __name__ == "__main__":
    main()
