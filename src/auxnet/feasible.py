"""Whether a recipe can be trained: in itself, on this machine, with its data; checked before the first step."""

from __future__ import annotations

from dataclasses import replace

import torch

from auxnet.build import build_method, depths_of, dtype_of, outline
from auxnet.cost import step_bytes
from auxnet.data import DataSet
from auxnet.errors import TooLittleMemoryError, first_line
from auxnet.losses import cross_entropy
from auxnet.machine import device_of, most_memory
from auxnet.modules import copied
from auxnet.network import AuxNet
from auxnet.recipe import Recipe
from auxnet.residual import resnet
from auxnet.schedules import weights_of
from auxnet.words import gigabytes, plural

MOST_STAND_INS = 50  # outputs of a net that stands in for a backbone that is not built yet


def check_recipe(recipe: Recipe, begins: bool = True) -> None:
    """Raise ValueError, before any data are read, for a recipe that would fail with any data.

    Checks what `check_fields` checks, and whether the method can train a net with so many outputs.
    """
    check_fields(recipe, begins)
    if recipe.backbone is None:
        net = outline(recipe)
    else:  # a built-in net with as many outputs stands in for the backbone
        K = len(depths_of(replace(recipe, alone=None)))
        if K > MOST_STAND_INS:  # its time grows with K^2; the backbone itself says how many there can be
            return
        with torch.device("meta"):  # takes no memory
            net = resnet(6 * K + 2, K)
    if recipe.alone is not None and recipe.alone > net.outputs:
        raise ValueError(f"alone must be one of the outputs 1..{net.outputs} (shallow to deep), got {recipe.alone}")
    build_method(recipe, net if recipe.alone is None else net.alone(recipe.alone), cross_entropy)


def check_fields(recipe: Recipe, begins: bool = True) -> None:
    """Raise ValueError for fields that ask for what this machine does not have, or that do not go together.

    With `begins`, a `discard_after` in epochs must also leave an epoch in which it acts (a single epoch is exempt).
    """
    device_of(recipe.device)
    if recipe.freeze == "trunk":
        _check_freeze(recipe)
    if begins and (recipe.discard_after or 0) >= 1 and recipe.discards_from is None and recipe.epochs > 1:
        most = f"at most {plural(recipe.epochs - 1, 'epoch')}, discard_after={recipe.epochs - 1}"
        raise ValueError(f"discard_after={recipe.discard_after:g} never acts in {recipe.epochs} epochs: give {most}")


def _check_freeze(recipe: Recipe) -> None:
    """Raise ValueError if a frozen trunk has no pretrained weights, or an auxiliary head has nothing to learn."""
    if recipe.pretrained is None:
        raise ValueError("freeze='trunk' keeps pretrained weights, and there are none: name them with --pretrained")
    depths = depths_of(recipe)
    if len(depths) == 1:
        raise ValueError("freeze='trunk' trains auxiliary heads alone, and one output leaves none: ask for more")
    if not all(weights_of(recipe, depths)):
        raise ValueError("freeze='trunk' trains auxiliary heads, and one of weight 0 would not train: give it more")


def check_enough_images(recipe: Recipe, dataset: DataSet) -> None:
    """Raise ValueError if the recipe asks for fewer training images than there are classes."""
    if recipe.train_images is not None and recipe.train_images < dataset.num_classes:
        least = f"{dataset.num_classes}, one of each class"
        raise ValueError(f"train_images must be at least {least}, got {recipe.train_images}")


def check_last_batch(recipe: Recipe, dataset: DataSet, net: AuxNet, processes: int = 1) -> None:
    """Raise ValueError if a process gets a single image of a batch, and a norm of the net cannot normalise by one."""
    images, size = len(dataset.train), recipe.batch_size
    sizes = {images % size or size, min(images, size)}  # of the last batch, and of the others
    alone = 1 in sizes or (processes > 1 and any(processes <= n < 2 * processes for n in sizes))
    if not alone or (recipe.sync_batchnorm and 1 not in sizes):
        return
    whose = f"the last of {images} training images' batches" if 1 in sizes else f"one of {processes} processes"
    twin = copied(net).to("meta").train()
    image = torch.empty(1, dataset.channels, *dataset.image_size, device="meta", dtype=dtype_of(recipe))
    try:
        with torch.no_grad():
            twin(image)
    except RuntimeError:
        return  # the net looks at values of a tensor, and on "meta" there are none
    except ValueError as error:
        raise ValueError(
            f"batch_size={size} leaves one image to {whose}, which this net cannot normalise ({first_line(error)}): "
            "give another batch_size"
        ) from None


def check_memory(recipe: Recipe, dataset: DataSet, net: AuxNet, processes: int = 1) -> int | None:
    """Bytes that a training step will keep for its backwards (`step_bytes`); None if that is unknown.

    Raises TooLittleMemoryError if the machine has less memory: the system would kill the process silently.
    """
    device, batch = device_of(recipe.device), min(recipe.batch_size, len(dataset.train)) // processes
    needed = step_bytes(net, (dataset.channels, *dataset.image_size), batch, dtype_of(recipe))
    there_is = most_memory(device) if device.type in ("cpu", "cuda") else None
    if needed is None or there_is is None or recipe.compile:  # compiled segments may keep less
        return needed
    if needed > there_is:
        H, W = dataset.image_size
        fits = processes * (there_is * batch // (2 * needed))
        mend = f"a batch_size of {fits} or less, or " if fits > 1 else ""
        raise TooLittleMemoryError(
            f"a step on {plural(batch, 'image')} of {W}x{H} pixels would keep {gigabytes(needed)}, and there are "
            f"{gigabytes(there_is)} of memory: give {mend}a smaller image_size"
        )
    return needed
