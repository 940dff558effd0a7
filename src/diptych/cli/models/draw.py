"""``diptych draw``: pictures for texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diptych.core.errors import DiptychError, counted


def draw(
    run: Annotated[str, typer.Argument(help="A run that draws: `runs/chameleon`, `runs/bayes-ar`.")],
    texts: Annotated[list[str] | None, typer.Argument(help="What to draw, one picture for each.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory for the pictures and sheet.png.")] = Path("drawings"),
    file: Annotated[Path | None, typer.Option("--file", "-f", help="More texts, one on each line.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Pictures of each text.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: the likeliest code each time; 1: as learned; above 1: more random.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Only among the k likeliest codes; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Only among the likeliest codes with this total probability.")
    ] = 1.0,
    guidance: Annotated[
        float, typer.Option(min=0, help="How strongly the text is followed (classifier-free guidance); 1: as learned.")
    ] = 3.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the list of pictures as JSON.")] = False,
) -> None:
    """Draw texts as PNG files, and all of them on one sheet.

    Example: `diptych draw runs/chameleon "two red hearts" "a blue fox above a green key" -n 4 --out drawings`
    """
    wanted = [*(texts or []), *_lines(file)]
    if not wanted:
        raise DiptychError('name the texts to draw: diptych draw RUN "two red hearts", or --file texts.txt')
    from PIL import Image

    from diptych.cli.results import print_json
    from diptych.core.files import write_atomically, write_json
    from diptych.core.sample import Sample, captioned
    from diptych.data.sheet import contact_sheet
    from diptych.inference.load import load

    model = load(run, device)
    if "draw" not in model.capabilities:
        raise DiptychError(f"{run} cannot draw; it can: {', '.join(sorted(model.capabilities))}. Train chameleon or bayes-ar")
    every = [text for text in wanted for _ in range(samples)]
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance, "seed": seed}
    pictures = model.draw(every, **how)  # type: ignore[attr-defined]
    names = [f"{i:04d}.png" for i in range(len(every))]
    for name, picture in zip(names, pictures, strict=True):
        write_atomically(out / name, lambda path, p=picture: Image.fromarray(p).save(path, "PNG"))  # type: ignore[misc]
    shown = [
        Sample(name, image=picture, text=captioned([text])) for name, picture, text in zip(names, pictures, every, strict=True)
    ]
    sheet = contact_sheet(shown, out / "sheet.png", columns=samples if samples > 1 else 4, side=192)
    rows = [{"picture": name, "text": text} for name, text in zip(names, every, strict=True)]
    write_json(out / "drawings.json", {"model": model.name, **how, "drawings": rows})
    if json_:
        print_json([{**row, "picture": str(out / row["picture"])} for row in rows])
    else:
        typer.echo(f"{counted(len(every), 'picture')} in {out}; all on {sheet}")


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    if not file.is_file():
        raise DiptychError(f"--file {file}: no such file; expected texts, one per line")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
