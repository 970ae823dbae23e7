"""Predictions come in the order of the images, from any form of the model alike, whatever the images are like."""

import csv
import io
import json
import os
import shutil
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import auxnet
from auxnet import prediction, runtimes
from auxnet.cli import main
from auxnet.exporting import export
from auxnet.policy import NEVER, Policy
from auxnet.prediction import Prediction, Unreadable, predict
from auxnet.reading.ahead import ahead
from auxnet.reading.pictures import Frame, resized
from auxnet.runtimes import runnable
from auxnet.tensors import read_about, read_tensors, save_tensors
from shipped import picture, write_policy, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("predict"))


@pytest.fixture(scope="module")
def onnx_file(run, onnx_tables):
    return export(run, 2, "onnx", run.parent / "two.onnx").path


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "täst images"
    (home / "below").mkdir(parents=True)
    for n in range(5):
        picture(n, bright=25 * n).save(home / f"{n}, a.png")
    picture(9, (12, 20)).save(home / "below" / "large.png")
    return home


def test_order_is_kept_under_any_batch_size(run, folder):
    (folder / "2, broken.png").write_text("this is no picture")
    expected = [f.name for f in sorted(folder.rglob("*.png"))]
    for batch_size in (1, 2, 5, 100):
        answers = list(predict(run, [folder], batch_size=batch_size))
        assert [a.image.split("/")[-1] for a in answers] == expected
        assert [isinstance(a, Unreadable) for a in answers] == ["broken" in name for name in expected]


def test_a_file_named_twice_is_answered_twice(run, folder):
    one, two = str(folder / "0, a.png"), str(folder / "4, a.png")
    assert [a.image for a in predict(run, [two, one, two])] == [two, one, two]


def test_run_folder_and_onnx_give_the_same_answers(run, onnx_file, folder, tmp_path):
    forms = [run, export(run, 2, "safetensors", tmp_path / "s").path, onnx_file]
    first, *others = [list(predict(form, [folder], output=2, batch_size=2)) for form in forms]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert (a.image, a.output, a.classes, a.resized_from) == (b.image, b.output, b.classes, b.resized_from)
            np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)


def test_pictures_of_every_kind_are_read(run, tmp_path):
    base = picture(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    base.convert("L").save(tmp_path / "grey.png")
    base.convert("RGBA").save(tmp_path / "alpha.png")
    base.convert("CMYK").save(tmp_path / "cmyk.jpg")
    base.convert("P").save(tmp_path / "palette.png")
    base.convert("1").save(tmp_path / "bits.png")
    base.save(tmp_path / "turned.jpg", exif=exif)
    base.save(tmp_path / "moving.gif", save_all=True, append_images=[picture(2), picture(3)])
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "sixteen.png")
    answers = list(predict(run, [tmp_path]))
    assert len(answers) == 8
    assert all(isinstance(a, Prediction) for a in answers)


def test_one_path_is_one_image_or_folder(run, folder):
    alone = next(iter(sorted(folder.glob("*.png"))))
    for path in (alone, str(alone)):
        assert [answer.image for answer in predict(run, path)] == [str(alone)]
    assert [*predict(run, str(folder))] == [*predict(run, [folder])]


def test_pictures_in_memory_are_answered_as_their_files_are_by_their_place(run, folder, with_cores):
    with_cores(1)
    paths = sorted(folder.rglob("*.png"))
    exif, turned, deep = Image.Exif(), folder / "turned.jpg", folder / "deep.png"
    exif[0x0112] = 6
    picture(7, (12, 20)).save(turned, exif=exif)
    Image.fromarray(np.full((9, 8), 40000, np.uint16)).save(deep)
    expected = [replace(answer, image="") for answer in predict(run, [*paths, turned, deep] * 5)]
    opened = [Image.open(path) for path in (*paths, turned, deep)]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    workers = with_cores(2)
    for held in (opened, [*arrays, *opened[-2:]], [*map(str, paths), *opened[-2:]]):
        answers = list(predict(run, iter(held * 5), threads=2))
        names = [each if isinstance(each, str) else f"#{n}" for n, each in enumerate(held * 5)]
        assert [answer.image for answer in answers] == names
        assert [replace(answer, image="") for answer in answers] == expected
    assert workers == [0, 0, 0, 2]  # processes are for files
    [alone] = predict(run, paths[0])
    for one in (opened[0], arrays[0], arrays[0][None]):
        [answer] = predict(auxnet.load(run), one)
        assert answer == replace(alone, image="#0")
    grey, of_one_channel = predict(run, [arrays[0][..., 0], arrays[0][..., :1]])
    assert grey.probabilities == of_one_channel.probabilities


def test_a_picture_in_memory_that_cannot_be_used_costs_no_other_answer(run, folder):
    path = folder / "0, a.png"
    (folder / "torn.png").write_bytes(path.read_bytes()[:-60])
    unknown = Image.fromarray(np.full((8, 8), 200, np.float32))
    before, torn, no_range, after = predict(run, [path, Image.open(folder / "torn.png"), unknown, path])
    assert (torn.image, no_range.image) == ("#1", "#2")
    assert "not a readable image" in torn.reason
    assert "mode 'F' has no known range" in no_range.reason
    assert before == after


NO_IMAGES = [
    (np.zeros((8, 8, 4), np.uint8), r"got uint8 \[8, 8, 4\]: .*a\[..., :3\] for \[H, W, 4\]"),
    (np.zeros((8, 8, 3), np.float32), r"got float32 \[8, 8, 3\]: \(255 \* a\).astype"),
    (np.zeros((0, 8, 3), np.uint8), r"got uint8 \[0, 8, 3\]"),
    (torch.zeros(8, 8, 3, dtype=torch.uint8), "got Tensor: .* np.asarray, makes one"),
    (3, "got int"),
]


@pytest.mark.parametrize(("given", "words"), NO_IMAGES)
def test_what_is_no_image_is_refused_at_once_by_predict_and_by_prepare(run, given, words):
    for use in (
        lambda: predict(run, given),
        lambda: predict(run, ["a.png", given]),
        lambda: auxnet.load(run).prepare(given),
    ):
        with pytest.raises(TypeError, match=f"an image is a path, one of PIL's, or an array, uint8 .*, {words}"):
            use()


def test_what_is_no_model_is_refused_with_the_mend(run, folder):
    net = auxnet.load(run)
    for model in (net.truncate(2), net.up_to(2), [run], None):
        with pytest.raises(TypeError, match=f"a model is a run, .*, got {type(model).__name__}: other nets, and parts"):
            predict(model, folder)


@pytest.mark.long
@pytest.mark.parametrize("thresholds", [(0.02, 0.0), (NEVER, 0.03), (0.02, 0.05)])
def test_images_leave_early_as_they_do_in_the_onnx_file_of_the_runs_early_exit(
    run, folder, tmp_path, onnx_tables, thresholds
):
    shutil.copytree(run, tmp_path / "a")
    write_policy(tmp_path / "a", Policy(thresholds, "margin", (1.5, 0.7, 2.0)))
    file = export(tmp_path / "a", format="onnx-early-exit", out=tmp_path / "early.onnx").path
    for n in range(12):
        picture(n, bright=9 * n).save(folder / f"more {n}.png")
    expected = list(predict(file, folder, top=4))
    assert len({answer.output for answer in expected}) > 1
    for batch_size in (1, 5, 32):
        answers = list(predict(tmp_path / "a", folder, exits=True, top=4, batch_size=batch_size))
        for here, there in zip(answers, expected, strict=True):
            assert (here.image, here.output, here.classes) == (there.image, there.output, there.classes)
            assert here.probabilities == pytest.approx(there.probabilities, abs=1e-5)


def test_the_command_says_where_each_image_left(run, folder, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "a")
    for thresholds, left in (((0.0, 0.5), 1), ((NEVER, 0.0), 2), ((NEVER, NEVER), 3)):
        write_policy(tmp_path / "a", Policy(thresholds, "top", (1.0,) * 3))
        assert main(["predict", str(tmp_path / "a"), str(folder), "--exits", "--format", "csv"]) == 0
        assert {row["output"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))} == {str(left)}


def test_what_must_be_known_of_the_exits_is_said_again_where_they_are_used(run, folder, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "a")
    write_policy(tmp_path / "a", Policy((NEVER, NEVER), "top", (1.0,) * 3), notes=["too few images"])
    asked = ["predict", str(tmp_path / "a"), str(folder)]
    assert main([*asked, "--exits"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\nnote: too few images\n")
    assert "too few" not in err
    for more in (["--format", "csv"], ["--format", "jsonl"], ["--out", str(tmp_path / "table.txt")]):
        assert main([*asked, "--exits", *more]) == 0
        out, err = capsys.readouterr()
        assert "auxnet: note: too few images\n" in err
        assert "too few" not in out
    assert main(asked) == 0
    assert "too few" not in "".join(capsys.readouterr())


def test_an_early_exit_that_cannot_be_asked_is_one_line(run, onnx_file, folder, capsys):
    for model, words, line in (
        (run, [], f"{run} holds no exits.json: `auxnet exits {run}`"),
        (run, ["--output", "2"], "exits.json lets each image leave at its own output: leave output 2 out"),
        (onnx_file, [], f"exits are those of a run's exits.json, and {onnx_file} is no run: leave exits out"),
        (folder / "absent", [], f"there is no model {folder / 'absent'}"),
    ):
        assert main(["predict", str(model), str(folder), "--exits", *words]) == 2
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == 1
    for opened in (auxnet.load(run), runnable(auxnet.load(run))):
        with pytest.raises(ValueError, match="give the run's folder as the model, or leave exits out"):
            predict(opened, folder, exits=True)


def test_a_path_that_cannot_be_looked_at_costs_no_other_answer(run, folder):
    alone, long = next(iter(sorted(folder.glob("*.png")))), f"{'x' * 300}.png"
    before, between, after = predict(run, [alone, long, alone])
    assert isinstance(between, Unreadable)
    assert between.reason == "File name too long"
    assert before == after


def test_transparency_is_dropped_as_in_training(run, tmp_path):
    picture(1).save(tmp_path / "a.png")
    picture(1).convert("RGBA").save(tmp_path / "b.png")
    one, two = predict(run, [tmp_path / "a.png", tmp_path / "b.png"])
    assert one.probabilities == two.probabilities


def test_another_size_is_fitted_by_its_shorter_side_and_its_middle():
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    assert (resized(pixels, Frame((4, 4)), 3) == 200).all()
    assert resized(pixels, Frame((4, 4)), 1).shape == (4, 4, 1)
    assert resized(pixels[..., :1], Frame((6, 5)), 3).shape == (6, 5, 3)


def test_broken_images_are_reported_by_name_and_the_rest_is_done(run, folder, capsys, monkeypatch):
    (folder / "text.png").write_text("no picture")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 200)  # large.png, of 240 pixels, is now a bomb
    assert main(["predict", str(run), str(folder), str(folder / "absent.png"), "--format", "jsonl"]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    broken = {line["image"]: line["error"] for line in lines if "predictions" not in line}
    assert len(lines) == 8
    assert {*broken} == {str(folder / name) for name in ("text.png", "below/large.png", "absent.png")}
    assert all(broken.values())
    for name in ("text.png", "large.png", "absent.png"):
        assert name in err
    assert "3 of what was named could not be read" in err
    assert "Traceback" not in err


def test_csv_and_json_lines_can_be_read_back(run, folder, capsys):
    assert main(["predict", str(run), str(folder), "--format", "csv", "--top", "2"]) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["image", "output", "class_1", "probability_1", "class_2", "probability_2"]
    assert rows[0]["image"] == str(folder / "0, a.png")
    assert "resized 1 of the images" in err
    assert main(["predict", str(run), str(folder), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [row["image"] for row in rows]
    assert [line["predictions"][0]["class"] for line in lines] == [row["class_1"] for row in rows]


def test_json_lines_can_be_read_back_whatever_the_terminal_can_show(run, tmp_path, monkeypatch):
    for name in ("hélas.png", "broken é.png"):
        (tmp_path / name).write_bytes(b"no picture")
    Image.new("L", (8, 8)).save(tmp_path / "hélas.png")
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["predict", str(run), str(tmp_path), "--format", "jsonl"]) == 1
    shown.flush()
    lines = [json.loads(line) for line in shown.buffer.getvalue().decode("ascii").splitlines()]
    assert [line["image"] for line in lines] == [str(tmp_path / name) for name in ("broken é.png", "hélas.png")]


def test_a_model_given_after_the_images_is_told_where_it_belongs(run, folder):
    with pytest.raises(FileNotFoundError, match=f"the model comes first, then images: {run} {folder}"):
        predict(folder, [run])
    with pytest.raises(FileNotFoundError, match=r"there is no model missing.onnx"):
        predict("missing.onnx", [folder])


def test_a_list_on_standard_input_is_followed(run, folder, tmp_path, capsys, monkeypatch):
    names = [str(folder / f"{n}, a.png") for n in (3, 0)]
    shutil.copy(names[0], odd := str(tmp_path / "two\nlines.png"))
    for listed, given in ((names, "\n".join(names) + "\n"), ([odd, *names], "\0".join([odd, *names, ""]))):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        assert main(["predict", str(run), "-", "--format", "jsonl"]) == 0
        assert [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()] == listed


def test_the_file_is_written_whole_and_never_over_another(run, folder, tmp_path, capsys):
    out = tmp_path / "answers.csv"
    assert main(["predict", str(run), str(folder), "--format", "csv", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 7
    assert main(["predict", str(run), str(folder), "--format", "csv", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_suffix_of_the_file_names_the_format_and_its_rows_are_told(run, folder, tmp_path, capsys):
    (folder / "broken.png").write_text("no picture")
    for name, form, rows, words in (
        ("a.csv", "csv", 7, []),
        ("A.CSV", "csv", 7, []),
        ("a.jsonl", "jsonl", 7, []),
        ("a.txt", "table", 6, []),
        ("a", "table", 6, []),
        ("b", "jsonl", 7, ["--format", "jsonl"]),
        ("a.json", "jsonl", 7, ["--format", "jsonl"]),
    ):
        out = tmp_path / name
        assert main(["predict", str(run), str(folder), "--out", str(out), *words]) == 1
        assert capsys.readouterr().err.endswith(f"auxnet: written: {out}, {rows} rows as {form}\n")
        begins = {"csv": "image,output,", "jsonl": '{"image": ', "table": " "}[form]
        assert out.read_text().strip("\n").startswith(begins)


def test_a_suffix_that_contradicts_the_format_is_refused_in_a_line(run, folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, words, line in (
        ("a.jsonl", ["csv"], "--format csv does not go with --out a.jsonl: give --format jsonl, or name another file"),
        ("a.csv", ["table"], "--format table does not go with --out a.csv: give --format csv, or name another file"),
        ("a.json", [], "a table does not go into a.json: give --format jsonl, or name it a.jsonl"),
    ):
        asked = ["predict", str(run), str(folder), "--out", name, *(["--format", *words] if words else [])]
        assert main(asked) == 2
        assert capsys.readouterr().err == f"auxnet: {line}\n"
        assert [*tmp_path.glob("a.*")] == []


def test_a_pipe_is_no_picture_to_wait_for(run, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert main(["predict", str(run), str(tmp_path / "pipe.jpg")]) == 1
    assert "pipe.jpg: not a readable image (a pipe, and no file)" in capsys.readouterr().err


def test_a_pipe_and_what_a_link_leads_to_are_written_to_and_stay_what_they_are(run, folder, tmp_path):
    words = ["predict", str(run), str(folder), "--format", "csv", "--out"]
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main([*words, str(tmp_path / "pipe")]) == 0
    said = os.read(reader, 2**16).decode()
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "below" / "file.csv")
    (tmp_path / "below").mkdir()
    assert main([*words, str(tmp_path / "link")]) == 0
    assert main([*words, str(tmp_path / "link")]) == 2
    assert main([*words, str(tmp_path / "link"), "--overwrite"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "below" / "file.csv").read_text() == said
    assert len(said.splitlines()) == 7


def test_a_number_that_is_not_whole_is_refused(run, folder):
    for name in ("batch_size", "top"):
        with pytest.raises(ValueError, match=rf"{name} must be a whole number, 1 or more, got 1\.5"):
            predict(run, [folder], **{name: 1.5})
    assert len(list(predict(run, [folder], batch_size=np.int64(4), top=np.int64(1)))) == len(list(predict(run, folder)))


def test_of_a_run_trained_on_a_gpu_it_is_told_that_the_cpu_is_asked(run, folder, tmp_path, capsys, monkeypatch):
    shutil.copytree(run, there := tmp_path / "a")
    summary = json.loads((there / "summary.json").read_text())
    (there / "summary.json").write_text(json.dumps(summary | {"device": {**summary["device"], "type": "cuda"}}))
    for here, model, words, told in (
        (True, there, [], 1),
        (True, there, ["--device", "cpu"], 0),
        (True, run, [], 0),
        (False, there, [], 0),
    ):
        monkeypatch.setattr("torch.cuda.is_available", lambda here=here: here)
        assert main(["predict", str(model), str(folder / "0, a.png"), *words]) == 0
        note = "was trained on a GPU and is asked on the CPU: --device cuda takes the GPU that is here"
        assert capsys.readouterr().err == f"auxnet: note: {model} {note}\n" * told


def test_a_folder_to_write_to_is_refused_before_anything_is_done(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("auxnet.prediction.predict", None)
    for words in ([], ["--overwrite"]):
        assert main(["predict", str(run), str(folder), "--out", str(tmp_path), *words]) == 2
        assert capsys.readouterr().err == f"auxnet: {tmp_path} is a folder: name a file with --out\n"


def test_files_of_a_folder_that_are_no_pictures_known_here_are_told(run, folder, capsys):
    (folder / "drawing.svg").write_text("of a program")
    assert main(["predict", str(run), str(folder)]) == 0
    assert f"{folder}: passed over 1 file that is no picture known here: .svg (1)" in capsys.readouterr().err
    (folder / "drawing.svg").unlink()


@pytest.mark.parametrize("top", [2, 9])
def test_csv_has_its_header_without_any_readable_image_too(run, folder, tmp_path, capsys, top):
    (tmp_path / "broken.png").write_text("no picture")
    headers = []
    for pictures, status in ((folder, 0), (tmp_path / "broken.png", 1)):
        assert main(["predict", str(run), str(pictures), "--format", "csv", "--top", str(top)]) == status
        header, *lines = capsys.readouterr().out.splitlines()
        headers.append(header)
    assert lines == [str(tmp_path / "broken.png") + "," * header.count(",")]
    assert headers[0] == headers[1]
    assert headers[0].count("class_") == min(top, 4)


def test_of_the_resized_the_first_is_named_and_none_is_kept(run, tmp_path, capsys, monkeypatch):
    for n in range(6):
        picture(n, (12, 20 + n)).save(tmp_path / f"{n}.png")
    alive = weakref.WeakSet()
    asked, most = prediction.predict, []

    def watched(*given, **how):
        for answer in asked(*given, **how):
            alive.add(answer)
            most.append(len(alive))
            yield answer
            del answer

    monkeypatch.setattr(prediction, "predict", watched)
    assert main(["predict", str(run), str(tmp_path), "--format", "jsonl", "--batch-size", "1"]) == 0
    assert f"resized 6 of the images (fit crop), the first one {tmp_path / '0.png'}, 20x12\n" in capsys.readouterr().err
    assert max(most) <= 2


def test_what_an_open_model_cannot_be_asked_is_refused(run, folder):
    net = auxnet.load(run)
    with pytest.raises(ValueError, match="output is chosen where a model is opened, and this one is open: leave 99"):
        predict(runnable(net, 2), folder, output=99)
    for model in (net, runnable(net)):
        for which in ("nonsense", "best"):
            with pytest.raises(ValueError, match=f"and this model has its own: leave '{which}' out"):
                predict(model, folder, which=which)
    assert {answer.output for answer in predict(runnable(net, 2), folder)} == {2}


@pytest.fixture
def many(tmp_path):
    """Forty small pictures, of which one is broken."""
    for n in range(40):
        picture(n, (12, 9 + n % 3), bright=3 * n).save(tmp_path / f"{n:02}.png")
    (tmp_path / "17.png").write_text("no picture")
    return tmp_path


@pytest.fixture
def with_cores(monkeypatch):
    """Sets how many cores there are; gives the numbers of processes that decode."""
    workers = []

    def watched(work, pieces, number, most):
        workers.append(number)
        return ahead(work, pieces, number, most)

    monkeypatch.setattr(prediction, "ahead", watched)

    def there_are(cores):
        for place in ("prediction", "runtimes", "machine"):
            monkeypatch.setattr(f"auxnet.{place}.cores", lambda: cores)
        return workers

    return there_are


def test_images_decoded_ahead_come_as_those_decoded_one_by_one(run, many, with_cores):
    with_cores(1)
    one_by_one = list(predict(run, many, batch_size=7))
    assert [isinstance(a, Unreadable) for a in one_by_one] == [n == 17 for n in range(40)]
    for batch_size in (1, 7, 100):
        with_cores(2)
        answers = list(predict(run, many, batch_size=batch_size, threads=2))
        assert [a.image for a in answers] == [a.image for a in one_by_one]
        for a, b in zip(answers, one_by_one, strict=True):
            if isinstance(b, Unreadable):
                assert a == b
            else:
                assert (a.classes, a.resized_from) == (b.classes, b.resized_from)
                assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)
    list(predict(run, sorted(many.iterdir())[:20], threads=2))
    assert with_cores(2) == [0, 2, 2, 2, 0]  # one core, three times two, and so few images that none is waited for


def test_only_so_many_images_are_decoded_ahead(run, many, with_cores, monkeypatch):
    with_cores(2)
    files, taken = prediction._files, []

    def watched(*given):
        for _ in range(10):
            for file in files(*given):
                taken.append(file)
                yield file

    monkeypatch.setattr(prediction, "_files", watched)
    answers = predict(run, many, batch_size=8, threads=2)
    next(answers)
    assert len(taken) <= 8 + 8 + 4 * prediction.PIECE + prediction.FEW
    answers.close()


def test_threads_are_set_for_a_question_and_are_those_of_the_container(run, onnx_file, folder, with_cores, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    with_cores(3)
    seen, normalise, session = [], runtimes.normalise, onnxruntime.InferenceSession

    def watched(*given):
        seen.append(torch.get_num_threads())
        return normalise(*given)

    def opened(path, options, **more):
        seen.append(options.intra_op_num_threads)
        return session(path, options, **more)

    monkeypatch.setattr(runtimes, "normalise", watched)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    for model in (run, onnx_file):
        for threads in (2, None):
            list(predict(model, folder, threads=threads))
    assert main(["predict", str(run), str(folder), "--threads", "2", "--device", "cpu"]) == 0
    assert seen == [2, 1, 2, 3, 2]  # PyTorch was set to one by these tests
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match=r"two.onnx is run on the CPU, not on device 'cuda'"):
        predict(onnx_file, folder, device="cuda")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "there are no images"),
        (["x.png", "--output", "7"], "auxnet: --output must be 1..3"),
        (["x.png", "--batch-size", "0"], "auxnet: --batch-size must be a whole number, 1 or more, got 0"),
        (["x.png", "--top", "0"], "auxnet: --top must be a whole number, 1 or more, got 0"),
        (["x.png", "--threads", "0"], "auxnet: --threads must be 1 or more, got 0"),
        (["x.png", "--device", "toaster"], "auxnet: --device must be auto, cpu, cuda, cuda:NUMBER or mps, got"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run, capsys, words, line):
    assert main(["predict", str(run), *words]) == 2
    assert line in capsys.readouterr().err


def test_a_picture_of_an_unknown_form_in_a_folder_counts_as_unreadable(run, folder, capsys):
    (folder / "1, b.HEIC").write_bytes(b"ftypheic")
    answers = list(predict(run, folder))
    assert [a.image for a in answers if isinstance(a, Unreadable)] == [str(folder / "1, b.HEIC")]
    assert answers == list(predict(run, [a.image for a in answers]))  # as where it is named
    assert main(["predict", str(run), str(folder)]) == 1
    assert "1, b.HEIC" in capsys.readouterr().err


def test_a_terminal_does_not_obey_the_name_of_a_picture(run, folder, capsys):
    (folder / "\x1b[2Jwhole.png").write_bytes(next(folder.glob("*.png")).read_bytes())
    (folder / "\x1b[2Jtorn.png").write_bytes(b"")
    assert main(["predict", str(run), *map(str, folder.glob("*[[]2J*"))]) == 1
    told = capsys.readouterr()
    assert r"\x1b[2Jwhole.png" in told.out
    assert r"\x1b[2Jtorn.png" in told.err
    assert "\x1b" not in told.out + told.err


def test_logits_that_are_not_finite_name_no_class(run, onnx_file, folder, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    shutil.copytree(run, tmp_path / "a")
    for state in (tmp_path / "a").glob("*.safetensors"):
        weights = read_tensors(state)
        weights["heads.2.fc.bias"][1] = float("nan")
        save_tensors(state, weights, **read_about(state))
    graph = onnx.load(onnx_file)
    shown = graph.graph.output[0].name
    logits = next(node for node in graph.graph.node if shown in node.output)
    logits.output[[*logits.output].index(shown)] = "finite"
    infinite = onnx.helper.make_node("Constant", [], ["infinite"], value_float=float("inf"))
    graph.graph.node.extend([infinite, onnx.helper.make_node("Add", ["finite", "infinite"], [shown])])
    onnx.save(graph, tmp_path / "a.onnx")
    for model, output in (("a", 3), ("a.onnx", 2)):
        words = ["predict", str(tmp_path / model), str(folder), "--format", "csv", "--out", str(tmp_path / "a.csv")]
        assert main(words) == 1
        assert (
            capsys.readouterr().err == f"auxnet: output {output} gives logits that are not finite: has it diverged?\n"
        )
        assert not (tmp_path / "a.csv").exists()
    assert [answer.output for answer in predict(tmp_path / "a", folder, output=2)] == [2] * 6


def test_paths_of_which_none_exists_are_a_wrong_request(run, folder, capsys):
    assert main(["predict", str(run), str(folder / "absent.png"), "--format", "csv"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"auxnet: there is no such file or folder: {folder / 'absent.png'}\n"


def test_threads_that_are_no_number_are_refused(run, folder):
    with pytest.raises(ValueError, match=r"^threads must be a whole number, got '2'$"):
        predict(run, folder, threads="2")


def test_standard_streams_that_a_shell_closed_are_empty_and_read_by_nobody(run, folder, capsys, monkeypatch):
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(sys, stream, None)
    assert main(["predict", str(run), str(folder), "--format", "csv"]) == 0
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["predict", str(run), "-"]) == 2
    assert "auxnet: there are no images to predict" in capsys.readouterr().err


def test_a_device_that_is_full_is_named(run, folder, capsys):
    assert main(["predict", str(run), str(folder), "--format", "csv", "--out", "/dev/full"]) == 1
    assert "auxnet: /dev/full: No space left on device\n" in capsys.readouterr().err
