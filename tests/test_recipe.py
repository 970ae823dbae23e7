"""The recipe: one schema for files and flags, strict and complete."""

import ast
import inspect
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from auxnet import sections
from auxnet.cli.arguments import parse
from auxnet.cli.train import Train
from auxnet.recipe import Recipe, kinds, read_recipe, recipe_from, words_of, write_recipe


def test_a_recipe_saved_and_read_is_the_same(tmp_path):
    recipe = Recipe(at=(7, 13), clip=1.0, milestones=(0.5,), method="joint", data="some: folder #1", lr=1e-7)
    write_recipe(recipe, tmp_path / "r.yaml")
    assert read_recipe(tmp_path / "r.yaml") == recipe
    assert list(yaml.safe_load((tmp_path / "r.yaml").read_text())) == [f.name for f in fields(Recipe)]  # complete


def test_the_guide_shows_a_recipe_file():
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
    content = yaml.safe_load(guide.partition("```yaml\n")[2].partition("```")[0])
    assert recipe_from(content).depth == 18


def test_every_field_has_a_help_text():
    parts = [part for part in ast.parse(inspect.getsource(sections)).body if isinstance(part, ast.ClassDef)]
    body = [line for part in parts for line in part.body]
    told = [a for a, b in pairwise(body) if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)]
    assert [a.target.id for a in told] == [field.name for field in fields(Recipe)]


def test_yaml_numbers_serve_as_people_write_them(tmp_path):
    (tmp_path / "r.yaml").write_text("lr: 1e-2\nweight_decay: 0\nat: [7, 13]\nclip: null\n")
    recipe = read_recipe(tmp_path / "r.yaml")
    assert (recipe.lr, recipe.weight_decay, recipe.at, recipe.clip) == (0.01, 0.0, (7, 13), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "there is no recipe key 'epoch'; perhaps you meant 'epochs'"),
        ("zzz: 3", "there is no recipe key 'zzz'$"),
        ("depth: twenty", "depth must be a whole number, got 'twenty'"),
        ("depth: 20.5", "depth must be a whole number"),
        ("depth: true", "depth must be a whole number"),
        ("nesterov: 1", "nesterov must be true or false, got 1"),
        ("at: 7", "at must be a list of numbers or none, got 7"),
        ("at: [a]", "at must be a whole number"),
        ("method: jointly", "method must be one of joint, pairwise, multiway, got 'jointly'"),
        ("- 1", "must hold 'key: value' lines, got a list"),
        ("a: [", "is not a YAML recipe"),
        ("lr: .nan", "lr must be above 0 and finite"),
        ("lr: -1", "lr must be above 0"),
        ("gamma: .inf", "gamma must be 0 or more and finite, got inf"),
        ("gamma: -1", "gamma must be 0 or more"),
        ("floor: 2", r"floor must be in 0\.\.1, got 2"),
        ("epochs: 0", "epochs must be 1 or more"),
        ("batch_size: 0", "batch_size must be 1 or more"),
        ("momentum: 1", "momentum must be 0 or more and below 1"),
        ("milestones: [0.5, 2]", "milestones must be shares of the run between 0 and 1, got 0.5 2.0"),
        ("val_fraction: 0", "val_fraction must be above 0"),
        ("clip: 0", "clip must be above 0"),
        ("label_smoothing: 1", "label_smoothing must be"),
        (f"seed: {2**63}", r"seed must be 0 or more and below 2\*\*63, got 9223372036854775808"),
        ("threads: 0", "threads must be 1 or more"),
        (f"threads: {2**31}", r"threads must be below 2\*\*31, got 2147483648"),
        (f"batch_size: {10**20}", r"batch_size must be below 2\*\*31, got 1"),
        ("workers: -1", "workers must be 0 or more, got -1"),
        ("max_corrupt: -1", "max_corrupt must be 0 or more, got -1"),
        ("stream: yes", "stream must be one of auto, always, never, got True"),
        ("image_size: 0", "image_size must be 4 to 4096 pixels, got 0"),
        ("augment: cutout", "augment must be one of default, none, .* got 'cutout'"),
        ("train_images: 0", "train_images must be 1 or more, got 0"),
        ("alone: 0", "alone must be an output, from 1 on, got 0"),
        ("method: joint\nstate: shared", "state='shared' is multiway's, but method='joint'"),
        ("method: joint\nmode: fused", "mode='fused' is multiway's, but method='joint'"),
        ("warmup: 30", "warmup must be 0 or more and below epochs=30, got 30"),
        ("weights: []", "weights must be one or more finite numbers of 0 or more, got none"),
        ("weights: [-1]", "weights must be one or more finite numbers of 0 or more"),
        ("weights: 0.3", "weights must be a list of numbers or none, got 0.3"),
        ("weights: [0.3]\ngamma: 1", "gamma=1.0 has no meaning beside weights, which are given: leave one of them out"),
        ("discard_after: 0", "discard_after must be a share of the run between 0 and 1, or a number of epochs, got 0"),
        ("discard_after: 1.5", "discard_after must be a share of the run between 0 and 1, or a number of epochs"),
        ("distill: 2", "distill must be in 0..1"),
        ("method: pairwise\ndistill: 0.5", "distill=0.5 has no meaning beside method='pairwise'"),
        ("temperature: 0", "temperature must be above 0"),
        ("loss: square_hinge\nmixup: 1", "mixup=1.0 has no meaning beside loss='square_hinge'"),
        ("mixup: -1", "mixup must be 0 or more"),
        ("cutmix: .inf", "cutmix must be 0 or more and finite"),
        ("ema: 1", "ema must be between 0 and 1"),
        ("schedule: cosine\nmilestones: [0.5]", "has no meaning beside schedule='cosine'"),
        ("fit: pad", "fit='pad' is how images are brought to image_size, and there is none: give image_size"),
        ("placement: blocks\noutputs: 3", "outputs=3 has no meaning beside placement='blocks'"),
        ("!!python/object/apply:os.system ['true']", "is not a YAML recipe"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_recipe(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no recipe file .*none\.yaml"):
        read_recipe(tmp_path / "none.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a YAML recipe"):
        read_recipe(tmp_path / "bad.yaml")


def test_an_empty_file_is_the_default_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text("")
    assert read_recipe(tmp_path / "r.yaml") == Recipe() == recipe_from({})
    assert replace(Recipe(), depth=56).depth == 56


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("lr: 0.1\ndepth: 8\nlr: 0.001\n")
    with pytest.raises(ValueError, match=r"r\.yaml is not a YAML recipe: lr is given twice"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("number", ["010", "-010", "1:30", "0_7", "1:30.5"])
def test_a_number_of_another_base_is_refused(tmp_path, number):
    """YAML 1.1 reads them as 8, -8, 90, 7 and 90.5."""
    (tmp_path / "r.yaml").write_text(f"lr: {number}\n")
    with pytest.raises(ValueError, match=rf"{number} is a number of another base in YAML: write it plainly"):
        read_recipe(tmp_path / "r.yaml")


def test_plain_numbers_are_read(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "lr: 0.1\nepochs: 10\nseed: 0\nweight_decay: 5e-4\nmomentum: 00.0\nclip: 09.5\nwarmup: 0x1\n"
    )
    read = Recipe(lr=0.1, epochs=10, weight_decay=5e-4, momentum=0.0, clip=9.5, warmup=1)
    assert read_recipe(tmp_path / "r.yaml") == read


def test_none_in_a_file_is_what_it_is_as_a_flag(tmp_path):
    fields = ("clip", "outputs", "at", "weights", "ema", "threads", "cuts", "data_dir", "pretrained", "backbone")
    (tmp_path / "r.yaml").write_text("freeze: none\nstep_scale: none\n" + "".join(f"{name}: none\n" for name in fields))
    read = read_recipe(tmp_path / "r.yaml")
    assert [getattr(read, name) for name in fields] == [None] * len(fields)
    assert (read.freeze, read.step_scale) == ("none", "none")


def test_paths_and_numbers_of_numpy_and_torch_serve():
    given = Recipe(data=Path("pics"), lr=np.float64(0.05), epochs=np.int64(1), weights=torch.tensor([0.25, 1.0]))
    assert given == Recipe(data="pics", lr=0.05, epochs=1, weights=(0.25, 1.0))
    assert type(given.epochs) is int


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.1, "0.1"),
        (0.123456789, "0.123456789"),
        (2.0, "2.0"),
        (None, "none"),
        (True, "True"),
        ((0.4, 0.6), "0.4 0.6"),
        ([0.4, 0.60001], "0.4 0.60001"),  # a list, as JSON has it
        (("layer1", "layer2"), "layer1 layer2"),
        ((), "none"),
        ("crop+flip", "crop+flip"),
    ],
)
def test_a_value_in_words_is_whole(value, words):
    assert words_of(value) == words


def test_the_kinds_of_a_field_are_told_one_by_one():
    assert set(kinds()) == {field.name for field in fields(Recipe)}
    assert kinds()["lr"] == (float,)
    assert kinds()["clip"] == (float, type(None))
    assert kinds()["cuts"] == (int, tuple[str, ...], type(None))


def test_a_tab_in_a_file_is_told_what_to_give_in_its_place(tmp_path):
    (tmp_path / "r.yaml").write_text("depth:\n\t20\n")
    with pytest.raises(ValueError, match=r"r\.yaml is not a YAML recipe: .*: give spaces in its place$"):
        read_recipe(tmp_path / "r.yaml")


def test_a_list_without_items_is_read_as_it_is_written(tmp_path):
    recipe = Recipe(milestones=())
    assert Recipe(milestones=words_of(recipe.milestones)) == recipe
    (tmp_path / "r.yaml").write_text(f"milestones: {words_of(recipe.milestones)}\n")
    assert read_recipe(tmp_path / "r.yaml") == recipe
    assert parse(Train, ["--milestones", words_of(recipe.milestones)]).recipe == recipe
