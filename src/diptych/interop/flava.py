"""FLAVA's weights between ``FlavaForPreTraining`` of transformers and ours.

Ours: ``parts.vision: {kind: class, mask_token: true, bare: true}``, ``parts.text: {kind: bert, post_norm: false, bare: true}``, ``parts.fusion: {kind: joint}``, objectives
``info_nce``, ``masked_codes``, ``masked_text``, ``masked_both``, ``matching: {pooler: tanh}``. Their image codebook is another than our quantizer and stays behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def encoder(theirs: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A stack of ``FlavaLayer`` and its last norm (``prefix`` + "layernorm") as our ``Transformer``."""
    found = {f"norm.{k}": theirs[f"{prefix}layernorm.{k}"] for k in ("weight", "bias")}
    depth = 1 + max(int(name.split(".layer.")[1].split(".")[0]) for name in theirs if name.startswith(f"{prefix}encoder.layer."))
    for i in range(depth):
        layer, block = f"{prefix}encoder.layer.{i}.", f"blocks.{i}."
        for k in ("weight", "bias"):
            pairs = {
                "norm1": "layernorm_before", "norm2": "layernorm_after", "attention.q": "attention.attention.query",
                "attention.out": "attention.output.dense", "mlp.0": "intermediate.dense", "mlp.2": "output.dense",
            }  # fmt: skip
            found |= {f"{block}{ours}.{k}": theirs[f"{layer}{name}.{k}"] for ours, name in pairs.items()}
            found[f"{block}attention.kv.{k}"] = torch.cat([theirs[f"{layer}attention.attention.{n}.{k}"] for n in ("key", "value")])
    return found


def head(theirs: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A ``FlavaMaskedPredictionHead`` as our ``prediction_head``."""
    pairs = {"0": "transform.dense", "2": "transform.LayerNorm", "3": "decoder"}
    return {f"{ours}.{k}": theirs[f"{prefix}.{name}.{k}"] for ours, name in pairs.items() for k in ("weight", "bias")}


def from_transformers(theirs: Mapping[str, Tensor], model: nn.Module, objectives: nn.ModuleDict) -> None:
    """Put the weights of a ``FlavaForPreTraining`` into a model of the geometry above, in place. Raises RuntimeError if one does not fit."""
    flava = "flava."
    image, text, both = (f"{flava}{name}_model." for name in ("image", "text", "multimodal"))
    parts: Any = model.parts
    vision = {f"transformer.{k}": v for k, v in encoder(theirs, image).items()}
    vision |= {
        "classes": theirs[f"{image}embeddings.cls_token"][0],
        "mask_token": theirs[f"{image}embeddings.mask_token"][0, 0],
        "positions": theirs[f"{image}embeddings.position_embeddings"][0],
        **{f"stem.{k}": theirs[f"{image}embeddings.patch_embeddings.projection.{k}"] for k in ("weight", "bias")},
    }
    words = {f"transformer.{k}": v for k, v in encoder(theirs, text).items()}
    kinds = theirs[f"{text}embeddings.token_type_embeddings.weight"][0]  # all tokens are of the first kind: part of their positions
    words |= {
        "embedding.weight": theirs[f"{text}embeddings.word_embeddings.weight"],
        "positions": theirs[f"{text}embeddings.position_embeddings.weight"] + kinds,
        **{f"norm.{k}": theirs[f"{text}embeddings.LayerNorm.{k}"] for k in ("weight", "bias")},
    }
    joint = {f"transformer.{k}": v for k, v in encoder(theirs, both).items()} | {"class_token": theirs[f"{both}cls_token"][0, 0]}
    for ours, name in (("from_image", "image_to_mm_projection"), ("from_text", "text_to_mm_projection")):
        joint |= {f"{ours}.{k}": theirs[f"{flava}{name}.{k}"] for k in ("weight", "bias")}
    for part, weights in (("vision", vision), ("text", words), ("fusion", joint)):
        parts[part].load_state_dict(weights)
    for side in ("image", "text"):
        getattr(model, f"{side}_projection").load_state_dict(
            {k: theirs[f"{flava}{side}_projection.{k}"] for k in ("weight", "bias")}
        )
    matching = {f"0.{k}": theirs[f"itm_head.pooler.dense.{k}"] for k in ("weight", "bias")}
    for k in ("weight", "bias"):  # two logits, of which only the difference counts
        pair = theirs[f"itm_head.seq_relationship.{k}"]
        matching[f"2.{k}"] = pair[1:] - pair[:1]
    loaded = {
        ("masked_codes", "head"): head(theirs, "mim_head"), ("masked_text", "head"): head(theirs, "mlm_head"),
        ("masked_both", "image_head"): head(theirs, "mmm_image_head"), ("masked_both", "text_head"): head(theirs, "mmm_text_head"),
        ("matching", "head"): matching,
    }  # fmt: skip
    for (objective, name), weights in loaded.items():
        if objective in objectives:
            getattr(objectives[objective], name).load_state_dict(weights)
    if "info_nce" in objectives:
        with torch.no_grad():
            objectives["info_nce"].logit_scale.copy_(theirs[f"{flava}logit_scale"])  # type: ignore[operator]
