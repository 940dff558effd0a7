"""Loads comparisons, runs and evaluations for the report (docs/runs.md). A missing or broken file becomes a note, not an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from diptych.config.budget import Budget
from diptych.core.errors import DiptychError
from diptych.core.files import read_json_or, read_jsonl
from diptych.report.records import finite, results_of
from diptych.training.run_files import EvaluationFiles, RunFiles, run_directories

Content = TypeVar("Content")

Key = tuple[str, str]  # task, metric
COUNTED = (
    "seconds", "samples", "tokens", "flops", "pretraining_flops", "steps",
    "parameters", "trainable_parameters", "peak_memory_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """One metric of one recipe: means over its seeds, and the value of each seed."""

    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    clusters: int
    chance: float | None
    higher_is_better: bool
    controls: dict[str, float]
    ties: int
    nans: int
    seeds: dict[int, float]
    seeds_at_chance: tuple[int, ...] = ()
    bounded: bool = True  # False: a seed has no interval, so nothing is claimed
    over_seeds: bool = False  # the interval covers items and seeds; otherwise items

    @property
    def at_chance(self) -> bool:
        """Whether the interval includes chance."""
        return self.bounded and self.chance is not None and self.low <= self.chance <= self.high

    @property
    def better_than_chance(self) -> bool:
        """Whether the whole interval is better than chance; true if there is no chance level."""
        if self.chance is None or not self.bounded:
            return self.chance is None
        return self.low > self.chance if self.higher_is_better else self.high < self.chance


@dataclass
class Run:
    """One seed of a recipe."""

    files: RunFiles
    seed: int
    evaluation: EvaluationFiles
    spent: dict[str, Any]
    results: list[dict[str, Any]]
    skipped: dict[str, str]  # task: why
    model: str = ""  # its name in the evaluation
    data: str = ""  # what it was evaluated on, as an address
    data_fingerprint: str = ""


@dataclass
class Recipe:
    """A recipe of a comparison with its runs and their means."""

    name: str
    label: str
    paradigm: str = ""
    about: str = ""
    cite: str = ""
    score: str = ""
    error: str = ""
    runs: list[Run] = field(default_factory=list)
    measures: dict[Key, Measure] = field(default_factory=dict)
    spent: dict[str, Any] = field(default_factory=dict)


@dataclass
class Item:
    """An item of the comparison's retrieval set, with its picture."""

    id: str
    image: Path
    captions: list[str]


@dataclass
class Test:
    """A paired test; ``difference`` is a − b."""

    task: str
    metric: str
    a: str
    b: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None


@dataclass
class Comparison:
    """Everything that a report shows."""

    path: Path
    title: str
    created: str = ""
    data: str = ""
    eval_data: str = ""
    data_fingerprint: str = ""
    budget: Any = None
    command: str = ""
    recipes: list[Recipe] = field(default_factory=list)
    tests: list[Test] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    licences: list[dict[str, Any]] = field(default_factory=list)
    items: dict[str, Item] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    single: bool = False

    @property
    def measured(self) -> list[Recipe]:
        """The recipes with results."""
        return [r for r in self.recipes if r.measures]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all runs."""
        return sorted({run.seed for recipe in self.recipes for run in recipe.runs})


def load(path: Path) -> Comparison:
    """A comparison, a single run, or an evaluation alone. Raises DiptychError if the directory holds none of them."""
    path = Path(path)
    notes: list[str] = []
    if (path / "compare.json").exists():
        comparison = _comparison(path, notes)
    elif (path / "evaluation").is_dir() or (path / "metrics.jsonl").exists():
        comparison = _single(path, notes)
    elif EvaluationFiles(path).exists():
        comparison = _evaluation(path, notes)
    elif run_directories(path):
        comparison = _comparison(path, notes)
    else:
        raise DiptychError(
            f"{path}: not a comparison (compare.json), a run (evaluation/) or an evaluation "
            "(summary.json, records/*.jsonl); run `diptych compare` or `diptych evaluate` first"
        )
    comparison.notes = notes
    return comparison


def readable(read: Callable[..., Content], default: Any, notes: list[str], *arguments: Any) -> Content:
    """What ``read(*arguments)`` returns, or ``default`` if a file is broken; ``notes`` get the reason."""
    try:
        return read(*arguments)
    except DiptychError as error:
        notes.append(f"{error}; its content is missing here.")
        given: Content = default
        return given


def _texts(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """These entries as text; empty if they are missing."""
    return {key: str(content.get(key) or "") for key in keys}


def _comparison(path: Path, notes: list[str]) -> Comparison:
    meta: dict[str, Any] = readable(read_json_or, {}, notes, path / "compare.json", {})
    directories = run_directories(path)
    entries = [{"name": r} if isinstance(r, str) else r for r in meta.get("recipes") or directories]
    recipes = [_recipe(entry, directories.get(str(entry["name"]), []), notes) for entry in entries]
    _over_seeds(recipes, readable(read_json_or, [], notes, path / "estimates.json", []))
    first = next((run for r in recipes for run in r.runs), None)
    environment = readable(first.files.environment, {}, notes) if first else {}
    environment |= meta["environment"] if isinstance(meta.get("environment"), dict) else {}
    tests: list[Any] = readable(read_json_or, [], notes, path / "tests.json", [])
    return Comparison(
        path=path,
        title=str(meta.get("title") or path.name),
        **_texts(meta, "created", "data", "eval_data", "data_fingerprint", "command"),
        budget=meta.get("budget"),
        recipes=recipes,
        tests=_tests(tests, {r.name for r in recipes}),
        environment=environment,
        licences=_licences(meta.get("licences")),
        items=_items(path / "items", notes),
    )


def _single(path: Path, notes: list[str]) -> Comparison:
    files = RunFiles(path)
    environment = readable(files.environment, {}, notes)
    recipe = _recipe({"name": path.name}, [(0, files)], notes)
    run = recipe.runs[0]
    recipe.label = run.model or path.name
    items = next((d for d in (path / "items", path.parent / "items") if d.is_dir()), path / "items")
    return Comparison(
        path=path,
        title=f"Run {path.name}",
        created=str(environment.get("date") or environment.get("created") or ""),
        data=run.data or str(environment.get("data") or ""),
        data_fingerprint=run.data_fingerprint or str(environment.get("data_fingerprint") or ""),
        budget=environment.get("budget"),
        recipes=[recipe],
        environment=environment,
        licences=_licences(readable(files.model, {}, notes).get("licences")),
        items=_items(items, notes),
        single=True,
    )


def _evaluation(path: Path, notes: list[str]) -> Comparison:
    """A folder of results or records alone, of any model."""
    recipe = _recipe({"name": path.name}, [(0, RunFiles(path))], notes, EvaluationFiles(path))
    run = recipe.runs[0]
    recipe.label = run.model or path.name
    return Comparison(
        path=path,
        title=f"Evaluation of {recipe.label}",
        data=run.data,
        data_fingerprint=run.data_fingerprint,
        recipes=[recipe],
        items=_items(path / "items", notes),
        single=True,
    )


def _recipe(
    entry: dict[str, Any], seeds: Iterable[tuple[int, RunFiles]], notes: list[str], alone: EvaluationFiles | None = None
) -> Recipe:
    """A recipe with its runs. alone: the evaluation, if it is not in a run's directory."""
    recipe = Recipe(**_texts(entry, "name", "label", "paradigm", "about", "cite", "score", "error"))
    for seed, files in seeds:
        evaluation = alone or files.evaluation()
        summary = readable(evaluation.summary, {}, notes)
        results = (evaluation.results() if summary else []) or results_of(evaluation, notes)
        run = Run(files, seed, evaluation, readable(files.spent, {}, notes), results, evaluation.skipped() if summary else {})
        run.model, run.data, run.data_fingerprint = (str(summary.get(k) or "") for k in ("model", "data", "data_fingerprint"))
        recipe.runs.append(run)
    recipe.label = recipe.label or recipe.name
    recipe.measures = _measures(recipe.runs)
    log = next((path for run in recipe.runs if not run.results and (path := run.files.log())), None)
    if log and not recipe.error:
        recipe.error = f"see {log.parent.name}/{log.name}"
    recipe.spent = _spent(recipe.runs)
    return recipe


def _over_seeds(recipes: list[Recipe], rows: Any) -> None:
    """Puts intervals over items and seeds (estimates.json) in the place of those over items."""
    by_name = {r.name: r for r in recipes}
    for row in rows if isinstance(rows, list) else []:
        recipe, key = by_name.get(str(row.get("recipe"))), (str(row.get("task")), str(row.get("metric")))
        value, low, high = (finite(row.get(k)) for k in ("value", "low", "high"))
        if recipe is None or key not in recipe.measures or value is None or low is None or high is None:
            continue
        measure = recipe.measures[key]
        # a metric that is not the mean of its items' credits keeps its own interval; so does a recipe that has gained a seed since
        if abs(measure.value - value) < 1e-6 and len(measure.seeds) == row.get("seeds"):
            recipe.measures[key] = replace(measure, low=low, high=high, over_seeds=True)


def _measures(runs: list[Run]) -> dict[Key, Measure]:
    gathered: dict[Key, list[tuple[int, dict[str, Any]]]] = {}
    for run in runs:
        for result in run.results:
            if finite(result.get("value")) is not None:
                gathered.setdefault((str(result.get("task")), str(result.get("metric"))), []).append((run.seed, result))
    return {key: _measure(key, pairs) for key, pairs in gathered.items()}


def _measure(key: Key, pairs: list[tuple[int, dict[str, Any]]]) -> Measure:
    """Means over seeds. The interval is the mean of the seeds' intervals: it covers the draw of test items, not the seeds
    (``_over_seeds`` covers both).
    """
    results = [r for _, r in pairs]

    def mean(name: str) -> float:
        """The mean of a field over seeds; a seed without it counts with its value."""
        return fmean(v if (v := finite(r.get(name))) is not None else float(r["value"]) for r in results)

    chances = [c for r in results if (c := finite(r.get("chance"))) is not None]
    chance = fmean(chances) if chances else None
    names = dict.fromkeys(name for r in results for name in r.get("controls") or {})
    controls = {name: [c for r in results if (c := finite((r.get("controls") or {}).get(name))) is not None] for name in names}
    at_chance = []
    for seed, r in pairs:
        low, high = finite(r.get("low")), finite(r.get("high"))
        if chance is not None and low is not None and high is not None and low <= chance <= high:
            at_chance.append(seed)
    return Measure(
        *key,
        value=mean("value"),
        low=mean("low"),
        high=mean("high"),
        n=int(finite(results[0].get("n")) or 0),
        clusters=int(finite(results[0].get("clusters")) or 0),
        chance=chance,
        higher_is_better=bool(results[0].get("higher_is_better", True)),
        controls={name: fmean(values) for name, values in controls.items() if values},
        ties=sum(int(finite(r.get("ties")) or 0) for r in results),
        nans=sum(int(finite(r.get("nans")) or 0) for r in results),
        seeds={seed: float(r["value"]) for seed, r in pairs},
        seeds_at_chance=tuple(at_chance),
        bounded=all(finite(r.get(end)) is not None for r in results for end in ("low", "high")),
    )


def _spent(runs: list[Run]) -> dict[str, Any]:
    spent: dict[str, Any] = {}
    for name in COUNTED:
        values = [v for run in runs if (v := finite(run.spent.get(name))) is not None]
        if values:
            spent[name] = fmean(values)
    if spent.get("seconds") and "samples" in spent:
        spent["samples_per_second"] = spent["samples"] / spent["seconds"]
    flags = [run.spent["finished"] for run in runs if "finished" in run.spent]
    if flags:
        spent["finished"] = all(flags)
    return spent


def _tests(rows: Any, names: set[str]) -> list[Test]:
    def recipe(name: Any) -> str:
        """The recipe of a name, which may be that of a run: with ``-s`` and its seed behind."""
        return str(name) if str(name) in names else re.sub(r"-s\d+$", "", str(name))

    numbers = ("difference", "low", "high", "p", "p_holm")
    return [
        Test(str(row.get("task")), str(row.get("metric")), recipe(row.get("a")), recipe(row.get("b")),
             *(finite(row.get(k)) for k in numbers))
        for row in rows
        if isinstance(row, dict)
    ]  # fmt: skip


def _licences(given: Any) -> list[dict[str, Any]]:
    """``[{"part", "licence", "source"}]``, also from a mapping of parts to terms."""
    if isinstance(given, dict):
        return [{"part": part, "licence": terms} for part, terms in given.items()]
    return [x for x in given or [] if isinstance(x, dict)]


def _items(directory: Path, notes: list[str]) -> dict[str, Item]:
    items = {}
    for row in readable(read_jsonl, [], notes, directory / "retrieval.jsonl"):
        name = str(row.get("item"))
        captions = row.get("captions") or []
        items[name] = Item(name, directory / str(row.get("image") or f"images/{name}.png"), [str(c) for c in captions])
    return items


def parse_budget(budget: Any) -> Budget | None:
    """A budget; None if the value is not one."""
    try:
        return Budget.parse(budget)
    except (ValueError, TypeError):
        return None
