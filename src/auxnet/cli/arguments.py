"""Command lines parsed into dataclasses by tyro, with errors of one line."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from shutil import get_terminal_size
from types import NoneType, UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from auxnet import sections
from auxnet.cli import screen
from auxnet.errors import ExclusionError, check_limit, warn
from auxnet.files import expanduser
from auxnet.recipe import Recipe, has_recipe, read_recipe, read_run_recipe, words_of
from auxnet.sections import Which
from auxnet.words import as_flag

Options = TypeVar("Options")
WithRecipe = TypeVar("WithRecipe", bound="OfRecipe")
OneRun = Annotated[Positional[Path], arg(metavar="RUN")]
Runs = Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help_behavior_hint="")]
RULES = ConstructorRegistry()
KINDS: dict[Any, tuple[str, str, str]] = {
    int: ("INT", "a whole number", "whole numbers"),
    float: ("FLOAT", "a number", "numbers"),
    str: ("STR", "a name", "names"),
    Path: ("PATH", "a path", "paths"),
}

MADE: dict[Any, Any] = {Path: expanduser}  # a shell leaves the ~ of --out=~/runs as it is


@RULES.primitive_rule
def field_values_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How an option is read and shown that takes a number, a name, a path, a list of these, or none."""
    union = info.type_origin in (Union, UnionType)
    kinds = [kind for kind in (get_args(info.type) if union else (info.type,)) if kind is not NoneType]
    lists = [get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple]
    alone = [kind for kind in kinds if get_origin(kind) is not tuple]
    if not kinds or not {*alone, *lists} <= KINDS.keys() or UseAppendAction in info.markers:
        return None
    none = ["none"] if NoneType in get_args(info.type) else []

    def from_words(words: list[str]) -> Any:
        if not words and Positional not in info.markers:
            words = [""]  # what `--at $LAYERS` becomes, too
        if words in (["none"], ["None"]) and (none or lists == [float]):
            return None if none else ()
        empty = "" in words  # which as a path would be the current folder
        for kind in alone if len(words) == 1 and not empty else ():
            with suppress(ValueError):
                return MADE.get(kind, kind)(_ungrouped(words[0]) if kind is int else words[0])
        for kind in lists if not empty else ():
            with suppress(ValueError):
                return tuple(map(MADE.get(kind, kind), words))
        said = [*none, *(KINDS[kind][1] for kind in alone), *(KINDS[kind][2] for kind in lists)]
        apart = ": give them with spaces between" if lists and any("," in word.strip(",") for word in words) else ""
        got = "'': is a variable not set?" if empty else ", ".join(map(repr, words))
        raise ValueError(f"must be {' or '.join(said)}, got {got}{apart}")

    return PrimitiveConstructorSpec(
        nargs="*" if lists else 1,
        metavar="|".join([*none, *(KINDS[kind][0] for kind in alone), *(f"{KINDS[kind][0]} ..." for kind in lists)]),
        instance_from_str=from_words,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [*map(str, value)] if isinstance(value, tuple) else [words_of(value)],
    )


def parse(options: type[Options], words: list[str], default: Options | None = None) -> Options:
    """The words as options; tyro's complaints, which fill a box, become one line. --help exits."""
    complaint = io.StringIO()
    command = options.__name__.lower()
    try:
        columns = max(40, get_terminal_size().columns) if {"-h", "--help"} & {*words} else 10_000
        with redirect_stderr(complaint), _terminal(columns):
            prog = f"auxnet {command}"
            if default is None:
                return tyro.cli(options, args=words, prog=prog, registry=RULES)
            return tyro.cli(options, args=words, prog=prog, registry=RULES, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        said = _of_a_switch(options, words) or _one_line(complaint.getvalue(), options)
        raise ValueError(f"{said}; see auxnet {command} --help") from None


@contextmanager
def _terminal(columns: int) -> Iterator[None]:
    """Have tyro believe the terminal to be this wide: it breaks long words in its boxes, and below 10 it never ends."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)


@dataclass(frozen=True)
class OfRecipe:
    """Options among which is every field of a recipe, section by section."""

    data: OmitArgPrefixes[sections.DataFields] = field(default_factory=sections.DataFields)
    network: OmitArgPrefixes[sections.NetworkFields] = field(default_factory=sections.NetworkFields)
    method: OmitArgPrefixes[sections.MethodFields] = field(default_factory=sections.MethodFields)
    training: OmitArgPrefixes[sections.TrainingFields] = field(default_factory=sections.TrainingFields)
    machine: OmitArgPrefixes[sections.MachineFields] = field(default_factory=sections.MachineFields)

    @property
    def recipe(self) -> Recipe:
        """The recipe that these options ask for. Raises ValueError for one that there cannot be."""
        return Recipe(**self.values)

    @property
    def values(self) -> dict[str, Any]:
        """Every field of the recipe, by name; `Recipe` may still refuse them together."""
        return {name: value for section in SECTIONS for name, value in vars(getattr(self, section)).items()}

    @classmethod
    def default(cls, recipe: Recipe, **others: Any) -> Self:
        """These options with the values of a recipe for their defaults."""
        return cls(**_sections(recipe), **others)


SECTIONS: dict[str, Any] = {each.name: each.default_factory for each in fields(OfRecipe)}


def _sections(recipe: Recipe) -> dict[str, Any]:
    return {
        name: section(**{each.name: getattr(recipe, each.name) for each in fields(section)})
        for name, section in SECTIONS.items()
    }


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """Options of the commands that open finished runs: where the data are, and on what to compute."""

    data_dir: str | None = None
    """the folder that holds the data; none: the same as in training"""
    device: str | None = None
    """auto, cpu, cuda, ...; none: as in training"""
    threads: int | None = None
    """CPU threads; none: as in training"""

    @property
    def where(self) -> dict[str, Any]:
        """These options as keywords."""
        return {"data_dir": self.data_dir, "device": self.device, "threads": self.threads}


@dataclass(frozen=True)
class OfOneRun(OfRun):
    """Options of the commands that open one finished run, with the weights of one of its epochs."""

    run: OneRun
    """the run directory"""
    which: Which = "last"
    """weights of the last epoch, or of the best one on validation"""


def parse_with_recipe(options: type[WithRecipe], words: list[str]) -> WithRecipe:
    """Options whose defaults are read from a file, if any: from --config, or from recipe.yaml of a run to resume."""
    config, out = value_of("--config", words), value_of("--out", words)
    if config is not None:
        return parse_over(options, words, read_recipe(expanduser(config)), config)
    if out is not None and "--resume" in words and has_recipe(run := expanduser(out)):
        screen.load_torch()
        from auxnet.loading import backbone_of

        backbone_of(run)  # refuses one that came with the run
        return parse(options, words, options.default(read_run_recipe(run)))  # which no flag may change
    return parse(options, words)


def parse_over(options: type[WithRecipe], words: list[str], recipe: Recipe, source: str, **others: Any) -> WithRecipe:
    """Options whose defaults are a recipe, read from `source`, and `others`: flags win over them.

    A field of the source that conflicts with a given flag is reset to its default, with a warning. Raises ValueError.
    """
    parsed, given = parse(options, words, options.default(recipe, **others)), given_fields(words)
    usual, values, counted = vars(Recipe()), parsed.values, set(given)
    while True:
        try:
            made = Recipe(**values)
            made.check_together(counted)
            return replace(parsed, **_sections(made))
        except ExclusionError as error:
            left_out = [name for name in error.names if name not in given and values[name] != usual[name]]
            if not left_out and values[error.names[0]] == usual[error.names[0]]:
                counted.discard(error.names[0])  # of two flags that exclude each other, as without a file
                continue
            if not left_out:
                raise
            [name], [other] = left_out, set(error.names) - set(left_out)
            flag = f"{as_flag(other)} " if other in given else f"{other}="
            beside = f"{flag}{words_of(values[other])}"
            message = f"{source}'s {name}={words_of(values[name])} does not go with {beside}: left out"
            warn(message)
            values[name] = usual[name]


def given_fields(words: list[str]) -> set[str]:
    """The fields of a recipe that these words give by a flag."""
    flags = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    return {each.name for each in fields(Recipe) if flags & {each.name, f"no_{each.name}"}}


def value_of(flag: str, words: list[str]) -> str | None:
    """The word after a flag, for what must be known before all is parsed; of several the last, as tyro takes it."""
    value = None
    for word, following in pairwise([*words, ""]):
        if word == flag and following:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
    return value


def number(flag: str, text: str | None) -> float | None:
    """200000, 200,000, 200k, 0.2M or 1G as a number. Raises ValueError for other text, and below 1."""
    if text is None:
        return None
    power = {"k": 3, "m": 6, "g": 9}.get(text[-1:].lower())
    try:
        # 1.001k is 1001, which 1.001 * 1e3 is not
        value = float(Decimal(text[:-1]).scaleb(power) if power else _ungrouped(text))
    except (ValueError, ArithmeticError):
        raise ValueError(f"{flag} must be a number such as 200000, 200k or 0.2M, got {text!r}") from None
    if not 1 <= value < float("inf"):
        raise ValueError(f"{flag} must be 1 or more and finite, got {value:g}; leave it out for no limit")
    return value


def _ungrouped(text: str) -> str:
    """A count as tables print it, such as 1,234,567, without its commas; any other text as it is."""
    return text.replace(",", "") if re.fullmatch("[1-9][0-9]{0,2}(,[0-9]{3})+", text) else text


def above_zero(flag: str, value: float | None) -> float | None:
    """The value of a limit. Raises ValueError for one that nothing could meet."""
    if value is not None:
        check_limit(flag, value)
    return value


def points(flag: str, given: float | None) -> float | None:
    """Percentage points as a fraction; warns if they look like one already. Raises ValueError for 50 or more."""
    if given is not None and not 0 <= given < 50:
        raise ValueError(f"{flag} must be percentage points, 0 or more and below 50, got {given:g}")
    if given is not None and 0 < given < 0.05:
        warn(f"{flag} {given:g} is in points, not a fraction: half a point is 0.5")
    return None if given is None else given / 100


def _one_line(box: str, options: type[Any]) -> str:
    """The complaint at the top of tyro's box, with the first option that it suggests in place of an unknown one."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        if re.search("[─-]{5}", line):  # a border or a rule, drawn or typed
            parts.append([])
        elif text := line.strip("│| "):
            parts[-1].append(text)
    complaint, *further = filter(None, parts[1:])  # above the first border stands at most a title
    said = _in_words(" ".join(complaint).rstrip("."), options)
    if said.startswith("there is no option") and further and further[0][0] == "Perhaps you meant:":
        first, *others = (word.rstrip(",") for word in further[0][1].split())  # --name, perhaps --no-name, a type
        denied = [word for word in others if word.startswith("--no-")]
        meant = denied[0] if denied and said.split()[-1].startswith("--no-") else first
        said += f"; perhaps you meant {meant}"
    return said


def _of_a_switch(options: type[Any], words: list[str]) -> str | None:
    """The complaint about true or false after a flag that takes no value; None if there is no such word."""
    hints = {**get_type_hints(Recipe, include_extras=True), **get_type_hints(options, include_extras=True)}
    for flag, value in pairwise(part for word in words for part in word.split("=", 1)):
        name = flag.removeprefix("--")
        hint = hints.get(name.replace("-", "_"))
        if flag.startswith("--") and hint in (bool, FlagCreatePairsOff[bool]) and value.lower() in ("true", "false"):
            other = f"give --no-{name}" if hint is bool else "leave it out"
            return f"{flag} takes no value: {'give it alone' if value.lower() == 'true' else other}"
    return None


def _in_words(complaint: str, options: type[Any]) -> str:
    """A complaint of tyro's without its words for types of Python."""
    if found := re.match(r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\)", complaint):
        value, flag, known = found.groups()
        names = known.replace("'", "")
        others = [name for name, hint in get_type_hints(Recipe).items() if value.strip("'") in get_args(hint)]
        meant = f"; perhaps you meant {as_flag(others[0])}" if len(others) == 1 else ""
        return f"{flag} must be one of {names}, got {value}{meant if issubclass(options, OfRecipe) else ''}"
    if found := re.match(r"Unrecognized options: ?(.*)", complaint):
        unknown = found[1].split(", ")
        for flag in (word.partition("=")[0] for word in unknown if word.startswith("-")):
            return f"there is no option {flag}"
        return f"{unknown[0]!r} belongs to no option (does it lack a flag, or quotes around a name with spaces?)"
    if found := re.match(r"Missing from auxnet \w+: ([A-Z]+) (.*) \(required\)", complaint):
        return f"{found[1]} is missing: {found[2]}"
    if found := re.match(r"Error parsing (\S+(?: \.\.\.)?): (must be .*)", complaint):
        return f"{found[1]} {found[2]}"
    return complaint


@contextmanager
def named_as_flags(names: str) -> Iterator[None]:
    """Have ValueErrors of the block name flags, not Python arguments; `names` is a regular expression of the latter."""
    try:
        yield
    except ValueError as error:
        named = re.sub(names, lambda found: as_flag(found[0]), str(error))
        if named == str(error):
            raise
        raise ValueError(named) from error
