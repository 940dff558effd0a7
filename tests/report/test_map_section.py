"""The verdicts on maps in a report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diptych.benchmarks.maps.saved import FILE
from diptych.benchmarks.maps.verdict import measure
from diptych.core.files import write_json
from diptych.report.sections.maps import map_verdicts
from maps_fixture import Colours, colour_items


def comparison(path: Path, key: str) -> Any:
    run = SimpleNamespace(files=SimpleNamespace(path=path), seed=3, evaluation=SimpleNamespace(key=lambda: key))
    return SimpleNamespace(recipes=[SimpleNamespace(label="<clip>", runs=[run])])


def test_judged_maps_of_the_evaluated_weights_are_shown(tmp_path: Path) -> None:
    assert map_verdicts(comparison(tmp_path, "k")) == ""
    items = colour_items(6)
    verdicts = [{**measure(Colours(), m, items=items).as_dict(), "key": "k"} for m in ("colour", "any")]
    write_json(tmp_path / FILE, {"verdicts": verdicts})
    page = map_verdicts(comparison(tmp_path, "k"))
    assert page.count("✓ faithful") == 1 and page.count("✗ not faithful") == 1 and "does not beat a wrong caption" in page
    assert "&lt;clip&gt;" in page and "seed 3" in page and "points at the object" in page
    assert map_verdicts(comparison(tmp_path, "other weights")) == ""
