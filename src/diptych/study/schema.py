"""The schema of a study: arms × seeds × a budget, measures, and claims about them. See ``docs/studies.md``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from diptych.config.budget import Budget
from diptych.config.library import Library
from diptych.config.overrides import Overrides, parse_overrides
from diptych.config.typed import Strict
from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import option_names, resolve

Options = Annotated[dict[str, Any], Field(default_factory=dict)]
# The types of options that name an arm or a measure of the study: checked before anything is trained.
ArmName = str
MeasureName = str
STUDIES = Path(__file__).parent.parent / "studies"


class Arm(Strict):
    """One way to train. The study's data and settings apply unless the arm overrides them."""

    recipe: str
    about: str = ""
    data: str | None = None  # a data address; None: the study's
    derive: Annotated[
        dict[str, dict[str, Any]], Field(default_factory=dict)
    ]  # steps that make other data of it, in this order: {step: options}
    budget: Annotated[Budget, BeforeValidator(Budget.parse)] | None = None  # None: the study's
    set: Options  # overrides of the recipe by dotted key

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        """``plain: clip`` is ``plain: {recipe: clip}``."""
        return {"recipe": data} if isinstance(data, str) else data


class Measure(Strict):
    """A metric of a task, or a function of a trained run (``study.measures``)."""

    about: str = ""  # in words, for the table
    task: str | None = None  # a task's address, such as controlled?n=200
    metric: str | None = None  # one of the task's
    control: Literal["blind", "shuffled"] | None = None  # the score of this control instead of the model's
    function: str | None = None  # module:function
    options: Options  # of the function
    data: str | None = None  # the data of the task; None: the study's eval_data, else the test part of the training data
    share: bool = True  # values are shares in [0, 1], shown as percentages
    range: tuple[float | None, float | None] | None = None  # of its values; None: of the metric, or as the function says
    arms: Annotated[list[str], Field(default_factory=list)]  # measured on these only; empty: on all

    @model_validator(mode="after")
    def _one_kind(self) -> Measure:
        if (self.task is None) == (self.function is None):
            raise ValueError("a measure names either a task (and one of its metrics) or a function")
        if (self.task is None) != (self.metric is None):
            raise ValueError("task and metric go together")
        if self.function and (self.control or self.data):
            raise ValueError("control and data belong to tasks; a function takes options")
        return self


class Claim(Strict):
    """``a`` is higher than, lower than or the same as ``b`` on a measure, by at least (for same: at most) ``by``."""

    claim: str  # in words
    measure: str
    a: str  # an arm
    b: str | float  # another arm, or a number
    expect: Literal["higher", "lower", "same"]
    by: Annotated[float, Field(ge=0)] = 0.0
    measure_b: str | None = None  # of b, if it differs

    @model_validator(mode="after")
    def _same_by(self) -> Claim:
        if self.expect == "same" and not self.by:
            raise ValueError("'same' needs by: the largest difference that still counts as none")
        if self.measure_b and not isinstance(self.b, str):
            raise ValueError("measure_b needs an arm as b")
        return self


class Figure(Strict):
    """A figure of the report: ``function(runs, **options)`` returns HTML (``study.figures``)."""

    title: str
    function: str
    options: Options

    def named(self) -> set[str]:
        """The arms and measures that its options name."""
        kinds = [names_in(self.function, self.options, kind) for kind in ("ArmName", "MeasureName")]
        return {name for options in kinds for names in options.values() for name in names}


def names_in(function: str, options: dict[str, Any], kind: str) -> dict[str, list[str]]:
    """``{option: names}`` of the given options that the function annotates as ``kind``: names of arms or of measures."""
    known = option_names(resolve(function, {}, "function"))
    named = {o: v for o, v in options.items() if v is not None and o in known and kind in str(known[o].annotation)}
    return {option: [str(v) for v in value] if isinstance(value, list) else [str(value)] for option, value in named.items()}


class Study(Strict):
    """A study: arms, measures, claims and figures."""

    name: str
    title: str = ""
    about: str = ""
    cite: str = ""
    data: str = "scenes:small"
    eval_data: str | None = None
    budget: Annotated[Budget, BeforeValidator(Budget.parse)] = Budget(samples=20_000)
    seeds: Annotated[int, Field(ge=1)] = 3
    set: Options  # overrides of every arm's recipe
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    measures: Annotated[dict[str, Measure], Field(min_length=1)]
    claims: Annotated[list[Claim], Field(default_factory=list)]
    figures: Annotated[list[Figure], Field(default_factory=list)]
    quick: Options  # overrides of the study, by dotted key, for --quick

    @model_validator(mode="after")
    def _names(self) -> Study:
        for i, claim in enumerate(self.claims):
            for name in filter(None, (claim.measure, claim.measure_b)):
                if name not in self.measures:
                    raise ValueError(f"claims.{i}.measure: there is no measure '{name}'{nearest(name, self.measures)}")
            for arm in (claim.a, claim.b):
                if isinstance(arm, str) and arm not in self.arms:
                    raise ValueError(f"claims.{i}: there is no arm '{arm}'{nearest(arm, self.arms)}")
                measured = self.measures[claim.measure_b or claim.measure if arm == claim.b else claim.measure].arms
                if isinstance(arm, str) and measured and arm not in measured:
                    raise ValueError(f"claims.{i}: '{claim.measure}' is not measured on '{arm}' but on {', '.join(measured)}")
        for name, measure in self.measures.items():
            for arm in measure.arms:
                if arm not in self.arms:
                    raise ValueError(f"measures.{name}.arms: there is no arm '{arm}'{nearest(arm, self.arms)}")
        for name in self.arms:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"arms.{name}: an arm's name becomes a directory's; letters, digits, - and _ only")
        return self

    def to_data(self) -> dict[str, Any]:
        """The study as plain data, for YAML."""
        return self.model_dump(mode="json")

    def only(self, arms: Sequence[str]) -> Study:
        """The study with only these arms, and the measures, claims and figures of them.

        Raises DiptychError for an unknown arm, for arms without a measure, and if a measure needs an arm that is left out.
        """
        for name in arms:
            if name not in self.arms:
                raise DiptychError(f"--arms: study '{self.name}' has no arm '{name}'{nearest(name, self.arms)}")
        measures = {
            name: m.model_copy(update={"arms": [a for a in m.arms if a in arms]})
            for name, m in self.measures.items()
            if not m.arms or set(m.arms) & set(arms)
        }
        if not measures:
            raise DiptychError(f"--arms: study '{self.name}' measures nothing on {', '.join(arms)}; add an arm")
        for name, m in measures.items():
            needed = names_in(m.function, m.options, "ArmName") if m.function else {}
            for option, named in needed.items():
                if missing := [a for a in named if a in self.arms and a not in arms]:
                    both = ",".join([*arms, *missing])
                    raise DiptychError(f"--arms: measures.{name}.{option} needs the arm '{missing[0]}' too: --arms {both}")
        claims = [c for c in self.claims if all(a in arms for a in (c.a, c.b) if isinstance(a, str))]
        gone = {*self.arms, *self.measures} - {*arms, *measures}
        figures = [f for f in self.figures if not f.named() & gone]
        return self.model_copy(
            update={
                "arms": {n: arm for n, arm in self.arms.items() if n in arms},
                "measures": measures,
                "claims": claims,
                "figures": figures,
            }
        )

    def measured_on(self, measure: str) -> list[str]:
        """The arms that a measure applies to. Raises DiptychError for an unknown measure."""
        return self.measure(measure).arms or list(self.arms)

    def measure(self, name: str) -> Measure:
        """A measure by its name. Raises DiptychError for an unknown one."""
        if name not in self.measures:
            raise DiptychError(f"study '{self.name}' has no measure '{name}'{nearest(name, self.measures)}")
        return self.measures[name]


LIBRARY = Library(Study, "study", STUDIES, shorthands={"arms": "recipe"})  # ``plain: clip`` is ``plain: {recipe: clip}``


def study_names() -> list[str]:
    """The names of the built-in studies, sorted."""
    return list(LIBRARY.names())


def load_study(name_or_path: str, overrides: Overrides = None, quick: bool = False) -> Study:
    """A study by name or path, read, overridden and checked.

    quick: apply the overrides under its key ``quick`` first.

    Raises DiptychError naming the file, the key, what was expected and the nearest valid key.
    """
    tree, where = LIBRARY.read(name_or_path)
    smaller = tree.get("quick") if quick else None
    return LIBRARY.check(tree, where, {**(smaller if isinstance(smaller, dict) else {}), **parse_overrides(overrides)})
