"""TPT: a context that is tuned anew for each picture, until views of it agree. No label is used, and nothing is kept.

Shapes: V views, C classes, E embedding.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from diptych.choose.towers.base import TowerWay
from diptych.choose.towers.heads import class_texts
from diptych.choose.towers.model import TowerModel
from diptych.choose.ways.unlabelled.views import entropy_of_mean, least_uncertain
from diptych.core.batch import Batch
from diptych.core.capabilities import Image, Model
from diptych.core.encodings import TEXT_EMBEDDING
from diptych.core.errors import DiptychError
from diptych.data.fields.text import tokenized
from diptych.data.image import as_pixels, random_resized_crop
from diptych.inference.heads import Head
from diptych.inference.run import TrainedModel
from diptych.models.adapters.prompt import Prompt

DECAY = 0.01  # of AdamW, PyTorch's default, which the authors leave as it is
CROP = (0.08, 1.0)  # the share of the picture's area that a view shows, torchvision's default


def views_of(image: Image, number: int, size: int) -> list[np.ndarray]:
    """The picture itself and random crops of it, half of them mirrored: ``number`` in all. They depend on the picture alone."""
    pixels = as_pixels(image, "image")
    rng = random.Random(zlib.crc32(np.ascontiguousarray(pixels).tobytes()))
    crops = [random_resized_crop(pixels, size, rng, CROP) for _ in range(number - 1)]
    return [pixels, *(np.ascontiguousarray(crop[:, ::-1]) if rng.random() < 0.5 else crop for crop in crops)]


@dataclass(frozen=True)
class TunedPrompts(Head):
    """The classes of a run with the adapter ``prompt``: for each picture its vectors start as they were learned, or as words, and
    are moved by ``steps`` of AdamW so that the entropy of the mean prediction of the surest views falls; then the picture is named.

    views: in all; share: of them that count, those with the least entropy before the first step; lr: of AdamW.
    """

    texts: tuple[str, ...]
    scale: float
    views: int = 64
    share: float = 0.1
    lr: float = 5e-3
    steps: int = 1

    def logits(self, x: np.ndarray) -> np.ndarray:
        """DiptychError: the classes have other vectors for each picture."""
        raise DiptychError("the classes of this model have no vectors; they are computed for each picture (tpt)")

    def logits_of(self, model: Model, images: Sequence[Image]) -> np.ndarray:
        """[N, C], one picture after the other."""
        assert isinstance(model, TrainedModel)
        rows = [self.tuned(model, model.embed_image(views_of(image, self.views, model.model.image_size)))[0] for image in images]
        return np.stack(rows) if rows else np.zeros((0, len(self.texts)))

    def tuned(self, model: TrainedModel, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logits of the first view [C] after the steps, and the vectors of the context with which they were computed. views:
        unit vectors [V, E]. The model is as before afterwards.
        """
        vectors = prompt_of(model).vectors
        x, before = torch.tensor(views, device=model.device), vectors.detach().clone()
        x, learned = x.to(before.dtype), vectors.requires_grad
        optimizer = torch.optim.AdamW([vectors], lr=self.lr, weight_decay=DECAY)
        chosen: Tensor | None = None
        try:
            vectors.requires_grad_(True)
            with torch.enable_grad():
                for _ in range(self.steps):
                    logits = self.scale * x @ self._classes(model).T
                    chosen = least_uncertain(logits.detach(), self.share) if chosen is None else chosen
                    (vectors.grad,) = torch.autograd.grad(entropy_of_mean(logits[chosen]), vectors)
                    optimizer.step()
            with torch.no_grad():
                found = (self.scale * x[:1] @ self._classes(model).T)[0]
            return found.double().cpu().numpy(), vectors.detach().cpu().numpy().copy()
        finally:
            with torch.no_grad():
                vectors.copy_(before)
            vectors.grad = None
            vectors.requires_grad_(learned)

    def _classes(self, model: TrainedModel) -> Tensor:
        """The unit vectors of the classes with the context as it is [C, E]."""
        texts = tokenized(model.model.tokenizer, list(self.texts)).to(model.device)
        return normalize(model.model.encode(Batch({"text": texts}, len(self.texts)))[TEXT_EMBEDDING], dim=-1)


def prompt_of(model: TrainedModel) -> Prompt:
    """The text part's learned context. DiptychError if there is none."""
    text: Any = model.model.part("text")
    found = next((a for a in model.model.adapters.values() if isinstance(a, Prompt) and a.part is text), None)
    if found is None:
        raise DiptychError(f"model '{model.name}' has no learned context (adapters.text: {{kind: prompt}}), which tpt tunes")
    return found


@dataclass(frozen=True, kw_only=True)
class Tpt(TowerWay):
    """Test-time prompt tuning (Shu et al. 2022, §3): for each picture 64 views, the tenth of least entropy, one step of AdamW at
    0.005 on the context "a photo of a" that lowers the entropy of their mean prediction; then the context starts anew.

    Checked with the authors' code (azshue/TPT): the first view is the picture as it is, the others are crops and mirrored crops
    (their AugMix of further operations is for their sets with shifted styles, and left out here); the number of views that count is
    rounded down; views are chosen before the first step; the picture as it is, is named. The training pictures are not used, so
    what is written is a run of one step that changes nothing.

    words: what the context begins as. views, share, steps: as above; lr: of the tuning.
    """

    name = "tpt"
    about = "a context tuned anew for each picture, until views of it agree; no label is used"
    cite = "Shu et al. 2022, arXiv:2209.07511"
    merges = False
    slow = True
    template: str = "{}"
    batch_size: int = 1
    optimizer: str = "sgd"
    lr: float = 5e-3
    words: str = "a photo of a"
    views: Annotated[int, Field(ge=2)] = 64
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    steps: Annotated[int, Field(ge=1)] = 1

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """The context that is tuned."""
        return {"text": {"kind": "prompt", "words": self.words}}

    def objectives(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """Classification with the weight 0: nothing is learned from the training pictures."""
        return {name: {**spec, "weight": 0.0} for name, spec in super().objectives(model).items()}

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """One picture, whose gradient is 0."""
        return 1.0

    def head(self, model: TrainedModel, names: Sequence[str], template: str) -> Head:
        """Classes with a context tuned for each picture."""
        texts = tuple(class_texts(model, names, template))
        return TunedPrompts(texts, model.scale, self.views, self.share, self.lr, self.steps)
