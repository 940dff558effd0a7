"""SMAUG: patches and frames that are left out, and the rebuilding of hidden patches, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Texts, Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.models.build import SIZES, Build
from diptych.models.time.sparse import SparseClip, likeness_to_context
from diptych.models.vision.sparse import attention_to
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives

SIDE, PATCH, N = 16, 4, 16


def made(name="smaug", **more):
    overrides = {
        **{f"parts.vision.{k}": v for k, v in {"width": 24, "heads": 3, "hidden": 40, "patch": PATCH}.items()},
        **{f"parts.text.{k}": v for k, v in {"width": 24, "heads": 3, "depth": 1}.items()},
        "data.image_size": SIDE,
        **more,
    }
    recipe = load_recipe(name, overrides)
    torch.manual_seed(0)
    model = build_model(recipe, Tokenizer.train(["a red dog", "a blue cat"], 300, 16), SIDE)
    objectives = build_objectives(recipe, model)
    for p in [*model.part("vision").parameters(), *objectives.parameters()]:
        if p.ndim:
            torch.nn.init.normal_(p, std=0.3)
    return model, objectives


def clips(lengths=(4, 2, 3), seed=1):
    torch.manual_seed(seed)
    owner = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])
    return Videos(Images(torch.rand(len(owner), 3, SIDE, SIDE) * 2 - 1, owner), torch.zeros(len(owner)), owner)


# --- patches ---


def reference(tower, pixels, keep=None):
    """One frame at a time, head by head: class token and patches that are left, and which these are."""
    x = tower.stem(pixels[None]).flatten(2)[0].T
    places = list(range(N)) if keep is None else keep.tolist()
    x = x[places] + tower.positions[1:][places]
    x = torch.cat([tower.classes + tower.positions[:1], x])
    for i, block in enumerate(tower.transformer.blocks):
        if i in tower.layers:
            y = block.norm1(x)
            q, k = block.attention.q(y[0]), block.attention.kv(y)[:, : x.shape[1]]
            d = x.shape[1] // block.attention.heads
            total = np.zeros(len(x))
            for h in range(block.attention.heads):
                z = np.array([float(q[h * d : h * d + d] @ row[h * d : h * d + d]) / math.sqrt(d) for row in k])
                total += np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            order = sorted(range(1, len(x)), key=lambda j: -total[j])
            left = sorted(order[: max(1, round(tower.share * (len(x) - 1)))])
            x, places = x[[0, *left]], [places[j - 1] for j in left]
        x = block(x[None])[0]
    return tower.transformer.norm(x), places


@pytest.mark.parametrize("dropped", [False, True])
def test_the_tower_against_a_loop(dropped):
    tower, frames = made()[0].part("vision").double().eval(), clips().frames.pixels.double()
    keep = None
    if dropped:
        torch.manual_seed(2)
        keep = torch.stack([torch.randperm(N)[:10].sort().values for _ in frames])
    with torch.no_grad():
        found = tower(frames, keep)
        sizes = []
        for b in range(len(frames)):
            tokens, places = reference(tower, frames[b], None if keep is None else keep[b])
            torch.testing.assert_close(found.tokens[b], tokens, rtol=1e-8, atol=1e-8)
            assert found.places[b].tolist() == places
            sizes.append(len(places))
        torch.testing.assert_close(found.pooled, found.tokens[:, 0])
    assert set(sizes) == {4 if dropped else 6}  # 10 → 7 → 5 → 4, 16 → 11 → 8 → 6


def test_without_layers_it_is_the_plain_tower():
    model, _ = made(**{"parts.vision.layers": []})
    plain, _ = made("cosa", **{"parts.vision.depth": 4})
    plain.part("vision").load_state_dict(model.part("vision").state_dict())
    frames = clips().frames.pixels
    with torch.no_grad():
        found, expected = model.part("vision")(frames), plain.part("vision")(frames)
    torch.testing.assert_close(found.tokens, expected.tokens)
    assert found.places.tolist() == [list(range(N))] * len(frames)


def test_what_the_class_token_attends_to():
    model, _ = made()
    block = model.part("vision").transformer.blocks[0]
    x = torch.randn(2, 6, 24)
    with torch.no_grad():
        assert attention_to(block, x).shape == (2, 5)
        block.attention.kv.weight.zero_()
        torch.testing.assert_close(attention_to(block, x), torch.full((2, 5), 1 / 6))  # all alike, the class token too


# --- frames ---


def part(**options):
    torch.manual_seed(1)
    build = Build(SIZES["tiny"], 64, None)
    build.parts["vision"] = torch.nn.Module()
    build.parts["vision"].width = 8
    return SparseClip(build, frames=6, **options).double()


@pytest.mark.parametrize("by", ["typical", "distinct"])
@pytest.mark.parametrize("share", [0.5, 0.34, 1.0])
def test_frames_against_a_loop(by, share):
    lengths, made = (6, 1, 4, 3), part(by=by, share=share)
    torch.manual_seed(3)
    n = sum(lengths)
    frames = Tokens(torch.randn(n, 3, 8, dtype=torch.float64), torch.randn(n, 8, dtype=torch.float64))
    owner = torch.tensor([i for i, k in enumerate(lengths) for _ in range(k)])
    video = Videos(Images(torch.zeros(n, 3, 2, 2), owner), torch.zeros(n), owner)
    found = made.read(frames, video)
    assert found.tokens.shape == (4, 3 * math.ceil(6 * share), 8)
    start = 0
    for b, k in enumerate(lengths):
        own, vectors = frames.tokens[start : start + k], frames.pooled[start : start + k].numpy()
        start += k
        like = []
        for f in range(k):
            others = vectors[[g for g in range(k) if g != f]].sum(0)
            like.append(vectors[f] @ others / np.linalg.norm(vectors[f]) / max(np.linalg.norm(others), 1e-8))
        order = sorted(range(k), key=lambda f: -like[f] if by == "typical" else like[f])
        read = sorted(order[: math.ceil(share * k)])
        expected = torch.cat([own[f] + made.places[f] for f in read])
        assert found.mask[b].sum() == len(expected)
        torch.testing.assert_close(found.tokens[b, : len(expected)], expected)
        np.testing.assert_allclose(found.pooled[b].numpy(), vectors[read].mean(0), rtol=1e-9)


def test_likeness_of_frames():
    x = torch.tensor([[[1.0, 0], [1, 0], [0, 1]]])
    mask = torch.tensor([[True, True, True]])
    np.testing.assert_allclose(likeness_to_context(x, mask)[0].numpy(), [1 / math.sqrt(2), 1 / math.sqrt(2), 0], atol=1e-6)
    assert likeness_to_context(x, torch.tensor([[True, False, False]]))[0, 0] == 0


def test_all_frames_are_those_of_the_plain_part():
    from diptych.models.time.tokens import ClipTokens

    made = part(share=1.0)
    frames = Tokens(torch.randn(5, 3, 8).double(), torch.randn(5, 8).double())
    video = clips((3, 2))
    found, expected = made.read(frames, video), ClipTokens.read(made, frames, video)
    torch.testing.assert_close(found.tokens * found.mask[..., None], expected.tokens * expected.mask[..., None])
    torch.testing.assert_close(found.pooled, expected.pooled)


# --- hidden patches ---


@pytest.mark.parametrize("normalise", [True, False])
def test_rebuilding_against_a_loop(normalise):
    """Of a tower that leaves out patches, the decoder sees those that are left, and is judged by the hidden ones."""
    model, objectives = made(**{"stages.masked.objectives.masked_frames": {"weight": 1, "depth": 2, "normalise": normalise}})
    tower, objective, video = model.part("vision").eval(), objectives["masked_frames"], clips()
    torch.manual_seed(2)
    frames = len(video.frames)
    video.frames.keep = torch.stack([torch.randperm(N)[:8].sort().values for _ in range(frames)])
    with torch.no_grad():
        found = objective(model.encode(Batch({"video": video}, 3)))
        total = 0.0
        for f in range(frames):
            pixels, keep = video.frames.pixels[f], video.frames.keep[f].tolist()
            tokens, places = reference(tower, pixels, video.frames.keep[f])
            x = objective.token.expand(N, -1).clone()
            x[places] = objective.embed(tokens[1:])
            out = objective.head(objective.decoder((x + objective.positions)[None]))[0]
            for j in set(range(N)) - set(keep):
                row, column = divmod(j, SIDE // PATCH)
                cut = pixels[:, row * PATCH : row * PATCH + PATCH, column * PATCH : column * PATCH + PATCH].double().flatten()
                if normalise:
                    cut = (cut - cut.mean()) / (cut.var() + 1e-6).sqrt()
                total += ((out[j].double() - cut) ** 2).mean().item() / (N - 8) / frames
    assert found.item() == pytest.approx(total, rel=1e-5)
    assert objective.terms(model.encode(Batch({"video": video}, 3))) == frames


def test_gradient_of_rebuilding():
    model, objectives = made(**{"parts.vision.layers": []})
    objective, video = objectives["masked_frames"], clips((2,))
    video.frames.keep = torch.arange(8).expand(2, -1)
    weight = model.part("vision").stem.weight

    def loss():
        return objective(model.encode(Batch({"video": video}, 1)))

    (grad,) = torch.autograd.grad(loss(), weight)
    place = np.unravel_index(int(grad.abs().argmax()), grad.shape)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * 1e-2
            ends.append(loss().item())
            weight[place] -= sign * 1e-2
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(grad[place].item(), rel=5e-2)


def test_frames_are_encoded_once_for_all_objectives():
    """With the stage's patch dropout the visible patches serve all; without it the objective hides patches for itself."""
    model, objectives = made()
    model.train()
    tower, video, seen = model.part("vision"), clips((4, 4)), []
    tower.register_forward_hook(lambda module, inputs, output: seen.append(None if inputs[1] is None else inputs[1].shape[1]))
    ids = torch.tensor([[1, 9, 10, 2], [1, 11, 12, 2]])
    batch = Batch({"video": video, "text": Texts(ids, ids > 0, ("a", "b"))}, 2)
    for dropout, expected in ((0.65, [6]), (0.0, [None, 6])):
        seen.clear()
        model.set_training(dropout, False)
        p = model.encode(batch)
        for name in ("info_nce", "matching", "masked_words", "masked_frames"):
            assert torch.isfinite(objectives[name](p))
        assert seen == expected


def test_the_loss_falls():
    model, objectives = made(**{"parts.vision.depth": 2, "parts.vision.layers": [1], "parts.vision.keep": 0.9})
    video = clips((4, 4))
    video.frames.pixels[:] = (torch.arange(SIDE) % 4 / 2 - 0.75) * torch.rand(8, 1, 1, 1).sign()
    learning, losses = (
        torch.optim.AdamW([*model.part("vision").parameters(), *objectives["masked_frames"].parameters()], lr=3e-3),
        [],
    )
    for step in range(60):
        torch.manual_seed(step)
        losses.append(objectives["masked_frames"](model.encode(Batch({"video": video}, 2))))
        learning.zero_grad()
        losses[-1].backward()
        learning.step()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_what_does_not_fit_is_refused():
    for overrides, words in (
        ({"parts.vision.layers": [1, 4]}, "not different blocks of 4"),
        ({"parts.vision.layers": [1, 1]}, "not different blocks of 4"),
        ({"parts.vision.keep": 0}, "keep"),
        ({"parts.time.by": "first"}, "by"),
        ({"parts.vision": {"kind": "class", "layers": [1]}}, "unknown option 'layers'"),
        ({"stages.masked.objectives.masked_frames": {"weight": 1, "heads": 5}}, "of heads 5"),
    ):
        with pytest.raises(DiptychError, match=words):
            made(**overrides)


def test_patch_dropout_of_clips_is_refused_where_it_makes_no_sense():
    for name, words in (("videomae", "reads whole frames; set patch_dropout: 0"), ("videoprism", "reads the same patch of all")):
        recipe = load_recipe(name, {"data.image_size": 16})
        model = build_model(recipe, Tokenizer.train(["a red dog"], 300, 16), 16).train()
        model.set_training(0.5, False)
        with pytest.raises(DiptychError, match=words):
            model.encode(Batch({"video": clips((4, 4))}, 2))["video.tokens"]


@pytest.mark.parametrize("name", ["smaug", "smaug@whole"])
def test_it_trains_and_scores_clips(name, tmp_path):
    import diptych as dp
    from diptych.data.clips import clip_array
    from diptych.data.sources import open_source

    data = "scenes:clips?actions=all&size=32&concepts=6&colours=4&clip_frames=8"
    small = {f"stages.{i}.batch_size": 8 for i in range(2)} | {"precision": "fp32", "data.train": data}
    run = dp.train(name, budget="32 samples", out=tmp_path / "run", set=small)
    model = dp.load(run.path)
    assert {"embed_image", "embed_text", "score"} <= model.capabilities
    source = open_source(data).split("test")
    arrays = [clip_array(source[i].fields["video"], "c") for i in range(3)]
    scores = model.score(arrays, [source[i].captions[0] for i in range(2)])
    assert scores.shape == (3, 2) and np.isfinite(scores).all()


def test_the_variants_are_what_they_say():
    whole, all_visible = load_recipe("smaug@whole"), load_recipe("smaug@unsparsified")
    assert whole.parts["time"].options == {} and all_visible.parts["vision"].options["layers"] == []
    assert whole.stages[0].patch_dropout == 0 and "masked_frames" not in whole.stages[0].objectives
    assert all_visible.stages[0].patch_dropout == 0.65 and "masked_frames" in all_visible.stages[0].objectives
    assert load_recipe("smaug@distinct").parts["time"].options["by"] == "distinct"
