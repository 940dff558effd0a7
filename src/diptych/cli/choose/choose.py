"""``diptych choose``: which model, which way of adapting it, for your pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diptych.core.capabilities import Model

from diptych.cli.choose.adapt import CLASSES, DESCRIPTIONS
from diptych.core.errors import DiptychError

MODELS = "Models to compare: runs, `hf:NAME_OR_PATH`, `open_clip:NAME?pretrained=TAG`, `package.module:Class`. Default: conse."


def choose(
    models: Annotated[list[str] | None, typer.Argument(help=MODELS)] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help=CLASSES)] = None,
    test_data: Annotated[str | None, typer.Option(help="Other pictures to test on, instead of the test part of --data.")] = None,
    ways: Annotated[str | None, typer.Option(help="See diptych adapt --list; or all. Default: the usual.")] = None,
    shots: Annotated[str, typer.Option(help="Pictures of each class to learn from: `1,2,4,8,16,all`.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of these pictures. Three or more are part of the intervals.")] = 1,
    budget: Annotated[str | None, typer.Option("--budget", "-b", help="A time, `20m`; what does not fit is listed.")] = None,
    descriptions: Annotated[Path | None, typer.Option(help=DESCRIPTIONS)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the results.")] = Path("runs/choose"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print results.json instead of the table.")] = False,
) -> None:
    """Compare models, and ways of adapting them, on your pictures: one table, one recommendation.

    Pictures with classes, or with several labels each (`labels:`): settings are chosen by cross-validation on the training part;
    the test part is opened once, at the end. Pictures with captions: nested cross-validation, so that every picture is tested once.
    Writes results.json, table.md and report.html. Interrupted? The same command continues. Example: `diptych choose runs/clip
    hf:models/siglip --data classes:my/parts --shots 1,4,16 --seeds 5`
    """
    if data is None:
        raise DiptychError("name the pictures: --data classes:DIRECTORY, with a folder for each class")
    from diptych.api import load
    from diptych.choose.captions import has_classes
    from diptych.choose.run import Request, all_ways, default_ways, seconds_of
    from diptych.choose.run import choose as run_choose
    from diptych.choose.run_captions import choose_for_captions
    from diptych.choose.several.data import has_several_labels
    from diptych.choose.support import read_descriptions
    from diptych.cli.choose.display import StepsDisplay
    from diptych.core.errors import Interrupted
    from diptych.core.files import read_json
    from diptych.report.pages.choose import build_choose_report

    def opened(address: str) -> Model:
        """The model of an address, on the chosen device."""
        return load(address, device)

    sentences = read_descriptions(descriptions) if descriptions else None
    seconds, names = seconds_of(budget), tuple(w.strip() for w in ways.split(",")) if ways else ()
    addresses = tuple(dict.fromkeys(models or ["conse"]))
    counts = shots_of(shots)
    stopped: Interrupted | None = None
    try:
        with StepsDisplay() as display:
            if (several := has_several_labels(data)) or has_classes(data):
                named = (
                    all_ways(bool(sentences))
                    if names == ("all",)
                    else names or default_ways(bool(sentences), towers=seconds is not None, several=several)
                )
                request = Request(
                    addresses, named, data, counts, seeds, descriptions=sentences, seconds=seconds, test_data=test_data
                )  # fmt: skip
                run_choose(request, out, opened, display)
            elif counts != (0,) or test_data or sentences:
                raise DiptychError(f"{data} has captions, not classes; --shots, --test-data and --descriptions are for classes")
            else:
                given = () if names == ("all",) else names
                choose_for_captions(addresses, given, data, out, opened, seeds=seeds, seconds=seconds, progress=display)
    except Interrupted as error:
        stopped = error
    path = out / "results.json"  # after another error, what is there would be of an earlier command
    results = read_json(path)
    results["command"] = command(results, descriptions)
    build_choose_report(out, results)
    if json_:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
    else:
        _print(results, out)
    if stopped is not None:
        raise stopped


def shots_of(text: str) -> tuple[int, ...]:
    """``1,4,all`` → (1, 4, 0). DiptychError for anything else."""
    shots = []
    for part in map(str.strip, text.split(",")):
        if part != "all" and not (part.isdecimal() and int(part)):
            raise DiptychError(f"--shots {text}: expected numbers of pictures, or all, such as 1,4,16,all")
        shots.append(0 if part == "all" else int(part))
    return tuple(dict.fromkeys(shots))


def command(results: Mapping[str, Any], descriptions: Path | None = None) -> str:
    """The command that makes the recommended model; "" if there is none. descriptions: the file of the sentences."""
    recommended = results["verdict"]["recommended"]
    if recommended is None:
        return ""
    from diptych.choose.towers import TOWER_WAYS

    model, way = recommended
    shots = results["verdict"].get("shots")
    own = [c for c in results["cells"] if (c["model"], c["way"], c.get("shots")) == (model, way, shots)]
    seconds = own[0].get("settings", {}).get("seconds") if own and way in TOWER_WAYS else None  # as it was tested
    words = [
        "diptych",
        "adapt",
        model,
        "--way",
        way,
        "--data",
        results["request"]["data"],
        *(["--shots", str(shots)] if shots else []),
        *(["--descriptions", str(descriptions)] if descriptions and way not in TOWER_WAYS else []),
        *(["--budget", f"{seconds}s"] if seconds else []),
    ]
    return shlex.join([*words, "--out", f"runs/adapted-{way.rpartition(':')[2]}"])


def _print(results: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from diptych.report.pages.choose import rows_of
    from diptych.report.pages.choose_captions import caption_rows, columns_of

    console = Console()
    if results.get("kind") == "captions":
        rows = caption_rows(results)
        columns, more = columns_of(rows)[:3], ["inner", "lead of the best", "seconds"]
    else:
        rows, labels = rows_of(results), results["data"].get("kind") == "labels"
        columns = ["cross-validation", "test", *(["F1 macro"] if labels else []), "lead of the best"]
        more = ["calibration error", "if chosen on the test", "seconds"]
    columns = [*columns, *(more if console.width >= 120 else [])]
    table = Table("way", box=None, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(f"{row['way']}\n[dim]{escape(row['model'])}[/]", *(row[c] for c in columns))
    console.print(table)
    for note in results["data"]["notes"]:
        typer.echo(f"note: {note}")
    skipped = sorted({(c["way"], c["model"], c["skipped"]) for c in results["cells"] if "skipped" in c})
    for way, model, why in skipped:
        typer.echo(f"not tried: {way} on {model}: {why}")
    for entry in results["not_tried"]:
        typer.echo(f"not tried: {entry.get('way', '')} {entry['model']}: {entry['why']}")
    if results.get("doubtful"):
        typer.echo(f"labels to check: {len(results['doubtful'])}, in {out / 'labels-to-check.csv'}")
    typer.echo("")
    for sentence in results["sentences"]:
        typer.echo(sentence)
    if results["command"]:
        typer.echo(f"\nTo make it: {results['command']}")
    typer.echo(f"report: {out / 'report.html'}")
