"""Several towers as one (eagle, deepseek-vl): maps on one grid, channels joined, against NumPy and the layers of transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.core.errors import DiptychError
from diptych.models.build import SIZES, Build
from diptych.models.connectors.mlp import PerTower
from diptych.models.vision.joined import Joined, Neck, on_grid
from frozen_fixture import CAPTIONS, built, captioned, learned, parts_of, requested
from plain_fixture import f64, gelu, linear

FINE: dict[str, Any] = {"kind": "vit", "stem": "patch", "patch": 4, "width": 8, "depth": 1, "heads": 2}
CLASS: dict[str, Any] = {"kind": "class", "patch": 12, "width": 12, "depth": 1, "heads": 2, "side": 24}  # with a class token


def towers(image_size: int = 48, **more: Any) -> Any:
    torch.manual_seed(0)
    given = {"towers": {"fine": FINE, "coarse": CLASS}, **more}
    return Joined(Build(SIZES["tiny"], image_size, None, where="parts.vision"), **given).double().eval()


def pixels(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_each_place_has_the_channels_of_all_towers() -> None:
    own = towers(grid=4)
    found = own(pixels())
    assert found.tokens.shape == (2, 16, 20) and own.width == 20 and own.widths == [8, 12] and own.tokens == 16
    small = F.interpolate(pixels(), size=(24, 24), mode="bilinear", antialias=True)
    fine, coarse = own.towers["fine"](pixels()), own.towers["coarse"](small)
    a, b = f64(fine.tokens).reshape(2, 12, 12, 8), f64(coarse.tokens)[:, 1:].reshape(2, 2, 2, 12)
    # The finer map is averaged (three patches a side, and their neighbours with falling weights), the coarser one interpolated.
    ramp = np.array([1 - abs((p + 0.5) / 3 - 2.5) if abs((p + 0.5) / 3 - 2.5) < 1 else 0.0 for p in range(12)])
    share = ramp / ramp.sum()
    want = np.einsum("y,x,yxd->d", share, share, a[0])
    np.testing.assert_allclose(f64(found.tokens)[0, 2 * 4 + 2, :8], want, atol=1e-9)
    at = [min(max((i + 0.5) / 2 - 0.5, 0.0), 1.0) for i in range(4)]
    for y, x in ((0, 0), (1, 2), (3, 1)):
        s, t = at[y], at[x]
        mixed = (1 - s) * ((1 - t) * b[1, 0, 0] + t * b[1, 0, 1]) + s * ((1 - t) * b[1, 1, 0] + t * b[1, 1, 1])
        np.testing.assert_allclose(f64(found.tokens)[1, 4 * y + x, 8:], mixed, atol=1e-9)
    torch.testing.assert_close(found.pooled, torch.cat([fine.pooled, coarse.pooled], 1))
    keep = torch.tensor([[3, 0], [7, 15]])
    torch.testing.assert_close(own(pixels(), keep).tokens, torch.stack([found.tokens[b][keep[b]] for b in range(2)]))


def test_maps_that_fit_stay_as_they_are() -> None:
    x = torch.randn(2, 9, 5)
    assert on_grid(x, 3) is x


def test_neck_and_layers_are_those_of_transformers() -> None:
    from transformers import DeepseekVLHybridConfig
    from transformers.models.deepseek_vl_hybrid.modeling_deepseek_vl_hybrid import (
        DeepseekVLHybridAligner,
        DeepseekVLSamVisionProj,
    )

    torch.manual_seed(0)
    theirs = DeepseekVLSamVisionProj(SimpleNamespace(output_channels=6), output_size=3)
    ours = Neck(6, 3)
    ours.first.load_state_dict(theirs.conv1.state_dict())
    ours.second.load_state_dict(theirs.conv2.state_dict())
    x = torch.randn(2, 49, 6)
    want = theirs(torch.unflatten(x.transpose(1, 2), 2, (7, 7))).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours(x), want, atol=1e-6, rtol=1e-5)

    config = DeepseekVLHybridConfig()
    config.vision_config.hidden_size, config.high_res_vision_config.output_channels = 10, 6
    config.text_config.hidden_size = 16
    aligner = DeepseekVLHybridAligner(config)
    vision = SimpleNamespace(width=34, tokens=9, widths=[24, 10])
    parts: Any = {"vision": vision, "lm": SimpleNamespace(width=16)}
    own = PerTower(Build(SIZES["tiny"], 32, None, parts=parts))
    own.first[0].load_state_dict(aligner.high_res_vision_proj.state_dict())
    own.first[1].load_state_dict(aligner.vision_proj.state_dict())
    own.layer.load_state_dict(aligner.proj.state_dict())
    high, low = torch.randn(2, 9, 24), torch.randn(2, 9, 10)
    torch.testing.assert_close(own(torch.cat([high, low], 2)), aligner(low, high), atol=1e-6, rtol=1e-5)


def test_a_layer_for_each_tower_in_numpy_and_gradients() -> None:
    torch.manual_seed(0)
    vision = SimpleNamespace(width=11, tokens=4, widths=[6, 5])
    parts: Any = {"vision": vision, "lm": SimpleNamespace(width=7)}
    own = PerTower(Build(SIZES["tiny"], 32, None, parts=parts)).double()
    assert [layer.out_features for layer in own.first] == [4, 3]  # an odd width: the first gets one more
    x = torch.randn(2, 4, 11, dtype=torch.float64, requires_grad=True)
    whole = np.concatenate([linear(own.first[0], f64(x)[..., :6]), linear(own.first[1], f64(x)[..., 6:])], 2)
    np.testing.assert_allclose(f64(own(x)), linear(own.layer, gelu(whole)), atol=1e-9)
    assert torch.autograd.gradcheck(own, (x,))
    assert torch.autograd.gradcheck(towers(grid=4, towers={"fine": {**FINE, "neck": True}, "coarse": CLASS}).necks["fine"], (torch.randn(1, 9, 8, dtype=torch.float64, requires_grad=True),))  # fmt: skip


def test_a_frozen_tower_never_learns_but_its_neck_does() -> None:
    own = towers(towers={"fine": {**FINE, "neck": True, "frozen": True, "dropout": 0.5}, "coarse": CLASS}).train()
    assert not own.towers["fine"].training and own.towers["coarse"].training and own.grid == 2 and own.widths == [32, 12]
    own(pixels()).tokens.square().sum().backward()
    with_gradient = {n.split(".")[1] for n, p in own.named_parameters() if p.grad is not None and n.startswith("towers.")}
    assert with_gradient == {"coarse"} and all(p.grad is not None for p in own.necks.parameters())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"towers": {"one": FINE}}, r"parts\.vision: towers: 1 of them"),
        ({"towers": {"fine": {"width": 8}, "coarse": CLASS}}, r"parts\.vision\.towers\.fine: missing 'kind'"),
        ({"towers": {"fine": {**FINE, "dpeth": 2}, "coarse": CLASS}}, r"parts\.vision\.towers\.fine: unknown option 'dpeth'"),
        ({"towers": {"fine": {**FINE, "side": 2}, "coarse": CLASS}}, r"towers\.fine\.side: expected pixels from 16 on, got 2"),
        ({"towers": {n: {**FINE, "neck": True} for n in "ab"}}, "grid: every tower has a neck"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        towers(**given)


def test_a_connector_for_towers_needs_several() -> None:
    parts: Any = {"vision": SimpleNamespace(width=8, tokens=4), "lm": SimpleNamespace(width=8)}
    with pytest.raises(DiptychError, match="set parts.vision.kind: joined"):
        PerTower(Build(SIZES["tiny"], 32, None, parts=parts))


TWO = "parts.vision={kind: joined, towers: {smooth: {kind: vit, width: 8, depth: 1, heads: 2}, fine: {kind: vit, stem: patch, patch: 4, width: 8, depth: 1, heads: 2}}}"
FREE = "parts.lm={kind: random}"


def test_each_tower_writes_captions_alone_before_all_do() -> None:
    recipe, model, objectives = built("eagle", TWO, FREE)
    batch = captioned(model)
    each, text, lm = objectives["each_tower"], batch["text"], model.part("lm")
    p = model.eval().encode(batch)
    losses = []
    for k, own in enumerate(each.projectors):
        prefix = own(p["image.tokens"].tokens[..., 8 * k : 8 * k + 8])
        logits = lm.caption_logits(prefix, text.ids, text.mask)[text.mask[:, 1:]]
        losses.append(F.cross_entropy(logits, text.ids[:, 1:][text.mask[:, 1:]]))
    torch.testing.assert_close(each(p), sum(losses) / 2)
    both = batch.with_(**requested(model, ["what is there?"] * len(CAPTIONS), CAPTIONS).fields)
    wanted = [{"parts.vision"}, {"parts.connector"}, {"parts.vision", "parts.connector", "parts.lm"}]
    for stage, parts in enumerate(wanted):
        losses, changed = learned(recipe, model, objectives, both, stage, steps=8)
        assert losses[-1] < losses[0] and parts_of(changed) == parts, stage


def test_deepseek_vl_reads_words_alone_too() -> None:
    hybrid = TWO.replace("patch: 4, width", "patch: 4, neck: true, frozen: true, width")
    recipe, model, objectives = built("deepseek-vl", hybrid, FREE)
    both = captioned(model).with_(**requested(model, ["what is there?"] * len(CAPTIONS), CAPTIONS).fields)
    wanted = [{"parts.vision", "parts.connector"}, *[{"parts.vision", "parts.connector", "parts.lm"}] * 2]
    for stage, parts in enumerate(wanted):
        losses, changed = learned(recipe, model, objectives, both, stage, steps=8)
        assert losses[-1] < losses[0] and parts_of(changed) == parts, stage
        assert not any("towers.fine" in name for name in changed)
    weights = {n: o.weight for n, o in recipe.stages[1].objectives.items()}
    assert weights == {"next_token": 0.3, "words": 0.7}
    assert "text.blind_logits" in objectives["words"].needs


def test_a_single_tower_has_nothing_to_align_one_by_one() -> None:
    with pytest.raises(DiptychError, match="each_tower: the vision part is a single tower"):
        built("eagle", "parts.connector={kind: mlp}", FREE)
