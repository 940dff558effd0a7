"""transformers' ``ChameleonForConditionalGeneration``: its language model as an ``interleaved`` decoder's weights, and why runs
cannot be exported.

The class turns pictures into codes itself, by the encoder of a VQGAN. A run's quantizer is another network, so the class could
never compute the codes that the run's decoder has learned; the decoders are the same (tests/models/test_chameleon.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from diptych.interop.base import Family, Misfit
from diptych.models.decoders.interleaved import InterleavedDecoder

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.models.vlm import VLM

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
    """The decoder's state dict from that of the whole model, without the image tokenizer's weights.

    It fits a decoder of the same width, depth, heads and ``hidden`` with a vocabulary of the same size; words, marks and codes keep
    their ids.
    """
    result = {ours: state[theirs] for theirs, ours in NAMES.items()}
    for name, value in state.items():
        if match := LAYER.fullmatch(name):
            number, inside, what = match.groups()
            result[f"transformer.blocks.{number}.{INSIDE[inside]}.{what}"] = value
    return result


class Chameleon(Family):
    """``ChameleonForConditionalGeneration``, to which a run cannot be exported."""

    name = "chameleon"
    architecture = "ChameleonForConditionalGeneration"

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """The reasons why it does not fit; never empty."""
        if not ("decoder" in model.parts and isinstance(model.parts["decoder"], InterleavedDecoder)):
            return [Misfit("it has no decoder over words and image codes")]
        return [
            Misfit(
                "parts.quantizer is not a ChameleonVQVAE, so it would give pictures other codes than the decoder knows: that is "
                "a VQGAN's encoder, with group "
                "norms, SiLU and attention, which rounds features as they are; ours has plain convolutions and rounds them "
                "at unit length"
            )
        ]


FAMILY = Chameleon()
