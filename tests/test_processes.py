"""Workers that are stopped: real processes, real signals."""

import os
import signal
import threading
from contextlib import suppress
from multiprocessing.context import SpawnProcess

import pytest

import workers
from auxnet.processes import work_together
from auxnet.signals import Stopped, held, raised_after


def together(work, where, watch=lambda: None, unfinished=lambda: False):
    """One worker, of a study."""
    work_together(1, work, where, watch, unfinished, "study")


def test_a_worker_that_is_stopped_puts_back_what_it_has_in_hand_whatever_it_is_at(tmp_path):
    def stop_once_begun():
        if (tmp_path / "begun").exists():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        together(workers.wait, {"folder": str(tmp_path)}, stop_once_begun)
    assert (tmp_path / "put back").exists()


def test_what_workers_warn_of_is_given_by_the_process_that_waits_for_them():
    with pytest.warns(UserWarning, match="of") as given:
        together(workers.warn_twice, {"threads": 1})
    assert sorted(str(each.message) for each in given) == ["of 1", "of the data"]


def test_work_that_is_left_undone_is_told_with_what_went_wrong_in_the_workers():
    with pytest.warns(UserWarning, match="of"), pytest.raises(RuntimeError) as failure:
        together(workers.warn_twice, {"threads": 1}, unfinished=lambda: True)
    assert str(failure.value) == "failed; the same command again goes on with the study"


@pytest.mark.long
def test_ctrl_c_while_workers_start_is_the_parents_alone(tmp_path, monkeypatch):
    start = SpawnProcess.start

    def start_and_interrupt(process):
        start(process)
        os.kill(process.pid, signal.SIGINT)  # as a terminal does, which sends it to both

    monkeypatch.setattr(SpawnProcess, "start", start_and_interrupt)
    together(workers.end, {"folder": str(tmp_path)})
    assert (tmp_path / "ended").exists()


def test_ctrl_c_while_a_worker_is_started_is_not_lost(tmp_path, monkeypatch):
    start = SpawnProcess.start

    def interrupt_and_start(process):
        os.kill(os.getpid(), signal.SIGINT)
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", interrupt_and_start)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(Stopped) as stop:
        together(workers.wait, {"folder": str(tmp_path)})
    assert stop.value.status == 130
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_signal_to_the_main_thread_is_not_lost_to_work_in_another():
    def other():
        with raised_after():
            pass

    def diverge():
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("diverged")

    def work():
        with raised_after():
            with suppress(ValueError):
                diverge()
            (thread := threading.Thread(target=other)).start()
            thread.join()

    with pytest.raises(Stopped) as stop:
        work()
    assert stop.value.status == 143
