"""A model that chooses a text for an image by other scores than an image for a text: every task uses the right one."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.benchmarks.matching.blocks import Batch, Block, Sides
from diptych.benchmarks.matching.controlled import Controlled
from diptych.benchmarks.matching.pairs import Pairs
from diptych.benchmarks.matching.retrieval import TO_IMAGE, TO_TEXT, LargeRetrieval, Retrieval
from diptych.benchmarks.matching.spec import Spec
from diptych.benchmarks.matching.winoground import Winoground
from diptych.benchmarks.metrics import groups
from diptych.core.capabilities import Adapter, sides_of
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, captioned
from diptych.data.source import Group
from diptych.inference.run import TrainedModel
from engine_fixture import Little

N = 12
IMAGES = [np.full((8, 8, 3), 10 * i, dtype=np.uint8) for i in range(N)]
TEXTS = [f"number {i}" for i in range(N)]


class OneWay(Adapter):
    """Knows which image fits which text in one direction; in the other it is always wrong. ``knows``: 0 texts, 1 images."""

    capabilities = frozenset({"score", "score_all", "score_sides"})

    def __init__(self, knows: int):
        self.knows = knows

    def score(self, images, texts, pairs=None):
        return self.score_sides(images, texts, pairs)[0]

    def score_sides(self, images, texts, pairs=None):
        number = np.array([int(image[0, 0, 0]) // 10 for image in images])
        said = np.array([int(text.split()[1]) for text in texts])
        right = (number[:, None] == said[None]).astype(np.float32)
        sides = (right, -right) if self.knows == 0 else (-right, right)
        return sides if pairs is None else tuple(s[pairs[:, 0], pairs[:, 1]] for s in sides)


class Kept(dict):
    """Records in memory."""

    def add(self, rows):
        for row in rows:
            self[row["item"]] = row


def run(task, items, knows):
    records = Kept()
    task.run(OneWay(knows), items, records)
    return list(records.values())


@pytest.mark.parametrize("task", [Retrieval(n=N), LargeRetrieval(n=N)])
@pytest.mark.parametrize("knows", [0, 1])
def test_retrieval_judges_each_direction_by_its_own_scores(task, knows):
    items = [
        Sample(str(i), {}, image=image, text=captioned([text])) for i, (image, text) in enumerate(zip(IMAGES, TEXTS, strict=True))
    ]
    rows = run(task, items, knows)
    for way, wanted in ((TO_TEXT, 1.0 - knows), (TO_IMAGE, float(knows))):
        assert [r["correct"][f"{way}/recall@1"] for r in rows] == [wanted] * N
    best = [int(r["top"][0]) for r in rows]
    assert (best == list(range(N))) == bool(knows), "the images that a text finds"


@pytest.mark.parametrize("knows", [0, 1])
def test_controlled_groups_are_judged_likewise(knows):
    items = [Group(f"colour/{i}", "colour", IMAGES[2 * i : 2 * i + 2], TEXTS[2 * i : 2 * i + 2]) for i in range(4)]
    for r in run(Controlled(), items, knows):
        assert r["correct"] == {"colour": 1.0 - knows, "colour/text-to-image": float(knows), "colour/group": 0.0}
        assert r["chance"]["colour/group"] == 1 / 16
        assert np.array_equal(r["scores"], -np.asarray(r["scores_to_image"]))


@pytest.mark.parametrize("knows", [0, 1])
def test_blocks_are_judged_likewise_also_from_records(knows):
    blocks = [
        Block(str(i), str(i), list(IMAGES[2 * i : 2 * i + 2]), TEXTS[2 * i : 2 * i + 2], np.eye(2, dtype=bool)) for i in range(4)
    ]
    for task, credits in (
        (Winoground(), {"text": 1.0 - knows, "image": float(knows), "group": 0.0}),
        (Spec(), {"image-to-text": 1.0 - knows, "text-to-image": float(knows)}),
    ):
        for r in run(task, blocks, knows):
            assert r["correct"] == credits
            plain = {**r, **{k: v.tolist() for k, v in r.items() if isinstance(v, np.ndarray)}}
            assert task.with_credits(plain)["correct"] == credits
    assert run(Winoground(), blocks, knows)[0]["chance"]["group"] == 1 / 16
    one = [Block(b.id, b.cluster, b.images[:1], b.texts, b.fits[:1]) for b in blocks]
    assert [r["correct"]["accuracy"] for r in run(Pairs(), one, knows)] == [1.0 - knows] * 4, "a text is chosen for an image"


def test_equal_scores_in_both_directions_have_exactly_chance():
    for k in (2, 3):
        flat = np.zeros((k, k))
        assert groups.group_credit(flat, flat) == pytest.approx(groups.chance(k, two_sided=True)["group"], abs=1e-15)
    rng, k = np.random.default_rng(0), 2
    hits = [groups.group_credit(*rng.random((2, k, k))) for _ in range(20000)]
    assert np.mean(hits) == pytest.approx(groups.chance(k, two_sided=True)["group"], abs=0.006)
    scores = rng.random((3, 3))
    assert groups.group_credit(scores, scores) == groups.group_credit(scores)


def test_a_model_with_one_score_has_it_for_both_sides():
    class Plain(Adapter):
        capabilities = frozenset({"score"})

        def score(self, images, texts, pairs=None):
            return np.ones((len(images), len(texts))) if pairs is None else np.ones(len(pairs))

    to_text, to_image = sides_of(Plain(), IMAGES, TEXTS)
    assert to_text is to_image and to_text.shape == (N, N)
    batch = Batch()
    batch.add(IMAGES[:2], TEXTS[:2])
    assert batch.scores(Plain()).to_image is None and isinstance(batch.scores(Plain()), Sides)


def trained(name, *overrides):
    import torch

    little = Little(name, *overrides)
    return TrainedModel(name, little.recipe, little.model, little.objectives, torch.device("cpu"))


def test_filip_scores_both_sides_by_pairs_as_by_all():
    model = trained("filip")
    images, texts = (
        [np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8) for i in range(3)],
        ["a cat", "two red dogs"],
    )
    assert {"score", "score_all", "score_sides"} <= model.capabilities
    to_text, to_image = model.score_sides(images, texts)
    pairs = np.array([[2, 1], [0, 0], [1, 1]])
    for every, some in zip((to_text, to_image), model.score_sides(images, texts, pairs), strict=True):
        np.testing.assert_allclose(some, every[pairs[:, 0], pairs[:, 1]], atol=1e-5)
    np.testing.assert_allclose(model.score(images, texts), to_text, atol=1e-6)
    np.testing.assert_allclose(model.score(images, texts, pairs), to_text[pairs[:, 0], pairs[:, 1]], atol=1e-5)
    assert np.abs(to_text - to_image).max() > 1e-3


def test_the_mean_of_both_sides_is_one_score():
    own, mean = trained("filip"), trained("filip", "stages.0.objectives.late_interaction.side=mean")
    assert "score_sides" not in mean.capabilities
    images, texts = [np.full((48, 48, 3), v, dtype=np.uint8) for v in (0, 200)], ["a cat", "two red dogs"]
    np.testing.assert_allclose(mean.score(images, texts), np.mean(own.score_sides(images, texts), 0), atol=1e-6)
    with pytest.raises(DiptychError, match="cannot score_sides"):
        mean.score_sides(images, texts)
    assert "score_sides" not in trained("clip").capabilities
