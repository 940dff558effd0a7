"""``/v1/chat/completions`` as OpenAI's clients expect it, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from diptych.serve.conversation import turns_of
from diptych.serve.errors import ApiError
from diptych.serve.pictures.clips import check_clips, for_model, seen_of
from diptych.serve.pictures.images import pool_of
from diptych.serve.requests import body_of
from diptych.serve.state import DEFAULT_TOKENS, State, state_of
from diptych.serve.writing import Job, as_api_error

router = APIRouter()
log = logging.getLogger("diptych.serve")
Positive = Annotated[int, Field(ge=1)]
Result = TypeVar("Result")


class StreamOptions(BaseModel):
    """What a stream holds besides the text."""

    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A conversation and how to answer it. Unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)
    model: str | None = None
    messages: Annotated[list[Any], Field(min_length=1, max_length=256)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Positive | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    seed: int | None = None


def decoding_of(wanted: ChatRequest) -> dict[str, Any]:
    """The settings by the names that models know. Without temperature, top_p and top_k: the likeliest text."""
    how: dict[str, Any] = {}
    if wanted.temperature is not None:
        how["temperature"] = float(wanted.temperature)
    if wanted.top_p is not None and wanted.top_p < 1:
        how["top_p"] = float(wanted.top_p)
    if wanted.top_k is not None:
        how["top_k"] = wanted.top_k
    if how and how.get("temperature") != 0:
        how["seed"] = (wanted.seed if wanted.seed is not None else uuid.uuid4().int) & 0x7FFFFFFF
    else:
        how = {}
    if wanted.repetition_penalty not in (None, 1):
        how["repetition_penalty"] = float(wanted.repetition_penalty or 1)
    stop = [wanted.stop] if isinstance(wanted.stop, str) else wanted.stop or []
    if len(stop) > 16 or any(not s or len(s) > 256 for s in stop):
        raise ApiError(400, "stop: at most 16 strings of 1 to 256 characters", "stop")
    if stop:
        how["stop"] = tuple(stop)
    return how


@router.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """The next turn of a conversation."""
    state = state_of(request)
    wanted = await body_of(request, ChatRequest)
    name, model = state.model_for(wanted.model, {"generate"}, "write text")
    if wanted.n not in (None, 1):
        raise ApiError(400, "n: one answer at a time", "n")
    how = decoding_of(wanted)
    most = min(wanted.max_completion_tokens or wanted.max_tokens or DEFAULT_TOKENS, state.settings.max_tokens)
    asked, shown = turns_of(wanted.messages, state.settings)
    check_clips(shown, model, state.settings)
    seen = await pool_of((each.url for each in shown), state).run(lambda: seen_of(shown, state.settings))
    turns, images = for_model(model, asked, seen, state.settings)
    job = Job(model, images, turns, how, most)
    job.start(state.chats)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
    if key := getattr(model, "key", None):
        head["system_fingerprint"] = f"diptych-{str(key)[:12]}"
    try:
        first = await _while_there(job.next(), request)
    except BaseException as error:
        job.stop()
        raise _noted(error) from None
    if wanted.stream:
        usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(job, first, head, usage, state, name), media_type="text/event-stream", headers=headers)
    try:
        text = await _while_there(_text(job, first), request)
    except BaseException as error:
        job.stop()
        raise _noted(error) from None
    _count(state, name, job)
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": job.answer.finish}
    more = {"note": job.answer.note} if job.answer.note else {}
    return JSONResponse(
        {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(job), "timings": job.answer.timings(), **more}
    )


async def _while_there(work: Coroutine[Any, Any, Result], request: Request) -> Result:
    """The result of ``work``. ApiError 499, which nobody reads, if the client goes away before it comes."""
    waiting, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ApiError(499, "the client went away")
        return waiting.result()
    finally:
        waiting.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _text(job: Job, first: str | None) -> str:
    """All pieces from the first on."""
    pieces = []
    while first is not None:
        pieces.append(first)
        first = await job.next()
    return "".join(pieces)


async def _events(job: Job, first: str | None, head: dict[str, Any], usage: bool, state: State, name: str) -> AsyncIterator[str]:
    """The answer as server-sent events. When the client goes away, this is closed, and the job ends."""
    more = {"usage": None} if usage else {}

    def event(choices: list[dict[str, Any]], **rest: Any) -> str:
        """One event."""
        body = {**head, "object": "chat.completion.chunk", "choices": choices, **more, **rest}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    def delta(content: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        """A part of the one choice."""
        return [{"index": 0, "delta": content, "logprobs": None, "finish_reason": finish}]

    try:
        yield event(delta({"role": "assistant", "content": ""}))
        while first is not None:
            yield event(delta({"content": first}))
            first = await job.next()
        _count(state, name, job)
        notes = {"note": job.answer.note} if job.answer.note else {}
        timings = {"timings": job.answer.timings()}
        yield event(delta({}, job.answer.finish), **notes, **({} if usage else timings))
        if usage:
            yield event([], **{"usage": _usage(job), **timings})
        yield "data: [DONE]\n\n"
    except Exception as error:
        noted = _noted(error)
        assert isinstance(noted, ApiError)
        yield noted.event()
    finally:
        job.stop()


def _noted(error: BaseException) -> BaseException:
    """The error as an answer; one of the program itself is logged. The end of the task stays what it is."""
    if not isinstance(error, Exception):
        return error
    found = as_api_error(error)
    if found.status == 500:
        log.error("while a model answered", exc_info=error)
    return found


def _count(state: State, name: str, job: Job) -> None:
    state.metrics.tokens.labels(name, "prompt").inc(job.answer.prompt_tokens)
    state.metrics.tokens.labels(name, "completion").inc(job.answer.tokens)


def _usage(job: Job) -> dict[str, int]:
    read, written = job.answer.prompt_tokens, job.answer.tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
