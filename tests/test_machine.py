"""Cores, threads, and when they are too many."""

import math
import os
import time
from pathlib import Path

import pytest
import torch

from auxnet import cli, machine, train
from auxnet.recipe import Recipe


def test_a_container_s_limit_counts_as_so_many_cores(tmp_path):
    assert machine._quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine._quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine._quota(tmp_path) == 1.5


@pytest.mark.parametrize(("quota", "cores"), [("-1", float("inf")), ("400000", 4.0)])
def test_so_does_that_of_an_older_one(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert machine._quota(tmp_path) == cores


def test_less_than_a_core_is_one(monkeypatch):
    monkeypatch.setattr(machine, "_quota", lambda group: 0.5)
    assert machine.cores() == 1


@pytest.mark.parametrize("device", ["hpu", "xpu", "vulkan"])
def test_a_device_that_is_not_here_is_said_in_a_short_line(device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here") as refused:
        machine.device_of(device)
    assert len(str(refused.value)) < 200


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_so_is_a_gpu_that_is_not_here_for_a_process_of_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert cli.main(["train", "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("auxnet: device 'cuda' cannot be used here (")
    assert said.count("\n") == 1


def test_memory_that_pytorch_holds_ready_is_free(monkeypatch):
    for name, found in {"mem_get_info": (100, 900), "memory_reserved": 70, "memory_allocated": 30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    assert machine.free_memory(torch.device("cuda")) == 140
    assert machine.free_memory(torch.device("cpu")) == 0


def test_the_random_numbers_of_other_gpus_are_left_alone(monkeypatch):
    gpus = [torch.Generator().manual_seed(n) for n in (5, 6)]
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    with machine.random_kept(torch.device("cpu")):
        machine.seed_random(9, torch.device("cuda:1"))
        assert [each.initial_seed() for each in (*gpus, torch.default_generator)] == [5, 9, 9]
        machine.seed_random(8, torch.device("cpu"))
        assert [each.initial_seed() for each in (*gpus, torch.default_generator)] == [5, 9, 8]


def test_the_gpu_of_a_mac_is_taken_by_name_alone_and_its_random_numbers_are_kept(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.device_of("auto").type == "cpu"
    states = [torch.tensor([5])]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: states.append(state))
    with machine.random_kept(torch.device("mps")):
        states.append(torch.tensor([6]))
    assert states[-1] is states[0]


def test_more_threads_than_cores_are_told_with_the_mend(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert machine.crowded(3) == "3 threads for 2 CPU cores wait for each other: --threads 2 is faster"


@pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="the system does not say how busy it is")
def test_a_busy_machine_is_told_and_an_idle_one_or_a_single_thread_is_not(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.9, 0.0, 0.0))
    monkeypatch.setattr(time, "process_time", lambda: 6.0)
    monkeypatch.setattr(machine, "_others_running", lambda: 9.0)
    assert machine.crowded(4) == "other programs use 3 of 4 CPU cores: 4 threads may be slower than --threads 1"
    assert machine.crowded(1) is None
    monkeypatch.setattr(time, "process_time", lambda: 3 * 60.0)  # this process itself may have been what was busy
    assert machine.crowded(4) is None
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 9.0, 9.0))
    assert machine.crowded(4) is None
    monkeypatch.setattr(time, "process_time", lambda: 6.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.9, 0.0, 0.0))
    monkeypatch.setattr(machine, "_others_running", lambda: 0.0)  # what was busy has ended since
    assert machine.crowded(4) is None


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="the system does not say what runs")
def test_what_runs_at_the_moment_is_counted_without_this_thread():
    assert 0 <= machine._others_running() < math.inf


def test_training_warns_of_it_in_one_line_and_so_does_fit(monkeypatch, capsys, tmp_path):
    def stops(*args):
        raise RuntimeError("far enough")

    monkeypatch.setattr(train, "crowded", lambda threads: f"{threads} threads are too many")
    monkeypatch.setattr(train, "run_epochs", stops)
    words = ["--depth", "8", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "a")]
    assert cli.main(["train", *words]) == 1
    said = capsys.readouterr().err
    assert said == "auxnet: warning: 1 threads are too many\nauxnet: far enough\n"
    with pytest.warns(UserWarning, match="1 threads are too many"), pytest.raises(RuntimeError, match="far enough"):
        train.fit(Recipe(depth=8, threads=1, device="cpu"), tmp_path / "b")
    assert cli.main(["train", "--depth", "21", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("auxnet: depth must be")  # a mistake is said without it


def test_files_that_were_read_leave_the_memory_of_a_container_free(tmp_path):
    assert [*machine._memory_of_group(tmp_path)] == []
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        group = tmp_path / cache
        (group / "memory").mkdir(parents=True)
        (group / limit).write_text("1000\n")
        (group / used).write_text("900\n")
        (group / stat).write_text(f"anon 300\n{cache} 600\n")
        assert [*machine._memory_of_group(group)] == [700]
        (group / limit).write_text("max\n")
        assert [*machine._memory_of_group(group)] == []
