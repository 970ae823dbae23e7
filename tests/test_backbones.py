"""A backbone by its name: trained, resumed, rebuilt and shipped as the built-in nets are; nothing imported unasked."""

import json
import random
import shutil
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import auxnet
from auxnet import resuming
from auxnet.answers import check_answers, noted
from auxnet.backbones import named
from auxnet.backbones.described import cuts_of
from auxnet.backbones.named import build_backbone
from auxnet.build import build
from auxnet.cli import main
from auxnet.data import load_data
from auxnet.latency import latencies
from auxnet.machine import in_channels_last
from auxnet.recipe import read_recipe, write_recipe
from auxnet.sweeps.space import domain_of, written
from auxnet.tensors import read_about, save_tensors
from test_cli import fails

CODE = """
import random
from collections import OrderedDict

import numpy as np
import torch
from torch import nn


def stage(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


def build(num_classes=10, in_channels=3):
    parts = {"stem": stage(in_channels, 4), "middle": stage(4, 8), "top": stage(8, 8)}
    end = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "drop": nn.Dropout(0.2)}
    return nn.Sequential(OrderedDict(parts | end | {"fc": nn.Linear(8, num_classes)}))


def normed(num_classes, in_channels=3):
    net = build(num_classes, in_channels)
    net.middle[1] = nn.InstanceNorm2d(8, track_running_stats=True)
    return net


class Deciding(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def untraceable(num_classes):
    return Deciding(build(num_classes))


def in_parts(num_classes):
    parts = build(num_classes)
    first, second = Deciding(parts.stem), Deciding(parts.middle, parts.top)
    return nn.Sequential(OrderedDict(first=first, second=second, classifier=parts[3:]))


class Drawing(nn.Module):
    def forward(self, x):
        scale = random.random() + np.random.rand() if self.training and x.sum() > 0 else 1.0
        return scale * x


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("scale", torch.ones(1).expand(8), persistent=False)

    def forward(self, x):
        return (x.mean((2, 3)) * self.scale)[:, :, None, None] + x


def around(middle, num_classes):
    parts = build(num_classes)
    first = nn.Sequential(parts.stem, parts.middle, middle)
    return nn.Sequential(OrderedDict(first=first, second=parts.top, classifier=parts[3:]))


def of_numpy(num_classes=10, in_channels=3):
    net = build(num_classes, in_channels)
    nn.init.constant_(net.stem[0].weight, np.random.rand() + random.random())
    return net


def drawing(num_classes):
    return around(Drawing(), num_classes)


def masked(num_classes):
    return around(Masked(), num_classes)


class Solid(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x[:, None])[:, 0]


def solid(num_classes):
    return around(Solid(), num_classes)


class Moving(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.shift += 1.0
        return x * (1 + self.shift)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.random = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.random)


def moving(num_classes):
    return around(Moving(), num_classes)


def noisy(num_classes):
    return around(Noisy(), num_classes)


def of_five_classes():
    return build(5)


def nothing():
    return None


def broken(num_classes):
    raise KeyError("weights")


number = 3
"""

TRANSFORMS = SimpleNamespace(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
OF_TORCHVISION = SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: TRANSFORMS))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a module of the user's own, small pictures of three classes, and a run."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "own_nets.py").write_text(CODE)
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cow")):
        for split, count in (("train", 12), ("test", 4)):
            (folder / "pics" / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = (rng.integers(0, 100, (16, 16, 3)) + 70 * label).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "pics" / split / name / f"{n}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(train("run", "--backbone", "own_nets:build", "--cuts", "stem", "middle")) == 0
    return folder


def train(out, *words):
    fast = ["--data", "pics", "--epochs", "2", "--batch-size", "9", "--threads", "1", "--val-fraction", "0.3"]
    return ["train", *fast, "--out", str(out), *words]


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def weights_of(run):
    return load_file(f"{run}/model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_rebuilt_from_what_it_saved():
    torch.manual_seed(1)
    sys.path.insert(0, ".")
    try:
        import own_nets
    finally:
        sys.path.remove(".")
    net = auxnet.load("run")
    by_hand = auxnet.attach(own_nets.build(3), ("stem", "middle"), example=torch.zeros(1, 3, 16, 16)).eval()
    by_hand.load_state_dict(weights_of("run"))
    images = torch.randn(2, 3, 16, 16)
    assert all(map(torch.equal, net(images), by_hand(images)))
    assert (net.depths, net.classes) == (by_hand.depths, ("ant", "bee", "cow"))
    assert all(row["depth"] == d for row, d in zip(net.source["table"], net.depths, strict=True))


@pytest.mark.long
def test_cuts_that_were_searched_for_are_saved_as_names():
    assert main(train("even", "--backbone", "own_nets:build", "--cuts", "2", "--epochs", "1")) == 0
    network = json.loads(Path("even/config.json").read_text())["network"]
    assert network["cuts"] == ["stem", "middle"]
    assert network["image_size"] == [16, 16]
    assert read_recipe("even/recipe.yaml").cuts == 2


@pytest.mark.parametrize("name", ["build", "of_numpy"])
def test_the_first_training_of_a_process_begins_with_the_weights_of_any_later_one(name):
    recipe = auxnet.Recipe(data="digits", backbone=f"own_nets:{name}", cuts=2)
    dataset = load_data(recipe)
    cuts_of.cache_clear()  # as in a new process, where the cuts are not searched for yet
    first, second = (build(recipe, dataset, torch.device("cpu"))[0].state_dict() for _ in range(2))
    assert same(first, second)


def test_a_backbone_that_cannot_be_traced_is_given_in_parts(tmp_path, capsys):
    words = train(tmp_path / "bad", "--backbone", "own_nets:untraceable", "--cuts", "1")
    fails(capsys, words, 2, "nn.Sequential(OrderedDict(first=..., second=..., classifier=...)), and --cuts first")
    words = ["--threads", "1", "--batch-size", "9", "--backbone", "own_nets:in_parts", "--cuts", "first"]
    assert main(["plan", "--data", "pics", "--val-fraction", "0.3", *words]) == 0


def test_plan_shows_the_outputs_that_a_training_has(capsys):
    words = ["--data", "pics", "--backbone", "own_nets:build", "--cuts", "stem", "--gamma", "1", "--threads", "1"]
    assert main(["plan", *words]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["2"])]
    assert [(row[0], row[1], row[4]) for row in rows] == [("1", "1", "0.2500"), ("2", "4", "1.0000")]
    assert "blocks" not in out


def test_code_that_changes_under_a_run_is_told_by_what_the_net_answers(tmp_path, monkeypatch, capsys):
    """The same parameters, by name and shape, in another net: no command judges, ships or resumes that."""
    shutil.copytree("run", tmp_path / "run")

    def stop(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(read_recipe("run/recipe.yaml"), tmp_path / "stopped", save_every=0, watch=stop)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.syspath_prepend(".")
    import own_nets

    def stage(a, b):
        conv = nn.Conv2d(a, b, 3, 2, 1, bias=False, padding_mode="circular")
        return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU())

    monkeypatch.setattr(own_nets, "stage", stage)
    cuts_of.cache_clear()
    run, complaint = str(tmp_path / "run"), "the net answers otherwise than when"
    for words in (
        ["select", run],
        ["evaluate", run, "--which", "best"],
        ["export", run, "--output", "1", "--format", "torch", "--out", str(tmp_path / "net.pt2")],
        ["predict", run, "pics/test/ant/0.png"],
        ["train", "--out", run, "--resume"],
        ["train", "--out", str(tmp_path / "stopped"), "--resume"],
    ):
        assert main(words) == 1
        assert complaint in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["moving", pytest.param("noisy", marks=pytest.mark.long)])
def test_a_net_that_keeps_more_than_weights_is_trained_warned_of_and_loaded_all_the_same(name, tmp_path):
    recipe = replace(read_recipe("run/recipe.yaml"), backbone=f"own_nets:{name}", cuts=("first",), epochs=1)
    with pytest.warns(UserWarning, match="answers otherwise than it was trained: it keeps more than weights"):
        auxnet.fit(recipe, tmp_path / "a")
    assert "answers" not in read_about(tmp_path / "a" / "model.safetensors")
    assert auxnet.load(tmp_path / "a").outputs == 2
    assert main(["train", "--out", str(tmp_path / "a"), "--resume"]) == 0


def test_a_resume_with_nothing_left_to_train_leaves_the_file_of_weights_as_it_is(tmp_path):
    """Others know its SHA-256; what is noted beside the weights may differ in a digit on another machine."""
    shutil.copytree("run", tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    save_tensors(weights, load_file(weights))  # as before answers were noted
    before = weights.read_bytes()
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert weights.read_bytes() == before
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert same(weights_of(tmp_path / "run"), weights_of("run"))


def test_answers_are_the_same_under_any_default_type_and_device():
    note = read_about(Path("run/model.safetensors"))["answers"]
    try:
        for default in (torch.float64, torch.float32):
            torch.set_default_dtype(default)
            with torch.device("meta"):
                check_answers(auxnet.load("run"), note, Path("here"))
    finally:
        torch.set_default_dtype(torch.float32)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class ForGpusAlone(nn.Module):
    def forward(self, x):
        raise NotImplementedError


def small(end):
    torch.manual_seed(0)
    return auxnet.AuxNet([nn.Sequential(nn.Flatten(), nn.Linear(12, 4))], [nn.Sequential(end, nn.Linear(4, 30))], (2,))


def test_answers_are_noted_where_they_can_be_compared_later_and_take_no_random_numbers():
    nets = [small(end) for end in (nn.Dropout(), Noise(), nn.BatchNorm1d(4), ForGpusAlone())]
    nets[2].heads[0][0].running_var.fill_(torch.nan)
    before = torch.get_rng_state()
    note, of_noise, *nothing = [noted(net, (3, 2, 2)) for net in nets]
    assert torch.equal(torch.get_rng_state(), before)
    assert nothing == [None, None]
    torch.randn(3)
    check_answers(nets[1], of_noise, Path("here"))
    assert len(note) < 300  # of 30 logits, the first 8
    assert nets[0].training
    check_answers(nets[0].double(), note, Path("here"))
    with pytest.raises(RuntimeError, match=r"answers otherwise than when here was saved \(by [\d.]+ in a logit\)"):
        check_answers(small(nn.Tanh()), note, Path("here"))
    with pytest.raises(RuntimeError, match=r"\(it fails: NotImplementedError\)"):
        check_answers(nets[3], note, Path("here"))
    huge = '{"image": [3, 1000000, 1000000], "logits": [[1.0]]}'
    for damaged in (huge, "", "[]", '{"image": [3, 2, 2]}', '{"image": [3, 2, 2], "logits": [[1, "a"]]}', 3):
        check_answers(nets[0], damaged, Path("here"))


def test_resume_equals_an_uninterrupted_run_bit_for_bit():
    recipe = read_recipe("run/recipe.yaml")

    def stop(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(recipe, "stopped", save_every=0, watch=stop)
    assert main(["train", "--out", "stopped", "--resume"]) == 0
    assert same(weights_of("stopped"), weights_of("run"))


def test_what_a_net_draws_by_python_and_by_numpy_follows_from_the_seed_too(tmp_path):
    recipe = replace(read_recipe("run/recipe.yaml"), backbone="own_nets:drawing", cuts=("first",), epochs=1)

    def stop(progress):
        if progress.step == 2:  # the first was saved
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(recipe, tmp_path / "a", save_every=0, watch=stop)
    random.random(), np.random.rand()
    found = random.getstate(), np.random.get_state()[2]
    for folder, resume in (("a", True), ("b", False)):
        auxnet.fit(recipe, tmp_path / folder, resume=resume)
    assert (random.getstate(), np.random.get_state()[2]) == found
    assert same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))


def test_buffers_that_are_not_finite_or_share_their_memory_are_trained_with_and_saved(tmp_path):
    recipe = replace(read_recipe("run/recipe.yaml"), backbone="own_nets:masked", cuts=("first",), epochs=1)
    auxnet.fit(recipe, tmp_path / "a")
    assert weights_of(tmp_path / "a")["segments.0.first.2.mask"][0, 1] == -torch.inf


@pytest.mark.long
def test_parameters_of_five_dimensions_are_planned_trained_and_timed_with(tmp_path):
    words = ["--backbone", "own_nets:solid", "--cuts", "first", "--epochs", "1"]
    assert main(["plan", "--data", "pics", "--val-fraction", "0.3", *words]) == 0
    assert main(train(tmp_path / "a", *words)) == 0
    net = auxnet.load(tmp_path / "a")
    assert [each.output for each in latencies(net, (3, 16, 16), (1,), seconds=0.01)] == [1, 2]
    (conv, *_), _, solid = in_channels_last(net).segments[0].first
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert solid.conv.weight.is_contiguous()


def test_what_follows_a_training_takes_such_a_run(capsys, onnx_tables):
    picture = "pics/test/cow/0.png"
    for words in (
        ["evaluate", "run"],
        ["select", "run", "--max-params", "1000"],
        ["exits", "run", "--max-error-increase", "49"],
        ["export", "run", "--output", "2", "--out", "two.onnx"],
        ["export", "run", "--output", "1", "--format", "torch", "--out", "one.pt2"],
        ["report", "run"],
        ["predict", "run", picture],
        ["predict", "two.onnx", picture],
    ):
        assert main(words) == 0, words
    assert capsys.readouterr().out.count("cow") > 1


def test_pretrained_weights_are_taken_and_a_classifier_of_other_classes_is_replaced():
    theirs = build_backbone("own_nets:build", 7)
    save_file(theirs.state_dict(), "seven.safetensors")
    for name in ("own_nets:build", "own_nets:of_five_classes"):
        file = "seven.safetensors"
        if name.endswith("classes"):
            theirs, file = build_backbone(name, 3), "five.safetensors"
            save_file(theirs.state_dict(), file)
        recipe = replace(read_recipe("run/recipe.yaml"), backbone=name, pretrained=file, lr=1e-12, epochs=1)
        with warnings.catch_warnings(record=True) as told:
            run = auxnet.fit(recipe, f"from-{file}")
        if file == "seven.safetensors":
            assert "is of 7 classes, not 3: the last layer of the classifier is not loaded" in str(told[0].message)
        taken = run.net.state_dict()
        for part, segment in (("stem", 0), ("middle", 1), ("top", 2)):
            weight = theirs.get_submodule(part)[0].weight
            assert torch.allclose(taken[f"segments.{segment}.{part}.0.weight"], weight, atol=1e-6)
        assert [len(logits[0]) for logits in run.net(torch.zeros(1, 3, 16, 16))] == [3, 3, 3]
    shutil.move("five.safetensors", "moved.safetensors")
    assert main(["train", "--out", "from-five.safetensors", "--resume"]) == 0  # its weights are in the checkpoint


@pytest.mark.enough(2)
@pytest.mark.parametrize("source", ["run", "timm", "torchvision", "own"])
def test_pretrained_weights_see_pixels_normalised_as_those_they_were_trained_on(source, place, tmp_path, monkeypatch):
    libraries = {
        "timm": {"get_pretrained_cfg": lambda name: SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.25))},
        "torchvision": {"models": SimpleNamespace(get_model_weights=lambda name: OF_TORCHVISION)},
    }
    for name, content in libraries.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    recipe = replace(read_recipe("run/recipe.yaml"), epochs=1, augment="none", data="darker", pretrained="run")
    own = load_data(replace(recipe, data=darker("darker")))
    seen = json.loads(Path("run/config.json").read_text())["preprocessing"]
    mean, std = {
        "run": (seen["mean"], seen["std"]),
        "timm": ((127.5, 102, 76.5), (127.5, 51, 63.75)),
        "torchvision": ((51, 102, 153), (25.5, 51, 76.5)),
        "own": (own.mean, own.std),
    }[source]
    if source != "run":
        theirs = build_backbone("own_nets:build", 3)
        save_file(theirs.state_dict(), tmp_path / "w.safetensors")
        recipe = replace(recipe, pretrained=str(tmp_path / "w.safetensors"))
    if source in libraries:  # their models are our own here
        monkeypatch.setattr(named, f"_{source}", lambda name, model, channels: lambda classes: theirs)
        recipe = replace(recipe, backbone=f"{source}:any")
    given = []
    with register_module_forward_pre_hook(lambda module, arguments: given.extend(arguments)):
        run = auxnet.fit(recipe, tmp_path / "run")
    pixels = own.test.images.permute(0, 3, 1, 2)
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    images = [each for each in given if isinstance(each, torch.Tensor) and each.shape == expected.shape]
    assert any(torch.allclose(each, expected, atol=1e-5) for each in images if each.device.type == "cpu")
    again = auxnet.fit(recipe, tmp_path / "run", resume=True)
    assert again.summary["last"] == run.summary["last"]


def darker(folder):
    """The pictures of the place, each pixel half as bright."""
    for file in Path("pics").rglob("*.png"):
        copy = Path(folder) / file.relative_to("pics")
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(file)) // 2).save(copy)
    return folder


def test_a_moving_average_has_the_buffers_of_the_net_where_they_are_not_measured_anew(tmp_path):
    recipe = replace(read_recipe("run/recipe.yaml"), backbone="own_nets:normed", ema=0.9, epochs=1)
    judged = auxnet.fit(recipe, tmp_path / "a").net.state_dict()
    trained = resuming.newest_checkpoint(tmp_path / "a")["net"]
    for name in ("running_mean", "running_var"):
        buffer = trained[f"segments.1.middle.1.{name}"]
        assert not torch.equal(buffer, torch.full_like(buffer, float(name == "running_var")))
        assert torch.equal(judged[f"segments.1.middle.1.{name}"], buffer)
    assert not torch.equal(judged["segments.1.middle.0.weight"], trained["segments.1.middle.0.weight"])


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--backbone", "resnet18"], 2, "backbone must be timm:NAME, torchvision:NAME or package.module:function, got"),
        (["--backbone", "own_net:build"], 2, "there is no module 'own_net'; install it, or run in the folder"),
        (["--backbone", "own_nets.py:build"], 2, "'own_nets.py'; name the module without .py, as own_nets:build"),
        (["--backbone", "own_nets:biuld"], 2, "own_nets.py) has no 'biuld'; perhaps you meant 'build'"),
        (["--backbone", "own_nets:number"], 2, "'number' is a int, and must be a function"),
        (["--backbone", "own_nets:nothing"], 2, "gives a NoneType, and must give a torch.nn.Module"),
        (["--backbone", "own_nets:broken"], 1, "own_nets:broken cannot be built: KeyError: 'weights'"),
        (["--backbone", "own_nets:build", "--cuts", "stem", "midle"], 2, "'midle'; perhaps you meant 'middle'"),
        (["--backbone", "own_nets:build", "--cuts", "middle", "stem"], 2, "'stem' does not lie behind 'middle'"),
        (["--backbone", "own_nets:build", "--cuts", "9"], 2, "own_nets:build, cuts=9: at=9 evenly placed cuts cannot"),
        (
            ["--backbone", "own_nets:build", "--cuts", "0"],
            2,
            "cuts must be 1 or more, or the names of modules, got 0: a module ",
        ),
        (["--backbone", "own_nets:build", "--depth", "8"], 2, "depth=8 is the built-in ResNets', but backbone="),
        (
            ["--backbone", "own_nets:build", "--outputs", "2"],
            2,
            "but backbone='own_nets:build': outputs come after cut",
        ),
        (["--backbone", "own_nets:build", "--pretrained", "none.pt"], 2, "there is no file of weights none.pt"),
        (["--cuts", "2"], 2, "cuts=2 is a backbone's, and there is none: name it with backbone"),
        (["--cuts", "2"], 2, "cuts=2 is a backbone's"),
        (["--pretrained", "w.pt"], 2, "there is no file of weights w.pt"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(words, status, says, capsys, tmp_path):
    fails(capsys, train(tmp_path / "bad", *words), status, says)
    assert not (tmp_path / "bad").exists()


def test_weights_that_do_not_fit_are_listed(capsys, tmp_path):
    state = build_backbone("own_nets:build", 3).state_dict()
    del state["stem.0.weight"]
    save_file(state | {"more": torch.zeros(1)}, tmp_path / "w.safetensors")
    words = train(tmp_path / "bad", "--backbone", "own_nets:build", "--pretrained", tmp_path / "w.safetensors")
    fails(capsys, words, 2, "1 missing: stem.0.weight and 1 not the net's: more")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_missing_is_named(library, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)  # as python has it where import must fail
    words = train(tmp_path / "bad", "--backbone", f"{library}:resnet18")
    fails(capsys, words, 1, f"backbone {library}:resnet18 needs {library}: pip install {library}")


def as_from_elsewhere(folder, backbone, recipes=None):
    """The run's model in a folder, of a backbone of this name; with a recipe beside it that names another."""
    folder.mkdir(parents=True)
    shutil.copy("run/model.safetensors", folder)
    config = json.loads(Path("run/config.json").read_text())
    config["network"]["backbone"] = backbone
    (folder / "config.json").write_text(json.dumps(config))
    if recipes is not None:
        write_recipe(replace(read_recipe("run/recipe.yaml"), backbone=recipes), folder / "recipe.yaml")
    return folder


def test_a_strangers_file_imports_nothing(tmp_path, capsys, own_cache_and_no_network):
    Path("trap.py").write_text("raise SystemExit('imported')")
    bare = as_from_elsewhere(tmp_path / "bare", "trap:build")
    beside_another = as_from_elsewhere(tmp_path / "run", "trap:build", "own_nets:build")
    hub = tmp_path / "hub" / "models--owner--name"
    as_from_elsewhere(hub / "snapshots" / "abc", "trap:build", "trap:build")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    refused = "names the backbone 'trap:build', code that is not imported for a file's sake"
    for source in (bare, beside_another, "hf:owner/name"):
        fails(capsys, ["predict", source, "pics"], 2, refused, "cut it by auxnet.attach at ['stem', 'middle']")
    for source in (bare, "owner/name"):
        with pytest.raises(ValueError, match=refused):
            auxnet.PretrainedAuxNet.from_pretrained(source)
    assert "trap" not in sys.modules


EVIL = f"open('imported', 'w')\n{CODE}"


@pytest.mark.parametrize(
    ("run", "files", "backbone"),
    [
        ("run1", ["run1/evil.py"], "run1.evil:build"),
        ("runs/a", ["runs/a/evil.py"], "runs.a.evil:build"),
        ("runs/a", ["runs/a/deep/evil/__init__.py"], "runs.a.deep.evil:build"),
        ("run1", ["run1/__init__.py", "own_nets.py"], "run1.own_nets:build"),
        ("run1", ["run1/__init__.py"], "run1:build"),
        ("link", ["run1/evil.py"], "run1.evil:build"),
        ("run1", ["run1/evil.py"], "link.evil:build"),
        (".", ["run1/evil.py"], "evil:build"),
        (".", ["run1/bdb.py"], "pdb:run"),
    ],
)
def test_code_that_lies_in_a_run_is_never_imported(run, files, backbone, place, tmp_path, monkeypatch, capsys):
    home = tmp_path / ("run1" if run in (".", "link") else run)
    as_from_elsewhere(home, backbone, recipes=backbone)
    (tmp_path / "link").symlink_to(home)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(EVIL)
    monkeypatch.chdir(home if run == "." else tmp_path)
    why = ["lies in the run", "holds code"] if run == "." else ["a run's own files are not imported"]
    pictures = place / "pics"
    fails(capsys, ["predict", run, pictures], 2, *why)
    fails(capsys, ["evaluate", run, "--data-dir", place], 2, *why)
    fails(capsys, ["train", "--out", run, "--resume", "--data", pictures], 2, *why)
    assert not [*tmp_path.rglob("imported")]


def test_a_run_that_lies_around_the_current_folder_is_used_if_it_holds_no_code(place, tmp_path, monkeypatch):
    shutil.copytree("run", tmp_path / "run")
    monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    assert auxnet.load("..").classes == ("ant", "bee", "cow")


@pytest.mark.parametrize("backbone", [3, "", [], {"a": 1}])
def test_a_config_that_names_no_backbone_is_damaged_or_refused(backbone, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=r"config\.json"):
        auxnet.load(as_from_elsewhere(tmp_path / "odd", backbone))


def test_own_code_is_not_exported_into_a_folder_that_could_not_be_loaded(capsys, tmp_path):
    words = ["export", "run", "--format", "safetensors", "--out", tmp_path / "st"]
    fails(capsys, words, 2, "the code of own_nets:build cannot go into a folder of weights: export as onnx or torch")


def test_a_recipe_with_cuts_is_saved_read_and_varied_as_it_is(tmp_path):
    for cuts in (3, ("layer1", "layer2.0")):
        recipe = auxnet.Recipe(backbone="timm:resnet18", cuts=cuts, pretrained="w.pt")
        write_recipe(recipe, tmp_path / "r.yaml")
        assert read_recipe(tmp_path / "r.yaml") == recipe
    (tmp_path / "r.yaml").write_text("backbone: timm:resnet18\ncuts: [0, 1]\n")
    assert read_recipe(tmp_path / "r.yaml").cuts == ("0", "1")
    domain = domain_of("cuts", "2, stem middle, 3")
    assert domain.values == (2, ("stem", "middle"), 3)
    assert domain_of("cuts", written(domain)) == domain
    with pytest.raises(ValueError, match="cuts must be a whole number or a list of names or none, got 'stem'"):
        auxnet.Recipe(backbone="timm:resnet18", cuts="stem")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_model_of_a_library_is_built_for_its_images(library):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    backbone = build_backbone(f"{library}:resnet18", num_classes=4)
    assert backbone.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(ValueError, match=f"{library} has no model 'resnet1'; perhaps you meant 'resnet18'"):
        build_backbone(f"{library}:resnet1", num_classes=4)
