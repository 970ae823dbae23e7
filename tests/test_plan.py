"""What `plan` says a training will do to the trunk, against what one step of it does."""

from functools import partial

import pytest
import torch

from auxnet import Recipe, fit, methods, resnet
from auxnet.build import load_data, step_scale_of
from auxnet.plan import few_steps, plan, planned_outputs

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
        (1293, 128, None),
    ],
)
def test_few_steps_an_epoch_are_warned_of(images, batch_size, said):
    found = few_steps(Recipe(batch_size=batch_size), images)
    assert found == [] if said is None else found[0].startswith(said)


@pytest.mark.parametrize("weights", [(0.5, 0.8, 1.0), (0.0, 0.7, 1.0), (0.0, 0.0, 1.0), (0.9, 0.0, 1.0)], ids=str)
@pytest.mark.parametrize(("method", "mode"), METHODS)
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
