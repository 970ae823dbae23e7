"""Markdown tables of trainings with several seeds each, KIND/SEED, from what the runs saved, and where each comes from.

    python benchmarks/compare.py results/cifar10-20-3

Errors are of the last epoch, in per cent: the mean over the seeds, and each seed's. Differences are taken seed by seed;
their intervals are Student's, 95 %, over the seeds, of each difference alone. "plain" is the net of the final output
trained by itself, "alone-K" that of output K.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

from auxnet.documents import read_json
from auxnet.recipe import read_run_recipe
from auxnet.studies.verdicts import interval

LADDERS = ("fused", "live", "pairwise", "joint", "fused-gamma-0")
SINGLES = {"alone-1": 0, "alone-2": 1, "plain": -1}  # by the place of the output that they are like

Runs = dict[str, dict[int, dict[str, Any]]]
"""kind -> seed -> summary"""


def main(home: Path) -> None:
    runs: Runs = {}
    for path in sorted(home.glob("*/*/summary.json")):
        summary = read_json(path)
        runs.setdefault(path.parts[-3], {})[summary["seed"]] = summary
    print("| run | output (depth) | parameters | MACs | n | validation error, % | test error, % |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for kind, of_seed in runs.items():
        for row in next(iter(of_seed.values()))["last"]:
            k = row["output"]
            cost = f"{row['params']:,} | {row['macs'] / 1e6:.1f} M | {len(of_seed)}"
            errors = (_each([_error(s, k, part) for s in of_seed.values()]) for part in ("val", "test"))
            print(f"| {kind} | {k} ({row['depth']}) | {cost} | {' | '.join(errors)} |")
    pairs = [(a, b) for n, a in enumerate(LADDERS, start=1) for b in (*LADDERS[n:], *SINGLES)]
    shared = {(a, b): sorted(runs.get(a, {}).keys() & runs.get(b, {}).keys()) for a, b in pairs}
    compared = {pair: seeds for pair, seeds in shared.items() if len(seeds) > 1}
    if compared:
        print("\n| test error of | less that of | output | points | 95 % interval | n |\n|---|---|---:|---:|---:|---:|")
    for (a, b), seeds in compared.items():
        outputs = [row["output"] for row in runs[a][0]["last"]]
        for k in outputs if b in LADDERS else [outputs[SINGLES[b]]]:
            found = [_error(runs[a][s], k) - _error(runs[b][s], k if b in LADDERS else 1) for s in seeds]
            _, low, high = interval(found)
            print(f"| {a} | {b} | {k} | {_each(found, '+')} | {low:+.1f} .. {high:+.1f} | {len(found)} |")
    print()
    for kind, of_seed in runs.items():
        for seed, s in of_seed.items():
            recipe = read_run_recipe(home / kind / str(seed))
            device = f"{s['device']['name']}, {s['device']['threads']} thread(s) of {s['device']['cores']}"
            print(
                f"- {kind}/{seed}: {s['method']}, {recipe.epochs} epochs, {s['wall_seconds'] / 60:.0f} min; "
                f"torch {s['versions']['torch']}, commit {s['commit']}, {device}"
            )


def _error(summary: dict[str, Any], output: int, part: str = "test") -> float:
    return float(100 * summary["last"][output - 1][f"{part}_error"])


def _each(values: list[float], sign: str = "") -> str:
    return f"{mean(values):{sign}.1f} ({', '.join(f'{value:{sign}.1f}' for value in values)})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
