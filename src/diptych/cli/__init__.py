"""The command line: each verb in a file, verbs on data in ``data/``, on trained models in ``models/``, on indexes of pictures in
``index/``.

Heavy imports happen inside the verbs, so that --help answers at once.
"""

from __future__ import annotations

import sys

import typer

from diptych.cli import advise, compare, demo, evaluate, metrics, plan, report, study, train
from diptych.cli.choose import adapt, align, choose, sets, soup
from diptych.cli.data import curate, data
from diptych.cli.failures import probe, readout, slices
from diptych.cli.hub import card, push
from diptych.cli.index import index, search, serve
from diptych.cli.models import caption, chat, compose, draw, embed, explain, export, predict
from diptych.cli.start import doctor, greet
from diptych.cli.start.pages import page_of
from diptych.core.errors import DiptychError, Interrupted

HELP = (
    "**Diptych**: choose, train, evaluate and compare vision-language models on your data, under your budget.\n\n"
    "Start with `diptych` alone, which asks what you have, or `diptych demo`, then `diptych data inspect folder:my/photos`, then "
    "`diptych compare clip siglip coca --data folder:my/photos --budget 10m`. "
    "Exit status: 0 done, 1 a problem that you can fix, 2 wrong usage, 130 interrupted and saved."
)
app = typer.Typer(
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback(help=HELP)
def start(context: typer.Context) -> None:
    """Without a verb: the greeting."""
    if context.invoked_subcommand is None:
        greet.greet()


app.add_typer(data.app, name="data")
app.add_typer(curate.app, name="curate")
app.add_typer(metrics.app, name="metrics")
app.command()(train.train)
app.command()(plan.plan)
app.command()(advise.advise)
app.command()(choose.choose)
app.command()(soup.soup)
app.command()(sets.sets)
app.command()(adapt.adapt)
app.command()(align.align)
app.command()(study.study)
app.command(cls=caption.WithExamples)(caption.caption)
app.command()(chat.chat)
app.command()(draw.draw)
app.command()(compose.compose)
app.command()(predict.predict)
app.command()(embed.embed)
app.command()(explain.explain)
app.command()(index.index)
app.command()(search.search)
app.command()(serve.serve)
app.command()(evaluate.evaluate)
app.command()(slices.slices)
app.command()(probe.probe)
app.command()(readout.readout)
app.command()(export.export)
app.command()(card.card)
app.command()(push.push)
app.command()(push.pull)
app.command()(report.report)
app.command()(compare.recipes)
app.command()(compare.compare)
app.command()(demo.demo)
app.command()(doctor.doctor)


def main() -> None:
    """Entry point. Exit status: 0 done, 1 a problem that the user can fix, 2 wrong usage, 130 interrupted and saved."""
    try:
        app()
    except DiptychError as error:
        interrupted = isinstance(error, Interrupted)
        typer.echo(f"{'' if interrupted else 'error: '}{error}", err=True)
        if not interrupted and (page := page_of(error)):
            typer.echo(f"read: docs/{page}", err=True)
        sys.exit(130 if interrupted else 1)
    except OSError as error:
        typer.echo(f"error: {error}", err=True)  # a full disk, a directory that may not be written
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
