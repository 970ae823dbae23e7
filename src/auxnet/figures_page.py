"""A page of figures and then tables: what sweeps and studies leave.

Figures are what Plotly draws, as plain values; page/figures.js gives them the colours of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from auxnet.page_frame import figure_of, framed, section_of, unbroken

Figures = Mapping[str, tuple[str, str, dict[str, Any]]]
"""{id: (title, caption, what Plotly draws)}"""


def page_of_figures(
    *,
    command: str,
    title: str,
    eyebrow: str,
    headline: str,
    sub: str,
    tiles: str = "",
    notes: Sequence[str],
    figures: Figures,
    sections: Mapping[str, tuple[str, str]],
) -> str:
    """The whole page.

    `tiles`, `sub` and the bodies of the sections, {id: (title, HTML)}, are HTML already; all else is text.
    """
    titles = {name: title for name, (title, *_) in figures.items()} | {k: title for k, (title, _) in sections.items()}
    cards = [figure_of(name, title, caption) for name, (title, caption, _) in figures.items()]
    cards += [section_of(name, title, body) for name, (title, body) in sections.items()]
    return framed(
        command=command,
        title=title,
        eyebrow=eyebrow,
        opening=f'<h1>{unbroken(headline)}</h1><p class="sub">{sub}</p>{tiles}',
        notes=notes,
        links=titles,
        sections="".join(cards),
        program="figures.js",
        data={name: figure for name, (*_, figure) in figures.items()},
    )
