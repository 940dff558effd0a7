"""Some arms of a study alone, and the names of arms and measures in options."""

from __future__ import annotations

import pytest

from diptych.core.errors import DiptychError
from diptych.study import load_study
from diptych.study.run import check_study


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
