"""The records of ``make results``: one for each recipe, seed and budget, in bench/results/recipes (``bench.recipes``)."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.harness import environment
from diptych.comparison.jobs import cores
from diptych.comparison.paired import Credits, credits_of_run
from diptych.comparison.run import Evaluation, RecipeJob, every_system, weights_of
from diptych.config.budget import parse_budget
from diptych.config.recipe import load_recipe, recipe_variants, saved_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json, write_text
from diptych.report.columns import classify
from diptych.training.run_files import RunFiles

DATA = "scenes:small"
TASKS = ("retrieval?n=50", "retrieval-1000", "zeroshot", "controlled?n=200", "captions?n=100")
TASKS_OF_LARGE = ("retrieval?n=50", "controlled?n=50", "captions?n=25")  # a packaged language model needs a second a picture
COMMON = "4T flops"
# Clips of as many frames as a model reads: of longer ones, a clip and its reverse would show it other frames.
CLIPS = "scenes:clips?actions=all&size=32&concepts=12&colours=4&clip_frames=8"
TASKS_OF_CLIPS = ("video-retrieval?n=100", "temporal?n=100", "actions?n=400")
COMMON_OF_CLIPS = "16T flops"
LADDER = ("1T flops", "2T flops", "4T flops", "8T flops", "16T flops", "32T flops")
SEEDS, SEEDS_OF_LARGE = 3, 1
THRESHOLD = 0.5
REACHED = [("retrieval", "text-to-image/recall@1"), ("retrieval", "image-to-text/recall@1")]  # their mean
RECORDS = Path(__file__).parent / "results" / "recipes"
RUNS = Path("runs") / "recipes"


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
        judged = CLIPS if of_clips(self.name) else None  # some learn clips from other data than clips
        evaluations, backbones = [Evaluation(judged, list(tasks_of(self.name)))], RUNS / "backbones"  # for all budgets
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


# --- which there are ---


def of_clips(name: str) -> bool:
    """Whether a recipe is for clips, and so in the results of clips."""
    return load_recipe(name).data.train.startswith(("scenes:clips", "stills:"))


def names(clips: bool = False) -> list[str]:
    """Every recipe whose weights are installed, each with those of its variants behind it that a small budget can train. clips:
    those for clips, else the others. A variant with a budget of its own is for other data, such as a few hundred photographs
    (``lit@conse``), and is left out.
    """
    found = []
    for recipe in every_system(None):
        if of_clips(recipe) != clips:
            continue
        variants = [v for v in recipe_variants() if v.startswith(f"{recipe}@")]
        found += [recipe, *(v for v in variants if seeds_of(v) == SEEDS and _for_scenes(v, recipe))]
    return found


def _for_scenes(variant: str, recipe: str) -> bool:
    """Whether a variant is trained on the data of the results, under any budget."""
    made = load_recipe(variant)
    return made.data.train in (DATA, load_recipe(recipe).data.train) and made.budget == load_recipe(recipe).budget


def seeds_of(name: str) -> int:
    """How many seeds a recipe has: one with a packaged language model, whose runs take long."""
    recipe = load_recipe(name)
    return SEEDS_OF_LARGE if "lm" in recipe.parts and weights_of(recipe) else SEEDS


def tasks_of(name: str) -> tuple[str, ...]:
    """What a recipe is evaluated on."""
    if of_clips(name):
        return TASKS_OF_CLIPS
    return TASKS if seeds_of(name) == SEEDS else TASKS_OF_LARGE


def entries(name: str, budget: str) -> list[Entry]:
    """The runs of a recipe at a budget."""
    return [Entry(name, seed, budget) for seed in range(seeds_of(name))]


def reached(name: str, budget: str, least: int | None = None) -> float | None:
    """The mean of the threshold's metrics over the seeds at a budget; None if fewer runs than ``least`` (None: all) are up to
    date."""
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
