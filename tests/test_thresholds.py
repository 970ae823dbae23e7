"""Thresholds of early exit: against policies followed image by image, and against trying all thresholds there are."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auxnet import descent
from auxnet.policy import ALWAYS, NEVER, Policy, confidence, never
from auxnet.scores import Predictions, compare, interval_of_mean, wilson
from auxnet.thresholds import Solver, anytime, budgeted, fit_temperatures, geometric, outcome, smallest_provable_target

COSTS = [1.0, 2.0, 3.5]
RULE = never(3)


def made_up(seed=0, n=60, outputs=3, classes=4):
    """Outputs that are surer and better the deeper they are, on images that are easy or hard."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=random)
    ease = 3 * torch.rand(n, generator=random)
    logits = torch.randn(outputs, n, classes, generator=random)
    for k in range(outputs):
        logits[k, torch.arange(n), labels] += ease + 0.7 * k
    return Predictions(logits, labels)


def followed(said, policy, costs):
    """Errors, costs and exits by a loop over the images."""
    wrong, spent, exits = [], [], []
    for n in range(len(said.labels)):
        for k in range(len(costs)):
            sure = confidence(said.logits[k, n], policy.confidence, policy.temperatures[k])
            if k == len(costs) - 1 or sure >= policy.thresholds[k]:
                wrong.append(bool(said.logits[k, n].argmax() != said.labels[n]))
                spent.append(costs[k])
                exits.append(k + 1)
                break
    return wrong, spent, exits


@pytest.mark.parametrize("kind", ["entropy", "top", "margin"])
def test_the_outcome_is_that_of_following_the_policy_image_by_image(kind):
    said = made_up()
    policy = Policy((0.4, 0.3), kind, (1.5, 0.8, 1.0))
    wrong, spent, exits = followed(said, policy, COSTS)
    assert policy.exits(said.logits).tolist() == exits
    found = outcome(said, policy, COSTS)
    assert found.error == pytest.approx(sum(wrong) / 60)
    assert found.error_interval == wilson(sum(wrong), 60)
    assert found.mean_cost == pytest.approx(sum(spent) / 60)
    low, high = found.cost_interval
    assert (low, high) == interval_of_mean(torch.tensor(spent, dtype=torch.float64), min(COSTS), max(COSTS))
    assert low < found.mean_cost < high
    assert found.shares == pytest.approx([exits.count(k) / 60 for k in (1, 2, 3)])
    assert found.share_intervals[0] == wilson(exits.count(1), 60)
    assert found.against_final == compare(torch.tensor(wrong), said.wrong[-1])
    assert sum(found.shares) == pytest.approx(1)


def test_the_interval_of_the_cost_reaches_to_what_other_images_may_cost():
    """It has a width where all images leave at one output and others need not; where they must, it has none."""
    logits = torch.zeros(3, 30, 3)
    logits[..., 0] = 9
    said = Predictions(logits, torch.zeros(30, dtype=torch.long))
    n = 30 + 1.959964**2  # Agresti and Coull's interval of a share, by hand
    share = 1.959964**2 / 2 / n
    most = share + 1.959964 * math.sqrt(share * (1 - share) / n)
    for thresholds, low, high in [
        ((0.5, 0.5), 1.0, 8.0),
        ((0.5, NEVER), 1.0, 8.0),
        ((0.5, ALWAYS), 1.0, 3.0),  # none can get to the third
        ((NEVER, 0.5), 3.0, 8.0),
        ((ALWAYS, 0.5), 1.0, 1.0),
        ((NEVER, NEVER), 8.0, 8.0),
    ]:
        found = outcome(said, Policy(thresholds, "top", (1.0,) * 3), [1.0, 3.0, 8.0])
        assert found.cost_interval == pytest.approx((low, low + most * (high - low)))


def test_unreachable_thresholds_give_the_final_output_and_zero_thresholds_the_first():
    said = made_up()
    assert outcome(said, Policy((NEVER, NEVER), "top", (1.0,) * 3), COSTS).shares == (0, 0, 1)
    assert outcome(said, Policy((ALWAYS, ALWAYS), "top", (1.0,) * 3), COSTS).shares == (1, 0, 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), outputs=st.integers(2, 4), increase=st.floats(0, 0.2), common=st.booleans())
def test_a_solution_keeps_the_error_within_the_target_and_costs_at_most_the_final_output(
    seed, outputs, increase, common
):
    said, costs = made_up(seed, outputs=outputs), list(range(1, outputs + 1))
    policy = Solver(said, never(outputs), costs, common=common).solve(max_error_increase=increase)
    found = outcome(said, policy, costs)
    assert found.error <= said.errors[-1] + increase + 1e-9
    assert found.mean_cost <= costs[-1]
    assert not common or len(set(policy.thresholds)) == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), bound=st.floats(1, 4))
def test_a_solution_keeps_the_mean_cost_within_the_target_and_errs_no_more_than_one_output_in_it(seed, bound):
    said = made_up(seed)
    found = outcome(said, Solver(said, RULE, COSTS).solve(max_mean_cost=bound), COSTS)
    assert found.mean_cost <= bound * (1 + 1e-9)
    assert found.error <= min(error for error, cost in zip(said.errors, COSTS, strict=True) if cost <= bound) + 1e-9


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("increase", [0.0, 0.1])
@pytest.mark.enough(4)
def test_a_solution_is_near_the_best_of_all_thresholds_and_no_worse_than_the_best_common_one(seed, increase):
    said = made_up(seed, n=24)
    bound = round((said.errors[-1] + increase) * 24, 6)

    def cuts(k):
        sure = confidence(said.logits[k]).sort().values.double()
        return [ALWAYS, *((sure[1:] + sure[:-1]) / 2).tolist(), NEVER]

    def totals(thresholds):
        wrong, spent, _ = followed(said, Policy(thresholds, "entropy", (1.0,) * 3), COSTS)
        return sum(wrong), sum(spent)

    # 26 x 26 policies; the loops of `followed` on precomputed confidences would be no more independent.
    sure = [confidence(said.logits[k]) for k in range(2)]
    best = float("inf")
    for a, b in itertools.product(cuts(0), cuts(1)):
        left = [0 if sure[0][n] >= a else 1 if sure[1][n] >= b else 2 for n in range(24)]
        if sum(bool(said.wrong[k, n]) for n, k in enumerate(left)) <= bound + 1e-9:
            best = min(best, sum(COSTS[k] for k in left))
    wrong, spent = totals(Solver(said, RULE, COSTS).solve(max_error_increase=increase).thresholds)
    assert wrong <= bound
    assert best <= spent + 1e-9
    assert spent <= 1.15 * best
    assert spent <= totals(Solver(said, RULE, COSTS, common=True).solve(max_error_increase=increase).thresholds)[1]


def test_a_solution_keeps_its_target_where_confidences_are_neighbours_in_their_own_precision():
    """No number lies between the two: their middle in a finer precision is, in theirs, one of them."""
    certain = torch.tensor([0.0, 30.0])
    logits = torch.stack([torch.zeros(2000), torch.linspace(3, 3.001, 2000)], dim=1)
    order = confidence(logits).sort()
    apart = (order.values[1:] == order.values[:-1].nextafter(order.values[1:])) & (order.values[1:] > order.values[:-1])
    places = apart.nonzero().flatten()[:6].tolist()
    assert len(places) == 6
    for place in places:
        less, more = logits[order.indices[place]], logits[order.indices[place + 1]]
        # Output 1 calls both images 1: the surer one is, the other one is not, and output 2 knows that.
        said = Predictions(
            torch.stack([torch.stack([less, more]), torch.stack([-certain, certain])]), torch.tensor([0, 1])
        )
        for policy in (Solver(said, never(2), [1, 2]).solve(max_error_increase=0), geometric(said, never(2), 1.0)):
            assert outcome(said, policy, [1, 2]).shares == (0.5, 0.5)
            assert outcome(said, policy, [1, 2]).error == 0
        common = Solver(said, never(2), [1, 2], common=True).solve(max_error_increase=0)
        assert outcome(said, common, [1, 2]).shares == (0.5, 0.5)


def test_a_target_is_kept_in_the_mean_over_images_that_were_not_solved_on():
    """Solved on the very images with all that the target allows, the error of others rises by about twice that."""
    target, rises, costs = 0.01, {"all": [], "cross-fitted": []}, {"all": [], "cross-fitted": []}
    fresh = made_up(seed=10**6, n=20_000, classes=10)
    for seed in range(4):
        said = made_up(seed, n=500, classes=10)
        policy, found = Solver(said, RULE, COSTS).cross_fitted(max_error_increase=target)
        on_these = outcome(said, policy, COSTS).against_final.difference
        assert found.rise <= target + 1e-9
        assert found.rise_interval[0] < found.rise < found.rise_interval[1]
        assert found.allowed is None or on_these <= found.allowed + 1e-9
        for name, each in (
            ("all", Solver(said, RULE, COSTS).solve(max_error_increase=target)),
            ("cross-fitted", policy),
        ):
            rises[name].append(outcome(fresh, each, COSTS).against_final.difference)
            costs[name].append(outcome(fresh, each, COSTS).mean_cost)
    assert sum(rises["all"]) / 4 > 1.5 * target
    assert sum(rises["cross-fitted"]) / 4 < 1.2 * target
    assert sum(costs["cross-fitted"]) / 4 < 0.97 * COSTS[-1]  # and images do leave early


def test_a_target_worth_fewer_images_than_can_show_it_lets_none_leave_early():
    """However good a shallow output looks on them: here it makes no mistake on any, as the final one."""
    right = torch.nn.functional.one_hot(torch.arange(100) % 4, 4).float()
    said = Predictions(torch.stack([right] * 3), torch.arange(100) % 4)
    assert smallest_provable_target(100) == 0.05
    for target, expected in ((0.0, RULE.thresholds), (0.049, RULE.thresholds), (0.05, (ALWAYS, ALWAYS))):
        policy, found = Solver(said, RULE, COSTS).cross_fitted(max_error_increase=target)
        assert policy.thresholds == expected
        assert (found.allowed is None) == (target < 0.05)
    assert Solver(made_up(n=1), RULE, COSTS).cross_fitted(max_error_increase=0.1)[0] == RULE


@pytest.mark.parametrize(("n", "target"), [(300, 0.0), (300, 0.005), (100, 0.04)])
def test_a_target_worth_fewer_images_is_kept_by_an_output_that_is_shown_to_err_less_than_the_final_one(n, target):
    """Output 1 errs on none of them, the final one on every fourth."""
    labels = torch.arange(n) % 4
    right = torch.nn.functional.one_hot(labels, 4).float()
    final = torch.where((torch.arange(n) % 4 == 0)[:, None], right.roll(1, 1), right)
    assert target < smallest_provable_target(n)
    said = Predictions(torch.stack([right, final, final]), labels)
    policy, found = Solver(said, RULE, COSTS).cross_fitted(max_error_increase=target)
    assert policy.thresholds == (ALWAYS, ALWAYS)
    assert found.rise == pytest.approx(-0.25)
    assert found.rise_interval[1] < 0


def test_where_no_allowance_keeps_the_target_on_images_left_out_no_single_output_takes_all_either(monkeypatch):
    """Output 2 errs as little as the final one on these images, and would be taken for that alone."""
    right = torch.nn.functional.one_hot(torch.arange(100) % 4, 4).float()
    said = Predictions(torch.stack([right.roll(1, 1), right, right]), torch.arange(100) % 4)
    worse = compare(torch.ones(100).bool(), torch.zeros(100).bool())
    monkeypatch.setattr("auxnet.thresholds.compare", lambda *_: worse)  # what was solved errs on all images left out
    policy, found = Solver(said, RULE, COSTS).cross_fitted(max_error_increase=0.1)
    assert (policy, found.allowed, found.rise) == (RULE, None, 0.0)


def test_the_answer_is_beaten_on_both_counts_by_no_output_and_no_point_of_the_curve_within_its_allowance():
    for seed in range(2):
        said = made_up(seed, n=150)
        policy, found = Solver(said, RULE, COSTS).cross_fitted(max_error_increase=0.05)
        assert found.allowed is not None
        answer = outcome(said, policy, COSTS)
        for other in (
            outcome(said, each, COSTS) for each in (*Solver(said, RULE, COSTS).cost_curve(points=8), *anytime(RULE))
        ):
            assert other.error > answer.error or other.mean_cost >= answer.mean_cost - 1e-9


def test_images_that_are_left_out_are_not_solved_on(monkeypatch):
    """Each part is counted once, by thresholds that were solved on all the others."""
    solved, counted = [], []
    of_images = descent.Task.of_images

    def noted(task, chosen):
        (counted if len(solved) > len(counted) else solved).append(set(chosen.nonzero().flatten().tolist()))
        return of_images(task, chosen)

    monkeypatch.setattr(descent.Task, "of_images", noted)
    Solver(made_up(), RULE, COSTS).cross_fitted(max_error_increase=0.1)
    assert sorted(n for part in counted for n in part) == list(range(60))
    assert all(a == {*range(60)} - b for a, b in zip(solved, counted, strict=True))


def test_starts_are_found_once_for_all_that_is_solved(monkeypatch):
    found, of_task, solver = [], descent.Task.starts, Solver(made_up(n=200), RULE, COSTS)
    monkeypatch.setattr(descent.Task, "starts", lambda task, common: found.append(task) or of_task(task, common))
    solver.solve(max_mean_cost=2.0)
    solver.cost_curve(points=4)
    solver.cross_fitted(0.1)
    assert [len(task.wrong[0]) for task in found] == [200, *[160] * 5]  # and those of the folds


PASSING = [0.4, 0.9]


def test_going_on_costs_what_the_heads_that_are_asked_cost():
    said = made_up()
    for thresholds in ((0.4, 0.3), (NEVER, 0.3), (0.4, NEVER), (NEVER, NEVER)):
        policy = Policy(thresholds, "entropy", (1.0,) * 3)
        spent = 0.0
        for exit_ in followed(said, policy, COSTS)[2]:
            passed = [k for k in range(exit_ - 1) if thresholds[k] != NEVER]
            spent += COSTS[exit_ - 1] + sum(PASSING[k] for k in passed)
        assert outcome(said, policy, COSTS, PASSING).mean_cost == pytest.approx(spent / 60)


@pytest.mark.parametrize("passing", [PASSING, [0.0, 30.0]])
def test_a_solution_with_costs_of_passing_is_near_the_best_of_all_thresholds(passing):
    said = made_up(seed=1, n=24)
    bound = round((said.errors[-1] + 0.1) * 24, 6)
    sure, best = [confidence(said.logits[k]) for k in range(2)], float("inf")
    cuts = [[ALWAYS, *((row[1:] + row[:-1]) / 2).tolist(), NEVER] for row in (each.sort().values for each in sure)]
    for a, b in itertools.product(*cuts):
        first, second = sure[0] >= a, sure[1] >= b
        left = torch.where(first, 0, torch.where(second, 1, 2))
        if int(said.wrong[left, torch.arange(24)].sum()) <= bound + 1e-9:
            heads = (a <= 1) * passing[0] * (left > 0) + (b <= 1) * passing[1] * (left > 1)
            best = min(best, float((torch.tensor(COSTS)[left] + heads).double().mean()))
    found = outcome(said, Solver(said, RULE, COSTS, passing).solve(max_error_increase=0.1), COSTS, passing)
    assert found.error * 24 <= bound
    assert best - 1e-5 <= found.mean_cost <= 1.15 * best
    for common in (False, True):
        within = Solver(said, RULE, COSTS, passing, common=common).solve(max_mean_cost=2.6)
        assert outcome(said, within, COSTS, passing).mean_cost <= 2.6 * (1 + 1e-9)


def test_a_bound_below_the_first_outputs_cost_is_met_by_nothing():
    assert Solver(made_up(), RULE, COSTS).solve(max_mean_cost=0.99) is None


def test_a_looser_target_never_costs_more():
    said = made_up(n=200)
    spent = [
        outcome(said, Solver(said, RULE, COSTS).solve(max_error_increase=x), COSTS).mean_cost
        for x in (0.0, 0.02, 0.05, 0.1, 0.3)
    ]
    assert all(tight >= loose - 0.02 for tight, loose in itertools.pairwise(spent))


def test_the_curve_runs_from_the_first_outputs_cost_to_the_least_error():
    said = made_up(n=200)
    found = [outcome(said, policy, COSTS) for policy in Solver(said, RULE, COSTS).cost_curve(points=6)]
    assert found[0].shares == (1, 0, 0)
    assert found[-1].error <= min(said.errors) + 1e-9
    assert all(a.error >= b.error - 1e-9 for a, b in itertools.pairwise(found))


def test_anytime_stops_every_image_at_one_output():
    said = made_up()
    found = [outcome(said, policy, COSTS) for policy in anytime(RULE)]
    assert [one.mean_cost for one in found] == COSTS
    assert [one.error for one in found] == pytest.approx(said.errors)


@pytest.mark.parametrize("q", [0.3, 1.0, 2.0])
def test_geometric_shares_are_proportional_to_powers_of_q(q):
    said = made_up(n=1000)
    shares = outcome(said, geometric(said, never(3, "top"), q), COSTS).shares
    total = q + q**2 + q**3
    assert shares == pytest.approx((q / total, q**2 / total, q**3 / total), abs=0.003)
    assert len(budgeted(said, never(3, "top"), points=5)) == 5


def test_a_common_threshold_on_entropy_is_branchynets_rule():
    said = made_up()
    limit = 0.9  # nats
    policy = Policy((1 - limit / math.log(4),) * 2, "entropy", (1.0,) * 3)
    p = said.logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    by_entropy = [next((k + 1 for k in range(2) if entropy[k, n] <= limit), 3) for n in range(60)]
    assert policy.exits(said.logits).tolist() == by_entropy


def test_temperatures_are_fitted_output_by_output():
    said = made_up(n=400)
    sharper = Predictions(said.logits * torch.tensor([1.0, 2.0, 1.0])[:, None, None], said.labels)
    one, other = fit_temperatures(said), fit_temperatures(sharper)
    assert (other[0], other[1] / 2, other[2]) == pytest.approx(one, rel=1e-3)


def test_targets_that_cannot_be_are_refused():
    said = made_up()
    with pytest.raises(ValueError, match="give one target"):
        Solver(said, RULE, COSTS).solve()
    with pytest.raises(ValueError, match="give one target"):
        Solver(said, RULE, COSTS).solve(max_error_increase=0.1, max_mean_cost=2)
    with pytest.raises(
        ValueError, match=r"must be a share of images below 0.5 \(0.005 is half a percentage point\), got -0.1"
    ):
        Solver(said, RULE, COSTS).solve(max_error_increase=-0.1)
    with pytest.raises(ValueError, match=r"must be a share of images below 0.5 .*, got 0.5"):  # half a point is meant
        Solver(said, RULE, COSTS).solve(max_error_increase=0.5)
    with pytest.raises(ValueError, match="bound on the mean cost must be above 0 and finite, got nan"):
        Solver(said, RULE, COSTS).solve(max_mean_cost=float("nan"))
    with pytest.raises(ValueError, match="bound on the mean cost must be above 0 and finite, got '30M'"):
        Solver(said, RULE, COSTS).solve(max_mean_cost="30M")
    with pytest.raises(ValueError, match="3 outputs need 3 temperatures, got 2"):
        never(3, temperatures=(1.0, 2.0))
    with pytest.raises(ValueError, match="confidence must be one of entropy, top, margin, got 'hunch'"):
        never(3, "hunch")
    with pytest.raises(ValueError, match="3 outputs need 3 costs, got 2"):
        Solver(said, RULE, COSTS[:2]).solve(max_error_increase=0)
    with pytest.raises(ValueError, match="3 outputs need 2 costs of passing, got 3"):
        Solver(said, RULE, COSTS, COSTS).solve(max_error_increase=0)
    with pytest.raises(ValueError, match="3 outputs need 2 thresholds, got 1"):
        outcome(said, Policy((0.5,), "top", (1.0,) * 3), COSTS)


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0,) * 2, (1.0,) * 4])
def test_a_policy_of_other_outputs_sends_no_image_anywhere(temperatures):
    rule = f"3 outputs need 3 temperatures, got {len(temperatures)}"
    with pytest.raises(ValueError, match=rule):
        Policy((0.5, 0.5), "entropy", temperatures).exits(made_up().logits)
    with pytest.raises(ValueError, match="3 outputs need 2 thresholds, got 1"):
        Policy((0.5,), "entropy", (1.0,) * 3).exits(made_up().logits)
