"""``diptych report``: the report of a comparison, a run, or an evaluation of any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.core.errors import DiptychError


def report(
    directory: Annotated[
        Path,
        typer.Argument(
            help="A comparison, a run that was evaluated, or a folder with records/*.jsonl of any model (docs/runs.md)."
        ),
    ],
    images: Annotated[Path | None, typer.Option(help="The folder of the pictures that records name in `image`.")] = None,
    probe_texts: Annotated[bool, typer.Option("--probe-texts", help="Show requests and answers of red-team probes.")] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Of a comparison: also write results.md and a page per recipe, systems/<recipe>.md, into this folder."),
    ] = None,
    tests: Annotated[Path | None, typer.Option(help="A JUnit file of test results, for these pages.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another run or evaluation: a page of both, with every item on which they differ.")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Also write summary.png and summary.pdf, one page for a talk (extra `report`).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --against: the file; default DIRECTORY/against-NAME.html.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Write the report again, from the records: one self-contained HTML file with a page for each task.

    Needs no model; a folder of records needs no data either. Example: `diptych report runs/theirs --images photos/`

    Two models, item by item: `diptych report runs/clip --against runs/siglip`.
    """
    from diptych.report import build_against, build_report, print_table

    if not directory.is_dir():
        raise DiptychError(f"no such directory: {directory}")
    if images is not None and not images.is_dir():
        raise DiptychError(f"no such directory: {images}")
    if against is not None:
        if not against.is_dir():
            raise DiptychError(f"no such directory: {against}")
        typer.echo(f"report: {build_against(directory, against, out, images)}")
        return
    if out is not None:
        raise DiptychError("--out is the file of --against; the report of a directory is written into it")
    page = build_report(directory, images, probe_texts)
    if summary:
        from diptych.report.pages.summary import write_summary

        for path in write_summary(directory):
            typer.echo(f"summary: {path}", err=json_)
    if markdown is not None:
        from diptych.report.pages.markdown import write_markdown

        typer.echo(f"written: {write_markdown(directory, markdown, tests)}")
    if json_:
        typer.echo((directory / "results.json").read_text(encoding="utf-8"))
        return
    print_table(directory)
    typer.echo(f"\nreport: {page}")
