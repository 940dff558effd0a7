"""Parts that read the frames of a clip in their order, against loops over single clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.core.batch import Images, Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.models.build import SIZES, Build
from diptych.models.time.clips import by_clip, places
from diptych.models.time.embeddings import FrameEmbeddings
from diptych.models.time.tokens import ClipTokens

LENGTHS = [3, 1, 5, 2]  # frames of each clip
E = 8


def owner() -> torch.Tensor:
    return torch.tensor([i for i, n in enumerate(LENGTHS) for _ in range(n)])


def clips() -> Videos:
    frames = Images(torch.zeros(sum(LENGTHS), 3, 2, 2), owner())
    return Videos(frames, torch.arange(sum(LENGTHS)).float(), owner())


def part(way: str, **options) -> FrameEmbeddings:
    torch.manual_seed(1)
    build = Build(SIZES["tiny"], 64, None, embed_dim=E)
    return FrameEmbeddings(build, way=way, depth=2, heads=2, frames=6, **options).double().eval()


def projected() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(sum(LENGTHS), E, dtype=torch.float64)


def split(x):
    return list(torch.split(x, LENGTHS))


def test_rows_of_clips() -> None:
    x = projected()
    rows, mask = by_clip(x, owner(), 6)
    assert places(owner()).tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1]
    assert rows.shape == (4, 6, E) and mask.sum(1).tolist() == LENGTHS
    for row, own, n in zip(rows, split(x), LENGTHS, strict=True):
        assert torch.equal(row[:n], own) and not row[n:].any()


def test_mean_of_unit_frames() -> None:
    """CLIP4Clip's parameter-free type, in NumPy: frames of unit length, their mean, of unit length."""
    found = part("mean").frame_embedding(projected(), clips())
    for row, own in zip(found.pooled, split(projected()), strict=True):
        frames = own.numpy() / np.linalg.norm(own.numpy(), axis=1, keepdims=True)
        mean = frames.mean(0)
        np.testing.assert_allclose(row.numpy(), mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["mean", "lstm", "transformer"])
def test_clips_do_not_see_each_other_nor_padding(way: str) -> None:
    model = part(way)
    together = model.frame_embedding(projected(), clips())
    for i, own in enumerate(split(projected())):
        n = len(own)
        frames = Images(torch.zeros(n, 3, 2, 2), torch.zeros(n, dtype=torch.long))
        alone = model.frame_embedding(own, Videos(frames, torch.arange(n).float(), torch.zeros(n, dtype=torch.long)))
        torch.testing.assert_close(together.pooled[i], alone.pooled[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.tokens[i, :n], alone.tokens[0, :n], rtol=1e-5, atol=1e-6)
        assert not together.tokens[i, n:].any()


def test_lstm_and_transformer_are_added_to_the_frames() -> None:
    x = split(projected())[2]
    rows, mask = by_clip(x, torch.zeros(len(x), dtype=torch.long), 6)
    model = part("lstm")
    plain = x + model.lstm(x[None])[0][0]
    torch.testing.assert_close(
        model(rows, mask).tokens[0, : len(x)], torch.nn.functional.normalize(plain, dim=-1), rtol=1e-5, atol=1e-5, check_dtype=False
    )
    model = part("transformer")
    plain = x + model.transformer((x + model.places[: len(x)])[None])[0].float()
    torch.testing.assert_close(
        model(rows, mask).tokens[0, : len(x)], torch.nn.functional.normalize(plain, dim=-1), rtol=1e-5, atol=1e-5, check_dtype=False
    )


@pytest.mark.parametrize("way", ["mean", "lstm", "transformer"])
def test_the_order_of_frames_counts_unless_they_are_averaged(way: str) -> None:
    model, x = part(way), projected()
    backwards = torch.cat([own.flip(0) for own in split(x)])
    forwards, reverse = model.frame_embedding(x, clips()).pooled, model.frame_embedding(backwards, clips()).pooled
    longer = torch.tensor(LENGTHS) > 1
    differs = (forwards - reverse).abs().amax(1) > 1e-5
    assert differs.tolist() == ([False] * 4 if way == "mean" else longer.tolist())
    torch.testing.assert_close(model.reversed_embedding(x, clips()), reverse)  # what an objective reads of backward clips


def test_too_many_frames_are_refused() -> None:
    with pytest.raises(DiptychError, match="places for 6; set parts.time.frames=7"):
        part("transformer").frame_embedding(
            torch.randn(7, E, dtype=torch.float64),
            Videos(Images(torch.zeros(7, 3, 2, 2)), torch.zeros(7), torch.zeros(7, dtype=torch.long)),
        )


def test_gradients_of_embeddings() -> None:
    for way in ("lstm", "transformer"):
        model = part(way)
        x = projected().requires_grad_()
        rows, mask = by_clip(x, owner(), 6)
        loss = (model(rows, mask).pooled.double() * torch.arange(4 * E).view(4, E)).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        step = 1e-3  # unit vectors are float32
        for place in ((0, 0), (5, 3), (10, 7)):
            ends = []
            for sign in (1, -1):
                moved = projected()
                moved[place] += sign * step
                ends.append((model(*by_clip(moved, owner(), 6)).pooled.double() * torch.arange(4 * E).view(4, E)).sum())
            assert float((ends[0] - ends[1]).detach()) / (2 * step) == pytest.approx(
                float(gradient[place].detach()), rel=2e-2, abs=2e-2
            )


def test_tokens_of_all_frames() -> None:
    torch.manual_seed(2)
    build = Build(SIZES["tiny"], 64, None, embed_dim=E)
    build.parts["vision"] = torch.nn.Module()
    build.parts["vision"].width = E
    model = ClipTokens(build, frames=6)
    n, N = sum(LENGTHS), 4
    frames = Tokens(torch.randn(n, N, E), torch.randn(n, E))
    found = model.read(frames, clips())
    assert found.tokens.shape == (4, 6 * N, E) and found.mask.sum(1).tolist() == [N * k for k in LENGTHS]
    start = 0
    for i, k in enumerate(LENGTHS):
        own = frames.tokens[start : start + k] + model.places[:k, None]
        torch.testing.assert_close(found.tokens[i, : k * N], own.reshape(k * N, E))
        torch.testing.assert_close(found.pooled[i], frames.pooled[start : start + k].mean(0))
        start += k
