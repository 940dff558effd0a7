"""CLIP4Clip's tight type, against a loop over single pairs in NumPy."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Texts, Tokens
from diptych.core.files import read_jsonl
from diptych.objectives.video.tight import TightContrast
from diptych.training.loop import train
from engine_fixture import tiny

M, K, F, E, HEADS = 3, 4, 5, 8, 2
FRAMES = [5, 2, 3]


class Known(dict):
    rows = None
    size = M


class Sizes:
    """What the objective reads of a model."""

    embed_dim = E

    @staticmethod
    def part(name):
        class Time:
            frames = F

        return Time


def given():
    torch.manual_seed(0)
    mask = torch.arange(F) < torch.tensor(FRAMES)[:, None]
    frames = Tokens(torch.randn(M, F, E, dtype=torch.float64) * mask[..., None], torch.randn(M, E, dtype=torch.float64), mask)
    text = Texts(torch.full((K, 6), 9), torch.ones(K, 6, dtype=torch.bool))
    return Known({"video.frame_embedding": frames, "text.embedding": torch.randn(K, E, dtype=torch.float64), "text": text})


@pytest.fixture
def made():
    torch.manual_seed(1)
    objective = TightContrast(Sizes, depth=2, heads=HEADS).double()
    for p in objective.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return objective


def norm(x, weights, name):
    centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return centred * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def block(x, weights, name):
    """One block before whose steps x is normalised, with HEADS heads."""
    h = norm(x, weights, f"{name}.norm1")
    qkv = np.hstack([linear(h, weights, f"{name}.attention.q"), linear(h, weights, f"{name}.attention.kv")])
    d, out = E // HEADS, np.zeros_like(x)
    for i in range(HEADS):
        q, k, v = (qkv[:, j * E + i * d : j * E + (i + 1) * d] for j in range(3))
        a = np.exp(q @ k.T / math.sqrt(d))
        out[:, i * d : (i + 1) * d] = a / a.sum(1, keepdims=True) @ v
    x = x + linear(out, weights, f"{name}.attention.out")
    h = norm(x, weights, f"{name}.norm2")
    return x + linear(quick_gelu(linear(h, weights, f"{name}.mlp.0")), weights, f"{name}.mlp.2")


def reference(p, made):
    weights = {name: w.detach().numpy() for name, w in made.state_dict().items()}
    scores = np.zeros((M, K))
    for m, k in product(range(M), range(K)):
        frames = p["video.frame_embedding"].tokens[m, : FRAMES[m]].numpy()
        x = np.vstack([p["text.embedding"][k].numpy(), frames]) + weights["places"][: 1 + len(frames)]
        for i in range(2):
            x = block(x, weights, f"transformer.blocks.{i}")
        pooled = quick_gelu(linear(norm(x[0], weights, "transformer.norm"), weights, "pool"))
        scores[m, k] = linear(pooled, weights, "output")[0]
    return scores


def test_scores_of_pairs(made, monkeypatch) -> None:
    p = given()
    expected = reference(p, made)
    np.testing.assert_allclose(made.all_scores(p).detach().numpy(), expected, atol=1e-5)
    monkeypatch.setattr("diptych.objectives.video.tight.PAIRS", 5)
    images, texts = torch.tensor([2, 0, 1, 1, 0, 2, 2]), torch.tensor([1, 3, 0, 2, 0, 0, 3])
    np.testing.assert_allclose(made.pair_scores(p, images, texts).detach().numpy(), expected[images, texts], atol=1e-5)


def test_the_loss_is_symmetric_cross_entropy(made) -> None:
    p = given()
    p["text.embedding"] = p["text.embedding"][:M]
    p["text"] = Texts(torch.arange(M)[:, None].expand(M, 6), torch.ones(M, 6, dtype=torch.bool))
    s = made.all_scores(p).detach().double().numpy()
    rows = -np.mean([s[i, i] - np.log(np.exp(s[i]).sum()) for i in range(M)])
    columns = -np.mean([s[i, i] - np.log(np.exp(s[:, i]).sum()) for i in range(M)])
    assert made.forward(p).item() == pytest.approx((rows + columns) / 2, abs=1e-5)


def test_gradients_reach_frames_words_and_weights(made) -> None:
    p = given()
    video = p["video.frame_embedding"]
    frames, words = video.tokens.clone().requires_grad_(), p["text.embedding"].clone().requires_grad_()

    def scores(frames, words):
        read = Tokens(frames, video.pooled, video.mask)
        x = torch.arange(M)
        # float32 at the end would hide the differences
        return made._scores(read, words, x, x)

    scores(frames, words).square().sum().backward()
    assert not frames.grad[~video.mask].any() and frames.grad[video.mask].abs().sum(-1).min() > 0
    assert words.grad[:M].abs().sum(-1).min() > 0 and all(w.grad.abs().sum() > 0 for w in made.parameters())
    step, at = 1e-3, (0, 1, 2)
    with torch.no_grad():
        plus, minus = frames.detach().clone(), frames.detach().clone()
        plus[at] += step
        minus[at] -= step
        slope = (scores(plus, words).square().sum() - scores(minus, words).square().sum()) / (2 * step)
    assert frames.grad[at].item() == pytest.approx(slope.item(), rel=2e-2, abs=1e-4)


def test_it_learns_which_texts_belong(made) -> None:
    """Its own weights alone can tell the pairs of a batch."""
    p, made = given(), made.float()
    video = p["video.frame_embedding"]
    p["video.frame_embedding"] = Tokens(video.tokens.float(), video.pooled.float(), video.mask)
    p["text.embedding"] = p["text.embedding"][:M].float()
    p["text"] = Texts(torch.arange(M)[:, None].expand(M, 6), torch.ones(M, 6, dtype=torch.bool))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    before = made.forward(p).item()
    for _ in range(60):
        optimizer.zero_grad()
        made.forward(p).backward()
        optimizer.step()
    assert made.forward(p).item() < 0.2 < before
    assert made.all_scores(p).argmax(1).tolist() == list(range(M))


def test_a_run_trains_by_it(tmp_path) -> None:
    small = ["budget=6 steps", "stages.0.warmup=2", "stages.0.batch_size=4", "stages.0.objectives={tight: {weight: 1, depth: 1}}"]
    run = train(load_recipe("clip4clip@tight", [*tiny("clip4clip@tight"), *small, "embed_dim=32", "trackers=[]"]), tmp_path / "run")
    rows = read_jsonl(run.path / "metrics.jsonl")
    assert rows and all(math.isfinite(row["loss"]) for row in rows)
