"""A run is opened with the data that it was trained on, or not at all."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import auxnet
from auxnet.checkpoint import load_state, save_state
from auxnet.cli import main
from auxnet.data import load_data
from auxnet.documents import read_json
from auxnet.lineage import earlier_runs, may_be_seen_by
from auxnet.opening import opened
from auxnet.recipe import Recipe, read_recipe, read_run_recipe, write_recipe
from auxnet.run_data import data_dirs, data_of, with_data_in
from writers import CIFAR10, folder_of, tiny, write_folders, write_parquet


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    data = folder_of(home)
    recipe = auxnet.Recipe(data=str(data), depth=8, outputs=2, epochs=1, batch_size=20, device="cpu", threads=1)
    folder = auxnet.fit(recipe, home / "run").folder
    (data / "a").rename(data / "x")
    return folder


def test_what_is_given_wins_over_the_recipe(tmp_path):
    recipe = auxnet.Recipe(depth=8, outputs=2, epochs=1, train_images=96, device="cpu", threads=1)
    folder = auxnet.fit(recipe, tmp_path / "a").folder
    with opened(folder, threads=2, data_dir=str(tmp_path)) as it:
        assert (it.recipe.threads, it.recipe.data_dir, it.recipe.device) == (2, str(tmp_path), "cpu")
        assert it.image_shape == (1, 8, 8)
        assert not it.net.training
        for split in ("val", "test"):
            assert sum(len(labels) for _, labels in it.batches(split)) == len(getattr(it.dataset, split))
        for split in ("valid", "train"):
            with pytest.raises(ValueError, match=f'split must be "val" or "test", got {split!r}'):
                it.batches(split)


def test_what_fit_returned_stands_for_its_folder(tmp_path):
    recipe = auxnet.Recipe(depth=8, outputs=2, epochs=1, train_images=96, device="cpu", threads=1)
    run = auxnet.fit(recipe, tmp_path / "a")
    assert str(run) == str(tmp_path / "a")
    assert auxnet.select(run) == auxnet.select(run.folder)
    for taken in (auxnet.load(run), auxnet.load(run.folder)):
        assert all(map(torch.equal, taken.state_dict().values(), run.net.state_dict().values()))
    auxnet.solve_exits(run, points=2)
    assert auxnet.early_exit(run).policy == auxnet.early_exit(run.folder).policy
    assert auxnet.export(run, 1, "torch", tmp_path / "a.pt2").path.is_file()
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/none is not a run directory"):
        auxnet.select(replace(run, folder=tmp_path / "none"))


def test_a_misspelt_run_is_told_the_nearest_beside_it(tmp_path, monkeypatch):
    for name in ("digits", "photos"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").write_text("depth: 8")
    (tmp_path / "runs" / "digit1").mkdir()  # no run
    monkeypatch.chdir(tmp_path / "runs")
    go_on = partial(auxnet.fit, Recipe(), resume=True)
    asks = [auxnet.select, auxnet.load, partial(auxnet.predict, images=["0.png"]), go_on]
    for ask in asks:
        for run, meant in (("digit", "digits"), (f"{tmp_path}/runs/Digit", f"{tmp_path}/runs/digits")):
            with pytest.raises(FileNotFoundError, match=f"; perhaps you meant '{meant}'$"):
                ask(run)
        for run in ("xyz", "ditto", "nowhere/digits"):
            with pytest.raises(FileNotFoundError, match=r"^((?!perhaps).)*$"):
                ask(run)


@pytest.mark.parametrize("ask", [auxnet.select, auxnet.solve_exits, auxnet.early_exit, auxnet.export, auxnet.load])
def test_what_is_no_run_is_told_what_is(ask):
    with pytest.raises(TypeError, match=r"path of its directory, or what fit returned, got AuxNet: docs/guide.md"):
        ask(auxnet.resnet(depth=8))


def test_data_in_a_file_behind_a_link_are_found_by_its_name_and_not_by_that_of_the_blob(tmp_path):
    """As DVC and the hub's cache keep files, under names that say nothing."""
    images, labels = tiny(40, 2, size=8)
    (tmp_path / "snap").mkdir()
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    (tmp_path / "own.npz").rename(tmp_path / "abc123")
    (tmp_path / "snap" / "own.npz").symlink_to("../abc123")
    recipe = Recipe(data=f"{tmp_path}/snap/own.npz", depth=8, outputs=2, epochs=1, batch_size=16, device="cpu")
    run = auxnet.fit(recipe, tmp_path / "run")
    assert run.summary["data"]["name"] == "own.npz"
    whole = str(tmp_path.resolve() / "snap" / "own.npz")
    for found in (read_recipe(run.folder / "recipe.yaml"), with_data_in(str(tmp_path / "snap"), run, recipe)):
        assert found.data == whole
    with opened(run) as it:
        assert len(it.dataset.test) == run.summary["data"]["test"]
    (tmp_path / "other.npz").symlink_to("snap/own.npz")
    for same in ("other.npz", "snap/own.npz"):
        refused = pytest.raises(ValueError, match=f"was trained on images of {tmp_path}/{same}")
        with refused, opened(run, on=str(tmp_path / same)):
            pass


@pytest.mark.parametrize("command", ["evaluate", "select", "exits", "diagnose"])
def test_data_whose_classes_are_others_by_now_are_refused(command, run, capsys):
    """The same number of classes: what is measured would be nonsense, and nothing would say so."""
    assert main([command, str(run)]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"auxnet: {run} was trained on other classes: its data lack 'a' and have 'x'; put the classes back as they "
        "were, name other data with --data-dir, or train again\n"
    )


@pytest.mark.parametrize("size", [[float("inf"), 8], [8], "8", None, {"H": 8}])
def test_a_config_whose_preprocessing_is_none_is_said(size, tmp_path):
    recipe = auxnet.Recipe(depth=8, outputs=2, device="cpu", threads=1)
    content = {"mean": [0.0], "std": [1.0], "resize": [8, 8], "image_size": size}
    classes = [str(digit) for digit in range(10)]
    (tmp_path / "config.json").write_text(json.dumps({"classes": classes, "preprocessing": content}))
    with pytest.raises(RuntimeError, match=r"config\.json is damaged: its preprocessing cannot be read"):
        data_of(tmp_path, recipe)


def test_a_run_is_opened_from_any_folder_by_its_own_recipe(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    images, labels = tiny(60, 2, size=8)
    write_folders(home / "pics", images, labels, ["cat", "dog"])
    recipe = Recipe(data="pics", depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    monkeypatch.chdir(home)
    auxnet.fit(recipe, "here")
    auxnet.fit(recipe, "here", resume=True)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("AUXNET_DATA", str(home))
    auxnet.fit(recipe, "there")
    monkeypatch.delenv("AUXNET_DATA")
    monkeypatch.chdir(tmp_path)
    for run, data_dir in ((home / "here", None), (elsewhere / "there", str(home))):
        own = read_recipe(run / "recipe.yaml")
        assert (own.data, own.data_dir) == (str(home / "pics"), data_dir)
        assert auxnet.fit(own, run, resume=True).summary["data"]["name"] == "pics"
        assert auxnet.select(run).output
    with pytest.raises(ValueError, match="begun with data="):
        auxnet.fit(replace(recipe, data="digits"), home / "here", resume=True)


def test_images_that_were_trained_on_never_judge_a_run(tmp_path, capsys):
    data, run = tmp_path / "pics", tmp_path / "run"
    images, labels = tiny(40, 2, size=8)
    write_folders(data, images, labels, ["cat", "dog"])
    recipe = Recipe(data=str(data), depth=8, outputs=2, epochs=2, batch_size=16, threads=1, device="cpu")

    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(recipe, tmp_path / "half", watch=stop)
    auxnet.fit(recipe, run)
    assert main(["select", str(run)]) == 0
    for stream in ("always", "never"):  # the same images, wherever they are read from
        assert load_data(replace(recipe, stream=stream)).drawn == load_data(recipe).drawn
    Image.fromarray(images[0]).save(data / "cat" / "one-more.png")
    for words in (
        ["select", run],
        ["evaluate", run],
        ["exits", run],
        ["train", "--out", tmp_path / "half", "--resume"],
    ):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1
        assert "have changed since it was begun" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "torch", "--out", str(tmp_path / "x.pt2")]) == 0  # judges nothing
    (run / "summary.json").rename(tmp_path / "summary.json")  # without it nobody could tell
    for command in ("select", "evaluate", "exits"):
        capsys.readouterr()
        assert main([command, str(run)]) == 2
        said = capsys.readouterr().err
        assert said == f"auxnet: {run} holds no summary.json; `auxnet train --out {run} --resume` makes it again\n"
    (data / "cat" / "one-more.png").unlink()
    assert main(["train", "--out", str(run), "--resume"]) == 0
    made_again, before = (read_json(folder / "summary.json") for folder in (run, tmp_path))
    assert made_again.pop("wall_seconds") > 0  # with an evaluation of its own, which may be the faster one
    before.pop("wall_seconds")
    assert made_again == before
    assert main(["select", str(run)]) == 0


@pytest.mark.long
def test_a_picture_that_was_left_out_and_is_whole_now_is_named_where_data_have_changed(tmp_path):
    data, run = tmp_path / "pics", tmp_path / "run"
    images, labels = tiny(20, 2, size=8)
    write_folders(data, images, labels, ["cat", "dog"])
    broken, whole = data / "cat" / "broken.png", next((data / "cat").iterdir()).read_bytes()
    for path in (broken, data / "cat" / "always.png"):
        path.write_bytes(b"x")
    recipe = Recipe(data=str(data), max_corrupt=2, depth=8, outputs=2, epochs=2, batch_size=16, threads=1, device="cpu")

    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(recipe, run, watch=stop)
    for ask in (partial(auxnet.fit, recipe, run, resume=True), partial(auxnet.evaluate, run)):
        broken.write_bytes(whole)
        with pytest.raises(RuntimeError, match=rf"left out then, and not now: {broken}\), judge it --on other"):
            ask()
        broken.write_bytes(b"x")
        ask()


def test_test_images_have_a_fingerprint_also_where_the_data_bring_their_own(tmp_path):
    images, labels = tiny(40, 2, size=16)
    for split in ("train", "test"):
        write_folders(tmp_path / "pics" / split, images, labels, ["cat", "dog"])

    def of(**more):
        dataset = load_data(Recipe(data=str(tmp_path / "pics"), **more))
        return dataset.test_sha256()

    before = of()
    for stream in ("always", "never"):  # also where the net sees but the middle of them
        assert of(stream=stream) == of(stream=stream, seed=1, val_fraction=0.3) == before
    assert of(stream="always", augment="rrc+flip", image_size=8) == of(stream="never", augment="rrc+flip", image_size=8)
    first, last = (sorted((tmp_path / "pics" / "test" / name).glob("*.png"))[0] for name in ("cat", "dog"))
    Image.fromarray(255 - images[0]).save(first)
    replaced = of()
    last.rename(first.parent / last.name)
    assert len({before, replaced, of()}) == 3


@pytest.mark.long
def test_more_images_of_a_test_set_of_its_own_change_nothing_that_was_drawn(tmp_path):
    images, labels = tiny(40, 2, size=8)
    for split in ("train", "val", "test"):
        write_folders(tmp_path / "pics" / split, images, labels, ["cat", "dog"])
    recipe = Recipe(data=str(tmp_path / "pics"), depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    auxnet.fit(recipe, tmp_path / "run")
    Image.fromarray(images[0]).save(tmp_path / "pics" / "test" / "cat" / "one-more.png")
    with pytest.warns(UserWarning, match="its test images have changed"), opened(tmp_path / "run") as it:
        assert len(it.dataset.test) == 41


def test_images_of_its_own_that_changed_since_the_training_are_said_wherever_they_judge(tmp_path, capsys):
    images, labels = tiny(40, 2, size=8)
    for split in ("train", "val", "test"):
        write_folders(tmp_path / "pics" / split, images, labels, ["cat", "dog"])
    recipe = Recipe(data=str(tmp_path / "pics"), depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    run, other = (auxnet.fit(recipe, tmp_path / name).folder for name in ("run", "other"))
    commands = ["report", str(run)], ["select", str(run)], ["evaluate", str(run)]

    def said():
        for command in commands:
            assert main(command) == 0
        return capsys.readouterr().err, (run / "report.html").read_text()

    assert not any("have changed since" in each for each in said())
    Image.fromarray(images[0]).save(tmp_path / "pics" / "val" / "cat" / "one-more.png")
    auxnet.fit(recipe, other, overwrite=True)
    told, page = said()
    words = "its validation images have changed since it was trained, and errors are of those there are now"
    assert told.count(f"auxnet: warning: {run}: {words}") == 3
    assert f"run: {words}." in page
    assert main(["report", str(run), str(other), "--out", str(tmp_path / "both.html")]) == 0
    assert "different images" not in (tmp_path / "both.html").read_text()  # both are measured anew on the same


@pytest.fixture
def apart(tmp_path):
    """The recipe of data in train/, val/ and test/ folders of their own, grey."""
    for n, split in enumerate(("train", "val", "test")):
        images, labels = tiny(20, 2, n, size=8)
        write_folders(tmp_path / "pics" / split, images[..., :1], labels, ["cat", "dog"])
    return Recipe(data=str(tmp_path / "pics"), depth=8, outputs=2, epochs=2, batch_size=8, threads=1, device="cpu")


def add(recipe, image, split="train"):
    Image.fromarray(image).save(f"{recipe.data}/{split}/cat/one-more.png")


@pytest.mark.long
def test_what_a_finished_run_says_of_itself_stays_that_of_the_images_it_was_trained_and_judged_on(apart, tmp_path):
    run = auxnet.fit(apart, tmp_path / "run").folder
    weights, figures = (run / "model.safetensors"), read_json(run / "summary.json")
    add(apart, tiny(1, 2, 7, size=8)[0][0][..., :1].squeeze())
    weights.unlink()
    with warnings.catch_warnings(action="error", category=UserWarning):
        warnings.filterwarnings("ignore", ".* images, fewer than")
        assert auxnet.fit(apart, run, resume=True).summary == figures  # of 20 training images, and not of 21
    assert weights.is_file()
    pictures = tmp_path / "pics"
    for old, new in (("train", "x"), ("test", "train"), ("x", "test")):  # now the test images are those trained on
        (pictures / old).rename(pictures / new)
    with pytest.raises(RuntimeError) as refused:
        auxnet.fit(apart, run, resume=True)
    assert str(refused.value) == (
        f"{run} is finished, and its test images have changed since it was trained: put them back, or judge it on "
        f"those there are now by `auxnet evaluate {run}`"
    )
    assert read_json(run / "summary.json") == figures
    (run / "summary.json").unlink()  # as in a run that was killed before it was evaluated
    with pytest.warns(UserWarning, match="its test images have changed since .*, and it goes on with those there are"):
        auxnet.fit(apart, run, resume=True)


def test_a_run_that_goes_on_with_other_validation_or_test_images_says_so_once(apart, tmp_path):
    def stop(progress):
        if (progress.epoch, progress.step) == (2, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(apart, tmp_path / "run", watch=stop)
    for split in ("val", "test"):
        add(apart, np.zeros((8, 8), np.uint8), split)
    words = "its validation and test images have changed since it was trained, and it goes on with those there are now"
    with pytest.warns(UserWarning, match=words):
        summary = auxnet.fit(apart, tmp_path / "run", resume=True).summary
    assert {key: summary["data"][key] for key in ("val", "test")} == {"val": 21, "test": 21}
    assert auxnet.fit(apart, tmp_path / "run", resume=True).summary == summary  # those it was judged on in the end


def test_a_run_is_judged_as_it_was_normalised_in_training_though_train_has_grown(apart, tmp_path):
    auxnet.fit(apart, tmp_path / "run")
    with opened(tmp_path / "run") as it:
        before = [x for x, _ in it.batches("val")]
    add(apart, np.full((8, 8), 255, np.uint8))
    with opened(tmp_path / "run") as it:
        kept = json.loads((tmp_path / "run" / "config.json").read_text())["preprocessing"]
        assert [list(it.dataset.mean), list(it.dataset.std)] == [kept["mean"], kept["std"]]
        assert load_data(apart).mean != it.dataset.mean
        assert all((x == y).all() for x, (y, _) in zip(before, it.batches("val"), strict=True))


def test_of_a_run_no_training_image_is_measured_again_unless_their_channels_changed(apart, tmp_path, monkeypatch):
    run = auxnet.fit(apart, tmp_path / "run").folder
    with monkeypatch.context() as patched:
        patched.setattr("auxnet.data.channel_mean_std", lambda _: pytest.fail("they were measured"))
        kept = data_of(run, apart)
    assert (kept.mean, kept.std) == (load_data(apart).mean, load_data(apart).std)
    add(apart, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(RuntimeError, match=r"was trained on grey images .* its data are coloured images"):
        data_of(run, apart)


def test_a_run_goes_on_with_the_normalisation_that_it_was_begun_with(apart, tmp_path):
    begun_with = load_data(apart)

    def stop(progress):
        if progress.done and progress.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(apart, tmp_path / "run", watch=stop)
    add(apart, np.full((8, 8), 255, np.uint8))
    auxnet.fit(apart, tmp_path / "run", resume=True)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["preprocessing"]
    assert (tuple(kept["mean"]), tuple(kept["std"])) == (begun_with.mean, begun_with.std)


def test_a_run_goes_on_with_the_very_classes_that_it_was_begun_with_or_says_which_are_others(apart, tmp_path):
    def stop(progress):
        if progress.done and progress.epoch == 1:
            raise KeyboardInterrupt

    run, pictures = tmp_path / "run", tmp_path / "pics"
    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(apart, run, watch=stop)
    for split in ("train", "val", "test"):
        (pictures / split / "cat").rename(pictures / split / "eel")  # as many, and nothing that was drawn is another
    with pytest.raises(RuntimeError, match=r"trained on other classes: its data lack 'cat' and have 'eel'; put"):
        auxnet.fit(apart, run, resume=True)
    for split in ("train", "val", "test"):
        shutil.copytree(pictures / split / "eel", pictures / split / "cat")
    with pytest.raises(RuntimeError, match=r"trained on other classes: its data also have 'eel'; put"):
        auxnet.fit(apart, run, resume=True)
    newest = max((run / "checkpoints").glob("*.ckpt"))
    state = load_state(newest)
    del state["standing"]["classes"]  # as in the earliest checkpoints
    save_state(newest, state)
    with pytest.raises(RuntimeError, match=r"does not fit the recipe: Error.* for AuxNet: size mismatch for heads"):
        auxnet.fit(apart, run, resume=True)
    state["standing"]["may_be_seen_by"] = {}  # a field that there was before the first release
    save_state(newest, state)
    with pytest.raises(RuntimeError, match=r"made by another version of auxnet \(.*'may_be_seen_by'\): go on"):
        auxnet.fit(apart, run, resume=True)


@pytest.mark.long
def test_a_run_that_began_with_one_that_may_have_seen_its_images_says_so_wherever_it_is_judged(tmp_path, capsys):
    images, labels = tiny(40, 2, size=8)
    write_folders(tmp_path / "pics", images, labels, ["cat", "dog"])
    recipe = Recipe(data=str(tmp_path / "pics"), depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    auxnet.fit(recipe, tmp_path / "a")
    with warnings.catch_warnings():  # of the very same images, a is judged as b is
        warnings.filterwarnings("error", ".* images may be among")
        same = auxnet.fit(replace(recipe, pretrained=str(tmp_path / "a")), tmp_path / "same")
    assert same.summary["data"]["may_be_seen_by"] == {}
    Image.fromarray(images[0]).save(tmp_path / "pics" / "cat" / "one-more.png")
    grown = replace(recipe, epochs=2, pretrained=str(tmp_path / "a" / "checkpoints" / "best.safetensors"))
    run = tmp_path / "b"

    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    words = (
        "its validation and test images may be among those that its weights were trained on before, in a, and errors"
    )
    with (
        pytest.warns(UserWarning, match=f"{run}: {words} .* val/ and test/ folders of their own"),
        pytest.raises(KeyboardInterrupt),
    ):
        auxnet.fit(grown, run, watch=stop)
    for weights in (run, run / "checkpoints" / "best.safetensors"):
        with pytest.raises(ValueError, match=f"{run} is not finished: `auxnet train --out {run} --resume` finishes it"):
            auxnet.fit(replace(grown, pretrained=str(weights)), tmp_path / "c")
    shutil.rmtree(tmp_path / "a")
    doubt = {"val": ["a"], "test": ["a"]}
    assert auxnet.fit(grown, run, resume=True).summary["data"]["may_be_seen_by"] == doubt
    with pytest.warns(UserWarning, match=words):
        heir = auxnet.fit(replace(grown, pretrained=str(run)), tmp_path / "c")  # of the same images as b
    assert heir.summary["data"]["may_be_seen_by"] == doubt
    for command, *more in (["select"], ["select", "--json"], ["evaluate", "--json", "--no-latency"], ["report"]):
        assert main([command, str(run), *more]) == 0
        out, err = capsys.readouterr()
        assert f"auxnet: warning: {run}: {words}" in err
        assert not more or json.loads(out)["may_be_seen_by"] == doubt
        assert more or command != "select" or "some of which it may have been trained on" in " ".join(out.split())
    assert words in (run / "report.html").read_text()
    assert words[4:] in str(auxnet.load(run).generate_model_card())


@pytest.mark.long
def test_of_images_that_an_earlier_run_held_out_only_those_drawn_anew_are_in_doubt(tmp_path, capsys):
    data = str(folder_of(tmp_path))
    recipe = Recipe(data=data, depth=8, outputs=2, epochs=1, batch_size=20, threads=1, device="cpu")
    first = auxnet.fit(recipe, tmp_path / "a")
    with pytest.warns(UserWarning, match=f"{tmp_path}/b: its validation images may be among .* before, in a, and"):
        run = auxnet.fit(replace(recipe, seed=1, pretrained=str(first)), tmp_path / "b")
    assert run.summary["data"]["may_be_seen_by"] == {"val": ["a"]}
    assert main(["select", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "which no choice has seen" in " ".join(out.split())
    assert "its validation images may be" in err


@pytest.mark.long
def test_all_runs_that_weights_come_from_are_known_though_one_between_them_had_other_classes(apart, tmp_path):
    first = auxnet.fit(apart, tmp_path / "a")
    dataset = load_data(apart)
    write_folders(tmp_path / "others", tiny(20, 2, size=8)[0][..., :1], np.arange(20) % 2, ["eel", "fox"])
    with pytest.warns(UserWarning, match="last layers of all outputs are not loaded"):
        run = auxnet.fit(replace(apart, data=str(tmp_path / "others"), pretrained=str(first)), tmp_path / "b")
    assert run.summary["data"]["may_be_seen_by"] == {}
    auxnet.load(run).save_pretrained(tmp_path / "saved")
    for weights in (run, tmp_path / "saved", run.folder / "checkpoints" / "best.safetensors"):
        earlier = earlier_runs(str(weights))
        assert [each["run"] for each in earlier] == ["a", "b"]
        assert may_be_seen_by(dataset.classes, dataset.judged_on, earlier) == {}
        other = {**dataset.judged_on, "test_sha256": "other"}
        assert may_be_seen_by(dataset.classes, other, earlier) == {"test": ["a"]}
        assert may_be_seen_by(("gnu", "hen"), {**dataset.judged_on, "val_sha256": ""}, earlier) == {}
    assert earlier_runs(str(tmp_path)) == ()


@pytest.mark.long
def test_weights_behind_a_link_are_those_of_the_run_that_holds_it_or_that_it_leads_to(tmp_path):
    recipe = Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu")
    weights = auxnet.fit(recipe, tmp_path / "a").folder / "model.safetensors"
    weights.rename(tmp_path / "abc123")  # as git-annex, DVC and the hub's cache keep files
    weights.symlink_to("../abc123")
    (tmp_path / "link.safetensors").symlink_to(weights)
    for named in (weights, tmp_path / "link.safetensors"):
        assert [each["run"] for each in earlier_runs(str(named))] == ["a"]
        heir = auxnet.fit(replace(recipe, pretrained=str(named)), tmp_path / named.stem)
        assert [each["run"] for each in heir.summary["data"]["earlier_runs"]] == ["a"]
        begun = read_recipe(heir.folder / "recipe.yaml")
        assert begun.pretrained == str(named.parent.resolve() / named.name)
        auxnet.fit(begun, tmp_path / f"{named.stem}-again")
    link = shutil.copytree(tmp_path / "link", tmp_path / "b") / "a.safetensors"
    link.symlink_to(weights)  # from within another run
    assert [each["run"] for each in earlier_runs(str(link))] == ["a"]
    (tmp_path / "config.json").write_text('{"editor": 4}')  # of something else
    assert [each["run"] for each in earlier_runs(str(tmp_path / "link.safetensors"))] == ["a"]
    (tmp_path / "gone.safetensors").symlink_to("gone.safetensors")  # a circle
    assert earlier_runs(str(tmp_path / "gone.safetensors")) == ()


def test_weights_beside_a_recipe_that_no_run_was_begun_by_are_taken_as_they_are(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("recipe.yaml", "checkpoints/w.safetensors"):
        (tmp_path / name).touch()
    assert earlier_runs(str(tmp_path / "checkpoints" / "w.safetensors")) == ()


@pytest.mark.parametrize("judging", [True, False])
def test_data_of_another_form_by_now_are_refused_with_both(judging, apart, tmp_path):
    run = auxnet.fit(replace(apart, epochs=1), tmp_path / "run").folder
    add(apart, np.zeros((8, 8, 3), np.uint8), "test")
    with pytest.raises(RuntimeError) as refused:
        data_of(run, apart, judging)
    assert str(refused.value) == (
        f"{run} was trained on grey images of 8x8 pixels, and its data are coloured images of 8x8 pixels by now: "
        "put the data back, or train again"
    )


def test_a_project_that_moved_with_its_data_is_still_found(tmp_path, monkeypatch):
    home, moved = tmp_path / "home", tmp_path / "moved"
    images, labels = tiny(60, 2, size=8)
    write_folders(home / "pics", images, labels, ["cat", "dog"])
    recipe = Recipe(data="pics", depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    monkeypatch.chdir(home)
    auxnet.fit(recipe, "run")
    home.rename(moved)
    monkeypatch.chdir(moved)
    assert auxnet.select("run").output
    assert auxnet.fit(recipe, "run", resume=True).summary
    monkeypatch.chdir(tmp_path)
    assert auxnet.select(moved / "run", data_dir=str(moved)).output


@pytest.mark.parametrize("data_dir", ["../all", None])
def test_data_below_data_dir_are_the_runs_wherever_it_is_opened_and_found_where_that_moved(
    data_dir, tmp_path, monkeypatch
):
    images, labels = tiny(60, 2, size=8)
    write_folders(tmp_path / "all" / "my" / "pics", images, labels, ["cat", "dog"])
    write_folders(tmp_path / "b" / "my" / "pics", 255 - images, labels, ["cat", "dog"])  # of that name, and other data
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    if data_dir is None:
        monkeypatch.setenv("AUXNET_DATA", str(tmp_path / "all"))
    recipe = Recipe(data="my/pics", data_dir=data_dir, depth=8, outputs=2, epochs=1, batch_size=16, device="cpu")
    run = auxnet.fit(recipe, tmp_path / "run").folder
    monkeypatch.delenv("AUXNET_DATA", raising=False)
    monkeypatch.chdir(tmp_path / "b")
    seen = auxnet.fit(read_run_recipe(run), run, resume=True).summary["data"]["val_sha256"]
    with opened(run) as it:
        assert it.recipe.data == str(tmp_path / "all" / "my" / "pics")
        assert it.dataset.val_sha256() == seen
    (tmp_path / "new").mkdir()
    for move in (shutil.copytree, shutil.move):
        shutil.rmtree(tmp_path / "new")
        move(tmp_path / "all", tmp_path / "new")
        with opened(run, data_dir="../new") as it:
            assert it.recipe.data == str(tmp_path / "new" / "my" / "pics")
            assert it.dataset.val_sha256() == seen


@pytest.mark.long
def test_a_resume_that_leaves_out_more_images_keeps_where_the_data_lay_though_they_have_moved(apart, tmp_path):
    run = auxnet.fit(replace(apart, epochs=1), tmp_path / "run").folder
    recorded = read_recipe(run / "recipe.yaml")
    (tmp_path / "new").mkdir()
    for old, new in (("pics", "new/pics"), ("new/pics", "pics")):
        (tmp_path / old).rename(tmp_path / new)
        moved = replace(read_run_recipe(run), data_dir=str(tmp_path / "new"), max_corrupt=3)
        auxnet.fit(moved, run, resume=True)
        assert read_recipe(run / "recipe.yaml") == replace(recorded, max_corrupt=3)
    assert auxnet.select(run).output


@pytest.mark.long
def test_a_folder_of_data_that_was_not_used_is_not_asked_for(tmp_path, monkeypatch):
    (tmp_path / "unrelated").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUXNET_DATA", str(tmp_path / "unrelated"))
    recipe = Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu")
    for run in ("digits/a", "digits/b"):  # a folder of that name is not the data
        auxnet.fit(recipe, run)
    (tmp_path / "unrelated").rmdir()
    monkeypatch.delenv("AUXNET_DATA")
    for run in ("digits/a", "digits/b"):
        assert auxnet.select(run).output


def test_a_data_folder_that_moved_is_found_by_the_variable(tmp_path, monkeypatch):
    for split in ("train", "test"):
        write_parquet(tmp_path / "a" / "cifar10" / f"{split}-0.parquet", *tiny(40, 10), CIFAR10)
    recipe = Recipe(data="cifar10", depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    monkeypatch.setenv("AUXNET_DATA", str(tmp_path / "a"))
    auxnet.fit(recipe, tmp_path / "run")
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.setenv("AUXNET_DATA", str(tmp_path / "b"))
    assert auxnet.select(tmp_path / "run").output


def test_a_wrong_path_is_never_taken_for_another_folder_of_that_name(tmp_path, monkeypatch):
    write_folders(tmp_path / "pics", *tiny(40, 2, size=8), ["cat", "dog"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'/nowhere/pics': there is no such folder"):
        load_data(Recipe(data="/nowhere/pics", data_dir=str(tmp_path)))


def test_a_data_dir_that_is_given_wins_over_where_the_data_lay_in_training(tmp_path, capsys):
    pics, other = tmp_path / "cat", tmp_path / "other"  # called like one of the classes, which is no matter
    write_folders(pics, *tiny(40, 2, size=8), ["cat", "dog"])
    write_folders(other / "some", *tiny(2, 1, size=8), ["dog"])  # one of the classes is not the data
    recipe = Recipe(data=str(pics), depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    run = auxnet.fit(recipe, tmp_path / "run").folder
    for copy in (other / "cat", tmp_path / "renamed"):  # data_dir may hold the folder, or be it
        shutil.copytree(pics, copy)
    for data_dir, folder in ((other, other / "cat"), (tmp_path / "renamed", tmp_path / "renamed")):
        with opened(run, data_dir=str(data_dir)) as it:
            assert it.recipe.data == str(folder)
    words = [["select"], ["evaluate"], ["exits"], ["diagnose"], ["report"]]
    words += [["export", "--format", "torch", "--out", str(tmp_path / "a.pt2")]]
    for command, *more in words:  # never those of training in place of what was asked for
        assert main([command, str(run), *more, "--data-dir", str(other / "some")]) == 2
        said = capsys.readouterr().err
        assert f"{other}/some holds neither cat nor folders of all the classes" in said
        assert f"and {pics}, on which it was trained, is not looked at" in said


@pytest.mark.parametrize(
    ("there", "name", "found"),
    [
        ("train/cat", "pics", ""),  # its splits
        ("train/cat", "train", "train"),  # one that was trained on by itself
        ("train-0.parquet", "pics", ""),
        ("any.parquet", "pics", ""),  # the only one
        ("data/train-0.parquet", "pics", ""),
        ("Train.parquet", "pics", ""),
        ("train-00001-of-00002.parquet", "pics", ""),  # and which are missing is said once they are read
        ("pics/train-0.parquet", "pics", "pics"),
    ],
)
def test_a_data_dir_may_hold_the_data_by_its_name_or_else_their_splits(there, name, found, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"classes": ["cat"]}))
    place = tmp_path / "root" / there
    place.parent.mkdir(parents=True)
    place.touch() if place.suffix else place.mkdir()
    recipe = with_data_in(str(tmp_path / "root"), tmp_path, Recipe(data=f"/gone/{name}"))
    assert recipe.data == str(tmp_path / "root" / found)


@pytest.mark.long
def test_of_several_runs_those_whose_data_a_data_dir_does_not_hold_are_shown_on_their_own(tmp_path, capsys):
    write_folders(tmp_path / "pics", *tiny(40, 2, size=8), ["cat", "dog"])
    recipe = Recipe(data=str(tmp_path / "pics"), depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    auxnet.fit(recipe, tmp_path / "a")
    for name in ("b", "c"):  # as if trained on copies, of which c's is gone
        shutil.copytree(tmp_path / "a", tmp_path / name)
        write_recipe(replace(recipe, data=f"{tmp_path}/{name}-pics"), tmp_path / name / "recipe.yaml", sealed=True)
    shutil.copytree(tmp_path / "pics", tmp_path / "b-pics")
    (tmp_path / "new").mkdir()
    (tmp_path / "pics").rename(tmp_path / "new" / "pics")
    several = [*(str(tmp_path / name) for name in "abc"), "--data-dir", str(tmp_path / "new"), "--out"]
    assert main(["report", *several, str(tmp_path / "page.html")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("not shown of") == 1
    assert "not shown of c: the images of ./c-pics are not available" in told
    assert main(["diagnose", *several, str(tmp_path / "page"), "--no-probes", "--images", "16"]) == 0
    assert "c is not shown: data './c-pics': there is no such folder" in capsys.readouterr().err
    drawn = json.loads((tmp_path / "page" / "diagnosis.json").read_text())["runs"]
    assert [run["name"] for run in drawn] == ["a", "b"]
    assert main(["diagnose", *several[2:], str(tmp_path / "page")]) == 2  # of none


def test_of_several_runs_a_named_set_that_a_data_dir_lacks_is_looked_for_where_it_lay(tmp_path):
    old, new = (str(tmp_path / name) for name in ("old", "new"))
    for split in ("train", "test"):
        write_parquet(tmp_path / "old" / "cifar10" / f"{split}-0.parquet", *tiny(10, 10), CIFAR10)
    (tmp_path / "new").mkdir()
    runs = [tmp_path / name for name in ("a", "b")]
    for run, data in zip(runs, ("cifar10", "digits"), strict=True):
        run.mkdir()
        write_recipe(Recipe(data=data, data_dir=old), run / "recipe.yaml")
    assert data_dirs(runs, new) == [None, new]
    assert data_dirs(runs, old) == [old, old]
    assert data_dirs(runs[:1], new) == [new]
    assert data_dirs(runs, None) == [None, None]


def test_data_that_are_missing_are_told_with_the_path_that_the_run_recorded(tmp_path, monkeypatch):
    pics = tmp_path / "home" / "pics"
    write_folders(pics, *tiny(40, 2, size=8), ["cat", "dog"])
    recipe = Recipe(data=str(pics), depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu")
    run = auxnet.fit(recipe, tmp_path / "run").folder
    pics.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no such folder.*; in training they were in {pics}$"):
        auxnet.select(run)


def test_a_run_whose_data_folder_was_renamed_goes_on_once_it_is_told_where_they_are(tmp_path, capsys):
    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    pics, run = tmp_path / "pics", tmp_path / "run"
    write_folders(pics, *tiny(40, 2, size=8), ["cat", "dog"])
    write_folders(tmp_path / "other", *tiny(40, 2, size=8), ["cat", "owl"])
    recipe = Recipe(data=str(pics), depth=8, outputs=2, epochs=2, batch_size=16, threads=1, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(recipe, run, watch=stop)
    pics.rename(moved := tmp_path / "photographs")
    go_on = ["train", "--out", str(run), "--resume"]
    for words, said in (
        ([], f"there is no such folder or file in .*; in training they were in {pics}"),
        (["--data", str(moved)], f"begun with data='{pics}', .*; data that have moved are found by data_dir"),
        (["--data-dir", str(run)], f"and {pics}, on which it was trained, is not looked at"),
        (["--data-dir", str(tmp_path / "other")], f"holds neither pics nor folders of all the classes of {run}"),
    ):
        assert main([*go_on, *words]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert main([*go_on, "--data-dir", str(moved)]) == 0
    assert read_json(run / "summary.json")["data"]["name"] == "photographs"
    assert read_recipe(run / "recipe.yaml").data == str(pics)
