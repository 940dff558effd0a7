"""What ``diptych`` alone answers: a greeting and, at a terminal, the commands for what you have."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass

import typer

GREETING = "Diptych: choose, train, evaluate and compare vision-language models on your data, under your budget."


@dataclass(frozen=True)
class Step:
    """A command and what it is for."""

    command: str
    what: str


@dataclass(frozen=True)
class Start:
    """Something that people have. asks: what to ask for, "" if nothing; example: of an answer."""

    have: str
    asks: str
    example: str
    steps: tuple[Step, ...]


STARTS = (
    Start(
        "pictures, nothing else: I want to find things in them",
        "Where are they?",
        "my/photos",
        (
            Step("diptych index folder:{} --out my.index", "makes an index; only new pictures are read the next time"),
            Step("diptych serve my.index", "search page at http://127.0.0.1:8000"),
        ),
    ),
    Start(
        "pictures in folders named by class: I want them sorted",
        "Where are the class folders?",
        "photos/",
        (
            Step("diptych data inspect classes:{}", "what is there, what is broken"),
            Step("diptych choose --data classes:{} --budget 10m", "models and ways of adapting them, one recommendation"),
        ),
    ),
    Start(
        "pictures with captions: I want to train or adapt a model",
        "Where are they (a folder, a table, a file in COCO's format)?",
        "captions.csv",
        (
            Step("diptych data inspect {}", "what is there, what is broken"),
            Step("diptych compare clip siglip coca --data {} --budget 10m", "three recipes under one budget, with a report"),
            Step("diptych choose --data {}", "or adapt a model that is trained already"),
        ),
    ),
    Start(
        "a model: I want to know what it can do",
        "Which one (a run, hf:NAME, openai:URL?model=NAME)?",
        "hf:openai/clip-vit-base-patch32",
        (Step("diptych evaluate {}", "on the built-in scenes: each number with its interval, chance and controls"),),
    ),
    Start(
        "a paper: I want to try its method",
        "",
        "",
        (
            Step("diptych recipes", "the methods that are built in"),
            Step("diptych train clip --budget 2m --out runs/clip", "trains one on the built-in scenes"),
            Step("diptych evaluate runs/clip", "and tells what it learned"),
        ),
    ),
    Start(
        "nothing: show me",
        "",
        "",
        (
            Step("diptych doctor", "is everything there, and how fast is this machine"),
            Step("diptych demo", "four paradigms under one budget, with a report: about ten minutes"),
        ),
    ),
)


def steps_for(start: Start, place: str = "") -> list[Step]:
    """The commands of a start, with the user's own place in them."""
    quoted = shlex.quote(os.path.expanduser(place.strip()) or start.example) if start.asks else ""
    if start.asks and ":" not in quoted and "captions" in start.have:
        quoted = address_of(quoted)
    return [Step(step.command.format(quoted), step.what) for step in start.steps]


def address_of(place: str) -> str:
    """The address of captioned pictures by the name of the file: a table, a file in COCO's format, or a folder."""
    kinds = {"csv": "csv", "tsv": "csv", "parquet": "parquet", "json": "coco", "jsonl": "jsonl"}
    return f"{kinds.get(place.rpartition('.')[2].lower(), 'folder')}:{place}"


def greet() -> None:
    """Prints the greeting. At a terminal, asks what the user has and prints the commands for it."""
    typer.echo(f"{GREETING}\n")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for start in STARTS:
            typer.echo(f"{start.have}\n" + "\n".join(f"  {step.command}" for step in steps_for(start)) + "\n")
        typer.echo("All commands: diptych --help")
        return
    typer.echo("What do you have?")
    for number, start in enumerate(STARTS, 1):
        typer.echo(f"  {number}  {start.have}")
    answer = typer.prompt(f"1 to {len(STARTS)}, or Enter for all commands", default="", show_default=False)
    if not answer.strip().isdigit() or not 1 <= int(answer) <= len(STARTS):
        typer.echo("\nAll commands: diptych --help")
        return
    start = STARTS[int(answer) - 1]
    place = typer.prompt(f"{start.asks} [{start.example}]", default="", show_default=False) if start.asks else ""
    typer.echo("")
    for step in steps_for(start, place):
        typer.echo(f"  {step.command}\n      {step.what}")
