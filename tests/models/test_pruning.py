"""Image tokens left out in later layers of a language model: against a Llama written out in float64, padding, caches, costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.models.language.pruning import Pruning, half, left_of
from diptych.models.pretrained.causal_lm import CausalLM
from plain_fixture import f64
from tower_fixture import softmax

N, AHEAD, BEHIND = 6, 2, 3  # image tokens, words before them and behind them


def language(family: Any = "llama", depth: int = 3) -> CausalLM:
    lm = CausalLM.random(depth=depth, family=family, texts=["a red fox and two keys"])
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return lm


def rotated(x: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Rotary positions of one head: x [T, d]."""
    d = x.shape[1]
    angles = place[:, None] * 10_000.0 ** (-np.arange(0, d, 2) / d)
    c, s = np.cos(angles), np.sin(angles)
    one, two = x[:, : d // 2], x[:, d // 2 :]
    return np.concatenate([one * c - two * s, two * c + one * s], 1)


def rms(layer: Any, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.variance_epsilon) * f64(layer.weight)


def llama(lm: CausalLM, x: np.ndarray, image: range, prompt: int, keep: int, after: int) -> tuple[np.ndarray, list[int]]:
    """The states of all positions but those that are left out after layer ``after``, and the positions. ``prompt``: the length of what
    is read before anything is written: its last position ranks.
    """
    place = np.arange(len(x))
    for number, layer in enumerate(lm.model.base_model.layers):
        a, heads, d = layer.self_attn, lm.model.config.num_attention_heads, lm.model.config.head_dim
        inner = rms(layer.input_layernorm, x)
        q, k, v = (inner @ f64(m.weight).T for m in (a.q_proj, a.k_proj, a.v_proj))
        k, out, ranks = rotated(k, place), np.zeros((len(x), heads * d)), np.zeros(len(x))
        for h in range(heads):  # all share one key head
            own = slice(h * d, (h + 1) * d)
            at = rotated(q[:, own], place)
            for i in range(len(x)):
                weights = softmax(at[i] @ k[: i + 1].T / d**0.5)
                out[i, own] = weights @ v[: i + 1]
                if place[i] == prompt - 1:
                    ranks[: i + 1] += weights / heads
        x = x + out @ f64(a.o_proj.weight).T
        inner, m = rms(layer.post_attention_layernorm, x), layer.mlp
        gate = inner @ f64(m.gate_proj.weight).T
        x = x + (gate / (1 + np.exp(-gate)) * (inner @ f64(m.up_proj.weight).T)) @ f64(m.down_proj.weight).T
        if number == after - 1:
            best = sorted(image, key=lambda j: (j != prompt - 1, -ranks[j]))[:keep]
            stays = [j for j in range(len(x)) if j not in image or j in best]
            x, place = x[stays], place[stays]
    return rms(lm.model.base_model.norm, x), list(place)


@pytest.mark.parametrize(("behind", "after"), [(BEHIND, 1), (BEHIND, 2), (0, 2)])
def test_reading_and_writing_against_loops(behind: int, after: int) -> None:
    """The prompt is read once, words follow one by one; with nothing behind the image, its own last token ranks and stays."""
    lm, T, new = language(), AHEAD + N + behind, 3
    x = torch.randn(2, T + new, lm.width, generator=torch.Generator().manual_seed(1))
    images = torch.zeros(2, T, dtype=torch.bool)
    images[:, AHEAD : AHEAD + N] = True
    lm.pruning = Pruning(lm, 0.4, after)  # 3 of 6
    state, past = lm.step(x[:, :T], torch.ones(2, T, dtype=torch.bool), images=images)
    states = [state[:, -1:]]
    for t in range(T, T + new):
        state, past = lm.step(x[:, t : t + 1], torch.ones(2, 1, dtype=torch.bool), past)
        states.append(state)
    lengths = [k.shape[2] for k, _ in past.own]
    assert lengths == [T + new] * after + [T + new - 3] * (3 - after)
    for row in range(2):
        want, place = llama(lm, f64(x[row]), range(AHEAD, AHEAD + N), T, 3, after)
        assert past.deep is not None and past.deep[row].tolist() == place
        np.testing.assert_allclose(torch.cat(states, 1)[row].detach(), want[place.index(T - 1) :], atol=2e-4)
    picked = past[torch.tensor([1, 1, 0])]  # as for beams
    again, _ = lm.step(x[[1, 1, 0], -1:], torch.ones(3, 1, dtype=torch.bool), picked)
    assert again.shape == (3, 1, lm.width)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_keeping_all_changes_nothing(family: str) -> None:
    lm, T = language(family), 12
    x, mask = torch.randn(2, T, lm.width), torch.ones(2, T, dtype=torch.bool)
    mask[1, :3] = False
    images = torch.zeros(2, T, dtype=torch.bool)
    images[:, 4:10] = True
    whole, _ = lm.step(x, mask)
    lm.pruning = Pruning(lm, 1.0, 1)
    same, past = lm.step(x, mask, images=images)
    torch.testing.assert_close(same[mask], whole[mask], atol=2e-4, rtol=1e-3)
    assert past.deep is None
    lm.pruning = None


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_padded_rows_with_other_numbers_of_images(family: str) -> None:
    """Rows of a batch give what each gives alone: padded on the left, with two images, one and none, then words after all of them."""
    lm, T = language(family), 14
    lm.pruning = Pruning(lm, 0.5, 1)
    x = torch.randn(3, T + 2, lm.width)
    mask, images = torch.ones(3, T, dtype=torch.bool), torch.zeros(3, T, dtype=torch.bool)
    mask[1, :4] = mask[2, :1] = False
    images[0, 1:5] = images[0, 6:10] = images[1, 6:11] = True
    more = torch.ones(3, 2, dtype=torch.bool)

    def read(rows: list[int], start: int) -> torch.Tensor:
        state, past = lm.step(x[rows, start:T], mask[rows, start:], images=images[rows, start:])
        after = lm.hidden(x[rows, T:], more[rows], past=past)
        return torch.cat([state[:, -1:], after], 1)

    together = read([0, 1, 2], 0)
    for row, start in ((0, 0), (1, 4), (2, 1)):
        torch.testing.assert_close(together[row], read([row], start)[0], atol=2e-4, rtol=1e-3)


def test_a_second_image_in_a_conversation() -> None:
    """A prefix whose image is thinned is continued by words with another image, of which its share is left too."""
    lm = language()
    lm.pruning = Pruning(lm, 0.5, 1)
    x, real = torch.randn(1, 16, lm.width), torch.ones(1, 8, dtype=torch.bool)
    images = torch.zeros(1, 8, dtype=torch.bool)
    images[:, 1:5] = True
    _, past = lm.step(x[:, :8], real, images=images)
    _, past = lm.step(x[:, 8:], real, past, images=images)
    assert [k.shape[2] for k, _ in past.own] == [16, 12, 12] and past.mask is not None and past.mask.shape == (1, 16)
    assert past.deep is not None and {0, 5, 6, 7, 8, 13, 14, 15} < set(past.deep[0].tolist())


def test_choice_and_refusals() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.4, 0.3, 0.2, 0.0]])
    images, real = torch.tensor([[False, True, True, True, True, False]]), torch.ones(1, 6, dtype=torch.bool)
    found = left_of(images, scores, real, 0.5)
    assert found is not None and found[0].tolist() == [[0, 2, 3, 5]] and not found[1].any()
    found = left_of(images, scores, real, 0.01)
    assert found is not None and found[0].tolist() == [[0, 2, 5]]  # at least one
    assert left_of(images, scores, real, 0.76) is None  # 3.04: all 4
    lm = language()
    assert half(lm) == 1
    with pytest.raises(DiptychError, match="expected 1 to 2"):
        Pruning(lm, 0.5, 3)
