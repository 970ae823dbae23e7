"""Training: reproducible to the byte, resumable, sealed from the test set, and careful with what is on disk."""

import copy
import json
import os
import re
import resource
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import auxnet
from auxnet import build, by_name, epochs, feasible, machine, rundir, schedules, train
from auxnet.data import load_data
from auxnet.errors import DivergedError
from auxnet.export_graphs import OneOutput
from auxnet.files import written_whole
from auxnet.plan import plan
from auxnet.progress import progress_of
from auxnet.reading.splits import fingerprint
from auxnet.recipe import Recipe, read_recipe, write_recipe
from auxnet.report import facts_of_run
from auxnet.resuming import TrainingState
from auxnet.tensors import read_about
from killed import contents, killed_at

TINY = Recipe(depth=8, outputs=3, epochs=3, train_images=96, batch_size=16, threads=1, device="cpu")


def bytes_of(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return auxnet.fit(TINY, tmp_path_factory.mktemp("runs") / "a")


def test_the_same_recipe_gives_the_same_bytes_of_weights(run, tmp_path, monkeypatch):
    torch.manual_seed(99)  # what the caller drew before makes no difference
    drawn = torch.get_rng_state()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("it seeds every device"))
    auxnet.fit(TINY, tmp_path / "b")
    assert bytes_of(tmp_path / "b") == bytes_of(run.folder)
    assert torch.equal(torch.get_rng_state(), drawn)  # nor does training make one to the caller
    auxnet.fit(replace(TINY, seed=1), tmp_path / "c")
    assert bytes_of(tmp_path / "c") != bytes_of(run.folder)


def test_all_is_in_float32_whatever_pytorch_is_told_to_make_by_default(run, tmp_path):
    images = torch.randint(256, (2, 8, 8, 1), dtype=torch.uint8)

    def asked():
        leaves = OneOutput(auxnet.load(run).truncate(1), (9.0,), (7.0,)).eval()  # the graph of an exported file
        return list(auxnet.predict(run, images.numpy())), [part.tolist() for part in leaves(images)]

    before = asked()
    torch.set_default_dtype(torch.float64)
    try:
        auxnet.fit(TINY, tmp_path / "b")
        assert asked() == before
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert bytes_of(tmp_path / "b") == bytes_of(run.folder)


@pytest.mark.long
def test_a_callers_autocast_and_default_device_change_nothing(run, tmp_path):
    images = torch.randint(256, (2, 8, 8, 1), dtype=torch.uint8).numpy()
    before = list(auxnet.predict(run, images)), auxnet.evaluate(run)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):  # which stands in for a GPU
        with auxnet.opened(run):
            assert torch.is_autocast_enabled("cpu")  # what is done there is the caller's own
            assert torch.ones(1).is_meta
        auxnet.fit(TINY, tmp_path / "b")
        assert (list(auxnet.predict(run, images)), auxnet.evaluate(run)) == before
        shown = [row["val"]["error"] for row in facts_of_run(run.folder, "a")["outputs"]]
        assert plan(TINY).outputs[0].params == before[1][0].params
        assert auxnet.export(run, 1, "torch", tmp_path / "one.pt2").difference < 1e-4
    assert shown == [report.error for report in before[1]]
    assert bytes_of(tmp_path / "b") == bytes_of(run.folder)


def test_a_process_trains_one_recipe_at_a_time(tmp_path):
    """Both would draw from the same random numbers."""

    def train_another(progress):
        with (
            pytest.raises(RuntimeError, match="another fit is under way in this process"),
            ThreadPoolExecutor() as pool,
        ):
            pool.submit(auxnet.fit, TINY, tmp_path / "b").result()

    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a", watch=train_another)
    assert not (tmp_path / "b").exists()


def test_of_epochs_that_err_alike_the_first_is_the_best():
    state = TrainingState()
    for wrong in ((36, 30, 5), (19, 30, 22), (5, 30, 36)):  # 71 each; their means differ in the last bit
        state = state.after([n / 145 for n in wrong], [])
    assert state.best_epoch == 1


@pytest.mark.long
def test_a_run_that_was_saved_as_numpys_numbers_say_is_resumed(tmp_path):
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a", save_every=np.float64(300), keep=np.int64(1))
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a", resume=True)


@pytest.mark.parametrize("save_every", [-1, "300", True, float("nan")])
def test_what_is_no_time_between_checkpoints_is_refused_before_the_first_step(save_every, tmp_path):
    with pytest.raises(ValueError, match="save_every must be 0 seconds or more"):
        auxnet.fit(TINY, tmp_path / "a", save_every=save_every)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("keep", [0, 1.5, "2"])
def test_what_is_no_number_of_checkpoints_to_keep_is_refused_before_the_first_step(keep, tmp_path):
    with pytest.raises(ValueError, match="keep must be a whole number, 1 or more"):
        auxnet.fit(TINY, tmp_path / "a", keep=keep)
    assert not (tmp_path / "a").exists()


def test_a_run_shows_itself_in_a_line_opened_too(run):
    errors = " / ".join(f"{100 * row['val_error']:.1f}" for row in run.summary["last"])
    assert repr(run) == f"Run('{run.folder}': 3 outputs, val. error {errors} %)"
    assert repr(auxnet.Run(Path("runs/b"), run.net, {})) == "Run('runs/b')"  # of torchrun's other processes
    assert len({run, auxnet.Run(run.folder, run.net, run.summary)}) == 2  # each equals itself alone
    with auxnet.opened(run) as it:
        assert repr(it) == f"Opened(recipe={it.recipe!r}, device=device(type='cpu'), may_be_seen_by={{}})"


def test_a_recipe_saved_and_loaded_trains_the_same_weights(run, tmp_path):
    auxnet.fit(read_recipe(run.folder / "recipe.yaml"), tmp_path / "b")
    assert bytes_of(tmp_path / "b") == bytes_of(run.folder)


def test_the_run_directory_holds_what_was_promised(run):
    assert {p.name for p in run.folder.iterdir()} == {
        "recipe.yaml",
        "metrics.jsonl",
        "summary.json",
        "model.safetensors",
        "config.json",
        "checkpoints",
        rundir.LOCK,
    }
    rows = rundir.read_metrics(run.folder)
    assert [(r["epoch"], r["split"], r["output"]) for r in rows] == [
        (e, s, k) for e in (1, 2, 3) for s in ("train", "val") for k in (1, 2, 3)
    ]
    assert set(rows[0]) == {"epoch", "split", "output", "depth", "loss", "error", "lr", "seconds"}
    summary = run.summary
    assert summary == json.loads((run.folder / "summary.json").read_text())
    assert [row["depth"] for row in summary["last"]] == [3, 5, 8]
    assert set(summary["last"][0]) >= {"output", "depth", "params", "macs", "val_error", "test_error"}
    assert summary["epochs"]["last"] == 3
    assert summary["versions"]["torch"] == torch.__version__
    guessing = pytest.approx(1 - 15 / 145)  # 15 images of the commonest digit
    about = {"name": "digits", "train": 96, "val": 145, "test": 359, "guessing": guessing}
    dataset = load_data(TINY)
    judged_on = {f"{which}_sha256": fingerprint([getattr(dataset, which)]) for which in ("test", "val")}
    assert summary["data"] == {**about, "drawn": dataset.drawn, **judged_on, "resize": [8, 8], "fit": "crop"}


def test_the_best_epoch_is_the_one_of_least_validation_error(run):
    val = [r for r in rundir.read_metrics(run.folder) if r["split"] == "val"]
    means = {e: sum(r["error"] for r in val if r["epoch"] == e) / 3 for e in (1, 2, 3)}
    best = run.summary["epochs"]["best"]
    assert best == min(means, key=lambda e: (means[e], e))
    assert [r["error"] for r in val if r["epoch"] == best] == [row["val_error"] for row in run.summary["best"]]


def test_what_was_saved_is_what_was_trained(run):
    loaded = auxnet.load(run.folder)
    assert not loaded.training
    assert (run.net.config, run.net.classes, run.net.training) == (loaded.config, loaded.classes, False)
    for a, b in zip(loaded.state_dict().values(), run.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    dataset = load_data(TINY)
    again = train.tables(run.folder, dataset, torch.device("cpu"), same=False)
    assert again["last"] == run.summary["last"]
    assert again["best"] == run.summary["best"]


def test_the_test_set_chooses_nothing(run, tmp_path, monkeypatch):
    """With absurd test labels the weights, the metrics and the chosen epoch stay the same."""
    honest = train.load_data

    def absurd(recipe):
        dataset = honest(recipe)
        labels = (dataset.test.labels + 1) % 10
        return replace(dataset, test=replace(dataset.test, labels=labels))

    monkeypatch.setattr(train, "load_data", absurd)
    other = auxnet.fit(TINY, tmp_path / "b")
    assert bytes_of(other.folder) == bytes_of(run.folder)
    assert other.summary["epochs"] == run.summary["epochs"]
    assert other.summary["last"] != run.summary["last"]


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name(tmp_path, monkeypatch):
    honest = epochs.training_batches

    def poisoned(*args, **more):
        for i, (x, y) in enumerate(honest(*args, **more), start=1):
            yield (x * float("nan") if i == 2 else x), y

    monkeypatch.setattr(epochs, "training_batches", poisoned)
    with pytest.raises(RuntimeError, match=r"loss of output 1 \(layer 3\) became nan in epoch 1, step 2"):
        auxnet.fit(TINY, tmp_path / "a")
    monkeypatch.setattr(
        epochs, "steps_between_reads", lambda device: 4
    )  # as on a GPU: the error names the step all the same
    with pytest.raises(RuntimeError, match=r"loss of output 1 \(layer 3\) became nan in epoch 1, step 2"):
        auxnet.fit(TINY, tmp_path / "b")


@pytest.mark.long
def test_losses_read_a_few_steps_at_a_time_are_the_same_and_all_of_them(tmp_path, monkeypatch):
    runs = []
    for every in (1, 4, 50):
        monkeypatch.setattr(epochs, "steps_between_reads", lambda device, every=every: every)
        run = auxnet.fit(TINY, tmp_path / str(every))
        rows = [{**row, "seconds": 0} for row in rundir.read_metrics(run.folder)]
        runs.append((rows, (run.folder / "model.safetensors").read_bytes()))
    assert runs[0] == runs[1] == runs[2]
    monkeypatch.setattr(epochs, "steps_between_reads", lambda device: 50)  # a checkpoint in between reads what is there
    auxnet.fit(TINY, tmp_path / "saved", save_every=0)
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == runs[0][1]
    rows = [{**row, "seconds": 0} for row in rundir.read_metrics(tmp_path / "saved")]
    assert rows == runs[0][0]


def test_a_run_is_never_lost_by_accident(run, tmp_path):
    before = bytes_of(run.folder)
    with pytest.raises(FileExistsError, match=r"resume .--resume. continues it, overwrite .--overwrite. replaces it"):
        auxnet.fit(TINY, run.folder)
    with pytest.raises(ValueError, match="was begun with epochs=3") as refused:
        auxnet.fit(replace(TINY, epochs=9), run.folder, resume=True)
    assert f"(in Python give auxnet.recipe.read_run_recipe({str(run.folder)!r}))" in str(refused.value)
    with pytest.raises(ValueError, match="give one of the two"):
        auxnet.fit(TINY, run.folder, resume=True, overwrite=True)
    with pytest.raises(ValueError, match="depth must be"):  # a recipe that cannot be does not cost the old run
        auxnet.fit(replace(TINY, depth=9), run.folder, overwrite=True)
    assert bytes_of(run.folder) == before

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds other files"):
            auxnet.fit(TINY, tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is a file"):
        auxnet.fit(TINY, tmp_path / "mine" / "thesis.txt")
    with pytest.raises(FileExistsError, match=r"run cannot be made: .*thesis\.txt is a file; name another folder"):
        auxnet.fit(TINY, tmp_path / "mine" / "thesis.txt" / "run")
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        auxnet.fit(TINY, tmp_path / "nowhere", resume=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_overwrite_refuses_a_folder_among_the_files_of_a_run_before_it_removes_any(tmp_path):
    whole = auxnet.fit(replace(TINY, epochs=1), tmp_path / "a").folder
    (whole / "report.html").mkdir()
    before = sorted(whole.rglob("*")), bytes_of(whole)
    with pytest.raises(FileExistsError, match=r"report\.html is a folder, where a run has a file: move it away"):
        auxnet.fit(replace(TINY, epochs=1), whole, overwrite=True)
    assert (sorted(whole.rglob("*")), bytes_of(whole)) == before
    (whole / "report.html").rmdir()

    def come_between(progress):
        (whole / "report.html").mkdir(exist_ok=True)

    with pytest.raises(RuntimeError, match=r"; a part of the older run is removed: put that right, .* --overwrite"):
        auxnet.fit(replace(TINY, epochs=1), whole, overwrite=True, watch=come_between)
    (whole / "report.html").rmdir()
    auxnet.fit(replace(TINY, epochs=1), whole, overwrite=True)


def test_a_folder_whose_name_is_not_utf8_is_trained_in_and_read(tmp_path):
    run = auxnet.fit(replace(TINY, epochs=1), tmp_path / "r\udcff")
    assert read_about(run.folder / "checkpoints" / "best.safetensors")["epoch"] == "1"
    for ours, theirs in zip(run.net.parameters(), auxnet.load(run.folder).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_overwrite_leaves_what_is_not_ours(tmp_path):
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "checkpoints" / "kept.bin").write_text("mine")
    auxnet.fit(replace(TINY, epochs=1, seed=1), tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "a" / "checkpoints" / "kept.bin").read_text() == "mine"
    assert read_recipe(tmp_path / "a" / "recipe.yaml").seed == 1


@pytest.mark.parametrize("where", ["config.json", "model.safetensors"])
def test_a_damaged_run_is_named(run, tmp_path, where):
    shutil.copytree(run.folder, tmp_path / "a")
    path = tmp_path / "a" / where
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    with pytest.raises(RuntimeError, match=f"{where} is damaged"):
        auxnet.load(tmp_path / "a")


def test_the_step_size_falls_at_the_milestones():
    recipe = Recipe(epochs=10, milestones=(0.4, 0.6), lr=1.0)
    assert [schedules.lr_at(recipe, e) for e in range(1, 11)] == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 4)


@pytest.mark.parametrize(("epochs", "lrs"), [(1, [1]), (2, [1, 0.1]), (3, [1, 1, 0.01]), (5, [1, 1, 0.1, 0.01, 0.01])])
def test_a_short_run_still_starts_at_the_full_step(epochs, lrs):
    recipe = Recipe(epochs=epochs, lr=1.0)
    assert [schedules.lr_at(recipe, e) for e in range(1, epochs + 1)] == pytest.approx(lrs)


def test_a_run_that_diverges_in_its_last_step_is_stopped_too(tmp_path):
    with pytest.raises(RuntimeError, match="on the validation images after epoch 1"):
        auxnet.fit(replace(TINY, epochs=1, batch_size=2000, lr=1e25), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_older_run_is_not_given_up_for_one_that_cannot_begin(tmp_path):
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a")
    before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="dense"):
        auxnet.fit(replace(TINY, optimizer="SparseAdam", lr=1e-3), tmp_path / "a", overwrite=True)
    (tmp_path / "a" / "checkpoints" / "00001-0000000.ckpt").rename(tmp_path / "elsewhere.pt")
    with pytest.raises(FileNotFoundError, match="to resume from; --overwrite begins again"):
        auxnet.fit(replace(TINY, epochs=1), tmp_path / "a", resume=True)
    (tmp_path / "elsewhere.pt").rename(tmp_path / "a" / "checkpoints" / "00001-0000000.ckpt")
    assert {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()} == before


def test_any_optimizer_of_torch_is_named_and_a_misspelt_one_suggested():
    with pytest.raises(ValueError, match="no optimizer 'AdmW'; perhaps you meant 'AdamW'"):
        by_name.optimizer_of(replace(TINY, optimizer="AdmW"))
    adam = by_name.optimizer_of(replace(TINY, optimizer="AdamW", lr=1e-3))([torch.zeros(1, requires_grad=True)])
    assert adam.param_groups[0]["weight_decay"] == 1e-4


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_norms_and_biases_are_decayed_where_they_are_to_be(optimizer, decay_norms):
    """Joint, whose first segment moves at half the step, against both optimizers written out by hand."""
    recipe = replace(TINY, outputs=2, method="joint", weights=(2.0,), optimizer=optimizer, lr=0.05, weight_decay=0.5)
    recipe = replace(recipe, decay_norms=decay_norms)
    net = auxnet.resnet(depth=8, outputs=2).double().train()
    by_hand = copy.deepcopy(net)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in by_hand.named_parameters()}
    method = build.build_method(recipe, net, torch.nn.functional.cross_entropy)
    x, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    for step in (1, 2, 3):
        method.step(x, y)
        first, final = (torch.nn.functional.cross_entropy(z, y) for z in by_hand(x))
        gradients = torch.autograd.grad(2 * first + final, [*by_hand.parameters()])
        for (name, p), g in zip(by_hand.named_parameters(), gradients, strict=True):
            lr = 0.05 / 2 if name.startswith("segments.0.") else 0.05
            decay = 0.5 if decay_norms or p.ndim > 1 else 0.0
            v, squares = moments[name]
            if optimizer == "SGD":
                g = g + decay * p.detach()
                v.mul_(0.9).add_(g)
                p.data -= lr * (g + 0.9 * v)
            else:
                v.lerp_(g, 0.1)
                squares.lerp_(g * g, 0.001)
                p.data -= lr * decay * p.data
                p.data -= lr * v / (1 - 0.9**step) / ((squares / (1 - 0.999**step)).sqrt() + 1e-8)
    for p, expected in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "fields", [{"method": "pairwise"}, {"state": "shared"}, {"mode": "frozen"}, {"mode": "fused"}], ids=str
)
@pytest.mark.parametrize("frozen", [False, True])
def test_every_method_spares_norms_and_biases_that_are_not_to_be_decayed(fields, frozen):
    """Seen where the gradient is clipped to nothing, and the decay alone is left."""
    net = auxnet.resnet(depth=8, outputs=2)
    if frozen:
        net.freeze_trunk()
    before = {name: p.clone() for name, p in net.named_parameters() if p.requires_grad}
    recipe = replace(TINY, outputs=2, weight_decay=0.5, decay_norms=False, clip=1e-20, **fields)
    method = build.build_method(recipe, net.train(), torch.nn.functional.cross_entropy)
    method.step(torch.randn(4, 3, 8, 8), torch.arange(4))
    method.load_state_dict(method.state_dict())
    assert before
    for name, p in before.items():
        assert torch.allclose(net.get_parameter(name), p, rtol=1e-6, atol=1e-12) == (p.ndim == 1)


def test_a_device_that_is_not_there_is_said():
    with pytest.raises(ValueError, match="device 'cuda:7' cannot be used here"):
        machine.device_of("cuda:7")
    with pytest.raises(ValueError, match="device 'fpga' cannot be used here"):
        machine.device_of("fpga")


def test_label_smoothing_is_that_of_torch():
    net, method = build.build(replace(TINY, label_smoothing=0.1), load_data(TINY), torch.device("cpu"))
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    expected = [torch.nn.functional.cross_entropy(z, y, label_smoothing=0.1) for z in net.train()(x)]
    assert method.step(x, y)[0].item() == pytest.approx(expected[0].item(), rel=1e-5)


def test_a_truncated_net_trained_alone_is_that_net_and_nothing_else(tmp_path):
    recipe = replace(Recipe(), depth=14, outputs=3, alone=2, method="joint", epochs=1, threads=1, train_images=300)
    run = auxnet.fit(recipe, tmp_path / "a")
    [row] = run.summary["last"]
    whole = auxnet.resnet(14, 3, num_classes=10, in_channels=1)
    assert (row["depth"], row["params"]) == (whole.depths[1], sum(p.numel() for p in whole.truncate(2).parameters()))
    again = auxnet.load(tmp_path / "a")
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(again(x)[0], run.net(x)[0])
    assert all(map(torch.equal, again.state_dict().values(), run.net.state_dict().values()))
    with pytest.raises(ValueError, match=r"alone must be one of the outputs 1\.\.3"):
        auxnet.fit(replace(recipe, alone=4), tmp_path / "b")
    assert auxnet.export(tmp_path / "a", format="safetensors", out=tmp_path / "x").output == 1


def test_class_weights_are_counted_on_the_training_images():
    dataset = load_data(TINY)
    few = (dataset.train.labels != 3) | (torch.arange(len(dataset.train)) % 4 == 0)  # a fourth of the threes
    dataset = replace(dataset, train=dataset.train.part(few.nonzero().flatten()))
    counts = torch.bincount(dataset.train.labels).tolist()
    z, y = torch.randn(4, 10, dtype=torch.float64), torch.tensor([3, 1, 2, 9])
    loss = build.loss_of(replace(TINY, class_weights="balanced"), dataset, torch.device("cpu"))
    by_hand = [sum(counts) / (10 * counts[c]) * -z[n].log_softmax(0)[c] for n, c in enumerate(y.tolist())]
    assert loss(z.float(), y).item() == pytest.approx(float(sum(by_hand) / 4), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 21}, "depth must be 6n \\+ 2"),
        ({"outputs": 40}, r"outputs must lie in 1\.\.9"),
        ({"at": (8,)}, "at must be"),
        ({"alone": 4}, r"alone must be one of the outputs 1\.\.3"),
        ({"epochs": 3, "discard_after": 3}, "discard_after=3 never acts in 3 epochs: give at most 2 epochs"),
        ({"optimizer": "Adan"}, "torch.optim has no optimizer 'Adan'; perhaps you meant 'Adam'"),
        ({"optimizer": "LBFGS"}, "LBFGS"),
        ({"weights": (1.0, 2.0, 3.0, 4.0)}, "weights must be"),
        ({"method": "joint", "step_scale": "cumulative"}, "step_scale must be one of none, sum"),
        ({"method": "multiway", "mode": "fused", "order": "deep_first"}, "has no meaning beside mode='fused'"),
        ({"aggregator": "UPGrad"}, "aggregator='UPGrad' is joint's"),
        ({"backbone": "timm:x", "optimizer": "Adan"}, "torch.optim has no optimizer 'Adan'"),
        ({"backbone": "timm:x", "method": "joint", "step_scale": "cumulative"}, "step_scale must be one of none, sum"),
        ({"backbone": "timm:x", "cuts": ("a", "b"), "weights": (1.0,) * 4}, "weights must be"),
    ],
)
@pytest.mark.parametrize("use", [auxnet.fit, lambda recipe, out: plan(recipe)], ids=["fit", "plan"])
def test_what_no_data_could_mend_is_said_before_they_are_read(fields, message, use, tmp_path, monkeypatch):
    monkeypatch.setattr("auxnet.data.find", lambda *a, **k: pytest.fail("the data were read first"))
    with pytest.raises(ValueError, match=message):
        use(Recipe(data="photos", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mistyped_number_of_cuts_takes_no_time_to_check():
    began = time.monotonic()
    feasible.check_recipe(Recipe(backbone="timm:x", cuts=10**7))
    assert time.monotonic() - began < 5  # what is left to do takes none; PyTorch's own imports take seconds


def test_a_folder_with_a_recipe_that_is_no_runs_is_left_alone(tmp_path):
    write_recipe(TINY, tmp_path / "recipe.yaml")
    (tmp_path / "config.json").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds other files"):
            auxnet.fit(TINY, tmp_path, overwrite=overwrite)
    assert (tmp_path / "config.json").read_text() == "mine"


@pytest.mark.parametrize("recipe", [{"depth": 8}, "recipe.yaml"])
def test_what_is_no_recipe_is_told_how_to_become_one(recipe, tmp_path):
    with pytest.raises(TypeError, match=r"must be an auxnet\.Recipe, got .*: auxnet\.recipe has recipe_from for"):
        auxnet.fit(recipe, tmp_path / "a")


def test_a_watch_that_is_no_function_is_refused(tmp_path):
    with pytest.raises(TypeError, match="watch must be a function of Progress, got 1"):
        auxnet.fit(TINY, tmp_path / "a", watch=1)
    assert not (tmp_path / "a").exists()


def test_a_run_within_its_own_data_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"lies in the data, .*, and would be taken for a part of it"):
        auxnet.fit(replace(TINY, data=str(tmp_path)), tmp_path / "runs" / "x")
    assert not (tmp_path / "runs").exists()


def test_data_that_cannot_be_read_for_a_while_cost_no_epoch(tmp_path, monkeypatch):
    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit_on(TINY, tmp_path / "a", stop)

    def gone(run, recipe):
        raise FileNotFoundError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(train, "found_data", gone)
        with pytest.raises(FileNotFoundError, match="the disk is away"):
            train.fit_on(TINY, tmp_path / "a")
    seen = []
    train.fit_on(TINY, tmp_path / "a", lambda progress: seen.append(progress.epoch))
    assert set(seen) == {2, 3}


@pytest.mark.long
def test_the_wall_time_is_of_all_sessions_reading_data_and_evaluating_included(tmp_path, monkeypatch):
    clock = [0.0]

    def stop(progress):
        if progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def slow(work, seconds):
        def done(*args, **more):
            clock[0] += seconds
            return work(*args, **more)

        return done

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for name, seconds in (("load_data", 100.0), ("found_data", 100.0), ("tables", 10.0)):
        monkeypatch.setattr(train, name, slow(getattr(train, name), seconds))
    monkeypatch.setattr(epochs, "tally", slow(epochs.tally, 1.0))
    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(TINY, tmp_path / "a", watch=stop)
    run = auxnet.fit(TINY, tmp_path / "a", resume=True)
    assert run.summary["wall_seconds"] == 2 * 100 + 3 * 1 + 10
    again = auxnet.fit(TINY, tmp_path / "a", resume=True)  # nothing is left to train: this is no time of the training
    assert again.summary["wall_seconds"] == 2 * 100 + 3 * 1 + 10


@pytest.mark.long
def test_a_training_killed_anywhere_before_its_first_checkpoint_is_begun_anew(tmp_path, monkeypatch):
    recipe, a = replace(TINY, epochs=1, train_images=100), tmp_path / "a"
    whole, left = auxnet.fit(recipe, tmp_path / "c").folder, set()
    with monkeypatch.context() as patched:
        patched.setattr(train, "run_epochs", lambda t, state: t.save(state.after([0.5], [{"epoch": 1}])))
        for act in range(1, 100):
            assert killed_at(act, a, lambda: train.fit_on(recipe, a))
            if list(a.glob("checkpoints/*.ckpt")):
                break
            names = sorted(re.sub(r"[0-9a-f]+\.partial", "partial", path.name) for path in a.rglob("*"))
            left.add(" ".join(names))
            if "metrics.jsonl" in names and not (tmp_path / "b").exists():
                shutil.copytree(a, tmp_path / "b")
    assert left >= {
        ".lock",
        ".00001-0000000.ckpt.partial .lock checkpoints",
        ".00001-0000000.ckpt.partial .lock .recipe.yaml.partial checkpoints",
        ".00001-0000000.ckpt.partial .lock checkpoints recipe.yaml",
        ".00001-0000000.ckpt.partial .lock checkpoints metrics.jsonl recipe.yaml",
    }
    train.fit_on(recipe, tmp_path / "b")
    assert bytes_of(tmp_path / "b") == bytes_of(whole)
    assert {path.name for path in (tmp_path / "b").iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize(
    "foreign",
    [
        ["patients.csv"],
        ["recipe.yaml", "metrics.jsonl", "model.safetensors", "summary.json"],  # a run whose checkpoints were removed
        ["metrics.jsonl"],
        ["recipe.yaml/cake"],
        ["checkpoints"],
        ["checkpoints/a/b"],
    ],
    ids=" ".join,
)
def test_what_is_no_training_killed_at_its_beginning_is_never_removed(foreign, tmp_path):
    for name in foreign:
        path = tmp_path / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "recipe.yaml":
            write_recipe(TINY, path, sealed=True)
        else:
            path.write_text("precious")
    before = contents(tmp_path / "a")
    with pytest.raises(FileExistsError, match=r"holds (a run already|other files)") as caught:
        train.fit_on(TINY, tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "a") == before


def test_files_of_others_stay_where_a_training_is_begun_anew(tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    write_recipe(TINY, tmp_path / "a" / "recipe.yaml", sealed=True)
    (tmp_path / "a" / "patients.csv").write_text("precious")
    (tmp_path / "a" / "checkpoints" / "kept.bin").write_text("precious")
    (tmp_path / "a" / "checkpoints" / ".00001-0000000.ckpt.123.partial").write_text("half")
    (tmp_path / "a" / ".diagnosis.jsonl.123.partial").write_text("half")
    train.fit_on(replace(TINY, epochs=1), tmp_path / "a")
    assert (tmp_path / "a" / "patients.csv").read_text() == "precious"
    assert (tmp_path / "a" / "checkpoints" / "kept.bin").read_text() == "precious"
    assert not [*(tmp_path / "a").rglob(".*.partial")]


@pytest.mark.long
def test_a_training_of_a_sweep_or_study_whose_checkpoints_are_all_damaged_is_begun_anew(tmp_path):
    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit_on(TINY, tmp_path / "a", stop)
    for path in (tmp_path / "a" / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        train.fit_on(TINY, tmp_path / "a")
    assert bytes_of(tmp_path / "a") == bytes_of(auxnet.fit(TINY, tmp_path / "b").folder)


def test_overwrite_keeps_a_run_until_something_better_is_there(tmp_path):
    whole = auxnet.fit(replace(TINY, epochs=1), tmp_path / "a").folder
    before = contents(whole)
    with pytest.raises(DivergedError):
        auxnet.fit(replace(TINY, epochs=1, lr=1e38), whole, overwrite=True, save_every=0)
    assert contents(whole) == before
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # less than a checkpoint
    try:
        with pytest.raises(RuntimeError, match=r"File too large.; what lay there is as it was: put that right"):
            auxnet.fit(replace(TINY, epochs=1), whole, overwrite=True)
        with pytest.raises(RuntimeError, match=r"File too large.; nothing was saved before: put that right"):
            auxnet.fit(replace(TINY, epochs=1), tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(whole) == before
    assert not (tmp_path / "b").exists()


def test_who_stops_an_overwriting_training_before_its_first_checkpoint_keeps_the_older_run(tmp_path):
    whole = auxnet.fit(replace(TINY, epochs=1), tmp_path / "a").folder
    before = contents(whole)

    def stop(progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped before anything was saved; .* is as it was"):
        auxnet.fit(replace(TINY, seed=1), whole, overwrite=True, watch=stop)
    assert contents(whole) == before


def test_epochs_are_compared_by_outputs_that_train_to_the_end(tmp_path):
    for fields, counted in (({"weights": (0.0, 1.0)}, [1]), ({"discard_after": 0.5}, [1]), ({}, [0, 1])):
        recipe = replace(TINY, outputs=2, epochs=4, lr=0.02, **fields)
        run = auxnet.fit(recipe, tmp_path / "-".join(fields) / "a")
        rows = [row for row in rundir.read_metrics(run.folder) if row["split"] == "val"]
        means = [sum(rows[2 * epoch + k]["error"] for k in counted) for epoch in range(4)]
        assert run.summary["epochs"]["best"] == 1 + means.index(min(means))


def test_a_recipe_of_the_users_own_is_no_training(tmp_path):
    (tmp_path / "a").mkdir()
    write_recipe(TINY, tmp_path / "a" / "recipe.yaml")  # without the seal of a run
    before = contents(tmp_path / "a")
    with pytest.raises(FileExistsError, match="holds other files"):
        train.fit_on(TINY, tmp_path / "a")
    assert contents(tmp_path / "a") == before


def test_a_last_batch_of_one_image_is_refused_where_a_norm_cannot_take_it(tmp_path):
    recipe = replace(TINY, image_size=4, train_images=257, batch_size=256, epochs=1)
    with pytest.raises(
        ValueError, match=r"batch_size=256 leaves one image to the last of 257 training images' batches"
    ):
        auxnet.fit(recipe, tmp_path / "a")
    with pytest.raises(ValueError, match="batch_size=256 leaves one image"):
        plan(recipe)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="batch_size=256 leaves one image"):  # which is the whole batch
        auxnet.fit(replace(recipe, sync_batchnorm=True), tmp_path / "a")
    auxnet.fit(replace(recipe, image_size=None), tmp_path / "b")  # 2 x 2 pixels are left there


@pytest.mark.parametrize(("images", "size"), [(32, 5), (35, 6), (15, 5)])  # the last of 32 is smaller than a team
def test_a_process_that_gets_one_image_alone_of_a_batch_is_refused_too(images, size):
    recipe = replace(TINY, image_size=4, train_images=images, batch_size=size)
    dataset, said = load_data(recipe), f"batch_size={size} leaves one image to one of 3 processes"
    net = build.net_of(recipe, dataset)
    with pytest.raises(ValueError, match=said):
        feasible.check_last_batch(recipe, dataset, net, processes=3)
    feasible.check_last_batch(replace(recipe, sync_batchnorm=True), dataset, net, processes=3)
    feasible.check_last_batch(recipe, dataset, net)
    feasible.check_last_batch(replace(recipe, batch_size=images), dataset, net, processes=3)


def test_a_run_within_data_that_lie_below_data_dir_is_refused(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for folder in (tmp_path / "photos", tmp_path / "photos" / "run"):
        with pytest.raises(ValueError, match="lies in the data"):
            rundir.check_outside_data(folder, "photos", str(tmp_path))
    rundir.check_outside_data(tmp_path / "run", "photos", str(tmp_path))


def test_errors_told_within_an_epoch_are_said_to_be_of_the_one_before(tmp_path):
    seen = []
    auxnet.fit(replace(TINY, epochs=2), tmp_path / "a", watch=seen.append)
    assert {str(each).endswith(" after epoch 1") for each in seen if each.epoch == 2 and not each.done} <= {True}
    assert not any(" after epoch" in str(each) for each in seen if each.done or each.epoch == 1)
    assert str(replace(seen[-1], done=False)).endswith(" % after epoch 1")


def test_progress_says_where_a_training_stands(tmp_path):
    seen = []
    auxnet.fit(TINY, tmp_path / "a", watch=seen.append)
    rows = rundir.read_metrics(tmp_path / "a")
    for epoch, now in enumerate((each for each in seen if each.done), start=1):
        trained = [row for row in rows if row["epoch"] == epoch and row["split"] == "train"]
        judged = [row for row in rows if row["epoch"] == epoch and row["split"] == "val"]
        assert now.losses == [row["loss"] for row in trained]
        assert now.val_errors == [row["error"] for row in judged]
        assert now.lr == trained[0]["lr"]
        assert str(now).startswith(f"epoch {epoch}/3  ")
        assert str(now).endswith(" %")
        assert now.images_per_second == pytest.approx(96 / trained[0]["seconds"])
    last = [each for each in seen if not each.done][-1]
    assert (last.epoch, last.step) == (3, last.steps)
    assert last.losses == pytest.approx(seen[-1].losses)
    assert "loss " in str(seen[0])


def test_the_time_left_counts_the_validations_to_come_and_the_evaluation_at_the_end():
    """A step of 16 images takes a second, an image that is evaluated a tenth of one."""
    dataset = load_data(TINY)
    train, val, test = 96 / 16, len(dataset.val) / 10, len(dataset.test) / 10
    rows = tuple(
        {"split": split, "output": k, "loss": 1.0, "error": 0.5, "seconds": seconds}
        for split, seconds in (("train", train), ("val", val))
        for k in (1, 2, 3)
    )
    first = TrainingState(step=2, losses=(32.0,) * 3, epoch_seconds=2.0)
    guessed = (len(dataset.val) * 3 + 2 * (len(dataset.val) + len(dataset.test))) / 16 / 3  # a third of a step's time
    assert progress_of(TINY, dataset, first).seconds_left == pytest.approx(3 * train - 2 + guessed)
    second = replace(first, epoch=1, best_epoch=1, history=rows)
    assert progress_of(TINY, dataset, second).seconds_left == pytest.approx(2 * train - 2 + 2 * val + 2 * (val + test))
    for best, tables in ((3, 1), (2, 2)):
        ended = TrainingState(epoch=3, best_epoch=best, history=rows)
        assert progress_of(TINY, dataset, ended, done=True).seconds_left == pytest.approx(tables * (val + test))
    of_two = progress_of(TINY, dataset, second, team=2)  # who validate together; at the end one evaluates alone
    assert of_two.seconds_left == pytest.approx(2 * train - 2 + 2 * val + 2 * 2 * (val + test))


def test_two_that_write_one_file_at_a_time_each_write_it_whole_though_their_process_ids_are_one(tmp_path):
    with (
        written_whole(tmp_path / "a") as first,
        written_whole(tmp_path / "a") as second,
    ):  # as containers do that share a disk
        first.write_text("of the first")
        second.write_text("of the second, longer")
        assert first.read_text() == "of the first"
        assert all(re.fullmatch(rundir.PARTIAL, path.name) for path in (first, second))
    assert (tmp_path / "a").read_text() == "of the first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_training_killed_while_it_began_is_simply_begun_again(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".recipe.yaml.1.partial").write_text("half")
    auxnet.fit(replace(TINY, epochs=1), tmp_path / "a")
