"""Every benchmark runs to its end, small: what a change of names breaks there is seen by no other test."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FEW = ("--rounds", "2", "--threads", "1")
SMALL = {
    "convolutions": (*FEW, "--batch-size", "2"),
    "data": ("--images", "40", "--image-size", "32", "--batch-size", "8"),
    "early_exit": (*FEW, "--batch", "8", "--depth", "20", "--outputs", "2"),
    "exit_target": (*FEW, "--images", "60", "--increase", "3"),
    "export": ("--rounds", "2", "--depth", "8", "--outputs", "2"),
    "faster": (*FEW, "--depth", "8", "--batch-size", "2"),
    "gpu": ("--tiny", "--threads", "1", "--precision", "bfloat16"),
    "gpu_check": (),
    "inference": (*FEW, "--depth", "8", "--outputs", "2"),
    "loop": (*FEW, "--depth", "8", "--images", "256"),
    "memory": (*FEW, "--batch-size", "2"),
    "parts": (*FEW, "--batch-size", "2"),
    "scaling": ("--rounds", "2", "--depth", "8", "--batch-size", "4"),
    "size": (*FEW, "--batch", "2", "--only", "outputs"),
    "soak": ("--kills", "1"),
    "startup": ("--rounds", "2"),
    "step": (*FEW, "--depth", "8", "--batch-size", "2", "--image-size", "8"),
    "tried": (*FEW, "--batch-size", "2"),
}
ELSEWHERE = {"backbones", "compare", "fuzz", "int8", "ledger", "measured"}  # need timm, atheris or runs; what all share


def test_no_benchmark_is_left_out():
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == set(SMALL) | ELSEWHERE


@pytest.mark.parametrize("path", [*BENCHMARKS.glob("*.py"), *BENCHMARKS.with_name("docs").glob("*.py")], ids=str)
def test_what_a_benchmark_takes_of_the_package_is_there(path):
    for found in ast.walk(ast.parse(path.read_text())):
        if isinstance(found, ast.ImportFrom) and (found.module or "").partition(".")[0] == "auxnet":
            module = import_module(found.module)
            for name in found.names:
                assert hasattr(module, name.name) or import_module(f"{found.module}.{name.name}")


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_to_its_end_and_says_where_its_figures_come_from(name, tmp_path):
    words = [sys.executable, str(BENCHMARKS / f"{name}.py"), *SMALL[name], "--json", str(tmp_path / "out.json")]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    said = json.loads((tmp_path / "out.json").read_text())
    assert {"versions", "commit", "device"} <= set(said)
    if name == "gpu_check":
        assert all(row["ok"] for row in said["rows"])
    if name == "gpu":
        rates = [row[key] for row in said["rows"].values() for key in ("images_per_second", "minutes", "flops")]
        assert len(rates) == 7 * 3
        assert min(rates) > 0
