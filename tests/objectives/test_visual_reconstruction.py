"""croc: image tokens that are replaced and found again. Assignment, who sees whom, and the loss, against NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.objectives.language.reconstruction import assigned
from frozen_fixture import CAPTIONS, built, captioned, learned, parts_of, requested
from plain_fixture import f64, linear

POOL = ["parts.lm={kind: random}", "stages.comprehend.objectives.visual_reconstruction.pool=7"]


def test_each_token_gets_its_nearest_or_each_its_own() -> None:
    torch.manual_seed(0)
    tokens, pool = torch.randn(3, 4), torch.randn(5, 4)
    tokens[1] = tokens[0] + 0.01  # both have the same nearest one
    square = ((f64(tokens)[:, None] - f64(pool)[None]) ** 2).sum(2)
    assert assigned(tokens, pool, "nearest").tolist() == square.argmin(1).tolist()
    best = min(itertools.permutations(range(5), 3), key=lambda way: sum(square[i, k] for i, k in enumerate(way)))
    found = assigned(tokens, pool, "one_to_one").tolist()
    assert found == list(best) and len(set(found)) == 3
    assert len(set(assigned(tokens, pool, "nearest").tolist())) < 3


def parts_of_the_loss() -> Any:
    _, model, objectives = built("croc", *POOL)
    model.eval()
    return model, objectives["visual_reconstruction"], captioned(model)


def test_three_quarters_are_replaced_by_pool_tokens() -> None:
    model, own, batch = parts_of_the_loss()
    prefix = model.encode(batch)["image.prefix"]
    shown, gone = own.replaced(prefix)
    n = prefix.shape[1]
    assert gone.sum(1).tolist() == [round(0.75 * n)] * 4 and not torch.equal(gone[0], gone[1])
    assert torch.equal(shown[~gone], prefix[~gone])
    square = ((f64(prefix[gone])[:, None] - f64(own.pool)[None]) ** 2).sum(2)
    assert torch.equal(shown[gone], own.pool[torch.from_numpy(square.argmin(1))])


def test_image_tokens_see_each_other_and_words_what_came_before() -> None:
    model, own, batch = parts_of_the_loss()
    prefix, text = model.encode(batch)["image.prefix"].detach(), batch["text"]
    states, before = own.read(prefix, text)
    n = prefix.shape[1]
    assert before == 1 and states.shape[1] == 1 + n + text.ids.shape[1] - 2
    other = prefix.clone()
    other[:, -1] += 1.0  # the last image token
    changed = (own.read(other, text)[0] - states).abs().amax(2) > 1e-5
    assert not changed[:, 0].any() and changed[:, 1 : 1 + n].all()  # [BOS] sees none, every image token does
    words = text.ids.clone()
    words[:, 2] = model.tokenizer.pieces(["key"])[0][0]  # the second word
    changed = (own.read(prefix, type(text)(words, text.mask))[0] - states).abs().amax(2) > 1e-5
    assert not changed[:, : 1 + n + 1].any() and changed[0, 1 + n + 1]
    rows = torch.tensor([0, 1])
    alone = own.read(
        prefix[rows[1:]], type(text)(text.ids[1:2, : int(text.mask[1].sum())], text.mask[1:2, : int(text.mask[1].sum())])
    )[0]
    torch.testing.assert_close(states[1:2, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)  # padding is not seen


def test_the_loss_is_the_captions_and_ten_times_smooth_l1() -> None:
    model, own, batch = parts_of_the_loss()
    p = model.encode(batch)
    torch.manual_seed(5)
    shown, gone = own.replaced(p["image.prefix"])
    states, before = own.read(shown, batch["text"])
    n, ids, mask = gone.shape[1], batch["text"].ids, batch["text"].mask
    logits = f64(model.part("lm").lm.head(states[:, before + n - 1 :]))
    z = logits - logits.max(2, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(2, keepdims=True))
    words = [-log_p[i, t, int(ids[i, t + 1])] for i in range(4) for t in range(int(mask[i].sum()) - 1)]
    found = linear(own.head, f64(states[:, before : before + n]))
    gap = np.abs(found - f64(p["image.prefix"]))[gone.numpy()]
    rebuilt = np.where(gap < 0.01, gap**2 / 0.02, gap - 0.005).mean()
    torch.manual_seed(5)
    assert float(own(p).detach()) == pytest.approx(np.mean(words) + 10 * rebuilt, rel=1e-5)


def test_gradients_are_true() -> None:
    model, own, batch = parts_of_the_loss()
    model.double()
    own.double()
    given = {"image.prefix": model.encode(captioned(model))["image.prefix"].detach().requires_grad_(), "text": batch["text"]}

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        out: torch.Tensor = own.forward(given)
        return out

    weights = [own.head.weight, own.pool]
    for p, grad in zip(weights, torch.autograd.grad(loss(), weights), strict=True):
        place = int(grad.abs().argmax())
        values = []
        for step in (1e-3, -1e-3):  # norms of the language model compute in float32
            with torch.no_grad():
                p.view(-1)[place] += step
                values.append(float(loss()))
                p.view(-1)[place] -= step
        assert float(grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-2)


def test_croc_trains_in_three_stages() -> None:
    recipe, model, objectives = built("croc", *POOL)
    both = captioned(model).with_(**requested(model, ["what is there?"] * len(CAPTIONS), CAPTIONS).fields)
    for stage, parts in enumerate([{"parts.connector"}, {"parts.connector", "parts.lm"}, {"parts.connector", "parts.lm"}]):
        losses, changed = learned(recipe, model, objectives, both, stage, steps=8)
        assert losses[-1] < losses[0] and parts_of(changed) == parts, stage


def test_what_cannot_be_replaced_is_refused() -> None:
    one = "stages.comprehend.objectives.visual_reconstruction={weight: 1, pool: 7, match: one_to_one}"
    with pytest.raises(DiptychError, match="pool: 7 is less than the 27 tokens that are replaced"):
        built("croc", "parts.lm={kind: random}", one)
    gated = [
        "parts.connector={kind: resampler, tokens: 3, depth: 1, heads: 2}",
        "parts.fusion={kind: gated, every: 1, hidden: 16, heads: 2}",
    ]
    with pytest.raises(DiptychError, match="layers of the fusion part look at the image"):
        built("croc", *POOL, *gated)
