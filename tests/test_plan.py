"""What `plan` says a training will do to the trunk, against what one step of it does."""

import platform
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from auxnet import AuxNet, Recipe, build, feasible, fit, machine, methods, resnet
from auxnet import plan as planning
from auxnet.advice import (
    copies_doubts,
    data_doubts,
    few_steps,
    ignores_weights,
    notes_of,
    precision_doubts,
    speed_notes,
    training_doubts,
)
from auxnet.build import step_scale_of
from auxnet.cost import step_bytes
from auxnet.data import load_data
from auxnet.plan import plan, planned_outputs
from auxnet.residual import Classifier
from auxnet.watching import PeakBytes
from auxnet.words import duration
from writers import tiny, write_folders, write_parquet

ETA, DECAY = 1.0, 1e-4
METHODS = [("joint", "live"), ("pairwise", "live"), ("multiway", "live"), ("multiway", "frozen"), ("multiway", "fused")]


@pytest.mark.parametrize("use", [plan, lambda recipe: fit(recipe, "never")], ids=["plan", "fit"])
def test_fewer_training_images_than_classes_are_refused(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="train_images must be at least 10, one of each class, got 9"):
        use(Recipe(depth=8, epochs=1, train_images=9))


@pytest.mark.parametrize(
    ("images", "batch_size", "said"),
    [
        (343, 128, "an epoch has 3 steps of 128 images: with --batch-size 17 it has 21, and wants a smaller --lr"),
        (100, 64, "an epoch has 2 steps of 64 images: with --batch-size 16 it has 7"),
        (100, 16, None),
        (15, 128, None),
        (100, 128, "an epoch has 1 step of 128 images: with --batch-size 16 it has 7"),
        (1293, 128, None),
    ],
)
def test_few_steps_an_epoch_are_warned_of(images, batch_size, said):
    found = [*few_steps(Recipe(batch_size=batch_size), images)]
    assert found == [] if said is None else found[0].startswith(said)


@pytest.mark.parametrize("weights", [(0.5, 0.8, 1.0), (0.0, 0.7, 1.0), (0.0, 0.0, 1.0), (0.9, 0.0, 1.0)], ids=str)
@pytest.mark.parametrize(("method", "mode"), METHODS)
@pytest.mark.enough(8)
def test_decay_is_what_a_segment_sees_in_a_step_discarded_outputs_left_out(method, mode, weights):
    recipe = Recipe(depth=8, outputs=3, method=method, mode=mode, weights=weights)
    planned = planned_outputs(recipe, load_data(recipe))
    net = resnet(depth=8, outputs=3, in_channels=1).double()
    sgd = partial(torch.optim.SGD, lr=ETA, weight_decay=DECAY)
    options = {"step_scale": step_scale_of(recipe), "loss": lambda logits, labels: 0 * logits.sum()}
    if method == "multiway":
        options["mode"] = mode
    step = getattr(methods, method)(net, sgd, weights, **options).step
    convolutions = [
        next(m.weight for m in segment.modules() if isinstance(m, torch.nn.Conv2d)) for segment in net.segments
    ]
    before = [weight.detach().clone() for weight in convolutions]
    step(torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.randint(10, (4,)))
    for output, weight, old in zip(planned, convolutions, before, strict=True):
        decayed = ((old - weight) / old).detach().mean() / (ETA * DECAY)
        assert float(decayed) == pytest.approx(output.decay, abs=1e-3)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop", "Adagrad"])
@pytest.mark.parametrize(("method", "mode"), METHODS)
def test_loss_weights_are_said_to_be_ignored_just_where_the_trunk_hardly_feels_them(method, mode, optimizer):
    recipe = Recipe(depth=8, outputs=2, method=method, mode=mode, optimizer=optimizer)
    images, labels = torch.randn(16, 1, 8, 8, dtype=torch.float64), torch.arange(16) % 10

    def moved_by(first):
        torch.manual_seed(0)
        net = resnet(depth=8, outputs=2, in_channels=1).double()
        before = [p.detach().clone() for p in net.segments[0].parameters()]
        options = {"mode": mode} if method == "multiway" else {}
        make = partial(getattr(torch.optim, optimizer), lr=1e-6)
        getattr(methods, method)(net, make, (first, 1.0), **options).step(images, labels)
        after = net.segments[0].parameters()
        return torch.cat([(a - b).detach().flatten() for a, b in zip(after, before, strict=True)])

    alike = torch.cosine_similarity(moved_by(1.0), moved_by(0.01), dim=0)
    assert (alike > 0.98) == ignores_weights(recipe)


def test_few_validation_images_and_copies_of_training_images_among_those_that_judge_are_told(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (160, 8, 8, 3), np.uint8)
    parts = {"train": images[:40], "val": images[40:60], "test": images[60:160]}
    labels = {f"{split}_labels": np.arange(len(part)) % 2 for split, part in parts.items()}
    for copies in (0, 3):
        images[60 : 60 + copies] = images[:copies]
        np.savez(tmp_path / f"{copies}.npz", **{f"{split}_images": part for split, part in parts.items()}, **labels)
        recipe = Recipe(data=f"{tmp_path}/{copies}.npz")
        crops = replace(recipe, augment="rrc+flip", image_size=8)
        assert len([*copies_doubts(load_data(crops))]) == bool(copies)  # training images are kept larger there
        few, *copied = data_doubts(recipe, load_data(recipe))
        assert few.startswith(
            "20 validation images, fewer than 100, tell little, one is 5 points: a new training with more"
        )
        assert len(copied) == bool(copies)
    assert copied[0].startswith("copies, pixel for pixel, of training images are 3 of 100 test images: errors on them")


@pytest.mark.parametrize(
    ("sizes", "share"), [([(64, 36)], "100 %"), ([(64, 48)], None), ([(20, 80), (40, 40)], "50 %")]
)
def test_what_squares_cut_away_of_pictures_is_told_if_it_is_much(sizes, share, tmp_path):
    for n in range(12):
        (tmp_path / "ab"[n % 2]).mkdir(exist_ok=True)
        Image.new("RGB", sizes[n // 6 % len(sizes)]).save(tmp_path / "ab"[n % 2] / f"{n}.png")
    (tmp_path / "a" / "broken.png").write_bytes(b"")
    recipe = Recipe(data=str(tmp_path), image_size=32, max_corrupt=1, val_fraction=0.2)
    for stream in ("never", "always"):
        told = [doubt for doubt in data_doubts(recipe, load_data(replace(recipe, stream=stream))) if "square" in doubt]
        assert len(told) == (share is not None)
        for doubt in told:
            lost = f"keeps the middle square of each picture, about {share} of them lose 40 % or more: --fit pad"
            assert f"--image-size 32 {lost}" in doubt
            for whole in ("pad", "stretch"):  # then nothing is cut
                kept = replace(recipe, fit=whole)
                assert not [each for each in data_doubts(kept, load_data(kept)) if "square" in each]
    if len(sizes) == 1:  # without a size neither
        whole = replace(recipe, image_size=None)
        assert load_data(whole).image_size == sizes[0][::-1]
        assert not [doubt for doubt in data_doubts(whole, load_data(whole)) if "square" in doubt]


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_what_squares_cut_away_is_told_of_arrays_and_of_parquet_too(form, tmp_path):
    for shape, told in (((36, 64), 1), ((48, 64), 0)):
        images = np.random.default_rng(0).integers(0, 256, (40, *shape, 3), np.uint8)
        labels = np.arange(40) % 2
        data = tmp_path / str(told)
        if form == "npz":
            data = tmp_path / f"{told}.npz"
            np.savez(data, images=images, labels=labels)
        else:
            data.mkdir()
            write_parquet(data / "train.parquet", images, labels.tolist())
        recipe = Recipe(data=str(data), image_size=32)
        assert sum("square" in doubt for doubt in data_doubts(recipe, load_data(recipe))) == told


def test_an_optimizer_that_normalises_gradients_is_warned_of_with_unequal_weights_and_with_the_step_of_sgd():
    adam, depths = Recipe(optimizer="AdamW", method="pairwise", lr=0.001, weight_decay=0.01), (5, 8)
    assert "pairwise each output has one of its own: loss weights" in next(training_doubts(adam, depths))
    assert [*training_doubts(replace(adam, gamma=0.0), depths)] == []
    assert [*training_doubts(replace(adam, weights=(0.0, 1.0)), depths)] == []
    assert len([*training_doubts(replace(adam, weights=(1.0, 1.0), weight_schedule="linear"), depths)]) == 1
    step, decay = training_doubts(Recipe(optimizer="AdamW", method="joint"), depths)
    assert step.startswith("--lr 0.1 is the step size for SGD: AdamW usually wants about a hundredth")
    assert decay == "--weight-decay 0.0001 is SGD's: AdamW usually wants 0.01 to 0.05"
    (doubt,) = training_doubts(Recipe(optimizer="Adagrad", method="joint"), depths)
    assert doubt.endswith("Adagrad usually wants about a tenth of it")
    for other in ("SGD", "Adadelta"):
        assert [*training_doubts(Recipe(optimizer=other, method="joint"), depths)] == []
    steps = [o.step for o in planned_outputs(replace(adam, depth=8, lr=0.1), load_data(adam))]
    assert steps == [1.0, 1.0, 1.0]


def test_what_changes_after_the_first_epoch_is_noted_and_nothing_else():
    depths, recipe = (3, 5, 8), Recipe(depth=8, outputs=3, epochs=10)
    assert [*notes_of(recipe, depths)] == []
    assert [*notes_of(replace(recipe, weights=(0.0, 0.0, 1.0), discard_after=0.5), depths)] == []
    (linear,) = notes_of(replace(recipe, weight_schedule="linear"), depths)
    assert "those of the first epoch" in linear
    assert "to 1/10 of themselves" in linear
    discarded = replace(recipe, discard_after=0.5)
    assert [*notes_of(discarded, depths)] == ["from epoch 6 on the auxiliary losses are discarded (discard_after)"]
    (adaptive,) = notes_of(replace(recipe, step_scale="adaptive"), depths)
    assert adaptive.startswith("the steps are those of step_scale cumulative: adaptive takes L_K / L_k")


def test_a_plan_counts_validations_and_the_evaluation_at_the_end_and_measures_no_longer_than_need_be(monkeypatch):
    recipe = Recipe(depth=8, outputs=2, train_images=50, batch_size=25, epochs=3)
    for took, steps, counted in ((1.0, 5, 4), (4.0, 3, 2), (11.0, 1, 1)):  # the first is counted where it took too long
        times = iter([0.1] + [took] * steps + [2.5])  # the first of a few images alone
        monkeypatch.setattr(planning, "_seconds_of", lambda work, times=times: next(times))
        found = plan(recipe)
        epoch = 2 * took + 0.1 * found.val
        assert (found.measured_steps, found.measured_images, next(times, None)) == (counted, 25, None)
        assert found.seconds_per_epoch == pytest.approx(epoch)
        assert found.seconds == pytest.approx(3 * epoch + 2 * 0.1 * (found.val + found.test))


def test_where_a_batch_would_take_long_a_plan_measures_a_few_images_of_it(monkeypatch):
    times = iter([4.0] + [2.0] * 5 + [0.8])
    monkeypatch.setattr(planning, "_seconds_of", lambda work: next(times))
    found = plan(Recipe(depth=8, outputs=2, train_images=50, batch_size=25))
    assert (found.measured_steps, found.measured_images, next(times, None)) == (4, 8, None)
    assert found.seconds_per_epoch == pytest.approx(50 * 2.0 / 8 + found.val * 0.8 / 8)


@pytest.mark.parametrize("method", ["joint", "multiway"])
def test_the_memory_of_a_step_is_what_a_step_was_seen_to_hold(method):
    """Against every tensor that a real step holds at once, counted operator by operator."""
    net = resnet(depth=14, outputs=2).to(memory_format=torch.channels_last)
    images, labels = torch.randn(32, 3, 16, 16).to(memory_format=torch.channels_last), torch.randint(10, (32,))
    bound = getattr(methods, method)(net, partial(torch.optim.SGD, lr=0.1))
    with PeakBytes() as held:
        bound.step(images, labels)
    assert 0.9 * held.peak < step_bytes(net, (3, 16, 16), 32, torch.float32) < held.peak
    net.freeze_trunk()
    assert step_bytes(net, (3, 16, 16), 32, torch.float32) < 0.1 * held.peak


def test_the_memory_of_a_net_that_names_what_it_gives_its_norms_is_told_too():
    class Naming(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(input=x)

    def memory(norm):
        net = AuxNet([nn.Sequential(nn.Conv2d(3, 3, 1), norm)], [Classifier(3, 4, False)], [1])
        return step_bytes(net, (3, 8, 8), 2, torch.float32)

    assert memory(Naming()) == memory(nn.BatchNorm2d(3))


def test_a_step_that_memory_has_no_room_for_is_refused(tmp_path, monkeypatch):
    recipe = Recipe(depth=8, outputs=2, batch_size=128, device="cpu")
    needed = plan(recipe).step_bytes
    monkeypatch.setattr(feasible, "most_memory", lambda device: needed - 1)
    rule = r"a step on 128 images of 8x8 pixels would keep [\d.]+ MB, and there are [\d.]+ MB of memory"
    for use in (plan, lambda recipe: fit(recipe, tmp_path / "run")):
        with pytest.raises(ValueError, match=f"^{rule}: give a batch_size of 63 or less, or a smaller image_size"):
            use(recipe)
    assert not (tmp_path / "run").exists()
    plan(replace(recipe, batch_size=63))
    monkeypatch.setattr(feasible, "most_memory", lambda device: needed // 2 + 10**5)
    net, data = resnet(**build.network_options(recipe, load_data(recipe))), load_data(recipe)
    assert feasible.check_memory(recipe, data, net, processes=2) == pytest.approx(
        needed / 2, rel=0.01
    )  # each has its part
    assert feasible.check_memory(replace(recipe, compile=True), data, net) == needed  # and may take less
    monkeypatch.setattr(feasible, "most_memory", lambda device: None)
    assert feasible.check_memory(recipe, data, net) == needed
    monkeypatch.setattr(feasible, "most_memory", lambda device: needed // 128)
    with pytest.raises(ValueError, match="MB of memory: give a smaller image_size"):
        plan(recipe)


def test_what_memory_attention_takes_is_not_told():
    """On "meta" it keeps a map of tokens x tokens, which a device does not."""
    tokens = [nn.Sequential(nn.Flatten(2)), nn.TransformerEncoderLayer(64, 2, 64, batch_first=True)]
    heads = [nn.Sequential(nn.Flatten(), nn.LazyLinear(10)) for _ in tokens]
    net = AuxNet(tokens, heads, [1, 2])
    net(torch.zeros(2, 3, 8, 8))
    assert step_bytes(net, (3, 8, 8), 2, torch.float32) is None


def test_a_plan_measures_no_more_images_than_there_are():
    found = plan(Recipe(depth=8, outputs=2, train_images=50, batch_size=3000, epochs=1))
    assert found.measured_images == 50


def test_the_memory_there_can_be_is_more_than_is_left(monkeypatch):
    most, device = machine.most_memory(torch.device("cpu")), torch.device("cpu")
    assert most is None or machine.available_memory() < most
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine.most_memory(device) == (None if most is None else most // 2)


def test_a_plan_says_that_decoding_and_augmenting_are_not_counted_where_they_take_time(tmp_path):
    write_folders(tmp_path, *tiny(40, 2, size=8), ["cat", "dog"])
    memory = Recipe(data=str(tmp_path), depth=8, outputs=2, epochs=1, batch_size=16, threads=1, device="cpu", workers=0)
    said = "the time of decoding and augmenting the images is not counted"
    for recipe in (memory, replace(memory, stream="always"), replace(memory, augment="crop+flip+trivial")):
        assert (said in plan(recipe).notes) == (recipe != memory)


def test_a_val_fraction_that_has_no_effect_is_told():
    drawn = load_data(asked := Recipe(val_fraction=0.2))
    own = replace(drawn, name="photos", brings_val=True)
    assert [*data_doubts(asked, drawn)] == [*data_doubts(Recipe(), own)] == []
    (told,) = data_doubts(asked, own)
    assert told == "val_fraction=0.2 (--val-fraction) has no effect: photos brings validation images of its own"


def test_what_has_no_effect_is_warned_of():
    depths = (5, 8)
    adam = Recipe(optimizer="AdamW", method="joint", lr=0.001, weight_decay=0.1)
    assert [*training_doubts(adam, depths)] == []
    assert [*training_doubts(replace(adam, momentum=0.5), depths)] == ["momentum=0.5 has no effect: AdamW has none"]
    (doubt,) = training_doubts(Recipe(schedule="cosine", epochs=5, warmup=3), depths)
    assert doubt == "--warmup 3 of 5 epochs leaves the cosine 2 epochs to fall in: give a shorter warm-up"
    (doubt,) = training_doubts(Recipe(temperature=2), depths)
    assert doubt == "--temperature 2 has no effect: it is distillation's, and --distill is 0"
    assert [*training_doubts(Recipe(temperature=2, distill=0.5), depths)] == []
    (doubt,) = training_doubts(Recipe(epochs=3, discard_after=0.9), depths)
    assert doubt == "--discard-after 0.9 of 3 epochs is after the last: it never acts"
    for quiet in ({"epochs": 6, "warmup": 3}, {"epochs": 2}):
        assert [*training_doubts(Recipe(schedule="cosine", **quiet), depths)] == []


def test_a_training_warns_of_them_once_at_its_beginning(tmp_path):
    recipe = Recipe(depth=8, outputs=2, epochs=1, train_images=50, batch_size=25, optimizer="Adam", method="joint")
    with pytest.warns(UserWarning, match="--lr 0.1 is the step size for SGD: Adam usually") as told:
        fit(recipe, tmp_path / "run")
    assert len(told) == 1


@pytest.mark.parametrize(
    ("machine", "amx", "avx512", "told", "noted"),
    [
        ("x86_64", True, True, [], ["this CPU has units for bfloat16 (AMX)"]),
        ("x86_64", False, True, [], []),
        ("x86_64", False, False, ["this CPU has no units for bfloat16, which is slower"], []),
        ("aarch64", False, False, [], []),
    ],
)
def test_bfloat16_is_told_to_be_slow_or_fast_where_that_is_known(machine, amx, avx512, told, noted, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    float32 = Recipe(depth=8, outputs=2, train_images=50, batch_size=25, device="cpu", threads=1)
    bfloat16 = replace(float32, precision="bfloat16")
    assert [note.partition(": ")[0] for note in plan(float32).notes] == noted
    assert [doubt.partition(" on it")[0] for doubt in [*precision_doubts(bfloat16)]] == told
    assert (
        [*precision_doubts(float32)]
        == [*speed_notes(bfloat16, 1)]
        == [*speed_notes(replace(float32, ema=0.9), 1)]
        == []
    )


@pytest.mark.parametrize("has_units", [True, False])
def test_bfloat16_is_noted_on_a_gpu_that_has_units_for_it(has_units, monkeypatch):
    monkeypatch.setattr("auxnet.advice.device_of", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if has_units else (7, 5))
    notes = [*speed_notes(Recipe(), 1)]
    assert [note.partition(": ")[0] for note in notes] == ["this GPU has units for bfloat16"] * has_units
    assert [*speed_notes(Recipe(precision="bfloat16"), 1)] == []


def test_compiling_is_noted_for_a_long_training_that_may_have_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    recipe = Recipe(device="cpu")
    (note,) = speed_notes(recipe, 1801)
    assert note.startswith("with --compile")
    assert [*speed_notes(recipe, 1799)] == [*speed_notes(replace(recipe, compile=True), 1801)] == []
    assert [*speed_notes(replace(recipe, sync_batchnorm=True), 1801)] == []


def test_classes_of_very_different_sizes_are_told():
    even, recipe = load_data(Recipe()), Recipe()
    labels = torch.tensor([0] * 8 + [1] * 2 + [2] * 5)
    uneven = replace(even, classes=("a", "b", "c"), train=replace(even.train.part(torch.arange(15)), labels=labels))
    assert [*data_doubts(recipe, uneven)] == [
        "classes have 2 to 8 training images: with --class-weights balanced each counts alike; evaluate shows the "
        "balanced error"
    ]
    nearly = replace(uneven, train=replace(uneven.train, labels=labels.where(labels != 2, 1)))
    assert [*data_doubts(replace(recipe, class_weights="balanced"), uneven)] == [*data_doubts(recipe, even)] == []
    assert [*data_doubts(recipe, replace(nearly, classes=("a", "b")))] == []
    without = replace(uneven, train=replace(uneven.train, labels=labels.where(labels != 1, 2)))
    assert [*data_doubts(recipe, without)] == []  # of "b" there is none


def test_less_than_a_second_is_not_said_to_take_none():
    said = {0: "0 s", 0.004: "0.004 s", 0.31: "0.3 s", 0.94: "0.9 s", 0.97: "1 s", 7: "7 s", 185: "3:05 min"}
    assert {seconds: duration(seconds) for seconds in said} == said
    assert duration(7385) == "2:03:05 h"
