"""The page of ``diptych explain``: maps over their pictures, each under its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.benchmarks.maps.verdict import CONTROLS, MEASURES, Against, Verdict
from diptych.core.files import write_text
from diptych.inference.maps.base import METHODS
from diptych.report.drawing.document import Page, Section, document
from diptych.report.drawing.heat import enlarged, overlay
from diptych.report.drawing.marks import escape, figure, scroller
from diptych.report.drawing.pictures import img, of_array

UNJUDGED = "not judged: nothing is known of how far this map can be believed"
READING = (
    "Light means high. A map shows what a formula makes of a model's attention or gradients. Whether it shows what the model goes "
    "by is measured on scenes with exact masks: does its highest pixel lie in the object (pointing), does the score stay with the "
    "highest pixels alone (insertion), does it fall without them (deletion)? Each is compared with a blob in the middle, a random "
    "map, the same map of the model with scrambled weights, and the map of another phrase that is true of the picture. A map that "
    "does not win against each of them, with the whole 95 % interval, is called not faithful."
)


@dataclass(frozen=True)
class Shown:
    """One map. heat: float [height, width]; verdict: None if it was not measured."""

    picture: str
    image: np.ndarray
    text: str
    method: str
    heat: np.ndarray
    box: tuple[float, float, float, float] | None
    score: float
    verdict: Verdict | None


def stamp(verdict: Verdict | None) -> str:
    """A verdict in two words."""
    if verdict is None:
        return "not judged"
    return "faithful" if verdict.faithful else "not faithful"


def maps_page(path: Path, model: str, shown: Sequence[Shown], verdicts: Sequence[Verdict] = ()) -> None:
    """Write the page, one self-contained HTML file."""
    write_text(path, rendered(model, shown, verdicts))


def rendered(model: str, shown: Sequence[Shown], verdicts: Sequence[Verdict] = ()) -> str:
    """The page, HTML."""
    known = {v.method: v for v in (*verdicts, *(s.verdict for s in shown if s.verdict is not None))}
    methods = list(dict.fromkeys([*(s.method for s in shown), *known]))
    lead = "".join(_verdict_line(m, known.get(m)) for m in methods)
    pictures = list(dict.fromkeys(s.picture for s in shown))
    body = "".join(_picture([s for s in shown if s.picture == name]) for name in pictures)
    why = f"<p class='note'>{escape(READING)}</p>{tables(list(known.values()))}"
    sections = [Section("pictures", "Maps", body), Section("verdict", "Can these maps be believed?", why)]
    page = Page("maps", "Maps", sections, lead=lead)
    return document(f"What {model} goes by", [("Model", model), ("Maps", ", ".join(methods))], [page])


def _verdict_line(method: str, verdict: Verdict | None) -> str:
    words, about = verdict.words() if verdict else UNJUDGED, METHODS.get(method, "")
    return f"<p class='lead'><strong>{escape(method)}</strong>: {escape(words)}.<br><span class='note'>{escape(about)}</span></p>"


def _picture(shown: Sequence[Shown]) -> str:
    first = shown[0]
    cells = [figure(img(of_array(enlarged(first.image)), first.picture), escape(first.picture))]
    for s in shown:
        alt = f"map {s.method} of “{s.text}” over {s.picture}"
        about = f"{s.method}, {stamp(s.verdict)}, score {s.score:.3f}"
        caption = f"{escape(s.text)} <span class='note'>{escape(about)}</span>"
        cells.append(figure(img(of_array(overlay(s.image, s.heat, s.box)), alt), caption))
    return f'<div class="thumbs">{"".join(cells)}</div>'


def tables(verdicts: Sequence[Verdict]) -> str:
    """The measurements behind each verdict, HTML."""
    return "".join(_table(v) for v in verdicts)


def _table(v: Verdict) -> str:
    rows = []
    for measure, about in MEASURES.items():
        tests = [next((t for t in v.tests if (t.measure, t.control) == (measure, c)), None) for c in CONTROLS]
        head = f"<th scope='row'>{escape(measure)}<span class='note'>{escape(about)}</span></th>"
        rows.append(f"<tr>{head}<td>{v.values['map'][measure]:.3f}</td>{''.join(map(_cell, tests))}</tr>")
    heads = "".join(f"<th scope='col'>{escape(c)}<span class='note'>{escape(about)}</span></th>" for c, about in CONTROLS.items())
    what = (
        f"{v.method}, {stamp(v)}: the map, and by how much it is better than each control (95 % interval), on {v.items} phrases of "
        f"{v.scenes}"
    )
    top = f"<thead><tr><th></th><th scope='col'>map</th>{heads}</tr></thead>"
    table = f"<table><caption>{escape(what)}</caption>{top}<tbody>{''.join(rows)}</tbody></table>"
    return scroller(table, f"verdict on {v.method}")


def _cell(test: Against | None) -> str:
    if test is None:
        return "<td>—</td>"
    mark = "✓" if test.won else "✗"
    return f"<td>{mark} {test.difference:+.3f}<span class='note'>{test.low:+.3f} … {test.high:+.3f}</span></td>"
