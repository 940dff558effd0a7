"""The gate in front of every request: who asks, from which page, and under which name; and the headers of every answer.

| check | against |
|---|---|
| Host header | a page of another name that points here (DNS rebinding) |
| Origin, Sec-Fetch-Site | requests that pages of other sites make |
| token | everyone else, where the server can be reached by others |
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
import time
from collections import deque
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.serve.errors import ApiError
from diptych.serve.settings import LOOPBACK, Settings

COOKIE = "diptych"
OPEN = ("/health", "/login", "/static/")  # without a token
LARGEST_FORM = 4096  # bytes of the form with the token, which comes before any check
SAFE = ("GET", "HEAD", "OPTIONS")
METHODS = (*SAFE, "POST", "DELETE")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
ATTEMPTS, WINDOW = 10, 60.0  # wrong tokens in so many seconds, after which all wait


class Keeper:
    """Compares tokens. The cookie holds a value that the token gives, not the token."""

    def __init__(self, token: str | None):
        self.token = token
        self.cookie = hmac.new(token.encode(), b"diptych cookie 1", hashlib.sha256).hexdigest() if token else ""
        self._wrong: deque[float] = deque()

    def right(self, token: str) -> bool:
        """Whether this is the token. ApiError 429 after too many that were not."""
        assert self.token is not None
        now = time.monotonic()
        while self._wrong and now - self._wrong[0] > WINDOW:
            self._wrong.popleft()
        same = hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())
        if same:
            return True
        if len(self._wrong) >= ATTEMPTS:
            raise ApiError(429, "too many wrong tokens", headers={"Retry-After": str(int(WINDOW))})
        self._wrong.append(now)
        return False

    def admits(self, headers: Headers) -> bool:
        """Whether a request comes with the token or the cookie, or none is needed."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and given:
            return self.right(given.strip())
        held = cookie_parser(headers.get("cookie", "")).get(COOKIE)  # cookies of other programs may be malformed
        return held is not None and hmac.compare_digest(held.encode("utf-8", "replace"), self.cookie.encode())


class Guard:
    """ASGI middleware: checks, body limits and headers."""

    def __init__(self, app: ASGIApp, settings: Settings, keeper: Keeper):
        self.app, self.settings, self.keeper = app, settings, keeper
        names = {*LOOPBACK, *settings.names, settings.host.strip("[]").lower()}
        if not settings.local:
            names.add(socket.gethostname().lower())
        self.names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            """Sends with the headers of every answer."""
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            refusal = self._refusal(scope)
        except ApiError as error:
            refusal = error
        if refusal is not None:
            wants_page = "text/html" in Headers(scope=scope).get("accept", "") and scope["method"] == "GET"
            if refusal.status == 401 and wants_page:
                await RedirectResponse("/login", 303)(scope, receive, marked)
            else:
                await refusal.response()(scope, receive, marked)
            return
        await Limited(self.app, self.settings)(scope, receive, marked)

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is not answered."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._knows(hosts[0]):
            return ApiError(421, "this server does not answer under that name; start it with --name NAME to let it", code="host")
        if scope["method"] not in METHODS:
            return ApiError(405, "this method is not allowed here", headers={"Allow": ", ".join(METHODS)})
        origin = headers.get("origin")
        if origin == "null" and headers.get("sec-fetch-site") == "same-origin":
            origin = None  # a form without scripts, under the policy that tells no page where it was sent from
        if scope["method"] not in SAFE and origin is not None and not _same(origin, hosts[0]):
            return ApiError(403, "requests from pages of other sites are refused", code="origin")
        visit = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in SAFE
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not visit:
            return ApiError(403, "requests from pages of other sites are refused", code="origin")
        path = scope["path"]
        is_open = path in OPEN or path.startswith("/static/")
        if not is_open and not self.keeper.admits(headers):
            return ApiError(401, "a token is needed: Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"})
        return None

    def _knows(self, host: str) -> bool:
        """Whether a Host header names this server. Numbers are as good as names: rebinding needs a name."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if any(mark in host for mark in "@/?#\\ "):
            return False
        if name in self.names:
            return True
        try:
            return bool(ipaddress.ip_address(name)) and not self.settings.local
        except ValueError:
            return False


def _same(origin: str, host: str) -> bool:
    """Whether a page's origin is this server, http or https (behind a proxy)."""
    scheme, mark, place = origin.partition("://")
    return bool(mark) and scheme in ("http", "https") and place.lower() == host.lower()


class Limited:
    """Bounds the size of a body and the time that it takes to arrive."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        most = min(LARGEST_FORM, self.settings.max_body) if scope["path"] == "/login" else self.settings.max_body
        too_large = ApiError(413, f"the body is larger than {most:,} bytes", headers={"Connection": "close"})
        said = Headers(scope=scope).get("content-length", "0")
        if not said.isdigit() or len(said) > 15 or int(said) > most:
            await too_large.response()(scope, receive, send)
            return
        clock = asyncio.get_running_loop()
        until = clock.time() + self.settings.body_timeout
        held, complete = 0, False

        async def bounded() -> Message:
            """The next part of the body."""
            nonlocal held, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - clock.time()))
            except TimeoutError:
                raise ApiError(408, "the body took too long to arrive", headers={"Connection": "close"}) from None
            held += len(message.get("body", b""))
            if held > most:
                raise too_large
            complete = message["type"] != "http.request" or not message.get("more_body")
            return message

        await self.app(scope, bounded, send)
