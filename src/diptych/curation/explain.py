"""Explains why a row was kept or dropped: by which rule and threshold, because of which duplicate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diptych.core.errors import DiptychError, nearest
from diptych.core.files import read_json
from diptych.curation.plan import Plan, Step, load_plan, steps_of

TWINS = 20  # rows of one id that are explained


@dataclass
class Verdict:
    """The decision of one rule on a row."""

    rule: str  # the condition
    reason: str
    value: Any
    says: str  # keeps, removes, not asked
    threshold: float | None = None  # the value, for rules that take a share
    twin: dict[str, Any] | None = None  # the row that the value points to


@dataclass
class Explanation:
    """The decisions of all rules on a row, and its scores."""

    id: str
    row: int
    text: str | None
    kept: bool
    reason: str | None
    errors: list[str]
    verdicts: list[Verdict]
    scores: dict[str, Any] = field(default_factory=dict)
    pointed_at_by: list[str] = field(default_factory=list)  # rows that were removed in favour of this one


class Result:
    """A result directory and its rows."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "manifest.json").is_file():
            what = (
                "an unfinished run (the same command resumes)"
                if (self.path / "store").is_dir()
                else "not a result of `diptych curate`"
            )
            raise DiptychError(f"{self.path}: {what}")
        self.manifest: dict[str, Any] = read_json(self.path / "manifest.json")
        self.plan: Plan = load_plan(str(self.path))
        self.steps: list[Step] = steps_of(self.plan)

    def part(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """The decisions on one shard, or some of their columns."""
        return pq.read_table(self.path / "decisions" / f"part-{number:05d}.parquet", columns=columns)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the shards."""
        return [shard["shard"] for shard in self.manifest["shards"]]

    def row(self, place: int) -> dict[str, Any]:
        """The decision on one row."""
        row: dict[str, Any] = self.part(place >> 32).slice(place & 0xFFFFFFFF, 1).to_pylist()[0]
        return row

    def state(self, step: Step) -> pa.Table | None:
        """The saved state of a two-pass step, if any."""
        path = next((self.path / "states").glob(f"{step.index:02d}-*.parquet"), None)
        return pq.read_table(path) if path else None

    def find(self, identity: str) -> list[int]:
        """The rows with this id; if there are none, those with it in the data's own ``id`` column, then those of which the id ends
        with it.

        Raises DiptychError if there is no such row.
        """
        exact: list[int] = []
        own: list[int] = []
        ending: list[int] = []
        near: list[str] = []
        for number in self.numbers:
            part = self.part(number, ["id", "own_id"])
            ids = part["id"]
            own += [(number << 32) + i for i in pc.indices_nonzero(pc.equal(part["own_id"], identity)).to_pylist()]
            exact += [(number << 32) + i for i in pc.indices_nonzero(pc.equal(ids, identity)).to_pylist()]
            ending += [(number << 32) + i for i in pc.indices_nonzero(pc.ends_with(ids, identity)).to_pylist()]
            near += ids.slice(0, 1000).to_pylist() if len(near) < 5000 else []
        if exact or own or ending:
            return exact or own or ending
        hint = nearest(identity, near) if len(near) > 20 or len(identity) > 2 else ""
        raise DiptychError(f"{self.path}: no row has the id '{identity}'{hint if len(hint) < 200 else ''}")

    def pointing(self, column: str, place: int) -> list[str]:
        """Ids of the rows that point to row ``place`` in ``column``."""
        ids: list[str] = []
        for number in self.numbers:
            table = self.part(number, ["id", column])
            ids += table.filter(pc.equal(table[column], place))["id"].to_pylist()
        return ids


def explain(result: Result, identity: str) -> list[Explanation]:
    """An explanation of each row with the id ``identity``, which rows of several files may share."""
    return [_explain(result, place) for place in result.find(identity)[:TWINS]]


def _explain(result: Result, place: int) -> Explanation:
    row = result.row(place)
    reasons = row["reasons"] or []
    verdicts = []
    gone = "unusable" in reasons
    pointed: list[str] = []
    for step in result.steps:
        if not step.rule:
            gone = gone or f"{step.label} failed" in reasons
            continue
        rule = step.rule
        value = row.get(rule.column) if rule.column else None
        absent = f"no {rule.column}"
        missing = absent in reasons and value is None and rule.way != "unique"
        removes = step.label in reasons and not missing
        applies = not (gone and rule.counts_all and rule.of == "kept") and "unusable" not in reasons
        verdict = Verdict(rule.text(), absent if missing else step.label, value, "removes" if removes or missing else "keeps")
        if not applies:
            verdict.says = "not asked"
        verdict.threshold = rule.threshold(result.state(step)) if rule.counts_all else None
        if rule.way == "unique" and rule.column:
            if value is not None:
                twin = result.row(value)
                verdict.twin = {key: twin[key] for key in ("id", "text", "kept", "reason")}
            pointed += result.pointing(rule.column, place)
        gone = gone or verdict.says == "removes"
        verdicts.append(verdict)
    known = {"row", "id", "own_id", "text", "kept", "reason", "reasons", "errors"}
    scores = {name: value for name, value in row.items() if name not in known}
    return Explanation(
        row["id"],
        place,
        row["text"],
        row["kept"],
        row["reason"],
        row["errors"] or [],
        verdicts,
        scores,
        list(dict.fromkeys(pointed)),
    )
