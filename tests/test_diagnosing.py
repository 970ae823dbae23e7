"""`auxnet diagnose`, and the diagnosis of a training while it runs: what is written, said and drawn."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

import auxnet
from auxnet import build, diagnosing, opening, rundir, signals
from auxnet.cli import main
from auxnet.data import load_data
from auxnet.distributed import Team
from auxnet.mixing import mixed
from auxnet.recipe import Recipe
from auxnet.synchronised import synchronise_norms, unsynchronised
from auxnet.tensors import read_about, read_tensors, save_tensors
from browser import chromium, opened, ticks_between
from writers import write_folders

TINY = Recipe(depth=8, outputs=3, epochs=2, batch_size=256, threads=1)
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A multi-way run that was diagnosed while it trained, a joint one, and one of a single output."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    auxnet.fit(TINY, folder / "ways", diagnose=True)
    auxnet.fit(replace(TINY, method="joint", epochs=1), folder / "joint")
    auxnet.fit(replace(TINY, outputs=1, epochs=1, batch_size=128), folder / "alone")
    return folder


@pytest.fixture(scope="module")
def content(runs):
    assert main(["diagnose", str(runs / "ways"), "--probe-images", "400", "--threads", "1"]) == 0
    return json.loads((runs / "ways" / "diagnosis.json").read_text())


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def drawn(browser, path, scheme="light", width=1200, clicks=()):
    """What Chromium shows of a page: the page's own traces and sizes."""
    with opened(browser, path, width, scheme) as page:
        for click in clicks:
            page.locator(click).click()
        plots = page.eval_on_selector_all(
            ".plot",
            "all => Object.fromEntries(all.map((p) => [p.id, {"
            "type: p.layout.yaxis.type, ticks: p.layout.yaxis.ticktext, "
            "looks: p.data.map((t) => `${t.line.color} ${t.line.dash} ${t.marker.symbol}`), "
            "traces: p.data.map((t) => ({name: t.name, x: [...t.x], y: [...t.y]}))}]))",
        )
        return {
            "plots": plots,
            "theme": page.evaluate("document.documentElement.dataset.theme"),
            "width": page.evaluate("document.documentElement.scrollWidth"),
            "headline": page.locator("h1").inner_text(),
            "ticks": ticks_between(page, "probes-plot", 0.96, 0.97) if "probes-plot" in plots else [],
        }


# ---- of a finished run -----------------------------------------------------------------------------------------


def test_what_is_written_is_what_the_functions_measure_on_the_last_epochs_batches(runs, content):
    (run,) = content["runs"]
    net, dataset = auxnet.load(runs / "ways"), load_data(TINY)
    found = list(islice(build.training_batches(TINY, dataset, torch.device("cpu"), epoch=2), 2))  # 512 of 256
    assert run["images"] == 512
    by_batch = [auxnet.supervision(net, x, y, "multiway") for x, y in found]
    for row, one, other in zip(run["shares"], *by_batch, strict=True):
        assert (row["output"], row["layer"]) == (one.output, one.layer)
        share = (one.supervision + other.supervision) / (one.gradient + other.gradient)
        assert row["share"] == pytest.approx(share, rel=1e-4)
    assert [(r["output"], r["segment"]) for r in run["norms"]] == [(k, j) for k in (1, 2, 3) for j in range(1, k + 1)]
    assert run["ends"] == [3, 5, 7]
    assert [row["layer"] for row in run["probes"]] == [1, 3, 5, 7]
    assert {row["trained_on"] for row in run["probes"]} == {400}
    assert {row["images"] for row in run["probes"]} == {145}
    assert run["epochs"] == rundir.read_rows(runs / "ways" / "diagnosis.jsonl")


@pytest.mark.parametrize("most", [2, 144, 250, 251, 400, 5000])
def test_probes_take_no_more_images_than_they_are_given(most):
    dataset = load_data(TINY)
    for split in (dataset.train, dataset.val):
        taken = [*diagnosing._sample(split, TINY, dataset, torch.device("cpu"), most)]
        assert [len(images) for images, _ in taken] == [len(labels) for _, labels in taken]
        assert sum(len(labels) for _, labels in taken) == min(most, len(split))


@pytest.mark.long
def test_probes_see_images_as_evaluation_does(tmp_path, monkeypatch):
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), np.uint8), [0, 1] * 20
    write_folders(tmp_path / "pics", images, labels, ["a", "b"])
    recipe = Recipe(data=str(tmp_path / "pics"), image_size=14, augment="rrc+flip", depth=8, epochs=1, threads=1)
    auxnet.fit(recipe, tmp_path / "run")
    seen, probe = [], diagnosing.probe

    def watched(net, *samples):
        held = [[*sample] for sample in samples]
        seen.extend(images.shape[1:] for sample in held for images, _ in sample)
        return probe(net, *held)

    monkeypatch.setattr(diagnosing, "probe", watched)
    assert main(["diagnose", str(tmp_path / "run"), "--threads", "1"]) == 0
    assert {*seen} == {(3, 14, 14)}


def test_sentences_say_what_was_measured(content):
    (run,) = content["runs"]
    bottom = {row["output"]: row["share"] for row in run["shares"] if row["layer"] == 1}
    assert run["said"][0].startswith(f"at layer 1 the share of supervision is {bottom[1]:.2f} of output 1, ")
    assert f"of output 3 falls from 1.00 at layer 7 to {bottom[3]:.2f} at layer 1" in " ".join(run["said"])


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([0.01, 0.3, 1.0], "falls from 1.00 at layer 5 to 0.01 at layer 1"),
        ([0.6, 1.8, 1.0], "goes from 1.00 at layer 5 to 0.60 at layer 1, with its most, 1.80, at layer 3"),
        ([0.9, 0.85, 1.0], "stays level from 1.00 at layer 5 to 0.90 at layer 1"),
        ([2.5, 1.5, 1.0], "rises from 1.00 at layer 5 to 2.50 at layer 1"),
        ([0.6, 0.2, 1.0], "goes from 1.00 at layer 5 to 0.60 at layer 1, with its least, 0.20, at layer 3"),
        ([None, 0.2, 1.0], "is not defined at 1 of 3 layers: no gradient arrives there"),
        ([1.0], "is 1.00 at layer 1, the only one that is seen"),
    ],
)
def test_the_course_of_a_share_is_said_as_it_is(shares, said):
    rows = [{"share": share, "layer": layer} for share, layer in zip(shares, (1, 3, 5), strict=False)]
    assert diagnosing.course(rows) == said


def test_a_net_of_one_visible_layer_is_diagnosed_too(content):
    (run,) = content["runs"]
    one = {**run, "probes": run["probes"][:1], "shares": run["shares"][:1], "agreements": [], "depths": [1]}
    assert f"a linear probe is right on {100 * one['probes'][0]['accuracy']:.1f} % at layer 1" in " ".join(
        diagnosing.sentences(one)
    )


def test_the_command_prints_tables_and_sentences(runs, capsys):
    words = [str(runs / name) for name in ("alone", "joint", "ways")]
    assert main(["diagnose", *words, "--out", str(runs / "all"), "--no-probes", "--images", "1"]) == 0
    out = capsys.readouterr().out
    for text in (
        "ways (multiway, live)",
        "share, output 3",
        "joint (joint)",
        "alone (one output)",
        "cosine with 3",
        "joint: the share of supervision ",
        "ways: the gradients of outputs",
        "the largest share of supervision in the shallowest layer: ",
        "alone: gradients on 128 training images",
        "; joint and ways: gradients on 256 training images",
    ):
        assert text in out
    assert "probe" not in out
    assert max(map(len, out.splitlines())) <= 400
    assert main(["diagnose", str(runs / "joint"), "--no-probes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((runs / "joint" / "diagnosis.json").read_text())
    assert {row["output"] for row in told["runs"][0]["shares"]} == {None}
    assert (runs / "all" / "diagnosis.html").is_file()


def test_what_cannot_be_written_is_told_before_anything_is_measured(runs, capsys, monkeypatch):
    monkeypatch.setattr(diagnosing, "unwritable", lambda folder: "Read-only file system")
    monkeypatch.setattr(diagnosing, "diagnosis_of_run", None)
    assert main(["diagnose", str(runs / "joint")]) == 1
    said = f"auxnet: {runs / 'joint'} cannot be written to (Read-only file system): give --out DIR\n"
    assert capsys.readouterr().err == said


def test_a_run_that_cannot_be_diagnosed_costs_those_beside_it_nothing(runs, tmp_path, capsys, monkeypatch):
    def refuse(path, name, *how):
        if name == "joint":
            raise ValueError("its trunk is frozen")
        return diagnosis_of_run(path, name, *how)

    diagnosis_of_run = diagnosing.diagnosis_of_run
    monkeypatch.setattr(diagnosing, "diagnosis_of_run", refuse)
    words = ["--out", str(tmp_path / "all"), "--no-probes", "--images", "1"]
    assert main(["diagnose", str(runs / "alone"), str(runs / "joint"), *words]) == 0
    assert capsys.readouterr().err == "auxnet: warning: joint is not shown: its trunk is frozen\n"
    assert [run["name"] for run in json.loads((tmp_path / "all" / "diagnosis.json").read_text())["runs"]] == ["alone"]


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_what_was_diagnosed_is_printed_also_where_it_cannot_be_written(how, runs, capsys, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(diagnosing, "write_json", refuse)
    assert main(["diagnose", str(runs / "joint"), "--no-probes", "--images", "1", *how]) == 1
    out, err = capsys.readouterr()
    assert "share" in out
    assert err == f"auxnet: {runs / 'joint'} cannot be written to (Read-only file system): give --out DIR\n"


def test_the_page_draws_what_was_measured_and_hears_of_nothing(runs, content, browser):
    seen = drawn(
        browser, runs / "ways" / "diagnosis.html", scheme="dark", width=390, clicks=["#scale input[value=log]"]
    )
    (run,) = content["runs"]
    assert seen["theme"] == "dark"
    assert seen["width"] <= 390
    assert seen["plots"]["shares-plot"]["type"] == "log"
    ticks = [float(text) for text in seen["plots"]["shares-plot"]["ticks"]]
    assert ticks == sorted(ticks)
    assert "at layer 1 the share of supervision" in seen["headline"].lower()
    for k, trace in enumerate(seen["plots"]["shares-plot"]["traces"], start=1):
        rows = [row for row in run["shares"] if row["output"] == k]
        assert trace == {"name": f"output {k}", "x": [r["layer"] for r in rows], "y": [r["share"] for r in rows]}
    assert [trace["x"] for trace in seen["plots"]["epochs-plot"]["traces"]] == [[1, 2]] * 3
    (probes,) = seen["plots"]["probes-plot"]["traces"]
    assert probes["y"] == [row["accuracy"] for row in run["probes"]]
    assert len({*seen["ticks"]}) == len(seen["ticks"]) > 2


@pytest.mark.long
def test_several_runs_are_drawn_side_by_side_and_names_stay_text(runs, tmp_path, browser):
    gathered = []
    for name in ("ways", "joint", "alone"):
        with opening.opened(runs / name) as run:
            gathered.append(diagnosing.diagnosis_of_run(runs / name, name, run, 256, None))
    gathered[1]["name"] = EVIL
    rows = [{**row, "output": k} for k in range(1, 14) for row in gathered[0]["shares"] if row["output"] == 1]
    gathered += [{**gathered[0], "name": f"many {n}", "shares": rows} for n in range(2)]
    diagnosing.write(gathered, tmp_path)
    seen = drawn(browser, tmp_path / "diagnosis.html", clicks=["#theme"])
    names = [trace["name"] for trace in seen["plots"]["shares-plot"]["traces"]]
    looks = seen["plots"]["shares-plot"]["looks"]
    assert len({*looks}) == len(looks) == 5 + 2 * 13
    assert names[:5] == [
        "ways, output 1",
        "ways, output 2",
        "ways, output 3",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "alone",
    ]
    assert [*seen["plots"]] == ["shares-plot", "epochs-plot"]
    assert EVIL in seen["headline"]
    assert seen["theme"] == "dark"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere"], "nowhere is not a run directory"),
        (["RUN", "RUN"], "a run is named twice"),
        (["RUN", "OTHER"], "a diagnosis of several runs needs a place: give --out DIR"),
        (["RUN", "--out", "FILE"], "is a file: name a folder"),
        (["RUN", "--out", "no/such"], "there is no folder no to make such in"),
        (["RUN", "--out", "MINE"], "was not written by auxnet diagnose, and is left alone"),
        (["RUN", "--images", "0"], "--images must be 1 or more, got 0"),
        (["RUN", "--probe-images", "1"], "--probe-images must be 2 or more, got 1"),
        (["RUN", "--no-probes", "--probe-images", "9"], "--probe-images is for probes: leave it out, or --no-probes"),
        (["RUN", "--device", "cuda:7"], "device 'cuda:7' cannot be used here"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_a_line(runs, tmp_path, words, complaint, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diagnosis.html").write_text("my thesis")
    places = {"RUN": runs / "ways", "OTHER": runs / "joint", "FILE": tmp_path / "file", "MINE": tmp_path / "mine"}
    assert main(["diagnose", *(str(places.get(word, word)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert (tmp_path / "mine" / "diagnosis.html").read_text() == "my thesis"


@pytest.mark.parametrize(
    ("weight", "times", "words", "complaint"),
    [
        ("heads.1.fc.weight", float("inf"), ["--no-probes"], "output 2 gives gradients"),
        ("heads.1.fc.weight", float("inf"), ["--probe-images", "100"], "output 2 gives gradients"),
        ("segments.0.1.bn1.running_var", float("nan"), ["--probe-images", "100"], "layer 3 gives features"),
    ],
)
def test_a_net_that_diverged_is_not_diagnosed(runs, tmp_path, weight, times, words, complaint, capsys):
    folder = tmp_path / "a"
    shutil.copytree(runs / "joint", folder)
    path = folder / "model.safetensors"
    state = read_tensors(path)
    state[weight] *= times
    save_tensors(path, state, **read_about(path))
    before = {*folder.iterdir()}
    assert main(["diagnose", str(folder), "--images", "256", *words]) == 1
    told = capsys.readouterr()
    assert f"{complaint} that are not finite: has it diverged?\n" in told.err
    assert told.err.count("\n") == 1
    assert {*folder.iterdir()} == before


@pytest.mark.parametrize("name", diagnosing.DIAGNOSIS_FILES)
def test_a_file_of_the_users_own_in_the_run_is_left_alone(runs, tmp_path, name, capsys):
    folder = tmp_path / "a"
    shutil.copytree(runs / "alone", folder)
    (folder / name).write_text("my thesis")
    assert main(["diagnose", str(folder), "--no-probes", "--images", "1"]) == 2
    assert f"{name} was not written by auxnet diagnose, and is left alone" in capsys.readouterr().err
    assert (folder / name).read_text() == "my thesis"


def test_an_overwrite_removes_the_old_diagnosis(runs, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(runs / "joint", folder)
    for name in ("diagnosis.json", "diagnosis.html", "diagnosis.jsonl"):
        (folder / name).write_text("old")
    auxnet.fit(replace(TINY, epochs=1), folder, overwrite=True)
    assert not list(folder.glob("diagnosis*"))


# ---- during training -------------------------------------------------------------------------------------------


def test_a_diagnosed_training_has_the_same_weights_and_a_line_per_epoch_output_and_layer(runs, tmp_path):
    auxnet.fit(TINY, tmp_path / "a")
    assert not (tmp_path / "a" / "diagnosis.jsonl").exists()
    same = ("model.safetensors", "checkpoints/best.safetensors")
    assert all((tmp_path / "a" / name).read_bytes() == (runs / "ways" / name).read_bytes() for name in same)
    rows = rundir.read_rows(runs / "ways" / "diagnosis.jsonl")
    layers = {1: (1, 3), 2: (1, 3, 5), 3: (1, 3, 5, 7)}
    assert [(r["epoch"], r["output"], r["layer"]) for r in rows] == [
        (e, k, at) for e in (1, 2) for k in layers for at in layers[k]
    ]


def test_the_last_lines_are_those_that_the_command_measures_afterwards(content):
    (run,) = content["runs"]
    last = [row["share"] for row in run["epochs"] if row["epoch"] == 2]
    assert last == pytest.approx([row["share"] for row in run["shares"]], rel=1e-4)


def test_what_is_measured_are_the_batches_and_the_losses_of_training(tmp_path, monkeypatch):
    """Mixed as there, and with what the final output teaches."""
    seen = []

    def noted(*batch):
        seen.append(mixed(*batch))
        return seen[-1]

    monkeypatch.setattr(build, "mixed", noted)
    recipe = replace(TINY, epochs=1, mixup=0.3, distill=1.0)
    net = auxnet.fit(recipe, tmp_path / "a", diagnose=True).net
    rows, first, again = rundir.read_rows(tmp_path / "a" / "diagnosis.jsonl"), seen[:2], seen[-2:]
    assert len(seen) > 4
    assert all(all(map(torch.equal, one, other)) for one, other in zip(first, again, strict=True))

    def taught(logits, labels, final):
        divergence = final.div(3).softmax(1) * (final.div(3).log_softmax(1) - logits.div(3).log_softmax(1))
        return 9 * divergence.sum(1).mean()

    by_batch = [auxnet.supervision(net, x, y, "multiway", distill=taught) for x, y in first]
    for row, one, other in zip(rows, *by_batch, strict=True):
        share = (one.supervision + other.supervision) / (one.gradient + other.gradient)
        assert row["share"] == pytest.approx(share, rel=1e-4)
    assert main(["diagnose", str(tmp_path / "a"), "--no-probes", "--threads", "1"]) == 0
    (run,) = json.loads((tmp_path / "a" / "diagnosis.json").read_text())["runs"]
    assert [row["share"] for row in rows] == pytest.approx([row["share"] for row in run["shares"]], rel=1e-4)


@pytest.mark.parametrize("stopped", [(1, 6, True), (1, 1, False), (2, 2, False)])
@pytest.mark.enough(1)
def test_a_diagnosis_goes_on_by_itself_and_its_lines_are_neither_double_nor_torn(runs, tmp_path, stopped):
    def stop(progress):
        if (progress.epoch, progress.step, progress.done) == stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "a"
    with pytest.raises(signals.Stopped):
        auxnet.fit(TINY, folder, diagnose=True, watch=stop)
    whole = (runs / "ways" / "diagnosis.jsonl").read_text()
    with (folder / "diagnosis.jsonl").open("r+") as file:  # as if killed between the log and the checkpoint of epoch 2
        file.seek(0, os.SEEK_END)
        file.write(whole.splitlines()[-1] + '\n{"epoch": 2, "outp')
    auxnet.fit(TINY, folder, resume=True)
    assert (folder / "diagnosis.jsonl").read_text() == whole
    assert (folder / "model.safetensors").read_bytes() == (runs / "ways" / "model.safetensors").read_bytes()


def test_the_copy_that_is_measured_normalises_by_its_own_images_and_tells_nobody():
    """Under torchrun one process measures; with synchronised norms it would wait for the others for ever."""
    torch.manual_seed(0)
    net = auxnet.resnet(8, 2).train()
    images = torch.randn(4, 3, 8, 8)
    expected = [logits.clone() for logits in unsynchronised(net)(images)]
    synchronise_norms(net, Team(rank=0, size=2))
    twin = unsynchronised(net)
    for logits, right in zip(twin(images), expected, strict=True):
        torch.testing.assert_close(logits, right)
    assert all(type(m).__name__ != "LocalBatchNorm" for m in net.modules())
    assert [*twin.state_dict()] == [*net.state_dict()]


def test_train_takes_the_flag(tmp_path, capsys):
    words = ["--depth", "8", "--outputs", "2", "--epochs", "1", "--batch-size", "256", "--threads", "1"]
    assert main(["train", *words, "--diagnose", "--out", str(tmp_path / "a")]) == 0
    assert {row["output"] for row in rundir.read_rows(tmp_path / "a" / "diagnosis.jsonl")} == {1, 2}
