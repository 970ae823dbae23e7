"""Image files made pixels: found in a folder, decoded by PIL, brought to one size, stacked into one array.

Only the usual formats are decoded, and no decompression bomb; an image that cannot be read is a RuntimeError
that names it.

Shapes: N images, H x W pixels, C channels (1 grey, 3 red-green-blue).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from auxnet.arrays import Pixels, reading

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no others: fewer to trust, and much faster


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below, sorted, hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def decode(file: Path | io.BytesIO, where: str, image_size: int | None) -> Pixels:
    """An encoded image as [H, W, C], C = 1 where it is grey and else 3; `where` is its name in errors.

    It is turned upright by its EXIF tag, its transparency dropped. With `image_size` the shorter side is brought
    to that many pixels and the middle square cut out. Raises RuntimeError for an image that cannot be read.
    """
    from PIL import Image, ImageOps

    with reading(where, "image"), Image.open(file, formats=_DECODERS) as image:
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise ValueError(f"mode {image.mode!r} has no known range: save it with 8 bits per channel")
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits: keep the upper 8
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        mode = "L" if upright.mode in ("1", "L", "LA", "La") else "RGB"
        upright = upright if upright.mode == mode else upright.convert(mode)
        return _pixels(upright if image_size is None else _fit(upright, image_size))


def resize(images: Pixels, image_size: int) -> Pixels:
    """Images [N, H, W, C] brought to [N, image_size, image_size, C] as by `decode`."""
    from PIL import Image

    if images.shape[1:3] == (image_size, image_size):
        return images
    drawn = (Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images)
    fitted = (("", _pixels(_fit(image, image_size))) for image in drawn)
    return stack(fitted, len(images), "")


def stack(decoded: Iterable[tuple[str, Pixels]], count: int, source: str | Path) -> Pixels:
    """`count` images, each with the place it came from, as one array [N, H, W, C]: C = 1 if all are grey."""
    from PIL.Image import DecompressionBombWarning

    images, first = np.empty((0, 0, 0, 1), np.uint8), ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", DecompressionBombWarning)  # PIL itself raises only at twice its limit
        for index, (where, pixels) in enumerate(decoded):
            if index == 0:
                try:
                    first, images = where, np.empty((count, *pixels.shape), np.uint8)
                except MemoryError:
                    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                    raise ValueError(f"{count} images of {size} do not fit in memory: give --image-size") from None
            if pixels.shape[:2] != images.shape[1:3]:
                (H, W), (h, w) = images.shape[1:3], pixels.shape[:2]
                raise ValueError(
                    f"images must have one size, {first} is {W}x{H} and {where} is {w}x{h}: "
                    "give --image-size 32 to resize them all"
                )
            if pixels.shape[2] > images.shape[3]:
                images = np.repeat(images, 3, axis=3)
            images[index] = pixels
    if not count:
        raise RuntimeError(f"{source}: holds no images")
    return images


def _fit(image: Any, image_size: int) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)


def _pixels(image: Any) -> Pixels:
    pixels: Pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
