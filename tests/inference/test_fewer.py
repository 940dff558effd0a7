"""Runs that read pictures with fewer tokens: addresses, what changes in a model, answers, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.inference.fewer.open import Fewer, address_of, fewer_of, open_fewer, split_address
from diptych.inference.run import TrainedModel
from frozen_fixture import built

TOWER = "parts.vision={kind: vit, frozen: true, width: 16, depth: 2, heads: 2}"
IMAGES = [np.random.default_rng(i).integers(0, 255, (48, 48, 3), dtype=np.uint8) for i in range(3)]


def run(*overrides: str, name: str = "llava") -> Any:
    recipe, model, objectives = built(name, TOWER, *overrides)
    return TrainedModel("run", recipe, model, objectives, torch.device("cpu"))


def opened(query: str, *overrides: str, name: str = "llava") -> Any:
    return open_fewer(f"fewer:run?{query}", lambda address, device: run(*overrides, name=name), "cpu")


def test_addresses() -> None:
    assert split_address("fewer:runs/a?scan=16&keep=0.5,after=2") == ("runs/a", Fewer(scan=16, keep=0.5, after=2))
    assert address_of("runs/a", "keep=0.5,after=2") == "fewer:runs/a?keep=0.5&after=2" and address_of("runs/a", None) == "runs/a"
    for query, says in [
        ("", "nothing is left out"),
        ("kep=1", "did you mean 'keep'"),
        ("keep=0", "above 0"),
        ("scan=x", "must be a number"),
        ("tome=4&merge=2", "choose one"),
        ("after=1", "no effect without keep"),
    ]:
        with pytest.raises(DiptychError, match=says):
            fewer_of(query, "here")


@pytest.mark.parametrize(("query", "tokens"), [("tome=20", 20), ("merge=4", 28), ("scan=9", 9), ("tome=36", 36)])
def test_captions_and_likelihoods_with_fewer_tokens(query: str, tokens: int) -> None:
    whole, fewer = run(), opened(query)
    assert fewer.model.encode(fewer._images(IMAGES).batch)["image.prefix"].shape[1] == tokens
    assert fewer.name != whole.name
    texts = ["two green keys"] * 3
    before, after = whole.loglikelihood(IMAGES, texts), fewer.loglikelihood(IMAGES, texts)
    assert np.allclose(before, after, atol=1e-4) == (tokens == 36)
    assert len(fewer.generate(IMAGES, max_tokens=4)) == 3


@pytest.mark.parametrize("beams", [1, 3])
def test_pruned_all_kept_writes_the_same(beams: int) -> None:
    whole, fewer = run(), opened("keep=1&after=1")
    assert whole.generate(IMAGES, max_tokens=6, beams=beams) == fewer.generate(IMAGES, max_tokens=6, beams=beams)
    texts = ["two green keys", "a key", "a red fox"]
    np.testing.assert_allclose(whole.loglikelihood(IMAGES, texts), fewer.loglikelihood(IMAGES, texts), atol=1e-4)


def test_pruned_likelihood_is_that_of_writing() -> None:
    """Whole captions at once, from a prefix, and token by token: the same tokens are left in all of them."""
    fewer = opened("keep=0.25")
    model, lm = fewer.model, fewer.model.parts["lm"]
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(["two green keys", "a key"]))
    with torch.no_grad():
        prefix = model.encode(fewer._images(IMAGES[:2]).batch)["image.prefix"]
        once = lm.caption_logits(prefix, ids, mask)
        logits, state = lm.start(prefix)
        steps = [logits]
        for t in range(1, ids.shape[1] - 1):
            logits, state = lm.step(ids[:, t], state)
            steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1)[0], once[0], atol=1e-4, rtol=1e-4)
    assert [k.shape[2] for k, _ in state.own] == [1 + 36 + ids.shape[1] - 2, 1 + 9 + ids.shape[1] - 2]


def test_conversations_have_as_many_places_as_there_are_tokens() -> None:
    sets = ["adapters={}", "stages.1.train=[connector]", "parts.lm={kind: random}"]
    for query in ("scan=9", "tome=20", "keep=0.5", "scan=16&keep=0.5"):
        fewer = opened(query, *sets, name="llava-instruct")
        answers = fewer.generate(IMAGES, "how many keys?", max_tokens=3)
        assert len(answers) == 3
        assert fewer.answering.chat.tokens == fewer.model.parts["connector"].tokens


def test_refusals() -> None:
    with pytest.raises(DiptychError, match="reads a square of patches"):
        opened("tome=20", "parts.connector={kind: average}")
    with pytest.raises(DiptychError, match="expected 1 to 1"):
        opened("keep=0.5&after=2")
    with pytest.raises(DiptychError, match="not a run of ours"):
        open_fewer("fewer:hf:x?keep=0.5", lambda address, device: object(), "cpu")  # type: ignore[arg-type, return-value]
