"""The text side of transformers' ``ChameleonForConditionalGeneration`` as an ``interleaved`` decoder's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "transformer.norm.weight",
    "lm_head.weight": "head.weight",
}
INSIDE = {
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "self_attn.o_proj": "attention.out",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def decoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state dict from that of the whole model; the image tokenizer's weights are passed over.

    It fits a decoder of the same width, depth, heads and ``hidden`` whose vocabulary has the same size: rows of words, marks and codes stand
    where their ids say.
    """
    found = {ours: state[theirs] for theirs, ours in NAMES.items()}
    for name, value in state.items():
        if match := LAYER.fullmatch(name):
            number, inside, what = match.groups()
            found[f"transformer.blocks.{number}.{INSIDE[inside]}.{what}"] = value
    return found
