"""Flamingo's resampler against its formula in NumPy and against Idefics' class; clips whose frames have an order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diptych.benchmarks.run import evaluate
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Texts, Videos
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.inference.run import TrainedModel
from diptych.models.build import SIZES, Build
from diptych.models.connectors import CONNECTOR
from diptych.models.layers.attention import ACTIVATIONS
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives

WIDTH, HEADS, LATENTS, PATCHES = 12, 3, 5, 4


def made(**options: Any) -> Any:
    """A small resampler in float64 with weights of a size that shows every term."""
    torch.manual_seed(0)
    vision, lm = SimpleNamespace(width=WIDTH, tokens=PATCHES, extra=1), SimpleNamespace(width=7)
    parts: Any = {"vision": vision, "lm": lm}
    build = Build(SIZES["tiny"], 32, None, parts=parts, where="parts.connector")
    connector = CONNECTOR["resampler"](build, **{"tokens": LATENTS, "heads": HEADS, "depth": 2, "frames": 3, **options}).double()
    for p in connector.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return connector


def layer_norm(x: np.ndarray, module: Any) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scaled: np.ndarray = (x - mean) / np.sqrt(var + 1e-5) * module.weight.detach().numpy() + module.bias.detach().numpy()
    return scaled


def linear(x: np.ndarray, module: Any) -> np.ndarray:
    result: np.ndarray = x @ module.weight.detach().numpy().T + module.bias.detach().numpy()
    return result


def by_hand(connector: Any, clip: np.ndarray, times: np.ndarray) -> np.ndarray:
    """One clip [F, N, D] as appendix A.1.1 writes it: time embeddings [F, D] added, frames joined, then the layers."""
    x = (clip + times[:, None]).reshape(-1, WIDTH)
    latents = connector.latents.detach().numpy()
    for layer in connector.layers:
        own = layer_norm(latents, layer.norm_latents)
        keys = np.concatenate([layer_norm(x, layer.norm_image), own])
        q, kv = linear(own, layer.attention.q), linear(keys, layer.attention.kv)
        k, v = kv[:, :WIDTH], kv[:, WIDTH:]
        heads = []
        for h in range(HEADS):
            part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
            scores = q[:, part] @ k[:, part].T / np.sqrt(WIDTH // HEADS)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        latents = latents + linear(np.concatenate(heads, 1), layer.attention.out)
        inside = np.maximum(linear(layer_norm(latents, layer.norm), layer.mlp[0]), 0) ** 2
        latents = latents + linear(inside, layer.mlp[2])
    return linear(layer_norm(latents, connector.norm), connector.layer)


def test_clips_of_unlike_lengths_equal_the_formula() -> None:
    """Three clips of 2, 1 and 5 frames; the longest has more frames than there are time embeddings, which are spread over it."""
    connector, rng = made(), np.random.default_rng(1)
    lengths, e = [2, 1, 5], connector.time.detach().numpy()
    clips = [rng.normal(size=(n, PATCHES, WIDTH)) for n in lengths]
    times = [e[:2], e[:1], np.stack([e[0], (e[0] + e[1]) / 2, e[1], (e[1] + e[2]) / 2, e[2]])]
    frames = torch.tensor(np.concatenate(clips))
    frames = torch.cat([torch.zeros(len(frames), 1, WIDTH, dtype=torch.float64), frames], 1)  # a class token, which is not read
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    found = connector(frames, owner)
    for b in range(3):
        np.testing.assert_allclose(found[b].detach().numpy(), by_hand(connector, clips[b], times[b]), atol=1e-9)
    image = connector(frames[:1])  # an image is a clip of one frame
    np.testing.assert_allclose(image[0].detach().numpy(), by_hand(connector, clips[0][:1], e[:1]), atol=1e-9)


def test_only_time_embeddings_tell_the_order_of_frames() -> None:
    x = torch.randn(3, PATCHES + 1, WIDTH, dtype=torch.float64)
    owner = torch.zeros(3, dtype=torch.long)
    for frames, changes in ((3, True), (0, False)):
        connector = made(frames=frames)
        change = (connector(x, owner) - connector(x.flip(0), owner)).abs().max().item()
        assert (change > 1e-2) if changes else (change < 1e-12)


def test_its_gradient() -> None:
    connector = made(depth=1)
    owner = torch.tensor([0, 0, 1])
    x = torch.randn(3, PATCHES + 1, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: connector(v, owner).sum(2), (x,), atol=1e-6)
    time = connector.time
    time.grad = None
    connector(x, owner)[0].square().sum().backward()
    assert time.grad[:2].abs().sum() > 0 and bool((time.grad[2] == 0).all()), "no clip has a third frame"


def test_squared_relu() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert ACTIVATIONS["squared_relu"]()(x).tolist() == [0.0, 0.0, 9.0]


def test_the_defaults_are_those_of_the_paper() -> None:
    vision, lm = SimpleNamespace(width=16, tokens=4, extra=0), SimpleNamespace(width=8)
    connector = CONNECTOR["resampler"](Build(SIZES["tiny"], 32, None, parts={"vision": vision, "lm": lm}))  # type: ignore[dict-item]
    assert (connector.tokens, len(connector.layers), connector.layers[0].attention.heads) == (64, 6, 16)
    assert type(connector.layers[0].mlp[1]).__name__ == "SquaredReLU" and connector.time.shape == (8, 16)


def test_with_relu_and_without_time_it_equals_idefics() -> None:
    from transformers import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = IdeficsConfig(qk_layer_norms=False, vision_config={"embed_dim": WIDTH})
    config.perceiver_config.qk_layer_norms_perceiver = False
    theirs = IdeficsPerceiverResampler(config, WIDTH, 2, HEADS, WIDTH // HEADS, LATENTS).double()
    ours: Any = made(frames=0, activation="relu")
    ours.latents.data = theirs.latents.data
    for mine, (attention, mlp) in zip(ours.layers, theirs.blocks, strict=True):
        mine.norm_image.load_state_dict(attention.context_layer_norm.state_dict())
        mine.norm_latents.load_state_dict(attention.latents_layer_norm.state_dict())
        mine.norm.load_state_dict(mlp.ln.state_dict())
        a = attention
        pairs = [(mine.attention.q, a.q_proj.weight), (mine.attention.kv, torch.cat([a.k_proj.weight, a.v_proj.weight]))]
        pairs += [(mine.attention.out, a.output_proj.weight), (mine.mlp[0], mlp.fc.weight), (mine.mlp[2], mlp.c_proj.weight)]
        for layer, weight in pairs:
            layer.weight.data = weight.data
            layer.bias.data.zero_()
    ours.norm.load_state_dict(theirs.layer_norm.state_dict())
    x = torch.randn(2, PATCHES + 1, WIDTH, dtype=torch.float64)
    ours.layer = torch.nn.Identity()
    torch.testing.assert_close(ours(x), theirs(x[:, 1:]), atol=1e-10, rtol=1e-8)


CAPTIONS = ["a red fox moves left", "two green keys"]


def test_a_gated_language_model_reads_clips() -> None:
    """With ``fields: {image: video}`` words look at all frames of their clip; the cached form agrees with the plain one; order
    counts."""
    torch.manual_seed(0)
    small = ["parts.lm.kind=random", "parts.vision={kind: vit, depth: 1, frozen: true}", "parts.fusion={kind: gated, every: 1}"]
    clips = ["data.train=scenes:clips", "parts.lm.fields={image: video}"]
    recipe = load_recipe("flamingo", [*small, *clips, "parts.connector={kind: resampler, tokens: 4, depth: 1, frames: 4}"])
    model = build_model(recipe, None, 32, CAPTIONS)
    objectives: Any = build_objectives(recipe, model)
    for layer in model.part("fusion").layers:
        layer.alpha.data.fill_(1.0)
    torch.nn.init.normal_(model.part("connector").time)
    model.eval()
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(CAPTIONS))
    owner = torch.tensor([0, 0, 0, 1, 1])
    pixels = torch.rand(5, 3, 32, 32) * 2 - 1

    def batch(order: list[int]) -> Batch:
        video = Videos(Images(pixels[order], owner), torch.arange(5).float(), owner)
        return Batch({"video": video, "text": Texts(ids, mask)}, 2)

    forward, turned = batch([0, 1, 2, 3, 4]), batch([2, 1, 0, 3, 4])
    p = model.encode(forward)
    loss = objectives["next_token"](p)
    loss.backward()
    assert all(q.grad is not None for q in model.part("connector").parameters())
    with torch.no_grad():
        whole, other = model.encode(forward)["text.logits"], model.encode(turned)["text.logits"]
        assert (whole[0] - other[0]).abs().max() > 1e-3
        torch.testing.assert_close(whole[1], other[1])
        rows = torch.tensor([1, 0])
        pairs = model.encode(forward).pairs(video=rows, text=torch.arange(2))
        alone = model.part("lm").caption_logits(model.encode(forward)["video.prefix"][rows], ids, mask)
        real = mask[:, 1:]
        torch.testing.assert_close(pairs["text.logits"][real], alone[real], atol=1e-5, rtol=1e-5)


def of_clips(*more: str) -> TrainedModel:
    """An untrained flamingo with open gates and frames that differ by their time."""
    small = ["parts.lm.kind=random", "parts.vision={kind: vit, depth: 1}", "parts.fusion={kind: gated, every: 1}"]
    small += ["parts.connector={kind: resampler, tokens: 4, depth: 1, heads: 2}", "device=cpu", "precision=fp32"]
    recipe = load_recipe("flamingo", [*small, "parts.lm.fields={image: video}", *more])
    torch.manual_seed(0)
    model = build_model(recipe, None, 32, CAPTIONS)
    for layer in model.part("fusion").layers:
        layer.alpha.data.fill_(1.0)
    torch.nn.init.normal_(model.part("connector").time)
    return TrainedModel("m", recipe, model, build_objectives(recipe, model), torch.device("cpu"))


def test_a_model_of_clips_scores_and_describes_clips() -> None:
    """Its scores are those of the whole batch, frame by frame; the order of the frames counts, and a picture is one frame."""
    model, source = of_clips(), open_source("scenes:clips?size=32").split("test")
    clips, texts = [source[i].fields["video"] for i in range(3)], [source[i].captions[0] for i in range(3)]
    assert model.shows == "video" and not model.missing
    assert {"score", "loglikelihood", "generate"} <= model.capabilities and not {"embed_image"} & model.capabilities
    shown = [np.stack(clip.frames) for clip in clips]
    scores = model.score(shown, texts)
    ids, mask = (torch.from_numpy(x) for x in model.model.tokenizer.encode_batch(texts))
    pixels = torch.from_numpy(np.concatenate(shown)).permute(0, 3, 1, 2)
    owner = torch.arange(3).repeat_interleave(8)
    batch = Batch({"video": Videos(Images(pixels, owner), torch.zeros(24), owner), "text": Texts(ids, mask)}, 3)
    with torch.no_grad():
        logp = model.model.encode(batch)["text.logits"].double().log_softmax(-1)
    for i in range(3):
        real = range(1, int(mask[i].sum()))
        assert scores[i, i] == pytest.approx(sum(float(logp[i, t - 1, ids[i, t]]) for t in real), abs=1e-3)
    np.testing.assert_allclose(model.loglikelihood(shown, texts), scores.diagonal(), atol=1e-3)
    backwards = [clip[::-1].copy() for clip in shown]
    assert np.abs(model.score(backwards, texts) - scores).max() > 1e-3, "in another order"
    np.testing.assert_allclose(model.score([clip[0] for clip in shown], texts), model.score([c[:1] for c in shown], texts))
    two = of_clips("data.fields.video={kind: video, frames: 2}")
    np.testing.assert_allclose(two.score(shown, texts), two.score([c[[2, 6]] for c in shown], texts), atol=1e-5)
    assert len(model.generate(shown, max_tokens=3)) == 3


def test_a_model_of_clips_is_evaluated_on_clips() -> None:
    """What it is shown are the clips of the source; on pictures, a note says what it sees."""
    model, seen = of_clips(), []
    read = model._images
    model._images = lambda images: (seen.extend(np.shape(image) for image in images), read(images))[1]  # type: ignore[method-assign]
    tasks = ["retrieval?n=4", "captions?n=3&max_tokens=3", "controlled?n=2", "facts", "embedding"]
    found = evaluate(model, open_source("scenes:clips?size=32").split("test"), tasks)
    assert set(seen) == {(8, 32, 32, 3)} and not found.notes
    assert [s["task"] for s in found.skipped] == ["facts", "embedding"]
    assert {r.metric for r in found.results if r.task == "controlled" and "/" not in r.metric} == {"motion", "side", "order", "who"}
    pictures = evaluate(model, open_source("scenes:small").split("test"), ["zeroshot?n=4"])
    assert pictures.results and "as a clip of one frame" in pictures.notes[0]["note"]


@pytest.mark.parametrize("kind", ["mlp", "pooled"])
def test_a_connector_of_single_images_gives_nothing_of_a_clip(kind: str) -> None:
    """And says so, instead of reading the first frame only."""
    small = ["parts.lm.kind=random", "parts.vision={kind: vit, depth: 1}", f"parts.connector={{kind: {kind}}}"]
    recipe = load_recipe("llava", [*small, "parts.lm.fields={image: video}"])
    model = build_model(recipe, None, 32, CAPTIONS)
    with pytest.raises(DiptychError, match=r"nothing provides 'video\.prefix'"):
        build_objectives(recipe, model)
