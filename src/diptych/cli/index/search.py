"""``diptych search``: the pictures of an index that fit words, pictures, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.core.errors import DiptychError, counted, nearest

LIMITS = ("min_width", "max_width", "min_height", "max_height", "min_bytes", "max_bytes")
WHERE = (
    "A condition, as often as you like: `folder=a/b` (and below it), `words=dog` (in the captions), `min_width=800`, or a column "
    "of the data: `label=cat`, `label=cat|dog`, `price=1..20`, `price=10..`."
)


def search(
    index: Annotated[Path, typer.Argument(help="The directory that `diptych index` made.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORDS]...", help="What to search for; several texts count together.")
    ] = None,
    not_: Annotated[
        list[str] | None, typer.Option("--not", metavar="WORDS", help="What is not wanted; as often as you like.")
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PICTURE", help="A picture to be similar to: a file, or the id of a picture of the index (`--like 17`)."
        ),
    ] = None,
    unlike: Annotated[list[str] | None, typer.Option(metavar="PICTURE", help="A picture not to be similar to.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="Begin after so many.")] = 0,
    where: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=WHERE)] = None,
    since: Annotated[str | None, typer.Option(help="Taken from then on: 2024, 2024-05 or 2024-05-31.")] = None,
    until: Annotated[str | None, typer.Option(help="Taken until then, that day, month or year included.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Near-duplicates as hits of their own, and hits even where there seems to be nothing.")
    ] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default: the model that the index was made with.")] = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A second model that puts the first 20 hits in order and decides whether there is anything: a run that scores "
            "pairs (`runs/blip`, `runs/coca`, `runs/filip`), or one with better vectors.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    sheet: Annotated[Path | None, typer.Option(help="Also draw the hits, in one picture: hits.png.")] = None,
    select: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keep the hits as a selection, an address for train and curate.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Search an index by words, by pictures, or by both, among all pictures or those that fulfil conditions.

    Without words or pictures: those that fulfil the conditions, the latest first. The score is the cosine with the query; the
    relevance, where there is one, is 0 for a hit like those of any other query, and 1 for one that no other query has. Examples:

    `diptych search my.index "a dog on a beach" --not drawing -n 10`; `diptych search my.index --like cat.jpg "at night"`;

    `diptych search my.index "red shoes" --where label=sandal --where price=..50 --since 2024 --json`;

    `diptych search my.index "a key" --rerank runs/blip`
    """
    from diptych.cli.index.index import loaded_model
    from diptych.index.index import Index, Query

    with Index.open(index) as held:
        wanted, ids = _pictures(like)
        unwanted, other = _pictures(unlike)
        texts = tuple(word for word in words or () if word.strip())
        query = Query(texts, wanted, ids, tuple(not_ or ()), unwanted, other)
        filters = filters_of(where or (), held.columns() if where else ())
        filters |= {name: value for name, value in (("since", since), ("until", until)) if value}
        held.where(filters)  # a wrong one is refused before a model is loaded
        loaded: Any = None
        if texts or wanted or query.without or unwanted or ids or other:
            loaded, address = loaded_model(index, model, device)
            held.check(loaded, address)
        second = None if rerank is None else reranker_of(rerank, held, device)
        answer = held.search(query, loaded, n, offset, filters or None, fold=not every, rerank=second)
        hits = () if answer.nothing and not every else answer.hits
        kept = held.select(select, [hit.id for hit in hits]) if select is not None and hits else None
        if sheet is not None and hits:
            _draw(held, hits, sheet, " ".join(texts))
        _print(held, answer, hits, kept, json_)


def _pictures(given: list[str] | None) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Pixels of files, of clips [frames, height, width, 3], and ids."""
    from diptych.cli.models.shown import is_clip
    from diptych.data.image import as_pixels
    from diptych.data.source import BrokenItem
    from diptych.data.videos.single import read_clip

    files: list[Any] = []
    ids: list[int] = []
    for text in given or ():
        if text.isdigit() and not Path(text).exists():
            ids.append(int(text))
        elif not Path(text).is_file():
            raise DiptychError(f"--like {text}: there is no such file, and no picture has such an id")
        elif is_clip(Path(text)):
            try:
                files.append(read_clip(Path(text)))
            except BrokenItem as broken:
                raise DiptychError(f"--like {text}: {broken.problem.reason}") from None
        else:
            files.append(as_pixels(text, text))
    return tuple(files), tuple(ids)


def reranker_of(address: str, held: Any, device: str) -> Any:
    """A second model, compared with its own training data, or with the data that the index is compared with. DiptychError if it
    cannot score.
    """
    from diptych.cli.index.index import training_data
    from diptych.index.cutoff.rerank import Reranker
    from diptych.inference.onnx.open import open_model

    return Reranker.of(open_model(address, device), training_data(address) or held.info.get("background"))


def filters_of(given: Any, columns: Any) -> dict[str, Any]:
    """The filters that ``--where NAME=VALUE`` mean. DiptychError for a name that is neither a fact nor a column."""
    filters: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for text in given:
        name, mark, value = text.partition("=")
        name = name.strip()
        if not mark or not name:
            raise DiptychError(f"--where {text}: expected NAME=VALUE, such as folder=a/b or label=cat")
        if name in columns:  # a column of the data before a fact of the picture
            own[name] = _value(value.strip())
        elif name in ("folder", "words", "address", *LIMITS):
            filters[name] = value.strip()
        else:
            known = [*columns, "folder", "words", "address", *LIMITS]
            raise DiptychError(f"--where {text}: there is no column '{name}'{nearest(name, known)}")
    return {**filters, **({"columns": own} if own else {})}


def _value(text: str) -> Any:
    low, mark, high = text.partition("..")
    if mark and (low or high) and all(not side or isinstance(_plain(side), int | float) for side in (low, high)):
        return {name: _plain(side) for name, side in (("min", low), ("max", high)) if side}
    return [part.strip() for part in text.split("|")] if "|" in text else text


def _plain(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _print(held: Any, answer: Any, hits: Any, kept: str | None, json_: bool) -> None:
    from diptych.cli.results import print_json

    if json_:
        rows = [
            {
                "id": hit.id, "score": hit.score, "relevance": hit.relevance, "name": hit.picture.name,
                "path": _path(held, hit.picture),
                "width": hit.picture.width, "height": hit.picture.height, "date": hit.picture.date, "caption": hit.picture.caption,
                "columns": dict(hit.picture.columns), "duplicates": list(hit.duplicates),
            }
            for hit in hits
        ]  # fmt: skip
        facts = {"nothing": answer.nothing, "reason": answer.reason, "total": answer.total, "reranked": answer.reranked}
        print_json({"hits": rows, **facts, "seconds": round(answer.seconds, 4), "selection": kept})
        return
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from diptych.cli.results import WIDE

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    if answer.nothing:
        more = "" if hits else ". The nearest all the same: --all"
        console.print(f"{answer.reason}{more}", markup=False, highlight=False)
        if not hits:
            return
    if not hits:
        console.print("no picture fulfils the conditions" if not answer.total else "no further pictures")
        return
    relevant = any(hit.relevance is not None for hit in hits)
    scored = any(hit.score for hit in hits)
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ["id", *(["score"] if scored else []), *(["relevance"] if relevant else []), "picture", "caption"]
    for name in names:
        right = name in ("id", "score", "relevance")
        table.add_column(
            name,
            justify="right" if right else "left",
            overflow="fold" if name == "picture" else "ellipsis",
            no_wrap=name != "picture",
        )
    for hit in hits:
        more = f" (+{len(hit.duplicates)})" if hit.duplicates else ""
        values = [str(hit.id)]
        values += [f"{hit.score:.3f}"] if scored else []
        values += ["—" if hit.relevance is None else f"{hit.relevance:.2f}"] if relevant else []
        table.add_row(*values, escape(_path(held, hit.picture) + more), escape(hit.picture.caption.partition("\n")[0]))
    console.print(table)
    line = f"{len(hits)} of {counted(answer.total, 'picture')}, {1000 * answer.seconds:.0f} ms"
    console.print(line + (f"; kept as {kept}" if kept else ""), style="dim", markup=False, highlight=False)


def _path(held: Any, picture: Any) -> str:
    """Where the file of a picture is; its name, if it has none."""
    from diptych.index.updating.scan import shown_path

    return shown_path(picture.address, picture.name)


def _draw(held: Any, hits: Any, sheet: Path, title: str) -> None:
    from diptych.core.sample import Sample, captioned
    from diptych.data.sheet import contact_sheet

    samples = []
    for hit in hits:
        try:
            pixels = held.read(hit.id)
        except DiptychError as error:
            typer.echo(f"note: {error}", err=True)
            continue
        samples.append(Sample(hit.picture.name, image=pixels, text=captioned([f"{hit.score:.3f} · {hit.picture.name}"])))
    if samples:
        contact_sheet(samples, sheet, title=title)
