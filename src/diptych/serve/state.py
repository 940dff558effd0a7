"""What the routes of one application share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, nearest
from diptych.serve.errors import ApiError
from diptych.serve.guard import Keeper
from diptych.serve.pools import Pool
from diptych.serve.settings import Settings
from diptych.serve.thumbnails import Thumbnails


class State:
    """Index, models, threads and settings of one application."""

    def __init__(self, index: Any, models: Mapping[str, Model], settings: Settings, search_model: str | None = None):
        self.index, self.models, self.settings = index, dict(models), settings
        self.keeper = Keeper(settings.token)
        embeds = [name for name, model in self.models.items() if "embed_text" in model.capabilities]
        if search_model is not None and search_model not in self.models:
            raise DiptychError(f"no model '{search_model}'{nearest(search_model, self.models)}")
        self.search_model = search_model or (embeds[0] if embeds else None)
        self.searches = Pool("search", 4, settings.max_waiting, settings.timeout)
        self.decoding = Pool("pictures", 2, 4 * settings.max_waiting, settings.timeout)
        self.thumbnails = Thumbnails()

    @property
    def searcher(self) -> Model:
        """The model that embeds queries. ApiError 400 if there is none."""
        if self.search_model is None:
            raise ApiError(400, "this server has no model that embeds texts or pictures", "model")
        return self.models[self.search_model]

    @property
    def searched(self) -> Any:
        """The index. ApiError 404 if the server has none."""
        if self.index is None:
            raise ApiError(404, "this server has no index; start it with `diptych serve INDEX`")
        return self.index

    def abilities(self) -> dict[str, Any]:
        """What this server can do, for the pages."""
        able: set[str] = set()
        models = []
        for name, model in self.models.items():
            can = abilities_of(model)
            models.append(
                {"id": name, "can": sorted(can), **({"sampling": sampling_of(model, self.settings)} if "chat" in can else {})}
            )
            able |= can - {"text", "image"}
        if self.index is not None and self.search_model is not None:
            able |= abilities_of(self.models[self.search_model]) & {"text", "image"} | {"search"}
        return {"can": sorted(able), "models": models}

    def close(self) -> None:
        """Ends threads."""
        for pool in (self.searches, self.decoding):
            pool.close()


def abilities_of(model: Model) -> set[str]:
    """What a model can do, in the words of the API: text and image (to search by), chat, caption."""
    names = {"embed_text": "text", "embed_image": "image", "generate": "caption", "prompt": "chat"}
    able = {word for name, word in names.items() if name in model.capabilities}
    return able - {"caption"} if "chat" in able else able


def sampling_of(model: Model, settings: Settings) -> dict[str, Any]:
    """The sampling settings that a chat model takes, with their defaults."""
    fixed = {"max_tokens": min(256, settings.max_tokens)}
    return {**fixed, "temperature": 0.0, "top_p": 1.0, "seed": 0} if "decoding" in model.capabilities else fixed


def state_of(request: Request) -> State:
    """The state behind a request."""
    state: State = request.app.state.diptych
    return state
