"""``diptych plan``: what a run will take, before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli.options import BudgetOption, DataOption, JsonOption, SetOption
from diptych.core.errors import DiptychError, counted

if TYPE_CHECKING:
    from diptych.plan import Estimate
    from diptych.plan.machines import Elsewhere

GIB = 2**30


def plan(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name, a YAML file, or a run directory.")] = None,
    data: DataOption = None,
    budget: BudgetOption = None,
    machine: Annotated[
        str | None, typer.Option(help="Another machine: `8x H100 80GB, 400 Gb/s`. Its time is computed, not measured.")
    ] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="The share of its peak that the other machine reaches.")] = 0.35,
    price: Annotated[float | None, typer.Option(min=0, help="Of one of its devices for an hour.")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="How good earlier plans were, against the runs that followed.")] = False,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will take: memory, time, operations, which term limits, and the largest batch that fits.

    Each stage is tried for some seconds at two smaller batch sizes, in processes of their own. Other programs that run at the same
    time make the plan wrong as they make the run slow. A run of the same recipe is compared with its plan: `diptych plan --audit`.
    """
    from dataclasses import asdict

    from diptych.cli.results import print_json
    from diptych.plan.audit import audit as audited
    from diptych.plan.audit import keep

    if audit:
        _show_audit(as_json)
        return
    if recipe is None:
        raise DiptychError("name a recipe: diptych plan clip --data folder:my/photos --budget 10m")
    from diptych.api import with_common
    from diptych.config.recipe import load_recipe
    from diptych.plan import elsewhere, parse_machine, plan_recipe

    other = parse_machine(machine) if machine else None  # a wrong one is refused before anything is tried
    made = load_recipe(recipe, with_common(set_ or [], data, budget))
    estimate = plan_recipe(made, tell=lambda words: typer.echo(words, err=True))
    keep(made, estimate)
    there = elsewhere(estimate, other, mfu=mfu, price=price, sharded=made.sharding == "fsdp") if other else None
    if as_json:
        rows = {"here": {**asdict(estimate), "fits": estimate.fits, "budget": str(estimate.budget)}}
        print_json({**rows, "elsewhere": None if there is None else {**asdict(there), "needed": there.needed}})
        return
    _show(estimate)
    if there:
        _show_elsewhere(there)
    known = audited()
    if known:
        typer.echo(f"\nearlier plans: {known.time:.0%} of {known.runs} within 15 % of the time (diptych plan --audit)")


def _show(e: Estimate) -> None:
    from diptych.config.budget import human

    low, high = e.seconds_range
    typer.echo(f"{e.recipe}, {e.budget}, on this machine:")
    typer.echo(f"  time      {duration(e.seconds)} of training ({duration(low)} to {duration(high)})")
    typer.echo(f"  steps     {e.steps:,.0f}, {human(e.samples)} samples, {human(e.flops)}FLOP")
    free = "" if e.free is None else f" of {e.free / GIB:.1f} GiB free: {'fits' if e.fits else 'DOES NOT FIT'}"
    typer.echo(f"  memory    {e.peak / GIB:.2f} GiB at most{free}")
    for stage in e.stages:
        typer.echo(f"  stage {stage.name}: {stage.parameters / 1e6:.2f} M parameters, {stage.trainable / 1e6:.2f} M learn")
        typer.echo(f"    step    {stage.step:.3g} s for a batch of {stage.batch}: {stage.batch / stage.step:.0f} samples a second")
        typer.echo(f"    loader  {stage.loader:.0f} samples a second alone; {stage.limit} limits")
        if stage.per_sample:
            most = "" if stage.largest is None else f"; a batch of {stage.largest:,} would fit"
            typer.echo(f"    memory  {stage.per_sample / 2**20:.2f} MiB a sample{most}")
    if e.fits is False:
        typer.echo("  remedy: a smaller stages.0.micro_batch has the same gradient in less memory")


def _show_elsewhere(there: Elsewhere) -> None:
    m = there.machine
    typer.echo(
        f"on {m.count} × {m.device}, {m.memory / GIB:.0f} GiB, {m.link:g} Gbit/s (computed, at {there.mfu:.0%} of the peak):"
    )
    cost = "" if there.cost is None else f", {there.cost:,.0f} at that price"
    typer.echo(f"  time      {duration(there.hours * 3600)}, {there.hours * m.count:,.1f} device hours, {there.kwh:,.1f} kWh{cost}")
    step = ", ".join(f"{t.name} {t.seconds * 1000:.3g} ms" for t in there.terms)
    typer.echo(f"  step      {step}; {there.limit} limits")
    memory = ", ".join(f"{what} {held / GIB:.2f}" for what, held in there.memory.items())
    typer.echo(f"  memory    {there.needed / GIB:.1f} GiB a device ({memory}): {'fits' if there.fits else 'DOES NOT FIT'}")
    if there.largest:
        typer.echo(f"            a batch of {there.largest:,} would fit")
    typer.echo(f"  loader    must give what {there.loader_cores:.1f} loaders like the one here give")


def _show_audit(as_json: bool) -> None:
    from dataclasses import asdict

    from diptych.cli.results import print_json
    from diptych.plan.audit import audit as audited

    found = audited()
    if as_json:
        print_json(None if found is None else asdict(found))
        return
    if found is None:
        typer.echo("no run had a plan yet: diptych plan RECIPE, then diptych train RECIPE with the same settings")
        return
    typer.echo(f"{counted(found.runs, 'run')}: time within 15 % in {found.time:.0%}, memory within 10 % in {found.memory:.0%},")
    typer.echo(f"time within the range that was given in {found.covered:.0%}")
    for row in found.rows:
        typer.echo(f"  {row['recipe']:<20} time planned / true {row['seconds']:.2f}, memory {row['peak']:.2f}")


def duration(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            amount = seconds / size
            return f"{amount:.0f} {name}" if name == "min" and amount >= 10 else f"{amount:.1f} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
