"""transformers' ``Blip2ForConditionalGeneration`` (Li et al. 2023): a vision tower, the queries' half of the Q-Former, a language model behind it."""

from __future__ import annotations

from diptych.interop.base import Same, linear, same
from diptych.models.qformer import QFormerText


def qformer_entries(text: QFormerText, words: bool = False, ours: str = "parts.text") -> list[Same]:
    """Queries and a ``Blip2QFormerModel``. words: with the text's feed-forward layers, which a class that reads no text does not have."""
    found = [
        same(f"{ours}.queries", "query_tokens", view=(1, len(text.queries), text.width)),
        *linear(f"{ours}.norm", "qformer.layernorm"),
    ]
    for i, block in enumerate(text.transformer.blocks):
        here, there = f"{ours}.transformer.blocks.{i}", f"qformer.encoder.layer.{i}"
        attentions = [("attention", "norm1", "attention")]
        attentions += [("cross", "norm_cross", "crossattention")] if block.cross is not None else []
        for mine, norm, name in attentions:
            found += linear(f"{here}.{mine}.q", f"{there}.{name}.attention.query")
            found += linear(f"{here}.{mine}.kv", [f"{there}.{name}.attention.key", f"{there}.{name}.attention.value"])
            found += linear(f"{here}.{mine}.out", f"{there}.{name}.output.dense")
            found += linear(f"{here}.{norm}", f"{there}.{name}.output.LayerNorm")
        halves = [("mlp", "norm2", "_query")] + ([("mlp_text", "norm_text", "")] if words else [])
        for mine, norm, end in halves:
            found += linear(f"{here}.{mine}.0", f"{there}.intermediate{end}.dense")
            found += linear(f"{here}.{mine}.2", f"{there}.output{end}.dense")
            found += linear(f"{here}.{norm}", f"{there}.output{end}.LayerNorm")
    return found
