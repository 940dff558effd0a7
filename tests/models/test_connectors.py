"""Connectors: geometry checked when built, every kind against a plain form, no sample touching another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.batch import Tokens
from diptych.core.errors import DiptychError
from diptych.models.build import SIZES, Build
from diptych.models.connectors import CONNECTOR
from diptych.models.connectors.pooling import merge, side_by_side

OPTIONS: dict[str, dict[str, Any]] = {
    "merge": {"tokens": 7},
    "c_abstractor": {"tokens": 4},
    "resampler": {"tokens": 5, "heads": 4},
    "q_former": {"tokens": 6},
    "mapping": {"tokens": 5, "width": 16, "depth": 1, "heads": 2},
    "linear_norm": {"dropout": 0},
    "placed_queries": {"tokens": 4, "heads": 2},
    "perceiver": {"tokens": 3, "depth": 1, "heads": 2, "key_heads": 1, "head_width": 8},
    "rearranged": {"together": 2, "heads": 2},
}
TOKENS = {
    "linear": 16,
    "mlp": 16,
    "average": 4,
    "downsample": 4,
    "pixel_shuffle": 4,
    "merge": 7,
    "c_abstractor": 4,
    "q_former": 6,
    "resampler": 5,
    "mapping": 5,
    "linear_norm": 16,
    "placed_queries": 4,
    "neighbours": 4,
    "perceiver": 3,
    "rearranged": 2,
}


def build(tokens: int = 16, extra: int = 1) -> Build:
    vision, lm = SimpleNamespace(width=24, tokens=tokens, extra=extra), SimpleNamespace(width=20)
    return Build(SIZES["tiny"], 32, None, parts={"vision": vision, "lm": lm}, where="parts.connector")  # type: ignore[dict-item]


# Tested elsewhere: those of other parts, which read more than tokens; of several towers and of clips, and one that reads class tokens.
ELSEWHERE = {"queries", "instructed", "bridge", "per_tower", "pooled", "gradual_merging"}
ELSEWHERE |= {"any_resolution", "windows", "native_merge"}  # of pictures in tiles, in windows, and of any shape
ELSEWHERE |= {"each_frame", "adaptive_pool", "pooled_frames", "frames_and_mean", "video_q_former"}


@pytest.mark.parametrize("kind", [kind for kind in CONNECTOR if kind not in ELSEWHERE])
def test_every_kind_gives_what_it_says_and_class_tokens_do_not_matter(kind: str) -> None:
    torch.manual_seed(0)
    connector = CONNECTOR[kind](build(), **OPTIONS.get(kind, {}))
    x = torch.randn(3, 17, 24, requires_grad=True)
    out = connector(x)
    assert out.shape == (3, TOKENS[kind], 20) == (3, connector.tokens, connector.width)
    out.square().sum().backward()
    assert x.grad is not None and bool((x.grad[:, 0] == 0).all()) and bool((x.grad[:, 1:].abs().sum(2) > 0).all())
    assert all(p.grad is not None for p in connector.parameters())
    torch.testing.assert_close(connector(x[1:2]), out[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "tokens", "options", "words"),
    [
        ("mlp", 15, {}, "15 patches, which do not form a square"), ("average", 16, {"factor": 3}, "4 × 4 patches does not divide by 3"),
        ("pixel_shuffle", 9, {}, "does not divide by 2"), ("merge", 16, {"tokens": 17}, "between 1 and the 16"), ("c_abstractor", 16, {"tokens": 5}, "a square of at most 16"),
        ("resampler", 16, {"heads": 5}, "5 does not divide"),
    ],
)  # fmt: skip
def test_geometry_that_does_not_fit_is_refused_when_built(kind: str, tokens: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DiptychError, match=rf"parts\.connector: .*{words}"):
        CONNECTOR[kind](build(tokens), **options)


def test_side_by_side_is_space_to_depth() -> None:
    x = np.random.default_rng(0).normal(size=(2, 16, 3))
    grid = x.reshape(2, 4, 4, 3)
    by_hand = [[[*grid[b, 2 * i, 2 * j], *grid[b, 2 * i, 2 * j + 1], *grid[b, 2 * i + 1, 2 * j], *grid[b, 2 * i + 1, 2 * j + 1]] for i in range(2) for j in range(2)] for b in range(2)]  # fmt: skip
    np.testing.assert_array_equal(side_by_side(torch.tensor(x), 2).numpy(), np.array(by_hand))


def test_pixel_shuffle_equals_idefics3() -> None:
    from transformers import Idefics3Config
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    torch.manual_seed(0)
    config = Idefics3Config(
        scale_factor=2,
        vision_config={"hidden_size": 24, "num_attention_heads": 2},
        text_config={"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2},
    )
    theirs, ours = Idefics3Connector(config), CONNECTOR["pixel_shuffle"](build(extra=0))
    ours.layer.load_state_dict(theirs.modality_projection.proj.state_dict())
    x = torch.randn(2, 16, 24)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-6)


def test_average_is_the_mean_of_neighbours() -> None:
    torch.manual_seed(0)
    connector = CONNECTOR["average"](build(extra=0))
    x = torch.randn(2, 16, 24)
    mean = x.view(2, 2, 2, 2, 2, 24).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(connector(x), connector.layers(connector.norm(mean)))


@pytest.mark.parametrize(("n", "r"), [(8, 3), (9, 4), (8, 4), (5, 1)])
def test_merging_equals_the_plain_form(n: int, r: int) -> None:
    """One pair after the other, as the paper writes it."""
    rng = np.random.default_rng(n)
    x, size = rng.normal(size=(n, 6)), rng.integers(1, 4, size=n).astype(float)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    first, second = list(range(0, n, 2)), list(range(1, n, 2))
    match = {i: max(second, key=lambda j: unit[i] @ unit[j]) for i in first}
    gone = sorted(first, key=lambda i: -(unit[i] @ unit[match[i]]))[:r]
    total = {j: (x[j] * size[j], size[j]) for j in second}
    for i in gone:
        vector, weight = total[match[i]]
        total[match[i]] = (vector + x[i] * size[i], weight + size[i])
    expected = [x[i] for i in first if i not in gone] + [total[j][0] / total[j][1] for j in second]
    sizes = [size[i] for i in first if i not in gone] + [total[j][1] for j in second]
    merged, merged_size = merge(torch.tensor(x)[None], torch.tensor(size)[None, :, None], r)
    np.testing.assert_allclose(merged[0].numpy(), np.array(expected), atol=1e-12)
    np.testing.assert_allclose(merged_size[0, :, 0].numpy(), sizes)
    assert merged_size.sum() == size.sum()


def test_pooled_is_one_linear_map_of_the_pooled_vector() -> None:
    """Frozen's prefix: n vectors from one product, in NumPy; tokens have no effect; two vectors unless the recipe says
    otherwise."""
    torch.manual_seed(0)
    connector = CONNECTOR["pooled"](build(), tokens=3).double()
    pooled = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    found = connector.prefix(Tokens(torch.randn(2, 17, 24), pooled))
    weight, bias = (p.detach().numpy() for p in (connector.layer.weight, connector.layer.bias))
    for b in range(2):
        for n in range(3):
            rows = slice(20 * n, 20 * (n + 1))
            np.testing.assert_allclose(found[b, n].detach().numpy(), weight[rows] @ pooled[b].detach().numpy() + bias[rows])
    assert torch.autograd.gradcheck(connector, (pooled,))
    assert CONNECTOR["pooled"](build()).tokens == 2 and not list(CONNECTOR["pooled"](build()).norm.parameters())
