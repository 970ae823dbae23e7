"""Early exit against its ideal: throughput of `EarlyExit` over what its exit shares would cost by themselves.

Ideal seconds of a batch = sum over outputs of (share of the images that leave there) x (measured seconds of the
truncated model for a full batch). A ratio of 1 means that images that left cost nothing more, and that heads
passed, decisions and smaller batches cost nothing at all. Early exit and truncated models take turns in every
round, on fresh batches in each, so that the sizes of the compacted batches vary as in use.

    python benchmarks/early_exit.py [--batch 256] [--depth 56] [--outputs 5] [--rounds 15] [--threads 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

import auxnet
from auxnet.exits import EarlyExit
from auxnet.scores import predictions
from auxnet.thresholds import anytime, geometric


def seconds(model: torch.nn.Module, images: torch.Tensor) -> float:
    began = time.perf_counter()
    model(images)
    return time.perf_counter() - began


def measured(exits: EarlyExit, alone: list[torch.nn.Module], fresh, rounds: int) -> dict[str, object]:
    """The ratio of one policy, in rounds of its own images; medians over the rounds."""
    ratios, milliseconds, shares_seen = [], [], []
    for round_ in range(-2, rounds):  # two to warm up
        images = fresh()
        began = time.perf_counter()
        left = exits(images).output
        took = time.perf_counter() - began
        shares = torch.bincount(left - 1, minlength=len(alone)) / len(images)
        costs = [seconds(model, images) for model in alone]
        ideal = sum(share * cost for share, cost in zip(shares.tolist(), costs, strict=True))
        if round_ >= 0:
            ratios.append(ideal / took)
            milliseconds.append((1000 * took, 1000 * ideal))
            shares_seen.append(shares)
    low, median, high = statistics.quantiles(ratios, n=4)
    took, ideal = (statistics.median(column) for column in zip(*milliseconds, strict=True))
    return {
        "ratio": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "shares": [round(share, 3) for share in torch.stack(shares_seen).mean(0).tolist()],
        "milliseconds": round(took, 1),
        "ideal_milliseconds": round(ideal, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 256), ("depth", 56), ("outputs", 5), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    net = auxnet.resnet(depth=options.depth, outputs=options.outputs).to(memory_format=torch.channels_last).eval()

    def fresh() -> torch.Tensor:
        return torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    # BatchNorm's statistics, without which the activations of random weights grow from layer to layer.
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(fresh())
        net.eval()

    alone = [net.truncate(k) for k in range(1, net.outputs + 1)]

    # Random weights and images serve: what is measured depends on the exit shares alone, and q sets those.
    said = predictions(net, ((fresh(), torch.zeros(options.batch, dtype=torch.int64)) for _ in range(4)))
    policies = {f"q = {q}": geometric(said, q, kind="entropy") for q in (0.5, 0.7, 1.0, 1.5)}
    policies |= {"all at the first": anytime(net.outputs)[0], "all at the final": anytime(net.outputs)[-1]}
    rows = {}
    with torch.inference_mode():
        for name, policy in policies.items():
            row = measured(EarlyExit(net, policy.thresholds), alone, fresh, options.rounds)
            rows[name] = row
            low, high = row["quartiles"]
            times = f"{row['milliseconds']} ms, ideal {row['ideal_milliseconds']} ms"
            print(f"ratio {row['ratio']:.3f} ({low} .. {high})  {name}: shares {row['shares']}, {times}", flush=True)
    if options.out:
        where = {"torch": torch.__version__, "cpu": platform.processor() or platform.machine()}
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        options.out.write_text(json.dumps({"rows": rows, **settings, **where}, indent=2) + "\n")


if __name__ == "__main__":
    main()
