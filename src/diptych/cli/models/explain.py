"""``diptych explain``: where in a picture a model sees a text, and whether its map can be believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.core.errors import DiptychError, counted

if TYPE_CHECKING:
    from diptych.benchmarks.maps.verdict import Verdict
    from diptych.inference.maps.base import Maps
    from diptych.report.pages.maps import Shown

ITEMS = 80
METHOD = "A map by name, as often as you like; `all`: every one that the model has."
TEXTS = 'What to look for: "a red fish" "a star". Without one, a model that writes explains its own caption.'


def explain(
    model: Annotated[str, typer.Argument(help="A model that scores texts: `runs/clip`, `conse`, `hf:NAME_OR_PATH`.")],
    picture: Annotated[
        str | None, typer.Argument(help="A picture, or a folder of pictures. Without one: the verdicts alone.")
    ] = None,
    texts: Annotated[list[str] | None, typer.Argument(help=TEXTS)] = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help=METHOD)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write, .html; or .png: the first map alone.")] = Path(
        "explain.html"
    ),
    items: Annotated[
        int, typer.Option(min=2, help="Phrases of held-out scenes on which a map is judged, once for its weights.")
    ] = ITEMS,
    verdict: Annotated[bool, typer.Option("--verdict/--no-verdict", help="Judge each map, or only draw it.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Judge again, even if a verdict is kept.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many pictures of a folder.")] = 24,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print verdicts, boxes and scores as JSON.")] = False,
) -> None:
    """Draw which parts of a picture a model's score for a text depends on, with a verdict: a map that does not win against a blob
    in the middle, a random map, scrambled weights and a wrong caption on scenes with exact masks is called *not faithful*.
    Examples:

    `diptych explain runs/clip fish.jpg "a red fish" "a star"`;
    `diptych explain conse photos/ "a dog" --method all`;
    `diptych explain runs/llava photo.jpg` (its own caption, word by word)
    """
    from diptych.benchmarks.maps.saved import verdict_on
    from diptych.cli.results import print_json
    from diptych.inference.load import load
    from diptych.inference.maps.open import maps_of
    from diptych.report.pages.maps import UNJUDGED, maps_page

    if out.suffix not in (".html", ".png"):
        raise DiptychError(f"--out {out}: expected a name that ends in .html or .png")
    opened = load(model, device)
    maps = maps_of(opened)
    names = [maps.method(m) for m in (maps.methods if method == ["all"] else method or [""])]
    pictures = _pictures(picture, limit) if picture else []
    judged: dict[str, Verdict] = {}
    for name in names if verdict else []:
        judged[name] = verdict_on(model, opened, maps, name, items, again=again, note=note)
    shown = _shown(opened, maps, names, pictures, texts or [], judged)
    if shown and out.suffix == ".png":
        _write_png(shown[0], out)
    elif shown:
        maps_page(out, maps.name, shown, list(judged.values()))
    written = str(out) if shown else None
    if json_:
        found = [{"picture": s.picture, "text": s.text, "method": s.method, "box": s.box, "score": s.score} for s in shown]
        print_json({"model": maps.name, "verdicts": [v.as_dict() for v in judged.values()], "maps": found, "out": written})
        return
    for name in names:
        typer.echo(f"{name}: {judged[name].words() if name in judged else UNJUDGED}")
    for s in shown:
        place = "left {:.0f}, top {:.0f}, right {:.0f}, bottom {:.0f}".format(*s.box) if s.box else "no place stands out"
        typer.echo(f"{s.picture}: {s.text!r} ({s.method}, score {s.score:.3f}): {place}")
    if written:
        typer.echo(f"{written}: {counted(len(shown), 'map')}")


def note(text: str) -> None:
    """Print a line that is not part of the result."""
    typer.echo(f"note: {text}", err=True)


def _pictures(address: str, limit: int, note: Callable[[str], None] = note) -> list[tuple[str, Any]]:
    """(name, pixels) of a picture, or of those of a folder. DiptychError if none can be read."""
    from diptych.data.image import as_pixels
    from diptych.inference.predict.pictures import pictures_of

    if Path(address).is_file():
        return [(Path(address).name, as_pixels(address, address))]
    found = pictures_of(address, limit=limit)
    read = [found.read(i) for i in range(len(found))]
    for broken in (p for p in read if p.image is None):
        note(f"{broken.id}: {broken.reason}")
    pictures = [(p.id, p.image) for p in read if p.image is not None]
    if not pictures:
        raise DiptychError(f"{address}: no picture could be read")
    return pictures


def _shown(
    opened: Any, maps: Maps, names: list[str], pictures: list[tuple[str, Any]], texts: list[str], judged: dict[str, Verdict]
) -> list[Shown]:
    """Every map of every picture."""
    from diptych.inference.locating.maps import located_by_maps
    from diptych.report.pages.maps import Shown

    shown: list[Shown] = []
    for name, image in pictures:
        if not texts:
            shown += _of_caption(opened, name, image)
        for method in names if texts else []:
            for text, at in zip(texts, located_by_maps(maps, [image] * len(texts), texts, method), strict=True):
                assert at.heat is not None
                shown.append(Shown(name, image, text, method, at.heat, at.box, at.score, judged.get(method)))
    return shown


def _of_caption(opened: Any, name: str, image: Any) -> list[Shown]:
    """The maps of the words that the model itself writes about a picture."""
    from diptych.inference.locating.run import Locates
    from diptych.inference.maps.answers import in_words, sees_patches, words_of_answer
    from diptych.inference.maps.geometry import box_of, placed
    from diptych.report.pages.maps import Shown

    if not isinstance(opened, Locates) or "generate" not in opened.capabilities or not sees_patches(opened):
        raise DiptychError(f"say what to look for: diptych explain … {name} 'a red fish'")
    (caption,) = opened.generate([image])  # type: ignore[attr-defined]
    note(f"{name}: the model writes {str(caption)!r}")
    height, width = image.shape[:2]
    found = []
    for word in in_words(words_of_answer(opened, image, str(caption))):
        heat = placed(word.grid, height, width, opened.maps.view(height, width))
        found.append(Shown(name, image, word.text, "answer", heat, box_of(heat), word.logprob, None))
    return found


def _write_png(shown: Shown, out: Path) -> None:
    """The first map over its picture."""
    from PIL import Image

    from diptych.core.files import write_atomically
    from diptych.report.drawing.heat import overlay

    drawn = Image.fromarray(overlay(shown.image, shown.heat, shown.box))
    write_atomically(out, lambda path: drawn.save(path, "PNG"))
