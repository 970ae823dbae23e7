"""Pretrained files: what fits is taken whole; of what does not, nothing is, and the error lists it."""

import copy
import pickle
import shutil
import warnings
from collections import OrderedDict
from dataclasses import fields, replace
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import auxnet
from auxnet.backbones.described import net_from
from auxnet.build import net_of, network_options
from auxnet.cli.arguments import OfRecipe, parse
from auxnet.data import load_data
from auxnet.files import write_json
from auxnet.recipe import Recipe, read_recipe, words_of
from auxnet.sections import NetworkFields
from auxnet.tensors import read_tensors, save_tensors
from writers import COMMIT, folder_of, on_the_hub


def backbone(classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize(
    "name", ["w.safetensors", "w.pt", "w.pth", "nested.pt", "old.pt", "wrapped.pt", "twice.pt", "a.ckpt", "averaged.pt"]
)
def test_every_weight_and_buffer_is_taken(name, tmp_path):
    source, target = backbone(), backbone()
    source[1].running_mean += 3
    state = source.state_dict()
    if name == "old.pt":  # before BatchNorm counted batches
        del state["1.num_batches_tracked"]
    if name == "wrapped.pt":
        state = nn.DataParallel(source).state_dict()
    if name == "twice.pt":
        state = torch.compile(nn.DataParallel(source)).state_dict()
    if name == "averaged.pt":
        state = torch.optim.swa_utils.AveragedModel(source).state_dict()
    if name == "a.ckpt":
        state = {"epoch": 3, "state_dict": {f"model.{key}": value for key, value in state.items()}}
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"state_dict": state, "epoch": 3} if name == "nested.pt" else state, tmp_path / name)
    auxnet.load_pretrained(target, tmp_path / name)
    assert same(source, target)


def test_a_path_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file((source := backbone()).state_dict(), tmp_path / "w.safetensors")
    auxnet.load_pretrained(target := backbone(), "~/w.safetensors")
    assert same(source, target)


def test_keys_that_are_missing_too_many_or_of_another_shape_are_listed_and_nothing_is_taken(tmp_path):
    target = backbone()
    before = copy.deepcopy(target)
    state = backbone(classes=5).state_dict()
    del state["0.bias"], state["1.running_var"]
    state["extra.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors does not fit the net") as caught:
        auxnet.load_pretrained(target, tmp_path / "w.safetensors")
    told = str(caught.value).split(": ", 1)[1]
    assert told == (
        "2 missing: 0.bias; 1.running_var and 1 not the net's: extra.weight "
        "and 2 of another shape: 3.weight [5, 4] for [3, 4]; 3.bias [5] for [3]"
    )
    assert same(target, before)


def test_a_long_list_is_cut_short(tmp_path):
    save_file({f"x{i}": torch.zeros(1) for i in range(24)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"24 not the net's: x0; (x\d+; ){19}\.\.\.$"):
        auxnet.load_pretrained(backbone(), tmp_path / "w.safetensors")


def test_a_file_without_the_last_layer_leaves_that_as_it_is(tmp_path):
    source, target = backbone(), backbone()
    before, state = copy.deepcopy(target.state_dict()), source.state_dict()
    del state["3.weight"]
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: 3\.weight$"):
        auxnet.load_pretrained(target, tmp_path / "half.safetensors")
    del state["3.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match=r"has no 3\.weight: the last layer of the classifier is not loaded"):
        auxnet.load_pretrained(target, tmp_path / "w.safetensors")
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, state.get(name, before[name]))


def test_auxiliary_heads_that_a_net_is_built_without_are_left_out(tmp_path):
    class WithHeads(nn.Module):
        def __init__(self, aux_logits):
            super().__init__()
            self.aux_logits, self.conv = aux_logits, nn.Conv2d(3, 4, 3)
            self.aux1 = nn.Linear(4, 3) if aux_logits else None
            self.fc = nn.Linear(4, 3)

    source, target = WithHeads(True), WithHeads(False)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    auxnet.load_pretrained(target, tmp_path / "w.safetensors")
    assert torch.equal(source.fc.weight, target.fc.weight)
    save_file(source.state_dict() | {"aux9.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"1 not the net's: aux9\.weight"):
        auxnet.load_pretrained(target, tmp_path / "w.safetensors")


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_but_tensors_is_unpickled(tmp_path, capsys):
    torch.save({"0.weight": Trap()}, tmp_path / "w.pt")
    (tmp_path / "v.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("w.pt", "v.pt"):
        with pytest.raises(RuntimeError, match="is damaged, or holds more than tensors"):
            auxnet.load_pretrained(backbone(), tmp_path / name)
    assert capsys.readouterr().out == ""


def test_a_state_dict_is_told_who_takes_it():
    with pytest.raises(TypeError, match=r"this is a state dict: net\.load_state_dict\(...\) takes it"):
        auxnet.load_pretrained(backbone(), backbone().state_dict())


def test_a_module_that_was_saved_whole_is_told_as_such(tmp_path):
    torch.save(backbone(), tmp_path / "w.pt")
    with pytest.raises(
        RuntimeError, match=r"tensors: torch\.nn\.modules\.\S+ \(of a module save the state_dict"
    ) as caught:
        auxnet.load_pretrained(backbone(), tmp_path / "w.pt")
    assert str(caught.value).isprintable()


def test_files_that_are_none_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of weights"):
        auxnet.load_pretrained(backbone(), tmp_path / "w.pt")
    (tmp_path / "w.onnx").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"weights are read from \.safetensors"):
        auxnet.load_pretrained(backbone(), tmp_path / "w.onnx")
    (tmp_path / "w.safetensors").write_bytes(b"?")
    with pytest.raises(RuntimeError, match="is damaged"):
        auxnet.load_pretrained(backbone(), tmp_path / "w.safetensors")
    for content in ([1, 2], {0: torch.zeros(1)}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="holds no state dict"):
            auxnet.load_pretrained(backbone(), tmp_path / "w.pt")


def test_a_net_for_other_classes_takes_all_but_its_last_layers(tmp_path):
    source, target = auxnet.resnet(depth=8, outputs=2), auxnet.resnet(depth=8, outputs=2, num_classes=16)
    before = copy.deepcopy(target).state_dict()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="of 10 classes, the net of 16: the last layers of all outputs are not loaded"):
        auxnet.load_pretrained(target, tmp_path / "w.safetensors")
    last = {f"heads.{k}.fc.{what}" for k in (0, 1) for what in ("weight", "bias")}
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, (before if name in last else source.state_dict())[name]), name


def test_one_output_of_other_classes_is_a_misfit(tmp_path):
    source, target = auxnet.resnet(depth=8, outputs=2), auxnet.resnet(depth=8, outputs=2)
    source.heads[1].fc = nn.Linear(64, 5)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"2 of another shape: heads\.1\.fc\.weight \[5, 64\] for \[10, 64\]"):
        auxnet.load_pretrained(target, tmp_path / "w.safetensors")


@pytest.mark.parametrize("alone", [None, 1])
def test_a_training_begins_with_the_weights_of_another_run(tmp_path, alone):
    first = auxnet.fit(Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu"), tmp_path / "a")
    recipe = Recipe(
        depth=8, outputs=2, alone=alone, epochs=1, threads=1, device="cpu", lr=1e-20, pretrained=str(tmp_path / "a")
    )
    tuned = auxnet.fit(recipe, tmp_path / "b")
    expected = first.net if alone is None else first.net.alone(alone)
    assert all(map(torch.equal, tuned.net.parameters(), expected.parameters()))
    assert read_recipe(tmp_path / "b" / "recipe.yaml") == recipe
    shutil.rmtree(tmp_path / "a")
    again = auxnet.fit(recipe, tmp_path / "b", resume=True)  # what it began with is in its checkpoint
    assert again.summary["last"] == tuned.summary["last"]


def run_of(folder, classes="abcdefghij", **network):
    """A folder with what a finished run has of its net, its weights and running statistics random."""
    recipe = Recipe(**network)
    options = network_options(recipe, replace(load_data(Recipe(threads=1)), classes=tuple(classes)))
    net = net_from(options)
    for tensor in net.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 1 if tensor.is_floating_point() else torch.tensor(7))
    folder.mkdir()
    save_tensors(folder / "model.safetensors", net.state_dict())
    write_json(folder / "config.json", {"network": options, "classes": list(classes)})
    return net


def begun_from(folder, classes="abcdefghij", **network):
    dataset = replace(load_data(Recipe(threads=1)), classes=tuple(classes))
    return net_of(Recipe(pretrained=str(folder), **network), dataset)


IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OWN = "test_weights:small"


def small(num_classes):
    """A backbone for --backbone."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(1, 4, 3),
            a=nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)),
            b=nn.Conv2d(8, 8, 1),
            c=nn.Conv2d(8, 8, 1),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(8, num_classes),
        )
    )


@pytest.mark.parametrize("block", ["preact", "original"])
def test_a_net_with_outputs_begins_with_the_trunk_and_the_final_head_of_a_plain_one(block, tmp_path):
    plain = run_of(tmp_path / "plain", depth=14, outputs=1, block=block)
    with pytest.warns(UserWarning, match=r"plain has no head for outputs 1, 2: to be trained from the beginning$"):
        net = begun_from(tmp_path / "plain", depth=14, outputs=3, block=block)
    assert torch.equal(net.eval()(IMAGES)[-1], plain.eval()(IMAGES)[0])
    assert plain(IMAGES)[0].isfinite().all()
    assert not net.heads[0].fc.bias.any()
    assert plain.heads[0].fc.bias.all()


def test_outputs_that_both_nets_have_keep_their_heads(tmp_path):
    source = run_of(tmp_path / "a", depth=20, at=(7, 13))
    with pytest.warns(UserWarning, match=r"a has no head for output 1: to be trained from the beginning$"):
        net = begun_from(tmp_path / "a", depth=20, at=(5, 13))
    theirs, ours = source.eval()(IMAGES), net.eval()(IMAGES)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fewer = begun_from(tmp_path / "a", depth=20, at=(13,)).eval()(IMAGES)
        alone = begun_from(tmp_path / "a", depth=20, at=(7, 13), alone=2).eval()(IMAGES)
    assert torch.equal(fewer[0], theirs[1])
    assert torch.equal(fewer[1], theirs[2])
    assert torch.equal(alone[0], theirs[1])


def test_auxiliary_heads_of_another_form_begin_anew(tmp_path):
    source = run_of(tmp_path / "a", depth=14, outputs=2)
    with pytest.warns(UserWarning, match="a has no head for output 1: to be trained from the beginning"):
        net = begun_from(tmp_path / "a", depth=14, outputs=2, head="linear")
    assert torch.equal(net.eval()(IMAGES)[1], source.eval()(IMAGES)[1])


def test_what_trained_one_output_alone_begins_the_same_again_and_no_deeper_net(tmp_path):
    source = run_of(tmp_path / "a", depth=14, outputs=3, alone=2)
    net = begun_from(tmp_path / "a", depth=14, outputs=3, alone=2)
    assert torch.equal(net.eval()(IMAGES)[0], source.eval()(IMAGES)[0])
    with pytest.raises(ValueError, match=r"a ends at layer 9, before the net asked for, at 14: its weights do not fit"):
        begun_from(tmp_path / "a", depth=14, outputs=3)


def test_other_outputs_for_other_classes_take_the_trunk(tmp_path):
    source = run_of(tmp_path / "a", depth=14, outputs=1)
    with pytest.warns(UserWarning, match="are not loaded|from the beginning") as told:
        net = begun_from(tmp_path / "a", "xyz", depth=14, outputs=2)
    assert [str(each.message).partition(": ")[2] for each in told] == [
        "the last layers of all outputs are not loaded",
        "to be trained from the beginning",
    ]
    for ours, theirs in zip(trunk_of(net), trunk_of(source), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(net.heads[-1].bn.weight, source.heads[0].bn.weight)


def trunk_of(net):
    return [tensor for segment in net.segments for tensor in segment.state_dict().values()]


def test_a_backbone_with_other_cuts_takes_the_trunk_and_the_heads_that_both_have(tmp_path):
    source = run_of(tmp_path / "a", backbone=OWN, cuts=("a", "b"))
    with pytest.warns(UserWarning, match="a has no head for output 1: to be trained from the beginning"):
        net = begun_from(tmp_path / "a", backbone=OWN, cuts=("stem", "b"))
    theirs, ours = source.eval()(IMAGES), net.eval()(IMAGES)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])


def test_another_network_does_not_fit_and_nothing_is_begun(tmp_path):
    auxnet.fit(Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu"), tmp_path / "a")
    recipe = Recipe(depth=14, outputs=2, epochs=1, threads=1, device="cpu", pretrained=str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"/a has depth=8, and this one has depth=14: its weights do not fit"):
        auxnet.fit(recipe, tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"no file of weights .*nowhere"):
        auxnet.fit(replace(recipe, pretrained="nowhere"), tmp_path / "b")
    save_file(backbone().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"but those of a backbone: name the backbone with --backbone$"):
        auxnet.fit(replace(recipe, pretrained=str(tmp_path / "w.safetensors")), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("theirs", "ours", "has", "here"),
    [
        (
            {"depth": 8, "block": "plain"},
            {},
            "depth=8, block=plain",
            "depth=20 (the default), block=preact (the default)",
        ),
        ({"depth": 8, "outputs": 2}, {"depth": 14}, "depth=8", "depth=14"),
        ({"depth": 14, "at": (3, 5), "width": 2}, {"depth": 14, "outputs": 2}, "width=2", "width=1 (the default)"),
        ({"backbone": "OWN", "cuts": ("a", "b")}, {}, "backbone=OWN", "backbone=none (the default)"),
        ({"depth": 8}, {"backbone": "OWN", "cuts": ("a",)}, "backbone=none", "backbone=OWN"),
        ({"depth": 8, "outputs": 2}, {"depth": 14, "at": (3, 5)}, "depth=8", "depth=14"),
        ({"depth": 8, "outputs": 2}, {"depth": 14, "outputs": 4}, "depth=8", "depth=14"),
        ({"depth": 8, "outputs": 2}, {"depth": 14, "at": (3, 11)}, "depth=8", "depth=14"),
    ],
)
def test_flags_that_make_two_nets_alike_are_named_and_defaults_are_called_that(theirs, ours, has, here, tmp_path):
    theirs, ours = ({**each, "backbone": OWN} if "backbone" in each else each for each in (theirs, ours))
    source = run_of(tmp_path / "a", **theirs)
    with pytest.raises(ValueError, match="its weights do not fit; give --") as caught:
        begun_from(tmp_path / "a", **ours)
    told, mend = str(caught.value).split(": its weights do not fit; give ")
    assert told == f"the net of {tmp_path / 'a'} has {has}, and this one has {here}".replace("=OWN", f"={OWN}")
    flags, or_else = mend.split(", or ")
    assert or_else == "leave --pretrained out"
    given = [word for name, value in ours.items() for word in (f"--{name}", *words_of(value).split())]
    asked = parse(OfRecipe, [*given, *flags.split()], OfRecipe.default(Recipe())).recipe  # as the command, mended
    network = {each.name: getattr(asked, each.name) for each in fields(NetworkFields) if each.name != "pretrained"}
    made = begun_from(tmp_path / "a", **network)
    assert all(map(torch.equal, source.segments.parameters(), made.segments.parameters()))  # wherever outputs are


def pooled(num_classes, activation=nn.ReLU):
    """A backbone with modules without weights between its layers."""
    parts = {"stem": nn.Conv2d(1, 4, 3), "act": activation(), "pool": nn.MaxPool2d(2), "conv": nn.Conv2d(4, 4, 1)}
    last = {"all": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(4, num_classes)}
    return nn.Sequential(OrderedDict(parts | last))


def smooth(num_classes):
    """Another network, of the same names and shapes."""
    return pooled(num_classes, nn.GELU)


POOLED, SMOOTH = "test_weights:pooled", "test_weights:smooth"


def test_another_network_is_told_where_its_names_and_shapes_fit(tmp_path):
    run_of(tmp_path / "a", depth=8, outputs=2, block="plain")
    with pytest.raises(ValueError, match=r"/a has block=plain, and this one has block=original: its weights do not"):
        begun_from(tmp_path / "a", depth=8, outputs=2, block="original")
    run_of(tmp_path / "b", backbone=POOLED, cuts=("act",))
    for weights in ("", "model.safetensors"):  # it may be the same, moved to another module
        with pytest.warns(UserWarning, match=f"/b is {POOLED}, and {SMOOTH} is asked for: its weights fit, and are"):
            begun_from(tmp_path / "b" / weights, backbone=SMOOTH, cuts=("act",))
        with pytest.raises(ValueError, match=f"/b has backbone={POOLED}, and this one has backbone={SMOOTH}: its"):
            begun_from(tmp_path / "b" / weights, backbone=SMOOTH, cuts=("pool",))


def test_a_head_of_the_same_shapes_at_another_cut_begins_anew(tmp_path):
    source = run_of(tmp_path / "a", backbone=POOLED, cuts=("act",))
    with pytest.warns(UserWarning, match="a has no head for output 1: to be trained from the beginning"):
        net = begun_from(tmp_path / "a", backbone=POOLED, cuts=("pool",))
    assert torch.equal(net.eval()(IMAGES)[1], source.eval()(IMAGES)[1])
    assert not torch.equal(net.heads[0].fc.weight, source.heads[0].fc.weight)
    again = begun_from(tmp_path / "a", backbone=POOLED, cuts=("act",))
    assert all(map(torch.equal, again.eval()(IMAGES), source(IMAGES)))


def test_what_a_description_does_not_say_of_a_net_is_as_the_built_in_nets_have_it(tmp_path):
    source = run_of(tmp_path / "a", depth=8, outputs=2)
    write_json(tmp_path / "a" / "config.json", {"network": {"depth": 8, "outputs": 2, "in_channels": 1}})
    net = begun_from(tmp_path / "a", depth=8, outputs=2)
    assert all(map(torch.equal, net.eval()(IMAGES), source.eval()(IMAGES)))


def test_a_checksum_among_the_metadata_of_others_is_not_taken_for_that_of_the_tensors(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "w.safetensors", {"sha256": "of the training data"})
    assert torch.equal(read_tensors(tmp_path / "w.safetensors")["x"], torch.ones(2))


@pytest.mark.parametrize("weights", ["", "checkpoints/best.safetensors"])
def test_as_many_classes_of_other_names_or_in_another_order_have_last_layers_of_their_own(weights, tmp_path):
    recipe = Recipe(data=str(folder_of(tmp_path)), depth=8, outputs=2, epochs=1, threads=1, device="cpu", batch_size=20)
    first = auxnet.fit(recipe, tmp_path / "a").net.state_dict()
    tuned = replace(recipe, pretrained=str(tmp_path / "a" / weights))
    dataset = load_data(recipe)
    taken = net_of(tuned, dataset).state_dict()
    assert all(map(torch.equal, taken.values(), first.values()))
    last = {f"heads.{k}.fc.{what}" for k in (0, 1) for what in ("weight", "bias")}
    for classes, told in ((("b", "a", "c"), "class 1 is 'a' in .*, and 'b' in"), (("a", "b", "x"), "class 3 is 'c'")):
        with pytest.warns(UserWarning, match=f"{told}.*: the last layers of all outputs are not loaded"):
            taken = net_of(tuned, replace(dataset, classes=classes)).state_dict()
        assert {name for name in taken if not torch.equal(taken[name], first[name])} == last


def test_one_output_of_a_run_is_not_the_run_to_train_on_from(tmp_path):
    recipe = Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu")
    run = auxnet.fit(recipe, tmp_path / "a")
    auxnet.export(run, 1, "safetensors", tmp_path / "one")
    for weights in (tmp_path / "one", tmp_path / "one" / "model.safetensors"):
        with pytest.raises(ValueError, match=r"one.* is one output of a run: pretrained needs the run itself$"):
            auxnet.fit(replace(recipe, pretrained=str(weights)), tmp_path / "b")


@pytest.mark.long
def test_a_run_notes_the_sha256_of_the_weights_it_began_with_whatever_lies_there_when_it_is_resumed(tmp_path):
    recipe = Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu")
    weights = auxnet.fit(recipe, tmp_path / "a").folder / "model.safetensors"
    begun = sha256(weights.read_bytes()).hexdigest()

    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    for named in (tmp_path / "a", weights):
        tuned, out = replace(recipe, pretrained=str(named)), tmp_path / named.name.replace("a", "b", 1)
        assert auxnet.fit(tuned, out).summary["pretrained_sha256"] == begun
    with pytest.raises(KeyboardInterrupt):
        auxnet.fit(tuned, tmp_path / "c", watch=stop)
    weights.write_bytes(b"")
    assert auxnet.fit(tuned, tmp_path / "c", resume=True).summary["pretrained_sha256"] == begun
    assert "pretrained_sha256" not in auxnet.fit(recipe, tmp_path / "d").summary


@pytest.mark.long
@pytest.mark.usefixtures("own_cache_and_no_network")
def test_a_training_begins_with_the_weights_of_a_run_on_the_hub_and_notes_its_commit(tmp_path):
    recipe = Recipe(depth=8, outputs=2, epochs=1, train_images=96, threads=1, device="cpu")
    first = auxnet.fit(recipe, tmp_path / "first")
    first.net.save_pretrained(on_the_hub(tmp_path, "owner/run"))
    tuned = replace(recipe, lr=1e-20, pretrained="hf:owner/run@main")
    run = auxnet.fit(tuned, tmp_path / "tuned")
    assert all(map(torch.equal, run.net.parameters(), first.net.parameters()))
    assert [each["run"] for each in run.summary["data"]["earlier_runs"]] == ["first"]
    saved = read_recipe(tmp_path / "tuned" / "recipe.yaml")
    assert saved == replace(tuned, pretrained=f"hf:owner/run@{COMMIT}")
    for goes_on in (saved, tuned, replace(tuned, pretrained="hf:owner/run")):
        auxnet.fit(goes_on, tmp_path / "tuned", resume=True)
    for other in ("hf:owner/other", f"hf:owner/run@{COMMIT[::-1]}"):
        with pytest.raises(ValueError, match=f"was begun with pretrained='hf:owner/run@{COMMIT}'"):
            auxnet.fit(replace(tuned, pretrained=other), tmp_path / "tuned", resume=True)
    again = auxnet.fit(saved, tmp_path / "again").net.state_dict()
    assert all(map(torch.equal, again.values(), run.net.state_dict().values()))
    with pytest.raises(FileNotFoundError, match=r"^hf:owner/none could not be fetched, and is not in the hub's cache"):
        auxnet.fit(replace(tuned, pretrained="hf:owner/none"), tmp_path / "none")


@pytest.mark.usefixtures("own_cache_and_no_network")
def test_a_backbone_begins_with_its_weights_on_the_hub(tmp_path):
    """As timm's lie there: model.safetensors, and a config.json of another kind."""
    folder, source = on_the_hub(tmp_path, "timm/small"), small(10)
    folder.mkdir(parents=True)
    save_file(source.state_dict(), folder / "model.safetensors")
    write_json(folder / "config.json", {"architecture": "small", "num_classes": 10})
    fields = {"epochs": 1, "train_images": 96, "threads": 1, "device": "cpu", "lr": 1e-20}
    run = auxnet.fit(Recipe(backbone=OWN, cuts=("a",), pretrained="hf:timm/small", **fields), tmp_path / "run")
    assert torch.equal(run.net.segments[0].state_dict()["stem.weight"], source.stem.weight)
    assert torch.equal(run.net.heads[-1].state_dict()["fc.weight"], source.fc.weight)
    assert "earlier_runs" not in run.summary["data"]
