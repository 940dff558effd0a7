"""Pictures of the index by id, never by path."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from diptych.core.errors import DiptychError
from diptych.data.image import shrink
from diptych.serve.errors import ApiError
from diptych.serve.requests import number_of
from diptych.serve.routes.pages import fresh
from diptych.serve.routes.search import read, shown
from diptych.serve.state import State, state_of
from diptych.serve.values import plain

router = APIRouter()
SIZES = (64, 128, 256, 512, 1024)  # of thumbnails; any other is raised to the next
LARGEST_SIDE = 16_384  # pixels of a picture that is encoded anew
KEEP = "private, max-age=3600"
POLICY = {"Content-Security-Policy": "default-src 'none'; sandbox"}  # a file that is not what it says does nothing
MARKS = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF87a", "image/gif"), (b"GIF89a", "image/gif"))


@router.api_route("/thumb/{id}", methods=["GET", "HEAD"])
async def thumbnail(id: str, request: Request) -> Response:
    """A small JPEG of a picture, upright; ``?s=`` is its shorter side."""
    state = state_of(request)
    state.searched()
    number = number_of(id, "picture")
    asked = request.query_params.get("s", "256")
    if not (asked.isascii() and asked.isdigit() and len(asked) <= 5):
        raise ApiError(400, "s: expected a size in pixels", "s")
    size = next((each for each in SIZES if each >= int(asked)), SIZES[-1])
    data = await state.decoding.run(partial(_thumbnail, state, number, size))
    return fresh(data, "image/jpeg", request, KEEP, POLICY)


def _thumbnail(state: State, id: int, size: int) -> bytes:
    facts = state.searched().picture(id)
    if facts is None:
        raise ApiError(404, f"there is no picture of the id {id}")
    key = (id, size, facts.bytes, str(facts.date))
    data = state.thumbnails.get(key)
    if data is None:
        data = jpeg(shrink(read(state.searched(), id), size), 82)
        state.thumbnails.put(key, data)
    return data


def jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """Pixels as JPEG."""
    from PIL import Image

    file = io.BytesIO()
    made = Image.fromarray(image)
    made.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    made.save(file, "JPEG", quality=quality)
    return file.getvalue()


@router.api_route("/picture/{id}", methods=["GET", "HEAD"])
async def picture(id: str, request: Request) -> Response:
    """The file of a picture as it is if browsers show it, else encoded anew as JPEG."""
    state = state_of(request)
    state.searched()
    data, kind = await state.decoding.run(partial(_original, state, number_of(id, "picture")))
    return fresh(data, kind, request, KEEP, POLICY)


def _original(state: State, id: int) -> tuple[bytes, str]:
    index = state.searched()
    if index.picture(id) is None:
        raise ApiError(404, f"there is no picture of the id {id}")
    try:
        data = index.content(id) if hasattr(index, "content") else index.file(id)
    except (DiptychError, OSError):
        raise ApiError(410, f"the picture {id} has changed or is gone; run `diptych index` again") from None
    kind = kind_of(data) if isinstance(data, bytes) else None  # pixels without a file, and clips
    return (data, kind) if kind else (jpeg(read(index, id)), "image/jpeg")


def kind_of(data: bytes) -> str | None:
    """The type of a file that browsers show, by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for mark, kind in MARKS if data.startswith(mark)), None)


@router.get("/v1/pictures/{id}")
async def facts(id: str, request: Request) -> dict[str, Any]:
    """The facts of a picture."""
    state = state_of(request)
    index = state.searched()
    number = number_of(id, "picture")
    found = await state.searches.run(lambda: index.picture(number))
    if found is None:
        raise ApiError(404, f"there is no picture of the id {id}")
    return {**shown(found), "bytes": plain(found.bytes), "state": plain(found.state)}
