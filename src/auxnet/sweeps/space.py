"""What a sweep varies: fields of a recipe, each over a range or choices, read from words, checked by the field's rule.

`lr: 0.01..0.5:log` is a range, drawn evenly in the logarithm; `depth: 8..20:6` one in steps of 6, its ends included;
`gamma: 0, 1, 2` or `gamma: [0, 1, 2]` are choices. A list is a choice too: `milestones: 0.4 0.6, 0.5 0.75`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin

from auxnet.documents import yaml_value
from auxnet.recipe import OF_BACKBONES, Recipe, kinds, words_of
from auxnet.words import as_flag, nearest

DIGITS = 4  # of a drawn number, as people see it
FEW = 64  # values of a range, at most, that are tried one by one; of more, the two ends are tried
FORMS = "a range is low..high, low..high:log or low..high:step"
_BESIDE: dict[str, dict[str, Any]] = {  # other fields that a field needs or is bounded by; it is checked alone
    "aggregator": {"method": "joint"},
    "fit": {"image_size": 32},
    "warmup": {"epochs": 2**31 - 1},
    **{field: {"backbone": "timm:resnet18"} for field in OF_BACKBONES},
}


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    step: float | None = None
    """None for all numbers between; of whole numbers it is 1 or more"""
    log: bool = False
    """whether they are drawn evenly in the logarithm"""


@dataclass(frozen=True)
class Choices:
    """Some values, in the order given."""

    values: tuple[Any, ...]


Domain = Range | Choices
Space = dict[str, Domain]


def space_from(content: Mapping[str, Any]) -> Space:
    """The space in a mapping, field -> range or choices.

    Raises ValueError for an unknown field (naming the nearest), for text that is no range, or for a value that its
    field cannot have.
    """
    known = [field.name for field in fields(Recipe)]
    for field in content:
        if field not in known:
            raise ValueError(f"there is no recipe field {field!r} to vary{nearest(str(field), known)}")
    return {field: domain_of(field, given) for field, given in content.items()}


def space_from_words(words: Sequence[str]) -> dict[str, str]:
    """`field=range` and `field=choices`, as --vary takes them, as a mapping for `space_from`."""
    content: dict[str, str] = {}
    for word in words:
        field, equals, given = word.partition("=")
        if not (field and equals and given):
            raise ValueError(f"--vary takes field=a,b,c or field=low..high, got {word!r}")
        field = field.replace("-", "_")
        if field in content:
            raise ValueError(f"{field} is varied twice: {content[field]} and {given}")
        content[field] = given
    return content


def domain_of(field: str, given: Any) -> Domain:
    """The range or the choices of a field, with values as the recipe has them. Raises ValueError."""
    if isinstance(given, str):
        if ".." in given and _numeric(field) is not None:
            return _range(field, given)
        if (typed := re.fullmatch(r"([\d.]+)\s*(?:-|:|to)\s*([\d.]+)", given)) and _numeric(field) is not None:
            raise ValueError(f"{field} varies over a range as {typed[1]}..{typed[2]}, got {given!r}")
        given = [_value(field, word.strip()) for word in given.split(",")]
    if not isinstance(given, list | tuple):
        raise ValueError(f"{field} must vary over choices (a, b, c) or a range (low..high), got {given!r}")
    values = tuple(checked(field, value) for value in given)
    if len({repr(value) for value in values}) < max(2, len(values)):
        got = in_words(Choices(values))
        raise ValueError(f"{field} needs two or more different choices, got {got}: give one alone as {as_flag(field)}")
    return Choices(values)


def checked(field: str, value: Any) -> Any:
    """The value as the recipe has it. Raises ValueError for a value that the field cannot have."""
    return getattr(Recipe(**{**_BESIDE.get(field, {}), field: value}), field)


def written(domain: Domain) -> str | list[Any]:
    """A domain in values that JSON and YAML hold, from which `domain_of` makes the same again."""
    if isinstance(domain, Choices):
        return [list(value) if isinstance(value, tuple) else value for value in domain.values]
    every_whole_number = domain.step == 1 and isinstance(domain.low, int)
    spacing = ":log" if domain.log else "" if domain.step is None or every_whole_number else f":{domain.step!r}"
    return f"{domain.low!r}..{domain.high!r}{spacing}"


def count_of(domain: Domain) -> int | None:
    """How many values there are; None if there are infinitely many."""
    if isinstance(domain, Choices):
        return len(domain.values)
    return None if domain.step is None else _steps(domain.low, domain.high, domain.step) + 1


def values_of(domain: Domain) -> tuple[Any, ...]:
    """The values of a domain; of a range with infinitely many, or with more than `FEW`, the two ends."""
    if isinstance(domain, Choices):
        return domain.values
    count = count_of(domain)
    return (domain.low, domain.high) if count is None or count > FEW else tuple(_at(domain, n) for n in range(count))


def in_words(domain: Domain) -> str:
    """A domain as --vary takes it: low..high and how, or the choices."""
    return ", ".join(map(words_of, domain.values)) if isinstance(domain, Choices) else str(written(domain))


def drawn_in_words(domain: Domain, value: Any) -> str:
    """A value of the domain in words: a choice in full, a number out of a range to `DIGITS` digits."""
    if isinstance(domain, Range) and isinstance(value, float):
        value = float(f"{value:.{DIGITS}g}")
    return words_of(value)


def _range(field: str, text: str) -> Range:
    kind = _numeric(field)
    ends, colon, spacing = text.replace(" ", "").partition(":")
    try:
        low, high = map(_number, ends.split(".."))
        step = _number(spacing) if colon and spacing != "log" else 1 if kind is int else None
    except ValueError:
        raise ValueError(f"{field}={text} is not a range of numbers: {FORMS}") from None
    if not (low < high and (step is None or 0 < step <= high - low)):
        raise ValueError(f"{field}={text} holds no two numbers: {FORMS}, with low below high")
    low, high = checked(field, low), checked(field, high)
    if spacing == "log" and low <= 0:
        raise ValueError(f"{field}={text}: a range in the logarithm begins above 0")
    if kind is int and not isinstance(step, int):
        raise ValueError(f"{field}={text}: the step must be a whole number, as {field} is")
    step = float(step) if kind is float and step is not None else step
    whole = Range(low, high, step, spacing == "log")
    return whole if step is None else replace(whole, high=_at(whole, _steps(low, high, step)))


def _steps(low: float, high: float, step: float) -> int:
    return math.floor((high - low) / step + 1e-9)


def _at(domain: Range, n: int) -> float:
    assert domain.step is not None
    value = domain.low + n * domain.step
    return value if isinstance(value, int) else round(value, 12)


def _numeric(field: str) -> type | None:
    """int or float for a field that is a number, else None."""
    return next((kind for kind in kinds()[field] if kind in (int, float)), None)


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _value(field: str, word: str) -> Any:
    """A word as a value of a field: text for a field of text, else as YAML reads it; 'none' is None if that may be."""
    import yaml

    may_be = kinds()[field]
    if type(None) in may_be and word.lower() in ("none", "null"):
        return None
    if any(kind is str or get_origin(kind) is Literal for kind in may_be):
        return word
    try:
        value = yaml_value(word)
        items = next((get_args(kind)[0] for kind in may_be if get_origin(kind) is tuple), None)
        if items is None or value == "none" or (isinstance(value, int) and int in may_be):
            return value
        return word.split() if items is str else [yaml_value(part) for part in word.split()]
    except yaml.YAMLError:
        return word
