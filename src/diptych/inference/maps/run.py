"""The maps of a run of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diptych.core.batch import Batch, Images
from diptych.core.capabilities import Image
from diptych.core.encodings import TEXT, Pass
from diptych.core.errors import DiptychError
from diptych.data.fields.base import stacked
from diptych.data.fields.text import tokenized
from diptych.data.image import as_pixels, resize
from diptych.inference.maps import formulas
from diptych.inference.maps.answers import answer_map, sees_patches
from diptych.inference.maps.base import Maps, arrays, cam_map, flow_map, gradients_of
from diptych.inference.maps.watching import Watched, attends, watching
from diptych.models.layers.attention import Block
from diptych.objectives.filip import without_specials


class RunMaps(Maps):
    """run: a ``TrainedModel`` that scores pictures by a vision tower."""

    def __init__(self, run: Any):
        self.run, self.name = run, run.name
        self.model = run.model
        self.methods = methods_of(run)

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The vision tower."""
        return [self.model.parts["vision"]]

    def score(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """How well text i fits picture i, float32 [n], as the run scores."""
        return np.asarray(self.run.score(images, texts, np.stack([np.arange(len(images))] * 2, 1)))

    def _grids(self, images: Sequence[Image], texts: Sequence[str], method: str) -> list[np.ndarray]:
        with torch.enable_grad():
            return arrays(self._map(self._pass(images, texts), method))

    def _pass(self, images: Sequence[Image], texts: Sequence[str]) -> Pass:
        """The pass over pairs, with a gradient at the pixels: frozen towers are then part of the graph, too."""
        size, device = self.model.image_size, self.run.device
        pixels = stacked([resize(as_pixels(image, f"image {i}"), size) for i, image in enumerate(images)])
        shown = Images(Images(pixels.to(device)).floats.clone().requires_grad_())
        read = tokenized(self.model.tokenizer, texts).to(device)
        made: Pass = self.model.encode(Batch({"image": shown, "text": read}, len(images)))
        return made

    def _scores(self, p: Pass) -> Tensor:
        rows = torch.arange(p.size, device=self.run.device)
        scores: Tensor = self.run.scorer.pair_scores(p, rows, rows)
        return scores

    def _map(self, p: Pass, method: str) -> Tensor:
        """[B, N]"""
        tower = self.model.parts["vision"]
        extra = int(tower.extra)
        if method == "words":
            return self._words(p, extra)
        if method == "dense":
            cosines = torch.einsum("bne,be->bn", p["image.token_embedding"], p["text.embedding"])
            return cosines[:, extra:]
        if method == "cross":
            return self._cross(p, extra)
        if method == "answer":
            return answer_map(self.run, p)
        with watching(tower) if attends(tower) else nullcontext(Watched()) as seen:
            tokens = p["image.tokens"]
        if method == "mixture":
            flow = formulas.rollout([a.detach() for a in seen.own])[:, :extra, extra:]
            return torch.einsum("bk,bkn->bn", self._mixture(p), flow)
        if seen.given is None:  # a tower without blocks: its tokens are the feature map
            seen.given = tokens.tokens
        # the pass keeps what the tower gave, so that the score belongs to the recorded graph
        scores = self._scores(p)
        if method == "grad-cam":
            return cam_map(seen, scores, extra)
        return flow_map(seen, scores, method, self._read(tower, seen), extra)

    def _read(self, tower: Any, seen: Watched) -> str:
        """How the tower's output is read (``flow_map``)."""
        if getattr(self.run.scorer, "scores_as", "") == "late_interaction":
            return "mean"
        if seen.pools:
            return "pool"
        return str(getattr(tower, "pooling", "class" if tower.extra else "mean"))

    def _words(self, p: Pass, extra: int) -> Tensor:
        words = without_specials(p)
        patches, texts = p["image.projected"][:, extra:], p["text.projected"]
        if (sparc := _objective(self.run, "image.projected")) is not None:
            return formulas.grouped_weights(patches, texts, words, getattr(sparc, "threshold", None))
        return formulas.word_patches(patches, texts, words)

    def _mixture(self, p: Pass) -> Tensor:
        llip = self.run.scorer
        query = llip.query(p["text.pooled"].float()).unflatten(1, (llip.heads, -1))
        key = llip.key(p["image.class_tokens"].float()).unflatten(2, (llip.heads, -1)).transpose(1, 2)
        return formulas.mixture(query, key, llip.temperature)

    def _cross(self, p: Pass, extra: int) -> Tensor:
        """All layers in which words attend to the picture's patches."""
        layers = nn.ModuleList(part for name, part in self.model.parts.items() if name != "vision")
        tower = self.model.parts["vision"]
        n = int(tower.tokens) + extra
        with watching(layers) as seen:
            scores = self._scores(p)
        words = p[TEXT].mask
        looks = [a for a in seen.cross if a.shape[-1] == n and a.shape[2] == words.shape[1] and len(a) == p.size]
        if not looks:
            raise DiptychError(f"model '{self.name}': no attention from words to patches was recorded")
        total = [
            formulas.cross_attention(a.detach(), g, words)[:, extra:]
            for a, g in zip(looks, gradients_of(scores, looks), strict=True)
        ]
        return torch.stack(total).mean(0)


def _objective(run: Any, needed: str) -> Any:
    return next((o for o in run.objectives.values() if needed in o.needed()), None)


def methods_of(run: Any) -> tuple[str, ...]:
    """The maps that a run has, by what it was trained for, the one that is used by default first."""
    model, scorer = run.model, run.scorer
    graph, parts = model.graph, model.parts
    if scorer is None or run.shows != "image" or "vision" not in parts or "score" not in run.capabilities:
        return ()
    tower = parts["vision"]
    if math.isqrt(int(tower.tokens)) ** 2 != int(tower.tokens):
        return ()
    scored = graph.behind([name for name in scorer.needed() if "." in name and graph.gives(name)])
    if "image.tokens" not in scored:
        return ()
    pooling, kind = getattr(tower, "pooling", "mean"), getattr(scorer, "scores_as", "")
    patches, tokenwise = pooling != "cascade", kind == "late_interaction"
    found = []
    if patches and any(_objective(run, name) for name in ("image.projected", "image.token_embedding")):
        found.append("words")
    if kind == "contextual":
        found.append("mixture")
    layers = [m for name, part in parts.items() if name not in ("vision", "lm") for m in part.modules()]
    crossing = any(isinstance(m, Block) and m.cross is not None for m in layers)
    if crossing and patches and {"text.fused", "text.logits"} & scored and "lm" not in parts and kind != "pseudo_likelihood":
        found.append("cross")
    if "text.logits" in scored and sees_patches(run):
        found.append("answer")
    space = {"image.token_embedding", "text.embedding"}
    averaged = getattr(tower, "pooling", "") == "mean" or not attends(tower)
    direct = averaged and not tower.extra and {"embed_image", "embed_text"} <= run.capabilities
    dense = ["dense"] if direct and all(map(graph.gives, space)) else []
    if attends(tower) and not getattr(tower, "prompts", ()):
        pooled = "image.embedding" in scored or tokenwise
        # the order in which they did well on scenes (docs/measured.md): a patch by itself says little of a tower that mixes patches
        return (*found, *(("gradient", "grad-cam", "legrad", "rollout") if pooled else ("grad-cam", "legrad")), *dense)
    return (*found, "grad-cam", *dense)
