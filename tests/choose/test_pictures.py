"""Pictures with classes: parts, near-duplicates, vectors that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from choose_fixture import Counting, class_folders, picture
from colours_fixture import ColourModel
from diptych.choose import features
from diptych.choose.adapt import parts_of
from diptych.choose.data import fingerprints, groups_of, labelled, names_alike, near_pairs, open_parts
from diptych.choose.features import Store, vectors_of
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def test_parts_are_disjoint_and_whole(tmp_path: Path) -> None:
    train, test = open_parts(f"classes:{class_folders(tmp_path / 'data')}")
    assert len(train) + len(test) == 80 and not set(train.ids) & set(test.ids)
    assert len(test) > 5  # validation and test part together
    for part in (train, test):
        assert [part.names[label] for label in part.labels] == [id.split("/")[0] for id in part.ids]
        assert (part.read(3) == np.asarray(Image.open(tmp_path / "data" / part.ids[3]))).all()


def test_drawn_concepts_are_classes() -> None:
    train = labelled(open_source("scenes:small").split("train"), "train")
    assert len(train) == 2000 and len(set(train.digests)) > 1900
    assert set(train.labels) == set(range(len(train.names)))


def test_data_without_classes_is_refused(tmp_path: Path) -> None:
    Image.fromarray(picture("red", 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red picture")
    with pytest.raises(DiptychError, match="no classes; class folders"):
        open_parts(f"folder:{tmp_path}")


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="one class, 'red'"):
        open_parts(f"classes:{class_folders(tmp_path, colours=('red',))}")


def test_a_copy_in_the_test_part_is_taken_out_and_named(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data")
    train, test = open_parts(f"classes:{folder}")
    victim = next(i for i in test.ids if i.startswith("red/"))
    source = next(i for i in train.ids if i.startswith("red/"))
    bright = np.asarray(Image.open(folder / source)).astype(int) + 2  # a copy of other bytes
    Image.fromarray(bright.clip(0, 255).astype(np.uint8)).save(folder / "red" / "copy.png")
    again = open_parts(f"classes:{folder}")
    in_test = "red/copy.png" in again[1].ids
    parts = parts_of(f"classes:{folder}")
    assert victim in parts.test.ids
    if in_test:
        assert parts.leaks == [(source, "red/copy.png")] and "red/copy.png" not in parts.test.ids
    else:
        at = {id: i for i, id in enumerate(parts.train.ids)}
        assert parts.groups[at["red/copy.png"]] == parts.groups[at[source]]


def leaking(folder: Path) -> tuple[str, str]:
    """Writes a near copy of a training picture that falls into the test part; (training picture, its copy)."""
    train, _ = open_parts(f"classes:{folder}")
    source = next(i for i in train.ids if i.startswith("red/"))
    for add in range(1, 60):  # the part depends on the bytes
        shift = np.array([add % 4, add % 3, add // 12])
        copy = (np.asarray(Image.open(folder / source)) + shift).clip(0, 255)
        Image.fromarray(copy.astype(np.uint8)).save(folder / "red" / "copy.png")
        if "red/copy.png" in open_parts(f"classes:{folder}")[1].ids:
            return source, "red/copy.png"
    raise AssertionError("no copy fell into the test part")


def test_a_leak_into_the_test_part_is_found(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data")
    pair = leaking(folder)
    parts = parts_of(f"classes:{folder}")
    assert parts.leaks == [pair]
    assert pair[1] not in parts.test.ids and len(parts.test) > 5


def test_a_broken_picture_is_listed_and_costs_nothing_else(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data")
    (folder / "red" / "000.png").write_bytes((folder / "red" / "000.png").read_bytes()[:60])
    parts = parts_of(f"classes:{folder}")
    assert len(parts.train) + len(parts.test) == 79
    assert [p.item for p in [*parts.train.problems, *parts.test.problems]] == ["red/000.png"]
    assert len(parts.groups) == len(parts.train)


def test_near_duplicates_by_pattern_and_colour() -> None:
    red, other = picture("red", 1), picture("red", 2)
    recoloured = picture("blue", 1)
    recoloured[:] = (red.astype(float).mean(2, keepdims=True) / 128 * np.array([40, 80, 220])).clip(0, 255).astype(np.uint8)
    brighter = (red.astype(int) + 3).clip(0, 255).astype(np.uint8)
    pairs = near_pairs(fingerprints([red, other, recoloured, brighter]))
    assert [tuple(p) for p in pairs.tolist()] == [(0, 3)]


def test_groups_are_connected_components() -> None:
    assert groups_of(6, np.array([[0, 2], [2, 4], [1, 5]])).tolist() == [0, 1, 0, 3, 0, 1]
    assert groups_of(3, np.zeros((0, 2), dtype=int)).tolist() == [0, 1, 2]


def test_names_that_read_alike() -> None:
    assert names_alike(["T-shirt", "t_shirt", "hat", "Hat!", "cap"]) == [("T-shirt", "t_shirt"), ("hat", "Hat!")]


# --- vectors ---


def pictures_of(folder: Path) -> features.Pictures:
    return open_parts(f"classes:{folder}")[0]


def test_vectors_are_computed_once(tmp_path: Path) -> None:
    part, model = pictures_of(class_folders(tmp_path / "data")), Counting()
    before = Counting.seen
    first, broken = vectors_of(model, part)
    assert not broken and Counting.seen - before == len(part)
    again, _ = vectors_of(model, part)
    assert Counting.seen - before == len(part) and (first == again).all()
    assert (first == ColourModel().embed_image([part.read(i) for i in range(len(part))])).all()


def test_a_model_without_a_key_keeps_nothing(tmp_path: Path) -> None:
    part = pictures_of(class_folders(tmp_path / "data", each=3))
    vectors_of(ColourModel(), part)
    assert not list((tmp_path / "cache").glob("vectors/**/*.npz"))


def test_an_interrupted_pass_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, model = pictures_of(class_folders(tmp_path / "data")), Counting()
    monkeypatch.setattr(features, "CHUNK", 8)

    def stop(label: str, done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vectors_of(model, part, stop)
    before = Counting.seen
    vectors_of(model, part)
    assert Counting.seen - before == len(part) - 16


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    part, model = pictures_of(class_folders(tmp_path / "data", each=4)), Counting()
    first, _ = vectors_of(model, part)
    for path in (tmp_path / "cache").glob("vectors/**/*.npz"):
        path.write_bytes(path.read_bytes()[:50])
    assert (vectors_of(model, part)[0] == first).all()


def test_long_results_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = pictures_of(class_folders(tmp_path / "data", each=4))
    expected, _ = vectors_of(ColourModel(), part)
    monkeypatch.setattr(features, "IN_MEMORY", 16)
    found, _ = vectors_of(ColourModel(), part)
    assert isinstance(found, np.memmap) and (found == expected).all()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = pictures_of(class_folders(tmp_path / "data", each=4))
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("DIPTYCH_CACHE", str(file))
    vectors, _ = vectors_of(Counting(), part)
    assert len(vectors) == len(part)
    assert Store("key").folder == file / "vectors" / "key"


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(ColourModel):
        def embed_image(self, images: object) -> np.ndarray:
            return np.full((len(list(images)), 4), np.nan, dtype=np.float32)  # type: ignore[call-overload]

    with pytest.raises(DiptychError, match="not finite"):
        vectors_of(Broken(), pictures_of(class_folders(tmp_path / "data", each=4)))


def test_test_pictures_may_be_elsewhere(tmp_path: Path) -> None:
    first = class_folders(tmp_path / "a", each=10, colours=("red", "green"))
    other = class_folders(tmp_path / "b", each=5, colours=("green", "red", "blue"))
    train, test = open_parts(f"classes:{first}", f"classes:{other}")
    assert train.names == test.names == ("green", "red", "blue")
    assert len(test) == 15 and {train.names[i] for i in train.labels} == {"red", "green"}
    assert [test.names[i] for i in test.labels] == [id.split("/")[0] for id in test.ids]
