"""Is the target of early exit kept on images not seen? A simulation of calibrated outputs, where the truth is known.

An image of one of 10 classes is more or less easy; output k sees it through noise that falls with k, and says the exact
posterior. Thresholds are solved on n images for a rise of error of at most --increase points, with all of it allowed on
those very images (`solve`), and cross-fitted (`solve_cross_fitted`); the truth is counted on 60,000 fresh images.

    python benchmarks/exit_target.py [--images 300 1000 5000] [--outputs 3] [--rounds 30] [--increase 0.5] [--json FILE]
"""

from __future__ import annotations

import time
from statistics import mean, stdev

import torch

from auxnet.scores import Predictions
from auxnet.thresholds import outcome, solve, solve_cross_fitted
from measured import options, save

CLASSES, FRESH = 10, 60_000


def drawn(images: int, outputs: int, seed: int) -> Predictions:
    """What the outputs say of so many images: log-posteriors up to a constant, so that their softmax is calibrated."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=random)
    ease = 0.4 + 2.6 * torch.rand(images, 1, generator=random)
    noise = torch.linspace(1.0, 0.6, outputs).tolist()
    seen = ease * torch.nn.functional.one_hot(labels, CLASSES)
    said, before = [], 0.0
    for level in reversed(noise):  # the final output sees most, and what a shallower one sees adds nothing to it
        seen = seen + (level**2 - before**2) ** 0.5 * torch.randn(images, CLASSES, generator=random)
        said.append(ease * seen / level**2)
        before = level
    return Predictions(torch.stack(said[::-1]), labels)


def main() -> None:
    parser = options(__doc__, outputs=3, rounds=30, increase=0.5)
    parser.add_argument("--images", type=int, nargs="+", default=[300, 500, 1000, 2000, 5000])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    costs = [float(k) for k in range(1, asked.outputs + 1)]
    fresh, target = drawn(FRESH, asked.outputs, seed=10**6), asked.increase / 100
    print("true errors:", " / ".join(f"{100 * error:.2f} %" for error in fresh.errors))
    rows = []
    for images in asked.images:
        found: dict[str, list[tuple[float, float, float]]] = {"all of it": [], "cross-fitted": []}
        began = time.perf_counter()
        for seed in range(asked.rounds):
            said = drawn(images, asked.outputs, seed)
            policies = {
                "all of it": solve(said, costs, max_error_increase=target),
                "cross-fitted": solve_cross_fitted(said, costs, max_error_increase=target)[0],
            }
            for name, policy in policies.items():
                seen, true = (outcome(of, policy, costs) for of in (said, fresh))
                rises = [100 * each.against_final.difference for each in (seen, true)]
                found[name].append((*rises, true.mean_cost))
        took = (time.perf_counter() - began) / asked.rounds
        for name, results in found.items():
            on_these, true, cost = zip(*results, strict=True)
            row = {
                "images": images,
                "allowed": name,
                "rise_on_images_solved_on": mean(on_these),
                "true_rise": mean(true),
                "true_rise_spread": stdev(true),
                "exceeded": sum(rise > asked.increase for rise in true),
                "mean_cost": mean(cost),
            }
            rows.append(row)
            print(
                f"n = {images:5,}, {name:12}: rise {mean(on_these):5.2f} on these, truly {mean(true):5.2f} "
                f"({stdev(true):.2f}), more than {asked.increase:g} in {row['exceeded']} of {asked.rounds}; "
                f"mean cost {mean(cost):.3f}; {took:.2f} s for both",
                flush=True,
            )
    save(asked, true_errors=fresh.errors, rows=rows)


if __name__ == "__main__":
    main()
