"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """7 s, 3:05 min, 2:03:05 h."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{left:02} h"
    return f"{minutes}:{left:02} min" if minutes else f"{left} s"


def val_errors(errors: Sequence[float]) -> str:
    """Validation errors of all outputs, shallow to deep; nothing where there are none yet."""
    return f"val. error {' / '.join(f'{100 * e:.1f}' for e in errors)} %" if errors else ""
