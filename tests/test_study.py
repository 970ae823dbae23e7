"""Studies: what is declared is trained, once; what is claimed is judged by paired seeds; nothing is dropped."""

import csv
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

import auxnet
from auxnet import build, signals
from auxnet import train as train_module
from auxnet.cli import main, screen
from auxnet.data import load_data
from auxnet.diagnosing import LEVEL
from auxnet.diagnosis import supervision
from auxnet.documents import read_json
from auxnet.errors import DivergedError
from auxnet.files import write_json
from auxnet.loading import weights_sha256
from auxnet.recipe import WHERE, Recipe
from auxnet.rundir import append
from auxnet.studies import running, supervising
from auxnet.studies.checking import check_claims, check_folder
from auxnet.studies.ledger import Findings, averages, findings_of, found_in
from auxnet.studies.spec import Claim, Side, Training, names, read_study
from auxnet.studies.study_page import (
    cells_of,
    figures,
    headline,
    markdown,
    page,
    sources_of,
    table_cells,
    warnings_of,
    write_findings,
)
from auxnet.studies.verdicts import in_words, interval, judge, judge_all, least_told
from browser import check_themes, chromium, opened, ticks_between
from writers import CIFAR10, COMMIT, on_the_hub, tiny, write_folders, write_parquet

OWN = """
question: does it work?
variants:
  one: {method: joint, outputs: 1}
  two: {gamma: 1}
claims:
  - {says: "two beats one", better: two, worse: one}
  - {says: "the mean too", better: "two:mean", worse: "one:1"}
published:
  one: {error: 5.5, source: somebody, data: digits}
scales:
  smoke:
    seeds: 3
    base: {data: digits, train_images: 100, depth: 8, outputs: 2, epochs: 1, batch_size: 50, lr: 0.05}
"""
SCALES = ("smoke", "small", "full")
HERE = {"threads": 1, "device": "cpu", "data_dir": None}


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    return path


def row(variant, seed, *errors, failed=None):
    cost = {"depth": 8, "params": 10, "macs": 100}
    last = [{"output": k, **cost, "val_error": 0.5, "test_error": error} for k, error in enumerate(errors, start=1)]
    return {
        "variant": variant,
        "seed": seed,
        "data": "digits",
        "last": last,
        "best": last,
        "failed": failed,
        "share": None,  # as of a ledger without the shares of each output
        "images": {"train": 100, "test": 1000},
        "recipe": {},
    }


def whole_row(variant, data, train, val):
    """A row with all that a page says of it."""
    about = {"wall_seconds": 60.0, "commit": "abc", "versions": {"torch": "2"}, "device": {"name": "cpu", "threads": 1}}
    about |= {"data": data, "images": {"train": train, "val": val, "test": 10_000}, "training": f"{variant}-{data}"}
    return {**row(variant, 0, 0.5), **about}


def written(path, *changes):
    """A study file like OWN but for (old, new) texts."""
    text = OWN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return str(path)


def documented():
    for path in ("docs/guide.md", "docs/method.md"):
        text = (Path(__file__).parents[1] / path).read_text()
        yield from (block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "question:" in block)


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("block", list(documented()), ids=["guide", "method"])
def test_the_documented_studies_can_be(block, scale, tmp_path):
    (tmp_path / "own.yaml").write_text(block)
    study = read_study(str(tmp_path / "own.yaml"), scale)
    assert len(study.variants) == 2
    assert study.claims


def test_a_key_that_is_a_scales_is_told_where_it_belongs(tmp_path):
    (tmp_path / "own.yaml").write_text("question: q\nbase: {depth: 8}\nvariants: {a: {}}\n")
    with pytest.raises(ValueError, match=r"base belongs to a scale, as in scales: \{small: \{base: \.\.\.\}\}"):
        read_study(str(tmp_path / "own.yaml"), "small")
    (tmp_path / "own.yaml").write_text("question: q\nzzz: 1\nvariants: {a: {}}\n")
    with pytest.raises(ValueError, match="has no key 'zzz': it may have question, note, measures"):
        read_study(str(tmp_path / "own.yaml"), "small")


# ---- what is declared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", names())
@pytest.mark.enough(8)
def test_every_study_at_every_scale_describes_trainings_that_can_be(name, scale):
    study = read_study(name, scale)
    trainings = list(study.trainings())
    assert len(trainings) == len(study.variants) * study.seeds * len(study.datasets)
    assert len({training.name for training in trainings}) == len(trainings)  # no variant is another by mistake
    if scale != "smoke":
        assert study.seeds >= 3


def test_studies_share_a_training_that_is_the_same_and_no_other():
    names_of = {
        name: {training.variant: training.name for training in read_study(name, "small", 1).trainings()}
        for name in ("methods", "gamma", "outputs", "settings", "compact")
    }
    live = names_of["methods"]["live"]
    assert live == names_of["gamma"]["gamma-2"] == names_of["outputs"]["3"] == names_of["compact"]["auxnet-20"]
    assert names_of["settings"]["paper"] == names_of["outputs"]["5"]
    assert names_of["methods"]["plain"] == names_of["compact"]["resnet-20"]
    assert len({name for each in names_of.values() for name in each.values()}) == 24


def test_a_scale_is_the_usual_one_but_for_what_a_study_changes_or_its_own(own):
    usual = read_study("methods", "smoke")
    own.write_text(OWN[: OWN.index("scales:")])
    assert read_study(str(own), "smoke").base == usual.base
    own.write_text(
        OWN[: OWN.index("scales:")] + "scales: {smoke: {seeds: 5, over: {depth: 14}}, mine: {base: {depth: 20}}}"
    )
    changed = read_study(str(own), "smoke")
    assert changed.base == {**usual.base, "depth": 14}
    assert changed.seeds == 5
    assert changed.note.endswith("Here depth 14.")
    with pytest.raises(ValueError, match="'seeds' is missing"):
        read_study(str(own), "mine")
    with pytest.raises(ValueError, match="it has no scale 'huge', but smoke, small, full, mine"):
        read_study(str(own), "huge")
    own.write_text(OWN[: OWN.index("scales:")] + "scales: {full: {over: {data: digits}}}")
    assert read_study(str(own), "full").datasets == ("digits",)  # not the usual three


def test_where_a_training_runs_changes_no_name_and_anything_else_does():
    study = read_study("methods", "smoke")
    here, there = (next(study.trainings(where)).name for where in ({"threads": 1}, {"threads": 2, "device": "cpu"}))
    assert here == there
    assert len({next(iter(read_study("methods", scale).trainings())).name for scale in SCALES}) == 3


def test_a_null_leaves_a_key_of_the_base_out(own):
    own.write_text(OWN.replace("two: {gamma: 1}", "two: {outputs: null, at: [3, 5]}"))
    assert read_study(str(own), "smoke").recipe("two", "digits").outputs is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("question", "qestion", "a study has no key 'qestion'; perhaps you meant 'question'"),
        ("seeds: 3", "seed: 3", "scale smoke has no key 'seed'; perhaps you meant 'seeds'"),
        ("seeds: 3", "seeds: 0", "seeds must be 1 or more, got 0"),
        (OWN[OWN.index("scales:") :], "scales: [1]", r"scales must hold 'key: value' pairs, got \[1\]"),
        (OWN[OWN.index("scales:") :], "scales: {smoke: 7}", "scale smoke must hold 'key: value' pairs, got 7"),
        (
            OWN[OWN.index("scales:") :],
            "scales: {smoke: {over: 5}}",
            "over of scale smoke must hold 'key: value' pairs, got 5",
        ),
        ("{gamma: 1}", "{gama: 1}", "variant two: there is no recipe key 'gama'; perhaps you meant 'gamma'"),
        ("better: two,", "better: tow,", "a claim names 'tow', no variant; perhaps you meant 'two'"),
        (
            "two:mean",
            "two:median",
            "a claim's side is VARIANT, VARIANT:final, VARIANT:mean or VARIANT:NUMBER, got two:median",
        ),
        ("variants:", "variants: [", "is not a YAML study"),
    ],
)
def test_a_study_file_that_cannot_be_says_why(own, old, new, words):
    own.write_text(OWN.replace(old, new, 1))
    with pytest.raises(ValueError, match=words):
        read_study(str(own), "smoke")


VARIANTS, CLAIMS, PUBLISHED = (
    OWN[OWN.index(f"{key}:") : OWN.index(f"{following}:")]
    for key, following in (("variants", "claims"), ("claims", "published"), ("published", "scales"))
)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("seed: 7", "cannot set seed: seeds of a scale says how many there are"),
        ("data_dir: /here", "cannot set data_dir, which changes no training: give it to auxnet study as --data-dir"),
        ("device: cuda", "cannot set device, .* --device"),
        ("threads: 2", "cannot set threads, .* --threads"),
        ("stream: never", "cannot set stream, .* --stream"),
        ("workers: 2", "cannot set workers, .* --workers"),
        ("cuda_graph: false", "cannot set cuda_graph, .* --cuda-graph"),
    ],
)
def test_what_no_recipe_of_a_study_decides_is_told_where_it_belongs(own, key, words):
    written(own, ("{gamma: 1}", f"{{{key}}}"))
    with pytest.raises(ValueError, match=f"variant two {words}"):
        read_study(str(own), "smoke")
    written(own, ("base: {", f"base: {{{key}, "))
    with pytest.raises(ValueError, match=f"base of scale smoke {words}"):
        read_study(str(own), "smoke")
    written(own, ("seeds: 3\n", f"seeds: 3\n    over: {{{key}}}\n"))
    with pytest.raises(ValueError, match=f"over of scale smoke {words}"):
        read_study(str(own), "smoke")


def test_the_data_are_a_scales_and_named_once(own):
    written(own, ("{gamma: 1}", "{data: cifar10}"))
    with pytest.raises(ValueError, match="variant two cannot set data: name it in datasets of a scale or its base"):
        read_study(str(own), "smoke")
    written(own, ("seeds: 3", "datasets: [cifar10, svhn]\n    seeds: 3"))
    with pytest.raises(ValueError, match="scale smoke has datasets, and data in its base: leave one of them out"):
        read_study(str(own), "smoke")
    written(own, ("seeds: 3", "datasets: [cifar10, svhn]\n    seeds: 3"), ("data: digits, train", "train"))
    assert read_study(str(own), "smoke").datasets == ("cifar10", "svhn")
    written(own, ("data: digits, train", "data: cifar10, train"))
    assert [training.recipe.data for training in read_study(str(own), "smoke", 1).trainings()] == ["cifar10"] * 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (VARIANTS, "variants: {}\n", "variants must hold one or more, got none"),
        (VARIANTS, "variants: null\n", "'variants' is missing in the study"),
        (VARIANTS, "variants: [a, b]\n", r"variants must hold 'key: value' pairs, got \['a', 'b'\]"),
        ("{gamma: 1}", "[[gamma, 1]]", r"variant two must hold 'key: value' pairs, got \[\['gamma', 1\]\]"),
        ("  two: {gamma: 1}\n", "  1: {}\n  '1': {gamma: 1}\n", "1 is given twice"),
        (CLAIMS, "claims: 5\n", "claims must be a list, as in .*, got 5"),
        (CLAIMS, "claims: [5]\n", "a claim must hold 'key: value' pairs, got 5"),
        ('says: "two beats one"', "says: 5", "says of a claim must be text, got 5"),
        ('says: "two beats one", ', "", "'says' is missing in a claim"),
        ("better: two, ", "", "'better' is missing in the claim 'two beats one'"),
        ("worse: one}", "worse: one, of: share}", "no share is measured: add measures: supervision"),
        ('"one:1"}', '"one:1", of: share}\nmeasures: supervision', "a claim of: share knows no mean, got two:mean"),
        (
            'better: "two:mean", worse: "one:1"}',
            "better: 0.5, worse: one, of: share}\nmeasures: supervision",
            "the better side of the claim 'the mean too' must be a variant, got 0.5",
        ),
        (
            "better: two,",
            'better: "two:",',
            "a claim's side is VARIANT, VARIANT:final, VARIANT:mean or VARIANT:NUMBER, got two:",
        ),
        (
            'better: "two:mean", worse: "one:1"}',
            "better: two, worse: 0.0, of: share}\nmeasures: supervision",
            "a share is compared with a number above 0, got 0.0",
        ),
        ("does it work?", "[1, 2]", r"question must be text, got \[1, 2\]"),
        ("does it work?", "''", "question must be text, got ''"),
        ("question: does it work?", "note: q", "'question' is missing in the study"),
        ("question:", "note: [1]\nquestion:", r"note must be text, got \[1\]"),
        ("seeds: 3", "seeds: 3\n    note: [1]", r"note must be text, got \[1\]"),
        ("error: 5.5", "error: .nan", "error in published of one must be a number in per cent, got nan"),
        ("error: 5.5", f"error: {10**400}", "error in published of one must be a number in per cent, got 1000"),
        (PUBLISHED, "published: 5\n", "published must hold 'key: value' pairs, got 5"),
        (PUBLISHED, "published: {one: 5.1}\n", "published of one must hold 'key: value' pairs, got 5.1"),
        (
            PUBLISHED,
            "published: {onne: {error: 1, source: s}}\n",
            "published names 'onne', no variant; perhaps you meant 'one'",
        ),
        (
            PUBLISHED,
            "published: {one: {error: five, source: s}}\n",
            "error in published of one must be a number in per",
        ),
        (PUBLISHED, "published: {one: {error: 5}}\n", "'source' is missing in published of one"),
        (PUBLISHED, "published: {one: {error: 5, src: s}}\n", "published of one has no key 'src'"),
        ("seeds: 3", "seeds: true", "seeds must be 1 or more, got True"),
        ("seeds: 3", "seeds: 3\n    over: 5", "over of scale smoke must hold 'key: value' pairs, got 5"),
        ("base: {", "base: 5 # {", "base of scale smoke must hold 'key: value' pairs, got 5"),
        ("data: digits,", "data: 5,", "data of scale smoke must be text, got 5"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line_before_anything_is_trained(own, tmp_path, capsys, old, new, words):
    written(own, (old, new))
    command = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("digits", "datasets must be a list, as in .*, got 'digits'"),
        ("[]", "datasets must name one or more, got none"),
        ("[digits, 5]", "each of datasets must be text, got 5"),
        ("[digits, digits]", "datasets names 'digits' twice"),  # it would count as two seeds
    ],
)
def test_datasets_are_a_list_of_names(own, given, words):
    written(own, ("data: digits, train", "train"), ("seeds: 3", f"seeds: 3\n    datasets: {given}"))
    with pytest.raises(ValueError, match=words):
        read_study(str(own), "smoke")


def test_what_is_left_empty_is_left_out(own):
    written(own, (CLAIMS, "claims:\n"), (PUBLISHED, "published:\n"), ("question:", "note:\nquestion:"))
    study = read_study(str(own), "smoke")
    assert (study.claims, study.published, study.note) == ((), {}, "")
    written(own, ("data: digits, train", "data: null, train"))
    assert read_study(str(own), "smoke").datasets == ("digits",)


def test_what_is_published_may_be_of_a_variant_that_another_scale_has(own):
    written(own, ("seeds: 3", "seeds: 3\n    variants: {two: {}}\n    claims: []"))
    assert set(read_study(str(own), "smoke").published) == {"one"}
    written(own, ("  one: {error", "  three: {error"), ("scales:\n", "scales:\n  big: {variants: {three: {}}}\n"))
    assert set(read_study(str(own), "smoke").published) == {"three"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("better: two,", 'better: "two:99",', "the claim 'two beats one' names two:99, but two has 2 outputs"),
        ("better: two,", 'better: "two:0",', "names two:0, but two has 2 outputs"),
        ("worse: one}", 'worse: "one:2"}', "names one:2, but one has 1 output"),
        ("{gamma: 1}", "{depth: 21}", "variant two: depth must be 6n . 2"),
        ("{gamma: 1}", "{optimizer: SDG}", "variant two: torch.optim has no optimizer 'SDG'; perhaps you meant 'SGD'"),
    ],
)
def test_what_a_net_cannot_have_is_said_before_the_first_training(own, tmp_path, capsys, old, new, words):
    written(own, (old, new))
    assert main(["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "outputs"),
    [
        ({}, 3),
        ({"outputs": 2}, 2),
        ({"depth": 14, "at": (3, 5, 9)}, 4),
        ({"depth": 14, "placement": "blocks"}, 6),
        ({"depth": 14, "placement": "stages"}, 3),
        ({"depth": 14, "outputs": 5, "alone": 2}, 1),
    ],
)
def test_the_outputs_of_a_recipe_are_those_of_its_net(fields, outputs):
    recipe = Recipe(**fields)
    net = build.net_of(recipe, load_data(recipe))
    assert len(build.depths_of(recipe)) == net.outputs == outputs


def test_the_outputs_of_a_backbone_are_known_before_it_is_built():
    named = {"backbone": "nowhere.at:all"}
    assert [len(build.depths_of(Recipe(**named, cuts=cuts))) for cuts in (None, 4, ("a",))] == [3, 5, 2]
    assert len(build.depths_of(Recipe(**named, cuts=4, alone=2))) == 1


def test_means_over_different_outputs_are_not_compared(own, tmp_path, capsys):
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--device", "cpu"]
    deeper = ("{gamma: 1}", "{gamma: 1}\n  three: {outputs: 3}")
    written(own, deeper, ('"one:1"', '"three:mean"'))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "the claim 'the mean too' compares means over different outputs: two:mean is over layers 5, 8 and " in said
    assert "three:mean is over layers 3, 5, 8; give both the same outputs, or name one of them" in said
    assert not (tmp_path / "out").exists()
    written(own, deeper, ('"one:1"', '"three:3"'))
    check_claims(read_study(str(own), "smoke"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", names())
@pytest.mark.enough(4)
def test_every_claim_of_every_study_compares_like_with_like(name, scale):
    check_claims(read_study(name, scale))


def test_a_scale_may_have_any_name_on_the_command_line(own, tmp_path, capsys):
    written(own, ("  smoke:", "  mine:"))
    words = ["study", str(own), "--out", str(tmp_path / "out"), "--show", "--scale"]
    assert main([*words, "mine"]) == 0
    assert (tmp_path / "out" / "own-mine" / "study.md").is_file()
    capsys.readouterr()
    assert main([*words, "huge"]) == 2
    assert "it has no scale 'huge', but smoke, small, full, mine" in capsys.readouterr().err


def test_unknown_studies_and_scales_are_one_line(own, capsys):
    assert main(["study", "methds"]) == 2
    assert "there is no study 'methds'; perhaps you meant 'methods'" in capsys.readouterr().err
    assert main(["study", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "auxnet: there is no study file nowhere.yaml\n"
    (own.parent / "folder.yaml").mkdir()
    assert main(["study", str(own.parent / "folder.yaml")]) == 2
    assert "folder.yaml is a folder: name a study file" in capsys.readouterr().err
    assert main(["study", "methods", "--processes", "0"]) == 2
    assert "processes must be 1 or more" in capsys.readouterr().err
    assert main(["study"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names()


# ---- what is claimed -------------------------------------------------------------------------------------------


def test_an_interval_is_students():
    values = [1.0, 2.0, 4.0]
    mean, low, high = interval(values)
    half = 4.302652729911275 * statistics.stdev(values) / math.sqrt(3)  # the table's t for two degrees of freedom
    assert (mean, low, high) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half))
    assert interval([2.0]) == (2.0, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("better", "worse", "word"),
    [
        ([0.10, 0.11, 0.12], [0.20, 0.213, 0.22], "holds"),
        ([0.20, 0.213, 0.22], [0.10, 0.11, 0.12], "does not hold"),
        ([0.10, 0.20, 0.30], [0.11, 0.19, 0.31], "cannot be told"),
        ([0.10, 0.11], [0.20, 0.21], "cannot be told"),  # two seeds
    ],
)
def test_a_verdict_follows_the_interval_of_the_paired_differences(better, worse, word):
    rows = [row("a", seed, 0.9, e) for seed, e in enumerate(better)] + [row("b", s, e) for s, e in enumerate(worse)]
    verdict = judge(Claim("a beats b", Side("a"), Side("b")), "digits", rows)
    assert verdict.word == word
    assert verdict.differences == pytest.approx([b - a for a, b in zip(better, worse, strict=True)])


def test_seeds_are_paired_by_their_number_and_those_of_one_side_alone_wait():
    rows = [row("a", 2, 0.3), row("a", 0, 0.1), row("a", 1, 0.2), row("b", 1, 0.7), row("b", 0, 0.5)]
    verdict = judge(Claim("", Side("a"), Side("b")), "digits", rows)
    assert verdict.differences == pytest.approx([0.4, 0.5])


def test_a_failed_training_keeps_a_claim_from_being_told():
    rows = [row("a", s, 0.1 + s / 100) for s in range(4)] + [row("b", s, 0.5 + s / 50) for s in range(3)]
    claim = Claim("", Side("a"), Side("b"))
    assert judge(claim, "digits", rows).word == "holds"
    verdict = judge(claim, "digits", [*rows, row("b", 3, failed="the loss became inf")])
    assert verdict.word == "cannot be told"
    assert "1 of the trainings failed" in in_words(verdict)


@pytest.mark.parametrize(
    ("images", "word", "why"),
    [
        ((3, 3, 3), "cannot be told", "the interval comes within one test image, 0.28 points, of 0"),
        ((20, 20, 21), "holds", ""),
        ((-20, -20, -20), "does not hold", ""),
        ((2, 4, 4), "cannot be told", "the interval comes within one test image, 0.28 points, of 0"),
        ((-2, -4, -4), "cannot be told", "the interval comes within one test image, 0.28 points, of 0"),
        ((20, 23, 26), "holds", ""),
        ((-20, -23, -26), "does not hold", ""),
    ],
)
def test_what_one_test_image_makes_tells_nothing(images, word, why):
    rows = [row("a", seed, 100 / 360) for seed in range(3)]
    rows += [row("b", seed, (100 + more) / 360) for seed, more in enumerate(images)]
    verdict = judge(
        Claim("", Side("a"), Side("b")), "digits", [{**each, "images": {"train": 100, "test": 360}} for each in rows]
    )
    assert (verdict.word, verdict.low > 0 or verdict.high < 0) == (word, True)
    assert why in in_words(verdict)


def test_seeds_that_agree_to_less_than_one_test_image_are_judged_as_if_they_spread_by_one():
    from scipy.stats import ttest_1samp

    def of(*images):
        rows = [row("a", seed, 0.1) for seed in range(3)]
        rows += [row("b", seed, 0.1 + more / 100) for seed, more in enumerate(images)]
        return judge(
            Claim("", Side("a"), Side("b")),
            "digits",
            [{**each, "images": {"train": 100, "test": 100}} for each in rows],
        )

    verdict, by_hand = of(30, 30, 30), [0.29, 0.30, 0.31]  # these spread by one image
    assert (verdict.low, verdict.high) == pytest.approx(interval(by_hand)[1:])
    assert verdict.p == pytest.approx(ttest_1samp(by_hand, 0).pvalue)
    assert (verdict.word, of(1, 1, 1).word) == ("holds", "cannot be told")


def test_what_was_tested_on_different_images_is_not_judged(own):
    def found(*images):
        errors = {"one": [0.5, 0.51, 0.52], "two": [0.3, 0.31, 0.33]}
        rows = [
            {**whole_row(v, "digits", 100, 10), **row(v, seed, error), "data": "digits", "images": {**sizes, **each}}
            for (v, of_seeds), each in zip(errors.items(), images, strict=True)
            for seed, error in enumerate(of_seeds)
        ]
        return found_in(study, rows)

    study, sizes = read_study(str(own), "smoke"), {"train": 100, "val": 10, "test": 1000}
    old, new = ({"test_sha256": name, "resize": [8, 8]} for name in ("old", "new"))
    for images in ((old, old), ({}, new), (old, {**new, "resize": [9, 9]})):  # alike, or not known to differ
        assert found(*images).verdicts[0].word == "holds"
        assert "Warning" not in " ".join(warnings_of(found(*images)))
    verdict = found(old, new).verdicts[0]
    assert verdict.word == "cannot be told"
    assert "two and one were tested on different images" in in_words(verdict)
    assert "Warning: not all trainings were tested on the same images of digits" in " ".join(
        warnings_of(found(old, new))
    )


def test_trainings_that_began_with_weights_replaced_between_them_are_not_judged(own):
    def found(weights, names=("base", "base")):
        errors, begun = {"one": [0.5, 0.51, 0.52], "two": [0.3, 0.31, 0.33]}, iter(weights)
        rows = [
            {
                **whole_row(v, "digits", 100, 10),
                **row(v, seed, error),
                "data": "digits",
                "images": {"train": 100, "val": 10, "test": 1000},
                "recipe": {"pretrained": name},
                "pretrained_sha256": next(begun),
            }
            for (v, of_seeds), name in zip(errors.items(), names, strict=True)
            for seed, error in enumerate(of_seeds)
        ]
        return found_in(read_study(str(own), "smoke"), rows)

    for alike in (found("aaaaaa"), found([None, *"aaaaa"]), found("aaabbb", ("base", "other"))):  # or not known
        assert alike.verdicts[0].word == "holds"
        assert "Warning" not in " ".join(warnings_of(alike))
    for weights in ("aababa", "aaabbb"):  # between seeds, and between variants
        other = found(weights)
        assert other.verdicts[0].word == "cannot be told"
        assert "base was replaced between the trainings: train what is older" in in_words(other.verdicts[0])
        assert "Warning: base was replaced between the trainings that began with it" in " ".join(warnings_of(other))


@pytest.mark.long
def test_a_study_tells_of_weights_that_were_trained_anew_between_its_trainings(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu")
    base = "{data: digits, depth: 8, outputs: 2, epochs: 1, train_images: 96, pretrained: base}"
    Path("own.yaml").write_text(f"question: q\nvariants: {{a: {{}}}}\nscales: {{mine: {{seeds: 2, base: {base}}}}}\n")
    words = ["study", "own.yaml", "--out", "out", "--threads", "1", "--device", "cpu", "--seeds"]
    for lr, told in ((0.1, False), (0.2, True)):
        train_module.fit(replace(recipe, lr=lr), "base", overwrite=True)
        assert main([*words, "2" if told else "1"]) == 0
        assert ("base was replaced between the trainings" in " ".join(capsys.readouterr().out.split())) == told


@pytest.mark.parametrize(
    ("of_one", "of_two", "alike"),
    [
        ({}, {}, False),
        ({"gamma": 1}, {"val_fraction": 0.2}, True),
        ({"train_images": 100}, {"train_images": 120}, True),
        ({"train_images": 100, "gamma": 1}, {"train_images": 100}, False),
    ],
)
def test_what_was_trained_on_more_images_than_recipes_say_is_not_judged(of_one, of_two, alike, own):
    errors = {"one": ([0.5, 0.51, 0.52], 100, of_one), "two": ([0.3, 0.31, 0.33], 120, of_two)}
    rows = [
        {**whole_row(v, "digits", count, 10), "recipe": recipe, "seed": seed, "last": row(v, seed, error)["last"]}
        for v, (of_seeds, count, recipe) in errors.items()
        for seed, error in enumerate(of_seeds)
    ]
    found = found_in(read_study(str(own), "smoke"), rows)
    assert found.verdicts[0].word == ("holds" if alike else "cannot be told")
    assert ("two and one were trained on different numbers of images" in in_words(found.verdicts[0])) == (not alike)
    warned = "Warning: the training images of digits were more or fewer in some trainings than in others"
    assert (warned in " ".join(warnings_of(found))) == (not alike)


def test_variants_whose_weights_may_have_seen_the_images_that_judge_them_are_named(own):
    one, two, again = (whole_row(v, "digits", 100, 10) for v in ("one", "two", "two"))
    two["images"]["may_be_seen_by"], again["images"]["may_be_seen_by"] = {"val": ["a"]}, {"val": ["a"], "test": ["b"]}
    told = list(warnings_of(found_in(read_study(str(own), "smoke"), [one, two, again])))
    assert told == [
        "Warning: two, digits: its validation and test images may be among those that its weights were trained on "
        "before, in a and b, and errors on them may come out too low."
    ]


def test_a_claim_stands_only_among_all_the_claims_of_its_study():
    from scipy.stats import ttest_rel

    a, b, c = [0.10, 0.11, 0.12], [0.126, 0.15, 0.174], [0.3, 0.31, 0.33]
    rows = [
        row(name, seed, error)
        for name, errors in zip("abc", (a, b, c), strict=True)
        for seed, error in enumerate(errors)
    ]
    weak, strong, idle = (Claim(f"{x} < {y}", Side(x), Side(y)) for x, y in ("ab", "ac", "aa"))
    assert judge(weak, "digits", rows).word == judge_all([weak], ["digits"], rows)[0].word == "holds"
    p_weak, p_strong = (ttest_rel(a, each).pvalue for each in (b, c))
    assert judge(weak, "digits", rows).p == pytest.approx(p_weak)
    found = judge_all([weak, idle, strong], ["digits"], rows)
    assert [verdict.word for verdict in found] == ["cannot be told", "cannot be told", "holds"]
    assert [verdict.adjusted for verdict in found] == pytest.approx([2 * p_weak, 1.0, 3 * p_strong])
    assert "cannot be told at this scale: +4.00 points (+0.52 .. +7.48, 3 seeds); alone it holds, but" in in_words(
        found[0]
    )
    assert f"among 3 claims p = {2 * p_weak:.2g} (Holm)" in in_words(found[0])
    assert f"3 seeds, p = {3 * p_strong:.2g} by Holm)" in in_words(found[2])


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([row("a", 0), row("b", 0)], "nothing is trained yet"),
        ([row("a", 0), row("b", 0, failed="inf"), row("b", 1, failed="inf")], "every training of b failed"),
        ([row("a", 0, 0.5), row("b", 0), row("b", 1, failed="inf")], "no seed is trained on both sides, 1 of the"),
        ([row("a", 0, 0.5), row("b", 0)], "no seed is trained on both sides yet"),
    ],
)
def test_a_claim_without_a_pair_says_why(rows, why):
    assert why in in_words(judge(Claim("", Side("a"), Side("b")), "digits", rows))
    assert why in in_words(judge(Claim("", Side("a"), Side("b"), "share"), "digits", rows))


def test_a_share_that_is_not_measured_is_not_called_untrained():
    verdict = judge(Claim("", Side("a"), Side("b"), "share"), "digits", [row("a", 0, 0.5), row("b", 0, 0.5)])
    assert in_words(verdict) == "cannot be told: the supervision is not measured yet"


def by_name(figures):
    return {figure.name: figure for figure in figures}


def test_images_are_counted_for_each_data_set_and_apart_where_variants_differ(own):
    study = replace(read_study(str(own), "smoke"), datasets=("cifar10", "svhn"))
    rows = [
        whole_row(v, *data) for data in (("cifar10", 45_000, 5_000), ("svhn", 65_931, 7_326)) for v in ("one", "two")
    ]
    told = list(sources_of(Findings(study, tuple(rows), ())))
    assert "cifar10: 45,000 training, 5,000 validation and 10,000 test images." in told
    assert "svhn: 65,931 training, 7,326 validation and 10,000 test images." in told
    html = page(Findings(study, tuple(rows), ()))
    drawn = by_name(figures(Findings(study, tuple(rows), ())))
    assert {name: figure.title for name, figure in drawn.items() if "macs" in name} == {
        "macs": "Error against multiply-adds, cifar10",
        "macs-2": "Error against multiply-adds, svhn",
    }
    assert [trace["name"] for trace in drawn["depth-2"].drawing["data"]] == ["one", "two"]
    assert html.count('class="note"') == 1  # for those without JavaScript: what is no warning looks like none
    assert '<p class="under">4 trainings, 4:00 min in all, on cpu, 1 thread; torch 2' in html
    told = list(sources_of(Findings(study, (rows[0], whole_row("two", "cifar10", 800, 5_000)), ())))
    assert told[-1].startswith("cifar10: 45,000 training, 5,000 validation and 10,000 test images (one); 800 training")


def test_a_claim_that_was_added_later_is_told_with_its_verdict(own):
    written(own, ("worse: one}", "worse: one, added: after a look}"))
    found = found_in(read_study(str(own), "smoke"), [whole_row(v, "digits", 10, 10) for v in ("one", "two")])
    for text in (markdown(found), page(found), in_words(found.verdicts[0])):
        assert text.count("; a claim added after a look") == 1
    assert "added" not in in_words(found.verdicts[1])


def test_what_is_published_of_resnets_stands_beside_their_form_and_the_headline_is_trained_first():
    study = read_study("compact", "full")
    assert [*study.variants][:5] == ["resnet-20", "resnet-56", "resnet-110", "auxnet-44", "auxnet-56"]
    assert {study.recipe(variant, "cifar10").block for variant in study.published} == {"original"}


def test_a_bar_in_a_name_ends_no_cell_of_the_table(own):
    own.write_text(
        OWN.replace("two: {gamma", '"a|b": {gamma').replace("better: two,", 'better: "a|b",').replace('"two:', '"a|b:')
    )
    found = found_in(
        read_study(str(own), "smoke"), [whole_row("a|b", "digits", 10, 10), whole_row("one", "digits", 10, 10)]
    )
    lines = [line for line in markdown(found).splitlines() if "a\\|b" in line]
    assert len(lines) == 3  # two claims, one output
    for line in lines:
        cells = re.split(r"(?<!\\)\|", line)
        assert len(cells) - 2 == (2 if "told" in line else 9)


def test_a_trainings_summary_that_lacks_something_is_told_by_its_folder(own, tmp_path, capsys):
    [training, *_] = read_study(str(own), "smoke", 1).trainings(HERE)
    folder = running.training_folder(tmp_path / "out", training)
    folder.mkdir(parents=True)
    summary = {"last": [], "best": [], "epochs": {}, "data": {}, "wall_seconds": 1.0, "versions": {}, "device": {}}
    said = f"auxnet: {folder}/summary.json is damaged: remove {folder} to train it again"
    threads = {"commit": "abc", "versions": {"torch": "2"}, "device": {"name": "cpu", "threads": {}}}
    for changes, why in (({}, "('commit')"), (threads, "('<=' not supported between instances of 'int' and 'dict')")):
        (folder / "summary.json").write_text(json.dumps(summary | changes))
        assert main(["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--show"]) == 1
        assert capsys.readouterr().err == f"{said} {why}\n"


def test_a_line_of_the_table_is_told_by_its_average_alone_and_what_is_published_stands_at_the_final_output(own):
    found = Findings(read_study(str(own), "smoke"), (row("one", 0, 0.5, 0.4), row("two", 0, 0.3, 0.2)), ())
    lines = [cells_of(replace(found, rows=()), average) for average in averages(found.rows)]  # not averaged once more
    assert [(line[0], line[1], line[-1]) for line in lines] == [
        ("one", "1", ""),
        ("one", "2", "5.5 (somebody)"),
        ("two", "1", ""),
        ("two", "2", ""),
    ]
    assert table_cells(found)[0][-1] == "published, %"
    alone = replace(found, rows=found.rows[1:])
    assert table_cells(alone)[0][-1] == "n"  # nothing is published of it


def test_the_mean_of_outputs_and_single_outputs_are_sides_too():
    rows = [row("a", s, 0.2, 0.4) for s in range(3)] + [row("b", s, 0.6, 0.3) for s in range(3)]
    assert judge(Claim("", Side("a", "mean"), Side("b", "1")), "digits", rows).mean == pytest.approx(0.3)


def test_a_claim_of_share_compares_the_supervision_in_the_shallowest_layer():
    shares = {"a": [0.5, 0.6, 0.55], "b": [0.1, 0.2, 0.15]}
    rows = [{**row(v, seed, 0.5), "share": share} for v, each in shares.items() for seed, share in enumerate(each)]
    verdict = judge(Claim("", Side("a"), Side("b"), "share"), "digits", rows)
    assert verdict.differences == pytest.approx([0.4, 0.4, 0.4])
    assert verdict.word == "holds"


def test_a_share_is_of_the_output_that_is_named_and_of_no_other():
    of_a, of_b = {"1": 0.5, "2": 0.1, "3": 0.2}, {"all": 0.3}
    old = [{**row(v, seed, 0.7, 0.6, 0.5), "share": s} for v, s in (("a", 0.5), ("b", 0.3)) for seed in range(3)]
    rows = [{**each, "shares": of_a if each["variant"] == "a" else of_b} for each in old]
    for output, worse, difference in (("", Side("b"), 0.2), ("final", Side("b"), -0.1), ("2", 0.8, -0.7)):
        claim = Claim("", Side("a", output), worse, "share")
        verdict = judge(claim, "digits", rows)
        assert verdict.differences == pytest.approx([difference] * 3)
        assert verdict.word == ("holds" if difference > 0 else "does not hold")
        told = in_words(judge(claim, "digits", old))
        assert told == (in_words(verdict) if not output else "cannot be told: the supervision is not measured yet")
    assert claim.sides == "share: a:2 > 0.8"
    assert read_study("vanishing").claims[5].worse == LEVEL


@pytest.mark.long
def test_the_largest_share_of_five_outputs_is_larger_in_a_net_that_is_not_trained_too():
    """The figures that the note of vanishing quotes: of the small scale's nets, on 64 digits, seeds 0 to 2."""
    largest = {}
    for seed in range(3):
        for outputs in (1, 5):
            recipe = Recipe(data="digits", depth=32, outputs=outputs, batch_size=64, seed=seed, threads=1, device="cpu")
            dataset = load_data(recipe)
            torch.manual_seed(seed)
            net = build.net_of(recipe, dataset)
            [(images, labels)] = build.first_batches(recipe, dataset, torch.device("cpu"), 1, 64)
            shares = [s.share for s in supervision(net, images, labels, "multiway") if s.layer == 1]
            largest.setdefault(outputs, []).append(max(shares))
    assert [f"{min(each):.2f} .. {max(each):.2f}" for each in largest.values()] == ["0.02 .. 0.02", "0.08 .. 0.11"]
    assert "0.08 .. 0.11, that of an untrained ResNet-32 0.02" in read_study("vanishing").note


@pytest.mark.parametrize("output", ["1", "final"])
def test_joint_training_has_one_share_of_all_outputs(own, output):
    share = ("worse: one}", f'worse: "two:{output}", of: share}}')
    written(own, share, ("{gamma: 1}", "{method: joint}"), ("question:", "measures: supervision\nquestion:"))
    with pytest.raises(ValueError, match=f"names two:{output}, but joint training has one share: name two"):
        check_claims(read_study(str(own), "smoke"))


@pytest.mark.parametrize(("deepest", "tick"), [(10, 1), (11, None)])
def test_no_tick_stands_between_two_layers(own, deepest, tick):
    row = whole_row("one", "digits", 300, 10)
    row["last"] = [{**row["last"][-1], "depth": depth} for depth in (3, deepest)]
    drawn = by_name(figures(found_in(read_study(str(own), "smoke"), [row])))
    assert drawn["depth"].drawing["layout"]["xaxis"].get("dtick") == tick


def test_a_claim_of_share_is_told_as_one(own):
    study = read_study("vanishing", "smoke", 3)
    rows = tuple(
        {**whole_row(v, "digits", 300, 10), "seed": seed, "share": share + seed / 100, "shares": {"1": share}}
        for v, share in (("resnet", 0.1), ("joint", 0.1), ("pairwise", 0.2), ("multiway", 0.4))
        for seed in range(3)
    )
    found = found_in(study, rows)
    text, drawn = markdown(found), by_name(figures(found))
    assert "in the output where it is largest (share: multiway > resnet) |" in text
    assert "(multiway < joint) |" in text
    assert "share: multiway &gt; resnet" in page(found)
    assert f"by Holm's method among all {len(found.verdicts)} claims here: in one of twenty studies even one" in text
    assert "stands at 5 %: in one of twenty studies it is told" in markdown(replace(found, verdicts=found.verdicts[:1]))
    assert drawn["shares"].caption.startswith("Mean difference of shares of supervision")
    assert set(drawn["shares"].drawing["data"][1]["y"]) == {
        f"share: {m}"
        for better in ("multiway", "multiway:final")
        for m in (f"{better} > resnet", f"{better} > joint", "joint > resnet", "multiway:final > 0.8")
    }
    assert drawn["differences"].caption.startswith("Mean difference of test errors")
    of_errors = {"multiway < joint", "pairwise < joint", "pairwise < multiway"}
    assert set(drawn["differences"].drawing["data"][1]["y"]) == of_errors


# ---- what is trained -------------------------------------------------------------------------------------------


def test_a_study_from_its_file_to_its_verdicts(own, tmp_path, capsys, monkeypatch):
    fitted, honest = [], train_module.fit

    def fit(recipe, folder, **options):
        fitted.append((recipe.seed, recipe.gamma))
        return honest(recipe, folder, **options)

    monkeypatch.setattr(train_module, "fit", fit)
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main([*words, "--seeds", "2"]) == 0
    assert fitted == [(0, 2.0), (0, 1.0), (1, 2.0), (1, 1.0)]  # a seed of all variants before the next
    assert main(words) == 0
    assert len(fitted) == 6  # the third seed alone
    said = capsys.readouterr().out
    assert "two beats one" in said
    folder = tmp_path / "out" / "own-smoke"
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [(r["variant"], r["seed"]) for r in rows] == [(v, s) for s in range(3) for v in ("one", "two")]
    for r in rows:
        summary = json.loads((tmp_path / "out" / "trials" / r["training"] / "summary.json").read_text())
        assert [line["test_error"] for line in r["last"]] == [line["test_error"] for line in summary["last"]]
        assert r["commit"] == summary["commit"]
        assert Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in r["recipe"].items()}).seed == r["seed"]
    with (folder / "outputs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9
    text = (folder / "study.md").read_text()
    finals = [r["last"][-1]["test_error"] for r in rows if r["variant"] == "two"]
    assert f"{100 * statistics.mean(finals):.2f} ± {100 * statistics.stdev(finals):.2f}" in text
    assert "5.5 (somebody)" in text
    assert "| does it work?" not in text
    assert (folder / "study.html").read_text().count("<tr") == 2 + 2 + 3


@pytest.mark.long
def test_the_page_draws_every_figure_in_either_theme(own, tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    own.write_text(OWN.replace("does it work?", evil).replace("two beats one", evil))
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main([*words, "--seeds", "2"]) == 0
    with chromium() as browser, opened(browser, tmp_path / "out" / "own-smoke" / "study.html", width=390) as page:
        for name in ("differences", "macs", "params", "depth"):
            assert page.locator(f"#{name}-plot .main-svg").count() > 0, name
        assert page.locator("h1").inner_text() == evil
        assert evil in page.locator("#claims").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        check_themes(page, "#macs-plot")
        ticks = ticks_between(page, "macs-plot", 0.03, 0.04)
        assert len({*ticks}) == len(ticks) > 2


def test_a_training_that_fails_is_told_and_the_others_go_on(own, tmp_path, capsys):
    own.write_text(OWN.replace("two: {gamma: 1}", "two: {lr: 1.0e+30}"))
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--threads", "1", "--seeds", "1"]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "Failed: two, digits, seed 0: the loss of output" in said
    study = read_study(str(own), "smoke", 1)
    found = findings_of(study, tmp_path / "out")
    assert [(r["variant"], bool(r["last"])) for r in found.rows] == [("one", True), ("two", False)]
    assert [average.variant for average in averages(found.rows)] == ["one"]
    assert "cannot be told" in headline(found)
    began = time.monotonic()
    assert main(words) == 1  # nothing is tried again
    assert time.monotonic() - began < 20
    assert "1 failed" in markdown(findings_of(study, tmp_path / "out"))


@pytest.mark.long
def test_every_small_choice_of_the_method_trains(tmp_path, capsys):
    words = ["study", "settings", "--scale", "smoke", "--seeds", "1", "--out", str(tmp_path), "--threads", "1"]
    assert main(words) == 0
    assert "cannot be told" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "settings-smoke" / "ledger.jsonl").read_text().splitlines()]
    weights = {tuple(output["val_error"] for output in row["last"]) for row in rows}
    assert len(rows) == 7
    assert len(weights) > 3  # they are not all the same training


@pytest.mark.long
def test_the_vanishing_study_measures_what_auxnet_diagnose_measures(tmp_path, capsys):
    words = ["study", "vanishing", "--scale", "smoke", "--seeds", "1", "--out", str(tmp_path), "--threads", "1"]
    assert main([*words, "--device", "cpu"]) == 0
    folder = tmp_path / "vanishing-smoke"
    drawn = json.loads((folder / "diagnosis.json").read_text())["runs"]
    assert [run["name"] for run in drawn] == ["resnet", "joint", "pairwise", "multiway"]
    rows = {r["variant"]: r for r in map(json.loads, (folder / "ledger.jsonl").read_text().splitlines())}
    for run in drawn:
        first = [share for share in run["shares"] if share["layer"] == 1]
        shares = rows[run["name"]]["shares"]
        assert list(shares.values()) == [share["share"] for share in first]
        assert rows[run["name"]]["share"] == max(shares.values())
    assert [list(rows[name]["shares"]) for name in ("resnet", "joint", "multiway")] == [["1"], ["all"], ["1", "2", "3"]]
    training = tmp_path / "trials" / rows["joint"]["training"]
    capsys.readouterr()
    assert main(["diagnose", str(training), "--images", "512", "--no-probes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["shares"] == drawn[1]["shares"]


@pytest.mark.long
def test_what_a_user_diagnoses_changes_no_studys_share(tmp_path):
    [training] = [t for t in read_study("vanishing", "smoke", 1).trainings(HERE) if t.variant == "joint"]
    running.train(tmp_path, [training], 1, HERE, lambda left: None)
    folder = running.training_folder(tmp_path, training)
    words = ["diagnose", str(folder), "--no-probes", "--images"]
    assert main([*words, "64"]) == 0
    assert supervising.shares_of(tmp_path, training) is None
    supervising.diagnose(tmp_path, [training])
    measured = supervising.shares_of(tmp_path, training)
    kept = (folder / "diagnosis.json").read_bytes()
    assert read_json(folder / "diagnosis.json")["runs"][0]["images"] == 64  # the user's own is left alone
    assert main([*words, "128"]) == 0
    assert (folder / "diagnosis.json").read_bytes() != kept
    assert supervising.shares_of(tmp_path, training) == measured
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"other weights")
    assert supervising.shares_of(tmp_path, training) is None
    (folder / "model.safetensors").unlink()
    assert supervising.shares_of(tmp_path, training) == measured


@pytest.mark.parametrize(("data", "data_dir"), [("cifar10", "."), ("data/pics", None)])
def test_the_supervision_is_measured_in_a_project_that_moved_with_its_data(data, data_dir, tmp_path, monkeypatch):
    if data == "cifar10":
        for split in ("train", "test"):
            write_parquet(tmp_path / "here" / data / f"{split}-0.parquet", *tiny(40, 10), CIFAR10)
    else:
        write_folders(tmp_path / "here" / data, *tiny(24, 2, size=8), ["cat", "dog"])
    monkeypatch.chdir(tmp_path / "here")
    recipe = Recipe(data=data, data_dir=data_dir, depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    out, training = Path("out"), Training("a", 0, recipe)
    train_module.fit(recipe, running.training_folder(out, training))
    (tmp_path / "here").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    monkeypatch.setattr(supervising.diagnosing, "diagnosis_of_run", lambda *_: {"measured": True})
    supervising.diagnose(out, [training])
    assert [read_json(path) for path in out.glob("trials/*.supervision.json")] == [{"measured": True}]


def test_a_file_of_the_users_is_never_replaced_and_nothing_is_trained_before_that_is_known(own, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.md").write_text("my notes")
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out")]
    assert main([*words, "--report", str(tmp_path / "mine")]) == 2
    assert "study.md is not a study's, and is left alone: give another --report" in capsys.readouterr().err
    assert (tmp_path / "mine" / "study.md").read_text() == "my notes"
    assert not (tmp_path / "out").exists()


def test_the_tables_of_another_study_are_never_replaced_and_those_of_the_same_go_on(own, tmp_path, capsys):
    words = ["--scale", "smoke", "--out", str(tmp_path / "out"), "--show"]
    folder = tmp_path / "out" / "own-smoke"
    assert main(["study", str(own), *words]) == 0
    before = (folder / "study.md").read_text()
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "own.yaml"
    for changes, what in (
        ([("does it work?", "does this?")], "it is 'own, smoke: does it work?'"),
        ([("{gamma: 1}", "{gamma: 3}")], "its variant two is not this one's"),
        ([("lr: 0.05", "lr: 0.1")], "its variant one is not this one's"),
        ([(VARIANTS, "variants: {two: {}}\n"), (CLAIMS, ""), (PUBLISHED, "")], "its variant one on digits is not"),
    ):
        written(other, *changes)
        capsys.readouterr()
        assert main(["study", str(other), *words[:-1]]) == 2
        said = capsys.readouterr().err
        assert f"{folder} holds another study: {what}" in said
        assert said.endswith("; give another --report, or remove it\n")
        assert (folder / "study.md").read_text() == before
        assert not (tmp_path / "out" / "trials").exists()  # nothing is trained
        assert main(["study", str(other), *words, "--report", str(tmp_path / what)]) == 0
    ledger = folder / "ledger.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole.replace('"variant": "two"', '"variant": "t\\nwo"'))
    with pytest.raises(FileExistsError, match="holds another study: its variant t wo on digits is not"):
        check_folder(folder, read_study(str(own), "smoke"), [])
    ledger.write_text(whole)
    more = ("  two: {gamma: 1}", "  two: {gamma: 1}\n  three: {gamma: 3}")
    written(other, more, ("two beats one", "two is better than one"), ("seeds: 3", "seeds: 4"))
    assert main(["study", str(other), *words]) == 0
    assert "two is better than one" in (folder / "study.md").read_text()
    written(other, more)
    assert main(["study", str(other), *words, "--seeds", "1"]) == 0
    (folder / "ledger.jsonl").write_text('{"variant": 1}\n')
    assert main(["study", str(other), *words]) == 2
    assert "its ledger.jsonl cannot be read" in capsys.readouterr().err


def test_a_ledger_is_never_replaced_by_one_that_lacks_trainings_of_it(own, tmp_path, capsys, monkeypatch):
    study, report = read_study(str(own), "smoke"), tmp_path / "report"
    rows = [
        {**whole_row(t.variant, "digits", 9, 9), "study": "own", "scale": "smoke", "training": t.name, "seed": t.seed}
        for t in study.trainings()
    ]
    write_findings(found_in(study, rows), report)
    before = {path: path.read_bytes() for path in report.iterdir()}
    monkeypatch.setattr(running, "fit_on", lambda *_: pytest.fail("it was trained"))
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--report", str(report)]
    mend = "the --out that holds the runs, or another --report\n"
    for more, said in (
        (["--show"], f"holds 6 trainings that would be lost, of seeds 0, 1, 2: give {mend}"),
        (["--seeds", "2"], f"holds 2 trainings that would be lost, of seed 2: give --seeds 3, {mend}"),
        (["--seeds", "1", "--show"], f"holds 6 trainings that would be lost, of seeds 0, 1, 2: give --seeds 3, {mend}"),
    ):
        assert main([*words, *more]) == 2
        assert capsys.readouterr().err == f"auxnet: {report} {said}"
    with pytest.raises(FileExistsError, match="holds 1 training that would be lost, of seed 1: give the --out"):
        write_findings(
            found_in(study, [{**each, "last": each["last"] if each is not rows[2] else []} for each in rows]), report
        )
    assert before == {path: path.read_bytes() for path in report.iterdir()}
    write_findings(found_in(study, rows), report)  # the same, or more


def test_a_file_with_the_name_of_a_study_does_not_take_its_place(own, tmp_path, capsys):
    words = ["--scale", "smoke", "--out", str(tmp_path / "out"), "--show"]
    own.rename(tmp_path / "methods.yaml")
    assert main(["study", "methods", *words]) == 0
    assert main(["study", str(tmp_path / "methods.yaml"), *words]) == 2
    assert "methods-smoke holds another study: it is 'methods, smoke: which of" in capsys.readouterr().err


def test_how_trainings_are_run_is_the_commands_to_say(own, tmp_path, monkeypatch):
    seen = []

    def fit_on(recipe, folder, follow):
        seen.append({name: getattr(recipe, name) for name in WHERE})
        raise DivergedError("seen")

    monkeypatch.setattr(running, "fit_on", fit_on)
    here = str(tmp_path)
    words = [
        "--stream",
        "never",
        "--workers",
        "1",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--data-dir",
        here,
        "--no-cuda-graph",
    ]
    assert main(["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--seeds", "1", *words]) == 1
    asked = {"stream": "never", "workers": 1, "threads": 1, "device": "cpu", "data_dir": here, "cuda_graph": False} | {
        "compile": False
    }
    assert seen == [asked, asked]
    words = ["--scale", "smoke", "--out", str(tmp_path / "other"), "--device", "cuda:7"]
    assert main(["study", str(own), *words]) == 2
    assert len(seen) == 2


def test_nothing_is_trained_to_show_a_study(own, tmp_path, capsys):
    assert main(["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--show"]) == 0
    assert "0 of 6 trainings done" in capsys.readouterr().out
    assert not (tmp_path / "out" / "trials").exists()


def test_a_study_within_its_own_data_is_refused_before_anything_is_made(tmp_path, capsys):
    photos, study = tmp_path / "photos", tmp_path / "own.yaml"
    write_folders(photos, *tiny(24, 2, size=8), ["cat", "dog"])
    study.write_text(f"question: q\nvariants: {{a: {{}}}}\nscales: {{mine: {{base: {{data: {photos}, depth: 8}}}}}}\n")
    for out in (photos, photos / "out"):
        assert main(["study", str(study), "--out", str(out), "--seeds", "1", "--device", "cpu"]) == 2
        assert f"{out} lies in the data, {photos}, and would be taken for a part of it" in capsys.readouterr().err
    assert {path.name for path in photos.iterdir()} == {"cat", "dog"}


@pytest.mark.long
def test_pictures_that_were_replaced_between_two_variants_are_noticed(tmp_path, capsys):
    images, labels = tiny(24, 2, size=8)
    study = tmp_path / "own.yaml"

    def run(variants, better, pictures):
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        for split in ("train", "val", "test"):
            write_folders(tmp_path / "photos" / split, pictures, labels, ["cat", "dog"])
        base = f"{{data: {tmp_path / 'photos'}, depth: 8, outputs: 2, epochs: 1, batch_size: 8}}"
        study.write_text(
            f"question: q\nvariants: {{{variants}}}\nclaims: [{{says: it is better, better: {better}, worse: a}}]\n"
            f"scales: {{mine: {{seeds: 1, base: {base}}}}}\n"
        )
        assert main(["study", str(study), "--out", str(tmp_path / "out"), "--threads", "1", "--device", "cpu"]) == 0
        return capsys.readouterr().out

    assert "different images" not in run("a: {}, c: {gamma: 1}", "c", images)
    said = run("a: {}, c: {gamma: 1}, b: {gamma: 3}", "b", 255 - images)
    assert "b and a were tested on different images" in said
    assert "Warning: not all trainings were tested on the same images" in said


@pytest.mark.long
def test_two_processes_train_each_once_and_what_another_holds_is_left_to_it(own, tmp_path):
    out, trainings = tmp_path / "out", list(read_study(str(own), "smoke", 2).trainings(HERE))
    running.train(out, trainings[:3], 2, HERE, lambda left: None)
    assert running.left_of(out, trainings) == trainings[3:]
    with FileLock(out / "claims" / f"{trainings[3].name}.lock"):
        context = multiprocessing.get_context("fork")
        other = context.Process(target=running.train, args=(out, trainings, 1, HERE, lambda left: None))
        other.start()
        other.join(2.0)
        assert other.is_alive()
        assert running.left_of(out, trainings) == trainings[3:]
    other.join(60)
    assert other.exitcode == 0
    assert running.left_of(out, trainings) == []


def test_no_more_processes_start_than_trainings_are_left(tmp_path, monkeypatch):
    trainings, done, started = [Training("a", seed, Recipe(seed=seed)) for seed in range(3)], {0}, []

    def together(count, *_, **__):
        started.append(count)
        done.update(range(3))

    monkeypatch.setattr(running, "is_done", lambda out, training: training.seed in done)
    monkeypatch.setattr(running, "work_together", together)
    for _ in range(2):
        running.train(tmp_path, trainings, 100, HERE, lambda left: None)
    assert started == [2]


def test_a_stop_in_the_step_in_which_a_training_diverges_notes_that_and_stops_the_worker(tmp_path, monkeypatch):
    def stopped_as_it_diverges(recipe, folder, watch):
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise DivergedError("the loss is not finite")

    monkeypatch.setattr(running, "fit_on", stopped_as_it_diverges)
    trainings = [Training("a", seed, Recipe(seed=seed)) for seed in range(2)]
    with pytest.raises(signals.Stopped) as stop:
        running.train(tmp_path, trainings, 1, HERE, lambda left: None)
    assert stop.value.status == 143
    assert [running.why_failed(tmp_path, training) for training in trainings] == ["the loss is not finite", None]


def test_what_a_machine_cannot_do_fails_no_training_for_ever(own, tmp_path, capsys):
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--threads", "1", "--seeds", "1"]
    assert main([*words, "--device", "cuda:99"]) == 2
    assert "device 'cuda:99' cannot be used here" in capsys.readouterr().err
    trainings = list(read_study(str(own), "smoke", 1).trainings(HERE))
    with pytest.raises(ValueError, match="cannot be used here"):
        running.train(tmp_path / "out", trainings, 1, {**HERE, "device": "cuda:99"}, lambda left: None)
    assert running.left_of(tmp_path / "out", trainings) == trainings


def test_failures_of_names_with_dots_are_kept_apart(tmp_path):
    recipe = Recipe(backbone="timm:resnet10t.c3_in1k")
    trainings = [Training("a", 0, recipe), Training("b", 1, replace(recipe, seed=1))]
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / f"{trainings[0].name}.failed").write_text("it diverged")
    assert [running.why_failed(tmp_path, training) for training in trainings] == ["it diverged", None]


def test_a_training_killed_at_its_beginning_is_begun_anew_and_nothing_else_is_removed(own, tmp_path):
    out, [training] = tmp_path / "out", list(read_study(str(own), "smoke", 1).trainings(HERE))[:1]
    folder = running.training_folder(out, training)
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / ".recipe.yaml.123.partial").write_text("half a rec")
    (folder / "patients.csv").write_text("precious")
    with pytest.raises(FileExistsError, match="holds other files"):
        running.train(out, [training], 1, HERE, lambda left: None)
    assert (folder / "patients.csv").read_text() == "precious"
    (folder / "patients.csv").unlink()
    running.train(out, [training], 1, HERE, lambda left: None)
    assert running.is_done(out, training)


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(own, tmp_path, monkeypatch):
    own.write_text(OWN.replace("epochs: 1", "epochs: 2"))
    out, [training] = tmp_path / "out", list(read_study(str(own), "smoke", 1).trainings(HERE))[:1]

    def stop_at_the_first_checkpoint(left):
        if list(running.training_folder(out, training).glob("checkpoints/*.ckpt")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        running.train(out, [training], 1, HERE, stop_at_the_first_checkpoint)
    assert running.left_of(out, [training]) == [training]
    resumed, honest = [], train_module.fit

    def fit(recipe, folder, **options):
        resumed.append(options.get("resume"))
        return honest(recipe, folder, **options)

    monkeypatch.setattr(train_module, "fit", fit)
    running.train(out, [training], 1, HERE, lambda left: None)
    assert resumed == [True]
    assert running.is_done(out, training)


@pytest.mark.parametrize(("pics", "where"), [("pics", []), ("all/pics", ["--data-dir", "all"])])
@pytest.mark.enough(1)
def test_trainings_of_another_folder_of_the_same_name_are_never_shown_as_the_studys_own(
    pics, where, tmp_path, monkeypatch, capsys
):
    images, labels = tiny(24, 2, size=8)
    study = (
        "question: q\nvariants: {a: {}}\n"
        "scales: {mine: {seeds: 1, base: {data: pics, depth: 8, outputs: 2, epochs: 1, batch_size: 8}}}\n"
    )
    for project, pictures in (("here", images), ("elsewhere", 255 - images)):
        write_folders(tmp_path / project / pics, pictures, labels, ["cat", "dog"])
        (tmp_path / project / "own.yaml").write_text(study)
    monkeypatch.chdir(tmp_path / "here")
    here = [*where, "--threads", "1", "--device", "cpu"]
    assert main(["study", "own.yaml", "--out", "out", *here]) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    for more in ([], ["--show"]):
        assert main(["study", "own.yaml", "--out", "../here/out", *where, *more]) == 2
        told = f"was trained on {tmp_path}/here/{pics}, and pics is {tmp_path}/elsewhere/{pics} here: give another"
        assert told in capsys.readouterr().err
    shutil.copytree(tmp_path / "here", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    for more in ([], ["--show"]):
        assert main(["study", "own.yaml", "--out", "out", *here, *more]) == 0
    (tmp_path / "here").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert main(["study", "own.yaml", "--out", "out", *where, "--show"]) == 0  # a project that moved


@pytest.mark.usefixtures("own_cache_and_no_network")
@pytest.mark.long
def test_weights_on_the_hub_are_named_in_a_study_by_their_commit(tmp_path, capsys):
    train_module.fit(Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu"), tmp_path / "a")
    auxnet.load(tmp_path / "a").save_pretrained(on_the_hub(tmp_path, "owner/run"))
    words = ["--out", str(tmp_path / "out"), "--threads", "1", "--device", "cpu"]
    for name, status in ((f"hf:owner/run@{COMMIT}", 0), ("hf:owner/run", 2), ("hf:owner/run@main", 2)):
        base = f"{{data: digits, depth: 8, outputs: 2, epochs: 1, train_images: 96, pretrained: '{name}'}}"
        study = tmp_path / "own.yaml"
        study.write_text(f"question: q\nvariants: {{a: {{}}}}\nscales: {{mine: {{seeds: 1, base: {base}}}}}\n")
        assert main(["study", str(study), *words]) == status
        told = f"variant a: pretrained: {name} may be others at the next training: give hf:owner/run@{COMMIT}\n"
        assert status == 0 or capsys.readouterr().err.endswith(told)


@pytest.mark.long
def test_what_is_under_way_is_said_by_who_trains_and_by_who_looks(own, tmp_path, capsys, monkeypatch):
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--threads", "1", "--seeds", "1"]
    assert main(words) == 0
    assert "under way" not in capsys.readouterr().out  # nothing took a minute
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(screen, "PAUSE", 0.0)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "0/2 trainings done, under way: one on digits, seed 0: 0/1 epochs\n" in said
    assert "1/2 trainings done, under way: two on digits, seed 0: 1/1 epochs, val. error" in said
    [training, _] = read_study(str(own), "smoke", 1).trainings(HERE)
    (running.training_folder(tmp_path / "out", training) / "summary.json").unlink()
    shutil.rmtree(tmp_path / "out" / "own-smoke")  # its ledger has that training
    with FileLock(tmp_path / "out" / "claims" / f"{training.name}.lock"):
        assert main([*words, "--show"]) == 0
    assert "under way: one on digits, seed 0: 1/1 epochs, val. error" in capsys.readouterr().out
    assert main([*words, "--show"]) == 0
    assert "under way" not in capsys.readouterr().out  # it was stopped


def test_what_is_under_way_is_looked_for_once_a_second_and_read_once_an_epoch(tmp_path, monkeypatch):
    row = {"epoch": 1, "output": 1, "depth": 2, "loss": 0.5, "lr": 0.1, "seconds": 1.0}
    rows = [{**row, "split": "train", "error": None}, {**row, "split": "val", "error": 0.25}]
    training, clock, asked, read, read_metrics = Training("a", 0, Recipe(epochs=2)), [0], [], [], running.read_metrics

    def fit_on(recipe, folder, follow):
        for epoch in (1, 2):
            for second in (0, 1):
                clock[0] += second
                for _ in range(3):
                    follow(SimpleNamespace(done=False))
            append(folder / "metrics.jsonl", [{**each, "epoch": epoch} for each in rows])
            follow(SimpleNamespace(done=True))
        write_json(folder / "summary.json", {})

    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(running, "fit_on", fit_on)
    monkeypatch.setattr(running, "read_metrics", lambda folder: read.append(folder) or read_metrics(folder))
    running.training_folder(tmp_path, training).mkdir(parents=True)
    running.train(tmp_path, [training], 1, HERE, lambda left: asked.append([*running.under_way(tmp_path, left)]))
    begun, *ends = [[f"a on digits, seed 0: {n}/2 epochs{', val. error 25.0 %' if n else ''}"] for n in range(3)]
    assert asked == [[], begun, begun, ends[0], ends[0], ends[1], []]
    assert len(read) == 2


def test_data_that_are_not_there_are_noticed_before_the_first_training(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "fit_on", lambda *_: pytest.fail("it was trained"))
    written(own, ("data: digits, train", "train"), ("seeds: 3", "datasets: [digits, nowhere]\n    seeds: 3"))
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 2
    assert "data 'nowhere' is neither a known data set nor a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--show"]) == 0  # what is trained is shown all the same, and each verdict with its data
    said = capsys.readouterr().out
    assert all(f"- {data}: two beats one: cannot be told" in said for data in ("digits", "nowhere"))


def test_an_error_that_ends_a_study_leaves_tables_of_what_is_done(own, tmp_path, capsys, monkeypatch):
    errors = iter([DivergedError("the loss became inf"), OSError("the disk is full")])

    def fit_on(*_):
        raise next(errors)

    monkeypatch.setattr(running, "fit_on", fit_on)
    assert main(["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--only", "two"]) == 1
    assert capsys.readouterr().err == "auxnet: the disk is full\n"
    text = (tmp_path / "out" / "own-smoke" / "study.md").read_text()
    assert "Not complete: 0 of 6 trainings done, 1 failed." in text
    assert "Failed: two, digits, seed 0: the loss became inf" in text  # of the variants asked for, no other was tried
    assert main(["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), "--only", "tow"]) == 2
    assert "--only names 'tow', no variant; perhaps you meant 'two'" in capsys.readouterr().err


def test_a_frozen_trunk_is_refused_where_supervision_is_measured_before_anything_is_trained(own, tmp_path, capsys):
    written(own, ("two: {gamma: 1}", "two: {pretrained: base, freeze: trunk}"))
    own.write_text(own.read_text() + "measures: supervision\n")
    assert main(["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out")]) == 2
    told = "variant two: no supervision reaches a frozen trunk: leave out freeze: trunk, or measures: supervision\n"
    assert capsys.readouterr().err.endswith(told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("show", [True, False])
def test_an_error_in_measuring_leaves_tables_of_what_is_done(show, own, tmp_path, capsys, monkeypatch):
    def diagnose(out, trainings):
        raise ValueError("there is nothing to diagnose")

    monkeypatch.setattr(running, "_work", lambda *_: None)
    monkeypatch.setattr(supervising, "diagnose", diagnose)
    own.write_text(own.read_text() + "measures: supervision\n")
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out"), *["--show"] * show]
    assert main(words) == 2
    assert capsys.readouterr().err == "auxnet: there is nothing to diagnose\n"
    assert "Not complete: 0 of 6 trainings done." in (tmp_path / "out" / "own-smoke" / "study.md").read_text()


def test_a_study_of_too_few_seeds_says_so_before_its_first_training(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "fit_on", lambda *_: pytest.fail(capsys.readouterr().out, pytrace=False))
    words = ["study", str(own), "--scale", "smoke", "--out", str(tmp_path / "out")]
    told = "note: with 2 seeds no claim can be told: 3 are the fewest to judge by (--seeds 3)"
    with pytest.raises(pytest.fail.Exception, match=re.escape(told)):
        main([*words, "--seeds", "2"])
    assert main([*words, "--seeds", "2", "--show"]) == 0
    assert told in capsys.readouterr().out
    assert main([*words, "--show"]) == 0
    told = "note: with 3 seeds and 2 claims the largest difference must be 3.6 standard deviations or more, or none is"
    assert told in capsys.readouterr().out


def test_the_least_difference_that_is_told_is_the_least_that_can_be_told():
    study = read_study("methods", "smoke", 3)
    claims = (Claim("", Side("a"), Side("b")), *[Claim("", Side("a"), Side("a"))] * 11)
    assert "with 3 seeds and 12 claims the largest difference must be 8.9 standard" in least_told(
        replace(study, claims=claims)
    )
    for deviations, word in ((8.8, "cannot be told"), (9.0, "holds")):
        rows = [row("a", seed, 0.1) for seed in range(3)]
        rows += [row("b", seed, 0.1 + 0.01 * (deviations + seed - 1)) for seed in range(3)]
        assert judge_all(claims, ["digits"], rows)[0].word == word
    assert least_told(replace(study, claims=())) == ""


def test_of_several_processes_one_measures_the_supervision(own, tmp_path, monkeypatch):
    trainings, measured = list(read_study(str(own), "smoke", 1).trainings(HERE)), []
    for training in trainings:
        folder = running.training_folder(tmp_path, training)
        folder.mkdir(parents=True)
        for name in ("summary.json", "model.safetensors"):
            (folder / name).write_text("{}")

    def diagnosis_of_run(folder, name, *how):
        measured.append(name)
        time.sleep(0.1)
        return {"weights_sha256": weights_sha256(folder)}

    monkeypatch.setattr(supervising, "opened", lambda *where, **how: nullcontext())
    monkeypatch.setattr(supervising.diagnosing, "diagnosis_of_run", diagnosis_of_run)
    together = [threading.Thread(target=supervising.diagnose, args=(tmp_path, trainings)) for _ in range(2)]
    for each in together:
        each.start()
    for each in together:
        each.join()
    assert measured == ["one", "two"]


def test_a_folder_whose_name_is_no_text_is_reported_all_the_same(own, tmp_path):
    study = replace(read_study(str(own), "smoke"), datasets=("d\udce9t",))
    rows = [{**whole_row(variant, "digits", 10, 10), "data": "d\udce9t"} for variant in ("one", "two")]
    rows = [{**each, "study": "own", "scale": "smoke", "training": "x"} for each in rows]
    written = write_findings(found_in(study, rows), tmp_path / "report")
    for path in written:
        assert "d\\udce9t" in path.read_text(encoding="utf-8")


@pytest.mark.long
def test_a_variants_name_is_text_in_every_figure(own, tmp_path):
    own.write_text(OWN.replace("two: {gamma", '"<i>x</i>": {gamma').replace("two", "<i>x</i>"))
    rows = [{**whole_row(v, "digits", 10, 10), "seed": seed} for v in ("one", "<i>x</i>") for seed in range(2)]
    path = tmp_path / "page.html"
    path.write_text(page(found_in(read_study(str(own), "smoke"), rows)))
    with chromium() as browser, opened(browser, path) as shown:
        assert "<i>x</i>" in shown.locator("#macs-plot .legendtext").all_text_contents()
        assert "<i>x</i> < one" in shown.locator("#differences-plot .ytick text").all_text_contents()


def test_a_study_has_the_one_scale_of_its_own_for_its_default(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "question: which?\nvariants: {one: {outputs: 1}, two: {outputs: 2}}\n"
        "scales: {mine: {seeds: 1, base: {depth: 8}}}\n"
    )
    assert read_study(str(tmp_path / "own.yaml")).scale == "mine"
    assert read_study("methods").scale == "small"


@pytest.mark.parametrize(
    ("side", "read"), [('"two:01"', Side("two", "1")), ("two", Side("two")), ("1", 1.0), ("0.5", 0.5)]
)
def test_a_share_is_held_against_an_output_by_its_number_or_against_any_number(side, read, own):
    written(own, ("worse: one}", f"worse: {side}, of: share}}"), ("question:", "measures: supervision\nquestion:"))
    study = read_study(str(own), "smoke")
    assert study.claims[0].worse == read
    check_claims(study)
    rows = [{**row("two", seed, 0.5, 0.5), "share": 0.4, "shares": {"1": 0.4, "2": 0.2}} for seed in range(3)]
    share = read if isinstance(read, float) else 0.4
    assert judge(study.claims[0], "digits", rows).differences == pytest.approx([0.4 - share] * 3)


def test_a_number_that_is_a_variants_name_is_the_variant(own):
    share = ("worse: one}", "worse: 1, of: share}")
    written(
        own,
        ("  one:", "  1:"),
        share,
        ('"one:1"', '"1:1"'),
        ("  one:", "  1:"),
        ("question:", "measures: supervision\nquestion:"),
    )
    assert read_study(str(own), "smoke").claims[0].worse == Side("1")


def test_a_training_that_two_variants_share_is_counted_once(own):
    rows = [{**whole_row(variant, "digits", 10, 10), "training": "same"} for variant in ("one", "two")]
    found = found_in(read_study(str(own), "smoke"), rows)
    assert next(sources_of(found)).startswith("1 training, 1:00 min in all")
    assert "1 of 1 trainings done" in page(found)
