"""``diptych doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

SIGNS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Without the measurement of speed, which takes some seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of findings.")] = False,
) -> None:
    """Check this machine: versions, processors, memory, GPU, disk, weights, extras; and time a training step.

    Exit status 1 if there is a problem; a note is something that you may want to know. Attach the output to a report of an error.
    """
    from diptych.cli.start.checks import findings

    made = []
    for finding in findings(time_a_step=not quick):
        made.append(finding)
        if not as_json:
            remedy = f"\n{' ' * 20}→ {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{SIGNS[finding.status]} {finding.what:<12}{finding.text}{remedy}")
    problems = sum(f.status == "problem" for f in made)
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in made], ensure_ascii=False, indent=1))
    else:
        typer.echo(f"\n{problems} to mend" if problems else "\nnothing to mend")
    raise typer.Exit(1 if problems else 0)
