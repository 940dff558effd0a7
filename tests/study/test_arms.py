"""Some arms of a study alone, and the names of arms and measures in options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from diptych.benchmarks.answers.vqa import Vqa
from diptych.benchmarks.metric_names import check_metric, has_metric
from diptych.benchmarks.tasks import task
from diptych.core.errors import DiptychError
from diptych.study import load_study, study_names
from diptych.study.run import check_study


@dataclass(frozen=True)
class Undeclared(Vqa):
    """A task of one's own."""


@dataclass(frozen=True)
class Declared(Vqa):
    metrics: ClassVar[tuple[str, ...]] = ("shine",)


def source(address: str) -> Any:
    """Data with a skill of its own."""
    from diptych.data.scenes import open_scenes

    made: Any = open_scenes("scenes:small?size=32")
    made.skills = ("taste",)
    return made


@pytest.mark.parametrize("name", study_names())
def test_metrics_of_the_built_in_studies_exist(name: str) -> None:
    for measure in load_study(name).measures.values():
        assert not measure.task or has_metric(task(measure.task), str(measure.metric))


def test_metrics_of_tasks_of_ones_own_and_of_other_skills_are_not_refused() -> None:
    own = task("test_arms:Declared")
    assert has_metric(own, "shine") and not has_metric(own, "shnie")
    assert has_metric(task("test_arms:Undeclared"), "any")
    source = "test_arms:source:x"
    check_metric(task("controlled?n=2"), "taste/group", "measures.m.metric", [source])
    with pytest.raises(DiptychError, match=r"measures\.m\.metric: controlled has no metric 'smell'"):
        check_metric(task("controlled?n=2"), "smell", "measures.m.metric", [source])


def test_some_arms_alone() -> None:
    study = load_study("joint-alignment").only(["joint", "next-token"])
    assert list(study.arms) == ["next-token", "joint"] and study.measures["caption"].arms == ["next-token", "joint"]
    assert "questions" not in study.measures  # of arms that are not there
    assert study.claims and all({c.a, c.b} & {"joint", "next-token"} for c in study.claims)
    check_study(study)
    with pytest.raises(DiptychError, match="no arm 'joined', did you mean 'joint'|no arm 'joined'"):
        study.only(["joined"])


def test_some_arms_where_figures_and_measures_name_others() -> None:
    study = load_study("memorization")
    assert study.figures and not study.only(["reference"]).figures  # its measure is of the other arms
    check_study(study.only(["reference"]))
    with pytest.raises(
        DiptychError, match=r"--arms: measures\.prg\.reference needs the arm 'reference' too: --arms masked,reference"
    ):
        study.only(["masked"])
    both = study.only(["masked", "reference"])
    check_study(both)
    assert [f.options for f in both.figures] == [{"measure": "recall"}] and both.measured_on("recall") == ["masked"]
    of_one = study.model_copy(update={"measures": {"prg": study.measures["prg"]}})
    with pytest.raises(DiptychError, match="measures nothing on reference"):
        of_one.only(["reference"])
    with pytest.raises(DiptychError, match="no measure 'recal'; did you mean 'recall'"):
        study.measured_on("recal")


def test_figures_name_measures_and_arms_that_exist() -> None:
    study = load_study("memorization", {"figures.0.options.measure": "recal"})
    with pytest.raises(DiptychError, match=r"figures\.0\.measure: there is no measure 'recal'; did you mean 'recall'"):
        check_study(study)
    study = load_study("joint-alignment", {"figures.0.options.arms": ["joint", "jiont"]})
    with pytest.raises(DiptychError, match=r"figures\.0\.arms: there is no arm 'jiont'"):
        check_study(study)
