"""VideoBERT's codebook, codes and masked prediction against plain loops in float64."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from diptych.core.batch import Images, Texts, Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.data.text import BOS, MASK, PAD, SPECIALS
from diptych.models.time.codebook import ClipCodes, Codebook, k_means
from diptych.objectives.video.codes import FitCodebook, MaskedWordsAndCodes

E = 5


class Sizes:
    """What the part reads of the rest of a model."""

    embed_dim = E

    class size:  # noqa: N801
        activation = "relu"

    @staticmethod
    def width_of(part):
        return 4

    @staticmethod
    def require(condition, message):
        if not condition:
            raise DiptychError(message)


def test_k_means_finds_the_best_centres():
    """Of features in clear groups: the centres are the groups' means, whatever order they are in."""
    torch.manual_seed(0)
    middles = 10 * torch.eye(E, dtype=torch.float64)[:4]
    x = torch.cat([m + 0.1 * torch.randn(6, E, dtype=torch.float64) for m in middles])
    centres = k_means(x[torch.randperm(24)], 4, torch.Generator().manual_seed(0))
    means = x.view(4, 6, E).mean(1)
    assert any(torch.allclose(centres[list(order)], means) for order in permutations(range(4)))


def test_k_means_ends_where_loops_would():
    """A fixed point of Lloyd's algorithm: each centre is the mean of the features that are nearest to it."""
    torch.manual_seed(1)
    x = torch.randn(60, 2, dtype=torch.float64)
    centres = k_means(x, 5, torch.Generator().manual_seed(2)).numpy()
    own = [min(range(5), key=lambda k: float(((f - centres[k]) ** 2).sum())) for f in x.numpy()]
    for k in range(5):
        group = [f for f, o in zip(x.numpy(), own, strict=True) if o == k]
        np.testing.assert_allclose(np.mean(group, 0), centres[k], atol=1e-9)


def test_fewer_features_than_centres():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
    centres = k_means(x, 4, torch.Generator().manual_seed(0))
    assert centres.shape == (4, 2) and set(torch.cdist(x, centres).argmin(1).tolist()) == {0, 1}


def filled(samples=40, branches=3, levels=2, seed=3):
    torch.manual_seed(seed)
    book = Codebook(E, branches, levels, samples)
    for _ in range(5):
        book.collect(torch.randn(samples // 4, E))
    return book


def test_codes_descend_the_tree():
    book = filled()
    assert bool(book.fitted) and int(book.count) == 40
    torch.manual_seed(4)
    new = torch.randn(30, E)
    expected = []
    for f in new.numpy():
        node = 0
        for level in range(2):
            centres = book.centres(level)[node].numpy()
            node = node * 3 + min(range(3), key=lambda k: float(((f - centres[k]) ** 2).sum()))
        expected.append(node)
    assert book.codes(new).tolist() == expected and len(set(expected)) > 4
    leaves = book.centres(1).flatten(0, 1)
    error = np.mean([float(((f - leaves[c]) ** 2).sum()) for f, c in zip(new, expected, strict=True)])
    assert book.error(new).item() == pytest.approx(error, rel=1e-5)
    flat = book.codes(book.seen)
    for node in range(3):  # each leaf is the mean of the features that came to it
        for k in range(3):
            group = book.seen[flat == 3 * node + k]
            if len(group):
                torch.testing.assert_close(book.centres(1)[node, k], group.mean(0), rtol=1e-5, atol=1e-6)


def test_a_codebook_is_fitted_once_and_saved():
    book, again = filled(), filled()
    assert all(torch.equal(book.centres(level), again.centres(level)) for level in range(2))
    before = [book.centres(level).clone() for level in range(2)]
    book.collect(torch.randn(50, E))
    other = Codebook(E, 3, 2, 40)
    other.load_state_dict(book.state_dict())
    torch.manual_seed(5)
    new = torch.randn(20, E)
    assert torch.equal(other.codes(new), book.codes(new)) and bool(other.fitted)
    assert all(torch.equal(book.centres(level), b) for level, b in enumerate(before))
    with pytest.raises(DiptychError, match="no features to fit"):
        Codebook(E, 3, 2, 40).fit()


def clips(lengths):
    owner = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])
    return Videos(Images(torch.zeros(len(owner), 3, 1, 1), owner), torch.zeros(len(owner)), owner)


def test_features_of_short_clips():
    torch.manual_seed(6)
    part, lengths = ClipCodes(Sizes, span=2, frames=6, branches=2, levels=2, samples=8).double(), [6, 3, 1]
    pooled = torch.randn(10, 4, dtype=torch.float64)
    features = part.features(Tokens(pooled[:, None], pooled), clips(lengths))
    start = 0
    for row, n in enumerate(lengths):
        own, found = pooled[start : start + n], []
        for first in range(0, n, 2):
            both = torch.cat([own[first], own[min(first + 1, n - 1)]])  # the last frame again, where there is none
            hidden = torch.relu(part.mlp[0].weight @ both + part.mlp[0].bias)
            vector = part.mlp[2].weight @ hidden + part.mlp[2].bias
            found.append((vector / vector.norm()).float())
        assert features.mask[row].tolist() == [i < len(found) for i in range(3)]
        torch.testing.assert_close(features.tokens[row, : len(found)].float(), torch.stack(found))
        total = torch.stack(found).sum(0)
        torch.testing.assert_close(features.pooled[row].float(), total / total.norm())
        start += n
    assert (features.tokens[2, 1:] == 0).all()
    part.codebook.collect(torch.randn(8, E))
    codes = part.codes(features)
    assert codes[:, 0].tolist() == [BOS] * 3 and (codes == PAD)[:, 1:].tolist() == (~features.mask).tolist()
    assert torch.equal(codes[:, 1:][features.mask], len(SPECIALS) + part.codebook.codes(features.tokens[features.mask]))
    with pytest.raises(DiptychError, match="not a multiple of span"):
        ClipCodes(Sizes, span=2, frames=7)
    with pytest.raises(DiptychError, match=r"20 \*\* 4 codes"):
        ClipCodes(Sizes, branches=20, levels=4)


def test_order_within_a_short_clip_counts():
    torch.manual_seed(7)
    part = ClipCodes(Sizes, span=2, frames=4, branches=2, levels=1, samples=4)
    pooled = torch.randn(4, 4)
    one, other = (part.features(Tokens(x[:, None], x), clips([4])) for x in (pooled, pooled[[1, 0, 3, 2]]))
    assert (one.pooled - other.pooled).norm() > 0.05


def test_gradient_of_features():
    torch.manual_seed(8)
    part = ClipCodes(Sizes, span=2, frames=4, branches=2, levels=1, samples=4)
    x = torch.randn(3, 4, requires_grad=True)

    def summed(x):
        return (part.features(Tokens(x[:, None], x), clips([3])).pooled * torch.arange(E)).sum()

    grad = torch.autograd.grad(summed(x), x)[0]
    for i in range(3):
        step = torch.zeros_like(x)
        step[i, 1] = 1e-2
        numeric = (summed(x + step) - summed(x - step)) / 2e-2
        assert grad[i, 1].item() == pytest.approx(numeric.item(), rel=2e-2, abs=1e-3)


class Known(dict):
    rows = None


def test_collecting_features():
    torch.manual_seed(9)

    class Model:
        time = ClipCodes(Sizes, span=1, frames=2, branches=2, levels=1, samples=6)

        @classmethod
        def part(cls, name):
            return cls.time

    made, mask = FitCodebook(Model), torch.tensor([[True, True], [True, False]])
    tokens = torch.randn(2, 2, E)
    p = Known({"video.features": Tokens(tokens, tokens[:, 0], mask)})
    real = tokens[mask].numpy()
    spread = np.mean([((f - real.mean(0)) ** 2).sum() for f in real])
    with torch.no_grad():
        assert made.forward(p).item() == pytest.approx(spread, rel=1e-5)
    assert made.metrics() == {"collected": 0.0}
    loss = made.forward(p)
    assert made.metrics() == {"collected": 0.5} and loss.requires_grad
    assert made.forward(p).item() < spread and bool(Model.time.codebook.fitted)  # fitted when it is full


# --- masked words and codes ---


def small():
    from diptych.config.recipe import load_recipe
    from diptych.data.text import Tokenizer
    from diptych.models.vlm import build_model
    from diptych.objectives import build_objectives

    sizes = {
        f"parts.{part}.{key}": value for part in ("vision", "text") for key, value in (("depth", 1), ("width", 32), ("heads", 2))
    }
    recipe = load_recipe("videobert", {**sizes, "data.image_size": 32, "parts.time.levels": 1})
    torch.manual_seed(10)
    words = Tokenizer.train([f"word{i} acts" for i in range(60)], 400, 32)
    model = build_model(recipe, words, 32)
    return model, build_objectives(recipe, model)


def test_masked_words_and_codes_against_loops():
    model, objectives = small()
    made, fusion = objectives["masked_words_and_codes"], model.part("fusion")
    assert isinstance(made, MaskedWordsAndCodes)
    ids = torch.randint(len(SPECIALS), 300, (3, 8))
    ids[:, 0], ids[1, 5:] = BOS, PAD
    codes = torch.randint(len(SPECIALS), len(SPECIALS) + 12, (3, 5))
    codes[:, 0], codes[2, 3:] = BOS, PAD
    p = Known({"text": Texts(ids, ids != PAD), "video.codes": codes})
    read = {}

    def noted(given_ids, mask, tokens):
        read["ids"] = given_ids
        read["words"], read["seen"] = type(fusion).read(fusion, given_ids, mask, tokens)
        return read["words"], read["seen"]

    def noted_codes(changed):
        read["codes"] = changed
        return type(fusion).read_codes(fusion, changed)

    class Noting:
        codes, read, read_codes = fusion.codes, staticmethod(noted), staticmethod(noted_codes)

    made._fusion = [Noting]
    torch.manual_seed(11)
    loss = made.forward(p)
    torch.manual_seed(11)
    from diptych.objectives.maskvlm import mask_words

    again = [mask_words(x, x != PAD, 0.15, "bert", n)[1] for x, n in ((ids, len(made.head.bias)), (codes, len(made.bias)))]
    losses = []
    for where, logits, right in (
        (again[0], made.head(read["words"].tokens), ids),
        (again[1], made.code_logits(read["seen"].tokens), codes),
    ):
        for b, t in where.nonzero().tolist():
            z = logits[b, t].detach().double().numpy()
            losses.append(math.log(np.exp(z - z.max()).sum()) + z.max() - z[right[b, t]])
    assert len(losses) == made.terms(p) == int(again[0].sum() + again[1].sum()) and again[1].sum(1).tolist() == [1, 1, 1]
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert not (again[1] & (codes < len(SPECIALS))).any() and (read["ids"] == MASK).any()
    assert torch.equal(read["codes"][~again[1]], codes[~again[1]])
    loss.backward()
    for p_ in (fusion.codes.weight, made.bias, made.head.bias, fusion.places, fusion.mark):
        assert p_.grad.abs().sum() > 0


def test_codes_as_words_of_the_same_sequence():
    model, _ = small()
    fusion, text = model.part("fusion"), model.part("text")
    codes = torch.tensor([[BOS, 7, 9, PAD, PAD]])
    seen = fusion.read_codes(codes)
    ids = torch.tensor([[BOS, 20, 21, 2]])
    words, after = fusion.read(ids, ids != PAD, seen)
    x = torch.cat([fusion.embed(ids), fusion.norm(fusion.codes(codes[:, :3]) + fusion.places[:3] + fusion.mark)], 1)
    alone = text.transformer(x)
    torch.testing.assert_close(words.tokens, alone[:, :4])
    torch.testing.assert_close(after.tokens[:, :3], alone[:, 4:])
    assert seen.mask.tolist() == [[True, True, True, False, False]]
