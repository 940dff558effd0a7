"""Search by texts and pictures, the map of the collection, and selections."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from diptych.core.errors import DiptychError
from diptych.index.query import Query
from diptych.serve.errors import ApiError
from diptych.serve.pictures.images import cropped, picture_of, pool_of
from diptych.serve.requests import body_of
from diptych.serve.state import State, state_of
from diptych.serve.values import number, plain

router = APIRouter()
Texts = Annotated[list[str], Field(max_length=32)]
Id = Annotated[int, Field(ge=0, lt=1 << 62)]


class SearchRequest(BaseModel):
    """A search: texts, ids and a picture that hits should be like, and those that they should not be like."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str | Texts = []
    without: Texts = Field(default=[], alias="not")
    like: Annotated[list[Id], Field(max_length=32)] = []
    not_like: Annotated[list[Id], Field(max_length=32)] = []
    image: str | None = None
    not_image: str | None = None
    crop: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    n: Annotated[int, Field(ge=1)] = 20
    offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    filters: dict[str, Any] = {}
    fold: bool = True
    cutoff: bool = True
    rerank: bool | None = None


class SelectionRequest(BaseModel):
    """Pictures to keep under a name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w][\w .-]*$")]
    ids: Annotated[list[Id], Field(min_length=1, max_length=100_000)]


@router.post("/v1/search")
async def search(request: Request) -> dict[str, Any]:
    """The pictures that fit, best first."""
    state = state_of(request)
    state.searched()
    wanted = await body_of(request, SearchRequest)
    if wanted.n > state.settings.max_results:
        raise ApiError(400, f"n: at most {state.settings.max_results}", "n")
    texts = [text for text in ([wanted.text] if isinstance(wanted.text, str) else wanted.text) if text.strip()]
    for text in (*texts, *wanted.without):
        if len(text) > state.settings.max_text:
            raise ApiError(400, f"a text of {len(text):,} characters; at most {state.settings.max_text:,}", "text")
    begun = time.monotonic()
    image, not_image = [
        None if url is None else await pool_of([url], state).run(partial(picture_of, url, state.settings, param))
        for url, param in ((wanted.image, "image"), (wanted.not_image, "not_image"))
    ]
    found = await state.searches.run(partial(_search, state, wanted, texts, image, not_image))
    return {**found, "took_ms": round(1000 * (time.monotonic() - begun), 2)}


def _search(
    state: State, wanted: SearchRequest, texts: list[str], image: np.ndarray | None, not_image: np.ndarray | None
) -> dict[str, Any]:
    index, images = state.searched(), [] if image is None else [image]
    like = list(wanted.like)
    if wanted.crop is not None:
        if bool(images) == (len(like) == 1):
            raise ApiError(400, "crop: needs one picture: `image`, or one id in `like`", "crop")
        if not images:
            images = [read(index, like.pop())]
        images = [cropped(images[0], wanted.crop)]
    for id in (*like, *wanted.not_like):
        if index.picture(id) is None:
            raise ApiError(404, f"there is no picture of the id {id}", "like")
    if wanted.rerank and state.reranker is None:
        raise ApiError(400, "rerank: this server has no second model; start it with --rerank MODEL", "rerank")
    second = {"rerank": state.reranker} if state.reranker is not None and wanted.rerank is not False else {}
    query = Query(
        texts=tuple(texts),
        images=tuple(images),
        like=tuple(like),
        without=tuple(text for text in wanted.without if text.strip()),
        without_images=() if not_image is None else (not_image,),
        without_like=tuple(wanted.not_like),
    )
    answer = index.search(
        query,
        state.searcher(),
        n=wanted.n,
        offset=wanted.offset,
        filters=wanted.filters or None,
        fold=wanted.fold,
        cutoff=wanted.cutoff,
        **second,
    )
    return {
        "hits": [
            {
                **shown(hit.picture),
                "score": number(hit.score),
                "relevance": number(hit.relevance),
                "duplicates": [int(i) for i in hit.duplicates],
            }
            for hit in answer.hits
        ],
        "nothing": bool(answer.nothing),
        "reason": answer.reason,
        "total": int(answer.total),
        "reranked": bool(answer.reranked),
    }


def read(index: Any, id: int) -> np.ndarray:
    """The pixels of a picture of the index. ApiError 404 if there is none, 410 if its file is gone or changed."""
    if index.picture(id) is None:
        raise ApiError(404, f"there is no picture of the id {id}")
    try:
        pixels: np.ndarray = index.read(id)
        return pixels
    except (DiptychError, OSError):
        raise ApiError(410, f"the picture {id} has changed or is gone; run `diptych index` again") from None


def shown(picture: Any) -> dict[str, Any]:
    """What a client sees of a picture: nothing that leads to its place on this machine."""
    names = ("id", "name", "folder", "width", "height", "date", "caption", "columns")
    return {name: plain(getattr(picture, name)) for name in names}


@router.get("/v1/map")
async def collection_map(request: Request) -> dict[str, Any]:
    """Where each picture lies on the map, and the named clusters."""
    state = state_of(request)
    index = state.searched()

    def made() -> dict[str, Any]:
        """The map as JSON."""
        found = index.map(state.searcher() if state.search_model is not None else None)
        places = np.asarray(found.places, dtype=np.float64).round(4).tolist()
        points = [[int(id), x, y, int(c)] for id, (x, y), c in zip(found.ids, places, found.cluster, strict=True)]
        clusters = [{"name": plain(c.name), "x": number(c.x), "y": number(c.y), "count": int(c.count)} for c in found.clusters]
        return {"points": points, "clusters": clusters}

    return await state.searches.run(made)


@router.get("/v1/selections")
async def selections(request: Request) -> dict[str, Any]:
    """The selections by name."""
    state = state_of(request)
    index = state.searched()
    found = await state.searches.run(lambda: index.selections())
    return {
        "selections": [{"name": n, "count": len(ids), "ids": plain(ids), "address": _address(index, n)} for n, ids in found.items()]
    }


def _address(index: Any, name: str) -> str:
    return f"index:{index.path}?selection={quote(name)}"


@router.post("/v1/selections")
async def select(request: Request) -> dict[str, Any]:
    """Keeps pictures under a name; the answer holds the address for `diptych train` and `curate`."""
    state = state_of(request)
    index = state.searched()
    wanted = await body_of(request, SelectionRequest)

    def kept() -> None:
        """Keeps them, if all are there."""
        for id in wanted.ids:
            if index.picture(id) is None:
                raise ApiError(404, f"there is no picture of the id {id}", "ids")
        index.select(wanted.name, wanted.ids)

    await state.searches.run(kept)
    address = _address(index, wanted.name)
    return {
        "name": wanted.name,
        "count": len(set(wanted.ids)),
        "address": address,
        "command": f"diptych train clip --data {shlex.quote(address)}",
    }


@router.delete("/v1/selections/{name}")
async def unselect(name: str, request: Request) -> dict[str, Any]:
    """Forgets a selection; the pictures stay."""
    state = state_of(request)
    index = state.searched()
    forget: Callable[[str], Any] = index.delete_selection
    await state.searches.run(partial(forget, name))
    return {"deleted": name}
