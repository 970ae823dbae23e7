import os
import signal
from collections import defaultdict
from contextlib import suppress
from functools import cache

import pytest
import torch

from auxnet import fetching, latency
from auxnet.cost import multiply_adds_by_part
from auxnet.network import AuxNet
from auxnet.tensors import read_about, read_tensors, save_tensors

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # these laws are of CPUs, to the last bit; benchmarks/gpu_check.py has a GPU's
latency.MOST_TURNS = 7  # as few as there may be: how long anything takes is no matter here
os.fsync = lambda descriptor: None  # processes are killed here, but no machine: what is written is read again without
LONGEST = ("test_export.py", "test_faults.py", "test_sweep.py", "test_untrusted.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left alone with one (with --no-loadscope-reorder)."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    several = defaultdict(list)
    for item in items:
        if item.get_closest_marker("enough"):
            several[item.path, item.originalname].append(item)
    for cases in several.values():  # evenly over them; `make prove` runs the others
        enough = cases[0].get_closest_marker("enough").args[0]
        kept = {n * len(cases) // enough for n in range(enough)}
        for n, case in enumerate(cases):
            if n not in kept:
                case.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Also where the tests are run in a shell's background, which has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_seeded_thread(tmp_path_factory):
    """Every test runs on one thread, from one seed, with a cache of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ["AUXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    os.environ.pop("AUXNET_DATA", None)
    os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session")
def onnx_tables():
    """For exports to ONNX: torch makes its table of operators once, and not anew for each. Skips the test without."""
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))


@pytest.fixture
def own_cache_and_no_network(tmp_path, monkeypatch):
    """A cache of decoded arrays of the test's own, an empty cache of the hub, and no hub to be reached."""
    fetching._fetched_once.cache_clear()
    monkeypatch.setenv("AUXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def home(tmp_path):
    """An empty folder for data, beside the caches."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def multiply_adds(module, image_shape):
    """Of any module, for one image of shape (C, H, W)."""
    return multiply_adds_by_part(AuxNet([module], [torch.nn.Identity()], [1]), image_shape)[0][0]


def one_class_alone(weights):
    """Change a file of weights: to output 3 all images are of the last class but two from now on."""
    state, about = read_tensors(weights), read_about(weights)
    state["heads.2.fc.bias"][-3] += 1e6
    save_tensors(weights, state, **about)
