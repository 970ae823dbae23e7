"""What logits say: against scikit-learn, scipy, and loops written out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import binom, binomtest
from sklearn import metrics

import auxnet
from auxnet import policy, scores
from auxnet.balanced import compare_balanced, guessing_balanced


def made_up(n=200, classes=4, skill=1.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=random)
    logits = 2 * torch.randn(n, classes, generator=random, dtype=torch.float64)
    logits[torch.arange(n), labels] += skill
    return logits, labels


def test_predictions_are_what_every_output_says_in_evaluation_mode():
    net = auxnet.resnet(depth=8, outputs=2).train()
    images, labels = torch.randn(7, 3, 8, 8), torch.arange(7)
    said = scores.predictions(net, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    assert net.training
    for k, logits in enumerate(net.eval()(images)):
        torch.testing.assert_close(said.logits[k], logits.detach())
    assert torch.equal(said.labels, labels)
    assert said.errors == [float((logits.argmax(1) != labels).double().mean()) for logits in net(images)]


def test_without_images_nothing_is_said():
    with pytest.raises(ValueError, match="there are no images"):
        scores.predictions(auxnet.resnet(depth=8), [])


def test_logits_that_do_not_fit_the_labels_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3, 4\] and \[5\]"):
        scores.Predictions(torch.zeros(2, 3, 4), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize(("wrong", "n"), [(0, 10), (3, 10), (10, 10), (121, 5000)])
def test_wilsons_interval_is_that_of_scipy(wrong, n):
    for level in (0.95, 0.8):
        expected = binomtest(wrong, n).proportion_ci(level, method="wilson")
        assert scores.wilson(wrong, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_log_loss_and_confusion_are_scikit_learns():
    logits, labels = made_up()
    probabilities = logits.softmax(1).numpy()
    assert scores.log_loss(logits, labels) == pytest.approx(metrics.log_loss(labels.numpy(), probabilities))
    called = logits.argmax(1).numpy()
    assert np.array_equal(scores.confusion(logits, labels).numpy(), metrics.confusion_matrix(labels.numpy(), called))


def test_an_image_counts_among_the_errors_of_the_top_k_if_k_classes_are_likelier_than_its_own():
    logits, labels = made_up(classes=7)
    for k in (1, 2, 5):
        right = metrics.top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=range(7))
        assert scores.top_error(logits, labels, k) == pytest.approx(1 - right)


def test_calibration_error_is_the_loop_over_bins():
    logits, labels = made_up(500)
    top, called = logits.softmax(1).max(1)
    total = 0.0
    for b in range(15):
        inside = [i for i in range(500) if b / 15 < top[i] <= (b + 1) / 15]
        if inside:
            accuracy = sum(float(called[i] == labels[i]) for i in inside) / len(inside)
            total += len(inside) / 500 * abs(accuracy - sum(float(top[i]) for i in inside) / len(inside))
    assert scores.calibration_error(logits, labels) == pytest.approx(total)


def test_reliability_bins_hold_every_image_once():
    logits, labels = made_up()
    bins = scores.reliability(logits, labels, bins=10)
    assert sum(b.images for b in bins) == 200
    assert sum(b.images * b.accuracy for b in bins if b.images) == pytest.approx(
        float((logits.argmax(1) == labels).sum())
    )
    assert all(b.low < b.confidence <= b.high for b in bins if b.images)


def test_a_certain_and_always_right_output_is_calibrated():
    labels = torch.arange(4)
    assert scores.calibration_error(1e3 * torch.eye(4), labels) == 0


def test_mcnemars_p_value_is_the_two_sided_binomial_tail():
    a = torch.tensor([True] * 9 + [False] * 91)
    b = torch.tensor([False] * 9 + [True] * 2 + [False] * 89)
    found = scores.compare(a, b)
    assert found.difference == pytest.approx(0.07)
    assert found.p_value == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert found.low < 0.07 < found.high


def test_comparing_is_antisymmetric_and_an_output_with_itself_is_no_difference():
    _, labels = made_up()
    a, b = labels == 0, labels == 1
    there, back = scores.compare(a, b), scores.compare(b, a)
    assert (there.difference, there.low, there.high) == (-back.difference, -back.high, -back.low)
    assert there.p_value == back.p_value
    same = scores.compare(a, a)
    assert (same.difference, same.p_value, same.significant) == (0, 1, False)


def test_holms_adjustment_is_the_one_worked_out_by_hand():
    def of(*p_values):
        return scores.holm(p_values)

    assert of(0.01, 0.04, 0.03, 0.005) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert of(0.9, 0.8) == [1.0, 1.0]
    assert of(0.03) == [0.03]
    assert of() == []


def test_the_interval_of_a_difference_covers_the_truth_about_as_often_as_it_says():
    random = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        draw = torch.rand(200, generator=random)
        found = scores.compare(draw < 0.08, (draw >= 0.06) & (draw < 0.10))  # 0.08 against 0.04
        covered += found.low <= 0.04 <= found.high
    assert 0.91 <= covered / 400 <= 0.99


@pytest.mark.parametrize("n", [30, 145, 1000])
@pytest.mark.parametrize(
    "shares", [(0.995, 0.005), (0.98, 0.02), (0.5, 0.5), (0.99, 0.005, 0.005), (0.02, 0.98, 0), (0.005, 0.005, 0.99)]
)
def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says(shares, n):
    """Also where most sets of images hold none of the rare ones, and the normal interval is a point."""
    costs = torch.tensor([1.0, 1.5, 4.0][: len(shares)], dtype=torch.float64)
    truth = sum(share * float(cost) for share, cost in zip(shares, costs, strict=True))
    drawn = torch.multinomial(torch.tensor(shares), 500 * n, True, generator=torch.Generator().manual_seed(0))
    found = (scores.interval_of_mean(costs[row], 1.0, float(costs[-1])) for row in drawn.view(500, n))
    assert sum(low <= truth <= high for low, high in found) >= 0.9 * 500


def test_the_temperature_is_the_one_scipy_finds_over_both_scales():
    logits, labels = made_up(400, skill=2.0)
    sharp = 3 * logits

    def loss(x):
        return -log_softmax(sharp.numpy() * np.exp(-x[0]), axis=1)[np.arange(400), labels.numpy()].mean()

    assert scores.fit_temperature(sharp, labels) == pytest.approx(
        math.exp(minimize(loss, [0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x[0]), rel=1e-4
    )
    assert scores.fit_temperature(sharp, labels) == pytest.approx(3 * scores.fit_temperature(logits, labels), rel=1e-3)


def test_the_temperature_is_found_a_few_images_at_a_time(monkeypatch):
    logits, labels = made_up(300, skill=2.0)
    whole = scores.fit_temperature(logits, labels)
    most, real = [], scores.F.cross_entropy
    monkeypatch.setattr(scores.F, "cross_entropy", lambda x, y, **how: most.append(x.numel()) or real(x, y, **how))
    monkeypatch.setattr(scores, "LOGITS_AT_ONCE", 64)
    assert scores.fit_temperature(logits, labels) == pytest.approx(whole, rel=1e-9)
    assert max(most) <= 64


def test_the_temperature_is_left_alone_where_every_image_is_right():
    assert scores.fit_temperature(9 * torch.eye(3), torch.arange(3)) == 1


def test_guessing_is_to_name_the_commonest_class():
    assert scores.guessing(torch.tensor([0, 2, 2, 1, 2])) == pytest.approx(0.4)


def test_confidences_lie_in_0_to_1_and_are_their_formulas():
    logits, _ = made_up()
    p = (logits / 2).softmax(1)
    ordered = p.sort(descending=True).values
    expected = {
        "entropy": 1 + (p * p.log()).sum(1) / math.log(4),
        "top": ordered[:, 0],
        "margin": ordered[:, 0] - ordered[:, 1],
    }
    for kind, values in expected.items():
        found = policy.confidence(logits, kind, temperature=2.0)
        torch.testing.assert_close(found, values)
        assert found.min() >= 0
        assert found.max() <= 1


@pytest.mark.parametrize("kind", ["entropy", "top", "margin"])
def test_confidence_of_nothing_known_and_of_certainty(kind):
    unknown = {"entropy": 0.0, "top": 0.25, "margin": 0.0}[kind]
    assert float(policy.confidence(torch.zeros(4), kind)) == pytest.approx(unknown, abs=1e-6)
    assert float(policy.confidence(torch.tensor([1e4, 0, 0, 0]), kind)) == 1


def test_an_unknown_confidence_is_refused():
    with pytest.raises(ValueError, match="confidence must be one of entropy, top, margin, got 'hunch'"):
        policy.confidence(torch.zeros(1, 2), "hunch")


def test_to_guess_errs_as_often_as_the_classifier_that_names_the_commonest_class():
    for n in range(2, 60):
        for rare in range(1, n // 2 + 1):
            labels = torch.tensor([1] * rare + [0] * (n - rare))
            guessed = scores.Predictions(torch.tensor([1.0, 0.0]).expand(1, n, 2), labels)
            assert scores.guessing(labels) == guessed.errors[0]


# ---- balanced errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_balanced_errors_are_compared_class_by_class(seed):
    random = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0] * 20 + [2] * 7 + [3] * 3)  # class 1 has no image
    wrong_a, wrong_b = (torch.rand(30, generator=random) < 0.3 for _ in range(2))
    found = compare_balanced(wrong_a, wrong_b, labels)
    difference, centre, variance = 0.0, 0.0, 0.0
    for c in (0, 2, 3):
        a, b = wrong_a[labels == c].tolist(), wrong_b[labels == c].tolist()
        pairs, n = [*zip(a, b, strict=True)], len(a)
        p, q = ((pairs.count(apart) + 1 / 3) / (n + 2 / 3) for apart in ((True, False), (False, True)))
        difference += (sum(a) - sum(b)) / n / 3
        centre += (p - q) / 3
        variance += (p + q - (p - q) ** 2) / (n + 2 / 3) / 9
    half = 1.959964 * variance**0.5
    assert found.difference == pytest.approx(difference)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert found.p_value == pytest.approx(math.erfc(abs(centre) / (2 * variance) ** 0.5))
    assert found.significant == (not found.low <= 0 <= found.high)
    back = compare_balanced(wrong_b, wrong_a, labels)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_where_all_classes_are_of_one_size_the_balanced_comparison_is_mcnemars():
    random, labels = torch.Generator().manual_seed(0), torch.arange(600) % 3
    wrong_a, wrong_b = torch.rand(600, generator=random) < 0.2, torch.rand(600, generator=random) < 0.25
    one, other = compare_balanced(wrong_a, wrong_b, labels), scores.compare(wrong_a, wrong_b)
    assert one.difference == pytest.approx(other.difference)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-3)
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)
    nothing = compare_balanced(wrong_a, wrong_a, labels)
    assert (nothing.difference, nothing.p_value) == pytest.approx((0.0, 1.0))
    assert nothing.low < 0 < nothing.high
    assert guessing_balanced(torch.tensor([0, 0, 0, 3, 5])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("error_a", "error_b", "alike"), [(0.2, 0.2, 0.5), (0.3, 0.2, 0.5), (0.05, 0.05, 0.8)])
def test_intervals_of_balanced_differences_cover_them_and_tests_keep_their_level(error_a, error_b, alike):
    random, sizes = torch.Generator().manual_seed(0), torch.tensor([200, 100, 50, 30, 20, 15, 10, 8, 6, 5])
    labels = torch.arange(10).repeat_interleave(sizes)
    covered, told, rounds = 0, 0, 300
    for _ in range(rounds):
        a, b, same = torch.rand(3, len(labels), generator=random)
        found = compare_balanced(a < error_a, torch.where(same < alike, a, b) < error_b, labels)
        covered += found.low <= error_a - error_b <= found.high
        told += found.p_value < 0.05
    assert covered >= 0.9 * rounds
    assert error_a != error_b or told <= 0.1 * rounds
