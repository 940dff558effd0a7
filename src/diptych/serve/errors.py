"""Errors in the form of OpenAI's API: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from diptych.core.errors import DiptychError

log = logging.getLogger("diptych.serve")
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than the one that was wanted. param: the field of the request that is wrong."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as an answer."""
        return JSONResponse(self.body(), self.status, self.headers)

    def event(self) -> str:
        """The error within a stream that has begun."""
        return f"data: {json.dumps(self.body(), ensure_ascii=False)}\n\n"


def busy(what: str, seconds: float) -> ApiError:
    """Too much waits already: status 429 with the seconds after which to try again."""
    after = str(max(1, round(seconds)))
    return ApiError(429, f"{what}; try again in {after} s", code="busy", headers={"Retry-After": after})


def handle(app: FastAPI) -> None:
    """Answers all errors of an app in this form, without a traceback or a path of this machine."""

    @app.exception_handler(ApiError)
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    @app.exception_handler(DiptychError)
    async def ours(request: Request, error: Exception) -> Response:
        return ApiError(400, str(error)).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: "there is nothing here", 405: "this method is not allowed here"}.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return ApiError(500, "the server made a mistake; its log says more", code="internal").response()
