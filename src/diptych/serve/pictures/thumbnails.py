"""Small pictures, kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

KEPT = 64 << 20  # bytes


class Thumbnails:
    """The last thumbnails, up to ``KEPT`` bytes."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> bytes | None:
        """A thumbnail, if it is there."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: tuple[Any, ...], data: bytes) -> None:
        """Keeps a thumbnail; the ones that were not wanted for longest leave."""
        with self._lock:
            self._bytes += len(data) - len(self._held.pop(key, b""))
            self._held[key] = data
            while self._bytes > KEPT and self._held:
                self._bytes -= len(self._held.popitem(last=False)[1])
