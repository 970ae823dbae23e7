"""Mixed images: what each keeps of itself is what its target says."""

from random import Random

import pytest
import torch

import auxnet
from auxnet import build
from auxnet.mixing import mixed, rectangle
from auxnet.recipe import Recipe

N, H, W, CLASSES = 6, 8, 12, 5


def batch():
    """Every image of one value, its label its number modulo the classes."""
    values = torch.arange(N).float()
    return values[:, None, None, None].expand(N, 3, H, W).clone(), torch.arange(N) % CLASSES


def one_hot(labels):
    return torch.eye(CLASSES)[labels]


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_image_and_target_by_the_same_share(seed):
    x, y = batch()
    images, target = mixed(x, y, CLASSES, 0.4, 0.0, Random(seed))
    share = float((images[0, 0, 0, 0] - x[-1, 0, 0, 0]) / (x[0, 0, 0, 0] - x[-1, 0, 0, 0]))
    assert 0 <= share <= 1
    torch.testing.assert_close(images, share * x + (1 - share) * x.flip(0))
    torch.testing.assert_close(target, share * one_hot(y) + (1 - share) * one_hot(y.flip(0)))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_a_rectangle_and_the_target_counts_its_pixels(seed):
    x, y = batch()
    images, target = mixed(x, y, CLASSES, 0.0, 1.0, Random(seed))
    own = images[0, 0] == x[0, 0]
    assert (own | (images[0, 0] == x[-1, 0])).all()
    pasted = (~own).nonzero()
    if len(pasted):
        (top, left), (bottom, right) = pasted.min(0).values, pasted.max(0).values
        assert len(pasted) == (bottom - top + 1) * (right - left + 1)
    share = own.float().mean()
    torch.testing.assert_close(target, share * one_hot(y) + (1 - share) * one_hot(y.flip(0)))


def test_shares_add_up_to_one_for_images_in_bfloat16():
    x, y = batch()
    _, target = mixed(x.bfloat16(), y, CLASSES, 0.4, 0.0, Random(0))
    torch.testing.assert_close(target.sum(1), torch.ones(N))


def test_a_rectangle_lies_in_the_image_and_away_from_its_edges_has_its_share():
    draw = Random(0)
    seen = set()
    for _ in range(300):
        top, left, h, w = rectangle(32, 32, 0.75, draw)
        assert 0 <= top <= top + h <= 32
        assert 0 <= left <= left + w <= 32
        seen.add((h, w))
    assert max(seen) == (16, 16)


def test_both_take_turns():
    x, y = batch()
    kinds = set()
    for seed in range(40):
        images, _ = mixed(x, y, CLASSES, 1.0, 1.0, Random(seed))
        kinds.add(bool(((images == x) | (images == x.flip(0))).all()))
    assert kinds == {True, False}


def test_what_is_mixed_follows_from_the_draw_and_leaves_the_batch_alone():
    x, y = batch()
    first, again = (mixed(x, y, CLASSES, 0.4, 1.0, Random(3)) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert torch.equal(x, batch()[0])
    assert x.to(memory_format=torch.channels_last).flip(0).is_contiguous(memory_format=torch.channels_last)


def test_the_shares_of_mixup_are_those_of_a_beta_distribution():
    x, y = batch()
    shares = torch.tensor([float(mixed(x, y, CLASSES, 0.5, 0.0, Random(seed))[1][1, 1]) for seed in range(2000)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / 8, abs=0.01)  # 1 / (4 (2 alpha + 1))


def test_every_step_of_a_training_mixes_by_a_draw_of_its_own_and_nothing_else_is_mixed(tmp_path, monkeypatch):
    states, sizes = [], []

    def seen(images, labels, classes, mixup, cutmix, draw):
        states.append(hash(draw.getstate()))
        sizes.append(len(images))
        return mixed(images, labels, classes, mixup, cutmix, draw)

    monkeypatch.setattr(build, "mixed", seen)
    recipe = Recipe(depth=8, epochs=2, batch_size=500, threads=1, device="cpu", mixup=0.2, ema=0.9)
    auxnet.fit(recipe, tmp_path / "a")
    assert len(set(states)) == len(states)
    assert sizes == [500, 500, 293] * 2
