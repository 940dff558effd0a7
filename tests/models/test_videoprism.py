"""VideoPrism: its tower and pooling against the classes of transformers, its distillation against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.models.layers.capped import CappedAttention, WidePool
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.video.distilled import cosine_distance, slots_of
from diptych.training.start.teachers import add_teachers

SIDE, PATCH, FRAMES, N = 16, 4, 4, 16
SIZES = {"width": 24, "depth": 2, "heads": 3, "hidden": 40}


def made(cap=0.5, **more):
    """The recipe's model and objectives with weights that are far from their first ones."""
    overrides = {
        **{f"parts.vision.{k}": v for k, v in {**SIZES, "patch": PATCH, "cap": cap}.items()},
        **{f"parts.time.{k}": v for k, v in {"heads": 3, "hidden": 40, "frames": FRAMES, "cap": cap}.items()},
        **{f"parts.space.{k}": v for k, v in {"heads": 4, "hidden": 40, "joint": 2, "cap": cap}.items()},
        "parts.text.depth": 1,
        "data.image_size": SIDE,
        "embed_dim": 10,
        **{f"stages.masked.objectives.masked_distillation.{k}": v for k, v in {"width": 12, "heads": 2, **more}.items()},
    }
    recipe = load_recipe("videoprism", overrides)
    torch.manual_seed(0)
    model = build_model(recipe, Tokenizer.train(["a red dog", "a blue cat"], 300, 16), SIDE)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    add_teachers(recipe, model)
    model.update_teachers(0)
    objectives = build_objectives(recipe, model)
    for p in objectives.parameters():
        if p.ndim:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval(), objectives.eval()


def clips(lengths=(4, 4, 4), seed=1):
    torch.manual_seed(seed)
    owner = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])
    return Videos(Images(torch.rand(len(owner), 3, SIDE, SIDE) * 2 - 1, owner), torch.zeros(len(owner)), owner)


def theirs(heads=3, cap=0.5):
    """A VideoPrismVideoModel with random weights, pooling heads as ours: a divisor of the width and of the hidden width."""
    from transformers import VideoPrismVideoModel, VideoPrismVisionConfig

    config = VideoPrismVisionConfig(
        image_size=SIDE, num_frames=FRAMES, tubelet_size=[1, PATCH, PATCH], hidden_size=24, num_attention_heads=heads,
        intermediate_size=48, num_spatial_layers=2, num_temporal_layers=2, num_auxiliary_layers=2, attn_logit_softcapping=cap,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(5)
    made = VideoPrismVideoModel(config)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made.eval()


def copy_layers(stack, layers):
    for block, layer in zip(stack.blocks, layers, strict=True):
        at = layer.attention
        block.attention.q.load_state_dict(at.q_proj.state_dict())
        block.attention.kv.weight.data = torch.cat([at.k_proj.weight, at.v_proj.weight]).detach()
        block.attention.kv.bias.data = torch.cat([at.k_proj.bias, at.v_proj.bias]).detach()
        block.attention.out.load_state_dict(at.o_proj.state_dict())
        block.mlp[0].load_state_dict(layer.mlp.fc1.state_dict())
        block.mlp[2].load_state_dict(layer.mlp.fc2.state_dict())
        copy_norm(block.norm1, layer.layernorm_before)
        copy_norm(block.norm2, layer.layernorm_after)


def copy_norm(ours, their):
    ours.weight.data, ours.bias.data = their.weight.detach() + 1, their.bias.detach().clone()  # theirs adds 1 to the scale


def test_tower_and_pooling_equal_transformers():
    other = theirs()
    changed = {"parts.vision.hidden": 48, "parts.time.hidden": 48, "parts.space.hidden": 48, "parts.space.heads": 3}
    recipe = load_recipe(
        "videoprism",
        {
            **{f"parts.vision.{k}": v for k, v in {**SIZES, "patch": PATCH, "cap": 0.5}.items()},
            **{f"parts.time.{k}": v for k, v in {"heads": 3, "frames": FRAMES, "cap": 0.5}.items()},
            **{f"parts.space.{k}": v for k, v in {"joint": 2, "cap": 0.5}.items()},
            "embed_dim": 24, "data.image_size": SIDE, **changed,
        },
    )  # fmt: skip
    model = build_model(recipe, Tokenizer.train(["a red dog"], 300, 16), SIDE).eval()
    vision, time, space, seen = model.part("vision"), model.part("time"), model.part("space"), other.vision_model
    vision.stem.weight.data = seen.spatial_embeddings.patch_embeddings.projection.weight.detach()[:, :, 0]
    vision.stem.bias.data = seen.spatial_embeddings.patch_embeddings.projection.bias.detach()
    vision.positions.data = seen.spatial_embeddings.position_embeddings.detach()[0]
    time.places.data = seen.temporal_embeddings.position_embeddings.detach()[0]
    for stack, layers in (
        (vision.transformer, seen.spatial_layers),
        (time.transformer, seen.temporal_layers),
        (space.joint, other.auxiliary_layers),
    ):
        copy_layers(stack, layers)
    copy_norm(vision.transformer.norm, seen.layernorm1)
    copy_norm(time.transformer.norm, seen.layernorm2)
    copy_norm(space.pool.norm, other.head_layernorm)
    head = other.head
    factor = (1.442695041 * F.softplus(head.per_dim_scale)).repeat(3).detach()  # of the query's numbers, head by head
    space.pool.query.data = head.pooling_attention_query.detach()[0, 0]
    space.pool.q.weight.data = head.q_proj.weight.detach() * factor[:, None]
    space.pool.q.bias.data = head.q_proj.bias.detach() * factor
    space.pool.kv.weight.data = torch.cat([head.k_proj.weight, head.v_proj.weight]).detach()
    space.pool.kv.bias.data = torch.cat([head.k_proj.bias, head.v_proj.bias]).detach()
    space.pool.out.load_state_dict(head.o_proj.state_dict())
    space.image = torch.nn.Identity()  # the class has no map after its pooling
    video = clips()
    pixels = video.frames.pixels.view(3, FRAMES, 3, SIDE, SIDE)
    with torch.no_grad():
        p = model.encode(Batch({"video": video}, 3))
        there = other(pixels)
        torch.testing.assert_close(p["video.tokens"].tokens, seen(pixels).last_hidden_state, rtol=1e-5, atol=1e-5)
        pooled = space.pooled(p["video.tokens"])
        torch.testing.assert_close(F.normalize(pooled, dim=-1), there.pooler_output[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(p["video.embedding"], there.pooler_output[:, 0], rtol=1e-5, atol=1e-5)
        for block in vision.transformer.blocks:  # the cap takes part in this: without it the tokens are others
            block.attention.cap = 1e9
        other_tokens = model.encode(Batch({"video": video}, 3))["video.tokens"].tokens
        assert (other_tokens - p["video.tokens"].tokens).abs().max() > 0.1


def test_capped_attention_in_numpy():
    torch.manual_seed(0)
    made, x = CappedAttention(8, 2, 0.3).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    bias = torch.zeros(2, 1, 1, 5)
    bias[1, ..., 3:] = -1e4
    found = made(x, bias=bias).detach().numpy()
    q, (k, v) = made.q(x).detach().numpy(), made.kv(x).chunk(2, -1)
    k, v = k.detach().numpy(), v.detach().numpy()
    for b in range(2):
        n = 3 if b else 5
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            rows = []
            for i in range(5):
                z = np.array([0.3 * math.tanh(q[b, i, h] @ k[b, j, h] / 2 / 0.3) for j in range(n)])
                weights = np.exp(z) / np.exp(z).sum()
                rows.append(sum(weights[j] * v[b, j, h] for j in range(n)))
            heads.append(np.stack(rows))
        expected = np.concatenate(heads, 1) @ made.out.weight.detach().numpy().T + made.out.bias.detach().numpy()
        np.testing.assert_allclose(found[b], expected, rtol=1e-8, atol=1e-9)


def test_wide_pool_in_numpy():
    torch.manual_seed(0)
    made, x = WidePool(6, 2, 8).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = made(x, mask).detach().numpy()
    q = made.q(made.query).detach().numpy()
    k, v = (part.detach().numpy() for part in made.kv(x).chunk(2, -1))
    for b, n in ((0, 5), (1, 3)):
        read = []
        for h in (slice(0, 4), slice(4, 8)):
            z = np.exp([q[h] @ k[b, j, h] / 2 for j in range(n)])
            read.append(sum(w * v[b, j, h] for j, w in enumerate(z / z.sum())))
        out = np.concatenate(read) @ made.out.weight.detach().numpy().T + made.out.bias.detach().numpy()
        np.testing.assert_allclose(found[b], (out - out.mean()) / np.sqrt(out.var() + 1e-6), rtol=1e-6, atol=1e-7)
    assert torch.autograd.gradcheck(lambda x: made(x, mask).sum(1), [x.requires_grad_()])


def test_time_reads_each_patch_alone_and_no_padding():
    model, _ = made()
    time, video = model.part("time").double(), clips((4, 2, 1))
    torch.manual_seed(2)
    tokens = torch.randn(7, N, 24, dtype=torch.float64)
    found = time.read(Tokens(tokens, tokens.mean(1)), video)
    assert found.tokens.shape == (3, FRAMES * N, 24) and found.mask.sum(1).tolist() == [4 * N, 2 * N, N]
    start = 0
    for b, n in enumerate((4, 2, 1)):
        own = tokens[start : start + n]
        start += n
        for patch in range(N):
            x = time.transformer((own[:, patch] + time.places[:n])[None])[0]
            for f in range(n):
                torch.testing.assert_close(found.tokens[b, f * N + patch], x[f])
        torch.testing.assert_close(found.pooled[b], found.tokens[b, : n * N].mean(0))


def test_slots_of_visible_and_hidden_tokens():
    keep = torch.tensor([[0, 3], [1, 2]])
    hidden = torch.tensor([[False, True, True, False], [True, False, False, True]])
    assert slots_of(keep, hidden, 3).tolist() == [
        [0, 3, 4, 7, 8, 11, 1, 2, 5, 6, 9, 10],
        [1, 2, 5, 6, 9, 10, 0, 3, 4, 7, 8, 11],
    ]


@pytest.mark.parametrize("shuffle", [False, True])
def test_distillation_against_loops(shuffle):
    """One clip at a time: hidden patches are cut out of each frame before anything is computed."""
    model, objectives = made(shuffle=shuffle, tokens=0.7, whole=0.4, share=0.75)
    objective, video = objectives["masked_distillation"], clips((4, 2, 3))
    for p in (model.part("vision"), model.part("time")):  # the student has learned on
        for weight in p.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    torch.manual_seed(4)
    keep, hidden = objective.hide(3, torch.device("cpu"))
    assert keep.shape == (3, 4)
    objective.hide = lambda clips, device: (keep, hidden)
    torch.manual_seed(9)
    with torch.no_grad():
        found = objective(model.encode(Batch({"video": video}, 3))).item()
        torch.manual_seed(9)
        noise = torch.rand(3, FRAMES * N)
        total = start = 0
        for b, n in enumerate((4, 2, 3)):
            own = video.frames.pixels[start : start + n]
            start += n
            alone = Videos(Images(own, torch.zeros(n, dtype=torch.long)), torch.zeros(n), torch.zeros(n, dtype=torch.long))
            p = model.encode(Batch({"video": alone}, 1))
            target, whole = p["first:video.tokens"].tokens[0, : n * N], p["first:video.embedding"][0]
            part = Images(own, torch.zeros(n, dtype=torch.long), keep[b].expand(n, -1))
            seen = model.encode(Batch({"video": Videos(part, alone.seconds, alone.owner)}, 1))["video.tokens"].tokens[0, : n * 4]
            left = [j for j in range(N) if j not in keep[b].tolist()]
            places = [f * N + j for f in range(n) for j in keep[b].tolist()] + [f * N + j for f in range(n) for j in left]
            x = torch.cat([objective.embed(seen), objective.token.expand(n * len(left), -1)])
            if shuffle:  # the random numbers of real tokens, visible ones first
                columns = [f * 4 + i for f in range(n) for i in range(4)]
                columns += [FRAMES * 4 + f * len(left) + i for f in range(n) for i in range(len(left))]
                order = noise[b, columns].argsort()
            else:
                order = torch.tensor(places).argsort()
            x = objective.head(objective.decoder((x[order] + objective.positions[: n * N])[None]))[0]
            tokens = np.mean(
                [1 - float(F.cosine_similarity(a.double(), t.double(), dim=0)) for a, t in zip(x, target, strict=True)]
            )
            guess = objective.head_whole(objective.pool(objective.decoder_whole(objective.embed_whole(seen)[None])))[0]
            total += 0.7 * tokens + 0.4 * (1 - float(F.cosine_similarity(guess.double(), whole.double(), dim=0)))
    assert found == pytest.approx(total / 3, rel=1e-4)


def test_distances_and_their_gradient():
    torch.manual_seed(0)
    x, y = torch.randn(4, 5), torch.randn(4, 5)
    expected = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(cosine_distance(x, y).numpy(), expected, rtol=1e-5)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(cosine_distance(x, y).sum(), x)
    step = torch.zeros_like(x)
    step[1, 2] = 1e-2
    change = (cosine_distance(x + step, y) - cosine_distance(x - step, y)).sum() / 2e-2
    assert change.item() == pytest.approx(grad[1, 2].item(), rel=1e-2)


def test_the_student_learns_and_the_teacher_does_not():
    model, objectives = made(share=0.5, shuffle=True, depth=1)
    objective, video = objectives["masked_distillation"], clips()
    before = {n: p.clone() for n, p in model.teacher("first").named_parameters()}
    parts = [*model.part("vision").parameters(), *model.part("time").parameters(), *objective.parameters()]
    learning, losses = torch.optim.AdamW(parts, lr=3e-3), []
    for step in range(40):
        torch.manual_seed(step)
        losses.append(objective(model.encode(Batch({"video": video}, 3))))
        learning.zero_grad()
        losses[-1].backward()
        learning.step()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.teacher("first").named_parameters())


def test_what_does_not_fit_is_refused():
    for overrides, words in (
        ({"parts.time": {"kind": "tokens"}}, "set parts.vision: {kind: capped}"),
        ({"parts.vision": {"kind": "class", "patch": 8}}, "set parts.vision: {kind: capped}"),
        ({"stages.masked.objectives.masked_distillation.heads": 5}, "heads 5 does not divide"),
        ({"stages.masked.objectives.masked_distillation.teacher": "second"}, "there is no teacher 'second'"),
    ):
        with pytest.raises(DiptychError, match=words):
            recipe = load_recipe("videoprism", {**overrides, "data.image_size": 32})
            model = build_model(recipe, Tokenizer.train(["a red dog"], 300, 16), 32)
            add_teachers(recipe, model)
            build_objectives(recipe, model)


def test_it_trains_and_scores_clips(tmp_path):
    import diptych as dp
    from diptych.data.clips import clip_array
    from diptych.data.sources import open_source

    data = "scenes:clips?actions=all&size=32&concepts=6&colours=4&clip_frames=8"
    small = {f"stages.{i}.batch_size": 8 for i in range(3)} | {"precision": "fp32", "data.train": data}
    run = dp.train("videoprism", budget="40 samples", out=tmp_path / "run", set=small)
    model = dp.load(run.path)
    assert {"embed_image", "embed_text", "score"} <= model.capabilities
    source = open_source(data).split("test")
    arrays = [clip_array(source[i].fields["video"], "c") for i in range(3)]
    scores = model.score(arrays, [source[i].captions[0] for i in range(2)])
    assert scores.shape == (3, 2) and np.isfinite(scores).all()
