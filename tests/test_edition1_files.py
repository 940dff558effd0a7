"""Files that users of the first edition have: runs, interrupted runs and packed data open, and give what they gave.

Edition 1 (commit 4da3e92) made ``fixtures/edition1``; its README says how. Only the public interface is used here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diptych as dp

FILES = Path(__file__).parent / "fixtures" / "edition1"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
PICTURES = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((FILES / "images").glob("*.png"))]
TEXTS = (FILES / "texts.txt").read_text(encoding="utf-8").splitlines()
ASKED = "what is there?"
# Edition 2 offers no embeddings of FILIP, on purpose: no loss trains its pooled vectors.
GIVEN_UP = {"filip": {"embed_image", "embed_text"}}
ROUNDED = 1.01e-5  # the log rounds losses to 5 places


def same(found: Any, expected: Any, rtol: float = 2e-6, atol: float = 1e-5) -> None:
    """Log-likelihoods are about -100, and images change them by as little as 0.002: hence so small an ``rtol``."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol, atol)


def strip(images: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(images, 1).astype(int)


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


# --- finished runs ---


@pytest.mark.parametrize("name", EXPECTED["runs"])
def test_a_finished_run_says_what_it_said(name: str) -> None:
    expected, model = EXPECTED["runs"][name], dp.load(FILES / "runs" / name, "cpu")
    assert set(expected["capabilities"]) <= model.capabilities | GIVEN_UP.get(name, set())
    # bayes-ar: the difference of two log-likelihoods of about -70.
    same(model.score(PICTURES, TEXTS), expected["score"], atol=1e-4 if name == "bayes-ar" else 1e-5)
    if "embed_image" in expected and "embed_image" in model.capabilities:
        same(model.embed_image(PICTURES), expected["embed_image"])
        same(model.embed_text(TEXTS), expected["embed_text"])
    if "captions" in expected:
        assert model.generate(PICTURES, max_tokens=8) == expected["captions"]
    if "answers" in expected:
        assert model.generate(PICTURES, ASKED, max_tokens=8) == expected["answers"]
        same(model.loglikelihood(PICTURES, TEXTS, ASKED), expected["loglikelihood"])
    drawing: Any = model
    if "reconstruct" in expected:
        again = strip(drawing.reconstruct(PICTURES))
        assert np.abs(again - picture(FILES / "drawn" / expected["reconstruct"])).max() <= 1
    if "draw" in expected:
        again = strip(drawing.draw(TEXTS, temperature=0.0))
        assert np.abs(again - picture(FILES / "drawn" / expected["draw"])).max() <= 1


# --- runs that go on ---


def go_on(run: Path, name: str, expected: dict[str, Any], folder: Path, **options: Any) -> Path:
    """Resume a copy of a run; losses, what was spent and the scores of the new weights are those of edition 1."""
    copy = folder / name
    shutil.copytree(run, copy)
    done = dp.train(name, out=copy, resume=True, **options)
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    # A slow machine logs a step more, since it also logs every few seconds.
    by_step = {row["step"]: row for row in rows}
    for told in expected["metrics"]:
        row = by_step[told["step"]]
        assert (row["stage"], row["samples"]) == (told["stage"], told["samples"])
        assert row["lr"] == pytest.approx(told["lr"], rel=1e-9)
        assert row["loss"] == pytest.approx(told["loss"], rel=1e-5, abs=ROUNDED)
        for objective, value in told["losses"].items():
            assert row["losses"][objective] == pytest.approx(value, rel=1e-5, abs=ROUNDED), (objective, told["step"])
    assert {key: done.spent[key] for key in expected["spent"]} == expected["spent"]
    # Training makes more of what is rounded otherwise; without the optimizer's state or the averaged weights scores differ by more.
    same(dp.load(copy, "cpu").score(PICTURES, TEXTS), expected["score"], rtol=5e-6, atol=1e-4)
    return copy


@pytest.mark.parametrize("name", EXPECTED["interrupted"])
def test_an_interrupted_run_goes_on_as_it_would_have(name: str, tmp_path: Path) -> None:
    expected = EXPECTED["interrupted"][name]
    copy = go_on(FILES / "interrupted" / name, name, expected, tmp_path)
    if "validation" in expected:
        rows = [json.loads(line) for line in (copy / "validation.jsonl").read_text().splitlines()]
        assert [(row["step"], row["best"]) for row in rows] == [(row["step"], row["best"]) for row in expected["validation"]]
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected["validation"]], rel=1e-5)


def test_the_best_checkpoint_of_an_interrupted_run_opens() -> None:
    checkpoints = FILES / "interrupted" / "clip" / "checkpoints"
    best = json.loads((checkpoints / "best.json").read_text())["checkpoint"]
    found = [dp.load(checkpoints / name, "cpu").score(PICTURES, TEXTS) for name in ("best", best)]
    assert (found[0] == found[1]).all()


def test_a_finished_run_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    expected = EXPECTED["longer"]["clip"]
    go_on(FILES / "runs" / "clip", "clip", expected, tmp_path, budget=f"{expected['spent']['samples']:.0f} samples")


# --- packed data ---


@pytest.mark.parametrize("form", EXPECTED["packed"])
def test_packed_data_holds_the_same_samples(form: str) -> None:
    source, expected = dp.open_source(f"packed:{FILES / 'packed' / form}"), EXPECTED["packed"][form]
    samples = [source[i] for i in range(len(source))]
    assert [{key: getattr(sample, key) for key in told} for sample, told in zip(samples, expected, strict=True)] == expected
    images = [sample.image for sample in samples if sample.image is not None]
    apart = np.abs(strip(images) - picture(FILES / "packed" / "images.png"))
    assert apart.max() == 0 if form == "raw" else apart.mean() < 8
    parts = [[source.split(part)[i].id for i in range(len(source.split(part)))] for part in ("train", "validation", "test")]
    assert sorted(name for part in parts for name in part) == sorted(told["id"] for told in expected)
