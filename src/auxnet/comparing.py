"""Two runs on the same images: at which outputs one errs less than the other, beyond chance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from auxnet.evaluation import OutputReport, reports
from auxnet.opening import opened
from auxnet.recipe import RunDir
from auxnet.scores import Comparison, Predictions, compare, holm, predictions
from auxnet.sections import Which

OF_TWO_MODELS = (
    "this is of these two models, and another seed gives others; whether one recipe is better takes several trainings "
    "of each (auxnet study)"
)


@dataclass(frozen=True)
class Pair:
    """An output of one run and an output of another."""

    first: OutputReport
    second: OutputReport
    comparison: Comparison
    """the first one's errors less the second one's, image by image; the p-value is adjusted for as many pairs as are
    compared (Holm 1979)"""


def compare_runs(
    first: RunDir,
    second: RunDir,
    *,
    on: str | os.PathLike[str] | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    which: Which = "last",
) -> list[Pair]:
    """The outputs of two runs that lie at the same depth, and their final ones, on validation images or `on` others.

    The weights of both are the "last" or the "best"; all else is as `opened` takes it, for both.

    Raises ValueError where the runs do not have the same classes or, without `on`, the same validation images; and what
    `opened` and `scores.predictions` raise.
    """
    judged: list[tuple[Predictions, list[OutputReport]]] = []
    seen, split = [], "val" if on is None else "test"
    for folder in (first, second):
        with opened(folder, data_dir=data_dir, device=device, threads=threads, which=which, on=on) as run:
            data = run.dataset
            seen.append((data.classes, (data.val_sha256(), data.resize) if on is None else None))
            if seen[0][0] != seen[-1][0]:
                raise ValueError(f"{first} and {second} do not have the same classes, in the same order")
            if seen[0] != seen[-1]:
                raise ValueError(
                    f"{first} and {second} do not have the same validation images (their data, seed, val_fraction or "
                    "image_size differ): train one as the other, or judge both --on other labelled images"
                )
            predicted = predictions(run.net, run.batches(split))
            judged.append((predicted, reports(run.net, run.image_shape, predicted)))
    (said, rows), (others_said, others) = judged
    pairs = matching([row.depth for row in rows], [row.depth for row in others])
    found = [compare(said.wrong[i], others_said.wrong[j]) for i, j in pairs]
    adjusted = holm([each.p_value for each in found])
    return [
        Pair(rows[i], others[j], replace(each, p_value=p))
        for (i, j), each, p in zip(pairs, found, adjusted, strict=True)
    ]


def matching(depths: Sequence[int], others: Sequence[int]) -> list[tuple[int, int]]:
    """Which outputs of two nets are compared, by place from 0 on: those at the same depth, and the final ones."""
    alike = [(i, others.index(depth)) for i, depth in enumerate(depths) if depth in others]
    return list(dict.fromkeys([*alike, (len(depths) - 1, len(others) - 1)]))
