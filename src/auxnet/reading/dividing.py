"""The images of a set divided: into training, validation and test, and the training images into fewer.

The test set never depends on a seed of the caller's: if the data bring none, it is carved out once and for all,
and the validation set, which does follow the seed, is carved out of the training set alone.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auxnet.reading.splits import Labelled

TEST_FRACTION, TEST_SEED = 0.2, 0  # of the test set if the data bring none: fixed, so that it never changes


def with_all_splits(
    splits: dict[str, Labelled], classes: Sequence[str], val_fraction: float, seed: int
) -> tuple[Labelled, Labelled, Labelled]:
    """Train, validation and test: those that the data bring, the others carved from train, test first.

    Raises ValueError for a class with too few images to be on each side.
    """
    for name, fraction, split_seed in (("test", TEST_FRACTION, TEST_SEED), ("val", val_fraction, seed)):
        if name not in splits:
            whole = splits["train"]
            if 1 in (counts := torch.bincount(whole.labels).tolist()):
                few = classes[counts.index(1)]
                raise ValueError(
                    f"class {few!r} has too few images to carve a {name} split from: give three or more of each class"
                )
            kept, held = stratified_split(whole.labels, fraction, split_seed)
            splits["train"], splits[name] = whole.part(kept), whole.part(held)
    return splits["train"], splits["val"], splits["test"]


def without_images(split: Labelled, classes: Sequence[str]) -> list[str]:
    """The classes of which a split has no image, quoted."""
    counts = torch.bincount(split.labels, minlength=len(classes)).tolist()
    return [repr(each) for each, count in zip(classes, counts, strict=True) if not count]


def subsampled(train: Labelled, count: int, seed: int) -> Labelled:
    """`count` of the training images, each class in proportion. Raises ValueError for more than there are."""
    if count > len(train):
        raise ValueError(f"train_images must be at most the {len(train):,} training images there are, got {count:,}")
    if count == len(train):
        return train
    numbers = _apportioned(torch.bincount(train.labels), count).tolist()
    drawn = [images[:number] for images, number in zip(_by_class(train.labels, seed), numbers, strict=True)]
    return train.part(torch.cat(drawn).sort().values)


def _apportioned(counts: Tensor, total: int) -> Tensor:
    """`total` shared out in proportion to counts, int64 [C], by the largest remainders: no share exceeds its count.

    Every class that has images gets at least one if the total allows it.
    """
    exact = (counts * total).double() / counts.sum()
    shares = exact.floor().long()
    if total >= int(counts.count_nonzero()):
        shares = shares.maximum(counts.clamp(max=1))
    while lack := total - int(shares.sum()):
        over = shares - exact
        if lack > 0:
            shares[over.argmin()] += 1
        else:
            shares[over.where(shares > 1, -torch.inf).argmax()] -= 1
    return shares


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices kept and held out, each sorted: `fraction` of every class, rounded, is held out.

    At least one image of each class, of two or more, is on each side. Labels int64 [N].
    """
    kept, held = [], []
    for images in _by_class(labels, seed):
        count = len(images)
        number = min(max(int(fraction * count + 0.5), 1), count - 1) if count else 0
        held.append(images[:number])
        kept.append(images[number:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def _by_class(labels: Tensor, seed: int) -> Sequence[Tensor]:
    """The indices of each class's images, shuffled."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.split(shuffled[labels[shuffled].argsort(stable=True)], torch.bincount(labels).tolist())
