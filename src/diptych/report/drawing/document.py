"""The frame of every report: one self-contained HTML file with one or more pages.

Everything is inline: the file needs no network and can be mailed. With several pages a small script shows one at a time; without
the script they follow each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources

from diptych.report.drawing.marks import escape, section

LOGO = (
    '<svg class="logo" viewBox="0 0 40 32" width="40" height="32" aria-hidden="true">'
    '<path d="M19 3L3 6v20l16 3zM21 3l16 3v20l-16 3z"/>'
    '<circle cx="11" cy="16" r="4"/><path d="M25 12h8M25 16h8M25 20h5"/></svg>'
)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

LISTS = 'class="items"'


@dataclass(frozen=True)
class Section:
    """A section of a page. id: unique in the document. body: HTML; a section without a body is left out."""

    id: str
    title: str
    body: str


@dataclass(frozen=True)
class Page:
    """A page. lead: HTML before the sections. mark: text after the page's name in the list of pages."""

    id: str
    title: str
    sections: Sequence[Section] = field(default_factory=tuple)
    lead: str = ""
    mark: str = ""

    @property
    def shown(self) -> list[Section]:
        """The sections with a body."""
        return [s for s in self.sections if s.body]


def document(title: str, facts: Iterable[tuple[str, str]], pages: Sequence[Page]) -> str:
    """The HTML of a report: a heading, facts (name, value; both text), and its pages, the first one visible."""
    own = resources.files("diptych.report.drawing")
    style, script = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    first = pages[0].id
    if any(LISTS in s.body for p in pages for s in p.sections):  # pages with lists of items
        style += own.joinpath("items.css").read_text(encoding="utf-8")
        script = own.joinpath("items.js").read_text(encoding="utf-8") + script
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)} – Diptych</title><style>{style}</style></head><body>"
        f'<a class="skip" href="#{first}">Skip to the content</a>{_head(title, facts)}{_list_of_pages(pages)}'
        f"<main>{''.join(_page(p, len(pages) > 1) for p in pages)}</main>"
        "<footer><p>Made by Diptych from the files next to this page.</p></footer>"
        f"<script>{script}</script></body></html>"
    )


def _head(title: str, facts: Iterable[tuple[str, str]]) -> str:
    shown = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts if v)
    button = '<button type="button" id="theme" aria-live="polite">Theme: auto</button>'
    bar = f'<div class="bar"><p class="brand">{LOGO}Diptych</p>{button}</div>'
    return f'<header>{bar}<h1>{escape(title)}</h1><dl class="facts">{shown}</dl></header>'


def _list_of_pages(pages: Sequence[Page]) -> str:
    """The list of a page's sections."""
    if len(pages) == 1:
        links = "".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in pages[0].shown)
        return f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
    links = "".join(
        f'<li><a href="#{p.id}">{escape(p.title)}{f" <span class=flag>{escape(p.mark)}</span>" if p.mark else ""}</a></li>'
        for p in pages
    )
    return f'<nav class="pages" aria-label="Pages"><ul>{links}</ul></nav>'


def _page(page: Page, several: bool) -> str:
    body = "".join(section(s.id, s.title, s.body) for s in page.shown)
    if not several:
        return f'<div class="page" id="{page.id}">{page.lead}{body}</div>'
    links = "".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in page.shown)
    inside = f'<ul class="inside" aria-label="On this page">{links}</ul>' if len(page.shown) > 2 else ""
    return f'<div class="page" id="{page.id}" tabindex="-1" data-title="{escape(page.title)}">{inside}{page.lead}{body}</div>'
