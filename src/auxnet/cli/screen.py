"""What a person sees in the terminal: progress, and tables that align."""

from __future__ import annotations

import errno
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text, TextType

from auxnet.cli import leads
from auxnet.errors import printable
from auxnet.signals import HANGUP, Stopped, held

if TYPE_CHECKING:
    from auxnet.progress import Progress as Stands
    from auxnet.recipe import RunDir
    from auxnet.sections import Which

SCREEN = 24  # rows
PAUSE = 60.0  # seconds between two lines on something that takes long, if the output is not a terminal


class _Console(Console):
    def __init__(self, **options: Any) -> None:
        """Names of runs, classes and files are printed as they are, even if they look like rich's markup or emoji."""
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Raise it: rich itself would end the program with status 1, which here says that something failed."""
        raise BrokenPipeError

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; raises BrokenPipeError also if the terminal was closed."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            if error.errno == errno.EIO:
                raise BrokenPipeError from error
            raise


def console() -> Console:
    """Standard output; if that is not a terminal, at least 160 columns wide, unless COLUMNS says otherwise.

    Of torchrun's processes only the first prints.
    """
    plain = _Console(quiet=not leads())
    asked = os.environ.get("COLUMNS", "").strip("0").isdigit()
    return plain if plain.file.isatty() or asked else _Console(width=max(plain.width, 160), quiet=plain.quiet)


def redraws(console: Console) -> bool:
    """Whether lines can be redrawn: on a terminal that is able to, whatever FORCE_COLOR says."""
    return console.file.isatty() and not console.is_dumb_terminal


def working(on: str) -> Status:
    """A spinner while something takes its time, on a terminal; on standard error: what is printed stays clean."""
    drawn = Console(stderr=True, quiet=not leads(), force_terminal=sys.stderr.isatty())  # whatever FORCE_COLOR says
    return drawn.status(Text(printable(on)))


def load_torch() -> None:
    """Import PyTorch, which takes seconds, under a spinner: each command does so once its words are checked.

    From then on the process keeps the memory that it frees.

    Ctrl-C and other signals wait for the end of the import: raised within, they would leave half a module behind, or be
    swallowed (torch takes whatever numpy's import raises for numpy's absence).
    """
    with held() as signal_received, working("loading PyTorch"):
        import torch  # noqa: F401
    if number := signal_received():
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number, "stopped")
    from auxnet.machine import keep_freed_memory

    keep_freed_memory()


@contextmanager
def live_bar(console: Console, what: str, goes_on: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal while something is trained, nothing elsewhere; the function that is yielded moves it.

    It takes what rich's `Progress.update` takes, and `result`, words to the right of the bar. Raises Stopped if nobody
    reads the output any more; its message says what `goes_on` with the training.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    result = TextColumn("{task.fields[result]}", markup=False)
    how: dict[str, Any] = {"transient": True, "redirect_stderr": sys.stderr.isatty()}  # a log keeps its warnings
    with Progress(*columns, result, console=console, disable=not redraws(console), **how) as bar:
        try:
            yield partial(bar.update, bar.add_task(what, total=None, result=""))
        except BrokenPipeError:
            sys.stdout = console.file = open(os.devnull, "w")  # noqa: SIM115
            why = f"nobody reads the output any more: stopped; {goes_on} goes on with it"
            raise Stopped(13, why) from None  # SIGPIPE, which not every system has
        except Stopped as stop:
            if stop.status == 128 + HANGUP:  # the terminal is gone, and the bar cannot be removed from it
                console.file = open(os.devnull, "w")  # noqa: SIM115
            raise


@contextmanager
def training_progress(console: Console, first: str = "reading the data") -> Iterator[Callable[[Stands], None]]:
    """A live bar on a terminal; elsewhere a line per epoch, and now and then one within it.

    `first` says what is done before the first step.
    """
    due = now_and_then(console)
    with live_bar(console, first, "--resume") as update:

        def watch(progress: Stands) -> None:
            finished = progress.epoch - 1 + progress.step / progress.steps
            update(total=progress.epochs, completed=finished, description=progress.pace, result=progress.result)
            if not redraws(console) and (due() or progress.done):
                print_line(console, str(progress))

        yield watch


def now_and_then(console: Console) -> Callable[[], bool]:
    """A function that says whether to report progress again: each second on a terminal, elsewhere each `PAUSE`."""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        now = time.monotonic()
        if now - last < (1.0 if redraws(console) else PAUSE):
            return False
        last = now
        return True

    return due


def print_line(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, not coloured, control characters (`printable`) as escapes."""
    console.print(printable(text), highlight=False, soft_wrap=True)


def print_which(console: Console, run: RunDir, which: Which) -> None:
    """Say, before anything is said of a run's "best" weights, of which epoch they are."""
    from auxnet.opening import best_weights_in_words  # which imports PyTorch

    if which == "best":
        print_line(console, best_weights_in_words(run))


class _Table(Table):
    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        """Add a row, in which control characters of names are escapes."""
        super().add_row(*map(printable, cells))


def table(title: str, *columns: str) -> Table:
    """An empty table with right-aligned columns."""
    made = _Table(title=printable(title), box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(printable(column), justify="right")
    return made


def print_table(console: Console, table: Table) -> None:
    """Print a table; if the terminal is too narrow for it, in parts one below the other.

    Heads are broken into lines first; each part has the first column. If that and one more column are too wide, or
    there are more rows than a screen holds, each row is printed as a line of words.
    """

    def fits(columns: Sequence[Column], break_heads: bool = True) -> bool:
        part = _part(table, columns, break_heads)
        return Measurement.get(console, console.options.update(width=10_000), part).maximum <= console.width

    first, *others = table.columns
    if fits(table.columns, break_heads=False):
        console.print(table)
    elif fits(table.columns) or (table.row_count <= SCREEN and all(fits([first, other]) for other in others)):
        parts = [[first]]
        for other in others:
            parts[-1].append(other) if fits([*parts[-1], other]) else parts.append([first, other])
        for part in parts:
            console.print(_part(table, part, break_heads=True, title=table.title if part is parts[0] else None))
    else:
        if table.title:
            print_line(console, f"{table.title}:")
        for row in zip(*(column.cells for column in table.columns), strict=True):
            told = zip(table.columns, map(str, row), strict=True)
            print_line(console, f"- {', '.join(f'{column.header} {cell}'.strip() for column, cell in told if cell)}")


def _part(whole: Table, columns: Sequence[Column], break_heads: bool, title: TextType | None = None) -> Table:
    """Some columns of a table as a table; if heads are broken into lines, these are as wide as the cells."""
    made = Table(title=title, box=whole.box, title_justify=whole.title_justify, title_style=whole.title_style)
    for column in columns:
        head = str(column.header)
        widest = max(1, *map(len, [*head.split(), *map(str, column.cells)]))
        made.add_column(textwrap.fill(head, widest) if break_heads else head, justify=column.justify)
    for row in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*row)
    return made
