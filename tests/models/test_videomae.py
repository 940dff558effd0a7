"""VideoMAE: masks and targets against plain loops, and tower, decoder, loss and gradients against the classes of transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Videos
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.interop.base import to_ours
from diptych.interop.families.videomae import FAMILIES
from diptych.models.vision.drawn import random_keep
from diptych.models.vision.tubelets import alternating_waves, cut, take
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.video.tubes import pixels_of, tube_keep

SIDE, PATCH, FRAMES, TUBELET = 16, 4, 4, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
ENCODER, WITH_DECODER = FAMILIES
SMALL = {"width": 24, "depth": 2, "heads": 3, "hidden": 40}


def made(bare=False, **options):
    """The recipe's model and objectives with weights that are far from their first ones."""
    sizes = {f"parts.vision.{k}": v for k, v in SMALL.items()}
    overrides = {
        **sizes,
        "parts.vision.frames": FRAMES,
        "parts.vision.bare": bare,
        "parts.text.depth": 1,
        "data.image_size": SIDE,
        "stages.masked.objectives.masked_tubes": {"weight": 1, "depth": 2, "heads": 2, "width": 16, "hidden": 20, **options},
    }
    recipe = load_recipe("videomae", overrides)
    torch.manual_seed(0)
    model = build_model(recipe, Tokenizer.train(["a red dog", "a blue cat"], 300, 16), SIDE)
    objectives = build_objectives(recipe, model)
    for p in [*model.parameters(), *objectives.parameters()]:
        if p.ndim:
            torch.nn.init.normal_(p, std=0.2)
    return recipe, model.eval(), objectives.eval()


def clips(B=3, frames=FRAMES, seed=1):
    torch.manual_seed(seed)
    owner = torch.arange(B).repeat_interleave(frames)
    pixels = torch.rand(B * frames, 3, SIDE, SIDE) * 2 - 1
    return Videos(Images(pixels, owner), torch.arange(B * frames).float(), owner)


def config(bare=False, **more):
    from transformers import VideoMAEConfig

    return VideoMAEConfig(
        image_size=SIDE, patch_size=PATCH, num_frames=FRAMES, tubelet_size=TUBELET, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=40, use_mean_pooling=bare, decoder_num_attention_heads=2, decoder_hidden_size=16,
        decoder_num_hidden_layers=2, decoder_intermediate_size=20, attn_implementation="eager", **more,
    )  # fmt: skip


def filled(theirs):
    """Random weights that are large enough to matter."""
    torch.manual_seed(5)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return theirs.eval()


def shown(sample):
    """A sample's clip as a batch of one."""
    frames = torch.stack([torch.from_numpy(f).permute(2, 0, 1) for f in sample.fields["video"].frames])
    owner = torch.zeros(len(frames), dtype=torch.long)
    return Videos(Images(frames, owner), torch.zeros(len(frames)), owner)


def load(family, theirs, model, objectives):
    state = {**model.state_dict(), **{f"objectives.{k}": v for k, v in objectives.state_dict().items()}}
    stem = next(n for n in theirs if n.endswith("projection.bias"))
    own = {n.replace("key.weight", "key.bias"): torch.zeros(len(w)) for n, w in theirs.items() if n.endswith("key.weight")}
    result = to_ours({**theirs, **own}, family.entries(model, objectives), {k: v.shape for k, v in state.items()})
    assert stem in theirs and len(result) > 20
    model.load_state_dict({k: v for k, v in result.items() if not k.startswith("objectives.")}, strict=False)
    of = {k.removeprefix("objectives."): v for k, v in result.items() if k.startswith("objectives.")}
    objectives.load_state_dict(of, strict=False)


# --- pieces against loops ---


def test_tubelets_against_loops():
    x = clips().frames.pixels.view(3, FRAMES, 3, SIDE, SIDE)
    found = cut(x, TUBELET, PATCH)
    side = SIDE // PATCH
    assert found.shape == (3, FRAMES // TUBELET * side**2, 3, TUBELET, PATCH, PATCH)
    for t in range(FRAMES // TUBELET):
        for row in range(side):
            for column in range(side):
                rows, columns = slice(row * PATCH, row * PATCH + PATCH), slice(column * PATCH, column * PATCH + PATCH)
                own = x[:, t * TUBELET : (t + 1) * TUBELET, :, rows, columns].transpose(1, 2)
                assert torch.equal(found[:, (t * side + row) * side + column], own)


def test_a_clip_read_backwards_is_the_clip_with_its_frames_reversed():
    _, model, _ = made()
    video = clips()
    back = video.frames.pixels.view(3, FRAMES, 3, SIDE, SIDE).flip(1).flatten(0, 1)
    reversed_clips = Videos(Images(back, video.owner), video.seconds, video.owner)
    first, second = model.encode(Batch({"video": video})), model.encode(Batch({"video": reversed_clips}))
    torch.testing.assert_close(first["video.reversed_embedding"], second["video.embedding"])
    assert (first["video.embedding"] - second["video.embedding"]).abs().max() > 1e-3, "the order counts"


@pytest.mark.parametrize("normalise", [True, False])
def test_targets_against_numpy(normalise):
    x = clips(2).frames.pixels.view(2, FRAMES, 3, SIDE, SIDE)
    found = pixels_of(x, TUBELET, PATCH, normalise)
    parts = cut(x, TUBELET, PATCH).double().numpy()
    for b, n in ((0, 0), (1, 7), (1, 31)):
        expected = np.zeros((TUBELET, PATCH, PATCH, 3))
        for c in range(3):
            own = parts[b, n, c] / 2 + 0.5
            if normalise:
                own = (own - own.mean()) / (math.sqrt(((own - own.mean()) ** 2).sum() / (own.size - 1)) + 1e-6)
            expected[..., c] = own
        np.testing.assert_allclose(found[b, n].numpy(), expected.reshape(-1), rtol=1e-4, atol=1e-5)


def test_positions_against_the_formula():
    found = alternating_waves(7, 6).numpy()
    for place in range(7):
        for d in range(6):
            angle = place / 10_000 ** (2 * (d // 2) / 6)
            assert found[place, d] == pytest.approx(math.cos(angle) if d % 2 else math.sin(angle), abs=1e-6)


def test_tubes_hide_the_same_places_at_all_times():
    torch.manual_seed(0)
    keep, hidden = tube_keep(50, 4, 64, 0.9, torch.device("cpu"))
    assert keep.shape == (50, 4 * 6) and hidden.shape == (50, 256)
    rows = hidden.view(50, 4, 64)
    assert (rows == rows[:, :1]).all() and (rows[:, 0].sum(1) == 58).all()
    for row, seen in zip(keep, hidden, strict=True):
        assert row.tolist() == sorted(set(range(256)) - set(seen.nonzero()[:, 0].tolist()))
    assert len({tuple(r.tolist()) for r in keep}) > 45  # each clip its own
    _, anywhere = random_keep(50, 256, 0.9, torch.device("cpu"))
    rows = anywhere.view(50, 4, 64)
    assert not (rows == rows[:, :1]).all()


def test_hidden_tokens_are_not_read():
    _, model, _ = made()
    tower, video = model.part("vision"), clips()
    keep, hidden = tube_keep(3, 2, 16, 0.75, torch.device("cpu"))
    with torch.no_grad():
        seen = tower(tower.shown(video), keep).tokens
        for b in range(3):  # a loop over single clips, whose visible tokens are embedded one by one
            x = cut(tower.shown(video)[b : b + 1], TUBELET, PATCH)[0]
            rows = [tower.stem(x[k].flatten()) + tower.positions[k] for k in keep[b].tolist()]
            torch.testing.assert_close(seen[b], tower.transformer(torch.stack(rows)[None])[0], rtol=1e-5, atol=1e-5)
    assert seen.shape == (3, 8, 24) and hidden.sum() == 3 * 24


def test_shorter_and_longer_clips():
    """A clip of one frame is one that stands still; of a longer one, frames are evenly spread."""
    _, model, _ = made()
    tower = model.part("vision")
    one = clips(2, frames=1)
    still = torch.stack([one.frames.pixels[i].expand(FRAMES, 3, SIDE, SIDE) for i in range(2)])
    torch.testing.assert_close(tower.shown(one), still)
    longer = clips(1, frames=8)
    torch.testing.assert_close(tower.shown(longer)[0], longer.frames.pixels[[1, 3, 5, 7]])


# --- against transformers ---


@pytest.mark.parametrize("bare", [False, True])
def test_the_tower_equals_videomae_model(bare):
    from transformers import VideoMAEModel

    _, model, objectives = made(bare)
    theirs = filled(VideoMAEModel(config(bare)))
    load(ENCODER, theirs.state_dict(), model, objectives)
    video = clips()
    pixels = video.frames.pixels.view(3, FRAMES, 3, SIDE, SIDE)
    _, hidden = tube_keep(3, 2, 16, 0.75, torch.device("cpu"))
    with torch.no_grad():
        for mask in (None, hidden):
            keep = None if mask is None else (~mask).nonzero()[:, 1].view(3, -1)
            mine = model.part("vision").encode(Videos(video.frames, video.seconds, video.owner, keep))
            there = theirs(pixels, bool_masked_pos=mask).last_hidden_state
            torch.testing.assert_close(mine.tokens, there, rtol=1e-5, atol=1e-5)
    assert mine.tokens.std() > 0.1


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("mask", ["tube", "random"])
def test_loss_reconstruction_and_gradients_equal_videomae_for_pre_training(normalise, mask):
    from transformers import VideoMAEForPreTraining

    _, model, objectives = made(normalise=normalise, mask=mask, share=0.75)
    theirs = filled(VideoMAEForPreTraining(config(norm_pix_loss=normalise)))
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (MEAN, STD))
    state = dict(theirs.state_dict())
    where = "videomae.embeddings.patch_embeddings.projection"
    stem = state[f"{where}.weight"]
    # Their pixels are normalised by ImageNet's statistics, ours are in [−1, 1]: the first layer takes up the difference.
    bias = state[f"{where}.bias"] + (stem * ((0.5 - mean) / std)).flatten(1).sum(1)
    load(WITH_DECODER, {**state, f"{where}.weight": stem * (0.5 / std), f"{where}.bias": bias}, model, objectives)
    objective, video = objectives["masked_tubes"], clips()
    torch.manual_seed(3)
    keep, hidden = objective.hide(3, torch.device("cpu"))
    objective.hide = lambda clips, device: (keep, hidden)
    unit = video.frames.pixels.view(3, FRAMES, 3, SIDE, SIDE) / 2 + 0.5
    there = theirs((unit - mean[None, :, 0]) / std[None, :, 0], bool_masked_pos=hidden)
    loss = objective(model.encode(Batch({"video": video}, 3)))
    tower = model.part("vision")
    predicted, left = objective.predict(tower(tower.shown(video), keep).tokens, keep, hidden)
    torch.testing.assert_close(predicted, there.logits, rtol=1e-5, atol=1e-5)
    assert loss.item() == pytest.approx(there.loss.item(), rel=1e-5)
    target = take(pixels_of(tower.shown(video), TUBELET, PATCH, normalise), left)
    assert loss.item() == pytest.approx(((predicted - target).double() ** 2).mean().item(), rel=1e-5)
    loss.backward()
    there.loss.backward()
    for mine, other in (
        (objective.embed.weight, theirs.encoder_to_decoder.weight),
        (objective.token, theirs.mask_token),
        (tower.transformer.blocks[0].mlp[0].weight, theirs.videomae.encoder.layer[0].intermediate.dense.weight),
    ):
        torch.testing.assert_close(mine.grad, other.grad.view_as(mine), rtol=1e-3, atol=1e-6)


def test_gradient_by_differences():
    _, model, objectives = made(share=0.75)
    model, objective, video = model.double(), objectives["masked_tubes"].double(), clips()
    keep, hidden = objective.hide(3, torch.device("cpu"))
    objective.hide = lambda clips, device: (keep, hidden)

    def loss():
        tower = model.part("vision")
        predicted, left = objective.predict(tower(tower.shown(video).double(), keep).tokens, keep, hidden)
        return ((predicted - take(pixels_of(tower.shown(video), TUBELET, PATCH, True), left)) ** 2).mean()

    weight = model.part("vision").stem.weight
    (grad,) = torch.autograd.grad(loss(), weight)
    for place in ((0, 0), (5, 17), (23, 95)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * 1e-4
                ends.append(loss().item())
                weight[place] -= sign * 1e-4
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(grad[place].item(), rel=1e-4, abs=1e-9)


# --- files and recipes ---


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.architecture)
def test_what_is_written_is_read_by_transformers(family, tmp_path):
    import transformers

    recipe, model, objectives = made(share=0.75)
    assert not family.misfits(recipe, model, objectives)
    notes = family.write(tmp_path, model, objectives)
    assert "text, space" in notes[0]
    theirs, report = getattr(transformers, family.architecture).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    video = clips()
    pixels = video.frames.pixels.view(3, FRAMES, 3, SIDE, SIDE)
    keep, hidden = tube_keep(3, 2, 16, 0.75, torch.device("cpu"))
    with torch.no_grad():
        tokens = model.part("vision")(pixels, keep).tokens
        there = theirs.eval()(pixels, bool_masked_pos=hidden)
        if family.architecture == "VideoMAEModel":
            torch.testing.assert_close(tokens, there.last_hidden_state, rtol=1e-5, atol=1e-5)
        else:
            predicted, left = objectives["masked_tubes"].predict(tokens, keep, hidden)
            torch.testing.assert_close(predicted, there.logits, rtol=1e-5, atol=1e-5)
            target = take(pixels_of(pixels, TUBELET, PATCH, True), left)  # the same whatever pixels are normalised by
            assert there.loss.item() == pytest.approx(((predicted - target) ** 2).mean().item(), rel=1e-4)


def test_a_run_starts_from_a_checkpoint(tmp_path):
    from transformers import VideoMAEForPreTraining

    from diptych.training.start.initialize import open_start

    theirs = filled(VideoMAEForPreTraining(config()))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        f'{{"image_processor_type": "VideoMAEImageProcessor", "image_mean": {list(MEAN)}, "image_std": {list(STD)}}}'
    )
    recipe, model, objectives = made()
    started = open_start(f"hf:{tmp_path}").load(recipe, model, objectives)
    assert started.loaded == ["parts.vision"] and "parts.text" in started.fresh
    video = clips()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    pixels = (video.frames.pixels.view(3, FRAMES, 3, SIDE, SIDE) / 2 + 0.5 - mean) / std
    with torch.no_grad():
        there = theirs.videomae(pixels).last_hidden_state
        torch.testing.assert_close(model.part("vision").encode(video).tokens, there, rtol=1e-4, atol=1e-4)
    with pytest.raises(DiptychError, match=r"parts\.vision\.frames=4"):
        recipe = load_recipe("videomae", {**{f"parts.vision.{k}": v for k, v in SMALL.items()}, "data.image_size": SIDE})
        other = build_model(recipe, Tokenizer.train(["a red dog"], 300, 16), SIDE)
        open_start(f"hf:{tmp_path}").load(recipe, other, build_objectives(recipe, other))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"parts.vision": {"kind": "vit"}}, "masked_tubes hides tokens of clips; set parts.vision"),
        ({"parts.vision.frames": 7}, "frames 7 is not a multiple of tubelet 2"),
        ({"parts.vision.patch": 5}, "not a multiple of the patch size 5"),
        ({"stages.masked.objectives.masked_tubes": {"weight": 1, "heads": 5}}, "heads 5 does not divide"),
        ({"stages.masked.objectives.masked_tubes": {"weight": 1, "mask": "cube"}}, "mask"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, words):
    with pytest.raises(DiptychError, match=words):
        recipe = load_recipe("videomae", {**overrides, "data.image_size": 32})
        build_objectives(recipe, build_model(recipe, Tokenizer.train(["a red dog"], 300, 16), 32))


def test_the_loss_falls():
    """From pictures that repeat themselves hidden pixels can be told from visible ones."""
    _, model, objectives = made(share=0.75)
    video = clips(8)
    video.frames.pixels[:] = (torch.arange(SIDE) % 4 / 2 - 0.75) * torch.rand(32, 1, 1, 1).sign()
    learning = torch.optim.AdamW([*model.part("vision").parameters(), *objectives.parameters()], lr=3e-3)
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        losses.append(objectives["masked_tubes"](model.encode(Batch({"video": video}, 8))))
        learning.zero_grad()
        losses[-1].backward()
        learning.step()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("name", ["videomae@random", "videomae@frozen"])
def test_it_trains_and_scores_clips(name, tmp_path):
    import diptych as dp
    from diptych.data.clips import clip_array
    from diptych.data.sources import open_source

    data = "scenes:clips?actions=all&size=32&concepts=6&colours=4&clip_frames=8"
    small = {
        "stages.0.batch_size": 8, "stages.1.batch_size": 8, "precision": "fp32", "data.train": data, "parts.vision.depth": 1,
    }  # fmt: skip
    run = dp.train(name, budget="32 samples", out=tmp_path / "run", set=small)
    model = dp.load(run.path)
    assert {"embed_image", "embed_text", "score"} <= model.capabilities
    source = open_source(data).split("test")
    arrays = [clip_array(source[i].fields["video"], "c") for i in range(3)]
    scores = model.score(arrays, [source[i].captions[0] for i in range(2)])
    assert scores.shape == (3, 2) and np.isfinite(scores).all()
    if name == "videomae@frozen":  # the card's own lines, on eight frames
        from PIL import Image

        from diptych.inference.export import export

        out = export(run.path).path
        for i, frame in enumerate(source[0].fields["video"].frames):
            Image.fromarray(frame).save(out / f"frame-{i}.png")
        card = (out / "README.md").read_text()
        found: dict = {}
        exec(
            card.partition("```python\n")[2]
            .partition("```")[0]
            .replace('"."', f"{str(out)!r}")
            .replace('f"frame', f'f"{out}/frame'),
            found,
        )
        with torch.no_grad():
            mine = model.model.encode(Batch({"video": shown(source[0])}, 1))["video.tokens"].pooled
        torch.testing.assert_close(found["model"](found["clip"]).last_hidden_state.mean(1), mine, rtol=1e-4, atol=1e-4)
