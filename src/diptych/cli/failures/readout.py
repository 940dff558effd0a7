"""``diptych readout``: what a model knows at each stage, next to what it answers."""

from __future__ import annotations

from typing import Annotated

import typer


def readout(
    model: Annotated[str, typer.Argument(help="A run: `runs/llava`; or another model with vectors.")],
    question: Annotated[list[str] | None, typer.Option("--question", "-q", help="concept, colour, count; default: all.")] = None,
    n: Annotated[int, typer.Option("-n", min=50, help="Pictures on which readouts are fitted.")] = 400,
    held: Annotated[int, typer.Option(min=20, help="Held-out pictures on which all are judged.")] = 300,
    scenes: Annotated[str, typer.Option(help="The built-in world that is asked about.")] = "scenes:small?natural=0",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the accuracies as JSON.")] = False,
) -> None:
    """Compare what a linear readout finds in a model's tower, connector and language-model layers with what the model answers:
    what is in the tower and not in the answer, the model sees but does not say. Example:

    `diptych readout runs/llava --question colour`
    """
    from diptych.benchmarks.failures.readout import QUESTIONS, compare_stages
    from diptych.cli.results import print_json
    from diptych.inference.load import load

    opened = load(model, device)
    found = {q: compare_stages(opened, q, n, held, address=scenes) for q in question or list(QUESTIONS)}
    if json_:
        rows = [
            {
                "question": q,
                "stage": s.name,
                "accuracy": s.accuracy.value,
                "low": s.accuracy.low,
                "high": s.accuracy.high,
                "against_answer": s.difference,
                "against_low": s.low,
                "against_high": s.high,
                "p": s.p,
            }
            for q, stages in found.items()
            for s in stages
        ]
        print_json({"model": opened.name, "held": held, "stages": rows})
        return
    for q, stages in found.items():
        typer.echo(f"{QUESTIONS[q]}:")
        for s in stages:
            more = "" if s.difference is None else f"; {s.difference:+.2f} to the answer ({s.low:+.2f} to {s.high:+.2f})"
            typer.echo(f"  {s.name}: {s.accuracy.value:.2f} ({s.accuracy.low:.2f} to {s.accuracy.high:.2f}){more}")
