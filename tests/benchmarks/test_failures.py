"""Slices, probing and readouts: planted failures are found, chance is not, and the numbers are those of plain loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from diptych.benchmarks.failures.features import ABOUT, features_of, read_features
from diptych.benchmarks.failures.items import judge
from diptych.benchmarks.failures.readout import answered, ask, compare_stages, linear_readout, stages_of
from diptych.benchmarks.failures.regression import benjamini_hochberg, regress
from diptych.benchmarks.failures.slices import find_slices, joined, merged, named, words_in
from diptych.cli import app
from diptych.core.capabilities import Adapter, all_pairs
from diptych.core.errors import DiptychError
from diptych.core.sample import Region, Sample, captioned
from diptych.data.sources import open_source
from maps_fixture import SCORED_LLAVA, noise, run_of

THINGS = ("fish", "star", "tree", "cat", "house")


def planted(
    n: int = 240, worse: str = "star", by: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Vectors in one bundle a thing, scores that are lower for one of them, captions, and the things."""
    rng = np.random.default_rng(seed)
    kinds = [THINGS[i % len(THINGS)] for i in range(n)]
    middles = {k: rng.normal(size=16) for k in THINGS}
    vectors = np.stack([middles[k] + 0.25 * rng.normal(size=16) for k in kinds])
    scores = np.array([float(rng.random() < (0.9 - by if k == worse else 0.9)) for k in kinds])
    return vectors, scores, [f"a {rng.choice(['red', 'blue'])} {k} on the grass" for k in kinds], kinds


def test_a_planted_slice_is_found_named_and_confirmed() -> None:
    vectors, scores, texts, kinds = planted()
    found = find_slices(vectors, scores, texts, size=20)
    worst = found[0]
    assert "star" in worst.name and worst.confirmed and worst.low < worst.difference < worst.high < 0
    assert all("star" in e for e in worst.examples) and [s.name for s in found if s.confirmed] == [worst.name]
    inside = np.array([k == "star" for k in kinds])
    assert worst.held_score == pytest.approx(scores[inside].mean(), abs=0.15) and worst.found + worst.held == inside.sum()
    assert find_slices(vectors, scores, texts, size=20) == found
    few = find_slices(vectors, scores, texts, size=20, vocabulary=["grass", "star"])
    assert few[0].name == "star"


def test_without_a_failure_no_slice_is_confirmed() -> None:
    confirmed = 0
    for seed in range(12):
        vectors, scores, texts, _ = planted(160, by=0.0, seed=seed)
        confirmed += any(s.confirmed for s in find_slices(vectors, scores, texts, size=16, seed=seed))
    assert confirmed <= 2  # 5 % are expected, 0.6 of 12


def test_clusters_are_named_and_merged_by_their_words() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    texts = ["a red fish", "the red fish", "a red fish", "one red fish", "a blue star", "the blue star"]
    names = named(labels, texts)
    assert names[2] in ("blue star", "blue", "star") and words_in("A red fish, on the grass") >= {
        "red",
        "fish",
        "red fish",
        "grass",
    }
    middles = np.array([[1.0, 0], [1, 0], [1, 0.02], [1, 0.02], [0, 1], [0, 1]])
    assert merged(labels, middles, {0: "a", 1: "b", 2: "c"}).tolist() == [0, 0, 0, 0, 2, 2]
    assert merged(labels, np.eye(6), {0: "a", 1: "b", 2: "a"}, cosine=2).tolist() == [0, 0, 1, 1, 0, 0]
    assert joined(labels, {0: "a", 1: "b", 2: "c"}, [["b", "c"], ["x"]]).tolist() == [0, 0, 1, 1, 1, 1]


def test_the_regression_is_that_of_plain_loops() -> None:
    rng = np.random.default_rng(1)
    n, clusters = 60, [i // 2 for i in range(60)]
    x = rng.normal(size=(n, 3)) * [1, 5, 0.1]
    y = 0.3 * x[:, 0] + 0.1 * rng.normal(size=n) + np.repeat(rng.normal(size=30) * 0.1, 2)
    features = np.concatenate([x, np.ones((n, 1)), x[:, :1] * 2 + 1], 1)  # one without a spread, one that another determines
    found = {c.feature: c for c in regress(["a", "b", "c", "one", "again"], features, y, clusters)}
    assert set(found) == {"a", "b", "c"}
    design = [[1.0, *((x[i, j] - x[:, j].mean()) / x[:, j].std() for j in range(3))] for i in range(n)]
    gram = np.array([[sum(design[i][a] * design[i][b] for i in range(n)) for b in range(4)] for a in range(4)])
    moment = np.array([sum(design[i][a] * y[i] for i in range(n)) for a in range(4)])
    weights = np.linalg.solve(gram, moment)
    meat = np.zeros((4, 4))
    for g in range(30):
        s = np.zeros(4)
        for i in range(n):
            if clusters[i] == g:
                s += np.array(design[i]) * (y[i] - sum(design[i][a] * weights[a] for a in range(4)))
        meat += np.outer(s, s)
    inverse = np.linalg.inv(gram)
    spread = inverse @ meat @ inverse * 30 / 29 * (n - 1) / (n - 4)
    scipy = pytest.importorskip("scipy.stats")
    for k, name in enumerate("abc", 1):
        error = math.sqrt(spread[k, k])
        assert found[name].value == pytest.approx(weights[k])
        assert found[name].high - found[name].value == pytest.approx(scipy.t.ppf(0.975, 29) * error)
        assert found[name].p == pytest.approx(2 * scipy.t.sf(abs(weights[k] / error), 29), rel=1e-6, abs=1e-12)
    assert found["a"].related and not found["c"].related
    with pytest.raises(DiptychError, match="too few"):
        regress(["a", "b"], x[:3, :2], y[:3], [0, 1, 2])


def test_the_false_discovery_rate() -> None:
    ps = [0.001, 0.04, 0.03, 0.9]
    plain = [min(min(1.0, q * 4 / (1 + sum(r < q for r in ps))) for q in ps if q >= p) for p in ps]
    assert benjamini_hochberg(ps) == pytest.approx(plain)
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(60):
        x = rng.normal(size=(80, 6))
        wrong += any(c.related for c in regress(list("abcdef"), x, rng.normal(size=80), range(80)))
    assert wrong <= 8


def test_features_are_counted() -> None:
    image = np.zeros((10, 20, 3), dtype=np.uint8)
    image[:, 10:] = 255
    regions = [Region((0, 0, 10, 10), "a"), Region((0, 0, 5, 2), "b")]
    sample = Sample("s", image=image, text=captioned(["Two red fish, not a big star on the left"]), regions=regions)
    plain = Sample("t", image=image, text=captioned(["fish"]), regions=regions)
    names, values = features_of([sample, plain])
    row = dict(zip(names, values[0], strict=True))
    assert row["words"] == 10 and (row["numbers"], row["colours"], row["sizes"], row["negation"], row["places"]) == (1, 1, 1, 1, 2)
    assert row["brightness"] == 0.5 and row["contrast"] == 0.5 and row["edges"] == pytest.approx(0.5 / 19)
    assert row["width to height"] == pytest.approx(math.log(2)) and row["objects"] == 2 and row["largest object"] == 0.5
    assert values[1][names.index("rarity")] == pytest.approx(-math.log2(2 / 11)) and set(names) <= set(ABOUT)
    assert "objects" not in features_of([sample, Sample("u", image=image, text=captioned(["x"]))])[0]


def test_features_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("id,age,size\na,1,2\nb,3,x\n")
    assert read_features(path, ["a"])[0] == ["age", "size"] and read_features(path, ["a"])[1].tolist() == [[1, 2]]
    with pytest.raises(DiptychError, match="not a number"):
        read_features(path, ["b"])
    with pytest.raises(DiptychError, match="no row for the picture 'c'"):
        read_features(path, ["c"])


class Says(Adapter):
    """Knows the colour of the middle of a picture, has it in its vectors, and does not say it: its scores are noise, or ``honest``."""

    name = "says"
    capabilities = frozenset({"score", "score_all", "embed_image"})

    def __init__(self, honest: bool = False):
        self.honest = honest

    def embed_image(self, images):
        made = np.stack([np.concatenate([np.histogram(i[..., c], 6, (0, 255))[0] for c in range(3)]) for i in images]).astype(float)
        return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)

    def score(self, images, texts, pairs=None):
        wanted = all_pairs(len(images), len(texts)) if pairs is None else pairs
        keys = [int(images[i].sum()) * (7 + len(texts[j])) + sum(map(ord, texts[j])) for i, j in wanted]
        scores = np.array([np.random.default_rng(k).random() for k in keys], dtype=np.float32)
        return scores if pairs is not None else scores.reshape(len(images), len(texts))


def test_a_readout_finds_what_the_answer_does_not_say() -> None:
    stages = {s.name: s for s in compare_stages(Says(), "colour", 120, 80, address="scenes:small?natural=0&max_objects=2&size=32")}
    assert set(stages) == {"vectors", "answer"}
    read, said = stages["vectors"], stages["answer"]
    assert (
        read.accuracy.value > said.accuracy.value + 0.2
        and read.low is not None
        and read.low > 0
        and read.p is not None
        and read.p < 0.01
    )
    assert said.difference is None and said.accuracy.value < 0.4


def test_questions_have_the_right_answer_among_their_captions() -> None:
    for question in ("concept", "colour", "count"):
        asked = ask(question, 12, "test")
        assert len(asked.images) == len(asked.right) == len(asked.captions) == 12
        assert all(len(set(row)) == len(asked.answers) for row in asked.captions)

        class Right(Adapter):
            name, capabilities = "right", frozenset({"score", "score_all"})

            def score(self, images: Any, texts: Any, pairs: Any = None, asked: Any = asked) -> np.ndarray:
                own = [row[r] for row, r in zip(asked.captions, asked.right, strict=True)]
                return np.array([[float(t == o) for t in texts] for o in own])

        assert (answered(Right(), asked) == asked.right).all()
    source = open_source("scenes:small?natural=0").split("test")
    graphs = [g for g in (source.graph(i) for i in range(200)) if len(g.things) == 1 and g.things[0].colour][:12]
    asked = ask("colour", 12, "test")
    assert [asked.answers[r] for r in asked.right] == [g.things[0].colour for g in graphs]
    with pytest.raises(DiptychError, match="no question 'shape'"):
        ask("shape", 3, "test")


def test_stages_of_a_run_with_a_language_model() -> None:
    run = run_of(*SCORED_LLAVA)
    images = noise(3)
    stages = stages_of(run, images)
    assert list(stages) == ["tower", "connector", "layer 1", "layer 2"] and all(len(v) == 3 for v in stages.values())
    import torch

    with torch.no_grad():
        p = run._images(images)
        np.testing.assert_allclose(stages["tower"], p["image.tokens"].tokens.mean(1).numpy(), atol=1e-5)
        last = run.model.parts["lm"].lm.model.base_model.norm(torch.from_numpy(stages["layer 2"]))
        np.testing.assert_allclose(last.numpy(), run.model.parts["lm"].image_hidden(p["image.prefix"])[:, -1].numpy(), atol=1e-4)
    fit = linear_readout(np.eye(4).repeat(5, 0), np.arange(4).repeat(5), np.eye(4))
    assert fit.tolist() == [0, 1, 2, 3]


def test_a_picture_is_right_if_its_caption_beats_its_rivals_and_its_wrong_version() -> None:
    source = open_source("scenes:small?size=32").split("test")

    class Own(Says):
        """Scores the length of a text, and a little more for the picture's own."""

        def score(self, images: Any, texts: Any, pairs: Any = None) -> np.ndarray:
            self.texts, self.pairs = texts, pairs
            return np.array([1.0 if i == j else 0.5 + 0.6 * (j >= len(images) and i % 2) for i, j in pairs], dtype=np.float32)

    model = Own()
    judged = judge(model, source, 40)
    samples = [s for s in (source[i] for i in range(60)) if s.captions][:40]
    wrong = np.array([bool(s.negatives and s.negatives[0]) for s in samples])
    assert wrong.any() and judged.scores.tolist() == [float(not (w and i % 2)) for i, w in enumerate(wrong)]
    assert np.std(judged.margins) == pytest.approx(1) and (judged.margins > 0).tolist() == judged.scores.astype(bool).tolist()
    counts = np.bincount(model.pairs[:, 0])
    assert (counts == 20 + wrong).all() and all(model.texts[i] == s.captions[0] for i, s in enumerate(samples))


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.inference.load.load", lambda address, device="auto": Says())
    world = "scenes:small?size=32"

    def told(*arguments: str) -> Any:
        return json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)

    found = told("slices", "m", world, "-n", "80", "--size", "8")
    assert found["pictures"] == 80 and found["slices"] and {"name", "confirmed", "difference"} <= set(found["slices"][0])
    assert told("slices", "m", world, "-n", "80", "--query", "a red fish")["slices"]
    probed = told("probe", "m", world, "-n", "80")
    assert {"words", "brightness"} <= {f["feature"] for f in probed["features"]}
    stages = told("readout", "m", "-q", "count", "-n", "60", "--held", "30", "--scenes", "scenes:small?natural=0&size=32")["stages"]
    assert [s["stage"] for s in stages] == ["vectors", "answer"]
    said = CliRunner().invoke(app, ["probe", "m", world, "-n", "80"], catch_exceptions=False).stdout
    assert "mean over 80 pictures" in said and "related" in said
    with pytest.raises(DiptychError, match="too few"):
        judge(Says(), open_source(world).split("test"), 20)
