"""Every objective against a plain float64 NumPy reference, the published implementations, and finite differences."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

from bench.models import Words
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Texts
from diptych.core.errors import DiptychError
from diptych.models.vlm import build_model
from diptych.objectives import OBJECTIVES, build_objectives
from diptych.objectives.contrastive import Sigmoid, info_nce, same_meaning, sigmoid_loss
from diptych.objectives.generative import next_token_loss, token_log_probabilities
from diptych.objectives.maskvlm import mask_words, patchify
from diptych.objectives.matching import mine_negatives
from diptych.objectives.sparc import grouped_loss, grouped_patches
from engine_fixture import Little


def unit(rng, n, e):
    x = rng.standard_normal((n, e))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference_info_nce(image, text, scale, meaning=None, negatives=None):
    logits = scale * image @ text.T
    n = len(image)
    total = 0.0
    for i in range(n):
        left_out = [j for j in range(n) if meaning is not None and j != i and meaning[j] == meaning[i]]
        kept = [j for j in range(n) if j not in left_out]
        row = list(logits[i, kept]) + (list(scale * negatives @ image[i]) if negatives is not None else [])
        total -= log_softmax(np.array(row))[kept.index(i)]
        total -= log_softmax(logits[kept, i])[kept.index(i)]
    return total / (2 * n)


def reference_sigmoid(image, text, scale, bias, meaning=None):
    total, n = 0.0, len(image)
    for i in range(n):
        for j in range(n):
            if i != j and meaning is not None and meaning[i] == meaning[j]:
                continue
            z = 1 if i == j else -1
            total += np.log(1 / (1 + np.exp(-z * (scale * image[i] @ text[j] + bias))))
    return -total / n


@pytest.mark.parametrize("meaning", [None, [0, 1, 1, 2, 0, 3]])
@pytest.mark.parametrize("extra", [0, 6])
def test_info_nce_equals_the_reference(meaning, extra):
    rng = np.random.default_rng(0)
    image, text = unit(rng, 6, 5), unit(rng, 6, 5)
    negatives = unit(rng, extra, 5) if extra else None
    ours = info_nce(
        torch.tensor(image),
        torch.tensor(text),
        7.0,
        None if meaning is None else torch.tensor(meaning),
        None if negatives is None else torch.tensor(negatives),
    )
    assert ours.item() == pytest.approx(reference_info_nce(image, text, 7.0, meaning, negatives), abs=1e-12)


@pytest.mark.parametrize("meaning", [None, [0, 1, 1, 2, 0, 3]])
def test_sigmoid_equals_the_reference(meaning):
    rng = np.random.default_rng(1)
    image, text = unit(rng, 6, 5), unit(rng, 6, 5)
    ours = sigmoid_loss(torch.tensor(image), torch.tensor(text), 9.0, -4.0, None if meaning is None else torch.tensor(meaning))
    assert ours.item() == pytest.approx(reference_sigmoid(image, text, 9.0, -4.0, meaning), abs=1e-12)


def test_info_nce_equals_transformers_clip():
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 50, "eos_token_id": 2},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        out = model(input_ids=torch.randint(3, 50, (4, 7)), pixel_values=torch.randn(4, 3, 32, 32), return_loss=True)
    assert info_nce(out.image_embeds, out.text_embeds, model.logit_scale.exp()).item() == pytest.approx(out.loss.item(), abs=1e-5)


def test_sigmoid_equals_transformers_siglip():
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(
        text_config={
            "vocab_size": 50,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projection_size": 16,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
    )
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    with torch.no_grad():
        out = model(input_ids=torch.randint(3, 50, (4, 7)), pixel_values=torch.randn(4, 3, 32, 32), return_loss=True)
    ours = sigmoid_loss(out.image_embeds, out.text_embeds, model.logit_scale.exp(), model.logit_bias)
    assert ours.item() == pytest.approx(out.loss.item(), abs=1e-5)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    image, text, wrong = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    meaning = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda i, t, w, s: info_nce(i, t, s, meaning, w), (image, text, wrong, scale))
    assert torch.autograd.gradcheck(lambda i, t, s, b: sigmoid_loss(i, t, s, b, meaning), (image, text, scale, bias))


@pytest.mark.parametrize("loss", [lambda i, t: info_nce(i, t, 5.0), lambda i, t: sigmoid_loss(i, t, 5.0, -2.0)])
def test_the_order_of_the_batch_does_not_matter(loss):
    rng = np.random.default_rng(3)
    image, text = torch.tensor(unit(rng, 7, 4)), torch.tensor(unit(rng, 7, 4))
    order = torch.randperm(7)
    assert loss(image[order], text[order]).item() == pytest.approx(loss(image, text).item(), abs=1e-12)


def test_a_caption_that_says_the_same_is_no_negative():
    image = torch.eye(3, dtype=torch.float64)
    text = image.clone()
    text[1] = text[0]
    told = info_nce(image, text, 20.0, torch.tensor([0, 0, 1]))
    assert told.item() > info_nce(image, torch.eye(3, dtype=torch.float64), 20.0).item()  # image 1 does not match its text
    assert same_meaning(torch.tensor([0, 1, 2])) is None
    assert same_meaning(torch.tensor([0, 1, 0])).tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_next_token_loss_is_the_mean_over_real_tokens():
    rng = np.random.default_rng(4)
    logits, targets = rng.standard_normal((3, 5, 11)), rng.integers(0, 11, (3, 5))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=bool)
    log_p = np.take_along_axis(log_softmax(logits), targets[..., None], 2)[..., 0]
    ours = next_token_loss(torch.tensor(logits), torch.tensor(targets), torch.tensor(mask))
    assert ours.item() == pytest.approx(-log_p[mask].mean(), abs=1e-6)
    np.testing.assert_allclose(token_log_probabilities(torch.tensor(logits), torch.tensor(targets)).numpy(), log_p, atol=1e-5)
    changed = logits.copy()
    changed[~mask] = 100.0  # padding does not count
    assert next_token_loss(torch.tensor(changed), torch.tensor(targets), torch.tensor(mask)).item() == pytest.approx(ours.item())


def test_next_token_loss_per_sample_sums_each_caption_and_averages_captions():
    """Ak et al., equation 2, one caption and token at a time in float64; in pieces as in one batch."""
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(3, 4, 7)), rng.integers(0, 7, (3, 4))
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=bool)
    total = 0.0
    for b in range(3):
        for t in range(4):
            if mask[b, t]:
                total -= logits[b, t, targets[b, t]] - np.log(np.exp(logits[b, t]).sum())
    given = [torch.tensor(x) for x in (logits, targets, mask)]
    assert next_token_loss(*given, per="sample").item() == pytest.approx(total / 3, rel=1e-6)
    pieces = [next_token_loss(*(x[rows] for x in given), per="sample").item() for rows in (slice(0, 2), slice(2, 3))]
    assert (2 * pieces[0] + pieces[1]) / 3 == pytest.approx(total / 3, rel=1e-6)
    per_token = next_token_loss(*given).item()
    assert next_token_loss(*given, per="sample").item() == pytest.approx(per_token * mask.sum() / 3, rel=1e-6)
    x = given[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda v: next_token_loss(v, *given[1:], per="sample"), (x,), eps=1e-3, atol=1e-3)


def test_words_are_masked_as_asked():
    torch.manual_seed(0)
    ids = torch.randint(4, 99, (400, 12))
    ids[:, 0] = 1
    mask = torch.arange(12).expand(400, 12) < torch.randint(3, 13, (400, 1))
    masked, hidden = mask_words(ids, mask, 0.3)
    assert not hidden[:, 0].any() and not (hidden & ~mask).any()
    assert hidden.any(1).all(), "at least one word of each text is hidden"
    assert (masked[hidden] == 3).all() and (masked[~hidden] == ids[~hidden]).all()
    assert hidden.sum() / mask[:, 1:].sum() == pytest.approx(0.33, abs=0.05)


def test_special_tokens_are_never_masked():
    """[EOS] is not a word: hiding it would teach nothing, and would change what a tower pools there."""
    torch.manual_seed(0)
    lengths = torch.arange(50) % 9  # words of each text; some have none
    places = torch.arange(12)
    ids = torch.randint(4, 99, (50, 12)).masked_fill(places > lengths[:, None], 2).masked_fill(places > lengths[:, None] + 1, 0)
    ids[:, 0] = 1
    for _ in range(20):
        masked, hidden = mask_words(ids, ids != 0, 0.3)
        assert (ids[hidden] >= 4).all() and (masked[ids < 4] == ids[ids < 4]).all()
        assert hidden.sum(1).tolist() == [min(n, max(1, round(n * 0.3))) for n in lengths.tolist()]


def test_words_are_replaced_as_bert_does():
    torch.manual_seed(0)
    ids = torch.randint(4, 5000, (400, 40))
    masked, hidden = mask_words(ids, torch.ones_like(ids, dtype=torch.bool), 0.5, "bert", 5000)
    assert (masked[~hidden] == ids[~hidden]).all() and (masked[hidden] >= 3).all() and (masked < 5000).all()
    share = [float((x[hidden]).float().mean()) for x in (masked == 3, masked == ids, (masked != 3) & (masked != ids))]
    assert share == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


@pytest.mark.parametrize("name", ["info_nce", "late_interaction", "grouped_tokens"])
def test_a_scale_above_its_limit_comes_back(name: str):
    """CLIP limits the parameter after each step. A limit in the forward pass has no gradient above it, and the scale would stay."""
    recipe = load_recipe("clip", {"stages": [{"objectives": {name: 1}}]})
    model = build_model(recipe, Words(64, 8), 32)
    objective = build_objectives(recipe, model)[name]
    with torch.no_grad():
        objective.logit_scale.fill_(math.log(120))
    objective.after_step(lambda *values: list(values))
    assert objective.metrics()["scale"] == pytest.approx(100)
    optimizer = torch.optim.SGD([objective.logit_scale], lr=0.02)
    texts = torch.randint(4, 64, (8, 6))
    batch = Batch({"image": Images(torch.rand(8, 3, 32, 32) * 2 - 1), "text": Texts(texts, texts > 0)}, 8)
    for _ in range(30):  # random towers: a high scale costs much
        optimizer.zero_grad()
        objective(model.encode(batch)).backward()
        optimizer.step()
        objective.after_step(lambda *values: list(values))
    assert objective.metrics()["scale"] < 90


@pytest.mark.parametrize("name", ["info_nce", "sigmoid", "late_interaction"])
def test_captions_that_mean_the_same_may_count_as_negatives(name: str):
    losses = {}
    for choice in ("mask", "keep"):
        recipe = load_recipe("clip", {"stages": [{"objectives": {name: {"weight": 1, "false_negatives": choice}}}]})
        torch.manual_seed(0)
        model = build_model(recipe, Words(64, 8), 32)
        objective = build_objectives(recipe, model)[name]
        texts = torch.randint(4, 64, (8, 6), generator=torch.Generator().manual_seed(1))
        images = Images(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1)
        for kind, meaning in (("all differ", torch.arange(8)), ("two agree", torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]))):
            batch = Batch({"image": images, "text": Texts(texts, texts > 0, meaning=meaning)}, 8)
            losses[choice, kind] = objective(model.encode(batch)).item()
    assert losses["mask", "all differ"] == losses["keep", "all differ"] == losses["keep", "two agree"]
    assert losses["mask", "two agree"] < losses["keep", "two agree"]


def test_patches_are_cut_row_by_row():
    pixels = torch.arange(2 * 3 * 4 * 4).float().reshape(2, 3, 4, 4)
    patches = patchify(pixels, 2)
    assert patches.shape == (2, 4, 12)
    assert patches[0, 1].tolist() == pixels[0, :, :2, 2:].flatten().tolist()


def test_mined_negatives_are_wrong_and_hard():
    torch.manual_seed(0)
    similarity = torch.full((6, 6), -1.0)
    similarity.fill_diagonal_(1.0)
    similarity[0, 3] = 0.9  # the hardest wrong text of image 0, and the hardest wrong image of text 3
    meaning = torch.tensor([0, 1, 2, 3, 4, 4])
    for _ in range(20):
        text, image = mine_negatives(similarity, meaning, 20.0)
        assert (text != torch.arange(6)).all() and (image != torch.arange(6)).all()
        assert text[0] == 3 and image[3] == 0
        assert text[4] != 5 and text[5] != 4, "a text that means the same is no negative"


def test_chance_level_of_an_untrained_scale():
    rng = np.random.default_rng(5)
    image = torch.tensor(unit(rng, 64, 512)).float()
    text = torch.tensor(unit(rng, 64, 512)).float()
    assert info_nce(image, text, 1.0).item() == pytest.approx(math.log(64), abs=0.05)


def reference_sparc(image, text, lengths, scale):
    """Section 3.2 of the paper, sample by sample and token by token."""
    total = 0.0
    for v, words in zip(image, (t[:n] for t, n in zip(text, lengths, strict=True)), strict=True):
        groups = []
        for t in words:
            s = v @ t
            s = (s - s.min()) / (s.max() - s.min())
            s = np.where(s < 1 / len(v), 0.0, s)
            groups.append((s / s.sum()) @ v)
        c = np.array(groups) / np.linalg.norm(groups, axis=1, keepdims=True)
        t = words / np.linalg.norm(words, axis=1, keepdims=True)
        logits = scale * c @ t.T
        total -= (np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits.T)).mean()) / 2
    return total / len(image)


def test_grouped_tokens_equal_the_reference_and_do_not_see_padding():
    rng = np.random.default_rng(6)
    image, text, lengths = rng.standard_normal((4, 9, 5)), rng.standard_normal((4, 6, 5)), [6, 2, 4, 3]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]

    def ours(t):
        return grouped_loss(grouped_patches(torch.tensor(image), t), t, mask, 4.0)

    assert ours(torch.tensor(text)).item() == pytest.approx(reference_sparc(image, text, lengths, 4.0), abs=1e-12)
    changed = torch.where(mask[..., None], torch.tensor(text), torch.full((), 9.0, dtype=torch.float64))
    assert ours(changed).item() == pytest.approx(ours(torch.tensor(text)).item(), abs=1e-12)
    leaves = torch.tensor(image[:2, :4], requires_grad=True), torch.tensor(text[:2, :3], requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, t: grouped_loss(grouped_patches(i, t), t, mask[:2, :3], 3.0), leaves)


# What the papers have is what an objective has if its options are left out: (objective, option, value), in the order of the sources
# Radford et al. 2021 §2.5, Zhai et al. 2023 §3.2, Lavoie et al. 2024, Singh et al. 2022 §4, Kwon et al. 2023, Chameleon Team 2024.
PUBLISHED = [
    *((name, "temperature", 0.07) for name in ("info_nce", "late_interaction", "query_contrast")),
    *((name, "max_scale", 100) for name in ("info_nce", "late_interaction", "query_contrast")),
    ("sigmoid", "scale", 10), ("sigmoid", "bias", -10), ("contextual", "scale", 10), ("contextual", "bias", -10),
    ("masked_codes", "share", 0.4), ("masked_text", "share", 0.15), ("masked_both", "share", 0.4), ("masked_both", "text_share", 0.15),
    ("masked_words", "share", 0.3), ("masked_patches", "share", 0.6),
    ("interleaved_documents", "length", 4096),
    *((name, "batch_share", 1) for name in ("matching", "masked_both", "masked_patches")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option", "value"), PUBLISHED)
def test_what_is_left_out_is_as_published(name: str, option: str, value: float) -> None:
    assert inspect.signature(OBJECTIVES[name].__init__).parameters[option].default == value


def test_a_scale_of_its_own_begins_as_published() -> None:
    """``grouped_tokens`` takes no default where the scale is another objective's, so its own is looked at here."""
    own = Little("sparc", "stages.0.objectives={grouped_tokens: {scale_of: ''}}").objectives["grouped_tokens"]
    assert own.scale.item() == pytest.approx(1 / 0.07, rel=1e-6) and own.max_log_scale == pytest.approx(np.log(100))


@pytest.mark.parametrize("wrong", [True, False])
def test_hard_negatives_of_the_sigmoid_loss_are_texts_of_no_image(wrong: bool) -> None:
    little = Little("negclip", f"stages.0.objectives={{sigmoid: {{hard_negatives: {str(wrong).lower()}, scale: 4, bias: -1}}}}")
    p = little.model.encode(little.loader.batch(0))
    image, text = (p[f"{side}.embedding"].detach().double().numpy() for side in ("image", "text"))
    expected = reference_sigmoid(image, text, 4, -1, p["text"].meaning.tolist())
    if wrong:
        false = p["negatives.embedding"].detach().double().numpy()
        expected += sum(np.log1p(np.exp(4 * i @ t - 1)) for i in image for t in false) / len(image)
    assert little.objectives["sigmoid"](p).item() == pytest.approx(expected, rel=1e-5)


def test_hard_negatives_are_not_passed_around_the_ring() -> None:
    Little("negclip", "stages.0.objectives={sigmoid: {exchange: ring}}")
    with pytest.raises(DiptychError, match="set exchange: gather"):
        Little("negclip", "stages.0.objectives={sigmoid: {exchange: ring, hard_negatives: true}}")


class Ring(dict):
    """The encodings of one of several processes, to which those of the others are passed on."""

    def __init__(self, parts, own):
        super().__init__(parts[own])
        self.alone, self.parts, self.own = self, parts, own

    def around(self, text, meaning):
        for k in range(len(self.parts)):
            part = self.parts[(self.own + k) % len(self.parts)]
            yield part["text.embedding"], None if meaning is None else part["text"].meaning, k == 0


@pytest.mark.parametrize("meaning", [None, [0, 1, 1, 2, 0, 3]])
def test_texts_passed_around_a_ring_give_the_loss_of_the_whole_batch(meaning):
    rng = np.random.default_rng(7)
    image, text = unit(rng, 6, 5), unit(rng, 6, 5)
    parts = [
        {
            "image.embedding": torch.tensor(image[k : k + 2]),
            "text.embedding": torch.tensor(text[k : k + 2]),
            "text": Texts(
                torch.zeros(2, 1), torch.ones(2, 1), meaning=None if meaning is None else torch.tensor(meaning[k : k + 2])
            ),
        }
        for k in (0, 2, 4)
    ]
    objective = Sigmoid(None, scale=4.0, bias=-1.0, exchange="ring").double()
    shares = [objective.forward(Ring(parts, own)).item() for own in range(3)]
    assert np.mean(shares) == pytest.approx(reference_sigmoid(image, text, 4, -1, meaning), rel=1e-6)
