"""Early exit as a network: against all outputs computed for all images, and what it is seen to skip."""

import copy
import json
import re
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import auxnet
from auxnet import build
from auxnet.cli import main
from auxnet.cost import costs
from auxnet.data import load_data
from auxnet.descent import Costs
from auxnet.examining import solved_for
from auxnet.exit_notes import _bound, _of_output_alone, _of_target
from auxnet.exits import EarlyExit, ExitCosts, exit_latencies, exit_macs
from auxnet.latency import Timing
from auxnet.loading import weights_sha256
from auxnet.policy import NEVER, confidence
from auxnet.scores import compare
from auxnet.thresholds import CrossFit
from conftest import multiply_adds, one_class_alone


def tiny(outputs=3, seed=0):
    """A net in float64 whose outputs are sure of some images and not of others."""
    torch.manual_seed(seed)
    net = auxnet.resnet(depth=8, outputs=outputs, num_classes=4).double()
    with torch.no_grad():
        for head in net.heads:
            head.fc.weight *= 8
    return net.eval()


NET = tiny()
IMAGES = torch.randn(23, 3, 8, 8, dtype=torch.float64)


@torch.no_grad()
def by_hand(net, images, thresholds, kind, temperatures):
    """Every output for every image, one image at a time, and then the first one that is sure."""
    logits, exits = [], []
    for image in images:
        said = net(image[None])
        for k in range(net.outputs):
            last = k == net.outputs - 1
            if last or confidence(said[k], kind, temperatures[k]) >= thresholds[k]:
                logits.append(said[k])
                exits.append(k + 1)
                break
    return torch.cat(logits), exits


@settings(max_examples=30, deadline=None)
@given(
    thresholds=st.lists(st.floats(0, 1.1), min_size=2, max_size=2),
    kind=st.sampled_from(["entropy", "top", "margin"]),
    temperatures=st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    n=st.integers(1, 23),
)
def test_every_image_leaves_once_at_the_first_sure_output_and_in_order(thresholds, kind, temperatures, n):
    with torch.no_grad():
        logits, output = EarlyExit(NET, thresholds, kind, temperatures)(IMAGES[:n])
    expected, exits = by_hand(NET, IMAGES[:n], thresholds, kind, temperatures)
    assert output.tolist() == exits
    torch.testing.assert_close(logits, expected)


def spread():
    """Thresholds by which about half of the images leave at each output; none is an image's own confidence."""
    with torch.no_grad():
        return [float(confidence(logits).sort().values[10:12].mean()) for logits in NET(IMAGES)[:2]]


SPREAD = spread()


def test_the_order_is_kept_under_any_batch_size():
    exits = EarlyExit(NET, SPREAD)
    with torch.no_grad():
        whole = exits(IMAGES)
        assert set(whole.output.tolist()) == {1, 2, 3}
        for size in (1, 2, 5, 22, 23, 100):
            parts = [exits(images) for images in IMAGES.split(size)]
            torch.testing.assert_close(torch.cat([part.logits for part in parts]), whole.logits)
            assert torch.equal(torch.cat([part.output for part in parts]), whole.output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["entropy", "top", "margin"])
def test_nets_in_lower_precision_exit_as_it_was_solved_on_their_logits_in_float32(dtype, kind):
    net, images = copy.deepcopy(NET).to(dtype), IMAGES.to(dtype)
    with torch.no_grad():
        logits = torch.stack(net(images)).float()
    for sure in confidence(logits[0], kind).sort().values[-6:-1].tolist():  # of which bfloat16 makes one and the same
        expected = 1 + (confidence(logits[0], kind) < sure).long()
        assert torch.equal(EarlyExit(net, [sure, 0.0], kind)(images).output, expected)


def test_shares_sum_to_one():
    output = EarlyExit(NET, SPREAD)(IMAGES).output
    assert int(torch.bincount(output, minlength=4)[1:].sum()) == len(IMAGES)


def test_unreachable_thresholds_give_the_final_output_exactly():
    for threshold in (1.01, NEVER, float("inf")):
        found = EarlyExit(NET, [threshold, threshold])(IMAGES)
        assert torch.equal(found.logits, NET(IMAGES)[-1])
        assert found.output.tolist() == [3] * 23


def test_zero_thresholds_give_the_first_output_exactly():
    for kind in ("entropy", "top", "margin"):
        found = EarlyExit(NET, [0.0, 0.0], kind)(IMAGES)
        assert torch.equal(found.logits, NET(IMAGES)[0])
        assert found.output.tolist() == [1] * 23


def test_images_that_left_are_not_computed_any_more():
    seen = []
    handles = [
        segment.register_forward_hook(lambda module, args, result: seen.append(len(result))) for segment in NET.segments
    ]
    try:
        output = EarlyExit(NET, SPREAD)(IMAGES).output
        assert seen == [23, int((output > 1).sum()), int((output > 2).sum())]
        assert 0 < seen[2] < seen[1] < 23
        seen.clear()
        EarlyExit(NET, [0.0, 0.0])(IMAGES)
        assert seen == [23]
    finally:
        for handle in handles:
            handle.remove()


def test_a_head_at_which_no_image_can_leave_is_not_run():
    seen = []
    handles = [head.register_forward_hook(lambda *_, k=k: seen.append(k)) for k, head in enumerate(NET.heads, start=1)]
    try:
        for thresholds, run in (((NEVER, NEVER), [3]), ((NEVER, 1.0), [2, 3]), ((SPREAD[0], 1.01), [1, 3])):
            seen.clear()
            found = EarlyExit(NET, thresholds)(IMAGES)
            assert seen == run
            logits, exits = by_hand(NET, IMAGES, thresholds, "entropy", [1.0] * 3)
            torch.testing.assert_close(found.logits, logits)
            assert found.output.tolist() == exits
    finally:
        for handle in handles:
            handle.remove()


def test_no_images_come_out_as_no_logits():
    found = EarlyExit(NET, [0.5, 0.5])(IMAGES[:0])
    assert found.logits.shape == (0, 4)
    assert found.output.shape == (0,)


def test_channels_last_stays_channels_last_through_the_compaction():
    formats = []
    handle = NET.segments[1].register_forward_pre_hook(
        lambda module, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    net = NET.to(memory_format=torch.channels_last)
    EarlyExit(net, SPREAD)(IMAGES.contiguous(memory_format=torch.channels_last))
    handle.remove()
    assert formats == [True]


def test_a_net_with_one_output_takes_everything():
    net = tiny(outputs=1)
    found = EarlyExit(net, [])(IMAGES)
    assert torch.equal(found.logits, net(IMAGES)[0])


def test_the_weights_are_the_nets_own():
    assert EarlyExit(NET, [0.5, 0.5]).net is NET


def test_an_exit_costs_its_output_alone_and_the_heads_that_are_asked_before_it():
    net = auxnet.resnet(depth=20, outputs=4)
    alone = [macs for _, macs in costs(net, (3, 16, 16))]
    heads = []
    for k, features in enumerate(net.features(torch.zeros(1, 3, 16, 16))):
        heads.append(multiply_adds(net.heads[k], features.shape[1:]))
    assert exit_macs(net, (3, 16, 16)) == (alone, heads[:3], alone, None)
    for thresholds in ((0.5, 0.5, 0.5), (NEVER, 0.5, NEVER)):
        # What EarlyExit really does to an image that goes to the end, which no confidence lets leave at 1.0:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            EarlyExit(net.eval(), [min(2 * t, NEVER) for t in thresholds], "top", [1e6] * 4)(torch.zeros(1, 3, 16, 16))
        assert Costs.of(alone, heads[:3]).under(thresholds)[-1] == counter.get_total_flops() // 2


def test_exit_latencies_are_of_each_output_straight_passing_heads_and_alone(monkeypatch):
    timed = []

    def time_in_turns(models, image_shape, batch, *, seconds):
        timed.extend(models)
        return [SimpleNamespace(median_ms=ms) for ms in (1.0, 2.0, 3.0, 2.5, 3.4, 0.9, 1.9, 2.9)]

    monkeypatch.setattr("auxnet.exits.time_in_turns", time_in_turns)
    found = exit_latencies(NET, (3, 8, 8))
    assert found.stop == [1.0, 2.0, 3.0]
    assert found.passing == [0.5, 0.0]  # 0.5 more at output 2; at 3 it is 0.4, and no head costs less than nothing
    assert found.alone == [0.9, 1.9, 2.9]
    assert found.first.median_ms == 1.0
    ends = [model(1e4 * IMAGES).output.unique().tolist() for model in timed[:5]]  # however sure the outputs are
    assert ends == [[1], [2], [3], [2], [3]]
    assert [sum(model.policy.decides(k) for k in (1, 2)) for model in timed[:5]] == [2, 1, 0, 2, 2]


def test_exit_latencies_are_one_per_output():
    net = auxnet.resnet(depth=8, outputs=2).double().train()
    found = exit_latencies(net, (3, 8, 8), seconds=0.02)
    assert net.training
    assert all(p.is_contiguous() for p in net.parameters())
    assert [len(each) for each in found[:3]] == [2, 1, 2]
    assert min(found.stop + found.alone) > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0.5],), "3 outputs need 2 thresholds, got 1"),
        ((0.5,), "thresholds must be 2 numbers, one for each output but the final, got 0.5"),
        (([0.5, "a"],), "thresholds must be 2 numbers, .* got .*'a'"),
        (([0.5, 0.5], "top", "abc"), "temperatures must be 3 numbers, got 'abc'"),
        (({1: 0.9, 2: 0.8},), "thresholds must be 2 numbers, one for each output but the final, got {1: 0.9"),
        (([0.5, -0.1],), "thresholds must be 0 or more"),
        (([0.5, float("nan")],), "thresholds must be 0 or more"),
        (([50, 90],), r"thresholds are confidences in 0\.\.1 \(2: never\), not per cent: \(50.*, 90"),
        (([0.5, 0.5], "hunch"), "confidence must be one of entropy, top, margin, got 'hunch'"),
        (([0.5, 0.5], "top", 2.0), r"temperatures must be 3 numbers, got 2\.0"),
        (([0.5, 0.5], "top", [1.0]), "3 outputs need 3 temperatures, got 1"),
        (([0.5, 0.5], "top", [1.0, 0.0, 1.0]), "temperatures must be above 0 and finite"),
    ],
)
def test_numbers_that_do_not_fit_the_net_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        EarlyExit(NET, *arguments)


def test_a_net_in_training_mode_is_refused_before_its_statistics_move():
    net = tiny().train()
    exits, before = EarlyExit(net, SPREAD), copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"early exit needs evaluation mode: .* call \.eval\(\) first"):
        exits(IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert exits.eval()(IMAGES).output.tolist() == EarlyExit(NET, SPREAD)(IMAGES).output.tolist()
    net.train()  # behind its back
    with pytest.raises(RuntimeError, match="early exit needs evaluation mode"):
        exits(IMAGES)


# ---- the command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    auxnet.fit(auxnet.Recipe(depth=8, outputs=3, epochs=2, batch_size=128, device="cpu", threads=1), folder)
    return folder


def asked(capsys, *words):
    assert main(["exits", *map(str, words), "--json", "--curve", "3"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_policy_written_is_the_network_that_early_exit_rebuilds(run, capsys):
    content = asked(capsys, run, "--max-error-increase", "5")
    assert content == json.loads((run / "exits.json").read_text())
    exits = auxnet.early_exit(run)
    assert list(exits.policy.thresholds) == content["thresholds"]
    assert not exits.training
    dataset = load_data(auxnet.recipe.read_run_recipe(run))
    wrong, output = [], []
    with torch.no_grad():
        for images, labels in build.evaluation_batches(dataset.test, dataset, torch.device("cpu")):
            found = exits(images)
            wrong.append(found.logits.argmax(1) != labels)
            output.append(found.output)
    assert float(torch.cat(wrong).double().mean()) == pytest.approx(content["test"]["error"])
    counts = torch.bincount(torch.cat(output), minlength=4)[1:]
    assert (counts / counts.sum()).tolist() == pytest.approx(content["test"]["shares"])
    assert content["val"]["against_final"]["difference"] <= 0.05


def absurd(recipe, *seen):
    """The data of a recipe, but that the labels of the test images are drawn at random."""
    dataset = load_data(recipe, *seen)
    shuffled = dataset.test.labels[torch.randperm(len(dataset.test))]
    return replace(dataset, test=replace(dataset.test, labels=shuffled))


def test_an_absurd_test_set_changes_no_threshold(run, capsys, monkeypatch):
    honest = asked(capsys, run)
    monkeypatch.setattr("auxnet.run_data.load_data", absurd)
    fooled = asked(capsys, run)
    assert fooled["test"]["error"] != honest["test"]["error"]
    for key in ("thresholds", "temperatures", "confidence", "val", "costs"):
        assert fooled[key] == honest[key]
    for name, curve in honest["curves"].items():
        assert [p["thresholds"] for p in fooled["curves"][name]] == [p["thresholds"] for p in curve]


@pytest.mark.parametrize(
    "words",
    [
        ["--confidence", "margin", "--no-temperature"],
        ["--common", "--max-error-increase", "10"],
        ["--max-mean-macs", "100M", "--confidence", "top"],
        ["--max-mean-latency", "10000"],
        ["--cost", "latency"],
    ],
)
def test_the_ways_to_ask(run, capsys, words):
    assert main(["exits", str(run), *words, "--curve", "2"]) == 0
    out = capsys.readouterr().out
    for text in ("the least error for bounds on the mean cost", "validation images", "test images", "exits.json"):
        assert text in out
    for text in ("anytime", "budgeted batch"):
        assert text not in out


def test_a_time_is_shown_and_kept_with_the_device_and_the_threads_that_it_was_measured_on(run, capsys, monkeypatch):
    timing = Timing(1, 1.0, 0.4, 1.25, 1000.0, 9)
    slow = ExitCosts([1.0, 2.0, 3.0], [0.1, 0.1], [1.0] * 3, timing)
    monkeypatch.setattr("auxnet.solving.exit_latencies", lambda *_: slow)
    timed = "; ms measured on cpu, 1 thread"
    words = ["--max-mean-latency", "2.5", "--threads", "1"]
    assert timed in " ".join(" ".join(printed(capsys, run, *words)).split())
    content = json.loads((run / "exits.json").read_text())
    assert (content["device"]["type"], content["device"]["threads"]) == ("cpu", 1)
    assert content["versions"]["torch"] == torch.__version__
    assert "measured on" not in " ".join(printed(capsys, run))
    assert main(["exits", str(run), "--max-mean-latency", "0.5", "--threads", "1"]) == 1
    said = ", the median measured on cpu, 1 thread, its quartiles 0.400 .. 1.250; times vary: ask again, or for more\n"
    assert capsys.readouterr().out.endswith(said)


def printed(capsys, *words):
    assert main(["exits", *map(str, words), "--curve", "3"]) == 0
    return capsys.readouterr().out.splitlines()


def test_of_test_labels_nothing_is_printed_but_what_the_answer_does_to_them(run, capsys, monkeypatch):
    honest = printed(capsys, run, "--baselines")
    monkeypatch.setattr("auxnet.run_data.load_data", absurd)
    fooled = printed(capsys, run, "--baselines")
    moved = [line for line in {*honest} ^ {*fooled} if not line.startswith("note: on test images the error rises")]
    assert len(moved) == 2
    assert all(re.match(r"on \d+ test images: error ", line) for line in moved)


def test_what_is_saved_is_saved_against_the_final_output_as_a_model_of_its_own(run, capsys, monkeypatch):
    alone = auxnet.solve_exits(run, points=2).alone
    assert list(alone) == [macs for _, macs in costs(auxnet.load(run), (1, 8, 8))]
    slow = ExitCosts([1.2, 2.4, 3.6], [0.3, 0.3], [0.5, 1.0, 1.5])
    monkeypatch.setattr("auxnet.solving.exit_latencies", lambda *_: slow)
    out = "\n".join(printed(capsys, run, "--cost", "latency", "--max-error-increase", "1"))
    means = [float(each) for each in re.findall(r"mean ([\d.]+) ms;", out)]
    assert len(means) == 2
    for mean in means:
        assert mean > 1.5
        assert re.search(r"1\.500 ms; early exit costs [\d.]+ % more of the time", out)
    assert "saves" not in out
    fast = ExitCosts([0.1, 0.2, 1.5], [0.0, 0.0], [0.1, 0.2, 1.5])
    monkeypatch.setattr("auxnet.solving.exit_latencies", lambda *_: fast)
    assert "early exit saves " in "\n".join(printed(capsys, run, "--cost", "latency", "--max-error-increase", "40"))


def test_an_output_alone_is_advised_by_what_it_costs_alone(run, capsys, monkeypatch):
    """With all that early exit does output 1 takes 3 ms, and alone 1: the bound of 2 leaves room for it alone."""
    wide = ExitCosts([1.9, 3.0, 4.0], [1.0, 1.0], [1.0, 1.5, 9.0])
    monkeypatch.setattr("auxnet.solving.exit_latencies", lambda *_: wide)
    monkeypatch.setattr("auxnet.scores.FEW_IMAGES", 146)
    out = "\n".join(printed(capsys, run, "--max-mean-latency", "1.9"))
    assert "note: 145 validation images, fewer than 146, tell little" in out
    assert "note: latency is that of the PyTorch model; an ONNX file of it is usually faster" in out
    said = asked(capsys, run, "--max-mean-latency", "1.9")["notes"]
    assert [line[6:] for line in out.splitlines() if line.startswith("note: ")] == said
    assert re.search(
        r"note: for this target output [12] alone does as well .*: on validation [\d.]+ % error at 1\.[05]00 ms", out
    )


def test_under_a_bound_the_output_alone_that_errs_least_is_advised_the_final_one_too(run, monkeypatch):
    """In milliseconds early exit costs more than the models alone: all of them keep the bound, and it hardly does."""
    wide = ExitCosts([1.9, 3.0, 4.0], [1.0, 1.0], [1.0, 1.5, 1.8])
    monkeypatch.setattr("auxnet.solving.exit_latencies", lambda *_: wide)
    found = auxnet.solve_exits(run, max_mean_latency=1.9, points=2)
    errors = [point.val.error for point in found.curves["anytime"]]
    best = min(range(3), key=lambda k: (errors[k], wide.alone[k]))
    assert best > 0
    assert errors[best] < found.val.error
    said = f"for this target output {best + 1} alone does as well as early exit, or better: on validation "
    assert found.notes[0].startswith(f"{said}{100 * errors[best]:.2f} % error")


@pytest.mark.parametrize(
    "target", [{"max_mean_macs": 1.0}, {"max_mean_macs": 1.3}, {"max_mean_macs": 3.0}, {"max_error_increase": 0.1}]
)
def test_the_best_output_alone_for_the_same_target_stands_beside_early_exit_where_it_errs_more_too(run, target):
    first = auxnet.solve_exits(run, points=2).alone[0]
    bound = target.get("max_mean_macs", 0) * first
    found = auxnet.solve_exits(run, **({"max_mean_macs": bound} if bound else target), points=2)
    errors = [point.val.error for point in found.curves["anytime"]]
    rows = list(zip(errors, found.alone, (1, 2, 3), strict=True))
    if bound:
        how, (error, macs, k) = "best", min(row for row in rows if row[1] <= bound)
    else:
        how, (error, macs, k) = "cheapest", min((r for r in rows if r[0] <= rows[-1][0] + 0.1), key=lambda row: row[1])
    (said,) = [note for note in found.notes if "for this target" in note]
    early = f"{100 * found.val.error:.2f} % error at {found.val.mean_cost:,.0f} MACs"
    one = f"{100 * error:.2f} % error at {macs:,.0f} MACs"
    order = 1 if bound else -1
    if (error, macs)[::order] <= (found.val.error, found.val.mean_cost)[::order]:
        warned = f"for this target output {k} alone does as well as early exit, or better: on validation {one}"
        assert said == f"{warned}, against {early}; `auxnet select {run}` compares the outputs"
    else:
        less = "errs less" if bound and found.val.error < error else "costs less"
        beaten = f"the {how} output alone for this target (output {k})"
        assert said == f"on validation early exit {less} than {beaten}: {early}, against {one}"


def test_a_single_output_is_only_warned_of_where_it_is_as_good_for_the_target():
    def said(errors, alone, early, target):
        outputs = [SimpleNamespace(val=SimpleNamespace(error=error)) for error in errors]
        val = SimpleNamespace(error=early[0], mean_cost=early[1], shares=(0.5, 0.5))
        (note,) = _of_output_alone("auxnet select a", outputs, alone, val, target, "MACs")
        return note.partition(" for this target (")[0].partition(" alone does")[0]

    bound, kept = {"max_mean_cost": 25.0}, {"max_error_increase": 0.05}
    one, two = ("for this target output 1", "for this target output 2")
    assert (
        said((0.3, 0.1), (10, 20), (0.05, 22), bound) == "on validation early exit errs less than the best output alone"
    )
    assert (
        said((0.3, 0.1), (10, 20), (0.1, 19), bound) == "on validation early exit costs less than the best output alone"
    )
    assert [said((0.3, 0.1), (10, 20), early, bound) for early in ((0.1, 20), (0.1, 21), (0.2, 9))] == [two] * 3
    assert said((0.3, 0.1), (10, 30), (0.4, 9), bound) == one
    least = "on validation early exit costs less than the cheapest output alone"
    assert said((0.3, 0.1), (10, 20), (0.15, 19), kept) == least
    assert [said((0.3, 0.1), (10, 20), early, kept) for early in ((0.1, 20), (0.05, 21))] == [two] * 2
    assert said((0.15, 0.1), (10, 20), (0.1, 11), kept) == one


def test_both_rises_are_printed_that_of_images_solved_on_and_that_of_images_left_out(run, capsys):
    content = asked(capsys, run, "--max-error-increase", "10")
    out = "\n".join(printed(capsys, run, "--max-error-increase", "10"))
    here, there = content["val"]["against_final"]["difference"], content["cross_fitted"]["rise"]
    assert here <= 0.1 + 1e-9
    assert there <= 0.1 + 1e-9
    assert f"rises by {100 * here:.2f} points on the validation images that the thresholds are solved on" in out
    low, high = content["cross_fitted"]["rise_interval"]
    assert f"and by {100 * there:.2f} ({100 * low:.1f} .. {100 * high:.1f}) on images left out of solving" in out
    assert "left out of solving" not in "\n".join(printed(capsys, run, "--max-mean-macs", "1M"))
    assert json.loads((run / "exits.json").read_text())["cross_fitted"] is None


def test_a_target_that_is_kept_to_the_last_image_is_not_said_to_be_missed():
    val, final = SimpleNamespace(images=1000), torch.zeros(1000, dtype=torch.bool)

    def said(target, errors):
        test = SimpleNamespace(against_final=compare(torch.arange(1000) < errors, final))
        unkept, answer = CrossFit(5, None, 0.0, (0.0, 0.0)), SimpleNamespace(val=val, test=test)
        return " ".join(_of_target(target, unkept, answer, ""))

    for tenths in range(5, 60):
        target = tenths / 10 / 100  # as the command has it: 0.7 points are less than 7 / 1000
        assert "rises by more than the target" not in said(target, tenths)
        assert "rises by more than the target" in said(target, tenths + 1)
        assert "are too few to show" not in said(target, tenths)
    assert "are too few to show" in said(0.4 / 100, 4)
    val.images = 4
    assert "4 validation images are too few to show that a target of 5 points is kept (they can show none)" in said(
        0.05, 50
    )


def test_a_target_below_what_the_images_can_show_is_said_so_and_kept_by_the_final_output_alone(run, capsys):
    """145 validation images: five of them are 3.45 points."""
    assert main(["exits", str(run), "--max-error-increase", "3.44", "--curve", "2"]) == 0
    said = "145 validation images are too few to show that a target of 3.44 points is kept (3.45 is the least that they"
    assert said in capsys.readouterr().out
    content = json.loads((run / "exits.json").read_text())
    assert (content["thresholds"], content["val"]["shares"]) == ([NEVER, NEVER], [0, 0, 1])
    assert said in content["notes"][0]
    assert "too few to show" not in "\n".join(printed(capsys, run, "--max-error-increase", "3.45"))


@pytest.mark.parametrize("increase", ["0.5", "3.44"])
def test_where_no_image_leaves_the_flag_is_named_with_which_some_do(increase, run, capsys):
    none = asked(capsys, run, "--max-error-increase", increase)
    said = r"\. To have images leave all the same, .*: (--max-mean-macs) (\d+) \((\S+) % error .* output (\S+) %\)$"
    flag, macs, error, final = re.search(said, none["notes"][0]).groups()
    assert final == f"{100 * none['val']['error']:.2f}"
    found = asked(capsys, run, flag, macs)["val"]
    assert found["shares"][-1] < 1
    assert found["mean_cost"] <= int(macs) < none["alone"][-1]
    assert f"{100 * found['error']:.2f}" == error
    assert max(len(each.split()) for each in re.split(r"[.:] ", none["notes"][0])) <= 25


def test_the_bound_named_is_that_of_the_cheapest_point_within_the_target_or_of_the_one_that_errs_least():
    curve = [
        SimpleNamespace(val=SimpleNamespace(error=error, mean_cost=cost))
        for error, cost in ((0.5, 10.2), (0.1, 15.2), (0.05, 18.2), (0.04, 21.0))
    ]
    named = {
        (t, unit): re.findall(r"--max\S+ \S+", _bound(curve, t, 0.05, 20, unit))
        for t in (0, 0.06)
        for unit in ("MACs", "ms")
    }
    assert named == {
        (0, "MACs"): ["--max-mean-macs 19"],
        (0, "ms"): ["--max-mean-latency 18.2"],
        (0.06, "MACs"): ["--max-mean-macs 16"],
        (0.06, "ms"): ["--max-mean-latency 15.2"],
    }
    assert "--max-mean-macs 19 (5.00 % error" in _bound(curve, 0, 0.02, 20, "MACs")
    assert _bound(curve, 0, 0.05, 10, "ms") == ""


def test_of_the_final_output_alone_no_interval_is_told_where_there_can_be_none(run, capsys):
    alone, early = ("\n".join(printed(capsys, run, *words)) for words in ([], ["--max-mean-macs", "600k"]))
    macs = f"{auxnet.solve_exits(run, points=2).alone[-1]:,.0f} MACs"
    same = f", mean {macs}; the final output alone: the same answers, {macs}; early exit saves 0.0 % of the MACs\n"
    assert (alone.count(same), alone.count("points between the two")) == (2, 0)
    assert (early.count("the same answers"), early.count("points between the two")) == (0, 2)
    assert len(re.findall(r" MACs \([\d,]+ \.\. [\d,]+\); the final output alone: [\d.]+ %, ", early)) == 2


def test_the_help_says_when_the_exit_status_is_1(capsys):
    assert main(["exits", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "if no thresholds meet a bound on the mean cost" in out


def test_the_other_curves_are_shown_when_asked_for(run, capsys):
    out = "\n".join(printed(capsys, run, "--baselines"))
    content = json.loads((run / "exits.json").read_text())
    for title in ("the least error for bounds on the mean cost", "anytime", "budgeted batch"):
        assert title in out
    for point in content["curves"]["anytime"]:
        assert re.search(rf"{point['val']['mean_cost']:,.0f} +{100 * point['val']['error']:.2f} % \(", out)


def test_no_thresholds_meet_this_is_printed_with_exit_status_1(run, capsys):
    assert main(["exits", str(run), "--max-mean-macs", "1k"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("no thresholds meet a mean of at most 1,000 MACs: every image that leaves at output 1 costs")
    assert out.count("\n") == 1
    assert err == ""


def test_an_unmet_target_is_json_too_where_that_is_asked_for(run, capsys):
    assert main(["exits", str(run), "--max-mean-macs", "1k", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["thresholds"] is None
    assert content["reason"].startswith("no thresholds meet a mean of at most 1,000 MACs")
    assert (content["target"], content["unit"]) == ({"max_mean_cost": 1000}, "MACs")
    assert len(content["costs"]) == 3


def test_an_output_alone_is_only_advised_if_it_keeps_the_bound(run, capsys):
    first = auxnet.solve_exits(run, points=2).costs[0]
    advised = {}
    for bound in (first, 1.3 * first):
        lines = "\n".join(printed(capsys, run, "--max-mean-macs", str(bound)))
        if bound == first:
            assert (lines.count("0: all that come so far leave"), lines.count("never reached")) == (1, 2)
        advised[bound] = re.findall(r"for this target output (\d) alone|the best output alone .*\(output (\d)\)", lines)
    assert advised == {
        first: [("1", "")],
        1.3 * first: [("", "1")],
    }  # output 2 errs less, and costs more than the bound


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--max-error-increase", "1", "--max-mean-macs", "1M"],
            "--max-error-increase and --max-mean-macs are 2 targets",
        ),
        (["--max-mean-macs", "1M", "--max-mean-latency", "1"], "are 2 targets: give one"),
        (
            ["--max-mean-macs", "1M", "--cost", "latency"],
            "--cost latency goes with --max-error-increase, but --max-mean-macs is given",
        ),
        (["--max-error-increase=-1"], "--max-error-increase must be percentage points, 0 or more and below 50, got -1"),
        (["--max-mean-macs", "0"], "--max-mean-macs must be 1 or more and finite, got 0"),
        (["--max-mean-latency", "nan"], "--max-mean-latency must be above 0 and finite, got nan"),
        (["--max-mean-macs", "lots"], "--max-mean-macs must be a number such as"),
        (["--confidence", "hunch"], "hunch"),
        (["--curve", "1"], "points of a curve must be a whole number in 2..100, got 1"),
        (["--curve", "100000"], "points of a curve must be a whole number in 2..100, got 100000"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(run, capsys, words, says):
    assert main(["exits", str(run), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


def test_python_solves_what_the_command_solves(run, capsys):
    content = asked(capsys, run, "--max-error-increase", "2", "--confidence", "top", "--common")
    (run / "exits.json").unlink()
    found = auxnet.solve_exits(run, max_error_increase=0.02, confidence="top", common=True, points=3)
    assert found.written == run / "exits.json"
    assert json.loads(found.written.read_text()) == content == json.loads(json.dumps(found.content))
    assert found.policy == auxnet.early_exit(run).policy
    assert (found.reason, found.unit, found.target) == (None, "MACs", {"max_error_increase": 0.02})
    assert json.loads(json.dumps([asdict(found.val), asdict(found.test)])) == [content["val"], content["test"]]
    assert [len(found.curves[name]) for name in ("solved", "anytime", "budgeted")] == [3, 3, 3]
    assert list(found.alone) == [point.val.mean_cost for point in found.curves["anytime"]] == content["alone"]
    assert list(found.costs) == content["costs"]
    assert json.loads(json.dumps(asdict(found.cross_fitted))) == content["cross_fitted"]


def test_half_a_point_is_the_target_that_is_not_given(run, capsys):
    assert asked(capsys, run)["target"] == {"max_error_increase": 0.005}
    assert auxnet.solve_exits(run, points=2).target == {"max_error_increase": 0.005}


def test_numbers_of_numpy_are_targets_too(run):
    found = auxnet.solve_exits(run, max_mean_macs=np.int64(10**8), points=np.int64(2))
    assert json.loads((run / "exits.json").read_text())["target"] == found.target == {"max_mean_cost": 1e8}


@pytest.mark.parametrize("target", [{"max_error_increase": 0.1}, {"max_mean_macs": 400_000, "confidence": "top"}])
def test_a_net_and_its_batches_are_solved_as_the_run_that_they_are_of_and_nothing_is_written(run, target):
    found = auxnet.solve_exits(run, points=3, **target)
    (run / "exits.json").unlink()
    with auxnet.opened(run) as it:
        net = it.net.train()
        on = auxnet.solve_exits_on(net, it.batches("val"), it.batches("test"), points=3, **target)
        unseen = auxnet.solve_exits_on(net, it.batches("val"), points=3, **target)
    assert net.training
    assert not (run / "exits.json").exists()
    assert (on.answer, on.curves, on.costs, on.cross_fitted) == (
        found.answer,
        found.curves,
        found.costs,
        found.cross_fitted,
    )
    assert [note.replace("auxnet.select_on", f"`auxnet select {run}`") for note in on.notes] == list(found.notes)
    assert (unseen.policy, unseen.val, unseen.test, unseen.content["test"]) == (found.policy, found.val, None, None)
    exits = EarlyExit.from_policy(net, on.policy)
    assert exits.policy == on.policy
    assert exits.net is net


def test_a_net_that_cannot_be_solved_is_refused_in_words():
    batches = [(IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64))]
    with pytest.raises(ValueError, match="the net has one output: there is nothing to leave early at"):
        auxnet.solve_exits_on(NET.up_to(1), batches)
    with pytest.raises(TypeError, match="must be an AuxNet"):
        auxnet.solve_exits_on("runs/a", batches)
    with pytest.raises(ValueError, match="are 2 targets: give one"):
        auxnet.solve_exits_on(NET, batches, max_error_increase=0.1, max_mean_macs=3)
    with pytest.raises(ValueError, match="there are no images to evaluate on"):
        auxnet.solve_exits_on(NET, [])
    with pytest.raises(TypeError, match=r"test must be batches of \(images, labels\), got 'runs/a'"):
        auxnet.solve_exits_on(NET, batches, "runs/a")
    unmet = auxnet.solve_exits_on(NET, batches, max_mean_macs=1)
    with pytest.raises(TypeError, match="from_policy takes a policy, got None: `reason` of what was solved says why"):
        EarlyExit.from_policy(NET, unmet.policy)
    with torch.device("meta"):
        assert auxnet.solve_exits_on(NET, batches, points=2).policy is not None


def test_where_no_thresholds_meet_the_target_there_is_a_reason_and_no_file(run):
    (run / "exits.json").unlink(missing_ok=True)
    found = auxnet.solve_exits(run, max_mean_macs=1000)
    assert (found.policy, found.val, found.test, found.curves, found.written) == (None, None, None, {}, None)
    assert found.reason.startswith(
        "no thresholds meet a mean of at most 1,000 MACs: every image that leaves at output 1"
    )
    assert not (run / "exits.json").exists()


def test_an_answer_that_cannot_be_written_is_given_all_the_same(run, capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("auxnet.files.write_json", full)
    with pytest.warns(UserWarning, match="exits.json is not written: .*No space left"):
        found = auxnet.solve_exits(run, points=2)
    assert found.policy is not None
    assert found.written is None
    assert main(["exits", str(run), "--curve", "2"]) == 0
    out, err = capsys.readouterr()
    assert "test images" in out
    assert "written to" not in out
    assert err == "auxnet: warning: exits.json is not written: No space left on device\n"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"max_error_increase": 0.5},
            r"must be a share of images below 0.5 \(0.005 is half a percentage point\), got 0.5",
        ),
        ({"max_error_increase": 0.01, "max_mean_latency": 1}, "max_error_increase and max_mean_latency are 2 targets"),
        ({"max_error_increase": False}, "max_error_increase must be a share of images below 0.5 .*, got False"),
        ({"max_mean_latency": True}, "bound on the mean cost must be above 0 and finite, got True"),
        ({"max_mean_macs": "30M"}, "bound on the mean cost must be above 0 and finite, got '30M'"),
        ({"cost": "parameters"}, "cost must be one of macs, latency, got 'parameters'"),
        ({"confidence": "hunch"}, "confidence must be one of entropy, top, margin, got 'hunch'"),
        ({"points": 101}, r"points of a curve must be a whole number in 2..100, got 101"),
        ({"points": 2.5}, r"points of a curve must be a whole number in 2..100, got 2.5"),
    ],
)
def test_what_python_cannot_ask_for_is_said_before_the_run_is_read(tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        auxnet.solve_exits(tmp_path / "nowhere", **settings)


def test_a_run_with_one_output_has_nothing_to_leave_early_at(tmp_path, capsys):
    auxnet.fit(
        auxnet.Recipe(depth=8, outputs=1, epochs=1, batch_size=512, device="cpu", threads=1, method="joint"),
        tmp_path / "a",
    )
    assert main(["exits", str(tmp_path / "a")]) == 2
    assert "has one output" in capsys.readouterr().err


def test_exits_that_are_missing_stale_or_damaged_are_not_used(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "exits.json").unlink(missing_ok=True)
    with pytest.raises(
        FileNotFoundError, match=r"holds no exits.json: `auxnet exits \S*copy`, or auxnet.solve_exits\('\S*copy'\)"
    ):
        auxnet.early_exit(copy)
    asked(capsys, copy)
    content = json.loads((copy / "exits.json").read_text())
    (copy / "exits.json").write_text(json.dumps({**content, "weights_sha256": "0"}))
    with pytest.raises(RuntimeError, match="made for other weights"):
        auxnet.early_exit(copy)
    (copy / "exits.json").write_text(json.dumps({**content, "thresholds": [0.5]}))
    with pytest.raises(
        RuntimeError, match=r"of another network; `auxnet exits \S*` makes it again \(3 outputs need 2 th"
    ):
        auxnet.early_exit(copy)
    for damaged in ("[]", "{"):
        (copy / "exits.json").write_text(damaged)
        with pytest.raises(RuntimeError, match=r"is damaged.*; `auxnet exits \S*copy` makes it again"):
            auxnet.early_exit(copy)


def test_exits_solved_for_the_last_and_for_the_best_weights_lie_side_by_side(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "exits.json").unlink(missing_ok=True)
    one_class_alone(copy / "checkpoints" / "best.safetensors")
    images, written = [np.full((8, 8), 9 * n, np.uint8) for n in range(9)], {}
    for which, name in (("best", "exits-best.json"), ("last", "exits.json")):
        mend = rf"holds no {name}: `auxnet exits \S*copy{' --which best' * (which == 'best')}`, or auxnet.solve_exits"
        with pytest.raises(FileNotFoundError, match=mend):
            auxnet.early_exit(copy, which)
        content = asked(capsys, copy, "--max-error-increase", "20", "--which", which)
        assert (content["weights"], content["weights_sha256"]) == (which, weights_sha256(copy, which))
        written[name] = content
        exits = auxnet.early_exit(copy, which)
        with torch.no_grad():
            left = exits(auxnet.load(copy, which).prepare(images)).output.tolist()
        assert [each.output for each in auxnet.predict(copy, images, exits=True, which=which)] == left
        policy, notes = solved_for(copy, exits.net)  # as a report shows the last weights
        assert policy == (exits.policy if which == "last" else None)
        assert notes == (content["notes"] if which == "last" else [])
    assert {name: json.loads((copy / name).read_text()) for name in written} == written
    assert len({content["val"]["error"] for content in written.values()}) == 2


def test_images_that_are_not_for_the_net_are_refused():
    net = auxnet.resnet(8, 2).eval()
    with pytest.raises(ValueError, match="images must have 4x4 pixels or more"):
        EarlyExit(net, [0.5])(torch.zeros(1, 3, 2, 2))
