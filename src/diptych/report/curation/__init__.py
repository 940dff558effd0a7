"""The report of a curated pool: one self-contained page that says what was kept, what was not, and why."""

from __future__ import annotations

from pathlib import Path


def build_report(result: str | Path) -> Path:
    """Writes ``report.html`` into the directory of a result. Memory does not grow with the rows, but for groups and concepts."""
    from diptych.core.files import write_text
    from diptych.curation.explain import Result
    from diptych.report.curation.page import render

    curated = Result(result)
    page = curated.path / "report.html"
    write_text(page, render(curated))
    return page
