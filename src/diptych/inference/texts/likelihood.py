"""log P(text) under a language model that sees no image: of a run, or of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from diptych.core.errors import DiptychError
from diptych.inference.load import load
from diptych.inference.run import TrainedModel
from diptych.objectives.generative import token_log_probabilities

ROWS = 32  # texts at a time
LONGEST = 256  # tokens of a text that a model of transformers reads

TextLikelihood = Callable[[Sequence[str]], np.ndarray]


def text_likelihood(address: str) -> TextLikelihood:
    """A function from texts to log P(text) in nats, float64 [N], summed over all tokens after [BOS], [EOS] included.

    address: a run with a part ``lm`` (a language model trained on texts alone, or that of a model with images, which is then not
    shown any), or ``hf:NAME_OR_PATH`` for a causal language model of transformers. DiptychError for anything else.
    """
    if address.startswith("hf:"):
        return _of_transformers(address)
    if not Path(address).expanduser().is_dir():
        raise DiptychError(f"no language model at '{address}'; give a run directory, or hf:NAME_OR_PATH")
    model = load(Path(address).expanduser())
    if not isinstance(model, TrainedModel) or "complete" not in model.capabilities:
        raise DiptychError(
            f"{address} has no language model that reads texts alone (a part lm); give another run, or hf:NAME_OR_PATH"
        )
    return lambda texts: model.text_loglikelihood(texts, [""] * len(texts))[0].astype(np.float64)


def _of_transformers(address: str) -> TextLikelihood:
    from diptych.models.pretrained import load_causal_lm

    lm = load_causal_lm(address, torch.float32)
    lm.model.eval()

    def likelihood(texts: Sequence[str]) -> np.ndarray:
        """log P of each text, float64 [N]."""
        parts = []
        for start in range(0, len(texts), ROWS):
            given = list(texts[start : start + ROWS])
            ids, mask = (torch.from_numpy(a) for a in lm.tokenizer.encode_batch(given, LONGEST))
            with torch.inference_mode():
                logits = lm.head(lm.hidden(lm.embed(ids[:, :-1]), mask[:, :-1]))
                log_p = token_log_probabilities(logits, ids[:, 1:]) * mask[:, 1:]
            parts.append(log_p.double().sum(1).numpy())
        return np.concatenate(parts) if parts else np.zeros(0)

    return likelihood
