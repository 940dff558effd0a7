"""The perplexity of a caption under a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa

from diptych.core.errors import DiptychError
from diptych.curation.operators.base import Columns, Operator
from diptych.curation.operators.models import stamp

if TYPE_CHECKING:
    from diptych.models.pretrained import CausalLM

LONGEST = 256  # tokens of a text that are used


@dataclass(frozen=True, kw_only=True)
class Perplexity(Operator):
    """``perplexity``: exp of the mean −log P of the caption's tokens, after [BOS] and without [EOS]; ``tokens``: their number.

    lm: ``gemma`` (Gemma 3 270M, see its terms), ``random`` (to try a plan without weights), or a directory that transformers loads.
    """

    name = "perplexity"
    resources: ClassVar[Literal["cpu", "model"]] = "model"
    inputs = ("text",)
    outputs = {"perplexity": pa.float64(), "tokens": pa.int32()}  # noqa: RUF012 - declared, never changed
    lm: str = "gemma"
    rows: int = 32  # at a time

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        texts = batch["text"].to_pylist()
        values, counts = perplexities(_language_model(self.lm), texts, self.rows)
        return {"perplexity": [float(v) if c else None for v, c in zip(values, counts, strict=True)], "tokens": counts}

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return stamp(self.lm)


@lru_cache(maxsize=1)
def _language_model(name: str) -> CausalLM:
    from diptych.models.pretrained import CausalLM, load_causal_lm, load_gemma

    if name == "gemma":
        return load_gemma()
    if name == "random":
        from diptych.models.language.lm import COMMON

        return CausalLM.random(texts=[COMMON] * 2)
    if not Path(name).is_dir():
        raise DiptychError(f"no language model '{name}'; expected gemma, random, or a directory that transformers loads")
    return load_causal_lm(name)


def perplexities(lm: CausalLM, texts: Sequence[str], rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Perplexity, float64 [N], and number of used tokens, int32 [N], of each text; texts of similar length share a batch."""
    import torch

    from diptych.objectives.generative import token_log_probabilities

    values, counts = np.full(len(texts), np.nan), np.zeros(len(texts), np.int32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        ids, mask = (torch.from_numpy(a) for a in lm.tokenizer.encode_batch([texts[i] for i in chosen], LONGEST + 2))
        lengths = mask.sum(1) - 2  # without [BOS] and [EOS]
        is_word = torch.arange(1, ids.shape[1])[None] <= lengths[:, None]  # targets that are words
        with torch.inference_mode():
            hidden = lm.hidden(lm.embed(ids[:, :-1]), mask[:, :-1])
            total = torch.zeros(len(chosen), dtype=torch.float64)
            for row, (h, target, keep) in enumerate(
                zip(hidden, ids[:, 1:], is_word, strict=True)
            ):  # the vocabulary is large: logits of one text at a time
                if keep.any():
                    total[row] = token_log_probabilities(lm.head(h[keep])[None], target[keep][None]).double().sum()
        values[chosen] = torch.exp(-total / lengths.clamp(min=1)).numpy()
        counts[chosen] = lengths.numpy()
    return values, counts
