"""Reads what runs and comparisons left on disk (docs/runs.md). A part that is missing or broken becomes a note, not a stop."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from diptych.config.budget import Budget
from diptych.core.errors import DiptychError
from diptych.report.records import finite, record_files, results_of

Key = tuple[str, str]  # task, metric
COUNTED = ("seconds", "samples", "tokens", "flops", "steps", "parameters", "trainable_parameters", "peak_memory_bytes")


@dataclass(frozen=True)
class Measure:
    """One metric of one recipe: means over its seeds, and the seeds one by one."""

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
    bounded: bool = True  # False: a seed came without its interval, so nothing is claimed

    @property
    def at_chance(self) -> bool:
        return self.bounded and self.chance is not None and self.low <= self.chance <= self.high

    @property
    def better_than_chance(self) -> bool:
        if self.chance is None or not self.bounded:
            return self.chance is None
        return self.low > self.chance if self.higher_is_better else self.high < self.chance


@dataclass
class Run:
    path: Path
    seed: int
    spent: dict[str, Any]
    results: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    folder: Path  # of the evaluation: ``summary.json`` and ``records/``
    data: str = ""  # what was judged on, as an address
    data_fingerprint: str = ""

    @property
    def record_files(self) -> list[Path]:
        return record_files(self.folder)

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        return read_jsonl(self.path / name)

    @property
    def embeddings(self) -> Path | None:
        path = self.folder / "embeddings.npz"
        return path if path.exists() else None


@dataclass
class Recipe:
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
        return [r for r in self.recipes if r.measures]

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for recipe in self.recipes for run in recipe.runs})


def load(path: Path) -> Comparison:
    """A comparison directory, or a single run's."""
    path = Path(path)
    notes: list[str] = []
    if (path / "compare.json").exists():
        comparison = _comparison(path, notes)
    elif (path / "evaluation").is_dir() or (path / "metrics.jsonl").exists():
        comparison = _single(path, notes)
    elif (path / "summary.json").exists() or record_files(path):
        comparison = _evaluation(path, notes)
    elif any(_run_directories(path)):
        comparison = _comparison(path, notes)
    else:
        raise DiptychError(
            f"{path}: neither a comparison (compare.json) nor a run (evaluation/) nor an evaluation "
            "(summary.json, records/*.jsonl); run `diptych compare` or `diptych evaluate` first"
        )
    comparison.notes = notes
    return comparison


def _comparison(path: Path, notes: list[str]) -> Comparison:
    meta = read_json(path / "compare.json", {}, notes)
    listed = meta.get("recipes") or [{"name": name} for name in _run_directories(path)]
    entries = [{"name": r} if isinstance(r, str) else r for r in listed]
    found = _run_directories(path)
    recipes = [_recipe(entry, found.get(str(entry["name"]), []), notes) for entry in entries]
    first = next((run for r in recipes for run in r.runs), None)
    environment = read_json(first.path / "environment.json", {}, notes) if first else {}
    environment |= meta["environment"] if isinstance(meta.get("environment"), dict) else {}
    return Comparison(
        path=path,
        title=str(meta.get("title") or path.name),
        created=str(meta.get("created") or ""),
        data=str(meta.get("data") or ""),
        eval_data=str(meta.get("eval_data") or ""),
        data_fingerprint=str(meta.get("data_fingerprint") or ""),
        budget=meta.get("budget"),
        recipes=recipes,
        tests=_tests(read_json(path / "tests.json", [], notes), {r.name for r in recipes}),
        environment=environment,
        command=str(meta.get("command") or ""),
        licences=_licences(meta.get("licences")),
        items=_items(path / "items"),
    )


def _single(path: Path, notes: list[str]) -> Comparison:
    environment = read_json(path / "environment.json", {}, notes)
    summary = read_json(path / "evaluation" / "summary.json", {}, notes)
    recipe = _recipe({"name": path.name, "label": summary.get("model") or path.name}, [(0, path)], notes)
    items = next((d for d in (path / "items", path.parent / "items") if d.is_dir()), path / "items")
    return Comparison(
        path=path,
        title=f"Run {path.name}",
        created=str(environment.get("date") or environment.get("created") or ""),
        data=str(summary.get("data") or environment.get("data") or ""),
        data_fingerprint=str(summary.get("data_fingerprint") or environment.get("data_fingerprint") or ""),
        budget=environment.get("budget"),
        recipes=[recipe],
        environment=environment,
        licences=_licences(read_json(path / "model.json", {}, notes).get("licences")),
        items=_items(items),
        single=True,
    )


def _evaluation(path: Path, notes: list[str]) -> Comparison:
    """A folder of results or records alone, of whatever model."""
    recipe = _recipe({"name": path.name}, [(0, path)], notes, folder=path)
    run = recipe.runs[0]
    recipe.label = str(read_json(path / "summary.json", {}, notes).get("model") or path.name)
    return Comparison(
        path=path,
        title=f"Evaluation of {recipe.label}",
        data=run.data,
        data_fingerprint=run.data_fingerprint,
        recipes=[recipe],
        items=_items(path / "items"),
        single=True,
    )


def _run_directories(path: Path) -> dict[str, list[tuple[int, Path]]]:
    found: dict[str, list[tuple[int, Path]]] = {}
    for child in sorted(path.iterdir()) if path.is_dir() else []:
        match = re.fullmatch(r"(.+)-s(\d+)", child.name)
        if child.is_dir() and match:
            found.setdefault(match[1], []).append((int(match[2]), child))
    return found


def _recipe(entry: dict[str, Any], directories: Iterable[tuple[int, Path]], notes: list[str], folder: Path | None = None) -> Recipe:
    known: dict[str, Any] = {k: str(entry.get(k) or "") for k in ("name", "label", "paradigm", "about", "cite", "score", "error")}
    recipe = Recipe(**known)
    recipe.label = recipe.label or recipe.name
    for seed, path in sorted(directories):
        where = folder or path / "evaluation"
        summary = read_json(where / "summary.json", {}, notes)
        spent = read_json(path / "spent.json", {}, notes)
        about = {k: str(summary.get(k) or "") for k in ("data", "data_fingerprint")}
        results = [r for r in summary.get("results") or [] if isinstance(r, dict)] or results_of(where, notes)
        recipe.runs.append(Run(path, seed, spent, results, summary.get("skipped") or [], where, **about))
    recipe.measures = _measures(recipe.runs)
    log = next((run.path / "log.txt" for run in recipe.runs if not run.results and (run.path / "log.txt").exists()), None)
    if log and not recipe.error:
        recipe.error = f"see {log.parent.name}/{log.name}"
    recipe.spent = _spent(recipe.runs)
    return recipe


def _measures(runs: list[Run]) -> dict[Key, Measure]:
    gathered: dict[Key, list[tuple[int, dict[str, Any]]]] = {}
    for run in runs:
        for result in run.results:
            if finite(result.get("value")) is not None:
                gathered.setdefault((str(result.get("task")), str(result.get("metric"))), []).append((run.seed, result))
    return {key: _measure(key, pairs) for key, pairs in gathered.items()}


def _measure(key: Key, pairs: list[tuple[int, dict[str, Any]]]) -> Measure:
    """The interval is the mean of the seeds' intervals: it speaks of the draw of test items; the seeds stand beside it."""
    results = [r for _, r in pairs]

    def mean(name: str) -> float:
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
        return str(name) if str(name) in names else re.sub(r"-s\d+$", "", str(name))

    numbers = ("difference", "low", "high", "p", "p_holm")
    return [
        Test(str(row.get("task")), str(row.get("metric")), recipe(row.get("a")), recipe(row.get("b")),
             *(finite(row.get(k)) for k in numbers))
        for row in rows
        if isinstance(row, dict)
    ]  # fmt: skip


def _licences(given: Any) -> list[dict[str, Any]]:
    """A list of {"part", "licence", "source"}, or a mapping from parts to terms."""
    if isinstance(given, dict):
        return [{"part": part, "licence": terms} for part, terms in given.items()]
    return [x for x in given or [] if isinstance(x, dict)]


def _items(directory: Path) -> dict[str, Item]:
    items = {}
    for row in read_jsonl(directory / "retrieval.jsonl"):
        name = str(row.get("item"))
        captions = row.get("captions") or []
        items[name] = Item(name, directory / str(row.get("image") or f"images/{name}.png"), [str(c) for c in captions])
    return items


def parse_budget(budget: Any) -> Budget | None:
    try:
        return Budget.parse(budget)
    except (ValueError, TypeError):
        return None


def read_json(path: Path, default: Any, notes: list[str]) -> Any:
    if not path.exists():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{path.parent.name}/{path.name} could not be read ({error}); what it holds is missing here.")
        return default
    return value if isinstance(value, type(default)) else default


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a run that was cut off may end in half a line."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # not splitlines: captions hold U+2028
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
