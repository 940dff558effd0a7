"""What a language model reads of clips: each connector against a plain loop over frames and patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.core.batch import Images, Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.models.build import SIZES, Build
from diptych.models.connectors import CONNECTOR
from diptych.models.connectors.clips import read_frames

D, L, SIDE, T = 8, 12, 4, 4  # widths of tower and language model, patches a side, frames
LENGTHS = [4, 2, 7]


def connector(kind, **options):
    torch.manual_seed(0)
    build = Build(SIZES["tiny"], 64, None)
    for name, width in (("vision", D), ("lm", L)):
        build.parts[name] = torch.nn.Module()
        build.parts[name].width = width
    build.parts["vision"].tokens = SIDE**2
    return CONNECTOR[kind](build, frames=T, **options).double().eval()


def owner(lengths=LENGTHS):
    return torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])


def clips(lengths=LENGTHS, seed=1):
    torch.manual_seed(seed)
    n = sum(lengths)
    frames = Tokens(torch.randn(n, SIDE**2, D, dtype=torch.float64), torch.randn(n, D, dtype=torch.float64))
    return Videos(Images(torch.zeros(n, 3, 2, 2), owner(lengths)), torch.arange(n).float(), owner(lengths)), frames


def shown(frames):
    """The frames that are read of each clip."""
    rows = read_frames(owner(), T)
    return frames.tokens[rows], frames.pooled[rows]


def test_frames_are_spread_over_the_clip():
    rows = read_frames(owner(), T)
    assert rows.tolist() == [[0, 1, 2, 3], [4, 4, 5, 5], [6, 8, 10, 12]]


def test_frame_after_frame():
    video, frames = clips()
    made = connector("each_frame", norm=False)
    found = made.clip_prefix(video, frames)
    x, _ = shown(frames)
    assert found.shape == (3, T * SIDE**2, L) and made.tokens == T * SIDE**2
    for b in range(3):
        for t in range(T):
            torch.testing.assert_close(found[b, t * SIDE**2 : (t + 1) * SIDE**2], made.layers(x[b, t]))


def test_patches_are_averaged_before_the_mlp():
    video, frames = clips()
    made = connector("pooled_frames", norm=False)
    found = made.clip_prefix(video, frames)
    x, _ = shown(frames)
    assert found.shape == (3, T * SIDE**2 // 4, L) and made.tokens == T * SIDE**2 // 4
    for t in range(T):
        for row in range(SIDE // 2):
            for column in range(SIDE // 2):
                at = [(2 * row + i) * SIDE + 2 * column + j for i in (0, 1) for j in (0, 1)]
                mean = sum(x[1, t, k] for k in at) / 4
                torch.testing.assert_close(found[1, t * SIDE**2 // 4 + row * SIDE // 2 + column], made.layers(mean))
    with pytest.raises(DiptychError, match="does not divide by 3"):
        connector("pooled_frames", stride=3)


def test_four_neighbours_become_one_token():
    video, frames = clips()
    made = connector("each_frame", together=4, norm=False)
    found = made.clip_prefix(video, frames)
    x, _ = shown(frames)
    assert found.shape == (3, T * SIDE**2 // 4, L)
    for k in range(SIDE**2 // 4):
        torch.testing.assert_close(found[1, 2 * SIDE**2 // 4 + k], made.layers(x[1, 2, 4 * k : 4 * k + 4].reshape(-1)))


@pytest.mark.parametrize(("time", "side"), [(4, 2), (2, 2), (4, 4), (1, 1)])
def test_means_over_blocks_of_time_and_space(time, side):
    video, frames = clips()
    made = connector("adaptive_pool", time=time, side=side)
    found = made.clip_prefix(video, frames).detach().numpy()
    x, _ = shown(frames)
    projected = made.layers(made.norm(x)).detach().numpy().reshape(3, T, SIDE, SIDE, L)
    a, b = T // time, SIDE // side
    for clip in range(3):
        for k in range(time * side * side):
            t, y, z = k // side**2, k % side**2 // side, k % side
            block = projected[clip, t * a : (t + 1) * a, y * b : (y + 1) * b, z * b : (z + 1) * b]
            np.testing.assert_allclose(found[clip, k], block.mean((0, 1, 2)), rtol=1e-9, atol=1e-12)


def test_frames_then_patches_summed_up_over_time():
    video, frames = clips()
    x, pooled = shown(frames)
    made = connector("frames_and_mean", over_time="mean", norm=False)
    found = made.clip_prefix(video, frames)
    assert found.shape == (3, T + SIDE**2, L) and made.tokens == T + SIDE**2
    torch.testing.assert_close(found[:, :T], made.layer(pooled))
    torch.testing.assert_close(found[:, T:], made.layer(x.mean(1)))
    made = connector("frames_and_mean", over_time="weighted", norm=False)
    found = made.clip_prefix(video, frames)
    for b in range(3):
        for n in range(SIDE**2):
            logits = np.array([float((made.importance(x[b, t, n])).detach()) for t in range(T)])
            weights = np.exp(logits) / np.exp(logits).sum()
            whole = sum(w * x[b, t, n] for t, w in enumerate(weights))
            torch.testing.assert_close(found[b, T + n], made.layer(whole))
    made = connector("frames_and_mean", over_time="transformer", norm=False)
    found = made.clip_prefix(video, frames)
    for b in range(3):
        for n in (0, 5, 15):
            delta = made.transformer((x[b, :, n] + made.places)[None])[0, -1]
            torch.testing.assert_close(found[b, T + n], made.layer(x[b, :, n].mean(0) + delta))


def test_a_q_former_over_frames_and_one_over_the_clip():
    video, frames = clips()
    made = connector("video_q_former", queries=3, tokens=5, width=16)
    found = made.clip_prefix(video, frames)
    x, _ = shown(frames)
    assert found.shape == (3, 5, L)
    for b in range(3):
        seen = []
        for t in range(T):
            seen.append(made.of_frame(made.frame_queries[None], context=made.norm(x[b, t])[None])[0] + made.places[t])
        own = made.of_clip(made.clip_queries[None], context=torch.cat(seen)[None])[0]
        torch.testing.assert_close(found[b], made.layer(own))


@pytest.mark.parametrize("kind", ["each_frame", "adaptive_pool", "pooled_frames", "frames_and_mean", "video_q_former"])
def test_the_order_of_frames_counts_and_gradients_flow(kind):
    video, frames = clips([4, 4])
    made = connector(kind)
    forwards = made.clip_prefix(video, frames)
    back = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    assert not torch.allclose(forwards, made.clip_prefix(video, frames[back]))
    alone = made.clip_prefix(
        Videos(Images(torch.zeros(4, 3, 2, 2)), torch.arange(4.0), torch.zeros(4, dtype=torch.long)), frames[torch.arange(4)]
    )
    torch.testing.assert_close(alone[0], forwards[0])  # clips do not see each other
    one = made.prefix(frames[torch.arange(1)])  # a picture is a clip of one frame
    assert one.shape == (1, made.tokens, L)
    tokens = frames.tokens.clone().requires_grad_()
    made.clip_prefix(video, Tokens(tokens, frames.pooled)).square().sum().backward()
    assert bool((tokens.grad.abs().sum((1, 2)) > 0).all()) and all(p.grad is not None for p in made.parameters())
