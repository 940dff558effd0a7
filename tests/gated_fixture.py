"""A gated cross-attention layer of transformers' Idefics, with open gates, and ours with its weights."""

from __future__ import annotations

from typing import Any

import torch

from diptych.models.fusion.gated import GatedLayer


def idefics_layers() -> tuple[Any, GatedLayer]:
    """Theirs and ours, width 32."""
    from transformers import IdeficsConfig
    from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 50, "num_hidden_layers": 1}
    config = IdeficsConfig(
        **sizes,
        alpha_type="float",
        qk_layer_norms=False,
        dropout=0.0,
        vision_config={"embed_dim": 32},
        _attn_implementation="eager",
    )
    theirs = IdeficsGatedCrossAttentionLayer(config, 0).eval()
    theirs.alpha_cross_attn.data.fill_(0.7)
    theirs.alpha_dense.data.fill_(-0.4)
    ours = GatedLayer(32, 4, 48, config.rms_norm_eps, mlp="gated")
    ours.load_state_dict(from_idefics(theirs.state_dict()))
    return theirs, ours


def from_idefics(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "norm1.weight": "input_layernorm.weight", "norm2.weight": "post_attention_layernorm.weight", "alpha": "alpha_cross_attn", "beta": "alpha_dense",
        "attention.q.weight": "cross_attn.q_proj.weight", "attention.out.weight": "cross_attn.o_proj.weight",
        "mlp.gate.weight": "mlp.gate_proj.weight", "mlp.up.weight": "mlp.up_proj.weight", "mlp.down.weight": "mlp.down_proj.weight",
    }  # fmt: skip
    found = {name: state[key] for name, key in names.items()}
    found["attention.kv.weight"] = torch.cat([state["cross_attn.k_proj.weight"], state["cross_attn.v_proj.weight"]])
    width = len(found["norm1.weight"])
    return found | {f"attention.{name}.bias": torch.zeros(n) for name, n in (("q", width), ("kv", 2 * width), ("out", width))}
