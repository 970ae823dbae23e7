"""What is done to an image before a net sees it: written beside every net that is saved or exported, and read again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from auxnet.documents import parsing
from auxnet.errors import check_choice
from auxnet.reading.arrays import Pixels
from auxnet.reading.pictures import Frame, center_crop, resized
from auxnet.sections import LARGEST, Fit

_RESIZED: dict[Fit, tuple[str, str]] = {  # in words; by PIL
    "crop": ("the shorter side to resize, its middle cut out", "ImageOps.fit(image, {})"),
    "pad": ("the longer side to resize, between black borders", "ImageOps.pad(image, {})"),
    "stretch": ("both sides to resize", "image.resize({})"),
}


@dataclass(frozen=True)
class Preprocessing:
    """Images are brought to `resize`, the net sees their center of `image_size`, pixels become (pixel - mean) / std."""

    image_size: tuple[int, int]
    """(H, W) in pixels"""
    resize: tuple[int, int]
    """(H, W) in pixels"""
    mean: tuple[float, ...]
    """per channel, in 0..255"""
    std: tuple[float, ...]
    """per channel, in 0..255"""
    fit: Fit = "crop"
    """how an image of another shape is brought to `resize` (`pictures.Frame`)"""

    @property
    def channels(self) -> int:
        """C: 1 grey, 3 red-green-blue."""
        return len(self.mean)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) that a net sees."""
        return (self.channels, *self.image_size)

    @property
    def frame(self) -> Frame:
        """What images are brought to; the net sees the center of that."""
        return Frame(self.resize, self.fit)

    @property
    def preparation(self) -> str:
        """All that is done to an image file, for those who do it without this program: see `reading.pictures`."""
        said, by_pil = _RESIZED[self.fit]
        brought = by_pil.format("resize[::-1], Image.Resampling.BILINEAR")
        return (
            f"upright by its EXIF tag, of 16 bits the upper 8, transparency dropped; bilinear, antialiased: {said}; "
            "then the middle of image_size. As PIL: image.draft(None, (2 * max(resize),) * 2), which is for large "
            "JPEGs, then ImageOps.exif_transpose(image), np.asarray(image) >> 8 where image.mode begins with I (I;16, "
            "or of a PNG or PPM; other I, and F, have no known range and are refused), image.convert('RGB'), "
            f"{brought}, 'L' for 1 channel"
        )

    def seen(self, pixels: Pixels) -> Pixels:
        """What the net sees of uint8 pixels [h, w, 1 or 3], before it is normalised: [H, W, C]."""
        return center_crop(resized(pixels, self.frame, self.channels), self.image_size)

    def content(self) -> dict[str, Any]:
        """The preprocessing as plain values, for a file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `content`. Raises KeyError or TypeError for another form, ValueError for impossible values."""
        H, W = map(int, content["image_size"])
        height, width = map(int, content["resize"])
        mean, std = (tuple(map(float, content[key])) for key in ("mean", "std"))
        fit = content.get("fit", "crop")  # old files do not have it: all images were cropped
        check_choice("fit", fit, Fit)
        if not (1 <= H <= LARGEST and 1 <= W <= LARGEST and H <= height <= 2 * LARGEST and W <= width <= 2 * LARGEST):
            raise ValueError(f"images of {H}x{W} out of {height}x{width} pixels")
        if not len(mean) == len(std) > 0 or not all(map(math.isfinite, mean)):
            raise ValueError(f"a mean of {mean} and a standard deviation of {std}")
        if not all(0 < value < math.inf for value in std):
            raise ValueError(f"a standard deviation of {std}")
        return cls((H, W), (height, width), mean, std, fit)


def read_preprocessing(config: Mapping[str, Any], file: Path) -> Preprocessing:
    """The preprocessing in the content of a config.json. Raises RuntimeError if it is missing or damaged."""
    with parsing(f"{file} is damaged: its preprocessing cannot be read"):
        return Preprocessing.read(config["preprocessing"])
