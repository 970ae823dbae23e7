"""From image files to pixels: decoded by PIL, resized, stacked into one array.

Only the usual formats are decoded, and no decompression bomb; an image that cannot be read is a RuntimeError
that names it.

Shapes: N images, H x W pixels, C channels (1 grey, 3 red-green-blue).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from auxnet.reading.arrays import Arrays, Pixels, reading
from auxnet.sections import Fit

if TYPE_CHECKING:
    from torch import Tensor

Picture = Path | str | Image.Image | Pixels
"""an image in any of these forms: a file, one of PIL's, or pixels, uint8 [H, W], [H, W, 1] or [H, W, 3]"""

AnyPixels = TypeVar("AnyPixels", Pixels, "Tensor")
MOST_SCANS = 100
SOME = 50  # pictures from which the shapes of all are judged
DECODER = f"Pillow {version('pillow')}"  # its version decides which images can be read, and their pixels
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # the markers of JPEG, without those inside coded pixels
_FIRST_SEGMENT, _START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xC0, 0xD8, 0xD9, 0xDA
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # in EXIF
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM"}
_TURNS |= {5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
_DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no others: fewer to trust, and much faster


class Frame(NamedTuple):
    """The size that images of any shape are brought to, and how."""

    size: tuple[int, int]
    """(H, W) in pixels"""
    fit: Fit = "crop"
    """how images of another shape are brought to it: crop keeps the center, pad adds black borders, stretch squeezes"""


def decode(file: Path | str | io.BytesIO, where: str, frame: Frame | None) -> Pixels:
    """Decode an image to [H, W, C], C = 1 if it is grey and else 3; `where` is its name in errors.

    It is turned upright by its EXIF tag, its transparency dropped, and brought to a frame if one is given; a JPEG of
    four times that size or more is decoded at a reduced scale, which gives nearly the same pixels in a fraction of the
    time and the memory. Raises RuntimeError for an image that cannot be read.
    """
    with reading(where, "image"), warnings.catch_warnings(action="ignore"):
        if frame is None:
            return _pixels(_plain(file, None)[0])
        return _pixels(_framed(_plain(file, frame.size)[0], frame))


def decode_for(size: tuple[int, int], file: Path | str, where: str) -> tuple[Pixels, tuple[int, int]]:
    """An image decoded as by `decode` for a frame of this size (H, W), but not yet resized to it (`resized`).

    Also returns (H, W) as in the file.
    """
    with reading(where, "image"), warnings.catch_warnings(action="ignore"):
        plain, own = _plain(file, size)
        return _pixels(plain), own


def _plain(file: Path | str | io.BytesIO, size: tuple[int, int] | None) -> tuple[Image.Image, tuple[int, int]]:
    """A PIL image, upright, L or RGB, and (H, W) as in the file.

    Given a size (H, W), a JPEG may be decoded at a reduced scale, to no less than twice that.
    """
    with _opened(file) as image:
        scans = _scans(image) if image.format in ("JPEG", "MPO") else 0
        if scans > MOST_SCANS:
            raise ValueError(f"it goes over its pixels more than {MOST_SCANS} times: a decompression bomb")
        width, height = image.size
        if size is not None:
            image.draft(None, (2 * max(size), 2 * max(size)))
        # A JPEG of one scan is never whole in memory at full size; of several scans libjpeg keeps all coefficients.
        _check_pixels(image.size if scans == 1 else (width, height))
        reduced, plain = image.size != (width, height), upright(image)
        if not reduced:
            return plain, plain.size[::-1]
        return plain, (width, height) if image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE else (height, width)


def _check_pixels(size: tuple[int, int]) -> None:
    """Raise ValueError for more pixels than PIL decodes without a warning; PIL itself refuses only twice as many."""
    width, height = size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        mend = (
            "make it smaller, or a JPEG that is not progressive: with an image size that is decoded at a reduced scale"
        )
        raise ValueError(f"{width}x{height} pixels may be a decompression bomb: {mend}")


def upright(image: Any) -> Image.Image:
    """A PIL image turned upright by its EXIF tag, grey (L) or red-green-blue, its transparency dropped.

    Raises ValueError for pixels whose range is not known: which value is white?
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(f"mode {image.mode!r} has no known range: save it with 8 bits per channel")
    name, image.filename = getattr(image, "filename", ""), ""
    try:
        image.load()  # with a name Pillow memory-maps a raw TIFF, and swaps rows and columns if it is on its side
    finally:
        image.filename = name
    turn = _TURNS.get(image.getexif().get(_ORIENTATION))  # ImageOps.exif_transpose fails on odd EXIF
    turned: Image.Image = image if turn is None else image.transpose(Image.Transpose[turn])
    if turned.mode.startswith("I"):  # 16 bits: keep the upper 8
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    mode = "L" if turned.mode in ("1", "L", "LA", "La") else "RGB"
    return turned if turned.mode == mode else turned.convert(mode)


def arrays_resized(arrays: Arrays, frame: Frame | None) -> Arrays:
    """Arrays brought to a frame, if there is one. Raises ValueError if they do not fit in memory."""
    if frame is None:
        return arrays
    images, size = arrays.images, arrays.images.shape[1:3]
    try:
        return arrays._replace(images=all_resized(images, frame, images.shape[3]), size=size)
    except MemoryError:
        said = "{} images of {}x{} do not fit in memory".format(len(images), *frame.size[::-1])
        raise ValueError(f"{said}: give a smaller --image-size") from None


def all_resized(images: Pixels, frame: Frame, channels: int) -> Pixels:
    """Images [N, h, w, c] brought to a frame, as by `decode`, and to a number of channels C: [N, H, W, C]."""
    if images.shape[1:] == (*frame.size, channels):
        return images
    made = np.empty((len(images), *frame.size, channels), np.uint8)
    for image, place in zip(images, made, strict=True):
        place[:] = resized(image, frame, channels)
    return made


def resized(pixels: Pixels, frame: Frame, channels: int) -> Pixels:
    """Pixels [h, w, 1 or 3] brought to a frame, as by `decode`, and to a number of channels C: [H, W, C]."""
    if pixels.shape == (*frame.size, channels):
        return pixels
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image = image if pixels.shape[:2] == frame.size else _framed(image, frame)
    return _pixels(image.convert("L" if channels == 1 else "RGB"))


def check_image(image: object) -> None:
    """Raise TypeError unless this is a `Picture`: a path, PIL's, or pixels, uint8 [H, W], [H, W, 1] or [H, W, 3]."""
    if isinstance(image, str | Path | Image.Image):
        return
    rule = "an image is a path, one of PIL's, or an array, uint8 [H, W], [H, W, 1] or [H, W, 3]"
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{rule}, got {type(image).__name__}: PIL's Image.open, or np.asarray, makes one")
    if image.dtype != np.uint8 or not image.size or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        mend = (
            "(255 * a).astype(np.uint8) if it is in 0..1, a.transpose(1, 2, 0) for [3, H, W], a[..., :3] for [H, W, 4]"
        )
        mend = "list(a) is its images one by one" if image.ndim == 4 else mend
        raise TypeError(f"{rule}, got {image.dtype} {list(image.shape)}: {mend}")


def pixels_of(image: Image.Image | Pixels) -> Pixels:
    """The pixels [H, W, 1 or 3] of a PIL image or an array. Raises as `upright` does."""
    pixels = np.asarray(upright(image) if isinstance(image, Image.Image) else image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def pixels_for(image: Picture, size: tuple[int, int]) -> Pixels:
    """The pixels of a picture; those of a file are decoded for this size (H, W), but not yet resized to it."""
    check_image(image)
    if not isinstance(image, str | Path):
        return pixels_of(image)
    if not Path(image).exists():
        raise FileNotFoundError(f"there is no such file: {image}")
    return decode_for(size, image, str(image))[0]


def center_crop(pixels: AnyPixels, size: tuple[int, int]) -> AnyPixels:
    """The center, of this size (H, W), of pixels [..., H, W, C]: a view."""
    top, left = (pixels.shape[-3] - size[0]) // 2, (pixels.shape[-2] - size[1]) // 2
    return pixels[..., top : top + size[0], left : left + size[1], :]


def shapes_of(files: Iterable[Path | str | io.BytesIO]) -> list[tuple[int, int]]:
    """(H, W) of the pictures that can be read, by their headers alone: some are on their side (EXIF)."""
    shapes = []
    for file in files:
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, suppress(RuntimeError), reading("", "image"), _opened(file) as image:
            shapes.append(image.size[::-1])
    return shapes


def stack(
    pictures: Iterable[tuple[str, Callable[[], Pixels]]], count: int, source: str | Path
) -> tuple[Pixels, NDArray[np.int64], tuple[str, ...]]:
    """Stack at most `count` images, each given with its name, into one array [n, H, W, C]: C = 1 if all are grey.

    Also returns the positions of these n images among all, int64 [n], and the errors of the others, which are damaged.

    Raises ValueError for images of different sizes, RuntimeError if there is none that can be read.
    """
    images, first = np.empty((0, 0, 0, 1), np.uint8), ""
    kept: list[int] = []
    left_out: list[str] = []
    for index, (where, picture) in enumerate(pictures):
        try:
            pixels = picture()
        except RuntimeError as error:
            left_out.append(damage_or_raise(error))
            continue
        if not kept:
            try:
                first, images = where, np.empty((count, *pixels.shape), np.uint8)
            except MemoryError:
                size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                raise ValueError(f"{count} images of {size} do not fit in memory: give --image-size") from None
        check_size(pixels.shape, where, images.shape[1:3], first)
        if pixels.shape[2] > images.shape[3]:
            images = np.repeat(images, 3, axis=3)
        images[len(kept)] = pixels
        kept.append(index)
    if not kept:
        raise RuntimeError(left_out[0] if left_out else f"{source}: holds no images")
    return images[: len(kept)], np.array(kept, np.int64), tuple(left_out)


def any_readable(pictures: Iterable[tuple[str, Callable[[], Pixels]]], left_out: Sequence[str]) -> bool:
    """Whether an image that `stack` left out can be read now: the cause may have been too little memory."""
    lost = iter(left_out)  # in the order of the pictures
    said = next(lost, None)
    for where, picture in pictures:
        if said is None:
            break
        if said.startswith(f"{where}: "):
            said = next(lost, None)
            with suppress(RuntimeError):
                picture()
                return True
    return False


def decoded_bytes(count: int, pictures: Iterable[Callable[[], Pixels]], frame: Frame | None) -> int:
    """The memory that `count` coloured images take, brought to a frame, or else of the size of the first readable."""
    if frame is not None:
        return count * prod(frame.size) * 3
    for picture in pictures:
        with suppress(RuntimeError):
            return count * picture()[..., 0].size * 3
    return 0


def check_size(shape: tuple[int, ...], where: str, wanted: tuple[int, ...], first: str) -> None:
    """Raise ValueError if an image of this shape, (h, w, ...), has not the size (H, W) that the first one has."""
    if shape[:2] != wanted:
        (H, W), (h, w) = wanted, shape[:2]
        raise ValueError(
            f"images must have one size, {first} is {W}x{H} and {where} is {w}x{h}: "
            f"give --image-size {min(H, W, 224)} to resize them all"
        )


def damage_or_raise(error: RuntimeError) -> str:
    """The message of the error of an image that cannot be read; an error of the system is raised again.

    An error of the system, such as a lack of memory or of permission, says nothing about the image.
    """
    cause = error.__cause__
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None):
        raise error
    return str(error)


def _scans(image: ImageFile.ImageFile) -> int:
    """The number of scans of a JPEG, some ten if it is progressive; counted no further than `MOST_SCANS`.

    As libjpeg counts them: scans in a segment (a thumbnail) or after the end of the image (the film of a motion photo,
    the other pictures of an MPO) do not count.
    """
    file: Any = image.fp
    place = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(place)
    scans = end = 0
    while scans <= MOST_SCANS and (found := _MARKER.search(data, end)):
        marker, end = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker >= _FIRST_SEGMENT and marker != _START_OF_IMAGE:
            end += int.from_bytes(data[end : end + 2])
    return scans


def _opened(file: Path | str | io.BytesIO) -> ImageFile.ImageFile:
    if isinstance(file, Path | str) and Path(file).is_fifo():  # reading it would wait for a writer
        raise ValueError("a pipe, and no file")
    try:
        return Image.open(file, formats=_DECODERS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{str(error).rstrip('.')}: make it smaller") from None
    except UnidentifiedImageError:  # PIL's own message holds a memory address
        raise ValueError(f"none of {', '.join(_DECODERS)}, or cut short") from None


def _framed(image: Image.Image, frame: Frame) -> Image.Image:
    """A PIL image brought to a frame."""
    (W, H), (w, h), method = frame.size[::-1], image.size, Image.Resampling.BILINEAR
    if frame.fit == "pad" and 0 in (round(h / w * W), round(w / h * H)):  # so narrow that nothing of it would be left
        image = image.resize((W, 1) if w > h else (1, H), method)
    brought = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize}[frame.fit]
    return brought(image, (W, H), method)  # type: ignore[operator,no-any-return]


def _pixels(image: Image.Image) -> Pixels:
    pixels: Pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
