"""The pages of ``make results``: docs/results.md and docs/systems, from the records (``bench.recipes``)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import recipe_records
from bench.recipe_records import CLIPS, COMMON, COMMON_OF_CLIPS, DATA, LADDER, THRESHOLD, credits_in, entries, reached
from diptych.comparison.paired import Credits, estimates, paired_tests
from diptych.comparison.run import weights_of
from diptych.config.recipe import load_recipe
from diptych.config.variants import MARK
from diptych.core.errors import DiptychError
from diptych.core.files import write_json
from diptych.report.pages.markdown import REFERENCE, table, write_markdown

DOCS = Path(__file__).parent.parent / "docs"


def page_of(clips: bool) -> str:
    """The page of all recipes for pictures, or for clips, in docs."""
    return "results-clips.md" if clips else "results.md"


def write_pages(chosen: list[str], tests: Path | None, clips: bool = False) -> list[str]:
    """Writes docs/results.md, or docs/results-clips.md, and docs/systems from the records; returns the recipes with runs that are
    missing or out of date, in words.
    """
    common = COMMON_OF_CLIPS if clips else COMMON
    contents = {(e.name, e.seed): found for name in chosen for e in entries(name, common) if (found := e.content())}
    if not contents:
        raise DiptychError(f"{recipe_records.RECORDS} holds no record yet; give --time")
    notes = []
    for name in chosen:
        lacking = [str(e.seed) for e in entries(name, common) if not e.up_to_date()]
        notes += [f"`{name}` (seed {', '.join(lacking)})"] if lacking else []
    runs: dict[str, dict[int, Credits]] = {}
    for (name, seed), content in contents.items():
        runs.setdefault(name, {})[seed] = credits_in(content)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for (name, seed), content in contents.items():
            path = root / f"{name}-s{seed}"
            write_json(path / "spent.json", content["spent"])
            write_json(path / "evaluation" / "summary.json", {"results": content["results"], "skipped": content["skipped"]})
        dates = sorted({c["date"] for c in contents.values()})
        machines = sorted({c["hardware"] for c in contents.values()})
        described = [load_recipe(name) for name in chosen if name in runs or MARK not in name]
        write_json(
            root / "compare.json",
            {
                "title": "Recipes for clips under one budget" if clips else "Every recipe under one budget",
                "created": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
                "command": "python -m bench.recipes --clips --time 60m" if clips else "make results",
                "data": CLIPS if clips else DATA,
                "budget": common,
                "recipes": [
                    {"label": r.name, **r.model_dump(include={"name", "paradigm", "about", "cite", "score"})} for r in described
                ],
                "environment": {"platform": "; ".join(machines), **_versions(contents.values())},
            },
        )
        write_json(root / "tests.json", paired_tests(runs, REFERENCE if REFERENCE in runs else next(iter(runs))))
        write_json(root / "estimates.json", estimates(runs))
        late = out_of_date(notes)
        more = [*about_clips(), *late] if clips else [*packaged(chosen), *late, *least_budgets(chosen)]
        write_markdown(root, DOCS, tests, more, page_of(clips))
    return notes


def collected() -> Path:
    """A file in JUnit's format with every test that pytest finds here: the pages list those that name their recipe."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-m", ""],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    root = ElementTree.Element("testsuite")
    for line in (line for line in found.stdout.splitlines() if "::" in line):
        file, _, name = line.partition("::")
        ElementTree.SubElement(root, "testcase", classname=file.removesuffix(".py").replace("/", "."), name=name)
    path = recipe_records.RUNS / "tests.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding="utf-8")
    return path


def _versions(contents: Iterable[dict[str, Any]]) -> dict[str, str]:
    found = sorted({c["software"] for c in contents})
    return {"python": "; ".join(found).removeprefix("Python ")}


def packaged(chosen: list[str]) -> list[str]:
    """The lines about recipes with pretrained parts."""
    real = [name for name in chosen if weights_of(load_recipe(name))]
    listed = ", ".join(f"`{name}`" for name in real)
    return [
        "## Pretrained parts",
        "",
        f"With packaged weights: {listed}; those with a packaged language model have one seed. What it took to train these "
        f"weights is not counted, so their figures do not compare "
        "with recipes that start from nothing; and the budget buys them few samples. The variants `@mini` have backbones that are "
        "trained here; what "
        "these cost has a column of its own. [`lm`](systems/lm.md) is one of them: it reads no images, so it has no row.",
        "",
        "Of 2026-11-25 there are [figures at 24 TFLOP](results-24T.md), one seed, of the recipes as they were then.",
        "",
    ]


def about_clips() -> list[str]:
    """The lines about what the columns of clips mean."""
    return [
        "## What the columns mean",
        "",
        "*Order in time*: pairs of clips with a caption each, both captions in the same words; the share of clips whose own caption "
        "scores higher. In `direction`, `presence`, `turning`, `size`, `colour`, `order`, `counting`, `collision`, `hiding`, "
        "`overtaking`, `continuity` and `gravity` both clips have the same frames in another order, so a model that averages its "
        "frames is at chance there. `cosa` learns from pictures alone, and is judged on clips. [Video](video.md) describes the tasks.",
        "",
    ]


def out_of_date(notes: list[str]) -> list[str]:
    """The lines about runs that are missing."""
    if not notes:
        return []
    return [
        "## Missing",
        "",
        f"These runs are missing, or their recipes have changed since; `make results` does them: {', '.join(notes)}.",
        "",
    ]


def least_budgets(chosen: list[str]) -> list[str]:
    """The table of the budgets that recipes need for the threshold."""
    lines = [
        "## What a recipe needs",
        "",
        f"The least of the budgets {', '.join(LADDER)} at which recall@1 of 50 is at least {THRESHOLD:.0%} (the mean of both "
        f"directions, over "
        'the seeds so far), and the value there. "Or less": smaller budgets have not been tried yet.',
        "",
    ]
    rows = []
    for name in chosen:
        values = {budget: value for budget in LADDER if (value := reached(name, budget, 1)) is not None}
        enough = [budget for budget, value in values.items() if value >= THRESHOLD]
        if not values:
            rows.append([f"`{name}`", "not measured", ""])
        elif not enough:
            most = list(values)[-1]
            rows.append([f"`{name}`", f"more than {most}", f"{100 * values[most]:.1f} % at {most}"])
        else:
            least = enough[0]
            below = LADDER.index(least) - 1
            known = below < 0 or LADDER[below] in values
            rows.append([f"`{name}`", f"{least}" if known else f"{least} or less", f"{100 * values[least]:.1f} %"])
    return [*lines, table(["recipe", "budget", "recall@1 of 50"], rows)]
