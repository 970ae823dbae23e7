"""Words of a command line as dataclasses, by tyro, with errors of one line."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from auxnet.recipe import read_recipe

Options = TypeVar("Options")
KINDS = ConstructorRegistry()


@KINDS.primitive_rule
def none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
    """None, where an option may be left open, is called none."""
    if info.type is not type(None):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="none",
        choices=("none", "None"),
        instance_from_str=lambda words: None,
        is_instance=lambda value: value is None,
        str_from_instance=lambda value: ["none"],
    )


def parse(options: type[Options], words: list[str], default: Options | None = None) -> Options:
    """The words as options; tyro's complaints, which fill a box, become one line. --help exits."""
    complaint = io.StringIO()
    command = options.__name__.lower()
    try:
        with redirect_stderr(complaint):
            prog = f"auxnet {command}"
            if default is None:
                return tyro.cli(options, args=words, prog=prog, registry=KINDS)
            return tyro.cli(options, args=words, prog=prog, registry=KINDS, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_one_line(complaint.getvalue())}; see auxnet {command} --help") from None


def parse_with_recipe(options: type[Options], words: list[str]) -> Options:
    """Options of which a recipe is one: a file gives the defaults of the flags, --config's or that of a run resumed."""
    config = value_of("--config", words)
    out = value_of("--out", words)
    if config is None and out and "--resume" in words and (Path(out) / "recipe.yaml").is_file():
        config = str(Path(out) / "recipe.yaml")
    return parse(options, words, options(recipe=read_recipe(config)) if config else None)  # type: ignore[call-arg]


def value_of(flag: str, words: list[str]) -> str | None:
    """The word after a flag, for what must be known before all is parsed."""
    for word, following in pairwise([*words, ""]):
        if word == flag and following:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _one_line(box: str) -> str:
    """What tyro says at the top of its box, with the first thing it suggests."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        if re.search("[─-]{5}", line):  # a border or a rule, drawn or typed
            parts.append([])
        elif text := line.strip("│| "):
            parts[-1].append(text)
    complaint, *further = filter(None, parts[1:])  # above the first border stands at most a title
    suggestion = f"; perhaps you meant {further[0][1]}" if further and further[0][0] == "Perhaps you meant:" else ""
    return _in_words(" ".join(complaint).rstrip(".")) + suggestion


def _in_words(complaint: str) -> str:
    """Without what Python and tyro say of types."""
    found = re.match(r"Error parsing ([\w.-]+): (.*)", complaint)
    if found is None:
        return complaint
    flag, why = found.groups()
    kinds = {"invalid literal for int": "a whole number", "could not convert string to float": "a number"}
    for said, wanted in kinds.items():
        if value := re.search(rf"{said}[^:]*: ('[^']*')", why):
            return f"{flag} must be {wanted}, got {value[1]}"
    return complaint if flag.startswith("-") else why  # a rule of the recipe names its field itself
