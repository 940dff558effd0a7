"""Jobs in processes of their own: what they print, and what an error leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diptych.comparison.jobs import Job, run_jobs
from diptych.core.progress import JobsDisplay


class Script(Job):
    """A job of a module in a folder of the test."""

    module = "job_of_a_test"

    def arguments(self) -> dict[str, Any]:
        return {"path": str(self.path)}

    def done(self) -> bool:
        return (self.path / "done").is_file()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "job_of_a_test.py"


def test_a_line_that_is_no_event_goes_into_the_log(script: Path, tmp_path: Path) -> None:
    lines = ["5", "null", "[1, 2]", '"text"', '{"share": 1}', '{"phase": 3}', "words"]
    script.write_text(
        f"import json, sys, pathlib\nfor line in {lines!r}:\n    print(line)\n"
        "pathlib.Path(json.loads(sys.argv[1])['path'], 'done').touch()\n"
    )
    job = Script("a", tmp_path / "a", 1)
    assert run_jobs([job], 1) == []
    assert (job.path / "log.txt").read_text().splitlines() == lines


def test_an_error_leaves_no_job_running(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script.write_text("import time\ntime.sleep(30)\n")

    def broken(self: JobsDisplay, last: bool = False) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(JobsDisplay, "update", broken)
    jobs = [Script(name, tmp_path / name, 1) for name in "ab"]
    try:
        with pytest.raises(OSError, match="no space"):
            run_jobs(jobs, 2)
        assert all(job.process is not None and job.process.poll() is not None for job in jobs)
    finally:
        for job in jobs:
            if job.process is not None and job.process.poll() is None:
                job.process.kill()
