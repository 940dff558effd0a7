"""A second model over the first hits: compared with pictures and captions from elsewhere, in its own order, with its own cut-off."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from diptych.core.capabilities import Adapter, FunctionModel, Image
from diptych.core.errors import DiptychError
from diptych.index.cutoff import kept as keeping
from diptych.index.cutoff.background import TAU, Background, Captioned
from diptych.index.cutoff.pairs import PairBackground, small
from diptych.index.cutoff.rerank import Reranker
from diptych.index.cutoff.words import content
from diptych.index.query import Query
from index_fixture import COLOURS, Pixels, made, put

NAMES = ("red", "green", "blue", "yellow")


def pictures(folder: Path, n: int, colours: tuple[str, ...] = NAMES, first: int = 0) -> str:
    """Pictures of one colour each, a little different, with captions."""
    rows = []
    for i in range(first, first + n):
        rng, colour = np.random.default_rng(i), colours[i % len(colours)]
        picture = np.clip(np.array(COLOURS[colour]) + rng.integers(-30, 31, (24, 32, 3)) + rng.integers(-40, 41, 3), 0, 255)
        rows.append({"image": put(folder / f"{i}.png", picture.astype(np.uint8)).name, "caption": f"something {colour}, {i}"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"jsonl:{folder / 'rows.jsonl'}"


class Matching(Adapter):
    """Scores pairs: how near the mean colour is to the colours that a text names, on a scale of its own."""

    name, key = "matching", "matching-1"
    capabilities = frozenset({"score"})

    def __init__(self) -> None:
        self.pairs = 0

    def score(self, images: list[Image], texts: list[str], pairs: np.ndarray | None = None) -> np.ndarray:  # type: ignore[override]
        self.pairs += len(images) * len(texts)
        rows = []
        for image in images:
            mean, noise = image.reshape(-1, 3).mean(0), float(image[0, 0, 0]) / 250
            named = [[np.array(c) for n, c in COLOURS.items() if n in content(t)] for t in texts]
            near = [min(math.exp(-((np.abs(mean - c).mean() / 60) ** 2)) for c in n) if n else 0.0 for n in named]
            rows.append([noise + 10 * value for value in near])
        return np.array(rows, np.float32)


def test_scores_of_pairs_against_plain_loops(tmp_path: Path) -> None:
    model = Matching()
    read = Captioned.read(pictures(tmp_path / "e", 40), 40, 12, small)
    background = PairBackground.fit(model, read)
    images = [np.full((8, 8, 3), COLOURS[c], np.uint8) for c in ("red", "blue", "red")]
    got = background.scores(images, "something red")

    def column(text: str, of: list[Image]) -> list[float]:
        return [float(v) for v in model.score(of, [text])[:, 0]]

    def z(text: str) -> list[float]:
        usual = column(text, read.images)
        mean = sum(usual) / len(usual)
        spread = math.sqrt(sum((v - mean) ** 2 for v in usual) / len(usual))
        return [(v - mean) / spread for v in column(text, images)]

    def soft(values: list[float]) -> float:
        return TAU * math.log(sum(math.exp(v / TAU) for v in values) / len(values))

    wanted = content("something red")
    mentions = [t for t in read.words if wanted <= content(t)]
    others = [t for t in read.words if not wanted <= content(t)]
    assert mentions and others
    for k in range(3):
        own = soft([z("something red")[k], *(z(t)[k] for t in mentions)])
        assert got[k] == pytest.approx(own - soft([z(t)[k] for t in others]), rel=1e-3, abs=1e-3)
    names = read.names()
    assert set(names) == set(NAMES) and background.absent.shape == (4, 40)
    for row, name in zip(background.absent, names, strict=True):
        assert np.array_equal(np.isnan(row), [name in spoken for spoken in read.spoken])


def test_hits_get_the_order_and_the_cut_off_of_the_second_model(tmp_path: Path) -> None:
    address = pictures(tmp_path / "elsewhere", 120)
    second = Reranker.of(Matching(), address)
    assert isinstance(second.background, PairBackground) and second.judges
    pictures(tmp_path / "few", 8, ("red", "blue"))
    with made(tmp_path / "few.index", f"folder:{tmp_path / 'few'}") as index:
        found = index.search(Query(texts=("red",)), Pixels(), n=4, fold=False, rerank=second)
        assert found.reranked and not found.nothing
        assert [hit.picture.name for hit in found.hits if int(Path(hit.picture.name).stem) % 2] == []  # those are blue
        assert all(a.relevance >= b.relevance for a, b in zip(found.hits, found.hits[1:], strict=False))  # type: ignore[operator]
        absent = index.search(Query(texts=("green",)), Pixels(), n=5, fold=False, rerank=second)
        assert absent.nothing and absent.reason.startswith("nothing here looks like that")
    pictures(tmp_path / "photos", 30, ("red", "blue"))
    with made(tmp_path / "i", f"folder:{tmp_path / 'photos'}") as index:
        every = index.search(Query(texts=("red",)), Pixels(), n=30, fold=False, rerank=second)
        plain = index.search(Query(texts=("red",)), Pixels(), n=30, fold=False)
        ids, before = [h.id for h in every.hits], [h.id for h in plain.hits]
        assert (
            ids[20:] == before[20:]
            and sorted(ids[:20]) == sorted(before[:20])
            and all(h.relevance is None for h in every.hits[20:])
        )
        scores = {h.id: h.score for h in plain.hits}
        assert all(h.score == scores[h.id] for h in every.hits)  # the cosine stays what it is
        part = index.search(Query(texts=("red",)), Pixels(), n=4, offset=3, fold=False, rerank=second)
        assert [h.id for h in part.hits] == ids[3:7]
        by_picture = index.search(Query(like=(before[0],)), Pixels(), rerank=second)
        assert not by_picture.reranked
        off = index.search(Query(texts=("green",)), Pixels(), cutoff=False, rerank=second)
        assert off.reranked and not off.nothing


def test_a_picture_that_is_gone_comes_after_those_that_were_judged(tmp_path: Path) -> None:
    second = Reranker.of(Matching(), pictures(tmp_path / "elsewhere", 60))
    pictures(tmp_path / "photos", 6, ("red",))
    with made(tmp_path / "i", f"folder:{tmp_path / 'photos'}") as index:
        best = index.search(Query(texts=("red",)), Pixels(), fold=False, rerank=second).hits[0]
        (tmp_path / "photos" / best.picture.name).unlink()
        found = index.search(Query(texts=("red",)), Pixels(), fold=False, rerank=second).hits
        assert found[-1].id == best.id and found[-1].relevance is None and len(found) == 6
        for path in (tmp_path / "photos").glob("*.png"):
            path.unlink()
        assert len(index.search(Query(texts=("red",)), Pixels(), fold=False, rerank=second).hits) == 6


def test_without_captions_there_is_an_order_but_no_cut_off(tmp_path: Path) -> None:
    second = Reranker.of(Matching(), None)
    assert not second.judges
    pictures(tmp_path / "photos", 8, ("red", "blue"))
    with made(tmp_path / "i", f"folder:{tmp_path / 'photos'}") as index:
        found = index.search(Query(texts=("red",)), Pixels(), n=4, fold=False, rerank=second)
        assert [int(Path(h.picture.name).stem) % 2 for h in found.hits] == [0] * 4 and found.hits[0].relevance is not None
    with pytest.raises(DiptychError, match="no data that have captions"):
        second.judge(np.ones(3), 10)
    with pytest.raises(DiptychError, match="cannot score"):
        Reranker.of(FunctionModel("mute", generate=lambda *a: []), None)


def test_a_model_that_scores_by_cosines_is_compared_by_vectors(tmp_path: Path) -> None:
    address = pictures(tmp_path / "elsewhere", 120)
    second = Reranker.of(Pixels(), address)
    assert isinstance(second.background, Background) and second.judges
    images = [np.full((24, 32, 3), COLOURS[c], np.uint8) for c in ("red", "blue")]
    one = second.scores(images, ["red"])
    assert one[0] > one[1]
    both = second.scores(images, ["red"], without=["blue"])
    plain = [second.background.preferred(Pixels().embed_text([t])[0], Pixels().embed_image(images), t) for t in ("red", "blue")]
    np.testing.assert_allclose(both, plain[0] - 0.5 * plain[1], atol=1e-5)

    class Own(Pixels):  # embeds both sides, but scores pairs in another way, as a matching head does
        def score(self, images: list[Image], texts: list[str], pairs: np.ndarray | None = None) -> np.ndarray:  # type: ignore[override]
            return Matching().score(images, texts)

    assert isinstance(Reranker.of(Own(key="own"), address).background, PairBackground)


def test_what_was_compared_is_kept_by_model(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = pictures(tmp_path / "elsewhere", 60)
    first, again = Matching(), Matching()
    a = Reranker.of(first, address)
    b = Reranker.of(again, address)
    assert first.pairs > 60 * 40 and again.pairs == 0
    assert a.background is not None and b.background is not None
    np.testing.assert_array_equal(a.background.absent, b.background.absent)
    (file,) = (own_cache / "cutoff").glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])  # damaged: computed again
    third = Matching()
    Reranker.of(third, address)
    assert third.pairs == first.pairs and file.stat().st_size > 100
    other = Matching()
    other.key = "matching-2"
    Reranker.of(other, address)
    pictures(tmp_path / "elsewhere", 61)  # other data
    fourth = Matching()
    Reranker.of(fourth, address)
    assert other.pairs == first.pairs and fourth.pairs > 0
    nameless = Matching()
    nameless.key = None
    before = len(list((own_cache / "cutoff").iterdir()))
    Reranker.of(nameless, address)
    assert nameless.pairs > 0 and len(list((own_cache / "cutoff").iterdir())) == before
    monkeypatch.setattr(keeping, "size_limit", lambda: 0)
    off = Matching()
    Reranker.of(off, address)
    assert off.pairs > 0


def test_a_second_index_by_the_same_model_embeds_no_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = Pixels.embed_text
    monkeypatch.setattr(Pixels, "embed_text", lambda self, texts: asked.append(len(texts)) or real(self, texts))
    pictures(tmp_path / "a", 5)
    pictures(tmp_path / "b", 5)
    with made(tmp_path / "one", f"folder:{tmp_path / 'a'}"):
        assert max(asked) > 500
    asked.clear()
    with made(tmp_path / "two", f"folder:{tmp_path / 'b'}") as index:
        assert max(asked) <= 2  # the probe of the stamp
        assert index.search(Query(texts=("an unrelated thing",)), Pixels()).hits[0].relevance is not None
