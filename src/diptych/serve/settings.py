"""What a server may do and how much of it. Every limit has a default that suits a machine of one's own."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields

from diptych.core.errors import DiptychError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHORTEST_TOKEN = 16  # characters of a token that a user chooses


@dataclass(frozen=True)
class Settings:
    """Settings of a server; DiptychError for values that cannot be used.

    token: what a client has to send; None: no token, on loopback alone. names: further names under which the server is called, for
    the check of the Host header. fixed_batch: pictures are embedded in batches of exactly this size, 0: as they come. allow_urls:
    pictures may be fetched from addresses of the public internet.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    names: tuple[str, ...] = ()
    fixed_batch: int = 0
    allow_urls: bool = False
    max_body: int = 32 << 20  # bytes of a request
    max_pixels: int = 50_000_000  # of a picture, known from its header
    max_batch: int = 256  # inputs of one request for embeddings, and vectors computed at a time
    max_images: int = 16  # pictures of one conversation
    max_clips: int = 2  # clips of one conversation
    max_frames: int = 32  # of a clip that are read, evenly spread
    clip_seconds: float = 600.0  # of a clip
    clip_timeout: float = 20.0  # seconds in which a clip is decoded
    max_text: int = 100_000  # characters of one text
    max_results: int = 1000  # hits of one search
    max_tokens: int = 1024  # of one answer
    max_queue: int = 1024  # inputs that wait to be embedded
    max_waiting: int = 64  # requests of any other kind that wait
    body_timeout: float = 30.0  # seconds for a request to arrive
    timeout: float = 120.0  # seconds for an answer
    chats: int = 2  # answers written at a time

    def __post_init__(self) -> None:
        least = {"fixed_batch": 0, "port": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("int", "float") and (isinstance(value, bool) or value < least.get(field.name, 1)):
                raise DiptychError(f"serve: {field.name} is {value!r}; expected at least {least.get(field.name, 1)}")
        if self.port > 65535:
            raise DiptychError(f"serve: port is {self.port}; expected at most 65535")
        if self.fixed_batch > self.max_batch:
            raise DiptychError(f"serve: fixed_batch {self.fixed_batch} is above max_batch {self.max_batch}")
        if self.token is not None and (
            len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or not self.token.isprintable()
        ):
            raise DiptychError(
                f"serve: the token needs at least {SHORTEST_TOKEN} printable ASCII characters; leave it out to have one made"
            )
        if self.token is None and not self.local:
            raise DiptychError(f"serve: {self.host} can be reached by others, so a token is needed")

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
