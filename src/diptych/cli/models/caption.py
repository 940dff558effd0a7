"""``diptych caption``: captions for pictures and clips."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from diptych.cli.models.shown import check_there, clips_of_files, listed, of_files, reads_clips
from diptych.cli.options import DATA, FewerOption
from diptych.core.errors import DiptychError, counted

if TYPE_CHECKING:
    from diptych.core.capabilities import Image

BATCH = 32


def caption(
    run: Annotated[str, typer.Argument(help="A run that writes, `runs/coca`, or another model by its address, `hf:NAME_OR_PATH`.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, clips for a model that reads clips, and folders of them.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help=f"Instead of files. {DATA}")] = None,
    split: Annotated[str, typer.Option(help="The part of --data; `all`: everything.")] = "test",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most this many pictures or clips.")] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            "--example",
            metavar="IMAGE CAPTION",
            help="A picture with its caption, shown before each picture; repeat it for more. For language models.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The greatest length of a text.")] = 32,
    beams: Annotated[int, typer.Option(min=1, help="Beam search with this many hypotheses.")] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="With --beams: higher values favour longer texts; 0: no correction for length.")
    ] = 1.0,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Draw words at random; below 1: closer to the likeliest.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the k likeliest words.")] = None,
    top_p: Annotated[float | None, typer.Option(max=1, help="Sample from the likeliest words with this total probability.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: words that occurred before become less likely.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends a text; it is not part of it.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    fewer: FewerOption = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print one list as JSON.")] = False,
) -> None:
    """Caption pictures, or clips by a model that learned from clips: one line for each, with its name and its text.

    Greedy decoding, unless --beams, --temperature, --top-k or --top-p are given. Unreadable files are reported and left out.
    A clip is a file (.mp4, .webm, .gif …) or a folder of numbered pictures.
    Example: `diptych caption runs/coca photos/ cat.jpg --beams 4`; `diptych caption runs/video-llava clip.mp4`;
    `diptych caption runs/flamingo cat.jpg --example dog.jpg "a dog asleep"`
    """
    if bool(images) == bool(data):
        raise DiptychError("name either image files and folders or --data ADDRESS")
    from diptych.inference.generate import Decoding

    given = {
        "beams": beams,
        "length_penalty": length_penalty,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop or ()),
    }
    plain = Decoding()
    decoding: dict[str, Any] = {k: v for k, v in given.items() if v != getattr(plain, k)}
    if Decoding(max_tokens=max_tokens, **decoding, seed=seed).samples:  # a wrong setting is refused before a model is loaded
        decoding["seed"] = seed
    examples = _examples(example or [])
    check_there(images or [])

    from diptych.cli.results import print_json
    from diptych.inference.fewer.open import address_of
    from diptych.inference.load import load

    model = load(address_of(run, fewer), device)
    if "generate" not in model.capabilities:
        raise DiptychError(f"{run} cannot caption; it can: {', '.join(sorted(model.capabilities))}. Train coca, for one")
    if examples and "examples" not in model.capabilities:
        raise DiptychError(
            f"{run} takes no examples: only a language model reads several images. Train flamingo or frozen, for one"
        )
    if decoding and "decoding" not in model.capabilities:
        raise DiptychError(f"{run} decodes in its own way; leave out {', '.join('--' + k.replace('_', '-') for k in decoding)}")
    if examples:
        decoding["examples"] = examples
    if data:
        pictures = _of_data(data, split, reads_clips(model))
    else:
        pictures = clips_of_files(images or []) if reads_clips(model) else of_files(listed(images or [], run))
    rows: list[dict[str, str]] = []
    done, last_report = 0, time.monotonic()
    pictures = islice(pictures, limit)
    while part := list(islice(pictures, BATCH)):
        read = [(name, picture) for name, picture in part if not isinstance(picture, str)]
        texts = model.generate([picture for _, picture in read], "", max_tokens, **decoding) if read else []
        caption_of = dict(zip([name for name, _ in read], texts, strict=True))
        for name, picture in part:
            if isinstance(picture, str):
                typer.echo(f"{name}: {picture}", err=True)
                rows.append({"image": name, "problem": picture})
                continue
            rows.append({"image": name, "caption": caption_of[name]})
            if not json_:
                typer.echo(f"{name}\t{caption_of[name]}")
        done += len(read)
        if json_ and time.monotonic() - last_report > 5:
            typer.echo(f"{counted(len(rows), 'picture')} …", err=True)
            last_report = time.monotonic()
    if json_:
        print_json(rows)
    if not done:
        raise DiptychError("no picture could be captioned" if rows else f"{data or ', '.join(map(str, images or []))}: no pictures")


class WithExamples(TyperCommand):
    """Reads ``--example IMAGE CAPTION``: an option with two values that may be repeated, which typer does not have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turns each ``--example IMAGE CAPTION`` into two options of one value. Raises BadParameter if one is missing."""
        paired: list[str] = []
        rest = iter(args)
        for argument in rest:
            paired.append(argument)
            if argument == "--":
                break
            if argument == "--example":
                image, caption = next(rest, None), next(rest, None)
                if image is None or caption is None or image.startswith("--") or caption.startswith("--"):
                    raise typer.BadParameter("expected a picture and its caption", param_hint="--example", ctx=ctx)
                paired += [image, "--example", caption]
        return super().parse_args(ctx, [*paired, *rest])


def _examples(given: list[str]) -> list[tuple[Image, str]]:
    """Pictures with their captions, from alternating names and captions."""
    if len(given) % 2:
        raise DiptychError("--example: expected a picture and its caption: --example dog.jpg 'a dog asleep'")
    examples = []
    for (name, picture), caption in zip(of_files([Path(name) for name in given[::2]]), given[1::2], strict=True):
        if isinstance(picture, str):
            raise DiptychError(f"--example {name}: {picture}")
        examples.append((picture, caption))
    return examples


def _of_data(address: str, split: str, of_clips: bool) -> Iterator[tuple[str, Image | str]]:
    from diptych.data.clips import clips_as_images
    from diptych.data.source import BrokenItem
    from diptych.data.sources import open_source

    source = open_source(address)
    fields = getattr(source, "fields", ())
    if "video" in fields and of_clips:
        source = clips_as_images(source)
    elif "video" in fields and "image" not in fields:
        raise DiptychError(f"{address} has clips, and the model reads pictures: train video-llava, for one")
    source = source if split == "all" else source.split(split)
    for index in range(len(source)):
        try:
            sample = source[index]
        except BrokenItem as broken:
            yield broken.problem.item, broken.problem.reason
        else:
            yield sample.id, "has no image" if sample.image is None else sample.image
