"""Pieces of markup that the live page and the reports share. Pure functions; every text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

MARK = (
    '<svg viewBox="0 0 26 26" aria-hidden="true"><rect class="tile" width="26" height="26" rx="7"/>'
    '<path class="loop" d="M6.5 16.5l4-4.2 3 2.7 5.5-6.2M15 8.4l4.3.1-.1 4.3"/></svg>'
)


def asset(name: str) -> bytes:
    """A file of this package's assets."""
    return (files("serving.page") / "assets" / name).read_bytes()


def card(panel: str, title: str, body: str, width: str = "", note: str = "", aside: str = "") -> str:
    """A titled box. `note` is text under the title's right, `aside` markup there; `width` is a class (w4 .. w8)."""
    beside = aside or (f'<p class="note">{escape(note)}</p>' if note else "")
    return (
        f'<section class="card {width}" id="{panel}" aria-labelledby="{panel}-name">'
        f'<header><h2 id="{panel}-name">{escape(title)}</h2>{beside}</header>{body}</section>'
    )


def tile(name: str, value: str, detail: str, look: str = "") -> str:
    """One figure with its name; `look` puts a swatch before the name."""
    swatch = f'<i class="swatch {look}" aria-hidden="true"></i>' if look else ""
    return (
        f'<div class="tile-card"><dt>{swatch}{escape(name)}</dt>'
        f"<dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"
    )


def fact(name: str, value: str, detail: str) -> str:
    """One figure inside a card's list."""
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"


def plain_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in the open; the first column names the row. The caption is for screen readers."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f'<caption class="hidden">{escape(caption)}</caption>'
        f"<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(svg: str, legend: str, table: str, scripted: bool = False) -> str:
    """A chart with its legend above and its table alternative below; `scripted` lets the keyboard into the chart."""
    keys = ' tabindex="0" role="group" aria-label="Chart: arrow keys read its values"' if scripted else ""
    return f'<figure>{legend}<div class="plot-box"{keys}>{svg}</div>{table}</figure>'
