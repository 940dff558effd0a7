"""Every metric that a registered task reports in these tests is one of those that it is known to have."""

from __future__ import annotations

from typing import Any

import pytest

from diptych.benchmarks.metric_names import has_metric
from diptych.benchmarks.tasks import TASKS


@pytest.fixture(autouse=True)
def _known_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in {c for registered in TASKS.values() for c in registered.__mro__ if "summarise" in c.__dict__}:

        def summarise(self: Any, records: Any, own: Any = cls.__dict__["summarise"]) -> Any:
            results = own(self, records)
            assert all(has_metric(self, r.metric) for r in results), [r.metric for r in results if not has_metric(self, r.metric)]
            return results

        if not getattr(cls, "_is_protocol", False):
            monkeypatch.setattr(cls, "summarise", summarise)
