"""The frame of every page: one HTML file with its styles, its programs (Plotly among them) and its data inside.

Python writes all that can be read without JavaScript; the programs in the folder page draw the figures. Every text
that comes from a user passes `escape` or `unbroken` on its way into HTML, and `json_inside_html` on its way into the
data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from auxnet import __version__


class Figure(NamedTuple):
    """A figure that page/figures.js draws."""

    name: str
    """its id on the page"""
    title: str
    caption: str
    drawing: dict[str, Any]
    """data and layout for Plotly, as plain values; page/figures.js gives them the colours of the page"""


def framed(
    *,
    command: str,
    title: str,
    eyebrow: str,
    opening: str,
    notes: Sequence[str] = (),
    links: Mapping[str, str],
    sections: str,
    program: str,
    data: Any,
    measured: str = "",
) -> str:
    """A whole page, as `command` makes it.

    `opening`, below the eyebrow, and `sections` are HTML already; `links` are {id of a section: its name in the bar}.
    `program` is the file of the folder page that draws `data`, and `measured` is a sentence for the footer.
    """
    from plotly.offline import get_plotlyjs

    parts = {
        "command": escape(command),
        "made_by": escape(made_by(command)),
        "title": escape(title),
        "links": "".join(f'<a href="#{name}">{escape(words)}</a>' for name, words in links.items()),
        "eyebrow": escape(eyebrow),
        "opening": opening,
        "notes": "".join(f'<p class="note">{_with_commands(escape(note))}</p>' for note in notes),
        "sections": sections,
        "footer": escape(
            f"Made by {made_by(command)}. This file is complete in itself and opens offline. {measured}".rstrip()
        ),
        "data": json_inside_html(data),
        "plotly": get_plotlyjs(),
        "style": asset("style.css"),
        "theme": asset("theme.js"),
        "plots": asset("plots.js"),
        "program": asset(program),
    }
    return filled("frame.html", parts)


def page_of_figures(
    *,
    command: str,
    title: str,
    eyebrow: str,
    headline: str,
    sub: str,
    tiles: str = "",
    notes: Sequence[str],
    figures: Sequence[Figure],
    sections: Mapping[str, tuple[str, str]],
) -> str:
    """A whole page, figures first and tables below: the page of a sweep or a study.

    `tiles`, `sub` and the bodies of the sections, {id: (title, HTML)}, are HTML already; all else is text.
    """
    titles = {each.name: each.title for each in figures} | {name: title for name, (title, _) in sections.items()}
    cards = [figure_of(each.name, each.title, each.caption) for each in figures]
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
        data={each.name: each.drawing for each in figures},
    )


def filled(name: str, parts: Mapping[str, str]) -> str:
    """A file of the folder page with its {{places}} filled; a {{place}} within a filling stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset(name))


def asset(name: str) -> str:
    """A file of the folder page."""
    return (resources.files("auxnet") / "page" / name).read_text(encoding="utf-8")


def json_inside_html(content: Any) -> str:
    """JSON for a <script> element, escaped so that no text in it can end that element."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---- the runs of a page, and its file ----------------------------------------------------------------------------


def check_runs(runs: Sequence[Path], out: Path | None, page: str, mend: str) -> None:
    """Raise ValueError for no run, for a run that is named twice, and for several runs without `out`.

    `page` names what is made of the runs, and `mend` says what to do without `out`.
    """
    if not runs:
        raise ValueError(f"there is no run to make {page} of: name one or more run directories")
    if len({run.resolve() for run in runs}) < len(runs):
        raise ValueError(f"a run is named twice: {' '.join(map(str, runs))}")
    if out is None and len(runs) > 1:
        raise ValueError(f"{page} of several runs needs a place: {mend}")


def names_of(runs: Sequence[Path]) -> list[str]:
    """What a page calls runs: the names of their folders, or their paths if two folders have the same name."""
    names = [run.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def made_by(command: str) -> str:
    """The command and the version of this program, by which a file says what made it."""
    return f"{command} {__version__}"


def is_ours(path: Path, command: str) -> bool:
    """Whether a page or a JSON file says at its beginning that this command made it, in any version."""
    with path.open("rb") as file:
        beginning = file.read(1000).decode("utf-8", errors="replace")
    maker = rf'(<meta name="generator" content=|"made_by": )"{re.escape(command)}[ "]'
    return re.search(maker, beginning) is not None


def check_ours(path: Path, command: str) -> None:
    """Raise FileExistsError if a path exists and this command did not make it: it must not be replaced."""
    if path.exists() and not (path.is_file() and is_ours(path, command)):
        raise FileExistsError(f"{path} was not written by {command}, and is left alone: give another --out")


# ---- what pages are made of --------------------------------------------------------------------------------------


def section_of(name: str, title: str, body: str) -> str:
    """A section of the page, which looks like a card; `body` is HTML."""
    return f'<section id="{name}" class="card"><h2>{escape(title)}</h2>{body}</section>'


def figure_of(name: str, title: str, caption: str, switches: str = "") -> str:
    """A section with the place in which a program draws a figure; `switches` is HTML above that place."""
    label = escape(f"{title}: {caption}")
    return section_of(
        name,
        title,
        f'<figure>{switches}<div class="scroll">'
        f'<div class="plot {name}" id="{name}-plot" role="img" aria-label="{label}"></div></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>",
    )


def table_of(head: Sequence[str], lines: Sequence[str], label: str, of_words: bool = False) -> str:
    """An HTML table of ready rows, which scrolls sideways on a narrow screen; cells `of_words` are aligned left."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table{' class=words' if of_words else ''}>"
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def heading_of(title: str, columns: int) -> str:
    """A row of a table that names the rows below it."""
    return f'<tr class="run"><th colspan="{columns}" scope="rowgroup">{escape(title)}</th></tr>'


def line_of(cells: Sequence[Any]) -> str:
    """A row of a table, of plain texts and numbers."""
    return f"<tr>{''.join(f'<td>{unbroken(str(cell))}</td>' for cell in cells)}</tr>"


def tiles_of(tiles: Sequence[tuple[str, str, str]], label: str) -> str:
    """The numbers that matter most, in large type, each as (name, value, a remark or "")."""
    cells = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="big">{escape(value)}</dd>'
        f"{aside and f'<dd class=small>{escape(aside)}</dd>'}</div>"
        for name, value, aside in tiles
    )
    return f'<dl class="tiles" aria-label="{escape(label)}">{cells}</dl>'


def columns_of(items: Mapping[str, str], marked: Sequence[str] = ()) -> str:
    """Names and values in two columns, some of them marked."""
    cells = "".join(
        f"<div{' class=differs' if name in marked else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in items.items()
    )
    return f'<dl class="columns">{cells}</dl>'


def unbroken(text: str) -> str:
    """The text as HTML in which no line breaks between a number and its per cent sign, or within an interval."""
    return re.sub(r"(?<=\d) \u2013 (?=\d)", "&nbsp;\u2013&nbsp;", escape(text).replace(" %", "&nbsp;%"))


def _with_commands(html: str) -> str:
    """HTML in which commands in backticks become code."""
    return re.sub(r"`(auxnet [^`]*)`", r"<code>\1</code>", html)
