"""``diptych serve``: pages for search and chat, and an API, on this machine."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import typer

from diptych.core.errors import DiptychError, counted

INDEX = (
    "The directory that `diptych index` made; or a folder of pictures (any data), of which an index is made in the cache first. "
    "None: the API of the models and the chat page alone."
)
MODEL = (
    "A model to serve, as often as you like: `runs/llava-instruct`, `hf:NAME`, an ONNX export. The model of the index is served in "
    "any case."
)
RERANK = (
    "A second model that puts the first 20 hits of searches by words in order and decides whether there is anything: a run that "
    "scores pairs (`runs/blip`, `runs/coca`, `runs/filip`), or one with better vectors."
)
TOKEN = "What clients have to send, at least 16 characters. Better in the variable, which other users of this machine do not see."


def serve(
    index: Annotated[str | None, typer.Argument(metavar="[INDEX]", help=INDEX)] = None,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help=MODEL)] = None,
    rerank: Annotated[str | None, typer.Option(metavar="MODEL", help=RERANK)] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen. Any other than this machine needs a token; without one, one is made and printed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0: any that is free.")] = 8000,
    token: Annotated[str | None, typer.Option(envvar="DIPTYCH_TOKEN", help=TOKEN)] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A further name of this server, such as `photos.example.org` behind a proxy.")
    ] = None,
    fixed_batch: Annotated[
        int,
        typer.Option(
            min=0, help="Embed in batches of exactly this size, so that vectors are the same to the bit under any load. 0: off."
        ),
    ] = 0,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures from addresses of the public internet that requests name.")
    ] = False,
    max_body: Annotated[int, typer.Option(min=1, help="Megabytes of a request.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Megapixels of a picture.")] = 50,
    max_batch: Annotated[int, typer.Option(min=1, help="Inputs of a request for embeddings.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 1024,
    max_queue: Annotated[int, typer.Option(min=1, help="Inputs that may wait to be embedded; beyond it: status 429.")] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests of any other kind that may wait.")] = 64,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for an answer.")] = 120.0,
    chats: Annotated[int, typer.Option(min=1, help="Answers that are written at a time.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")] = "auto",
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Search your pictures and talk with a model in the browser, and in programs by OpenAI's API.

    It listens on this machine alone unless --host says otherwise. Ctrl-C ends it, with exit status 0. Examples:

    `diptych serve my/photos`; `diptych serve my.index --model runs/llava-instruct --open`;

    `diptych serve --model runs/clip --host 0.0.0.0 --fixed-batch 8`
    """
    from diptych.cli.index.index import Bar
    from diptych.cli.index.search import reranker_of
    from diptych.core.extras import need

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        need(module, extra="serve", what="diptych serve")
    from diptych.serve.app import create_app
    from diptych.serve.opening import opened
    from diptych.serve.server import address_of, bound, run
    from diptych.serve.settings import Settings, is_loopback

    made = None
    if not token and not is_loopback(host):
        token = made = secrets.token_urlsafe(24)
    settings = Settings(
        host=host, port=port, token=token or None, names=tuple(name or ()), fixed_batch=fixed_batch, allow_urls=allow_urls,
        max_body=max_body << 20, max_pixels=max_pixels * 1_000_000, max_batch=max_batch, max_tokens=max_tokens, max_queue=max_queue,
        max_waiting=max_waiting, timeout=timeout, chats=chats,
    )  # fmt: skip
    held = bound(settings)  # a port that is in use is known before anything is loaded
    try:
        display = Bar("indexing", "pictures")
        try:
            found = opened(index, model or [], device, display)
        finally:
            display.close()
        second = None
        if rerank is not None:
            if found.index is None:
                raise DiptychError("--rerank: there is no index to search in; give one, or a folder of pictures")
            second = reranker_of(rerank, found.index, device)
        app = create_app(found.index, found.models, settings, found.search, second)
        address = address_of(held)

        def ready() -> None:
            """Says what there is, once it answers."""
            typer.echo(_about(found, address, made, settings, rerank))
            if open_:
                import webbrowser

                webbrowser.open(address)

        try:
            run(app, held, ready)
        finally:
            if found.index is not None:
                found.index.close()
        typer.echo("stopped")
    finally:
        held.close()


def _about(found: Any, address: str, made: str | None, settings: Any, rerank: str | None) -> str:
    """What the server offers, a line each."""
    from diptych.serve.state import abilities_of

    lines = [address]
    if found.index is not None:
        lines.append(f"  search: {counted(len(found.index), 'picture')} of {found.index.path}, by {found.search}")
    if rerank is not None:
        lines.append(f"  the first hits of searches by words are judged again by {rerank}")
    for name, model in found.models.items():
        able = abilities_of(model)
        words = {
            "chat": "answers questions about pictures",
            "caption": "writes captions",
            "clip": "takes clips",
            "text": "embeds texts",
            "image": "embeds pictures",
        }
        does = ", ".join(text for word, text in words.items() if word in able)
        lines.append(f"  {name}: {does or 'nothing that this server offers'}")
    lines.append(f"  API: {address}/v1 (models, embeddings, chat/completions, search); figures: {address}/metrics")
    if made is not None:
        lines.append(f"  token, made for this run and not shown again: {made}")
        lines.append("  give it in the form of the page, or as Authorization: Bearer TOKEN; DIPTYCH_TOKEN sets one that stays")
    elif settings.token:
        lines.append("  a token is needed: the one that you gave, in the form of the page or as Authorization: Bearer TOKEN")
    if not settings.local:
        lines.append(f"  listens on {settings.host}: others can reach it, without encryption; put a proxy with TLS in front of it")
    lines.append("  Ctrl-C ends it")
    return "\n".join(lines)
