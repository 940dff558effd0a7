"""``diptych adapt``: one model, one way, on your pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.cli.options import JsonOption
from diptych.core.errors import DiptychError, counted

MODEL = "A run, `hf:NAME_OR_PATH`, `open_clip:NAME?pretrained=TAG` or `package.module:Class`."
CLASSES = (
    "Pictures with classes, `classes:DIRECTORY` or `classes:TABLE.csv`, with several labels each, `labels:TABLE.csv`, or with "
    "captions, `folder:DIRECTORY` …; for a model that talks, conversations, `llava:FILE.json`, `chat:FILE.jsonl`"
)
DESCRIPTIONS = "Sentences that describe the classes, a JSON file {class: [sentence, …]}."


def adapt(
    model: Annotated[str | None, typer.Argument(help=MODEL)] = None,
    way: Annotated[str, typer.Option("--way", "-w", help="How (see --list).")] = "probe",
    data: Annotated[str | None, typer.Option("--data", "-d", help=CLASSES)] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Pictures of each class to learn from; default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Draws these pictures, and the folds.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: runs/adapted-WAY.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Fix a setting of the way, `--set c=10`; others are chosen.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="For ways that train a tower; default: as long as in the paper.")
    ] = None,
    descriptions: Annotated[Path | None, typer.Option(help=DESCRIPTIONS)] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    other: Annotated[
        list[str] | None, typer.Option("--other", help="For a model that talks: data on which it should stay as it was.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapted model in the folder.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the ways.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Adapt a model to classes or captions of your own. The folder that it writes is a model, for `evaluate` and other commands.

    Settings are chosen by cross-validation on the training part of the data; near-duplicates stay in one fold. The test part is not
    used. Training pictures whose label is probably wrong are listed. Example: `diptych adapt runs/clip --way probe --data
    classes:my/parts`, then `diptych evaluate runs/adapted-probe --data classes:my/parts` and `diptych predict runs/adapted-probe
    new/ --out table.csv`.
    """
    if list_:
        _list()
        return
    if model is None or data is None:
        raise DiptychError("name a model and the data: diptych adapt MODEL --way WAY --data classes:DIRECTORY")
    from diptych.api import load
    from diptych.choose.adapt import adapt as adapt_to_classes
    from diptych.choose.adapt import checked_settings, summary
    from diptych.choose.captions import adapt_to_captions, has_classes
    from diptych.choose.label_errors import CHECK, MOST_DOUBTFUL, as_csv, of_adapted
    from diptych.choose.maps import MAP_WAYS
    from diptych.choose.several.adapt import adapt_to_labels, summary_of_labels
    from diptych.choose.several.data import has_several_labels
    from diptych.choose.several.ways import several_way
    from diptych.choose.support import read_descriptions
    from diptych.choose.towers import TOWER_WAYS
    from diptych.choose.ways import WAYS, way_named
    from diptych.cli.choose.display import StepsDisplay
    from diptych.cli.choose.tuned import tune_and_tell, tunes
    from diptych.cli.results import print_json
    from diptych.config.overrides import parse_overrides
    from diptych.core.files import write_text
    from diptych.core.progress import TrainingDisplay

    def tell(about: dict[str, Any], words: str) -> None:
        """The result: as JSON, or in words."""
        if as_json:
            print_json({"path": str(folder), **about})
        else:
            typer.echo(f"{folder}: {words}")

    folder = out or Path("runs") / f"adapted-{way.rpartition(':')[2]}"
    given = parse_overrides(set_ or [])
    if tunes(model, way):
        if shots is not None or descriptions is not None:
            raise DiptychError("--shots and --descriptions are for classes; a model that talks learns from conversations")
        tune_and_tell(model, way, data, folder, other or [], seed, budget, given, as_json)
        return
    if other:
        raise DiptychError("--other: for a model that talks, hf:NAME, tuned by --way lora, dora or full")
    if way in MAP_WAYS:
        if has_classes(data):
            raise DiptychError(f"--way {way} is for captions, and {data} has classes; for these there are {', '.join(WAYS)}")
        if shots is not None or descriptions is not None:
            raise DiptychError("--shots and --descriptions are for classes")
        mapped = checked_settings(MAP_WAYS[way], given)
        with StepsDisplay() as display:
            made = adapt_to_captions(
                model, load(model, device), way, data, folder, seed=seed, settings=mapped, overwrite=overwrite, progress=display
            )
        tell(made.about, f"learned from {counted(made.about['pictures'], 'picture')} with captions")
        return
    if way in TOWER_WAYS:
        if descriptions is not None:
            raise DiptychError(f"--descriptions: --way {way} learns from class names")
        if TOWER_WAYS[way].learns == "classes" and has_several_labels(data):
            several_way(way)  # refuses it, with the reason
        from diptych.choose.towers import fit

        with TrainingDisplay(way) as training:
            fit(model, TOWER_WAYS[way], data, folder, shots=shots, seed=seed, budget=budget, settings=given, progress=training)
        tell({"way": way, "data": data}, f"a run; evaluate it: diptych evaluate {folder} --data {data}")
        return
    if budget is not None:
        raise DiptychError(f"--budget: --way {way} works on vectors and needs seconds; budgets are for ways that train a tower")
    if has_several_labels(data):
        several = checked_settings(several_way(way), given)
        with StepsDisplay() as display:
            labelled = adapt_to_labels(
                model, load(model, device), way, data, folder, shots=shots, seed=seed, settings=several,
                descriptions=read_descriptions(descriptions) if descriptions else None, overwrite=overwrite, progress=display,
            )  # fmt: skip
        tell(labelled.about, summary_of_labels(labelled.about))
        return
    settings = checked_settings(way_named(way), given)  # wrong names are refused before anything is loaded
    if not has_classes(data):
        raise DiptychError(f"--way {way} is for classes, and {data} has captions; for these there are {', '.join(MAP_WAYS)}")
    sentences = read_descriptions(descriptions) if descriptions else None
    opened = load(model, device)
    with StepsDisplay() as display:
        adapted = adapt_to_classes(
            model, opened, way, data, folder, shots=shots, seed=seed, settings=settings, descriptions=sentences,
            overwrite=overwrite, progress=display,
        )  # fmt: skip
    (folder / CHECK).unlink(missing_ok=True)  # of a model that was replaced
    found, doubtful = of_adapted(folder)
    unsure = found.share > MOST_DOUBTFUL
    listed = [] if unsure else doubtful
    if listed:
        write_text(folder / CHECK, as_csv(listed))
    tell({**adapted.about, "labels_to_check": None if unsure else len(listed)}, summary(adapted.about))
    if as_json:
        return
    if unsure:
        typer.echo("labels cannot be checked: out of fold, too many pictures are named otherwise for that")
    elif listed:
        typer.echo(f"labels to check: {len(listed)} of {found.used}, in {folder / CHECK}")


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from diptych.choose.maps import MAP_WAYS
    from diptych.choose.talk import CHAT_WAYS
    from diptych.choose.towers import TOWER_WAYS
    from diptych.choose.ways import WAYS

    table = Table("way", "for", "what it does", box=None, header_style="bold")
    known: list[tuple[str, Any]] = [*(("classes", w) for w in WAYS.values()), *(("captions", w) for w in MAP_WAYS.values())]
    known += [(f"{w.learns}, training a tower", w) for w in TOWER_WAYS.values()]
    known += [("conversations, of a model that talks", w) for w in CHAT_WAYS.values()]
    for what, cls in known:
        table.add_row(f"[bold]{cls.name}[/]", what, f"{cls.about}\n[dim]{cls.cite}[/]" if cls.cite else cls.about)
    Console().print(table)
