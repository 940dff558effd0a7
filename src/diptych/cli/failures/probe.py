"""``diptych probe``: which features of pictures and captions a model's scores go with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.options import DATA


def probe(
    model: Annotated[str, typer.Argument(help="A model that scores texts: `runs/clip`, `hf:NAME_OR_PATH`.")],
    address: Annotated[str, typer.Argument(help=DATA)],
    features: Annotated[
        Path | None, typer.Option(help="A CSV file with the column `id` and features of your own, instead of the built-in ones.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="A model with vectors, if the model has none, such as `conse`.")] = None,
    split: Annotated[str, typer.Option(help="A part of the data: train, validation, test.")] = "test",
    n: Annotated[int, typer.Option("-n", "--limit", min=40, help="Pictures.")] = 400,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the coefficients as JSON.")] = False,
) -> None:
    """Regress how far a picture's own caption scores above the best of 19 others and of its own wrong version, if the data has
    one, on features of the picture and the caption, all at once, with intervals and a false discovery rate of 5 %. The unit is a
    standard deviation of that margin, for one of the feature. Example:

    `diptych probe runs/clip scenes:small -n 800`
    """
    from diptych.benchmarks.failures.features import ABOUT, features_of, read_features
    from diptych.benchmarks.failures.items import judge
    from diptych.benchmarks.failures.regression import regress
    from diptych.cli.results import print_json
    from diptych.data.sources import open_source
    from diptych.inference.load import load

    opened = load(model, device)
    judged = judge(opened, open_source(address).split(split), n, embedder=load(by, device) if by else None)
    names, values = read_features(features, judged.ids) if features else features_of(judged.samples)
    found = regress(names, values, judged.margins, judged.ids)
    if json_:
        rows = [{**asdict(c), "related": c.related} for c in found]
        print_json({"model": opened.name, "pictures": len(judged), "score": float(judged.scores.mean()), "features": rows})
        return
    typer.echo(f"{opened.name}: own caption before its rivals for {judged.scores.mean():.0%}, mean over {len(judged)} pictures")
    for c in found:
        mark = "related" if c.related else "not shown to be related"
        typer.echo(f"{c.feature}: {c.value:+.4f} ({c.low:+.4f} to {c.high:+.4f}, q {c.q:.3f}): {mark}; {ABOUT.get(c.feature, '')}")
