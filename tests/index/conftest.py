"""Backgrounds that a test computes are kept for that test alone."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of ``diptych.index.cutoff.kept``."""
    place = tmp_path_factory.mktemp("cutoff")
    monkeypatch.setattr("diptych.index.cutoff.kept.cache_directory", lambda: place)
    return place
