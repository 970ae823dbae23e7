"""Faults, really made: whatever stops a training, it goes on, and ends with the bytes of a run never stopped."""

import contextlib
import errno
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import auxnet
from auxnet import checkpoint, report, resuming, rundir, signals, train, unfinished
from auxnet.cli import main
from auxnet.documents import read_json
from auxnet.files import write_json
from auxnet.recipe import Recipe, write_recipe
from auxnet.tensors import read_about, save_tensors

STEPS = 6  # of an epoch
TINY = Recipe(
    depth=8, outputs=3, epochs=3, train_images=16 * STEPS, batch_size=16, threads=1, device="cpu", augment="crop+flip"
)


def bytes_of(folder):
    return (folder / "model.safetensors").read_bytes(), (folder / "checkpoints" / "best.safetensors").read_bytes()


def rows_of(folder):
    return [{**row, "seconds": 0} for row in rundir.read_metrics(folder)]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))


def at(epoch, step, act):
    """A `watch` that acts after this step."""

    def watch(progress):
        if (progress.epoch, progress.step) == (epoch, step) and not progress.done:
            act()

    return watch


def goes_on_to_the_same_end(folder, whole, recipe=TINY):
    auxnet.fit(recipe, folder, resume=True)
    assert bytes_of(folder) == bytes_of(whole)
    assert rows_of(folder) == rows_of(whole)
    told, expected = (read_json(path / "summary.json") for path in (folder, whole))
    for what in ("last", "best", "epochs"):
        assert told[what] == expected[what]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    return auxnet.fit(TINY, tmp_path_factory.mktemp("runs") / "whole").folder


# ---- signals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "step"),
    [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 2), (signal.SIGINT, 130, STEPS), (signal.SIGTERM, 143, STEPS)],
)
@pytest.mark.enough(2)  # the first and the third: each signal, and each place
def test_a_signal_lets_the_step_end_and_saves(tmp_path, whole, number, status, step):
    with pytest.raises(signals.Stopped, match=f"stopped in epoch 2, after step {step}; the run is saved") as stop:
        auxnet.fit(TINY, tmp_path / "a", watch=at(2, step, lambda: os.kill(os.getpid(), number)))
    assert stop.value.status == status
    assert checkpoints(tmp_path / "a")[-1] == f"00001-{step:07}.ckpt"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    goes_on_to_the_same_end(tmp_path / "a", whole)


def test_one_command_begins_a_run_and_goes_on_with_it_saved_as_before(tmp_path, whole, monkeypatch, capsys):
    """What a queue that starts a job anew, or torchrun --max-restarts, has to say: it always says the same."""
    write_recipe(TINY, tmp_path / "recipe.yaml")
    a, words = tmp_path / "a", ["train", "--resume", "--out", str(tmp_path / "a")]
    assert main(words) == 2  # perhaps a misspelt --out
    assert f"no run to resume in {a}: give --data or --config too" in capsys.readouterr().err
    assert not a.exists()
    a.mkdir()
    rundir.begin(a, TINY)  # and killed before its first checkpoint
    words += ["--config", str(tmp_path / "recipe.yaml")]
    tables = train.tables

    def stop(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return tables(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(train, "tables", stop)
        assert main([*words, "--save-every", "0", "--keep", "4"]) == 143
    assert "goes on in" not in (said := capsys.readouterr()).out
    assert f"stopped after the last epoch; the run is saved in {a}, --resume evaluates it" in said.err
    assert len(checkpoints(a)) == 4
    for path in rundir.checkpoints(a)[:2]:
        path.unlink()
    assert main(words) == 0
    assert f"goes on in epoch 3, step {STEPS}" in capsys.readouterr().out
    assert len(checkpoints(a)) == 4
    assert bytes_of(a) == bytes_of(whole)


def test_a_hangup_saves_though_terminals_send_two_and_is_nothing_under_nohup(tmp_path):
    def hang_up():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(signals.Stopped, match="after step 2; the run is saved") as stop:
            auxnet.fit(replace(TINY, epochs=1), tmp_path / "a", watch=at(1, 2, hang_up))
        assert stop.value.status == 129
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        auxnet.fit(replace(TINY, epochs=1), tmp_path / "a", resume=True, watch=at(1, 4, hang_up))
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("left", [0, 1 / 900, 5 / 900, 9 / 900, 0.02, 0.5, 0.99])
def test_a_run_whose_recipe_lost_its_end_is_neither_gone_on_with_nor_used(tmp_path, whole, capsys, left):
    """Half a recipe is a recipe too: of other epochs, another seed and so another validation split."""
    shutil.copytree(whole, tmp_path / "a")
    recipe = tmp_path / "a" / "recipe.yaml"
    text = recipe.read_bytes()
    recipe.write_bytes(text[: math.ceil(left * len(text))])
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    out = str(tmp_path / "a")
    for words in (["train", "--out", out, "--resume"], ["evaluate", out], ["export", out, "--out", f"{out}/b.onnx"]):
        assert main(words) == 1
        assert "recipe.yaml is damaged, or was changed since the run began" in capsys.readouterr().err
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == weights


def test_a_recipe_changed_by_hand_is_taken_once_its_seal_is_removed(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "a")
    recipe = tmp_path / "a" / "recipe.yaml"
    changed = recipe.read_text().replace("data_dir: null", f"data_dir: {tmp_path}")
    recipe.write_text(changed)
    assert main(["select", str(tmp_path / "a")]) == 1
    assert "or remove its first line to have it taken as it is" in capsys.readouterr().err
    recipe.write_text(changed.split("\n", 1)[1])
    assert main(["select", str(tmp_path / "a")]) == 0
    recipe.write_text(recipe.read_text().replace(f"epochs: {TINY.epochs}\n", "epochs: 1\n"))
    capsys.readouterr()
    assert main(["train", "--out", str(tmp_path / "a"), "--resume"]) == 2
    assert f"has trained {TINY.epochs} epochs, its recipe says epochs=1: correct that" in capsys.readouterr().err


def test_an_unfinished_run_is_told_how_it_goes_on(tmp_path, capsys):
    with pytest.raises(signals.Stopped):
        auxnet.fit(TINY, tmp_path / "a", watch=at(1, 1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    run = str(tmp_path / "a")
    for words in (["evaluate", run], ["select", run], ["report", run], ["export", run], ["predict", run, run]):
        assert main(words) == 2
        said = f"auxnet: {run} is not finished: `auxnet train --out {run} --resume` goes on with it\n"
        assert capsys.readouterr().err == said


def test_a_second_signal_acts_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(signals.Stopped, match="at once"):
        auxnet.fit(TINY, tmp_path / "a", watch=at(1, 1, twice))
    assert not (tmp_path / "a").exists()  # nothing was begun


def test_the_command_line_says_how_to_go_on(tmp_path, whole, monkeypatch, capsys):
    write_recipe(TINY, tmp_path / "recipe.yaml")
    save, signs = resuming.save_state, iter([signal.SIGTERM])

    def save_and_stop(*what):
        save(*what)
        os.kill(os.getpid(), next(signs, 0))

    with monkeypatch.context() as patched:
        patched.setattr(resuming, "save_state", save_and_stop)
        words = ["--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "a"), "--save-every", "0"]
        assert main(["train", *words]) == 143
    said = capsys.readouterr().err
    assert said.startswith("auxnet: stopped in epoch ")
    assert said.endswith(f"the run is saved in {tmp_path / 'a'}, --resume (resume=True) goes on with it\n")
    goes_on_to_the_same_end(tmp_path / "a", whole)


# ---- kill -9 ---------------------------------------------------------------------------------------------------


def test_kill_9_at_any_moment_loses_nothing(tmp_path, whole):
    folder, wait, fork = tmp_path / "a", 0.0, multiprocessing.get_context("fork")  # which need not import torch anew
    for kill in range(3):
        process = fork.Process(target=auxnet.fit, args=(TINY, folder), kwargs={"save_every": 0, "resume": kill > 0})
        seen = checkpoints(folder)
        process.start()
        while checkpoints(folder) == seen and process.is_alive():
            time.sleep(0.01)
        time.sleep(wait)  # anywhere in a step, in a save, in a validation
        wait += 0.037
        process.kill()
        process.join()
    goes_on_to_the_same_end(folder, whole)
    assert not [path for path in folder.rglob(".*") if path.name != rundir.LOCK and "partial" not in path.name]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "joint"},
        {"method": "pairwise"},
        {"mode": "frozen"},
        {"mode": "fused"},
        {"step_scale": "adaptive"},
        {"optimizer": "AdamW", "lr": 1e-3},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
@pytest.mark.enough(2)
def test_every_method_goes_on_from_within_an_epoch(tmp_path, options):
    recipe = replace(TINY, epochs=2, **options)
    auxnet.fit(recipe, tmp_path / "whole")
    with pytest.raises(signals.Stopped):
        auxnet.fit(recipe, tmp_path / "a", watch=at(2, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    goes_on_to_the_same_end(tmp_path / "a", tmp_path / "whole", recipe)


def pictures(folder, number):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.mark.long
def test_a_streamed_training_goes_on_to_the_end_of_one_in_memory(tmp_path):
    """Stopped as torchrun and systemd do it: by a signal to all its processes."""
    recipe = replace(TINY, data=pictures(tmp_path / "pics", 60), train_images=None, epochs=2)
    auxnet.fit(replace(recipe, stream="never"), tmp_path / "whole")
    recipe = replace(recipe, stream="always", workers=1)

    def train_in_a_group():
        os.setpgrp()
        with pytest.raises(signals.Stopped):
            auxnet.fit(recipe, tmp_path / "a", watch=at(2, 1, lambda: os.killpg(0, signal.SIGTERM)))

    process = multiprocessing.get_context("fork").Process(target=train_in_a_group)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert checkpoints(tmp_path / "a")[-1] == "00001-0000001.ckpt"
    goes_on_to_the_same_end(tmp_path / "a", tmp_path / "whole", recipe)


@pytest.mark.enough(1)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_goes_bad_costs_nothing_that_was_done(tmp_path, split):
    for name, number in (("train", 48), ("val", 4), ("test", 4)):
        pictures(tmp_path / "pics" / name, number)
    recipe = replace(TINY, data=str(tmp_path / "pics"), train_images=None, epochs=2, stream="always", workers=1)
    read = {path: path.read_bytes() for path in (tmp_path / "pics" / split).rglob("*.png")}

    def spoil():
        for path, data in read.items():
            path.write_bytes(data[:-30])

    with pytest.raises(
        RuntimeError, match=rf"{split}/.*\.png.*; the run is saved in .*, --resume \(resume=True\) goes on with it"
    ):
        auxnet.fit(recipe, tmp_path / "a", watch=at(1, 1, spoil))
    [saved] = checkpoints(tmp_path / "a")
    assert "00000-0000001.ckpt" <= saved <= f"00000-{STEPS:07}.ckpt"
    for path, data in [*read.items()][1:]:
        path.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"1 image cannot be read.*or train with --max-corrupt 1"):
        auxnet.fit(recipe, tmp_path / "a", resume=True)
    with pytest.warns(UserWarning, match="left out, unreadable, 1 image"):
        auxnet.fit(replace(recipe, max_corrupt=1), tmp_path / "a", resume=True)
    with pytest.raises(RuntimeError, match="1 image cannot be read"):
        auxnet.fit(recipe, tmp_path / "a", resume=True)  # fails, and changes nothing
    auxnet.select(tmp_path / "a")  # which reads the same data


@pytest.mark.long
def test_a_picture_that_goes_bad_while_the_average_sees_its_epoch_again_costs_nothing(tmp_path):
    recipe = replace(TINY, data=pictures(tmp_path / "pics", 60), train_images=None, epochs=1, ema=0.9)
    recipe = replace(recipe, stream="always", workers=0)
    auxnet.fit(recipe, tmp_path / "whole")
    read = {path: path.read_bytes() for path in (tmp_path / "pics").rglob("*.png")}
    last = math.ceil(read_json(tmp_path / "whole" / "summary.json")["data"]["train"] / 16)

    def spoil():
        for path, data in read.items():
            path.write_bytes(data[:-30])

    with pytest.raises(RuntimeError, match=r"the run is saved in .*, --resume \(resume=True\) goes on with it"):
        auxnet.fit(recipe, tmp_path / "a", watch=at(1, last, spoil))
    assert checkpoints(tmp_path / "a") == [f"00000-{last:07}.ckpt"]
    for path, data in read.items():
        path.write_bytes(data)
    goes_on_to_the_same_end(tmp_path / "a", tmp_path / "whole", recipe)


# ---- disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_costs_nothing_that_was_saved(small_disk, whole):
    with pytest.raises(RuntimeError, match=r"No space left on device.*--resume"):
        auxnet.fit(TINY, small_disk / "a", save_every=0, keep=100)
    assert checkpoints(small_disk / "a")
    for path in (small_disk / "a" / "checkpoints").iterdir():
        assert path.suffix in (".ckpt", ".safetensors")  # no half of a file
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    goes_on_to_the_same_end(small_disk / "a", whole)


def test_a_full_disk_is_said_of_the_file_that_was_asked_for(small_disk):
    net = auxnet.resnet(depth=20, outputs=3, width=2)  # 4 MB
    with pytest.raises(OSError, match=r"No space left on device: '.*/w\.safetensors'"):
        save_tensors(small_disk / "w.safetensors", net.state_dict())
    with pytest.raises(OSError, match=r"No space left on device: '.*/x\.json'"):
        write_json(small_disk / "x.json", ["x" * 4_000_000])
    assert not any(small_disk.iterdir())
    with pytest.raises(FileNotFoundError, match=r"'.*/nowhere/x\.json'"):
        write_json(small_disk / "nowhere" / "x.json", [])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"Read-only file system: '.*/x\.json'"):
        write_json(small_disk / "x.json", [])


@pytest.mark.parametrize(
    ("place", "name", "says"),
    [
        (resuming, "save_state", r"begin again \(a sweep or a study: with the same command\)$"),
        (train, "save_tensors", ""),
    ],
    ids=["checkpoint", "model.safetensors"],
)
def test_a_full_disk_is_said_and_what_trains_for_sweeps_and_studies_goes_on(tmp_path, monkeypatch, place, name, says):
    """They have no --overwrite and no --resume: what trains their folders finds out by itself."""

    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(place, name, full)
        with pytest.raises((RuntimeError, OSError), match=f"No space left on device.*{says}"):
            train.fit_on(replace(TINY, epochs=1), tmp_path / "a")
    assert train.fit_on(replace(TINY, epochs=1), tmp_path / "a").summary["epochs"]["last"] == 1


def test_a_folder_that_becomes_read_only_stops_the_run(small_disk, whole):
    place = small_disk / "a" / "checkpoints"

    def cover():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(place)], check=True)

    with pytest.raises(RuntimeError, match=r"cannot be written to .Read-only file system."):
        auxnet.fit(TINY, small_disk / "a", watch=at(2, 2, cover))
    subprocess.run(["umount", str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    goes_on_to_the_same_end(small_disk / "a", whole)


def test_a_run_directory_that_vanishes_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="has vanished"):
        auxnet.fit(TINY, tmp_path / "a", watch=at(2, 2, lambda: shutil.rmtree(tmp_path / "a")))


# ---- files -----------------------------------------------------------------------------------------------------


def stopped(folder, epoch=3, step=2):
    with pytest.raises(signals.Stopped):
        auxnet.fit(TINY, folder, watch=at(epoch, step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data.replace(b"checkpoint 1", b"checkpoint 3", 1),
        lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
        lambda data: b"x" + data,
    ],
    ids=["torn", "empty", "one bit of the format", "one bit", "one byte more"],
)
@pytest.mark.enough(1)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(tmp_path, whole, damage):
    folder = stopped(tmp_path / "a")
    assert checkpoints(folder) == ["00002-0000000.ckpt", "00002-0000002.ckpt"]
    newest = folder / "checkpoints" / "00002-0000002.ckpt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"00002-0000002.ckpt is damaged.*the one before it is taken"):
        goes_on_to_the_same_end(folder, whole)
    assert (folder / "checkpoints" / "00002-0000002.damaged").is_file()


def test_with_every_checkpoint_damaged_the_run_says_so(tmp_path):
    folder = stopped(tmp_path / "a")
    for path in (folder / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(RuntimeError, match="every checkpoint is damaged"):
        auxnet.fit(TINY, folder, resume=True)
    curves = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(FileNotFoundError, match="--overwrite"):  # what remains of it is not for a queue to replace
        auxnet.fit(TINY, folder, resume=None)
    assert (folder / "metrics.jsonl").read_bytes() == curves
    rundir.begin(folder, TINY)  # --overwrite, killed before its first checkpoint: nothing of either is left
    assert rundir.to_resume(folder) == (False, True)
    assert not any((folder / "checkpoints").iterdir())


def test_a_finished_run_without_its_weights_is_not_for_a_queue_to_replace(tmp_path):
    few = replace(TINY, epochs=1)
    auxnet.fit(few, folder := tmp_path / "a")
    shutil.rmtree(folder / "checkpoints")
    (folder / "model.safetensors").unlink()
    left = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != rundir.LOCK}
    with pytest.raises(FileNotFoundError, match=r"is finished.*--overwrite"):
        auxnet.fit(few, folder, resume=None)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != rundir.LOCK} == left


def test_a_run_that_goes_on_with_other_training_images_says_so(tmp_path):
    few = replace(TINY, epochs=2, train_images=50)
    with pytest.raises(signals.Stopped):
        auxnet.fit(few, folder := tmp_path / "a", watch=at(2, 1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    path = rundir.checkpoints(folder)[0]
    held = checkpoint.load_state(path)
    assert held["standing"]["train_images"] == 50
    checkpoint.save_state(path, {**held, "standing": {**held["standing"], "train_images": 52}})
    with pytest.warns(UserWarning, match="was trained on 52 training images, and goes on with 50"):
        auxnet.fit(few, folder, resume=True)
    assert read_json(folder / "summary.json")["data"]["train"] == 50


def test_metrics_have_no_line_twice_and_none_torn_after_a_resume(tmp_path, whole):
    folder = stopped(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:  # as if killed between the log and the checkpoint of epoch 3
        file.write((whole / "metrics.jsonl").read_text().splitlines()[-1] + '\n{"epoch": 3, "spl')
    goes_on_to_the_same_end(folder, whole)


@pytest.mark.enough(1)
@pytest.mark.parametrize("best", ["lost", "of an epoch to come"])
def test_the_best_weights_are_found_again(tmp_path, whole, best):
    """Whatever lies there after a crash between two files, at the end the best weights are those of the best epoch."""
    folder = stopped(tmp_path / "a", epoch=3, step=1)
    path = folder / "checkpoints" / "best.safetensors"
    if best == "lost":
        path.unlink()
    else:
        shutil.copy(whole / "checkpoints" / "best.safetensors", path)
    auxnet.fit(TINY, folder, resume=True)
    summary = read_json(folder / "summary.json")
    assert read_about(path)["epoch"] == str(summary["epochs"]["best"])
    assert summary["best"] == [
        {**row, "val_error": error["error"]}
        for row, error in zip(
            summary["best"],
            [r for r in rows_of(folder) if r["split"] == "val" and r["epoch"] == summary["epochs"]["best"]],
            strict=True,
        )
    ]


def test_a_line_of_a_log_that_is_no_row_any_more_is_left_out(tmp_path):
    """What a run has logged is of use whatever became of one line; resumed, it is rewritten without that line."""
    rows = [{"epoch": epoch, "output": 1, "layer": 3, "share": 0.5} for epoch in (1, 2)]
    first, last = (json.dumps(row).encode() for row in rows)
    unlike = (first.replace(a, b) for a, b in ((b"layer", b"laxer"), (b"0.5", b"1e999"), (b"1", b"null")))
    for damaged in (b"{}", b"3", b"[1]", b"\xff", b'{"epoch": 1}', b'{"split": []}', b"[" * 5000, *unlike):
        (tmp_path / "log.jsonl").write_bytes(b"\n".join([first, damaged, last, last[:9]]))
        assert rundir.read_rows(tmp_path / "log.jsonl") == rows, damaged


@pytest.mark.parametrize("line", range(6))
def test_a_run_is_shown_without_the_epoch_of_a_damaged_line_of_its_metrics(line, whole, tmp_path):
    shutil.copytree(whole, run := tmp_path / "run")
    (run / "summary.json").unlink()
    logged = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    logged[12 + line] = logged[12 + line].replace("loss", "lo#s")
    (run / "metrics.jsonl").write_text("".join(logged))
    facts = report.facts_of_run(run, "run")
    assert facts["curves"]["epochs"] == [1, 2]
    assert "Not finished: after epoch 2 of 3" in unfinished.headline(facts) + unfinished.table([facts])


def test_damaged_best_weights_are_said_and_never_used(tmp_path):
    folder = stopped(tmp_path / "a", epoch=3, step=1)
    path = folder / "checkpoints" / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"best\.safetensors is damaged.*it is not used"):
        auxnet.fit(TINY, folder, resume=True)
    assert read_json(folder / "summary.json")["epochs"]["best"] == 3  # of the epochs to come, the only one
    assert read_about(path)["epoch"] == "3"


def test_checkpoints_are_ordered_by_the_training_and_not_by_the_clock(tmp_path, whole, monkeypatch):
    clock = iter(range(10**9, 0, -3600))  # every look at the clock finds it an hour earlier
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    folder = stopped(tmp_path / "a")
    for age, name in enumerate(checkpoints(folder)):
        os.utime(folder / "checkpoints" / name, (10**9 - age, 10**9 - age))
    goes_on_to_the_same_end(folder, whole)


def test_two_processes_never_train_in_one_run_directory(tmp_path):
    (tmp_path / "a").mkdir()
    hold = f"import filelock; lock = filelock.FileLock({str(tmp_path / 'a' / rundir.LOCK)!r}); lock.acquire(); print(1)"
    other = subprocess.Popen([sys.executable, "-uc", hold + "; input()"], stdin=-1, stdout=-1)
    assert other.stdout.readline()
    with pytest.raises(FileExistsError, match="another process is training in it"):
        auxnet.fit(TINY, tmp_path / "a")
    other.kill()  # a lock dies with its process, however it dies
    other.wait()
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a")


@pytest.mark.parametrize("resume", [False, None])
def test_a_run_that_another_process_makes_before_the_folder_is_locked_is_not_replaced(tmp_path, monkeypatch, resume):
    few, check = replace(TINY, epochs=1), train.check_recipe

    def meanwhile(*given, **options):
        monkeypatch.setattr(train, "check_recipe", check)
        with monkeypatch.context() as patched:
            patched.setattr(train, "_TRAINING", threading.Lock())  # another process has its own
            auxnet.fit(replace(few, seed=1), tmp_path / "a")
        check(*given, **options)

    monkeypatch.setattr(train, "check_recipe", meanwhile)
    with pytest.raises(FileExistsError, match="another process has trained there just now: --resume"):
        auxnet.fit(few, tmp_path / "a", resume=resume)
    assert read_json(tmp_path / "a" / "summary.json")["seed"] == 1


# ---- numbers ---------------------------------------------------------------------------------------------------


def test_a_nan_planted_in_a_weight_is_never_saved(tmp_path, whole, monkeypatch):
    built = []
    honest = train.build
    monkeypatch.setattr(train, "build", lambda *args: built.append(honest(*args)) or built[-1])

    def plant():
        next(built[-1][0].segments[1].parameters()).data[0] = float("nan")

    with pytest.raises(RuntimeError, match=r"segments\.1\..* holds values that are not finite"):
        auxnet.fit(TINY, tmp_path / "a", save_every=0, watch=at(2, 3, plant))
    assert checkpoints(tmp_path / "a")[-1] == "00001-0000002.ckpt"
    with pytest.raises(RuntimeError, match=r"the loss of output 2 .* became nan in epoch 2, step 4"):
        auxnet.fit(TINY, tmp_path / "b", watch=at(2, 3, plant))
    for name in ("a", "b"):
        goes_on_to_the_same_end(tmp_path / name, whole)


# ---- what changes from epoch to epoch ----------------------------------------------------------------------------

CHANGING = {
    "everything at once": {
        "epochs": 4,
        "ema": 0.9,
        "mixup": 0.3,
        "cutmix": 1.0,
        "weights": (0.5,),
        "weight_schedule": "linear",
        "discard_after": 0.5,
        "distill": 0.3,
        "class_weights": "balanced",
        "label_smoothing": 0.1,
        "schedule": "cosine",
        "warmup": 1,
    },
    "joint": {"method": "joint", "ema": 0.99, "discard_after": 0.4, "optimizer": "AdamW", "lr": 1e-3},
    "pairwise": {"method": "pairwise", "discard_after": 0.4, "loss": "square_hinge", "lr": 0.01},
    "fused": {"mode": "fused", "discard_after": 0.4},
}


@pytest.mark.parametrize(
    ("fields", "epoch"),
    [
        pytest.param(
            fields, epoch, id=f"{name}-{epoch}", marks=[] if name == "everything at once" else pytest.mark.long
        )
        for name, fields in CHANGING.items()
        for epoch in (2, 3)
    ],
)
@pytest.mark.enough(1)
def test_a_run_whose_losses_change_goes_on_to_the_same_bytes(tmp_path, fields, epoch):
    recipe = replace(TINY, **fields)
    auxnet.fit(recipe, tmp_path / "whole")

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(signals.Stopped):
        auxnet.fit(recipe, tmp_path / "a", watch=at(epoch, 3, stop))
    goes_on_to_the_same_end(tmp_path / "a", tmp_path / "whole", recipe)


def test_heads_that_are_discarded_stay_as_they_are_from_that_epoch_on(tmp_path):
    recipe = replace(TINY, epochs=4, discard_after=0.5)
    auxnet.fit(recipe, tmp_path / "a", keep=4)
    states = [checkpoint.load_state(tmp_path / "a" / "checkpoints" / f"0000{e}-0000000.ckpt")["net"] for e in (1, 2, 4)]
    for name in ("heads.0.fc.weight", "heads.1.bn.weight", "heads.1.fc.bias"):
        before, at_its_epoch, after = (state[name] for state in states)
        assert not torch.equal(before, at_its_epoch)
        assert torch.equal(at_its_epoch, after)
    assert not torch.equal(states[1]["heads.2.fc.weight"], states[2]["heads.2.fc.weight"])
    rows = rundir.read_metrics(tmp_path / "a")
    final = [row["error"] for row in rows if row["split"] == "val" and row["output"] == 3]
    assert read_json(tmp_path / "a" / "summary.json")["epochs"]["best"] == final.index(min(final)) + 1


# ---- formats ---------------------------------------------------------------------------------------------------

FORMAT_1 = Path(__file__).parent / "checkpoints" / "format-1.ckpt"


def test_checkpoints_of_format_1_stay_loadable():
    """Written once by `python tests/test_faults.py`, and never again."""
    net, method = _by_hand()
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    state = resuming.load_checkpoint(checkpoint.load_state(FORMAT_1), net, method, FORMAT_1)
    assert (state.epoch, state.step, state.best_epoch) == (1, 2, 1)
    assert state.history[0]["loss"] == 0.5
    for n, parameter in enumerate(net.parameters()):
        assert parameter.flatten().tolist() == [n + i / 8 for i in range(parameter.numel())]
    momenta = [s["momentum_buffer"] for u in method.updates for s in u.optimizer.state_dict()["state"].values()]
    assert [m.flatten()[0].item() for m in momenta] == [float(n) for n in range(len(momenta))]


def test_a_checkpoint_is_hashed_as_it_is_written_and_takes_no_memory_of_its_own(tmp_path):
    state = {"net": {"w": torch.arange(2**20)}, "epoch": 1}
    tracemalloc.start()
    checkpoint.save_state(tmp_path / "a.ckpt", state)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20 < 2**23 < (tmp_path / "a.ckpt").stat().st_size
    torch.save(state, payload := io.BytesIO())
    head = f"auxnet checkpoint 1 sha256 {sha256(payload.getvalue()).hexdigest()}\n"
    assert (tmp_path / "a.ckpt").read_bytes() == head.encode() + payload.getvalue()


def test_ctrl_c_while_a_checkpoint_is_written_is_what_is_raised(tmp_path, monkeypatch):
    class Digest:
        def update(self, some):
            raise KeyboardInterrupt

        def hexdigest(self):
            return "0"

    monkeypatch.setattr(checkpoint, "sha256", Digest)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_state(tmp_path / "a.ckpt", {"net": {"w": torch.arange(2**10)}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk here that is always full")
def test_a_disk_that_is_full_is_what_the_error_of_a_checkpoint_says(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "written_whole", lambda path: contextlib.nullcontext(Path("/dev/full")))
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save_state(tmp_path / "a.ckpt", {"net": {"w": torch.arange(2**20)}})


def of_a_later_format():
    """A checkpoint whose hash takes in the number of its format, as those of all formats after 1."""
    _, payload = FORMAT_1.read_bytes().split(b"\n", 1)
    hashed = sha256(b"2" + payload).hexdigest().encode()
    return b"auxnet checkpoint 2 sha256 " + hashed + b"\n" + payload


def test_a_checkpoint_of_a_later_format_is_not_guessed_at(tmp_path):
    (tmp_path / "later.ckpt").write_bytes(of_a_later_format())
    with pytest.raises(RuntimeError, match="has format 2, this version of auxnet reads 1"):
        checkpoint.load_state(tmp_path / "later.ckpt")


def test_what_is_whole_is_never_put_aside_as_damaged(tmp_path, monkeypatch):
    """A run of a later version, or one that does not fit into memory now, is there for whoever can read it."""
    places = tmp_path / "checkpoints"
    places.mkdir()
    (places / "00001-0000000.ckpt").write_bytes(of_a_later_format())
    with pytest.raises(RuntimeError, match="has format 2"):
        resuming.newest_checkpoint(tmp_path)
    (places / "00001-0000000.ckpt").write_bytes(FORMAT_1.read_bytes())

    def too_large(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", too_large)
        with pytest.raises(RuntimeError, match="MemoryError"):
            resuming.newest_checkpoint(tmp_path)
    assert resuming.newest_checkpoint(tmp_path)["standing"]["epoch"] == 1


@pytest.mark.long
def test_a_finished_run_that_lost_its_best_weights_says_so(tmp_path):
    recipe = replace(TINY, epochs=2, lr=1e-9, seed=8)  # the first epoch stays the best
    run = auxnet.fit(recipe, tmp_path / "a").folder
    (run / "checkpoints" / "best.safetensors").unlink()
    with pytest.raises(RuntimeError, match="the best weights are gone from checkpoints/: --overwrite trains it again"):
        auxnet.fit(recipe, run, resume=True)
    again = train.fit_on(recipe, run)  # a sweep's or study's own folder is begun anew
    assert again.summary["epochs"] == {"last": 2, "best": 1}


def _by_hand():
    """A net of two segments and live multi-way with momentum, every number of which is known."""
    linear = torch.nn.Linear
    net = auxnet.AuxNet([linear(2, 3), linear(3, 3)], [linear(3, 2), linear(3, 2)], (2, 3))
    method = auxnet.multiway(net, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), [0.5, 1.0])
    method.step(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    for n, parameter in enumerate(net.parameters()):
        parameter.data.copy_(torch.arange(parameter.numel()).view_as(parameter) / 8 + n)
    states = [s for u in method.updates for s in u.optimizer.state.values()]
    for n, state in enumerate(states):
        state["momentum_buffer"].fill_(n)
    return net, method


def test_a_checkpoint_copies_no_row_of_the_history_and_is_what_copies_of_all_of_it_would_be(tmp_path, monkeypatch):
    def saved(path, state, written):
        assert state["standing"]["history"] is states[-1].history
        checkpoint.save_state(path, state, written)
        checkpoint.save_state(tmp_path / "copies", state | {"standing": asdict(states[-1])})
        assert path.read_bytes() == (tmp_path / "copies").read_bytes()

    states, save = [], resuming.Checkpointer.save
    noted = lambda self, state, *args: states.append(state) or save(self, state, *args)  # noqa: E731
    monkeypatch.setattr(resuming, "save_state", saved)
    monkeypatch.setattr(resuming.Checkpointer, "save", noted)
    auxnet.fit(TINY, tmp_path / "a")
    assert states[-1].history


if __name__ == "__main__":
    _net, _method = _by_hand()
    _row = {"epoch": 1, "split": "val", "output": 1, "depth": 2, "loss": 0.5, "error": 0.25, "lr": 0.1, "seconds": 1.0}
    _state = resuming.TrainingState(1, 2, (1.5, 2.5), 3.0, 1.0, 1, 0.25, (_row,))
    FORMAT_1.parent.mkdir(exist_ok=True)
    rundir_state = {"standing": vars(_state), "net": _net.state_dict(), "method": _method.state_dict()}
    checkpoint.save_state(FORMAT_1, rundir_state)
