"""The losses of an output, against their definitions written out in float64."""

import pytest
import torch

from auxnet.losses import balanced, cross_entropy, distilled, square_hinge

N, C = 6, 4


def case():
    g = torch.Generator().manual_seed(5)
    logits, final = torch.randn(2, N, C, generator=g, dtype=torch.float64) * 2
    return logits, torch.tensor([0, 1, 1, 2, 3, 1]), final


def log_probabilities(z):
    return z - z.exp().sum(1, keepdim=True).log()


def test_cross_entropy_with_class_weights_counts_an_image_as_often_as_its_class_weighs():
    z, y, _ = case()
    w = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    by_hand = sum(-w[c] * row[c] for row, c in zip(log_probabilities(z), y.tolist(), strict=True)) / N
    torch.testing.assert_close(cross_entropy(z, y, class_weights=w), by_hand)


def test_a_batch_in_parts_has_the_mean_loss_of_its_parts():
    """What a team relies on: PyTorch's own weighted mean divides by the weights in the part, and fails this."""
    z, y, _ = case()
    w = balanced(y, C).double()
    for loss in (cross_entropy, square_hinge):
        parts = [loss(z[part], y[part], class_weights=w) for part in (slice(0, 2), slice(2, 6))]
        torch.testing.assert_close(loss(z, y, class_weights=w), parts[0] * 2 / 6 + parts[1] * 4 / 6)


def test_smoothing_spreads_its_share_over_all_classes():
    z, y, _ = case()
    target = 0.8 * torch.eye(C, dtype=torch.float64)[y] + 0.2 / C
    torch.testing.assert_close(cross_entropy(z, y, smoothing=0.2), -(target * log_probabilities(z)).sum(1).mean())


def test_with_class_weights_too_smoothing_spreads_evenly_and_an_image_counts_as_its_class_weighs():
    """PyTorch's own would spread towards the classes that weigh most."""
    z, y, _ = case()
    w = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    target = 0.8 * torch.eye(C, dtype=torch.float64)[y] + 0.2 / C
    by_hand = -(w[y] * (target * log_probabilities(z)).sum(1)).mean()
    torch.testing.assert_close(cross_entropy(z, y, smoothing=0.2, class_weights=w), by_hand)


@pytest.mark.parametrize("w", [None, torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_of_mixed_images_cross_entropy_is_mixed_likewise(smoothing, w):
    z, y, _ = case()
    target = torch.eye(C, dtype=torch.float64)[y].lerp(torch.eye(C, dtype=torch.float64)[y.flip(0)], 0.3)
    mixed, one, other = (cross_entropy(z, t, smoothing=smoothing, class_weights=w) for t in (target, y, y.flip(0)))
    torch.testing.assert_close(mixed, 0.7 * one + 0.3 * other)


def test_square_hinge_is_the_squared_margin_that_every_wrong_class_breaks():
    z, y, _ = case()
    by_hand = [
        sum(max(0.0, 1 - float(row[c]) + float(row[j])) ** 2 for j in range(C) if j != c) / C
        for row, c in zip(z, y.tolist(), strict=True)
    ]
    assert square_hinge(z, y).item() == pytest.approx(sum(by_hand) / N, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distilled_is_the_label_and_the_softened_divergence_from_the_final_output_in_shares(temperature):
    z, y, final = case()
    q, p = (log_probabilities(each / temperature) for each in (z, final))
    divergence = (p.exp() * (p - q)).sum(1).mean()
    expected = 0.7 * cross_entropy(z, y) + 0.3 * temperature**2 * divergence
    torch.testing.assert_close(distilled(z, y, final, loss=cross_entropy, share=0.3, temperature=temperature), expected)


def test_an_output_that_says_what_the_final_one_says_has_nothing_to_learn_from_it():
    z, y, _ = case()
    assert distilled(z, y, z, loss=cross_entropy, share=1.0, temperature=3.0).item() == pytest.approx(0, abs=1e-12)


def test_balanced_classes_count_alike_and_images_once_in_the_mean():
    y = torch.tensor([0] * 90 + [1] * 9 + [2])
    w = balanced(y, 3)
    assert [float(w[y][y == c].sum()) for c in range(3)] == pytest.approx([100 / 3] * 3)
    assert float(w[y].mean()) == pytest.approx(1)
    among_more = balanced(y, 5)  # a class without images is no division by zero, and takes no weight from the others
    assert among_more.isfinite().all()
    assert torch.equal(among_more[:3], w)
