"""Gemma 3 270M (Gemma Team 2025): a real causal language model from installable packages.

They hold a 4-bit GGUF file, which is converted once and kept as bf16 safetensors; later loads take seconds.
Use of the weights is subject to the Gemma Terms of Use, ai.google.dev/gemma/terms.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diptych.core.extras import need
from diptych.core.files import write_atomically
from diptych.models.pretrained.causal_lm import CausalLM, load_causal_lm
from diptych.models.pretrained.packages import quiet, require

log = logging.getLogger(__name__)
NAME = "gemma-3-270m"


def load_gemma(
    cache_dir: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    progress: Callable[[str], object] = log.info,
) -> CausalLM:
    """The packaged model, frozen. The first call converts it, which takes about half a minute and 0.6 GB of disk."""
    from filelock import FileLock

    package, _ = require(NAME)
    directory = Path(cache_dir or os.environ.get("DIPTYCH_CACHE") or Path.home() / ".cache" / "diptych") / NAME
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.parent / f".{NAME}.lock"):  # two recipes of a comparison may start at once
        if not directory.is_dir():
            progress(f"converting {NAME} once, about half a minute, to {directory}")
            write_atomically(directory, lambda target: convert(package, target))
    return load_causal_lm(directory, dtype)


def convert(package: Any, target: Path) -> None:
    """The package's GGUF as a directory that transformers loads.

    The tensors are read with ``gguf``: transformers itself would need accelerate for it and, in some versions, keeps them packed.
    """
    from transformers import AutoTokenizer

    target.mkdir(parents=True)
    with quiet(), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        path = Path(package.assemble(output_path=Path(scratch) / "model.gguf"))  # checks the SHA-256
        AutoTokenizer.from_pretrained(scratch, gguf_file=path.name, local_files_only=True).save_pretrained(target)
        read_gguf(path).save_pretrained(target)


def read_gguf(path: Path) -> Any:
    """A bf16 ``Gemma3ForCausalLM`` from a GGUF file."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    gguf = need("gguf", extra="weights", what=NAME)
    reader = gguf.GGUFReader(path)
    says = {key.removeprefix("gemma3."): field.contents() for key, field in reader.fields.items() if key.startswith("gemma3.")}
    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    config = Gemma3TextConfig(
        vocab_size=int(embedding.shape[1]),
        hidden_size=says["embedding_length"],
        intermediate_size=says["feed_forward_length"],
        num_hidden_layers=says["block_count"],
        num_attention_heads=says["attention.head_count"],
        num_key_value_heads=says["attention.head_count_kv"],
        head_dim=says["attention.key_length"],
        query_pre_attn_scalar=says["attention.key_length"],
        rms_norm_eps=says["attention.layer_norm_rms_epsilon"],
        sliding_window=says["attention.sliding_window"],
        max_position_embeddings=says["context_length"],
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    theirs = {names.get_name(name, (".weight",)): name for name in model.state_dict() if name != "lm_head.weight"}
    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if "norm" in tensor.name:
            values = values - 1  # the file holds the factor, the model its distance from one
        weights[theirs[tensor.name]] = torch.from_numpy(values.copy()).to(torch.bfloat16)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model
