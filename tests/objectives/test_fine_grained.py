"""Losses between tokens as their papers have them: FILIP's kept tokens, words and sides, and SPARC's one temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Texts
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.data.text import BOS, EOS, PAD
from diptych.inference.run import TrainedModel
from diptych.objectives.filip import (
    LateInteraction,
    best_matches,
    best_tokens_of_pairs,
    best_tokens_similarity,
    kept_count,
    late_similarity,
    without_specials,
)
from diptych.objectives.scores import BestTokens
from engine_fixture import Little

WORDS = [4, 1, 3, 0, 2]  # of each text, besides [BOS] and [EOS]


class Known(dict):
    """Encodings as an objective sees them; with ``rows``, those of one of two processes, whose answers are known."""

    rows: slice | None = None
    answers: list[torch.Tensor]

    def everyones(self, x):
        whole = self.answers.pop(0)
        torch.testing.assert_close(x, whole[self.rows])
        return whole


def units(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def given(seed=0, n=6):
    """Five images of ``n`` tokens, and texts of ``WORDS`` words."""
    torch.manual_seed(seed)
    T = max(WORDS) + 3
    ids = torch.full((len(WORDS), T), PAD)
    for row, words in zip(ids, WORDS, strict=True):
        row[: words + 2] = torch.tensor([BOS, *range(300, 300 + words), EOS])
    return Known({"image.token_embedding": units(5, n, 4), "text.token_embedding": units(5, T, 4), "text": Texts(ids, ids != PAD)})


def counted(special):
    """The positions of each text that count: a text without words counts with its special tokens."""
    return [list(range(w + 2)) if special or not w else list(range(1, w + 1)) for w in WORDS]


def reference_kept(image, text, positions, share):
    """FILIP §3.1 in plain loops: the tokens with the highest token-wise similarity, ⌈share · n⌉ of them."""
    words = [[text[j][t] for t in positions[j]] for j in range(len(text))]
    kept_image, kept_text = [], []
    for tokens in image:
        best = [max(float(t @ w) for each in words for w in each) for t in tokens]
        kept_image.append([tokens[i] for i in np.argsort(best)[::-1][: math.ceil(share * len(tokens))]])
    for each in words:
        best = [max(float(t @ w) for tokens in image for t in tokens) for w in each]
        kept_text.append([each[i] for i in np.argsort(best)[::-1][: math.ceil(share * len(each))]])
    return kept_image, kept_text


def reference_sides(image, text):
    """Equations 3 to 5, pair by pair: the image's similarity and the text's."""
    sides = np.zeros((2, len(image), len(text)))
    for i, tokens in enumerate(image):
        for j, words in enumerate(text):
            table = np.array([[float(t @ w) for w in words] for t in tokens])
            sides[:, i, j] = table.max(1).mean(), table.max(0).mean()
    return sides


def reference_loss(image, text, scale):
    by_image, by_text = scale * reference_sides(image, text)
    terms = [-np.diag(x) + np.log(np.exp(x).sum(1)) for x in (by_image, by_text.T)]
    return float(np.mean(terms))


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("chunk", [2**25, 40])
def test_the_late_loss_equals_the_reference(special, keep, chunk, monkeypatch):
    monkeypatch.setattr("diptych.objectives.filip.CHUNK", chunk)
    p = given()
    image, text = p["image.token_embedding"].numpy(), p["text.token_embedding"].numpy()
    objective = LateInteraction(None, temperature=0.2, keep=keep, special=special).double()
    expected = reference_loss(*reference_kept(image, text, counted(special), keep), 5.0)
    assert objective(p).item() == pytest.approx(expected, abs=1e-6)  # the scale is learned in float32


def reference_best_quarter(image, text, positions):
    """Of each pair by itself: the best quarter of the image's tokens and of the words, in plain loops."""
    sides = np.zeros((2, len(image), len(text)))
    for i, tokens in enumerate(image):
        for j in range(len(text)):
            table = np.array([[float(t @ text[j][k]) for k in positions[j]] for t in tokens])
            for side, values in enumerate((table.max(1), table.max(0))):
                sides[side, i, j] = np.mean(sorted(values)[::-1][: math.ceil(len(values) / 4)])
    return sides


@pytest.mark.parametrize("n", [4, 6, 16])
@pytest.mark.parametrize("chunk", [2**25, 40])
def test_the_score_by_the_best_quarter_equals_the_reference(n, chunk, monkeypatch):
    monkeypatch.setattr("diptych.objectives.filip.CHUNK", chunk)
    p = given(n=n)
    image, text = p["image.token_embedding"], p["text.token_embedding"]
    expected = reference_best_quarter(image.numpy(), text.numpy(), counted(False))
    score = BestTokens(None)
    np.testing.assert_allclose(torch.stack(score.all_sides(p)), expected, atol=1e-12)
    np.testing.assert_allclose(score.all_scores(p), expected[0], atol=1e-12)
    words = without_specials(p)
    rows = torch.tensor([4, 0, 2]), torch.tensor([1, 3, 2])
    pairs = best_tokens_of_pairs(image[rows[0]], text[rows[1]], words[rows[1]], 0.25)
    np.testing.assert_allclose(torch.stack(pairs), expected[:, rows[0], rows[1]], atol=1e-12)
    everything = torch.stack(best_tokens_similarity(image, text, words, 1.0))
    torch.testing.assert_close(everything, torch.stack(late_similarity(image, text, words)), atol=1e-12, rtol=0)
    assert (expected >= everything.numpy() - 1e-12).all(), "the best are better than all of them"
    leaves = [x[:2, :5].clone().requires_grad_() for x in (image, text)]
    assert torch.autograd.gradcheck(lambda i, t: best_tokens_similarity(i, t, words[:2, :5], 0.25), leaves)


def test_a_run_of_filip_can_score_by_the_best_quarter():
    """In both directions, for pairs as for all of them, and without its own [BOS] and [EOS]."""
    little = Little("filip", "score=best_tokens")
    model = TrainedModel("m", little.recipe, little.model, little.objectives, torch.device("cpu"))
    source = open_source("scenes:small").split("test")
    images, texts = [source[i].image for i in range(4)], [source[i].captions[0] for i in range(4)]
    assert {"score", "score_all", "score_sides"} <= model.capabilities
    to_text, to_image = model.score_sides(images, texts)
    pairs = np.array([[0, 1], [3, 3], [2, 0]])
    for whole, some in zip((to_text, to_image), model.score_sides(images, texts, pairs), strict=True):
        np.testing.assert_allclose(some, whole[pairs[:, 0], pairs[:, 1]], atol=1e-5)
    np.testing.assert_allclose(model.score(images, texts), to_text, atol=1e-6)
    assert np.abs(to_text - to_image).max() > 1e-3


def _call(objective, p):
    return objective.forward(p)


@pytest.fixture(autouse=True)
def plain_pass(monkeypatch):
    """Encodings in a dictionary have no names to change."""
    monkeypatch.setattr(LateInteraction, "__call__", _call)


def test_a_share_of_no_tokens_is_one():
    assert kept_count(0.25, torch.tensor([1, 2, 4, 5, 8, 64])).tolist() == [1, 1, 1, 2, 2, 16]
    assert kept_count(0.3, torch.tensor([10, 1000])).tolist() == [3, 300]


def test_the_best_match_of_padding_is_none():
    p = given()
    mask = p["text"].mask
    of_image, of_text = best_matches(p["image.token_embedding"], p["text.token_embedding"], mask)
    assert torch.equal(of_text == -math.inf, ~mask) and torch.isfinite(of_image).all()
    changed = torch.where(mask[..., None], p["text.token_embedding"], torch.full((1,), 9.0, dtype=torch.float64))
    assert torch.equal(best_matches(p["image.token_embedding"], changed, mask)[0], of_image)


def test_gradients_reach_the_kept_tokens_alone():
    p = given()
    leaves = [p[name].requires_grad_() for name in ("image.token_embedding", "text.token_embedding")]
    objective = LateInteraction(None, keep=0.5, special=False).double()
    objective(p).backward()
    reached = [(x.grad != 0).any(-1).sum(1).tolist() for x in leaves]
    assert max(reached[0]) <= 3, "half of six"
    assert all(n <= math.ceil(0.5 * len(c)) for n, c in zip(reached[1], counted(False), strict=True)) and sum(reached[1]) > 3
    assert torch.autograd.gradcheck(
        lambda i, t: objective(_with(p, i, t)), [x.detach().clone().requires_grad_() for x in leaves], eps=1e-7, atol=1e-5
    )


def _with(p, image, text):
    changed = Known(p)
    changed |= {"image.token_embedding": image, "text.token_embedding": text}
    return changed


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_losses_of_two_processes_average_to_that_of_one(keep):
    p = given()
    objective = LateInteraction(None, keep=keep, special=False).double()
    whole = objective(p).item()
    both = best_matches(p["image.token_embedding"], p["text.token_embedding"], objective.words(p))
    shares = []
    for rows in (slice(0, 2), slice(2, 5)):
        mine = Known(p)
        mine.rows, mine.answers = rows, list(both)
        shares.append(objective(mine).item() * (rows.stop - rows.start))
    assert sum(shares) / 5 == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("special", [True, False])
def test_each_direction_is_judged_by_its_own_side(special):
    p = given(seed=3)
    image, text = p["image.token_embedding"].numpy(), p["text.token_embedding"].numpy()
    by_image, by_text = reference_sides(image, [[text[j][t] for t in ts] for j, ts in enumerate(counted(special))])
    own, mean = (LateInteraction(None, side=side, special=special, keep=0.25) for side in ("own", "mean"))
    assert own.two_sided and not mean.two_sided
    np.testing.assert_allclose(own.all_sides(p)[0].numpy(), by_image, atol=1e-12)
    np.testing.assert_allclose(own.all_sides(p)[1].numpy(), by_text, atol=1e-12)
    np.testing.assert_allclose(own.all_scores(p).numpy(), by_image, atol=1e-12)
    np.testing.assert_allclose(mean.all_scores(p).numpy(), (by_image + by_text) / 2, atol=1e-12)
    for ours, every in zip(own.sides(p), (by_image, by_text), strict=True):
        np.testing.assert_allclose(ours.numpy(), np.diag(every), atol=1e-12)
    np.testing.assert_allclose(own.scores(p).numpy(), np.diag(by_image), atol=1e-12)


def test_other_special_tokens_change_nothing_if_they_are_no_words():
    p = given()
    words = LateInteraction(None, special=False).words(p)
    assert words.sum(1).tolist() == [w or 2 for w in WORDS]
    moved = torch.where(words[..., None], p["text.token_embedding"], units(*p["text.token_embedding"].shape))
    for a, b in zip(
        late_similarity(p["image.token_embedding"], p["text.token_embedding"], words),
        late_similarity(p["image.token_embedding"], moved, words),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


# --- SPARC ---


def test_both_losses_of_sparc_train_one_temperature():
    little = Little("sparc")
    scales = [n for n in little.parameters() if "scale" in n]
    assert len(scales) == 1 and "info_nce" in scales[0]
    whole, grads = little.gradients(None)[scales[0]], []
    for name in little.weights:
        alone = Little("sparc")
        alone.weights = {n: w * (n == name) for n, w in alone.weights.items()}
        grads.append(alone.gradients(None)[scales[0]])
    torch.testing.assert_close(sum(grads), whole, rtol=1e-4, atol=1e-7)
    assert all(g.abs() > 1e-6 for g in grads)
    objectives = little.objectives
    assert objectives["grouped_tokens"].metrics() == objectives["info_nce"].metrics()


def test_the_text_of_sparc_is_the_mean_of_its_tokens():
    little = Little("sparc")
    batch = little.loader.batch(0)
    with torch.no_grad():
        tokens = little.model.encode(batch)["text.tokens"]
    for row, mask, pooled in zip(tokens.tokens, batch["text"].mask, tokens.pooled, strict=True):
        torch.testing.assert_close(row[: int(mask.sum())].mean(0), pooled)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("stages.0.objectives.grouped_tokens.scale_of=info_ncee", "no other objective 'info_ncee'.*did you mean 'info_nce'"),
        ("stages.0.objectives.grouped_tokens.scale_of=grouped_tokens", "no other objective 'grouped_tokens'"),
    ],
)
def test_a_scale_of_nothing_is_refused(setting, told):
    with pytest.raises(DiptychError, match=told):
        Little("sparc", setting)


@pytest.mark.parametrize("option", ["temperature=0.1", "max_scale=50"])
def test_an_option_of_a_scale_that_is_not_used_is_refused(option):
    """With the objective where it would count; without scale_of it counts."""
    name = option.partition("=")[0]
    with pytest.raises(DiptychError, match=rf"{name} would have no effect.*\(info_nce.{name}\), or scale_of: \"\""):
        Little("sparc", f"stages.0.objectives.grouped_tokens.{option}")
    own = Little("sparc@tuned", f"stages.0.objectives.grouped_tokens.{option}").objectives["grouped_tokens"]
    assert own.scale.item() == pytest.approx(10 if name == "temperature" else 1 / 0.07, rel=1e-6)
    assert own.max_log_scale == pytest.approx(math.log(100 if name == "temperature" else 50))


def test_a_stage_must_train_the_scale_that_it_uses():
    stages = [{"objectives": {"info_nce": 1}}, {"name": "second", "objectives": {"grouped_tokens": {"scale_of": "info_nce"}}}]
    with pytest.raises(DiptychError, match=r"stages.1.objectives.grouped_tokens.scale_of: info_nce is not in this stage"):
        Little("sparc", f"stages={stages}")


def test_the_published_values():
    sparc, filip = load_recipe("sparc").stages[0].objectives, load_recipe("filip").stages[0].objectives["late_interaction"]
    assert {name: spec.weight for name, spec in sparc.items()} == {"info_nce": 0.5, "grouped_tokens": 1}
    assert filip.options == {"side": "own", "keep": 0.25, "special": False}
