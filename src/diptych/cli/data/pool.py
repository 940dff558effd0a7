"""``diptych curate pool``: a synthetic dirty pool to try plans on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pool(
    out: Annotated[Path, typer.Argument(help="The directory to write.")],
    n: Annotated[int, typer.Option("--n", "-n", min=100, help="Rows.")] = 10_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Make a dirty pool with known truth: scenes and sprites with copies, wrong captions, leaks and twenty other planted faults.

    Example: `diptych curate pool runs/pool --n 10000`, then `diptych curate strict --data parquet:runs/pool/pool --out runs/clean`.
    """
    from diptych.core.files import read_json
    from diptych.curation.dirty_pool.pool import FAULTS, write_pool

    write_pool(out, n, seed)
    counts = read_json(out / "pool.json")["faults"]
    typer.echo(f"{out}: {n:,} rows, {n - sum(counts.values()):,} of them without faults")
    typer.echo(", ".join(f"{counts[fault]} {fault}" for fault in FAULTS))
    typer.echo(f"pool: parquet:{out}/pool · evaluation set: parquet:{out}/evaluation · truth: {out}/truth.parquet")
