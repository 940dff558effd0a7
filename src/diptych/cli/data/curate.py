"""``diptych curate``: from a raw pool to data worth training on, with a reason for every removal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from diptych.cli.data.pool import pool
from diptych.cli.options import DATA
from diptych.cli.results import print_json
from diptych.core.errors import counted
from diptych.core.progress import live

if TYPE_CHECKING:
    from diptych.curation.diff import Diff
    from diptych.curation.explain import Explanation

OUT = Path("runs/curate")
ResultOption = Annotated[Path, typer.Option("--out", "-o", help="The directory of the result.")]


class PlanFirst(TyperGroup):
    """``curate PLAN …`` is ``curate run PLAN …``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts ``run`` before arguments that begin with neither a command nor a help option."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=PlanFirst,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="From a raw pool to training data, with a reason for every removal.\n\n"
    "`diptych curate own-photos --data folder:my/photos --out runs/photos` scores every row, decides, writes what is kept and a "
    "report; `diptych curate plans` lists the presets.",
)
app.command()(pool)


@app.command()
def run(
    plan: Annotated[str, typer.Argument(help="A preset's name (see `diptych curate plans`), a YAML file, or a result to repeat.")],
    data: Annotated[str, typer.Option("--data", "-d", help=DATA)],
    out: ResultOption = OUT,
    runner: Annotated[
        str, typer.Option(help="local processes; ray (starts one, or joins RAY_ADDRESS); inline: this process.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Default: one for each core.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Override a key: `--set output.format=wds --set steps.image_size.of=kept`."),
    ] = None,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Score, decide, write. Interrupted or killed? The same command resumes. Done? It does nothing.

    `diptych curate datacomp-basic --data "wds:shards/{000..031}.tar" --out runs/basic`, then
    `diptych train clip --data "parquet:runs/basic/data/*.parquet"`.
    """
    from diptych.curation import curate
    from diptych.report.curation import build_report

    with _Display() as display:
        done = curate(plan, data, out, runner=runner, workers=workers, overrides=set_, progress=display)
    page = out / "report.html"
    if report and (done.fresh or not page.is_file()):
        build_report(out)
    if json_:
        print_json(done.manifest)
        return
    manifest = done.manifest
    typer.echo(
        f"{out}: {manifest['kept']:,} of {counted(manifest['rows'], 'row')} kept"
        + ("" if done.fresh else " (nothing to do: the result exists)")
    )
    for reason, count in manifest["reasons"].items():
        typer.echo(f"  {count:>9,}  {reason}")
    if manifest["kept"]:
        typer.echo(f"train on it: diptych train clip --data '{done.address}'")
    if page.is_file():
        typer.echo(f"report: {page}")


@app.command()
def plans() -> None:
    """List the presets."""
    from rich.console import Console
    from rich.table import Table

    from diptych.curation.plan import load_plan, plan_names

    table = Table("plan", "what it is", "steps", box=None, header_style="bold")
    for name in plan_names():
        plan = load_plan(name)
        steps = [s if isinstance(s, str) else next(iter(s)) for s in plan.steps]
        table.add_row(
            f"[bold]{name}[/]", f"{plan.about}\n[dim]{plan.cite}[/]", ", ".join(dict.fromkeys(s for s in steps if s != "keep"))
        )
    Console().print(table)


@app.command()
def explain(
    identity: Annotated[str, typer.Argument(metavar="ID", help="A row's id, or its end: `000285.jpg`.")],
    out: ResultOption = OUT,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain why a row was kept or dropped: by which rule and threshold, because of which duplicate."""
    from diptych.curation.explain import Result
    from diptych.curation.explain import explain as explain_row

    explanations = explain_row(Result(out), identity)
    if json_:
        print_json(explanations)
        return
    for explanation in explanations:
        _print_explanation(explanation)


def _print_explanation(e: Explanation) -> None:
    typer.echo(f"{e.id}: {'kept' if e.kept else f'dropped: {e.reason}'}")
    if e.text:
        typer.echo(f"  “{e.text}”")
    for error in e.errors:
        typer.echo(f"  could not be scored or used: {error}")
    for v in e.verdicts:
        value = "no value" if v.value is None and v.twin is None else _short(v.value)
        threshold = f" (threshold {v.threshold:.6g})" if v.threshold is not None else ""
        sign = {"keeps": "✓", "removes": "✗"}.get(v.says, "·")
        if v.twin:
            state = "kept" if v.twin["kept"] else f"dropped: {v.twin['reason']}"
            value = f"{v.twin['id']} ({state}) “{v.twin['text']}”"
        elif v.says == "not asked":
            value = f"{value}; not applied, since the row was removed before"
        elif v.rule.startswith("no "):
            value = "none"
        typer.echo(f"  {sign} {v.rule}{threshold}: {value}")
    shown = {v.rule.split(" ")[0] for v in e.verdicts}
    rest = {k: v for k, v in e.scores.items() if k not in shown and v is not None}
    if rest:
        typer.echo("  also: " + ", ".join(f"{k} {_short(v)}" for k, v in rest.items()))
    if e.pointed_at_by:
        more = f" and {len(e.pointed_at_by) - 5} more" if len(e.pointed_at_by) > 5 else ""
        typer.echo(f"  removed as its duplicates: {', '.join(e.pointed_at_by[:5])}{more}")


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) < 100 else text[:97] + "…"


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A result of `diptych curate`.")] = OUT) -> None:
    """Write the report again: funnel, histograms with thresholds, examples, duplicate groups, concepts, cost."""
    from diptych.report.curation import build_report

    typer.echo(f"report: {build_report(directory)}")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A result.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what changed between two results, and why."""
    from diptych.curation.diff import diff as compare
    from diptych.curation.explain import Result

    difference = compare(Result(a), Result(b))
    if json_:
        print_json(difference)
        return
    _print_diff(difference, a, b)


def _print_diff(d: Diff, a: Path, b: Path) -> None:
    typer.echo(f"rows {d.rows[0]:,} → {d.rows[1]:,}, kept {d.kept[0]:,} → {d.kept[1]:,}")
    for line in d.plan or ["the plans are the same"]:
        typer.echo(f"  {line}")
    for number, path, where in ((d.only[0], a, "first"), (d.only[1], b, "second")):
        if number:
            typer.echo(f"only in the {where} ({path}): {counted(number, 'row')}")
    for title, counts, prefix in (
        ("kept before, dropped now", d.dropped, "now dropped: "),
        ("dropped before, kept now", d.gained, "now kept, was: "),
        ("dropped in both, for another reason", d.moved, ""),
    ):
        if counts:
            typer.echo(f"{title}: {sum(counts.values()):,}")
        for reason, count in counts.items():
            examples = d.examples.get(prefix + reason, [])
            typer.echo(f"  {count:>9,}  {reason}{'  such as ' + ', '.join(examples[:3]) if examples and prefix else ''}")
    if not (d.dropped or d.gained or d.moved or any(d.only)):
        typer.echo("no row changed")


class _Display:
    """Shows progress: a bar for each phase on a terminal, a line for each phase in a log."""

    def __enter__(self) -> _Display:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.live = live(console)
        words = TextColumn("{task.description}")
        self.progress = Progress(
            words, BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
        )
        self.bars: dict[str, Any] = {}
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self.live:
            self.progress.stop()

    def __call__(self, phase: str, done: int, pieces: int) -> None:
        label = phase if len(phase) < 60 else phase[:57] + "…"
        if self.live:
            if phase not in self.bars:
                self.bars[phase] = self.progress.add_task(label, total=pieces)
            self.progress.update(self.bars[phase], completed=done)
        elif done == 0:
            print(f"{label} ({pieces} {'piece' if pieces == 1 else 'pieces'}) …", file=sys.stderr, flush=True)
