import os

import pytest
import torch

LONGEST = ("test_torchrun.py", "test_faults.py", "test_sweep.py")
OF_MANY = {  # how many of a test's cases are enough from day to day, evenly over them; `make prove` runs the others
    "test_replayed_steps_train_to_the_bits_of_steps_one_by_one": 14,
    "test_a_run_goes_on_with_or_without_graphs": 1,
    "test_a_recipe_with_graphs_trains_the_same_weights": 1,
    "test_every_method_goes_on_from_within_an_epoch": 2,
    "test_a_run_whose_losses_change_goes_on_to_the_same_bytes": 1,
    "test_a_signal_lets_the_step_end_and_saves": 2,
    "test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken": 2,
    "test_every_system_trains": 5,
    "test_the_logits_are_those_of_the_papers_equations": 4,
    "test_outputs_truncate_exactly_and_leave_at_the_ends_of_blocks": 2,
    "test_every_form_takes_every_size_and_truncates_exactly": 10,
    "test_a_recipe_trains_with_an_aggregator": 1,
    "test_a_solution_is_near_the_best_of_all_thresholds_and_no_worse_than_the_best_common_one": 4,
    "test_an_exported_output_equals_its_source": 1,
    "test_with_one_output_every_method_is_ordinary_sgd_to_the_bit": 21,
    "test_an_epoch_never_waits_for_the_device_nor_leaves_it": 8,
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left alone with one (with --no-loadscope-reorder)."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for name, enough in OF_MANY.items():
        cases = [item for item in items if item.originalname == name]
        kept = {n * len(cases) // enough for n in range(enough)}
        for n, case in enumerate(cases):
            if n not in kept:
                case.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def one_seeded_thread(tmp_path_factory):
    """Every test runs on one thread, from one seed, with a cache of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ["AUXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    os.environ.pop("AUXNET_DATA", None)


@pytest.fixture
def own_cache_and_no_network(tmp_path, monkeypatch):
    """A cache of decoded arrays of the test's own, an empty cache of the hub, and no hub to be reached."""
    monkeypatch.setenv("AUXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def home(tmp_path):
    """An empty folder for data, beside the caches."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder
