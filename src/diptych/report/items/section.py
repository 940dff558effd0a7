"""The section "Item by item" of a task's page: the data, and the controls that ``items.js`` brings to life."""

from __future__ import annotations

import re

from diptych.report.drawing.document import LISTS
from diptych.report.drawing.marks import escape
from diptych.report.drawing.pictures import Pictures
from diptych.report.items.gather import encoded, gathered_items
from diptych.report.pages.cards import is_private
from diptych.report.sections.answers import TaskAnswers


def item_list(gathered: TaskAnswers, pictures: Pictures) -> str:
    """The section, HTML; "" for tasks without credits and for a red team's, which shows no requests."""
    if is_private(gathered.task):
        return ""
    data = gathered_items(gathered, pictures)
    if not data:
        return ""
    name = re.sub(r"[^\w-]", "-", gathered.task)
    several = len(data["models"]) > 1
    what = "Each item with the answers of two models: who alone is right, by slice" if several else "Each item"
    more = f" {data['more']:,} further items are not on this page." if data["more"] else ""
    caption = (
        f"{what}. p: two-sided sign-flip test over clusters on the items of the slice, not corrected for the slices that you try; "
        "“≈” where signs were drawn. The number of an item is a link to it. Keys: ↓ and ↑ from item to item, Page Down and Page Up "
        f"from page to page, / to search.{more}"
    )
    controls = f'<div class="items-controls" role="group" aria-label="Which items of {escape(gathered.task)}"></div>'
    return (
        f'<figure class="wide"><div {LISTS} data-of="{name}">'
        f'<noscript><p class="note">The list of items needs JavaScript.</p></noscript>{controls}'
        '<p class="items-test" role="status" aria-live="polite"></p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="Items of {escape(gathered.task)}, scrolls sideways"></div>'
        '<p class="items-pages"></p></div>'
        f'<script type="application/json" id="itemdata-{name}">{encoded(data)}</script>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
