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
from auxnet.thresholds import _Task, _geometric


def seconds(model: torch.nn.Module, images: torch.Tensor) -> float:
    began = time.perf_counter()
    model(images)
    return time.perf_counter() - began


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
    alone = [net.truncate(k) for k in range(1, net.outputs + 1)]

    def fresh() -> torch.Tensor:
        return torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    # Random weights, random images: thresholds by which the outputs take shares proportional to q^k.
    said = predictions(net, ((fresh(), torch.zeros(options.batch, dtype=torch.int64)) for _ in range(4)))
    sure = _Task.of(said, [1.0] * net.outputs, "entropy", None).sure
    rows = []
    with torch.inference_mode():
        for q in (0.5, 0.7, 1.0, 1.5):
            exits = EarlyExit(net, _geometric(sure, q))
            for _ in range(2):
                for model in (exits, *alone):
                    model(fresh())
            ratios, exit_seconds, ideal_seconds, shares_seen = [], [], [], []
            for _ in range(options.rounds):
                images = fresh()
                shares = torch.bincount(exits(images).output - 1, minlength=net.outputs) / options.batch
                images_new = fresh()  # sizes not seen just before
                began = time.perf_counter()
                left = exits(images_new).output
                took = time.perf_counter() - began
                shares = torch.bincount(left - 1, minlength=net.outputs) / options.batch
                costs = [seconds(model, images_new) for model in alone]
                ideal = sum(share * cost for share, cost in zip(shares.tolist(), costs, strict=True))
                ratios.append(ideal / took)
                exit_seconds.append(took)
                ideal_seconds.append(ideal)
                shares_seen.append(shares)
            low, median, high = statistics.quantiles(ratios, n=4)
            row = {
                "q": q,
                "ratio": round(median, 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "shares": [round(s, 3) for s in torch.stack(shares_seen).mean(0).tolist()],
                "milliseconds": round(1000 * statistics.median(exit_seconds), 1),
                "ideal_milliseconds": round(1000 * statistics.median(ideal_seconds), 1),
            }
            rows.append(row)
            print(
                f"ratio {row['ratio']:.3f}  ({low:.3f} .. {high:.3f})  q {q}  shares {row['shares']}  "
                f"{row['milliseconds']} ms, ideal {row['ideal_milliseconds']} ms"
            )
    figures = {
        "claim": "early exit reaches this share of its ideal throughput",
        "rows": rows,
        **{key: getattr(options, key) for key in ("batch", "depth", "outputs", "rounds", "threads")},
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
