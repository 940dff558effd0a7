"""Exact large batches: tiled losses against plain ones, micro-batches against the whole batch, and what draws at random in both."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.core.batch import Texts
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.data.loader import mixed
from diptych.objectives.contrastive import info_nce, sigmoid_loss, sigmoid_sum
from diptych.objectives.filip import LateInteraction, late_loss, late_similarity
from diptych.objectives.losses.tiled import tiled_info_nce, tiled_sigmoid_sum
from diptych.training.distributed import Cluster
from diptych.training.gather import encode, stack
from diptych.training.gradient import Pieces, Share
from engine_fixture import Little


def units(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def gradients(loss, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    value.backward()
    return [value.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("rows", [None, slice(0, 4), slice(5, 11)])
@pytest.mark.parametrize("meaning", [None, "some"])
@pytest.mark.parametrize("extra", [0, 6])
def test_tiled_info_nce_equals_the_plain_one(rows, meaning, extra):
    torch.manual_seed(0)
    inputs = [units(11, 5), units(11, 5), torch.tensor(7.0, dtype=torch.float64)] + ([units(extra, 5)] if extra else [])
    same = torch.tensor([3, 1, 1, 2, 0, 3, 9, 8, 1, 7, 6]) if meaning else None

    def of(form, **options):
        return gradients(lambda i, t, s, n=None: form(i, t, s, same, n, rows, **options), inputs)

    for plain, tiled in zip(of(info_nce), of(tiled_info_nce, tile=3), strict=True):
        torch.testing.assert_close(tiled, plain, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("start", [0, 4, None])
@pytest.mark.parametrize("meaning", [None, "some"])
def test_tiled_sigmoid_equals_the_plain_one(start, meaning):
    torch.manual_seed(0)
    inputs = [units(7, 5), units(11, 5), *torch.tensor([9.0, -4.0], dtype=torch.float64)]
    mine, theirs = (torch.randint(0, 4, (7,)), torch.randint(0, 4, (11,))) if meaning else (None, None)

    def of(form, **options):
        return gradients(lambda i, t, s, b: form(i, t, s, b, start, mine, theirs, **options), inputs)

    for plain, tiled in zip(of(sigmoid_sum), of(tiled_sigmoid_sum, tile=3), strict=True):
        torch.testing.assert_close(tiled, plain, atol=1e-11, rtol=1e-11)


def test_the_losses_of_shares_average_to_that_of_the_whole():
    torch.manual_seed(0)
    image, text, wrong = units(8, 5), units(8, 5), units(3, 5)
    meaning = torch.tensor([0, 1, 0, 2, 3, 4, 5, 1])
    shares = [slice(0, 4), slice(4, 8)]
    for loss in (
        lambda rows: info_nce(image, text, 6.0, meaning, wrong, rows),
        lambda rows: sigmoid_loss(image, text, 6.0, -2.0, meaning, wrong, rows),
    ):
        torch.testing.assert_close(sum(loss(rows) for rows in shares) / 2, loss(None), atol=1e-12, rtol=0)


# --- late interaction (FILIP) ---


def reference_late(image, text, lengths, scale):
    """Equations 3 to 6 of the paper, word by word, in NumPy."""
    n = len(image)
    by_image, by_text = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            table = image[i] @ text[j][: lengths[j]].T  # [N, words]
            by_image[i, j], by_text[i, j] = table.max(1).mean(), table.max(0).mean()

    def cross_entropy(x):
        x = scale * x
        return -np.mean(np.diag(x) - np.log(np.exp(x).sum(1)))

    return (cross_entropy(by_image) + cross_entropy(by_text.T)) / 2


@pytest.mark.parametrize("chunk", [2**25, 60])
def test_late_interaction_equals_the_reference(chunk, monkeypatch):
    monkeypatch.setattr("diptych.objectives.filip.CHUNK", chunk)
    torch.manual_seed(0)
    image, text, lengths = units(5, 4, 6), units(5, 7, 6), [7, 3, 1, 5, 2]
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    by_image, by_text = late_similarity(image, text, mask)
    ours = late_loss(8.0 * by_image, 8.0 * by_text.T)
    assert ours.item() == pytest.approx(reference_late(image.numpy(), text.numpy(), lengths, 8.0), abs=1e-12)
    filled_up = torch.where(mask[..., None], text, torch.full_like(text, 9.0))
    for plain, changed in zip((by_image, by_text), late_similarity(image, filled_up, mask), strict=True):
        torch.testing.assert_close(plain, changed)
    order = torch.tensor([3, 1, 0, 4, 2])
    torch.testing.assert_close(late_similarity(image[order], text, mask)[0], by_image[order])


def test_late_interaction_scores_a_pair_by_both_sides():
    """The mean of the image's and the text's similarity: with one side alone, a caption that names a small part of the image well
    would score like one that names all of it.
    """
    torch.manual_seed(2)
    image, text, lengths = units(4, 5, 6), units(4, 6, 6), [6, 2, 4, 3]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    p = {"image.token_embedding": image, "text.token_embedding": text, "text": Texts(torch.zeros(4, 6, dtype=torch.long), mask)}
    every = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            table = (image[i] @ text[j][: lengths[j]].T).numpy()
            every[i, j] = (table.max(1).mean() + table.max(0).mean()) / 2
    objective = LateInteraction(None)
    np.testing.assert_allclose(objective.all_scores(p).numpy(), every, atol=1e-12)
    np.testing.assert_allclose(objective.scores(p).numpy(), np.diag(every), atol=1e-12)


def test_late_interaction_has_the_gradient_of_finite_differences():
    torch.manual_seed(1)
    image, text = units(3, 2, 4).requires_grad_(), units(3, 3, 4).requires_grad_()
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    assert torch.autograd.gradcheck(lambda i, t: late_loss(*(s for s in _both(i, t, mask))), (image, text))


def _both(image, text, mask):
    by_image, by_text = late_similarity(image, text, mask)
    return 5.0 * by_image, 5.0 * by_text.T


# --- micro-batches ---


# An untrained pooler's tokens are almost alike, so cross-attention to them has gradients in which rounding weighs more.
LOOSER = {"coca": 1e-4}


def relative_errors(ours, reference):
    return {n: ((ours[n] - g).norm() / g.norm().clamp(min=1e-9)).item() for n, g in reference.items()}


@pytest.mark.parametrize("name", ["clip", "siglip", "negclip", "filip", "sparc", "llip", "coca"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(name):
    little = Little(name)
    whole = little.gradients(None)
    for micro in (3, 6):
        errors = relative_errors(little.gradients(micro), whole)
        assert max(errors.values()) < LOOSER.get(name, 1e-5), max(errors.items(), key=lambda e: e[1])


BLIP2 = [  # parts that need no packages; the tower learns, so that gradients have farther to go
    "parts.vision={kind: vit, frozen: false}",
    "parts.lm={kind: random, frozen: true}",
    "parts.text={kind: q_former, queries: 3, width: 32, heads: 2, depth: 2}",
    "stages.0.train=[vision, text, decoder]",
]
RANDOM = ["parts.vision.dropout=0.5", "parts.text.dropout=0.3", "stages.0.patch_dropout=0.5"]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("clip", RANDOM),
        ("siglip", RANDOM),
        ("negclip", RANDOM),
        ("filip", RANDOM),
        ("llip", RANDOM),
        ("nova", RANDOM[:1]),
        ("flava", ["stages.1.objectives.matching.batch_share=0.5"]),
        ("coca", RANDOM[:2]),
        ("blip", ["stages.0.patch_dropout=0.5", "stages.0.objectives.matching.batch_share=0.5"]),
        ("blip2", ["stages.0.patch_dropout=0.5", "stages.0.objectives.matching.batch_share=0.5", *BLIP2]),
        (
            "maskvlm",
            [*RANDOM[:2], "stages.0.objectives.matching.batch_share=0.5", "stages.0.objectives.masked_patches.batch_share=0.5"],
        ),
    ],
)
def test_with_dropout_micro_batches_give_the_gradient_of_one_graph_over_all(name, overrides):
    """The reference draws what the pieces draw, but keeps one graph over all of them and goes back through it once."""
    little = Little(name, *overrides, stage="represent" if name == "blip2" else "main")
    ours = little.gradients(4)
    again = little.gradients(4)
    assert all(torch.equal(ours[n], again[n]) for n in ours), "what is drawn is fixed by the seed and the step"

    coupled = {n: o for n, o in little.objectives.items() if o.couples}
    names = tuple(dict.fromkeys(x for o in coupled.values() for x in o.coupled()))
    batches, encodings, free = [], [], {}
    for batch in Pieces(Share(little.loader, 0, Cluster(), 4), 0):
        torch.manual_seed(mixed(0, 0, batch.start, 3))
        p = little.model.encode(batch)
        encodings.append(encode(p, names))
        batches.append(batch)
        for n, o in little.objectives.items():
            if n not in coupled:
                free.setdefault(n, []).append((o.terms(p), o(p)))
    torch.manual_seed(mixed(0, 0, 0, 4))
    joined = Pass(little.model, *stack(little.model, batches, encodings))
    total = sum(little.weights[n] * o(joined) for n, o in coupled.items())
    for n, parts in free.items():
        total = total + little.weights[n] * sum(k * loss for k, loss in parts) / sum(k for k, _ in parts)
    for p in little.parameters().values():
        p.grad = None
    total.backward()
    reference = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in little.parameters().items()}
    errors = relative_errors(ours, reference)
    assert max(errors.values()) < LOOSER.get(name, 2e-5), max(errors.items(), key=lambda e: e[1])
    if name == "clip":
        assert errors["1.info_nce.logit_scale"] < 1e-5


@pytest.mark.parametrize("without", [{1, 2, 6}, {0, 1, 2, 3, 9}, set(range(12))])
def test_captions_without_a_hard_negative_make_pieces_unlike(without, monkeypatch):
    little = Little("negclip")
    whole = little.loader.rows

    def rows(step, start, stop):
        batch = whole(step, start, stop)
        fields = dict(batch.fields)
        wrong = fields.pop("negatives")
        kept = [k for k, owner in enumerate(wrong.owner.tolist()) if start + owner not in without]
        fields |= {"negatives": wrong[torch.tensor(kept)]} if kept else {}
        return replace(batch, fields=fields)

    monkeypatch.setattr(little.loader, "rows", rows)
    plain, pieces = little.gradients(None), little.gradients(4)
    for name, gradient in plain.items():
        assert (pieces[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name


def test_a_mean_over_tokens_is_not_a_mean_of_means():
    """Pieces with captions of unlike length: the loss is normalised by the tokens of the whole batch."""
    little = Little("coca", "stages.0.objectives={next_token: 1}", batch_size=6)
    whole, pieces = little.step(None).losses["next_token"], little.step(1).losses["next_token"]
    assert pieces.item() == pytest.approx(whole.item(), abs=1e-5)


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(DiptychError, match="batch_size 12 cannot be divided evenly among 1 processes in micro-batches of 5"):
        Little("clip").step(5)


def test_recomputed_blocks_have_the_same_gradient():
    plain = Little("coca", "parts.vision.dropout=0.2").gradients(None)
    recomputed = Little("coca", "parts.vision.dropout=0.2", "stages.0.gradient_checkpointing=true").gradients(None)
    assert max(relative_errors(recomputed, plain).values()) < 1e-5


def test_dropped_patches_cost_nothing_and_change_from_step_to_step():
    little = Little("clip", "stages.0.patch_dropout=0.5")
    batch = little.loader.batch(0)
    torch.manual_seed(0)
    first, second = (little.model.encode(batch) for _ in range(2))
    assert first["image.tokens"].tokens.shape[1] == 18 and not torch.equal(first["image"].keep, second["image"].keep)
    little.model.eval()
    assert little.model.encode(batch)["image.tokens"].tokens.shape[1] == 36


def test_the_untrained_late_loss_is_that_of_chance():
    torch.manual_seed(0)
    loss = late_loss(*_both(units(64, 4, 256), units(64, 4, 256), torch.ones(64, 4, dtype=torch.bool)))
    assert loss.item() == pytest.approx(math.log(64), abs=0.2)


def test_pieces_count_the_samples_and_tokens_of_the_whole_batch_and_a_second_encoding():
    little = Little("clip")
    whole, pieces = little.step(None), little.step(3)
    assert (pieces.samples, pieces.tokens) == (whole.samples, whole.tokens) == (12, whole.tokens) and whole.tokens > 12 * 36
    assert 1.2 * whole.flops < pieces.flops < 1.5 * whole.flops, "of three passes' cost one more is taken: forward, without a graph"
