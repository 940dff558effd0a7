"""CoCa in open_clip's geometry: outputs, losses and exports equal to open_clip's (after make bench-peers), and what must hold
without it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.data.fields.base import to_pixels
from diptych.data.text import Tokenizer
from diptych.inference.export import export
from diptych.inference.run import TrainedModel
from diptych.interop import families_of, family_for
from diptych.interop.base import state_of, to_ours, to_theirs
from diptych.interop.tokenizer import Vocabulary
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.training.loop import train
from engine_fixture import Little

CAPTIONS = ["a red fox", "two green keys to the left of a big yellow house and above it one more", "", "a blue heart"]
LENGTH = 16
KINDS = [f"parts.{part}={{kind: coca}}" for part in ("vision", "text", "decoder")]
SIZES = [
    *KINDS,
    *(f"parts.{part}.{size}" for part in ("vision", "text", "decoder") for size in ("depth=2", "heads=2")),
    "parts.vision.hidden=96",
    "parts.text.hidden=96",
    "parts.vision.width=48",
    "parts.vision.pooled_width=32",
    "parts.vision.queries=5",
    "parts.vision.pool_heads=4",
    "parts.vision.patch=16",
    "parts.text.width=32",
    "embed_dim=32",
    f"data.tokenizer.max_length={LENGTH}",
    "data.tokenizer.vocab_size=320",
    "precision=fp32",
    "trackers=[]",
]


def build(*overrides: str) -> tuple[Any, Any, Any]:
    recipe = load_recipe("coca", [*SIZES, *overrides])
    torch.manual_seed(0)
    model = build_model(recipe, Tokenizer.train(CAPTIONS, 320, LENGTH), 48).eval()
    objectives = build_objectives(recipe, model).eval()
    for p in model.parameters():  # norms and biases, too, are no ones and zeros
        p.data += 0.05 * torch.randn_like(p)
    return recipe, model, objectives


def pictures(n: int, size: int = 48) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(n)]


def read(model: Any, captions: list[str] = CAPTIONS, pad_to: int = LENGTH) -> Pass:
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(captions))
    ids, mask = (torch.nn.functional.pad(x, (0, pad_to - x.shape[1])) for x in (ids, mask))
    return model.encode(batch_of(to_pixels(pictures(len(captions))), ids, mask))


def normed(layer: Any, x: np.ndarray) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return x * f64(layer.weight) + f64(layer.bias)


def f64(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ f64(layer.weight).T + f64(layer.bias)


def mlp(layers: Any, x: np.ndarray) -> np.ndarray:
    x = linear(layers[0], x)
    return linear(layers[2], x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)


def attended(layer: Any, x: np.ndarray, context: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Row by row; seen [L, S] bool."""
    width, d = x.shape[1], x.shape[1] // layer.heads
    q, kv = linear(layer.q, x), linear(layer.kv, context)
    out = np.zeros_like(q)
    for h in range(layer.heads):
        at = slice(h * d, (h + 1) * d)
        for i in range(len(x)):
            logits = kv[seen[i], :width][:, at] @ q[i, at] / math.sqrt(d)
            weights = np.exp(logits - logits.max())
            out[i, at] = weights / weights.sum() @ kv[seen[i], width:][:, at]
    return linear(layer.out, out)


def test_the_two_halves_equal_the_reference() -> None:
    """One text at a time, in float64: the class token reads all words, the upper half the words so far and the pooled image."""
    _, model, _ = build()
    p = read(model)
    text, decoder, pool = model.part("text"), model.part("decoder"), model.part("vision").read
    patches = super(type(model.part("vision")), model.part("vision")).forward(p["image"].floats).tokens
    for i in range(len(CAPTIONS)):
        n = int(p["text"].mask[i].sum())
        x = np.concatenate([f64(text.embedding(p["text"].ids[i])), f64(text.class_token)[None]]) + f64(text.positions)
        seen = np.tril(np.ones((LENGTH + 1, LENGTH + 1), dtype=bool))
        seen[:, n + 1 :] = False  # the words, and the first place of the padding: open_clip's mask
        for block in text.transformer.blocks:
            h = normed(block.norm1, x)
            x = x + attended(block.attention, h, h, seen)
            x = x + mlp(block.mlp, normed(block.norm2, x))
        np.testing.assert_allclose(f64(p["text.tokens"].tokens[i, :n]), x[:n], atol=1e-5)
        np.testing.assert_allclose(f64(p["text.tokens"].pooled[i]), normed(text.transformer.norm, x[-1]), atol=1e-5)
        image = normed(pool.norm, f64(patches[i]))
        queries = normed(pool.norm_queries, f64(pool.queries))
        image = normed(pool.norm_out, attended(pool.attention, queries, image, np.ones((5, len(image)), dtype=bool)))
        np.testing.assert_allclose(f64(p["image.tokens"].pooled[i]), image[0], atol=1e-5)
        y, image = x[:n], image[1:]
        for block in decoder.transformer.blocks:
            h = normed(block.norm1, y)
            y = y + attended(block.attention, h, h, np.tril(np.ones((n, n), dtype=bool)))
            y = y + mlp(block.mlp, normed(block.norm2, y))
            looked = attended(
                block.cross, normed(block.norm_cross, y), normed(block.cross.norm, image), np.ones((n, 4), dtype=bool)
            )
            y = y + looked
            y = y + mlp(block.mlp_cross, normed(block.norm_mlp, y))
        logits = normed(decoder.transformer.norm, y) @ f64(decoder.output.weight).T
        np.testing.assert_allclose(f64(p["text.logits"][i, : n - 1]), logits[:-1], atol=1e-5)


def test_padding_changes_nothing_and_a_later_word_only_what_comes_after_it() -> None:
    _, model, _ = build()
    short, full = read(model, CAPTIONS[:1], 8), read(model, CAPTIONS[:1])
    torch.testing.assert_close(short["text.embedding"], full["text.embedding"], atol=1e-6, rtol=0)
    torch.testing.assert_close(short["text.logits"], full["text.logits"][:, :7], atol=1e-5, rtol=0)
    ids = full["text"].ids.clone()
    ids[0, 3] = 70
    other = full.view(text=replace(full["text"], ids=ids))
    torch.testing.assert_close(other["text.logits"][:, :3], full["text.logits"][:, :3], atol=1e-6, rtol=0)
    assert (other["text.logits"][:, 3] - full["text.logits"][:, 3]).abs().max() > 1e-3
    assert (other["text.embedding"] - full["text.embedding"]).abs().max() > 1e-3


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    little = Little("coca", *KINDS, "parts.vision.queries=5", "parts.vision.pooled_width=32", "parts.decoder.heads=2")
    whole, pieces = little.gradients(None), little.gradients(4)
    for name, gradient in whole.items():
        assert (pieces[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def test_what_does_not_fit_is_named() -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises(DiptychError) as error:
            family_for("open_clip", *build(*overrides))
        return str(error.value)

    plain = load_recipe("coca")
    model = build_model(plain, Tokenizer.train(CAPTIONS, 320, LENGTH), 48)
    with pytest.raises(DiptychError) as error:
        family_for("open_clip", plain, model, build_objectives(plain, model))
    remedies = " ".join(f"--set 'parts.{part}={{kind: coca}}'" for part in ("vision", "text", "decoder"))
    assert f"A new run fits with {remedies}" in str(error.value)
    assert "shared space 24. A new run fits with --set embed_dim=32" in refused("embed_dim=24")
    assert "activations are gelu, quick_gelu" in refused("parts.text.activation=quick_gelu")
    with pytest.raises(DiptychError, match="parts.decoder: needs a text tower of its kind; set parts.text.kind: coca"):
        build("parts.text={kind: transformer, causal: true}")


# --- beside open_clip ---


@pytest.fixture(scope="module")
def open_clip() -> Any:
    from bench.peers import MissingPeer
    from bench.peers import open_clip as peer

    try:
        return peer()
    except MissingPeer as missing:
        pytest.skip(str(missing))


def of_theirs(open_clip: Any, vocabulary: int, pooled_as_wide: bool, quick: bool) -> Any:
    torch.manual_seed(0)
    width = 32 if pooled_as_wide else 48
    tower = {"layers": 2, "mlp_ratio": 96 / 32}
    text = {**tower, "width": 32, "heads": 2, "context_length": LENGTH, "vocab_size": vocabulary, "pad_id": 0}
    seen = {**tower, "width": width, "head_width": width // 2, "mlp_ratio": 2.0 if width == 48 else 3.0, "image_size": 48}
    pool = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4, "output_tokens": True, "patch_size": 16}
    model = open_clip.CoCa(
        embed_dim=32,
        vision_cfg={**seen, **pool},
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        multimodal_cfg=text,
        quick_gelu=quick,
    ).eval()
    for p in model.parameters():  # one matrix is left as it lay in memory
        p.data = torch.randn_like(p) * 0.15 + (1 if p.ndim == 1 else 0)
    model.logit_scale.data.fill_(2.5)
    return model


@pytest.mark.parametrize(("pooled_as_wide", "quick"), [(False, False), (True, True)])
def test_outputs_losses_and_gradients_equal_open_clips(open_clip: Any, pooled_as_wide: bool, quick: bool) -> None:
    """Needs make bench-peers."""
    act = [f"parts.{part}.activation=quick_gelu" for part in ("vision", "text", "decoder")] if quick else []
    recipe, model, objectives = build(*act, *(["parts.vision.width=32"] if pooled_as_wide else []))
    theirs = of_theirs(open_clip, len(model.tokenizer), pooled_as_wide, quick)
    family = family_for("open_clip", recipe, model, objectives)
    assert family.architecture == "CoCa"
    entries, state = family.entries(model, objectives), state_of(model, objectives)
    found = to_ours(theirs.state_dict(), entries, {k: v.shape for k, v in state.items()})
    assert set(found) == set(state)  # everything, and nothing else
    model.load_state_dict({k: v for k, v in found.items() if not k.startswith("objectives.")})
    objectives.load_state_dict({k.removeprefix("objectives."): v for k, v in found.items() if k.startswith("objectives.")})
    back = to_theirs(state_of(model, objectives), entries)
    assert set(back) == set(theirs.state_dict())
    assert all(torch.equal(back[name], value) for name, value in theirs.state_dict().items())

    p = read(model)
    out = theirs(p["image"].floats, p["text"].ids)
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(p["image.embedding"], out["image_features"], **close)
    torch.testing.assert_close(p["text.embedding"], out["text_features"], **close)
    real = p["text"].mask[:, :-1]
    torch.testing.assert_close(p["text.logits"][real], out["logits"][real], **close)
    del out["logit_scale"]
    losses = open_clip.loss.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(**out, logit_scale=theirs.logit_scale.exp())
    ours = [objectives["info_nce"](p), 2 * objectives["next_token"](p)]
    for mine, other in zip(ours, losses, strict=True):
        torch.testing.assert_close(mine, other, **close)
    sum(ours).backward()
    sum(losses).backward()
    grads = {k: v.grad for k, v in {**dict(model.named_parameters()), **named(objectives)}.items()}
    for name, g in to_theirs(grads, entries).items():
        other = theirs.get_parameter(name).grad
        torch.testing.assert_close(g, other, atol=1e-5 * max(1.0, other.abs().max().item()), rtol=0, msg=name)


def named(objectives: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"objectives.{k}": v for k, v in objectives.named_parameters()}


def test_an_exported_run_computes_the_same_in_open_clip(open_clip: Any, tmp_path: Path) -> None:
    """Needs make bench-peers."""
    recipe = load_recipe("coca", [*SIZES, "budget=64 samples", "stages.0.batch_size=16", "stages.0.ema=0.5"])
    train(recipe, tmp_path / "run")
    ours = TrainedModel.load(tmp_path / "run", "cpu")
    made = export(tmp_path / "run", "open_clip", tmp_path / "export")
    assert made.architecture == "CoCa"
    address = f"local-dir:{made.path}"
    model, tokenise = open_clip.create_model(address).eval(), open_clip.get_tokenizer(address)
    assert type(model).__name__ == "CoCa"
    images = pictures(len(CAPTIONS), ours.model.image_size)
    ids = tokenise(CAPTIONS)
    with torch.no_grad():
        out = model(to_pixels(images), ids)
    np.testing.assert_allclose(out["image_features"], ours.embed_image(images), atol=1e-5)
    np.testing.assert_allclose(out["text_features"], ours.embed_text(CAPTIONS), atol=1e-5)
    assert "log P(caption | image)" in (made.path / "README.md").read_text()
    logp = -torch.nn.functional.cross_entropy(out["logits"].transpose(1, 2), out["labels"], reduction="none", ignore_index=0)
    np.testing.assert_allclose(logp.sum(1), ours.loglikelihood(images, CAPTIONS), atol=1e-4)


def test_every_family_of_a_format_is_known() -> None:
    assert [f.architecture for f in families_of("open_clip")] == ["CLIP", "CoCa"]
    assert Vocabulary(Tokenizer.train(CAPTIONS, 320, LENGTH), families_of("open_clip")[1].end_last).order[:3] == [0, 1, 2]
