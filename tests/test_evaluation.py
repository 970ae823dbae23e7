"""What each output is worth: reports against the net itself, and `auxnet evaluate` on good and bad folders."""

import errno
import json
import re
import resource
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn import metrics

import auxnet
from auxnet import evaluation, latency, opening, probing, rundir, scores
from auxnet.cli import main
from auxnet.cost import costs
from auxnet.data import load_others, part_to_judge_on
from auxnet.opening import opened
from auxnet.preprocessing import Preprocessing
from auxnet.recipe import read_recipe, write_recipe
from conftest import one_class_alone
from writers import tiny, write_folders, write_parquet


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    auxnet.fit(auxnet.Recipe(depth=8, outputs=3, epochs=1, batch_size=256, device="cpu", threads=1), folder)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A run of three classes, one of them larger than the others, and the folder of its images."""
    home = tmp_path_factory.mktemp("few")
    images, labels = tiny(64, 4, size=8)
    write_folders(home / "pics", images, labels.clip(max=2), ["cat", "dog", "emu"])
    recipe = auxnet.Recipe(
        data=str(home / "pics"), depth=8, outputs=2, epochs=1, batch_size=16, device="cpu", threads=1
    )
    return auxnet.fit(recipe, home / "run").folder, home / "pics"


def fails(capsys, words, status, *says):
    assert main([str(word) for word in words]) == status
    out, err = capsys.readouterr()
    assert err.startswith("auxnet: ")
    assert err.count("\n") == 1, err
    for text in says:
        assert text in err
    return out


def test_many_classes_take_no_table_of_each_by_each():
    """One of 20,000 classes would take 3.2 GB."""
    net = auxnet.resnet(depth=8, outputs=2, num_classes=20_000)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 7, 7, 19_999])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = auxnet.evaluate(net, [(images, labels)])[1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 500_000  # KB
    assert report.confusion is None
    assert [report.class_images[k] for k in (0, 1, 7, 19_999)] == [1, 0, 2, 1]
    with torch.no_grad():
        wrong = (net.eval()(images)[1].argmax(1) != labels).tolist()
    assert [report.class_errors[k] for k in (0, 7, 19_999)] == [wrong[0], (wrong[1] + wrong[2]) / 2, wrong[3]]


def test_a_default_device_of_the_caller_is_not_the_nets():
    """ "meta" stands in for a GPU: whatever is made on it would not fit what lies on the CPU."""
    net, images, labels = auxnet.resnet(depth=8, outputs=2), torch.randn(4, 3, 8, 8), torch.arange(4)
    expected = auxnet.evaluate(net, [(images, labels)])
    with torch.device("meta"):
        assert auxnet.evaluate(net, [(images, labels)]) == expected
        assert auxnet.select_on(net, [(images, labels)]).candidates[0].report == expected[0]


def test_a_report_is_what_the_net_does_on_all_images_at_once():
    net = auxnet.resnet(depth=8, outputs=3, num_classes=4)
    images, labels = torch.randn(30, 3, 8, 8), torch.arange(30) % 3  # no image of class 3
    net.requires_grad_(False)
    reports = auxnet.evaluate(net, [(images[:20], labels[:20]), (images[20:], labels[20:])])
    assert net.training
    for report, logits, cost in zip(reports, net.eval()(images), costs(net, (3, 8, 8)), strict=True):
        wrong = logits.argmax(1) != labels
        assert (report.params, report.macs) == cost
        assert report.loss == pytest.approx(float(F.cross_entropy(logits.double(), labels)), rel=1e-6)
        assert report.error == pytest.approx(float(wrong.double().mean()))
        assert (report.low, report.high) == scores.wilson(int(wrong.sum()), 30)
        assert report.images == 30
        by_class = [pytest.approx(float(wrong[labels == c].double().mean())) for c in range(3)]
        assert report.class_errors == (*by_class, None)
        assert report.class_images == (10, 10, 10, 0)
        called = logits.argmax(1)
        assert report.confusion == tuple(
            tuple(int(((labels == i) & (called == j)).sum()) for j in range(4)) for i in range(4)
        )
        assert report.top5_error is None
    assert [report.output for report in reports] == [1, 2, 3]
    assert [report.depth for report in reports] == list(net.depths)


def test_the_balanced_error_is_the_mean_over_the_classes_that_have_images():
    labels = torch.arange(40).clamp(max=10) % 11  # class 10 has thirty of the images
    logits = torch.randn(1, 40, 12)
    [report] = evaluation.reports(auxnet.resnet(depth=8, outputs=1), (3, 8, 8), scores.Predictions(logits, labels))
    right = metrics.recall_score(labels.numpy(), logits[0].argmax(1).numpy(), average="macro", labels=range(11))
    assert report.balanced_error == pytest.approx(1 - right)
    assert report.balanced_error != pytest.approx(report.error)
    right = metrics.top_k_accuracy_score(labels.numpy(), logits[0].numpy(), k=5, labels=range(12))
    assert report.top5_error == pytest.approx(1 - right)
    assert report.uneven
    sizes = {(3, 2, 0): False, (4, 2, 0): True, (0, 5, 0): False}
    assert {size: replace(report, class_images=size).uneven for size in sizes} == sizes


def test_every_module_is_left_in_the_mode_it_was_in():
    net = auxnet.resnet(depth=8, outputs=2).train()
    frozen = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(10, (4,)))]
    for measure in (
        lambda: auxnet.evaluate(net, batches),
        lambda: evaluation.tally(net, batches),
        lambda: scores.predictions(net, batches),
        lambda: latency.peak_bytes(net, (3, 8, 8)),
        lambda: auxnet.supervision(net, batches[0][0], batches[0][1]),
        lambda: probing.pooled_features(net, batches),
    ):
        measure()
        assert net.training
        assert [m for m in net.modules() if not m.training] == [frozen]


def test_batches_are_left_as_they_are_also_by_a_trunk_that_writes_over_its_images():
    trunk = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Flatten())
    heads = torch.nn.Linear(12, 2), torch.nn.Linear(12, 2)
    net = auxnet.AuxNet([trunk, torch.nn.Linear(12, 12)], heads, (1, 2)).eval()
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
    before, exits = images.clone(), auxnet.EarlyExit(net, [0.5])
    for use in (auxnet.evaluate, auxnet.select_on, lambda net, batches: exits(batches[0][0])):
        use(net, [(images, labels)])
        assert torch.equal(images, before)


def test_without_images_there_is_no_report():
    with pytest.raises(ValueError, match="no images to evaluate on"):
        auxnet.evaluate(auxnet.resnet(depth=8), [])


def test_evaluate_writes_what_it_prints_as_json(run, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((run / "evaluation.json").read_text())
    summary = json.loads((run / "summary.json").read_text())["last"]
    for row, known in zip(content["outputs"], summary, strict=True):
        assert row["test"]["error"] == known["test_error"]
        assert row["val"]["error"] == known["val_error"]
        assert row["params"] == known["params"]
        assert [timing["batch"] for timing in row["latency"]["timings"]] == [1, 32]
        assert [sum(images) for images in row["test"]["confusion"]] == row["test"]["class_images"]
        one, many = row["latency"]["peak_bytes"]
        assert 4 * row["params"] < one < many
    assert content["device"]["threads"] == 1
    first = ", ".join(map(str, content["outputs"][0]["val"]["confusion"][0]))
    assert f"[{first}],\n" in (run / "evaluation.json").read_text()  # a matrix as people read it


def test_evaluate_names_the_worst_classes_or_all_and_of_how_many_images(run, capsys):
    assert main(["evaluate", str(run), "--no-latency"]) == 0
    short = capsys.readouterr().out
    assert short.count("errs most") == 3
    counts = {(int(wrong), int(n)) for wrong, n in re.findall(r"\((\d+) of (\d+)\)", short)}
    with opened(run) as again:
        val, test = (split.labels.tolist() for split in (again.dataset.val, again.dataset.test))
    assert counts
    assert all(0 < wrong <= n and n in Counter(val).values() for wrong, n in counts)  # to act on, it is of validation
    assert main(["evaluate", str(run), "--no-latency", "--classes"]) == 0
    table = capsys.readouterr().out.split("error by class: validation / test")[1]
    outputs = json.loads((run / "evaluation.json").read_text())["outputs"]
    rows = re.findall(r"^ +\w+ +(\d+) / (\d+) +(\S+) % / (\S+) % +", table, re.M)
    assert [(int(n), int(m)) for n, m, _, _ in rows] == [(val.count(c), test.count(c)) for c in range(max(val) + 1)]
    for place, split in ((2, "val"), (3, "test")):
        assert [row[place] for row in rows] == [f"{100 * e:.2f}" for e in outputs[0][split]["class_errors"]]


def test_a_balanced_error_is_shown_where_classes_differ_in_size_and_a_top_5_error_where_there_is_one(run, few, capsys):
    assert main(["evaluate", str(run), "--no-latency"]) == 0
    table = capsys.readouterr().out
    outputs = json.loads((run / "evaluation.json").read_text())["outputs"]
    assert table.count("top-5 error") == 2
    assert f"{100 * outputs[0]['test']['top5_error']:.2f} %" in table
    assert "balanced" not in table
    assert main(["evaluate", str(few[0]), "--no-latency"]) == 0
    table = capsys.readouterr().out
    outputs = json.loads((few[0] / "evaluation.json").read_text())["outputs"]
    assert table.count("balanced error") == 2
    assert f"{100 * outputs[0]['test']['balanced_error']:.2f} %" in table
    assert "top-5" not in table


def test_the_best_weights_are_evaluated_into_a_file_of_their_own_and_errors_unlike_the_summarys_are_told(
    run, tmp_path, capsys
):
    copy = tmp_path / "a"
    shutil.copytree(run, copy)
    words, file = ["evaluate", str(copy), "--no-latency"], copy / "checkpoints" / "best.safetensors"
    assert main(words) == 0
    last = (copy / "evaluation.json").read_bytes()
    assert main([*words, "--which", "best"]) == 0
    assert capsys.readouterr().err == ""
    one_class_alone(file)
    assert main([*words, "--which", "best", "--json"]) == 0
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert content == json.loads((copy / "evaluation-best.json").read_text())
    assert (copy / "evaluation.json").read_bytes() == last
    assert content["weights"] == "best"
    assert content["weights_sha256"] != json.loads(last)["weights_sha256"]
    then = json.loads((copy / "summary.json").read_text())["best"][2]["val_error"]
    now = content["outputs"][2]["val"]["error"]
    assert 0.85 < now < 0.95
    assert err.startswith("auxnet: warning: errors differ from those of ")
    assert f"output 3 on validation {100 * now:.2f} %, there {100 * then:.2f} %" in err
    assert err.count("\n") == 1
    assert "output 1" not in err


@pytest.mark.long
def test_a_latency_that_is_not_measured_again_stays_if_it_is_of_these_weights(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "a")
    words, path = ["evaluate", str(tmp_path / "a"), "--no-latency", "--json"], tmp_path / "a" / "evaluation.json"

    def kept():
        assert main(words) == 0
        return [row["latency"] for row in json.loads(capsys.readouterr().out)["outputs"]]

    path.unlink(missing_ok=True)
    assert kept() == [None] * 3
    known = json.loads(path.read_text())
    for k, row in enumerate(known["outputs"]):
        row["latency"] = {"output": k + 1, "device": "cpu", "threads": 1, "timings": [], "peak_bytes": []}
    path.write_text(json.dumps(known))
    assert kept() == kept() == [row["latency"] for row in known["outputs"]]
    for other in (json.dumps(known | {"weights_sha256": "0"}), "[1]", "{", json.dumps({**known, "outputs": [3]})):
        path.write_text(other)
        assert kept() == [None] * 3


def test_a_run_that_cannot_be_written_to_is_still_evaluated(run, capsys, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("auxnet.files.write_json", refuse)
    assert main(["evaluate", str(run), "--no-latency"]) == 0
    out, err = capsys.readouterr()
    assert err == "auxnet: warning: evaluation.json is not written: Read-only file system\n"
    assert "calibration error" in out


@pytest.mark.parametrize("command", ["evaluate", "select", "exits"])
def test_a_damaged_or_foreign_run_is_one_line(run, tmp_path, capsys, command):
    fails(capsys, [command, tmp_path / "nothing"], 2, "nothing is not a run directory")
    (tmp_path / "file").write_text("x")
    fails(capsys, [command, tmp_path / "file"], 2, "file is not a run directory: it is a file")

    def copy(name):
        shutil.copytree(run, tmp_path / name)
        return tmp_path / name

    unfinished = copy("unfinished")
    for name in ("config.json", "summary.json"):
        (unfinished / name).unlink()
    fails(capsys, [command, unfinished], 2, "is not finished: `auxnet train --out")
    with rundir.locked(unfinished):
        fails(capsys, [command, unfinished], 2, "is not finished: another process trains in it\n")
    weightless = copy("weightless")
    (weightless / "model.safetensors").unlink()
    again = "; `auxnet train --out {} --resume` makes it again\n"
    fails(capsys, [command, weightless], 2, "there are no weights", again.format(weightless))
    torn = copy("torn")
    for name in ("model.safetensors", "config.json", "summary.json"):
        whole = (torn / name).read_bytes()
        (torn / name).write_bytes(whole[: len(whole) // 2])
        fails(capsys, [command, torn], 1, f"{name} is damaged", again.format(torn))
        (torn / name).write_bytes(whole)
    for path in (weightless / "checkpoints").glob("*.ckpt"):
        path.unlink()
    fails(capsys, [command, weightless], 2, "weights at", "/model.safetensors\n")
    fails(capsys, ["train", "--out", weightless, "--resume"], 2, "weightless is finished, and nothing is left to train")
    garbled = copy("garbled")
    (garbled / "config.json").write_text("{")
    fails(capsys, [command, garbled], 1, "config.json is damaged")
    foreign = copy("foreign")
    (foreign / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 768}))
    fails(capsys, [command, foreign], 1, "config.json does not describe a network of this program")
    (foreign / "recipe.yaml").write_text("layers: 3\n")
    fails(capsys, [command, foreign], 2, "there is no recipe key 'layers'")
    other = copy("other")
    config = json.loads((other / "config.json").read_text())
    config["network"]["num_classes"] = 7
    (other / "config.json").write_text(json.dumps(config))
    fails(capsys, [command, other], 1, "damaged or of another network")


@pytest.mark.parametrize("command", ["evaluate", "select", "exits"])
def test_settings_that_cannot_be_are_one_line(run, capsys, command):
    fails(capsys, [command, run, "--threads", "0"], 2, "threads must be 1 or more, got 0")
    fails(capsys, [command, run, "--device", "abacus"], 2, "mps, got 'abacus'")
    fails(capsys, [command, run, "--output", "2"], 2, "--output")
    fails(capsys, [command], 2, "run")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 10], r"whole numbers in 0\.\.9, .*got 0\.\.10"),
        ([-1, 3], r"got -1\.\.3"),
        ([0.5, 1.0], r"int64 \[N\], got torch\.float32 \[2\]: labels\.long\(\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, words):
    with pytest.raises(ValueError, match=words):
        auxnet.evaluate(auxnet.resnet(depth=8, outputs=2), [(torch.randn(2, 3, 8, 8), torch.tensor(labels))])


def test_logits_that_are_not_finite_have_no_error():
    net, labels = auxnet.resnet(depth=8, outputs=2), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        net.heads[1].fc.bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="output 2 gives logits that are not finite"):
        auxnet.evaluate(net, [(torch.randn(2, 3, 8, 8), labels)])


def test_a_process_that_has_no_image_of_a_batch_does_not_ask_its_net():
    net, images, labels = auxnet.resnet(depth=8, outputs=2), torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    alone = evaluation.tally(net, [(images, labels)])
    asked = []
    net.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    totals = evaluation.tally(net, [(images, labels), (images[:0], labels[:0])])
    assert asked == [2]
    assert all(map(torch.equal, totals, alone))
    net, images, labels = auxnet.resnet(depth=8, outputs=2), torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"net must be an AuxNet, got Sequential: .* net\.alone\(k\)"):
        auxnet.evaluate(net.truncate(1), [(images, labels)])
    with pytest.raises(ValueError, match=r"one batch alone is \[\(images, labels\)\]"):
        auxnet.evaluate(net, (images, labels))
    assert auxnet.evaluate(net.alone(1), [(images, labels)])[0].images == 2
    with pytest.raises(TypeError, match=r"net must be an AuxNet, got str: auxnet.load\('runs/a'\) gives that of a run"):
        auxnet.evaluate("runs/a", [(images, labels)])
    with pytest.raises(TypeError, match=r"images and labels must be tensors, got Tensor and list: torch\.as_tensor"):
        auxnet.evaluate(net, [(images, labels.tolist())])
    with pytest.raises(ValueError, match="there are no images to evaluate on"):
        auxnet.evaluate(net, [(images[:0], labels[:0])])
    for second, rule in (
        ((images, labels[:1]), r"labels must be one for each of the images .*, got labels \[1\] for images \[2, "),
        ((images, labels[:, None]), r"labels must be int64 \[N\], got torch\.int64 \[2, 1\]"),
        ((images.double(), labels), r"takes images of torch\.float32, got torch\.float64: images\.to"),
        ((images.to(torch.uint8), labels), r"got torch\.uint8: images\.float\(\), normalised"),
    ):
        with pytest.raises(ValueError, match=rule):
            auxnet.evaluate(net, [(images, labels), second])


# ---- on other images, and of a run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Images of another size, of two classes of three; a folder of them."""
    home = tmp_path_factory.mktemp("field")
    images, labels = tiny(12, 3, seed=1, size=20)
    write_folders(home / "pics", images, labels.clip(max=1), ["emu", "cat"])
    return home / "pics"


def errors_by_hand(run, folder):
    """Errors of each output on the pictures in class folders, one by one, as `auxnet.load` prepares them."""
    net, names = auxnet.load(run), sorted(folder.rglob("*.png"))
    wrong = [[int(z.argmax()) != net.classes.index(name.parent.name) for z in net(net.prepare(name))] for name in names]
    return [sum(each) / len(names) for each in zip(*wrong, strict=True)]


def test_a_run_is_judged_on_other_images_matched_by_name_and_nothing_is_rewritten(
    few, field, tmp_path, capsys, monkeypatch
):
    run = few[0]
    monkeypatch.setattr("auxnet.run_data.load_data", None)  # its own data may be gone
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    expected = errors_by_hand(run, field)
    names = sorted(field.rglob("*.png"))
    images, labels = [np.asarray(Image.open(name)) for name in names], [name.parent.name for name in names]
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "test.npz", test_images=images, test_labels=labels)
    np.savez(tmp_path / "both.npz", x_train=images[:1], y_train=labels[:1], x_test=images, y_test=labels)
    for split in ("train", "test"):
        write_parquet(tmp_path / split / f"{split}-0.parquet", images, labels)
    shutil.copytree(field, tmp_path / "both" / "test")
    shutil.copytree(field / "cat", tmp_path / "both" / "train" / "cat")
    for on in (field, *(tmp_path / name for name in ("a.npz", "test.npz", "both.npz", "train", "test", "both"))):
        assert [report.error for report in auxnet.evaluate(run, on=on)] == expected
    assert main(["evaluate", str(run), "--on", str(field), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["on"]["error"] for row in content["outputs"]] == expected
    assert content["outputs"][0]["on"]["class_images"] == [8, 0, 4]  # cat, dog, emu
    assert main(["evaluate", str(run), "--on", str(field), "--classes"]) == 0
    table = capsys.readouterr().out
    assert f"{field}, 12 images (95 % intervals)" in " ".join(table.split())
    assert f"{100 * expected[0]:.2f} % (" in table
    assert re.search(r"dog +0 +- +-", table)
    assert "parameters" not in table
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_best_weights_of_an_unfinished_run_are_judged_on_other_images(few, field, tmp_path, capsys):
    """It has no summary.json yet, which says of a finished one which epoch was the best."""
    run = shutil.copytree(few[0], tmp_path / "run")
    (run / "summary.json").unlink()
    assert main(["evaluate", str(run), "--on", str(field), "--which", "best"]) == 0
    assert "the weights of the best epoch so far" in capsys.readouterr().out


def test_other_images_are_made_what_the_run_has_seen(run, tmp_path, monkeypatch):
    images, labels = tiny(12, 3, size=20)
    write_folders(tmp_path / "pics", images, labels, ["1", "3", "7"])  # coloured, and the run knows grey ones
    assert [report.error for report in auxnet.evaluate(run, on=tmp_path / "pics")] == errors_by_hand(
        run, tmp_path / "pics"
    )
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["1", "3", "7"])[labels])
    for fit in ("crop", "pad", "stretch"):
        seen = Preprocessing((6, 8), (10, 12), (100.0,), (50.0,), fit)
        found = load_others("a.npz", part_to_judge_on(str(tmp_path / "a.npz"), None), ("1", "3", "5", "7"), seen, run)
        assert found.test.labels.tolist() == [(0, 1, 3)[label] for label in labels]
        assert all(np.array_equal(a, seen.seen(b)) for a, b in zip(found.test.images.numpy(), images, strict=True))
        assert (len(found.train), len(found.val), found.channels, found.image_size) == (0, 0, 1, (6, 8))
        assert found.fit == fit


@pytest.mark.long
def test_images_too_many_for_memory_are_judged_on_from_the_disk(run, few, field, tmp_path, monkeypatch):
    expected = auxnet.evaluate(few[0], on=field)
    monkeypatch.setattr("auxnet.data.available_memory", lambda: 0)
    monkeypatch.setattr("auxnet.reading.parts.Part.read", None)
    assert auxnet.evaluate(few[0], on=field) == expected
    write_folders(tmp_path / "pics", *tiny(4, 2, size=20), ["1", "3"])
    with pytest.raises(ValueError, match=r"pics: too many images to make grey in memory, as .* saw its own: make"):
        auxnet.evaluate(run, on=tmp_path / "pics")


def test_of_other_images_those_that_cannot_be_read_and_classes_without_any_are_told(few, field, tmp_path, capsys):
    expected = auxnet.evaluate(few[0], on=field)
    shutil.copytree(field, tmp_path / "pics")
    (tmp_path / "pics" / "dog").mkdir()
    (tmp_path / "pics" / "cat" / "broken.png").write_bytes(b"no picture")
    assert main(["evaluate", str(few[0]), "--on", str(tmp_path / "pics"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["on"]["error"] for row in json.loads(out)["outputs"]] == [report.error for report in expected]
    none, left_out = err.splitlines()
    assert re.fullmatch(r"auxnet: warning: \S+pics: no image of 'dog': these errors say nothing about that", none)
    assert re.fullmatch(r"auxnet: warning: \S+pics: left out 1 image that cannot be read: \S+broken.png: .*", left_out)


def test_other_images_that_cannot_judge_a_run_are_one_line(few, field, tmp_path, capsys):
    run, pics = few
    shutil.copytree(field, tmp_path / "pics")
    (tmp_path / "pics" / "emu").rename(tmp_path / "pics" / "Emus")
    words = ["evaluate", run, "--on"]
    knows = f"pics: Emus are no classes of {run}, which knows cat; dog; emu: rename or remove them; perhaps you meant"
    fails(capsys, [*words, tmp_path / "pics"], 2, f"{knows} 'emu'")
    images = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=[0, 1, 2], val_images=images, val_labels=[0, 1, 2])
    fails(capsys, [*words, tmp_path / "a.npz"], 2, "a.npz holds train and val, and no test images")
    for trained_on in (pics, f"{pics}/", pics / "cat" / ".."):
        fails(capsys, [*words, trained_on], 2, f"was trained on images of {trained_on}: leave --on out")
    fails(capsys, [*words, tmp_path / "none"], 2, "there is no such folder")
    for name in ("some", "more"):
        write_parquet(tmp_path / "shards" / f"{name}.parquet", images, [0, 1, 2])
    fails(capsys, [*words, tmp_path / "shards"], 2, "has parquet shards, but none named test-*.parquet")


def test_training_images_are_no_others_however_they_are_named(tmp_path):
    data = tmp_path / "data"
    write_folders(data / "Train", *tiny(12, 3, size=8), ["cat", "dog", "emu"])
    shutil.copytree(data / "Train", data / "test")
    (tmp_path / "link").symlink_to(data / "Train")
    within = opening._lie_within
    assert [within([path], data) for path in (data, data / "Train", data / "Train" / "cat", tmp_path / "link")] == [
        True
    ] * 4
    assert not within([data / "test"], data)
    assert not within([tmp_path / "none"], data)
    assert within([data / "test" / "cat"], data / "test")  # of which validation and test images are drawn


def test_arrays_that_lie_beside_the_splits_of_a_run_judge_it(few, tmp_path):
    run, data = shutil.copytree(few[0], tmp_path / "run"), tmp_path / "data"
    images, labels = tiny(24, 3, size=8)
    write_folders(data / "train", images, labels, ["cat", "dog", "emu"])
    np.savez(data / "others.npz", images=images, labels=labels, classes=["cat", "dog", "emu"])
    write_recipe(replace(read_recipe(run / "recipe.yaml"), data=str(data)), run / "recipe.yaml")
    assert [report.images for report in auxnet.evaluate(run, on=data / "others.npz")] == [24, 24]


@pytest.mark.parametrize("form", ["folders", "parquet", "a link"])
def test_training_images_do_not_judge_a_run_by_the_name_of_the_folder_above_them(form, few, tmp_path, capsys):
    run, above = shutil.copytree(few[0], tmp_path / "run"), tmp_path / "above"
    images, labels = tiny(24, 3, size=8)
    names, data, test = ["cat", "dog", "emu"], above / "train", above / "test"
    if form == "parquet":
        data = above / "data"
        write_parquet(data / "train-0.parquet", images, labels, names)
    elif form == "folders":
        write_folders(data, images, labels, names)
    else:
        data = tmp_path / "elsewhere"
        write_folders(data, images, labels, names)
        above.mkdir()
        (above / "train").symlink_to(data)
    recipe = replace(read_recipe(run / "recipe.yaml"), data=str(data))
    write_recipe(recipe, run / "recipe.yaml")
    fails(capsys, ["evaluate", run, "--on", above], 2, f"was trained on images of {above}: leave --on out")
    if form != "parquet":
        write_folders(test, images, labels, names)
        assert auxnet.evaluate(run, on=above) == auxnet.evaluate(run, on=test)


def test_a_run_is_evaluated_on_a_split_of_its_data(few):
    run = few[0]
    summary = json.loads((run / "summary.json").read_text())
    for split in ("val", "test"):
        for which in ("last", "best"):
            errors = [report.error for report in auxnet.evaluate(run, split=split, which=which)]
            assert errors == [row[f"{split}_error"] for row in summary[which]]
    assert auxnet.evaluate(run) == auxnet.evaluate(run, split="val")
    with pytest.raises(ValueError, match='split must be "val" or "test", got \'train\''):
        auxnet.evaluate(run, split="train")
    with pytest.raises(ValueError, match=r"a net needs batches: evaluate\(net, \[\(images, labels\), \.\.\.\]\)"):
        auxnet.evaluate(auxnet.resnet(depth=8))
    for name, value in {"split": "test", "on": "pics", "data_dir": ".", "threads": 1, "which": "best"}.items():
        with pytest.raises(ValueError, match=f"^{name}={value!r} is for a run, without batches: leave it out$"):
            auxnet.evaluate(auxnet.resnet(depth=8), [(torch.randn(2, 3, 8, 8), torch.zeros(2).long())], **{name: value})


def test_what_is_no_path_is_refused_by_its_name(run):
    for name in ("on", "data_dir"):
        with pytest.raises(TypeError, match=f"^{name} must be a path, got 3$"):
            auxnet.evaluate(run, **{name: 3})
    with pytest.raises(TypeError, match=r"^a run is the path of its directory, or what fit returned, got NoneType"):
        auxnet.write_report(None)
    with pytest.raises(TypeError, match=r"^space must map fields of the recipe to what they may be, got None$"):
        auxnet.sweep(None, 3)
