"""``diptych slices``: where a model is worst, tested on pictures that did not suggest it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import DATA

BY = "A model with vectors by which pictures are clustered, such as `conse`. Default: the model itself."
QUERY = (
    "Find pictures that the model takes for this text instead of those on which it is wrong: the score is its fit with the text."
)


def slices(
    model: Annotated[str, typer.Argument(help="A model that scores texts: `runs/clip`, `hf:NAME_OR_PATH`.")],
    address: Annotated[str, typer.Argument(help=DATA)],
    by: Annotated[str | None, typer.Option(help=BY)] = None,
    query: Annotated[str | None, typer.Option(help=QUERY)] = None,
    split: Annotated[str, typer.Option(help="A part of the data: train, validation, test.")] = "test",
    n: Annotated[
        int, typer.Option("-n", "--limit", min=40, help="Pictures: one half suggests slices, the other tests them.")
    ] = 400,
    size: Annotated[int, typer.Option(min=4, help="Pictures of a cluster, on average.")] = 12,
    vocabulary: Annotated[Path | None, typer.Option(help="A file with a word a line: clusters are named by these alone.")] = None,
    merge: Annotated[
        list[str] | None, typer.Option(help="Names of clusters that are one for you, joined by `+`: `fish, red+fish, blue`.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the slices as JSON.")] = False,
) -> None:
    """Find the slices of the data in which a model is worst. Pictures are clustered and named on one half; whether a slice is worse
    than the rest is tested on the other half. Examples:

    `diptych slices runs/clip scenes:small`;
    `diptych slices hf:openai/clip-vit-base-patch32 coco:captions.json --query "a photo of a cook"`
    """
    from diptych.benchmarks.failures.items import judge
    from diptych.benchmarks.failures.slices import find_slices
    from diptych.cli.results import print_json
    from diptych.data.sources import open_source
    from diptych.inference.load import load

    opened = load(model, device)
    judged = judge(opened, open_source(address).split(split), n, embedder=load(by, device) if by else None)
    scores, affinity = judged.scores, None
    if query:
        images = [s.image for s in judged.samples if s.image is not None]
        affinity = opened.score(images, [query])[:, 0].astype(float)
        scores = -affinity
    words = vocabulary.read_text(encoding="utf-8").split() if vocabulary else None
    found = find_slices(
        judged.vectors,
        scores,
        judged.texts,
        size=size,
        affinity=affinity,
        vocabulary=words,
        join=[m.split("+") for m in merge or []],
    )
    if json_:
        rows = [{**asdict(s), "difference": s.difference, "confirmed": s.confirmed} for s in found]
        print_json({"model": opened.name, "pictures": len(judged), "score": float(judged.scores.mean()), "slices": rows})
        return
    typer.echo(f"{opened.name}: own caption before its rivals for {judged.scores.mean():.0%} of {len(judged)} pictures")
    for s in found:
        mark = "worse" if s.confirmed else "not shown to be worse"
        shown = f"{s.held_score:.2f} here, {s.rest:.2f} elsewhere"
        tested = f"{s.held} held-out pictures; difference {s.difference:+.2f}, {s.low:+.2f} to {s.high:+.2f}, p {s.p:.3f}"
        typer.echo(f"{s.name}: {shown} ({tested}): {mark}")
