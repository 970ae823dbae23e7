"""Logits against labels: errors and calibration, each with the uncertainty that N images leave.

Shapes: K outputs, N images, C classes. Statistics are computed in float64. Errors are fractions in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

from auxnet.batches import Batches
from auxnet.errors import not_finite
from auxnet.modules import in_mode
from auxnet.network import AuxNet, check_tensors, fitting
from auxnet.sections import By
from auxnet.words import per_cent, plural

Z95 = NormalDist().inv_cdf(0.975)  # standard errors to either side of a normal 95 % interval
LOGITS_AT_ONCE = 2**18  # in float64: as many as a processor's cache holds
ERROR_NAME: dict[By, str] = {"error": "error", "balanced": "balanced error"}
FEW_IMAGES = 100  # fewer validation images than this tell little


@dataclass(frozen=True, eq=False)
class Predictions:
    """The logits of every output for a set of images, and the labels of the images, on the CPU."""

    logits: Tensor
    """[K, N, C], shallow to deep"""
    labels: Tensor
    """int64 [N]"""

    def __post_init__(self) -> None:
        fit = self.logits.ndim == 3 and self.labels.ndim == 1 and self.logits.shape[1] == len(self.labels)
        if not fit or not len(self.labels):
            raise ValueError(
                f"logits must be [outputs, images, classes] and labels [images], one image or more; "
                f"got {list(self.logits.shape)} and {list(self.labels.shape)}"
            )

    @cached_property
    def wrong(self) -> Tensor:
        """Whether output k is wrong on image n, bool [K, N]."""
        return self.logits.argmax(2) != self.labels

    @property
    def errors(self) -> list[float]:
        """Error of each output."""
        return self.wrong.double().mean(1).tolist()


@torch.no_grad()
def predictions(net: AuxNet, batches: Batches) -> Predictions:
    """The logits of every output for batches of (images [N, C, H, W], labels [N]), in evaluation mode.

    The net is left in the mode it was in, the batches as they were. Raises ValueError if there are no images or labels
    are no classes of the net, RuntimeError for logits that are not finite: their error would be that of predicting one
    class for all images.
    """
    parts = []
    with in_mode(net, training=False):
        for images, labels in batches:
            check_tensors(images, labels)
            with fitting(net, images):
                logits = torch.stack(net(images.clone())).float().cpu()  # a trunk may write over its images
            parts.append((logits, labels.cpu()))
    if not sum(len(labels) for _, labels in parts):
        raise ValueError("there are no images to evaluate on")
    several = zip(*parts, strict=True)
    logits, labels = torch.cat(next(several), dim=1), torch.cat(next(several))
    classes = logits.shape[2]
    if labels.is_floating_point() or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        found = f"{labels.min().item()}..{labels.max().item()}"
        raise ValueError(f"labels must be whole numbers in 0..{classes - 1}, the classes of the net, got {found}")
    if not (finite := logits.isfinite().all(2).all(1)).all():
        raise not_finite(f"output {int(finite.int().argmin()) + 1}", "logits")
    return Predictions(logits, labels.long())


# ---- errors ----------------------------------------------------------------------------------------------------


def wilson(wrong: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share of `wrong` among n (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, half = wrong + z * z / 2, z * math.sqrt(wrong * (n - wrong) / n + z * z / 4)
    return max(0.0, (middle - half) / (n + z * z)), min(1.0, (middle + half) / (n + z * z))


def interval_of_mean(values: Tensor, least: float, most: float) -> tuple[float, float]:
    """A 95 % interval of the mean of values [N] in [least, most]: Agresti and Coull's (1998) of a share, generalised.

    z^2 values are added, half of them `least`, half `most`, before the normal interval is taken; so it has a width even
    if all values are alike. In simulations (2 or 3 different values, the rare ones 0.5 to 50 %, N from 30 to 1,000) it
    covered the true mean of 92 % of sets at worst and 97 % on average; the normal interval itself, of 13 and 85 %.
    """
    added, N = Z95**2 / 2, len(values) + Z95**2
    mean = (float(values.sum()) + added * (least + most)) / N
    squares = float((values - mean).square().sum()) + added * ((least - mean) ** 2 + (most - mean) ** 2)
    half = Z95 * math.sqrt(squares) / N
    return max(least, mean - half), min(most, mean + half)


def interval_of(error: float, images: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of an error, or of another share, that was measured on `images` images."""
    return wilson(round(error * images), images, level)


def guessing(labels: Tensor) -> float:
    """The error of always predicting the most frequent class, for labels [N]."""
    return (len(labels) - int(torch.bincount(labels).max())) / len(labels)  # rounded as other errors are


def no_better_than_guessing(
    error: float, images: int, guess: float, paired: Comparison | None = None, by: By = "error"
) -> str | None:
    """A remark if an error on `images` images is not shown to be less than that of guessing; else None.

    The interval of the error can show it (sharper if classes are of similar size), and so can `paired`, the comparison
    image by image (sharper if one class dominates). With `paired` given, one suffices, each at half the usual level; a
    balanced error has no such interval, and is shown by `paired` alone.
    """
    level = 0.05 if paired is None or by == "balanced" else 0.025
    by_interval = by == "error" and interval_of(error, images, 1 - level)[1] < guess
    if by_interval or (paired is not None and paired.difference < 0 and paired.p_value < level):
        return None
    shown = "no better" if error >= guess else f"not shown on {plural(images, 'image')} to be better"
    return f"that is {shown} than always predicting the most frequent class ({per_cent(guess)} {ERROR_NAME[by]})"


def too_few(images: int) -> str | None:
    """A remark if there are too few validation images to tell much; else None."""
    if images >= FEW_IMAGES:
        return None
    of_one = plural(round(100 / max(images, 1), 1), "point")
    mend = "a new training with more (--val-fraction, or more in val/) tells more"
    return f"{plural(images, 'validation image')}, fewer than {FEW_IMAGES}, tell little, one is {of_one}: {mend}"


def top_error(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of images whose class is not among the k likeliest, for logits [N, C], C >= k."""
    return float((logits.topk(k).indices != labels[:, None]).all(1).double().mean())


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images of class i (row) were called class j (column), int64 [C, C], for logits [N, C]."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


@dataclass(frozen=True)
class Comparison:
    """Two classifiers, a and b, on the same images."""

    difference: float
    """error of a less error of b"""
    low: float
    high: float
    """95 % interval of the difference"""
    p_value: float
    """of McNemar's exact test: how likely so large a difference is if there is none; of several tests, see `holm`"""

    @property
    def significant(self) -> bool:
        """Whether the images show, at the 5 % level, that one is better."""
        return self.p_value < 0.05


def compare(wrong_a: Tensor, wrong_b: Tensor) -> Comparison:
    """Compare the errors of two classifiers, bool [N] each, on the same N images.

    McNemar's exact test is a sign test over the images on which exactly one of the two is wrong. The interval is Bonett
    and Price's adjusted one for paired proportions (2012): it keeps its level even if those images are few, but it is
    approximate and not the inverse of the test, so near 5 % the two may disagree. Raises ValueError if there are no
    images, or not the same number for both.
    """
    from scipy.special import bdtr

    if wrong_a.shape != wrong_b.shape or wrong_a.ndim != 1 or not len(wrong_a):
        raise ValueError(f"both must hold one value per image, got {list(wrong_a.shape)} and {list(wrong_b.shape)}")
    n = len(wrong_a)
    only_a = int((wrong_a & ~wrong_b).sum())
    only_b = int((wrong_b & ~wrong_a).sum())
    p_value = min(1.0, 2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5))  # both tails, which are alike
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_a - share_b
    half = Z95 * ((share_a + share_b - centre**2) / (n + 2)) ** 0.5
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Comparison((only_a - only_b) / n, low, high, float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple tests (Holm 1979), in the order given.

    If there is no difference anywhere, some adjusted p-value is below 0.05 in at most 5 % of cases, however many tests
    there are.
    """
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


Compare = Callable[[Tensor, Tensor], Comparison]  # of two classifiers, by whether they are wrong, bool [N] each


def adjusted_p_values(wrong: Sequence[Tensor], compare: Compare = compare) -> dict[tuple[int, int], float]:
    """p-values of each pair (i < j) of classifiers, bool [N] each on the same images, adjusted (`holm`) for all pairs.

    All pairs count, even if only those of the best are used: it was picked on these images, and could have been any.
    """
    pairs = [*combinations(range(len(wrong)), 2)]
    return dict(zip(pairs, holm([compare(wrong[i], wrong[j]).p_value for i, j in pairs]), strict=True))


def compared_with(output: int, predicted: Predictions, compare: Compare = compare) -> dict[int, Comparison]:
    """Each other output, by its number, compared with one of them (1..K); p-values are `adjusted_p_values`."""
    wrong, reference = [*predicted.wrong], output - 1
    adjusted = adjusted_p_values(wrong, compare)
    return {
        k + 1: replace(compare(wrong[k], wrong[reference]), p_value=adjusted[min(k, reference), max(k, reference)])
        for k in range(len(wrong))
        if k != reference
    }


# ---- probabilities ---------------------------------------------------------------------------------------------


def log_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats, for logits [N, C]."""
    return float(F.cross_entropy(logits.double(), labels))


@dataclass(frozen=True)
class Bin:
    """The images whose top probability lies in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    """mean top probability; nan without images"""
    accuracy: float
    """share of them that are right; nan without images"""


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> list[Bin]:
    """The reliability diagram of logits [N, C]: equal-width bins of the top probability (Guo et al. 2017)."""
    top, called = logits.double().softmax(1).max(1)
    right = (called == labels).double()
    index = (top * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count, confidence, accuracy = (
        top.new_zeros(bins).index_add_(0, index, values) for values in (torch.ones_like(top), top, right)
    )
    rows = zip(count.tolist(), (confidence / count).tolist(), (accuracy / count).tolist(), strict=True)
    return [Bin(b / bins, (b + 1) / bins, int(n), sure, hit) for b, (n, sure, hit) in enumerate(rows)]


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error: |accuracy - confidence| of the bins of `reliability`, weighted by their images."""
    filled = [b for b in reliability(logits, labels) if b.images]
    return sum(b.images * abs(b.accuracy - b.confidence) for b in filled) / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in 1/20..20 that minimises the log-loss of logits [N, C] / T (temperature scaling, Guo et al. 2017).

    1 if every image is right: then the loss falls all the way towards T = 0, and the images do not tell how much
    confidence is too much.
    """
    from scipy.optimize import minimize_scalar

    if bool((logits.argmax(1) == labels).all()):
        return 1.0
    images = max(1, LOGITS_AT_ONCE // logits.shape[1])
    pieces = list(zip(torch.split(logits, images), torch.split(labels, images), strict=True))
    edge = math.log(20)

    def loss(log_t: float) -> float:
        losses = (F.cross_entropy(each.double() / math.exp(log_t), its, reduction="sum") for each, its in pieces)
        return sum(map(float, losses)) / len(labels)

    found = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)
