"""What an error says, in a line; and the one that is a training's own."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of its text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class DivergedError(RuntimeError):
    """A loss or a weight stopped being finite: the recipe's fault, that would come again, and not the machine's."""
