import os

import pytest
import torch


@pytest.fixture(autouse=True)
def one_seeded_thread(tmp_path_factory):
    """Every test runs on one thread, from one seed, with a cache of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ["AUXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    os.environ.pop("AUXNET_DATA", None)
