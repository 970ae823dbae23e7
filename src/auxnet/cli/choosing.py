"""`auxnet evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from auxnet.cli import screen
from auxnet.cli.arguments import parse
from auxnet.recipe import read_run_recipe


@dataclass(frozen=True)
class Evaluate:
    """Recompute the table of outputs of a run from the weights it saved."""

    run: Positional[Path]
    """the run directory"""
    data_dir: str | None = None
    """where data sets lie, if not where they lay in training"""
    device: str | None = None
    """auto, cpu, cuda, ... (default: as in training)"""


def evaluate(words: list[str]) -> None:
    """`auxnet evaluate`."""
    options = parse(Evaluate, words)
    recipe = read_run_recipe(options.run)
    recipe = replace(recipe, data_dir=options.data_dir or recipe.data_dir, device=options.device or recipe.device)
    from auxnet.checkpoint import read_json
    from auxnet.train import device_of, load_data, tables, threads_of

    with threads_of(recipe):
        again = tables(options.run, load_data(recipe), device_of(recipe))
    screen.show_tables(screen.console(), again, read_json(options.run / "summary.json")["epochs"])
