"""Pictures at their own size: sizes, positions, packing and the alignment loss against transformers and plain NumPy."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Texts
from diptych.core.errors import DiptychError
from diptych.data.fields.tiles import collated_pictures
from diptych.data.tiles.native import Fitting, Native, native_size
from diptych.models.build import SIZES, Build
from diptych.models.connectors.merging import NativeMerge
from diptych.models.layers.ragged import Ragged
from diptych.models.vision.native import NativeViT, packed, rotations_2d, rows_and_columns
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.language.prototypes import prototype_loss

TOWER: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "hidden": 48, "patch": 8}


def tower(**more: Any) -> NativeViT:
    torch.manual_seed(0)
    part = NativeViT(Build(SIZES["tiny"], 32, None), **(TOWER | more))
    with torch.no_grad():
        for p in part.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return part.eval()


def pictures(*shapes: tuple[int, int]) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (*s, 3), dtype=np.uint8) for i, s in enumerate(shapes)]


def test_sizes_are_those_of_qwen2_vl() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rng = random.Random(0)
    for _ in range(300):
        height, width = rng.randint(20, 900), rng.randint(20, 900)
        least, most = rng.choice([(28 * 28 * 4, 28 * 28 * 400), (28 * 28 * 16, 28 * 28 * 32)])
        assert native_size(height, width, 28, least, most) == smart_resize(height, width, 28, least, most)


def test_the_tower_without_rotations_is_siglips_at_any_size() -> None:
    """At its own size, and with positions interpolated to another."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    own = tower(rotary=False, activation="gelu_tanh", pool="map")
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = SiglipVisionModel(config).eval()
    inner = getattr(theirs, "vision_model", theirs)
    with torch.no_grad():
        inner.embeddings.patch_embedding.weight.copy_(own.stem.weight)  # type: ignore[arg-type]
        inner.embeddings.patch_embedding.bias.copy_(own.stem.bias)  # type: ignore[arg-type]
        inner.embeddings.position_embedding.weight.copy_(own.positions)
        for mine, other in zip(own.transformer.blocks, inner.encoder.layers, strict=True):
            a: Any = mine
            k, v = a.attention.kv.weight.chunk(2), a.attention.kv.bias.chunk(2)
            for layer, weight, bias in (
                (other.self_attn.q_proj, a.attention.q.weight, a.attention.q.bias), (other.self_attn.k_proj, k[0], v[0]),
                (other.self_attn.v_proj, k[1], v[1]), (other.self_attn.out_proj, a.attention.out.weight, a.attention.out.bias),
                (other.layer_norm1, a.norm1.weight, a.norm1.bias), (other.layer_norm2, a.norm2.weight, a.norm2.bias),
                (other.mlp.fc1, a.mlp[0].weight, a.mlp[0].bias), (other.mlp.fc2, a.mlp[2].weight, a.mlp[2].bias),
            ):  # fmt: skip
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        inner.post_layernorm.weight.copy_(own.transformer.norm.weight)
        inner.post_layernorm.bias.copy_(own.transformer.norm.bias)
        for shape in [(32, 32), (24, 56), (48, 16)]:
            pixels = torch.randn(2, 3, *shape)
            want = theirs(pixel_values=pixels, interpolate_pos_encoding=shape != (32, 32)).last_hidden_state
            torch.testing.assert_close(own(pixels).tokens, want, atol=1e-5, rtol=1e-5)


def test_rotations_are_those_of_qwen2_vls_tower() -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    from diptych.models.layers.rotary import turn

    places = torch.from_numpy(rows_and_columns(3, 5))
    frequency = 10_000.0 ** (-torch.arange(0, 8, 2).float() / 8)  # of heads 16 wide
    angles = torch.stack([torch.cat([r * frequency, c * frequency]) for r, c in places.tolist()])
    emb = torch.cat([angles, angles], -1)
    q, k = torch.randn(2, 15, 4, 16)
    want = apply_rotary_pos_emb_vision(q, k, emb.cos(), emb.sin())
    cos, sin = rotations_2d(places, 16, 10_000.0)
    for x, there in zip((q, k), want, strict=True):
        torch.testing.assert_close(turn(x.transpose(0, 1), cos, sin).transpose(0, 1), there, atol=1e-5, rtol=1e-5)
    # What counts is how far two patches are apart.
    a, b = torch.randn(2, 16)
    at = rotations_2d(torch.tensor([[0, 1], [2, 5], [3, 1], [5, 5]]), 16, 10_000.0)
    turned = [[turn(x[None, None, None], c, s).flatten() for x in (a, b)] for c, s in zip(*at, strict=True)]
    torch.testing.assert_close(turned[0][0] @ turned[1][1], turned[2][0] @ turned[3][1], atol=1e-4, rtol=1e-4)


def test_packed_pictures_do_not_see_each_other() -> None:
    part = tower()
    images = pictures((64, 64), (16, 32), (32, 16), (16, 16), (48, 32))
    batch = Native.of(images)
    with torch.no_grad():
        together = part.encode(batch)
        assert together.mask is not None
        for i, image in enumerate(images):
            alone = part.encode(Native.of([image]))
            torch.testing.assert_close(together.tokens[i][together.mask[i]], alone.tokens[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(together.pooled[i], alone.tokens[0].mean(0), atol=1e-5, rtol=1e-5)
        square = part.encode(Images(torch.from_numpy(images[0]).permute(2, 0, 1)[None]))
        torch.testing.assert_close(square.tokens[0], together.tokens[0], atol=1e-5, rtol=1e-5)
        other = tower(rotary=False)
        assert (other.encode(batch).tokens - together.tokens).abs().max() > 1e-3, "the rotations matter"
    place = packed([4, 1, 2], [[0], [1, 2]], 4)
    assert place.tolist() == [[0, 1, 2, 3], [4, 5, 6, -1]]
    joined = Native.cat([Native.of(images[:2]), Native.of(images[2:])], [0, 2])
    assert torch.equal(joined.pixels, batch.pixels) and torch.equal(joined.sizes, batch.sizes)


def test_gradients_reach_positions_and_every_picture() -> None:
    part = tower(depth=1).double()
    pixels = torch.randn(2, 3, 32, 24, dtype=torch.double, requires_grad=True)
    part.read(pixels, [(4, 3), (2, 2)]).tokens.sin().sum().backward()
    assert pixels.grad is not None and pixels.grad[0].abs().min() > 0
    assert pixels.grad[1, :, :16, :16].abs().min() > 0 and not pixels.grad[1, :, 16:].any(), "padding is not read"
    for p in (part.positions, part.stem.weight, part.transformer.blocks[0].attention.q.weight):  # type: ignore[union-attr]
        grad: Any = p.grad
        place, values = int(grad.abs().argmax()), []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                p.view(-1)[place] += step  # type: ignore[operator]
                values.append(float(part.read(pixels, [(4, 3), (2, 2)]).tokens.sin().sum()))
                p.view(-1)[place] -= step  # type: ignore[operator]
        assert float(grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


class Words(torch.nn.Module):
    width = 12


def test_the_merger_is_qwen2_vls() -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger

    part = tower()
    own = NativeMerge(Build(SIZES["tiny"], 32, None, parts={"vision": part, "lm": Words()}))
    theirs = PatchMerger(12, 32)
    with torch.no_grad():
        theirs.ln_q.load_state_dict(own.norm.state_dict())
        theirs.mlp.load_state_dict(own.layers.state_dict())
        images = Native.of(pictures((16, 48), (32, 32)))
        tokens = part.encode(images)
        found = own.prefix(images, tokens)
        assert isinstance(found, Ragged) and found.counts.tolist() == [3, 4]
        for i, (rows, columns) in enumerate([(2, 6), (4, 4)]):
            grid = tokens.tokens[i, : rows * columns].view(rows // 2, 2, columns // 2, 2, 32).transpose(1, 2).reshape(-1, 32)
            torch.testing.assert_close(found.tokens[i][found.mask[i]], theirs(grid), atol=1e-5, rtol=1e-5)
    assert own.count(pictures((16, 48))[0]) == 3
    with pytest.raises(DiptychError, match=r"multiple to 16"):
        odd = Native.of(pictures((8, 16)))
        own.prefix(odd, part.encode(odd))


def test_the_alignment_loss_is_the_authors_formula() -> None:
    """With Sinkhorn's rounds written out, in float64."""
    rng = np.random.default_rng(0)
    image, caption, words = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), rng.normal(size=(7, 5))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    frequency = rng.dirichlet(np.ones(7))
    prior = np.exp(frequency / 0.05) / np.exp(frequency / 0.05).sum()

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    q = np.exp(unit(caption) @ words.T / 0.1).T  # [K, B]
    for _ in range(3):
        q *= prior[:, None]
        q /= q.sum(0)
        q /= 3
    q *= 3
    logits = unit(image) @ words.T / 0.2
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    want = -(q.T * log_p).sum(1).mean()
    given = [torch.from_numpy(x) for x in (image, caption, words, prior)]
    assert float(prototype_loss(*given, 0.2, 0.1, 3)) == pytest.approx(want, rel=1e-9)
    given[0].requires_grad_()
    given[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: prototype_loss(x, *given[1:], 0.2, 0.1, 3), (given[0],))
    prototype_loss(*given, 0.2, 0.1, 3).backward()
    assert given[1].grad is None, "captions get no gradient"


def test_comp_learns_in_its_stages() -> None:
    torch.manual_seed(0)
    small = ["parts.vision={kind: native, patch: 8, width: 16, depth: 1, heads: 2}", "parts.lm={kind: random}", "backbones={}",
             "data.image_size=32"]  # fmt: skip
    recipe = load_recipe("comp", small)
    said = ["a red fox", "two small blue keys above the house", "three green hearts"]
    model = build_model(recipe, None, 32, said)
    objectives = build_objectives(recipe, model).train()
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(said))
    shown = collated_pictures(pictures((40, 40), (20, 60), (64, 32)), 32, model.own_fields)
    batch = Batch({"image": shown, "text": Texts(ids, mask)}, 3)
    model.train_only(recipe.stages[0].train)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning and all(n.startswith("parts.connector") for n in learning)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    losses = []
    for _ in range(12):
        p = model.encode(batch)
        aligned = objectives["prototype_alignment"](p)
        loss = objectives["next_token"](p) + 0.05 * aligned
        losses.append((float(loss.detach()), float(aligned.detach())))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1][0] < losses[0][0] - 0.05 and losses[-1][1] < losses[0][1]
    counts = objectives["prototype_alignment"].counts
    assert counts.sum() == 12 * int(mask.sum())  # type: ignore[operator, union-attr]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(DiptychError, match="multiple"):
        Fitting(multiple=64, most=100)
    with pytest.raises(DiptychError, match="do not divide by 4"):
        tower(width=12, heads=2)
    with pytest.raises(DiptychError, match="multiples of the tower's patch"):
        tower().encode(Native.of(pictures((30, 32))))
