"""What an error says, in a line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of its text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
