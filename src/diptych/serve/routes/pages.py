"""The pages, their scripts and styles, and the form for the token."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from diptych.serve.errors import ApiError
from diptych.serve.guard import COOKIE
from diptych.serve.state import state_of

router = APIRouter()
STATIC = Path(__file__).parent.parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z]+)+")


def file_of(name: str, request: Request) -> Response:
    """A file of the package by its name. ApiError 404 for anything else than a name that is there."""
    path = STATIC / name
    if not NAME.fullmatch(name) or path.suffix not in TYPES or not path.is_file() or path.is_symlink():
        raise ApiError(404, "there is nothing here")
    return fresh(path.read_bytes(), TYPES[path.suffix], request, "no-cache")


def fresh(data: bytes, kind: str, request: Request, keep: str, headers: dict[str, str] | None = None) -> Response:
    """The data, or status 304 if the client has it."""
    tag = f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'
    more = {"ETag": tag, "Cache-Control": keep, **(headers or {})}
    if tag in [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=more)
    return Response(data, media_type=kind, headers=more)


@router.api_route("/", methods=["GET", "HEAD"])
async def search_page(request: Request) -> Response:
    """The search page; the chat page if there is no index."""
    return file_of("search.html" if state_of(request).index is not None else "chat.html", request)


@router.api_route("/chat", methods=["GET", "HEAD"])
async def chat_page(request: Request) -> Response:
    """The chat page."""
    return file_of("chat.html", request)


@router.api_route("/map", methods=["GET", "HEAD"])
async def map_page(request: Request) -> Response:
    """The search page, which shows the map."""
    return file_of("search.html", request)


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static(name: str, request: Request) -> Response:
    """A script, a style or a picture of the pages."""
    return file_of(name, request)


@router.get("/login")
async def login_page(request: Request) -> Response:
    """The form for the token."""
    return file_of("login.html", request)


@router.post("/login")
async def login(request: Request) -> Response:
    """Takes the token from the form and sets the cookie."""
    state = state_of(request)
    data = await request.body()
    if state.keeper.token is None:
        return RedirectResponse("/", 303)
    try:
        given = parse_qs(data.decode("utf-8", "replace"), max_num_fields=8).get("token", [""])[0]
    except ValueError:
        raise ApiError(400, "the form has too many fields") from None
    if not state.keeper.right(given.strip()):
        return RedirectResponse("/login?wrong", 303)
    answer = RedirectResponse("/", 303)
    secure = request.headers.get("origin", "").startswith("https:")  # behind a proxy that speaks TLS
    answer.set_cookie(COOKIE, state.keeper.cookie, httponly=True, samesite="strict", secure=secure, path="/")
    return answer


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Takes the cookie back."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer
