"""``video:``: files by PyAV, animated pictures by Pillow, folders of frames."""

from __future__ import annotations

import io
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.data.fields.video import spread
from diptych.data.inspect import inspect, print_inspection
from diptych.data.loader import loader_for
from diptych.data.sheet import contact_sheet
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from sources_fixture import own_cache, problems, put  # noqa: F401 - fixtures

av = pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("own_cache")
HEIGHT, WIDTH = 48, 64
CODECS = {"mp4": "mpeg4", "avi": "mpeg4", "mkv": "mpeg4", "webm": "libvpx"}


def level(k: int) -> int:
    """The grey of frame k: far enough apart to survive the codec."""
    return 10 + 4 * k


def clip(path, n: int = 40, fps: int = 10, size=(HEIGHT, WIDTH), gop: int = 12) -> str:
    kind = str(path).rpartition(".")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[kind], rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        stream.bit_rate = 2_000_000
        for k in range(n):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), level(k), np.uint8), "rgb24")
            frame.pts, frame.time_base = k, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def shown(sample) -> list[int]:
    """Which frame each of a sample's is, by its grey."""
    return [round((float(frame.mean()) - 10) / 4) for frame in sample.fields["video"].frames]


@pytest.mark.parametrize("kind", sorted(CODECS))
def test_evenly_spread_frames_of_every_container(tmp_path, kind):
    clip(tmp_path / f"a.{kind}")
    put(f"{tmp_path}/a.txt", "a wall grows bright\nit brightens")
    source = open_source(f"video:{tmp_path}?frames=8")
    sample = source[0]
    assert sample.captions == ["a wall grows bright", "it brightens"] == source.captions(0)
    assert sample.image is None and source.fields == ("video", "text")
    video = sample.fields["video"]
    assert all(f.shape == (HEIGHT, WIDTH, 3) and f.dtype == np.uint8 for f in video.frames)
    assert shown(sample) == spread(40, 8)
    assert video.seconds == pytest.approx([k / 10 for k in spread(40, 8)], abs=0.02)
    again = source[0].fields["video"]
    assert all(np.array_equal(a, b) for a, b in zip(video.frames, again.frames, strict=True)), "a function of the index"


def test_a_short_clip_is_whole_and_large_frames_shrink(tmp_path):
    clip(tmp_path / "a.mp4", n=5, size=(96, 128))
    put(f"{tmp_path}/a.txt", "short")
    assert shown(open_source(f"video:{tmp_path}")[0]) == [0, 1, 2, 3, 4]
    assert open_source(f"video:{tmp_path}?size=32")[0].fields["video"].frames[0].shape == (32, 43, 3)


def test_long_clips_are_sought_not_decoded_through(tmp_path, monkeypatch):
    from diptych.data import video

    clip(tmp_path / "a.mp4", n=59, gop=6)
    put(f"{tmp_path}/a.txt", "long")
    decoded = []
    plain = video._decoding
    monkeypatch.setattr(video, "_decoding", lambda *a: (decoded.append(1) or pair for pair in plain(*a)))
    assert shown(open_source(f"video:{tmp_path}?frames=2")[0]) == spread(59, 2)
    assert len(decoded) <= 14, "two groups of pictures at most, not 45 frames"


def test_animated_pictures(tmp_path):
    frames = [Image.new("RGB", (20, 10), (level(k),) * 3) for k in range(12)]
    for kind, options in (("gif", {}), ("webp", {"lossless": True})):
        frames[0].save(tmp_path / f"{kind}.{kind}", save_all=True, append_images=frames[1:], duration=50, loop=0, **options)
        put(f"{tmp_path}/{kind}.txt", kind)
    frames[0].save(tmp_path / "still.gif")
    put(f"{tmp_path}/still.txt", "still")
    source = open_source(f"video:{tmp_path}?frames=4")
    assert len(source) == 3
    for i in (0, 2):
        assert shown(source[i]) == spread(12, 4), source[i].id
        assert source[i].fields["video"].seconds == pytest.approx([k * 0.05 for k in spread(12, 4)])
    with pytest.raises(BrokenItem, match=r"still.gif: a single picture"):
        source[1]


def frames_folder(place, n: int, start: int = 8) -> None:
    for k in range(n):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (level(k),) * 3).save(file, "PNG")
        put(f"{place}/frame_{start + k}.png", file.getvalue())


def test_folders_of_frames(tmp_path):
    frames_folder(tmp_path / "one", 10)  # frame_8 … frame_17: by number, not by name
    put(f"{tmp_path}/one.json", json.dumps({"caption": "ten frames", "by": "me"}))
    frames_folder(tmp_path / "two", 3)
    source = open_source(f"video:{tmp_path}?frames=5&fps=10")
    assert [source[i].id for i in range(len(source))] == ["one"] and problems(source) == {"two": "no caption"}
    sample = source[0]
    assert shown(sample) == spread(10, 5) and sample.extra == {"by": "me"} and sample.captions == ["ten frames"]
    assert sample.fields["video"].seconds == [k / 10 for k in spread(10, 5)]


def test_a_table_and_a_glob(tmp_path):
    for name in ("a", "b"):
        clip(tmp_path / f"{name}.mp4", n=4)
        put(f"{tmp_path}/{name}.txt", f"clip {name}")
    frames_folder(tmp_path / "c", 3)
    assert [open_source(f"video:{tmp_path}/*.mp4")[i].captions for i in range(2)] == [["clip a"], ["clip b"]]
    rows = [{"video": "a.mp4", "caption": "one"}, {"video": "c", "caption": "two"}, {"video": "gone.mp4", "caption": "three"}]
    put(f"{tmp_path}/captions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(f"video:{tmp_path}")
    assert [(source[i].id, source[i].captions, len(source[i].fields["video"].frames)) for i in range(2)] == [
        ("a.mp4", ["one"], 4),
        ("c", ["two"], 3),
    ]
    assert set(problems(source)) == {"b.mp4", "gone.mp4"} and len(source) == 2
    with pytest.raises(DiptychError, match="no clip or directory"):
        open_source(f"video:{tmp_path}/*.webm")


def broken_ones(place) -> None:
    clip(place / "good.mp4", n=30)
    clip(place / "good.mkv", n=30)
    for kind in ("mp4", "mkv"):
        data = (place / f"good.{kind}").read_bytes()
        put(f"{place}/cut.{kind}", data[: len(data) // 2])
    put(f"{place}/empty.webm", b"")
    put(f"{place}/text.avi", "no video at all")
    with av.open(str(place / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for path in list(place.iterdir()):
        put(f"{path.with_suffix('.txt')}", f"{path.stem} words")
    clip(place / "silent.mp4", n=3)


def test_what_is_broken_is_named_and_counted(tmp_path):
    broken_ones(tmp_path)
    source = open_source(f"video:{tmp_path}?frames=30")
    good, broken = [], {}
    for i in range(len(source)):
        try:
            good.append(source[i].id)
        except BrokenItem as error:
            broken[error.problem.item] = error.problem.reason
    assert good[:2] == ["good.mkv", "good.mp4"] or good == ["cut.mkv", "good.mkv", "good.mp4"]
    assert {"cut.mp4", "empty.webm", "text.avi", "sound.mp4"} <= set(broken) and all(broken.values())
    assert broken["sound.mp4"] == "holds no video stream" and problems(source) == {"silent.mp4": "no caption"}
    assert len(good) + len(broken) + len(source.problems) == 8


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    clip(tmp_path / "a.mp4", n=3)
    put(f"{tmp_path}/a.txt", "a")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DiptychError, match=r"diptych\[video\]"):
        open_source(f"video:{tmp_path}")
    frames_folder(tmp_path / "frames" / "one", 3)
    put(f"{tmp_path}/frames/one.txt", "needs none")
    assert len(open_source(f"video:{tmp_path}/frames")[0].fields["video"].frames) == 3


def test_splits_mixtures_batches_sheets_and_inspection(tmp_path, capsys):
    for i in range(12):
        clip(tmp_path / "in" / f"{i:02d}.mp4", n=4 + i)
        put(f"{tmp_path}/in/{i:02d}.txt", f"clip number {i}")
    source = open_source(f"video:{tmp_path}/in")
    sizes = [len(source.split(name)) for name in ("train", "validation", "test")]
    assert sum(sizes) == 12 and source.fingerprint() == open_source(f"video:{tmp_path}/in").fingerprint()
    mixture = open_source(f"mix:1*video:{tmp_path}/in+1*scenes:clips?length=20")
    assert mixture.fields == ("video", "text", "negatives", "label") and mixture.captions(3) == ["clip number 3"]
    tokenizer = Tokenizer.train(["clip number 0 1 2 3"], 400, 12)
    batch = loader_for(source, tokenizer, 32, 6, fields=("video", "text")).rows(0, 0, 6)
    assert batch["video"].frames.pixels.shape[1:] == (3, 32, 32) and batch["video"].owner.bincount().tolist() == [
        min(8, 4 + int(i[:2])) for i in batch.ids
    ]
    contact_sheet([source[i] for i in range(3)], tmp_path / "sheet.png")
    found = inspect(source.address, tmp_path / "out", progress=False)
    assert found.clip_frames["min"] == 4 and found.clip_frames["max"] == 15 and found.fields == {"video": 12, "text": 12}
    assert found.clip_seconds["max"] == pytest.approx(1.4, abs=0.02) and found.good == 12 and found.sheet
    print_inspection(found)
    assert "frames of a clip" in capsys.readouterr().out
