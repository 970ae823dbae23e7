"""What 8 bits make of a run's outputs as ONNX: bytes, error on validation, and time, each beside the float file's.

    python benchmarks/int8.py RUN [--images 500] [--rounds 15] [--threads 1] [--json FILE]

onnxruntime's own tools quantise, `quantize_static` after a look at so many training images. Errors are paired: the
difference and McNemar's p are of the same validation images. Times are the process's own on the CPU, which other
programs do not lengthen. Needs the extra `export`, and the data of the run.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from rich.console import Console
from rich.table import Table

import auxnet
from auxnet.scores import compare
from measured import in_turns, options, ratio, save, shown

STATIC = partial(quantize_static, per_channel=True, activation_type=QuantType.QUInt8)
WAYS = {"convolutions": partial(STATIC, op_types_to_quantize=["Conv"]), "everything": STATIC}
RUNS = {1: 20, 64: 1}  # of a turn, by the batch


class Seen(CalibrationDataReader):
    """Images [N, H, W, C], fifty at a time."""

    def __init__(self, images):
        self.batches = ({"images": part.numpy()} for part in images.split(50))

    def get_next(self):
        return next(self.batches, None)


def main() -> None:
    parser = options(__doc__, rounds=15, images=500)
    parser.add_argument("run")
    asked = parser.parse_args()
    rows, table = {}, Table("", "bytes", "of float's", "error", "points more", "p", *(f"time, batch {b}" for b in RUNS))
    with auxnet.opened(asked.run, threads=asked.threads) as run, tempfile.TemporaryDirectory() as folder:
        val, train = run.dataset.val, run.dataset.train
        images = val.read(torch.arange(len(val)))
        seen = train.read(torch.linspace(0, len(train) - 1, asked.images).long())
        for k in range(1, run.net.outputs + 1):
            files = {name: Path(folder, f"{k}-{name}.onnx") for name in ("float", *WAYS, "dynamic")}
            auxnet.export(asked.run, k, "onnx", files["float"])
            for name, quantise in WAYS.items():
                quantise(files["float"], files[name], Seen(seen))
            quantize_dynamic(files["float"], files["dynamic"])
            sessions = {name: _session(file, asked.threads) for name, file in files.items()}
            wrong = {name: _answers(session, images) != val.labels for name, session in sessions.items()}
            took = {}
            for batch, runs in RUNS.items():
                tasks = {name: partial(_several, s, images[:batch].numpy(), runs) for name, s in sessions.items()}
                took[batch] = in_turns(tasks, asked.rounds, clock=time.process_time)
            for name, file in files.items():
                found = compare(wrong[name], wrong["float"])
                row = {"bytes": file.stat().st_size, "of_float": file.stat().st_size / files["float"].stat().st_size}
                row |= {"error": wrong[name].float().mean().item(), "images": len(val)}
                row |= {"difference": found.difference, "low": found.low, "high": found.high, "p_value": found.p_value}
                row["time"] = {b: ratio(times[name], times["float"]) for b, times in took.items()}
                row["ms"] = {b: 1e3 * median(times[name]) / RUNS[b] for b, times in took.items()}
                rows[f"output {k}, {name}"] = row
                cells = (f"{row['bytes']:,}", f"{row['of_float']:.2f}", f"{100 * row['error']:.2f} %")
                more = (f"{100 * found.difference:+.2f}", f"{found.p_value:.2f}")
                table.add_row(f"output {k}, {name}", *cells, *more, *map(shown, row["time"].values()))
    Console(width=140).print(table)
    save(asked, rows=rows)


def _session(file, threads):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])


def _answers(session, images):
    return torch.cat(
        [torch.from_numpy(session.run(None, {"images": x.numpy()})[0]).argmax(1) for x in images.split(100)]
    )


def _several(session, images, runs):
    for _ in range(runs):
        session.run(None, {"images": images})


if __name__ == "__main__":
    main()
