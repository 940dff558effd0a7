"""Where the language prior of a text comes from: grey images, images of noise, a language model that sees none."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diptych as dp
from diptych.benchmarks.probes.priors import corrected, log_mean_exp, margins, prior_credit
from diptych.benchmarks.records import Records
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.data.scenes import open_scenes
from diptych.inference.texts.likelihood import text_likelihood
from diptych.models.pretrained import CausalLM

SCENES = "scenes:small?split=test"


def run(address: str, model: Any) -> list[dict[str, Any]]:
    each: Any = task(address)
    records = Records()
    each.run(model, each.items(open_scenes(SCENES)), records)
    return sorted(records.all(), key=lambda r: str(r["item"]))


def likes(image: np.ndarray, text: str) -> float:
    """A log-likelihood that depends on every pixel and on the text."""
    return -len(text) / 7 - (float(image.mean()) + float(image.std()) - len(text)) ** 2 / 900


def watched() -> tuple[FunctionModel, list[np.ndarray]]:
    shown: list[np.ndarray] = []

    def score(images: list[np.ndarray], texts: list[str]) -> np.ndarray:
        shown.extend(images)
        return np.array([[likes(i, t) for t in texts] for i in images])

    return FunctionModel("watched", score=score), shown


def test_noise_is_the_mean_probability_over_the_drawn_images() -> None:
    """One text and image at a time: P(t) = Σ P(t | noise) / k, in logs."""
    model, shown = watched()
    records = run("priors?n=12&prior=noise&draws=4&seed=3", model)
    noise = shown[-4:]
    assert all(i.dtype == np.uint8 and i.shape == shown[0].shape for i in noise)
    assert all(abs(i.mean() - 127.5) < 4 and abs(i.std() - 62) < 4 for i in noise)  # cut to the range: a little below 64
    assert not any((a == b).all() for a, b in pairwise(noise))
    for r in records:
        for text, found in zip(r["texts"], r["prior_scores"][0], strict=True):
            mean = sum(math.exp(likes(image, text)) for image in noise) / 4
            assert found == pytest.approx(math.log(mean), rel=1e-5)
    again, _ = watched()
    assert [r["prior_scores"] for r in run("priors?n=12&prior=noise&draws=4&seed=3", again)] == [r["prior_scores"] for r in records]


def test_the_mean_of_very_small_probabilities() -> None:
    scores = np.array([[-2000.0, -3.0], [-2001.0, -5.0]])
    expected = [-2000 + math.log((1 + math.exp(-1)) / 2), math.log((math.exp(-3) + math.exp(-5)) / 2)]
    np.testing.assert_allclose(log_mean_exp(scores), expected, rtol=1e-12)


def test_the_prior_that_was_asked_for_is_subtracted_and_grey_stays_the_control() -> None:
    model, _ = watched()
    grey, noise = run("priors?n=12", model), run("priors?n=12&prior=noise", model)
    assert all("prior_scores" not in r for r in grey)
    assert [r["blind_scores"] for r in grey] == [r["blind_scores"] for r in noise]
    own, prior = margins(noise)
    np.testing.assert_allclose(prior, [r["prior_scores"][0][0] - r["prior_scores"][0][1] for r in noise])
    np.testing.assert_allclose(margins(grey)[1], [r["blind_scores"][0][0] - r["blind_scores"][0][1] for r in grey])
    np.testing.assert_allclose(own, margins(grey)[0])
    assert prior_credit(grey[0]) == grey[0]["blind"]["accuracy"]
    assert prior_credit({"prior_scores": [[2.0, 1.0]]}) == 1.0 and prior_credit({"prior_scores": [[None, 1.0]]}) == 0.0


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random language model as transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    source = open_scenes(SCENES)
    tiny = CausalLM.random(texts=[caption for i in range(40) for caption in source[i].captions])
    tiny.model.save_pretrained(path)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer.backend, **names).save_pretrained(path)
    return path


def test_a_language_model_of_transformers_gives_its_log_likelihood(language_model: Path) -> None:
    """Token by token with transformers' own class: every token after [BOS], [EOS] included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float64).eval()
    words = AutoTokenizer.from_pretrained(language_model)
    model, _ = watched()
    records = run(f"priors?n=5&prior=hf:{language_model}", model)
    for r in records:
        for text, found in zip(r["texts"], r["prior_scores"][0], strict=True):
            ids = [words.bos_token_id, *words.encode(text, add_special_tokens=False), words.eos_token_id]
            total = 0.0
            for t in range(1, len(ids)):
                with torch.no_grad():
                    logits = theirs(torch.tensor([ids[:t]])).logits[0, -1]
                total += torch.log_softmax(logits, 0)[ids[t]].item()
            assert found == pytest.approx(total, rel=1e-4)
    # a model that scores by this prior alone is right by chance once it is subtracted
    prior = text_likelihood(f"hf:{language_model}")
    biased = FunctionModel("biased", score=lambda images, texts: np.tile(prior(texts), (len(images), 1)))
    rows = run(f"priors?n=30&prior=hf:{language_model}", biased)
    assert [prior_credit(r) for r in rows] == [r["correct"]["accuracy"] for r in rows]


def test_a_run_gives_the_likelihood_of_its_language_model_without_an_image(tmp_path: Path) -> None:
    small = {"parts.lm.kind": "random", "parts.vision": {"kind": "vit", "depth": 1}, "stages.0.batch_size": 8, "precision": "fp32"}
    path = dp.train("llava", data="scenes:small", budget="16 samples", out=tmp_path / "llava", set=small).path
    model: Any = dp.load(path)
    texts = ["a red fox", "there is a big yellow house above a small pink star"]
    part, tokenizer = model.model.part("lm"), model.model.tokenizer
    found = text_likelihood(str(path))(texts)
    for text, value in zip(texts, found, strict=True):
        ids, mask = (torch.from_numpy(x) for x in tokenizer.encode_batch([text]))
        with torch.no_grad():
            logits = part.text_logits(ids, mask)[0].double()
        n = int(mask.sum())
        total = sum(torch.log_softmax(logits[t], 0)[ids[0, t + 1]].item() for t in range(n - 1))
        assert value == pytest.approx(total, rel=1e-5)
    summary = evaluate(model, open_scenes(SCENES), [f"priors?n=8&prior={path}"], tmp_path / "e", key="k")
    rows = Records(tmp_path / "e" / "records" / "priors.jsonl").all()
    assert summary.value("priors", "corrected") == corrected(sorted(rows, key=lambda r: str(r["item"]))).mean()
    assert all(len(r["prior_scores"][0]) == 2 for r in rows)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("priors?prior=nosie", r"task 'priors': prior=nosie: no language model at 'nosie'.*hf:NAME_OR_PATH; or prior=grey, prior=noise"),
        ("priors?prior=noise&draws=0", r"draws: .*greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_is_no_prior_is_refused(address: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        run(address, watched()[0])


def test_a_run_without_a_language_model_is_refused(tmp_path: Path) -> None:
    tiny = {f"parts.{part}.{k}": v for part in ("vision", "text") for k, v in {"width": 16, "depth": 1, "heads": 2}.items()}
    path = dp.train(
        "clip", data="scenes:small", budget="8 samples", out=tmp_path / "clip", set={**tiny, "stages.0.batch_size": 8}
    ).path
    with pytest.raises(DiptychError, match=r"has no language model that reads texts alone \(a part lm\)"):
        text_likelihood(str(path))
