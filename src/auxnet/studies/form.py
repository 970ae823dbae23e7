"""The form of a study file: which keys it may have, and of which kind their values are; all else is refused in a line.

A key that nothing would read is refused, and the message says where it belongs: a table must never show figures of a
training other than the one that the file asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auxnet.recipe import WHERE
from auxnet.words import as_flag, nearest

STUDY_KEYS = ("question", "note", "measures", "variants", "claims", "published", "scales")
SCALE_KEYS = ("seeds", "base", "over", "datasets", "variants", "claims", "published", "note")


def pairs(value: Any, where: str) -> dict[str, Any]:
    """A mapping, its keys as text: `1: {}` and `"1": {}` are one variant. Raises ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold 'key: value' pairs, got {value!r}")
    named = {str(key): each for key, each in value.items()}
    if len(named) < len(value):
        keys = [str(key) for key in value]
        raise ValueError(f"{where} has {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return named


def given(value: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """The pairs of a mapping that may hold the keys `known`; null counts as left out. Raises ValueError for others."""
    content = pairs(value, where)
    for key in content:
        if key in known:
            continue
        if known is STUDY_KEYS and key in SCALE_KEYS:
            raise ValueError(f"{key} belongs to a scale, as in scales: {{small: {{{key}: ...}}}}")
        raise ValueError(f"{where} has no key {key!r}{nearest(key, [*known]) or ': it may have ' + ', '.join(known)}")
    return {key: each for key, each in content.items() if each is not None}


def needed(content: dict[str, Any], key: str, where: str) -> Any:
    """The value of a key. Raises ValueError if it is left out."""
    if key not in content:
        raise ValueError(f"{key!r} is missing in {where}")
    return content[key]


def items(value: Any, where: str) -> list[Any]:
    """A list. Raises ValueError for anything else, such as a text, which Python would take letter by letter."""
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, as in [..., ...], got {value!r}")
    return value


def text(value: Any, where: str) -> str:
    """Text that is not empty. Raises ValueError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be text, got {value!r}")
    return value


def count(value: Any, where: str) -> int:
    """A whole number from 1 on. Raises ValueError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where} must be 1 or more, got {value!r}")
    return value


def percentage(value: Any, where: str) -> float | int:
    """A number in 0..100, as the file has it. Raises ValueError for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 100:
        raise ValueError(f"{where} must be a number in per cent, got {value!r}")
    return value  # type: ignore[no-any-return]


def recipe_fields(value: Any, where: str, with_data: bool = False) -> dict[str, Any]:
    """Fields of a recipe that a variant may set, or `with_data` a base; `Recipe` checks their values.

    Raises ValueError for fields that are set elsewhere in a study, or by its command.
    """
    content = pairs(value, where)
    for key in content:
        if key == "seed":
            raise ValueError(f"{where} cannot set seed: seeds of a scale says how many there are, for all variants")
        if key == "data" and not with_data:
            raise ValueError(f"{where} cannot set data: name it in datasets of a scale or its base, for all variants")
        if key in WHERE:
            option = as_flag(key)
            raise ValueError(
                f"{where} cannot set {key}, which changes no training: give it to auxnet study as {option}"
            )
    return content
