"""Early exit against its ideal: time of `EarlyExit` over what its exit shares would cost by themselves.

Ideal seconds of a batch = sum over outputs of (share of the images that leave there) x (measured seconds of the
truncated model for a full batch). A ratio of 1 means that images that left cost nothing more, and that heads
passed, decisions and smaller batches cost nothing at all; above 1 is slower. Early exit and truncated models take turns
in every round, on fresh batches in each, so that the sizes of the compacted batches vary as in use.

    python benchmarks/early_exit.py [--batch 256] [--depth 56] [--outputs 5] [--rounds 15] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import statistics
import time

import torch

import auxnet
from auxnet.exits import EarlyExit
from auxnet.policy import never
from auxnet.scores import predictions
from auxnet.thresholds import anytime, geometric
from measured import options, ratio, save, seconds, shown


def of_policy(exits: EarlyExit, alone: list[torch.nn.Module], fresh, rounds: int):
    """The ratio of one policy, in rounds of its own images; medians over the rounds."""
    times, ideals, shares_seen = [], [], []
    for round_ in range(-2, rounds):  # two to warm up
        images = fresh()
        began = time.perf_counter()
        left = exits(images).output
        took = time.perf_counter() - began
        shares = torch.bincount(left - 1, minlength=len(alone)) / len(images)
        costs = [seconds(lambda model=model, images=images: model(images)) for model in alone]
        ideal = sum(share * cost for share, cost in zip(shares.tolist(), costs, strict=True))
        if round_ >= 0:
            times.append(took)
            ideals.append(ideal)
            shares_seen.append(shares)
    return {
        "ratio": ratio(times, ideals),
        "shares": [round(share, 3) for share in torch.stack(shares_seen).mean(0).tolist()],
        "milliseconds": 1000 * statistics.median(times),
        "ideal_milliseconds": 1000 * statistics.median(ideals),
    }


def main() -> None:
    asked = options(__doc__, batch=256, depth=56, outputs=5, rounds=15).parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    net = auxnet.resnet(depth=asked.depth, outputs=asked.outputs).to(memory_format=torch.channels_last).eval()

    def fresh() -> torch.Tensor:
        return torch.randn(asked.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    # BatchNorm's statistics, without which the activations of random weights grow from layer to layer.
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(fresh())
        net.eval()

    alone = [net.truncate(k) for k in range(1, net.outputs + 1)]

    # Random weights and images serve: what is measured depends on the exit shares alone, and q sets those.
    said = predictions(net, ((fresh(), torch.zeros(asked.batch, dtype=torch.int64)) for _ in range(4)))
    rule = never(net.outputs)
    policies = {f"q = {q}": geometric(said, rule, q) for q in (0.5, 0.7, 1.0, 1.5)}
    policies |= {"all at the first": anytime(rule)[0], "all at the final": anytime(rule)[-1]}
    rows = {}
    with torch.inference_mode():
        for name, policy in policies.items():
            rows[name] = row = of_policy(EarlyExit(net, policy.thresholds), alone, fresh, asked.rounds)
            times = f"{row['milliseconds']:.1f} ms, ideal {row['ideal_milliseconds']:.1f} ms"
            print(f"ratio {shown(row['ratio'], 3)}  {name}: shares {row['shares']}, {times}", flush=True)
    save(asked, rows=rows)


if __name__ == "__main__":
    main()
