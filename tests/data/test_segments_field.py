"""Clips in pieces with a text each, from events of the built-in world and from subtitles; the shortest caption."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config.recipe import FieldSpec
from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Sample, Video
from diptych.data.fields import Context, Draw, build_fields, kinds_of_fields
from diptych.data.fields.segments import shown_in
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.text import BOS, EOS, Tokenizer

WORDS = Tokenizer.train(["the fox runs home", "a cat sleeps", "one two three four five"], 400, 24)


def numbered(count, fps=2.0):
    """A clip that shows the number of each frame."""
    return Video([np.full((16, 16, 3), i, np.uint8) for i in range(count)], [i / fps for i in range(count)])


def field(**options):
    own = {"segments": FieldSpec(kind="segments", **options)}
    return build_fields(["segments"], Context(WORDS, 16, own=own))["segments"]


def draw(made, sample, position=0):
    return Draw(0, position, sample, {"segments": made.fit(sample, lambda: None)})


SPEECH = [
    {"text": "the fox runs", "start": 0.0, "end": 2.0},
    {"text": "a cat sleeps", "start": 2.0, "end": 3.0},
    {"text": "one two", "start": 6.0, "end": 8.0},
]


def test_pieces_have_the_frames_of_their_intervals():
    sample = Sample("a", {"speech": SPEECH, "events": [{"text": "no", "start": 0, "end": 1}]}, video=numbered(20))
    made = field(count=3, frames=2)
    batch = made.collate([draw(made, sample), draw(made, sample, 1)])
    assert batch.frames.pixels[:, 0, 0, 0].tolist() == [1, 3, 4, 5, 13, 15] * 2  # 0.5, 1.5 | 2.25, 2.75 | 6.5, 7.5 s
    assert batch.seconds.tolist()[:3] == [0.5, 1.5, 2.0]
    assert batch.owner.tolist() == [0] * 6 + [1] * 6 and batch.rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert batch.texts.strings[:3] == tuple(row["text"] for row in SPEECH) and batch.texts.owner.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.place.tolist() == list(range(6)) * 2
    assert batch.texts.meaning[0] == batch.texts.meaning[3] and len(set(batch.texts.meaning.tolist())) == 3
    story = batch.story.ids[0][batch.story.mask[0]].tolist()
    own = [WORDS.caption_pieces([row["text"]])[0] for row in SPEECH]
    assert story == [BOS, *own[0], BOS, *own[1], BOS, *own[2], EOS]


def test_a_frame_of_the_interval_is_preferred():
    seconds = [0.0, 10.0, 20.0]
    assert shown_in(seconds, 7, 12, 1) == [1] and shown_in(seconds, 7, 9, 1) == [0] and shown_in(seconds, 0, 20, 2) == [0, 1]
    assert shown_in(seconds, 30, 40, 2) == [2, 2] and shown_in([5.0], 0, 2, 1) == [0]


def test_subtitles_next_to_a_file(tmp_path):
    """What is said goes with the frames that are shown meanwhile."""
    frames = [Image.new("RGB", (16, 16), (0, 0, 25 * i)) for i in range(10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    cues = [("00:00:00,000 --> 00:00:02,000", "the fox runs"), ("00:00:03,000 --> 00:00:05,000", "a cat sleeps")]
    (tmp_path / "a.srt").write_text("\n".join(f"{i + 1}\n{when}\n{text}\n" for i, (when, text) in enumerate(cues)))
    source = open_source(f"video:{tmp_path}?speech=caption&frames=10")
    made = field(count=2)
    batch = made.collate([draw(made, source[0])])
    assert batch.texts.strings == ("the fox runs", "a cat sleeps") and batch.seconds.tolist() == [1.0, 4.0]
    assert [round(v / 25) for v in batch.frames.pixels[:, 2, 0, 0].tolist()] == [2, 8]


def test_long_stories_are_cut_evenly():
    rows = [{"text": "one two three four five one two three four five one two", "start": i, "end": i + 1} for i in range(3)]
    made = field(count=3)
    story = made.collate([draw(made, Sample("a", {"speech": rows}, video=numbered(8)))]).story
    starts = (story.ids[0] == BOS).nonzero()[:, 0].tolist()
    assert story.ids.shape[1] <= 24 and len(starts) == 3 and {b - a for a, b in pairwise(starts)} == {7}


def test_places_are_withheld_as_often_as_asked():
    made = field(count=4, shuffle=0.4)
    rows = [{"text": f"text {i}", "start": i, "end": i + 1} for i in range(4)]
    sample = Sample("a", {"events": rows}, video=numbered(8))
    counts = np.zeros(5, int)
    for position in range(2000):
        places = made.places(draw(made, sample, position))
        hidden = [p for p in places if p < 0]
        counts[len(hidden)] += 1
        assert len(set(hidden)) == len(hidden) and all(-5 < p < 4 and (p < 0 or p == i) for i, p in enumerate(places))
        assert places == made.places(draw(made, sample, position))
    assert counts[1] == 0 and counts[0] / 2000 == pytest.approx(0.6, abs=0.04)
    assert counts[2:] / 2000 == pytest.approx([0.4 / 3] * 3, abs=0.03)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DiptychError, match="set frames: 1"):
        field(frames=2, shuffle=0.4)
    with pytest.raises(BrokenItem, match=r"3 texts with times, and data\.fields\.segments\.count is 4"):
        field(count=4).fit(Sample("a", {"speech": SPEECH}, video=numbered(20)), lambda: None)
    with pytest.raises(BrokenItem, match="no video"):
        field(count=1).fit(Sample("a", {"speech": SPEECH}), lambda: None)
    assert "segments" not in kinds_of_fields()


def test_batches_of_pieces_are_joined():
    source, made = open_source("scenes:clips?actions=all&size=32&events=3&clip_frames=24"), field(count=3, shuffle=0.5)
    draws = [Draw(0, i, source[i], {"segments": made.fit(source[i], lambda: None)}) for i in range(4)]
    whole = Batch({"segments": made.collate(draws)}, 4)
    joined = Batch.cat([Batch({"segments": made.collate(draws[i : i + 2])}, 2) for i in (0, 2)], 24)
    one, two = whole["segments"], joined["segments"]
    assert torch.equal(one.rows, two.rows) and torch.equal(one.owner, two.owner) and torch.equal(one.place, two.place)
    assert torch.equal(one.texts.owner, two.texts.owner) and torch.equal(one.frames.pixels, two.frames.pixels)
    assert torch.equal(one.story.ids, two.story.ids[:, : one.story.ids.shape[1]]) and one.story.strings == two.story.strings
    light = joined.light()["segments"]
    assert light.frames is None and torch.equal(light.rows, one.rows) and light.story is not None
    said = [row["text"] for row in source[0].extra["events"]]
    assert list(one.texts.strings[:3]) == said and one.story.strings[0] == ", then ".join(said)


def test_the_shortest_caption():
    shortest = build_fields(["summary"], Context(WORDS, own={"summary": "shortest"}))["summary"]
    sample = Sample("a", text=Captions(["one two three", "a cat", "the fox"], ["x", "y", "z"]))
    for position in range(4):
        row = Draw(0, position, sample, {"summary": shortest.fit(sample, lambda: None)})
        assert shortest.collate([row]).strings == ("a cat",)
