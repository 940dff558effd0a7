"""``diptych choose``: models × ways × shots × seeds on one set of pictures, one table, one recommendation.

First the settings of every cell are chosen on the training part. Then the test part is opened, once, and all cells are tested. A
line in test-opened.jsonl says when, and for how many cells. What is done is kept: the same command continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diptych.benchmarks.matching.zeroshot import TEMPLATES
from diptych.choose.cells import ALL, Cell, Data
from diptych.choose.data import Parts, groups_of, near_pairs
from diptych.choose.features import Fingerprints, Progress, vectors_of, weights_of
from diptych.choose.kinds import OneClass, kind_of
from diptych.choose.label_errors import CHECK, as_csv
from diptych.choose.several.ways import SEVERAL_WAYS
from diptych.choose.support import with_vectors
from diptych.choose.tower_cells import LEAST, is_tower, tested_tower, trained
from diptych.choose.towers import TOWER_WAYS
from diptych.choose.verdict import CONTROL, sentences, verdict
from diptych.choose.ways import WAYS
from diptych.config.budget import parse_budget
from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, Interrupted
from diptych.core.files import append_jsonl, read_json, read_jsonl, write_json, write_text
from diptych.core.registry import resolve

FORMAT = 1
OPENED = "test-opened.jsonl"
USUAL = ("zeroshot", "knn", "prototypes", "gda", "probe", "clap", "taskres", "tip")  # each known, and done in seconds
Load = Callable[[str], Model]
ONE_CLASS = OneClass()


@dataclass(frozen=True)
class Request:
    """What is to be compared. shots: pictures of each class, 0 for all. seconds: a limit of time; None: none. test_data: where
    the test pictures are, if not at ``data``.
    """

    models: tuple[str, ...]
    ways: tuple[str, ...]
    data: str
    shots: tuple[int, ...] = (ALL,)
    seeds: int = 1
    templates: tuple[str, ...] = TEMPLATES
    descriptions: Mapping[str, Sequence[str]] | None = None
    seconds: float | None = None
    test_data: str | None = None

    def cells(self, model: str) -> list[Cell]:
        """The cells of a model, those with few shots first, and the control among them."""
        ways = dict.fromkeys([CONTROL, *self.ways])
        return [Cell(model, way, k, seed) for k in self.shots for seed in range(self.seeds) for way in ways]

    def content(self) -> dict[str, Any]:
        """What a folder of results must agree with to be continued: all but models, ways, shots and seeds, of which there may be
        more.
        """
        return {
            "format": FORMAT,
            "data": self.data,
            "test_data": self.test_data,
            "templates": list(self.templates),
            "descriptions": self.descriptions,
        }


@dataclass
class Outcome:
    """What ``choose`` found, as written to results.json. doubtful: training pictures whose label is probably wrong, by the best way
    that learns, out of fold; the surest first.
    """

    request: dict[str, Any]
    data: dict[str, Any]
    models: dict[str, dict[str, Any]]
    cells: list[dict[str, Any]]
    verdict: dict[str, Any]
    sentences: list[str]
    opened: list[dict[str, Any]]
    not_tried: list[dict[str, str]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    doubtful: list[dict[str, Any]] = field(default_factory=list)


def seconds_of(budget: str | None) -> float | None:
    """A budget of time in seconds. DiptychError for one in samples or FLOPs."""
    if budget is None:
        return None
    parsed = parse_budget(budget)
    if parsed.seconds is None:
        raise DiptychError(f"--budget {budget}: expected a time such as 20m; the ways differ in what a sample costs")
    return float(parsed.seconds)


def default_ways(has_descriptions: bool, towers: bool = False, several: bool = False) -> tuple[str, ...]:
    """The names of the ways that are compared if none are named: the usual ones. towers: those too that train a tower, but for slow
    ones. several: of pictures with several labels.
    """
    described = ("descriptions",) if has_descriptions else ()
    if several:
        return (*(name for name in USUAL if name in SEVERAL_WAYS), *described)
    return (*USUAL, *described, *(name for name, way in TOWER_WAYS.items() if towers and is_tower(name) and not way.slow))


def all_ways(has_descriptions: bool) -> tuple[str, ...]:
    """The names of all ways, those that train a tower last."""
    on_vectors = [name for name in WAYS if name != CONTROL and (has_descriptions or name != "descriptions")]
    return (*on_vectors, *(name for name in TOWER_WAYS if is_tower(name)))


def choose(request: Request, out: Path, load: Load, progress: Progress | None = None) -> Outcome:
    """Compares models and ways; writes results.json and a file for each cell, and returns what was found.

    Raises Interrupted after Ctrl-C: what is done is kept, also in results.json, and the same call continues.
    """
    kind = kind_of(request.data)
    for name in request.ways:  # wrong names are refused before anything is computed
        kind.check(name)
    began = time.monotonic()
    content = {**request.content(), "kind": kind.name}
    check_folder(out, content)
    parts = kind.parts(request.data, progress, request.test_data)
    open_folder(out, {**content, "pictures": kind.version(parts)})
    about = kind.about(parts, request.data if request.test_data is None else f"{request.data}, tested on {request.test_data}")
    models: dict[str, dict[str, Any]] = {}
    not_tried: list[dict[str, str]] = []
    everything: dict[str, tuple[Model, Data]] = {}
    weights: dict[str, str] = {}
    interrupted = False
    try:
        for address in request.models:
            try:
                model = with_vectors(load(address), parts.train.names, request.templates)
                data, broken = kind.data(model, parts, progress, request.templates, request.descriptions)
                about.setdefault("broken", {}).update(broken)
                weights[address] = weights_of(model, data.support.x, data.support.prompts)
                everything[address] = (model, data)
                models[address] = {"name": model.name, "key": getattr(model, "key", None)}
            except DiptychError as error:  # one model that cannot be had costs the others nothing
                not_tried.append({"model": address, "why": str(error)})
        if not everything:
            raise DiptychError("; ".join(entry["why"] for entry in not_tried))
        records = _chosen(request, out, everything, weights, began, not_tried, progress, kind)
        _test(out, everything, records, parts, progress, kind)
    except KeyboardInterrupt:
        interrupted = True
    found = _outcome(request, out, about, models, weights, not_tried, _clusters(parts))
    if not interrupted:
        found.doubtful, note = kind.doubtful(found.verdict, found.cells, everything)
        about["notes"] += [note] if note else []
        write_text(out / CHECK, as_csv(found.doubtful))
    write_json(out / "results.json", asdict(found))
    if interrupted:
        raise Interrupted(f"interrupted: what is done is in {out}; the same command continues")
    return found


# --- the two passes ---


def _chosen(
    request: Request, out: Path, everything: dict[str, tuple[Model, Data]], weights: Mapping[str, str], began: float,
    not_tried: list[dict[str, str]], progress: Progress | None, kind: OneClass = ONE_CLASS,
) -> list[tuple[Cell, dict[str, Any]]]:  # fmt: skip
    """Every cell with its settings, as far as the time allows."""
    cells = sorted((cell for model in everything for cell in request.cells(model)), key=lambda cell: kind.trains(cell.way))  # last
    records: list[tuple[Cell, dict[str, Any]]] = []

    def to_train(cell: Cell) -> bool:
        """Whether a cell's run needs a share of the time."""
        if not kind.trains(cell.way):
            return False
        made_of = made_of_now(weights[cell.model], cell.way)
        return "accuracy" not in (held_record(_file(out, cell), made_of) or {})

    for done, cell in enumerate(cells):
        if progress:
            progress("choosing settings", done, len(cells))
        path, made_of = _file(out, cell), made_of_now(weights[cell.model], cell.way)
        record = held_record(path, made_of)
        if record is None or "skipped" in record:  # the reason may be gone: a package that was missing
            left = None if request.seconds is None else request.seconds - (time.monotonic() - began)
            towers = sum(map(to_train, cells[done:]))
            if left is not None and (left <= 0 or (kind.trains(cell.way) and left / towers < LEAST)):
                why = f"too little time for it: {max(left, 0) / max(1, towers):.0f} s" if left > 0 else "the budget was spent"
                not_tried.append({"model": cell.model, "way": cell.name, "why": why})
                continue
            if kind.trains(cell.way):
                run = run_of(out, cell, weights[cell.model])
                record = trained(cell, request.data, run, None if left is None else left / towers)
            else:
                record = kind.chosen(cell, everything[cell.model][1])
            record = {**record, "made_of": made_of}
            write_json(path, record)
        records.append((cell, record))
    if progress:
        progress("choosing settings", len(cells), len(cells))
    return records


def _test(
    out: Path, everything: dict[str, tuple[Model, Data]], records: list[tuple[Cell, dict[str, Any]]], parts: Parts,
    progress: Progress | None, kind: OneClass = ONE_CLASS,
) -> None:  # fmt: skip
    """Opens the test part, and tests every cell that was not tested before."""
    todo = [(cell, record) for cell, record in records if "skipped" not in record and "test" not in record]
    if not todo:
        return
    append_jsonl(out / OPENED, {"time": _now(), "cells": len(todo), "pictures": len(parts.test)})
    with_test: dict[str, Data] = {}
    for done, (cell, record) in enumerate(todo):
        if cell.model not in with_test:
            model, data = everything[cell.model]
            vectors, broken = vectors_of(model, parts.test, progress)
            if broken:
                raise DiptychError(f"{parts.test.ids[next(iter(broken))]}: cannot be read any more; it could before")
            with_test[cell.model] = replace(data, test_x=unit_rows(vectors), test_y=kind.truth(parts.test))
        if progress:
            progress("testing", done, len(todo))
        try:
            trains = kind.trains(cell.way)
            made = tested_tower(record, parts.test) if trains else kind.tested(record, cell, with_test[cell.model])
        except DiptychError as error:  # one way that cannot be tested costs the others nothing
            made = {**record, "skipped": str(error)}
        write_json(_file(out, cell), made)
    if progress:
        progress("testing", len(todo), len(todo))


# --- files ---


def file_name(text: str) -> str:
    """A part of a path for a model or a way: no two texts have the same."""
    plain = re.sub(r"[^\w.-]+", "-", text).strip("-.")
    return plain if plain == text else f"{plain}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def run_of(out: Path, cell: Cell, weights: str) -> Path:
    """The folder of a cell's run; another one for other weights of the model, whose run is not continued."""
    file = _file(out, cell)
    return out / "runs" / file.parent.name / f"{file.stem}-{hashlib.blake2b(weights.encode(), digest_size=4).hexdigest()}"


def _file(out: Path, cell: Cell) -> Path:
    return out / "cells" / file_name(cell.model) / f"{file_name(cell.way)}-k{cell.shots or 'all'}-s{cell.seed}.json"


def made_of_now(weights: str, way: str) -> dict[str, str]:
    """What a record must agree with to be kept: the model's weights, and the code of the way (of one's own: its source)."""
    if ":" not in way:
        return {"weights": weights, "code": f"diptych {_versions('diptych').get('diptych', '')}"}
    cls = resolve(way, {}, "way")
    try:
        source = inspect.getsource(inspect.getmodule(cls) or cls)
    except (OSError, TypeError):  # made without a file
        source = ""
    return {"weights": weights, "code": hashlib.blake2b(source.encode(), digest_size=8).hexdigest()}


def held_record(path: Path, made_of: Mapping[str, str]) -> dict[str, Any] | None:
    """The record that was kept; None if there is none, or one that was made with other weights or by other code."""
    record: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return record if record is not None and record.get("made_of") == made_of else None


def check_folder(out: Path, content: Mapping[str, Any]) -> None:
    """DiptychError if a folder holds results of other data."""
    path = out / "choose.json"
    held = read_json(path) if path.is_file() else dict(content)
    different = [k for k in content if held.get(k) != content[k]]
    if different == ["pictures"]:
        raise DiptychError(f"{out} holds results of other pictures: those at {content['data']} were changed; choose another --out")
    if different:
        raise DiptychError(f"{out} holds results with another {different[0]}; choose another --out")


def open_folder(out: Path, content: Mapping[str, Any]) -> None:
    """Begins a folder of results, or refuses one of other data."""
    check_folder(out, content)
    if not (out / "choose.json").is_file():
        write_json(out / "choose.json", dict(content))


def _clusters(parts: Parts) -> list[str]:
    """The group of near-duplicates of each test picture: they count as one in the intervals."""
    prints, _ = vectors_of(Fingerprints(), parts.test)  # kept since the parts were made
    return [str(g) for g in groups_of(len(parts.test), near_pairs(prints))]


def _outcome(
    request: Request, out: Path, about: dict[str, Any], models: dict[str, dict[str, Any]], weights: Mapping[str, str],
    not_tried: list[dict[str, str]], clusters: list[str],
) -> Outcome:  # fmt: skip
    wanted = [cell for model in weights for cell in request.cells(model)]  # of the models that could be had
    held = [held_record(_file(out, cell), made_of_now(weights[cell.model], cell.way)) for cell in wanted]
    cells = [record for record in held if record is not None]
    found = verdict(cells, clusters)
    opened = read_jsonl(out / OPENED) if (out / OPENED).is_file() else []
    asked = {k: v for k, v in asdict(request).items() if k != "descriptions"}
    return Outcome(asked, about, models, cells, found, sentences(found), opened, not_tried, environment_of_run())


def environment_of_run() -> dict[str, Any]:
    """Where and by which command results were made."""
    packages = _versions("diptych", "torch", "numpy", "scikit-learn", "transformers", "peft")
    made = {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
    return {"date": _now(), "command": sys.argv, **made, "packages": packages}


@cache  # asked for each cell of the table
def _versions(*names: str) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
