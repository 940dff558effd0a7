"""Hallucination: objects that a model reports although they are absent."""

from __future__ import annotations

import re
from collections import Counter

from diptych.benchmarks.statistics import clopper_pearson
from diptych.report.drawing.marks import escape, figure, header, key, scroller
from diptych.report.sections.answers import Answers, TaskAnswers

MOST = 10  # objects for each model
ASKED = re.compile(r"\bis there (?:an? |any )?(.+?)(?: in the (?:image|picture|photo))?\?", re.IGNORECASE)


def invented(g: TaskAnswers) -> str:
    """The most frequently invented objects, HTML, from yes/no questions or from captions with recorded mentions."""
    rows = []
    for a in g.answers:
        false, n_asked = counted(a)
        for thing, n in sorted(false.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST]:
            low, high = clopper_pearson(n / n_asked[thing], n_asked[thing])
            rows.append(
                f'<tr><th scope="row">{escape(thing)}</th><td>{key(a.index, a.recipe.label)}</td>'
                f'<td class="num" data-v="{n}">{n}</td>'
                f'<td class="num" data-v="{n_asked[thing]}">{n_asked[thing]}</td><td class="num" data-v="{n / n_asked[thing]:.6g}">'
                f'{100 * n / n_asked[thing]:.1f}<span class="ci">{100 * low:.1f}–{100 * high:.1f}</span></td></tr>'
            )
    if not rows:
        return ""
    heads = header("Object", first=True) + "".join(header(h) for h in ("Model", "Reported", "Of", "Per cent"))
    table = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    caption = (
        f"The {MOST} objects that each model most often reported although they are absent. Of: questions about absent ones, or, "
        "for captions, captions of pictures without the object. Interval: exact, assuming independence; the top of a list of the "
        "largest of many values is always partly chance."
    )
    return figure(scroller(table, "Absent objects, scrolls sideways"), caption, "wide")


def counted(a: Answers) -> tuple[Counter[str], Counter[str]]:
    """For each object, how often it was reported where it is absent, and how often it was absent."""
    false: Counter[str] = Counter()
    n_asked: Counter[str] = Counter()
    written = [r for r in a.records if isinstance(r.get("mentioned"), list) and isinstance(r.get("truth"), list)]
    things = {str(t) for r in written for t in (*r["mentioned"], *r["truth"])}
    for record in written:
        there = {str(t) for t in record["truth"]}
        n_asked.update(things - there)
        false.update({str(t) for t in record["mentioned"]} - there)
    for record in a.records:
        match = ASKED.search(str(record.get("question") or ""))
        if match and record.get("answers") == ["no"]:
            n_asked[match[1]] += 1
            false[match[1]] += record.get("parsed") == "yes"
    return +false, n_asked
