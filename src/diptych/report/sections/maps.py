"""The maps of the runs that were judged (``diptych explain``), with their verdicts."""

from __future__ import annotations

from diptych.benchmarks.maps.saved import FILE, all_kept
from diptych.benchmarks.maps.verdict import Verdict
from diptych.report.drawing.marks import escape, key, scroller
from diptych.report.read import Comparison, Run

NOTE = (
    "A map shows which parts of a picture a model's score depends on, or seems to. It is called faithful if it wins, on scenes "
    "with exact masks, against a blob in the middle, a random map, scrambled weights and a wrong caption: in pointing at the "
    "object and in how the score changes when its highest pixels are inserted and deleted. `diptych explain RUN` makes and judges "
    "maps."
)


def judged(run: Run) -> list[Verdict]:
    """The verdicts on the weights that were evaluated; all, if it is not known which these were."""
    weights = run.evaluation.key()
    return [v for v in all_kept(run.files.path / FILE) if not weights or v.key == weights]


def map_verdicts(comparison: Comparison) -> str:
    """A table of every judged map, HTML; empty if there is none."""
    rows = []
    for index, recipe in enumerate(comparison.recipes):
        for run in recipe.runs:
            for v in judged(run):
                mark = "✓ faithful" if v.faithful else "✗ not faithful"
                cells = (v.method, mark, f"{v.values['map']['pointing']:.2f} (by chance {v.chance:.2f})", v.words())
                head = f"<th scope='row'>{key(index, recipe.label)}<span class='note'>seed {run.seed}</span></th>"
                rows.append(f"<tr>{head}{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>")
    if not rows:
        return ""
    heads = "".join(f"<th scope='col'>{h}</th>" for h in ("recipe", "map", "verdict", "points at the object", "in words"))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<p class='note'>{escape(NOTE)}</p>{scroller(table, 'verdicts on maps')}"
