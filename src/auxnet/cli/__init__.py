"""The command line. Here, and nowhere else, arguments are parsed and things are printed.

Exit status: 0; 2 for something that cannot be asked for; 1 for something that failed; 130, 143 or 129 when stopped by
Ctrl-C, SIGTERM or a terminal that closes; 141 for a training that is stopped since nobody reads its output any more.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from auxnet import __version__, signals
from auxnet.errors import first_sentence, one_line
from auxnet.words import nearest

COMMANDS = {  # name: (module of this package that holds the function of that name, what it does)
    "train": ("train", "train by a recipe, and print the table of outputs"),
    "plan": ("train", "say what a recipe will do, and cost, without training"),
    "evaluate": ("evaluate", "say what each output of a run is worth, from what it saved"),
    "select": ("evaluate", "choose the cheapest output that is good enough, on validation"),
    "exits": ("exits", "solve when an image may leave at a shallow output, on validation"),
    "diagnose": ("diagnose", "measure how supervision reaches each layer, and what each layer knows"),
    "sweep": ("sweep", "train many recipes, and find the best on validation"),
    "study": ("study", "run one of the paper's experiments, and judge its claims"),
    "report": ("report", "show finished runs as one HTML file that opens offline"),
    "export": ("export", "write one output, or the early exit, for another runtime, and prove it equal"),
    "predict": ("export", "say what is in image files"),
}

_shared = False  # whether the command is one that torchrun's processes share


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; every error is one line, never a traceback (AUXNET_DEBUG=1 shows it)."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # None if a shell closed it, as by >&-
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):  # names of any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    warnings.showwarning = _warn
    logging.getLogger("auxnet").setLevel(logging.INFO)
    logging.getLogger("auxnet").handlers = [_Teller()]
    try:
        with signals.raised():
            try:
                status = _run(words)
            except SystemExit as stop:  # after --help
                status = int(stop.code or 0)
            print(end="", flush=True)  # else output that cannot be written ends the interpreter with a traceback
            return status
    except KeyboardInterrupt as stop:  # Ctrl-C, or the Stopped that a training raises once all is saved
        if leads():
            say(str(stop) or "interrupted")
        return int(getattr(stop, "status", 130))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except Exception as error:
        if os.environ.get("AUXNET_DEBUG"):
            raise
        asked = isinstance(error, ValueError | FileExistsError | FileNotFoundError)
        expected = asked or isinstance(error, OSError | RuntimeError)
        if asked and not leads():
            return 2
        kind = "" if expected else f"unexpected {type(error).__name__} (AUXNET_DEBUG=1 shows where): "
        say(f"{kind}{one_line(_told(error))}")
        return 2 if asked else 1


def _told(error: Exception) -> object:
    """The text of an error: a system error with its file, a full GPU with what to do about it."""
    if isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", ())):
        mend = "a smaller --batch-size, --precision bfloat16, or other programs off that GPU"
        return f"{first_sentence(error)}: {mend}"
    if not isinstance(error, OSError) or error.strerror is None:
        return error
    if error.filename:
        return f"{error.filename}: {error.strerror}"
    try:
        print(end="", flush=True)
    except OSError:  # the error is of standard output: what was printed cannot be written
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return f"standard output: {error.strerror}"
    return error


def leads() -> bool:
    """Whether this process prints: of torchrun's, which share a `train`, the first alone does."""
    together = _shared and {"LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()  # clusters set RANK in every shell
    return not together or os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line on standard error, beside the results; if nobody can read it, the work continues."""
    try:
        print(f"auxnet: {text}", file=sys.stderr, flush=True)
    except OSError:  # as `2>&1 | head`, a terminal that was closed, or a full disk
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _warn(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """Print a warning of this program as one line; warnings of libraries are for developers."""
    if category is UserWarning:
        say(f"warning: {one_line(message)}")


class _Teller(logging.Handler):
    """Prints a line now and then of something that takes long; of torchrun's processes only the first does."""

    def emit(self, record: logging.LogRecord) -> None:
        if leads():
            say(record.getMessage())


def _run(words: list[str]) -> int:
    if words[:1] == ["help"]:  # auxnet help train
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"auxnet {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise ValueError(f"there is no command {words[0]!r}{nearest(words[0], list(COMMANDS))}; see auxnet --help")
    global _shared
    _shared = words[0] == "train"
    module, _ = COMMANDS[words[0]]
    status = getattr(import_module(f"auxnet.cli.{module}"), words[0])(words[1:])
    return int(status or 0)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
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
