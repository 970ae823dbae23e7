"""Curves for TensorBoard: what its own reader finds is what metrics.jsonl says, each epoch once."""

import os
import signal
import struct
import sys
from dataclasses import replace

import pytest

import auxnet
from auxnet import rundir, signals
from auxnet.recipe import Recipe

pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: tensorboard)")

TINY = Recipe(depth=8, outputs=2, epochs=3, train_images=96, batch_size=32, threads=1, device="cpu")


def float32(number):
    return struct.unpack("f", struct.pack("f", number))[0]


def read(run, k):
    """{(tag, epoch): value} of output k, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / f"output-{k}")).Reload()
    found = [((tag, each.step), each.value) for tag in events.Tags()["scalars"] for each in events.Scalars(tag)]
    assert len(dict(found)) == len(found), "an epoch is there twice"
    return dict(found)


def expected(run, k):
    """The same, from metrics.jsonl."""
    rows = [row for row in rundir.read_metrics(run) if row["output"] == k]
    curves = {(f"{what}/{row['split']}", row["epoch"]): row[what] for row in rows for what in ("loss", "error")}
    curves |= {("lr", row["epoch"]): row["lr"] for row in rows}
    return {key: float32(value) for key, value in curves.items() if value is not None}


def test_tensorboard_reads_what_the_metrics_say_and_no_weight_changes(tmp_path):
    auxnet.fit(TINY, tmp_path / "with", tensorboard=True)
    for k in (1, 2):
        assert read(tmp_path / "with", k) == expected(tmp_path / "with", k)
    auxnet.fit(TINY, tmp_path / "without")
    weights = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("with", "without")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "without" / "tensorboard").exists()


@pytest.mark.parametrize("begun_with", [True, False])
@pytest.mark.long
def test_a_run_that_was_stopped_has_every_epoch_once(tmp_path, begun_with):
    def stop(progress):
        if progress.done and progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(signals.Stopped):
        auxnet.fit(TINY, tmp_path / "a", tensorboard=begun_with, watch=stop)
    auxnet.fit(TINY, tmp_path / "a", resume=True, tensorboard=True)
    assert {epoch for _, epoch in read(tmp_path / "a", 1)} == {1, 2, 3}
    for k in (1, 2):
        assert read(tmp_path / "a", k) == expected(tmp_path / "a", k)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.long
def test_curves_that_were_begun_go_on_without_being_asked_for_again(tmp_path, done):
    """Be the first epoch done or not."""

    def stop(progress):
        if progress.done == done:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(signals.Stopped):
        auxnet.fit(TINY, tmp_path / "a", tensorboard=True, watch=stop)
    auxnet.fit(TINY, tmp_path / "a", resume=True)
    assert read(tmp_path / "a", 1) == expected(tmp_path / "a", 1)


def test_a_finished_run_is_shown_too(tmp_path):
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a")
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a", resume=True, tensorboard=True)
    assert read(tmp_path / "a", 2) == expected(tmp_path / "a", 2)


def test_a_run_that_is_replaced_takes_its_curves_with_it_and_nothing_else(tmp_path):
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a", tensorboard=True)
    (tmp_path / "a" / "tensorboard" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "tensorboard" / "output-mine").mkdir()
    (tmp_path / "a" / "tensorboard" / "output-mine" / "events.out.tfevents.mine").write_text("mine")
    auxnet.fit(replace(TINY, epochs=1, seed=1), tmp_path / "a", overwrite=True)
    assert [path.name for path in (tmp_path / "a" / "tensorboard").rglob("*") if path.is_file()] == [
        "notes.txt",
        "events.out.tfevents.mine",
    ]


def test_without_its_package_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(RuntimeError, match=r"pip install tensorboard"):
        auxnet.fit(TINY, tmp_path / "a", tensorboard=True)
    assert not (tmp_path / "a").exists()


def test_where_its_package_is_missing_a_run_goes_on_without_curves(tmp_path, monkeypatch):
    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(TINY, tmp_path / "a", tensorboard=True, watch=stop)
    monkeypatch.setattr("auxnet.train.installed", lambda: False)
    auxnet.fit(TINY, tmp_path / "a", resume=True)
    assert {epoch for _, epoch in read(tmp_path / "a", 1)} == {1}
