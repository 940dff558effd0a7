"""An index follows its pictures: new, changed, renamed, deleted, broken; each content is embedded once."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.index.index import Index, Query
from diptych.index.updating import reading
from index_fixture import Pixels, fill, ids_by_name, made, paint, put


def test_every_kind_of_change_is_counted_and_only_new_contents_are_embedded(tmp_path: Path) -> None:
    photos, model = fill(tmp_path / "photos", 8), Pixels()
    index = made(tmp_path / "i", photos, model)
    before = ids_by_name(index)
    assert (
        model.seen - 3 == len(before) == len(index) == 8
    )  # probes: of the stamp, made and checked, and of the cut-off's texts that are kept
    put(photos / "a/001.png", 100)  # changed
    (photos / "a/003.png").rename(photos / "b/moved.png")  # renamed
    (photos / "a/005.png").unlink()  # deleted
    put(photos / "a/new.png", 101)  # new
    os.utime(photos / "b/000.png", (1, 1))  # touched, the same content
    (photos / "b/002.png").write_bytes(b"no picture")  # was one
    (photos / "b/empty.jpg").touch()  # never was one
    seen = model.seen
    changes = index.update(model)
    assert (changes.new, changes.changed, changes.renamed, changes.deleted, changes.unchanged) == (1, 1, 1, 1, 4)
    assert set(changes.broken) == {"b/002.png", "b/empty.jpg"} and "empty" in changes.broken["b/empty.jpg"]
    assert changes.total == 9 == len(list(photos.rglob("*.*")))
    assert model.seen - seen == 1 + 2  # the probe, the changed and the new one
    after = ids_by_name(index)
    assert after["b/moved.png"] == before["a/003.png"] and after["a/001.png"] == before["a/001.png"]
    assert after["a/new.png"] > max(before.values()) and "a/005.png" not in after
    for name, id in after.items():
        if name not in changes.broken:
            pixels = np.asarray(Image.open(photos / name))
            assert np.array_equal(index.read(id), pixels)
            assert np.array_equal(index.store.vectors(np.array([id]))[0], Pixels().embed_image([pixels])[0])
    assert len(index) == 7 and index.facts["broken"] == 2 and index.broken() == changes.broken
    again = index.update(model)
    assert again.unchanged == 9 == again.total and not again.deleted and not again.broken
    put(photos / "b/002.png", 2)  # repaired
    assert index.update(model).changed == 1 and ids_by_name(index)["b/002.png"] == before["b/002.png"] and len(index) == 8


def test_ids_are_never_used_again(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 3)
    index = made(tmp_path / "i", photos)
    last = max(ids_by_name(index).values())
    name = next(name for name, id in ids_by_name(index).items() if id == last)
    (photos / name).unlink()
    index.update(Pixels())
    put(photos / "z.png", 50)
    index.update(Pixels())
    assert ids_by_name(index)["z.png"] == last + 1 and index.picture(last) is None


def test_names_that_pass_from_one_picture_to_another(tmp_path: Path) -> None:
    photos, model = tmp_path / "photos", Pixels()
    for name in "abcd":
        put(photos / f"{name}.png", paint(ord(name), width=30 + ord(name) % 7))
    index = made(tmp_path / "i", photos, model)
    before, seen = ids_by_name(index), model.seen
    (photos / "a.png").rename(photos / "t.png")  # a and b change places
    (photos / "b.png").rename(photos / "a.png")
    (photos / "t.png").rename(photos / "b.png")
    (photos / "c.png").unlink()
    (photos / "d.png").rename(photos / "c.png")  # d takes the place of c, which is gone
    changes = index.update(model)
    assert model.seen == seen + 1 and (changes.renamed, changes.deleted, changes.new, changes.changed) == (3, 1, 0, 0)
    assert ids_by_name(index) == {"a.png": before["b.png"], "b.png": before["a.png"], "c.png": before["d.png"]}
    for name, id in ids_by_name(index).items():
        assert index.file(id) == (photos / name).read_bytes()


def test_a_moved_folder_keeps_its_vectors_and_copies_have_ids_of_their_own(tmp_path: Path) -> None:
    photos, model = fill(tmp_path / "photos", 6), Pixels()
    shutil.copy2(photos / "a/001.png", photos / "a/copy.png")
    index = made(tmp_path / "i", photos, model)
    seen, ids = model.seen, sorted(ids_by_name(index).values())
    (photos / "a").rename(photos / "c")
    changes = index.update(model)
    assert (changes.renamed, changes.deleted, changes.new) == (4, 0, 0) and model.seen == seen + 1
    assert sorted(ids_by_name(index).values()) == ids and {n[:1] for n in ids_by_name(index)} == {"b", "c"}


def test_captions_and_columns_change_without_new_vectors(tmp_path: Path) -> None:
    photos, model = fill(tmp_path / "photos", 4), Pixels()
    (photos / "a/001.txt").write_text("a cat\non a sofa")
    (photos / "a/003.json").write_text(json.dumps({"caption": "a dog", "price": 12, "shop": "north", "nested": {"x": 1}}))
    index = made(tmp_path / "i", photos, model)
    ids = ids_by_name(index)
    first = index.picture(ids["a/003.png"])
    assert first is not None and first.caption == "a dog" and first.columns == {"price": 12, "shop": "north"}
    assert index.picture(ids["a/001.png"]).caption == "a cat\non a sofa"  # type: ignore[union-attr]
    seen = model.seen
    (photos / "a/001.txt").write_text("an owl")
    changes = index.update(model)
    assert (changes.unchanged, changes.described) == (4, 1) and model.seen == seen + 1
    assert index.where({"words": "owl"}).ids().tolist() == [ids["a/001.png"]]
    assert not len(index.where({"words": "cat"}).ids())


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = fill(tmp_path / "photos", 2)
    changing, other = photos / "b/000.png", tmp_path / "other.png"
    put(other, 77)
    left = 1
    fstat = os.fstat

    def overwritten(handle: int) -> os.stat_result:
        """Another program writes the file between the two."""
        nonlocal left
        status = fstat(handle)
        if left and status.st_ino == changing.stat().st_ino:
            left -= 1
            changing.write_bytes(other.read_bytes() + b" " * left)
        return status

    monkeypatch.setattr(reading.os, "fstat", overwritten)
    index = made(tmp_path / "i", photos)
    id = ids_by_name(index)["b/000.png"]
    assert index.file(id) == other.read_bytes() and np.array_equal(index.read(id), paint(77))
    left = 1000
    os.utime(changing, (1, 1))
    put(changing, 5)
    changes = index.update(Pixels())
    assert "changed while it was read" in changes.broken["b/000.png"]
    left = 0
    put(changing, 6)
    assert index.update(Pixels()).changed == 1 and np.array_equal(index.read(id), paint(6))


def test_a_second_change_within_the_resolution_of_the_clock_is_noticed(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 1)
    path = put(photos / "x.bmp", 1, old=False)  # just now; all .bmp of one size have one length
    index = made(tmp_path / "i", photos)
    status = path.stat()
    put(path, 2, old=False)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    changes = index.update(Pixels())
    assert changes.changed == 1 and np.array_equal(index.read(ids_by_name(index)["x.bmp"]), paint(2))


def test_a_picture_that_changed_or_is_gone_is_not_shown_as_another(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 2)
    index = made(tmp_path / "i", photos)
    ids = ids_by_name(index)
    put(photos / "a/001.png", 9)
    (photos / "b/000.png").unlink()
    with pytest.raises(DiptychError, match=r"a/001.png.*has changed since it was indexed.*diptych index"):
        index.read(ids["a/001.png"])
    with pytest.raises(DiptychError, match=r"b/000.png.*cannot be read.*No such file"):
        index.file(ids["b/000.png"])
    with pytest.raises(DiptychError, match="there is no picture 99"):
        index.file(99)


def test_an_unmounted_disk_does_not_empty_the_index(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 2)
    index = made(tmp_path / "i", photos)
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(DiptychError, match="photos"):
        index.update(Pixels())
    photos.mkdir()
    with pytest.raises(DiptychError, match=r"no pictures in it now, 2 in the index: is a disk not mounted"):
        index.update(Pixels())
    assert len(Index.open(tmp_path / "i")) == 2


def test_exif_gives_the_date_and_turns_the_picture(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif.get_ifd(0x8769)[0x9003] = "2021:07:04 12:30:05"
    put(photos / "turned.jpg", 3, exif=exif)
    put(photos / "plain.jpg", 4)
    index = made(tmp_path / "i", photos)
    ids = ids_by_name(index)
    turned, plain = index.picture(ids["turned.jpg"]), index.picture(ids["plain.jpg"])
    assert turned is not None and plain is not None
    assert (turned.width, turned.height, turned.date) == (24, 32, "2021-07-04T12:30:05")
    assert (plain.width, plain.height) == (32, 24) and plain.date == datetime.fromtimestamp(1_600_000_000).isoformat()
    upright = np.rot90(np.asarray(Image.open(photos / "turned.jpg")), -1)
    assert np.array_equal(index.read(ids["turned.jpg"]), upright)
    assert index.where({"until": "2021-07"}).ids().tolist() == sorted(ids.values())
    assert index.where({"since": "2021-07-04"}).ids().tolist() == [ids["turned.jpg"]]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    put(photos / "plain.png", 1)
    odd = os.path.join(os.fsencode(photos), b"caf\xe9.png")
    shutil.copy2(photos / "plain.png", odd)
    put(photos / "plain.png", 2)
    index = made(tmp_path / "i", photos)
    (name,) = [n for n in ids_by_name(index) if n != "plain.png"]
    assert np.array_equal(index.read(ids_by_name(index)[name]), paint(1))
    os.rename(odd, os.path.join(os.fsencode(photos), b"th\xe9.png"))
    assert index.update(Pixels()).renamed == 1
    assert all(np.array_equal(index.read(i), paint(1 if n != "plain.png" else 2)) for n, i in ids_by_name(index).items())


def test_a_table_with_columns(tmp_path: Path) -> None:
    fill(tmp_path / "photos", 4)
    rows = [f"photos/{'a' if i % 2 else 'b'}/{i:03d}.png,picture {i},{i / 2},{'north' if i > 1 else 'south'}" for i in range(4)]
    table = tmp_path / "t.csv"
    table.write_text("file,caption,price,shop\n" + "\n".join([*rows, "photos/none.png,gone,1,north"]))
    model = Pixels()
    index = made(tmp_path / "i", f"csv:{table}", model)
    assert len(index) == 4 and list(index.broken().values()) == [f"there is no file {tmp_path}/photos/none.png"]
    facts = index.facts["columns"]
    assert facts["shop"] == {"type": "text", "values": ["north", "south"], "counts": [2, 2]} and facts["price"]["type"] == "number"
    ids = ids_by_name(index)
    assert index.where({"columns": {"price": {"min": 1}, "shop": "north"}}).ids().tolist() == sorted(
        [ids["photos/b/002.png"], ids["photos/a/003.png"]]
    )
    seen = model.seen
    put(tmp_path / "photos/a/001.png", 44)
    table.write_text(table.read_text().replace("picture 2", "an owl"))
    changes = index.update(model)
    assert (changes.changed, changes.unchanged, changes.described) == (1, 4, 1) and model.seen == seen + 2
    assert np.array_equal(index.read(ids["photos/a/001.png"]), paint(44))


def test_data_without_files(tmp_path: Path) -> None:
    model = Pixels()
    with pytest.raises(DiptychError, match="has no end; say how many pictures: --limit"):
        Index.create(tmp_path / "i", "scenes:small", model, "pixels")
    assert not (tmp_path / "i").exists()
    index = made(tmp_path / "i", "scenes:small", model, limit=6)
    assert len(index) == 6 and all(p.caption and not p.bytes and not p.date for p in index.pictures(range(1, 7)))
    seen = model.seen
    assert index.update(model).unchanged == 6 and model.seen == seen + 1
    hit = index.search(Query(images=(index.read(3),)), model, n=1).hits[0]
    assert hit.id == 3 and hit.score == pytest.approx(1)
    with pytest.raises(DiptychError, match="has no file: its data holds pixels"):
        index.file(3)


def test_several_addresses(tmp_path: Path) -> None:
    one, two = fill(tmp_path / "one", 2), fill(tmp_path / "two", 2, first=10)
    index = made(tmp_path / "i", [str(one), f"folder:{two}"])
    assert len(index) == 4 and index.where({"address": f"folder:{two}"}).ids().tolist() == [3, 4]
    (one / "b/000.png").rename(two / "b/x.png")
    changes = index.update(Pixels())
    assert changes.renamed == 1 and changes.total == 4
    moved = index.picture(ids_by_name(index)["b/x.png"])
    assert moved is not None and moved.address == f"folder:{two}" and np.array_equal(index.read(moved.id), paint(0))


def test_an_index_within_its_own_folder_does_not_index_itself(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 2)
    index = made(photos / "my.index", photos)
    put(photos / "my.index" / "thumbnail.png", 5)
    assert index.update(Pixels()).total == 2


def test_what_cannot_become_an_index_is_refused(tmp_path: Path) -> None:
    photos, model = fill(tmp_path / "photos", 1), Pixels()
    with pytest.raises(DiptychError, match="is there already, and is no index"):
        Index.create(photos, str(photos), model, "m")
    with pytest.raises(DiptychError, match="no index in it"):
        Index.open(photos)
    with pytest.raises(DiptychError, match=r"there is no such directory; make one: diptych index"):
        Index.open(tmp_path / "none")
    made(tmp_path / "i", photos)
    with pytest.raises(DiptychError, match="there is an index already"):
        Index.create(tmp_path / "i", str(photos), model, "m")
    info = json.loads((tmp_path / "i/index.json").read_text())
    (tmp_path / "i/index.json").write_text(json.dumps(info | {"format": 99}))
    with pytest.raises(DiptychError, match="written by a newer Diptych"):
        Index.open(tmp_path / "i")


def test_a_file_of_the_far_future_is_indexed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pictures", 3)
    name = next(iter(sorted(folder.rglob("*.png"))))
    os.utime(name, (9.3e9, 9.3e9))  # the year 2264, in nanoseconds more than 63 bits
    with made(tmp_path / "i.index", folder) as index:
        assert index.facts["count"] == 3
        assert index.update(Pixels()).unchanged == 3


def test_rows_that_move_in_a_table_are_read_by_an_index_that_was_open(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pictures", 4)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    table = tmp_path / "t.csv"
    table.write_text("image,caption\n" + "".join(f"pictures/{n},c {n}\n" for n in names[2:]), encoding="utf-8")
    with made(tmp_path / "i.index", f"csv:{table}") as index, Index.open(tmp_path / "i.index") as served:
        before = {id: served.read(id).tobytes() for id in (1, 2)}
        table.write_text("image,caption\n" + "".join(f"pictures/{n},c {n}\n" for n in names), encoding="utf-8")
        index.update(Pixels())
        assert {id: served.read(id).tobytes() for id in (1, 2)} == before
