"""``scenes:clips`` and ``scenes:albums``: what is said is true, in this order only."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.core.sample import Video
from diptych.data.clips import as_video, clip_array, clips_as_images
from diptych.data.conversations.turns import check_images
from diptych.data.fields.base import grey
from diptych.data.scenes import Albums, Clips, open_scenes
from diptych.data.scenes.albums import sentence
from diptych.data.scenes.clips import describe, falsehoods, form_of, meaning
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.graph import Graph, is_held_out
from diptych.data.scenes.language import NUMBERS
from diptych.data.scenes.language import meaning as fact
from diptych.data.scenes.layout import picture
from diptych.data.scenes.motion import FPS, FRAMES, INVERSE, MOTIONS, Clip, frames_of
from diptych.data.source import BrokenItem

N = 200
ORDINALS = ("first", "second", "third", "fourth", "fifth")


@pytest.fixture(scope="module")
def clips() -> Clips:
    return open_scenes("scenes:clips")


@pytest.fixture(scope="module")
def albums() -> Albums:
    return open_scenes("scenes:albums")


def test_a_clip_is_a_function_of_its_number(clips):
    again = open_scenes("scenes:clips")
    for i in (0, 7, 100):
        a, b = clips[i], again[i]
        assert a.id == b.id == f"train/{i}" and (a.captions, a.negatives, a.meanings) == (b.captions, b.negatives, b.meanings)
        frames = a.fields["video"].frames
        assert all(np.array_equal(x, y) for x, y in zip(frames, b.fields["video"].frames, strict=True))
        assert len(frames) == FRAMES and all(f.shape == (64, 64, 3) and f.dtype == np.uint8 for f in frames)
        assert a.fields["video"].seconds == [k / 4 for k in range(FRAMES)] and clips.captions(i) == a.captions
        assert Clip.from_dict(a.extra["graph"]) == clips.graph(i)
    assert len(clips) == len(open_scenes("scenes:small")) and clips.image_size == 64


def test_played_backwards_a_clip_is_its_inverse(clips):
    """So the frames without their order say nothing of the motion."""
    for i in range(N):
        clip = clips.graph(i)
        forth, back = frames_of(clip, 48)[0], frames_of(clip.reversed(), 48)[0]
        assert all(np.array_equal(a, b) for a, b in zip(forth, back[::-1], strict=True)), clip
        assert clip.reversed().reversed() == clip and clip.reversed().possible() and clip.possible()


def test_motions_are_balanced(clips):
    for block in range(3):
        first = Counter(clips.graph(64 * block + i).events[0].motion for i in range(64))
        assert first == dict.fromkeys(MOTIONS, 8)
    forms = Counter(form_of(clips.graph(i)) for i in range(640))
    assert min(forms.values()) > 80 and set(forms) == {"one", "who", "order", "pair"}
    second = Counter(e.motion for i in range(1280) for e in clips.graph(i).events[1:])
    assert max(second.values()) < 1.6 * min(second.values())
    sides = Counter(e.side for i in range(1280) for e in clips.graph(i).events if e.side)
    assert max(sides.values()) < 1.5 * min(sides.values())


def happens(track: list, event, frames: range) -> bool:
    """Whether the boxes of a thing show the event within these frames."""
    boxes = [track[k] for k in frames]
    if event.motion in ("enter", "leave"):
        order = boxes if event.motion == "enter" else boxes[::-1]
        first = next(b for b in order if b)
        x, y = (first[0] + first[2]) / 2, (first[1] + first[3]) / 2
        near = {"left": x < 22, "right": x > 42, "top": y < 22, "bottom": y > 42}[event.side]
        return order[0] is None and order[-1] is not None and near
    (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes[0], boxes[-1]
    dx, dy, grown = (u0 + u1 - x0 - x1) / 2, (v0 + v1 - y0 - y1) / 2, (u1 - u0) / (x1 - x0)
    return {
        "left": dx < -5 and abs(dy) < 2, "right": dx > 5 and abs(dy) < 2, "up": dy < -5 and abs(dx) < 2, "down": dy > 5 and abs(dx) < 2,
        "grow": grown > 1.5, "shrink": grown < 0.67,
    }[event.motion]  # fmt: skip


def test_the_frames_show_what_the_graph_says(clips):
    for i in range(N):
        sample, clip = clips[i], clips.graph(i)
        tracks = [t["boxes"] for t in sample.extra["tracks"]]
        slots = [range(FRAMES)] if len(clip.events) == 1 else [range(4), range(4, 8)]
        for event, slot in zip(clip.events, slots, strict=True):
            assert happens(tracks[event.thing], event, slot), (i, clip)
            assert not happens(tracks[event.thing], event._replace(motion=INVERSE[event.motion]), slot)
        for thing in set(range(len(clip.things))) - {e.thing for e in clip.events}:
            assert len({tuple(box) for box in tracks[thing]}) == 1, "stays where it is"
        frames = sample.fields["video"].frames
        assert any((a != b).any() for a, b in itertools.pairwise(frames))


def test_captions_follow_the_graph_and_negatives_differ_in_one_thing(clips):
    kinds = Counter()
    for i in range(N):
        sample, clip = clips[i], clips.graph(i)
        wordings = {describe(clip, style): meaning(clip) for style in range(4)}
        assert set(sample.captions) <= set(wordings) and len(set(sample.captions)) == len(sample.captions) == 2
        assert sample.meanings == [meaning(clip)] * 2
        wrong = {describe(w, style): w for k in range(60) for _, w in falsehoods(clip, Random(k)) for style in range(4)}
        for negative in sample.negatives:
            false = wrong[negative]
            assert negative not in wordings and meaning(false) != meaning(clip) and false.possible()
            assert false.things == clip.things and len(false.events) == len(clip.events)
            moved = [e.motion for e in false.events] != [e.motion for e in clip.events]
            kinds["motion" if moved else "side or thing"] += 1
    assert min(kinds.values()) > 40
    order = [clips.graph(i) for i in range(N) if len(clips.graph(i).events) == 2]
    assert all(re.search(r"first .*, then |before|after|and then", describe(clip, s)) for clip in order for s in range(4))


def test_labels_are_motions(clips):
    for i in range(64):
        label, clip = clips[i].fields.get("label"), clips.graph(i)
        assert (label is not None) == (len(clip.events) == 1)
        if label is not None:
            assert MOTIONS[label.index] == clip.events[0].motion and clips.classes[label.index] == label.name
    assert clips.classes == ["move left", "move right", "move up", "move down", "grow", "shrink", "enter", "leave"]


@pytest.mark.parametrize("kind", ["clips", "albums"])
def test_splits_go_by_seed_and_hold_out_combinations(kind):
    source = open_scenes(f"scenes:{kind}?seed=3")
    prints = {name: source.split(name).fingerprint() for name in ("train", "test", "heldout-combinations", "heldout-concepts")}
    assert len(set(prints.values())) == 4 and source.fingerprint() == prints["train"] != open_scenes(f"scenes:{kind}").fingerprint()
    reopened = open_scenes(source.split("test").address)
    assert type(reopened) is type(source) and reopened[5].captions == source.split("test")[5].captions != source[5].captions
    assert len(source.split("test")) == 10_000

    def held(split: str, i: int) -> bool:
        part = source.split(split)
        graph = part.graph(i)
        scenes = graph.graphs if kind == "albums" else [Graph((t,)) for t in graph.things]
        return any(is_held_out(scene, part.world) for scene in scenes)

    assert not any(held("train", i) for i in range(60)) and all(held("heldout-combinations", i) for i in range(20))
    unseen = set(source.world.unseen)
    part = source.split("heldout-concepts")
    for i in range(20):
        graph = part.graph(i)
        things = graph.graphs[0].things if kind == "albums" else graph.things
        assert things[0].concept in unseen


@pytest.mark.parametrize("kind", ["clips", "albums"])
def test_options_and_conversations(kind):
    source = open_scenes(f"scenes:{kind}?size=48&ask=2&colours=3&length=20")
    assert len(source) == 20 and "turns" in source.fields
    for i in range(20):
        sample = source[i]
        conversation = sample.fields["turns"]
        check_images(conversation.turns, len(conversation.images))
        asked = {q["question"]: q["answer"] for q in sample.extra["questions"]}
        assert conversation.images[0].shape == (48, 48, 3) and 2 <= len(conversation.turns) <= 4
        for question, answer in zip(conversation.turns[::2], conversation.turns[1::2], strict=True):
            assert asked[question.text.rpartition("\n")[2]] == answer.text
        assert source.captions(i) == sample.captions + [t.text for t in conversation.turns]
    for wrong, said in (("frames=2", "no option 'frames'"), ("trios=1", "no option 'trios'"), ("size=4", "size must be")):
        with pytest.raises(DiptychError, match=said):
            open_scenes(f"scenes:{kind}?{wrong}")


def test_questions_about_clips_have_true_answers(clips):
    for i in range(60):
        clip, asked = clips.graph(i), clips[i].extra["questions"]
        answers = Counter(q["answer"] for q in asked if q["kind"] == "motion")
        assert answers == {"yes": 1, "no": 1}
        for q in asked:
            if q["kind"] == "order":
                event = clip.events[0 if "first" in q["question"] else -1]
                assert by_name()[clip.things[event.thing].concept].name in q["answer"]


def test_albums_are_texts_and_pictures_in_turn(albums):
    sizes = Counter()
    for i in range(N):
        sample, album = albums[i], albums.graph(i)
        parts = sample.fields["document"].parts
        texts, pictures = parts[::2], parts[1::2]
        assert all(isinstance(t, str) for t in texts) and all(p.shape == (64, 64, 3) for p in pictures)
        assert 2 <= len(pictures) <= 5 and len(texts) == len(pictures) == len(album.steps)
        assert sample.captions == [" ".join(texts)] == albums.captions(i)
        sizes[len(pictures)] += 1
        for a, b in zip(album.graphs, album.graphs[1:], strict=False):
            assert fact(a) != fact(b), "each picture differs from the one before"
    assert set(sizes) == {2, 3, 4, 5}


def test_what_albums_say_is_true_and_their_negatives_are_not(albums):
    steps, wrong = Counter(), 0
    for i in range(N):
        sample, album = albums[i], albums.graph(i)
        concept = album.graphs[0].things[0].concept
        for k, (step, graph) in enumerate(zip(album.steps, album.graphs, strict=True)):
            main = next(t for t in graph.things if t.concept == concept)
            steps[step.what] += 1
            truth = {
                "first": k == 0,
                "colour": main.colour == step.value,
                "count": NUMBERS[main.count] == step.value,
                "position": graph.position == step.value,
                "part": graph.things == (main,),
                "again": any(o == step.value and fact(graph) == fact(g) for o, g in zip(ORDINALS, album.graphs[:k], strict=False)),
                "join": len(graph.things) == 2,
            }
            assert truth[step.what], (step, graph)
            if step.what == "join":
                boxes = {b["concept"]: b["box"] for b in picture(graph, 64)[1]}
                joined = next(box for name, box in boxes.items() if name != concept)
                own = boxes[concept]
                dx, dy = joined[0] + joined[2] - own[0] - own[2], joined[1] + joined[3] - own[1] - own[3]
                assert {"to the right of it": dx > 0, "to the left of it": dx < 0, "below it": dy > 0, "above it": dy < 0}[
                    step.value
                ]
            assert step.value in sentence(album, k, step, 0) or step.what in ("first", "part")
        (negative,) = sample.negatives
        if negative:
            wrong += 1
            assert negative != sample.captions[0]
            assert negative.count(".") == sample.captions[0].count("."), "one statement is wrong, none is missing"
            differing = [a for a, b in zip(negative.split("."), sample.captions[0].split("."), strict=True) if a != b]
            assert len(differing) == 1
    assert (
        wrong > 0.95 * N
        and min(steps.values()) > 10
        and set(steps) == {"first", "colour", "count", "position", "join", "part", "again"}
    )


@pytest.mark.parametrize("skill", ["motion", "side", "order", "who"])
def test_groups_of_clips_differ_in_their_skill_alone(clips, skill):
    """Two clips of the same things before the same ground; each caption is true of its own clip, in the same words."""
    groups = clips.groups(skill, 6)
    assert [group.id for group in groups] == [f"{skill}/{i}" for i in range(6)]
    assert [g.captions for g in clips.groups(skill, 8)[:6]] == [g.captions for g in groups]
    for group in groups:
        (a, b), (true, false) = group.images, group.captions
        assert a.shape == b.shape == (FRAMES, clips.world.size, clips.world.size, 3) and (a != b).any()
        assert a.seconds == [i / FPS for i in range(FRAMES)] and true != false
        if skill in ("order", "who"):
            assert sorted(re.findall(r"\w+", true)) == sorted(re.findall(r"\w+", false))
        else:
            words = zip(true.split(), false.split(), strict=False)
            assert len(true.split()) != len(false.split()) or 1 <= sum(x != y for x, y in words) <= 4
    with pytest.raises(DiptychError, match="no skill 'oder'.*order"):
        clips.groups("oder", 1)


def test_clips_in_the_place_of_images(clips):
    shown = clips_as_images(clips)
    assert "image" in shown.fields and "video" not in shown.fields and len(shown) == len(clips)
    sample = shown[3]
    np.testing.assert_array_equal(sample.image, np.stack(clips[3].fields["video"].frames))
    assert sample.captions == clips[3].captions and as_video(sample.image, "").seconds == clips[3].fields["video"].seconds
    assert as_video(grey(sample.image), "").seconds == clips[3].fields["video"].seconds
    kept = shown.retrieval(20)
    assert len({s.meanings[0] for s in kept}) == 20
    with pytest.raises(BrokenItem, match="frames of different sizes"):
        clip_array(Video([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)], [0, 1]), "x")
    with pytest.raises(DiptychError, match="uint8 pixels"):
        as_video(np.zeros((2, 4, 4), np.uint8), "x")
