"""Every built-in recipe, with its variants, under the same budgets of FLOPs: ``make results``.

``python -m bench.recipes --time 60m`` trains and evaluates what is missing, for an hour, and then writes docs/results.md and the
pages in docs/systems. Stopped runs continue the next time. ``--time 0`` only writes the pages.

Each recipe and seed leaves a record in bench/results/recipes, which is committed: the recipe as it was trained, the commit, the
processor, what was spent, and the credit of every test item. Where the recipe has changed since, its record is out of date: the run
is done again, and until then the pages name it. Recipes with a packaged language model have one seed, since a run takes long; all
others have three.

Recipes for clips have results of their own: ``python -m bench.recipes --clips --time 60m`` writes docs/results-clips.md.

The common budget gives the first table. The second says what each recipe needs to reach a threshold: the least budget of a ladder,
each twice the one before, at which the mean over its seeds is there. A higher rung is tried only where the lower one was too low,
and a lower one only where a higher one was enough."""

from __future__ import annotations

import argparse
import shutil
import sys
import time

from bench.recipe_pages import DOCS, collected, page_of, write_pages
from bench.recipe_records import (
    COMMON,
    COMMON_OF_CLIPS,
    LADDER,
    SEEDS,
    THRESHOLD,
    Entry,
    entries,
    names,
    reached,
    save_record,
    seeds_of,
)
from diptych.comparison.jobs import Job, cores, run_jobs
from diptych.comparison.run import RecipeJob
from diptych.config.budget import parse_budget
from diptych.core.errors import DiptychError, Interrupted, counted
from diptych.training.run_files import RunFiles


def missing(chosen: list[str], ladder: bool, budget: str = COMMON) -> list[Entry]:
    """What has to be run next: the common budget first, seed by seed, then one further rung of each recipe."""
    common = [e for seed in range(SEEDS) for name in chosen for e in entries(name, budget) if e.seed == seed and not e.up_to_date()]
    common.sort(key=lambda e: seeds_of(e.name) != SEEDS)  # those that take longest come last
    if common or not ladder:
        return common
    return [e for name in chosen if (rung := next_rung(name)) for e in entries(name, rung) if not e.up_to_date()]


def prepared(todo: list[Entry]) -> list[tuple[Entry, RecipeJob]]:
    """The runs that are really to be done, with their jobs. Of a run that is finished the record is saved; a run of the recipe as
    it was is deleted."""
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
    parser.add_argument("--clips", action="store_true", help="the recipes for clips, and docs/results-clips.md")
    given = parser.parse_args()
    everything = names(given.clips)
    budget = COMMON_OF_CLIPS if given.clips else COMMON
    status, end = 0, time.monotonic() + seconds_of(given.time)
    while (left := end - time.monotonic()) > 0 and (todo := missing(given.recipes or everything, not given.clips, budget)):
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
    notes = write_pages(everything, collected(), given.clips)
    print(f"written: {DOCS / page_of(given.clips)}; missing or out of date: {counted(len(notes), 'recipe')}", file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except DiptychError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
