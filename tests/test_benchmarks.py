"""Benchmarks that need a machine that is not here are tried small, so that they run where it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.long
def test_the_check_of_a_gpu_holds_on_a_cpu(tmp_path):
    words = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--json", str(tmp_path / "out.json")]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    assert all(row["ok"] for row in json.loads((tmp_path / "out.json").read_text())["rows"])


@pytest.mark.long
def test_the_gpu_benchmark_runs_small_on_any_machine(tmp_path):
    words = ["--tiny", "--threads", "1", "--precision", "bfloat16", "--json", str(tmp_path / "out.json")]
    subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py"), *words], check=True, capture_output=True, timeout=300)
    said = json.loads((tmp_path / "out.json").read_text())
    assert len(said["rows"]) == 7
    assert all(
        row["images_per_second"] > 0 and row["minutes"] > 0 and row["flops"] > 0 for row in said["rows"].values()
    )
    assert {"versions", "commit", "device"} <= set(said)
