"""The body of a request, checked: JSON of bounded depth, without NaN, in a known form."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from diptych.serve.errors import ApiError

DEEPEST = 64  # lists and objects within each other

Body = TypeVar("Body", bound=BaseModel)


async def body_of(request: Request, form: type[Body]) -> Body:
    """The body as ``form``. ApiError 415 for another type than JSON, 400 for JSON that is malformed, too deep or otherwise."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body has the type {kind[:80] or 'unknown'!r}; send JSON with Content-Type: application/json")
    found = await run_in_threadpool(parsed, await request.body())
    try:
        return form.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(
            str(part) for part in first["loc"] if not str(part).startswith(("function-", "list[", "str", "constrained"))
        )
        raise ApiError(400, f"{where or 'the body'}: {first['msg']}", param=where or None) from None


def parsed(data: bytes) -> Any:
    """JSON from bytes. ApiError 400 if it is none."""
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except RecursionError:
        raise ApiError(400, f"the body is nested too deeply; the limit is {DEEPEST}") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}") from None
    check(found)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def check(found: Any) -> None:
    """ApiError 400 for a value that is nested too deeply, or holds half of a character, which no text can."""
    level: list[Any] = [found]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii():
                _sound(value)
        if not below:
            return
        level = below
    raise ApiError(400, f"the body is nested too deeply; the limit is {DEEPEST}")


def _sound(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ApiError(400, "a text holds half of a surrogate pair") from None


def number_of(text: str, what: str) -> int:
    """An id from a path. ApiError 404 for anything else than a plain number."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ApiError(404, f"there is no {what} of that id")
    return int(text)
