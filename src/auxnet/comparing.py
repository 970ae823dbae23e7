"""Two runs on the same images: at which outputs one errs less than the other, beyond chance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from auxnet.balanced import compare_balanced
from auxnet.errors import check_choice
from auxnet.evaluation import OutputReport, reports
from auxnet.opening import Opened, opened
from auxnet.precision import usual_defaults
from auxnet.recipe import RunDir
from auxnet.run_data import validated_alike
from auxnet.scores import Comparison, Predictions, compare, holm, predictions
from auxnet.sections import By, Which

OF_TWO_MODELS = (
    "this compares these two models only: another seed gives others, and comparing recipes takes several trainings of "
    "each (auxnet study)"
)


@dataclass(frozen=True)
class Pair:
    """An output of one run and an output of another."""

    first: OutputReport
    second: OutputReport
    comparison: Comparison
    """the first one's error less the second one's, image by image; the p-value is adjusted for all pairs that are
    compared (Holm 1979)"""


@dataclass(frozen=True)
class ComparedRuns:
    """Two runs, output by output."""

    pairs: tuple[Pair, ...]
    may_be_seen_by: tuple[Mapping[str, list[str]], Mapping[str, list[str]]]
    """of each run, as `Opened.may_be_seen_by`"""


@usual_defaults()
def compare_runs(
    first: RunDir,
    second: RunDir,
    *,
    on: str | os.PathLike[str] | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    which: Which = "last",
    by: By = "error",
) -> ComparedRuns:
    """Compare two runs' outputs at the same depths, and their final ones, on validation images or those of `on`.

    `which` chooses the weights of both: "last" or "best". `by` says which error is compared: "error" (McNemar's test),
    or "balanced", the mean of the errors of the classes (`balanced.compare_balanced`). The other options are those of
    `opened`, for both runs.

    Raises ValueError if the runs do not have the same classes or, without `on`, the same validation images; and what
    `opened` and `scores.predictions` raise.
    """
    as_asked: dict[str, Any] = {"on": on, "data_dir": data_dir, "device": device, "threads": threads, "which": which}
    split = "val" if on is None else "test"
    check_choice("by", by, By)

    def judged(run: Opened) -> tuple[Predictions, list[OutputReport]]:
        predicted = predictions(run.net, run.batches(split))
        return predicted, reports(run.net, run.image_shape, predicted)

    with opened(first, **as_asked) as one:  # each is judged by its own threads
        with opened(second, **as_asked) as other:
            if one.dataset.classes != other.dataset.classes:
                raise ValueError(f"{first} and {second} do not have the same classes, in the same order")
            data = [{**each.judged_on, "val_pictures": each.val_pictures()} for each in (one.dataset, other.dataset)]
            if on is None and not validated_alike(data):
                raise ValueError(
                    f"{first} and {second} do not have the same validation images (their data, seed or val_fraction "
                    "differ): train one as the other, or judge both --on other labelled images"
                )
            others_said, others = judged(other)
        said, rows = judged(one)
    pairs = matching([row.depth for row in rows], [row.depth for row in others])
    comparing = compare if by == "error" else partial(compare_balanced, labels=said.labels)
    found = [comparing(said.wrong[i], others_said.wrong[j]) for i, j in pairs]
    adjusted = holm([each.p_value for each in found])
    compared = zip(pairs, found, adjusted, strict=True)
    made = tuple(Pair(rows[i], others[j], replace(each, p_value=p)) for (i, j), each, p in compared)
    return ComparedRuns(made, (one.may_be_seen_by, other.may_be_seen_by))


def matching(depths: Sequence[int], others: Sequence[int]) -> list[tuple[int, int]]:
    """Which outputs of two nets are compared, by position from 0 on: those at the same depth, and the final ones.

    Of several at one depth, as a backbone may have, the first is compared with the first, and so on.
    """
    own, their = ([(depth, each[:i].count(depth)) for i, depth in enumerate(each)] for each in (depths, others))
    alike = [(i, their.index(place)) for i, place in enumerate(own) if place in their]
    return list(dict.fromkeys([*alike, (len(depths) - 1, len(others) - 1)]))
