"""Every export equals its source, skips what it says it skips, and never replaces what it should not."""

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from auxnet import exporting, proving
from auxnet.batches import normalise
from auxnet.cli import main
from auxnet.exporting import SUFFIX, Exported, export
from auxnet.hub import load
from auxnet.loading import weights_sha256
from auxnet.policy import NEVER, Policy, confidence
from auxnet.prediction import predict
from auxnet.recipe import read_run_recipe, write_recipe
from auxnet.run_data import data_of
from auxnet.runtimes import open_model
from conftest import one_class_alone
from shipped import write_policy, write_run
from test_house import documented

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("onnx_tables")
UP_TO_TWO = Policy((0.3,), "top", (1.0, 1.0))
HALF = Policy((0.02, 0.05), "margin", (1.5, 0.7, 2.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def by_command(run):
    """The ONNX file of output 2, and what the command that wrote it said."""
    path = run.parent / "two.onnx"
    with redirect_stdout(io.StringIO()) as said:
        assert main(["export", str(run), "--output", "2", "--out", str(path)]) == 0
    return path, said.getvalue()


@pytest.fixture(scope="module")
def onnx_file(by_command):
    return by_command[0]


@pytest.fixture(scope="module")
def early(run):
    return export(run, format="onnx-early-exit", out=run.parent / "early.onnx", policy=HALF)


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@torch.no_grad()
def logits_of(run, pixels):
    net = load(run)
    return torch.stack(net(normalise(torch.from_numpy(pixels), net.preprocessing.mean, net.preprocessing.std)))


def test_the_onnx_file_equals_its_source_at_any_batch_size(run, onnx_file, pixels):
    model = open_model(onnx_file)
    expected = logits_of(run, pixels)[1]
    for n in (1, 2, 5):
        answers = model.ask(pixels[:n])
        np.testing.assert_allclose(answers.logits, expected[:n], atol=1e-4)
        np.testing.assert_allclose(answers.probabilities, expected[:n].softmax(1), atol=1e-5)
    assert model.classes == load(run).classes


def test_onnxruntime_opens_both_without_a_word(onnx_file, early, capfd):
    """With its own settings, as another program would; it would say what is in the file and of no use."""
    for path in (onnx_file, early.path):
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""


def test_the_command_says_what_the_file_takes(by_command):
    assert "takes images, uint8 [N, 8, 8, 3]; gives logits and probabilities\n" in by_command[1]


def test_the_torch_export_equals_its_source_at_any_batch_size(run, tmp_path, pixels):
    done = export(run, 2, "torch", tmp_path / "two.pt2")
    model = torch.export.load(done.path).module()
    for n in (1, 5):
        logits, _ = model(torch.from_numpy(pixels[:n]))
        torch.testing.assert_close(logits, logits_of(run, pixels)[1][:n], atol=1e-4, rtol=0)


@pytest.mark.enough(1)
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_an_export_compared_on_one_image_takes_many(run, tmp_path, pixels, monkeypatch, format):

    def of_one_image(*asked, **how):
        dataset = data_of(*asked, **how)
        return replace(dataset, val=dataset.val.part(torch.tensor([0])))

    monkeypatch.setattr(proving, "data_of", of_one_image)
    done = export(run, 2, format, tmp_path / f"two.{'pt2' if format == 'torch' else 'onnx'}")
    assert done.images == 1
    if format == "torch":
        logits, _ = torch.export.load(done.path).module()(torch.from_numpy(pixels))
    else:
        logits = torch.from_numpy(open_model(done.path).ask(pixels).logits)
    torch.testing.assert_close(logits, logits_of(run, pixels)[1], atol=1e-4, rtol=0)


def test_the_exported_folder_equals_its_source_bit_for_bit(run, tmp_path, pixels):
    done = export(run, 2, "safetensors", tmp_path / "two")
    assert done.difference == 0
    net = load(done.path)
    assert torch.equal(
        net(normalise(torch.from_numpy(pixels), net.preprocessing.mean, net.preprocessing.std))[0],
        logits_of(run, pixels)[1],
    )


@pytest.mark.long
def test_a_folder_of_one_output_is_exported_by_its_number_in_the_run(run, tmp_path, monkeypatch, pixels, capsys):
    monkeypatch.chdir(tmp_path)
    folder = export(run, 2, "safetensors").path
    assert main(["export", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("run-output-2.onnx: output 2 of run-output-2 as onnx, ")
    assert "run again on 64 random images (the data of its training are not here" in said
    answers = open_model("run-output-2.onnx", 2).ask(pixels)
    np.testing.assert_allclose(answers.logits, logits_of(run, pixels)[1], atol=1e-4)
    with pytest.raises(ValueError, match=r"output must be 2, the only one, got 1"):
        export(folder, 1)


@pytest.mark.long
@pytest.mark.usefixtures("own_cache_and_no_network")
def test_a_model_of_the_hub_and_a_saved_one_are_exported_as_their_run_is(run, tmp_path, monkeypatch, pixels):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "hub" / "models--owner--name"
    load(run).save_pretrained(home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    load(run).save_pretrained("saved")
    for model, output, name in (("hf:owner/name", None, "name-output-3.pt2"), ("saved", 2, "saved-output-2.pt2")):
        done = export(model, output, "torch", images=3)
        assert (str(done.path), done.output, done.random) == (name, output or 3, True)
        logits, _ = torch.export.load(done.path).module()(torch.from_numpy(pixels))
        torch.testing.assert_close(logits, logits_of(run, pixels)[done.output - 1], atol=1e-4, rtol=0)


def test_what_takes_a_run_to_export_is_refused_of_other_models(run, tmp_path, capsys):
    load(run).save_pretrained(tmp_path / "saved")
    early = ["--format", "onnx-early-exit", "--confidence", "top", "--thresholds", "1", "1"]
    for words, line in (
        (
            early,
            f"an early exit is that of a run, and {tmp_path / 'saved'} is none: name the run, or export it as onnx",
        ),
        (["--data-dir", "x"], "validation images are those of a run, and "),
        (["--which", "best"], "is no run directory, so it holds no 'best' weights"),
    ):
        assert main(["export", str(tmp_path / "saved"), *words]) == 2
        assert line in capsys.readouterr().err


def test_early_exit_takes_the_same_exits_and_gives_the_same_logits(run, early, pixels):
    answers = open_model(early.path).ask(pixels)
    logits = logits_of(run, pixels)
    for n in range(len(pixels)):
        sure = [confidence(logits[k, n], "margin", HALF.temperatures[k]) >= HALF.thresholds[k] for k in (0, 1)]
        left = 1 if sure[0] else 2 if sure[1] else 3
        assert answers.exits[n] == left
        np.testing.assert_allclose(answers.logits[n], logits[left - 1, n], atol=1e-4)
        tempered = (logits[left - 1, n] / HALF.temperatures[left - 1]).softmax(0)
        np.testing.assert_allclose(answers.probabilities[n], tempered, atol=1e-4)
    assert sum(early.exits) == early.images


def quantised_alike(code, names, answers):
    """Hold the file that the guide's lines make in 8 bits to the answers of the one that it is made of."""
    exec(compile(code, "guide.md", "exec"), names)
    assert Path("small-int8.onnx").stat().st_size < 0.5 * Path("small.onnx").stat().st_size
    in_8_bits = predict("small-int8.onnx", [each.image for each in answers], top=4)
    for here, there in zip(in_8_bits, answers, strict=True):
        told = dict(zip(here.classes, here.probabilities, strict=True))
        assert [told[name] for name in there.classes] == pytest.approx(there.probabilities, abs=0.02)


@pytest.mark.parametrize(
    ("resize", "fit"), [([8, 8], "crop"), ([11, 12], "crop"), ([11, 12], "pad"), ([8, 8], "stretch")]
)
def test_the_guides_lines_without_auxnet_answer_as_predict_does_whatever_the_picture(
    onnx_file, tmp_path, monkeypatch, capsys, resize, fit
):
    monkeypatch.chdir(tmp_path)
    model = onnx.load(onnx_file)
    for kept in model.metadata_props:
        kept.value = {"resize": json.dumps(resize), "fit": json.dumps(fit)}.get(kept.key, kept.value)
    onnx.save(model, "small.onnx")
    Path("pics").mkdir()
    noise, exif = np.random.default_rng(0).integers(0, 256, (23, 41, 4), dtype=np.uint8), Image.Exif()
    exif[0x0112] = 6  # lies on its side, as phones have it
    Image.fromarray(noise[..., :3]).save("pics/0.png")
    Image.fromarray(noise[..., :3]).save("pics/turned.jpg", exif=exif)
    Image.fromarray(noise[..., 0].astype(np.uint16) << 8).save("pics/16.png")
    Image.fromarray(noise).save("pics/transparent.png")
    Image.fromarray(noise[..., :3]).quantize(64).save("pics/palette.png")
    usual, code, quantised = re.findall(
        r"```py\n(.*?)```", (Path(__file__).parents[1] / "docs" / "guide.md").read_text(), re.DOTALL
    )
    exec(compile(usual, "guide.md", "exec"), short := {})
    exec(compile(code, "guide.md", "exec"), found := {})
    same = short["probabilities"].tolist() == found["probabilities"].tolist()
    assert same == ((resize, fit) == ([8, 8], "crop"))  # where the whole image is seen, as the guide says
    said, probability = capsys.readouterr().out.rsplit(maxsplit=1)
    answers = list(predict("small.onnx", sorted(map(str, Path("pics").iterdir())), top=4))
    assert (said, float(probability)) == (answers[0].classes[0], pytest.approx(answers[0].probabilities[0], rel=1e-5))
    assert len(answers) == 5
    Image.fromarray(np.ones((8, 8), np.float32)).save("range.tif")  # refused here as there
    with pytest.raises(ValueError, match="not known what is white in mode F"):
        found["pixels"]("range.tif")
    quantised_alike(quantised, found, answers)
    for answer in answers:
        told = dict(zip(answer.classes, answer.probabilities, strict=True))
        _, probabilities = found["session"].run(None, {"images": found["pixels"](answer.image)})
        assert [told[name] for name in found["facts"]["classes"]] == pytest.approx(probabilities[0].tolist(), rel=1e-5)


def test_what_leaves_says_how_pictures_are_prepared(run, onnx_file):
    metadata = onnxruntime.InferenceSession(str(onnx_file)).get_modelmeta().custom_metadata_map
    for words in ("EXIF", "of 16 bits the upper 8", "transparency dropped", "ImageOps.fit"):
        assert words in metadata["preparation"]
        assert words in str(load(run).generate_model_card())


def test_the_reference_names_the_metadata_of_an_onnx_file(early):
    metadata = onnxruntime.InferenceSession(str(early.path)).get_modelmeta().custom_metadata_map
    assert {*documented("Metadata of an ONNX file")} - {"early-exit"} == metadata.keys()


@pytest.mark.long
def test_the_policy_of_a_run_is_exported_with_its_own_weights_up_to_the_output_asked_for(run, tmp_path, pixels):
    shutil.copytree(run, tmp_path / "a")
    policy = Policy((0.02, 0.5), "entropy", (0.7, 1.3, 1.0))
    one_class_alone(tmp_path / "a" / "checkpoints" / "best.safetensors")
    write_policy(tmp_path / "a", policy, weights="best", weights_sha256=weights_sha256(tmp_path / "a", "best"))
    asked = (tmp_path / "a", 2, "onnx-early-exit", tmp_path / "early.onnx")
    with pytest.raises(FileNotFoundError, match=r"holds no exits\.json"):
        export(*asked)
    done = export(*asked, which="best")
    logits = logits_of(run, pixels)[:2]
    answers = open_model(done.path).ask(pixels)
    for n in range(len(pixels)):
        left = 1 if confidence(logits[0, n], "entropy", 0.7) >= 0.02 else 2
        assert answers.exits[n] == left
        np.testing.assert_allclose(answers.logits[n], logits[left - 1, n], atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("thresholds", "heads"), [((NEVER, 0.02), 2), ((NEVER, NEVER), 1)])
def test_a_head_at_which_no_image_can_leave_is_not_in_the_exported_file(run, tmp_path, thresholds, heads):
    done = export(run, format="onnx-early-exit", out=tmp_path / "a.onnx", policy=Policy(thresholds, "top", (1.0,) * 3))

    def linear(graph):
        inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return sum(node.op_type in ("Gemm", "MatMul") for node in graph.node) + sum(map(linear, inner))

    assert linear(onnx.load(done.path).graph) == heads
    assert done.exits == (0, done.images, 0) if heads == 2 else (0, 0, done.images)


@pytest.mark.long
def test_an_early_exit_ends_where_all_images_leave(run, tmp_path, capsys):
    words = [
        "export",
        str(run),
        "--format",
        "onnx-early-exit",
        "--out",
        str(tmp_path / "a.onnx"),
        "--confidence",
        "top",
    ]
    assert main([*words, "--thresholds", "1", "0"]) == 0
    said = capsys.readouterr().out
    assert "early exit over outputs 1..2 of" in said
    assert "output 3 is never reached: left out\n" in said
    assert "no image left at output 1: what it answers was not compared\n" in said
    model = onnx.load(tmp_path / "a.onnx")
    facts = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert (facts["output"], facts["thresholds"], facts["uncompared"]) == (2, [1.0], [1])
    assert facts["input"].startswith("uint8 [1, H, W, C]")
    weights = sum(parameter.numel() for parameter in load(run).truncate(2).parameters())
    assert (tmp_path / "a.onnx").stat().st_size < 4 * weights + 4 * 11 * 128 + 40_000  # the first head, and the graph
    assert main([*words, "--overwrite", "--thresholds", "0", "0.5"]) == 2
    assert "all images leave at output 1, where the threshold is 0: export it as onnx" in capsys.readouterr().err


def test_an_early_exit_is_compared_at_every_output_that_one_validation_image_leaves_at(run, early, monkeypatch):
    split = data_of(run, read_run_recipe(run), judging=False).val
    net, everything = load(run), split.read(torch.arange(len(split))).numpy()
    exits = HALF.exits(logits_of(run, everything))
    [few] = (exits == exits.mode().values).nonzero().flatten()[:2].split(2)
    monkeypatch.setattr(proving, "READ_AT_ONCE", 3)
    pixels, without = proving.images_for_every_exit(net, HALF, everything[few.numpy()], split)
    assert set(HALF.exits(logits_of(run, pixels)).tolist()) == set(exits.tolist())
    assert set(without) == {1, 2, 3} - set(exits.tolist())
    assert early.uncompared == without
    assert proving.images_for_every_exit(net, HALF, everything[few.numpy()], None)[1] != ()


def test_what_was_noted_of_a_policy_is_said_again_where_it_is_shipped(run, tmp_path, capsys, monkeypatch):
    exits = (1, 1, 0)

    def done(*_, **__):
        return Exported(tmp_path / "b.onnx", "onnx-early-exit", 3, 1, 2, 0.0, (8, 8, 3), exits)

    monkeypatch.setattr(exporting, "export", done)
    shutil.copytree(run, tmp_path / "a")
    note = "on test images the error rises by more than the target of 1 points, beyond chance"
    write_policy(tmp_path / "a", HALF, notes=[note])
    words = ["export", str(tmp_path / "a"), "--format", "onnx-early-exit"]
    assert main(words) == 0
    assert f"note: {note}" in capsys.readouterr().out
    assert main([*words, "--confidence", "top", "--thresholds", "1", "1"]) == 0
    assert "note:" not in capsys.readouterr().out  # it was of other thresholds
    exits = (0, 0, 2)
    assert main([*words, "--confidence", "top", "--thresholds", "1", "1"]) == 0
    assert "note: none left early: --format onnx --output 3 gives a smaller file" in capsys.readouterr().out


def test_what_was_noted_of_a_policy_is_not_said_of_one_that_images_reach_more_outputs_by(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(exporting, "need", lambda *_: None)
    monkeypatch.setattr(exporting, "_write", lambda net, output, format, path, *_: path.touch())
    monkeypatch.setattr(exporting, "check_equal", lambda *_: (0.0, (1, 1)))
    shutil.copytree(run, tmp_path / "a")
    note = "there it keeps the target of 5 points in the mean"
    out = ("--output", "2", "--out", str(tmp_path / "b.onnx"), "--overwrite")
    words = ["export", str(tmp_path / "a"), "--format", "onnx-early-exit", *out]
    for last, cut in ((0.05, True), (0.0, False)):
        write_policy(tmp_path / "a", Policy((0.02, last), "margin", (1.0,) * 3), notes=[note])
        assert main(words) == 0
        said = capsys.readouterr().out
        assert (f"note: {note}" in said) is not cut
        assert ("note: exits.json was solved over all outputs; cut to 1..2, its target is not shown" in said) is cut
    write_policy(tmp_path / "a", HALF, notes=[note])
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cut"] is True


def test_json_holds_all_that_is_said_of_an_export(run, early, tmp_path, capsys, monkeypatch):
    out = tmp_path / "two"
    assert main(["export", str(run), "--output", "2", "--format", "safetensors", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    size = sum(file.stat().st_size for file in out.iterdir())
    assert said.keys() == {each.name for each in fields(Exported)}
    assert (said["path"], said["output"], said["bytes"], said["difference"]) == (str(out), 2, size, 0.0)
    assert (said["takes"], said["exits"], said["random"]) == ([8, 8, 3], None, False)
    monkeypatch.setattr(exporting, "export", lambda *_, **__: early)
    assert main(["export", str(run), "--format", "onnx-early-exit", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["path"], said["exits"], sum(said["exits"])) == (str(early.path), [*early.exits], said["images"])


def test_early_exit_holds_the_deeper_segments_inside_a_branch(early):
    graph = onnx.load(early.path).graph
    branch = next(node for node in graph.node if node.op_type == "If")
    assert sum(node.op_type == "Conv" for node in graph.node) == 3  # the stem and the first block
    leave = next(a.g for a in branch.attribute if a.name == "then_branch")
    assert not any(node.op_type == "Conv" for node in leave.node)


def test_where_the_data_are_not_here_it_is_compared_on_random_images(tmp_path, monkeypatch, capsys, run):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    words = ["export", "run", "--format", "safetensors", "--out", "it", "--images", "5", "--overwrite"]
    for elsewhere in (
        {"data": str(tmp_path / "gone" / "pics")},
        {"data": "pics", "data_dir": str(tmp_path)},
        {"data": "pics", "data_dir": str(tmp_path / "gone")},
    ):
        write_recipe(replace(read_run_recipe(run), **elsewhere), tmp_path / "run" / "recipe.yaml")
        assert main(words) == 0
        told = (
            "run again on 5 random images (the data of its training are not here, or of no use): the largest difference"
        )
        assert told in capsys.readouterr().out
    assert main([*words, "--data-dir", str(tmp_path)]) == 2  # looked for there: not to be done without
    assert "pics" in capsys.readouterr().err


@pytest.mark.enough(1)
@pytest.mark.parametrize("format", ["torch", "onnx", "onnx-early-exit"])
def test_every_format_is_compared_on_random_images_where_the_data_are_not_here(tmp_path, run, format):
    shutil.copytree(run, tmp_path / "run")
    write_recipe(replace(read_run_recipe(run), data=str(tmp_path / "gone")), tmp_path / "run" / "recipe.yaml")
    policy = UP_TO_TWO if format == "onnx-early-exit" else None
    done = export(tmp_path / "run", 2, format, tmp_path / f"two{SUFFIX[format]}", policy=policy)
    assert (done.random, done.images, done.takes) == (True, 64, (8, 8, 3))


def test_data_that_changed_since_a_training_are_no_hindrance_and_told(tmp_path, run, monkeypatch):
    shutil.copytree(run.parent / "data", tmp_path / "data")
    shutil.copytree(run, tmp_path / "run")
    write_recipe(replace(read_run_recipe(run), data=str(tmp_path / "data")), tmp_path / "run" / "recipe.yaml")
    home = tmp_path / "data" / "train" / "ant"
    (home / "bad.png").write_text("no picture")
    with pytest.warns(UserWarning, match=r"of .*run cannot be used here: 1 image cannot be read.* or train with"):
        assert export(tmp_path / "run", 2, "safetensors", tmp_path / "1").random
    (home / "bad.png").unlink()
    shutil.copytree(home, home.with_name("new"))
    with pytest.warns(UserWarning, match="cannot be used here: .* its data also have 'new'; put"):
        assert export(tmp_path / "run", 2, "safetensors", tmp_path / "2").random
    with pytest.raises(RuntimeError, match="its data also have 'new'"):
        export(tmp_path / "run", 2, "safetensors", tmp_path / "3", data_dir=str(tmp_path))
    monkeypatch.setenv("AUXNET_DATA", str(tmp_path))  # where those lie that are gone from where they were
    write_recipe(replace(read_run_recipe(run), data=str(tmp_path / "gone" / "data")), tmp_path / "run" / "recipe.yaml")
    with pytest.warns(UserWarning, match="cannot be used here: .* its data also have 'new'; put"):
        assert export(tmp_path / "run", 2, "safetensors", tmp_path / "4").random


@pytest.mark.parametrize("out", [".", "..", "below/.."])
def test_a_folder_without_a_name_of_its_own_is_not_replaced(tmp_path, monkeypatch, run, out):
    (tmp_path / "below" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(ValueError, match=f"out must name a folder of its own, got {out}"):
        export(run, 2, "safetensors", out, overwrite=True)


def test_on_what_an_export_was_compared_is_kept_in_it(run, onnx_file):
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    assert re.match(r'"\d+ validation images"', session.get_modelmeta().custom_metadata_map["compared_on"])


@pytest.mark.parametrize(("rounded", "what"), [(True, "in a logit"), (False, "in a probability")])
def test_an_export_that_differs_fails_and_leaves_nothing(run, tmp_path, monkeypatch, rounded, what):
    class Blunt(exporting.OneOutput):
        def forward(self, images):
            logits, probabilities = super().forward(images)
            return (logits.round(), probabilities) if rounded else (logits, (logits / 1.1).softmax(1))

    monkeypatch.setattr(exporting, "OneOutput", Blunt)
    with pytest.raises(RuntimeError, match=rf"the export differs by \S+ {what}.*: not kept"):
        export(run, 2, "torch", tmp_path / "two.pt2")
    assert list(tmp_path.iterdir()) == []


def test_an_early_exit_whose_probabilities_are_tempered_otherwise_fails_and_leaves_nothing(
    run, early, tmp_path, monkeypatch
):
    """The final output's temperature decides no exit, and no logit."""

    def write(net, output, format, path, pixels, *_):
        shutil.copy(early.path, path)
        return open_model(early.path).ask(pixels)

    monkeypatch.setattr(exporting, "_write", write)
    otherwise = replace(HALF, temperatures=(*HALF.temperatures[:-1], 2.2))
    with pytest.raises(RuntimeError, match=r"the export differs by \S+ in a probability: not kept"):
        export(run, format="onnx-early-exit", out=tmp_path / "early.onnx", policy=otherwise)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf8_is_refused(run, tmp_path):
    renamed = shutil.copytree(run, tmp_path / "r\udcff")
    for source, out in ((run, "x\udcff.onnx"), (renamed, "x.onnx")):
        with pytest.raises(ValueError, match="is not UTF-8, and cannot be the name of an export or of its run"):
            export(source, out=tmp_path / out)
    assert list(tmp_path.iterdir()) == [renamed]


def test_a_number_of_images_that_is_none_is_refused(run):
    with pytest.raises(ValueError, match="images must be a whole number, 2 or more, got 'a'"):
        export(run, images="a")


def test_nothing_is_replaced_unless_asked(run, tmp_path):
    export(run, 1, "safetensors", tmp_path / "one")
    with pytest.raises(FileExistsError, match="--overwrite"):
        export(run, 1, "safetensors", tmp_path / "one")
    export(run, 2, "safetensors", tmp_path / "one", overwrite=True)
    assert load(tmp_path / "one").numbers == (2,)
    (tmp_path / "link").symlink_to("one")
    assert export(run, 1, "safetensors", tmp_path / "link", overwrite=True).path == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "one").numbers == (1,)
    assert {file.name for file in tmp_path.iterdir()} == {"one", "link"}
    (tmp_path / "link.pt2").symlink_to("one/deployed.pt2")
    assert export(run, 1, "torch", tmp_path / "link.pt2").path == tmp_path / "link.pt2"
    assert (tmp_path / "link.pt2").is_symlink()
    (tmp_path / "one" / "deployed.pt2").unlink()
    (tmp_path / "one" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds other files \(notes.txt\)"):
        export(run, 2, "safetensors", tmp_path / "one", overwrite=True)
    with pytest.raises(FileExistsError, match="holds other files"):  # --overwrite, which would not help, is not told
        export(run, 2, "safetensors", tmp_path / "one")


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["--output", "4"], 2, "auxnet: --output must be 1..3 (shallow to deep), got 4"),
        (["--format", "onnx-early-exit"], 2, "holds no exits.json"),
        (["--format", "onnx-early-exit", "--confidence", "top"], 2, "give both"),
        (["--format", "onnx-early-exit", "--confidence", "top", "--thresholds", "1"], 2, "need 2 thresholds, got 1"),
        (
            ["--format", "onnx", "--confidence", "top"],
            2,
            "are for --format onnx-early-exit, not for onnx: leave them out",
        ),
        (["--output", "2", "--thresholds", "0.5"], 2, "are for --format onnx-early-exit, not for onnx: leave them out"),
        (
            ["--format", "torch", "--out", "x.onnx"],
            2,
            "auxnet: --out must end in .pt2 for torch, got x.onnx; --format onnx writes .onnx",
        ),
        (["--images", "1"], 2, "auxnet: --images must be a whole number, 2 or more, got 1"),
    ],
)
def test_what_cannot_be_exported_is_one_line(run, capsys, words, status, line):
    assert main(["export", str(run), *words]) == status
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_a_folder_that_is_no_run_and_a_missing_extra_are_one_line(run, tmp_path, capsys, monkeypatch):
    assert main(["export", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no config.json: is it a finished run?" in capsys.readouterr().err
    monkeypatch.setattr("auxnet.export_graphs.find_spec", lambda name: None)
    assert main(["export", str(run)]) == 1
    assert "pip install onnx" in capsys.readouterr().err


def test_files_that_are_no_model_of_this_program_are_one_line(tmp_path, onnx_file, capsys):
    foreign = onnx.load(onnx_file)
    foreign.ClearField("metadata_props")
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "damaged.onnx").write_bytes(onnx_file.read_bytes()[:500])
    (tmp_path / "model.pt2").write_bytes(b"x")
    for name, status, words in (
        ("foreign.onnx", 2, "was not exported by auxnet"),
        ("damaged.onnx", 1, "is no readable ONNX file"),
        ("model.pt2", 2, "cannot be asked here"),
        ("absent", 2, "there is no model"),
    ):
        assert main(["predict", str(tmp_path / name), "x.png"]) == status
        assert words in capsys.readouterr().err
    assert main(["predict", str(onnx_file), "x.png", "--output", "3"]) == 2
    assert "holds output 2 alone" in capsys.readouterr().err


def test_a_policy_that_is_none_is_refused(run, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(TypeError, match=r"^policy must be an auxnet\.policy\.Policy, got 3$"):
        export(run, 2, "onnx-early-exit", tmp_path / "a.onnx", policy=3)
