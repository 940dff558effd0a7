"""Small elements of HTML and SVG that every section uses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape as _escape
from typing import Any

# Okabe–Ito colours by the recipe's position in the comparison; a shape always accompanies the colour.
COLOURS = 7


def escape(text: Any) -> str:
    """The value as text for HTML."""
    return _escape(str(text), quote=True)


def emphasise(text: str) -> str:
    """Escaped text with ``**name**`` as a strong element; numbers stay with their units and arrows with their ends."""
    kept = re.sub(r"(?<=\d) (?=%)| (?=→)|(?<=→) ", "\u00a0", escape(text))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", kept)


def link(text: str) -> str:
    """Escaped text with links for web addresses and arXiv numbers, for citations and sources."""
    parts = []
    for i, part in enumerate(re.split(r"(https?://[^\s<>\"'()]+|arXiv:\d{4}\.\d{4,5})", text)):
        address = part.replace("arXiv:", "https://arxiv.org/abs/")
        parts.append(f'<a href="{escape(address)}" rel="noreferrer">{escape(part)}</a>' if i % 2 else escape(part))
    return "".join(parts)


def svg(width: float, height: float, body: Iterable[str], label: str, kind: str = "") -> str:
    """An inline SVG with a label for screen readers."""
    drawn = "".join(body)
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">{drawn}</svg>'
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: Any, kind: str = "", anchor: str = "start") -> str:
    """A text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def dot(x: float, y: float, kind: str, radius: float = 4.5) -> str:
    """A round mark."""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def diamond(x: float, y: float, kind: str, size: float = 4.5) -> str:
    """A diamond mark."""
    return f'<path class="{kind}" d="M{x:.1f} {y - size:.1f}l{size:g} {size:g}l-{size:g} {size:g}l-{size:g} -{size:g}z"/>'


def cross(x: float, y: float, kind: str, size: float = 3.5) -> str:
    """A cross mark."""
    d = 2 * size
    return f'<path class="{kind}" d="M{x - size:.1f} {y - size:.1f}l{d:g} {d:g}m0 -{d:g}l-{d:g} {d:g}"/>'


def section(identifier: str, title: str, body: str) -> str:
    """A section with a heading, HTML; empty without a body."""
    if not body:
        return ""
    head = f'<h2 id="{identifier}-h">{escape(title)}</h2>'
    return f'<section id="{identifier}" aria-labelledby="{identifier}-h">{head}{body}</section>'


def figure(body: str, caption: str, kind: str = "") -> str:
    """A figure with a caption; both are HTML."""
    return f'<figure class="{kind}">{body}<figcaption>{caption}</figcaption></figure>'


def scroller(table: str, label: str) -> str:
    """A table that scrolls on its own, also by keyboard, so that the page does not scroll sideways."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def header(label: str, note: str = "", sortable: bool = True, first: bool = False) -> str:
    """A table cell with a small note below its label."""
    words = escape(label).replace(" →", "\u00a0→")
    arrow = '<span class="arrow" aria-hidden="true"></span>'
    inner = f'<button type="button">{words}{arrow}</button>' if sortable else f'<span class="plain">{words}</span>'
    small = f'<span class="note">{escape(note)}</span>' if note else ""
    kind = ' class="first"' if first else ""
    sort = ' aria-sort="none"' if sortable else ""
    return f'<th scope="col"{kind}{sort}>{inner}{small}</th>'


def key(index: int, label: str, paradigm: str = "") -> str:
    """A recipe's name with its colour, the heading of a row or panel."""
    below = f'<span class="note">{escape(paradigm)}</span>' if paradigm else ""
    return f'<span class="key c{index % COLOURS}" aria-hidden="true"></span>{escape(label)}{below}'
