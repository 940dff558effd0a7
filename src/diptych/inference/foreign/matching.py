"""BLIP's image-text matching (Li et al., arXiv:2201.12086): log-odds of its matching head, or its cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import normalize

from diptych.core.capabilities import Adapter, Image, all_pairs
from diptych.core.errors import DiptychError
from diptych.inference.foreign.hub import Opened, move, pil


class Matching(Adapter):
    """A model of transformers with a matching head."""

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("BlipForImageTextRetrieval",)

    def __init__(self, opened: Opened, batch: int, score: str):
        import transformers

        if score not in ("matching", "similarity"):
            raise DiptychError(f"hf:{opened.name}: score={score}; it scores by matching or similarity")
        self.name = f"hf:{opened.name}"
        self.by, self.batch, self.device, self.dtype = score, batch, opened.device, opened.dtype
        self.model, self.processor = opened.model(transformers.BlipForImageTextRetrieval), opened.processor()
        self.capabilities = frozenset({"score", "embed_image", "embed_text"} if score == "similarity" else {"score"})
        self.key = opened.key(self.model, score)

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        if self.by != "similarity":
            self.cannot("embed_image")
        with torch.inference_mode():
            result = [normalize(self.model.vision_proj(states[:, 0]), dim=-1) for states in self._states(images)]
        return torch.cat(result).float().cpu().numpy()

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        if self.by != "similarity":
            self.cannot("embed_text")
        result = []
        for start in range(0, len(texts), self.batch):
            with torch.inference_mode():
                tokens = self._tokens(texts[start : start + self.batch])
                if (
                    self.processor.tokenizer.convert_ids_to_tokens(int(tokens["input_ids"][0, 0])) == "[ENC]"
                ):  # of texts with an image
                    tokens["input_ids"][:, 0] = self.processor.tokenizer.bos_token_id
                out = self.model.text_encoder(**tokens).last_hidden_state
                result.append(normalize(self.model.text_proj(out[:, 0]), dim=-1).float().cpu())
        return torch.cat(result).numpy()

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """Log-odds of the matching head, float32 [N, M], or [P] for ``pairs``."""
        if self.by == "similarity":
            return super().score(images, texts, pairs)
        wanted = all_pairs(len(images), len(texts)) if pairs is None else np.asarray(pairs)
        result = np.empty(len(wanted), dtype=np.float32)
        order = np.argsort(wanted[:, 0], kind="stable")  # so that an image is encoded once
        with torch.inference_mode():
            for start in range(0, len(order), self.batch):
                rows = order[start : start + self.batch]
                shown, which = np.unique(wanted[rows, 0], return_inverse=True)
                seen = torch.cat(list(self._states([images[i] for i in shown])))[torch.from_numpy(which).to(self.device)]
                out = self.model.text_encoder(
                    **self._tokens([texts[j] for j in wanted[rows, 1]]),
                    encoder_hidden_states=seen,
                    encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=self.device),
                )
                logits = self.model.itm_head(out.last_hidden_state[:, 0]).float()
                result[rows] = (logits[:, 1] - logits[:, 0]).cpu().numpy()
        return result if pairs is not None else result.reshape(len(images), len(texts))

    def _states(self, images: Sequence[Image]) -> Any:
        for start in range(0, len(images), self.batch):
            pixels = self.processor.image_processor(pil(images[start : start + self.batch]), return_tensors="pt")
            yield self.model.vision_model(**move(pixels, self.device, self.dtype)).last_hidden_state

    def _tokens(self, texts: Sequence[str]) -> dict[str, Any]:
        tokenizer = self.processor.tokenizer
        longest = min(tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return {k: tokens[k].to(self.device) for k in ("input_ids", "attention_mask")}
