"""A tiny finished run of three outputs on images written here, for the tests of what leaves a run."""

from dataclasses import asdict

import numpy as np
import torch
from PIL import Image

from auxnet.exits import exits_file
from auxnet.files import write_json
from auxnet.loading import weights_sha256
from auxnet.recipe import Recipe
from auxnet.train import fit


def picture(seed, size=(8, 8), bright=0):
    pixels = np.random.default_rng(seed).integers(0, 128, (*size, 3)) + bright
    return Image.fromarray(pixels.astype(np.uint8))


def write_run(folder):
    """Train for one epoch on four classes of noise, brighter from class to class; gives the run directory."""
    torch.set_num_threads(1)
    for label, name in enumerate(["ant", "bee, wild", 'cow "c"', "dög"]):
        for split, count in (("train", 24), ("test", 4)):
            home = folder / "data" / split / name
            home.mkdir(parents=True)
            for n in range(count):
                picture(1000 * label + n + 500 * (split == "test"), bright=40 * label).save(home / f"{n}.png")
    recipe = Recipe(data=str(folder / "data"), depth=8, outputs=3, epochs=1, batch_size=24, val_fraction=0.3, threads=1)
    fit(recipe, folder / "run")
    return folder / "run"


def write_policy(run, policy, **about):
    """The exits.json of a run, or with weights="best" its exits-best.json."""
    write_json(
        exits_file(run, about.get("weights", "last")),
        {"weights_sha256": weights_sha256(run), **asdict(policy), **about},
    )
