"""Where a figure comes from: versions, device, threads, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from auxnet import __version__


def provenance(device: torch.device) -> dict[str, Any]:
    """Where a figure comes from: versions, device, threads, and the commit if the program runs from git."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": {"auxnet": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": _commit(),
        "device": {"type": device.type, "name": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def _commit() -> str | None:
    source = Path(__file__).parent
    if not (source.parents[1] / ".git").exists():
        return None
    git = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
