"""Prompts of single blocks, where the words stand, contexts of classes, and MaPLe: against towers written out in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import pass_of
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.training.start.setup import Setup, set_up
from plain_fixture import f64, linear, normed
from tower_fixture import CLIP, blocks, patches_of, places_of, words_of

TEXTS = ["a red fox", "two green keys to the left of a big yellow house", "a cat"]


def made(*overrides: str) -> Setup:
    """A model in float64, with adapters as if they had learned."""
    torch.manual_seed(0)
    setup = set_up(load_recipe("clip", [*CLIP, *overrides]))
    setup.model.double().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for adapter in setup.model.adapters.values():
            for p in adapter.own():  # type: ignore[operator]
                p.copy_(torch.randn_like(p) * 0.3)
    return setup


def pixels(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def encoded(model: Any, texts: list[str] = TEXTS) -> tuple[Any, Any]:
    with torch.no_grad():
        p = pass_of(model, pixels(len(texts)), texts)
        return p["image.tokens"], p["text.tokens"]


def without(x: np.ndarray, start: int, n: int) -> np.ndarray:
    return np.concatenate([x[:start], x[start + n :]])


# --- VPT-deep, and as much for texts ---


@pytest.mark.parametrize("depth, blocks_with", [("2", 2), ("all", 3), ("1", 1)])
def test_blocks_have_vectors_of_their_own(depth: str, blocks_with: int) -> None:
    setup = made(*(f"adapters.{p}={{kind: prompt, tokens: 2, depth: {depth}}}" for p in ("vision", "text")))
    model = setup.model
    image, text = encoded(model)
    for side in ("vision", "text"):
        adapter: Any = model.adapters[side]
        own = [f64(adapter.vectors), *(f64(adapter.deeper) if blocks_with > 1 else [])]
        assert len(own) == blocks_with

        def edit(i: int, x: np.ndarray, own: list[np.ndarray] = own) -> np.ndarray:
            """Before its block, a vector takes the place of that of the block before."""
            return np.concatenate([x[:1], own[i], x[3:]]) if 0 < i < len(own) else x

        for k in range(3):
            if side == "vision":
                x = patches_of(model, pixels()[k].numpy())
                x = blocks(model.parts["vision"], np.concatenate([x[:1], own[0], x[1:]]), edit)
                np.testing.assert_allclose(image.tokens[k], without(x, 1, 2), atol=1e-9)
                np.testing.assert_allclose(image.learned[k], x[1:3], atol=1e-9)
                np.testing.assert_allclose(image.pooled[k], x[0], atol=1e-9)
            else:
                words = words_of(model, TEXTS[k])
                x = np.concatenate([words[:1], own[0], words[1:]])
                x = blocks(model.parts["text"], x + places_of(model)[: len(x)], edit)
                np.testing.assert_allclose(text.tokens[k, : len(words)], without(x, 1, 2), atol=1e-9)
                np.testing.assert_allclose(text.pooled[k], x[-1], atol=1e-9)


def test_the_vectors_of_every_block_learn_by_their_gradient() -> None:
    model = made(*(f"adapters.{p}={{kind: prompt, tokens: 2, depth: 2}}" for p in ("vision", "text"))).model
    model.train_only(["adapters.vision", "adapters.text"])
    check_gradients(model, ["vectors", "deeper"])


def check_gradients(model: Any, names: list[str], texts: list[str] = TEXTS) -> None:
    """Each adapter's parameters against finite differences, at three places each."""

    def loss() -> torch.Tensor:
        p = pass_of(model, pixels(len(texts)), texts)
        return p["image.tokens"].pooled.sin().sum() + p["text.tokens"].pooled.cos().sum()

    model.zero_grad()
    loss().backward()
    for adapter in model.adapters.values():
        for name, p in adapter.named_parameters():
            if not any(name.startswith(n) for n in names):
                continue
            assert p.grad is not None and float(p.grad.abs().max()) > 0, name
            flat, grad = p.data.view(-1), p.grad.view(-1)
            for at in (0, len(flat) // 2, len(flat) - 1):
                values = []
                for step in (1e-5, -1e-5):
                    flat[at] += step
                    with torch.no_grad():
                        values.append(float(loss()))
                    flat[at] -= step
                assert float(grad[at]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8), (name, at)


@pytest.mark.parametrize("given", ["vision", "text"])
def test_as_many_blocks_as_there_are(given: str) -> None:
    with pytest.raises(DiptychError, match=rf"adapters\.{given}\.depth: 4 of 3 blocks; set depth to 3 or less"):
        made(f"adapters.{given}={{kind: prompt, tokens: 2, depth: 4}}")


# --- where the words stand ---


@pytest.mark.parametrize("position, ahead", [("end", 3), ("middle", 1), ("front", 0)])
@pytest.mark.parametrize("depth", [1, 2])
def test_words_stand_behind_between_or_before_the_vectors(position: str, ahead: int, depth: int) -> None:
    """The sequence is written in the order in which the tower shall read it; a causal tower sees what stands before."""
    setup = made(f"adapters.text={{kind: prompt, tokens: 3, position: {position}, depth: {depth}}}")
    model, adapter = setup.model, setup.model.adapters["text"]
    own: Any = [f64(adapter.vectors), *(f64(adapter.deeper) if depth > 1 else [])]
    read = encoded(model)[1]
    for k, text in enumerate(TEXTS):
        words = words_of(model, text)
        rows = [*range(1, 1 + ahead), *range(ahead + len(words) - 1, len(words) + 2)]  # of the vectors; [EOS] is last
        assert len(rows) == 3 and len(words) + 2 not in rows

        def edit(i: int, x: np.ndarray, rows: list[int] = rows) -> np.ndarray:
            if 0 < i < len(own):
                x = x.copy()
                x[rows] = own[i]
            return x

        x = np.concatenate([words[:1], own[0][:ahead], words[1:-1], own[0][ahead:], words[-1:]])
        x = blocks(model.parts["text"], x + places_of(model)[: len(x)], edit)
        np.testing.assert_allclose(read.tokens[k, : len(words)], np.delete(x, rows, 0), atol=1e-9)
        np.testing.assert_allclose(read.pooled[k], x[-1], atol=1e-9)


@pytest.mark.parametrize("kind", ["bert", "siglip", "transformer"])
@pytest.mark.parametrize("position", ["middle", "front"])
def test_other_towers_read_words_before_the_vectors(kind: str, position: str) -> None:
    """A tower that sees the whole text depends on the order by the positions alone: the rows of "end", with other positions."""
    given = [f"parts.text.kind={kind}"] + (["embed_dim=12"] if kind == "siglip" else [])
    setups = [made(*given, f"adapters.text={{kind: prompt, tokens: 2, position: {p}}}") for p in (position, "end")]
    moved, plain = (encoded(s.model, ["a red fox"] * 2)[1] for s in setups)
    assert moved.tokens.shape == plain.tokens.shape and not torch.allclose(moved.pooled, plain.pooled)
    text = setups[1].model.parts["text"]
    T = int(moved.mask.sum(1)[0])  # [BOS] words [EOS]: with 2 vectors, T + 2 places
    ahead = 1 if position == "middle" else 0
    order = [
        0,
        *range(1, 1 + ahead),
        *range(T - 1 + ahead, T + 1),
        *range(1 + ahead, T - 1 + ahead),
        T + 1,
    ]  # rows as "end" has them
    with torch.no_grad():
        text.positions[: T + 2] = text.positions[order].clone()  # type: ignore[operator, index]
    again = encoded(setups[1].model, ["a red fox"] * 2)[1]
    torch.testing.assert_close(moved.tokens[:, :T], again.tokens[:, :T])
    torch.testing.assert_close(moved.pooled, again.pooled)


@pytest.mark.parametrize("position, ahead", [("end", 2), ("front", 0)])
def test_a_class_token_reads_words_and_vectors(position: str, ahead: int) -> None:
    """It stands behind [EOS], without a position, wherever the vectors are."""
    kind = [f"parts.text.{o}" for o in ("kind=transformer", "causal=true", "pool=class", "activation=quick_gelu")]
    setup = made(*kind, f"adapters.text={{kind: prompt, tokens: 2, position: {position}}}")
    model, vectors = setup.model, f64(setup.model.adapters["text"].vectors)
    text: Any = model.parts["text"]
    read = encoded(model)[1]
    for k, caption in enumerate(TEXTS):
        words = words_of(model, caption)
        x = np.concatenate([words[:1], vectors[:ahead], words[1:-1], vectors[ahead:], words[-1:]])
        x = np.concatenate([x + places_of(model)[: len(x)], f64(text.class_token)[None]])
        np.testing.assert_allclose(read.pooled[k], blocks(text, x)[-1], atol=1e-9)


def test_a_vision_tower_has_no_words() -> None:
    with pytest.raises(DiptychError, match=r"adapters\.vision\.position: a vision tower has no words"):
        made("adapters.vision={kind: prompt, position: front}")


def test_two_prompts_in_one_text() -> None:
    """The later one stands nearer to [BOS]; behind the words, too."""
    setup = made(
        "adapters.a={kind: prompt, part: text, tokens: 2, position: middle}",
        "adapters.b={kind: prompt, part: text, tokens: 1, position: front}",
    )
    model = setup.model
    a, b = (f64(model.adapters[n].vectors) for n in "ab")
    read = encoded(model)[1]
    for k, text in enumerate(TEXTS):
        words = words_of(model, text)
        x = np.concatenate([words[:1], a[:1], words[1:-1], b, a[1:], words[-1:]])
        x = blocks(model.parts["text"], x + places_of(model)[: len(x)])
        np.testing.assert_allclose(read.pooled[k], x[-1], atol=1e-9)


def test_words_that_a_prompt_begins_with_are_those_of_the_run_that_it_starts_from(tmp_path: Path) -> None:
    """The tower's word vectors are loaded after the adapter was made."""
    from diptych.training.loop import train

    plain = tmp_path / "plain"
    train(load_recipe("clip", [*CLIP, "budget=8 samples", "stages.0.batch_size=8", "seed=3"]), plain)
    for kind in ("prompt", "maple", "cocoop"):
        setup = set_up(load_recipe("clip", [*CLIP, f"weights={plain}", f"adapters.text={{kind: {kind}, words: two red}}"]))
        ids, mask = setup.tokenizer.encode_batch(["two red"])
        embedding: Any = setup.model.parts["text"].embedding
        found: Any = setup.model.adapters["text"].vectors
        n = 2 if kind == "maple" else int(mask.sum()) - 2
        torch.testing.assert_close(
            (found[0] if kind == "maple" else found)[:n], embedding.weight[torch.from_numpy(ids[0, 1 : 1 + n])]
        )


# --- contexts of classes ---

NAMED = "adapters.text={kind: class_prompt, classes: [red_fox, cat], tokens: 2, template: 'a {}'"


@pytest.mark.parametrize("position, ahead", [("end", 2), ("middle", 1), ("front", 0)])
def test_classes_have_contexts_of_their_own_and_other_texts_none(position: str, ahead: int) -> None:
    model = made(f"{NAMED}, position: {position}}}").model
    vectors = f64(model.adapters["text"].vectors)
    read = encoded(model)[1]
    for k, (text, which) in enumerate(zip(TEXTS, (0, None, 1), strict=True)):
        x = words = words_of(model, text)
        if which is not None:
            v = vectors[which]
            x = np.concatenate([words[:1], v[:ahead], words[1:-1], v[ahead:], words[-1:]])
        x = blocks(model.parts["text"], x + places_of(model)[: len(x)])
        np.testing.assert_allclose(read.pooled[k], x[-1], atol=1e-9)
        rows = [] if which is None else [*range(1, 1 + ahead), *range(ahead + len(words) - 1, len(words) + 1)]
        np.testing.assert_allclose(read.tokens[k, : len(words)], np.delete(x, rows, 0), atol=1e-9)


def test_contexts_learn_from_their_own_class() -> None:
    model = made(f"{NAMED}}}").model
    model.train_only(["adapters.text"])
    model.train()
    pass_of(model, (), ["a cat", "a fox"])["text.tokens"].pooled.sin().sum().backward()
    grad: Any = model.adapters["text"].vectors.grad
    assert float(grad[1].abs().max()) > 0 and not grad[0].any()
    check_gradients(model, ["vectors"])
    with pytest.raises(DiptychError, match=r"adapters\.text: no text of this batch is one of its 2 classes.*template"):
        pass_of(model, (), ["cat", "a fox"])["text.tokens"]


def test_contexts_keep_their_classes_in_another_order() -> None:
    before = made(f"{NAMED}}}").model
    after = made("adapters.text={kind: class_prompt, classes: [cat, red fox], tokens: 2, template: 'a {}'}").model
    fresh = f64(after.adapters["text"].vectors).copy()
    after.load_state_dict(before.state_dict())
    np.testing.assert_array_equal(f64(after.adapters["text"].vectors), f64(before.adapters["text"].vectors)[::-1])
    torch.testing.assert_close(encoded(after)[1].pooled, encoded(before)[1].pooled)
    other = made("adapters.text={kind: class_prompt, classes: [cat, key], tokens: 2, template: 'a {}'}").model
    other.load_state_dict(before.state_dict())
    np.testing.assert_array_equal(f64(other.adapters["text"].vectors)[0], f64(before.adapters["text"].vectors)[1])
    np.testing.assert_array_equal(f64(other.adapters["text"].vectors)[1], fresh[1])  # a class that it did not have


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["adapters.text={kind: class_prompt, classes: [cat, cat]}"], r"classes: 'cat' and 'cat' have the same tokens"),
        (["adapters.vision={kind: class_prompt, classes: [cat]}"], r"a vision tower reads no class names"),
        (["adapters.text={kind: class_prompt, classes: [a b c d e f g], tokens: 29}"], r"29 prompt tokens leave no room"),
        (["parts.text.kind=siglip", "adapters.text={kind: class_prompt, classes: [cat]}"], r"with their padding.*kind: prompt"),
    ],
)
def test_classes_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(DiptychError, match=rf"adapters\.\w+.*{message}"):
        made(*overrides, *(["embed_dim=12"] if "siglip" in overrides[0] else []))


# --- MaPLe ---


def test_maple_maps_the_texts_vectors_to_the_images() -> None:
    setup = made("adapters.text={kind: maple, tokens: 2, depth: 2}")
    model, adapter = setup.model, setup.model.adapters["text"]
    assert setup.tokenizer.max_length == 32 - 2
    vectors: Any = f64(adapter.vectors)
    assert vectors.shape == (2, 2, 12)
    image, text = encoded(model)
    mapped = [linear(layer, v) for layer, v in zip(adapter.maps, vectors, strict=True)]  # type: ignore[arg-type]
    mapped[0] = normed(model.parts["vision"].norm, mapped[0])  # the norm before the first block is CLIP's

    def edit(own: Any) -> Any:
        return lambda i, x: np.concatenate([x[:1], own[i], x[3:]]) if i == 1 else x

    for k in range(3):
        x = patches_of(model, pixels()[k].numpy())
        x = blocks(model.parts["vision"], np.concatenate([x[:1], mapped[0], x[1:]]), edit(mapped))
        np.testing.assert_allclose(image.tokens[k], without(x, 1, 2), atol=1e-9)
        words = words_of(model, TEXTS[k])
        x = np.concatenate([words[:1], vectors[0], words[1:]])
        x = blocks(model.parts["text"], x + places_of(model)[: len(x)], edit(vectors))
        np.testing.assert_allclose(text.pooled[k], x[-1], atol=1e-9)


def test_gradients_of_the_image_reach_the_texts_vectors() -> None:
    model = made("adapters.text={kind: maple}", *(f"parts.{p}.frozen=true" for p in ("vision", "text"))).model
    model.train_only(["adapters.text"])
    assert not {"vision", "text"} & model.frozen and "vision" not in model.constant
    assert not any(p.requires_grad for part in ("vision", "text") for p in model.parts[part].parameters())
    pass_of(model, pixels())["image.tokens"].pooled.sin().sum().backward()
    grad: Any = model.adapters["text"].vectors.grad
    assert grad.abs().amax((1, 2)).min() > 0, "in every block"
    check_gradients(model, ["vectors", "maps"])


def test_maple_begins_as_in_the_paper() -> None:
    torch.manual_seed(0)
    deep = [f"parts.{p}.depth=12" for p in ("vision", "text")]
    setup = set_up(load_recipe("clip", [*CLIP, *deep, "adapters.text={kind: maple}"]))
    adapter: Any = setup.model.adapters["text"]
    ids, _ = setup.tokenizer.encode_batch(["a photo of a"])
    embedding: Any = setup.model.parts["text"].embedding
    torch.testing.assert_close(adapter.vectors[0], embedding.weight[torch.from_numpy(ids[0, 1:3])])
    assert len(adapter.vectors) == 9 and float(adapter.vectors[1:].detach().std()) == pytest.approx(0.02, rel=0.2)
    assert all(torch.equal(layer.weight, adapter.maps[1].weight) for layer in adapter.maps[2:])
    assert not torch.equal(adapter.maps[0].weight, adapter.maps[1].weight)


@pytest.mark.parametrize("kind", ["maple", "mmrl"])
def test_an_adapter_of_both_towers_is_the_texts(kind: str) -> None:
    with pytest.raises(DiptychError, match=r"adapters\.vision: it belongs to both towers; set it once, for parts\.text"):
        made(f"adapters.vision={{kind: {kind}}}")
    with pytest.raises(DiptychError, match=r"adapters\.text: parts\.vision \(EfficientNet\) has no place"):
        lean = [o for o in CLIP if not o.startswith("parts.vision")]
        set_up(load_recipe("clip", [*lean, "parts.vision={kind: efficientnet}", f"adapters.text={{kind: {kind}}}"]))


def test_a_teacher_copies_both_towers() -> None:
    """An averaged copy of the text tower alone would read the student's vectors in the other."""
    from diptych.models.teachers import averaged_teacher

    model = made("adapters.text={kind: maple}").model
    teacher = averaged_teacher(model, ["text"], 0.9, "teachers.ema")
    before = model.adapters["text"].vectors.detach().clone()
    with torch.no_grad():
        model.adapters["text"].vectors.add_(1.0)  # type: ignore[operator]
    assert {"vision", "text"} <= set(teacher.parts) and teacher.adapters["text"].part is teacher.parts["text"]
    assert teacher.adapters["text"].vision is teacher.parts["vision"]
    assert torch.equal(teacher.adapters["text"].vectors, before)
    side: Any = teacher.parts["vision"].prompts[0]  # type: ignore[index]
    assert side.adapter is teacher.adapters["text"] and side(1, torch.float64).shape == (1, 2, 16)
