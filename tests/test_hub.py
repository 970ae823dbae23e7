"""What `auxnet.load` and the hub's mixin give back is what was saved."""

import copy
import json
import re
import shutil
import socketserver
import subprocess
import sys
import threading
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.utils.parametrizations import weight_norm

import auxnet
from auxnet.hub import PretrainedAuxNet, load, take_out
from auxnet.precision import to_bfloat16
from auxnet.recipe import read_run_recipe
from auxnet.scores import wilson
from auxnet.tensors import read_about, save_tensors
from auxnet.train import fit
from shipped import picture, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def same(one, other):
    images = torch.randn(3, 3, 8, 8)
    return all(torch.equal(a, b) for a, b in zip(one(images), other(images), strict=True))


def test_a_saved_net_loads_as_it_was(run, tmp_path):
    net = auxnet.load(run)
    net.save_pretrained(tmp_path / "saved")
    again = auxnet.load(tmp_path / "saved")
    assert same(net, again)
    assert again.classes == net.classes == ("ant", "bee, wild", 'cow "c"', "dög")
    assert (again.preprocessing, again.numbers) == (net.preprocessing, (1, 2, 3))
    assert again.preprocessing.image_size == (8, 8)


def test_classes_and_preprocessing_are_saved_as_they_are_by_then(run, tmp_path):
    load(run).save_pretrained(tmp_path / "as it was")
    for net in (load(run), load(tmp_path / "as it was")):
        net.classes = ("a", "b", "c", "d")
        net.preprocessing = replace(net.preprocessing, mean=(1.0, 2.0, 3.0))
        for saved in (net, take_out(net, 2)):
            saved.save_pretrained(tmp_path / "saved")
            again = load(tmp_path / "saved")
            assert (again.classes, again.preprocessing) == (net.classes, net.preprocessing)
            assert "Classes (4): a, b, c, d. " in again.card
            assert torch.equal(again.prepare(picture(0)), net.prepare(picture(0)))


def test_the_hubs_own_mixin_loads_a_run_and_an_export(run, tmp_path):
    net = PretrainedAuxNet.from_pretrained(run)
    take_out(net, 2).save_pretrained(tmp_path / "two")
    two = PretrainedAuxNet.from_pretrained(str(tmp_path / "two"))
    for option, value in {"output": 1, "classes": ["a", "b"]}.items():
        with pytest.raises(ValueError, match=f"{option}=.* which decides: leave it out"):
            PretrainedAuxNet.from_pretrained(run, **{option: value})
    assert same(PretrainedAuxNet.from_pretrained(run, proxies=None, resume_download=None), net)  # of hubs before 1.0
    for option in ("clases", "map_location"):
        with pytest.raises(TypeError, match=f"from_pretrained takes no {option}: leave it out"):
            PretrainedAuxNet.from_pretrained(run, **{option: "cpu"})
    images = torch.randn(3, 3, 8, 8)
    assert not two.training
    assert torch.equal(two(images)[0], net(images)[1])


def test_one_output_taken_out_has_the_parameters_of_the_truncated_net_alone(run):
    net = load(run)
    for k in (1, 2, 3):
        alone = take_out(net, k)
        count = sum(p.numel() for p in net.truncate(k).parameters())
        assert sum(p.numel() for p in alone.parameters()) == count
        assert (alone.outputs, alone.numbers, alone.depths) == (1, (k,), (net.depths[k - 1],))


def test_push_sends_the_folder_that_save_writes(run, monkeypatch):
    sent = {}

    def upload(self, *, folder_path, repo_id, **_):
        sent[repo_id] = {f.name: f.read_bytes() for f in folder_path.iterdir()}
        return "url"

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: type("R", (), {"repo_id": repo_id})
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    load(run).push_to_hub("me/net")
    assert set(sent["me/net"]) == {"config.json", "model.safetensors", "README.md"}
    assert b"| 3 | 8 |" in sent["me/net"]["README.md"]


def test_the_card_holds_the_table_of_the_summary_with_intervals(run):
    row = json.loads((run / "summary.json").read_text())["last"][1]
    card = str(load(run).generate_model_card())
    assert f"| 2 | {row['depth']} | {row['params']:,} | {row['macs']:,} | {100 * row['val_error']:.2f} %" in card
    low, high = wilson(round(16 * row["test_error"]), 16)  # images
    assert f"| {100 * row['test_error']:.2f} % ({100 * low:.1f} .. {100 * high:.1f}) |\n" in card
    assert "| test error, n = 16 |" in card
    assert "library_name: auxnet" in card


def test_the_code_of_the_card_runs_where_the_card_lies(run, tmp_path, monkeypatch):
    auxnet.export(run, 2, "safetensors", tmp_path / "two")
    monkeypatch.chdir(tmp_path / "two")
    picture(0).save("picture.jpg")
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "two" / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), found := {})
    assert found["logits"][0].shape == (1, 4)


@pytest.mark.long
def test_a_net_is_loaded_and_its_costs_are_counted_without_what_takes_long_to_import(run):
    code = """if True:
        import sys, torch, auxnet
        from auxnet.cost import costs
        from auxnet.watching import PeakBytes
        net = auxnet.load(sys.argv[1])
        costs(net, (3, 8, 8))
        with torch.inference_mode(), PeakBytes() as held:
            net(torch.zeros(1, 3, 8, 8))
        print([each for each in ("scipy", "torch._dynamo", "sympy") if each in sys.modules], held.peak > 0)"""
    asked = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert asked.stdout == "[] True\n"


def test_best_weights_are_those_of_the_best_epoch(run):
    assert same(load(run, "best"), load(run))  # one epoch: the last is the best
    with pytest.raises(ValueError, match="which must be one of last, best, got 'worst'"):
        load(run, "worst")


@pytest.mark.usefixtures("own_cache_and_no_network")
def test_a_model_that_the_hub_cannot_give_is_one_clear_line():
    with pytest.raises(FileNotFoundError, match="hf:no-one/nothing could not be fetched"):
        load("hf:no-one/nothing")
    with pytest.raises(ValueError, match="given as hf:owner/name"):
        load("hf:nothing")


def in_a_cache(run, folder, repo="owner/name"):
    """A run's model as the hub's cache holds it, in a folder of its own."""
    home = folder / f"models--{repo.replace('/', '--')}"
    load(run).save_pretrained(home / "snapshots" / "abc")
    (home / "refs").mkdir()
    for ref in ("main", "v1"):
        (home / "refs" / ref).write_text("abc")
    return folder


@pytest.fixture
def asked_of_the_hub(monkeypatch):
    """What the hub is asked for a folder."""
    asked, ask = [], huggingface_hub.snapshot_download

    def watched(*given, **how):
        asked.append(how)
        return ask(*given, **how)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", watched)
    return asked


def test_another_cache_is_looked_in_and_no_network_is_tried_where_files_are_to_be_local(
    run, tmp_path, asked_of_the_hub
):
    where = {"cache_dir": in_a_cache(run, tmp_path / "cache"), "local_files_only": True}
    assert same(PretrainedAuxNet.from_pretrained("owner/name", **where), load(run))
    with pytest.raises(FileNotFoundError, match=r"^hf:owner/other is not in the hub's cache: "):
        PretrainedAuxNet._from_pretrained(model_id="owner/other", **where)
    assert [how["local_files_only"] for how in asked_of_the_hub] == [True, True]


@pytest.mark.usefixtures("own_cache_and_no_network")
def test_what_the_hub_is_to_be_told_is_told(run, tmp_path, asked_of_the_hub):
    given = {"token": "secret", "revision": "v1", "cache_dir": in_a_cache(run, tmp_path / "cache")}
    PretrainedAuxNet.from_pretrained("owner/name", **given)
    PretrainedAuxNet._from_pretrained(model_id="owner/name", force_download=True, **given)
    assert [how | given == how for how in asked_of_the_hub] == [True, True]
    assert [how["force_download"] for how in asked_of_the_hub] == [False, True]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 200 OK\r\n\r\n<html>Log in to use this network</html>"])
def test_a_model_that_was_fetched_before_is_there_where_the_network_answers_nonsense(
    run, tmp_path, monkeypatch, answer
):
    class Nonsense(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(in_a_cache(run, tmp_path)))
        try:
            assert same(load("hf:owner/name"), load(run))
            with pytest.raises(
                FileNotFoundError, match=r"^hf:owner/other could not be fetched, and is not in the hub's"
            ):
                load("hf:owner/other")
        finally:
            server.shutdown()


def test_damaged_and_foreign_folders_are_told_apart(copied, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(tmp_path / "nothing")
    (tmp_path / "small.onnx").touch()
    with pytest.raises(ValueError, match=r"small\.onnx is a file, .*: auxnet\.predict takes ONNX files"):
        load(tmp_path / "small.onnx")
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=r"model\.safetensors is damaged"):
        load(copied)
    config = json.loads((copied / "config.json").read_text())
    for change, words in (
        ({"model_type": "bert"}, "of type 'bert'"),
        ({"classes": ["one"]}, "needs their 4 names, got 1"),
        ({"preprocessing": {}}, "cannot be read"),
        ({"network": {"layers": 3}}, "does not describe a network"),
    ):
        (copied / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(RuntimeError, match=words):
            load(copied)
    (copied / "config.json").write_text("[1]")
    with pytest.raises(RuntimeError, match="does not describe a network"):
        load(copied)


def test_one_bit_turned_in_a_tensor_is_damage_to_whatever_loads_it(copied, tmp_path):
    take_out(load(copied), 2).save_pretrained(tmp_path / "two")
    for folder in (copied, tmp_path / "two"):
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[len(weights) // 2] ^= 1
        (folder / "model.safetensors").write_bytes(weights)
    anew = auxnet.resnet(depth=8, outputs=3, num_classes=4)
    for use in (
        lambda: load(copied),
        lambda: load(tmp_path / "two"),
        lambda: PretrainedAuxNet.from_pretrained(tmp_path / "two"),
        lambda: auxnet.load_pretrained(anew, copied),
        lambda: auxnet.export(copied, 2, "safetensors", tmp_path / "three"),
    ):
        with pytest.raises(RuntimeError, match=r"/model\.safetensors is damaged: its checksum does not hold"):
            use()


def test_weights_without_a_checksum_are_taken_and_those_with_one_are_the_same_bytes_every_time(copied, tmp_path):
    net, best = load(copied), copied / "checkpoints" / "best.safetensors"
    assert read_about(best)["epoch"] == "1"
    for n in range(5):
        save_tensors(tmp_path / f"{n}", net.state_dict(), epoch="1")
    assert {(tmp_path / f"{n}").read_bytes() for n in range(5)} == {best.read_bytes()}
    save_file(net.state_dict(), copied / "model.safetensors")
    save_file(net.state_dict(), best, {"epoch": "1"})  # of somebody's own
    assert read_about(best) == {}
    assert same(load(copied), net)
    assert same(load(copied, "best"), net)


def test_an_output_that_is_not_there_is_named(run):
    with pytest.raises(ValueError, match=r"output must be 1\.\.3 \(shallow to deep\), got 4"):
        take_out(load(run), 4)
    with pytest.raises(ValueError, match=r"output must be a whole number, got '2'$"):
        take_out(load(run), "2")


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_a_number_of_numpys_names_an_output_that_is_exported(run, format, tmp_path):
    done = auxnet.export(run, np.int64(2), format, tmp_path / "two.pt2")
    assert type(done.output) is int
    if format == "safetensors":
        assert auxnet.load(done.path).numbers == (2,)


def test_loading_draws_no_random_number_of_the_callers(run):
    before = torch.get_rng_state()
    auxnet.load(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_prepared_images_get_the_answers_of_predict(run, tmp_path):
    net = auxnet.load(run)
    pictures = [picture(7), picture(8, (12, 20))]
    paths = [tmp_path / f"{n}.png" for n in range(2)]
    for path, each in zip(paths, pictures, strict=True):
        each.save(path)
    expected = [answer.probabilities[0] for answer in auxnet.predict(run, paths)]
    assert [answer.probabilities[0] for answer in auxnet.predict(net, paths)] == expected
    for given in (paths, [*map(str, paths)], pictures, [*map(np.asarray, pictures)], [paths]):
        top = net(net.prepare(*given))[-1].softmax(1).max(1).values
        assert top.tolist() == pytest.approx(expected, abs=1e-6)
    for dtype, near in ((torch.float64, 1e-6), (torch.bfloat16, 0.05)):
        other = copy.deepcopy(net).to(dtype)
        top = other(other.prepare(paths))[-1].softmax(1).max(1).values
        assert top.tolist() == pytest.approx(expected, abs=near)
        assert [a.probabilities[0] for a in auxnet.predict(other, paths)] == pytest.approx(expected, abs=near)


def test_names_that_do_not_fit_the_network_are_refused(run):
    net = auxnet.load(run)
    with pytest.raises(ValueError, match="a network for 4 classes needs their 4 names, got 2"):
        PretrainedAuxNet(net.config["network"], ["a", "b"], net.preprocessing.content(), net=net)


def test_a_picture_that_is_not_there_is_not_prepared(run):
    with pytest.raises(FileNotFoundError, match=r"^there is no such file: nope\.jpg$"):
        auxnet.load(run).prepare("nope.jpg")


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_a_picture_of_which_it_is_not_known_what_is_white_is_not_prepared(run, kind):
    with pytest.raises(ValueError, match=r"mode '[IF]' has no known range"):
        auxnet.load(run).prepare(Image.fromarray(np.full((8, 8), 200, kind)))


def test_pictures_opened_by_pil_are_prepared_as_their_files_are(run, tmp_path):
    net, exif = auxnet.load(run), Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture(9, (12, 20)).quantize(64).save(tmp_path / "palette.png")
    picture(9, (12, 20)).convert("RGBA").save(tmp_path / "alpha.png")
    picture(9, (12, 20)).save(tmp_path / "turned.jpg", exif=exif)
    for path in tmp_path.iterdir():
        with Image.open(path) as opened:
            assert torch.equal(net.prepare(path), net.prepare(opened)), path


def changed(net):
    with torch.no_grad():
        net.heads[0].fc.weight[0, 0] += 1
    return net


def told(folder):
    config = json.loads((folder / "config.json").read_text())
    return "table" in config["source"], "test error" in (folder / "README.md").read_text()


def test_the_errors_of_a_run_are_left_out_where_its_weights_have_changed_since(run, tmp_path):
    load(run).to(memory_format=torch.channels_last).save_pretrained(tmp_path / "same")
    assert told(tmp_path / "same") == (True, True)
    trained = fit(replace(read_run_recipe(run), seed=1), tmp_path / "run").net
    nets = {"loaded": changed(load(run)), "fitted": changed(trained), "two": take_out(changed(load(run)), 1)}
    nets["later"] = changed(take_out(load(run), 1))
    nets["again"] = changed(load(tmp_path / "same"))
    for name, net in nets.items():
        net.save_pretrained(tmp_path / name)
        assert told(tmp_path / name) == (False, False), name
        assert "changed after the run that the rest tells of, and were not measured." in load(tmp_path / name).card
    changed(load(tmp_path / "same")).save_pretrained(tmp_path / "same")  # which has its card already
    assert told(tmp_path / "same") == (False, False)
    changed(load(tmp_path / "two")).save_pretrained(tmp_path / "three")
    assert told(tmp_path / "three") == (False, False)


def test_a_card_written_of_other_weights_goes_and_one_of_somebody_else_stays(run, tmp_path):
    for n, own in enumerate((True, False)):
        one, two = tmp_path / f"one {n}", tmp_path / f"two {n}"
        load(run).save_pretrained(one)
        card = (one / "README.md").read_text()
        if not own:
            (one / "README.md").write_text(card := card.replace("---\n\n", "license: mit\n---\n\n", 1))
        net = changed(load(run))
        net.save_pretrained(two)
        changed(net).save_pretrained(one)
        assert told(one) == (False, not own)
        other = take_out(load(run), 1)  # measured, but not these weights
        other.save_pretrained(one)
        assert ("| 3 | 8 |" in (one / "README.md").read_text()) is not own
        assert own or (one / "README.md").read_text() == card


def test_a_card_that_was_brought_stays_with_the_weights_it_tells_of(run, tmp_path):
    load(run).save_pretrained(tmp_path / "one")
    (tmp_path / "one" / "README.md").write_text("---\nlicense: mit\n---\nerrs by 3 %")
    load(tmp_path / "one").save_pretrained(tmp_path / "same")
    changed(load(tmp_path / "one")).save_pretrained(tmp_path / "other")
    assert "3 %" in (tmp_path / "same" / "README.md").read_text()
    assert "3 %" not in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.parametrize("left", [("recipe.yaml",), ("summary.json",), ("checkpoints/00001-0000000.ckpt",)])
def test_nothing_is_saved_into_the_folder_of_a_run(run, tmp_path, left):
    for name in (*left, "config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match=r"is the folder of a run, .*: name another$"):
        load(run).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_net_that_would_be_loaded_as_another_or_not_at_all_is_not_saved(run, tmp_path):
    def wrapped(net):
        net.heads[0] = torch.nn.Sequential(torch.nn.Dropout(), net.heads[0])

    def other_padding(net):
        stem = net.segments[0][0]
        net.segments[0][0] = torch.nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular", bias=False)
        net.segments[0][0].load_state_dict(stem.state_dict())

    def no_names(net):
        net.classes = (1, 2, 3, 4)

    changes = {
        "it differs in its tensor heads.0.1.bn.bias": wrapped,
        "it differs in its tensor heads.0.fc.": lambda net: weight_norm(net.heads[0].fc),
        "it differs in what it computes": other_padding,
        "could not be loaded again: .* classes": no_names,
    }
    for words, change in changes.items():
        net = load(run)
        change(net)
        with pytest.raises(ValueError, match=words):
            net.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


def test_a_net_in_another_precision_format_or_mode_is_saved(run, tmp_path):
    for net in (load(run).bfloat16(), to_bfloat16(load(run)), load(run).double(), load(run).train()):
        before = [module.training for module in net.modules()], [p.dtype for p in net.parameters()]
        net.to(memory_format=torch.channels_last).save_pretrained(tmp_path / "saved")
        assert ([module.training for module in net.modules()], [p.dtype for p in net.parameters()]) == before
        again = load(tmp_path / "saved")
        assert all(map(torch.equal, again.state_dict().values(), copy.deepcopy(net).float().state_dict().values()))
    net = load(run)
    torch.nn.init.constant_(net.heads[0].fc.bias, torch.nan)
    net.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("columns", [3, 12])
def test_logits_that_do_not_fit_the_classes_are_neither_named_nor_saved(run, tmp_path, columns):
    net = load(run)
    for head in net.heads:
        head.fc = torch.nn.Linear(head.fc.in_features, columns)
    for use in (lambda: net.save_pretrained(tmp_path / "saved"), lambda: [*auxnet.predict(net, picture(0))]):
        with pytest.raises(ValueError, match=f"^logits of {columns} columns do not fit this net's 4 classes: "):
            use()
    assert not (tmp_path / "saved").exists()
