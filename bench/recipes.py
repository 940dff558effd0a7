"""Every built-in recipe, with its variants, under the same budgets of FLOPs: ``make results``.

``python -m bench.recipes --time 60m`` trains and evaluates what is missing, for an hour, and then writes docs/results.md and the pages in
docs/systems. Stopped runs continue the next time. ``--time 0`` only writes the pages.

Each recipe and seed leaves a record in bench/results/recipes, which is committed: the recipe as it was trained, the commit, the processor,
what was spent, and the credit of every test item. Where the recipe has changed since, its record is out of date: the run is done again, and
until then the pages name it. Recipes with a packaged language model have one seed, since a run takes long; all others have three.

The common budget gives the first table. The second says what each recipe needs to reach a threshold: the least budget of a ladder, each twice
the one before, at which the mean over its seeds is there. A higher rung is tried only where the lower one was too low, and a lower one only
where a higher one was enough.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.harness import environment
from diptych.comparison.jobs import Job, cores, run_jobs
from diptych.comparison.paired import Credits, credits_of_run, estimates, paired_tests
from diptych.comparison.run import Evaluation, RecipeJob, every_system, weights_of
from diptych.config.budget import parse_budget
from diptych.config.recipe import load_recipe, recipe_variants, saved_recipe
from diptych.config.variants import MARK
from diptych.core.errors import DiptychError, Interrupted, counted
from diptych.core.files import read_json, write_json, write_text
from diptych.report.columns import classify
from diptych.report.pages.markdown import REFERENCE, table, write_markdown
from diptych.training.run_files import RunFiles

DATA = "scenes:small"
TASKS = ("retrieval?n=50", "retrieval-1000", "zeroshot", "controlled?n=200", "captions?n=100")
TASKS_OF_LARGE = ("retrieval?n=50", "controlled?n=50", "captions?n=25")  # a packaged language model needs a second a picture
COMMON = "4T flops"
LADDER = ("1T flops", "2T flops", "4T flops", "8T flops", "16T flops", "32T flops")
SEEDS, SEEDS_OF_LARGE = 3, 1
THRESHOLD = 0.5
REACHED = [("retrieval", "text-to-image/recall@1"), ("retrieval", "image-to-text/recall@1")]  # their mean
RECORDS = Path(__file__).parent / "results" / "recipes"
RUNS = Path("runs") / "recipes"
DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Entry:
    """One run of the results: a recipe, a seed and a budget."""

    name: str
    seed: int
    budget: str

    @property
    def folder(self) -> str:
        """``6T-flops/clip-s0``."""
        return f"{self.budget.replace(' ', '-')}/{self.name}-s{self.seed}"

    @property
    def record(self) -> Path:
        """The file of its record."""
        return RECORDS / f"{self.folder}.json"

    def job(self) -> RecipeJob:
        """Its run."""
        recipe = load_recipe(self.name, [f"seed={self.seed}"])  # its own data: for all but those with conversations, DATA
        recipe = recipe.model_copy(update={"budget": parse_budget(self.budget)})
        label = f"{self.name} s{self.seed} {self.budget}"
        evaluations, backbones = [Evaluation(None, list(tasks_of(self.name)))], RUNS / "backbones"  # for all budgets
        return RecipeJob(label, RUNS / self.folder, max(1, cores() // 2), recipe, evaluations, backbones=backbones)

    def content(self) -> dict[str, Any] | None:
        """Its record; None if there is none."""
        return read_json(self.record) if self.record.is_file() else None

    def up_to_date(self) -> bool:
        """Whether there is a record of the recipe and the tasks as they are now. The recipe of the record is read as a saved one: a
        field that it has not, since it is of an earlier version, is at its default.
        """
        content = self.content()
        if content is None or content["tasks"] != list(tasks_of(self.name)):
            return False
        try:
            return saved_recipe(content["recipe"], str(self.record)).learned() == self.job().recipe.learned()
        except DiptychError:  # a recipe that this version does not know
            return False


# --- records ---


def pack(values: Iterable[float]) -> str | list[float]:
    """Credits as a text of 0, h (a half) and 1, or as rounded numbers where there are others."""
    found = list(values)
    digits = {0.0: "0", 0.5: "h", 1.0: "1"}
    return "".join(digits[v] for v in found) if all(v in digits for v in found) else [round(v, 4) for v in found]


def unpack(packed: str | list[float]) -> list[float]:
    """The credits of ``pack``."""
    return [{"0": 0.0, "h": 0.5, "1": 1.0}[c] for c in packed] if isinstance(packed, str) else [float(v) for v in packed]


def save_record(entry: Entry, job: RecipeJob) -> None:
    """Writes the record of a run that is done. Items are stored once for all runs, in items/."""
    run = RunFiles(job.path)
    summary = run.evaluation().summary()
    rows = [r for r in summary["results"] if classify(r["task"], r["metric"])]
    credits: dict[str, Any] = {}
    for (task, metric), by_item in credits_of_run(run.evaluation().path).items():
        if not classify(task, metric):
            continue
        items = sorted((item, cluster) for item, (_, cluster) in by_item.items())
        listed = json.dumps(items, ensure_ascii=False, separators=(",", ":"))
        name = hashlib.sha256(listed.encode()).hexdigest()[:12]
        if not (RECORDS / "items" / f"{name}.json").is_file():
            write_text(RECORDS / "items" / f"{name}.json", listed + "\n")
        credits[f"{task} {metric}"] = {"items": name, "credits": pack(by_item[item][0] for item, _ in items)}
    spent = {k: v for k, v in run.spent().items() if k != "drawn"}
    if "pretraining" in spent:  # without the paths of this machine
        spent["pretraining"] = {part: {k: v for k, v in each.items() if k != "run"} for part, each in spent["pretraining"].items()}
    where = environment()
    content = {
        "name": entry.name,
        "seed": entry.seed,
        "budget": entry.budget,
        "commit": commit(),
        "hardware": where["hardware"],
        "software": where["software"],
        "date": where["date"],
        "tasks": list(tasks_of(entry.name)),
        "data_fingerprint": summary.get("data_fingerprint"),
        "spent": spent,
        "results": [{k: v for k, v in r.items() if k != "slices"} for r in rows],
        "skipped": summary.get("skipped") or [],
        "credits": credits,
        "recipe": job.recipe.model_dump(mode="json", by_alias=True),
    }
    write_json(entry.record, content)


def commit() -> str:
    """The commit that is checked out, with + behind it if files of it have been changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=RECORDS.parent, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", "../../src") else "")


def credits_in(content: dict[str, Any]) -> Credits:
    """The credits in a record."""
    found: Credits = {}
    for key, stored in content["credits"].items():
        task, _, metric = key.partition(" ")
        items = json.loads((RECORDS / "items" / f"{stored['items']}.json").read_text(encoding="utf-8"))
        found[task, metric] = {i: (v, c) for (i, c), v in zip(items, unpack(stored["credits"]), strict=True)}
    return found


# --- what to run ---


def names() -> list[str]:
    """Every recipe whose weights are installed, each with those of its variants behind it that a small budget can train."""
    found = []
    for recipe in every_system(None):
        variants = [v for v in recipe_variants() if v.startswith(f"{recipe}@")]
        found += [recipe, *(v for v in variants if seeds_of(v) == SEEDS and load_recipe(v).data.train == DATA)]
    return found


def seeds_of(name: str) -> int:
    """How many seeds a recipe has: one with a packaged language model, whose runs take long."""
    recipe = load_recipe(name)
    return SEEDS_OF_LARGE if "lm" in recipe.parts and weights_of(recipe) else SEEDS


def tasks_of(name: str) -> tuple[str, ...]:
    """What a recipe is evaluated on."""
    return TASKS if seeds_of(name) == SEEDS else TASKS_OF_LARGE


def entries(name: str, budget: str) -> list[Entry]:
    """The runs of a recipe at a budget."""
    return [Entry(name, seed, budget) for seed in range(seeds_of(name))]


def reached(name: str, budget: str, least: int | None = None) -> float | None:
    """The mean of the threshold's metrics over the seeds at a budget; None if fewer runs than ``least`` (None: all) are up to date."""
    values = []
    for entry in entries(name, budget):
        content = entry.content() if entry.up_to_date() else None
        if content is None:
            continue
        rows = {(r["task"], r["metric"]): r["value"] for r in content["results"]}
        if not all(key in rows for key in REACHED):
            return None
        values.append(fmean(rows[key] for key in REACHED))
    return fmean(values) if len(values) >= (seeds_of(name) if least is None else least) else None


def missing(chosen: list[str], ladder: bool) -> list[Entry]:
    """What has to be run next: the common budget first, seed by seed, then one further rung of each recipe."""
    common = [e for seed in range(SEEDS) for name in chosen for e in entries(name, COMMON) if e.seed == seed and not e.up_to_date()]
    common.sort(key=lambda e: seeds_of(e.name) != SEEDS)  # those that take longest come last
    if common or not ladder:
        return common
    return [e for name in chosen if (rung := next_rung(name)) for e in entries(name, rung) if not e.up_to_date()]


def prepared(todo: list[Entry]) -> list[tuple[Entry, RecipeJob]]:
    """The runs that are really to be done, with their jobs. Of a run that is finished the record is saved; a run of the recipe as it
    was is deleted.
    """
    left = []
    for entry in todo:
        job = entry.job()
        before = RunFiles(job.path).requested()
        if before is not None and before.learned() != job.recipe.learned():
            shutil.rmtree(job.path)
        if job.done():
            save_record(entry, job)
        else:
            left.append((entry, job))
    return left


def next_rung(name: str) -> str | None:
    """The budget that has to be tried next to find the least that is enough; None if it is known, or beyond the ladder."""
    place = LADDER.index(COMMON)
    value = reached(name, COMMON)
    if value is None:
        return None
    step = -1 if value >= THRESHOLD else 1
    while 0 <= place + step < len(LADDER):
        place += step
        value = reached(name, LADDER[place])
        if value is None:
            return LADDER[place]
        if (value >= THRESHOLD) != (step < 0):
            return None
    return None


# --- pages ---


def write_pages(chosen: list[str], tests: Path | None) -> list[str]:
    """Writes docs/results.md and docs/systems from the records; returns the recipes with runs that are missing or out of date, in
    words.
    """
    contents = {(e.name, e.seed): found for name in chosen for e in entries(name, COMMON) if (found := e.content())}
    if not contents:
        raise DiptychError(f"{RECORDS} holds no record yet; give --time")
    notes = []
    for name in chosen:
        lacking = [str(e.seed) for e in entries(name, COMMON) if not e.up_to_date()]
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
                "title": "Every recipe under one budget",
                "created": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
                "command": "make results",
                "data": DATA,
                "budget": COMMON,
                "recipes": [
                    {"label": r.name, **r.model_dump(include={"name", "paradigm", "about", "cite", "score"})} for r in described
                ],
                "environment": {"platform": "; ".join(machines), **_versions(contents.values())},
            },
        )
        write_json(root / "tests.json", paired_tests(runs, REFERENCE))
        write_json(root / "estimates.json", estimates(runs))
        write_markdown(root, DOCS, tests, [*packaged(chosen), *out_of_date(notes), *least_budgets(chosen)])
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
    path = RUNS / "tests.xml"
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
        f"With packaged weights: {listed}; those with a packaged language model have one seed. What it took to train these weights is not counted, so their figures do not compare "
        "with recipes that start from nothing; and the budget buys them few samples. The variants `@mini` have backbones that are trained here; what "
        "these cost has a column of its own. [`lm`](systems/lm.md) is one of them: it reads no images, so it has no row.",
        "",
        "Of 2026-11-25 there are [figures at 24 TFLOP](results-24T.md), one seed, of the recipes as they were then.",
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
        f"The least of the budgets {', '.join(LADDER)} at which recall@1 of 50 is at least {THRESHOLD:.0%} (the mean of both directions, over "
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


def seconds_of(text: str) -> float:
    """``60m`` → 3600; ``0`` → 0."""
    seconds = 0.0 if text.strip() in ("0", "0s", "0m") else parse_budget(text).seconds
    if seconds is None:
        raise DiptychError(f"--time {text}: expected a time such as 30m or 2h")
    return seconds


def main() -> int:
    """Runs what is missing within the time, then writes the pages. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.recipes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="*", help="run only these; the pages always show all")
    parser.add_argument("--time", default="0", help="how long to train and evaluate, such as 60m; 0: only write the pages")
    parser.add_argument("--jobs", type=int, default=None, help="runs at a time; one for each core if not given")
    given = parser.parse_args()
    everything = names()
    status, end = 0, time.monotonic() + seconds_of(given.time)
    while (left := end - time.monotonic()) > 0 and (todo := missing(given.recipes or everything, ladder=True)):
        jobs = prepared(todo)
        if not jobs:
            continue  # all were finished: what is missing now?
        print(f"{counted(len(jobs), 'run')} to do, {left / 60:.0f} min left", file=sys.stderr)

        def finished(job: Job, jobs: list[tuple[Entry, RecipeJob]] = jobs) -> None:
            """Keeps the record of a run at once."""
            save_record(*next(pair for pair in jobs if pair[1] is job))

        try:
            failed = run_jobs([job for _, job in jobs], given.jobs or cores(), seconds=left, finished=finished)
        except Interrupted:
            break
        if failed:
            for job in failed:
                print(f"failed: {job.label}: {job.state.get('error', 'see its log')} ({job.path / 'log.txt'})", file=sys.stderr)
            status = 1
            break
    notes = write_pages(everything, collected())
    print(f"written: {DOCS / 'results.md'}; missing or out of date: {counted(len(notes), 'recipe')}", file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except DiptychError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
