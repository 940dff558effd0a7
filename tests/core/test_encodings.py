"""The graph of encodings and the passes over it, with parts of a few lines each."""

from __future__ import annotations

import gc
import pickle
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diptych.core.batch import Batch, Documents, Images, Labels, Regions, Texts, Tokens, Turns, Videos
from diptych.core.encodings import IMAGE_EMBEDDING, Key, Pass
from diptych.core.errors import DiptychError
from diptych.core.graph import Graph, Provider, provides
from diptych.core.sample import Captions, Conversation, Label, Region, Sample, Turn
from diptych.objectives.base import Objective

FIELDS = {
    "image": "image", "other_image": "image", "text": "text", "negatives": "text", "label": "label", "label.classes": "text",
    "video": "video", "video.frames": "image", "turns": "turns", "turns.images": "image",
}  # fmt: skip


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 4, dtype=torch.float64)

    @provides("{image}.tokens", "{image}")
    def encode(self, image: Images) -> Tokens:
        x = self.layer(image.pixels.flatten(1))
        return Tokens(torch.stack([x, x.sin()], 1), x)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4, dtype=torch.float64)

    @provides("{text}.tokens", "{text}")
    def encode(self, text: Texts) -> Tokens:
        x = self.embedding(text.ids) * text.mask[..., None]
        return Tokens(x, x.sum(1), text.mask)


class Space(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(4, 3, dtype=torch.float64) for _ in range(2))

    @provides("{image}.embedding", "{image}.tokens")
    def of_image(self, tokens: Tokens) -> Tensor:
        return self.image(tokens.pooled)

    @provides("{text}.embedding", "{text}.tokens")
    def of_text(self, tokens: Tokens) -> Tensor:
        return self.text(tokens.pooled)


class Fusion(nn.Module):
    """Two outputs of one call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4, dtype=torch.float64)

    @provides(("text.fused", "image.fused"), "text.tokens", "image.tokens")
    def both(self, text: Tokens, image: Tokens) -> tuple[Tensor, Tensor]:
        x = self.layer(torch.cat([text.pooled, image.pooled], 1)).tanh()
        return x, -x


class Reader(nn.Module):
    """A plain form, one for pairs from what is kept of an image, and one that gives two encodings at once."""

    at_once = True

    @provides("image.cache", "image.tokens")
    def keep(self, image: Tokens) -> Tensor:
        return image.pooled * 2

    @provides("image.state", "image.cache")
    def state(self, cache: Tensor) -> Tensor:
        return cache.sum(1)

    @provides("text.logits", "image.tokens", "text.tokens")
    def logits(self, image: Tokens, text: Tokens) -> Tensor:
        return image.pooled[:, None] * 2 + text.tokens

    @provides("text.logits", "image.cache", "text.tokens", paired=True)
    def logits_from_cache(self, cache: Tensor, text: Tokens) -> Tensor:
        return cache[:, None] + text.tokens

    @provides(("text.logits", "image.state"), "image.tokens", "text.tokens", together="at_once")
    def together(self, image: Tokens, text: Tokens) -> tuple[Tensor, Tensor]:
        return self.logits(image, text), self.state(self.keep(image))


class Model:
    """Parts by name, with a count of the calls and of the rows of their first input."""

    def __init__(self, parts: Mapping[str, nn.Module], choices: Mapping[str, str] | None = None):
        torch.manual_seed(0)
        self.parts, self.graph = dict(parts), Graph(FIELDS, choices)
        self.calls: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.teachers: dict[str, Model] = {}
        for name, part in parts.items():
            self.graph.add(name, part)

    def compute(self, provider: Provider, inputs: Sequence[Any]) -> Any:
        name = provider.outputs[0]
        first = inputs[0].pooled if isinstance(inputs[0], Tokens) else inputs[0]
        self.calls[name] += 1
        self.rows[name] += len(first)
        return provider.method(*inputs)

    def teacher(self, name: str) -> Model:
        return self.teachers[name]

    def encode(self, batch: Batch, wanted: Collection[str] = ()) -> Pass:
        return Pass(self, batch, wanted=wanted)


def model(choices: Mapping[str, str] | None = None, **more: nn.Module) -> Model:
    torch.manual_seed(0)
    return Model({"vision": Vision(), "text": Words(), "space": Space(), "fusion": Fusion(), **more}, choices)


def images(n: int, seed: int = 0) -> Images:
    return Images(torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def texts(n: int, seed: int = 0, length: int = 5) -> Texts:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.randint(2, length + 1, (n, 1), generator=generator)
    return Texts(torch.randint(3, 20, (n, length), generator=generator) * mask, mask)


def batch(n: int = 4, **more: Any) -> Batch:
    return Batch({"image": images(n), "text": texts(n), **more}, n)


# --- once ---


def test_an_encoding_is_computed_when_first_asked_for_and_once() -> None:
    m = model()
    p = m.encode(batch())
    assert not m.calls
    first = p["image.embedding"]
    assert m.calls == {"image.tokens": 1, "image.embedding": 1}, "nothing of the text, which nobody asked for"
    assert p["image.embedding"] is first and p[IMAGE_EMBEDDING] is first and p[Key[Tensor]("image.embedding")] is first
    p["text.fused"], p["image.fused"], p["text.embedding"]
    assert set(m.calls.values()) == {1}


@pytest.mark.parametrize("first", ["base", "view"])
def test_a_view_shares_what_it_does_not_change_whoever_asks_first(first: str) -> None:
    m = model()
    base = m.encode(batch())
    view = base.view(text=texts(4, seed=1))
    asked = (base, view) if first == "base" else (view, base)
    assert asked[0]["image.embedding"] is asked[1]["image.embedding"]
    assert m.calls["image.tokens"] == m.calls["image.embedding"] == 1
    again = view.view(image=images(4, seed=2)).view(negatives=texts(4, seed=3))
    assert again["text.embedding"] is view["text.embedding"], "a view of a view shares with it"
    assert m.calls["text.tokens"] == 1


@pytest.mark.parametrize("first", ["base", "view"])
def test_what_a_view_changes_does_not_leak(first: str) -> None:
    m, other = model(), texts(4, seed=1)
    base = m.encode(batch())
    view = base.view(text=other)
    for p in (base, view) if first == "base" else (view, base):
        p["text.fused"], p["text.embedding"]
    alone = model()
    for p, text in ((base, texts(4)), (view, other)):
        expected = alone.encode(Batch({"image": images(4), "text": text}, 4))
        assert p["text"] is (other if p is view else base.batch["text"])
        for name in ("text.embedding", "text.fused", "image.fused", "image.embedding"):
            assert torch.equal(p[name], expected[name]), name
    assert not torch.equal(base["image.fused"], view["image.fused"]), "what depends on both is another, too"


def test_fifty_views_that_come_and_go_get_their_own_values() -> None:
    """Python gives the address of what is gone to what comes next: nothing may be remembered by it."""
    m = model()
    p = m.encode(batch())
    for seed in range(50):
        found = p.view(text=texts(4, seed=seed))["text.fused"]
        assert torch.equal(found, model().encode(Batch({"image": images(4), "text": texts(4, seed=seed)}, 4))["text.fused"])
        del found
        gc.collect(0)
    assert m.calls["image.tokens"] == 1 and m.calls["text.fused"] == 50


# --- pairs ---


@pytest.mark.parametrize("gradients", [True, False])
def test_pairs_use_encodings_of_one_field_again_and_compute_joint_ones(gradients: bool) -> None:
    m = model()
    p = m.encode(batch())
    i, t = torch.tensor([0, 0, 3, 2, 1]), torch.tensor([1, 0, 3, 3, 2])
    with torch.set_grad_enabled(gradients):
        pairs = p.pairs(image=i, text=t)
        assert torch.equal(pairs["image.embedding"], p["image.embedding"][i])
        assert torch.equal(pairs["text.tokens"].pooled, p["text.tokens"].pooled[t]) and torch.equal(
            pairs["text"].ids, p["text"].ids[t]
        )
        straight = m.encode(Batch({"image": images(4)[i], "text": texts(4)[t]}, 5))["text.fused"]
        m.calls.clear()
        torch.testing.assert_close(pairs["text.fused"], straight, atol=1e-12, rtol=0)
        assert m.calls == {"text.fused": 1}, "the tokens were there"
        assert pairs.size == 5 and p.size == 4
        assert len(p["text.fused"]) == 4, "the pass itself keeps its own"


def test_pairs_leave_other_fields_as_they_are() -> None:
    m = model()
    p = m.encode(batch(negatives=texts(4, seed=5)))
    assert p.pairs(image=torch.tensor([1]))["text.embedding"] is p["text.embedding"]
    assert p.pairs(image=torch.tensor([1]))["negatives.embedding"] is p["negatives.embedding"]


def test_a_view_of_pairs_and_pairs_of_a_view() -> None:
    m, order = model(), torch.tensor([2, 0])
    p = m.encode(batch())
    new = images(2, seed=7)
    expected = m.encode(Batch({"image": new, "text": texts(4)[order]}, 2))["text.fused"]
    assert torch.equal(p.pairs(image=order, text=order).view(image=new)["text.fused"], expected)
    changed = texts(4, seed=8)
    expected = m.encode(Batch({"image": images(4)[order], "text": changed[order]}, 2))["text.fused"]
    torch.testing.assert_close(p.view(text=changed).pairs(image=order, text=order)["text.fused"], expected, atol=1e-12, rtol=0)


def test_the_form_for_pairs_is_used_for_pairs_without_gradients_alone() -> None:
    m = model(lm=Reader())
    i, t = torch.tensor([0, 0, 0, 1, 1]), torch.arange(5) % 4
    with torch.no_grad():
        p = m.encode(batch())
        paired = p.pairs(image=i, text=t)["text.logits"]
        assert m.calls["image.cache"] == 1 and m.rows["image.cache"] == 4, "an image is read once, however many texts there are"
        p["text.logits"]
    assert m.calls["text.logits"] == 2 and m.calls["image.cache"] == 1
    m.calls.clear()
    whole = m.encode(batch()).pairs(image=i, text=t)["text.logits"]
    assert not m.calls["image.cache"] and whole.requires_grad
    torch.testing.assert_close(paired, whole.detach()[:, : paired.shape[1]], atol=1e-12, rtol=0)


def test_pairs_without_gradients_do_without_the_padding_of_others() -> None:
    m = model(lm=Reader())
    p = m.encode(batch())
    lengths = p["text"].mask.sum(1)
    row = lengths.argmin()[None]
    assert int(lengths.min()) < p["text"].ids.shape[1]
    with torch.no_grad():
        assert p.pairs(image=row, text=row)["text.logits"].shape[1] == int(lengths.min())
    assert p.pairs(image=row, text=row)["text.logits"].shape[1] == p["text"].ids.shape[1]


# --- gradients ---


def test_what_was_made_without_gradients_is_not_handed_to_someone_who_wants_them() -> None:
    m = model()
    vision: Any = m.parts["vision"]
    p = m.encode(batch())
    with torch.no_grad():
        first = p["image.embedding"]
    assert not first.requires_grad
    second = p["image.embedding"]
    assert second.requires_grad and torch.equal(first, second)
    second.sum().backward()
    assert vision.layer.weight.grad is not None, "all the way down"
    with torch.no_grad():
        assert p["image.embedding"] is p["image.embedding"]
    assert m.calls["image.embedding"] == 2


def test_what_was_made_with_gradients_serves_those_who_want_none() -> None:
    m = model()
    p = m.encode(batch())
    first = p["image.embedding"]
    with torch.no_grad():
        assert p["image.embedding"] is first
    assert m.calls["image.embedding"] == 1


def contrast(p: Pass) -> Tensor:
    logits = p["image.embedding"] @ p["text.embedding"].T
    return nn.functional.cross_entropy(logits, torch.arange(len(logits))) + p["text.embedding"][:, 0].square().mean()


def matched(p: Pass) -> Tensor:
    order = torch.arange(p.size).roll(1)
    return p.pairs(image=torch.arange(p.size), text=order)["text.fused"].square().mean()


@pytest.mark.parametrize(
    ("loss", "names"), [(contrast, ("image.embedding", "text.embedding")), (matched, ("image.tokens", "text.tokens"))]
)
def test_given_encodings_have_the_gradient_of_the_whole_batch(loss: Any, names: tuple[str, ...]) -> None:
    """GradCache (Gao et al. 2021): pieces are encoded without a graph, the loss is taken on their encodings, and its gradient goes
    back through each piece."""

    def tensors(value: Any) -> list[Tensor]:
        return [value.tokens, value.pooled] if isinstance(value, Tokens) else [value]

    def parameters(m: Model) -> list[nn.Parameter]:
        return [x for part in m.parts.values() for x in part.parameters()]

    whole, m = model(), model()
    loss(whole.encode(batch(6))).backward()
    everything = batch(6)
    slices = [torch.arange(k, k + 2) for k in (0, 2, 4)]
    pieces = [Batch({name: field[rows] for name, field in everything.fields.items()}, 2, 2 * k) for k, rows in enumerate(slices)]
    with torch.no_grad():
        found = [[x for name in names for x in tensors(m.encode(piece)[name])] for piece in pieces]
    leaves = [torch.cat(columns).requires_grad_() for columns in zip(*found, strict=True)]
    left = iter(leaves)
    given = {
        n: Tokens(next(left), next(left), everything["text"].mask if "text" in n else None) if "tokens" in n else next(left)
        for n in names
    }
    joined = Batch.cat([piece.light() for piece in pieces])
    assert joined.size == 6 and "image" not in joined, "pixels are no longer needed"
    p = Pass(m, joined, given)
    m.calls.clear()
    loss(p).backward()
    assert not set(m.calls) & {"image.tokens", "text.tokens", *names}, "what is given is not computed"
    for k, piece in enumerate(pieces):
        again = m.encode(piece)
        ends = [x for name in names for x in tensors(again[name])]
        grads = [leaf.grad for leaf in leaves]
        pairs = [(x, g[2 * k : 2 * k + 2]) for x, g in zip(ends, grads, strict=True) if g is not None]
        torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
    for mine, theirs in zip(parameters(m), parameters(whole), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-6)


def test_what_is_neither_given_nor_computable_cannot_be_had() -> None:
    m = model()
    known = m.encode(batch())["image.tokens"].tokens.detach()
    p = Pass(m, Batch({"text": texts(4)}, 4), {"image.tokens": Tokens(known, known[:, 0])})
    assert p.has("image.tokens") and p.has("text.fused") and p["text.fused"].shape == (4, 4)
    assert p.has("image.embedding") and not p.has("image") and not p.has("negatives.embedding")
    with pytest.raises(DiptychError, match="this batch has no 'image'"):
        p["image"]
    with pytest.raises(DiptychError, match="this batch has no 'negatives'"):
        p["negatives.embedding"]
    assert p.view(negatives=texts(2)).has("negatives.embedding"), "a view may add a field"


# --- several at once ---


def test_a_provider_of_two_outputs_is_called_once() -> None:
    m = model()
    for names in (("text.fused", "image.fused"), ("image.fused", "text.fused")):
        m.calls.clear()
        p = m.encode(batch())
        values = {name: p[name] for name in names}
        assert m.calls["text.fused"] == 1 and torch.equal(values["image.fused"], -values["text.fused"])


def test_one_call_replaces_several_only_where_all_are_wanted_with_gradients() -> None:
    both = ("text.logits", "image.state")

    def calls(wanted: tuple[str, ...], ready: bool = True, gradients: bool = True, ask: tuple[str, ...] = both) -> int:
        reader = Reader()
        reader.at_once = ready
        m = model(lm=reader)
        with torch.set_grad_enabled(gradients):
            p = m.encode(batch(), wanted)
            values = [p[name] for name in ask]
        expected = model(lm=Reader()).encode(batch())
        for name, value in zip(ask, values, strict=True):
            torch.testing.assert_close(value, expected[name], atol=1e-12, rtol=0)
        return m.calls["text.logits"] + m.calls["image.state"]

    assert calls(both) == calls(both, ask=both[::-1]) == 1
    assert calls(("text.logits",)) == calls(()) == 2, "who will ask is not known"
    assert calls(both, gradients=False) == 2
    assert calls(both, ready=False) == 2


def test_what_is_wanted_includes_what_it_is_made_of() -> None:
    """An embedding that is made of the state wants the state."""

    class States(nn.Module):
        @provides("image.summary", "image.state")
        def summary(self, state: Tensor) -> Tensor:
            return state * 3

    m = model(lm=Reader(), states=States())
    p = m.encode(batch(), ("image.summary", "text.logits"))
    p["image.summary"], p["text.logits"]
    assert m.calls["text.logits"] == 1 and not m.calls["image.state"]


def test_whether_several_may_be_had_at_once_is_asked_only_where_they_are_wanted() -> None:
    asked = []

    class Tries(Reader):
        @property
        def at_once(self) -> bool:  # type: ignore[override]
            asked.append(True)
            return True

    m = model(lm=Tries())
    m.graph.settle(("text.logits", "image.embedding"))
    assert not asked
    m.graph.settle(("text.logits", "image.state"))
    assert asked


# --- who provides what ---


def test_a_template_serves_every_field_of_its_kind() -> None:
    m = model()
    classes = texts(3, seed=4)
    frames = Images(images(5, seed=2).pixels, torch.tensor([0, 0, 1, 2, 3]))
    p = m.encode(
        batch(
            other_image=images(4, seed=1),
            negatives=replace(texts(2, seed=3), owner=torch.tensor([0, 2])),
            label=Labels(torch.tensor([0, 2, 1, 1]), classes),
            video=Videos(frames, torch.zeros(5)),
        )
    )
    for field, rows in (("other_image", 4), ("negatives", 2), ("label.classes", 3), ("video.frames", 5)):
        assert len(p[f"{field}.embedding"]) == rows
    assert torch.equal(p["label.classes.embedding"], m.encode(Batch({"text": classes}, 3))["text.embedding"])
    assert torch.equal(p["video.frames.embedding"], m.encode(Batch({"image": frames}, 5))["image.embedding"])
    assert m.graph.leaves("video.frames.embedding") == {"video"} and m.graph.leaves("label.classes.tokens") == {"label"}
    assert not m.graph.gives("label.tokens") and not m.graph.gives("label.classes.fused")


def test_a_field_that_a_provider_makes_is_served_like_any_other() -> None:
    class Crops(nn.Module):
        @provides("crops", "image", kind="image")
        def crop(self, image: Images) -> Images:
            return Images(image.pixels.flip(3))

        @provides("crops.mean", "crops.tokens")
        def mean(self, tokens: Tokens) -> Tensor:
            return tokens.pooled.mean(0)

    m = model(crops=Crops())
    p = m.encode(batch())
    assert torch.equal(p["crops.embedding"], m.encode(Batch({"image": Images(images(4).pixels.flip(3))}, 4))["image.embedding"])
    assert p["crops.mean"].shape == (4,) and m.graph.leaves("crops.embedding") == {"image"}


def test_a_missing_provider_is_named_with_who_needs_it() -> None:
    class Writer(nn.Module):
        @provides("text.words", "image.prefix", "text")
        def words(self, prefix: Tensor, text: Texts) -> Tensor:
            return prefix

    m = model(lm=Writer())
    with pytest.raises(DiptychError, match=r"nothing provides 'image\.prefix'.*, which 'text\.words' needs"):
        m.graph.leaves("text.words")
    with pytest.raises(DiptychError, match=r"nothing provides 'image\.prefix'.*, which 'text\.words' needs"):
        m.encode(batch())["text.words"]
    with pytest.raises(DiptychError, match=r"nothing provides 'text\.fussed'; did you mean 'text\.fused'\?"):
        m.encode(batch())["text.fussed"]
    with pytest.raises(
        DiptychError, match=r"nothing provides 'image\.qqqqqqqqqqqq'; valid: image, image\.embedding, image\.fused, image\.tokens$"
    ):
        m.graph.leaves("image.qqqqqqqqqqqq")


def test_what_needs_itself_is_refused() -> None:
    class Circle(nn.Module):
        @provides("image.a", "image.b")
        def a(self, b: Tensor) -> Tensor:
            return b

        @provides("image.b", "image.c", "text")
        def b(self, c: Tensor, text: Texts) -> Tensor:
            return c

        @provides("image.c", "image.a")
        def c(self, a: Tensor) -> Tensor:
            return a

    m = model(circle=Circle())
    with pytest.raises(DiptychError, match=r"'image\.a' needs itself: image\.a ← image\.b ← image\.c ← image\.a"):
        m.graph.leaves("image.a")
    assert not m.graph.gives("image.c") and m.graph.gives("image.tokens")


class Other(nn.Module):
    """Provides what others provide, too."""

    @provides("{image}.embedding", "{image}.tokens")
    def embed(self, tokens: Tokens) -> Tensor:
        return tokens.pooled[:, :3] * 0 + 7

    @provides(("text.fused", "image.fused"), "text.tokens", "image.tokens")
    def both(self, text: Tokens, image: Tokens) -> tuple[Tensor, Tensor]:
        return text.pooled, image.pooled


def test_two_providers_are_refused_with_the_remedy() -> None:
    m = model(other=Other())
    words = r"parts space, other all provide 'image\.embedding'; name one of them in the recipe: encodings: \{'image\.embedding': space\} or "
    with pytest.raises(DiptychError, match=words):
        m.graph.leaves("image.embedding")
    with pytest.raises(DiptychError, match=words):
        m.encode(batch())["image.embedding"]


class Backwards(nn.Module):
    """Reads what no part here provides, and gives what others give."""

    @provides("{image}.embedding", "{image}.mirrored")
    def embed(self, mirrored: Tokens) -> Tensor:
        return mirrored.pooled


def test_a_provider_without_its_inputs_is_no_second_one() -> None:
    m = model(other=Backwards())
    assert torch.equal(m.encode(batch())["image.embedding"], model().encode(batch())["image.embedding"])
    with pytest.raises(DiptychError, match=r"nothing provides 'image\.embedding@other'"):
        m.encode(batch())["image.embedding@other"]


def test_a_recipe_chooses_and_an_at_sign_asks_one_part() -> None:
    m = model({"image.embedding": "other", "text.fused": "fusion", "image.fused": "other"}, other=Other())
    p = m.encode(batch())
    chosen, named = p["image.embedding"], p["image.embedding@space"]
    assert bool((chosen == 7).all()) and torch.equal(named, model().encode(batch())["image.embedding"])
    assert p["image.embedding@other"] is chosen, "the same encoding under another name"
    assert m.calls["image.embedding"] == 2 and m.calls["image.tokens"] == 1
    with pytest.raises(DiptychError, match=r"nothing provides 'image\.embedding@lm'; space, other provide"):
        p["image.embedding@lm"]
    # Each part's call gives two outputs, of which each is chosen from another part.
    assert torch.equal(p["image.fused"], p["image.tokens"].pooled) and torch.equal(p["text.fused@other"], p["text.tokens"].pooled)
    assert torch.equal(p["text.fused"], -p["image.fused@fusion"]) and not torch.equal(p["text.fused"], p["text.fused@other"])


def test_asking_one_part_does_not_answer_for_all() -> None:
    m = model(other=Other())
    p = m.encode(batch())
    assert torch.equal(p["text.fused@other"], p["text.tokens"].pooled) and torch.equal(
        p["image.fused@other"], p["image.tokens"].pooled
    )
    assert m.calls["text.fused"] == 1
    for name in ("text.fused", "image.fused"):
        with pytest.raises(DiptychError, match="all provide"):
            p[name]


def test_a_call_of_several_does_not_replace_what_the_recipe_chose_elsewhere() -> None:
    class Decoder(nn.Module):
        @provides("text.logits", "text.tokens")
        def logits(self, text: Tokens) -> Tensor:
            return text.tokens * 0 + 5

    m = model({"text.logits": "decoder"}, lm=Reader(), decoder=Decoder())
    p = m.encode(batch(), ("image.state", "text.logits"))
    p["image.state"]
    assert bool((p["text.logits"] == 5).all())


def test_optional_inputs_are_none_where_the_batch_lacks_them() -> None:
    class Optional(nn.Module):
        @provides("image.said", "image.tokens", "negatives.embedding?")
        def encoding(self, image: Tokens, wrong: Tensor | None) -> Any:
            return (image.pooled, wrong)

        @provides("image.beside", "image", "negatives?")
        def field(self, image: Images, wrong: Texts | None) -> Any:
            return (image, wrong)

        @provides("turns.shown", "turns", "turns.images.tokens?")
        def inner(self, turns: Turns, shown: Tokens | None) -> Any:
            return (turns, shown)

    m = model(optional=Optional())
    plain, more = m.encode(batch()), m.encode(batch(negatives=texts(2, seed=1)))
    assert plain.has("image.said") and plain["image.said"][1] is None and plain["image.beside"][1] is None
    assert torch.equal(more["image.said"][1], more["negatives.embedding"]) and more["image.beside"][1] is more["negatives"]
    flags = torch.ones(2, 3, dtype=torch.bool)
    turns = Turns(torch.ones(2, 3, dtype=torch.long), flags, flags, torch.arange(3).expand(2, -1))
    assert m.encode(Batch({"turns": turns}, 2))["turns.shown"][1] is None, "conversations without images"
    p = m.encode(Batch({"turns": replace(turns, images=images(3))}, 2))
    assert p["turns.shown"][1] is p["turns.images.tokens"] and len(p["turns.images.embedding"]) == 3


def test_an_override_provides_what_its_base_does() -> None:
    class Louder(Vision):
        @provides("{image}.tokens", "{image}")
        def encode(self, image: Images) -> Tokens:
            return super().encode(Images(image.pixels * 2))

    m = Model({"vision": Louder()})
    assert m.graph.plain("image.tokens").part == "vision"
    m.encode(batch())["image.tokens"]
    assert m.calls["image.tokens"] == 1


# --- other fields, other models ---


class Compared(Objective):
    needs = ("image.embedding", "text.embedding?", "image")
    couples = ("image.tokens", "ema:image.embedding")

    def forward(self, p: Pass) -> Tensor:
        moved = p.view(image=Images(p["image"].pixels + 1))
        return torch.stack([p["image.embedding"].sum(), moved["image.embedding"].sum(), p["text.embedding"].sum()])

    def terms(self, p: Pass) -> float:
        return len(p["image"])


def test_an_objective_reads_other_fields_than_those_in_its_code() -> None:
    m = model()
    objective = Compared(m)  # type: ignore[arg-type]
    objective.fields = {"image": "other_image"}
    assert objective.coupled() == ("other_image.tokens", "ema:other_image.embedding")
    assert objective.needed() == (
        "other_image.tokens",
        "ema:other_image.embedding",
        "other_image.embedding",
        "text.embedding?",
        "other_image",
    )
    p = m.encode(batch(other_image=images(4, seed=1)))
    plain = model().encode(Batch({"image": images(4, seed=1), "text": texts(4)}, 4))
    expected = Compared(m)(plain)  # type: ignore[arg-type]
    torch.testing.assert_close(objective(p), expected)
    assert objective.count(p) == 4
    m.calls.clear()
    assert p["other_image.embedding"].shape == (4, 3) and not m.calls, "the encodings are those of the pass"
    assert not torch.equal(p["image.embedding"], p["other_image.embedding"]), "the pass itself has its own names"
    rows = torch.tensor([1, 1])
    pairs = p.renamed({"image": "other_image"}).pairs(image=rows)
    assert torch.equal(pairs["image.embedding"], p["other_image.embedding"][rows])


def test_a_teacher_reads_the_same_fields_without_gradients() -> None:
    student, teacher = model(), model()
    space: Any = teacher.parts["space"]
    with torch.no_grad():
        space.image.weight.mul_(2)
    student.teachers["ema"], student.graph.teachers["ema"] = teacher, teacher.graph
    p = student.encode(batch(other_image=images(4, seed=1)))
    taught = p["ema:image.embedding"]
    assert not taught.requires_grad and torch.equal(taught, teacher.encode(batch())["image.embedding"])
    with torch.no_grad():
        assert p["ema:image.embedding"] is taught, "a constant, whoever asks"
    assert teacher.calls["image.embedding"] == 2
    view = p.view(image=images(4, seed=3))
    assert torch.equal(view["ema:image.embedding"], teacher.encode(Batch({"image": images(4, seed=3)}, 4))["image.embedding"])
    assert view["ema:text.embedding"] is p["ema:text.embedding"]
    rows = torch.tensor([2, 0])
    assert torch.equal(p.pairs(image=rows)["ema:image.embedding"], taught[rows])
    assert torch.equal(p.renamed({"image": "other_image"})["ema:image.embedding"], p["ema:other_image.embedding"])
    with pytest.raises(DiptychError, match="there is no teacher 'emma'; did you mean 'ema'"):
        p["emma:image.embedding"]


# --- pieces and processes ---


def test_which_samples_are_some_depends_on_their_place_in_the_whole() -> None:
    m, n = model(), 12
    for share in (1.0, 0.5, 0.3, 0.05):
        whole = m.encode(batch(n)).some(share).tolist()
        assert len(whole) in (int(n * share), int(n * share) + 1)
        pieces = []
        for start in range(0, n, 3):
            piece = Batch({"text": texts(3)}, 3, start)
            pieces += [start + i for i in m.encode(piece).some(share).tolist()]
        assert pieces == whole


def test_batches_joined_again_are_the_batch() -> None:
    whole = batch(6, negatives=replace(texts(4, seed=1), owner=torch.tensor([0, 1, 3, 5])))
    parts = []
    for start in (0, 2, 4):
        rows = torch.arange(start, start + 2)
        fields: dict[str, Any] = {name: whole[name][rows] for name in ("image", "text")}
        wrong = whole["negatives"]
        own = ((wrong.owner >= start) & (wrong.owner < start + 2)).nonzero()[:, 0]
        if len(own):
            fields["negatives"] = replace(wrong[own], owner=wrong.owner[own] - start)
        parts.append(Batch(fields, 2, start, (f"{start}", f"{start + 1}")))
    joined = Batch.cat(parts)
    assert joined.size == 6 and joined.ids == tuple(map(str, range(6)))
    assert torch.equal(joined["image"].pixels, whole["image"].pixels)
    for name in ("text", "negatives"):
        assert torch.equal(joined[name].ids, whole[name].ids) and torch.equal(joined[name].mask, whole[name].mask)
    assert torch.equal(joined["negatives"].owner, whole["negatives"].owner)
    del parts[1].fields["negatives"]
    assert Batch.cat(parts)["negatives"].owner.tolist() == [0, 1, 5], "a piece without any"
    longer = Batch.cat(parts, length=9)["text"]
    assert longer.ids.shape == (6, 9) and not longer.mask[:, 5:].any()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if hasattr(a, "__dict__"):
        return type(a) is type(b) and same(vars(a), vars(b))
    return bool(a == b)


def test_samples_batches_and_passes_pickle() -> None:
    """Workers that are spawned get what they work on, and give back what they made, as bytes."""
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    sample = Sample(
        "1", {"boxes": [1, 2]}, image=picture, text=Captions(["a fox"], ["fox"]), negatives=["a cat"], label=Label(1, "fox"),
        regions=[Region((0, 0, 1, 1), "tail")], turns=Conversation([Turn("user", "<image>?")], [picture]),
    )  # fmt: skip
    back = pickle.loads(pickle.dumps(sample))
    assert back.id == "1" and back.extra == sample.extra and same(back.fields, sample.fields)
    flags = torch.ones(2, 3, dtype=torch.bool)
    turns = Turns(torch.ones(2, 3, dtype=torch.long), flags, flags, torch.arange(3).expand(2, -1), images(3))
    document = Documents(torch.tensor([0, 1]), texts(1), images(1), torch.tensor([0, 0]))
    regions = Regions(torch.rand(2, 4), texts(2), torch.tensor([0, 3]))
    everything = batch(
        turns=turns,
        document=document,
        regions=regions,
        label=Labels(torch.arange(4), texts(4)),
        video=Videos(images(2), torch.ones(2)),
    )
    everything["image"].floats  # noqa: B018 - what is remembered beside the fields does no harm
    again = pickle.loads(pickle.dumps(everything))
    assert same(again, everything)
    m = model()
    p = m.encode(everything, ("text.fused",))
    p["image.tokens"]
    with torch.no_grad():
        found = p["text.fused"]
        there = pickle.loads(pickle.dumps(p))
        assert torch.equal(there["text.fused"], found) and torch.equal(
            there.view(text=texts(4, 2))["text.embedding"], p.view(text=texts(4, 2))["text.embedding"]
        )
    assert pickle.loads(pickle.dumps(IMAGE_EMBEDDING)) == "image.embedding"
