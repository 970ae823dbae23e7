"""Training under torchrun, for real: as one process would, whoever dies, and with another number of processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

import auxnet
from auxnet import rundir, signals
from auxnet.recipe import Recipe

TINY = Recipe(depth=8, outputs=3, epochs=2, batch_size=300, threads=1, device="cpu", augment="crop+flip", lr=0.002)
WORDS = "--depth 8 --outputs 3 --epochs 2 --batch-size 300 --threads 1 --device cpu --augment crop+flip --lr 0.002"


def torchrun(processes, folder, *more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = ["-m", "auxnet", "train", *WORDS.split(), "--out", str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *words], stdout=-1, stderr=-1, text=True, env=environment)


def workers_of(process):
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in tasks]


def test_two_processes_train_as_one_does(tmp_path):
    """With norms over all images: 1293 images in batches of 300 leave 93 for the last, an odd number."""
    team = torchrun(2, tmp_path / "team", "--sync-batchnorm", "--diagnose")  # which one process measures
    alone = auxnet.fit(replace(TINY, sync_batchnorm=True), tmp_path / "alone", diagnose=True)
    out, err = team.communicate(timeout=120)
    assert team.returncode == 0, err
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


def test_a_process_that_dies_ends_the_job_which_goes_on_with_another_number(tmp_path):
    folder = tmp_path / "a"
    job = torchrun(2, folder, "--save-every", "0")
    end = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("*.ckpt")):
        assert time.monotonic() < end
        assert job.poll() is None
        time.sleep(0.02)
    os.kill(workers_of(job)[1], signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "auxnet: process 0 of 0..1 lost the others" in err or "Signal 9 (SIGKILL)" in err
    resumed = auxnet.fit(TINY, folder, resume=True)
    assert [(r["epoch"], r["split"], r["output"]) for r in rundir.read_metrics(folder)] == [
        (e, s, k) for e in (1, 2) for s in ("train", "val") for k in (1, 2, 3)
    ]
    assert resumed.summary["epochs"]["last"] == 2


@pytest.mark.long
def test_a_job_that_is_stopped_has_saved_and_says_so_once(tmp_path):
    job = torchrun(2, tmp_path / "a", "--save-every", "0")
    end = time.monotonic() + 60
    while not list((tmp_path / "a" / "checkpoints").glob("*.ckpt")):
        assert time.monotonic() < end
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 1  # torchrun's, which passes the signal on and ends with an exception of its own
    assert err.count("auxnet: stopped after epoch") == 1
    auxnet.fit(TINY, tmp_path / "a", resume=True)


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
