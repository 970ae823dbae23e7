"""A markdown table of the outputs of several runs, from what they saved, with where each figure comes from.

    python benchmarks/compare.py results/cifar10-20-3/*

Errors are of the last epoch, in per cent, with the half-width of their 95 % interval over the test images.
"""

from __future__ import annotations

import sys
from pathlib import Path

from auxnet.checkpoint import read_json
from auxnet.recipe import read_run_recipe
from auxnet.scores import wilson


def main(runs: list[Path]) -> None:
    print("| run | output | depth | parameters | MACs | validation error, % | test error, % |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for run in runs:
        summary = read_json(run / "summary.json")
        for row in summary["last"]:
            errors = (_with_interval(row[f"{part}_error"], summary["data"][part]) for part in ("val", "test"))
            cost = f"{row['params']:,} | {row['macs'] / 1e6:.1f} M"
            print(f"| {run.name} | {row['output']} | {row['depth']} | {cost} | {' | '.join(errors)} |")
    print()
    for run in runs:
        s, recipe = read_json(run / "summary.json"), read_run_recipe(run)
        device = f"{s['device']['name']}, {s['device']['threads']} thread(s) of {s['device']['cores']}"
        print(
            f"- {run.name}: {s['method']}, {recipe.epochs} epochs, seed {s['seed']}, {s['wall_seconds'] / 60:.0f} min; "
            f"torch {s['versions']['torch']}, commit {s['commit']}, {device}"
        )


def _with_interval(error: float, images: int) -> str:
    low, high = wilson(round(error * images), images)
    return f"{100 * error:.1f} ± {50 * (high - low):.1f}"


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
