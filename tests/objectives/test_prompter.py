"""p-former: prompts that make a language model say a sentence, two views of it, and images that become its prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from frozen_fixture import CAPTIONS, built, captioned, learned, parts_of
from plain_fixture import f64, linear

LITTLE = [
    "parts.text={kind: q_former, queries: 3, width: 16, heads: 2, depth: 1}",
    "parts.prompter={kind: 'diptych.models.language.prompter:Prompter', tokens: 3, width: 16, heads: 2, depth: 1, dropout: 0.2}",
    "embed_dim=8",
]


def made() -> Any:
    _, model, objectives = built("p-former", *LITTLE)
    model.eval()
    return model, objectives, captioned(model)


def test_prompts_come_from_the_first_token() -> None:
    model, _, batch = made()
    own, p = model.part("prompter"), model.encode(batch)
    for i, caption in enumerate(CAPTIONS):  # alone, without padding
        alone = model.encode(captioned(model, [caption]))["text.sentence"][0]
        torch.testing.assert_close(p["text.sentence"][i], alone, atol=1e-5, rtol=1e-4)
    spread = np.tanh(linear(own.spread, f64(p["text.sentence"]))).reshape(4, 3, 16)
    np.testing.assert_allclose(f64(p["text.prompts"]), linear(own.layer, spread), atol=1e-5)
    torch.testing.assert_close(p["text.sentence_again"], p["text.sentence"])  # nothing is drawn in evaluation
    model.train()
    model.train_only(["prompter"])
    p = model.encode(batch)
    assert not torch.allclose(p["text.sentence_again"], p["text.sentence"])


def test_the_sentence_is_said_and_prompts_are_near_words() -> None:
    model, objectives, batch = made()
    p, lm = model.encode(batch), model.part("lm")
    ids, mask, prompts = batch["text"].ids, batch["text"].mask, f64(p["text.prompts"])
    logits = f64(lm.caption_logits(p["text.prompts"], ids, mask))
    z = logits - logits.max(2, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(2, keepdims=True))
    said = np.mean([-log_p[i, t, int(ids[i, t + 1])] for i in range(4) for t in range(int(mask[i].sum()) - 1)])
    words = f64(lm.lm.embed(torch.arange(lm.lm.vocabulary)[None])[0]) / float(lm.scale)
    gaps = [min(((words - v) ** 2).sum(1)) for row in prompts for v in row]
    want = said + np.sum(gaps) / prompts.size
    assert float(objectives["sentence_prompts"](p).detach()) == pytest.approx(want, rel=1e-4)


def test_views_find_each_other_and_images_become_prompts() -> None:
    _, objectives, _ = made()

    class Known(dict):  # type: ignore[type-arg]
        rows = None

    torch.manual_seed(1)
    one, again = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    given = Known({"text.sentence": one, "text.sentence_again": again})
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f64(one), f64(again)))
    logits = a @ b.T / 0.07
    z = logits - logits.max(1, keepdims=True)
    want = -np.mean(np.diag(z - np.log(np.exp(z).sum(1, keepdims=True))))
    assert float(objectives["sentence_contrast"].forward(given).detach()) == pytest.approx(want, rel=1e-5)
    prefix, prompts = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = objectives["prompt_regression"].forward({"image.prefix": prefix, "text.prompts": prompts})
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(((f64(prefix) - f64(prompts)) ** 2).mean()), rel=1e-5)
    np.testing.assert_allclose(f64(prefix.grad), 2 * (f64(prefix) - f64(prompts)) / 24, atol=1e-6)
    assert prompts.grad is None


def test_gradients_of_the_prompter_are_true() -> None:
    model, _, batch = made()
    model.double().requires_grad_(True)
    own = model.part("prompter")
    weights = [own.embedding.weight, own.spread.weight, own.layer.weight, own.transformer.blocks[0].mlp[0].weight]

    def loss() -> torch.Tensor:
        out: torch.Tensor = own.prompt(own.sentence(batch["text"])).sin().sum()
        return out

    for p, grad in zip(weights, torch.autograd.grad(loss(), weights), strict=True):
        place = int(grad.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p.view(-1)[place] += step
                values.append(float(loss()))
                p.view(-1)[place] -= step
        assert float(grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_as_many_prompts_as_queries() -> None:
    with pytest.raises(DiptychError, match="prompt_regression: the prompter has 2 tokens, the connector 3; make them equal"):
        built("p-former", *LITTLE, "parts.prompter.tokens=2")


def test_p_former_trains_in_three_stages() -> None:
    recipe, model, objectives = built("p-former", *LITTLE)
    batch = captioned(model)
    wanted = [
        {"parts.prompter"},
        {"parts.text", "parts.connector", "parts.decoder", "parts.space"},
        {"parts.text", "parts.connector"},
    ]
    for stage, parts in enumerate(wanted):
        losses, changed = learned(recipe, model, objectives, batch, stage, steps=8, lr=3e-3)
        assert losses[-1] < losses[0] and parts_of(changed) == parts, stage
    assert [recipe.stages[k].objectives["prompt_regression"].weight for k in (1, 2)] == [10, 100]
