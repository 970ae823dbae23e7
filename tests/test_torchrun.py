"""Training in many processes: as one would, whoever dies, with another number of them, and under torchrun for real."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from safetensors.torch import load_file

import auxnet
from auxnet import resuming, rundir, signals
from auxnet.cli import main
from auxnet.recipe import Recipe
from teamwork import started

WORDS = "--depth 8 --outputs 3 --epochs 2 --train-images 113 --batch-size 30 --threads 1 --device cpu"
WORDS += " --augment crop+flip --lr 0.002"
TINY = Recipe(
    depth=8,
    outputs=3,
    epochs=2,
    train_images=113,
    batch_size=30,
    threads=1,
    device="cpu",
    augment="crop+flip",
    lr=0.002,
)


def forked(processes, folder, *more):
    """What torchrun would start, without its and their imports."""
    return started(processes, main, ["train", *WORDS.split(), "--out", str(folder), *more])


def torchrun(processes, folder, *more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = ["-m", "auxnet", "train", *WORDS.split(), "--out", str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *words], stdout=-1, stderr=-1, text=True, env=environment)


@pytest.mark.enough(1)
@pytest.mark.parametrize("start", [forked, torchrun])
def test_two_processes_train_as_one_does(tmp_path, capfd, start):
    """With norms over all images: 113 images in batches of 30 leave 23 for the last, an odd number."""
    alone = auxnet.fit(replace(TINY, sync_batchnorm=True), tmp_path / "alone", diagnose=True)
    team = start(2, tmp_path / "team", "--sync-batchnorm", "--diagnose")  # which one process measures
    if start is torchrun:
        out, err = team.communicate(timeout=120)
        assert team.returncode == 0, err
    else:
        for process in team:
            process.join(120)
        assert [process.exitcode for process in team] == [0, 0]
        out, _ = capfd.readouterr()
    assert out.count("the run lies in") == 1  # one process talks
    weights = load_file(tmp_path / "team" / "model.safetensors")
    for name, tensor in load_file(alone.folder / "model.safetensors").items():
        assert weights[name].sub(tensor).abs().max() <= 1e-3 * max(1, tensor.abs().max()), name
    for mine, other in zip(*(rundir.read_metrics(tmp_path / name) for name in ("team", "alone")), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert mine["error"] == pytest.approx(other["error"], abs=2.01 / 145)
    mine, other = (rundir.read_rows(tmp_path / name / "diagnosis.jsonl") for name in ("team", "alone"))
    assert [row["share"] for row in mine] == pytest.approx([row["share"] for row in other], rel=0.02)
    assert {path.name for path in (tmp_path / "team").iterdir()} == {path.name for path in alone.folder.iterdir()}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_two_processes_train_compiled_as_they_do_otherwise(tmp_path):
    """Each its own part of a batch, 15 of 30 images; of the last batch 11 and 12."""
    weights = []
    for name, more in (("as it is", []), ("compiled", ["--compile"])):
        team = torchrun(2, tmp_path / name, "--method", "pairwise", *more)
        _, err = team.communicate(timeout=300)
        assert team.returncode == 0, err
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert weights[1][name].sub(tensor).abs().max() <= 1e-3 * max(1, tensor.abs().max()), name


def test_a_process_that_dies_ends_the_job_which_goes_on_with_another_number(tmp_path, monkeypatch, capfd):
    folder, killed, save = tmp_path / "a", tmp_path / "killed", resuming.save_state

    def save_and_wait(*what):
        save(*what)
        while not killed.exists():
            time.sleep(0.01)

    with monkeypatch.context() as patched:
        patched.setattr(resuming, "save_state", save_and_wait)
        job = forked(2, folder, "--save-every", "0")
    end = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("*.ckpt")):
        assert time.monotonic() < end
        assert job[0].is_alive()
        time.sleep(0.02)
    job[1].kill()
    job[1].join()
    killed.touch()
    job[0].join(60)
    assert job[0].exitcode == 1
    assert "auxnet: process 0 (of 2, from 0) lost the others: " in capfd.readouterr().err
    resumed = auxnet.fit(TINY, folder, resume=True)
    assert [(r["epoch"], r["split"], r["output"]) for r in rundir.read_metrics(folder)] == [
        (e, s, k) for e in (1, 2) for s in ("train", "val") for k in (1, 2, 3)
    ]
    assert resumed.summary["epochs"]["last"] == 2


@pytest.mark.long
def test_a_job_that_is_stopped_has_saved_and_says_so_once(tmp_path):
    job = torchrun(2, tmp_path / "a", "--save-every", "0", "--epochs", "40")
    end = time.monotonic() + 60
    while not list((tmp_path / "a" / "checkpoints").glob("*.ckpt")):
        assert time.monotonic() < end
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 1  # torchrun's, which passes the signal on and ends with an exception of its own
    assert err.count("auxnet: stopped ") == 1
    auxnet.fit(replace(TINY, epochs=40), tmp_path / "a", resume=True)


@pytest.mark.long
def test_three_processes_go_on_with_what_one_began(tmp_path):
    def stop(progress):
        if (progress.epoch, progress.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(signals.Stopped):
        auxnet.fit(TINY, tmp_path / "a", watch=stop)
    job = torchrun(3, tmp_path / "a", "--resume")
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert out.count("the run lies in") == 1
    assert len(rundir.read_metrics(tmp_path / "a")) == 12


@pytest.mark.long
def test_two_processes_average_teach_and_discard_as_one_does(tmp_path):
    words = "--sync-batchnorm --ema 0.9 --class-weights balanced --distill 0.3 --discard-after 0.5 --warmup 1"
    team = torchrun(2, tmp_path / "team", *words.split())
    fields = {"ema": 0.9, "class_weights": "balanced", "distill": 0.3, "discard_after": 0.5, "warmup": 1}
    alone = auxnet.fit(replace(TINY, sync_batchnorm=True, **fields), tmp_path / "alone")
    _, err = team.communicate(timeout=120)
    assert team.returncode == 0, err
    weights = load_file(tmp_path / "team" / "model.safetensors")
    for name, tensor in load_file(alone.folder / "model.safetensors").items():
        assert weights[name].sub(tensor).abs().max() <= 1e-3 * max(1, tensor.abs().max()), name


@pytest.mark.long
def test_two_processes_mix_their_images(tmp_path):
    team = torchrun(2, tmp_path / "team", "--mixup", "0.3", "--cutmix", "1", "--ema", "0.9")
    _, err = team.communicate(timeout=120)
    assert team.returncode == 0, err
    assert len(rundir.read_metrics(tmp_path / "team")) == 12
