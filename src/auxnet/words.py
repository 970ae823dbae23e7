"""Numbers as people read them, and commands as they type them."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize


def as_flag(field: str) -> str:
    """The flag of a field: batch_size -> --batch-size."""
    return f"--{field.replace('_', '-')}"


def duration(seconds: float) -> str:
    """0.3 s, 7 s, 3:05 min, 2:03:05 h."""
    if 0.001 <= seconds < 0.95:
        return f"{seconds:.1g} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{left:02} h"
    return f"{minutes}:{left:02} min" if minutes else f"{left} s"


def gigabytes(number: int) -> str:
    """Bytes, to two digits: 61 GB, 1.2 GB, 23 MB."""
    size, unit = (number / 1e9, "GB") if number >= 1e9 else (number / 1e6, "MB")
    return f"{float(f'{size:.2g}'):g} {unit}"


def val_errors(errors: Sequence[float]) -> str:
    """Validation errors of all outputs, shallow to deep; "" if there are none yet."""
    return f"val. error {' / '.join(f'{100 * e:.1f}' for e in errors)} %" if errors else ""


def per_cent(fraction: float) -> str:
    """0.0875 -> 8.75 %."""
    return f"{100 * fraction:.2f} %"


def with_interval(error: float, low: float, high: float) -> str:
    """An error and the ends of its interval, fractions: 2.79 % (1.5 .. 5.1)."""
    return f"{per_cent(error)} ({100 * low:.1f} .. {100 * high:.1f})"


def in_points(difference: float, low: float, high: float) -> str:
    """A difference of errors and the ends of its interval, fractions, in percentage points: +6.90 (+2.3 .. +11.3)."""
    return f"{100 * difference:+.2f} ({100 * low:+.1f} .. {100 * high:+.1f})"


def p_text(p: float) -> str:
    """A p-value with two digits, or as many as tell it from 0.05, the border."""
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return next((text for text in texts if float(text) != 0.05), "0.05")


def sentence(words: str) -> str:
    """a loss fell -> A loss fell."""
    return f"{words[0].upper()}{words[1:]}."


def plural(number: float, what: str) -> str:
    """1 thread, 2,000 threads, 0.5 points."""
    said = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{said} {what}{'' if number == 1 else 's'}"


def first_few(items: Sequence[str], most: int = 3) -> str:
    """The first few, and dots if there are more: a; b; c; ... (a single one more is shown in place of the dots)."""
    return "; ".join(items if len(items) <= most + 1 else [*items[:most], "..."])


def listed(items: Sequence[str]) -> str:
    """All of them: a, b and c."""
    *before, last = items
    return f"{', '.join(before)} and {last}" if before else last


def of_each(said: Mapping[str, str]) -> str:
    """Remarks by name as one text: once if all are the same, else after their names."""
    alike: dict[str, list[str]] = {}
    for name, words in said.items():
        alike.setdefault(words, []).append(name)
    return "; ".join(words if len(alike) == 1 else f"{' and '.join(names)}: {words}" for words, names in alike.items())


def command(*words: object) -> str:
    """A command of this program as it may be typed into a shell: names with spaces are quoted."""
    return shlex.join(["auxnet", *map(str, words)])


def which_flags(which: str) -> tuple[str, ...]:
    """The flags by which a command takes these weights of a run; none for the last, its default."""
    return () if which == "last" else ("--which", which)


def same_but_for_form(names: Sequence[str], known: Sequence[str]) -> str:
    """A hint if a name equals a known one but for its Unicode form (macOS decomposes accents); else ""."""
    forms = {normalize("NFC", each) for each in known}
    alike = any(normalize("NFC", name) in forms for name in names)
    return " (the same name in other Unicode characters is known: rename it as there)" if alike else ""


def nearest(word: str, known: Sequence[str], of: Path = Path()) -> str:
    """A suggestion to end an error with: '; perhaps you meant ...', or ""; `of` is the folder of file names."""
    lowered = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1)
    return f"; perhaps you meant {str(of / lowered[close[0]])!r}" if close else ""
