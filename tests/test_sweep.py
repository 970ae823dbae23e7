"""Sweeps: real workers, really killed; every trial once, judged on validation alone; whatever cannot be, a line."""

import csv
import html
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

pytest.importorskip("optuna", reason="optuna is not installed (extra: sweep)")

from auxnet import feasible, fetching, resuming, rundir, signals, train
from auxnet.cli import main, screen
from auxnet.data import load_data
from auxnet.documents import read_json
from auxnet.errors import DivergedError, TooLittleMemoryError
from auxnet.files import write_json
from auxnet.page_frame import asset
from auxnet.recipe import Recipe, read_recipe
from auxnet.sweeps import sweep_page, sweeping, trials, worker
from auxnet.sweeps.journal import optuna
from auxnet.sweeps.settings import Settings, check_same, found_anywhere
from auxnet.sweeps.space import Choices, Range, domain_of, space_from, space_from_words, values_of, written
from auxnet.sweeps.sweeping import read_sweep, sweep
from browser import check_themes, chromium, opened, ticks_between
from killed import contents, killed_at
from writers import COMMIT, on_the_hub, tiny, write_folders

TINY = Recipe(depth=8, outputs=2, epochs=1, train_images=96, batch_size=32, threads=1, device="cpu")
OWN = replace(TINY, train_images=None)


def flags(epochs=1):
    words = f"--depth 8 --outputs 2 --epochs {epochs} --train-images 96 --batch-size 32 --threads 1 --device cpu"
    return words.split()


def start(*words):
    command = [sys.executable, "-m", "auxnet", "sweep", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def forked(*arguments, target=sweep, **options):
    """A process that works on a sweep; like `start`, but it need not import torch first."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, kwargs=options)
    process.start()
    return process


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def drawn(found):
    return [(trial.number, trial.state, trial.objective, trial.values) for trial in found.trials]


def val_errors(folder):
    """Of each output by epoch, as metrics.jsonl has them: {epoch: [error of output 1, ...]}."""
    errors = {}
    for row in rundir.read_metrics(folder):
        if row["split"] == "val":
            errors.setdefault(row["epoch"], []).append(row["error"])
    return errors


def run_of(recipe, error):
    """What `fit` says of a training whose outputs err so."""
    data = load_data(recipe)
    images = {"drawn": data.drawn, "val_sha256": data.val_sha256(), "train": len(data.train)}
    return SimpleNamespace(summary={"last": [{"val_error": error}] * 2, "data": images})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of eight trials with pruning."""
    torch.set_num_threads(1)
    recipe = replace(TINY, epochs=3, seed=10)
    space = {"lr": "0.001..0.5:log", "milestones": [[0.4, 0.6], [0.9]], "method": ["joint", "multiway"]}
    return sweep(space, tmp_path_factory.mktemp("sweeps") / "a", recipe, trials=8, sampler="random")


# ---- what varies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "given", "domain"),
    [
        ("lr", "0.01..0.5:log", Range(0.01, 0.5, None, True)),
        ("lr", "1e-3..1", Range(0.001, 1.0)),
        ("depth", "8..21:6", Range(8, 20, 6)),
        ("width", "1..3", Range(1, 3, 1)),
        ("gamma", "0..3:1", Range(0.0, 3.0, 1.0)),
        ("batch_size", "16..64:log", Range(16, 64, 1, True)),
        ("gamma", "0,1, 2", Choices((0.0, 1.0, 2.0))),
        ("clip", "none,0.5", Choices((None, 0.5))),
        ("nesterov", "true,false", Choices((True, False))),
        ("milestones", "0.4 0.6, 0.9", Choices(((0.4, 0.6), (0.9,)))),
        ("milestones", "none, 0.9", Choices(((), (0.9,)))),
        ("at", [[3], [5]], Choices(((3,), (5,)))),
        ("augment", "none,flip", Choices(("none", "flip"))),
        ("data", "../a,../b", Choices(("../a", "../b"))),
    ],
)
def test_ranges_and_choices_are_read_as_the_field_is_and_written_as_they_are_read(field, given, domain):
    assert domain_of(field, given) == domain
    assert domain_of(field, written(domain)) == domain
    assert [type(value) for value in values_of(domain)] == [
        type(getattr(Recipe(**{field: v}), field)) for v in values_of(domain)
    ]


def test_fields_that_the_default_recipe_has_no_place_for_vary_too():
    assert domain_of("aggregator", "UPGrad,PCGrad") == Choices(("UPGrad", "PCGrad"))
    assert domain_of("cuts", "1,2") == Choices((1, 2))


def test_a_range_in_steps_holds_its_ends_and_what_lies_between():
    assert values_of(domain_of("depth", "8..20:6")) == (8, 14, 20)
    assert values_of(domain_of("momentum", "0..0.9:0.3")) == (0.0, 0.3, 0.6, 0.9)
    assert values_of(domain_of("seed", "0..1000000")) == (0, 1000000)  # too many: the ends
    assert values_of(domain_of("lr", "0.1..0.5")) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--vary", "lrr=0.1,0.2"], "there is no recipe field 'lrr' to vary"),
        (["--vary", "gama=1,2"], "perhaps you meant 'gamma'"),
        (["--vary", "lr=0.1-0.2"], "lr varies over a range as 0.1..0.2, got '0.1-0.2'"),
        (["--vary", "seed=010,20"], "010 is a number of another base in YAML: write it plainly"),
        (["--vary", "lr"], "--vary takes field=a,b,c or field=low..high, got 'lr'"),
        (["--vary", "lr=0.1,0.2", "--vary", "lr=0.3,0.4"], "lr is varied twice"),
        (["--vary", "lr=0.1"], "lr needs two or more different choices, got 0.1"),
        (["--vary", "lr=0..1"], "lr must be above 0 and finite, got 0.0"),
        (["--vary", "lr=0.5..0.1"], "lr=0.5..0.1 holds no two numbers"),
        (["--vary", "momentum=0.5..1"], "momentum must be 0 or more and below 1, got 1.0"),
        (["--vary", "floor=0..1:log"], "a range in the logarithm begins above 0"),
        (["--vary", "width=1..x"], "width=1..x is not a range of numbers"),
        (["--vary", "width=1..4:0.5"], "the step must be a whole number"),
        (["--vary", "method=joint,multway"], "method must be one of joint, pairwise, multiway, got 'multway'"),
        (["--vary", "optimizer=SGD,SDG"], "optimizer=SDG cannot be: torch.optim has no optimizer 'SDG'"),
        (["--vary", "depth=8..20"], "depth=9 cannot be: depth must be 6n + 2"),
        (["--vary", "outputs=2,9"], "outputs=9 cannot be: outputs must lie in"),
        (["--vary", "mode=live,fused", "--method", "joint"], "mode=fused cannot be"),
        (["--vary", "data=digits,cifar11"], "data=cifar11 cannot be"),
        (["--vary", "lr=0.1,0.2", "--objective", "3"], "auxnet: objective 3 names an output, and the net has 2"),
        (["--vary", "lr=0.1,0.2", "--objective", "²"], "objective must be mean, final or the number of an output"),
        (["--vary", "device=cpu,cuda:7"], "device=cuda:7 cannot be: device 'cuda:7' cannot be used here"),
        (["--vary", "data_dir=nowhere,none", "--data", "cifar10"], "data_dir=nowhere cannot be"),
        (["--vary", "lr=0.1,0.1"], "lr needs two or more different choices, got 0.1, 0.1"),
        (["--vary", "lr=0.1,0.2", "--objective", "best"], "objective must be mean, final or the number of an output"),
        (["--vary", "lr=0.1..0.2", "--sampler", "grid"], "a grid needs steps"),
        (["--vary", "seed=0..99999", "--sampler", "grid"], "a grid of 100,000 trials is too large"),
        (["--vary", "lr=0.1,0.2", "--trials", "0"], "trials must be 1 or more"),
        (["--vary", "lr=0.1,0.2", "--processes", "0"], "processes must be 1 or more"),
        (["--vary", "lr=0.1,0.2", "--storage", "no"], "--storage no cannot be used"),
        (["--vary", "lr=0.1,0.2", "--data", "nowhere"], "nowhere"),
        (["--vary", "lr=0.1,0.2", "--data", "."], "a lies in the data, ., and would be taken for a part of it"),
        ([], "there is nothing to vary, and no sweep in"),
        (["--show"], "there is no sweep in"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else None,
)
def test_what_cannot_be_asked_for_is_one_line_and_leaves_nothing(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    varied = {f"--{word.partition('=')[0]}" for word in words}
    fixed = [word for pair in zip(*[iter(flags())] * 2, strict=True) if pair[0] not in varied for word in pair]
    assert main(["sweep", "--out", "a", *fixed, *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.name in ("study.txt", "recipe.yaml")]


def test_words_say_what_values_say():
    words = space_from_words(["lr=0.01..0.5:log", "milestones=0.4 0.6,0.9", "depth=8..20:6"])
    assert space_from(words) == space_from(
        {"lr": "0.01..0.5:log", "milestones": [[0.4, 0.6], [0.9]], "depth": "8..20:6"}
    )


def test_other_files_are_never_made_a_sweep(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["sweep", "--out", str(tmp_path), *flags(), "--vary", "lr=0.1,0.2"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trials/0000/patients.csv", "precious"),
        ("claims/insurance.txt", "precious"),
        ("trials", "precious"),
        ("journal.log", "dear diary"),
        ("journal.log/today", "dear diary"),
    ],
)
def test_a_folder_that_is_named_like_a_sweeps_and_holds_other_files_is_never_made_one(name, text, tmp_path, capsys):
    path = tmp_path / "clinic" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert main(["sweep", "--out", str(tmp_path / "clinic"), *flags(), "--vary", "lr=0.1,0.2", "--trials", "1"]) == 2
    error = capsys.readouterr().err
    assert f"holds other files ({name.split('/')[0]}): name a new folder for the sweep" in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == {path.relative_to(tmp_path): text.encode()}


def test_a_sweep_killed_anywhere_in_its_beginning_is_begun_anew(tmp_path):
    settings, a = Settings(TINY, space_from({"lr": [0.1, 0.2]})), tmp_path / "a"
    left = set()
    for act in range(1, 100):
        killed_at(act, a, lambda: trials.join_sweep(a, settings, None, None, check=lambda: None))
        if trials.is_sweep(a):
            break
        left.add(" ".join(sorted(path.name for path in a.glob("[!.]*"))))
    journal = "journal.lock journal.log"
    assert left >= {"", "journal.log", journal, f"claims {journal}", f"claims {journal} trials"}
    begun = trials.open_sweep(a)
    joined = trials.join_sweep(a, settings, 7, None, check=lambda: None)
    assert joined.study.study_name == begun.study.study_name
    assert (joined.settings, trials.total_of(joined)) == (settings, 2)


# ---- one worker ------------------------------------------------------------------------------------------------


def test_a_grid_covers_exactly_the_grid_and_no_trial_is_trained_twice(tmp_path):
    space = {"method": ["joint", "multiway"], "mode": ["live", "fused"]}
    found = sweep(space, tmp_path / "a", TINY, sampler="grid", trials=100)
    combinations = [tuple(trial.values.values()) for trial in found.trials]
    expected = {(way, mode) for way in ("joint", "multiway") for mode in ("live", "fused")}
    assert len(combinations) == 4
    assert set(combinations) == expected
    for trial in found.trials:  # joint has no modes: such a trial fails, in a line, and the sweep goes on
        impossible = trial.values["method"] == "joint" and trial.values["mode"] == "fused"
        assert trial.state == ("failed" if impossible else "complete")
        assert trial.error == ("mode='fused' is multiway's, but method='joint'; leave mode out" if impossible else None)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "trials").rglob("*")}
    assert drawn(sweep(space, tmp_path / "a", TINY, sampler="grid")) == drawn(found)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "trials").rglob("*")} == before


@pytest.fixture
def untrained(monkeypatch):
    """Trials that are not trained: a made-up error by their gamma and floor; above a gamma of 15 they diverge."""
    trained = []

    def fit(recipe, folder, watch):
        trained.append((recipe.gamma, recipe.floor))
        if recipe.gamma > 15:
            raise DivergedError("the loss is not finite")
        return run_of(recipe, (recipe.gamma + recipe.floor) / 100)

    monkeypatch.setattr(worker, "fit_on", fit)
    monkeypatch.setattr(worker, "read_metrics", lambda folder: [])
    return trained


@pytest.mark.parametrize(("sampler", "first"), [("tpe", 6), ("random", 3), ("grid", 6)])
def test_a_sweep_whose_trials_are_raised_to_all_combinations_covers_them(sampler, first, tmp_path, untrained):
    space = {"gamma": "0.1..0.4:0.1", "floor": [0.0, 0.5]}  # in floating point 0.1 + 2 * 0.1 is not 0.3
    begun = sweep(space, tmp_path / "a", TINY, sampler=sampler, trials=first)
    if sampler == "grid":  # each once, however few
        assert len(set(untrained)) == len(untrained) == first
    assert len(begun.trials) == first
    done = sweep(space, tmp_path / "a", TINY, sampler=sampler, trials=8)
    assert len(done.trials) == 8
    twins = sum(trial.twin is not None for trial in done.trials)  # of the first few, drawn at random
    assert len(set(untrained)) == len(untrained) == 8 - twins
    assert set(untrained) <= set(itertools.product((0.1, 0.2, 0.3, 0.4), (0.0, 0.5)))
    if sampler == "grid":
        assert twins == 0


def test_what_failed_is_not_tried_again(tmp_path, untrained):
    found = sweep({"gamma": [float(value) for value in range(21)]}, tmp_path / "a", TINY, sampler="random", trials=20)
    assert len(set(untrained)) == len(untrained) < 20
    for trial in found.trials:
        assert (trial.state, trial.error) == (
            ("failed", "the loss is not finite") if trial.values["gamma"] > 15 else ("complete", None)
        )


def test_what_was_drawn_before_is_not_trained_again(tmp_path, untrained):
    space = {"gamma": [value / 2 for value in range(21)]}
    found = sweep(space, tmp_path / "a", TINY, sampler="random", trials=20)
    assert len(found.trials) == 20
    assert len(untrained) == len(set(untrained)) < 20
    assert [trial.objective for trial in found.trials] == pytest.approx(
        [(trial.values["gamma"] + TINY.floor) / 100 for trial in found.trials]
    )
    for trial in found.trials:
        first = next(t for t in found.trials if t.values == trial.values)
        assert trial.folder == first.folder
        assert trial.twin == (None if trial is first else first.number)
    twins = 20 - len(untrained)
    assert f"{twins} of the trials drew what another had drawn, and took its result" in sweep_page.notes_of(found)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_space_of_few_combinations_is_covered_once(sampler, tmp_path, untrained):
    found = sweep({"gamma": [1, 2], "floor": [0, 0.5]}, tmp_path / "a", TINY, sampler=sampler)
    assert len({tuple(trial.values.values()) for trial in found.trials}) == len(found.trials) == found.total == 4


def test_no_more_workers_start_than_trials_are_left_and_no_fewer_trials_are_named_than_begun(
    tmp_path, untrained, monkeypatch
):
    started = []

    def together(count, work, where, watch, **_):
        started.append(count)
        work(where, watch)

    monkeypatch.setattr(sweeping, "work_together", together)
    for asked, begun in ((1, 1), (4, 4), (3, 4)):
        found = sweep({"gamma": [1, 2, 3, 4]}, tmp_path / "a", TINY, trials=asked, processes=100)
        assert len(found.trials) == found.total == begun
    assert started == [3]  # the first of all, and none, need no process of their own


def test_a_sweep_in_two_goes_draws_what_one_would_have_drawn(tmp_path, untrained):
    space = {"lr": "0.01..0.5:log", "gamma": "0..4"}
    sweep(space, tmp_path / "a", TINY, sampler="random", trials=1)
    in_two = sweep(space, tmp_path / "a", TINY, sampler="random", trials=3)
    assert drawn(in_two) == drawn(sweep(space, tmp_path / "b", TINY, sampler="random", trials=3))


def test_a_loss_that_stops_being_finite_fails_its_trial_alone(tmp_path, capsys):
    words = ["--vary", "lr=0.1,1e30", "--sampler", "grid", "--out", str(tmp_path / "a")]
    assert main(["sweep", *flags(epochs=2), *words]) == 0
    by_lr = {trial.values["lr"]: trial for trial in read_sweep(tmp_path / "a").trials}
    assert by_lr[0.1].state == "complete"
    assert by_lr[1e30].state == "failed"
    assert "the loss of output" in by_lr[1e30].error
    assert by_lr[1e30].error in capsys.readouterr().out


def test_the_objective_is_the_validation_error_of_the_last_epoch(finished, tmp_path):
    assert {trial.state for trial in finished.trials} == {"complete", "pruned"}
    for trial in finished.trials:
        errors = val_errors(trial.folder)
        assert trial.epochs == max(errors)
        assert trial.objective == pytest.approx(statistics.mean(errors[max(errors)]))
    assert worker.objective_of([0.3, 0.1], "final", TINY) == worker.objective_of([0.3, 0.1], "2", TINY) == 0.1
    assert worker.objective_of([0.3, 0.1], "1", TINY) == 0.3
    ties = [[n / 145 for n in wrong] for wrong in ((36, 30, 5), (19, 30, 22), (5, 30, 36))]  # 71 each
    assert len({worker.objective_of(errors, "mean", replace(TINY, outputs=3)) for errors in ties}) == 1


def test_outputs_that_do_not_train_to_the_end_choose_no_recipe(tmp_path):
    recipe = replace(TINY, epochs=2, weights=(0.0,))  # the first output is never trained
    found = sweep({"lr": [0.1, 0.2]}, tmp_path / "a", recipe, trials=1)
    [trial] = found.trials
    for epoch, (_, final) in val_errors(trial.folder).items():
        assert found.study.trials[0].intermediate_values[epoch] == pytest.approx(final)
    assert trial.objective == pytest.approx(final)
    errors = [0.9, 0.1]
    assert worker.objective_of(errors, "mean", TINY) == pytest.approx(0.5)
    assert worker.objective_of(errors, "mean", replace(TINY, epochs=4, discard_after=0.5)) == 0.1


def test_pruned_are_exactly_those_worse_than_the_median_of_the_complete_at_their_epoch(finished):
    """Of three epochs, after the first and the second, once five trials are complete."""
    means = {t.number: {e: statistics.mean(v) for e, v in val_errors(t.folder).items()} for t in finished.trials}
    complete = []
    for trial in finished.trials:
        stopped = next(
            (
                epoch
                for epoch in (1, 2)
                if len(complete) >= 5
                and min(means[trial.number][e] for e in range(1, epoch + 1))
                > statistics.median(means[n][epoch] for n in complete)
            ),
            None,
        )
        assert (trial.state, trial.epochs) == (("pruned", stopped) if stopped else ("complete", 3))
        if not stopped:
            complete.append(trial.number)
    assert len(complete) < 8


@pytest.mark.long
def test_choices_that_differ_in_the_last_digit_are_both_trained_and_told_apart(tmp_path, untrained, capsys):
    space = {"gamma": [1.23456, 1.23457], "milestones": [[0.4, 0.60001], [0.4, 0.60002]]}
    found = sweep(space, tmp_path / "a", TINY, sampler="grid")
    assert len(untrained) == 4
    assert {trial.values["milestones"] for trial in found.trials} == {(0.4, 0.60001), (0.4, 0.60002)}
    told = {tuple(trial.in_words.values()) for trial in found.trials}
    assert told == {(g, m) for g in ("1.23456", "1.23457") for m in ("0.4 0.60001", "0.4 0.60002")}
    assert main(["sweep", "--out", str(found.folder), "--show"]) == 0
    for text in (capsys.readouterr().out, (found.folder / "sweep.html").read_text()):
        assert "0.4 0.60001" in text
        assert "0.4 0.60002" in text


def test_a_number_out_of_a_range_is_told_to_four_digits_and_trained_in_full(tmp_path, untrained):
    [trial] = sweep({"gamma": "0.1..3"}, tmp_path / "a", TINY, sampler="random", trials=1).trials
    assert untrained == [(trial.values["gamma"], TINY.floor)]
    assert trial.in_words == {"gamma": f"{trial.values['gamma']:.4g}"}
    assert len(str(trial.values["gamma"])) > 10


def test_a_worker_on_a_machine_that_lacks_a_device_fails_no_trial(tmp_path, untrained):
    settings = Settings(TINY, space_from({"device": ["cpu", "cuda:7"]}))
    trials.join_sweep(tmp_path / "a", settings, None, None, check=lambda: None)  # begun where there is one
    with pytest.raises(ValueError, match="device=cuda:7 cannot be"):
        sweep({"device": ["cpu", "cuda:7"]}, tmp_path / "a", TINY)
    assert read_sweep(tmp_path / "a").trials == ()


@pytest.mark.long
def test_a_place_that_some_trials_cannot_have_is_no_impossible_one(monkeypatch):
    def build(recipe, *given):
        if recipe.cuda_graph and recipe.device == "cpu":
            raise ValueError("needs another device")
        return SimpleNamespace(outputs=2), None

    monkeypatch.setattr(sweeping, "check_fields", lambda recipe: None)  # there may be no GPU here
    monkeypatch.setattr(sweeping, "build", build)
    space = {"cuda_graph": [True, False], "device": ["cpu", "cuda"], "seed": "0..60"}
    sweeping.check_space(Settings(TINY, space_from(space)))
    del space["device"]
    with pytest.raises(ValueError, match="cuda_graph=True cannot be: needs another device"):
        sweeping.check_space(Settings(TINY, space_from(space)))


def test_the_data_depend_on_the_fields_that_are_said_to_make_them_and_on_no_other():
    read = set()

    class Watched:
        def __getattr__(self, name):
            read.add(name)
            return getattr(TINY, name)

    load_data(Watched())
    assert read == {*sweeping.OF_DATA}
    assert read > sweeping.FINDS_DATA


def test_the_best_is_chosen_on_validation_whatever_the_test_errors(tmp_path, monkeypatch):
    space = {"lr": [0.05, 0.2]}
    found = sweep(space, tmp_path / "a", TINY, sampler="grid")

    def absurd(recipe):
        dataset = load_data(recipe)
        return replace(dataset, test=replace(dataset.test, labels=(dataset.test.labels + 1) % 10))

    monkeypatch.setattr(train, "load_data", absurd)
    blind = sweep(space, tmp_path / "b", TINY, sampler="grid")
    assert drawn(blind) == drawn(found)
    assert blind.best.number == found.best.number == min(found.trials, key=lambda t: t.objective).number
    tests = [read_json(s.best.folder / "summary.json")["last"][0]["test_error"] for s in (found, blind)]
    assert tests[0] != tests[1]


def test_the_best_recipe_trains_the_weights_of_the_best_trial(finished, tmp_path):
    paths = sweep_page.write_outcome(finished)
    assert [path.name for path in paths] == ["trials.csv", "sweep.html", "best.yaml"]
    run = train.fit(read_recipe(paths[2]), tmp_path / "again")
    for name in ("model.safetensors", "recipe.yaml"):
        assert (run.folder / name).read_bytes() == (finished.best.folder / name).read_bytes()
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["number"]), r["state"], float(r["objective"])) for r in rows] == [
        (t.number, t.state, t.objective) for t in finished.trials
    ]
    assert all((finished.folder / row["run"] / "recipe.yaml").is_file() for row in rows)


def test_a_sweep_finds_its_data_from_any_folder_and_those_in_a_data_dir_by_their_name(tmp_path, monkeypatch):
    (tmp_path / "here" / "pics").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    space = space_from({"lr": [0.1, 0.2]})
    given = [Recipe(data="pics"), Recipe(data="pics", data_dir=".."), Recipe(data="digits"), Recipe(data="cifar10")]
    pics, elsewhere, *named = [found_anywhere(Settings(recipe, space)).recipe for recipe in given]
    assert (pics.data, pics.data_dir) == (f"{tmp_path}/here/pics", None)
    assert [elsewhere, *named] == given[1:]
    monkeypatch.setenv("AUXNET_DATA", str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path)
    assert found_anywhere(Settings(given[0], space)).recipe == given[0]
    begun = Settings(pics, space)
    check_same(begun, Settings(replace(given[0], data="here/pics"), space), tmp_path)
    with pytest.raises(ValueError, match=r"was begun with data: .*here/pics, and cannot go on with there"):
        check_same(begun, Settings(Recipe(data="there"), space), tmp_path)
    for elsewhere in (given[0], replace(given[0], data_dir="here"), replace(given[0], data="there/pics")):
        check_same(begun, Settings(elsewhere, space), tmp_path)  # whose images are compared once they are read


@pytest.mark.long
def test_a_sweep_goes_on_where_its_data_have_moved_by_the_same_command(tmp_path, monkeypatch):
    images, labels = tiny(40, 2, size=12)
    write_folders(tmp_path / "a" / "pics", images, labels, ["cat", "dog"])
    recipe, space = replace(OWN, data="pics"), {"lr": [0.1, 0.2, 0.3]}
    monkeypatch.chdir(tmp_path / "a")
    sweep(space, "sweep", recipe, trials=1)
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    assert len(sweep(space, "sweep", recipe, trials=2).trials) == 2
    monkeypatch.chdir(tmp_path)
    done = sweep(space, "b/sweep", replace(recipe, data_dir="b"), trials=3)
    assert [trial.state for trial in done.trials] == ["complete"] * 3


@pytest.mark.long
@pytest.mark.usefixtures("own_cache_and_no_network")
def test_all_trials_begin_with_the_same_weights_from_any_folder_and_whatever_the_hub_has_by_then(tmp_path, monkeypatch):
    for n, project in enumerate(("here", "there")):
        net = train.fit(replace(TINY, seed=n), tmp_path / project / "a").net
        net.save_pretrained(on_the_hub(tmp_path, "owner/run", commit := COMMIT[n:] + COMMIT[:n]))
    here, on_hub = str(tmp_path / "here" / "a"), f"hf:owner/run@{commit}"

    def used(out):
        return {read_recipe(trial.folder / "recipe.yaml").pretrained for trial in read_sweep(out).trials}

    space, both = {"lr": [0.1, 0.2, 0.3]}, {"pretrained": ["a", "hf:owner/run"]}
    monkeypatch.chdir(tmp_path / "here")
    of_path, of_hub = (replace(TINY, pretrained=name) for name in ("a", "hf:owner/run"))
    sweep(space, "../of_path", of_path, trials=1)
    sweep(space, "../of_hub", of_hub, trials=1)
    sweep(both, "../both", TINY, sampler="grid", trials=1)
    (tmp_path / "hub" / "models--owner--run" / "refs" / "main").write_text(COMMIT)
    fetching._fetched_once.cache_clear()  # as in another process
    sweep(both, "../both", TINY, sampler="grid", trials=2)
    assert used("../both") == {here, on_hub}
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(ValueError, match=f"begun with pretrained: {here}, and cannot go on with {tmp_path}/there/a"):
        sweep(space, "../of_path", of_path, trials=2)
    assert main(["sweep", "--out", "../of_path", "--trials", "2"]) == 0
    sweep(space, "../of_hub", of_hub, trials=2)
    assert (used("../of_path"), used("../of_hub")) == ({here}, {on_hub})
    with pytest.raises(ValueError, match="pretrained needs two or more different choices"):
        sweep({"pretrained": ["a", "../there/a"]}, "../twice", TINY)


@pytest.mark.long
def test_a_sweep_does_not_go_on_with_weights_replaced_under_its_trials(tmp_path, monkeypatch):
    base, spare = (train.fit(replace(TINY, seed=n), tmp_path / name).folder for n, name in enumerate(("base", "spare")))
    files, space = [each / "model.safetensors" for each in (base, spare)], {"lr": [0.1, 0.2, 0.3]}
    recipe = replace(TINY, pretrained=str(base))
    others = f"{base} holds other weights than when {tmp_path}/a was begun, .*: put them back"

    def swap():
        contents = [file.read_bytes() for file in files]
        for file, content in zip(files, reversed(contents), strict=True):
            file.write_bytes(content)

    sweep(space, tmp_path / "a", recipe, trials=1)
    swap()
    with pytest.raises(RuntimeError, match=others):
        sweep(space, tmp_path / "a", recipe, trials=2)
    swap()

    def replaced_meanwhile(trials, total):
        if trials[-1].number == 1 and trials[-1].ended:
            swap()

    with pytest.raises(RuntimeError, match=others):
        sweep(space, tmp_path / "a", recipe, trials=3, watch=replaced_meanwhile)
    assert [trial.state for trial in read_sweep(tmp_path / "a").trials] == ["complete", "complete", "interrupted"]

    with monkeypatch.context() as older:  # which did not keep what weights it began with
        for module in (sweeping, worker):
            older.setattr(module, "check_same_weights", lambda *given: None)
        sweep(space, tmp_path / "old", recipe, trials=1)
    swap()
    assert [trial.state for trial in sweep(space, tmp_path / "old", recipe, trials=2).trials] == ["complete"] * 2


# ---- many workers ----------------------------------------------------------------------------------------------


def every_trial_once(found, count):
    assert [(trial.number, trial.state) for trial in found.trials] == [(n, "complete") for n in range(count)]
    assert sorted(path.name for path in (found.folder / "trials").iterdir()) == [f"000{n}" for n in range(count)]
    assert len({trial.values["lr"] for trial in found.trials}) == count
    for trial in found.trials:
        assert [list(val_errors(trial.folder)), len(rundir.read_metrics(trial.folder))] == [[1], 4]


def claim_all(folder):
    """A worker whose trainings take no time, so that all there is to see is who gets which trial."""
    opened = trials.open_sweep(folder)
    while (claimed := trials.claim(opened)) is not None:
        trial, lock = claimed
        opened.study.tell(trial, 0.5)
        lock.release()


def test_four_workers_in_a_rush_draw_every_trial_once_and_not_one_too_many(tmp_path):
    settings = Settings(TINY, space_from({"lr": "0.01..0.5"}), sampler="random")
    trials.join_sweep(tmp_path / "a", settings, 60, None, check=lambda: None)
    workers = [forked(tmp_path / "a", target=claim_all) for _ in range(4)]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0] * 4
    found = read_sweep(tmp_path / "a").trials
    assert [(trial.number, trial.state) for trial in found] == [(n, "complete") for n in range(60)]
    assert len({trial.values["lr"] for trial in found}) == 60


@pytest.mark.long
def test_two_commands_started_at_once_complete_every_trial_once(tmp_path):
    words = ["--out", tmp_path / "a", *flags(), "--vary", "lr=0.01..0.5:log", "--trials", 4]
    workers = [start(*words) for _ in range(2)]
    said = [process.communicate() for process in workers]
    assert [process.returncode for process in workers] == [0, 0], said
    every_trial_once(read_sweep(tmp_path / "a"), 4)


@pytest.mark.long
def test_two_workers_started_at_once_on_a_new_database_complete_every_trial_once(tmp_path):
    url = f"sqlite:///{tmp_path}/new.db"
    workers = [forked({"lr": "0.01..0.5:log"}, tmp_path / "a", TINY, trials=4, storage=url) for _ in range(2)]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0]
    every_trial_once(read_sweep(tmp_path / "a", url), 4)
    with pytest.raises(FileNotFoundError, match="give the --storage that"):
        read_sweep(tmp_path / "a")


@pytest.mark.long
def test_a_database_shared_without_the_folder_is_refused(tmp_path):
    """Where every worker would else train all trials, and say nothing."""
    url, settings = f"sqlite:///{tmp_path}/new.db", Settings(TINY, space_from({"lr": [0.1, 0.2]}))
    trials.join_sweep(tmp_path / "killed" / "a", settings, 2, url, check=lambda: None)  # before its first trial
    trials.join_sweep(tmp_path / "a", settings, 2, url, check=lambda: None).study.ask()
    trials.join_sweep(tmp_path / "a", settings, 2, url, check=lambda: None)
    elsewhere = replace(settings, recipe=replace(TINY, threads=3))
    with pytest.raises(FileExistsError, match=r"holds the same sweep, a-.*workers share --out too"):
        trials.join_sweep(tmp_path / "other" / "a", elsewhere, 2, url, check=lambda: None)
    trials.join_sweep(tmp_path / "b", settings, 2, url, check=lambda: None)
    other = replace(settings, recipe=replace(TINY, seed=3))
    trials.join_sweep(tmp_path / "more" / "a", other, 2, url, check=lambda: None)


@pytest.mark.long
def test_a_database_that_fails_meanwhile_is_told_in_a_line_and_the_same_command_goes_on(tmp_path, untrained):
    url = f"sqlite:///{tmp_path}/new.db?timeout=0"

    def run(watch):
        return sweep({"gamma": [1.0, 2.0]}, tmp_path / "a", TINY, storage=url, watch=watch)

    with closing(sqlite3.connect(tmp_path / "new.db", isolation_level=None)) as other:

        def lock(trials, total):
            if trials and not other.in_transaction:
                other.execute("BEGIN EXCLUSIVE")

        with pytest.raises(RuntimeError) as failure:
            run(lock)
    why = "the database fails ((sqlite3.OperationalError) database is locked)"
    assert str(failure.value) == f"{why}: the same command again goes on with the sweep"
    assert [trial.state for trial in run(lambda trials, total: None).trials] == ["complete"] * 2


def test_a_worker_killed_in_a_trial_loses_nothing(tmp_path, monkeypatch):
    recipe, save = replace(TINY, epochs=3), resuming.save_state
    checkpoints = tmp_path / "a" / "trials" / "0000" / "checkpoints"

    def save_and_wait(*what):
        save(*what)
        time.sleep(600)

    with monkeypatch.context() as patched:
        patched.setattr(resuming, "save_state", save_and_wait)
        process = forked({"lr": "0.01..0.5:log"}, tmp_path / "a", recipe, trials=1)
    wait_for(lambda: list(checkpoints.glob("*.ckpt")) or not process.is_alive())
    assert read_sweep(tmp_path / "a").trials[0].state == "running"
    process.kill()
    process.join()
    with (tmp_path / "a" / "journal.log").open("a") as file:
        file.write('{"op_code": 9, "wor')  # as if it had died in writing this
    assert read_sweep(tmp_path / "a").trials[0].state == "interrupted"
    begun, honest = [], train.fit

    def fit(recipe, folder, **options):
        begun.append(options.get("resume"))
        return honest(recipe, folder, **options)

    monkeypatch.setattr(train, "fit", fit)
    found = sweep({"lr": "0.01..0.5:log"}, tmp_path / "a", recipe, trials=1)
    assert begun == [True]
    assert [(trial.state, trial.epochs) for trial in found.trials] == [("complete", 3)]
    whole = train.fit(found.best_recipe, tmp_path / "whole")
    assert (whole.folder / "model.safetensors").read_bytes() == (found.best.folder / "model.safetensors").read_bytes()
    assert found.best.objective == pytest.approx(statistics.mean(val_errors(whole.folder)[3]))


def test_a_worker_whose_parent_is_gone_stops_at_its_next_step(tmp_path):
    asked = []

    def end_with_parent():
        asked.append(True)
        if len(asked) == 3:  # as the trial began, after its first step, after its second
            raise signals.Stopped(signal.SIGTERM, "the process that started this worker has ended")

    trials.join_sweep(tmp_path / "a", Settings(TINY, space_from({"lr": [0.1, 0.2]})), 1, None, lambda: None)
    with pytest.raises(signals.Stopped):
        sweeping._work(tmp_path / "a", None, {}, end_with_parent)
    assert [(trial.state, trial.epochs) for trial in read_sweep(tmp_path / "a").trials] == [("interrupted", 0)]


@pytest.mark.long
def test_ctrl_c_stops_all_workers_and_the_folder_alone_says_how_to_go_on(tmp_path):
    words = ["--out", tmp_path / "a", *flags(epochs=60), "--vary", "gamma=0,1", "--sampler", "grid", "--no-prune"]
    process = start(*words, "--processes", 2)
    folders = tmp_path / "a" / "trials"
    wait_for(lambda: len(list(folders.glob("*/checkpoints/*.ckpt"))) >= 2 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error == f"auxnet: stopped, and saved; auxnet sweep --out {tmp_path / 'a'} goes on with it\n"
    assert "interrupted" in {trial.state for trial in read_sweep(tmp_path / "a").trials}
    assert main(["sweep", "--out", str(tmp_path / "a")]) == 0
    found = read_sweep(tmp_path / "a")
    assert [(trial.state, trial.epochs) for trial in found.trials] == [("complete", 60)] * 2
    assert {trial.values["gamma"] for trial in found.trials} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("fate", "state"), [(optuna.TrialPruned(), "pruned"), (DivergedError("the loss is not finite"), "failed")]
)
def test_a_stop_in_the_epoch_that_ends_a_trial_early_keeps_its_verdict_and_stops_the_worker(
    fate, state, tmp_path, untrained, monkeypatch
):
    def stopped_in_its_last_epoch(recipe, folder, watch):
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise fate

    with monkeypatch.context() as patched:
        patched.setattr(worker, "fit_on", stopped_in_its_last_epoch)
        with pytest.raises(signals.Stopped) as stop:
            sweep({"gamma": [1.0, 2.0]}, tmp_path / "a", TINY)
    assert stop.value.status == 143
    assert [trial.state for trial in read_sweep(tmp_path / "a").trials] == [state]
    assert [trial.state for trial in sweep({"gamma": [1.0, 2.0]}, tmp_path / "a", TINY).trials] == [state, "complete"]


def test_a_stop_while_the_verdict_of_a_trial_is_written_waits_until_it_is(tmp_path, untrained, monkeypatch):
    def rows(folder):
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr(worker, "read_metrics", rows)
    with signals.raised(), pytest.raises(signals.Stopped):
        sweep({"gamma": [1.0, 2.0]}, tmp_path / "a", TINY)
    assert [trial.state for trial in read_sweep(tmp_path / "a").trials] == ["complete"]


def test_a_trial_that_takes_its_process_down_each_time_is_given_up(tmp_path, monkeypatch):
    """Three real deaths in the same place: the fourth worker fails the trial, and goes on to the next."""

    def die(recipe, folder, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(train, "fit", die)
        for _ in range(3):
            process = forked({"lr": [0.1, 0.2]}, tmp_path / "a", TINY, trials=2)
            process.join()
            assert process.exitcode == -signal.SIGKILL
    found = sweep({"lr": [0.1, 0.2]}, tmp_path / "a", TINY, trials=2)
    assert [trial.state for trial in found.trials] == ["failed", "complete"]
    assert "died 3 times" in found.trials[0].error


def of_a_disk_that_is_full():
    error = RuntimeError("cannot be written to")
    error.__cause__ = OSError(28, "No space left on device")
    return error


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("a process that reads images died"),
        of_a_disk_that_is_full(),
        OSError(28, "No space left on device"),
    ],
    ids=["reader", "saving", "disk"],
)
@pytest.mark.enough(1)
def test_no_fault_of_the_machine_is_blamed_on_a_trial_however_often_it_comes(fault, tmp_path, untrained, monkeypatch):
    space = {"gamma": "0.1..0.3:0.1", "floor": [0.0, 0.2, 0.5]}

    def broken(recipe, folder, watch):
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(worker, "fit_on", broken)
        for _ in range(worker.PATIENCE + 2):
            with pytest.raises(type(fault), match=re.escape(str(fault))):
                sweep(space, tmp_path / "a", TINY, sampler="random", trials=8)
    assert [trial.state for trial in read_sweep(tmp_path / "a").trials] == ["interrupted"]
    healthy = sweep(space, tmp_path / "a", TINY, sampler="random", trials=8)
    assert [trial.state for trial in healthy.trials] == ["complete"] * 8


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "CUDA out of memory"),
        (TooLittleMemoryError("a step on 9 images would keep 1.3 MB"), "a step on 9 images would keep 1.3 MB"),
    ],
    ids=["gpu", "machine"],
)
def test_a_trial_that_finds_no_memory_is_tried_three_times_and_again_on_demand(
    fault, why, tmp_path, untrained, monkeypatch
):
    def full(recipe, folder, watch):
        raise fault

    def run(**options):
        return sweep({"gamma": [1.0, 2.0]}, tmp_path / "a", TINY, sampler="random", trials=2, **options)

    with monkeypatch.context() as patched:
        patched.setattr(worker, "fit_on", full)
        for _ in range(worker.PATIENCE):
            with pytest.raises(RuntimeError, match=f"trial 0 found no memory: {why}; the same"):
                run()
    found = run()
    assert [trial.state for trial in found.trials] == ["failed", "complete"]
    assert "died 3 times" in found.trials[0].error
    assert drawn(run()) == drawn(found)
    again = run(retry_failed=True)
    assert [(trial.number, trial.state) for trial in again.trials] == [(1, "complete"), (2, "complete")]
    assert again.trials[1].values == found.trials[0].values
    assert drawn(run(retry_failed=True)) == drawn(again)
    assert again.total == 2


def test_a_machine_with_too_little_memory_fails_no_trial_of_the_others(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(feasible, "most_memory", lambda device: 2**20)
        with pytest.raises(RuntimeError, match=r"trial 0 found no memory: a step on 32 images of 8x8 pixels would"):
            sweep({"lr": [0.1, 0.2]}, tmp_path / "a", TINY)
    assert [trial.state for trial in sweep({"lr": [0.1, 0.2]}, tmp_path / "a", TINY).trials] == ["complete"] * 2


@pytest.mark.long
def test_what_took_the_failure_of_a_twin_is_tried_again_with_it(tmp_path, untrained, monkeypatch):
    space = {"gamma": [float(value) for value in range(21)]}

    def run(**options):
        return sweep(space, tmp_path / "a", TINY, sampler="random", trials=20, **options)

    failed = [trial for trial in run().trials if trial.state == "failed"]
    assert any(trial.twin is not None for trial in failed)
    monkeypatch.setattr(worker, "fit_on", lambda recipe, *_: run_of(recipe, 0.5))
    again = run(retry_failed=True).trials
    assert {trial.state for trial in again} == {"complete"}
    assert sorted(trial.values["gamma"] for trial in again[-len(failed) :]) == sorted(
        trial.values["gamma"] for trial in failed
    )


def test_a_trial_killed_at_its_beginning_is_begun_anew(tmp_path, monkeypatch):
    def die(path, state, written):
        written()
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(resuming, "save_state", die)
        process = forked({"lr": [0.1, 0.2]}, tmp_path / "a", TINY, trials=1)
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "a" / "trials" / "0000" / "metrics.jsonl").is_file()
    [trial] = sweep({"lr": [0.1, 0.2]}, tmp_path / "a", TINY, trials=1).trials
    assert (trial.state, trial.epochs) == ("complete", 1)
    assert len(rundir.read_metrics(trial.folder)) == 4


def test_what_somebody_keeps_where_a_trial_would_train_survives(tmp_path, capsys):
    trials.join_sweep(tmp_path / "a", Settings(TINY, space_from({"lr": [0.1, 0.2]})), None, None, check=lambda: None)
    kept = tmp_path / "a" / "trials" / "0000" / "patients.csv"
    kept.parent.mkdir()
    kept.write_text("precious")
    assert main(["sweep", "--out", str(tmp_path / "a"), "--trials", "1"]) == 2
    error = capsys.readouterr().err
    assert f"{kept.parent} holds other files" in error
    assert error.count("\n") == 1
    assert contents(kept.parent) == {kept.relative_to(kept.parent): b"precious"}
    assert [trial.state for trial in read_sweep(tmp_path / "a").trials] == ["interrupted"]  # once it is elsewhere


def test_a_sweep_goes_on_by_its_own_recipe_whichever_flags_of_the_defaults_are_given(tmp_path, untrained):
    sweep({"gamma": [1.0, 2.0]}, tmp_path / "a", replace(TINY, method="joint"), trials=1)
    assert main(["sweep", "--out", str(tmp_path / "a"), "--trials", "2", "--mode", "live"]) == 0
    assert len(untrained) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--depth", "14"], "was begun with depth: 8, and cannot go on with 14"),
        (["--vary", "lr=0.01..0.5"], "was begun with --vary lr: 0.001..0.5:log, and cannot go on with 0.01..0.5"),
        (["--objective", "final"], "was begun with objective: mean, and cannot go on with final"),
        (["--sampler", "tpe"], "was begun with sampler: random"),
        (["--no-prune"], "was begun with prune"),
    ],
    ids=" ".join,
)
def test_another_command_on_the_same_folder_is_refused_with_the_difference(finished, words, says, capsys):
    assert main(["sweep", "--out", str(finished.folder), *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert drawn(read_sweep(finished.folder)) == drawn(finished)


def test_a_trials_folder_is_a_run_for_every_other_command(finished, capsys):
    assert main(["select", str(finished.best.folder)]) == 0
    pruned = next(trial for trial in finished.trials if trial.state == "pruned")
    shutil.copytree(pruned.folder, finished.folder.parent / "more")
    assert main(["train", "--out", str(finished.folder.parent / "more"), "--resume"]) == 0
    assert max(val_errors(finished.folder.parent / "more")) == 3


# ---- what is shown ---------------------------------------------------------------------------------------------


def test_show_prints_the_best_trials_and_writes_what_there_is(finished, capsys):
    assert main(["sweep", "--out", str(finished.folder), "--show"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.split()[1:2] in (["complete"], ["pruned"])]
    assert [int(row[0]) for row in rows] == [trial.number for trial in sweep_page.ranked(finished.trials)][:10]
    assert rows[0][2] == f"{100 * finished.best.objective:.2f}"
    assert "(fANOVA; few trials say little): " in out  # as the page has it
    assert not re.search("note: [A-Z]", out)
    assert f"auxnet train --config {finished.folder}/best.yaml" in out


def test_a_warning_that_all_trials_share_is_shown_once(tmp_path, capsys):
    words = ["--val-fraction", "0.05", "--optimizer", "AdamW", "--vary", "gamma=0,1"]
    assert main(["sweep", "--out", str(tmp_path / "s"), *flags(), *words, "--sampler", "grid", "--trials", "2"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len({*said})
    assert sum("validation images, fewer than" in line for line in said) == 1
    assert sum("--lr 0.1 is the step size for SGD: AdamW" in line for line in said) == 1


@pytest.mark.long
def test_a_warning_that_workers_share_is_shown_once(tmp_path, capfd):
    words = ["--val-fraction", "0.05", "--vary", "gamma=0,1,2", "--sampler", "grid", "--trials", "3"]
    assert main(["sweep", "--out", str(tmp_path / "s"), *flags(), *words, "--processes", "2"]) == 0
    said = capfd.readouterr().err
    assert said.count("validation images, fewer than") == 1
    assert said.count("UserWarning") == 0


def test_flags_that_change_nothing_are_named(finished, tmp_path, capsys, untrained):
    assert main(["sweep", "--out", str(finished.folder), "--show", "--trials=9", "--lr", "0.5"]) == 0
    said = "auxnet: warning: --show shows the sweep as it was begun: --trials, --lr left out\n"
    assert capsys.readouterr().err == said
    words = ["--vary", "batch_size=16,32", "--trials", "1"]
    assert main(["sweep", "--out", str(tmp_path / "s"), *flags(), *words]) == 0
    assert capsys.readouterr().err == "auxnet: warning: --batch-size does not go with --vary batch_size: left out\n"


def test_commands_that_are_told_can_be_typed_whatever_the_folders_name(finished, tmp_path, capsys):
    folder = tmp_path / "my sweeps; $(ls)"
    shutil.copytree(finished.folder, folder)
    assert main(["sweep", "--out", str(folder), "--show"]) == 0
    told = f"auxnet train --config '{folder}/best.yaml'"
    assert told in capsys.readouterr().out
    assert html.escape(told) in (folder / "sweep.html").read_text()


def test_a_sweep_that_is_stopped_is_gone_on_with_by_the_command_that_is_told(tmp_path, capsys, monkeypatch):
    def stop(*arguments, **options):
        out.mkdir()
        (out / "study.txt").write_text("begun")
        raise KeyboardInterrupt

    monkeypatch.setattr("auxnet.sweeps.sweeping.sweep", stop)
    out, url = tmp_path / "my sweeps", "sqlite:///a b.db"
    assert main(["sweep", "--out", str(out), "--vary", "lr=0.1,0.2", "--storage", url]) == 130
    told = f"stopped, and saved; auxnet sweep --out '{out}' --storage '{url}' goes on with it"
    assert capsys.readouterr().err == f"auxnet: {told}\n"


def test_the_terminal_and_the_page_say_a_list_alike(finished, capsys):
    best = replace(finished.best, in_words={"milestones": "0.4 0.6"})
    shown = replace(finished, trials=(best,))
    assert "with milestones 0.4 0.6." in sweep_page.headline(shown)
    assert main(["sweep", "--out", str(finished.folder), "--show"]) == 0
    page = (finished.folder / "sweep.html").read_text()
    assert page.count('"tick0":0,"dtick":1') == 5  # of trials and epochs, in all figures: whole numbers
    assert "<dd>0.4 0.6, 0.9</dd>" in page
    assert '"name":"the best so far"' in page
    assert "Best Value" not in page  # Optuna's words
    for trial in finished.trials:
        assert trial.in_words["milestones"] in ("0.4 0.6", "0.9")
    assert "0.4, 0.6" not in page + capsys.readouterr().out


def test_the_best_is_told_with_its_interval_and_how_many_overlap_with_it(finished):
    """On 100 images 20 errors are 13.3 .. 28.9 % by Wilson's formula; 40 begin at 30.9 %, 36 at 27.3 %."""
    errors = [0.2, 0.2, 0.36, 0.4, 0.7]
    found = [replace(finished.best, number=n, objective=error) for n, error in enumerate(errors)]
    found += [replace(found[0], number=5, twin=0), replace(found[0], number=6, state="pruned")]
    shown = replace(finished, trials=tuple(found))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweep_page, "_images", lambda sweep: 100)
        said = sweep_page.headline(shown)
    assert "Trial 0 is the best on validation: 20.00 % error (95 % 13.3 \u2013 28.9, Wilson, n = 100), with" in said
    assert "As good: 1. The intervals of 2 of the other 4 complete trials overlap with its; on the same images" in said
    assert "cannot be told" not in said  # which no overlap shows
    assert len([n for n in sweep_page.notes_of(shown) if "the least of 5 validation errors is optimistic" in n]) == 1
    assert "The least of 5 validation errors is optimistic" in (page := sweep_page.page(shown))
    assert "likely to err more.</p>" in page
    alone = replace(finished, trials=(finished.best,))
    assert "overlap" not in sweep_page.headline(alone)
    assert "optimistic" not in " ".join(sweep_page.notes_of(alone))


def test_pruning_by_equal_epochs_is_said_to_favour_short_schedules(finished):
    def said(**how):
        return " ".join(sweep_page.notes_of(replace(finished, settings=replace(finished.settings, **how))))

    assert "milestones varied, and trials were stopped by the median of the others at their epoch" in said()
    assert "favours" not in said(prune=False)
    assert "favours" not in said(space={"lr": finished.settings.space["lr"]})


def figure_named(name, figures):
    return next(each for each in figures if each.name == name)


def test_a_line_that_ends_early_is_called_pruned_only_where_a_trial_was(finished):
    def said(*states, space=finished.settings.space):
        trials = tuple(replace(finished.trials[n], state=state) for n, state in enumerate(states))
        shown = replace(finished, trials=trials, settings=replace(finished.settings, space=space))
        return figure_named("learning", sweep_page._figures(shown)).caption

    assert said("complete", "complete") == "The error after each epoch."
    assert said("complete", "pruned").endswith("; a line that ends early was pruned.")
    for state in ("running", "interrupted"):
        assert said("complete", state).endswith("; a line that ends early is not finished.")
    assert said("complete", space={"epochs": Choices((1, 2))}).endswith("; a line that ends early had fewer epochs.")
    assert said("pruned", "running").endswith("; a line that ends early was pruned or is not finished.")


def test_lines_of_few_trials_are_named_and_no_column_is_empty(finished):
    few = optuna.create_study(study_name="few")
    few.add_trials(finished.study.trials[:6])
    for study, named in ((finished.study, False), (few, True)):
        drawn = figure_named("learning", sweep_page._figures(replace(finished, study=study))).drawing
        assert drawn["layout"]["showlegend"] == named
        assert [line["name"] for line in drawn["data"]] == [f"trial {trial.number}" for trial in study.trials]
    assert len(re.findall("#[0-9a-f]{6}", asset("plots.js").partition("light: [")[2].partition("]")[0])) == 6
    failed = replace(finished.trials[-1], state="failed", error="the loss became inf")
    for shown, columns in ((finished.trials, 0), ((*finished.trials[:-1], failed), 1)):
        table = sweep_page._trials(replace(finished, trials=shown))
        assert table.count("why it failed") == columns
        assert table.count("<td ") == columns * len(shown)


@pytest.mark.long
def test_the_page_draws_every_figure_and_needs_nothing_from_elsewhere(finished, tmp_path):
    evil = "<script>alert(1)</script></script><img src=x onerror=alert(2)>"
    worst = replace(finished.trials[-1], state="failed", error=evil)
    shown = replace(finished, folder=finished.folder, trials=(*finished.trials[:-1], worst))
    path = tmp_path / "page.html"
    path.write_text(sweep_page.page(shown), encoding="utf-8")
    with chromium() as browser, opened(browser, path, width=390) as page:
        for name in ("history", "learning", "slices", "together", "importance"):
            assert page.locator(f"#{name}-plot .main-svg").count() > 0, name
        numbers = page.locator("#trials tbody tr").evaluate_all("all => all.map((row) => Number(row.dataset.trial))")
        assert numbers == [trial.number for trial in sweep_page.ranked(shown.trials)]
        assert page.locator("#trials tr.chosen").get_attribute("data-trial") == str(finished.best.number)
        assert evil in page.locator("#trials").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        check_themes(page, "#history-plot")
        for name in ("history", "learning"):
            ticks = ticks_between(page, f"{name}-plot", 0.03, 0.04)
            assert len({*ticks}) == len(ticks) > 2
        lines = "#together-plot .scatterlayer .js-line"
        bright = page.locator(lines).evaluate_all("all => all.map((line) => getComputedStyle(line).stroke)")
        page.locator("#theme").click()
        dim = page.locator(lines).evaluate_all("all => all.map((line) => getComputedStyle(line).stroke)")
        assert len(bright) == len(dim) > 1
        assert not {*bright} & {*dim}  # Optuna's lines too are in the colours of the theme


def test_trials_are_never_judged_by_other_images_than_those_before(tmp_path, capsys):
    images, labels = tiny(40, 2, size=8)
    write_folders(tmp_path / "pics", images, labels, ["cat", "dog"])
    recipe = replace(OWN, data=str(tmp_path / "pics"))
    sweep({"lr": [0.01, 0.1, 0.2]}, tmp_path / "s", recipe, trials=1)
    Image.fromarray(images[0]).save(tmp_path / "pics" / "cat" / "one-more.png")
    with pytest.raises(RuntimeError, match="have changed since it was begun, and its trials would be judged by other"):
        sweep({"lr": [0.01, 0.1, 0.2]}, tmp_path / "s", recipe, trials=2)
    (tmp_path / "pics" / "cat" / "one-more.png").unlink()
    assert len(sweep({"lr": [0.01, 0.1, 0.2]}, tmp_path / "s", recipe, trials=2).trials) == 2


def test_a_sweep_stops_where_its_images_changed_while_it_ran_and_goes_on_once_they_are_back(tmp_path, untrained):
    images, labels = tiny(40, 2, size=8)
    write_folders(tmp_path / "pics", images, labels, ["cat", "dog"])
    more = tmp_path / "pics" / "cat" / "one-more.png"

    def change(trials, total):
        if any(trial.ended for trial in trials):
            Image.fromarray(images[0]).save(more)

    recipe, space = replace(OWN, data=str(tmp_path / "pics")), {"gamma": [1.0, 2.0]}
    with pytest.raises(RuntimeError, match="have changed since it was begun, and its trials would be judged by other"):
        sweep(space, tmp_path / "s", recipe, watch=change)
    assert [trial.state for trial in read_sweep(tmp_path / "s").trials] == ["complete", "interrupted"]
    more.unlink()
    found = sweep(space, tmp_path / "s", recipe)
    assert [trial.state for trial in found.trials] == ["complete"] * 2
    assert {trial.values["gamma"] for trial in found.trials} == {1.0, 2.0}
    assert untrained[1:] == [untrained[1]] * 2  # once on either images


def test_trials_that_were_validated_on_different_images_are_said_to_be_whatever_varied(finished, tmp_path):
    def said():
        return " ".join(sweep_page.notes_of(read_sweep(tmp_path / "s")))

    shutil.copytree(finished.folder, tmp_path / "s")
    assert "different images" not in said()
    path = tmp_path / "s" / "trials" / f"{finished.best.number:04}" / "summary.json"
    summary = read_json(path)
    summary["data"]["val_sha256"] = "other"
    write_json(path, summary)
    assert "the data changed while the sweep went on, so that the trials are validated on different images" in said()


def test_trials_whose_weights_may_have_seen_the_validation_images_are_named(finished, tmp_path):
    def said():
        notes = sweep_page.notes_of(read_sweep(tmp_path / "s"))
        return [note.partition(" that its weights")[0] for note in notes if "may be among" in note]

    shutil.copytree(finished.folder, tmp_path / "s")
    complete = [trial.number for trial in finished.trials if trial.state == "complete"]
    assert said() == []
    told = []
    for number in complete:
        path = tmp_path / "s" / "trials" / f"{number:04}" / "summary.json"
        summary = read_json(path)
        write_json(path, {**summary, "data": {**summary["data"], "may_be_seen_by": {"val": ["a"], "test": ["a", "b"]}}})
        told += said()
    images = "its validation images may be among those"
    assert len(complete) > 2
    assert told[0] == f"trial {complete[0]}: {images}"
    assert told[1] == f"each of trials {complete[0]} and {complete[1]}: {images}"
    assert told[-1] == f"each trial: {images}"
    assert f"Each trial: {images}" in sweep_page.page(read_sweep(tmp_path / "s"))


def test_a_sweep_stops_where_its_images_changed_before_a_trial_that_is_pruned(tmp_path, monkeypatch, untrained):
    images, labels = tiny(40, 2, size=8)
    write_folders(tmp_path / "pics", images, labels, ["cat", "dog"])
    recipe, space = replace(OWN, data=str(tmp_path / "pics")), {"gamma": [1.0, 2.0]}
    sweep(space, tmp_path / "s", recipe, trials=1)

    def prune(recipe, folder, watch):
        Image.fromarray(images[0]).save(tmp_path / "pics" / "cat" / "one-more.png")
        raise optuna.TrialPruned

    monkeypatch.setattr(worker, "fit_on", prune)
    with pytest.raises(RuntimeError, match="would be judged by other images"):
        sweep(space, tmp_path / "s", recipe, trials=2)
    assert [trial.state for trial in read_sweep(tmp_path / "s").trials] == ["complete", "interrupted"]


def test_augmentation_that_crops_larger_images_is_swept_on_the_same_images(tmp_path):
    images, labels = tiny(40, 2, size=20)
    write_folders(tmp_path / "pics", images, labels, ["cat", "dog"])
    recipe = replace(OWN, data=str(tmp_path / "pics"), image_size=16)
    found = sweep({"augment": ["none", "rrc+flip"]}, tmp_path / "s", recipe)
    assert [trial.state for trial in found.trials] == ["complete"] * 2


def test_trials_are_never_judged_by_other_images_of_a_validation_folder_than_those_before(tmp_path, untrained):
    images, labels = tiny(40, 2, size=8)
    for split in ("train", "val", "test"):
        write_folders(tmp_path / "pics" / split, images, labels, ["cat", "dog"])
    recipe, space = replace(OWN, data=str(tmp_path / "pics")), {"gamma": [1.0, 2.0, 3.0]}
    sweep(space, tmp_path / "s", recipe, trials=1)
    gone = next((tmp_path / "pics" / "val" / "cat").glob("*.png"))
    kept = gone.rename(tmp_path / "kept.png")
    with pytest.raises(RuntimeError, match="would be judged by other images"):
        sweep(space, tmp_path / "s", recipe, trials=2)
    kept.rename(gone)
    assert len(sweep(space, tmp_path / "s", recipe, trials=2).trials) == 2


@pytest.mark.parametrize(("space", "grows"), [({"gamma": [1.0, 2.0]}, False), ({"train_images": [20, 30]}, True)])
def test_trials_on_more_images_than_those_before_are_refused_unless_their_number_varies(
    space, grows, tmp_path, untrained
):
    images, labels = tiny(40, 2, size=8)
    for split in ("train", "val", "test"):
        write_folders(tmp_path / "pics" / split, images, labels, ["cat", "dog"])
    recipe = replace(OWN, data=str(tmp_path / "pics"))
    sweep(space, tmp_path / "s", recipe, trials=1)
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    study = trials.open_sweep(tmp_path / "old").study
    study.set_user_attr("images", study.user_attrs["images"][:2])  # as sweeps had it before
    Image.fromarray(images[0]).save(tmp_path / "pics" / "train" / "cat" / "one-more.png")
    with nullcontext() if grows else pytest.raises(RuntimeError, match="would be trained on other images, 41 by now"):
        sweep(space, tmp_path / "s", recipe, trials=2)
    assert [trial.state for trial in sweep(space, tmp_path / "old", recipe, trials=2).trials] == ["complete"] * 2


@pytest.mark.long
def test_a_trial_that_cannot_go_on_in_a_copied_project_is_left_to_a_worker_that_can(tmp_path, monkeypatch):
    images, labels = tiny(40, 2, size=8)
    write_folders(tmp_path / "a" / "pics", images, labels, ["cat", "dog"])
    recipe, space = replace(OWN, data="pics", epochs=2), {"lr": [0.01, 0.1]}

    def stop(trials, total):
        if trials and trials[0].epochs:
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        sweep(space, "s", recipe, watch=stop)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for place, goes_on in (("b", False), ("a", True)):
        monkeypatch.chdir(tmp_path / place)
        with nullcontext() if goes_on else pytest.raises(RuntimeError, match="trial 0 continues where it was begun"):
            sweep(space, "s", recipe, trials=1)
        assert [trial.state for trial in read_sweep("s").trials] == ["complete" if goes_on else "interrupted"]
    monkeypatch.chdir(tmp_path / "b")
    shutil.rmtree(Path("s", "trials", "0000"))
    assert [trial.state for trial in sweep(space, "s", recipe, trials=1).trials] == ["complete"]


@pytest.mark.long
def test_the_best_recipe_is_of_the_data_of_its_trial_wherever_the_sweep_is_shown(tmp_path, monkeypatch, capsys):
    images, labels = tiny(40, 2, size=8)
    for place in ("here", "elsewhere"):
        write_folders(tmp_path / place / "pics", images, labels, ["cat", "dog"])
    monkeypatch.chdir(tmp_path / "here")
    sweep({"lr": [0.01, 0.1]}, "s", replace(OWN, data="pics"), trials=1)
    for place in ("here", "elsewhere"):
        monkeypatch.chdir(tmp_path / place)
        assert main(["sweep", "--out", str(tmp_path / "here" / "s"), "--show"]) == 0
        assert read_recipe(tmp_path / "here" / "s" / "best.yaml").data == str(tmp_path / "here" / "pics")
    (tmp_path / "here").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert read_sweep("s").best_recipe.data == str(tmp_path / "moved" / "pics")


@pytest.mark.long
def test_a_share_that_varied_is_no_matter_where_the_data_bring_their_validation_images(tmp_path):
    images, labels = tiny(40, 2, size=8)
    for split in ("train", "val"):
        write_folders(tmp_path / "own" / split, images, labels, ["cat", "dog"])
    write_folders(tmp_path / "drawn", images, labels, ["cat", "dog"])

    def said(name):
        recipe = replace(OWN, data=str(tmp_path / name))
        return " ".join(sweep_page.notes_of(sweep({"val_fraction": [0.1, 0.3]}, tmp_path / f"s-{name}", recipe)))

    assert "validated on different images" not in said("own")
    assert "val_fraction varied, so that the trials are validated on different images" in said("drawn")


@pytest.mark.long
def test_a_sweep_on_a_folder_whose_name_is_no_text_has_its_outcome(tmp_path):
    images, labels = tiny(40, 2, size=8)
    data = os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9t")
    write_folders(Path(data), images, labels, ["cat", "dog"])
    write_folders(tmp_path / "pics", images, labels, ["cat", "dog"])
    found = sweep({"data": [data, str(tmp_path / "pics")]}, tmp_path / "s", OWN, sampler="grid")
    *_, best = sweep_page.write_outcome(found)
    assert read_recipe(best).data in (data, str(tmp_path / "pics"))
    rows = csv.DictReader((tmp_path / "s" / "trials.csv").read_text(encoding="utf-8").splitlines())
    assert {Path(row["data"]).name for row in rows} == {"d\\udce9t", "pics"}
    one = replace(found, trials=tuple(trial for trial in found.trials if trial.values["data"] == data))
    assert read_recipe(sweep_page.write_outcome(one)[-1]).data == data


def test_what_is_under_way_in_a_sweep_is_said_now_and_then_and_to_who_looks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(screen, "PAUSE", 0.0)
    words = ["sweep", "--out", str(tmp_path / "s"), *flags(epochs=2), "--vary", "lr=0.1,0.2"]
    assert main([*words, "--trials", "1"]) == 0
    assert "0/1 trials, running 0 (1 epoch done)\n" in capsys.readouterr().out
    looked = replace(
        read_sweep(tmp_path / "s"), trials=(replace(read_sweep(tmp_path / "s").trials[0], state="running"),)
    )
    monkeypatch.setattr("auxnet.sweeps.sweeping.read_sweep", lambda *where: looked)
    assert main(["sweep", "--out", str(tmp_path / "s"), "--show"]) == 0
    out = capsys.readouterr().out
    assert "under way: 0 (2 epochs done)" in out
    assert " % so far" in out
    assert "&nbsp;% so far</td>" in (tmp_path / "s" / "sweep.html").read_text()


def test_slices_name_choices_as_the_table_does_and_keep_a_place_for_one_that_no_trial_drew():
    from optuna import create_study, create_trial, distributions, visualization

    study = create_study(storage=None)
    choices = {"mode": ("live", "fused", "it's"), "gamma": (0.0, 1.0), "lr": None}
    ranges = {
        name: distributions.CategoricalDistribution(values) if values else distributions.FloatDistribution(0, 1)
        for name, values in choices.items()
    }
    for params in ({"mode": "fused", "gamma": 0.0, "lr": 0.5}, {"mode": "it's", "gamma": 0.0, "lr": 0.1}):
        study.add_trial(create_trial(params=params, distributions=ranges, value=0.5))
    figure = sweep_page._slices(sweep_page._plain(visualization.plot_slice(study)))
    axes = {axis["title"]["text"]: axis for name, axis in figure["layout"].items() if name.startswith("xaxis")}
    found = {name: (axis.get("categoryarray"), axis.get("range")) for name, axis in axes.items()}
    assert found == {
        "mode": (["live", "fused", "it's"], [-0.5, 2.5]),
        "gamma": (["0.0", "1.0"], [-0.5, 1.5]),
        "lr": (None, None),
    }
    assert sorted(trace["x"] for trace in figure["data"] if "it's" in trace["x"]) == [["fused", "it's"]]
    assert {trace["marker"]["colorbar"]["dtick"] for trace in figure["data"]} == {1}  # no tick between two trials


@pytest.mark.parametrize(
    ("values", "alike"),
    [
        ({"discard_after": (None, 0.5)}, False),
        ({"alone": (None, 1)}, False),
        ({"alone": (1, 2)}, False),
        ({"weights": ((1.0, 0.0, 1.0), (0.0, 1.0, 1.0))}, False),
        ({"outputs": (2, 3)}, False),
        ({"at": ((3,), (5,))}, False),
        ({"depth": (8, 14)}, True),
        ({"depth": (8, 14), "placement": ("blocks", "blocks")}, False),
        ({"weights": ((0.5,), (1.0,)), "gamma": (2.0, 2.0)}, True),
    ],
    ids=str,
)
def test_means_over_different_outputs_are_said_not_to_compare(values, alike, finished):
    space = {field: Choices(each) for field, each in values.items()}
    drawn = [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)]
    pair = tuple(replace(finished.best, number=n, values=each) for n, each in enumerate(drawn))
    recipe = replace(finished.settings.recipe, outputs=3 if "weights" in values else None)
    shown = replace(finished, settings=replace(finished.settings, recipe=recipe, space=space), trials=pair)

    def said(sweep):
        return "means are over different outputs; --objective final" in " ".join(sweep_page.notes_of(sweep))

    assert said(shown) is not alike
    assert not said(replace(shown, settings=replace(shown.settings, objective="final")))
    assert not said(replace(shown, trials=pair[:1]))


def test_a_worker_that_joins_from_where_the_data_are_not_found_is_refused_and_fails_no_trial(
    tmp_path, untrained, monkeypatch
):
    images, labels = tiny(40, 2, size=8)
    for name in ("cats", "dogs"):
        write_folders(tmp_path / "here" / name, images, labels, ["cat", "dog"])
    (tmp_path / "elsewhere").mkdir()
    space, out = {"data": ["./cats", "./dogs"]}, tmp_path / "s"
    for place, asked, done in (("here", 1, 1), ("elsewhere", 2, 1), ("here", 2, 2)):
        monkeypatch.chdir(tmp_path / place)
        with nullcontext() if place == "here" else pytest.raises(ValueError, match=r"data=\./cats cannot be"):
            sweep(space, out, OWN, trials=asked)
        assert [trial.state for trial in read_sweep(out).trials] == ["complete"] * done


def test_a_value_that_goes_with_some_values_of_every_other_field_is_no_impossible_one(monkeypatch):
    space = {"method": ["joint", "multiway"], "mode": ["live", "fused"]}  # joint knows no mode
    space |= dict.fromkeys(("gamma", "floor", "lr", "momentum"), "0.1..0.5:0.1")
    monkeypatch.setattr(sweeping, "build", lambda *given: (SimpleNamespace(outputs=2), None))
    sweeping.check_space(Settings(TINY, space_from(space)))
    space["method"] = ["joint", "pairwise"]
    with pytest.raises(ValueError, match="mode=fused cannot be"):
        sweeping.check_space(Settings(replace(TINY, method="joint"), space_from(space)))


def test_the_best_recipe_says_where_data_lay_that_are_gone(tmp_path, monkeypatch):
    images, labels = tiny(40, 2, size=8)
    pics = tmp_path / "here" / "pics"
    write_folders(pics, images, labels, ["cat", "dog"])
    monkeypatch.chdir(tmp_path / "here")
    sweep({"lr": [0.01, 0.1]}, tmp_path / "s", replace(OWN, data="pics"), trials=1)
    pics.rename(tmp_path / "pics")
    *_, best = sweep_page.write_outcome(read_sweep(tmp_path / "s"))
    assert read_recipe(best).data == str(pics)
    monkeypatch.setenv("AUXNET_DATA", str(tmp_path))  # where they are found by their name
    assert read_sweep(tmp_path / "s").best_recipe.data_dir == str(tmp_path)


def test_a_warmup_is_held_against_the_epochs_of_the_sweep():
    space = space_from({"warmup": "5,40"})
    sweeping.check_space(Settings(replace(TINY, epochs=400), space))
    with pytest.raises(ValueError, match="warmup=40 cannot be: warmup must be 0 or more and below epochs=30"):
        sweeping.check_space(Settings(replace(TINY, epochs=30), space))
    with pytest.raises(ValueError, match="warmup must be 0 or more"):
        space_from({"warmup": "-1,5"})


LARGE = {"form": "imagenet", "depth": 18, "image_size": 32}  # they end as 1x1 pixels, of which one image is no batch


@pytest.mark.parametrize(
    ("space", "recipe", "complaint"),
    [
        ({"lr": [0.1, 0.2]}, {"discard_after": 5.0, "epochs": 3}, "discard_after=5 never acts in 3 epochs"),
        ({"train_images": [2, 50]}, {}, "train_images=2 cannot be: train_images must be at least 10"),
        ({"batch_size": [32, 33]}, {"train_images": 65, **LARGE}, "batch_size=32 cannot be: batch_size=32 leaves one"),
        ({"freeze": ["none", "trunk"]}, {}, "freeze=trunk cannot be: freeze='trunk' keeps pretrained weights"),
    ],
)
def test_a_value_with_which_no_training_can_begin_is_refused(space, recipe, complaint):
    settings = Settings(replace(TINY, **recipe), space_from(space))
    with pytest.raises(ValueError, match=re.escape(complaint)):
        sweeping.check_space(settings)


def test_a_sweep_that_is_stopped_before_it_is_begun_is_not_said_to_be_saved(tmp_path, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "check_space", stop)
    assert main(["sweep", "--out", str(tmp_path / "a"), "--vary", "lr=0.1,0.2"]) == 130
    assert capsys.readouterr().err == "auxnet: interrupted\n"
