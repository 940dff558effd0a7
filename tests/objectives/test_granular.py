"""GEXIA's module and loss against plain loops in float64, and the recipe."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.core.batch import Images, Segments, Texts, Tokens
from diptych.core.errors import DiptychError
from diptych.models.time.approximation import Approximation
from diptych.models.time.tokens import SegmentTokens
from diptych.objectives.video.granular import READ, SEEN, Granularities, granular_info_nce

B, K, F, E = 3, 2, 2, 6  # clips, pieces of each, frames of each piece


def units(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def reference(seen, read, scale, meaning):
    """Loops over queries; the partners of row i are the rows of the other side that share its unit."""
    seen, read = seen.numpy(), read.numpy()
    n = min(len(seen), len(read))

    def one_way(a, b):
        losses = []
        for i in range(len(a)):
            mine = i * n // len(a)
            odds, right = [], []
            for j in range(len(b)):
                other = j * n // len(b)
                if other != mine and meaning[other] == meaning[mine]:
                    continue
                odds.append(math.exp(scale * float(a[i] @ b[j])))
                if other == mine:
                    right.append(odds[-1])
            losses.append(sum(math.log(sum(odds)) - math.log(r) for r in right) / len(right))
        return sum(losses) / len(losses)

    return (one_way(seen, read) + one_way(read, seen)) / 2


@pytest.mark.parametrize(("m", "n"), [(B, B), (B * K, B), (B, B * K), (B * K * F, B * K), (B * K * F, B)])
def test_contrast_of_two_granularities_against_loops(m, n):
    torch.manual_seed(m + n)
    seen, read = units(m, E), units(n, E)
    for meaning in (torch.arange(min(m, n)), torch.arange(min(m, n)) % 2):
        loss = granular_info_nce(seen, read, 4.0, B, meaning)
        assert loss.item() == pytest.approx(reference(seen, read, 4.0, meaning.tolist()), rel=1e-9)
    parts = [granular_info_nce(seen, read, 4.0, B, None, slice(i, i + 1)) for i in range(B)]  # three processes
    torch.testing.assert_close(sum(parts) / B, granular_info_nce(seen, read, 4.0, B))


def test_equal_granularities_are_info_nce():
    from diptych.objectives.contrastive import info_nce

    torch.manual_seed(1)
    a, b, meaning = units(5, E), units(5, E), torch.tensor([1, 2, 1, 3, 4])
    torch.testing.assert_close(granular_info_nce(a, b, 7.0, 5, meaning), info_nce(a, b, 7.0, meaning))


def test_gradient_of_the_contrast():
    torch.manual_seed(2)
    raw = [torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (4, 2)]
    assert torch.autograd.gradcheck(
        lambda *x: granular_info_nce(*(torch.nn.functional.normalize(v, dim=-1) for v in x), 3.0, 2, torch.tensor([5, 5])), raw
    )


class Known(dict):
    rows, size = None, B


def encodings(seed=3):
    torch.manual_seed(seed)
    counts = {"segments.frames.embedding": B * K * F, "segments.texts.embedding": B * K, "segments.embedding": B * K}
    given = Known({name: units(counts.get(name, B), E) for name in (*SEEN.values(), *READ.values())})
    ids = torch.full((B * K, 4), 9)
    texts, story = (Texts(ids[:n], ids[:n] > 0, meaning=torch.tensor(m)) for n, m in ((6, [1, 2, 3, 1, 4, 5]), (3, [7, 7, 8])))
    given["segments"] = Segments(None, torch.zeros(1), texts=texts, story=story, pieces=K)
    return given


def test_every_pair_of_granularities_counts_the_same():
    p, made = encodings(), Granularities(None).double()
    scale, total = made.scale.item(), 0.0
    for a in SEEN.values():
        for b in READ.values():
            meaning = p["segments"].texts if min(len(p[a]), len(p[b])) > B else p["segments"].story
            total += reference(p[a], p[b], scale, meaning.meaning.tolist())
    assert made.forward(p).item() == pytest.approx(total / 9, rel=1e-9)
    fewer = Granularities(None, seen=("whole",), read=("short", "whole")).double()
    assert fewer.couples == ("segments.long_embedding", "summary.embedding", "segments.story.embedding")
    expected = [reference(p["segments.long_embedding"], p[b], scale, [7, 7, 8]) for b in fewer.couples[1:]]
    assert fewer.forward(p).item() == pytest.approx(sum(expected) / 2, rel=1e-9)
    with pytest.raises(DiptychError, match="none of them twice"):
        Granularities(None, seen=("whole", "whole"))


def norm(x, layer):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + layer.eps) * array(layer.weight) + array(layer.bias)


def array(x):
    return x.detach().numpy()


def linear(x, layer):
    return x @ array(layer.weight).T + array(layer.bias)


def attention(x, context, layer):
    """Of one row, head by head."""
    q, (k, v) = linear(x, layer.q), np.split(linear(context, layer.kv), 2, -1)
    d, out = q.shape[1] // layer.heads, np.zeros_like(q)
    for h in range(layer.heads):
        own = slice(h * d, (h + 1) * d)
        weights = np.exp(q[:, own] @ k[:, own].T / math.sqrt(d))
        out[:, own] = weights / weights.sum(1, keepdims=True) @ v[:, own]
    return linear(out, layer.out)


def approximated(module, tokens):
    """One row without padding, by loops in float64."""
    block, x = module.block, norm(array(tokens), module.norm_in)
    latents = array(module.latents)
    for _ in range(min(module.iterations, max(1, math.ceil(len(tokens) / module.reads)))):
        inner = norm(latents, block.norm1)
        latents = latents + attention(inner, inner, block.attention)
        latents = latents + attention(norm(latents, block.norm_cross), x, block.cross)
        hidden = np.maximum(linear(norm(latents, block.norm2), block.mlp[0]), 0)
        latents = latents + linear(hidden, block.mlp[2])
    return linear(norm(latents, module.norm).mean(0), module.out)


def test_latents_read_longer_rows_more_often():
    torch.manual_seed(4)
    module = Approximation(6, 8, 5, 2, 3, 3, 4, "relu").double()
    tokens, lengths = torch.randn(4, 14, 6, dtype=torch.float64), [3, 4, 9, 14]
    mask = torch.arange(14) < torch.tensor(lengths)[:, None]
    assert module.times(tokens, mask).tolist() == [1, 1, 3, 3]  # ⌈14 / 4⌉ = 4, and the most is 3
    expected = np.stack([approximated(module, row[:n]) for row, n in zip(tokens, lengths, strict=True)])
    np.testing.assert_allclose(array(module(tokens, mask)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(module(tokens[3:]), module(tokens[3:], mask[3:]))


def test_gradient_of_the_module():
    torch.manual_seed(5)
    module = Approximation(3, 4, 2, 2, 2, 2, 2, "gelu").double()
    tokens = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    assert torch.autograd.gradcheck(lambda x: module(x, mask), [tokens])
    grad = torch.autograd.grad(module(tokens, mask).sum(), tokens)[0]
    assert (grad[0, 2:] == 0).all() and (grad[1] != 0).any()


class Sizes:
    """What ``SegmentTokens`` reads of the rest of a model."""

    @staticmethod
    def width_of(part):
        return E


def test_tokens_of_pieces_and_of_the_whole_clip():
    torch.manual_seed(6)
    part, N = SegmentTokens(Sizes, frames=6, unknown=K * F).double(), 3
    tokens, pooled = torch.randn(B * K * F, N, E, dtype=torch.float64), torch.randn(B * K * F, E, dtype=torch.float64)
    owner = torch.arange(B).repeat_interleave(K * F)
    segment = torch.arange(K).repeat_interleave(F).repeat(B)
    place = torch.tensor([0, 1, 2, 3, -1, 1, -4, 3, 0, 1, 2, 3])  # of the second clip two places are withheld
    field = Segments(Images(torch.zeros(12, 3, 1, 1), owner), torch.zeros(12), owner, segment=segment, place=place, pieces=K)
    pieces, whole = part.read(Tokens(tokens, pooled), field), part.read_whole(Tokens(tokens, pooled), field)
    assert pieces.tokens.shape == (B * K, F * N, E) and whole.tokens.shape == (B, K * F * N, E) and whole.mask.all()
    for n in range(B * K * F):
        of_piece = pieces.tokens[n // F].view(F, N, E)[n % F]
        of_clip = whole.tokens[n // (K * F)].view(K * F, N, E)[n % (K * F)]
        mark = part.places[place[n]] if place[n] >= 0 else part.unknown[-1 - place[n]]
        torch.testing.assert_close(of_piece, tokens[n] + part.places[n % F])
        torch.testing.assert_close(of_clip, tokens[n] + mark)
    torch.testing.assert_close(whole.pooled, pooled.view(B, K * F, E).mean(1))
    torch.testing.assert_close(pieces.pooled, pooled.view(B * K, F, E).mean(1))
