"""GroupViT: parity with transformers, grouping against plain loops; heat maps of groups and of patches; the maximum of patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images
from diptych.core.errors import DiptychError
from diptych.data.fields.text import tokenized
from diptych.data.text import Tokenizer
from diptych.models.vision.grouping import Assignment, gumbel, one_hot_straight
from diptych.models.vlm import build_model
from plain_fixture import f64
from regions_fixture import PHRASES, batch_for, model_of

D = 32
CLIP_TEXT = "parts.text={kind: clip, width: 24, heads: 2, depth: 2, hidden: 40, activation: quick_gelu}"
TOWER = (
    "parts.vision={kind: groupvit, width: 32, heads: 2, hidden: 48, patch: 8, activation: gelu, depths: [2, 1, 1], "
    "group_tokens: [6, 4, 0], groups: [6, 4, 4]}"
)


def put(ours: nn.Module, theirs: nn.Module) -> None:
    """Copies weights and biases (and statistics) from modules of the same kind."""
    ours.load_state_dict(theirs.state_dict())


def put_attention(ours: Any, theirs: Any) -> None:
    put(ours.q, theirs.q_proj)
    put(ours.out, theirs.out_proj)
    with torch.no_grad():
        ours.kv.weight.copy_(torch.cat([theirs.k_proj.weight, theirs.v_proj.weight]))
        ours.kv.bias.copy_(torch.cat([theirs.k_proj.bias, theirs.v_proj.bias]))


def put_mlp(ours: Any, theirs: Any) -> None:
    put(ours[0], theirs.fc1)
    put(ours[2], theirs.fc2)


def put_block(ours: Any, theirs: Any) -> None:
    put(ours.norm1, theirs.layer_norm1)
    put(ours.norm2, theirs.layer_norm2)
    put_attention(ours.attention, theirs.self_attn)
    put_mlp(ours.mlp, theirs.mlp)


def exchanged(model: Any) -> torch.Tensor:
    """All ids, with [EOS] and the last one exchanged: their model takes an [EOS] of 2 for a sign of an old configuration."""
    ids = torch.arange(len(model.tokenizer))
    ids[[model.tokenizer.eos, -1]] = ids[[-1, model.tokenizer.eos]]
    return ids


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    """Our model and theirs, with the same random weights."""
    from transformers import GroupViTConfig, GroupViTModel

    torch.manual_seed(0)
    overrides = [TOWER, CLIP_TEXT, "parts.space={kind: deep, hidden: 20, norm: batch}", "embed_dim=16", "precision=fp32"]
    ours = build_model(load_recipe("groupvit", overrides), Tokenizer.train(PHRASES, 400, 16), 48).eval()
    vision = {
        "hidden_size": D, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 48, "patch_size": 8, "depths": [2, 1, 1],
        "num_hidden_layers": 4, "num_group_tokens": [6, 4, 0], "num_output_groups": [6, 4, 4], "hidden_act": "gelu",
    }  # fmt: skip
    text = {
        "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": len(ours.tokenizer),
        "max_position_embeddings": 16, "hidden_act": "quick_gelu", "eos_token_id": len(ours.tokenizer) - 1, "bos_token_id": ours.tokenizer.bos,
        "pad_token_id": ours.tokenizer.pad,
    }  # fmt: skip
    theirs = GroupViTModel(
        GroupViTConfig(text_config=text, vision_config=vision, projection_dim=16, projection_intermediate_dim=20)
    ).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():  # opinions: nothing uniform, every norm and bias at work
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim > 1 else 0.1) + ("norm" in name and name.endswith("weight")))
        for name, b in theirs.named_buffers():
            if "running" in name:
                b.copy_(torch.rand_like(b) + 0.5)
    tower, source = ours.part("vision"), theirs.vision_model
    put(tower.stem, source.embeddings.patch_embeddings.projection)
    put(tower.norm, source.embeddings.layernorm)
    put(tower.norm_out, source.layernorm)
    with torch.no_grad():
        tower.positions.copy_(source.embeddings.position_embeddings[0])
    for mine, other in zip(tower.stages, source.encoder.stages, strict=True):
        for a, b in zip(mine.blocks, other.layers, strict=True):
            put_block(a, b)
        if other.group_token is None:
            continue
        with torch.no_grad():
            mine.tokens.copy_(other.group_token[0])
        if other.group_projector is not None:
            put(mine.norm, other.group_projector[0])
            put_mlp(mine.carry, other.group_projector[1])
        a, b = mine.grouping, other.downsample
        for name, of in (
            ("norm_tokens", b.norm_tokens),
            ("norm_x", b.norm_x),
            ("norm_mixed", b.norm_post_tokens),
            ("norm_mlp", b.pre_assign_attn.norm2),
            ("norm_informed", b.pre_assign_attn.norm_post),
            ("norm_new", b.norm_new_x),
        ):
            put(getattr(a, name), of)
        put_mlp(a.mix, b.mlp_inter)
        put_attention(a.attention, b.pre_assign_attn.attn)
        put_mlp(a.mlp, b.pre_assign_attn.mlp)
        put_mlp(a.mlp_new, b.mlp_channels)
        for name, of in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "proj")):
            put(getattr(a.assignment, name), getattr(b.assign, of))
    words, source = ours.part("text"), theirs.text_model
    with torch.no_grad():
        words.embedding.weight.copy_(source.embeddings.token_embedding.weight[exchanged(ours)])
        words.positions.copy_(source.embeddings.position_embedding.weight)
    for a, b in zip(words.transformer.blocks, source.encoder.layers, strict=True):
        put_block(a, b)
    put(words.transformer.norm, source.final_layer_norm)
    for mine, other in ((ours.part("space").image, theirs.visual_projection), (ours.part("space").text, theirs.text_projection)):
        for k in (0, 1, 3):
            put(mine[k], other[k])
    return ours, theirs


def test_parity_with_transformers(both) -> None:
    ours, theirs = both
    batch = batch_for(ours, text=True)
    pixels, text = batch["image"].floats, batch["text"]
    with torch.no_grad():
        p = ours.encode(batch)
        out = theirs(
            input_ids=exchanged(ours)[text.ids], attention_mask=text.mask.long(), pixel_values=pixels, output_segmentation=True
        )
    torch.testing.assert_close(p["image.tokens"].tokens, out.vision_model_output.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(p["image.embedding"], out.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(p["text.embedding"], out.text_embeds, atol=1e-5, rtol=1e-5)
    scale = theirs.logit_scale.exp()
    maps = torch.nn.functional.interpolate(p["image.assignment"].unflatten(2, (6, 6)), size=(48, 48), mode="bilinear")
    cosines = torch.einsum("bge,te->bgt", p["image.token_embedding"], p["text.embedding"])
    expected = torch.einsum("bgt,bghw->bthw", cosines, maps) * scale**2
    torch.testing.assert_close(expected, out.segmentation_logits, atol=1e-3, rtol=1e-5)  # logits of order 100
    for b in range(2):  # ours is theirs on the grid of patches, before it is enlarged
        heat = torch.nn.functional.interpolate(p["text.heat"][b][None, None], size=(48, 48), mode="bilinear")[0, 0] * scale**2
        torch.testing.assert_close(heat, out.segmentation_logits[b, b], atol=1e-3, rtol=1e-5)


def test_assignment_equals_the_loops() -> None:
    torch.manual_seed(0)
    layer = Assignment(4).double().eval()
    groups, x = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    new, soft = layer(groups, x)
    q, k, v = (f64(m(y)) for m, y in ((layer.query, groups), (layer.key, x), (layer.value, x)))
    for b in range(2):
        logits = q[b] @ k[b].T / 2
        p = np.exp(logits) / np.exp(logits).sum(0)
        np.testing.assert_allclose(soft[b].detach().numpy(), p, atol=1e-12)
        chosen = p.argmax(0)
        for g in range(3):
            members = [v[b, n] for n in range(5) if chosen[n] == g]
            mean = np.sum(members, 0) / (len(members) + 1) if members else np.zeros(4)
            np.testing.assert_allclose(new[b, g].detach().numpy(), mean @ f64(layer.out.weight).T + f64(layer.out.bias), atol=1e-9)


def test_the_hard_choice_has_the_gradient_of_the_soft_one() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, dtype=torch.float64)
    hard = one_hot_straight(logits.softmax(-2))
    assert set(hard.detach().flatten().round(decimals=9).tolist()) == {0.0, 1.0} and (hard.sum(0) - 1).abs().max() < 1e-9
    (ours,) = torch.autograd.grad((hard * weights).sum(), logits)
    (soft,) = torch.autograd.grad((logits.softmax(-2) * weights).sum(), logits)
    torch.testing.assert_close(ours, soft)


def test_noisy_choices_follow_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20000, 3)
    shares = torch.bincount(gumbel(logits).argmax(1), minlength=3) / 20000
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.015, rtol=0)


def test_the_patches_of_an_image_are_shared_out_among_its_groups() -> None:
    model = model_of("groupvit", TOWER)
    p = model.encode(batch_for(model, text=True))
    members = p["image.assignment"]
    assert members.shape == (2, 4, 36) and p["text.heat"].shape == (2, 6, 6)
    torch.testing.assert_close(members.sum(1), torch.ones(2, 36))
    assert model.train().encode(batch_for(model))["image.tokens"].tokens.shape == (2, 4, D)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DiptychError, match=r"parts\.grounding.*kind: groupvit"):
        model_of("groupvit", "parts.vision={kind: vit}")
    with pytest.raises(DiptychError, match="an entry for each stage"):
        model_of("groupvit", TOWER, "parts.vision.groups=[8]")
    with pytest.raises(DiptychError, match="form a square of patches"):
        model_of("groupvit", TOWER, "parts.regions={kind: box_patches}")
    model = model_of("groupvit", TOWER)
    with pytest.raises(DiptychError, match="patch_dropout"):
        model.part("vision")(torch.zeros(1, 3, 48, 48), torch.zeros(1, 4, dtype=torch.long))


def test_clippy_takes_the_maximum_and_shows_where() -> None:
    model = model_of("clippy")
    batch = batch_for(model, text=True)
    p = model.encode(Batch({"image": Images(batch["image"].floats), "text": tokenized(model.tokenizer, PHRASES[:2])}, 2))
    tokens = f64(p["image.tokens"].tokens)
    np.testing.assert_allclose(
        f64(p["image.tokens"].pooled), [[tokens[b, :, d].max() for d in range(D)] for b in range(2)], atol=1e-6
    )
    weight, text = f64(model.part("space").image.weight), f64(p["text.embedding"])
    for b in range(2):
        for k in range(36):
            vector = weight @ tokens[b, k]
            expected = vector @ text[b] / np.linalg.norm(vector)
            assert float(p["text.heat"][b].flatten()[k].detach()) == pytest.approx(expected, abs=1e-5)
