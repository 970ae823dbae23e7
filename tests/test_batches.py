"""Laws of the batches: augmentation draws what it claims, validation draws nothing, numbers are exact."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from auxnet.batches import batches, cropped_and_flipped, draw_crops_and_flips, normalise, seed_of
from auxnet.data import Split

torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unique_pixels(n: int, h: int, w: int, c: int) -> Tensor:
    """[n, h, w, c] int64 in which no number occurs twice and none is 0."""
    return torch.arange(1, n * h * w * c + 1).view(n, h, w, c)


def split_of(n: int, c: int = 3) -> Split:
    images = torch.randint(0, 256, (n, 8, 6, c), dtype=torch.uint8, generator=generator(1))
    return Split(images, torch.arange(n))


def crops(image_HWC: Tensor, pad: int) -> dict[tuple[int, int, bool], Tensor]:
    """All outcomes of the augmentation, by hand: slices of the padded image, and their mirror images."""
    H, W, _ = image_HWC.shape
    padded = torch.nn.functional.pad(image_HWC, (0, 0, pad, pad, pad, pad))
    outcomes = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            crop = padded[top : top + H, left : left + W]
            outcomes[top, left, False] = crop
            outcomes[top, left, True] = crop.flip(1)
    return outcomes


def augmented(images: Tensor, drawn_by: torch.Generator, pad: int, flip: bool) -> Tensor:
    return cropped_and_flipped(images, pad, *draw_crops_and_flips(len(images), drawn_by, pad, flip))


@pytest.mark.parametrize("c", [1, 3])
def test_every_augmented_image_is_a_slice_of_its_padded_image_and_every_slice_occurs(c: int) -> None:
    images = unique_pixels(400, 5, 7, c)
    out = augmented(images, generator(), pad=2, flip=True)
    seen = set()
    for image, result in zip(images, out, strict=True):
        matches = [key for key, crop in crops(image, 2).items() if torch.equal(crop, result)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 25 * 2


def test_all_crops_and_both_mirrorings_are_equally_likely() -> None:
    pad, n = 2, 20_000
    image = unique_pixels(1, 5, 5, 1)[0]
    out = augmented(image.expand(n, -1, -1, -1), generator(3), pad, flip=True)
    # With pad < size the middle pixel of the image survives every crop; where it lies tells the crop apart,
    # and so does the pixel to its right, which tells the mirroring apart.
    outcomes = crops(image, pad)
    assert all((crop == image[2, 2, 0]).sum() == 1 for crop in outcomes.values())
    flat = out.view(n, -1)
    counts = {key: int((flat == crop.flatten()).all(1).sum()) for key, crop in outcomes.items()}
    assert sum(counts.values()) == n
    p = 1 / len(counts)
    five_sigma = 5 * (n * p * (1 - p)) ** 0.5
    assert all(abs(count - n * p) < five_sigma for count in counts.values())
    chi_square = sum((count - n * p) ** 2 / (n * p) for count in counts.values())
    assert chi_square < 49 + 5 * (2 * 49) ** 0.5  # 49 degrees of freedom
    mirrored = sum(count for (_, _, flip), count in counts.items() if flip)
    assert abs(mirrored - n / 2) < 5 * (n / 4) ** 0.5


def test_images_of_a_batch_are_augmented_independently() -> None:
    out = augmented(unique_pixels(1, 5, 5, 1).expand(200, -1, -1, -1), generator(), pad=2, flip=True)
    assert len(out.view(200, -1).unique(dim=0)) > 40


@pytest.mark.parametrize("flip", [False, True])
def test_without_padding_only_mirroring_remains(flip: bool) -> None:
    images = unique_pixels(64, 3, 4, 3)
    out = augmented(images, generator(), pad=0, flip=flip)
    same = (out == images).all(3).all(2).all(1)
    mirrored = (out == images.flip(2)).all(3).all(2).all(1)
    assert (same ^ mirrored).all()
    assert bool(mirrored.any()) == flip


def test_augment_leaves_its_input_alone() -> None:
    images = unique_pixels(4, 3, 3, 3)
    before = images.clone()
    for pad, flip in ((0, False), (1, True)):
        augmented(images, generator(), pad, flip).fill_(0)
    assert torch.equal(images, before)


@pytest.mark.parametrize("c", [1, 3])
def test_normalise_equals_the_formula_in_float64(c: int) -> None:
    images = split_of(5, c).images
    mean, std = (125.3, 123.0, 113.9)[:c], (63.0, 62.1, 66.7)[:c]
    expected = ((images.double() - torch.tensor(mean).double()) / torch.tensor(std).double()).permute(0, 3, 1, 2)
    got = normalise(images, mean, std)
    assert got.dtype == torch.float32
    assert got.shape == (5, c, 8, 6)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


def test_normalise_accepts_a_view_and_leaves_it_alone() -> None:
    images = split_of(6).images
    view, before = images[::2, 1:], images.clone()
    got = normalise(view, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    torch.testing.assert_close(got, normalise(view.contiguous(), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)))
    assert torch.equal(images, before)


def test_without_a_seed_all_images_come_in_order_and_unaugmented() -> None:
    split = split_of(10)
    mean, std = (0.0,) * 3, (1.0,) * 3
    out = list(batches(split, 4, mean, std, pad=4, flip=True))
    assert [len(labels) for _, labels in out] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for _, labels in out]), split.labels)
    assert torch.equal(torch.cat([images for images, _ in out]).permute(0, 2, 3, 1), split.images.float())


def test_with_a_seed_each_image_comes_once_beside_its_label_in_a_new_order_each_epoch() -> None:
    split, epochs = split_of(50), []
    for epoch in range(2):
        out = list(batches(split, 8, (0.0,) * 3, (1.0,) * 3, seed=(0, epoch)))
        images, labels = (torch.cat(column) for column in zip(*out, strict=True))
        assert labels.sort().values.tolist() == list(range(50))
        assert torch.equal(images.permute(0, 2, 3, 1), split.images[labels].float())
        epochs.append(labels)
    assert not torch.equal(epochs[0], split.labels)
    assert not torch.equal(*epochs)


def epoch_of(split: Split, seed: tuple[int, ...] | None = (5, 1), **options: Any) -> list[tuple[Tensor, Tensor]]:
    return list(batches(split, 7, (9.0,) * 3, (2.0,) * 3, seed=seed, pad=2, flip=True, **options))


def assert_same(one: list[tuple[Tensor, Tensor]], two: list[tuple[Tensor, Tensor]]) -> None:
    assert len(one) == len(two)
    for (images, labels), (others, other_labels) in zip(one, two, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_the_same_seed_gives_the_same_epoch_and_no_global_state_is_touched() -> None:
    split, state = split_of(30), torch.random.get_rng_state()
    assert_same(epoch_of(split), epoch_of(split))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("seed", [None, (5, 1)])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 9])
def test_an_epoch_taken_up_at_a_batch_is_the_tail_of_the_whole_epoch(seed: tuple[int, ...] | None, start: int) -> None:
    split = split_of(30)
    assert_same(epoch_of(split, seed, start=start), epoch_of(split, seed)[start:])


def test_images_before_the_first_batch_are_not_read() -> None:
    read = []

    class Watched(Split):
        def read(self, indices: Tensor) -> Tensor:
            read.extend(indices.tolist())
            return super().read(indices)

    split = split_of(30)
    tail = epoch_of(Watched(split.images, split.labels), start=3)
    assert read == torch.cat([labels for _, labels in tail]).tolist()  # the labels are the indices


@pytest.mark.parametrize("seed", [None, (5, 1)])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_parts_of_a_batch_make_up_the_whole_batch(seed: tuple[int, ...] | None, size: int) -> None:
    split = split_of(30)

    def part_of(rank: int) -> list[tuple[Tensor, Tensor]]:
        return epoch_of(split, seed, part=lambda n: slice(rank * n // size, (rank + 1) * n // size))

    parts = [part_of(rank) for rank in range(size)]
    together = [tuple(map(torch.cat, zip(*of_one, strict=True))) for of_one in zip(*parts, strict=True)]
    assert_same(together, epoch_of(split, seed))


def test_batches_are_augmented_by_numbers_of_their_own() -> None:
    same = Split(unique_pixels(1, 8, 6, 3).expand(14, -1, -1, -1) % 256, torch.zeros(14, dtype=torch.int64))
    first, second = (images for images, _ in epoch_of(same))
    assert not torch.equal(first, second)


def test_a_seed_follows_from_the_numbers_and_their_order_and_stays_what_it_is() -> None:
    assert seed_of(0) == 3456079177858693020
    assert seed_of(1, 2, 3) == 4987016031672207636
    every = {seed_of(*numbers) for a in range(30) for b in range(30) for numbers in [(a, b), (a, b, 0), (a + 100, b)]}
    assert len(every) == 30 * 30 * 3
    assert all(0 <= seed < 2**63 for seed in every)
    ones = [f"{seed:063b}".count("1") for seed in every]
    assert abs(sum(ones) / len(ones) - 31.5) < 5 * (63 / 4 / len(ones)) ** 0.5  # well mixed: half of the bits


def test_the_order_is_a_permutation_fixed_by_the_seed() -> None:
    split = Split(unique_pixels(100, 2, 2, 1), torch.arange(100))

    def order(*seed: int) -> list[int]:
        return [int(label) for _, labels in batches(split, 7, (0.0,), (1.0,), seed=seed) for label in labels]

    assert sorted(order(1, 2)) == list(range(100))
    assert order(1, 2) == order(1, 2) != order(1, 3)


def test_the_type_asked_for_is_the_type_given() -> None:
    images, _ = next(batches(split_of(4), 4, (0.0,) * 3, (1.0,) * 3, dtype=torch.bfloat16))
    assert images.dtype == torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)


class Copies(TorchDispatchMode):
    """Notes for every copy to another device whether it waits for what that device is doing."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != out.device:
            self.waits.append(not kwargs.get("non_blocking", False))
        return out


def test_batches_of_images_on_a_device_never_wait_for_it() -> None:
    """On "meta" there are shapes but no values: to read one, and so to wait for the device, is an error."""
    split = split_of(10).on(torch.device("meta"))
    with Copies() as copies:
        got = list(batches(split, 4, [0.0] * 3, [1.0] * 3, device="meta", seed=(0, 1), pad=2, flip=True))
    assert [(len(x), x.device.type, y.device.type) for x, y in got] == [(n, "meta", "meta") for n in (4, 4, 2)]
    assert len(copies.waits) > 3
    assert not any(copies.waits)
