"""Sections that only some tasks have: frequency of concepts, language priors, groups, red team."""

from __future__ import annotations

from diptych.report.answers import TaskAnswers
from diptych.report.read import Comparison


def sections(comparison: Comparison, g: TaskAnswers, probe_texts: bool) -> list[tuple[str, str, str]]:
    """(id, title, HTML) of each."""
    return []
