"""An index of clips: vectors of whole clips, strips of frames as their pictures, order that counts, updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.index.index import Index, Query
from diptych.index.source import IndexSource
from diptych.inference.foreign.pooled import PooledModel
from index_fixture import Pixels
from video_fixture import number, painted, write


class Numbers(Pixels):
    """A clip is the numbers that its first and last frames show."""

    name, shows = "numbers", "video"

    def embed_image(self, images: Any) -> np.ndarray:
        self.seen += len(images)
        ends = [(i[0], i[-1]) if i.ndim == 4 else (i, i) for i in images]
        rows = np.array([[number(a) + 1.0, number(b) + 1.0] if len(a) == 48 else [1.0, 2.0] for a, b in ends])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def embed_text(self, texts: Any) -> np.ndarray:
        rows = np.array([[1.0, 20.0] if "up" in text else [20.0, 1.0] for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def frames(folder: Path, order: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, k in enumerate(order):
        Image.fromarray(painted(k)).save(folder / f"{place:03d}.png")


def films(root: Path) -> str:
    write(root / "up.mp4", n=16)
    (root / "up.txt").write_text("it counts up")
    frames(root / "down", range(15, -1, -1))
    (root / "broken.webm").write_bytes(b"nothing")
    Image.fromarray(painted(3)).save(root / "still.png")  # no clip
    return f"video:{root}"


def test_clips_of_a_folder(tmp_path: Path) -> None:
    model = Numbers()
    with Index.create(tmp_path / "i", films(tmp_path / "films"), model, "numbers") as index:
        changes = index.update(model)
        assert (changes.new, len(index)) == (2, 2) and "cannot be decoded" in index.broken()["broken.webm"]
        answer = index.search(Query(("counts up",)), model, fold=True)
        assert [hit.picture.name for hit in answer.hits] == ["up.mp4", "down"], "two clips of the same frames are no duplicates"
        up = answer.hits[0]
        assert up.picture.caption == "it counts up" and (up.picture.width, up.picture.height) == (80, 48)
        shown = index.read(up.id)
        cells = [number(c) for row in np.split(shown, 2, axis=0) for c in np.split(row, 4, axis=1)]
        assert cells == [1, 3, 5, 7, 9, 11, 13, 15], "its picture is eight of its frames"
        clip = np.stack([painted(k) for k in range(16)])
        assert index.search(Query(images=(clip,)), model).hits[0].id == up.id
        seen = model.seen
        assert index.update(model).unchanged >= 2 and model.seen <= seen + 1, "nothing is read again but the probe"
        frames(tmp_path / "films" / "down", range(12, -1, -1))
        for k in (13, 14, 15):
            (tmp_path / "films" / "down" / f"{k:03d}.png").unlink()
        assert index.update(model).changed == 1
    source = IndexSource(str(tmp_path / "i"))
    assert source.fields == ("video", "text") and len(source) == 2
    by = {source[i].id: source[i] for i in range(2)}
    assert [number(f) for f in by["down"].fields["video"].frames] == list(range(12, -1, -1))
    assert by["up.mp4"].captions == ["it counts up"] and by["up.mp4"].image is None


def test_models_of_pictures(tmp_path: Path) -> None:
    address = films(tmp_path / "films")
    with pytest.raises(DiptychError, match=r"has clips, and pixels reads pictures: --model pooled:MODEL"):
        Index.create(tmp_path / "i", address, Pixels(), "pixels")
    assert not (tmp_path / "i").exists()
    model = PooledModel(Pixels())
    with Index.create(tmp_path / "i", address, model, "pooled:pixels") as index:
        index.update(model)
        a, b = (hit.score for hit in index.search(Query(("red",)), model, fold=False).hits)
        assert a == pytest.approx(b, abs=1e-2), "the mean does not see the order (an mp4 differs by its coding)"


def test_clips_of_any_data(tmp_path: Path) -> None:
    model = Numbers()
    with Index.create(tmp_path / "i", "scenes:clips?actions=all&size=32&concepts=6", model, "numbers", limit=4) as index:
        index.update(model)
        assert len(index) == 4 and index.read(index.search(Query(("up",)), model).hits[0].id).shape == (64, 128, 3)
