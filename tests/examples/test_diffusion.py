"""The example ``diffusion``: schedule, loss and score against NumPy and diffusers, and a run from its recipe."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import pass_of
from diptych.config.recipe import load_recipe
from diptych.inference.load import load
from diptych.training.loop import train
from diptych.training.start.setup import Setup, set_up
from plain_fixture import f64, gelu, linear

HERE = Path(__file__).parents[2] / "examples" / "diffusion"
sys.path.insert(0, str(HERE))

import diffusion  # noqa: E402

SMALL = [
    "data.train=scenes:small?size=32&length=64", "parts.text.depth=1", "parts.text.width=32", "parts.text.heads=2", "data.tokenizer.vocab_size=320",
    "parts.denoiser.width=16", "parts.denoiser.heads=2", "parts.denoiser.depth=2", "parts.denoiser.patch=8", "stages.0.batch_size=8", "precision=fp32",
    "trackers=[]", "device=cpu", "stages.0.warmup=1",
]  # fmt: skip
TEXTS = ["a red fox", "a big blue key in the top left"]


def made(*overrides: str) -> Setup:
    setup = set_up(load_recipe(str(HERE / "recipe.yaml"), [*SMALL, *overrides]))
    torch.manual_seed(1)
    with torch.no_grad():  # what begins at nothing shall say something
        for p in setup.model.parts["denoiser"].parameters():
            p.copy_(torch.randn_like(p) * 0.15)
    return setup


def pictures(n: int = 2) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(n)]


# --- in NumPy and float64 ---


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def attention(layer: Any, x: np.ndarray) -> np.ndarray:
    """One image: [N, D]"""
    N, D = x.shape
    q = linear(layer.q, x).reshape(N, layer.heads, -1)
    k, v = linear(layer.kv, x).reshape(N, 2, layer.heads, -1).transpose(1, 0, 2, 3)
    logits = np.einsum("nhd,mhd->hnm", q, k) / math.sqrt(D / layer.heads)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return linear(layer.out, np.einsum("hnm,mhd->nhd", weights, v).reshape(N, D))


def plain_noise(part: Any, x: np.ndarray, t: int, text: np.ndarray | None) -> np.ndarray:
    """ε_θ for one image [3, H, W]; text: pooled [width], None: none."""
    side, patch, D = part.grid, part.patch, part.width
    angles = t * 10_000.0 ** (-np.arange(D // 2) / (D // 2))
    level = linear(part.level[2], silu(linear(part.level[0], np.concatenate([np.sin(angles), np.cos(angles)]))))
    state = silu(level + (f64(part.no_text) if text is None else linear(part.text, text)))
    kernel = f64(part.stem.weight).reshape(D, -1)
    patches = x.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4).reshape(side**2, -1)
    h = patches @ kernel.T + f64(part.stem.bias) + f64(part.places)
    for block in part.blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(linear(block.modulation, state), 6)
        h = h + gate1 * attention(block.attention, norm(h) * (1 + scale1) + shift1)
        h = h + gate2 * linear(block.mlp[2], gelu(linear(block.mlp[0], norm(h) * (1 + scale2) + shift2)))
    shift, scale = np.split(linear(part.modulation, state), 2)
    out = linear(part.out, norm(h) * (1 + scale) + shift)
    return out.reshape(side, side, 3, patch, patch).transpose(2, 0, 3, 1, 4).reshape(3, side * patch, side * patch)


def plain_shares(kind: str, T: int) -> np.ndarray:
    if kind == "linear":
        return np.cumprod([1 - (1e-4 + (0.02 - 1e-4) * t / (T - 1)) for t in range(T)])
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    return np.cumprod([1 - min(1 - f[t + 1] / f[t], 0.999) for t in range(T)])


def error(part: Any, x: np.ndarray, t: int, noise: np.ndarray, text: np.ndarray | None, shares: np.ndarray) -> float:
    noisy = math.sqrt(shares[t]) * x + math.sqrt(1 - shares[t]) * noise
    return float(((noise - plain_noise(part, noisy, t, text)) ** 2).mean())


# --- what is compared ---


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_schedule_is_that_of_the_papers(kind: Any) -> None:
    np.testing.assert_allclose(diffusion.signal_shares(kind, 1000).numpy(), plain_shares(kind, 1000), rtol=1e-9)
    assert made(f"parts.denoiser.schedule={kind}").model.parts["denoiser"].shares[0] > 0.99  # type: ignore[index]


@pytest.mark.parametrize("kind, theirs", [("cosine", "squaredcos_cap_v2"), ("linear", "linear")])
def test_schedule_noise_and_steps_are_those_of_diffusers(kind: Any, theirs: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    shares = diffusion.signal_shares(kind, 1000)
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule=theirs)
    torch.testing.assert_close(shares.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)  # theirs is float32
    x, noise, t = torch.rand(4, 3, 8, 8) * 2 - 1, torch.randn(4, 3, 8, 8), torch.tensor([0, 300, 700, 999])
    torch.testing.assert_close(
        diffusion.add_noise(x, noise, shares[t].float()), scheduler.add_noise(x, noise, t), atol=1e-4, rtol=1e-4
    )
    ddim = diffusers.DDIMScheduler(1000, beta_schedule=theirs, timestep_spacing="trailing", clip_sample=True)
    ddim.set_timesteps(20)
    assert ddim.timesteps.tolist() == list(range(999, -1, -50))
    for t in (899, 499, 49):
        told = torch.randn_like(x)
        want = ddim.step(told, t, x, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(diffusion.ddim_step(x, told, shares, t, t - 50), want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("no_text", [0.0, 0.5])
def test_the_loss_is_its_formula(no_text: float) -> None:
    setup = made(f"stages.0.objectives.noise.no_text={no_text}")
    model, objective = setup.model, setup.objectives["noise"]
    p = pass_of(model, pictures(4), [*TEXTS, *TEXTS])
    torch.manual_seed(7)
    loss = objective(p)
    torch.manual_seed(7)  # the same draws, in the same order
    part, x = model.parts["denoiser"], p["image"].floats
    level, noise, alone = torch.randint(1000, (4,)), torch.randn_like(x), torch.rand(4) < no_text
    assert bool(alone.any()) == bool(no_text)
    shares, pooled = plain_shares("cosine", 1000), f64(p["text.tokens"].pooled)
    want = [error(part, f64(x[i]), int(level[i]), f64(noise[i]), None if alone[i] else pooled[i], shares) for i in range(4)]
    assert loss.item() == pytest.approx(np.mean(want), rel=1e-5)


def test_the_score_is_its_formula_and_shares_its_noise() -> None:
    setup = made()
    model, score = setup.model.eval(), diffusion.DiffusionScore(setup.model)
    score.draws = 3
    with torch.no_grad():
        p = pass_of(model, pictures(2), TEXTS)
        images, texts = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 1, 0, 1, 1])
        found = score.pair_scores(p, images, texts)
    noise = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # the same for every pair
    part, shares, x, pooled = (
        model.parts["denoiser"],
        plain_shares("cosine", 1000),
        f64(p["image"].floats),
        f64(p["text.tokens"].pooled),
    )
    want = [
        -np.mean([error(part, x[i], t, f64(noise[k]), pooled[j], shares) for k, t in enumerate((166, 500, 833))])
        for i, j in zip(images.tolist(), texts.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5)
    assert float(found[1]) == pytest.approx(float(found[4]), rel=1e-5)  # the same pair twice


def test_the_gradient_is_the_true_one() -> None:
    setup = made("stages.0.objectives.noise.no_text=0.5")
    model, objective = setup.model.double(), setup.objectives.double()["noise"]
    pixels = pass_of(model, pictures(4))["image"].floats.double()

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        image = pixels.clone()
        p = pass_of(model, image, [*TEXTS, *TEXTS])
        return objective(p)

    from unittest.mock import patch

    with patch.object(torch.Tensor, "float", lambda self, *a, **k: self.double()):  # the loss itself is computed in float32
        loss().backward()
        names = ["parts.denoiser.blocks.1.attention.kv.weight", "parts.denoiser.blocks.0.modulation.weight", "parts.denoiser.text.weight",
                 "parts.denoiser.stem.weight", "parts.denoiser.no_text", "parts.text.transformer.blocks.0.mlp.0.weight"]  # fmt: skip
        weights = dict(model.named_parameters())
        for name in names:
            p = weights[name]
            assert p.grad is not None
            at = np.unravel_index(int(p.grad.abs().argmax()), p.shape)
            with torch.no_grad():
                values = []
                for step in (1e-5, -1e-5):
                    p[at] += step
                    values.append(float(loss()))
                    p[at] -= step
            assert float(p.grad[at]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4), name


def test_a_run_from_the_recipe_is_scored_resumed_and_draws(tmp_path: Path) -> None:
    recipe = lambda n: load_recipe(str(HERE / "recipe.yaml"), [*SMALL, f"budget={n} samples", "stages.0.schedule=constant"])  # noqa: E731
    train(recipe(32), tmp_path / "whole")
    train(recipe(16), tmp_path / "parts")
    train(recipe(32), tmp_path / "parts", resume=True)
    from safetensors.torch import load_file

    for name in ("model", "ema", "optimizer"):
        a, b = (load_file(tmp_path / run / "checkpoints" / "step-00000004" / f"{name}.safetensors") for run in ("whole", "parts"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    trained: Any = load(tmp_path / "whole", "cpu")
    assert "score" in trained.capabilities and "embed_image" not in trained.capabilities
    matrix = trained.score(pictures(3), TEXTS)
    pairs = trained.score(pictures(3), TEXTS, np.array([[2, 1], [0, 0]]))
    np.testing.assert_allclose([matrix[2, 1], matrix[0, 0]], pairs, rtol=1e-5)
    drawn = diffusion.sample(trained.model, TEXTS, steps=4)
    assert [(x.shape, x.dtype) for x in drawn] == [((32, 32, 3), np.uint8)] * 2
    again = diffusion.sample(trained.model, TEXTS, steps=4)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
