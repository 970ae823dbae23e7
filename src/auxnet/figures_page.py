"""A page of figures and tables, one file that opens offline: what sweeps and studies leave.

Figures are what Plotly draws, as plain values; page/figures.js gives them the colours of the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from auxnet import __version__
from auxnet.report_page import asset, json_inside_html, unbroken


def page_of_figures(
    made_by: str,
    title: str,
    eyebrow: str,
    headline: str,
    sub: str,
    tiles: str,
    notes: Sequence[str],
    figures: Mapping[str, tuple[str, str, dict[str, Any]]],
    sections: Mapping[str, tuple[str, str]],
) -> str:
    """A page of figures, complete in itself: {id: (title, caption, what Plotly draws)}, then sections of HTML.

    `tiles`, `sub` and the bodies of the sections, {id: (title, HTML)}, are HTML already; all else is text.
    """
    from plotly.offline import get_plotlyjs

    titles = {name: title for name, (title, *_) in figures.items()} | {k: title for k, (title, _) in sections.items()}
    parts = {
        "made_by": escape(made_by),
        "title": escape(title),
        "links": "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in titles.items()),
        "eyebrow": escape(eyebrow),
        "headline": unbroken(headline),
        "sub": sub,
        "tiles": tiles,
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        "figures": "".join(_figure_card(name, title, caption) for name, (title, caption, _) in figures.items()),
        "sections": "".join(
            f'<section id="{name}" class="card"><h2>{escape(title)}</h2>{body}</section>'
            for name, (title, body) in sections.items()
        ),
        "footer": escape(f"Made by auxnet {__version__}. This file is complete in itself and opens offline."),
        "data": json_inside_html({name: figure for name, (*_, figure) in figures.items()}),
        "plotly": get_plotlyjs(),
        "css": asset("report.css"),
        "js": asset("figures.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], asset("figures.html"))


def _figure_card(name: str, title: str, caption: str) -> str:
    label = escape(f"{title}: {caption}")
    return (
        f'<section id="{name}" class="card"><h2>{escape(title)}</h2><figure>'
        f'<div class="scroll"><div class="plot {name}" id="{name}-plot" role="img" aria-label="{label}"></div></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure></section>"
    )


def table_of(head: Sequence[str], lines: Sequence[str], label: str) -> str:
    """An HTML table of ready rows, that scrolls sideways on a narrow screen."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
