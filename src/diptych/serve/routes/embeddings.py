"""``/v1/embeddings`` as OpenAI's clients expect it: texts, tokens, and pictures by data URL."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import Future
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.streaming import Tokenizing
from diptych.serve.conversation import url_of
from diptych.serve.errors import ApiError
from diptych.serve.pictures.images import pictures_of, pool_of
from diptych.serve.requests import body_of
from diptych.serve.state import EMBED, State, count_tokens, state_of

router = APIRouter()
LONGEST = 8192  # tokens of one input


class EmbeddingsRequest(BaseModel):
    """What is to be embedded: ``input``, or ``messages`` as vLLM takes them. Unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)
    model: str | None = None
    input: Any = None
    messages: Annotated[list[Any], Field(min_length=1, max_length=64)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    """A unit vector for each input."""
    state = state_of(request)
    wanted = await body_of(request, EmbeddingsRequest)
    name, model = state.model_for(wanted.model, EMBED, "embed")
    if (wanted.input is None) == (wanted.messages is None):
        raise ApiError(400, "input: give `input`, or `messages`, and not both", "input")
    if wanted.messages is not None:
        groups = [_of_messages(wanted.messages)]
    else:
        groups = [[entry] for entry in _of_input(wanted.input, model, state)]
    entries = [entry for group in groups for entry in group]
    texts = [entry for entry in entries if isinstance(entry, str)]
    _check(texts, entries, model, state)
    urls = [entry for entry in entries if not isinstance(entry, str)]
    pictures = await pool_of((url for url, _ in urls), state).run(lambda: pictures_of(urls, state.settings))
    parts = await _vectors(state, name, texts, pictures)
    used = await state.decoding.run(partial(count_tokens, model, texts))
    state.metrics.tokens.labels(name, "prompt").inc(used)
    data = await state.decoding.run(partial(_body, groups, parts, wanted, name, used))
    return Response(data, media_type="application/json")


async def _vectors(state: State, name: str, texts: list[str], pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The vectors of texts and of pictures."""
    batcher = state.batchers[name]
    asked: dict[str, Future[np.ndarray]] = {}
    if texts:
        asked["text"] = batcher.submit("text", texts)
    if pictures:
        try:
            asked["image"] = batcher.submit("image", pictures)
        except ApiError:
            for future in asked.values():
                future.cancel()
            raise
    waiting = asyncio.gather(*(asyncio.wrap_future(future) for future in asked.values()))
    try:
        return dict(zip(asked, await asyncio.wait_for(waiting, state.settings.timeout), strict=True))
    except TimeoutError:
        raise ApiError(504, f"no answer within {state.settings.timeout:g} s", code="timeout") from None


def _body(groups: list[list[Any]], parts: dict[str, np.ndarray], wanted: EmbeddingsRequest, name: str, used: int) -> bytes:
    """The answer as JSON. A group of several inputs has one vector: the direction of their sum."""
    following = {kind: iter(rows) for kind, rows in parts.items()}
    width = next(iter(parts.values())).shape[1]
    if wanted.dimensions is not None and wanted.dimensions > width:
        raise ApiError(400, f"dimensions: {wanted.dimensions}; vectors of this model have {width}", "dimensions")
    data = []
    for k, group in enumerate(groups):
        rows = [next(following["text" if isinstance(entry, str) else "image"]) for entry in group]
        vector = rows[0] if len(rows) == 1 else unit_rows(np.stack(rows).astype(np.float64).sum(0)).astype(np.float32)
        if wanted.dimensions is not None and wanted.dimensions < width:
            vector = unit_rows(vector[: wanted.dimensions].astype(np.float64)).astype(np.float32)
        shown = base64.b64encode(vector.astype("<f4").tobytes()).decode() if wanted.encoding_format == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": k, "embedding": shown})
    usage = {"prompt_tokens": used, "total_tokens": used}
    return json.dumps({"object": "list", "data": data, "model": name, "usage": usage}, separators=(",", ":")).encode()


def _of_input(given: Any, model: Model, state: State) -> list[Any]:
    """Each input as a text, or as the URL of a picture with its field."""
    whole_numbers = isinstance(given, list) and bool(given) and all(type(i) is int for i in given)
    listed = given if isinstance(given, list) and not whole_numbers else [given]
    if not listed:
        raise ApiError(400, "input: nothing in it", "input")
    if len(listed) > state.settings.max_batch:
        raise ApiError(400, f"input: {len(listed)} inputs; at most {state.settings.max_batch} at a time", "input")
    found: list[Any] = []
    for k, entry in enumerate(listed):
        where = f"input.{k}"
        if isinstance(entry, str):
            found.append((entry, where) if entry[:11].lower() == "data:image/" else entry)
        elif isinstance(entry, list) and entry and all(type(i) is int for i in entry):
            found.append(_text_of(entry, model, where))
        elif isinstance(entry, dict):
            found.append(_part(entry, where))
        else:
            raise ApiError(400, f"{where}: expected a text, token ids, or a picture as a data: URL", where)
    return found


def _text_of(ids: list[int], model: Model, where: str) -> str:
    if not isinstance(model, Tokenizing):
        raise ApiError(400, f"{where}: this model does not take token ids; send the text", where)
    if len(ids) > LONGEST:
        raise ApiError(400, f"{where}: {len(ids)} tokens; at most {LONGEST}", where)
    if any(not 0 <= i < 1 << 31 for i in ids):
        raise ApiError(400, f"{where}: a number that is no token", where)
    return model.text_from(ids)


def _part(part: Any, where: str) -> Any:
    """A part of a message: a text, or the URL of a picture with its field."""
    url = url_of(part, where)
    if url is not None:
        return url, where
    text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise ApiError(400, f"{where}: expected a text or an image_url", where)
    return text


def _of_messages(messages: list[Any]) -> list[Any]:
    """All parts of all messages of the user; system messages say how to embed, which no model here is told."""
    found = []
    for k, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "system", "developer", "assistant"):
            raise ApiError(400, f"messages.{k}: expected an object with role and content", "messages")
        if message["role"] != "user":
            continue
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        found += [_part(part, f"messages.{k}.content.{j}") for j, part in enumerate(parts)]
    found = [entry for entry in found if not isinstance(entry, str) or entry.strip()]
    if not found:
        raise ApiError(400, "messages: nothing to embed", "messages")
    return found


def _check(texts: list[str], entries: list[Any], model: Model, state: State) -> None:
    settings = state.settings
    for text in texts:
        if not text.strip():
            raise ApiError(400, "input: an empty text has no vector", "input")
        if len(text) > settings.max_text:
            raise ApiError(400, f"input: a text of {len(text):,} characters; at most {settings.max_text:,}", "input")
    for needed, present in (("embed_text", bool(texts)), ("embed_image", len(entries) > len(texts))):
        if present and needed not in model.capabilities:
            raise ApiError(400, f"this model has no vectors of {'texts' if needed == 'embed_text' else 'pictures'}", "input")
