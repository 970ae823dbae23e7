"""The command line as a person meets it: every error one line, the right exit status, nothing lost."""

import contextlib
import errno
import gc
import io
import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import auxnet
from auxnet import rundir, signals
from auxnet.__main__ import run as run_program
from auxnet.cli import COMMANDS, main, say, screen
from auxnet.cli.arguments import parse, parse_with_recipe
from auxnet.cli.export import _table
from auxnet.cli.report import Report
from auxnet.cli.train import Plan, Train
from auxnet.files import written_whole
from auxnet.prediction import Prediction
from auxnet.progress import Progress
from auxnet.recipe import Recipe, read_recipe, recipe_from, write_recipe

CIFAR = Path(__file__).parents[2] / "shared" / "data"
FAST = ["--depth", "8", "--epochs", "1", "--batch-size", "256", "--threads", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    assert main(["train", *FAST, "--out", str(folder)]) == 0
    return folder


def fails(capsys, words, status, *says):
    """The command fails with this status and one line that says all this."""
    assert main([str(w) for w in words]) == status
    out, err = capsys.readouterr()
    assert err.startswith("auxnet: ")
    assert err.count("\n") == 1, err
    for text in says:
        assert text in err
    return out


def on_a_terminal(monkeypatch, *streams):
    monkeypatch.setenv("TERM", "xterm")
    for stream in streams:
        monkeypatch.setattr(stream, "isatty", lambda: True)


def pictures(folder, sizes=((8, 8),) * 8, classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_train_ends_with_the_table_of_outputs_and_where_the_run_lies(tmp_path, capsys):
    assert main(["train", *FAST, "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    for word in ("output", "depth", "parameters", "MACs", "val. error", "test error", "epoch 1/1"):
        assert word in out
    assert out.rstrip().endswith(f"the run lies in {tmp_path / 'a'}")
    assert max(map(len, out.splitlines())) <= 160


@pytest.mark.parametrize("name", ["plan", "train"])
def test_images_that_cannot_be_read_are_named_once_before_a_training_and_by_its_plan(name, tmp_path, capsys):
    (pictures(tmp_path / "data") / "cat" / "broken.png").write_bytes(b"")
    words = ["--data", str(tmp_path / "data"), "--max-corrupt", "1", "--depth", "8", "--batch-size", "4"]
    words += ["--epochs", "1", "--out", str(tmp_path / "run")] if name == "train" else []
    assert main([name, *words, "--threads", "1"]) == 0
    said = "".join(capsys.readouterr())
    assert "warning: left out, unreadable, 1 image: " in said
    assert said.count("broken.png") == 1


def test_flags_win_over_the_file(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("depth: 8\nepochs: 1\nbatch_size: 256\nthreads: 1\noutputs: 2\n")
    assert main(["train", f"--config={tmp_path / 'r.yaml'}", "--outputs", "3", "--out", str(tmp_path / "a")]) == 0
    assert auxnet.load(tmp_path / "a").depths == (3, 5, 8)


@pytest.mark.parametrize(
    ("file", "words", "left", "says"),
    [
        ({"at": (5, 9)}, "--outputs 2", {"outputs": 2}, ["at=5 9 does not go with --outputs 2"]),
        ({"outputs": 2}, "--depth 14 --at 5 9", {"depth": 14, "at": (5, 9)}, ["outputs=2 does not go with --at 5 9"]),
        ({"outputs": 3}, "--at 5 9", {"outputs": 3, "at": (5, 9)}, []),
        ({"mode": "fused"}, "--method joint", {"method": "joint"}, ["mode=fused does not go with --method joint"]),
        ({"method": "joint"}, "--mode=fused", {"mode": "fused"}, ["method=joint does not go with --mode fused"]),
        ({"order": "deep_first"}, "--mode fused", {"mode": "fused"}, ["order=deep_first"]),
        ({"method": "joint", "aggregator": "Mean"}, "--method pairwise", {"method": "pairwise"}, ["aggregator=Mean"]),
        ({"schedule": "cosine"}, "--milestones 0.5", {"milestones": (0.5,)}, ["cosine does not go with --milestones"]),
        ({"schedule": "cosine"}, "--milestones 0.4 0.6", {}, ["cosine does not go with --milestones 0.4 0.6"]),
        ({"method": "joint"}, "--mode live", {}, ["method=joint does not go with --mode live"]),
        ({"weights": (0.3,)}, "--gamma 2", {}, ["weights=0.3 does not go with --gamma 2.0"]),
        ({"method": "pairwise"}, "--distill 0", {"method": "pairwise"}, []),
        ({"method": "joint"}, "--method joint --mode live", {"method": "joint"}, []),
        ({"gamma": 1, "floor": 0}, "--weights 0.3 1", {"weights": (0.3, 1)}, ["gamma=1.0", "floor=0.0"]),
        ({"weights": (0.3,)}, "--gamma 1", {"gamma": 1}, ["weights=0.3 does not go with --gamma 1.0"]),
        ({"sync_batchnorm": True}, "--compile", {"compile": True}, ["sync_batchnorm=True does not go with"]),
        ({"compile": True}, "--sync-batchnorm", {"sync_batchnorm": True}, ["compile=True does not go with"]),
        (
            {"backbone": "timm:x", "cuts": 3},
            "--depth 14",
            {"depth": 14},
            ["backbone=timm:x does not go with --depth 14", "cuts=3 does not go with backbone=none"],
        ),
    ],
)
@pytest.mark.parametrize("complete", [False, True], ids=["as typed", "as a run has it"])
def test_what_a_flag_excludes_of_the_file_is_left_out_and_said(file, words, left, says, complete, tmp_path):
    path = tmp_path / "r.yaml"
    if complete:
        write_recipe(Recipe(**file), path)
    else:
        path.write_text(json.dumps(file))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        options = parse_with_recipe(Plan, ["--config", str(path), *words.split()])
    assert options.recipe == recipe_from(left)
    assert len(told) == len(says)
    for warning, text in zip(told, says, strict=True):
        assert str(warning.message).startswith(f"{path}'s ")
        assert text in str(warning.message)


@pytest.mark.parametrize("words", ["--method joint --mode fused", "--at 5 9 --outputs 2", "--weights 1 --gamma 1"])
def test_flags_that_exclude_each_other_are_refused_whatever_the_file_says(words, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("mode: fused\noutputs: 2\ngamma: 1\n")
    for file in ([], ["--config", tmp_path / "r.yaml"]):
        fails(capsys, ["plan", *file, *words.split()], 2, "give one of the two" if "--at" in words else "out")


def test_a_run_goes_on_by_its_own_recipe_whichever_flags_of_the_defaults_are_given(tmp_path):
    joint = Recipe(method="joint")
    write_recipe(joint, tmp_path / "recipe.yaml", sealed=True)
    words = ["--resume", "--out", str(tmp_path)]
    assert parse_with_recipe(Train, [*words, "--mode", "live", "--gamma", "2"]).recipe == joint
    with pytest.raises(ValueError, match="method='joint'; leave state out"):
        _ = parse_with_recipe(Train, [*words, "--state", "shared"]).recipe


def test_a_training_that_learned_nothing_in_few_steps_says_so_and_what_may_help(tmp_path, capsys):
    few = ["--train-images", "40", "--epochs", "1", "--batch-size", "40", "--lr", "1e-6"]
    assert main(["train", *FAST, *few, "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "note: the least validation error is" in out
    assert " better than always predicting the most frequent class (" in out
    assert "note: an epoch has 1 step of 40 images: with --batch-size" in out


def test_plan_prints_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--depth", "14", "--outputs", "6", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    for word in ("lambda", "own step", "all steps", "decay", "MACs", "an epoch", "1,293 training"):
        assert word in out
    assert "warning: 6 outputs on 6 blocks" in out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_can_be_saved_as_the_recipe_that_it_is_of_and_replaces_no_file(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    words = ["plan", "--depth", "8", "--outputs", "2", "--train-images", "50", "--threads", "1", "--save", str(file)]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"to train by it: auxnet train --config {file}\n")
    assert read_recipe(file) == Recipe(depth=8, outputs=2, train_images=50, threads=1)
    fails(capsys, [*words, "--lr", "0.2"], 2, f"{file} exists: name another file with --save, or replace it")
    assert main([*words, "--lr", "0.2", "--overwrite"]) == 0
    assert read_recipe(file).lr == 0.2


def test_plan_shows_the_multipliers_of_each_method(capsys):
    def row(*words):
        assert main(["plan", "--depth", "8", "--gamma", "0", "--threads", "1", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.split()[-3:] for line in lines if line.split()[:1] in (["1"], ["2"], ["3"])]

    # lambda = 1, 1, 1: segment 1 lies below two auxiliary outputs, segment 2 below one, segment 3 below none
    assert row("--method", "joint") == [["0.500", "1.500", "0.500"], ["1.000", "2.000", "1.000"], ["1.000"] * 3]
    assert row("--method", "pairwise") == [["1.000", "3.000", "3.000"], ["1.000", "2.000", "2.000"], ["1.000"] * 3]
    assert row("--method", "multiway") == [["0.500", "2.500", "2.500"], ["1.000", "2.000", "2.000"], ["1.000"] * 3]


def test_plan_shows_the_weights_that_a_recipe_gives_itself(capsys):
    words = ["--method", "joint", "--weights", "0.3", "0.6", "1", "--discard-after", "15"]
    assert main(["plan", "--depth", "8", "--threads", "1", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "note: from epoch 16 on the auxiliary losses are discarded (discard_after)" in lines
    rows = [line.split() for line in lines if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert [next(word for word in row[2:] if "." in word) for row in rows] == ["0.3000", "0.6000", "1.0000"]


def test_evaluate_recomputes_the_table_from_what_was_saved(run, capsys):
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for row in json.loads((run / "summary.json").read_text())["last"]:
        assert f"{100 * row['test_error']:.2f}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: auxnet {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("evaluate", "RUN"),
        ("select", "RUN"),
        ("exits", "RUN"),
        ("report", "RUN ..."),
        ("diagnose", "RUN ..."),
        ("export", "MODEL"),
        ("predict", "MODEL IMAGE ..."),
        ("study", "[STUDY]"),
    ],
)
def test_help_names_what_stands_without_a_flag_and_gives_no_empty_default_of_it(command, names, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: auxnet {command} [-h] [OPTIONS] {names}\n")
    assert "default: " not in said.partition("positional arguments")[2].partition(" options ")[0]


def test_help_of_a_command_is_its_help_in_either_order(capsys):
    said = []
    for words in (["help", "train"], ["train", "--help"]):
        assert main(words) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["help"]) == main(["--help"]) == 0
    first, second = capsys.readouterr().out.split("usage: ")[1:]
    assert first == second
    fails(capsys, ["help", "trian"], 2, "there is no command 'trian'; perhaps you meant 'train'")


def test_help_and_import_do_not_wait_for_torch():
    code = "import sys, auxnet, auxnet.cli; auxnet.cli.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "there is no command 'trian'; perhaps you meant 'train'"),
        (["train", "--dept", "20"], "there is no option --dept; perhaps you meant --depth; see auxnet train --help"),
        (["train", "--complie"], "there is no option --complie; perhaps you meant --compile; see auxnet train --help"),
        (["train", "--no-nesterof"], "there is no option --no-nesterof; perhaps you meant --no-nesterov; see"),
        (["train", "--nesterof"], "there is no option --nesterof; perhaps you meant --nesterov; see"),
        (["train", "photos", "--dept", "20"], "there is no option --dept; perhaps you meant --depth; see"),
        (["train", "--data", "my", "photos"], "'photos' belongs to no option (does it lack a flag, or quotes"),
        (["train", "x,y"], "'x,y' belongs to no option"),
        (["train", ""], "'' belongs to no option"),
        (["train", "--schedule", "none"], "multistep, cosine, got 'none'; see"),
        (["export", "a", "--format", "cosine"], "onnx-early-exit, got 'cosine'; see"),
        (["train", "--method", "fused"], "pairwise, multiway, got 'fused'; perhaps you meant --mode; see"),
        (["train", "--depth", "x"], "--depth"),
        (["train", "--weights", "1", "1", "1", "1"], "weights must be one number for all auxiliary outputs"),
        (
            ["train", "--method", "pairwise", "--step-scale", "equilibrium"],
            "step_scale must be one of none, cumulative",
        ),
        (["train", "--aggregator", "UPGrad"], "aggregator='UPGrad' is joint's, but method='multiway'"),
        (["train", "--depth", "21"], "depth must be 6n + 2"),
        (["train", "--method", "jint"], "'jint'"),
        (["train", "--at", "9", "7"], "at must be increasing layers"),
        (["train", "--at", "7", "99"], "at must be increasing layers in 3..17"),
        (["train", "--outputs", "99"], "outputs must lie in 1..9"),
        (["train", "--data", "cifar11"], "cifar10"),
        (["train", "--data", "/no/such/folder"], "/no/such/folder"),
        (["train", "--optimizer", "SDG"], "perhaps you meant 'SGD'"),
        (["train", "--optimizer", "LBFGS"], "LBFGS"),
        (["train", "--device", "fpga"], "device 'fpga'"),
        (["train", "--config", "/no/file.yaml"], "there is no recipe file /no/file.yaml"),
        (["train", "--resume"], "name it with --out"),
        (["train", "--method", "joint", "--step-scale", "adaptive"], "step_scale must be one of none, sum"),
        (["train", "--mode", "fused", "--step-scale", "adaptive"], "constant ratio"),
        (["evaluate"], "RUN is missing: the run directory; see auxnet evaluate --help"),
        (["export"], "MODEL is missing: a run, a folder"),
        (["evaluate", "/no/run"], "/no/run is not a run directory"),
        (["plan", "--depth", "22"], "the nearest are 20 and 26"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else None,
)
def test_what_cannot_be_asked_for_is_one_line_and_status_2(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, words, 2, says)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_recipe_key_names_the_file_and_the_right_one(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("epocs: 3\n")
    fails(capsys, ["train", "--config", tmp_path / "r.yaml"], 2, "r.yaml", "'epocs'", "'epochs'")


def test_a_data_set_that_is_not_there_says_where_it_was_looked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(
        capsys,
        ["train", "--data", "svhn", "--data-dir", tmp_path, "--out", tmp_path / "a"],
        2,
        str(tmp_path),
        "data_dir",
    )


def test_pictures_train_and_bad_ones_are_named(tmp_path, capsys):
    good = pictures(tmp_path / "good")
    assert main(["train", "--data", str(good), *FAST, "--outputs", "2", "--out", str(tmp_path / "a")]) == 0
    capsys.readouterr()

    (good / "dog" / "3.png").write_bytes((good / "dog" / "3.png").read_bytes()[:60])
    fails(capsys, ["train", "--data", good, *FAST, "--out", tmp_path / "b"], 1, "3.png")

    unequal = pictures(tmp_path / "unequal", sizes=[(8, 8), (9, 7), (8, 8), (8, 8)])
    fails(capsys, ["train", "--data", unequal, *FAST, "--out", tmp_path / "c"], 2, "--image-size")

    one = pictures(tmp_path / "one", classes=["cat"])
    fails(capsys, ["train", "--data", one, *FAST, "--out", tmp_path / "d"], 2, "class")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train --out", "--out must be none or a path"),
        ("sweep --vary lr=0.1,0.2 --out", "--out must be none or a path"),
        ("study methods --report", "--report must be none or a path"),
        ("report RUN --out", "--out must be none or a path"),
        ("export", "MODEL must be a name"),
        ("evaluate", "RUN must be a path"),
        ("predict RUN", "IMAGE ... must be names"),
    ],
)
def test_an_empty_word_is_not_the_current_folder(words, named, run, capsys):
    fails(
        capsys, [run if w == "RUN" else w for w in words.split()] + [""], 2, f"{named}, got '': is a variable not set?"
    )


def test_an_existing_run_is_never_overwritten_by_accident(run, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    fails(capsys, ["train", *FAST, "--out", run], 2, "--resume", "--overwrite")
    fails(capsys, ["train", *FAST, "--seed", "5", "--out", run, "--resume"], 2, "was begun with seed=0")
    fails(capsys, ["train", *FAST, "--epochs", "2", "--out", run, "--resume"], 2, f"weights by --pretrained {run}")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_run_that_is_replaced_by_another_recipe_is_told_by_what_differs(run, tmp_path, capsys, monkeypatch):
    def one_epoch(*args, watch, **options):
        step = Progress(1, 2, 1, 2, 1.0, 1.0, [], [], 0.1)
        watch(step)
        before = capsys.readouterr().out
        for _ in range(2):
            watch(replace(step, step=2, done=True))
        assert before.startswith("training into ")
        assert before.count("\n") == 1  # nothing is saved yet, and the run that was there is there still
        raise ValueError("not now")

    def told(*words, out=run):
        assert main(["train", *FAST, "--out", str(out), "--overwrite", *words]) == 2
        return [
            line for line in capsys.readouterr().out.splitlines() if not line.startswith(("epoch", "training into"))
        ]

    with rundir.locked(run):  # another process trains in it: nothing is replaced
        assert told("--lr", "0.02") == []
    monkeypatch.setattr("auxnet.train.fit", one_epoch)
    assert told(out=tmp_path / "new") == told("--device", "cpu") == []
    assert told("--outputs", "2", "--lr", "0.02") == ["replaces a run that had outputs=none, lr=0.1"]
    many = ["--block", "plain", "--gamma", "1", "--lr", "0.2", "--momentum", "0.5", "--seed", "3"]
    assert told(*many) == ["replaces a run that had block=preact, gamma=2.0, lr=0.1, momentum=0.9, seed=0"]


@contextlib.contextmanager
def mounted(folder, options):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs needs rights that are not had here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_status_1(tmp_path, capsys):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        (disk / "precious.txt").write_text("kept")
        fails(capsys, ["train", *FAST, "--out", disk / "a"], 1, "No space left")
        assert (disk / "precious.txt").read_text() == "kept"
        assert not list(disk.rglob("*.partial"))


def test_a_read_only_folder_is_one_line_and_status_1(run, tmp_path, capsys):
    with mounted(tmp_path / "disk", "ro") as disk:
        fails(
            capsys, ["train", *FAST, "--out", disk / "a"], 1, f"{disk}/a cannot be written to (Read-only file system)"
        )
        fails(capsys, ["report", run, "--out", disk / "b.html"], 1, f"{disk}/b.html cannot be written (Read-only file")


@pytest.mark.long
def test_an_interrupt_is_130_and_the_run_goes_on_with_resume(tmp_path):
    command = [sys.executable, "-m", "auxnet", "train", *FAST, "--out", str(tmp_path / "a")]
    command[command.index("--epochs") + 1] = "200"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith(("auxnet: stopped after epoch ", "auxnet: stopped in epoch "))
    assert err.endswith(f"the run is saved in {tmp_path / 'a'}, --resume (resume=True) goes on with it\n")
    assert (tmp_path / "a" / "checkpoints" / "best.safetensors").exists()
    resumed = [sys.executable, "-m", "auxnet", "train", "--out", str(tmp_path / "a"), "--resume", "--epochs", "3"]
    done = subprocess.run(resumed, capture_output=True, text=True, check=False)
    assert done.returncode == 2  # by its own recipe, which says 200 epochs
    assert "was begun with epochs=200" in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_was_begun_is_cleared_away_when_the_program_is_asked_to_stop(
    number, status, tmp_path, monkeypatch, capsys
):
    def slow(*args, **kwargs):
        with written_whole(tmp_path / "out.onnx") as partial:
            partial.write_bytes(b"half")
            os.kill(os.getpid(), number)

    monkeypatch.setattr("auxnet.exporting.export", slow)
    assert main(["export", "run", "--out", str(tmp_path / "out.onnx")]) == status
    assert not any(tmp_path.iterdir())
    assert capsys.readouterr().err.count("\n") == 1


def test_sigterm_clears_up_also_in_the_background_of_a_shell_where_ctrl_c_is_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.raised(), pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_is_ignored_as_in_the_background_of_a_script_is_not_heard_while_work_is_held():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.held() as signal_received:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal_received() == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal_received() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)


def test_tables_go_by_columns_where_they_go_to_a_file(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert screen.console().width >= 160
    for columns, width in (("80", 80), ("0", 160), ("", 160), ("wide", 160)):
        monkeypatch.setenv("COLUMNS", columns)
        assert screen.console().width == width


def test_of_an_option_given_twice_the_last_is_taken(tmp_path, capsys):
    for depth in (8, 14):
        (tmp_path / f"{depth}.yaml").write_text(f"depth: {depth}\noutputs: 1\nbatch_size: 2\n")
    assert main(["plan", "--config", str(tmp_path / "8.yaml"), "--config", str(tmp_path / "14.yaml")]) == 0
    assert " 14 " in capsys.readouterr().out


def test_names_of_any_bytes_and_a_reader_that_goes_away_end_in_good_order(run, monkeypatch):
    """ASCII alone on the way out, any bytes on the way in."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii", errors) for errors in ("strict", "backslashreplace"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no\xff.png\n\xc3\xa9.png\n"), "ascii"))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["predict", str(run), "-", "--format", "csv"]) == 1  # they are not there
    err.flush()
    assert err.buffer.getvalue().count(b"there is no such file") == 2
    there, here = os.pipe()
    os.close(there)
    with os.fdopen(here, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main(["select", str(run)]) == 0
        assert gone is not sys.stdout
        sys.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            gone.close()


@pytest.mark.long
def test_names_and_pipes_of_any_kind_end_in_good_order(run):
    """ASCII alone on the way out, any bytes on the way in, and a reader that goes away."""
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "auxnet"]
    done = subprocess.run(
        [*words, "predict", str(run), "-", "--format", "csv"],
        input=b"no\xff.png\n\xc3\xa9.png\n",
        env=plain,
        capture_output=True,
    )
    assert done.returncode == 1  # they are not there
    assert done.stderr.count(b"there is no such file") == 2
    shell = f"'{sys.executable}' -m auxnet select '{run}' | true; echo ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", shell], capture_output=True).stdout.strip() == b"0"


@pytest.mark.parametrize(
    ("words", "trains", "goes_on"),
    [
        ("train", "auxnet.train.fit", "--resume"),
        ("sweep --vary lr=0.1,0.2", "auxnet.sweeps.sweeping.sweep", "the same command"),
        ("study own.yaml", "auxnet.studies.running.train", "the same command"),
    ],
)
def test_a_training_that_nobody_reads_any_more_stops_and_says_how_it_goes_on(
    words, trains, goes_on, tmp_path, monkeypatch, capsys
):
    def unread(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("question: q\nvariants: {a: {depth: 8}}\nscales: {s: {seeds: 1, base: {epochs: 1}}}\n")
    monkeypatch.setattr(trains, unread)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main([*words.split(), "--out", "a", "--device", "cpu", "--threads", "1"]) == 141
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"auxnet: nobody reads the output any more: stopped; {goes_on} goes on with it"


def test_of_standard_output_that_is_full_it_is_said_so(monkeypatch, capsys):
    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Full())))
    fails(capsys, ["--version"], 1, "auxnet: standard output: No space left on device")


def test_once_a_command_is_done_ctrl_c_ends_the_interpreter_without_a_word(monkeypatch):
    monkeypatch.setattr("auxnet.__main__.main", lambda: 3)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end:
            run_program()
        assert (end.value.code, signal.getsignal(signal.SIGINT)) == (3, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGINT, before)
        gc.unfreeze()


def test_an_unexpected_error_is_still_one_line(run, capsys, monkeypatch):
    monkeypatch.setattr("auxnet.train.tables", lambda *a: {}["nothing"])
    monkeypatch.setattr("auxnet.run_data.load_data", lambda *a: {}["nothing"])
    fails(capsys, ["evaluate", run], 1, "unexpected KeyError", "AUXNET_DEBUG")


def test_of_a_gpu_that_is_full_it_is_said_what_helps(run, capsys, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
        )

    monkeypatch.setattr("auxnet.run_data.load_data", full)
    fails(capsys, ["evaluate", run], 1, "auxnet: CUDA out of memory: a smaller --batch-size, --precision bfloat16, or")


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs ../shared/data")
def test_the_real_cifar10_is_found_in_a_data_dir(capsys):
    os.environ.pop("AUXNET_CACHE")  # decoded once, kept for the next run of the tests
    words = [
        "plan",
        "--data",
        "cifar10",
        "--data-dir",
        str(CIFAR),
        "--depth",
        "8",
        "--batch-size",
        "8",
        "--threads",
        "1",
    ]
    assert main(words) == 0
    assert "45,000 training, 5,000 validation and 10,000 test images" in capsys.readouterr().out


def told(width):
    """A table on a terminal of so many columns, as lines."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    table = screen.table("the outputs", "output", "", "points behind the chosen", "McNemar's p", "")
    table.add_row("1", "chosen", "+6.67 (-3.3 .. +16.7)", "0.062", "")
    table.add_row("2", "", "+0.10 (-1.3 .. +1.5)", "1", "")
    screen.print_table(console, table)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_a_long_epoch_is_told_of_where_the_output_is_no_terminal_with_losses_while_there_are_no_errors(monkeypatch):
    console = Console(width=160, file=io.StringIO())
    begun = Progress(1, 2, 3, 9, 70.0, 65.0, [], [2.3, 1.0], 0.1)
    for pause, lines in ((60.0, 1), (0.0, 3)):
        monkeypatch.setattr(screen, "PAUSE", pause)
        with screen.training_progress(console) as watch:
            for now in (begun, replace(begun, step=9), replace(begun, step=9, done=True, val_errors=[0.5, 0.25])):
                watch(now)
        told = console.file.getvalue().splitlines()
        assert len(told) == lines
        assert told[-1] == "epoch 1/2  70 images/s  1:05 min left  val. error 50.0 / 25.0 %"
        console.file = io.StringIO()
    assert told[0] == "epoch 1/2  70 images/s  1:05 min left  loss 2.300 / 1.000"


def test_a_terminal_too_narrow_for_a_table_breaks_its_heads_then_splits_it_and_loses_no_figure():
    assert any("points behind the chosen" in line for line in told(90))
    broken = told(57)
    assert [line.split() for line in broken if line][1:3] == [
        ["points", "behind", "the", "McNemar's"],
        ["output", "chosen", "p"],
    ]
    assert any("+6.67 (-3.3 .. +16.7)       0.062" in line for line in broken)
    parts = [line.split("   ") for line in told(40) if line.startswith(("output", "1", "2"))]
    one, two = "+6.67 (-3.3 .. +16.7)", "+0.10 (-1.3 .. +1.5)"
    assert [[cell.strip() for cell in line if cell.strip()] for line in parts] == [
        *(["output"], ["1", "chosen"], ["2"]),
        *(["output", "chosen"], ["1", one], ["2", two]),
        *(["output", "p"], ["1", "0.062"], ["2", "1"]),
    ]
    assert told(30)[1:] == [
        "- output 1, chosen, points behind the chosen +6.67 (-3.3 .. +16.7), McNemar's p 0.062",
        "- output 2, points behind the chosen +0.10 (-1.3 .. +1.5), McNemar's p 1",
    ]


def test_many_pictures_are_told_on_a_narrow_terminal_one_by_one_without_a_broken_word(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _table(iter([Prediction("pics/[b].png", 3, ("cat", "dog"), (0.75, 0.25), None)] * 25), 2, sys.stdout)
    told = "- image pics/[b].png, output 3, class cat, probability 75.00 %, then dog 25.00 %\n"
    assert capsys.readouterr().out == told * 25


def test_names_like_markup_or_emoji_are_printed_as_they_stand(capsys, monkeypatch):
    console = screen.console()
    table = screen.table("c[lr=0.1]", "g[/new]", ":dog:")
    table.add_row("[none]", "run:cat:1")
    screen.print_table(console, table)
    screen.print_line(console, "auxnet report run:cat:1[b]")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert lines == [["c[lr=0.1]"], ["g[/new]", ":dog:"], ["[none]", "run:cat:1"], ["auxnet", "report", "run:cat:1[b]"]]
    _table(iter([Prediction("[b]:cat:.png", 3, ("[none]", "dog [old]"), (0.75, 0.25), None)]), 2, file := io.StringIO())
    assert " ".join(file.getvalue().split()).endswith("─ [b]:cat:.png 3 [none] 75.00 % dog [old] 25.00 %")
    on_a_terminal(monkeypatch, sys.stdout, sys.stderr)
    with screen.working("diagnosing g[/new]:cat:"), screen.live_bar(screen.console(), "c[b]:cat:", "") as update:
        update(result="d[/b]:dog:")
    told = capsys.readouterr()
    assert "diagnosing g[/new]:cat:" in told.err
    assert "c[b]:cat:" in told.out
    assert "d[/b]:dog:" in told.out


WATCHED = """
import sys
from auxnet.cli import main, screen

def load_torch():
    imported.append("torch" in sys.modules)
    raise RuntimeError

imported, screen.load_torch = [], load_torch
codes = [main(words.replace("RUN", sys.argv[1]).split()) for words in sys.argv[2:]]
print(imported, codes)
"""


def test_every_command_gives_a_sign_of_life_before_pytorch_is_imported(run):
    commands = [
        *("train", "train --resume --out RUN", "plan", "evaluate RUN", "select RUN", "exits RUN", "diagnose RUN"),
        *("report RUN", "export RUN", "predict RUN x", "sweep --vary lr=0.1,0.2 --out x", "sweep --show --out x"),
        "study compact",
    ]
    done = subprocess.run([sys.executable, "-c", WATCHED, str(run), *commands], capture_output=True, text=True)
    assert done.stdout == f"{[False] * len(commands)} {[1] * len(commands)}\n", done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--epochs", "five"], "--epochs must be a whole number, got 'five'"),
        (["train", "--method", "foo"], "--method must be one of joint, pairwise, multiway, got 'foo'"),
        (["train", "--at", "7", "b"], "--at must be none or whole numbers, got '7', 'b'"),
        (["train", "--config", "/"], "/ is a folder: name a recipe file"),
        (["train", "--at", "7", "100"], "at must be increasing layers in 3..17, each the end of a block"),
        (["train", "--milestones", "a"], "--milestones must be numbers, got 'a'"),
        (["train", "--epochs", "0"], "epochs must be 1 or more, got 0"),
        (["select", "RUN", "--within", "x"], "--within must be none or a number, got 'x'"),
        (["export", "RUN", "--output", "two"], "--output must be none or a whole number, got 'two'"),
        (["train", "--at", "3,5"], "--at must be none or whole numbers, got '3,5': give them with spaces between;"),
        (
            ["train", "--milestones", "0.4,0.6"],
            "--milestones must be numbers, got '0.4,0.6': give them with spaces between;",
        ),
        (["train", "--lr", "0,1"], "--lr must be a number, got '0,1';"),
        (["train", "--nesterov", "false"], "--nesterov takes no value: give --no-nesterov;"),
        (["train", "--nesterov=True"], "--nesterov takes no value: give it alone;"),
        (["train", "--resume", "false"], "--resume takes no value: leave it out;"),
        (["exits", "RUN", "--temperature=false"], "--temperature takes no value: give --no-temperature;"),
        (["train", "--device", "gpu"], "device must be auto, cpu, cuda, cuda:NUMBER or mps, got 'gpu'"),
        (["plan", "--save", "nowhere/r.yaml"], "there is no folder nowhere to save r.yaml in: make it first"),
    ],
)
def test_a_value_of_the_wrong_kind_is_said_in_words(words, said, capsys, tmp_path):
    assert main([*words, *(["--out", str(tmp_path / "run")] if words[0] == "train" else [])]) == 2
    assert capsys.readouterr().err.startswith(f"auxnet: {said}")


@pytest.mark.parametrize(("rank", "said"), [("0", "auxnet: stopped after epoch 1\n"), ("1", "")])
def test_of_many_processes_that_are_stopped_the_first_says_so(rank, said, monkeypatch, capsys):
    def stop(words):
        raise signals.Stopped(signal.SIGTERM, "stopped after epoch 1")

    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("auxnet.cli.train.train", stop)
    assert main(["train"]) == 143
    assert capsys.readouterr().err == said


def test_a_command_that_processes_do_not_share_speaks_in_each(run, monkeypatch, capsys):
    """Clusters set RANK, and some WORLD_SIZE, in every shell."""
    monkeypatch.setenv("RANK", "1")
    fails(capsys, ["train", "--depth", "7"], 2, "depth")
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(capsys, ["train"], 2, "WORLD_SIZE says 2 processes, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "--depth", "7"]) == 2
    assert capsys.readouterr().err == ""
    assert main(["select", str(run)]) == 0
    assert "output" in capsys.readouterr().out
    fails(capsys, ["select", f"{run}-not"], 2, "is not a run directory")


@pytest.mark.parametrize("words", ["plan --at --depth 8", "plan --depth 8 --milestones", "study smoke --only"])
def test_a_list_of_nothing_is_asked_about(words, capsys):
    fails(capsys, words.split(), 2, "got '': is a variable not set?")


def test_none_is_the_word_for_all_variants_of_a_study(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "methods", "--scale", "smoke", "--only", "none", "--show"]) == 0
    assert "joint" in capsys.readouterr().out


def test_a_study_is_named_before_its_variants(capsys):
    """A flag of many words takes the name too."""
    fails(capsys, ["study", "--only", "resnet-20", "compact"], 2, "name the study first: auxnet study NAME --only")


def test_a_warning_that_nobody_can_read_ends_nothing(run, monkeypatch, capsys, tmp_path):
    class Gone(io.StringIO):
        def write(self, text):
            if text:
                raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    (tmp_path / "bad.png").write_text("no picture")
    assert main(["predict", str(run), str(tmp_path / "bad.png"), "--format", "csv"]) == 1
    assert capsys.readouterr().out.startswith("image,")
    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["select", str(run), "--within", "0.01"]) == 0  # warns
    assert capsys.readouterr().out


@pytest.mark.parametrize("columns", ["1", "60"])
def test_how_narrow_a_terminal_is_breaks_no_word_of_a_message(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    path = "/home/someone" + "/very" * 20
    fails(capsys, ["train", "--epochs", path], 2, f"got '{path}'; see auxnet train --help")
    assert main(["exits", "--help"]) == 0
    assert os.environ["COLUMNS"] == columns


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"FORCE_COLOR": "1"}], ids=str)
def test_what_cannot_be_drawn_anew_is_told_line_by_line(environment, monkeypatch, capsys):
    if "TERM" in environment:
        on_a_terminal(monkeypatch, sys.stdout, sys.stderr)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = screen.console()
    assert not screen.redraws(console)
    with screen.working("reading"), screen.live_bar(console, "training", "--resume") as update:
        update(result="half")
    told = capsys.readouterr()
    assert (told.out, told.err.strip()) == ("", "")


def test_warnings_of_a_training_go_where_errors_go(monkeypatch, capsys):
    """As `auxnet train 2> warnings` on a terminal asks."""
    on_a_terminal(monkeypatch, sys.stdout)
    with screen.live_bar(screen.console(), "training", "--resume"):
        say("warning: it diverges")
    told = capsys.readouterr()
    assert told.err == "auxnet: warning: it diverges\n"
    assert "diverges" not in told.out


def test_an_interrupt_with_nothing_to_save_says_that_it_was_one(monkeypatch, capsys):
    def stopped(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("auxnet.cli.report.report", stopped)
    assert main(["report", "run"]) == 130
    assert capsys.readouterr().err == "auxnet: interrupted\n"


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_command_with_no_words_at_all_takes_its_defaults(command, tmp_path, monkeypatch, capsys):
    """`auxnet train` is what `make demo` runs."""

    def reached(*given, **more):
        raise RuntimeError("the default recipe was taken")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"auxnet.{command}.load_data", reached)
    fails(capsys, [command], 1, "the default recipe was taken")


def test_help_calls_an_option_left_open_none_and_takes_it_so(capsys):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--out none|PATH" in said
    assert "--at none|INT ..." in said
    for section in ("data", "network", "method", "training", "machine"):
        assert f"{section} options" in said
    assert "{None}" not in said
    for word in ("none", "None"):
        recipe = parse(Plan, ["--outputs", word, "--data-dir", word, "--threads", word]).recipe
        assert (recipe.outputs, recipe.data_dir, recipe.threads) == (None, None, None)


SWALLOWS = """
print("importing", flush=True)
import time
try:
    time.sleep(0.5)
except BaseException as error:
    print("swallowed", type(error).__name__, flush=True)
"""
IMPORTS = """
import signal, sys
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits Ctrl-C ignored
from auxnet.cli.screen import load_torch
try:
    load_torch()
except KeyboardInterrupt as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "KeyboardInterrupt \n"), (signal.SIGTERM, "Stopped stopped\n")]
)
def test_who_asks_the_program_to_stop_while_it_imports_pytorch_is_heard_at_its_end(number, said, tmp_path):
    """What is raised in it torch takes for numpy's absence, and the program goes on."""
    (tmp_path / "torch.py").write_text(SWALLOWS)
    process = subprocess.Popen([sys.executable, "-c", IMPORTS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == (said, 0)


@pytest.mark.long
def test_a_run_that_is_taken_up_says_where_it_goes_on(tmp_path, capsys):
    def stop(progress):
        if (progress.epoch, progress.step) == (1, 2):
            os.kill(os.getpid(), 15)

    recipe = auxnet.Recipe(depth=8, epochs=2, batch_size=256, threads=1)
    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(recipe, tmp_path / "a", watch=stop)
    words = ["train", "--out", str(tmp_path / "a"), "--resume"]
    assert main(words) == 0
    assert "/a, goes on in epoch 1, step 3\n" in capsys.readouterr().out
    summary = tmp_path / "a" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "wall_seconds": 12345.6, "commit": "abc"}))
    assert main(words) == 0
    assert "it was finished already: nothing was left to train\n" in capsys.readouterr().out
    again = json.loads(summary.read_text())
    assert (again["wall_seconds"], again["commit"]) == (12345.6, "abc")
    for damaged in ("5", "{"):
        summary.write_text(damaged)
        assert main(words) == 0
        assert json.loads(summary.read_text())["epochs"] == again["epochs"]


def test_flags_offer_what_the_functions_behind_them_take():
    """`--help` answers before torch is imported, so that these lists stand twice."""
    from auxnet import exporting, policy, solving
    from auxnet.cli.exits import Exits
    from auxnet.cli.export import Export

    exits, export = get_type_hints(Exits), get_type_hints(Export)
    assert (exits["cost"], exits["confidence"]) == (solving.Cost, policy.Confidence)
    assert (export["format"], export["confidence"]) == (exporting.Format, Literal["none", policy.Confidence])


def test_a_recipe_that_a_full_disk_has_no_room_for_leaves_the_one_that_lay_there(tmp_path, capsys, monkeypatch):
    def full(recipe, path):
        Path(path).touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file, words = tmp_path / "recipe.yaml", ["plan", "--depth", "8", "--outputs", "2", "--train-images", "50"]
    write_recipe(Recipe(lr=0.2), file)
    monkeypatch.setattr("auxnet.cli.train.write_recipe", full)
    fails(capsys, [*words, "--threads", "1", "--save", file, "--overwrite"], 1, f"{file}: No space left on device")
    assert read_recipe(file).lr == 0.2
    assert list(tmp_path.iterdir()) == [file]
    for other in (tmp_path, "/dev/null"):
        fails(capsys, [*words, "--save", other, "--overwrite"], 2, f"{other} is no file: name one with --save")


def test_a_flag_that_is_a_path_expands_the_users_home_as_a_shell_does_before_a_space(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_recipe(Recipe(lr=0.2), tmp_path / "r.yaml")
    options = parse_with_recipe(Train, ["--config=~/r.yaml", "--out=~/runs/a"])
    assert options.out == tmp_path / "runs" / "a"
    assert options.recipe.lr == 0.2
    assert parse(Report, ["~/runs/a", "~b", "--out=~/page.html"]) == Report(
        (tmp_path / "runs" / "a", Path("~b")), out=tmp_path / "page.html"
    )
    (tmp_path / "runs" / "a").mkdir(parents=True)
    write_recipe(Recipe(lr=0.4), tmp_path / "runs" / "a" / "recipe.yaml")
    assert parse_with_recipe(Train, ["--out=~/runs/a", "--resume"]).recipe.lr == 0.4


@pytest.mark.parametrize("wrong", [3, None, "~/a.onnx"])
def test_in_python_what_is_no_path_to_write_to_is_refused_by_its_name(wrong, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    says = f"^out must be a path, got {wrong}$"
    if wrong == "~/a.onnx":
        says = f"^out must be a path with ~ written out, got '~/a.onnx': give '{tmp_path}/a.onnx'$"
    kind = ValueError if wrong == "~/a.onnx" else TypeError
    calls = [lambda: auxnet.fit(Recipe(), wrong), lambda: auxnet.sweep({"gamma": [1]}, wrong)]
    if wrong is not None:  # which stands for a path of their own
        calls += [lambda: auxnet.export(run, out=wrong), lambda: auxnet.write_report(run, wrong)]
    for call in calls:
        with pytest.raises(kind, match=says):
            call()
    assert not list(tmp_path.iterdir())


def test_no_name_of_a_class_or_a_run_gives_the_terminal_an_order(capsys, monkeypatch):
    name, console = "cat\x1b[31m\x9b\x07\n", screen.console()
    table = screen.table(name, "class", name)
    table.add_row(name, "1")
    screen.print_table(console, table)
    screen.print_line(console, f"output 1 errs most on {name}")
    _table(iter([Prediction(name, 3, (name,), (0.75,), None)]), 1, sys.stdout)
    out = capsys.readouterr().out
    assert out.count(r"cat\x1b[31m\x9b\x07\n") == 6
    assert not set(out) & set("\x1b\x9b\x07")
    on_a_terminal(monkeypatch, sys.stderr)
    with screen.working(name):
        pass
    assert r"cat\x1b[31m\x9b\x07\n" in capsys.readouterr().err


def test_ctrl_c_while_the_program_is_imported_ends_it_without_a_traceback():
    finder = """
import os, signal, sys

class Interrupts:
    def find_spec(name, path=None, target=None):
        if name == "auxnet.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts)
import auxnet.__main__
"""
    done = subprocess.run([sys.executable, "-c", finder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
