"""Studies: arms trained under one budget over several seeds, measured, and claims about them put to the test."""

from diptych.study.run import run_study
from diptych.study.runs import Runs
from diptych.study.schema import Study, load_study, study_names
from diptych.study.verdict import Measured

__all__ = ["Measured", "Runs", "Study", "load_study", "run_study", "study_names"]
