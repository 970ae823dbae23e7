"""`auxnet sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, UseAppendAction

from auxnet.cli import screen
from auxnet.cli.arguments import OfRecipe, given_fields, parse, parse_over, value_of
from auxnet.errors import warn
from auxnet.files import expanduser
from auxnet.recipe import Recipe, read_recipe
from auxnet.sweeps.settings import SEARCH_KEYS, Sampler, is_sweep
from auxnet.sweeps.space import space_from_words, written
from auxnet.words import as_flag, command, duration, per_cent, plural

if TYPE_CHECKING:
    from auxnet.sweeps.settings import Settings
    from auxnet.sweeps.sweeping import Sweep as Outcome
    from auxnet.sweeps.trials import Trial

BEST = 10  # trials in the table


@dataclass(frozen=True)
class Sweep(OfRecipe):
    """Train many recipes and find the best on validation: fields of the recipe vary, all else is as the flags say.

    Any number of workers, on any machines that share --out, join a sweep by the same command, or by --out alone.
    If a worker is stopped, another continues its trial. Each trial leaves a run directory, OUT/trials/0007.
    """

    config: Path | None = None
    """a recipe file (YAML), for what stays fixed"""
    out: Path | None = None
    """the folder of the sweep, new or begun"""
    vary: UseAppendAction[tuple[str, ...]] = ()
    """one for each field that varies: gamma=0,1,2 (choices), lr=0.01..0.5:log or depth=8..56:6 (ranges, in steps)"""
    trials: int | None = None
    """number of trials, those of other workers included; none: 20, or the whole grid; at most all combinations"""
    objective: str = "mean"
    """the validation error to minimise: mean (over the outputs that train to the end), final, or an output's number"""
    sampler: Sampler = "tpe"
    """how values are drawn: tpe near values that did well, random anywhere, grid each combination once"""
    prune: bool = True
    """stop a trial that is worse than the median of the others at its epoch, after a third of the epochs"""
    storage: str | None = None
    """a database for the study, as a URL (workers share --out all the same); none: a journal in --out"""
    processes: int = 1
    """workers to start on this machine, which share its threads"""
    retry_failed: FlagCreatePairsOff[bool] = False
    """try the trials that have failed once more, such as those that died of too little memory"""
    show: FlagCreatePairsOff[bool] = False
    """train nothing; show the sweep in --out as it is now"""


def sweep(words: list[str]) -> int:
    """`auxnet sweep`; exit status 1 if no trial is complete at the end."""
    begun = _begun(words)
    config = value_of("--config", words)
    search = {} if begun is None else {key: getattr(begun, key) for key in SEARCH_KEYS}
    if config:
        options = parse_over(Sweep, words, read_recipe(expanduser(config)), config, **search)
    else:
        options = parse(Sweep, words, Sweep.default(Recipe() if begun is None else begun.recipe, **search))
    if options.out is None:
        raise ValueError("name the folder of the sweep, new or begun: --out sweeps/a")
    console = screen.console()
    screen.load_torch()
    if options.show:
        from auxnet.sweeps.sweeping import read_sweep

        shown = read_sweep(options.out, options.storage)
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        if others := [flag for flag in flags if flag not in ("--show", "--out", "--storage")]:
            warn(f"--show shows the sweep as it was begun: {', '.join(others)} left out")
        _show(console, shown)
        return 0
    varied: dict[str, Any] = space_from_words(options.vary)
    if not varied and begun is not None:
        varied = {name: written(domain) for name, domain in begun.space.items()}
    if not varied and begun is None:
        begin = "name a field with --vary lr=0.01..0.5:log"
        raise ValueError(f"there is nothing to vary, and no sweep in {options.out} to go on with (yet): {begin}")
    for name in sorted(varied.keys() & given_fields(words)):
        warn(f"{as_flag(name)} does not go with --vary {name}: left out")
    from auxnet.sweeps.sweeping import sweep as run

    with _progress(console) as watch:
        try:
            done = run(
                varied,
                options.out,
                options.recipe,
                trials=options.trials,
                objective=options.objective,
                sampler=options.sampler,
                prune=options.prune,
                storage=options.storage,
                processes=options.processes,
                retry_failed=options.retry_failed,
                watch=watch,
            )
        except KeyboardInterrupt as stop:
            if is_sweep(options.out):
                where = ("--out", options.out, *(("--storage", options.storage) if options.storage else ()))
                stop.args = (f"stopped, and saved; {command('sweep', *where)} goes on with it",)
            raise
    _show(console, done)
    return 0 if done.best else 1


def _begun(words: list[str]) -> Settings | None:
    """The settings that the sweep in --out was begun with; None if there is no sweep."""
    out = value_of("--out", words)
    if out is None or "--show" in words or not is_sweep(folder := expanduser(out)):
        return None
    screen.load_torch()
    from auxnet.sweeps.trials import open_sweep

    return open_sweep(folder, value_of("--storage", words)).settings


# ---- on the screen ---------------------------------------------------------------------------------------------


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[Sequence[Trial], int], None]]:
    """A line for each trial that ends; on a terminal a live bar below, elsewhere now and then a line in its place."""
    known: set[int] | None = None
    due = screen.now_and_then(console)
    with screen.live_bar(console, "trying what varies", "the same command") as update:

        def watch(trials: Sequence[Trial], total: int) -> None:
            nonlocal known
            ended = {trial.number: trial for trial in trials if trial.ended}
            for number in sorted(ended.keys() - (ended.keys() if known is None else known)):
                screen.print_line(console, _line(ended[number]))
            known = set(ended)
            running = _running(trials)
            best = min((t.objective for t in trials if t.state == "complete" and t.objective is not None), default=None)
            words = "" if best is None else f"best val. error {per_cent(best)}"
            stands = f"{len(ended)}/{total} trials{f', running {running}' if running else ''}"
            update(total=total, completed=len(ended), description=stands, result=words)
            if due() and running and not screen.redraws(console):
                screen.print_line(console, ", ".join(filter(None, (stands, words))))

        yield watch


def _running(trials: Sequence[Trial]) -> str:
    """The trials that some worker trains at the moment."""
    return ", ".join(f"{t.number} ({plural(t.epochs, 'epoch')} done)" for t in trials if t.state == "running")


def _line(trial: Trial) -> str:
    """A line on a trial that has ended."""
    drawn = ", ".join(f"{name} {words}" for name, words in trial.in_words.items())
    if trial.twin is not None:
        return f"trial {trial.number} drew what trial {trial.twin} had drawn ({trial.state}): {drawn}"
    if trial.state == "failed":
        return f"trial {trial.number} failed with {drawn}: {trial.error}"
    error = "" if trial.objective is None else f" val. error {per_cent(trial.objective)},"
    time = f"{plural(trial.epochs, 'epoch')}, {duration(trial.seconds)}"
    return f"trial {trial.number} {trial.state}:{error} {drawn}; {time}"


def _show(console: Console, outcome: Outcome) -> None:
    """Print the best trials, which fields matter, what went wrong, and which files were written."""
    from auxnet.sweeps.sweep_page import (
        counts_of,
        error_of,
        headline,
        importance_of,
        notes_of,
        objective_in_words,
        ranked,
        write_outcome,
    )

    with screen.working("drawing the sweep"):
        paths = write_outcome(outcome)
    order = ranked(outcome.trials)
    title = f"the best of {plural(len(order), 'trial')} by validation error, {objective_in_words(outcome)}"
    table = screen.table(title, "trial", "state", "val. error", *outcome.settings.space, "epochs", "time")
    for trial in order[:BEST]:
        drawn = [trial.in_words.get(name, "-") for name in outcome.settings.space]
        cells = (error_of(trial), *drawn, str(trial.epochs), duration(trial.seconds))
        table.add_row(str(trial.number), trial.state, *cells)
    screen.print_table(console, table)
    counts = counts_of(order)
    lines = [f"{len(order)} of {outcome.total} trials{f': {counts}' if counts else ''}"]
    if running := _running(order):
        lines.append(f"under way: {running}")
    if importance := importance_of(outcome):
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in importance.items())
        lines.append(f"share of each field in the variance of the error (fANOVA; few trials say little): {shares}")
    lines += [f"note: {note}" for note in notes_of(outcome)]
    lines.append(headline(outcome))
    lines.append(f"written: {', '.join(map(str, paths))}")
    if outcome.best is not None:
        lines.append(f"the best again: {command('train', '--config', outcome.folder / 'best.yaml')}")
    for line in lines:
        screen.print_line(console, line)
