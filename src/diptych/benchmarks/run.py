"""Evaluate a model on tasks and a data source: records, results and what was skipped, in one folder (docs/runs.md)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from diptych.benchmarks.answers.final import without_thinking
from diptych.benchmarks.base import NotApplicable, Progress, Task, failed_items, retrieval_items
from diptych.benchmarks.records import Records, Result, plain, write_json, write_jsonl
from diptych.benchmarks.shots import with_examples
from diptych.benchmarks.tasks import DEFAULT, TASKS, task
from diptych.core.capabilities import Model, in_words
from diptych.core.errors import DiptychError, counted
from diptych.core.files import read_json, read_jsonl, write_atomically
from diptych.core.sample import Sample
from diptych.data.clips import clips_as_images, strip
from diptych.data.source import Problem, Source

UNDER_WAY = "answers.jsonl"  # answers of a server that are not in the records yet
MAIN = frozenset({"correct", "generated", "said"})  # names of a model's own answer in ``failed``; the others are of controls
ONE_FRAME = "the model learned from clips, and each picture here is shown to it as a clip of one frame"


@dataclass
class Summary:
    """The results of an evaluation."""

    model: str
    data: str
    data_fingerprint: str
    seconds: float = 0.0
    results: list[Result] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)  # {"task", "reason"}
    notes: list[dict[str, str]] = field(default_factory=list)  # {"task", "note"}: answers that are missing or cut off, and why

    def value(self, task: str, metric: str) -> float | None:
        """The value of a task's metric; None if there is no such result."""
        return next((r.value for r in self.results if (r.task, r.metric) == (task, metric)), None)


def evaluate(
    model: Model,
    source: Source | None,
    tasks: Sequence[str | Task] = DEFAULT,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    key: str | None = None,
    own: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Run ``tasks`` and, with ``out`` (the folder for ``summary.json``, such as ``runs/clip/evaluation``), keep records and
    results.

    ``key`` identifies the weights (a hash of the checkpoint). With it, records that an earlier or interrupted call left in
    ``out`` are used if key, data and the task's settings are the same, and results of other tasks stay in the summary; without it
    everything is run again. Raises DiptychError if ``out`` holds records of another model, other weights or other data, unless
    ``overwrite`` is given, or ``out`` is the model's ``own`` folder and only its weights differ.
    """
    chosen = [task(t) if isinstance(t, str) else t for t in tasks]
    names = [t.name for t in chosen]
    if twice := next((name for name in names if names.count(name) > 1), None):  # results are kept by the name alone
        raise DiptychError(f"two tasks have the name '{twice}', so one's results would replace the other's; ask one at a time")
    summary = Summary(model.name, *(("", "") if source is None else (source.address, source.fingerprint())))
    of_clips, pictures = getattr(model, "shows", "image") == "video", True
    if of_clips and source is not None and "video" in getattr(source, "fields", ()):
        source, pictures = clips_as_images(source), False
    state = _State(out, {"model": model.name, "key": key, "data_fingerprint": summary.data_fingerprint}, own, overwrite)
    if progress and state.replaced:
        progress(f"earlier records in {out} were of other weights and are replaced")
    summary.results = state.others(names)
    summary.seconds = sum(entry["seconds"] for name, entry in state.tasks.items() if name in {r.task for r in summary.results})
    keep_in = getattr(model, "keep_in", None)  # of a model behind a server, which keeps its answers as they come
    if out is not None and keep_in is not None:
        keep_in(out / UNDER_WAY)
    for each in chosen:
        if missing := missing_in(model, each):
            unseen = " and ".join(getattr(model, "missing", ()))
            why = f": it learned from the field {unseen}, and is shown {'clips' if of_clips else 'images'}" if unseen else ""
            summary.skipped.append({"task": each.name, "reason": f"the model cannot {in_words(missing)}{why}"})
            continue
        if progress:
            progress(each.name)
        started = time.perf_counter()
        records = state.open(each)
        if not state.finished(each) or records.unanswered:
            if progress and records.unanswered:
                progress(f"{each.name}: asking again for {counted(records.unanswered, 'item')} without an answer")
            try:
                if source is None and not getattr(each, "file", ""):
                    raise NotApplicable("there is no data for it; give data, or its own file (?file=…)")
                items = each.items(source)  # type: ignore[arg-type]  # with a file of its own it needs no source
                if getattr(each, "shots", 0):
                    items = with_examples(each, items, source)
            except NotApplicable as reason:
                summary.skipped.append({"task": each.name, "reason": str(reason)})
                continue
            problems = getattr(items, "problems", [])
            state.note_problems(each, problems)
            try:
                each.run(model, items, records, progress)
            except NotApplicable as reason:
                summary.skipped.append({"task": each.name, "reason": str(reason)})
                continue
            state.note_problems(each, [*problems, *failed_items(records.all())])
        results = each.summarise(records.all())
        summary.notes += _notes(each, records.all())
        file: str = getattr(each, "file", "")
        of_pictures = bool(pictures or file) and not getattr(each, "of_clips", False)
        if of_clips and of_pictures and "complete" not in _needs(each):
            summary.notes.append({"task": each.name, "note": ONE_FRAME})
        seconds = state.close(each, time.perf_counter() - started)
        summary.results += [replace(r, seconds=seconds) for r in results]
        summary.seconds += seconds
        if not results:
            summary.skipped.append(_without_results(each))
    if out is not None:
        write_json(out / "summary.json", summary)
        if not any(_failures(path) for path in (out / "records").glob("*.jsonl")):
            (out / UNDER_WAY).unlink(missing_ok=True)  # the records hold the answers now
    return summary


def recompute(folder: Path) -> Summary:
    """The results of the records in a folder, without model and data; of an interrupted task, of the records that it has."""
    from pydantic import TypeAdapter

    from diptych.core.registry import resolve

    if not (folder / "state.json").is_file():
        raise DiptychError(
            f"{folder}: no state.json; expected a folder that `diptych evaluate` wrote, such as runs/clip/evaluation"
        )
    state = read_json(folder / "state.json")
    known = read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    summary = Summary(state["model"], known.get("data", ""), state["data_fingerprint"], skipped=known.get("skipped", []))
    for name, entry in state["tasks"].items():
        path = folder / "records" / f"{name}.jsonl"
        settings = dict(entry["settings"])
        each = TypeAdapter(resolve(_address(settings.pop("class")), {}, "task")).validate_python(settings)
        records = read_jsonl(path)
        if records:
            results = [replace(r, seconds=entry["seconds"]) for r in each.summarise(records)]
            summary.results += results
            summary.notes += _notes(each, records)
            summary.seconds += entry["seconds"]
            if not results and name not in {s["task"] for s in summary.skipped}:
                summary.skipped.append(_without_results(each))
    return summary


def _notes(each: Task, records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Notes on a task: its own, items for which the model could give no answer, with the commonest reason, and answers that end
    within the thinking.
    """
    name = each.name
    own = getattr(each, "notes", None)
    notes: list[str] = list(own(records)) if own and records else []
    if failed := failed_items(records):
        main = sum(not MAIN.isdisjoint(r.get("failed", {})) for r in records)
        why, _ = Counter(reason for r in records for reason in r.get("failed", {}).values()).most_common(1)[0]
        others = f", {len(failed) - main} more none under a control" if len(failed) > main else ""
        notes.append(
            f"{main} of {len(records)} items have no answer{others}; most often: {why[:200]} (all reasons: failed in the records)"
        )
    written = [r["answer"] for r in records if isinstance(r.get("answer"), str)]
    if cut := sum(bool(text.strip()) and not without_thinking(text) for text in written):
        remedy = f"give more tokens: {name}?max_tokens=2000, or &max_tokens=2000 in the address of an endpoint"
        notes.append(f"{cut} of {len(records)} answers end within the thinking; {remedy}")
    return [{"task": name, "note": note} for note in notes]


def _failures(path: Path) -> bool:
    """Whether records lack answers, so that the next call asks for these, and takes the others of the same items from the file."""
    return path.is_file() and any(record.get("failed") for record in read_jsonl(path))


def _without_results(each: Task) -> dict[str, str]:
    """Why a task that was run has no results."""
    return {"task": each.name, "reason": getattr(each, "no_results", "no number can be computed from its records")}


def _address(stored: str) -> str:
    """Where the class of a task is: one of ours is found by its name, so records stay valid when its file moves."""
    module, _, name = stored.partition(":")
    own = {cls.__qualname__: f"{cls.__module__}:{name}" for cls in TASKS.values()}
    return own.get(name, stored) if module.startswith("diptych.") else stored


def _needs(each: Task | type[Task]) -> tuple[str, ...]:
    return (each.needs,) if isinstance(each.needs, str) else tuple(each.needs)  # type: ignore[arg-type]  # a class has its default


def missing_in(model: Model, each: Task | type[Task]) -> list[str]:
    """The capabilities that a task needs and the model does not have; ``"generate|score"`` where it has neither."""
    return [c for c in _needs(each) if not set(c.split("|")) & model.capabilities]


def settings_of(each: Task) -> dict[str, Any]:
    """The class and the settings of a task, as ``state.json`` keeps them."""
    return dict(plain({"class": f"{type(each).__module__}:{type(each).__qualname__}", **vars(each)}))


def same_settings(stored: dict[str, Any], each: Task) -> bool:
    """Whether records were made by this task with these settings. ``stored``: what ``settings_of`` gave then."""
    return bool(stored) and {**stored, "class": _address(stored.get("class", ""))} == settings_of(each)


_WORDS = {"model": "another model", "key": "other weights", "data_fingerprint": "other data"}


class _State:
    """``state.json``: the model and data of the records, and which tasks are finished."""

    def __init__(self, out: Path | None, identity: dict[str, Any], own: bool = False, overwrite: bool = False):
        self.out = out
        self.path = out / "state.json" if out else None
        self.tasks: dict[str, dict[str, Any]] = {}
        self.identity = identity
        self.replaced = False
        if out is None:
            return
        stored = read_json(out / "state.json") if (out / "state.json").is_file() else {}
        others = [k for k in identity if stored and stored.get(k) != identity[k] and not (own and k == "model")]
        if stored and not others and identity["key"] is not None:
            self.tasks = stored["tasks"]
            return
        kept = sorted((out / "records").glob("*.jsonl"))
        self.replaced = own and others == ["key"] and bool(kept)
        if kept and not overwrite and not self.replaced and (others or not stored):
            what = " and ".join(_WORDS[k] for k in others) or "a model that is not named (no state.json)"
            raise DiptychError(
                f"{out} holds records of {what}; give another folder (--out), or --overwrite, which deletes these records"
            )
        if stored or overwrite:
            self._clear()

    def _clear(self) -> None:
        """Delete all files of an evaluation: a folder is of one model on one data source."""
        assert self.out is not None
        for path in (self.out / "records").glob("*.jsonl"):
            path.unlink()
        for name in ("summary.json", "problems.jsonl", "captions.jsonl", "embeddings.npz", "state.json", UNDER_WAY):
            (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.out / "drawings", ignore_errors=True)

    def others(self, chosen: Sequence[str]) -> list[Result]:
        """Results of earlier calls for tasks that are not run now."""
        path = self.out / "summary.json" if self.out else None
        if path is None or not path.is_file():
            return []
        results = [Result(**r) for r in read_json(path)["results"]]
        return [r for r in results if r.task not in chosen and self.tasks.get(r.task, {}).get("finished")]

    def open(self, each: Task) -> Records:
        """The records of a task. Those of earlier calls are deleted if the settings of the task, or files that it reads, have
        changed.
        """
        if self.out is None:
            return Records()
        path = self.out / "records" / f"{each.name}.jsonl"
        settings = settings_of(each)
        content = _contents(settings)
        known = self.tasks.get(each.name, {})
        if not same_settings(known.get("settings", {}), each) or known.get("files", {}) != content or not path.exists():
            path.unlink(missing_ok=True)  # before the state is written: a crash between the two must not mix records
            self.tasks[each.name] = {"settings": settings, "files": content, "seconds": 0.0, "finished": False}
            self._write()
        return Records(path, self.out)

    def note_problems(self, each: Task, problems: Sequence[Problem]) -> None:
        """Keeps what a task could not use, next to what other tasks could not, of this call and of earlier ones."""
        if self.out is None:
            return
        path = self.out / "problems.jsonl"
        before = read_jsonl(path)
        found = {p.item: {"task": each.name, **asdict(p)} for p in problems}
        rows = [row for row in before if row.get("task") != each.name] + list(found.values())
        if rows != before:
            write_jsonl(path, rows)

    def finished(self, each: Task) -> bool:
        """Whether an earlier call finished this task with these settings."""
        return bool(self.tasks.get(each.name, {}).get("finished"))

    def close(self, each: Task, seconds: float) -> float:
        """The seconds that the task took, in the call that finished it."""
        if self.out is None:
            return seconds
        entry = self.tasks[each.name]
        if not entry["finished"]:
            entry.update(seconds=seconds, finished=True)
            self._write()
        return float(entry["seconds"])

    def _write(self) -> None:
        assert self.path is not None
        write_json(self.path, {**self.identity, "tasks": self.tasks})


def _contents(settings: dict[str, Any]) -> dict[str, str]:
    """{setting: hash of the file that it names}: with another content, earlier records are not used."""
    hashes = {}
    for name, value in settings.items():
        # not Path.is_file: of a text too long for a path, such as a prompt, it raises OSError
        if name != "class" and isinstance(value, str) and os.path.isfile(value):
            digest = hashlib.blake2b(digest_size=16)
            with Path(value).open("rb") as file:
                while part := file.read(1 << 22):
                    digest.update(part)
            hashes[name] = digest.hexdigest()
    return hashes


def save_items(source: Source, folder: Path, n: int = 100) -> list[Sample]:
    """Write the retrieval items for the report to ``folder``, the comparison's ``items/``: ``retrieval.jsonl`` and ``images/``; of
    clips eight frames as one picture.
    """
    from PIL import Image

    fields = getattr(source, "fields", ())
    if "video" in fields and "image" not in fields:
        source = clips_as_images(source)
    items: list[Sample] = retrieval_items(source, n)
    rows, taken = [], set()
    for i, item in enumerate(items):
        name = re.sub(r"[^\w.-]", "_", item.id)
        if name in taken:
            name = f"{name}-{i}"
        taken.add(name)
        assert item.image is not None
        picture = Image.fromarray(strip(item.image, columns=4)[0] if item.image.ndim == 4 else item.image)
        write_atomically(folder / "images" / f"{name}.png", partial(picture.save, format="PNG"))
        rows.append({"item": item.id, "image": f"images/{name}.png", "captions": item.captions})
    write_jsonl(folder / "retrieval.jsonl", rows)
    return items
