"""The application on a socket: binds, says when it answers, and ends on Ctrl-C."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.serve.settings import Settings

CONNECTIONS = 1024  # at a time; further ones are answered with status 503
IDLE = 15  # seconds that a connection without a request stays open
END = 5  # seconds that requests have to end, once the server stops


def bound(settings: Settings) -> socket.socket:
    """A socket at the host and port of the settings. DiptychError, with the remedy, if there is none to have."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except socket.gaierror as error:
        raise DiptychError(f"serve: there is no host '{settings.host}' ({error.strerror}); use 127.0.0.1 or 0.0.0.0") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        made.listen(256)
    except OSError as error:
        made.close()
        other = min(settings.port + 1, 65535)
        reasons = {
            errno.EADDRINUSE: f"port {settings.port} is in use by another program; take --port {other}, or --port 0 for a free one",
            errno.EACCES: f"port {settings.port} needs the rights of an administrator; take one above 1023: --port 8000",
            errno.EADDRNOTAVAIL: f"{settings.host} is not an address of this machine; use 127.0.0.1 or 0.0.0.0",
        }
        raise DiptychError(f"serve: {reasons.get(error.errno or 0, error.strerror)}") from None
    return made


def address_of(held: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = held.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def timed_protocol(idle: float = IDLE) -> Any:
    """uvicorn's protocol, which also closes connections that send no request for ``idle`` seconds: its own clock begins after a
    first answer, so that silent connections would take all places.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Timed(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        """With a clock from the beginning."""

        def connection_made(self, transport: Any) -> None:
            """Starts the clock."""
            super().connection_made(transport)
            self.loop.call_later(idle, lambda: transport.close() if self.cycle is None else None)

    return Timed


def run(app: Any, held: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serves until Ctrl-C or SIGTERM, then ends running requests and returns. ready: called when it answers."""
    uvicorn = need("uvicorn", extra="serve", what="diptych serve")

    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        """Says when it answers, and returns when it is stopped; uvicorn's own raises the signal again."""

        async def startup(self, sockets: Any = None) -> None:
            """As it is, and then ``ready``."""
            await super().startup(sockets)
            if self.started:
                ready()

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Handles the signals that end a server, and gives them back."""
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

    config = uvicorn.Config(
        app,
        http=timed_protocol(),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=END,
    )
    Server(config).run(sockets=[held])
