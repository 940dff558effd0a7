"""What the server is, which models it has, and whether it is well."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from diptych.serve.errors import ApiError
from diptych.serve.state import State, abilities_of, state_of
from diptych.serve.values import plain

router = APIRouter()
HIDDEN = ("addresses",)  # facts of an index that lead to places on this machine


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the server answers; needs no token and tells nothing else."""
    return {"status": "ok"}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    data, kind = state_of(request).metrics.text()
    return Response(data, media_type=kind)


@router.get("/v1/index")
async def index(request: Request) -> dict[str, Any]:
    """The facts of the index, if there is one, and what this server can do."""
    state = state_of(request)
    facts = plain(dict(await state.searches.run(lambda: state.index.facts))) if state.index is not None else {}
    facts = {name: value for name, value in facts.items() if name not in HIDDEN}
    if "model" in facts:
        facts["model"] = PurePath(str(facts["model"])).name
    return {**facts, **state.abilities()}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models of this server."""
    state = state_of(request)
    return {"object": "list", "data": [_model(state, name) for name in state.models]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    state = state_of(request)
    if name not in state.models:
        raise ApiError(404, f"there is no model '{name[:80]}' here", "model", "model_not_found")
    return _model(state, name)


def _model(state: State, name: str) -> dict[str, Any]:
    held = state.models[name]
    more = {"can": sorted(abilities_of(held)), "capabilities": sorted(held.capabilities)}
    return {"id": name, "object": "model", "created": state.begun, "owned_by": "diptych", **more}
