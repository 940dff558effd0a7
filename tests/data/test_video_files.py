"""Video files: the right frames at their true times from every container, by every sampling; odd and damaged files are named."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
import types

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.data.conversations.turns import check_images
from diptych.data.fields.video import spread
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.video import decode_video
from diptych.data.videos.sampling import HOWS, Sampling
from diptych.data.videos.subtitles import speech
from diptych.data.videos.whole import missing_bytes
from sources_fixture import own_cache, problems, put  # noqa: F401 - fixtures
from video_fixture import CODECS, number, numbers, painted, patched, sound, write

av = pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("own_cache")
KINDS = (*CODECS, "gif", "frames")


def make(place, kind: str, n: int = 60, gap: int = 100) -> str:
    """A clip of 10 frames a second in any of the forms."""
    if kind == "frames":
        for k in range(n):
            file = io.BytesIO()
            Image.fromarray(painted(k)).save(file, "PNG")
            put(f"{place}/a/f{k:04d}.png", file.getvalue())
    elif kind == "gif":
        place.mkdir(parents=True, exist_ok=True)
        pictures = [Image.fromarray(painted(k)) for k in range(n)]
        pictures[0].save(place / "a.gif", save_all=True, append_images=pictures[1:], duration=gap, loop=0)
    else:
        write(place / f"a.{kind}", n)
    put(f"{place}/a.txt", "a clip")
    return f"video:{place}"


def key_frames(path) -> list[int]:
    """Decoding everything, by PyAV alone: encoders put key frames at cuts too."""
    with av.open(str(path)) as container:
        return [number(f.to_ndarray(format="rgb24")) for f in container.decode(video=0) if f.key_frame]


def expected(how: str, n: int, frames: int, fps: float = 10, rate: float = 2, keys=()) -> list[int]:
    """By plain loops, from the frames' numbers."""
    if how == "segments":
        return [int((i + 0.5) * n / frames) for i in range(frames)]
    if how == "first":
        return list(range(frames))
    if how == "uniform":
        return [int(i * (n - 1) / (frames - 1) + 1e-6) for i in range(frames)]
    if how == "rate":
        shown = []
        t = 0.0
        while t <= (n - 1) / fps + 1e-6:
            shown.append(int(t * fps + 1e-6))
            t += 1 / rate
        return [shown[i] for i in spread(len(shown), frames)]
    return [
        keys[i]
        for i in range(len(keys))
        if len(keys) <= frames or i in [int((j + 0.5) * len(keys) / frames) for j in range(frames)]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampling_of_every_container_gives_the_frames_that_it_says(tmp_path, kind):
    """The number of each frame is painted into its pixels."""
    address = make(tmp_path, kind)
    keys = list(range(60)) if kind in ("gif", "frames") else key_frames(tmp_path / f"a.{kind}")
    for how in HOWS:
        video = open_source(f"{address}?frames=5&fps=10&sampling={how}&rate=2")[0].fields["video"]
        assert numbers(video) == expected(how, 60, 5, keys=keys), (kind, how)
        assert video.seconds == pytest.approx([k / 10 for k in numbers(video)], abs=0.0101), "when each is shown"
    assert numbers(open_source(f"{address}?frames=100&fps=10")[0].fields["video"]) == list(range(60))


def test_samplings_by_hand():
    times = [0.0, 0.1, 0.2, 1.2, 1.3, 4.0]
    assert Sampling(3, "uniform").choose(times) == [0, 4, 5]
    assert Sampling(9, "rate", 1.0).choose(times) == [0, 2, 4, 5], "what is shown at 0, 1, 2, 3, 4 s, none twice"
    assert Sampling(2, "keys").choose(times, [0, 3, 5]) == [0, 5] or Sampling(2, "keys").choose(times, [0, 3, 5]) == [0, 3]
    assert Sampling(1, "uniform").choose(times) == [0] and Sampling(4, "first").choose(times) == [0, 1, 2, 3]
    assert Sampling(9, within=(0.1, 1.3)).choose(times) == [1, 2, 3]
    assert Sampling(9, within=(2.0, 3.0)).choose(times) == [4], "between two frames, the one before is shown"
    assert Sampling(9, within=(9.0, 10.0)).choose(times) == [5] and Sampling(2, within=(0.0, 0.05)).choose(times) == [0]


def test_variable_rate_negative_times_and_files_without_times(tmp_path):
    uneven = [0, 100, 200, 1500, 1600, 1700, 4000, 4100]  # in ms
    write(tmp_path / "vfr.mkv", 8, times=uneven)
    video = decode_video(lambda: str(tmp_path / "vfr.mkv"), "vfr", Sampling(8), 448)
    assert numbers(video) == list(range(8)) and video.seconds == pytest.approx([t / 1000 for t in uneven], abs=0.002)
    assert numbers(decode_video(lambda: str(tmp_path / "vfr.mkv"), "vfr", Sampling(3, "uniform"), 448)) == [0, 5, 7]
    write(tmp_path / "negative.mkv", 20, times=[-500 + 100 * k for k in range(20)], options={"avoid_negative_ts": "disabled"})
    video = decode_video(lambda: str(tmp_path / "negative.mkv"), "negative", Sampling(20), 448)
    assert numbers(video)[-1] == 19 and video.seconds[0] == 0 and video.seconds == sorted(video.seconds)
    write(tmp_path / "b.mp4", 40, codec="libx264", bframes=2)  # stored in another order than shown
    assert numbers(decode_video(lambda: str(tmp_path / "b.mp4"), "b", Sampling(8), 448)) == expected("segments", 40, 8)
    with av.open(str(tmp_path / "raw.h264"), "w") as container:  # no container, so no times at all
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
        stream.codec_context.max_b_frames = 0
        for k in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(painted(k), "rgb24")))
        container.mux(stream.encode())
    video = decode_video(lambda: str(tmp_path / "raw.h264"), "raw", Sampling(6), 448)
    assert numbers(video) == expected("segments", 30, 6) and video.seconds == sorted(video.seconds)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_phone_clip_is_upright(tmp_path, degrees):
    write(tmp_path / "phone.mp4", 6, rotation=degrees)
    frame = decode_video(lambda: str(tmp_path / "phone.mp4"), "phone", Sampling(6), 448).frames[5]
    assert frame.shape == ((80, 48, 3) if degrees != 180 else (48, 80, 3))
    turned = [k for k in range(4) if (image := np.rot90(frame, k)).shape[:2] == (48, 80) and number(image) == 5]
    assert len(turned) == 1 and turned[0] != 0, "shown turned, as the display matrix says"


def odd_clips(place) -> dict[str, str]:
    """Fifteen clips: name → how it ends: "whole", or a part of the reason."""
    write(place / "good.mp4", 30)
    data = write(place / "wrong-count.avi", 30) and (place / "wrong-count.avi").read_bytes()
    patched(place / "wrong-count.avi", b"strh", 40, "<I", 4000)  # the stream's length
    patched(place / "wrong-count.avi", b"avih", 24, "<I", 4000)
    write(place / "cut.mp4", 60, options={"movflags": "faststart"})
    data = (place / "cut.mp4").read_bytes()
    (place / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    write(place / "no-index.mp4", 60)
    data = (place / "no-index.mp4").read_bytes()
    (place / "no-index.mp4").write_bytes(data[: len(data) // 2])
    write(place / "cut.mkv", 60)
    data = (place / "cut.mkv").read_bytes()
    (place / "cut.mkv").write_bytes(data[: len(data) // 2])
    write(place / "cut.avi", 60)
    data = (place / "cut.avi").read_bytes()
    (place / "cut.avi").write_bytes(data[: len(data) // 2])
    write(place / "uneven.mkv", 8, times=[0, 10, 20, 3000, 3010, 3020, 9000, 9010])
    write(place / "negative.mkv", 20, times=[-500 + 100 * k for k in range(20)], options={"avoid_negative_ts": "disabled"})
    write(place / "one-frame.mp4", 1)
    write(place / "phone.mov", 12, rotation=90)
    sound(place / "sound.mp4")
    sound(place / "cover.mp4", cover=True)
    put(f"{place}/empty.webm", b"")
    put(f"{place}/text.mp4", "no video at all")
    write(place / "hole.mp4", 60)
    hole = bytearray((place / "hole.mp4").read_bytes())
    at = hole.index(b"mdat")
    hole[at + 400 : at + 4000] = b"\0" * 3600
    (place / "hole.mp4").write_bytes(bytes(hole))
    return {
        **dict.fromkeys(("good.mp4", "wrong-count.avi", "uneven.mkv", "negative.mkv", "one-frame.mp4", "phone.mov"), "whole"),
        **{
            "cut.mp4": "truncated: .* of 60 frames",
            "no-index.mp4": "cannot be decoded",
            "cut.mkv": "truncated",
            "cut.avi": "truncated",
        },
        **{
            "sound.mp4": "no video stream",
            "cover.mp4": "no video stream",
            "empty.webm": "cannot be decoded",
            "text.mp4": "cannot be decoded",
            "hole.mp4": "",
        },
    }


def test_damaged_and_odd_clips_are_read_right_or_named(tmp_path):
    import re

    ends = odd_clips(tmp_path)
    for name in ends:
        put(f"{tmp_path}/{name.rpartition('.')[0]}.txt", name)
    source = open_source(f"video:{tmp_path}?frames=64")
    assert len(source) == len(ends) == 15
    for i in range(len(source)):
        item = source.listed(i).id
        try:
            video = source[i].fields["video"]
        except BrokenItem as broken:
            assert ends[item] != "whole" and re.search(ends[item], broken.problem.reason), broken.problem
            continue
        assert ends[item] in ("whole", ""), item
        if ends[item] == "whole" and item != "phone.mov":
            assert numbers(video) == list(range(len(video.frames))), item
            assert video.seconds[0] == 0 and all(a < b for a, b in zip(video.seconds, video.seconds[1:], strict=False))


def test_what_a_container_states_of_its_length(tmp_path):
    for kind in CODECS:
        path = tmp_path / f"a.{kind}"
        write(path, 20)
        data = path.read_bytes()
        assert missing_bytes(str(path)) == 0 == missing_bytes(io.BytesIO(data)), kind
        assert missing_bytes(io.BytesIO(data + b"more")) == 0
        cut = missing_bytes(io.BytesIO(data[:-100]))
        assert cut in (100, 99, 101) or kind in ("mkv", "webm"), (kind, cut)
    assert missing_bytes(io.BytesIO(b"")) == missing_bytes(io.BytesIO(b"no video")) == 0


def test_memory_depends_on_the_frames_kept_not_on_the_length(tmp_path):
    """A minute and an hour at two frames a second."""
    peaks = []
    for n in (120, 7200):
        path = tmp_path / f"{n}.mkv"
        write(path, n, fps=2, gop=50, codec="mpeg4")
        decode_video(lambda path=path: str(path), "a", Sampling(8), 448)
        tracemalloc.start()
        decode_video(lambda path=path: str(path), "a", Sampling(8), 448)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 300_000, "a few numbers of 8 bytes for each frame of the hour"


def test_torchcodec_is_named_with_its_reason_and_gives_the_same_frames(tmp_path, monkeypatch):
    """The package is stood in for by PyAV here: what is tested is which frames are asked for, and how they are handed on."""
    import torch

    address = make(tmp_path, "mp4")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(DiptychError, match="torchcodec.*not installed"):
        open_source(f"{address}?decoder=torchcodec")

    class VideoDecoder:
        metadata = types.SimpleNamespace(rotation=None)

        def __init__(self, source, **options):
            with av.open(source) as container:
                self.all = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]

        def get_frames_at(self, indices):
            return types.SimpleNamespace(data=torch.from_numpy(np.stack([self.all[i] for i in indices])).permute(0, 3, 1, 2))

    fake = types.ModuleType("torchcodec.decoders")
    fake.VideoDecoder = VideoDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", fake)
    source = open_source(f"{address}?decoder=torchcodec&frames=6")
    video = source[0].fields["video"]
    assert numbers(video) == expected("segments", 60, 6) and video.seconds == pytest.approx(
        [k / 10 for k in numbers(video)], abs=0.01
    )
    VideoDecoder.metadata = types.SimpleNamespace()
    with pytest.raises(BrokenItem, match=r"torchcodec 0\.11 or newer"):
        source[0]


# --- layouts ---


def clips(place, names) -> None:
    for name in names:
        write(place / name, 30)


def test_layouts_of_data_sets(tmp_path):
    clips(tmp_path / "v", ("a.mp4", "sub/b.mkv", "c.webm"))
    forms = {
        "coco.json": {"videos": [{"id": 1, "file_name": "a.mp4"}, {"id": 2, "file_name": "sub/b.mkv"}, {"id": 3, "file_name": "gone.mp4"}],
                      "annotations": [{"video_id": 1, "caption": "one"}, {"video_id": 1, "caption": "uno"}, {"video_id": 2, "caption": "two"}]},
        "msrvtt.json": {"videos": [{"video_id": "a", "split": "train"}, {"video_id": "b", "split": "validate"}, {"video_id": "gone"}],
                        "sentences": [{"video_id": "a", "caption": "one"}, {"video_id": "a", "caption": "uno"}, {"video_id": "b", "caption": "two"}]},
        "rows.json": [{"video": "a.mp4", "caption": ["one", "uno"]}, {"video": "sub/b.mkv", "caption": "two"}, {"video": "gone.mp4", "caption": "?"}],
    }  # fmt: skip
    for name, content in forms.items():
        put(f"{tmp_path}/{name}", json.dumps(content))
        source = open_source(f"video:{tmp_path}/{name}?videos=v&frames=4")
        assert [source[i].captions for i in range(len(source))] == [["one", "uno"], ["two"]], name
        assert numbers(source[0].fields["video"]) == spread(30, 4) and any("gone" in item for item in problems(source)), name
    source = open_source(f"video:{tmp_path}/msrvtt.json?videos=v")
    assert [source.split(p)[0].id for p in ("train", "validation")] == ["a", "b"]
    with pytest.raises(DiptychError, match="no 'test' part"):
        source.split("test")
    put(
        f"{tmp_path}/webvid.csv",
        "videoid,contentUrl,duration,page_dir,name\nb,http://x/b.mp4,PT1S,sub,two\nc,http://x/c.mp4,PT1S,,three\nz,u,P,,none\n",
    )
    source = open_source(f"video:{tmp_path}/webvid.csv?videos=v")
    assert [source[i].captions for i in range(2)] == [["two"], ["three"]] and "webvid.csv:4" in problems(source)
    put(f"{tmp_path}/other.json", json.dumps({"hello": [1]}))
    with pytest.raises(DiptychError, match="not a list of clips.*ActivityNet.*found hello"):
        open_source(f"video:{tmp_path}/other.json")


def test_intervals_by_clip_and_by_event(tmp_path):
    clips(tmp_path / "v", ("v_a.mp4",))
    row = {"duration": 3.0, "timestamps": [[1.0, 2.0], [0.0, 1.0], [2.0, 1.0]], "sentences": ["then two ", "first one", "never"]}
    put(
        f"{tmp_path}/activity.json",
        json.dumps(
            {
                "v_a": row,
                "v_gone": row,
            }
        ),
    )
    source = open_source(f"video:{tmp_path}/activity.json?videos=v")
    sample = source[0]
    assert sample.captions == ["first one then two"]
    assert sample.extra["events"] == [
        {"text": "first one", "start": 0.0, "end": 1.0},
        {"text": "then two", "start": 1.0, "end": 2.0},
    ]
    assert set(problems(source)) == {"v_gone", "v_a"}
    events = open_source(f"video:{tmp_path}/activity.json?videos=v&by=event&frames=50")
    assert [events[i].captions for i in range(len(events))] == [["first one"], ["then two"]]
    assert [numbers(events[i].fields["video"]) for i in range(2)] == [list(range(10)), list(range(10, 20))]
    assert events[1].fields["video"].seconds[0] == pytest.approx(1.0) and events[1].extra["start"] == 1.0


def test_conversations_about_clips(tmp_path):
    clips(tmp_path / "v", ("a.mp4",))
    talk = [{"from": "human", "value": "<video>\nwhat is it?"}, {"from": "gpt", "value": "a clip"}]
    rows = [
        {"id": "x", "video": "a.mp4", "conversations": talk},
        {"id": "y", "video": "a.mp4", "conversations": [{"from": "human", "value": "what?"}, talk[1]]},
    ]
    put(f"{tmp_path}/talk.json", json.dumps(rows))
    source = open_source(f"video:{tmp_path}/talk.json?videos=v&frames=3")
    assert source.fields == ("video", "text", "turns")
    for i in range(2):
        conversation = source[i].fields["turns"]
        check_images(conversation.turns, 3)
        assert len(conversation.images) == 3 and conversation.turns[1].text == "a clip" and "turns" not in source[i].extra
    assert source[0].fields["turns"].turns[0].text == "<image><image><image>\nwhat is it?"


SRT = "1\n00:00:01,000 --> 00:00:02,500\n<i>Hello</i> there,\nfriend\n\n2\n00:00:03,000 --> 00:00:04,000\n{\\an8}Bye &amp; bye\n\n3\n00:00:04,000 --> 00:00:05,000\nBye &amp; bye\n"
VTT = "WEBVTT\n\nNOTE a remark\n\n01:02.000 --> 01:03.250 align:start\n<c.yellow>Hi</c> <00:01:02.500>you\n\n01:04.000 --> 01:04.000\nempty\n"


def test_subtitles_are_what_is_said_and_when(tmp_path):
    assert speech(SRT) == [
        {"text": "Hello there, friend", "start": 1.0, "end": 2.5},
        {"text": "Bye & bye", "start": 3.0, "end": 5.0},
    ]
    assert speech(VTT) == [{"text": "Hi you", "start": 62.0, "end": 63.25}]
    with pytest.raises(ValueError, match="no subtitles"):
        speech("WEBVTT\n")
    clips(tmp_path, ("a.mp4", "b.mp4", "c.mp4"))
    put(f"{tmp_path}/a.txt", "a caption")
    put(f"{tmp_path}/a.srt", SRT)
    put(f"{tmp_path}/b.en.vtt", VTT)
    put(f"{tmp_path}/c.srt", "nothing")
    assert "speech" not in open_source(f"video:{tmp_path}")[0].extra
    source = open_source(f"video:{tmp_path}?speech=caption")
    assert [source[i].captions for i in range(2)] == [["a caption"], ["Hi you"]]
    assert source[0].extra["speech"][1]["text"] == "Bye & bye" and "c.mp4" in problems(source)


def test_packed_frames_have_their_times_and_texts(tmp_path):
    from diptych.data.packing import pack

    address = make(tmp_path / "in", "mkv")
    put(f"{tmp_path}/in/a.srt", SRT)
    pack(f"{address}?frames=6&speech=extra&sampling=uniform", tmp_path / "out", 48, "raw", workers=1, progress=False)
    sample = open_source(f"packed:{tmp_path}/out")[0]
    assert numbers(sample.fields["video"]) == expected("uniform", 60, 6)
    assert sample.fields["video"].seconds == pytest.approx([k / 10 for k in numbers(sample.fields["video"])], abs=0.002)
    assert sample.extra["speech"][0]["text"] == "Hello there, friend" and sample.captions == ["a clip"]


def test_frames_between_are_passed_over_and_pixels_stay_the_same(tmp_path, monkeypatch):
    """Of a clip with many frames that no other is predicted from: what is decoded by PyAV alone, pixel by pixel."""
    from diptych.data import video as module

    write(tmp_path / "b.mp4", 90, gop=45, codec="libx264", bframes=3)
    path = str(tmp_path / "b.mp4")
    with av.open(path) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    decoded = []
    plain = module._decoding
    monkeypatch.setattr(module, "_decoding", lambda *a: (decoded.append(1) or pair for pair in plain(*a)))
    for frames in (1, 4, 7):
        decoded.clear()
        video = decode_video(lambda: path, "b", Sampling(frames), 448)
        assert numbers(video) == expected("segments", 90, frames)
        assert all(np.array_equal(everything[k], frame) for k, frame in zip(numbers(video), video.frames, strict=True))
        assert len(decoded) < 75, "not every frame up to the last one"


def test_clips_are_decoded_on_worker_processes(tmp_path):
    from diptych.data.loader import loader_for
    from diptych.data.text import Tokenizer

    for i in range(4):
        write(tmp_path / f"{i}.mp4", 20 + i)
        put(f"{tmp_path}/{i}.txt", f"clip number {i}")
    tokenizer = Tokenizer.train(["clip number 0 1 2 3"], 400, 12)
    source = open_source(f"video:{tmp_path}?frames=4&sampling=uniform")
    here, there = (loader_for(source, tokenizer, 32, 4, fields=("video", "text"), workers=workers) for workers in (0, 1))
    batches = there.stream(0)
    batch = next(iter(batches))
    batches.close()
    expected_rows = here.rows(0, 0, 4)
    assert (batch["video"].frames.pixels == expected_rows["video"].frames.pixels).all()
