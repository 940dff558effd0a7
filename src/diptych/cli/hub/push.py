"""``diptych push`` and ``diptych pull``: exports and curated sets on a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.core.errors import counted


def push(
    directory: Annotated[Path, typer.Argument(help="An export of `diptych export`, or a result of `diptych curate`.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is made if there is none.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it; otherwise it is private.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over other content of that name; its history keeps it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be sent. Needs no token and no network.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send an export or a curated set to the Hugging Face Hub, or to another server with its API (HF_ENDPOINT).

    Exactly the listed files are sent. The token is that of `hf auth login`, or HF_TOKEN. Stopped? The same command goes on.

    `diptych push runs/clip/export/transformers ada/clip --dry-run`, then without --dry-run; elsewhere: `diptych pull hf:ada/clip`.
    """
    from dataclasses import asdict

    from diptych.cli.results import print_json
    from diptych.inference.hub.listing import listing
    from diptych.inference.hub.push import checked, endpoint
    from diptych.inference.hub.push import push as send

    name, files = checked(repo), listing(directory)
    rows = [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in files.files]
    seen = "public: everybody may read it" if public else "private: you alone, and your organisation, may read it"
    if not json_:
        typer.echo(f"{counted(len(rows), 'file')}, {files.size / 1e6:,.1f} MB, to the {files.kind} {name} at {endpoint()} ({seen})")
        for f in files.files:
            typer.echo(f"  {f.size:>13,}  {f.sha256[:12]}  {f.name}")
        for left, why in files.left_out.items():
            typer.echo(f"  {'not sent':>13}  {'':12}  {left} ({why})")
        for note in files.notes:
            typer.echo(f"note: {note}", err=True)
    if dry_run:
        if json_:
            print_json(
                {
                    "repo": name,
                    "kind": files.kind,
                    "public": public,
                    "files": rows,
                    "left_out": files.left_out,
                    "notes": files.notes,
                }
            )
        else:
            typer.echo("nothing was sent (--dry-run)")
        return

    def said(done: int, total: int, following: str) -> None:
        """One line for each group of files."""
        if following:
            typer.echo(f"sending: {done} of {counted(total, 'file')} are there; {following} …", err=True)

    done = send(files, name, public=public, replace=replace, progress=said)
    if json_:
        print_json({**asdict(done), "files": rows, "left_out": files.left_out, "notes": files.notes})
        return
    kept = f", {len(done.kept)} were there" if done.kept else ""
    typer.echo(f"{done.address}: {counted(len(done.sent), 'file')} sent{kept}; {'private' if done.private else 'public'}")
    if done.stay:
        typer.echo(f"note: also in the repository, and not of this directory: {', '.join(done.stay)}", err=True)
    typer.echo(f"fetch it: diptych pull hf:{name}")


def pull(
    address: Annotated[str, typer.Argument(metavar="hf:OWNER/NAME", help="A repository; hf:OWNER/NAME@REVISION for a commit.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory; default: NAME.")] = None,
    kind: Annotated[str, typer.Option(help="model or dataset; default: whichever there is.")] = "",
    revision: Annotated[str, typer.Option(help="A branch, tag or commit.")] = "",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch an export or a curated set from a hub, and check its files against their hashes. Stopped? The same command goes on.

    Models of transformers need no pull: `diptych evaluate hf:openai/clip-vit-base-patch32` fetches by itself.
    """
    from dataclasses import asdict

    from diptych.cli.results import print_json
    from diptych.core.errors import DiptychError, nearest
    from diptych.inference.hub.pull import pull as fetch

    if kind not in ("", "model", "dataset"):
        raise DiptychError(f"--kind {kind}{nearest(kind, ('model', 'dataset'))}")
    done = fetch(address, out, kind, revision)
    if json_:
        print_json({**asdict(done), "path": str(done.path)})
        return
    typer.echo(
        f"{done.path}: {counted(done.files, 'file')} of {done.repo} at {done.revision[:12]}{f'; {done.what}' if done.what else ''}"
    )
    typer.echo(f"use it: {done.use}")
