"""What training does to photographs: a random resized crop, and TrivialAugment; before the padded crop and the flip.

What is done to an image is a row of whole numbers. They are drawn first, and applied by the processes that read images,
so that the result does not depend on how many processes there are. The pixels are PIL's, as in torchvision's classes of
these names (which are not used: torchvision is no dependency, and its wheel does not import beside every torch).

Shapes: n images, H x W pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator, Tensor

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of random resized crops: the usual ones
TRIES = 10  # for a crop that fits, before the whole image is taken
LEVELS = 30  # the greatest strength of an operation

Operation = Callable[[Image.Image, int], Image.Image]


@dataclass(frozen=True)
class Augmentation:
    """Random resized crops to `size` (H, W), if `resized_crop`; one operation of TrivialAugment, if `trivial`."""

    size: tuple[int, int]
    resized_crop: bool
    trivial: bool

    def draw(self, n: int, image_shape: tuple[int, int, int], generator: Generator) -> Tensor:
        """For each of n images of this shape (H, W, C) the numbers that `apply` takes, int64 [n, 6].

        They are the top, left, height and width of the crop, the operation and its strength in -30..30.
        """
        H, W, _ = image_shape
        whole = torch.tensor([0, 0, H, W]).expand(n, -1)
        crops = resized_crops(n, (H, W), self.size[1] / self.size[0], generator) if self.resized_crop else whole
        if not self.trivial:
            return torch.cat([crops, torch.zeros(n, 2, dtype=torch.int64)], 1)
        operation = torch.randint(len(OPERATIONS), (n,), generator=generator)
        strength = torch.randint(LEVELS + 1, (n,), generator=generator)
        sign = torch.randint(2, (n,), generator=generator) * 2 - 1
        return torch.cat([crops, operation[:, None], (sign * strength)[:, None]], 1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Images, uint8 [n, H, W, C], as drawn: uint8 [n, *size, C]."""
        done = np.empty((len(images), *self.size, images.shape[3]), np.uint8)
        for place, pixels, numbers in zip(done, images.numpy(), drawn.tolist(), strict=True):
            top, left, height, width, operation, strength = numbers
            cut = np.ascontiguousarray(pixels[top : top + height, left : left + width])
            image = Image.fromarray(cut.squeeze(2) if cut.shape[2] == 1 else cut)
            if (height, width) != self.size:
                image = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
            image = OPERATIONS[operation](image, strength) if self.trivial else image
            place[:] = np.asarray(image).reshape(place.shape)
        return torch.from_numpy(done)


def resized_crops(n: int, size: tuple[int, int], aspect: float, generator: Generator) -> Tensor:
    """n random parts of an image of this size (H, W): top, left, height, width, int64 [n, 4].

    A part's share of the area is uniform in `AREA`; its width / height is `aspect` times a number in `ASPECT` whose
    logarithm is uniform. Of `TRIES` such parts the first that fits into the image is taken, or else the whole image.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    H, W = size
    area = H * W * uniform(*AREA, n, TRIES)
    ratio = aspect * uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), n, TRIES).exp()
    height, width = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (height >= 1) & (height <= H) & (width >= 1) & (width <= W)
    first = fits.int().argmax(1, keepdim=True)  # 0 if none fits
    fits, height, width = (each.gather(1, first).squeeze(1) for each in (fits, height, width))
    height, width = torch.where(fits, height, H), torch.where(fits, width, W)
    top, left = (uniform(0, 1, n) * (H - height + 1)).floor(), (uniform(0, 1, n) * (W - width + 1)).floor()
    return torch.stack([top, left, height, width], 1).long()


def _moved(image: Image.Image, *xy_from_xy1: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, xy_from_xy1)


def _enhanced(kind: Any) -> Operation:
    return lambda image, s: kind(image).enhance(1 + 0.99 * s / LEVELS)


OPERATIONS: tuple[Operation, ...] = (
    lambda image, _: image,
    lambda image, s: _moved(image, 1, 0.99 * s / LEVELS, 0, 0, 1, 0),  # sheared
    lambda image, s: _moved(image, 1, 0, 0, 0.99 * s / LEVELS, 1, 0),
    lambda image, s: _moved(image, 1, 0, int(32 * s / LEVELS), 0, 1, 0),  # shifted, by up to 32 pixels
    lambda image, s: _moved(image, 1, 0, 0, 0, 1, int(32 * s / LEVELS)),
    lambda image, s: image.rotate(135 * s / LEVELS),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, s: ImageOps.posterize(image, 8 - round(6 * abs(s) / LEVELS)),
    lambda image, s: ImageOps.solarize(image, 255 - 255 * abs(s) / LEVELS),  # type: ignore[arg-type]
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
)
"""TrivialAugment's operations (Mueller and Hutter 2021, the wide ranges) on an image, strengths in -30..30.

Operations that have one direction only ignore the sign of the strength. Pixels from outside the image are black.
"""
