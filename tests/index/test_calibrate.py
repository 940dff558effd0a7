"""The cut-off: scores against plain loops, the rate of false alarms that is stated, small and odd collections."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.index.calibrate import Calibration, judge
from diptych.index.cutoff.background import Background, captioned, content, heads, preference, unrelated_texts


def units(rng: np.random.Generator, n: int, width: int = 16) -> np.ndarray:
    return unit_rows(rng.normal(size=(n, width)).astype(np.float32))


def none(width: int = 16) -> np.ndarray:
    return np.zeros((0, width), np.float32)


def names(n: int) -> list[str]:
    """Words without anything in common."""
    return [f"{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}q{chr(97 + i // 676)}" for i in range(n)]


def calibrated(seed: int, pictures: int, texts: int = 400, outside: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    return Calibration.of_background(
        Background(names(texts), units(rng, texts), units(rng, outside) if outside else none()), units(rng, pictures)
    )


# --- scores ---


def test_without_pictures_from_elsewhere_the_score_is_the_cosine() -> None:
    rng = np.random.default_rng(0)
    background = Background(names(5), units(rng, 5), none())
    query, hits = units(rng, 1)[0], units(rng, 3)
    assert np.allclose(
        background.scores(query, hits), [sum(float(a) * float(b) for a, b in zip(query, h, strict=True)) for h in hits]
    )


def test_preference_against_plain_loops() -> None:
    rng = np.random.default_rng(1)
    words = ["a red cat", "two cats and a dog", "a house", "a boat", "the sea at night"]
    texts, outside, hits, query = units(rng, 5), units(rng, 40), units(rng, 4), units(rng, 1)[0]
    background = Background(words, texts, outside)

    def z(text: np.ndarray, picture: np.ndarray) -> float:
        usual = [float(np.dot(text.astype(float), o.astype(float))) for o in outside]
        mean = sum(usual) / len(usual)
        spread = math.sqrt(sum((u - mean) ** 2 for u in usual) / len(usual))
        return (float(np.dot(text.astype(float), picture.astype(float))) - mean) / spread

    def soft(values: list[float]) -> float:
        return 0.5 * math.log(sum(math.exp(v / 0.5) for v in values) / len(values))

    centre = texts.astype(float).mean(0)
    direction = query.astype(float) - centre
    direction /= np.linalg.norm(direction)
    others = []
    for i in (2, 3, 4):  # the first two speak of cats
        own = texts[i].astype(float) - centre
        if float(np.dot(own / np.linalg.norm(own), direction)) <= 0.6:
            others.append(i)
    expected = [soft([z(query, h), z(texts[0], h), z(texts[1], h)]) - soft([z(texts[i], h) for i in others]) for h in hits]
    assert others and np.allclose(background.scores(query, hits, "cat"), expected, atol=1e-6)


def test_preference_does_not_see_what_all_texts_gain_alike() -> None:
    rng = np.random.default_rng(2)
    own, texts, no = rng.normal(size=6), rng.normal(size=(6, 9)), np.zeros(9, bool)
    shift = rng.normal(size=6) * 30  # a picture that is near to every text
    assert np.allclose(preference(own + shift, texts + shift[:, None], no, no), preference(own, texts, no, no))
    assert np.allclose(preference(own, texts, no, ~no), own)  # nothing to compare with


def test_a_text_that_means_the_same_is_no_comparison() -> None:
    rng = np.random.default_rng(3)
    own, texts = rng.normal(size=4), rng.normal(size=(4, 6))
    near = np.array([True] + [False] * 5)
    assert np.allclose(preference(own, texts, np.zeros(6, bool), near), preference(own, texts[:, 1:], *np.zeros((2, 5), bool)))


def test_scale_of_the_cosines_does_not_matter_with_pictures_from_elsewhere() -> None:
    """Pictures and texts with a common direction, which narrows all cosines: the gap of two towers."""
    rng = np.random.default_rng(4)
    texts, outside, hits, query = units(rng, 8), units(rng, 50), units(rng, 5), units(rng, 1)[0]

    def narrowed(vectors: np.ndarray, sign: float) -> np.ndarray:
        return unit_rows(np.hstack([vectors, np.full((len(vectors), 1), sign * 2, np.float32)]))

    plain = Background(names(8), texts, outside).scores(query, hits)
    gap = Background(names(8), narrowed(texts, 1), narrowed(outside, -1)).scores(narrowed(query[None], 1)[0], narrowed(hits, -1))
    assert np.allclose(plain, gap, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [("Two red Foxes!", {"red", "fox"}), ("a picture of the churches", {"church"}), ("glass", {"glass"}), ("…", set())],
)
def test_content(text: str, words: set[str]) -> None:
    assert content(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a picture of a small yellow cat above two big green trees", ["cat", "tree"]),
        ("Two red foxes, one key", ["fox", "key"]),
        ("in the", []),
    ],
)
def test_heads(text: str, words: list[str]) -> None:
    assert heads(text) == words


# --- the rate of false alarms ---


@pytest.mark.parametrize("outside", [0, 60])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_stated_rate_of_false_alarms_holds(outside: int, rate: float) -> None:
    alarms, n = 0, 0
    for seed in range(8):
        made = calibrated(seed, 30, 150, outside)
        rng = np.random.default_rng(seed)
        rng.normal(size=(150 * 16 + outside * 16,))
        pictures = units(rng, 30)
        assert len(made.best) == 150
        for query in units(np.random.default_rng(1000 + seed), 150):
            alarms += made.judge(query, pictures[np.argsort(-pictures @ query)], rate=rate).present
            n += 1
    # 8 thresholds of 150 texts each: the share is known to about ± 3 standard deviations of both samples
    assert abs(alarms / n - rate) < 3 * math.sqrt(rate * (1 - rate) * 2 / n) + 1 / 151


def test_the_threshold_is_the_conformal_rank() -> None:
    made = Calibration(Background([], none(4), none(4)), np.arange(1.0, 100.0), 10)
    assert made.threshold(0.05) == 95.0  # the ceil(100 · 0.95)-th of 99
    assert np.isclose(made.chance(np.array([95.5]))[0], 0.05) and np.isclose(made.chance(np.array([95.0]))[0], 0.06)
    assert made.threshold(0.005) == np.inf  # 99 texts cannot show so low a rate


def test_fewer_pictures_searched_reach_less_by_chance() -> None:
    """The threshold for a tenth of the pictures against the best of random tenths."""
    rng = np.random.default_rng(5)
    texts, pictures = units(rng, 800, 32), units(rng, 1000, 32)
    made = Calibration.of_background(Background(names(800), texts, none(32)), pictures)
    tenth = units(rng, 2000, 32) @ pictures[rng.choice(1000, 100, replace=False)].T
    assert made.threshold(0.05, 100) < made.threshold(0.05)
    assert abs((tenth.max(1) > made.threshold(0.05, 100)).mean() - 0.05) < 0.025
    verdict = made.judge(texts[0], pictures[:5], searched=100)
    assert verdict.threshold == made.threshold(0.05, 100)


# --- what is there and what is not ---


@pytest.mark.parametrize("outside", [0, 60])
def test_present_and_absent(outside: int) -> None:
    rng = np.random.default_rng(6)
    texts, pictures = units(rng, 300, 64), units(rng, 50, 64)
    made = Calibration.of_background(Background(names(300), texts, units(rng, outside, 64) if outside else none(64)), pictures)
    there = unit_rows(pictures[3] + 0.3 * units(rng, 1, 64)[0])
    found = made.judge(there, pictures[np.argsort(-pictures @ there)], text="zebra")
    assert found.present and found.score > found.threshold and found.p < 0.05 and found.relevance[0] > 0.95
    assert found.relevance.argmax() == 0 and ((found.relevance >= 0) & (found.relevance <= 1)).all()
    absent = np.linalg.svd(pictures)[2][-1].astype(np.float32)  # at a right angle to every picture
    nothing = made.judge(absent, pictures, text="xylophone")
    assert not nothing.present and nothing.reason.startswith("nothing here looks like that") and nothing.relevance.max() < 0.5


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("outside", [0, 60])
def test_small_collections(n: int, outside: int) -> None:
    made = calibrated(7, n, 100, outside)
    rng = np.random.default_rng(8)
    verdict = made.judge(units(rng, 1)[0], units(rng, n))
    assert len(verdict.relevance) == n and np.isfinite([verdict.score, verdict.threshold]).all()


def test_vectors_that_are_all_equal() -> None:
    one = np.tile(units(np.random.default_rng(9), 1), (50, 1))
    for outside in (one, none()):
        made = Calibration.of_background(Background(names(50), one, outside), one[:10])
        verdict = made.judge(one[0], one[:10])
        assert not verdict.present and np.isfinite(verdict.score) and np.allclose(verdict.relevance, verdict.relevance[0])


def test_no_hits_and_no_calibration() -> None:
    made = calibrated(10, 5)
    assert not made.judge(np.ones(16, np.float32) / 4, none()).present
    assert judge(None, np.ones(16), none()) is None
    assert judge(made, np.ones(16, np.float32) / 4, none()) is not None


def test_a_large_collection_is_calibrated_by_a_search_of_all_of_it() -> None:
    rng = np.random.default_rng(11)
    texts, pictures = units(rng, 100), units(rng, 400)
    background = Background(names(100), texts, none())
    asked: list[int] = []

    def nearest(queries: np.ndarray, k: int) -> np.ndarray:
        asked.append(len(queries))
        return pictures[np.argsort(-(queries @ pictures.T), axis=1)[:, :k]]

    sampled = Calibration.of_background(background, pictures[:20], total=400, nearest=nearest)
    whole = Calibration.of_background(background, pictures)
    assert sum(asked) == 100 and np.allclose(sampled.best, whole.best) and sampled.total == whole.total == 400


# --- models, files, errors ---


def model(width: int = 8, longest: int = 20) -> FunctionModel:
    """A text tower that reads the first ``longest`` letters, as a tower reads so many tokens."""

    def text(texts: list[str]) -> np.ndarray:
        return unit_rows(
            np.stack([np.bincount([ord(c) % width for c in t[:longest]] or [0], minlength=width) for t in texts]).astype(np.float32)
        )

    def image(images: list[np.ndarray]) -> np.ndarray:
        return unit_rows(np.stack([np.bincount(i.ravel() % width, minlength=width) for i in images]).astype(np.float32))

    return FunctionModel("letters", embed_text=text, embed_image=image)


def test_fit_with_packaged_texts_and_a_query_longer_than_the_tower() -> None:
    rng = np.random.default_rng(12)
    pictures = rng.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    vectors = model().embed_image(list(pictures))
    for outside in (None, list(rng.integers(0, 256, (35, 6, 6, 3), dtype=np.uint8))):
        made = Calibration.fit(model(), vectors, pictures=outside)
        assert len(made.best) == len(unrelated_texts()) and made.background.two_sided == (outside is not None)
        query = "a very long query about everything there is, " * 50
        assert np.isfinite(made.judge(model().embed_text([query])[0], vectors, text=query).score)


def test_saved_and_loaded(tmp_path: Path) -> None:
    made = calibrated(13, 12, 60, 40)
    made.save(tmp_path / "c.npz")
    again = Calibration.load(tmp_path / "c.npz")
    query, hits = units(np.random.default_rng(14), 1)[0], units(np.random.default_rng(15), 4)
    first, second = made.judge(query, hits, text="aaqa"), again.judge(query, hits, text="aaqa")
    assert first.score == second.score and (first.relevance == second.relevance).all() and again.total == 12
    held = dict(np.load(tmp_path / "c.npz"))
    np.savez(tmp_path / "newer.npz", **{**held, "version": 99})
    with pytest.raises(DiptychError, match="newer"):
        Calibration.load(tmp_path / "newer.npz")
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:100])
    with pytest.raises(DiptychError, match="cannot be read as a calibration"):
        Calibration.load(tmp_path / "damaged.npz")


def test_errors() -> None:
    made = calibrated(16, 5)
    with pytest.raises(DiptychError, match="between 0 and 1"):
        made.judge(np.ones(16), none(), rate=0)
    with pytest.raises(DiptychError, match="width 8, those of texts 16"):
        Calibration.of_background(made.background, np.ones((2, 8), np.float32))
    with pytest.raises(DiptychError, match="at least one picture"):
        Calibration.of_background(made.background, none())
    with pytest.raises(DiptychError, match="finite"):
        Calibration.of_background(made.background, np.full((2, 16), np.nan, np.float32))
    with pytest.raises(DiptychError, match="cannot embed_text"):
        Calibration.fit(FunctionModel("blind", embed_image=lambda i: i), np.ones((2, 8), np.float32))


def test_background_of_captioned_data(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(17)
    rows = [
        SimpleNamespace(image=rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), captions=[f"thing {i % 45}"] if i % 10 else [])
        for i in range(100)
    ]
    monkeypatch.setattr("diptych.index.cutoff.background.open_source", lambda address: rows)
    made = captioned("mine", model(), pictures=50, texts=80)
    assert len(made.pictures) == 50 and len(set(made.words)) == len(made.words) <= 45 and made.two_sided
    monkeypatch.setattr("diptych.index.cutoff.background.open_source", lambda address: rows[:20])
    with pytest.raises(DiptychError, match="at least 30"):
        captioned("mine", model())


def test_packaged_texts_are_many_and_different() -> None:
    texts = unrelated_texts()
    assert 800 <= len(texts) <= 1000 and len({t.lower() for t in texts}) == len(texts) and not any("#" in t for t in texts)


def test_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import diptych.index.calibrate as c; print(len(c.unrelated_texts()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 800, done.stderr
