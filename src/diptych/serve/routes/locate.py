"""``/v1/locate``: where in a picture a text is, as a box and a drawn map, with what is known of how far it can be believed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from diptych.core.capabilities import Locating
from diptych.serve.conversation import url_of
from diptych.serve.errors import ApiError
from diptych.serve.pictures.images import pictures_of, pool_of
from diptych.serve.requests import body_of
from diptych.serve.state import state_of

router = APIRouter()
LONGEST = 640  # pixels of the longer side of what is drawn


class LocateRequest(BaseModel):
    """A picture, as in a message (``image_url``), and a text. Unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)
    model: str | None = None
    image_url: Any
    text: str = Field(min_length=1, max_length=500)


@router.post("/v1/locate")
async def locate(request: Request) -> Response:
    """By the model that is asked for, or by the first that can, if that one cannot."""
    state = state_of(request)
    wanted = await body_of(request, LocateRequest)
    able = [n for n, model in state.models.items() if "locate" in model.capabilities]
    name, model = state.model_for(wanted.model if wanted.model in able else None, {"locate"}, "say where things are")
    if not isinstance(model, Locating):
        raise ApiError(400, f"model '{name}' cannot say where things are", "model")
    url = url_of({"type": "image_url", "image_url": wanted.image_url}, "image_url")
    if url is None:
        raise ApiError(400, "image_url: expected {'url': 'data:image/…'}", "image_url")
    (image,) = await pool_of([url], state).run(lambda: pictures_of([(url, "image_url")], state.settings))
    return JSONResponse(await state.chats.run(lambda: answer(name, model, smaller(image), wanted.text)))


def smaller(image: np.ndarray) -> np.ndarray:
    """The picture with its longer side at most ``LONGEST``, by leaving out pixels evenly."""
    step = math.ceil(max(image.shape[:2]) / LONGEST)
    return np.ascontiguousarray(image[::step, ::step])


def answer(name: str, model: Any, image: np.ndarray, text: str) -> dict[str, Any]:
    """The box as shares of the picture (left, top, right, bottom), the drawn map, and its verdict, if one was measured."""
    from diptych.benchmarks.maps.saved import file_of, kept  # brings torch, which a server without such a model does not need
    from diptych.report.drawing.heat import enlarged, frame, overlay
    from diptych.report.drawing.pictures import of_array

    (found,) = model.locate([image], [text])
    height, width = image.shape[:2]
    drawn = enlarged(image) if found.heat is None else overlay(image, found.heat, found.box)
    if found.heat is None and found.box is not None:
        times = drawn.shape[0] // height
        frame(drawn, (found.box[0] * times, found.box[1] * times, found.box[2] * times, found.box[3] * times))
    weights = getattr(model, "key", None)
    verdicts = kept(file_of(getattr(model, "place", None) or name, weights), weights, found.by)
    return {
        "model": name,
        "by": found.by,
        "box": found.box and [found.box[0] / width, found.box[1] / height, found.box[2] / width, found.box[3] / height],
        "score": found.score,
        "image": of_array(drawn),
        "faithful": verdicts[-1].faithful if verdicts else None,
        "verdict": verdicts[-1].words() if verdicts else "not judged: nothing is known of how far this can be believed",
    }
