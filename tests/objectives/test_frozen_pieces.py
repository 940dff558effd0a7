"""Objectives of language-model backbones: the gradient of a batch is the same whether it is taken at once or in pieces."""

from __future__ import annotations

import pytest

from engine_fixture import Little

SMALL = [
    "parts.lm={kind: random, width: 16, depth: 1, frozen: true}",
    "parts.vision={kind: vit, depth: 1, width: 16, heads: 2, frozen: true}",
]
FORMER = "parts.text={kind: q_former, queries: 3, width: 16, heads: 2, depth: 1}"
TWO = "parts.vision={kind: joined, towers: {a: {kind: vit, width: 8, depth: 1, heads: 2}, b: {kind: vit, stem: patch, width: 8, depth: 1, heads: 2}}}"


@pytest.mark.parametrize(
    ("name", "stage", "more"),
    [
        ("fromage", "", ["embed_dim=6"]),
        ("hacl", "", ["embed_dim=6"]),
        ("lg-qformer", "ground", [FORMER]),
        ("eagle", "prealign", [TWO, "parts.lm={kind: random, width: 16, depth: 1}"]),
        ("sugar", "tune", ["adapters={}", "stages.tune.train=[connector]"]),
        (
            "vladva", "tune",
            ["adapters={}", "stages.tune.train=[connector]", "parts.lm={kind: random, width: 16, depth: 1, prompts: true, frozen: true}",
             "stages.tune.objectives.short_info_nce.most=20", "stages.tune.objectives.long_next_token.least=21"],
        ),
    ],
)  # fmt: skip
def test_pieces_give_the_gradient_of_the_whole_batch(name: str, stage: str, more: list[str]) -> None:
    little = Little(name, *SMALL, *more, batch_size=6, stage=stage)
    whole, pieces = little.gradients(None), little.gradients(2)
    assert any(g.abs().max() > 0 for g in whole.values())
    for key, g in whole.items():
        assert float((pieces[key] - g).norm()) <= 1e-4 * float(g.norm()) + 1e-6, key
