"""Workers that are stopped: real processes, real signals."""

import os
import signal

import pytest

import workers
from auxnet.processes import work_together
from auxnet.signals import Stopped


def test_a_worker_that_is_stopped_puts_back_what_it_has_in_hand_whatever_it_is_at(tmp_path):
    def stop_once_begun():
        if (tmp_path / "begun").exists():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        work_together(1, workers.wait, {"folder": str(tmp_path)}, stop_once_begun)
    assert (tmp_path / "put back").exists()
