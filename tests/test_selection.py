"""Choosing one output: against the rule applied by hand, on made-up and on real validation images."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import auxnet
from auxnet import selection
from auxnet.cli import main
from auxnet.cli.arguments import number, parse
from auxnet.cli.diagnose import Diagnose
from auxnet.data import load_data
from auxnet.evaluation import OutputReport
from auxnet.latency import Timing
from auxnet.scores import Predictions, compare, holm, wilson
from auxnet.selection import MARGIN, choose, select_on
from auxnet.words import p_text
from conftest import one_class_alone


def ladder(*wrong_counts, n=1000, params=None):
    """Predictions of outputs that are wrong on their first so many of n images, and reports of them."""
    labels = torch.zeros(n, dtype=torch.int64)
    logits = torch.zeros(len(wrong_counts), n, 2)
    logits[:, :, 0] = 1
    for k, wrong in enumerate(wrong_counts):
        logits[k, :wrong, 1] = 2
    params = params or [10 ** (k + 2) for k in range(len(wrong_counts))]
    rows = [
        OutputReport(
            output=k + 1,
            depth=10 * (k + 1),
            params=params[k],
            macs=1000 * (k + 1),
            loss=0.0,
            error=wrong / n,
            images=n,
            low=0.0,
            high=1.0,
            calibration_error=0.0,
            class_images=(n, 0),
            class_errors=(wrong / n, None),
            balanced_error=wrong / n,
            top5_error=None,
            confusion=None,
        )
        for k, wrong in enumerate(wrong_counts)
    ]
    return Predictions(logits, labels), rows


def timings(*medians, spread=0.1):
    """Latencies of outputs with these medians, and quartiles so far from them."""
    return [Timing(1, median, median - spread, median + spread, 1000 / median, 9) for median in medians]


def test_the_cheapest_within_the_margin_of_the_best_is_chosen():
    said, rows = ladder(80, 55, 52, 50)
    assert choose(said, rows, within=0.0).output == 4
    assert choose(said, rows, within=0.002).output == 3
    assert choose(said, rows, within=0.005).output == 2
    assert choose(said, rows, within=0.03).output == 1
    assert choose(said, rows).output == 2  # MARGIN, half a point


def test_of_outputs_that_cost_the_same_the_better_one_is_chosen():
    """As of a backbone that is cut after a convolution, and again after the ReLU that follows it."""
    said, rows = ladder(55, 52, 50)
    alike = [replace(row, macs=1000) for row in rows[:2]] + rows[2:]
    assert choose(said, alike).output == 2


def test_a_p_value_is_never_printed_as_the_border_itself():
    p_values = {0.0498: "0.0498", 0.050018: "0.05002", 0.0501: "0.0501", 0.05: "0.05", 0.2512: "0.25", 1e-25: "1e-25"}
    assert {p: p_text(p) for p in p_values} == p_values


def test_an_intermediate_output_that_is_the_best_is_chosen_over_deeper_ones():
    said, rows = ladder(80, 40, 50)
    choice = choose(said, rows, within=0.0)
    assert choice.output == 2
    assert "the best on validation" in choice.reason


def test_what_the_images_cannot_tell_from_the_choice_is_named_if_it_is_cheaper():
    assert choose(*ladder(80, 55, 50), within=0.0).alike == 2  # 5 of 1000 images: McNemar's p is 0.06
    assert choose(*ladder(80, 58, 50), within=0.0).alike is None
    assert choose(*ladder(53, 55, 50), within=0.0).alike == 1
    assert choose(*ladder(50, 52, 51), within=0.0).alike is None  # the others are dearer
    assert choose(*ladder(80, 50), budgets={"params": 1}).alike is None  # nothing is chosen


def test_an_output_is_chosen_by_balanced_error_if_that_is_asked_for():
    """Output 1 always says the common class; output 2 errs on twice as many images, and knows the rare class too."""
    labels = torch.tensor([0] * 180 + [1] * 20)
    answers = torch.stack([torch.zeros(200), torch.tensor([1.0] * 40 + [0.0] * 140 + [1.0] * 20)]).long()
    said = Predictions(torch.nn.functional.one_hot(answers, 2).float(), labels)
    rows = [
        replace(
            row,
            error=float(wrong.double().mean()),
            images=200,
            class_images=(180, 20),
            class_errors=of_classes,
            balanced_error=sum(of_classes) / 2,
        )
        for row, wrong, of_classes in zip(ladder(1, 2)[1], said.wrong, ((0.0, 1.0), (2 / 9, 0.0)), strict=True)
    ]
    assert [row.error for row in rows] == [0.1, 0.2]
    plain, balanced = choose(said, rows), choose(said, rows, by="balanced")
    assert (plain.output, balanced.output) == (1, 2)
    assert "always predicting the most frequent class (10.00 % error)" in plain.no_better_than_guessing
    assert (balanced.no_better_than_guessing, balanced.guessing) == (None, 0.5)
    assert balanced.reason.startswith("output 2 is the best on validation (11.11 % balanced error), and no cheaper one")
    assert balanced.candidates[0].against_chosen.difference == pytest.approx(0.5 - 1 / 9)
    assert balanced.candidates[0].against_chosen.significant
    assert plain.classes_lost == "output 1 recognises no validation image of class 1 (20 images)"
    assert plain.classes_lost in plain.notes
    assert "of rare (20 images)" in replace(plain, classes=("common", "rare")).classes_lost
    assert balanced.classes_lost is None
    assert "--by balanced" in plain.by_balanced_error
    assert balanced.by_balanced_error is None
    guessing = choose(Predictions(said.logits[:1], labels), rows[:1], by="balanced")
    assert guessing.no_better_than_guessing.startswith("that is no better than always predicting")
    assert guessing.no_better_than_guessing.endswith("(50.00 % balanced error)")
    under = choose(said, rows, by="balanced", budgets={"macs": 1})
    assert under.reason.endswith("comes nearest with 1,000 MACs (50.00 % balanced error)")
    with pytest.raises(ValueError, match="by must be one of error, balanced, got 'classes'"):
        choose(said, rows, by="classes")


def test_where_classes_differ_in_size_it_is_noted_if_the_balanced_error_would_choose_another():
    said, rows = ladder(80, 50, 49)
    balanced = [replace(row, balanced_error=error) for row, error in zip(rows, (0.3, 0.2, 0.1), strict=True)]
    uneven = [replace(row, class_images=(900, 100)) for row in balanced]
    choice = choose(said, uneven)
    assert choice.output == 2
    rule = "by balanced error (--by balanced) the same rule would choose output 3 (10.00 %, output 2 20.00 %)"
    note = f"classes differ in size: {rule}"
    assert choice.by_balanced_error == note
    assert note in choice.notes
    assert choose(said, balanced).by_balanced_error is None  # classes are alike in size
    for limits in ({"macs": rows[1].macs}, {"params": 1}):
        assert choose(said, uneven, budgets=limits).by_balanced_error is None
    assert choose(said, uneven, within=0.21).by_balanced_error is None  # the cheapest by either


def test_of_equal_errors_the_cheaper_output_is_the_best_and_the_deeper_are_named_with_a_verdict():
    choice = choose(*ladder(80, 50, 60, 50), within=0.0)
    assert choice.output == 2
    assert choice.reason == (
        "output 2 is the best on validation (5.00 % error, tied with output 4); it cannot be told apart from output 4 "
        "(5.00 % error) on these 1,000 validation images, McNemar's p = 1 (Holm)"
    )
    assert "tied with output 2 and output 3" in choose(*ladder(50, 50, 50)).reason
    said, rows = ladder(50, 50, 50)
    assert "tied with output 2)" in choose(said, rows, budgets={"macs": rows[1].macs}).reason  # not with output 3
    assert "tied" not in choose(*ladder(80, 50, 60)).reason


def test_a_latency_whose_quartiles_hold_the_budget_is_said_to_be_too_near_it():
    said, rows = ladder(300, 53, 50)
    limits = {"budgets": {"latency": 2.05}, "latency": timings(1.0, 2.1, 3.0)}
    choice = choose(said, rows, **limits)
    assert (choice.output, [each.borderline for each in choice.candidates]) == (1, [False, True, False])
    assert choice.candidates[1].timing == limits["latency"][1]
    near = "output 2 is too near the latency budget to be sure of (its median 2.1 ms for one image, its quartiles 2 .."
    assert near in choice.reason
    assert any("of the PyTorch model; an ONNX file of it is usually faster" in note for note in choice.notes)
    sure = choose(said, rows, budgets={"latency": 2.5}, latency=limits["latency"])
    assert not any(each.borderline for each in sure.candidates)
    assert "too near" not in sure.reason
    assert (
        "too near" in choose(said, rows, budgets={"latency": 0.95}, latency=limits["latency"]).reason
    )  # none meets it
    assert not any(each.borderline for each in choose(said, rows, latency=limits["latency"]).candidates)


def test_a_latency_of_seconds_is_in_plain_milliseconds():
    said, rows = ladder(80, 50)
    reason = choose(said, rows, budgets={"latency": 2100}, latency=timings(1e3, 2e3, spread=250)).reason
    assert "with at most 2,100 ms for one image" in reason
    assert selection._milliseconds(999.6) == "1,000"
    assert "its median 2,000 ms for one image, its quartiles 1,750 .. 2,250)" in reason


def test_under_a_budget_the_best_that_meets_it_is_chosen():
    said, rows = ladder(80, 53, 50)
    choice = choose(said, rows, budgets={"params": 1000})
    assert choice.output == 2
    assert choice.within == 0
    assert [candidate.meets for candidate in choice.candidates] == [True, True, False]
    assert choose(said, rows, budgets={"macs": 1500}).output == 1
    assert choose(said, rows, budgets={"latency": 2.5}, latency=timings(1.0, 2.0, 3.0)).output == 2
    assert choose(said, rows, budgets={"params": 1000, "macs": 1500}).output == 1
    assert choose(said, rows, within=0.03, budgets={"params": 1000}).output == 1


def test_no_output_meets_this_is_an_answer_that_names_the_nearest_miss():
    said, rows = ladder(80, 53, 50)
    choice = choose(said, rows, budgets={"params": 60, "macs": 5000})
    assert choice.output is None
    assert choice.reason == (
        "no output stays within 60 parameters and 5,000 MACs; output 1 comes nearest with 100 parameters (8.00 % error)"
    )
    assert all(candidate.against_chosen is None for candidate in choice.candidates)


def test_the_paired_test_is_that_of_the_same_images_and_decides_the_words():
    said, rows = ladder(300, 52, 50)
    choice = choose(said, rows)
    assert choice.output == 2
    of_first, of_third = (compare(said.wrong[k], said.wrong[1]) for k in (0, 2))
    p_values = holm([of_first.p_value, of_third.p_value, compare(said.wrong[0], said.wrong[2]).p_value])  # all pairs
    first, third = replace(of_first, p_value=p_values[0]), replace(of_third, p_value=p_values[1])
    assert [candidate.against_chosen for candidate in choice.candidates] == [first, None, third]
    assert "cannot be told apart from output 3" in choice.reason
    apart, rows = ladder(300, 58, 50)
    reason = choose(apart, rows, within=0.01).reason
    assert "no cheaper one comes within 1 point of it" in reason or "the cheapest within 1 point of" in reason
    assert "worse than output 3 (5.00 % error) beyond chance" in reason


def test_a_cheaper_output_that_cannot_be_told_apart_from_the_best_is_pointed_out():
    said, rows = ladder(300, 52, 50)
    choice = choose(said, rows, within=0.0)
    assert choice.output == 3
    assert "cannot be told apart from output 2" in choice.reason


def test_of_outputs_that_err_alike_few_choices_tell_any_apart_however_many_there_are():
    """Unadjusted, in half of the sets of images some output is told apart; adjusted for 8 pairs of 36, in 12 %."""
    random, told = torch.Generator().manual_seed(0), 0
    _, rows = ladder(*[0] * 9)
    for _ in range(30):
        wrong = torch.rand(9, 1000, generator=random) < 0.1
        said = Predictions(torch.stack([~wrong, wrong], dim=2).float(), torch.zeros(1000, dtype=torch.int64))
        seen = [replace(row, error=error) for row, error in zip(rows, said.errors, strict=True)]
        choice = choose(said, seen, within=0.0)
        others = [each.against_chosen for each in choice.candidates if each.against_chosen]
        told += any(found.significant for found in others)
        assert len(others) == 8
    assert told <= 4


def test_to_be_better_than_guessing_is_shown_by_the_interval_or_image_by_image():
    """Two classes, 480 of 1000 images of the second; the output errs on 40 of those and on nothing else that matters.

    Its error of 45 % has an interval that reaches above the 48 % of guessing, but it beats guessing on the very images.
    """
    labels = (torch.arange(1000) < 480).long()
    called = torch.zeros(1000, dtype=torch.int64)
    called[:30] = 1  # of those of the second class 30 are right, and the rest are called by the commonest class
    said = Predictions(torch.nn.functional.one_hot(called, 2).float()[None], labels)
    (row,) = ladder(450)[1]
    assert wilson(450, 1000)[1] > 0.48
    choice = choose(said, [row])
    assert choice.against_guessing == compare(said.wrong[0], labels != 0)
    assert choice.no_better_than_guessing is None
    even = torch.arange(15) % 3  # of three classes alike in size its interval tells more
    called = torch.where(torch.arange(15) < 3, (even + 1) % 3, even)
    few = Predictions(torch.nn.functional.one_hot(called, 3).float()[None], even)
    few_choice = choose(few, [replace(row, error=3 / 15, images=15)])
    assert few_choice.against_guessing.p_value > 0.025
    assert few_choice.no_better_than_guessing is None
    guessed = Predictions(torch.tensor([[[1.0, 0.0]]]).expand(1, 1000, 2), labels)
    said_of_it = choose(guessed, [replace(row, error=0.48)]).no_better_than_guessing
    assert said_of_it.endswith("always predicting the most frequent class (48.00 % error)")
    assert choose(*ladder(80, 50), budgets={"params": 1}).no_better_than_guessing is None


@settings(max_examples=60, deadline=None)
@given(
    wrong=st.lists(st.integers(0, 50), min_size=1, max_size=5),
    within=st.one_of(st.none(), st.floats(0, 0.3)),
    budget=st.one_of(st.none(), st.integers(1, 10**7)),
)
def test_the_choice_is_the_rule_applied_by_hand(wrong, within, budget):
    said, rows = ladder(*wrong, n=50)
    choice = choose(said, rows, within=within, budgets={} if budget is None else {"params": budget})
    margin = within if within is not None else (0 if budget else MARGIN)
    meeting = [row for row in rows if budget is None or row.params <= budget]
    if not meeting:
        assert choice.output is None
    else:
        best = min(row.error for row in meeting)
        assert choice.output == min(row.output for row in meeting if row.error <= best + margin + 1e-12)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1M", True])
def test_a_budget_that_no_model_could_meet_is_refused(value):
    said, rows = ladder(5, 4)
    with pytest.raises(ValueError, match="max_params must be above 0 and finite"):
        choose(said, rows, budgets={"params": value})


def test_what_is_no_net_is_refused():
    with pytest.raises(TypeError, match="net must be an AuxNet, got Sequential"):
        auxnet.select_on(auxnet.resnet(depth=8, outputs=2).truncate(1), [])


def test_a_budget_of_what_is_not_known_is_refused():
    said, rows = ladder(5, 4)
    with pytest.raises(ValueError, match=r"a budget must be of params, macs, latency, got 'max_params'"):
        choose(said, rows, budgets={"max_params": 5})


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5%", False])
def test_a_margin_that_is_no_share_is_refused(value):
    said, rows = ladder(5, 4)
    with pytest.raises(ValueError, match="within must be a share of images"):
        choose(said, rows, within=value)


def test_a_latency_budget_needs_latencies_and_select_measures_them():
    said, rows = ladder(5, 4)
    with pytest.raises(ValueError, match="needs the measured latency"):
        choose(said, rows, budgets={"latency": 1.0})
    net = auxnet.resnet(depth=8, outputs=2)
    choice = select_on(net, [(torch.randn(4, 3, 8, 8), torch.arange(4))], max_latency=1e6)
    assert all(candidate.timing.median_ms > 0 for candidate in choice.candidates)


def test_a_net_is_chosen_from_under_the_budgets_of_a_run():
    net, batches = auxnet.resnet(depth=8, outputs=3), [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    for budget in ("max_params", "max_macs"):
        choice = select_on(net, batches, **{budget: 1})
        assert (choice.output, choice.budgets) == (None, {budget.removeprefix("max_"): 1})
        with pytest.raises(ValueError, match=f"^{budget} must be above 0 and finite, got 0"):
            select_on(net, batches, **{budget: 0})


def test_select_reads_validation_images_and_nothing_else():
    net = auxnet.resnet(depth=8, outputs=3, num_classes=4)
    images, labels = torch.randn(40, 3, 8, 8), torch.arange(40) % 4
    choice = select_on(net, [(images, labels)], within=0.0)
    errors = [report.error for report in auxnet.evaluate(net, [(images, labels)])]
    assert choice.output == errors.index(min(errors)) + 1


# ---- the command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    auxnet.fit(auxnet.Recipe(depth=8, outputs=3, epochs=1, batch_size=256, device="cpu", threads=1), folder)
    return folder


def asked(capsys, *words, status=0):
    assert main(["select", *map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_select_of_a_run_is_what_the_command_says(run, capsys):
    choice = auxnet.select(run, max_params=20_000)
    said = asked(capsys, run, "--max-params", "20k")
    assert (choice.output, choice.reason) == (said["output"], said["reason"])
    with pytest.raises(ValueError, match="device 'cuda:7' cannot be used here"):
        auxnet.select(run, device="cuda:7")
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        auxnet.select(run / "nothing")
    with pytest.raises(ValueError, match="max_params must be above 0"):
        auxnet.select(run, max_params=0)


def test_the_best_weights_are_chosen_from_by_name(run, tmp_path, capsys):
    copy = tmp_path / "a"
    shutil.copytree(run, copy)
    one_class_alone(copy / "checkpoints" / "best.safetensors")
    for words, which in (([], "last"), (["--which", "best"], "best")):
        said = asked(capsys, copy, "--within", "40", *words)
        errors = [report.error for report in auxnet.evaluate(copy, which=which)]
        assert [candidate["report"]["error"] for candidate in said["candidates"]] == errors
        assert (said["weights"], said["output"]) == (which, auxnet.select(copy, within=0.4, which=which).output)
        assert said["test"]["error"] == auxnet.evaluate(copy, split="test", which=which)[said["output"] - 1].error
        assert main(["select", str(copy), *words]) == 0
        out = capsys.readouterr().out
        assert ("--which best" in out) == (which == "best")
        assert ("the best by the mean validation error of the outputs" in out) == (which == "best")
    assert 0.85 < errors[2] < 0.95


def test_an_absurd_test_set_changes_no_choice(run, capsys, monkeypatch):
    honest = asked(capsys, run, "--within", "30")

    def absurd(recipe, *seen):
        dataset = load_data(recipe, *seen)
        shuffled = dataset.test.labels[torch.randperm(len(dataset.test))]
        return replace(dataset, test=replace(dataset.test, labels=shuffled))

    monkeypatch.setattr("auxnet.run_data.load_data", absurd)
    fooled = asked(capsys, run, "--within", "30")
    assert fooled.pop("test")["error"] != honest.pop("test")["error"]
    assert fooled == honest


def test_a_latency_is_shown_with_the_device_and_the_threads_that_it_was_measured_on(run, capsys):
    said = asked(capsys, run, "--max-latency", "1000", "--threads", "1")
    assert said["measured_on"] == "cpu, 1 thread"
    assert main(["select", str(run), "--max-latency", "1000", "--threads", "1"]) == 0
    assert "ms measured on cpu, 1 thread" in capsys.readouterr().out
    assert asked(capsys, run)["measured_on"] is None


@pytest.mark.parametrize(("given", "noted"), [("0.005", True), ("0.049", True), ("0", False), ("0.5", False)])
@pytest.mark.enough(2)
def test_points_that_look_like_a_fraction_are_told(given, noted, run, capsys):
    assert main(["select", str(run), "--within", given]) == 0
    said = f"auxnet: warning: --within {given} is in points, not a fraction: half a point is 0.5\n"
    assert capsys.readouterr().err == (said if noted else "")


def test_budgets_are_read_with_their_units(run, capsys):
    params = [candidate["report"]["params"] for candidate in asked(capsys, run)["candidates"]]
    for text in (f"{params[1]}", f"{params[1] / 1e3}k", f"{params[1] / 1e6}M"):
        assert [c["meets"] for c in asked(capsys, run, "--max-params", text)["candidates"]] == [True, True, False]
    assert [number("--max-params", text) for text in ("1.001k", "1e3k", "2.5e-1M")] == [1001, 1e6, 25e4]
    assert main(["select", str(run), "--max-params", "0.01"]) == 2  # as if of millions
    assert "--max-params must be 1 or more and finite, got 0.01" in capsys.readouterr().err


def test_counts_are_read_as_tables_print_them(run, capsys):
    params = [candidate["report"]["params"] for candidate in asked(capsys, run)["candidates"]]
    assert params[1] >= 1000
    assert [c["meets"] for c in asked(capsys, run, "--max-params", f"{params[1]:,}")["candidates"]] == [
        True,
        True,
        False,
    ]
    assert [number("--max-macs", text) for text in ("20,000", "1,234,567", "1,000")] == [20_000, 1_234_567, 1000]
    assert parse(Diagnose, ["run", "--probe-images", "2,000"]).probe_images == 2000
    for text in ("1,5M", "1,5", "20,00", "0,123", "1234,567", "1,234,5", "1,234k", "1,234.5", ",123"):
        with pytest.raises(
            ValueError, match=f"^--max-params must be a number such as 200000, 200k or 0.2M, got '{text}'"
        ):
            number("--max-params", text)
        with pytest.raises(ValueError, match=r"^--probe-images must be a whole number, got "):
            parse(Diagnose, ["run", "--probe-images", text])


def test_no_output_meets_this_is_printed_with_exit_status_1(run, capsys):
    assert main(["select", str(run), "--max-params", "10"]) == 1
    out, err = capsys.readouterr()
    assert out.strip().splitlines()[-1].startswith("no output stays within 10 parameters; output 1 comes nearest")
    assert err == ""
    assert asked(capsys, run, "--max-macs", "1", status=1)["output"] is None


def test_in_80_columns_what_three_outputs_cost_and_how_they_err_are_two_tables(run, capsys, monkeypatch):
    said, rows = ladder(53, 52, 50, params=(70_000, 279_968, 1_100_000))
    choice = choose(said, [replace(row, macs=40_551_168) for row in rows], budgets={"params": 300_000})
    monkeypatch.setattr("auxnet.selection.select_on", lambda *_, **__: choice)
    for width, tables in ((80, 2), (100, 2), (160, 1)):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["select", str(run)]) == 0
        out = capsys.readouterr().out
        assert len(re.findall("^ +output ", out, re.MULTILINE)) == tables
        assert "p of 0.05 or more: cannot be told apart)" in " ".join(out.split())


@pytest.mark.parametrize(("errors", "noted"), [((56, 56, 50), True), ((70, 56, 50), False), ((53, 53, 50), False)])
def test_an_interval_that_says_more_than_its_p_value_is_explained(errors, noted, run, capsys, monkeypatch):
    monkeypatch.setattr("auxnet.selection.select_on", lambda *_, **__: choose(*ladder(*errors), within=0.0))
    assert main(["select", str(run)]) == 0
    out = capsys.readouterr().out
    assert ("one may exclude 0 although p is 0.05 or more\n" in out) == noted
    said = asked(capsys, run)
    assert [line.removeprefix("note: ") for line in out.splitlines() if line.startswith("note: ")] == said["notes"]
    choice = choose(*ladder(*errors), within=0.0)
    assert (said["alike"], said["no_better_than_guessing"]) == (choice.alike, choice.no_better_than_guessing)
    told = [each.against_chosen and each.against_chosen.significant for each in choice.candidates]
    assert told == [(found := each["against_chosen"]) and found["significant"] for each in said["candidates"]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--within", "-1"], "--within must be percentage points, 0 or more and below 50, got -1"),
        (["--within", "101"], "--within must be percentage points, 0 or more and below 50, got 101"),
        (["--within", "nan"], "--within must be percentage points"),
        (["--max-params", "few"], "--max-params must be a number such as 200000, 200k or 0.2M, got 'few'"),
        (["--max-params", "0"], "--max-params must be 1 or more and finite, got 0"),
        (["--max-macs", "-3M"], "--max-macs must be 1 or more and finite"),
        (["--max-latency", "nan"], "--max-latency must be above 0 and finite, got nan"),
        (["--max-latency", "slow"], "--max-latency"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(run, capsys, words, says):
    assert main(["select", str(run), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
