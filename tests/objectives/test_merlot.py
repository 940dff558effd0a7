"""MERLOT's masks, contrast and order task against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.core.batch import Segments, Texts, Tokens
from diptych.core.errors import DiptychError
from diptych.data.text import BOS, EOS, MASK
from diptych.models.fusion.words import WordsAndTokens
from diptych.models.layers.attention import Transformer
from diptych.models.layers.received import attention_received
from diptych.objectives.video.merlot import EASY, FrameContrast, FrameOrder, at_starts, attended_weights, order_loss, pairs, spans

B, K, E = 3, 4, 6


def units(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def array(x):
    return x.detach().numpy()


# --- the attention that words receive ---


@pytest.mark.parametrize("post_norm", [True, False])
def test_attention_received_against_loops(post_norm):
    torch.manual_seed(0)
    transformer = Transformer(8, 2, 2, post_norm=post_norm).double()
    for block in transformer.blocks:  # at first hardly anything is attended to more than the rest
        torch.nn.init.normal_(block.attention.q.weight)
        torch.nn.init.normal_(block.attention.kv.weight)
    x, lengths = torch.randn(2, 5, 8, dtype=torch.float64), [5, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    found = attention_received(transformer, x, mask)
    for row, n in enumerate(lengths):
        own, expected = x[row : row + 1, :n], np.zeros(5)
        for block in transformer.blocks:
            inner = own if post_norm else block.norm1(own)
            q = array(inner @ block.attention.q.weight.T + block.attention.q.bias)[0]
            k = array(inner @ block.attention.kv.weight[:8].T + block.attention.kv.bias[:8])[0]
            for head in (slice(0, 4), slice(4, 8)):
                for i in range(n):
                    odds = [math.exp(q[i, head] @ k[j, head] / 2) for j in range(n)]
                    for j in range(n):
                        expected[j] += odds[j] / sum(odds) / 2
            own = block(own)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-5, atol=1e-6)
        assert found[row].sum().item() == pytest.approx(2 * n, rel=1e-5)  # each real token gives 1 in each block
    assert found.std() > 0.1


def test_words_that_get_attention_have_half_of_the_draws():
    words = torch.ones(2, 10, dtype=torch.bool)
    words[1, 5:] = False
    attended = torch.rand(2, 10)
    attended[0, [3, 7]] = 5.0
    attended[1, [2, 8]] = 5.0  # the second is no word
    weights = attended_weights(words, attended, 0.2, 0.5)
    assert weights[0].argsort(descending=True)[:2].sort().values.tolist() == [3, 7]
    assert (weights[0, [3, 7]].sum() / weights[0].sum()).item() == pytest.approx(0.5)
    assert weights[1].argmax() == 2 and (weights[1, 5:] == 0).all() and weights[1, 2] / weights[1].sum() == pytest.approx(0.5)
    assert attended_weights(words, attended, 0.2, 0.0)[0, 3] == 0


def spans_by_loops(order, count, lower, upper, words, weights):
    """Words of one row: span after span, each from its first to its last word, the better words first where room ends."""
    left, hidden = count, set()
    by_draw = sorted((o, i) for i, o in enumerate(order) if words[i])
    for o, i in by_draw:
        if o >= count or not left:
            break
        span = [j for j in range(i - lower[i], i + upper[i] + 1) if 0 <= j < len(words) and words[j] and j not in hidden]
        span = sorted(span, key=lambda j: (-weights[j], j))[:left]
        hidden |= set(span)
        left -= len(span)
    return hidden


def test_spans_against_loops():
    generator = torch.Generator().manual_seed(1)
    for trial in range(40):
        words = torch.rand(3, 16, generator=generator) < 0.8
        weights = torch.where(torch.rand(3, 16, generator=generator) < 0.3, 4.0, 1.0) * words
        order = torch.rand(3, 16, generator=generator).masked_fill(~words, 2.0).argsort(1).argsort(1)
        lower, upper = (torch.randint(0, 3, (3, 16), generator=generator) for _ in range(2))
        counts = torch.tensor([1, 3, 5]).minimum(words.sum(1))
        hidden = spans(order, counts, lower, upper, words, weights)
        for row in range(3):
            given = (x[row].tolist() for x in (order, lower, upper, words, weights))
            o, low, high, real, w = given
            expected = spans_by_loops(o, int(counts[row]), low, high, real, w)
            assert set(hidden[row].nonzero()[:, 0].tolist()) == expected, trial


# --- contrast ---


class Known(dict):
    rows = None


def encodings(seed=2):
    torch.manual_seed(seed)
    ids = torch.tensor([[BOS, 9, 9, BOS, 8, BOS, 7, 7, BOS, 6, EOS, 0], [BOS, 9, BOS, 8, 8, 8, BOS, 7, BOS, 6, 6, EOS]] * 2)[:B]
    meaning = torch.tensor([1, 2, 3, 4, 5, 1, 6, 7, 8, 9, 10, 11])
    texts = Texts(torch.full((B * K, 3), 9), torch.ones(B * K, 3, dtype=torch.bool), meaning=meaning)
    segments = Segments(None, torch.zeros(1), texts=texts, story=Texts(ids, ids > 0), pieces=K)
    return Known(
        {
            "segments": segments,
            "segments.frames.embedding": units(B * K, E),
            "segments.story.token_embedding": units(B, 12, E),
        }
    )


def contrast_by_loops(p, temperature):
    frames, words = p["segments.frames.embedding"].numpy(), p["segments.story.token_embedding"].numpy()
    ids, meaning = p["segments"].story.ids.tolist(), p["segments"].texts.meaning.tolist()
    texts = np.stack([words[b, t] for b in range(B) for t in range(12) if ids[b][t] == BOS])
    total = 0.0
    for one, other in ((frames, texts), (texts, frames)):
        for i in range(B * K):
            rest = [j for j in range(B * K) if j == i or meaning[j] != meaning[i]]
            odds = {j: math.exp(float(one[i] @ other[j]) / temperature) for j in rest}
            total -= math.log(odds[i] / sum(odds.values()))
    return total / (2 * B * K)


def test_contrast_of_frames_and_their_texts_in_context():
    p, made = encodings(), FrameContrast(None)
    assert made.temperature == 0.05
    assert made.forward(p).item() == pytest.approx(contrast_by_loops(p, 0.05), rel=1e-9)
    whole, parts = made.forward(p), []
    for rank in range(B):  # three processes, each with the queries of one clip
        p.rows = slice(rank, rank + 1)
        parts.append(made.forward(p))
    torch.testing.assert_close(sum(parts) / B, whole)


def test_gradient_of_the_contrast():
    p, made = encodings(), FrameContrast(None, temperature=0.5)
    names = ("segments.frames.embedding", "segments.story.token_embedding")

    def loss(*raw):
        return made.forward(Known(p, **dict(zip(names, (torch.nn.functional.normalize(x, dim=-1) for x in raw), strict=True))))

    assert torch.autograd.gradcheck(loss, [p[name].clone().requires_grad_() for name in names])


def test_a_piece_is_one_frame():
    p = encodings()
    p["segments.frames.embedding"] = units(2 * B * K, E)
    with pytest.raises(DiptychError, match=r"segments\.frames: 1"):
        FrameContrast(None).forward(p)


# --- order ---


def order_by_loops(logits, place):
    total, count = 0.0, 0
    for clip, known in zip(logits.tolist(), place.tolist(), strict=True):
        for i in range(K):
            for j in range(K):
                right = 0 if i == j else (1 if i < j else 2)
                odds = [math.exp(z) for z in clip[i][j]]
                weight = EASY if known[i] >= 0 and known[j] >= 0 else 1.0
                total, count = total - weight * math.log(odds[right] / sum(odds)), count + 1
    return total / count


def test_order_against_loops():
    torch.manual_seed(3)
    logits, place = torch.randn(B, K, K, 3), torch.tensor([[0, 1, 2, 3], [-1, 1, -3, 3], [-2, -1, -3, -4]])
    assert order_loss(logits, place).item() == pytest.approx(order_by_loops(logits, place), rel=1e-5)
    right = torch.zeros(B, K, K, 3)
    for i in range(K):
        for j in range(K):
            right[:, i, j, (i < j) + 2 * (i > j)] = 30.0
    assert order_loss(right, place).item() == pytest.approx(0, abs=1e-6)


def test_order_is_of_frames_and_of_texts_with_frames():
    torch.manual_seed(4)

    class Model:
        given = True

        class graph:  # noqa: N801
            @staticmethod
            def gives(name):
                return Model.given

        @staticmethod
        def part(name):
            class Fusion:
                width = E

            return Fusion

    from diptych.objectives.video.merlot import Hidden

    made, p = FrameOrder(Model).double(), encodings()
    words, frames = torch.randn(B, 12, E, dtype=torch.float64), torch.randn(B, K, E, dtype=torch.float64)
    p["segments"].place = torch.tensor([0, 1, 2, 3, -1, 1, -2, 3, -4, -3, -2, -1])
    p["segments.hidden"] = Hidden(words, frames, None)
    place, ids, expected = p["segments"].place.view(B, K), p["segments"].story.ids, 0.0
    starts = [[t for t in range(12) if ids[b, t] == BOS] for b in range(B)]
    texts = torch.stack([words[b, starts[b]] for b in range(B)])
    for head, a in ((made.of_frames, frames), (made.of_texts, texts)):
        logits = torch.stack([torch.stack([torch.stack([head(torch.cat([a[b, i], frames[b, j]])) for j in range(K)])
                                           for i in range(K)]) for b in range(B)])  # fmt: skip
        expected += order_by_loops(logits, place)
    assert made.forward(p).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(at_starts(words, ids, K), texts)
    assert pairs(texts, frames).shape == (B, K, K, 2 * E)
    Model.given = False
    with pytest.raises(DiptychError, match="name masked_speech before it"):
        FrameOrder(Model)


def test_gradient_of_the_order_task():
    place = torch.tensor([[0, -1]])
    logits = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    loss = order_loss(logits, place)
    grad = torch.autograd.grad(loss, logits)[0]
    p = logits.detach().softmax(-1)
    for i in range(2):
        for j in range(2):
            right = 0 if i == j else (1 if i < j else 2)
            weight = EASY if i == j == 0 else 1.0
            expected = weight * (p[0, i, j] - torch.nn.functional.one_hot(torch.tensor(right), 3)) / 4
            torch.testing.assert_close(grad[0, i, j], expected, rtol=1e-5, atol=1e-7)


# --- the shared transformer ---


def small():
    """A model of the recipe's parts that is small, and its pieces."""
    from diptych.config.recipe import load_recipe
    from diptych.data.text import Tokenizer
    from diptych.models.vlm import build_model
    from diptych.objectives import build_objectives

    sizes = {
        f"parts.{part}.{key}": value for part in ("vision", "text") for key, value in (("depth", 1), ("width", 32), ("heads", 2))
    }
    recipe = load_recipe("merlot", {**sizes, "data.image_size": 32})
    torch.manual_seed(5)
    words = Tokenizer.train([f"word{i} acts" for i in range(60)], 400, 64)
    model = build_model(recipe, words, 32)
    return model, build_objectives(recipe, model), words


def test_words_and_frames_are_one_sequence_without_padding():
    model, _, _ = small()
    fusion, text = model.part("fusion").double(), model.part("text").double()
    assert isinstance(fusion, WordsAndTokens) and fusion._text[0] is text
    ids, words = torch.randint(4, 300, (2, 6)), torch.arange(6) < torch.tensor([6, 3])[:, None]
    image = Tokens(torch.randn(2, 5, 32).double(), torch.zeros(2, 32), torch.arange(5) < torch.tensor([5, 2])[:, None])
    read, seen = fusion.read(ids, words, image)
    for row, (n, m) in enumerate(((6, 5), (3, 2))):
        x = torch.cat([fusion.embed(ids[row : row + 1, :n]), fusion.norm(fusion.from_image(image.tokens[row : row + 1, :m]))], 1)
        alone = text.transformer(x)[0]
        torch.testing.assert_close(read.tokens[row, :n], alone[:n])
        torch.testing.assert_close(seen.tokens[row, :m], alone[n:])
        torch.testing.assert_close(read.pooled[row], alone[0])


def test_hidden_words():
    """A fifth of the words of each clip, never a mark between pieces; most are replaced by [MASK]."""
    _, objectives, words = small()
    from diptych.data.fields.segments import stories

    made = objectives["masked_speech"]
    texts = [[f"word{4 * n + k} acts" for k in range(4)] for n in range(12)]
    story = stories(words, texts)
    torch.manual_seed(6)
    changed, hidden = made.hide(story.ids, story.mask)
    real = story.mask & (story.ids > MASK)
    assert (hidden.sum(1) == (real.sum(1) * 0.2).round().clamp(min=1)).all() and not (hidden & ~real).any()
    assert torch.equal(changed[~hidden], story.ids[~hidden])
    share = torch.stack([(made.hide(story.ids, story.mask)[0] == MASK).sum() for _ in range(40)]).float().mean() / hidden.sum()
    assert share.item() == pytest.approx(0.8, abs=0.06)
