"""Advice follows from what is in the data, and each names a command that exists."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli_fixture
from cli_fixture import Cli
from diptych.config.recipe import recipe_names
from diptych.data.inspect import Inspection
from diptych.data.source import Problem
from diptych.plan.advise import Want, advise

cli = cli_fixture.cli
ROOT = Path(__file__).parents[2]
NOTHING = Inspection(
    address="folder:p", items=1000, looked_at=1000, good=1000, captions=0, captions_per_item={}, width={"median": 300.0},
    height={"median": 200.0}, aspect={}, fields={"image": 1000}, classes={}, class_size={}, lone_classes=[], regions_per_item={},
    clip_frames={}, clip_seconds={}, document_texts={}, document_images={}, turns={}, words={}, word_counts={}, frequent={},
    duplicates=[], broken=[], splits={}, fingerprint="",
)  # fmt: skip
CAPTIONED = replace(NOTHING, captions=1000, words={"median": 9.0}, fields={"image": 1000, "text": 1000})


def commands(inspection: Inspection, want: Want = "any") -> str:
    return "\n".join(advice.command for advice in advise(inspection, want))


def test_pictures_alone_are_searched() -> None:
    (only,) = advise(NOTHING)
    assert only.command == "diptych index folder:p --out my.index"


def test_few_captions_adapt_more_train() -> None:
    assert commands(CAPTIONED) == "diptych choose --data folder:p"
    assert "compare lit sparc" in commands(replace(CAPTIONED, good=20_000))
    assert "compare clip siglip flip" in commands(replace(CAPTIONED, good=2_000_000))
    assert "train llava" in commands(CAPTIONED, "answers") and "choose" not in commands(CAPTIONED, "answers")
    assert "compare coca blip" in commands(replace(CAPTIONED, good=2_000_000), "captions")


def test_what_must_be_mended_comes_first() -> None:
    broken = replace(CAPTIONED, broken=[Problem(f"{i}.jpg", "truncated") for i in range(20)], duplicates=[["a", "b"]] * 40)
    first, second, *_ = advise(broken)
    assert "20 items of 1,000 (2.0%)" in first.because and "0.jpg: truncated" in first.because
    assert "curate run own-photos --data folder:p" in second.command and second.because.startswith("40 pictures")
    few = replace(CAPTIONED, broken=[Problem("x", "y")], duplicates=[["a", "b"]])
    assert len(advise(few)) == 1, "one broken picture of a thousand is no reason to stop"


def test_classes_go_by_how_many_pictures_each_has() -> None:
    few = replace(NOTHING, address="classes:p", classes={"a": 16, "b": 16}, class_size={"median": 16.0})
    assert commands(few) == "diptych choose --data classes:p"
    many = replace(few, class_size={"median": 400.0}, lone_classes=["rare"])
    assert "--ways gda,probe,lora,full,wise-ft" in commands(many) and any("'rare'" in a.because for a in advise(many))
    assert advise(replace(few, classes={"a": 16}), "captions") == [] or "index" in commands(few, "captions")


@pytest.mark.parametrize(
    ("field", "want", "recipe"),
    [
        ("video", "any", "test-of-time"),
        ("regions", "boxes", "x-vlm"),
        ("document", "any", "chameleon"),
        ("turns", "answers", "llava-instruct"),
    ],
)
def test_more_than_pairs(field: str, want: Want, recipe: str) -> None:
    assert recipe in commands(replace(NOTHING, fields={"image": 1000, field: 900}), want)


def test_long_and_short_captions() -> None:
    assert "dreamlip" in commands(replace(CAPTIONED, words={"median": 60.0}))
    assert "choose --data classes:p" in commands(replace(CAPTIONED, words={"median": 2.0}))


def test_large_pictures_are_packed() -> None:
    large = replace(CAPTIONED, good=5000, width={"median": 2000.0}, height={"median": 1500.0})
    assert "data pack folder:p" in commands(large) and "diptych data pack" not in commands(replace(large, address="packed:p"))


def every() -> list[str]:
    fields = {"image": 5000, "video": 1, "regions": 1, "document": 1, "turns": 1}
    whole = replace(
        CAPTIONED, good=5000, fields=fields, width={"median": 2000.0}, height={"median": 900.0}, duplicates=[["a", "b"]] * 500,
        broken=[Problem("a", "b")] * 100,
    )  # fmt: skip
    classes = replace(NOTHING, classes={"a": 100}, class_size={"median": 100.0}, lone_classes=["b"])
    long = replace(CAPTIONED, words={"median": 60.0})
    short = replace(CAPTIONED, words={"median": 1.0})
    sizes = [replace(CAPTIONED, good=n) for n in (100, 20_000, 2_000_000)]
    shown = [advise(x, w) for x in (whole, classes, long, short, NOTHING, *sizes) for w in ("any", "captions", "search", "boxes")]
    assert all(a.because and a.source for advices in shown for a in advices)
    for advices in shown:
        for place in (word for a in advices for word in re.findall(r"docs/[\w-]+\.md", a.source)):
            assert (ROOT / place).is_file(), place
    return sorted({a.command for advices in shown for a in advices if a.command})


def test_every_command_and_page_that_is_named_exists(cli: Cli) -> None:
    given = every()
    assert len(given) > 10
    verbs = {
        tuple(command.split()[1:3]) if command.split()[1] in ("data", "curate") else (command.split()[1],) for command in given
    }
    for verb in sorted(verbs):
        assert cli(*verb, "--help").code == 0, verb
    for command in given:
        words = command.split()
        if words[1] in ("compare", "train"):
            named = words[2 : next(i for i, word in enumerate(words) if word.startswith("--"))]
            assert set(named) <= set(recipe_names()), command


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    for i in range(12):
        path = tmp_path / "p" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"a picture of noise, number {i}, with many colours")
    made = json.loads(cli("advise", "--data", f"folder:{tmp_path / 'p'}", "--json").out)
    assert [row["command"] for row in made] == [f"diptych choose --data folder:{tmp_path / 'p'}"]
    words = cli("advise", "--data", f"folder:{tmp_path / 'p'}").out
    assert words.startswith("1. adapt a model") and "because: 12 captioned pictures" in words
    refused = cli("advise", "--data", f"folder:{tmp_path / 'p'}", "--want", "wealth")
    assert refused.code == 1 and "expected one of search" in refused.err
