"""An exported output against the same trunk exported alone, in onnxruntime: ratios of medians, 1.0 is as fast.

"Alone" is torch.onnx.export of net.truncate(k) and nothing else, fed with normalised floats; ours starts from uint8
pixels and ends in probabilities. Also: what the early exit costs and skips at batch 1, and what folding gives
in PyTorch. Weights are random: they do not change the work. Interleaved; one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import auxnet
from auxnet.batches import normalise
from auxnet.graphs import EarlyExitGraph, ExitRule, OneOutput, folded, write_onnx

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def milliseconds(tasks, rounds):
    """Lists of times of each task, measured in turns."""
    times = {name: [] for name in tasks}
    for name in tasks:
        tasks[name]()
    for _ in range(rounds):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            times[name].append(1000 * (time.perf_counter() - began))
    return times


def report(name, times, ours, other):
    medians = {key: statistics.median(values) for key, values in times.items()}
    ratio = medians[ours] / medians[other]
    spread = statistics.quantiles([a / b for a, b in zip(times[ours], times[other], strict=True)], n=4)
    shown = ", ".join(f"{key} {value:.2f} ms" for key, value in medians.items())
    print(f"{ratio:.3f}  (quartiles of pairs {spread[0]:.3f}..{spread[2]:.3f})  {name}: {shown}", flush=True)
    return {"what": name, "ratio": ratio, "quartiles": [spread[0], spread[2]], "medians_ms": medians}


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--depth", type=int, default=20)
    arguments.add_argument("--outputs", type=int, default=3)
    arguments.add_argument("--output", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = auxnet.resnet(depth=options.depth, outputs=options.outputs).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    floats = normalise(torch.from_numpy(pixels), MEAN, STD).contiguous()
    model = net.truncate(options.output).eval()
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
                rule = ExitRule("top", (threshold,) * (net.outputs - 1), ones)
                path = folder / f"{name}.onnx"
                write_onnx(EarlyExitGraph(net, rule, MEAN, STD), torch.from_numpy(pixels[:1]), path, {})
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
            times = milliseconds(tasks, options.rounds)
            rows.append(report(f"output {options.output} as exported / alone, batch {n}", times, "ours", "alone"))
        one = pixels[:1]
        names = ("first", "never", "last")
        times = milliseconds({k: lambda k=k: ask[k].run(None, {"images": one}) for k in names}, options.rounds)
        rows.append(report("early exit, left at output 1 / at the final one, batch 1", times, "first", "never"))
        rows.append(
            report("early exit, left at the final output / final output exported, batch 1", times, "never", "last")
        )
        models = {"folded": folded(model), "as trained": model}
        for n in (1, 32):
            tasks = {name: lambda m=m, n=n: m(floats[:n]) for name, m in models.items()}
            times = milliseconds(tasks, options.rounds)
            rows.append(report(f"PyTorch, folded / as trained, batch {n}", times, "folded", "as trained"))
    if options.json:
        about = {
            "depth": options.depth,
            "outputs": options.outputs,
            "rounds": options.rounds,
            "threads": 1,
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "versions": {
                "torch": torch.__version__,
                "onnxruntime": onnxruntime.__version__,
                "auxnet": auxnet.__version__,
            },
        }
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
