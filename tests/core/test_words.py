"""What a word is, in scripts with and without spaces between words, and that everything that counts words agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diptych.benchmarks.matching.blocks import word_counts
from diptych.core import words as module
from diptych.core.words import count_words, spans, words
from diptych.curation.engine.apply import apply, rows_of
from diptych.curation.operators.documents import OBELICS, text_reason
from diptych.curation.operators.duplicates.leaks import word_runs
from diptych.curation.operators.images.text_spotting import overlap
from diptych.curation.operators.pairs.captioning import shear
from diptych.curation.operators.text.length import TextLength
from diptych.curation.operators.text.quality import word_repetition
from diptych.data.inspect import inspect

CASES = {
    "A red dog.": ["A", "red", "dog"],
    "a child's t-shirt, 1,000.5 kg": ["a", "child's", "t-shirt", "1,000.5", "kg"],
    "one,two - a_b 1/2 🐻": ["one", "two", "a", "b", "1", "2"],
    "née ne\u0301e": ["née", "ne\u0301e"],
    "कुत्ता घास पर": ["कुत्ता", "घास", "पर"],  # marks belong to the letter before them
    "می\u200cخواهم برود": ["می\u200cخواهم", "برود"],
    "빨간 개가 달린다": ["빨간", "개가", "달린다"],
    "红狗在草地": ["红", "狗", "在", "草", "地"],
    "iPhone手机 是red的": ["iPhone", "手", "机", "是", "red", "的"],
    "机の上にコーヒー": ["机", "の", "上", "に", "コーヒー"],
    "らーめん": ["らー", "め", "ん"],
    "สีแดงวิ่ง": ["สีแดง", "วิ่ง"],
    "ឆ្កែ។": ["ឆ្កែ"],
    "": [],
    " ? ": [],
}


@pytest.mark.parametrize("text", CASES)
def test_words(text: str) -> None:
    assert words(text) == CASES[text] == [text[a:b] for a, b in spans(text)]
    assert module._WORD.findall(text) == CASES[text], "the faster pattern for ASCII finds the same"
    assert count_words([text]).to_pylist() == [len(CASES[text])], "pyarrow counts the same"


def test_counts_of_words_agree_everywhere(tmp_path: Path) -> None:
    texts = list(CASES)
    expected = [len(found) for found in CASES.values()]
    assert word_counts(texts).tolist() == expected
    assert apply(TextLength(), rows_of({"text": texts})).to_pydict()["words"] == expected
    assert count_words(pa.array([None, "a b"])).to_pylist() == [None, 2]
    captions = ["红狗在草地", "机の上にコーヒー", "สีแดงวิ่ง", "A red dog."]
    for i, caption in enumerate(captions):
        Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption, encoding="utf-8")
    assert inspect(f"folder:{tmp_path}", progress=False).word_counts == {2: 1, 3: 1, 5: 2}


def test_repetition_runs_and_cuts_need_no_spaces() -> None:
    assert word_repetition("红色的狗红色的狗", 4) > 0 == word_repetition("红色的狗在草地上", 4)
    assert word_runs("红狗在草地", 4) == ["红 狗 在 草", "狗 在 草 地"]
    assert overlap("红狗", "大红狗") == 1 and overlap("红狗", "红") == 0.5 and overlap("कुत्ता", "कित्ता") == 0
    assert shear("红色的狗在草地上", "一只狗") == "红色的" and shear("a red dog runs", "一只狗") == "a red dog"
    assert text_reason("红色的狗在草地上。", OBELICS.paragraph) != "too few words"
