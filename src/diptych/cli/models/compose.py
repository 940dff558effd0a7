"""``diptych compose``: what follows a document of texts and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.core.errors import DiptychError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def compose(
    run: Annotated[str, typer.Argument(help="A run that learned documents: `runs/chameleon`.")],
    parts: Annotated[list[str] | None, typer.Argument(help="The document so far: texts and files of pictures, in order.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory for document.md and the pictures.")] = Path("document"),
    following: Annotated[
        str, typer.Option(help="text or image: only the next one; any: texts and pictures as the model chooses.")
    ] = "any",
    most: Annotated[int, typer.Option(min=1, help="The greatest number of texts and pictures.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="The greatest length of a text in tokens.")] = 32,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: the likeliest word or code each time; 1: as learned; above 1: more random.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Only among the k likeliest words or codes; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Only among the likeliest words or codes with this total probability.")
    ] = 1.0,
    guidance: Annotated[
        float, typer.Option(min=0, help="How strongly pictures follow the document (classifier-free guidance); 1: as learned.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print what follows as JSON.")] = False,
) -> None:
    """Continue a document of texts and pictures, and write the whole as Markdown with PNG files.

    Example: `diptych compose runs/chameleon "here is a red fish." fish.png --most 4 --out album`
    """
    if following not in ("any", "text", "image"):
        raise DiptychError(f"--following {following}: expected any, text or image")
    from PIL import Image

    from diptych.cli.results import print_json
    from diptych.core.files import write_atomically, write_text
    from diptych.data.image import as_pixels
    from diptych.inference.load import load

    known: list[Any] = [as_pixels(Path(part), part) if _is_picture(part) else part for part in parts or []]
    model = load(run, device)
    if "compose" not in model.capabilities:
        able = ", ".join(sorted(model.capabilities))
        raise DiptychError(f"{run} cannot continue documents; it can: {able}. Train chameleon")
    how: dict[str, Any] = {"most": most, "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    (found,) = model.compose(  # type: ignore[attr-defined]
        [known], following=None if following == "any" else following, guidance=guidance, seed=seed, **how
    )
    lines, rows = [], []
    for i, part in enumerate([*known, *found]):
        if isinstance(part, str):
            line, row = part, {"text": part}
        else:
            name = f"{i:04d}.png"
            write_atomically(out / name, lambda path, p=part: Image.fromarray(p).save(path, "PNG"))  # type: ignore[misc]
            line, row = f"![]({name})", {"picture": str(out / name)}
        lines.append(line)
        rows += [row] if i >= len(known) else []
    write_text(out / "document.md", "\n\n".join(lines) + "\n")
    if json_:
        print_json(rows)
    else:
        for row in rows:
            typer.echo(row.get("text", row.get("picture", "")))
        typer.echo(f"the whole document: {out / 'document.md'}")


def _is_picture(part: str) -> bool:
    """Whether a part is the file of a picture: by its ending; such a file has to exist."""
    if not part.lower().endswith(PICTURES) or (" " in part.strip() and not Path(part).exists()):
        return False
    if not Path(part).is_file():
        raise DiptychError(f"{part}: no such file; give texts, and files of pictures that exist")
    return True
