"""Laws of what is done to photographs: crops as everybody's, operations as torchvision's and as formulas say."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from auxnet.augmentation import OPERATIONS, Augmentation, resized_crops
from auxnet.backbones.named import build_backbone
from auxnet.batches import batches
from auxnet.data import Split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(n: int, h: int = 40, w: int = 40, c: int = 3) -> Tensor:
    """Smooth colours, uint8 [n, h, w, c]."""
    small = torch.randint(0, 256, (n, c, 5, 5), generator=generator(1)).float()
    large = torch.nn.functional.interpolate(small, (h, w), mode="bilinear")
    return large.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# ---------------------------------------------------------------------------------------------------------- crops


def one_crop(H: int, W: int) -> tuple[int, int, int, int]:
    """The usual loop: tries until a crop fits, and then the whole image (which is neither too wide nor too high)."""
    for _ in range(10):
        area = H * W * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= W and 0 < h <= H:
            return random.randint(0, H - h), random.randint(0, W - w), h, w
    return 0, 0, H, W


def test_crops_lie_within_the_image_and_in_the_ranges_of_area_and_ratio() -> None:
    crops = resized_crops(5000, (64, 64), 1.0, generator()).double()
    top, left, h, w = crops.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 64).all()
    assert (left + w <= 64).all()
    slack = 1.5 / torch.minimum(h, w)  # of rounding to whole pixels
    assert (h * w / 64**2 >= 0.08 * (1 - slack)).all()
    assert (w / h <= 4 / 3 * (1 + slack)).all()
    assert (w / h >= 3 / 4 * (1 - slack)).all()


def test_crops_are_distributed_as_those_of_the_usual_loop() -> None:
    n = 8000
    random.seed(5)
    loop = torch.tensor([one_crop(64, 64) for _ in range(n)]).double()
    ours = resized_crops(n, (64, 64), 1.0, generator(2)).double()
    quantities = (
        lambda c: c[:, 2] * c[:, 3],
        lambda c: (c[:, 3] / c[:, 2]).log(),
        lambda c: c[:, 0],
        lambda c: c[:, 1] + c[:, 3] / 2,
    )
    for quantity in quantities:
        a, b = quantity(ours).sort().values, quantity(loop).sort().values
        at = torch.cat([a, b])
        gap = (torch.searchsorted(a, at, right=True) - torch.searchsorted(b, at, right=True)).abs().max() / n
        assert gap < 2.2 * (2 / n) ** 0.5  # Kolmogorov and Smirnov: reached once in 8000 times


def test_crops_of_an_oblong_image_keep_to_its_own_shape() -> None:
    _, _, h, w = resized_crops(4000, (60, 120), 2.0, generator()).double().unbind(1)
    assert abs(float((w / h / 2).log().mean())) < 0.02
    assert (w <= 120).all()
    assert (h <= 60).all()


def test_a_crop_is_what_pil_makes_of_it() -> None:
    images, only = photographs(20, 50, 50), Augmentation((32, 32), resized_crop=True, trivial=False)
    drawn = only.draw(20, (50, 50, 3), generator())
    for image, numbers, made in zip(images, drawn.tolist(), only.apply(images, drawn), strict=True):
        top, left, h, w, *rest = numbers
        cut = Image.fromarray(image.numpy()).crop((left, top, left + w, top + h))
        expected = np.asarray(cut.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(made.numpy(), expected)
        assert rest == [0, 0]


# --------------------------------------------------------------------------------------------------- TrivialAugment

NAMES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)


def done(name: str, strength: int, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(OPERATIONS[NAMES.index(name)](Image.fromarray(pixels), strength)).astype(int)


def test_operations_are_what_their_formulas_say() -> None:
    image = photographs(1)[0].numpy()
    x = image.astype(int)
    assert np.array_equal(done("Identity", 30, image), x)
    right = done("TranslateX", -15, image)  # by 16 pixels
    assert np.array_equal(right[:, 16:], x[:, :-16])
    assert (right[:, :16] == 0).all()
    assert np.array_equal(done("TranslateY", 15, image)[:-16], x[16:])
    assert np.array_equal(done("Posterize", 30, image), x & 0b11000000)
    assert np.array_equal(done("Posterize", 0, image), x)
    assert np.array_equal(done("Solarize", 30, image), 255 - x)
    assert np.array_equal(done("Solarize", -10, image), np.where(x < 170, x, 255 - x))
    assert np.abs(done("Brightness", -20, image) - x * 0.34).max() <= 1
    grey = x @ [0.299, 0.587, 0.114]
    assert np.abs(done("Color", -30, image) - (grey[..., None] * 0.99 + x * 0.01)).max() <= 2
    assert np.abs(done("Contrast", -30, image) - (grey.mean() * 0.99 + x * 0.01)).max() <= 2
    low, high = x.min((0, 1)), x.max((0, 1))
    assert np.abs(done("AutoContrast", 0, image) - (x - low) * 255 / (high - low)).max() <= 1
    mean = done("Equalize", 0, image).mean((0, 1))
    assert (np.abs(mean - 127.5) < 12).all()  # evenly spread
    sheared = done("ShearX", 30, image)
    for row in (0, 13, 29):
        shift = int(0.99 * (row + 0.5) + 0.5)  # of the middle of the row
        assert np.array_equal(sheared[row, : 40 - shift], x[row, shift:])
    turned = done("Rotate", 20, image)  # by 90 degrees, counter-clockwise
    assert np.array_equal(turned, np.rot90(x))


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_torchvisions(name: str) -> None:
    try:
        build_backbone("torchvision:resnet18", 2)
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.autoaugment import TrivialAugmentWide, _apply_op
    except (ImportError, RuntimeError):
        pytest.skip("torchvision cannot be imported here")
    space = TrivialAugmentWide()._augmentation_space(31)
    assert tuple(space) == NAMES
    image, (magnitudes, signed) = photographs(1)[0].numpy(), space[name]
    for level in range(31):
        magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
        ours = [done(name, sign * level, image) for sign in (1, -1)]
        theirs = [
            np.asarray(
                _apply_op(Image.fromarray(image), name, sign * magnitude, InterpolationMode.NEAREST, None)
            ).astype(int)
            for sign in ((1, -1) if signed else (1, 1))
        ]
        if "Translate" in name:
            theirs.reverse()  # they move the image, ours where it is looked at
        exact = not ("Translate" in name and level == 15)  # 16 pixels, which in float32 are theirs just below
        for a, b in zip(ours, theirs, strict=True):
            assert np.abs(a - b).max() <= 1 or not exact  # they brighten by float32 factors


@pytest.mark.parametrize("c", [1, 3])
def test_every_operation_and_strength_is_drawn_alike_and_applied(c: int) -> None:
    images, both = photographs(64, c=c), Augmentation((40, 40), resized_crop=False, trivial=True)
    drawn = both.draw(20_000, (40, 40, c), generator())
    assert torch.equal(drawn[:, :4], torch.tensor([0, 0, 40, 40]).expand(20_000, -1))
    for column, kinds in ((4, len(NAMES)), (5, 61)):
        counts = torch.unique(drawn[:, column], return_counts=True)[1].double()
        expected = torch.full((kinds,), 20_000 / (kinds if column == 4 else 62), dtype=torch.float64)
        if column == 5:
            expected[30] *= 2  # -0 and 0
        assert len(counts) == kinds
        assert ((counts - expected) ** 2 / expected).sum() < kinds + 5 * (2 * kinds) ** 0.5
    for place, (image, made) in enumerate(zip(images, both.apply(images, drawn[:64]), strict=True)):
        pixels = image.squeeze(2).numpy() if c == 1 else image.numpy()
        operation, strength = drawn[place, 4:].tolist()
        assert np.array_equal(
            made.squeeze(2).numpy() if c == 1 else made.numpy(), done(NAMES[operation], strength, pixels)
        )


# ----------------------------------------------------------------------------------------------------------- epochs


def epoch(
    workers: int = 0, seed: tuple[int, ...] | None = (3, 1), trivial: bool = True, **options: Any
) -> list[Tensor]:
    split = Split(photographs(30, 24, 24), torch.arange(30))
    augmentation = Augmentation((16, 16), resized_crop=True, trivial=trivial)
    given = {"augmentation": augmentation, "flip": True, "workers": workers, "seed": seed, **options}
    return [each for batch in batches(split, 7, (9.0,) * 3, (2.0,) * 3, **given) for each in batch]


def assert_same(one: list[Tensor], two: list[Tensor]) -> None:
    assert len(one) == len(two)
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_epoch_does_not_depend_on_the_number_of_processes(workers: int) -> None:
    assert_same(epoch(), epoch(workers))
    assert not torch.equal(epoch()[0], epoch(seed=(3, 2))[0])
    assert epoch()[0].shape == (7, 3, 16, 16)


@pytest.mark.parametrize("start", [1, 3, 5])
def test_an_epoch_taken_up_at_a_batch_is_the_tail_of_the_whole_epoch(start: int) -> None:
    assert_same(epoch(start=start), epoch()[2 * start :])


def test_the_parts_of_a_batch_make_up_the_whole_batch() -> None:
    parts = [epoch(part=lambda n, rank=rank: slice(rank * n // 3, (rank + 1) * n // 3)) for rank in range(3)]
    assert_same([torch.cat(pieces) for pieces in zip(*parts, strict=True)], epoch())


def test_without_a_seed_nothing_is_augmented() -> None:
    expected = photographs(30, 24, 24).permute(0, 3, 1, 2).float()
    assert_same([torch.cat(epoch(seed=None)[::2]) * 2 + 9], [expected])
