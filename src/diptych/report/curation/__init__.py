"""The report of a curated pool: one self-contained page on what was kept, what was removed, and why."""

from __future__ import annotations

from pathlib import Path


def build_report(result: str | Path) -> Path:
    """The path of ``report.html``, written into the directory of a result. Memory grows only with groups and concepts, not rows."""
    from diptych.core.files import write_text
    from diptych.curation.explain import Result
    from diptych.report.curation.page import render

    curated = Result(result)
    page = curated.path / "report.html"
    write_text(page, render(curated))
    return page
