"""A run of pictures that is shown clips: ``pooled:RUN``, from training to records."""

from __future__ import annotations

import pytest

import diptych as dp
from diptych.core.files import read_json

FAST = ["stages.0.batch_size=16", "stages.0.warmup=2", "parts.vision.depth=1", "parts.text.depth=1", "precision=fp32"]


def test_a_run_of_pictures_is_exactly_at_chance_on_the_order_of_frames(tmp_path) -> None:
    dp.train("clip", data="scenes:small", budget="64 samples", out=tmp_path / "clip", set=FAST)
    address, data = f"pooled:{tmp_path}/clip", "scenes:clips?actions=all&size=48"
    tasks = ["temporal?n=5&skills=order&skills=direction&skills=counting&skills=depth", "video-retrieval?n=12", "actions?n=12"]
    found = dp.evaluate(address, data, tasks, out=tmp_path / "out")
    assert not found.skipped
    by = {(r.task, r.metric): r for r in found.results}
    for skill in ("order", "direction", "counting"):
        assert by["temporal", skill].value == by["temporal", f"{skill}/text-to-image"].value == 0.5
        assert by["temporal", f"{skill}/gain"].value == 0
    assert all(r.value == pytest.approx(0) for (task, metric), r in by.items() if metric.endswith("/gain") and task != "temporal")
    assert by["video-retrieval", "image-to-text/recall@1"].controls.keys() >= {"one_frame", "shuffled_frames", "reversed", "blind"}
    state = read_json(tmp_path / "out" / "state.json")
    assert state["model"] == "pooled:clip" and state["key"].endswith("pooled 0"), "so that records are kept for these weights"
    model = dp.load(f"{address}?frames=4")
    assert model.name == "pooled:clip?frames=4" and model.key.endswith("pooled 4")
