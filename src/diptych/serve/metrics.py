"""Figures for Prometheus at ``/metrics``: requests, times, queues, batches and tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.core.extras import need

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The figures of one application. Nothing of what a request holds is in them, only routes, methods and statuses."""

    def __init__(self) -> None:
        self._library = need("prometheus_client", extra="serve", what="diptych serve")
        self.registry = self._library.CollectorRegistry()
        self._library.ProcessCollector(registry=self.registry)
        self.requests = self._counter("diptych_requests_total", "Requests", "route", "method", "status")
        self.seconds = self._histogram(
            "diptych_request_seconds", "Seconds from a request to the end of its answer", SECONDS, "route"
        )
        self.running = self._gauge("diptych_requests_running", "Requests that are being answered")
        self.batches = self._histogram("diptych_batch_items", "Inputs embedded at a time", SIZES, "model", "kind")
        self.embedding = self._histogram("diptych_batch_seconds", "Seconds of one such batch", SECONDS, "model", "kind")
        self.tokens = self._counter("diptych_tokens_total", "Tokens read (prompt) and written (completion)", "model", "kind")

    def _counter(self, name: str, about: str, *labels: str) -> Any:
        return self._library.Counter(name, about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Any:
        return self._library.Gauge(name, about, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Any:
        return self._library.Histogram(name, about, labels, registry=self.registry, buckets=buckets)

    def waiting(self, of: str, count: Callable[[], float]) -> None:
        """A figure that is read when it is asked for: how many wait in a queue."""
        self._gauge(f"diptych_{of}_waiting", f"How many wait or run: {of}").set_function(count)

    def batch_of(self, model: str) -> Callable[[str, int, float], None]:
        """Counts the batches of a model."""

        def seen(kind: str, items: int, seconds: float) -> None:
            """One batch."""
            self.batches.labels(model, kind).observe(items)
            self.embedding.labels(model, kind).observe(seconds)

        return seen

    def text(self) -> tuple[bytes, str]:
        """All figures in the form of Prometheus, and its type."""
        return self._library.generate_latest(self.registry), self._library.CONTENT_TYPE_LATEST


class Measured:
    """ASGI middleware: counts and times requests by the route that answered; ``other``: none did."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begun = 500, time.perf_counter()

        async def noted(message: Message) -> None:
            """Notes the status."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.running.inc()
        try:
            await self.app(scope, receive, noted)
        finally:
            self.metrics.running.dec()
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - begun)
