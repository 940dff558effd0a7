"""The schema of a plan: which operators score, which rules decide, in which order. Mistakes are reported before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import yaml
from pydantic import Field

from diptych.config.library import Library
from diptych.config.overrides import Overrides
from diptych.config.typed import Strict, check
from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import check_options, resolve
from diptych.curation.keep import Keep
from diptych.curation.operators import OPERATORS, OPERATORS_PACKAGE
from diptych.curation.operators.base import HEAVY, PIXELS, Operator, Reduce

PLANS = Path(__file__).parent / "plans"
BASE: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "id": pa.string(),
    "hash": pa.uint64(),
    "text": pa.string(),
    "captions": pa.list_(pa.string()),
    "image": pa.binary(),
    "pixels": PIXELS,
}


class Pool(Strict):
    """How the source becomes rows and shards."""

    rows: Literal["images", "captions"] = "images"  # one row for each image with all its captions, or for each caption
    shard: Annotated[int, Field(ge=1)] = 1000  # rows of a shard: the unit of work; finished ones are kept when a run resumes
    images: Literal["reference", "inline"] = "reference"  # inline: copied into the shards, as images without files always are
    limit: Annotated[int, Field(ge=1)] | None = None  # only the first items; required for an endless source


class Output(Strict):
    """The format of the kept rows, all ready for ``train``.

    parquet: with the images inside. images: files, and Parquet with their names. wds: tar shards. packed: Parquet, and the result
    of ``diptych data pack`` with ``size`` pixels on the shorter side.
    """

    format: Literal["parquet", "images", "wds", "packed"] = "parquet"
    size: Annotated[int, Field(ge=16)] | None = None


class Plan(Strict):
    """Operators and rules in order, and how rows are read and written."""

    name: str
    about: str = ""
    cite: str = ""
    seed: int = 0  # of random rules
    errors: Literal["drop", "keep"] = "drop"  # rows that an operator could not score
    pool: Pool = Pool()
    output: Output = Output()
    steps: Annotated[list[str | dict[str, Any]], Field(min_length=1)]

    def to_yaml(self) -> str:
        """The plan as YAML, with every default."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Step:
    """An operator or a rule at its position in the plan."""

    index: int
    label: str  # unique; for an operator its name or its ``as``
    operator: Operator | None = None
    rule: Keep | None = None
    prefix: str = ""  # before the names of its outputs
    of: Literal["kept", "all"] = "all"  # the rows it sees

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads."""
        if self.operator:
            return self.operator.inputs
        assert self.rule
        return (self.rule.column,) if self.rule.column else ()

    @property
    def outputs(self) -> dict[str, pa.DataType]:
        """Names and types of the columns that it adds."""
        return {self.prefix + name: kind for name, kind in self.operator.outputs.items()} if self.operator else {}

    @property
    def two_passes(self) -> bool:
        """Whether the result for a row depends on other rows."""
        return isinstance(self.operator, Reduce) or (self.rule is not None and self.rule.counts_all)

    def describe(self) -> dict[str, Any]:
        """Everything that its result depends on, except its inputs, as plain data."""
        if self.rule:
            return {"keep": self.rule.model_dump(mode="json", by_alias=True, exclude_none=True)}
        assert self.operator
        return {
            "operator": self.operator.name,
            "class": _class_name(type(self.operator)),
            "version": self.operator.version,
            "options": {f.name: _plain(getattr(self.operator, f.name)) for f in dataclasses.fields(self.operator)},
            "of": self.of,
            "as": self.prefix.removesuffix("_"),
            "depends": self.operator.depends(),
        }


def _class_name(cls: type[Operator]) -> str:
    """``module:Class``; for built-in operators the package, so that results stay valid when a file moves."""
    package = OPERATORS_PACKAGE if cls.__module__.startswith(f"{OPERATORS_PACKAGE}.") else cls.__module__
    return f"{package}:{cls.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(v) for v in value)
    return (
        {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else str(value) if isinstance(value, Path) else value
    )


# ---- reading

LIBRARY = Library(Plan, "plan", PLANS, saved_as="plan.yaml")


@cache
def plan_names() -> tuple[str, ...]:
    """The names of the built-in plans, sorted."""
    return LIBRARY.names()


def load_plan(source: str | Path | Mapping[str, Any], overrides: Overrides = None) -> Plan:
    """A plan by name, by path, by the directory of a result or as plain data; checked together with its steps.

    Raises DiptychError naming the file, the key, what was expected and the nearest valid key.
    """
    tree, where = LIBRARY.read(source)
    plan = LIBRARY.check(tree, where, overrides)
    steps_of(plan, where)
    return plan


# ---- the steps, checked against each other


def steps_of(plan: Plan, where: str = "plan") -> list[Step]:
    """The checked steps of a plan.

    Raises DiptychError for an unknown operator or option, or an input that is not a base column or an earlier step's output.
    """
    known: dict[str, pa.DataType] = dict(BASE)
    maker: dict[str, str] = {}
    steps: list[Step] = []
    for index, step_data in enumerate(plan.steps):
        place = f"{where}: steps.{index}"
        name, options = _split(step_data, place)
        step = _rule(index, options, place) if name == "keep" else _operator(index, name, options, place)
        if any(step.label == s.label and s.operator for s in steps) and step.operator:
            raise DiptychError(f"{place}: '{step.label}' comes twice; name one with `as: NAME`")
        for column in step.inputs:
            if column not in known and not column.startswith("extra."):
                later = ", ".join(sorted(known.keys() - {*HEAVY, "row", "hash"}))
                raise DiptychError(
                    f"{place}: no step before this one makes a column '{column}'{nearest(column, known)}; available: {later}"
                )
        if step.two_passes and any(column in HEAVY for column in step.inputs):
            raise DiptychError(f"{place}: '{step.label}' takes two passes over whole shards and cannot read images")
        for column, kind in step.outputs.items():
            if column in known:
                reason = f"already made by '{maker[column]}'" if column in maker else "every row has one already"
                raise DiptychError(f"{place}: column '{column}' {reason}; rename with `as: NAME`, which puts NAME_ before it")
            known[column], maker[column] = kind, step.label
        steps.append(step)
    return steps


def _split(step_data: str | dict[str, Any], place: str) -> tuple[str, dict[str, Any]]:
    if isinstance(step_data, str):
        return step_data, {}
    if len(step_data) != 1:
        raise DiptychError(
            f"{place}: expected one operator or `keep` in each step, got {', '.join(map(str, step_data)) or 'nothing'}"
        )
    name, options = next(iter(step_data.items()))
    if options is None:
        return name, {}
    if not isinstance(options, dict):
        raise DiptychError(f"{place}.{name}: expected options such as {{option: value}}, got {options!r}")
    return name, dict(options)


def _rule(index: int, options: dict[str, Any], place: str) -> Step:
    rule = check(Keep, options, f"{place}.keep")
    return Step(index, rule.label(), rule=rule, of=rule.of)


def _operator(index: int, name: str, options: dict[str, Any], place: str) -> Step:
    try:
        cls = resolve(name, OPERATORS, "operator")
    except DiptychError as error:
        raise DiptychError(f"{place}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Operator)):
        raise DiptychError(f"{place}: {name} is not an operator: it must be a subclass of diptych.curation.operators.base.Operator")
    given = options.pop("as", None)
    of = options.pop("of", "kept" if issubclass(cls, Reduce) else "all")
    if of not in ("kept", "all"):
        raise DiptychError(f"{place}.{name}.of: expected kept or all, got {of!r}")
    if given is not None and not (isinstance(given, str) and given.isidentifier()):
        raise DiptychError(f"{place}.{name}.as: expected a name of letters, digits and underscores, got {given!r}")
    operator = cls(**check_options(cls, options, f"{place}.{name}"))
    return Step(index, given or operator.name, operator=operator, prefix=f"{given}_" if given else "", of=of)
