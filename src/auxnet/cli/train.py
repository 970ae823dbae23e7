"""`auxnet train` and `auxnet plan`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff

from auxnet.cli import screen
from auxnet.cli.arguments import OfRecipe, parse_with_recipe, value_of
from auxnet.files import written_whole
from auxnet.recipe import WHERE, Recipe, folder_name, read_run_recipe, words_of, write_recipe
from auxnet.words import command, duration, gigabytes, per_cent, plural

if TYPE_CHECKING:
    from auxnet.plan import Plan as Planned
    from auxnet.progress import Progress


@dataclass(frozen=True)
class Train(OfRecipe):
    """Train by a recipe, and print the table of outputs. Flags win over the file."""

    config: Path | None = None
    """a recipe file (YAML), such as the recipe.yaml of a run"""
    out: Path | None = None
    """the run directory; none: a new folder under runs/"""
    resume: FlagCreatePairsOff[bool] = False
    """continue the run in --out, by its own recipe; with --data or --config, begin it if there is none yet"""
    overwrite: FlagCreatePairsOff[bool] = False
    """replace the run in --out"""
    save_every: float | None = None
    """seconds between two checkpoints within an epoch (one at its end is always saved); none: as before, or 300"""
    keep: int | None = None
    """how many checkpoints to keep, the newest ones; none: as before, or 2"""
    diagnose: FlagCreatePairsOff[bool] = False
    """measure the share of supervision after every epoch, for auxnet diagnose to show; changes no weight"""
    tensorboard: FlagCreatePairsOff[bool] = False
    """write the learning curves for TensorBoard too, after every epoch, into tensorboard/ of the run"""


@dataclass(frozen=True)
class Plan(OfRecipe):
    """Say what a recipe will do, and what it will cost, without training."""

    config: Path | None = None
    """a recipe file (YAML)"""
    save: Path | None = None
    """write the recipe, complete, into this file, for --config"""
    overwrite: FlagCreatePairsOff[bool] = False
    """replace the file of --save"""


def train(words: list[str]) -> None:
    """`auxnet train`."""
    options = parse_with_recipe(Train, words)
    if options.resume and options.out is None:
        raise ValueError("--resume goes on with a run: name it with --out")
    screen.load_torch()
    from auxnet import rundir
    from auxnet.advice import few_steps
    from auxnet.scores import no_better_than_guessing
    from auxnet.train import fit

    console = screen.console()
    compiling = ", compiling (once, up to a minute or more)" if options.recipe.compile else ""
    with screen.training_progress(console, f"reading the data{compiling}") as watch_bar:
        out = options.out or _unused_folder(options.recipe)
        replaced = _replaced(options.recipe, out) if options.overwrite else None
        given = options.config is not None or value_of("--data", words) is not None
        resume = None if options.resume and given else options.resume  # a misspelt --out alone begins nothing
        goes_on = options.resume and rundir.to_resume(out)[0]
        began = False

        def watch(progress: Progress) -> None:
            nonlocal began, replaced
            if not began:
                resumed = f", goes on in epoch {progress.epoch}, step {progress.step}" if goes_on else ""
                screen.print_line(console, f"training into {out}{resumed}")
            began = True
            if progress.done and replaced:  # the run that lay there is gone only now
                screen.print_line(console, replaced)
                replaced = None
            watch_bar(progress)

        run = fit(
            options.recipe,
            out,
            resume=resume,
            overwrite=options.overwrite,
            save_every=options.save_every,
            keep=options.keep,
            diagnose=options.diagnose,
            tensorboard=options.tensorboard,
            watch=watch,
        )
    if not run.summary:  # under torchrun, process 0 has it
        return
    if not began:
        screen.print_line(console, "it was finished already: nothing was left to train")
    _show_outputs(console, run.summary, run.summary["epochs"])
    data, device = run.summary["data"], run.summary["device"]
    images = f"{data['train']:,} training, {data['val']:,} validation and {data['test']:,} test images"
    least = min(row["val_error"] for row in run.summary["last"])
    if guess := no_better_than_guessing(least, data["val"], data["guessing"]):
        screen.print_line(console, f"note: the least validation error is {per_cent(least)}: {guess}")
    for hint in few_steps(options.recipe, data["train"]):
        screen.print_line(console, f"note: {hint}")
    on = plural(device["threads"], "thread")
    time = f"{duration(run.summary['wall_seconds'])} on {device['name']}, {on}"
    screen.print_line(console, f"{images}; seed {run.summary['seed']}; {time}")
    screen.print_line(console, f"to look at it: {command('report', run.folder)}")
    screen.print_line(console, f"to choose an output: {command('select', run.folder)}")
    screen.print_line(console, f"the run lies in {run.folder}")


def plan(words: list[str]) -> None:
    """`auxnet plan`."""
    options = parse_with_recipe(Plan, words)
    if options.save is not None and options.save.exists() and not options.save.is_file():
        raise FileExistsError(f"{options.save} is no file: name one with --save")
    if options.save is not None and options.save.exists() and not options.overwrite:
        raise FileExistsError(f"{options.save} exists: name another file with --save, or replace it with --overwrite")
    if options.save is not None and not options.save.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {options.save.parent} to save {options.save.name} in: make it first"
        )
    screen.load_torch()
    from auxnet.plan import plan as work_out

    console = screen.console()
    with screen.working("reading the data and measuring a few steps"):
        planned = work_out(options.recipe)
    screen.print_table(console, _plan_table(planned))
    images = f"{planned.train:,} training, {planned.val:,} validation and {planned.test:,} test images"
    epochs = plural(options.recipe.epochs, "epoch")
    total = f"{duration(planned.seconds_per_epoch)} an epoch, {duration(planned.seconds)} for {epochs}"
    steps = "one step" if planned.measured_steps == 1 else "a few steps"
    measured = f"measured just now, from {steps} of {plural(planned.measured_images, 'image')}"
    memory = "" if planned.step_bytes is None else f"; {gigabytes(planned.step_bytes)} of memory for a step"
    screen.print_line(console, f"{images}; about {total} ({measured}){memory}")
    for note in planned.notes:
        screen.print_line(console, f"note: {note}")
    for warning in planned.warnings:
        screen.print_line(console, f"warning: {warning}")
    if options.save is not None:
        with written_whole(options.save.resolve()) as partial:
            write_recipe(options.recipe, partial)
        screen.print_line(console, f"to train by it: {command('train', '--config', options.save)}")


def _show_outputs(console: Console, tables: dict[str, Any], epochs: dict[str, int]) -> None:
    """The outputs after the last epoch, and after the epoch that is best on validation, if that is another."""
    last, best = epochs["last"], epochs["best"]
    screen.print_table(console, _outputs_table(tables["last"], f"after epoch {last}, the last"))
    if best != last:
        screen.print_table(
            console, _outputs_table(tables["best"], f"after epoch {best}, the best by mean validation error")
        )
        what = "evaluate, select, exits, export and predict take the weights of the last epoch"
        screen.print_line(console, f"{what}, and with --which best those of epoch {best}")


def _outputs_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """A table with one line per output of a finished run."""
    made = screen.table(title, "output", "depth", "parameters", "MACs", "val. error", "test error")
    for row in rows:
        errors = (per_cent(row["val_error"]), per_cent(row["test_error"]))
        made.add_row(str(row["output"]), str(row["depth"]), f"{row['params']:,}", f"{row['macs']:,}", *errors)
    return made


def _plan_table(planned: Planned) -> Table:
    """One line per planned output, shallow to deep."""
    title = (
        "each output: what it costs alone, the weight of its loss (lambda), and for its segment (the layers since the "
        "output before), relative to the recipe: the step along its own loss, along all losses, and the weight decay"
    )
    made = screen.table(title, "output", "depth", "parameters", "MACs", "lambda", "own step", "all steps", "decay")
    for o in planned.outputs:
        multipliers = (f"{o.weight:.4f}", f"{o.step:.3f}", f"{o.steps_above:.3f}", f"{o.decay:.3f}")
        made.add_row(str(o.output), str(o.depth), f"{o.params:,}", f"{o.macs:,}", *multipliers)
    return made


def _replaced(recipe: Recipe, out: Path) -> str | None:
    """A line on how a run differs from the recipe that is to replace it; None if it does not, or there is no run."""
    from auxnet.rundir import with_absolute_paths

    try:
        old, new = with_absolute_paths(read_run_recipe(out)), with_absolute_paths(recipe)
    except (ValueError, OSError, RuntimeError):  # no run, or none that can be read
        return None
    differ = [
        f"{name}={words_of(value)}"
        for name, value in vars(old).items()
        if name not in WHERE and value != vars(new)[name]
    ]
    return f"replaces a run that had {', '.join(differ)}" if differ else None


def _unused_folder(recipe: Recipe) -> Path:
    name = f"runs/{folder_name(recipe)}"
    numbered = (Path(name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())
