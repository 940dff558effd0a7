"""``diptych predict``: the class of each picture, in a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.core.errors import DiptychError, counted

MODEL = (
    "A folder that `diptych adapt` wrote; or, with --classes, a model that compares images with texts: `runs/clip`, "
    "`hf:NAME_OR_PATH`, `conse`."
)
ADDRESS = (
    "A folder of pictures, nested or not, without captions; or any data: `csv:table.csv`, `parquet:part-*.parquet`, "
    "`wds:shards/{000..031}.tar`, `classes:my/parts`."
)


def predict(
    model: Annotated[str, typer.Argument(help=MODEL)],
    address: Annotated[str, typer.Argument(help=ADDRESS)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The table to write: .csv, .parquet or .jsonl.")],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of the classes, `fox,owl,hare`, or a file with one a line (or a .json list). Not for adapted models."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the likeliest classes, each with its probability.")] = 3,
    error: Annotated[
        float | None,
        typer.Option(
            help="The share of pictures whose set of classes may miss the true one. Default: 0.1, where there are pictures to "
            "compute it from.",
        ),
    ] = None,
    sets: Annotated[
        str,
        typer.Option(
            help="`lac`: the smallest sets on average; `aps`: larger sets for difficult pictures, smaller ones for easy ones."
        ),
    ] = "lac",
    each_class: Annotated[
        bool, typer.Option("--each-class", help="The error rate holds in each class, also in rare ones, and not on average only.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Pictures with known classes that the model did not learn from, `classes:DIR`, for the error rate. Default: those "
            "that an adapted model kept.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="A part of the data: train, validation, test; `all`: everything.")] = "all",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most this many pictures.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a table that is there already, and unfinished work.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Name the class of each picture: a table with id, class, probability, the next classes, and whether the model is sure.

    The column `set` holds the classes that cannot be excluded at the error rate; a picture is `unsure` unless this is exactly one.
    A model of several labels (`diptych adapt --data labels:…`) gives each picture its `labels`, and a probability for each label.
    Pictures that cannot be read are rows with a `reason`, and the exit status is 1. Interrupted or killed? The same command
    continues; pictures that were added to the folder are added to the table. Examples:

    `diptych predict runs/parts-clip new/ --out table.csv --error 0.05`;
    `diptych predict hf:openai/clip-vit-base-patch32 new/ --out table.csv --classes fox,owl,hare --calibrate classes:known/`
    """
    from diptych.cli.results import print_json
    from diptych.inference.load import load
    from diptych.inference.predict.classifier import classifier_of
    from diptych.inference.predict.conformal import KINDS, Conformal, check_error, too_few
    from diptych.inference.predict.pictures import pictures_of
    from diptych.inference.predict.predict import ENDINGS
    from diptych.inference.predict.predict import predict as run
    from diptych.inference.predict.table import check_place, form_of
    from diptych.inference.several import LabelledModel
    from diptych.inference.several.predict import predict_labels

    kind = next((k for k in KINDS if k == sets), None)  # wrong usage is refused before a model is loaded
    if kind is None:
        raise DiptychError(f"--sets {sets}: expected {' or '.join(KINDS)}")
    if error is not None:
        check_error(error)
    form_of(out, ENDINGS)
    check_place(out)
    pictures = pictures_of(address, split, limit)

    def note(text: str) -> None:
        """A line that is not part of the result."""
        typer.echo(f"note: {text}", err=True)

    loaded = load(model, device)
    if isinstance(loaded, LabelledModel):
        given = {"classes": classes, "error": error, "calibrate": calibrate}
        if named := [name for name, value in given.items() if value is not None]:
            raise DiptychError(f"--{named[0]}: {model} gives any number of labels, by thresholds that it learned; leave it out")
        made = predict_labels(loaded, model, pictures, out, overwrite=overwrite, batch=batch, quiet=json_, note=note)
        if json_:
            print_json({"out": str(out), **made})
        else:
            typer.echo(f"{out}: {counted(made['pictures'], 'picture')}")
        _refuse_broken(made, out)
        return
    classifier = classifier_of(loaded, model, classes, _texts)
    done = run(
        loaded, model, classifier, pictures, out, top=top, error=error, kind=kind, calibrate=calibrate, each_class=each_class,
        overwrite=overwrite, batch=batch, quiet=json_, note=note,
    )  # fmt: skip
    conformal = Conformal.from_dict(done["conformal"]) if done.get("conformal") else None
    if json_:
        print_json({"out": str(out), **done})
    else:
        typer.echo(f"{out}: {counted(done['pictures'], 'picture')}{_sure(done, conformal)}")
    if conformal is not None and (remark := too_few(conformal, classifier.names)):
        note(remark)
    _refuse_broken(done, out)


def _refuse_broken(done: Mapping[str, Any], out: Path) -> None:
    if done["broken"]:
        raise DiptychError(
            f"{counted(done['broken'], 'picture')} of {done['pictures']:,} could not be read: the reasons are in {out}, column "
            "'reason'"
        )


def _sure(done: dict[str, object], conformal: object) -> str:
    from diptych.inference.predict.conformal import Conformal

    if not isinstance(conformal, Conformal) or done["unsure"] is None:  # no sets, or no picture that could be read
        return ""
    each = " in each class" if done["each_class"] else ""
    return (
        f", {done['unsure']} unsure at an error rate of {conformal.error:g}{each} (by {conformal.kind}, from "
        f"{counted(conformal.n, 'calibration picture')})"
    )


def _texts(names: object) -> list[list[str]]:
    """The texts of each class: its name in the templates of zero-shot classification."""
    from diptych.benchmarks.matching.zeroshot import TEMPLATES, prompt
    from diptych.core.sample import class_text

    assert isinstance(names, (list, tuple))
    return [[prompt(template, class_text(name)) for template in TEMPLATES] for name in names]
