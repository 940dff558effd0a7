"""``diptych chat``: a conversation with a model about pictures and clips."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.models.shown import check_there, conversed
from diptych.cli.options import FewerOption
from diptych.core.errors import DiptychError


def chat(
    run: Annotated[
        str,
        typer.Argument(help="A run that learned from conversations, `runs/llava-instruct`, or a model by its address, `hf:NAME`."),
    ],
    images: Annotated[list[Path], typer.Argument(help="The pictures and clips to talk about, in this order.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask this, print the answer, and end.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message before the first question.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The greatest length of an answer.")] = 128,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Draw words at random; below 1: closer to the likeliest.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(max=1, help="Draw among the likeliest words with this total probability.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    fewer: FewerOption = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    frames: Annotated[
        int,
        typer.Option(min=1, max=64, help="Of a clip, for a model of pictures: this many frames, evenly spread, each a picture."),
    ] = 8,
    json_: Annotated[bool, typer.Option("--json", help="With --prompt: print question and answer as JSON.")] = False,
) -> None:
    """Talk with a model about pictures and clips: one question per line; an empty line or Ctrl-D ends.

    Each answer takes the conversation so far into account. A clip is a file (.mp4, .webm, .gif …) or a folder of numbered pictures;
    a model that learned from pictures is shown its frames, one after the other, as conversations about clips are trained.
    Example: `diptych chat runs/llava-instruct cat.jpg --prompt "what colour is the cat?"`;
    `diptych chat runs/llava-instruct clip.mp4 --frames 4`
    """
    from diptych.core.sample import Turn

    if json_ and prompt is None:
        raise DiptychError("--json needs --prompt: a conversation is read line by line")
    check_there(images)

    from diptych.cli.results import print_json
    from diptych.inference.fewer.open import address_of
    from diptych.inference.generate import Decoding
    from diptych.inference.load import load

    drawn = {k: v for k, v in {"temperature": temperature, "top_p": top_p}.items() if v is not None}
    decoding = {**drawn, "seed": seed} if Decoding(**drawn).samples else drawn  # type: ignore[arg-type]
    model = load(address_of(run, fewer), device)
    if not {"prompt", "generate"} <= model.capabilities:
        raise DiptychError(
            f"{run} follows no prompts; it can: {', '.join(sorted(model.capabilities))}. Train llava-instruct, for one"
        )
    converse = getattr(model, "converse", None)
    shown, opening = conversed(model, run, images, frames if converse is not None else 0)
    if converse is None and (len(shown) > 1 or prompt is None or system):
        raise DiptychError(f"{run} answers single questions about one picture: give one image and --prompt, and no --system")

    turns = [Turn("system", system)] if system else []
    interactive = sys.stdin.isatty()
    while True:
        try:
            message = prompt if prompt is not None else input("> " if interactive else "").strip()
        except EOFError:
            return
        if not message:
            return
        first = not any(turn.role == "user" for turn in turns)
        turns.append(Turn("user", f"{opening if first else ''}{message}"))
        if converse is None:
            answer = model.generate(shown, message, max_tokens, **decoding)[0]
        else:
            answer = converse(shown, turns, max_tokens, **decoding)
        turns.append(Turn("assistant", answer))
        if json_:
            print_json({"images": [str(path) for path in images], "prompt": message, "answer": answer})
        else:
            typer.echo(answer)
        if prompt is not None:
            return
