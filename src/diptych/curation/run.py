"""Runs a plan: read the source into shards, score, decide, write, publish. A stopped run resumes; a finished one does nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diptych.core.errors import DiptychError, Interrupted
from diptych.core.files import append_jsonl, read_json, read_jsonl, write_atomically, write_json, write_text
from diptych.core.signals import terminated_like_interrupted
from diptych.curation.engine.addresses import addresses
from diptych.curation.engine.intake import ShardInfo, Unit, known, read_unit, units
from diptych.curation.engine.output import SUFFIX
from diptych.curation.engine.scoring import Outcome
from diptych.curation.engine.shards import Keys
from diptych.curation.engine.store import Store, address
from diptych.curation.engine.work import Task, explained
from diptych.curation.plan import Plan, Step, load_plan, steps_of
from diptych.curation.runners import Runner, runner
from diptych.curation.sheet import write_sheet

SHARED = (
    "reading the source",
    "reading shards",
    "reading images",
    "decoding images",
    "writing",
)  # costs that belong to no single operator
Progress = Callable[[str, int, int], None]  # phase, pieces done, pieces in total


@dataclass
class Curated:
    """A finished result: its directory, and its manifest."""

    path: Path
    manifest: dict[str, Any]
    fresh: bool  # False: everything existed already

    @property
    def address(self) -> str:
        """The data address for ``train``."""
        return data_address(self.path, self.manifest["output"])


def data_address(path: Path, form: str) -> str:
    """The data address of what a result keeps, in its output format."""
    if form == "packed":
        return f"packed:{path}/packed"
    return f"wds:{path}/data/*.tar" if form == "wds" else f"parquet:{path}/data/*.parquet"


def curate(
    plan: str | Path | Mapping[str, Any] | Plan,
    data: str,
    out: str | Path,
    *,
    runner: str = "local",
    workers: int | None = None,
    overrides: list[str] | None = None,
    progress: Progress | None = None,
) -> Curated:
    """The result of a plan on the source at ``data``, written into the directory ``out``.

    plan: a preset's name, a YAML file or plain data. overrides: ``["output.format=wds"]``. runner: local, inline or ray.
    workers: default one for each core. The result does not depend on runner and workers.

    Raises DiptychError for problems that the user can fix; finished work is kept, and the same call resumes.
    """
    checked = plan if isinstance(plan, Plan) else load_plan(plan, overrides)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out), terminated_like_interrupted():
        try:
            return _Run(checked, data, out, runner, workers, progress or (lambda *_: None)).run()
        except OSError as error:
            raise DiptychError(explained(error)) from error
        except KeyboardInterrupt:
            raise Interrupted("interrupted: finished work is kept; the same command resumes") from None


class _Run:
    def __init__(self, plan: Plan, data: str, out: Path, runner: str, workers: int | None, progress: Progress):
        self.plan, self.data, self.out, self.progress = plan, data, out, progress
        self.steps: list[Step] = steps_of(plan)
        self.store = Store(out / "store")
        self.runner_options = (runner, workers)
        self.started: Runner | None = None
        self.began = time.perf_counter()

    def run(self) -> Curated:
        """Computes the steps and files that are not in the store yet, and publishes the result. A result that is already published
        is returned as it is. Raises DiptychError for an empty source.
        """
        self.store.sweep()
        for step in self.steps:
            step.describe()  # a missing list or model is reported before the source is read
        try:
            shards = self._shards()
            if not shards:
                raise DiptychError(f"{self.data}: empty data set: it names no item")
            keys = addresses(self.plan, self.steps, shards)
            result = address([k.decided for k in keys], [k.part for k in keys], self.plan.model_dump(mode="json"))
            done = self._published(result)
            if done:
                return Curated(self.out, done, fresh=False)
            self._steps(keys)
            wanted = [
                k for k in keys if not (self.store.has(k.decided) and self.store.has(k.part, SUFFIX[self.plan.output.format]))
            ]
            self._map("writing", [Task("write", _name(k), keys=k) for k in wanted])
        finally:
            if self.started:
                self.started.close()
                self.store.sweep()  # unfinished files of stopped workers
        return Curated(self.out, self._publish(shards, keys, result), fresh=True)

    def _map(self, phase: str, tasks: Sequence[Task], model: bool = False) -> list[tuple[Task, Any]]:
        if not tasks:
            return []
        self.progress(phase, 0, len(tasks))
        if self.started is None:
            self.started = runner(*self.runner_options, self.plan.model_dump(mode="json"), str(self.store.root))
        results = []
        for task, outcome in self.started.map(tasks, model):
            self._spend(outcome)
            results.append((task, outcome.value))
            self.progress(phase, len(results), len(tasks))
        return results

    def _spend(self, outcome: Outcome) -> None:
        """Saves the cost at once, so that a killed run's cost is counted too."""
        if outcome.seconds:
            append_jsonl(self.out / "costs.jsonl", {"seconds": outcome.seconds, "rows": outcome.rows})

    # ---- the source

    def _shards(self) -> list[ShardInfo]:
        parts = units(self.data, self.plan.pool)
        shards_by_unit: dict[Unit, list[ShardInfo]] = {u: s for u in parts if (s := known(u, self.store)) is not None}
        tasks = [Task("read", u.address, unit=u) for u in parts if u not in shards_by_unit]
        if len(tasks) == 1 and tasks[0].unit and not tasks[0].unit.key and self.runner_options[0] != "ray":
            # A listing that is read each time is not worth a process.
            self.progress("reading the source", 0, 1)
            began = time.perf_counter()
            shards_by_unit[tasks[0].unit] = read_unit(tasks[0].unit, self.plan.pool, self.store)
            self._spend(Outcome(seconds={"reading the source": time.perf_counter() - began}))
        else:
            shards_by_unit |= {task.unit: shards for task, shards in self._map("reading the source", tasks) if task.unit}
        return [shard for u in parts for shard in shards_by_unit[u]]

    # ---- the steps

    def _steps(self, keys: list[Keys]) -> None:
        """Adjacent operators run together, so that images are decoded once; steps over all rows separate the groups."""
        group: list[Step] = []
        for step in self.steps:
            apart = step.two_passes or (
                step.operator is not None and (step.of == "kept" or _model(step) != _model(group[0] if group else step))
            )
            if apart:
                self._score(group, keys)
                group = []
            if step.two_passes:
                self._reduce(step, keys)
            if step.operator:
                group.append(step)
        self._score(group, keys)

    def _score(self, group: Sequence[Step], keys: Sequence[Keys]) -> None:
        if not group:
            return
        which = tuple(s.index for s in group)
        todo = [k for k in keys if not all(self.store.has(k.steps[i] or "") for i in which)]
        self._map(", ".join(s.label for s in group), [Task("score", _name(k), keys=k, steps=which) for k in todo], _model(group[0]))

    def _reduce(self, step: Step, keys: Sequence[Keys]) -> None:
        state = keys[0].states[step.index]
        assert state
        if self.store.has(state):
            return
        todo = [k for k in keys if not self.store.has(k.summaries[step.index] or "")]
        self._map(f"{step.label}: first pass", [Task("summarise", _name(k), keys=k, steps=(step.index,)) for k in todo])
        summaries = tuple(k.summaries[step.index] or "" for k in keys)
        self._map(f"{step.label}: all shards", [Task("combine", step.label, steps=(step.index,), summaries=summaries, state=state)])

    # ---- the result

    def _published(self, result: str) -> dict[str, Any] | None:
        path = self.out / "manifest.json"
        manifest = read_json(path) if path.is_file() else {}
        there = manifest.get("result") == result and all((self.out / "data" / name).exists() for name in manifest["files"])
        packed = self.plan.output.format != "packed" or not manifest.get("kept") or (self.out / "packed").is_dir()
        return manifest if there and packed else None

    def _publish(self, shards: list[ShardInfo], keys: list[Keys], result: str) -> dict[str, Any]:
        """The manifest. Each directory is replaced in one step, the manifest last; parts are links into the store."""
        self.progress("publishing", 0, 1)
        (self.out / "manifest.json").unlink(missing_ok=True)
        (self.out / "report.html").unlink(missing_ok=True)
        rows = [self._shard_record(s, k) for s, k in zip(shards, keys, strict=True)]
        write_atomically(self.out / "data", lambda path: self._link_parts(keys, rows, path))
        write_atomically(self.out / "decisions", lambda path: self._link_decisions(keys, path))
        states = {s: k for s, k in zip(self.steps, keys[0].states, strict=True) if k}
        write_atomically(self.out / "states", lambda path: self._link_states(states, path))
        write_text(self.out / "plan.yaml", self.plan.to_yaml())
        write_json(self.out / "costs.json", self._costs())
        manifest = self._manifest(result, rows)
        if self.plan.output.format == "packed" and manifest["kept"]:
            self._pack(result)
        write_json(self.out / "manifest.json", manifest)
        write_sheet(self.out)
        self.progress("publishing", 1, 1)
        return manifest

    def _pack(self, result: str) -> None:
        """Packs what is kept. A stopped packing resumes in the next run, if the result is still the same."""
        from diptych.data.packing import pack

        mark = self.out / "packed" / ".of-result"
        if not mark.is_file() or mark.read_text() != result:
            shutil.rmtree(self.out / "packed", ignore_errors=True)
            write_text(mark, result)
        pack(
            data_address(self.out, "parquet"),
            self.out / "packed",
            size=self.plan.output.size,
            workers=self.runner_options[1],
            progress=False,
        )

    def _shard_record(self, shard: ShardInfo, keys: Keys) -> dict[str, Any]:
        table = self.store.read(keys.decided, ["kept", "reason", "errors"])
        reasons = {r["values"]: r["counts"] for r in pc.value_counts(table["reason"].drop_null()).to_pylist()}
        failed = pc.sum(pc.greater(pc.list_value_length(table["errors"]), 0)).as_py() or 0
        kept = pc.sum(table["kept"]).as_py() or 0
        return {
            "shard": keys.number,
            "input": shard.key,
            "rows": shard.rows,
            "kept": kept,
            "errors": failed,
            "reasons": dict(sorted(reasons.items())),
        }

    def _link_parts(self, keys: list[Keys], rows: list[dict[str, Any]], path: Path) -> None:
        path.mkdir()
        form = self.plan.output.format
        for key, row in zip(keys, rows, strict=True):
            part = self.store.path(key.part, SUFFIX[form])
            if row["kept"] == 0:
                continue
            if form == "images":
                for file in part.rglob("*"):
                    if file.is_file():
                        _link(file, path / file.relative_to(part))
            else:
                _link(part, path / f"part-{key.number:05d}.{'tar' if form == 'wds' else 'parquet'}")
        for file in sorted(path.glob("part-*")):
            row = next(r for r in rows if r["shard"] == int(file.stem.removeprefix("part-")))
            row["file"], row["blake2b"] = file.name, _digest(file)

    def _link_decisions(self, keys: list[Keys], path: Path) -> None:
        path.mkdir()
        for key in keys:
            _link(self.store.path(key.decided), path / f"part-{key.number:05d}.parquet")

    def _link_states(self, states: Mapping[Step, str], path: Path) -> None:
        path.mkdir()
        for step, key in states.items():
            _link(self.store.path(key), path / f"{step.index:02d}-{_file_name(step.label)}.parquet")

    def _manifest(self, result: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The content of manifest.json; it depends on source and plan only, not on runner or interruptions."""
        reasons: dict[str, int] = defaultdict(int)
        for row in rows:
            for reason, count in row["reasons"].items():
                reasons[reason] += count
        return {
            "result": result,
            "plan": self.plan.name,
            "data": self.data,
            "output": self.plan.output.format,
            "rows": sum(r["rows"] for r in rows),
            "kept": sum(r["kept"] for r in rows),
            "errors": sum(r["errors"] for r in rows),
            "reasons": dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
            "steps": [s.describe() for s in self.steps],
            "files": [r["file"] for r in rows if "file" in r],
            "shards": rows,
        }

    def _costs(self) -> dict[str, Any]:
        """Seconds and rows of every operator of this plan, over all workers and all calls in this directory."""
        steps = {s.label for s in self.steps}
        seconds: dict[str, float] = defaultdict(float)
        rows: dict[str, int] = defaultdict(int)
        for line in read_jsonl(self.out / "costs.jsonl"):
            for name, value in line["seconds"].items():
                if name in steps or name in SHARED:
                    seconds[name] += value
                    rows[name] += line["rows"].get(name, 0)
        return {
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
            "runner": self.runner_options[0],
            "workers": self.runner_options[1] or os.cpu_count() or 1,
            "seconds_of_last_call": round(time.perf_counter() - self.began, 3),
            "operators": {name: {"seconds": round(s, 4), "rows": rows[name]} for name, s in seconds.items()},
        }


def _model(step: Step) -> bool:
    return step.operator is not None and step.operator.resources == "model"


def _name(keys: Keys) -> str:
    return f"shard {keys.number}"


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)[:60]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock", timeout=1)
    try:
        lock.acquire()
    except Timeout:
        raise DiptychError(f"{out}: another run is writing there; wait for it, or give another --out") from None
    try:
        yield
    finally:
        lock.release()


def decisions(out: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """What was decided, shard by shard."""
    for path in sorted((out / "decisions").glob("part-*.parquet")):
        yield pq.read_table(path, columns=columns)
