"""What the server is and whether it is well."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from diptych.serve.state import state_of

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the server answers; needs no token and tells nothing else."""
    return {"status": "ok"}


@router.get("/v1/index")
async def index(request: Request) -> dict[str, Any]:
    """The facts of the index, if there is one, and what this server can do."""
    state = state_of(request)
    facts = dict(await state.searches.run(lambda: state.index.facts)) if state.index is not None else {}
    return {**facts, **state.abilities()}
