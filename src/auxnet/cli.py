"""The command line. Here, and nowhere else, arguments are parsed and things are printed.

Exit status: 0; 2 for something that cannot be asked for; 1 for something that failed; 130 when interrupted.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from auxnet import __version__, screen
from auxnet.recipe import Recipe, nearest, read_recipe, read_run_recipe

COMMANDS = {
    "train": "train by a recipe, and print the table of outputs",
    "plan": "say what a recipe will do, and cost, without training",
    "evaluate": "recompute the table of outputs of a run from what it saved",
}
Options = TypeVar("Options")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; every error is one line, never a traceback (AUXNET_DEBUG=1 shows it)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0
        if words[0] == "--version":
            print(f"auxnet {__version__}")
            return 0
        commands: dict[str, Callable[[list[str]], None]] = {"train": _train, "plan": _plan, "evaluate": _evaluate}
        if words[0] not in commands:
            raise ValueError(f"there is no command {words[0]!r}{nearest(words[0], list(COMMANDS))}; see auxnet --help")
        commands[words[0]](words[1:])
        return 0
    except KeyboardInterrupt:
        print("auxnet: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("AUXNET_DEBUG"):
            raise
        asked = isinstance(error, ValueError | FileExistsError | FileNotFoundError)
        expected = asked or isinstance(error, OSError | RuntimeError)
        kind = "" if expected else f"unexpected {type(error).__name__} (AUXNET_DEBUG=1 shows where): "
        print(f"auxnet: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 2 if asked else 1


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: auxnet COMMAND [--help] [options]",
            "",
            "Train a deep CNN once, with classifiers at several depths; ship the smallest that is good enough.",
            "",
            *lines,
            "",
            "auxnet train, with nothing else, trains on an embedded data set in about a minute.",
        ]
    )


# ---- commands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Train:
    """Train by a recipe, and print the table of outputs. Flags win over the file."""

    recipe: OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    config: Path | None = None
    """a recipe file (YAML), such as the recipe.yaml of a run"""
    out: Path | None = None
    """the run directory (default: a new folder under runs/)"""
    resume: FlagCreatePairsOff[bool] = False
    """go on with the run in --out, by its own recipe"""
    overwrite: FlagCreatePairsOff[bool] = False
    """replace the run in --out"""


@dataclass(frozen=True)
class _Plan:
    """Say what a recipe will do, and what it will cost, without training."""

    recipe: OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    config: Path | None = None
    """a recipe file (YAML)"""


@dataclass(frozen=True)
class _Evaluate:
    """Recompute the table of outputs of a run from the weights it saved."""

    run: Positional[Path]
    """the run directory"""
    data_dir: str | None = None
    """where data sets lie, if not where they lay in training"""
    device: str | None = None
    """auto, cpu, cuda, ... (default: as in training)"""


def _train(words: list[str]) -> None:
    options = _parse_with_recipe(_Train, words)
    if options.resume and options.out is None:
        raise ValueError("--resume goes on with a run: name it with --out")
    from auxnet.train import fit

    console = Console()
    with screen.training_progress(console) as watch:
        out = options.out or _unused_folder(options.recipe)
        run = fit(options.recipe, out, resume=options.resume, overwrite=options.overwrite, watch=watch)
    _show_tables(console, run.summary, run.summary["epochs"])
    data, device = run.summary["data"], run.summary["device"]
    images = f"{data['train']:,} training, {data['val']:,} validation and {data['test']:,} test images"
    time = f"{screen.duration(run.summary['wall_seconds'])} on {device['name']}, {device['threads']} threads"
    screen.print_line(console, f"{images}; seed {run.summary['seed']}; {time}\nthe run lies in {run.folder}")


def _plan(words: list[str]) -> None:
    options = _parse_with_recipe(_Plan, words)
    from auxnet.plan import plan

    console = Console()
    planned = plan(options.recipe)
    console.print(screen.plan_table(planned))
    images = f"{planned.train:,} training, {planned.val:,} validation and {planned.test:,} test images"
    epoch = planned.seconds_per_epoch
    total = f"{screen.duration(epoch)} an epoch, {screen.duration(epoch * options.recipe.epochs)} in all"
    screen.print_line(console, f"{images}; about {total} (measured just now)")
    for warning in planned.warnings:
        screen.print_line(console, f"warning: {warning}")


def _evaluate(words: list[str]) -> None:
    options = _parse(_Evaluate, words)
    recipe = read_run_recipe(options.run)
    recipe = replace(recipe, data_dir=options.data_dir or recipe.data_dir, device=options.device or recipe.device)
    from auxnet.checkpoint import read_json
    from auxnet.train import device_of, load_data, tables, threads_of

    with threads_of(recipe):
        again = tables(options.run, load_data(recipe), device_of(recipe))
    _show_tables(Console(), again, read_json(options.run / "summary.json")["epochs"])


def _show_tables(console: Console, tables: dict[str, Any], epochs: dict[str, int]) -> None:
    console.print(screen.outputs_table(tables["last"], f"after epoch {epochs['last']}, the last"))
    if epochs["best"] != epochs["last"]:
        console.print(screen.outputs_table(tables["best"], f"after epoch {epochs['best']}, the best on validation"))


# ---- arguments -------------------------------------------------------------------------------------------------


def _parse(options: type[Options], words: list[str], default: Options | None = None) -> Options:
    """The words as options; tyro's complaints, which fill a box, become one line. --help exits."""
    complaint = io.StringIO()
    command = options.__name__.strip("_").lower()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(options, args=words, prog=f"auxnet {command}", default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_one_line(complaint.getvalue())}; see auxnet {command} --help") from None


def _parse_with_recipe(options: type[Options], words: list[str]) -> Options:
    """Options of which a recipe is one: its file, if --config names one, gives the defaults of the flags."""
    config = _value_of("--config", words)
    return _parse(options, words, options(recipe=read_recipe(config)) if config else None)  # type: ignore[call-arg]


def _value_of(flag: str, words: list[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag and following:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _one_line(box: str) -> str:
    """What tyro says at the top of its box, with the first thing it suggests."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if text.startswith("─"):
            parts.append([])
        elif text and not text.startswith(("╭", "╰")):
            parts[-1].append(text)
    suggestion = (
        f"; perhaps you meant {parts[1][1]}" if len(parts) > 1 and parts[1][:1] == ["Perhaps you meant:"] else ""
    )
    return " ".join(parts[0]).rstrip(".") + suggestion


def _unused_folder(recipe: Recipe) -> Path:
    name = f"runs/{Path(recipe.data.removeprefix('hf:')).name}-{recipe.depth}-{recipe.method}"
    numbered = (Path(name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())
