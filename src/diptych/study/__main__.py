"""A measuring job's process (see ``measure``)."""

from diptych.comparison.jobs import main_of_job
from diptych.study.measure import measure

raise SystemExit(main_of_job(measure))
