"""``diptych index``: pictures with their vectors in a directory that can be searched, brought up to date by the same command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.core.errors import DiptychError, counted

ADDRESS = (
    "A folder of pictures, nested or not, with or without captions; or any data with columns to filter by: `csv:table.csv`, "
    "`parquet:part-*.parquet`, `coco:captions.json`, `packed:DIR`. None: those of the index in --out."
)
BACKGROUND = (
    "Pictures with captions that the cut-off compares with, best those that the model was trained on. Default: a run's training "
    "data, otherwise packaged captions."
)
STORE = (
    "Where vectors are kept: `exact` (files; up to a million), `hnsw` or `ivfpq` (faiss), `lancedb`, `milvus:URL`. Default: exact, "
    "and hnsw beyond a million."
)
SHOWN = 5  # broken pictures that are named


def index(
    addresses: Annotated[list[str] | None, typer.Argument(metavar="[ADDRESS]...", help=ADDRESS)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory of the index.")] = Path("my.index"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="A model with vectors of pictures: `conse` (the default), `runs/clip`, `hf:NAME`, an ONNX export."
        ),
    ] = None,
    store: Annotated[str | None, typer.Option(help=STORE)] = None,
    move: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="Move the vectors of the index to another store, with their ids, and do nothing else."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="At most this many pictures of each address; for data without an end."),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help=BACKGROUND),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Threads that read pictures. Default: a thread for each core.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    broken: Annotated[
        bool, typer.Option("--broken", help="List the pictures that could not be read, and do nothing else.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make an index of pictures, or bring it up to date: only new and changed files are read, renamed ones keep their vectors.

    Interrupted or killed? The same command continues. Pictures that cannot be read are kept with the reason (--broken). Then search
    it with `diptych search`, or on a page with `diptych serve`. Examples:

    `diptych index folder:my/photos --out my.index`; later, after files changed: `diptych index --out my.index`;

    `diptych index csv:products.csv --model runs/clip --out products.index`; `diptych index --out my.index --move hnsw`
    """
    from diptych.index.index import INFO, Index

    there = (out / INFO).is_file()
    if (move is not None or broken) and (addresses or store):
        raise DiptychError(f"{'--move' if move is not None else '--broken'} is about an index that is there: give --out alone")
    if move is not None or broken:
        with Index.open(out) as held:
            _move(held, move, json_) if move is not None else _list_broken(held, json_)
        return
    if not there and not addresses:
        raise DiptychError(f"there is no index at {out}; make one: diptych index folder:my/photos --out {out}")
    loaded, address = loaded_model(out, model, device)
    if there:
        held = Index.open(out, loaded, address)
        _check_same(held, addresses, store, limit)
    else:
        against = background or training_data(address)
        held = Index.create(out, addresses or [], loaded, address, store or "auto", limit=limit, background=against)
    with held:
        _update(held, loaded, jobs, json_)


def loaded_model(path: Path, given: str | None, device: str) -> tuple[Any, str]:
    """The model that was given, or that an index is by, or conse; and its address."""
    from diptych.core.files import read_json_or
    from diptych.index.index import INFO
    from diptych.inference.load import load

    info: dict[str, Any] = read_json_or(path / INFO, {})
    address = given or info.get("stamp", {}).get("model") or "conse"
    try:
        return load(address, device), address
    except DiptychError as error:
        if given is None and info:
            raise DiptychError(f"{path}: its vectors are by {address}, which cannot be loaded ({error}); give --model") from error
        raise


def training_data(address: str) -> str | None:
    """The data that a run of ours was trained on, if they are here and have captions; None for another model."""
    from diptych.data.source import usable_samples
    from diptych.data.sources import open_source
    from diptych.index.cutoff.background import LEAST
    from diptych.training.run_files import RunFiles

    files = RunFiles(Path(address))
    if not files.exists():
        return None
    try:
        data = files.recipe().data.train
        shown = [s for s in usable_samples(open_source(data), LEAST) if s.image is not None and s.captions]
        return data if len(shown) == LEAST else None
    except DiptychError:
        return None


def _check_same(held: Any, addresses: list[str] | None, store: str | None, limit: int | None) -> None:
    from diptych.index.stores import parse_store
    from diptych.index.updating.scan import absolute

    wanted = [absolute(a) for a in addresses or ()]
    if wanted and wanted != held.addresses:
        raise DiptychError(
            f"{held.path}: is an index of {', '.join(held.addresses)}, not of {', '.join(wanted)}; choose another --out, or leave "
            "the address out"
        )
    info = held.info["store"]
    if store is not None and store != "auto" and parse_store(store)[0] != info["kind"]:
        raise DiptychError(f"{held.path}: its vectors are in a store of kind {info['kind']}; move them first: --move {store}")
    if limit is not None and limit != held.limit:
        raise DiptychError(f"{held.path}: was made with {_limit(held.limit)}, not with --limit {limit}; choose another --out")


class Bar:
    """A bar that appears with the first progress, and begins with what is done already."""

    def __init__(self, title: str, unit: str, quiet: bool = False):
        self.title, self.unit, self.quiet = title, unit, quiet
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        """done, of how many."""
        from diptych.core.progress import CountDisplay

        if self.bar is None:
            self.bar = CountDisplay(self.title, total, done, unit=self.unit, disable=self.quiet)
            self.bar.__enter__()
        self.bar(done)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.__exit__()


def _limit(limit: int | None) -> str:
    return "no --limit" if limit is None else f"--limit {limit}"


def _update(held: Any, model: Any, jobs: int | None, json_: bool) -> None:
    from dataclasses import asdict

    from diptych.cli.results import print_json

    pictures, graph = Bar("indexing", "pictures", json_), Bar("making the graph", "vectors", json_)
    try:
        changes = held.update(model, pictures, jobs, graph)
    finally:
        pictures.close()
        graph.close()
    recall = held.info["store"].get("recall")
    if json_:
        print_json({"out": str(held.path), "pictures": len(held), **asdict(changes), "recall": recall})
        return
    counts = {name: getattr(changes, name) for name in ("new", "changed", "renamed", "deleted", "unchanged")}
    done = ", ".join(f"{n:,} {name}" for name, n in counts.items() if n) or "nothing"
    typer.echo(f"{held.path}: {counted(len(held), 'picture')} ({done}), by {held.info['stamp']['model']}")
    if changes.broken:
        named = "".join(f"\n  {name}: {reason}" for name, reason in list(changes.broken.items())[:SHOWN])
        more = "\n  …" if len(changes.broken) > SHOWN else ""
        note = f"note: {counted(len(changes.broken), 'picture')} could not be read; all of them: --broken{named}{more}"
        typer.echo(note, err=True)
    if recall:
        typer.echo(
            f"store {recall['kind']}: recall@{recall['k']} {recall['recall']:.3f} against exact search, {recall['filtered']:.3f} "
            f"among a hundredth, {recall.get('alike', 1.0):.3f} among a half that is alike; {1000 * recall['median']:.1f} ms a "
            "search"
        )
    typer.echo(f'search: diptych search {held.path} "a dog on a beach"')


def _move(held: Any, store: str, json_: bool) -> None:
    from dataclasses import asdict

    from diptych.cli.results import print_json

    copied, graph = Bar("moving", "vectors", json_), Bar("making the graph", "vectors", json_)
    try:
        moved = held.move(store, progress=copied, graph=graph)
    finally:
        copied.close()
        graph.close()
    info = held.info["store"]
    if json_:
        print_json({"out": str(held.path), "store": info["kind"], **asdict(moved), "recall": info.get("recall")})
    else:
        typer.echo(f"{held.path}: {moved}; the store is {info['kind']} now")


def _list_broken(held: Any, json_: bool) -> None:
    from diptych.cli.results import print_json

    found = held.broken()
    if json_:
        print_json({"broken": found})
    else:
        for name, reason in found.items():
            typer.echo(f"{name}: {reason}")
        typer.echo(f"{counted(len(found), 'picture')} of {len(held) + len(found):,} could not be read", err=True)
