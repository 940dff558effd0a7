"""Llip: the caption's attention over mixture tokens against NumPy, and that the image's embedding depends on the caption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import diptych.objectives.llip as contextual
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.objectives.contrastive import sigmoid_of_logits
from diptych.objectives.llip import mixed_embeddings
from diptych.training.start.setup import set_up
from engine_fixture import Little


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray, temperature: float) -> np.ndarray:
    (N, H, d), (M, _, K, _) = query.shape, key.shape
    out = np.zeros((M, N, H * d))
    for m in range(M):
        for n in range(N):
            for h in range(H):
                logits = np.array([query[n, h] @ key[m, h, k] / temperature for k in range(K)])
                weights = np.exp(logits - logits.max())
                weights /= weights.sum()
                out[m, n, h * d : (h + 1) * d] = sum(w * value[m, h, k] for k, w in enumerate(weights))
    return out


def test_mixing_equals_the_reference() -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 4)), rng.normal(size=(5, 2, 6, 4)), rng.normal(size=(5, 2, 6, 4))
    ours = mixed_embeddings(*(torch.tensor(x) for x in (query, key, value)), 5.0)
    np.testing.assert_allclose(ours.numpy(), reference(query, key, value, 5.0), atol=1e-12)


def test_the_loss_has_the_gradient_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = ((3, 1, 2), (3, 1, 4, 2), (3, 1, 4, 2))
    inputs = tuple(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    text = torch.nn.functional.normalize(torch.randn(3, 2, dtype=torch.float64), dim=-1)

    def loss(*x: torch.Tensor) -> torch.Tensor:
        image = torch.nn.functional.normalize(mixed_embeddings(*x, 5.0), dim=-1)
        return sigmoid_of_logits(10 * torch.einsum("mne,ne->mn", image, text) - 10, 0)

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.fixture
def llip() -> Any:
    little = Little("llip")
    little.model.eval()
    batch = next(iter(little.loader.stream(0)))
    return little, little.model.encode(batch)


def test_permuting_the_batch_permutes_the_similarities(llip: Any) -> None:
    little, p = llip
    objective = little.objectives["contextual"]
    tokens, pooled, text = p["image.class_tokens"], p["text.pooled"], p["text.embedding"]
    whole = objective.similarity(tokens, pooled, text)
    order = torch.randperm(len(text))
    torch.testing.assert_close(objective.similarity(tokens[order], pooled[order], text[order]), whole[order][:, order])
    assert whole.abs().max() <= 1 + 1e-5
    pairs = p.pairs(image=torch.arange(len(text)), text=torch.arange(len(text)))
    torch.testing.assert_close(objective.scores(pairs), whole.diagonal(), atol=1e-5, rtol=1e-4)


def test_an_image_is_another_to_each_caption(llip: Any) -> None:
    little, p = llip
    objective = little.objectives["contextual"]
    query = objective.query(p["text.pooled"]).unflatten(1, (objective.heads, -1))
    key, value = (
        layer(p["image.class_tokens"][:1]).unflatten(2, (objective.heads, -1)).transpose(1, 2)
        for layer in (objective.key, objective.value)
    )
    seen = mixed_embeddings(query, key, value, objective.temperature)[0]
    assert (seen[0] - seen[1]).norm() > 1e-4 * seen.norm()


def test_in_pieces_of_images_it_is_the_same(llip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    little, p = llip
    objective = little.objectives["contextual"]
    inputs = [x.detach().requires_grad_() for x in (p["image.class_tokens"], p["text.pooled"], p["text.embedding"])]
    plain = objective.similarity(*inputs)
    grads = torch.autograd.grad(plain.square().sum(), inputs)
    monkeypatch.setattr(contextual, "CHUNK", 2 * inputs[2].numel())
    chunked = objective.similarity(*inputs)
    torch.testing.assert_close(chunked, plain)
    for ours, theirs in zip(torch.autograd.grad(chunked.square().sum(), inputs), grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_a_tower_without_mixture_tokens_is_refused() -> None:
    with pytest.raises(DiptychError, match=r"parts\.vision\.class_tokens"):
        Little("llip", "parts.vision.class_tokens=0")


@pytest.mark.parametrize(
    ("name", "more"), [("llip", []), ("filip", []), ("blip2", ["score=late_interaction", "parts.lm.kind=random"])]
)
def test_all_pairs_at_once_score_as_pair_by_pair(name: str, more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from diptych.core.capabilities import all_pairs
    from diptych.inference.run import TrainedModel

    monkeypatch.setattr("diptych.inference.run.CHUNK", 2)
    little = ["parts.vision={kind: vit, depth: 1}"] if name == "blip2" else []
    recipe = load_recipe(name, ["data.train=scenes:small", "precision=fp32", *little, *more])
    setup = set_up(recipe)
    model = TrainedModel(name, recipe, setup.model, setup.objectives, setup.device)
    samples = [setup.source[i] for i in range(5)]
    images, texts = [s.image for s in samples[:3]], [s.captions[0] for s in samples]
    assert "score_all" in model.capabilities
    one_by_one = model.score(images, texts, pairs=all_pairs(3, 5)).reshape(3, 5)
    np.testing.assert_allclose(model.score(images, texts), one_by_one, atol=1e-5)
