"""Search in an index against plain loops: order, ties, filters, near-duplicates, negatives, selections, the map."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.core.words import words as words_of
from diptych.data.hashes.perceptual import colours, phashes
from diptych.data.sources import open_source
from diptych.index import map as maps
from diptych.index.facts import PictureFacts
from diptych.index.index import Index, Query
from diptych.index.query import NEGATIVE, vector_of
from diptych.index.stamp import check_stamp, stamp_of
from diptych.index.updating.duplicates import leaders
from index_fixture import COLOURS, Blind, Pixels, fill, ids_by_name, made, paint, put

WORDS = ("dog", "cat", "beach", "Snow", "t-shirt", "l'été")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Forty pictures in folders, with captions and columns, some of them missing."""
    root = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    folders = ["", "a", "a/b", "a/b/c", "ab", "a.b", "z_y"]
    for i in range(40):
        path = root / folders[i % len(folders)] / f"{i:02d}.png"
        put(path, paint(i, height=int(rng.integers(8, 40)), width=int(rng.integers(8, 40))))
        known: dict[str, Any] = {"caption": " ".join(rng.choice(WORDS, 3))} if i % 5 else {}
        if i % 3:
            known |= {"label": str(rng.choice(["cat", "dog", "10"])), "price": [1, 2.5, 10, "10"][i % 4], 'od"d': "x' OR 1=1"}
        if known:
            path.with_suffix(".json").write_text(json.dumps(known))
    return made(root / "my.index", root)


def plain(pictures: list[PictureFacts], wanted: Mapping[str, Any]) -> list[int]:
    """The same filters as a loop."""
    result = []
    for p in pictures:
        good = True
        for name, value in wanted.items():
            if name == "folder":
                good &= p.folder == value or p.folder.startswith(f"{value}/")
            elif name == "words":
                have = {w.casefold() for w in words_of(p.caption)}
                good &= {w.casefold() for w in words_of(value)} <= have
            elif name in ("min_width", "min_height", "min_bytes"):
                good &= getattr(p, name[4:]) >= value
            elif name in ("max_width", "max_height", "max_bytes"):
                good &= getattr(p, name[4:]) <= value
            elif name == "columns":
                for column, given in value.items():
                    own = p.columns.get(column)
                    if isinstance(given, dict):
                        number = isinstance(own, int | float)
                        good &= number and all((own >= v) if k == "min" else (own <= v) for k, v in given.items())
                    else:
                        some = given if isinstance(given, list) else [given]
                        good &= any(own is not None and str(own) == str(v) for v in some)
        if good:
            result.append(p.id)
    return result


FILTERS = [
    {"folder": "a"}, {"folder": "a/b"}, {"folder": "a/b/"}, {"folder": "nowhere"}, {"words": "dog"}, {"words": "DOG snow"},
    {"words": "t-shirt"}, {"words": "l'été"}, {"words": "do"}, {"min_width": 20}, {"max_height": 15, "min_width": 10},
    {"min_bytes": 500}, {"columns": {"label": "cat"}}, {"columns": {"label": ["cat", "dog"]}}, {"columns": {"label": "10"}},
    {"columns": {"price": 10}}, {"columns": {"price": {"min": 2}}}, {"columns": {"price": {"min": 2, "max": 5}}},
    {"columns": {'od"d': "x' OR 1=1"}}, {"columns": {'od"d': "x"}}, {"columns": {"label": "'; DROP TABLE pictures; --"}},
]  # fmt: skip


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
def test_filters_are_the_plain_loop(collection: Index, wanted: dict[str, Any]) -> None:
    pictures = collection.pictures(collection.store.ids())
    assert collection.where(wanted).ids().tolist() == plain(
        pictures, {k: v.strip("/") if k == "folder" else v for k, v in wanted.items()}
    )


def test_filters_together_are_the_plain_loop_and_hold_during_the_search(collection: Index) -> None:
    pictures, model = collection.pictures(collection.store.ids()), Pixels()
    kinds = set()
    for one, two in itertools.combinations([f for f in FILTERS if "columns" not in f or "label" in f["columns"]], 2):
        wanted = one | two
        expected = plain(pictures, {k: v.strip("/") if k == "folder" else v for k, v in wanted.items()})
        answer = collection.search(Query(("red",)), model, n=40, filters=wanted, fold=False, cutoff=False)
        assert answer.total == len(expected) and sorted(hit.id for hit in answer.hits) == expected
        kinds.add(len(expected))
    assert len(kinds) > 5


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"foldr": "a"}, "filter 'foldr': there is no such filter; did you mean 'folder'"),
        ({"label": "cat"}, r"filter 'label': .*columns"),
        ({"columns": {"labl": 1}}, "the data has no column 'labl'; did you mean 'label'"),
        ({"columns": {"label": {"least": 1}}}, "expected a value, a list of values, or"),
        ({"columns": [1]}, "filter 'columns': expected"),
        ({"min_width": "wide"}, "filter 'min_width': expected a number, got 'wide'"),
        ({"since": "May"}, "filter 'since': expected a date such as 2024-05-31"),
        ({"until": "2024-02-30"}, "filter 'until': expected a date"),
        ({"folder": 3}, "filter 'folder': expected a text"),
    ],
)
def test_wrong_filters_are_refused(collection: Index, wanted: dict[str, Any], message: str) -> None:
    collection.columns()
    with pytest.raises(DiptychError, match=message):
        if "label" in wanted:
            wanted = wanted | {"columns": {"label": "cat"}}
        collection.where(wanted)


def test_dates_include_the_whole_day_month_and_year(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    days = ("2023-12-31T23:59:59", "2024-01-01T00:00:00", "2024-02-29T12:00:00", "2024-03-01T00:00:00", "2025-01-01T00:00:00")
    for i, day in enumerate(days):
        exif = Image.Exif()
        exif[0x0132] = day.replace("-", ":").replace("T", " ")
        put(photos / f"{i}.jpg", i, exif=exif)
    index = made(tmp_path / "i", photos)
    cases = {("2024", "2024"): [2, 3, 4], (None, "2024-02-29"): [1, 2, 3], ("2024-02", "2024-02"): [3], ("2024-03-01", None): [4, 5],
             ("2024-01-01T00:00:00", "2024-01-01T00:00"): [2]}  # fmt: skip
    for (since, until), expected in cases.items():
        assert index.where({"since": since, "until": until}).ids().tolist() == expected
    assert index.facts["dates"] == [days[0], days[-1]]
    assert [hit.id for hit in index.search(Query(), Pixels(), n=3).hits] == [5, 4, 3]  # the latest first


def test_the_order_is_that_of_the_plain_loop_with_ties(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 30)
    for i in (3, 7, 11):  # the same content four times
        put(photos / "a" / f"{i:03d}.png", 1)
    model = Pixels()
    index = made(tmp_path / "i", photos, model)
    query = np.float64(model.embed_text(["blue red"])[0])
    scores = {
        id: float(np.float32(np.float64(index.store.vectors(np.array([id]))[0]) @ query)) for id in index.store.ids().tolist()
    }
    expected = sorted(scores, key=lambda id: (-scores[id], id))
    answer = index.search(Query(("blue red",)), model, n=30, fold=False, cutoff=False)
    assert [hit.id for hit in answer.hits] == expected and answer.total == 30
    assert [hit.score for hit in answer.hits] == pytest.approx([scores[i] for i in expected], abs=1e-6)
    parts = [
        index.search(Query(("blue red",)), model, n=7, offset=start, fold=False, cutoff=False).hits for start in range(0, 35, 7)
    ]
    assert [hit.id for part in parts for hit in part] == expected
    folded = [index.search(Query(("blue red",)), model, n=5, offset=start).hits for start in range(0, 30, 5)]
    shown = [hit.id for part in folded for hit in part]
    assert len(shown) == 27 == len(set(shown)) and shown == [i for i in expected if i in shown]


def test_near_duplicates_are_one_hit_and_listed(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    base = paint(1, 96, 128)
    put(photos / "original.png", base)
    put(photos / "small.jpg", np.asarray(Image.fromarray(base).resize((64, 48), Image.Resampling.LANCZOS)), quality=80)
    put(photos / "tinted.png", base[..., [2, 0, 1]])  # another colour: another picture
    put(photos / "other.png", paint(2, 96, 128))
    model = Pixels()
    index = made(tmp_path / "i", photos, model)
    ids = ids_by_name(index)
    answer = index.search(Query(images=(base,)), model)
    assert answer.hits[0].id == ids["original.png"] and len(answer.hits) == 3
    assert answer.hits[0].duplicates == (ids["small.jpg"],)
    assert all(not hit.duplicates for hit in answer.hits[1:])
    assert len(index.search(Query(images=(base,)), model, fold=False).hits) == 4
    alone = index.search(Query(images=(base,)), model, filters={"max_width": 100}).hits
    assert [hit.id for hit in alone] == [ids["small.jpg"]] and not alone[0].duplicates
    listed = index.search(Query(), model).hits
    assert len(listed) == 3 and {hit.duplicates for hit in listed} == {(), (ids["small.jpg"],)}
    like = index.search(Query(like=(ids["original.png"],)), model).hits
    assert like[0].id == ids["small.jpg"] and ids["original.png"] not in {i for hit in like for i in (hit.id, *hit.duplicates)}


def test_groups_are_those_of_the_plain_loop() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 12).astype(np.uint64)[rng.integers(0, 12, 200)]
    for _ in range(3):  # up to three bits of each are others
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, 200).astype(np.uint64)) * rng.integers(0, 2, 200).astype(np.uint64)
    shown = rng.integers(0, 2, (200, 1)).astype(np.uint8) * 60 + rng.integers(0, 8, (200, 48)).astype(np.uint8)
    expected: list[int] = []
    for i in range(200):
        heads = [j for j in range(i) if expected[j] == j]
        near = [
            j for j in heads
            if bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= 4
            and np.abs(shown[i].astype(float) - shown[j].astype(float)).mean() <= 0.08 * 255
        ]  # fmt: skip
        expected.append(near[0] if near else i)
    found = leaders(hashes, shown)
    assert found.tolist() == expected and 20 < len(set(expected)) < 150
    assert leaders(hashes[:0], shown[:0]).tolist() == []


def test_hashes_of_one_picture_are_those_of_many() -> None:
    pictures = [paint(i) for i in range(3)]
    assert phashes(pictures).tolist() == [phashes([p])[0] for p in pictures] and len({colours(p) for p in pictures}) == 3


def test_the_vector_of_a_query_by_hand() -> None:
    model = Pixels()
    stored = {4: model.embed_image([paint(4)])[0], 6: model.embed_image([paint(6)])[0]}
    query = Query(("red",), (paint(9),), (4,), ("blue", "white"), (), (6,))
    found = vector_of(query, model, lambda ids: np.stack([stored[int(i)] for i in ids]))
    wanted = np.float64([model.embed_text(["red"])[0], model.embed_image([paint(9)])[0], stored[4]])
    unwanted = np.float64([*model.embed_text(["blue", "white"]), stored[6]])
    total = wanted.sum(0) - NEGATIVE * 3 * unwanted.mean(0)
    assert found == pytest.approx(total / np.linalg.norm(total), abs=1e-6) and found.dtype == np.float32
    with pytest.raises(DiptychError, match="unwanted things alone"):
        vector_of(Query(without=("red",)), model, lambda ids: np.zeros((0, 24)))
    with pytest.raises(DiptychError, match="has no vectors of pictures: search with words"):
        vector_of(Query(images=(paint(1),)), Blind(), lambda ids: np.zeros((0, 24)))


def test_what_is_not_wanted_comes_later(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    half = {(a, b): np.hstack([np.full((16, 16, 3), COLOURS[c], np.uint8) for c in (a, b)]) for a in COLOURS for b in COLOURS}
    for (a, b), picture in half.items():
        put(photos / f"{a}-{b}.png", picture)
    model = Pixels()
    index = made(tmp_path / "i", photos, model)
    with_, without = (
        [h.picture.name for h in index.search(query, model, n=25, fold=False, cutoff=False).hits]
        for query in (Query(("red",)), Query(("red",), without=("yellow",)))
    )
    assert with_[0] == without[0] == "red-red.png"
    assert with_.index("red-yellow.png") < with_.index("red-blue.png")
    assert without.index("red-yellow.png") > without.index("red-blue.png")


def test_wrong_searches_are_refused(collection: Index) -> None:
    model = Pixels()
    with pytest.raises(DiptychError, match="there is no picture 999 to compare with"):
        collection.search(Query(like=(999,)), model)
    for n, offset in ((0, 0), (1, -1), (10**6, 0)):
        with pytest.raises(DiptychError, match="expected n from 1"):
            collection.search(Query(("red",)), model, n=n, offset=offset)


def test_without_a_calibration_nothing_is_not_claimed_and_with_one_relevance_is_given(collection: Index) -> None:
    model = Pixels()
    answer = collection.search(Query(("red",)), model, n=3)
    assert len(answer.hits) == 3 and all(hit.relevance is not None and 0 <= hit.relevance <= 1 for hit in answer.hits)
    assert not answer.nothing or "nothing here looks like that" in answer.reason
    off = collection.search(Query(("red",)), model, n=3, cutoff=False)
    assert not off.nothing and off.reason == "" and [h.relevance for h in off.hits] == [None] * 3
    (collection.path / "calibration.npz").rename(collection.path / "kept.npz")
    try:
        bare = Index.open(collection.path).search(Query(("red",)), model, n=3)
        assert not bare.nothing and [h.id for h in bare.hits] == [h.id for h in answer.hits]
        assert all(h.relevance is None for h in bare.hits)
    finally:
        (collection.path / "kept.npz").rename(collection.path / "calibration.npz")


def test_an_open_index_sees_what_another_process_adds(tmp_path: Path) -> None:
    photos, model = fill(tmp_path / "photos", 5), Pixels()
    made(tmp_path / "i", photos, model).close()
    reader, writer = Index.open(tmp_path / "i", model), Index.open(tmp_path / "i", model)
    assert reader.search(Query(("red",)), model).total == 5
    put(photos / "new.png", np.full((20, 20, 3), COLOURS["red"], np.uint8))
    (photos / "a/001.png").unlink()
    writer.update(model)
    answer = reader.search(Query(("red",)), model, cutoff=False)
    assert answer.total == 5 and answer.hits[0].picture.name == "new.png" and reader.facts["count"] == 5


# --- which model ---


def test_another_model_is_refused_by_name_and_remedy(tmp_path: Path) -> None:
    index = made(tmp_path / "i", fill(tmp_path / "photos", 2))
    index.check(Pixels())
    with pytest.raises(
        DiptychError, match=r"by index_fixture:Pixels \(weights pixels-1\), not by runs/x .*--model index_fixture:Pixels"
    ):
        Index.open(tmp_path / "i", Pixels(key="other"), "runs/x")
    with pytest.raises(DiptychError, match="its preprocessing of pictures or its weights are others"):
        index.update(Pixels(shift=0.1))
    with pytest.raises(DiptychError, match="cannot turn an image into a vector"):
        Index.create(tmp_path / "j", str(tmp_path / "photos"), Blind(), "blind")

    class Deaf(Pixels):
        def embed_text(self, texts: Any) -> np.ndarray:
            return super().embed_text([text.lower() for text in texts])

    with pytest.raises(DiptychError, match="its tokenizer or its weights are others"):
        index.check(Deaf())

    class Wide(Pixels):
        def embed_image(self, images: Any) -> np.ndarray:
            return np.tile(super().embed_image(images), 2) / np.sqrt(2).astype(np.float32)

        def embed_text(self, texts: Any) -> np.ndarray:
            return np.tile(super().embed_text(texts), 2) / np.sqrt(2).astype(np.float32)

    with pytest.raises(DiptychError, match="of 24 numbers; those of pixels have 48"):
        check_stamp(index.info["stamp"], Wide(), "i")


def test_a_model_without_a_key_is_known_by_its_vectors_and_an_export_by_its_key() -> None:
    stamp = stamp_of(Pixels(key=None), "m")
    assert stamp["key"] is None and stamp["hash"] == stamp_of(Pixels(key=None), "m")["hash"]
    check_stamp(stamp, Pixels(key="any"), "i")
    with pytest.raises(DiptychError, match="it is another model"):
        check_stamp(stamp, Pixels(key=None, shift=0.01), "i")
    check_stamp(stamp_of(Pixels(), "m"), Pixels(key="pixels-1-int8", shift=0.01), "i")
    with pytest.raises(DiptychError, match="weights are others"):
        check_stamp(stamp_of(Pixels(), "m"), Pixels(key="pixels-1-int8", shift=0.2), "i")


# --- selections, and as data ---


def test_selections_are_data(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 30)
    for path in photos.rglob("*.png"):
        path.with_suffix(".json").write_text(json.dumps({"caption": f"number {path.stem}", "shop": "north"}))
    (photos / "broken.png").write_bytes(b"?")
    index = made(tmp_path / "i", photos)
    address = index.select("best of", [5, 2, 9, 2])
    assert address == f"index:{tmp_path}/i?selection=best of" and index.selections() == {"best of": [5, 2, 9]}
    source = open_source(address)
    assert len(source) == 3 and [source[i].id for i in range(3)] == [p.name for p in index.pictures([5, 2, 9])]
    assert source[0].captions == [index.picture(5).caption] and source[0].extra == {"shop": "north"}  # type: ignore[union-attr]
    assert np.array_equal(source[1].image, index.read(2)) and source.fields == ("image", "text")  # type: ignore[attr-defined]
    whole = open_source(f"index:{tmp_path}/i")
    folder = open_source(f"folder:{photos}")
    assert len(whole) == 30 and [p.item for p in whole.problems] == ["broken.png"]
    for part in ("train", "validation", "test"):  # the parts of the same files are the same
        assert sorted(whole.split(part)[i].id for i in range(len(whole.split(part)))) == sorted(
            folder.split(part)[i].id for i in range(len(folder.split(part)))
        )
    assert open_source(f"{address}").fingerprint() != whole.fingerprint() == open_source(f"index:{tmp_path}/i").fingerprint()
    index.select("best of", [1])
    assert index.selections() == {"best of": [1]}
    index.delete_selection("best of")
    for action in (lambda: index.delete_selection("best of"), lambda: open_source(address)):
        with pytest.raises(DiptychError, match="there is no selection 'best of'"):
            action()


@pytest.mark.parametrize("name", ["", " a", "a/b", "../x", "a?b", "x" * 81, "a\nb"])
def test_names_of_selections_fit_into_an_address(collection: Index, name: str) -> None:
    with pytest.raises(DiptychError, match="a name has 1 to 80"):
        collection.select(name, [1])


def test_selections_hold_what_is_there(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 4)
    index = made(tmp_path / "i", photos)
    with pytest.raises(DiptychError, match="there is no picture 77"):
        index.select("s", [1, 77])
    with pytest.raises(DiptychError, match="no pictures in it"):
        index.select("s", [])
    index.select("s", [1, 2])
    (photos / index.picture(2).name).unlink()  # type: ignore[union-attr]
    index.update(Pixels())
    assert index.selections() == {"s": [1]}


def test_an_index_of_scenes_gives_their_samples_whole(tmp_path: Path) -> None:
    made(tmp_path / "i", "scenes:small", limit=5)
    source, scenes = open_source(f"index:{tmp_path}/i"), open_source("scenes:small")
    assert len(source) == 5 and source[3] == scenes[3]


# --- the map ---


def test_the_map_shows_groups_of_like_pictures_with_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    rng = np.random.default_rng(0)
    kinds = ["red", "green", "blue"]
    for i in range(36):
        noise = rng.normal(0, 14, (12, 16, 3))
        put(photos / f"{kinds[i % 3]}-{i}.png", np.clip(np.array(COLOURS[kinds[i % 3]]) + noise, 0, 255).astype(np.uint8))
    model = Pixels()
    index = made(tmp_path / "i", photos, model)
    monkeypatch.setattr(maps, "words", lambda: ["red", "blue", "green", "zebra", "piano"])
    monkeypatch.setattr(maps, "installed", lambda name: False)  # the axes; t-SNE takes seconds
    found = index.map(model, groups=3)
    assert found.method == "PCA" and found.ids.tolist() == list(range(1, 37)) and len(found.clusters) == 3
    assert found.places.min() >= 0 and found.places.max() <= 1
    for picture, group in zip(index.pictures(found.ids), found.cluster, strict=True):
        assert picture.name.startswith(found.clusters[group].name)
    assert [c.count for c in found.clusters] == [12, 12, 12]
    centres = np.array([[c.x, c.y] for c in found.clusters])
    nearest = np.linalg.norm(found.places[:, None] - centres, axis=2).argmin(1)
    assert (nearest == found.cluster).mean() > 0.9
    monkeypatch.setattr(maps, "placed", None)  # would fail if it were computed again
    again = Index.open(tmp_path / "i").map(model, groups=3)
    assert again.points == found.points and again.clusters == found.clusters and len(again.points[0]) == 4


def test_every_word_for_groups_is_there_once() -> None:
    words = maps.words()
    lines = (Path(maps.__file__).parent / "words.txt").read_text(encoding="utf-8").splitlines()
    assert len(words) > 500 and len(words) == sum(len(line.split(",")) for line in lines if not line.startswith("#"))
    assert all(word == word.strip() and word for word in words)


def test_values_that_look_alike_are_not_mixed_up(tmp_path: Path) -> None:
    """True equals 1 in Python, and 001 is no number where it is a code."""
    folder = fill(tmp_path / "pictures", 3)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    rows = [
        {"image": f"pictures/{n}", "caption": "c", "flag": f, "code": c}
        for n, f, c in zip(names, ("true", "false", "1"), ("001", "1", "x"), strict=True)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with made(tmp_path / "i.index", f"jsonl:{tmp_path / 't.jsonl'}") as index:
        counts = [len(index.where({"columns": {"flag": value}}).ids()) for value in (True, 1, True, "true")]
        assert counts[0] == counts[2] and counts[3] >= 1
        assert len(index.where({"columns": {"code": "001"}}).ids()) >= 1
        for wrong in (
            {"words": [1]},
            {"words": " ".join(f"w{i}" for i in range(200))},
            {"columns": {"code": 10**400}},
            {"columns": {"code": ["x"] * 2000}},
        ):
            with pytest.raises(DiptychError):
                index.where(wrong)


def test_a_search_begins_again_when_the_index_changed_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diptych.index import index as module

    with made(tmp_path / "i.index", fill(tmp_path / "pictures", 4)) as index:
        real, calls, generations = module.search, [], iter([1, 2, 2, 2])

        def disturbed(*given: object) -> object:
            calls.append(1)
            if len(calls) == 1:
                raise DiptychError("there is no vector of the id 3")
            return real(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "search", disturbed)
        monkeypatch.setattr(type(index.catalog), "generation", lambda self: next(generations, 2))
        assert index.search(Query(texts=("red",)), Pixels(), cutoff=False).hits and len(calls) == 2
        monkeypatch.setattr(type(index.catalog), "generation", lambda self: 2)
        calls.clear()
        with pytest.raises(DiptychError, match="no vector"):  # nothing changed: the error stands
            index.search(Query(texts=("red",)), Pixels(), cutoff=False)
