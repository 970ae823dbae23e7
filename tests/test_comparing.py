"""Two runs on the same images: against McNemar's test and Holm's adjustment by hand, and what cannot be compared."""

import json
from dataclasses import replace
from math import comb

import pytest
import torch

import auxnet
from auxnet.cli import main
from auxnet.comparing import matching
from writers import tiny, write_folders

RECIPE = auxnet.Recipe(depth=8, outputs=3, epochs=1, batch_size=64, device="cpu", threads=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of the same images: three outputs, as many of another method, a plain net that is deeper, and others' images."""
    home = tmp_path_factory.mktemp("runs")
    asked = {
        "a": replace(RECIPE, epochs=3),
        "b": replace(RECIPE, method="joint", mode="live"),
        "plain": replace(RECIPE, depth=14, outputs=1),
        "seed": replace(RECIPE, seed=1, outputs=1),
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
    pairs = auxnet.compare_runs(runs / "a", runs / "b")
    assert [(pair.first.output, pair.second.output) for pair in pairs] == [(1, 1), (2, 2), (3, 3)]
    by_hand = adjusted([mcnemar(x, y) for x, y in zip(a, b, strict=True)])
    assert [pair.comparison.p_value for pair in pairs] == pytest.approx(by_hand, rel=1e-9)
    assert any(p < 0.05 for p in by_hand)
    for pair, x, y in zip(pairs, a, b, strict=True):
        assert pair.first.error == sum(x) / len(x)
        assert pair.second.error == sum(y) / len(y)
        assert pair.comparison.difference == pytest.approx(pair.first.error - pair.second.error, abs=1e-12)
    for ours, theirs in zip(pairs, auxnet.compare_runs(runs / "b", runs / "a"), strict=True):
        assert ours.comparison.difference == -theirs.comparison.difference
        assert ours.comparison.p_value == theirs.comparison.p_value


def test_outputs_at_the_same_depth_are_compared_and_the_final_ones():
    assert matching([7, 13, 20], [7, 13, 20]) == [(0, 0), (1, 1), (2, 2)]
    assert matching([7, 13, 20], [20]) == [(2, 0)]
    assert matching([7, 13, 20], [13, 26]) == [(1, 0), (2, 1)]
    assert matching([7], [9, 11]) == [(0, 1)]


def test_the_command_says_at_which_outputs_a_run_errs_less_and_writes_nothing(runs, capsys):
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    pairs = auxnet.compare_runs(runs / "a", runs / "b", which="best")
    words = ["evaluate", str(runs / "a"), "--against", str(runs / "b"), "--which", "best"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["weights"] == "best"
    assert [row["comparison"]["p_value"] for row in said["pairs"]] == [pair.comparison.p_value for pair in pairs]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert [pair.comparison.significant for pair in pairs[:2]] == [True, True]
    assert f"{runs / 'a'} errs less than {runs / 'b'} at output 1" in " ".join(text.split())
    assert "another seed gives others" in text
    assert main(["evaluate", str(runs / "a"), "--against", str(runs / "a")]) == 0
    assert "these images cannot tell" in capsys.readouterr().out
    assert main(["evaluate", str(runs / "a"), "--against", str(runs / "plain")]) == 0
    assert "3 / 1" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


def test_runs_without_common_images_are_compared_on_others_alone(runs, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"do not have the same validation images .* --on other labelled images"):
        auxnet.compare_runs(runs / "a", runs / "seed")
    write_folders(tmp_path / "pics", *tiny(30, 10, size=8), [str(digit) for digit in range(10)])
    (pair,) = auxnet.compare_runs(runs / "a", runs / "seed", on=tmp_path / "pics")
    for report, run in ((pair.first, "a"), (pair.second, "seed")):
        assert report == auxnet.evaluate(runs / run, on=tmp_path / "pics")[-1]
    assert main(["evaluate", str(runs / "a"), "--against", str(runs / "seed"), "--on", str(tmp_path / "pics")]) == 0
    assert f"30 images of {tmp_path / 'pics'}" in " ".join(capsys.readouterr().out.split())


def test_runs_of_other_classes_cannot_be_compared(runs, tmp_path, capsys):
    write_folders(tmp_path / "pics", *tiny(30, 2, size=8), ["cat", "dog"])
    auxnet.fit(replace(RECIPE, data=str(tmp_path / "pics"), outputs=1, batch_size=8), tmp_path / "run")
    assert main(["evaluate", str(runs / "a"), "--against", str(tmp_path / "run")]) == 2
    assert "do not have the same classes" in capsys.readouterr().err
    assert main(["evaluate", str(runs / "a"), "--against", str(runs / "b"), "--classes"]) == 2
    assert "--classes is for one run" in capsys.readouterr().err
