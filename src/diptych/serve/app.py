"""The web application: routes over an index and models, behind the gate. It needs no socket, so that tests can call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from diptych.core.capabilities import Model
from diptych.index.cutoff.rerank import Reranker
from diptych.serve import errors
from diptych.serve.guard import Guard
from diptych.serve.metrics import Measured
from diptych.serve.routes import chat, embeddings, locate, meta, pages, pictures, search
from diptych.serve.settings import Settings
from diptych.serve.state import State


def create_app(
    index: Any = None,
    models: Model | Mapping[str, Model] | None = None,
    settings: Settings | None = None,
    search_model: str | None = None,
    reranker: Reranker | None = None,
) -> FastAPI:
    """The application over an ``Index`` (None: the API of the models alone) and models by name.

    search_model: the name of the model that the index was made with; default: the first that embeds texts. reranker: a second model
    that judges the first hits of searches by words. Raises DiptychError for an unknown name.
    """
    settings = settings or Settings()
    named = dict(models) if isinstance(models, Mapping) else {models.name: models} if models is not None else {}
    state = State(index, named, settings, search_model, reranker)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        state.close()

    app = FastAPI(title="Diptych", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False)
    app.state.diptych = state
    errors.handle(app)
    for part in (pages, meta, search, pictures, embeddings, chat, locate):
        app.include_router(part.router)
    app.add_middleware(Guard, settings=settings, keeper=state.keeper)
    app.add_middleware(Measured, metrics=state.metrics)  # the last one added is the first that sees a request
    return app
