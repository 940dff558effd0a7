"""The red-team section: refusal and harm rates for each kind of harm; requests and answers only on request."""

from __future__ import annotations

from diptych.core.errors import DiptychError
from diptych.report.columns import interval, number
from diptych.report.drawing.marks import escape, figure, header, key, scroller
from diptych.report.read import Comparison, Recipe
from diptych.report.sections.answers import Answers, TaskAnswers

COLUMNS = (("refused", "Refused"), ("harmful", "Harmful answers"), ("over_refusal", "Ordinary, refused"))
TEXTS = 60  # the most probes with their texts


def harms(comparison: Comparison, g: TaskAnswers, probe_texts: bool) -> str:
    """The table of harms, HTML."""
    names = list(dict.fromkeys(str(r.get("harm")) for a in g.answers for r in a.records if r.get("harm")))
    titles, prompts = _known(g)
    rows = "".join(
        _row(g.task, key(index, recipe.label), recipe, name, *titles.get(name, (name, "")))
        for name in names
        for index, recipe in enumerate(comparison.recipes)
        if any(k[0] == g.task for k in recipe.measures)
    )
    if not rows:
        return ""
    heads = header("Harm", first=True) + header("Model") + "".join(header(title) + header("n") for _, title in COLUMNS)
    table = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    caption = (
        "Per cent with a 95 % interval; n: probes. Refused: requests that a careful model declines, and this one declined. "
        "Harmful: the answer matched one of the probe’s patterns. Neither: a safe answer, or one that no rule matched (unclear). "
        "Ordinary, refused: requests that it should have answered. With few probes the intervals are wide: 0 of 5 is compatible "
        "with a true rate of up to a half."
    )
    note = (
        ""
        if probe_texts
        else '<p class="note">Requests and answers are not shown; <code>diptych report --probe-texts</code> shows them.</p>'
    )
    return (
        figure(scroller(table, "Rates per kind of harm, scrolls sideways"), caption, "wide")
        + note
        + (_texts(g, prompts) if probe_texts else "")
    )


def _row(task: str, who: str, recipe: Recipe, name: str, title: str, about: str) -> str:
    cells = []
    for metric, _ in COLUMNS:
        m = recipe.measures.get((task, f"{metric}/{name}"))
        if m is None:
            cells.append('<td class="none" data-v="">—</td><td class="none" data-v="">—</td>')
        else:
            cells.append(
                f'<td class="num" data-v="{m.value:.6g}"><span class="value">{number(m.value)}</span>'
                f'<span class="ci">{interval(m)}</span>'
                f'</td><td class="num" data-v="{m.n}">{m.n}</td>'
            )
    below = f'<span class="note">{escape(about)}</span>' if about else ""
    return f'<tr><th scope="row">{escape(title)}{below}</th><td>{who}</td>{"".join(cells)}</tr>'


def _known(g: TaskAnswers) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Titles of harms and the requests, from the file of the probes; without it, from the built-in taxonomy."""
    from diptych.benchmarks.redteam.probes import SAMPLE, read_probes, taxonomy

    titles = {h.name: (h.title, h.about) for h in taxonomy().values()}
    prompts: dict[str, str] = {}
    for evaluation in dict.fromkeys(a.evaluation for a in g.answers):
        settings = evaluation.settings(g.task)
        try:
            probes, known = read_probes(str(settings.get("file", SAMPLE)))
        except DiptychError:
            continue
        titles |= {h.name: (h.title, h.about) for h in known.values()}
        prompts |= {p.id: p.prompt for p in probes}
    return titles, prompts


def _texts(g: TaskAnswers, prompts: dict[str, str]) -> str:
    parts = []
    for a in g.answers:
        cards = "".join(_card(a, i, prompts) for i in range(min(TEXTS, len(a.records))))
        head = f"<summary><h3>{key(a.index, a.recipe.label)}</h3></summary>"
        parts.append(f'<details class="recipe">{head}<div class="cards">{cards}</div></details>')
    return "<h3>Requests and answers</h3>" + "".join(parts)


def _card(a: Answers, i: int, prompts: dict[str, str]) -> str:
    record = a.records[i]
    request = prompts.get(str(record["item"]), "(the probe file no longer exists)")
    return (
        f'<article class="card"><p class="query">{escape(request)}</p><dl><dt>Said</dt><dd>{escape(record.get("said", ""))}</dd>'
        f"<dt>Sorted as</dt><dd>{escape(record.get('outcome', ''))}</dd></dl></article>"
    )
