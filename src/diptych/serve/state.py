"""What the routes of one application share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from fastapi import Request

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, nearest
from diptych.core.streaming import Conversing, Tokenizing
from diptych.index.cutoff.rerank import Reranker
from diptych.serve.batching import Batched, Batcher, FixedBatch
from diptych.serve.errors import ApiError
from diptych.serve.guard import Keeper
from diptych.serve.metrics import Metrics
from diptych.serve.pictures.thumbnails import Thumbnails
from diptych.serve.pools import Pool
from diptych.serve.settings import Settings

EMBED = {"embed_text", "embed_image"}
DEFAULT_TOKENS = 256  # of an answer


class State:
    """Index, models, threads and settings of one application."""

    def __init__(
        self,
        index: Any,
        models: Mapping[str, Model],
        settings: Settings,
        search_model: str | None = None,
        reranker: Reranker | None = None,
    ):
        self.reranker = reranker
        self.index, self.models, self.settings, self.begun = index, dict(models), settings, int(time.time())
        if search_model is not None and search_model not in self.models:
            raise DiptychError(f"serve: no model '{search_model}'{nearest(search_model, self.models)}")
        self.keeper, self.metrics, self.thumbnails = Keeper(settings.token), Metrics(), Thumbnails()
        self.batchers: dict[str, Batcher] = {}
        for name, model in self.models.items():
            if EMBED & model.capabilities:
                used = FixedBatch(model, settings.fixed_batch) if settings.fixed_batch else model
                if isinstance(used, FixedBatch):
                    used.check()
                self.batchers[name] = Batcher(used, settings.max_batch, settings.max_queue, self.metrics.batch_of(name))
        self.search_model = search_model or next((n for n in self.batchers if "embed_text" in self.models[n].capabilities), None)
        more = settings.max_waiting
        self.searches = Pool("search", 16, more, settings.timeout)  # most of them wait for the vector of their query
        self.decoding = Pool("pictures", 2, 4 * more, settings.timeout)
        self.fetching = Pool("fetch", 4, more, settings.timeout)
        self.chats = Pool("chat", settings.chats, more, settings.timeout)
        for pool in self.pools:
            self.metrics.waiting(pool.name, lambda pool=pool: pool.here)  # type: ignore[misc]
        self.metrics.waiting("embed", lambda: sum(batcher.waiting for batcher in self.batchers.values()))

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All threads but those that embed."""
        return self.searches, self.decoding, self.fetching, self.chats

    def searcher(self) -> Model:
        """The model that embeds queries. ApiError 400 if there is none."""
        if self.search_model is None:
            raise ApiError(400, "this server has no model that embeds texts or pictures", "model")
        return Batched(self.models[self.search_model], self.batchers[self.search_model])

    def searched(self) -> Any:
        """The index. ApiError 404 if the server has none."""
        if self.index is None:
            raise ApiError(404, "this server has no index; start it with `diptych serve INDEX`")
        return self.index

    def model_for(self, name: str | None, able: set[str], what: str) -> tuple[str, Model]:
        """The model of a name, or the first with one of the capabilities. ApiError 404 for an unknown name, 400 for a model that
        cannot do what is wanted.
        """
        fit = [n for n, model in self.models.items() if able & model.capabilities]
        if name is None:
            if not fit:
                raise ApiError(400, f"this server has no model that can {what}", "model")
            return fit[0], self.models[fit[0]]
        if name not in self.models:
            raise ApiError(
                404, f"there is no model '{name[:80]}' here; there is: {', '.join(self.models)}", "model", "model_not_found"
            )
        if name not in fit:
            can = ", ".join(sorted(self.models[name].capabilities))
            also = f"; on this server {', '.join(fit)} can" if fit else ""
            raise ApiError(400, f"model '{name}' cannot {what}{also}; it can: {can}", "model")
        return name, self.models[name]

    def abilities(self) -> dict[str, Any]:
        """What this server can do, for the pages."""
        able: set[str] = set()
        models = []
        for name, model in self.models.items():
            can = abilities_of(model)
            more = {"sampling": sampling_of(model, self.settings)} if can & {"chat", "caption"} else {}
            models.append({"id": name, "can": sorted(can), **more})
            able |= can & {"chat", "caption"}
        if self.index is not None and self.search_model is not None:
            able |= {"search"} | (abilities_of(self.models[self.search_model]) & {"text", "image"})
        found: dict[str, Any] = {"can": sorted(able), "models": models}
        if self.reranker is not None:
            found["rerank"] = PurePath(self.reranker.model.name).name
        return found

    def close(self) -> None:
        """Ends all threads."""
        for pool in self.pools:
            pool.close()
        for batcher in self.batchers.values():
            batcher.close()


def takes_clips(model: Model) -> bool:
    """Whether a model can be shown clips: it learned from them, or it talks about several pictures, such as their frames."""
    return getattr(model, "shows", "image") == "video" or ("prompt" in model.capabilities and isinstance(model, Conversing))


def abilities_of(model: Model) -> set[str]:
    """What a model can do, in the words of the API: text and image (to search by), chat, or caption alone; clip: of clips, too."""
    names = {"embed_text": "text", "embed_image": "image"}
    able = {word for name, word in names.items() if name in model.capabilities}
    if "generate" in model.capabilities:
        able.add("chat" if "prompt" in model.capabilities else "caption")
        if takes_clips(model):
            able.add("clip")
    return able


def sampling_of(model: Model, settings: Settings) -> dict[str, Any]:
    """The sampling settings that a model takes, with defaults."""
    fixed = {"max_tokens": {"default": min(DEFAULT_TOKENS, settings.max_tokens), "max": settings.max_tokens}}
    return {**fixed, "temperature": 0, "top_p": 1, "seed": 0} if "decoding" in model.capabilities else fixed


def count_tokens(model: Model, texts: list[str]) -> int:
    """Tokens of texts; words, where the model does not tell its tokens."""
    if isinstance(model, Tokenizing):
        return sum(map(len, model.token_ids(texts)))
    return sum(len(text.split()) for text in texts)


def state_of(request: Request) -> State:
    """The state behind a request."""
    state: State = request.app.state.diptych
    return state
