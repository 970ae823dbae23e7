"""Two runs on the same images: against McNemar's test and Holm's adjustment by hand, and what cannot be compared."""

import json
import shutil
from dataclasses import replace
from math import comb
from types import SimpleNamespace

import pytest
import torch

import auxnet
from auxnet.cli import main
from auxnet.cli.evaluate import _otherwise_balanced, _pairs_table
from auxnet.comparing import matching
from conftest import one_class_alone
from test_cli import fails
from writers import tiny, write_folders

RECIPE = auxnet.Recipe(depth=8, outputs=3, epochs=1, batch_size=64, device="cpu", threads=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of the same images: two methods, and a deeper plain net that has learnt nothing; and one of other images."""
    home = tmp_path_factory.mktemp("runs")
    asked = {
        "a": replace(RECIPE, epochs=3),
        "b": replace(RECIPE, method="joint", mode="live"),
        "plain": replace(RECIPE, depth=14, outputs=1, lr=1e-6, train_images=64),
        "seed": replace(RECIPE, seed=1, outputs=1, train_images=64),
    }
    for name, recipe in asked.items():
        auxnet.fit(recipe, home / name)
    return home


def wrong(run):
    """Whether output k is wrong on validation image n, [K][N], by the model that stands alone."""
    with auxnet.opened(run) as it, torch.no_grad():
        batches, nets = [*it.batches("val")], [it.net.truncate(k) for k in range(1, it.net.outputs + 1)]
        return [torch.cat([net(x).argmax(1) != labels for x, labels in batches]).tolist() for net in nets]


def mcnemar(a, b):
    """Two-sided binomial test of the images on which one alone is wrong."""
    pairs = [*zip(a, b, strict=True)]
    less, more = sorted((pairs.count((True, False)), pairs.count((False, True))))
    return min(1.0, 2 * sum(comb(less + more, i) for i in range(less + 1)) / 2 ** (less + more))


def adjusted(p_values):
    """Holm (1979), by its definition: of m in order, the j-th is the largest of (m - i + 1) p_i over i <= j."""
    order = sorted(p_values)
    return [min(1.0, max((len(order) - i) * q for i, q in enumerate(order) if q <= p)) for p in p_values]


def test_runs_are_compared_output_by_output_on_the_same_images_by_mcnemars_test(runs):
    a, b = wrong(runs / "a"), wrong(runs / "b")
    pairs = auxnet.compare_runs(runs / "a", runs / "b").pairs
    assert [(pair.first.output, pair.second.output) for pair in pairs] == [(1, 1), (2, 2), (3, 3)]
    by_hand = adjusted([mcnemar(x, y) for x, y in zip(a, b, strict=True)])
    assert [pair.comparison.p_value for pair in pairs] == pytest.approx(by_hand, rel=1e-9)
    assert any(p < 0.05 for p in by_hand)
    for pair, x, y in zip(pairs, a, b, strict=True):
        assert pair.first.error == sum(x) / len(x)
        assert pair.second.error == sum(y) / len(y)
        assert pair.comparison.difference == pytest.approx(pair.first.error - pair.second.error, abs=1e-12)
    for ours, theirs in zip(pairs, auxnet.compare_runs(runs / "b", runs / "a").pairs, strict=True):
        assert ours.comparison.difference == -theirs.comparison.difference
        assert ours.comparison.p_value == theirs.comparison.p_value


def test_outputs_at_the_same_depth_are_compared_and_the_final_ones():
    assert matching([7, 13, 20], [7, 13, 20]) == [(0, 0), (1, 1), (2, 2)]
    assert matching([7, 13, 20], [20]) == [(2, 0)]
    assert matching([7, 13, 20], [13, 26]) == [(1, 0), (2, 1)]
    assert matching([7], [9, 11]) == [(0, 1)]
    assert matching([1, 1, 3], [1, 1, 3]) == [(0, 0), (1, 1), (2, 2)]
    assert matching([1, 1, 3], [1, 3]) == [(0, 0), (2, 1)]


def test_the_weights_compared_are_those_asked_for(runs, tmp_path):
    """Those of the best epoch, here made others than the last one's."""
    for name in ("a", "b"):
        shutil.copytree(runs / name, tmp_path / name)
    one_class_alone(tmp_path / "a" / "checkpoints" / "best.safetensors")
    for which in ("last", "best"):
        reports = auxnet.evaluate(tmp_path / "a", which=which)
        pairs = auxnet.compare_runs(tmp_path / "a", tmp_path / "b", which=which).pairs
        assert [pair.first for pair in pairs] == reports
    assert reports != auxnet.evaluate(tmp_path / "a")


def said_of(capsys, *words):
    """What the command says, on one line."""
    assert main(["evaluate", *map(str, words)]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_command_says_at_which_outputs_a_run_errs_less_and_writes_nothing(runs, capsys):
    a, b, plain = runs / "a", runs / "b", runs / "plain"
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    pairs = auxnet.compare_runs(a, b).pairs
    assert [pair.comparison.significant for pair in pairs[:2]] == [True, True]
    text = said_of(capsys, a, "--against", b)
    assert f"{a} errs less than {b} at output 1" in text
    assert "another seed gives others" in text
    assert "the best by the mean" not in text
    assert f"{b} errs more than {a} at output 1" in said_of(capsys, b, "--against", a)
    text = said_of(capsys, a, "--against", a, "--which", "best")
    assert f"these images cannot tell {a} from {a}" in text
    assert f"{a}: the weights of epoch" in text
    assert f"{plain} errs more than {a} at output 1 (there output 3)" in said_of(capsys, plain, "--against", a)
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


def test_the_heads_of_a_comparison_say_whose_outputs_and_depths_are_whose(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert " output, plain / a depth, plain / a plain a points that plain " in said_of(
        capsys, "plain", "--against", "a"
    )
    assert " output depth a b points that a " in said_of(capsys, "a", "--against", "b")


@pytest.mark.long
def test_as_json_a_comparison_names_its_runs_and_what_they_may_have_seen(runs, tmp_path, capsys):
    a, tuned = runs / "a", tmp_path / "tuned"
    auxnet.fit(
        replace(RECIPE, pretrained=str(runs / "seed"), train_images=64), tuned
    )  # by another seed, so of other images
    for other in (runs / "b", tuned):
        assert main(["evaluate", str(a), "--against", str(other), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        found = auxnet.compare_runs(a, other)
        assert (said["runs"], said["weights"], said["on"]) == ([str(a), str(other)], "last", None)
        assert said["may_be_seen_by"] == [{}, *found.may_be_seen_by[1:]]
        for row, pair in zip(said["pairs"], found.pairs, strict=True):
            assert row["comparison"]["p_value"] == pair.comparison.p_value
            assert row["comparison"]["significant"] == (pair.comparison.p_value < 0.05)
            assert row["second"]["error"] == pair.second.error
    assert "seed" in said["may_be_seen_by"][1]["val"][0]


@pytest.mark.long
def test_runs_without_common_images_are_compared_on_others_alone(runs, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"do not have the same validation images .* --on other labelled images"):
        auxnet.compare_runs(runs / "a", runs / "seed")
    write_folders(tmp_path / "pics", *tiny(30, 10, size=8), [str(digit) for digit in range(10)])
    (pair,) = auxnet.compare_runs(runs / "a", runs / "seed", on=tmp_path / "pics").pairs
    for report, run in ((pair.first, "a"), (pair.second, "seed")):
        assert report == auxnet.evaluate(runs / run, on=tmp_path / "pics")[-1]
    text = said_of(capsys, runs / "a", "--against", runs / "seed", "--on", tmp_path / "pics")
    assert f"30 images of {tmp_path / 'pics'}" in text
    assert "validation" not in text


@pytest.mark.long
def test_runs_that_saw_the_same_pictures_at_other_sizes_are_compared_on_them(tmp_path):
    images, labels = tiny(60, 2, size=20)
    write_folders(tmp_path / "pics", images[:, 4:], labels, ["cat", "dog"])  # 20 x 16
    recipe = replace(RECIPE, data=str(tmp_path / "pics"), image_size=8, val_fraction=0.3)
    elsewhere = {"data": "pics", "data_dir": str(tmp_path)}
    others = {"fit": {"fit": "pad"}, "size": {"image_size": 10, "stream": "always", **elsewhere}}
    others |= {"seed": {"seed": 7}, "share": {"val_fraction": 0.2}}
    auxnet.fit(recipe, tmp_path / "a")
    for name, other in others.items():
        auxnet.fit(replace(recipe, **other), tmp_path / name)
    for name in ("fit", "size"):
        for pair in auxnet.compare_runs(tmp_path / "a", tmp_path / name).pairs:
            assert pair.first.error == auxnet.evaluate(tmp_path / "a")[pair.first.output - 1].error
            assert pair.second.error == auxnet.evaluate(tmp_path / name)[pair.second.output - 1].error
    for name in ("seed", "share"):
        with pytest.raises(ValueError, match=r"do not have the same validation images \(their data, seed or val_fr"):
            auxnet.compare_runs(tmp_path / "a", tmp_path / name)


def test_runs_of_other_classes_cannot_be_compared_and_no_image_is_judged_before(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("auxnet.comparing.predictions", None)
    write_folders(tmp_path / "pics", *tiny(30, 2, size=8), ["cat", "dog"])
    auxnet.fit(replace(RECIPE, data=str(tmp_path / "pics"), outputs=1, batch_size=8), tmp_path / "run")
    assert main(["evaluate", str(runs / "a"), "--against", str(tmp_path / "run")]) == 2
    assert "do not have the same classes" in capsys.readouterr().err
    for flag in ("--classes", "--no-latency"):
        assert main(["evaluate", str(runs / "a"), "--against", str(runs / "b"), flag]) == 2
        assert f"{flag} is for one run" in capsys.readouterr().err


def test_where_classes_differ_in_size_the_balanced_errors_are_told_too_and_where_they_order_runs_otherwise():
    def pair(output, errors, balanced, uneven=True):
        first, second = (
            SimpleNamespace(
                output=output, depth=3 * output, uneven=uneven, images=100, error=e, low=e, high=e, balanced_error=b
            )
            for e, b in zip(errors, balanced, strict=True)
        )
        found = SimpleNamespace(difference=errors[0] - errors[1], low=-0.1, high=0.1, p_value=0.5, significant=False)
        return SimpleNamespace(first=first, second=second, comparison=found)

    pairs = [
        pair(1, (0.1, 0.3), (0.1, 0.2)),  # alike by both
        pair(2, (0.1, 0.3), (0.5, 0.2)),
        pair(3, (0.3, 0.1), (0.2, 0.5)),
        pair(4, (0.2, 0.2), (0.2, 0.5)),
    ]
    note = "classes differ in size: the balanced errors order a and b otherwise at output 2 and output 3 "
    assert _otherwise_balanced("a", "b", pairs) == f"{note}(--by balanced says whether beyond chance)"
    assert [*_pairs_table("a", "b", pairs, "images", "error").columns[4].cells][1] == "50.00 / 20.00 %"
    assert _otherwise_balanced("a", "b", pairs[:1]) is None
    even = [pair(2, (0.1, 0.3), (0.5, 0.2), uneven=False)]
    assert _otherwise_balanced("a", "b", even) is None
    assert _pairs_table("a", "b", even, "images", "error").columns[-1].header == "McNemar's p (Holm)"
    assert [each.header for each in _pairs_table("a", "b", even, "images", "balanced").columns][4:] == [
        "balanced errors",
        "points that a errs more",
        "p (Holm)",
    ]


def test_runs_are_compared_by_balanced_error_too(runs, capsys):
    pairs = auxnet.compare_runs(runs / "a", runs / "b", by="balanced").pairs
    for pair in pairs:
        gain = pair.first.balanced_error - pair.second.balanced_error
        assert pair.comparison.difference == pytest.approx(gain, abs=1e-9)
        assert pair.comparison.low < gain < pair.comparison.high
    a, b = str(runs / "a"), str(runs / "b")
    assert main(["evaluate", a, "--against", b, "--by", "balanced", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["by"] == "balanced"
    assert [each["comparison"]["p_value"] for each in said["pairs"]] == [pair.comparison.p_value for pair in pairs]
    assert "by balanced error " in said_of(capsys, a, "--against", b, "--by", "balanced")
    fails(
        capsys,
        ["evaluate", a, "--by", "balanced"],
        2,
        "--by is for two runs: leave it out, or name the other --against",
    )
