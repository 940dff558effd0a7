"""Tasks on clips: an oracle is right, a pooled model is exactly at chance on same frames, and controls are what they say."""

from __future__ import annotations

import hashlib
import json
import zlib

import numpy as np
import pytest

from diptych.benchmarks.run import evaluate, recompute
from diptych.benchmarks.tasks import task
from diptych.benchmarks.video.conditions import CONDITIONS, CONTROLS, shown
from diptych.benchmarks.video.moments import first_right, iou, windows
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.data.clips import as_video, clips_as_images
from diptych.data.scenes import open_scenes
from diptych.data.scenes.actions.draw import SAME_FRAMES, SKILLS
from diptych.data.source import Group
from diptych.data.sources import open_source
from diptych.inference.foreign.pooled import PooledModel, evenly, split_address
from diptych.inference.load import load

PLACE = np.random.default_rng(0).normal(size=(48 * 48 * 3, 24))


@pytest.fixture(scope="module")
def source():
    return open_scenes("scenes:clips?actions=all&size=48").split("test")


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def words(texts) -> np.ndarray:
    return unit([np.random.default_rng(zlib.crc32(text.encode())).normal(size=24) for text in texts])


def pictures(seen: list | None = None) -> FunctionModel:
    """A model of pictures with random vectors; seen: the frames that it was shown."""

    def embed(images) -> np.ndarray:
        if seen is not None:
            seen.extend(image.tobytes() for image in images)
        return unit([image.astype(float).ravel() @ PLACE for image in images])

    return FunctionModel("random pictures", embed_image=embed, embed_text=words)


def key(clip) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(clip).tobytes()).digest()


def oracle(true: dict[bytes, set[str]]) -> FunctionModel:
    """A model that knows which texts are true of which clip, frame by frame in their order."""
    model = FunctionModel(
        "oracle", score=lambda clips, texts: np.array([[t in true.get(key(c), ()) for t in texts] for c in clips], float)
    )
    model.shows = "video"
    return model


def test_conditions_are_what_they_say(source) -> None:
    clip = clips_as_images(source)[0].image
    seen = {c: shown(clip, c, "x") for c in CONDITIONS}
    frames = [f.tobytes() for f in clip]
    assert all(as_video(s, "").seconds == as_video(clip, "").seconds for s in seen.values()), "times stay"
    assert [f.tobytes() for f in seen["reversed"]] == frames[::-1] and seen["correct"] is clip
    assert {f.tobytes() for f in seen["one_frame"]} == {frames[8]} and len(seen["one_frame"]) == 16
    mixed = [f.tobytes() for f in seen["shuffled_frames"]]
    assert sorted(mixed) == sorted(frames) and mixed not in (frames, frames[::-1])
    assert (seen["shuffled_frames"] == shown(clip, "shuffled_frames", "x")).all(), "the same every time"
    assert len(np.unique(seen["blind"])) == 1
    assert len(shown(clip[:1], "shuffled_frames", "x")) == 1 and len(shown(clip[:2], "shuffled_frames", "x")) == 2


def test_pooling_is_exactly_at_chance_on_pairs_of_the_same_frames(source) -> None:
    found = evaluate(PooledModel(pictures()), source, [task("temporal?n=6")])
    by = {r.metric: r for r in found.results}
    assert not found.skipped and {m.partition("/")[0] for m in by} == set(SKILLS)
    for skill in SAME_FRAMES:
        assert (
            by[skill].value == by[f"{skill}/text-to-image"].value == 0.5
            and by[f"{skill}/group"].value == 0  # not both, with equal clips
        )
        assert by[f"{skill}/gain"].value == 0 == by[f"{skill}/gain"].low == by[f"{skill}/gain"].high
        assert by[skill].controls["shuffled_frames"] == by[skill].controls["reversed"] == by[skill].controls["blind"] == 0.5
    assert any(by[skill].value != 0.5 for skill in set(SKILLS) - set(SAME_FRAMES)), "other frames can be told apart"


def test_scores_without_vectors_are_pooled_exactly_too(source) -> None:
    """With scores whose last digits depend on nothing but the frame and the text."""
    scoring = FunctionModel(
        "scores", score=lambda images, texts: unit([i.astype(float).ravel() @ PLACE for i in images]) @ words(texts).T
    )
    found = evaluate(PooledModel(scoring), source, [task("temporal?n=4&skills=order&skills=direction&skills=depth")])
    assert found.value("temporal", "order") == found.value("temporal", "direction") == 0.5
    assert found.value("temporal", "order/gain") == 0


def test_an_oracle_is_right_and_its_gain_is_what_it_loses_without_order(source, tmp_path) -> None:
    groups: list[Group] = [g for skill in ("direction", "order", "speed") for g in source.groups(skill, 10)]
    true: dict[bytes, set[str]] = {}
    for group in groups:
        for clip, caption in zip(group.images, group.captions, strict=True):
            true.setdefault(key(clip), set()).add(caption)
    chosen = task("temporal?n=10&skills=direction&skills=order&skills=speed")
    found = evaluate(oracle(true), source, [chosen], tmp_path / "out", key="k")
    by = {r.metric: r for r in found.results}
    for skill in ("direction", "order", "speed"):
        assert by[skill].value == 1 == by[f"{skill}/group"].value and by[skill].controls.keys() == set(CONTROLS)
        assert by[skill].controls["shuffled_frames"] == by[skill].controls["one_frame"] == by[skill].controls["blind"] == 0.5
        gain = by[f"{skill}/gain"]
        assert gain.value == 0.5 and gain.chance == 0 and gain.n == 10
    assert by["direction"].controls["reversed"] == 0, "backwards it is the other clip of the pair"
    again = recompute(tmp_path / "out")
    assert {r.metric: (r.value, dict(r.controls)) for r in again.results} == {m: (r.value, dict(r.controls)) for m, r in by.items()}


def test_a_gain_has_the_interval_of_the_paired_difference() -> None:
    from diptych.benchmarks.video.conditions import gain

    rng = np.random.default_rng(1)
    ordered, mixed = rng.integers(0, 2, 200).astype(float), rng.integers(0, 2, 200).astype(float)
    records = [
        {"item": i, "cluster": i, "correct": {"m": a}, "shuffled_frames": {"m": b}}
        for i, (a, b) in enumerate(zip(ordered, mixed, strict=True))
    ]
    result = gain("t", "m", records)
    difference = ordered - mixed
    half = 1.97 * difference.std(ddof=1) / 200**0.5
    assert result.value == pytest.approx(difference.mean()) and result.high - result.low == pytest.approx(2 * half, rel=0.1)


def test_retrieval_of_clips(source) -> None:
    shown_source = clips_as_images(source)
    items = shown_source.retrieval(20)
    true = {key(item.image): set(item.captions) for item in items}
    found = evaluate(oracle(true), source, [task("video-retrieval?n=20")])
    by = {r.metric: r for r in found.results}
    for way in ("image-to-text", "text-to-image"):
        assert by[f"{way}/recall@1"].value == 1 and by[f"{way}/recall@1"].chance == pytest.approx(1 / 20)
        assert by[f"{way}/recall@1"].controls["blind"] == pytest.approx(1 / 20) and by[
            f"{way}/recall@1/gain"
        ].value == pytest.approx(0.95)
    pooled = evaluate(PooledModel(pictures()), source, [task("video-retrieval?n=20")])
    assert all(r.value == 0 for r in pooled.results if r.metric.endswith("/gain")), "pooling does not see the order"
    skipped = evaluate(
        pictures(), source, [task("video-retrieval"), task("temporal?n=1"), task("actions"), task("moments")]
    ).skipped
    assert len(skipped) == 4
    assert "pooled:random pictures" in next(s["reason"] for s in skipped if s["task"] == "temporal")
    still = evaluate(
        oracle({}),
        open_scenes("scenes:small").split("test"),
        [task("temporal?n=1"), task("moments"), task("video-retrieval?n=2"), task("actions")],
    )
    assert len(still.skipped) == 4 and not still.results


def test_moments_by_an_oracle_of_windows() -> None:
    source = open_scenes("scenes:clips?events=3&size=48").split("test")
    items = [clips_as_images(source)[i] for i in range(4)]
    true: dict[bytes, set[str]] = {}
    reachable = 0
    for item in items:
        for event in item.extra["events"]:
            spans = windows(len(item.image), (0.125, 0.1875, 0.25, 0.375, 0.5), 0.25)
            overlaps = [iou((a / 8, b / 8), (event["start"], event["end"])) for a, b in spans]
            a, b = spans[int(np.argmax(overlaps))]
            true.setdefault(key(item.image[a:b]), set()).add(event["text"])
            reachable += max(overlaps) >= 0.5
    found = evaluate(oracle(true), source, [task("moments?n=4")])
    by = {r.metric: r for r in found.results}
    assert by["recall@1"].value == 1 and by["recall@1"].n == reachable >= 11 and 0 < by["recall@1"].chance < 0.3
    assert by["recall@1"].controls["blind"] == pytest.approx(by["recall@1"].chance), "without a picture all windows are alike"
    assert by["recall@1"].clusters == 4


def test_moments_of_video_files(tmp_path) -> None:
    """ActivityNet's JSON: a model that scores a window by how bright it is finds when it grows bright."""
    av = pytest.importorskip("av")
    for name in ("a", "b"):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            for k in range(32):
                grey = np.full((32, 32, 3), 230 if (k >= 16) == (name == "a") else 20, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            container.mux(stream.encode())
    halves = {"duration": 4.0, "timestamps": [[0.0, 2.0], [2.0, 4.0]]}
    described = {"a": {**halves, "sentences": ["dark", "bright"]}, "b": {**halves, "sentences": ["bright", "dark"]}}
    (tmp_path / "activity.json").write_text(json.dumps(described))
    sign = {"bright": 1, "dark": -1}
    model = FunctionModel(
        "brightness",
        score=lambda clips, texts: np.array([[sign[t] * (float(c.mean()) - 125) * len(c) ** 0.5 for t in texts] for c in clips]),
    )
    model.shows = "video"
    found = evaluate(model, open_source(f"video:{tmp_path}/activity.json?videos={tmp_path}"), [task("moments?n=2")])
    result = next(r for r in found.results if r.metric == "recall@1")
    assert result.value == 1 and result.n == 4 and result.clusters == 2 and 0 < result.chance < 0.5
    assert result.controls["blind"] == pytest.approx(result.chance, abs=0.2) and result.controls["reversed"] == 1, (
        "brightness has no direction"
    )


def test_intervals_by_hand() -> None:
    assert iou((0, 2), (1, 3)) == pytest.approx(1 / 3) and iou((0, 1), (2, 3)) == 0 and iou((1, 2), (1, 2)) == 1
    assert windows(16, (0.25, 0.5), 0.5) == [(0, 4), (2, 6), (4, 8), (6, 10), (8, 12), (10, 14), (12, 16), (0, 8), (4, 12), (8, 16)]
    assert windows(1, (0.5,), 0.5) == [(0, 1)]
    assert first_right(np.array([1.0, 3.0, 3.0]), np.array([True, True, False])) == 0.5
    assert first_right(np.array([np.nan, np.nan]), np.array([True, False])) == 0.5


def test_naming_actions(source) -> None:
    shown_source = clips_as_images(source)
    texts = shown_source.class_texts
    assert "moves left" in texts and "passes behind" in texts and "hits" in texts and len(texts) == len(source.classes)
    true = {}
    for i in range(60):
        sample = shown_source[i]
        if "label" in sample.fields:
            true[key(sample.image)] = {texts[sample.fields["label"].index]}
    found = evaluate(oracle(true), source, [task("actions?n=20")])
    by = {r.metric: r for r in found.results}
    assert by["top1"].value == 1 and by["top1"].chance == pytest.approx(1 / len(texts)) and by["top1"].slices
    assert by["top1"].controls["blind"] == pytest.approx(1 / len(texts)) and by["top1/gain"].value == pytest.approx(
        1 - 1 / len(texts), abs=0.06
    )


# --- the pooled model ---


def test_a_pooled_model_is_the_mean_of_its_frames(source) -> None:
    clips = [clips_as_images(source)[i].image for i in range(3)]
    seen: list[bytes] = []
    model = PooledModel(pictures(seen))
    vectors = model.embed_image(clips)
    plain = []
    for clip in clips:
        each = np.stack([unit([f.astype(float).ravel() @ PLACE])[0] for f in clip]).astype(np.float64)
        mean = each.mean(0)
        plain.append(mean / np.linalg.norm(mean))
    assert np.abs(vectors - np.array(plain)).max() < 1e-6
    assert len(seen) == len(set(seen)) == len({f.tobytes() for clip in clips for f in clip}), "each distinct frame once"
    assert (model.embed_image([clips[0][::-1]]) == vectors[:1]).all() and model.embed_image([clips[0][0]]).shape == (1, 24)
    few = PooledModel(pictures(seen), frames=4)
    assert (
        few.embed_image([clips[1][::-1]]) == few.embed_image([clips[1]])
    ).all() and few.name == "pooled:random pictures?frames=4"
    assert np.allclose(model.score(clips, ["a", "b"]), vectors @ words(["a", "b"]).T)
    assert model.score(clips, ["a", "b"], np.array([[2, 1]])).shape == (1,)


@pytest.mark.parametrize("count", range(1, 20))
def test_frames_are_chosen_alike_forwards_and_backwards(count: int) -> None:
    for wanted in range(1, 20):
        chosen = evenly(count, wanted)
        assert len(chosen) == len(set(chosen)) <= min(wanted, count) and chosen == sorted(chosen) and chosen[-1] < count
        assert wanted == 1 or [count - 1 - i for i in reversed(chosen)] == chosen
        assert len(chosen) >= min(wanted, count) - 1


def test_addresses_of_pooled_models(monkeypatch) -> None:
    assert split_address("pooled:hf:a/b?score=matching&frames=8") == ("hf:a/b?score=matching", {"frames": 8})
    assert split_address("pooled:runs/clip") == ("runs/clip", {})
    for wrong, why in (
        ("pooled:", "has no model"),
        ("pooled:runs/clip?frames=x", "whole number"),
        ("pooled:test_video_tasks:none", "neither embeds nor scores"),
    ):
        with pytest.raises(DiptychError, match=why):
            load(wrong)
    model = load("pooled:test_video_tasks:some?frames=8")
    assert model.frames == 8 and model.shows == "video" and model.capabilities >= {"score", "embed_image"}
    with pytest.raises(DiptychError, match="reads clips itself"):
        PooledModel(oracle({}))


none = FunctionModel("none", generate=lambda *a: [])
some = pictures()
