"""Laws of the pictures: every kind becomes 8 bits, grey or red-green-blue, upright; what cannot is named."""

import io
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from auxnet.reading import folders, pictures
from auxnet.reading.arrays import Pixels
from writers import folder_of, load, png, save_all, tiny


def test_grey_images_stay_grey_until_one_has_colour(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    save_all(tmp_path, a=grey, b=grey.convert("LA"), c=grey.convert("1"))
    assert folders.FolderPart(folders.folder_files(tmp_path)).read_uncached().images.shape == (3, 4, 4, 1)
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    save_all(tmp_path, d=red, e=grey)
    images = folders.FolderPart(folders.folder_files(tmp_path)).read_uncached().images
    assert images.shape == (5, 4, 4, 3)
    assert np.array_equal(images[0], np.asarray(grey.convert("RGB")))
    assert np.array_equal(images[3], np.asarray(red))
    assert np.array_equal(images[4], np.asarray(grey.convert("RGB")))


def test_palette_transparent_and_cmyk_images_become_colour(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    save_all(tmp_path, a=red.convert("P"), b=rgba, c=red.convert("CMYK"))
    assert (folders.FolderPart(folders.folder_files(tmp_path)).read_uncached().images == np.array([255, 0, 0])).all()


def test_images_of_16_bits_keep_their_upper_8(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    save_all(tmp_path, a=Image.fromarray(values))
    images = folders.FolderPart(folders.folder_files(tmp_path)).read_uncached().images
    assert np.array_equal(images[0, ..., 0], values >> 8)


def test_images_of_floats_are_refused(tmp_path: Path) -> None:
    save_all(tmp_path, a=Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(RuntimeError, match=r"a\.tif: not a readable image \(mode 'F' has no known range"):
        folders.FolderPart(folders.folder_files(tmp_path)).read_uncached()


def test_a_rotated_photograph_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    image = folders.FolderPart(folders.folder_files(tmp_path)).read_uncached().images[0]
    assert np.array_equal(image, np.rot90(pixels, -1))


@pytest.mark.parametrize("turn", range(9))
def test_a_photograph_is_turned_by_its_tag_alone_whatever_the_others_hold(turn: int) -> None:
    orientation, odd = struct.pack("<HHIHH", 0x0112, 3, 1, turn, 0), struct.pack("<HHIi", 0x0100, 9, 1, -5)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + odd + orientation + bytes(4)
    plain, tagged = jpeg(), jpeg(exif=exif)
    with Image.open(io.BytesIO(plain)) as image:
        image.getexif()[0x0112] = turn
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(pictures.decode(io.BytesIO(tagged), "odd", None), upright)


@pytest.mark.parametrize("form", ["jpg", "png", "tif"])
@pytest.mark.parametrize("turn", [1, 6])
def test_the_size_that_a_picture_has_is_that_of_it_upright(form: str, turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (80, 40)).save(tmp_path / f"1.{form}", exif=exif)
    for size in (8, 80):  # a JPEG is decoded at a reduced scale for the smaller one
        _, own = pictures.decode_for((size, size), tmp_path / f"1.{form}", "1")
        assert own == ((40, 80) if turn == 1 else (80, 40))


@pytest.mark.parametrize(("channels", "depth"), [((), 8), ((), 16), ((3,), 8), ((4,), 8)])
@pytest.mark.parametrize(("turn", "quarters"), [(3, 2), (6, -1), (8, 1)])
def test_a_tiff_that_is_not_compressed_is_turned_as_any_other(
    channels: tuple[int, ...], depth: int, turn: int, quarters: int, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**depth, (6, 9, *channels)).astype(f"uint{depth}")
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(tmp_path / "1.tif", exif=exif)
    upright = np.rot90((pixels >> (depth - 8)).reshape(6, 9, -1)[..., :3], quarters)
    assert np.array_equal(pictures.decode(tmp_path / "1.tif", "1", None), upright)
    with Image.open(tmp_path / "1.tif") as opened:  # as a user gives it to `predict`
        assert np.array_equal(np.asarray(pictures.upright(opened)), upright.squeeze())
        assert opened.filename == str(tmp_path / "1.tif")


def test_links_are_followed_but_in_no_circle(tmp_path: Path) -> None:
    for name, place in (("1", "own/a"), ("2", "elsewhere"), ("3", "own/b")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / f"{name}.png").write_bytes(png(tiny(1, 1, size=8)[0][0]))
    for link, to in (("elsewhere", "../../elsewhere"), ("up", ".."), ("self", "."), ("again", "elsewhere")):
        (tmp_path / "own" / "a" / link).symlink_to(to)
    (tmp_path / "elsewhere" / "back").symlink_to("../own")
    (tmp_path / "elsewhere" / "round").symlink_to(".")
    found = [Path(path).name for path in folders.paths_and_others(tmp_path / "own" / "a")[0]]
    assert found == ["1.png", "2.png"]


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.usefixtures("own_cache_and_no_network")
def test_a_link_to_an_image_that_was_not_fetched_is_one_that_cannot_be_read(stream: str, home: Path) -> None:
    own = folder_of(home, 12)
    (own / "a" / "far.png").symlink_to("../.git/annex/far.png")
    with pytest.raises(RuntimeError, match=r"own/a/far\.png: a link to nothing, fetch it; .* with --max-corrupt 1"):
        load(str(own), stream=stream, workers=0)
    found = load(str(own), stream=stream, workers=0, max_corrupt=1)
    assert sum(len(split) for split in (found.train, found.val, found.test)) == 12
    assert found.left_out == (f"{own}/a/far.png: a link to nothing, fetch it",)
    (own / ".git" / "annex").mkdir(parents=True)
    (own / ".git" / "annex" / "far.png").write_bytes((own / "b" / "0001.png").read_bytes())
    assert load(str(own), stream=stream, workers=0).left_out == ()
    for image in own.glob("a/*"):
        image.unlink()
        image.symlink_to("nowhere.png")
    with pytest.raises(ValueError, match="own/a holds no image but links to nothing"):
        load(str(own), stream=stream, workers=0, max_corrupt=9)


def test_hidden_and_other_files_are_ignored_and_the_rest_sorted(tmp_path: Path) -> None:
    images, _ = tiny(3, 2, size=8)
    for path, image in zip(["b/2.png", "b/1.PNG", "a/deep/9.png"], images, strict=True):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(png(image))
    (tmp_path / ".hidden").mkdir()
    for path in ("b/.1.png", ".hidden/1.png", "a/Thumbs.db", "readme.md"):
        (tmp_path / path).write_bytes(b"nothing")
    got = folders.FolderPart(folders.folder_files(tmp_path)).read_uncached()
    assert got.classes == ("a", "b")
    assert np.array_equal(got.images, images[[2, 1, 0]])
    assert got.labels.tolist() == [0, 1, 1]


def test_unequal_sizes_are_refused_with_both_files_and_the_mend(tmp_path: Path) -> None:
    save_all(tmp_path, a=Image.new("RGB", (8, 4)), b=Image.new("RGB", (6, 4)))
    with pytest.raises(ValueError, match=r"a\.png is 8x4 and .*b\.png is 6x4: give --image-size 4"):
        folders.FolderPart(folders.folder_files(tmp_path)).read_uncached()


def test_image_size_resizes_the_shorter_side_and_cuts_out_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 12:28] = 200  # the middle square
    save_all(tmp_path, a=Image.fromarray(pixels), b=Image.new("RGB", (8, 30), (200, 200, 200)))
    images = folders.FolderPart(folders.folder_files(tmp_path)).read_uncached(pictures.Frame((8, 8))).images
    assert images.shape == (2, 8, 8, 3)
    assert (images[:, 1:-1, 1:-1] == 200).all()  # what touches the cut is smoothed across it
    whole = np.repeat(np.repeat(tiny(2, 2, size=4)[0], 8, 1), 8, 2)
    assert np.abs(pictures.all_resized(whole, pictures.Frame((16, 16)), 3).astype(int) - whole[:, ::2, ::2]).mean() < 15
    assert pictures.all_resized(whole[..., :1], pictures.Frame((16, 16)), 1).shape == (2, 16, 16, 1)


@pytest.mark.parametrize(("h", "w"), [(10, 40), (40, 10), (20, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_kept_whole_between_black_borders_or_out_of_shape_where_that_is_asked(
    h: int, w: int, channels: int
) -> None:
    """Its left half is 60, its right half 200."""
    whole = np.full((h, w, channels), 60, np.uint8)
    whole[:, w // 2 :] = 200
    for make in (lambda frame: pictures.resized(whole, frame, channels), partial(decoded, whole)):
        stretched = make(pictures.Frame((8, 8), "stretch"))
        assert stretched.shape == (8, 8, channels)
        assert (stretched[:, :3] == 60).all()
        assert (stretched[:, 5:] == 200).all()
        padded = make(pictures.Frame((8, 8), "pad"))
        assert padded.shape == (8, 8, channels)
        rows, columns = (slice(3, 5) if h < w else slice(8)), (slice(3, 5) if w < h else slice(8))
        inside = padded[rows, columns]
        assert padded.sum() == inside.sum()  # black around it
        assert (inside[:, 0] < 100).all()  # the two halves blend where there are few pixels
        assert (inside[:, -1] > 160).all()


@pytest.mark.parametrize("shape", [(2, 400, 3), (400, 2, 1)])
def test_however_narrow_a_picture_is_something_of_it_is_left_between_black_borders(shape: tuple[int, ...]) -> None:
    padded = pictures.resized(np.full(shape, 90, np.uint8), pictures.Frame((8, 8), "pad"), shape[2])
    assert (padded == 90).sum() == 8 * shape[2]
    assert padded.sum() == 90 * 8 * shape[2]


def decoded(pixels: Pixels, frame: pictures.Frame) -> Pixels:
    return pictures.decode(io.BytesIO(png(pixels)), "a", frame)


def test_a_truncated_or_false_image_is_left_out_and_named(tmp_path: Path) -> None:
    images, _ = tiny(3, 2, size=16)
    for name, image in (("a/1.png", images[0]), ("b/3.png", images[2])):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png(image))
    for damage in (b"", b"no image", png(images[1])[:200], png(images[1])[:20]):
        (tmp_path / "a" / "2.png").write_bytes(damage)
        got = folders.FolderPart(folders.folder_files(tmp_path)).read_uncached()
        assert np.array_equal(got.images, images[[0, 2]])
        assert got.labels.tolist() == [0, 1]
        (left_out,) = got.left_out
        assert left_out.startswith(f"{tmp_path}/a/2.png: not a readable image (")
        assert " at 0x" not in left_out  # the same words every time


def test_an_image_that_the_system_refuses_is_not_left_out(tmp_path: Path) -> None:
    save_all(tmp_path, a=Image.new("L", (4, 4)), b=Image.new("L", (4, 4)))
    (tmp_path / "a" / "b.png").unlink()
    (tmp_path / "a" / "b.png").symlink_to("b.png")  # a circle
    both = [(name, partial(pictures.decode, tmp_path / "a" / name, name, None)) for name in ("a.png", "b.png")]
    with pytest.raises(RuntimeError, match=r"b\.png: not a readable image .*Too many levels"):
        pictures.stack(both, 2, "")


def test_an_image_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    save_all(tmp_path, a=Image.new("L", (11, 11)))  # over the limit, where PIL alone only warns
    with pytest.raises(RuntimeError, match=r"a\.png: not a readable image .*bomb"):
        folders.FolderPart(folders.folder_files(tmp_path)).read_uncached()


def test_a_jpeg_that_is_decoded_at_a_reduced_scale_may_have_twice_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pictures.decode(io.BytesIO(jpeg()), "a", FOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # of 960
    assert np.array_equal(pictures.decode(io.BytesIO(jpeg()), "a", FOUR), whole)
    decoded_or_held_whole = ((None, {}), (pictures.Frame((16, 16)), {}), (FOUR, {"progressive": True}))
    for frame, options in decoded_or_held_whole:
        with pytest.raises(
            RuntimeError, match=r"a: not a readable image \(40x24 pixels may be a .* bomb: make it small"
        ):
            pictures.decode(io.BytesIO(jpeg(**options)), "a", frame)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(RuntimeError, match=r"exceeds limit of 800 pixels, could be .* attack: make it smaller\)"):
        pictures.decode(io.BytesIO(jpeg()), "a", FOUR)


FOUR = pictures.Frame((4, 4))


def jpeg(**options: object) -> bytes:
    """A photograph-like picture, 40 x 24, as JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)).save(file, "JPEG", **options)
    return file.getvalue()


SCAN = b"\xff\xda" * 500  # what a scan begins with, where none does


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_jpeg_or_lies_in_its_segments_is_not_taken_for_scans(progressive: bool, tmp_path: Path) -> None:
    """A motion photo is a JPEG and a film after it; EXIF holds thumbnails."""
    plain = jpeg(progressive=progressive)
    segment = b"\xff\xe1" + (len(SCAN) + 2).to_bytes(2) + SCAN
    pixels = pictures.decode(io.BytesIO(plain), "plain", None)
    for odd in (plain + SCAN, plain + b"film" + plain * 200, plain[:2] + segment + plain[2:]):
        assert np.array_equal(pictures.decode(io.BytesIO(odd), "odd", None), pixels)


def test_scans_are_counted_wherever_libjpeg_would_go_on_to_the_next() -> None:
    plain = jpeg(progressive=True, restart_marker_blocks=1)
    scan = plain[plain.rfind(b"\xff\xda") : -2]
    for between in (b"", b"\xff\xff", b"\xff\x00", b"\xff\xd3", b"\xff\xfe\x00\x02"):
        with pytest.raises(RuntimeError, match="more than 100 times: a decompression bomb"):
            pictures.decode(io.BytesIO(plain[:-2] + (between + scan) * 101 + plain[-2:]), "bomb", None)


@pytest.mark.parametrize("form", ["RGB", "L", "turned", "progressive"])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale_and_differs_little(form: str, tmp_path: Path) -> None:
    whole = Image.fromarray(load_sample_images().images[0]).convert("L" if form == "L" else "RGB")
    exif = Image.Exif()
    if form == "turned":
        exif[0x0112] = 6
    whole.save(tmp_path / "a.jpg", quality=90, exif=exif, progressive=form == "progressive")
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))
    for side in (32, 64, 100, 200, 213):  # of 427 pixels
        fitted = ImageOps.fit(upright, (side, side), Image.Resampling.BILINEAR)
        difference = np.asarray(fitted, float).reshape(side, side, -1)
        frame = pictures.Frame((side, side))
        difference -= pictures.decode(tmp_path / "a.jpg", "a", frame)
        assert np.abs(difference).mean() < 3
        assert np.abs(difference).max() < 48
        assert difference.any() == (side <= 106)  # less than a quarter of it
        pixels, own = pictures.decode_for((side, side), tmp_path / "a.jpg", "a")
        assert own == upright.size[::-1]
        assert min(pixels.shape[:2]) >= 2 * side or pixels.shape[:2] == own
        assert np.array_equal(
            pictures.resized(pixels, frame, pixels.shape[2]), pictures.decode(tmp_path / "a.jpg", "a", frame)
        )


def test_a_link_to_the_data_or_to_what_they_lie_in_is_no_class(home: Path) -> None:
    own = folder_of(home, 12)
    classes = load(own).classes
    (own / "d").symlink_to(own)
    (own / "e").symlink_to(home)
    (own / "f").symlink_to(own / classes[0])  # another name of a class, which is nobody's mistake for all of them
    assert load(own).classes == (*classes, "f")
