"""Rows that are written in parts as they come, so that a crash loses the last seconds only, and the same command continues.

Next to ``table.csv``: ``table.csv.parts/`` while the work is not finished, and ``table.csv.about.json``, what the table was made
with, when it is.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diptych.core.errors import DiptychError, Interrupted, counted
from diptych.core.files import read_json, write_atomically, write_json
from diptych.core.progress import CountDisplay
from diptych.core.signals import terminated_like_interrupted
from diptych.inference.predict.pictures import Picture, Pictures
from diptych.inference.predict.table import Form

SECONDS = 10.0  # of work that a crash may lose
KEY = "_key"  # the column of the parts that says which picture a row is of
WORDS = {"key": "weights", "version": "data"}
Row = dict[str, Any]


class Parts:
    """The rows of a table that is being made. settings: what makes rows comparable; with others, nothing is continued."""

    def __init__(self, out: Path, form: Form, schema: pa.Schema, settings: Mapping[str, Any], pictures: Pictures, overwrite: bool):
        self.out, self.form, self.schema, self.settings = out, form, schema, dict(settings)
        self.folder, self.about = out.with_name(f"{out.name}.parts"), out.with_name(f"{out.name}.about.json")
        self.pending: list[Row] = []
        self.last = time.monotonic()
        self.finished = False  # whether the table is there already, with nothing to add
        self.fresh = overwrite  # whether what is there already does not count
        self.done: set[str] = set()
        if overwrite:
            return
        self._check()
        if (self.folder / "settings.json").is_file():
            self.done = {key for part in self.parts() for key in pq.read_table(part, columns=[KEY])[KEY].to_pylist()}
        elif self.about.is_file() and out.is_file():
            self._reopen(pictures)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Makes the folder of parts, which no other command may write at the same time. DiptychError if it cannot be made."""
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise DiptychError(f"{self.out}: another command is writing it; wait for it, or choose another --out") from None
        except OSError as error:
            raise DiptychError(f"--out {self.out}: cannot be written ({error.strerror}); choose another place") from None
        try:
            if self.fresh:
                for path in self.folder.glob("*.*"):
                    path.unlink()
            self.note()
            yield
        finally:
            if self.folder.exists() and not self.parts():
                shutil.rmtree(self.folder)  # nothing was done
            lock.release()

    def note(self, **more: Any) -> None:
        """Keeps further facts with the settings, which ``known`` gives again when the work is continued."""
        write_json(self.folder / "settings.json", {**self.known(), **self.settings, **more})

    def known(self) -> dict[str, Any]:
        """Settings and facts of the work that is being continued; none of new work."""
        if (self.folder / "settings.json").is_file():
            return dict(read_json(self.folder / "settings.json"))
        return dict(read_json(self.about)) if self.out.exists() and self.about.is_file() and not self.fresh else {}

    def parts(self) -> list[Path]:
        """The files of the parts, in order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def add(self, key: str, rows: Sequence[Row]) -> None:
        """The rows of one picture. They are kept after some seconds, or when ``flush`` is called."""
        self.pending += [{KEY: key, **row} for row in rows]
        self.done.add(key)
        if time.monotonic() - self.last > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is not written yet as a further part."""
        if self.pending:
            existing = self.parts()
            number = int(existing[-1].stem.partition("-")[2]) + 1 if existing else 0
            table = pa.Table.from_pylist(self.pending, schema=self.schema.insert(0, pa.field(KEY, pa.string())))
            write_atomically(self.folder / f"part-{number:06d}.parquet", lambda path: pq.write_table(table, path))
            self.pending = []
        self.last = time.monotonic()

    def close(self, **about: Any) -> dict[str, Any]:
        """Joins the parts to the table, atomically, and removes them. Returns what is known about the table: the settings,
        ``about``, and how many pictures there are, are broken, are unsure.
        """
        self.flush()
        tables = (pq.read_table(part).drop_columns([KEY]).cast(self.schema) for part in self.parts())
        self.form.write(self.out, tables, self.schema)
        facts = {**self.known(), **about, **self._counts()}
        write_json(self.about, facts)
        done = self.folder.with_name(f".{self.folder.name}.done")  # in one step: half a folder would be taken for unfinished work
        shutil.rmtree(done, ignore_errors=True)
        self.folder.rename(done)
        shutil.rmtree(done)
        return facts

    def _counts(self) -> dict[str, int | None]:
        wanted = [name for name in ("reason", "unsure") if name in self.schema.names]
        tables = [pq.read_table(part, columns=[KEY, *wanted]) for part in self.parts()]
        table = pa.concat_tables(tables).to_pydict() if tables else {KEY: [], **{name: [] for name in wanted}}
        broken = {key for key, reason in zip(table[KEY], table["reason"], strict=True) if reason is not None}
        counts: dict[str, int | None] = {"pictures": len(set(table[KEY])), "broken": len(broken)}
        if "unsure" in table:
            known = [unsure for unsure in table["unsure"] if unsure is not None]
            counts["unsure"] = sum(known) if known else None
        return counts

    def _check(self) -> None:
        """DiptychError if something is there that was made with other settings, or by something else."""
        unfinished = self.folder / "settings.json"
        if unfinished.is_file():
            self._compare(read_json(unfinished), f"{self.folder} holds unfinished work")
        elif self.out.exists() and not self.about.is_file():
            columns = self.form.columns(self.out)
            what = f" (its columns: {', '.join(columns)})" if columns else ""
            raise DiptychError(
                f"{self.out} is there already, and this command did not make it{what}; choose another --out, or --overwrite"
            )
        elif self.out.exists():
            self._compare(read_json(self.about), f"{self.out} is there already, and was made")
            if (columns := self.form.columns(self.out)) != self.form.named(self.schema):
                raise DiptychError(
                    f"{self.out}: its columns are {', '.join(columns)}, not {', '.join(self.form.named(self.schema))}: it was "
                    "changed; choose another --out, or --overwrite"
                )

    def _compare(self, before: Mapping[str, Any], what: str) -> None:
        other = [k for k, v in self.settings.items() if before.get(k) != v]
        if other:
            listed = "; ".join(f"{WORDS.get(k, k)}: {_short(before.get(k))}, now {_short(self.settings[k])}" for k in other)
            raise DiptychError(f"{what} with other settings ({listed}); choose another --out, or --overwrite")

    def _reopen(self, pictures: Pictures) -> None:
        """Continues a finished table, to which pictures were added."""
        table = self.form.read(self.out, self.schema)
        keys = table["id"].to_pylist() if pictures.named else pictures.keys
        self.done = set(keys)
        self.finished = self.done >= set(pictures.keys)
        if not self.finished:
            self.folder.mkdir(parents=True, exist_ok=True)
            first = table.add_column(0, pa.field(KEY, pa.string()), pa.array(keys, pa.string()))
            write_atomically(self.folder / "part-000000.parquet", lambda path: pq.write_table(first, path))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def fill(
    parts: Parts, pictures: Pictures, rows_of: Callable[[Sequence[Picture]], list[list[Row]]], label: str, batch: int, quiet: bool
) -> None:
    """Adds the rows of all pictures that have none yet. rows_of: of a batch of pictures, broken ones among them.

    Raises Interrupted on Ctrl-C or SIGTERM, after what is done was written.
    """
    left = [i for i, key in enumerate(pictures.keys) if key not in parts.done]
    before = len(pictures) - len(left)
    with CountDisplay(label, len(pictures), before, unit="pictures", disable=quiet) as display, terminated_like_interrupted():
        try:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                batches = [left[start : start + batch] for start in range(0, len(left), batch)]
                coming: list[Future[Picture]] = []
                for indices, following in zip(batches, [*batches[1:], []], strict=False):
                    shown = [read.result() for read in coming or [pool.submit(pictures.read, i) for i in indices]]
                    coming = [pool.submit(pictures.read, i) for i in following]  # decoded while the model works
                    for i, rows in zip(indices, rows_of(shown), strict=True):
                        parts.add(pictures.keys[i], rows)
                    display(len(parts.done) if len(parts.done) <= len(pictures) else len(pictures))
        except KeyboardInterrupt:
            parts.flush()
            raise Interrupted(
                f"stopped: {len(parts.done):,} of {counted(len(pictures), 'picture')} are kept in {parts.folder}; the same command "
                "continues"
            ) from None
    parts.flush()
