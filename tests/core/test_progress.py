"""What is shown while work runs: one display at a time, and no line twice."""

from __future__ import annotations

import pytest

from diptych.core import progress
from diptych.core.progress import CountDisplay, JobsDisplay


def test_a_count_within_a_display_of_jobs_is_a_row_of_it(monkeypatch):
    """Two displays on a terminal at once would write over each other."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    with JobsDisplay([("negclip", {"phase": "setting up", "share": 0.0})]) as jobs:
        with CountDisplay("features", 8, unit="pictures") as count:
            count(8)
            assert count.progress is jobs.progress and len(jobs.progress.tasks) == 2
            assert jobs.progress.tasks[1].fields["label"] == "features"
        assert [task.fields["label"] for task in jobs.progress.tasks] == ["negclip"]
        assert jobs.progress.live.is_started
    with CountDisplay("features", 8) as alone:
        assert alone.progress is not jobs.progress and alone.progress.live.is_started
    assert not alone.progress.live.is_started and not progress._shown


@pytest.mark.parametrize("quiet", [-1.0, 1000.0])
def test_a_log_has_the_last_count_once(monkeypatch, capsys, quiet):
    monkeypatch.setattr(progress, "QUIET_SECONDS", quiet)
    with CountDisplay("features", 8, unit="pictures") as count:
        count(4)
        count(8)
    lines = [line for line in capsys.readouterr().err.splitlines() if "features" in line]
    assert [" 4 of 8 pictures" in lines[0], len(lines)] == ([True, 2] if quiet < 0 else [False, 1])
    assert "8 of 8 pictures" in lines[-1]
