"""A soak: trainings killed with SIGKILL at random moments, resumed, and compared with runs never stopped.

    python benchmarks/soak.py [--kills 50] [--seed 0] [--json results/soak.json]

Trainings go through the methods in turn, save after every step, and are killed up to three times, at moments drawn at
random from the whole of a life: while it starts, reads, steps, saves, validates, writes the summary. At its end its
weights, best weights, metrics and tables must be those of the run never stopped, byte for byte (times apart).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from auxnet.provenance import provenance
from auxnet.rundir import read_metrics

METHODS = [
    ["--method", "multiway", "--mode", "live"],
    ["--method", "joint"],
    ["--method", "pairwise"],
    ["--method", "multiway", "--mode", "frozen"],
    ["--method", "multiway", "--mode", "fused"],
]
EACH = 3  # times that a training is killed at most, so that all methods are killed alike
RECIPE = ["--depth", "8", "--epochs", "2", "--batch-size", "128", "--threads", "1", "--device", "cpu"]


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    draw = random.Random(asked.seed)
    rows: dict[str, dict[str, int]] = {}
    kills = 0
    with tempfile.TemporaryDirectory() as scratch:
        wholes: dict[str, tuple[Path, float]] = {}
        while kills < asked.kills:
            method = METHODS[sum(row["runs"] for row in rows.values()) % len(METHODS)]
            name = method[-1]
            row = rows.setdefault(name, {"runs": 0, "kills": 0, "different": 0})
            if name not in wholes:
                began = time.monotonic()
                train(Path(scratch) / name, method).wait()
                wholes[name] = Path(scratch) / name, time.monotonic() - began
            whole, life = wholes[name]
            folder = Path(scratch) / f"{name}-{row['runs']}"
            for turn in range(EACH + 1):
                process = train(folder, method)
                try:
                    process.wait(draw.uniform(0, life) if turn < EACH else None)
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills, row["kills"] = kills + 1, row["kills"] + 1
            if process.returncode:
                sys.exit(f"{name}: exit status {process.returncode} after {row['kills']} kills")
            row["runs"] += 1
            row["different"] += same(folder) != same(whole)
            print(f"{kills}/{asked.kills} kills: {name}, {'equal' if same(folder) == same(whole) else 'DIFFERENT'}")

    table = Table(title=f"{kills} times kill -9")
    for column in ("method", "trainings", "kills", "that ended otherwise"):
        table.add_column(column)
    for name, row in rows.items():
        table.add_row(name, str(row["runs"]), str(row["kills"]), str(row["different"]))
    Console().print(table)
    if asked.json:
        result = {"kills": kills, "seed": asked.seed, "methods": rows, **provenance(torch.device("cpu"))}
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


def train(folder: Path, method: list[str]) -> subprocess.Popen[bytes]:
    """A training begun, or gone on with if there is something to go on with."""
    words = ["train", *RECIPE, *method, "--save-every", "0", "--out", str(folder)]
    saved = list((folder / "checkpoints").glob("*.ckpt"))
    words += ["--resume"] if saved else ["--overwrite"]
    return subprocess.Popen([sys.executable, "-m", "auxnet", *words], stdout=subprocess.DEVNULL)


def same(folder: Path) -> list[object]:
    """What must not differ between two runs."""
    summary = json.loads((folder / "summary.json").read_text())
    return [
        (folder / "model.safetensors").read_bytes(),
        (folder / "checkpoints" / "best.safetensors").read_bytes(),
        [{**row, "seconds": 0} for row in read_metrics(folder)],
        summary["last"],
        summary["best"],
    ]


if __name__ == "__main__":
    main()
