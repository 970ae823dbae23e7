"""Is the target of early exit kept on images not seen? A simulation of calibrated outputs, where the truth is known.

An image of one of 10 classes is more or less easy; output k sees it through noise that falls with k, and says the exact
posterior. Thresholds are solved on n images for a rise of error of at most so many points, with all of it allowed on
those very images (`Solver.solve`), and cross-fitted (`Solver.cross_fitted`). The truth is counted on 60,000 fresh
images: over all sets of n, and over the sets alone in which images leave early, since the target was shown to be kept.

    python benchmarks/exit_target.py [--images 300 5000] [--increase 0.5 3] [--outputs 3] [--rounds 30] [--json FILE]
"""

from __future__ import annotations

import itertools
from statistics import mean, stdev

import torch

from auxnet.policy import never
from auxnet.scores import Predictions
from auxnet.thresholds import Solver, outcome
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
    parser = options(__doc__, outputs=3, rounds=30)
    parser.add_argument("--images", type=int, nargs="+", default=[30, 60, 100, 145, 200, 300, 500, 1000, 2000, 5000])
    parser.add_argument("--increase", type=float, nargs="+", default=[0.5, 3.0], help="points")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    costs, rule = [float(k) for k in range(1, asked.outputs + 1)], never(asked.outputs)
    fresh = drawn(FRESH, asked.outputs, seed=10**6)
    print("true errors:", " / ".join(f"{100 * error:.2f} %" for error in fresh.errors))
    rows = []
    for increase, images in itertools.product(asked.increase, asked.images):
        found: dict[str, list[tuple[float, float, float, bool]]] = {"all of it": [], "cross-fitted": []}
        for seed in range(asked.rounds):
            said, target = drawn(images, asked.outputs, seed), increase / 100
            solver = Solver(said, rule, costs)
            policies = {"all of it": solver.solve(target), "cross-fitted": solver.cross_fitted(target)[0]}
            for name, policy in policies.items():
                here, true = (outcome(of, policy, costs) for of in (said, fresh))
                rises = [100 * seen.against_final.difference for seen in (here, true)]
                found[name].append((*rises, true.mean_cost, policy != rule))
        for name, results in found.items():
            on_these, true, cost, early = zip(*results, strict=True)
            of_early = [rise for rise, is_early in zip(true, early, strict=True) if is_early]
            row = {
                "increase": increase,
                "images": images,
                "allowed": name,
                "rise_on_images_solved_on": mean(on_these),
                "true_rise": mean(true),
                "true_rise_spread": stdev(true),
                "exceeded": sum(rise > increase for rise in true),
                "mean_cost": mean(cost),
                "early": len(of_early),
                "true_rise_of_early": mean(of_early) if of_early else None,
            }
            rows.append(row)
            of_these = f"{row['true_rise_of_early']:.2f} in the {len(of_early)} that leave early; " if of_early else ""
            print(
                f"target {increase:g}, n = {images:5,}, {name:12}: rise {mean(on_these):5.2f} on these, truly "
                f"{mean(true):5.2f} ({stdev(true):.2f}), {of_these}more than the target in {row['exceeded']} of "
                f"{asked.rounds}; mean cost {mean(cost):.3f}",
                flush=True,
            )
    save(asked, true_errors=fresh.errors, rows=rows)


if __name__ == "__main__":
    main()
