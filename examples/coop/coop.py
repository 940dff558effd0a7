"""CoOp (Zhou et al. 2022, arXiv:2109.01134): context vectors before the class names, learned from a few labelled images; all else stays.

Shapes: B batch, C classes, E embedding.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import unquote

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.encodings import Pass
from diptych.core.sample import Captions, Label, Sample
from diptych.data.source import Controlled, Problem, Source
from diptych.data.sources import open_source
from diptych.objectives import Objective


def classification_loss(image: Tensor, classes: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    """−1/B Σ_i log softmax_c(scale · x_i · w_c) at c = index_i, for unit vectors x [B, E] and w [C, E] (equations 1 and 3)."""
    return F.cross_entropy(scale * image.float() @ classes.float().T, index)


class ClassNames(Objective):
    """``classification_loss`` over the embeddings of all class names. The scale does not learn: it is that of the run that the weights come from, where this
    objective has the name of the contrastive objective there (``info_nce``)."""

    needs = ("image.embedding", "label.classes.embedding", "label")
    trains = ("text.embedding",)  # class names are texts: the model scores any text through the same vectors

    def __init__(self, model: Any, *, temperature: float = 0.07):
        super().__init__(model)
        self.register_buffer("logit_scale", torch.tensor(math.log(1 / temperature)))
        self.logit_scale: Tensor

    @property
    def scale(self) -> Tensor:
        return self.logit_scale.clamp(max=math.log(100)).exp()

    def forward(self, p: Pass) -> Tensor:
        return classification_loss(p["image.embedding"], p["label.classes.embedding"], p["label"].index, self.scale)

    def metrics(self) -> dict[str, float]:
        return {"scale": self.scale.item()}


class FewShot:
    """``coop:FewShot:ADDRESS?shots=16``: of each class the first so many images of the training part. ADDRESS: ``classes:DIRECTORY``, or ``scenes:small``,
    of which it takes images of one object with the object as the class. The other parts are whole. An address with options of its own is percent-encoded:
    ``scenes:small%3Fnatural=0.9``. held_out: images of one object in the other parts, of ``scenes:``."""

    def __init__(self, place: str, *, shots: int = 16, held_out: int = 600):
        self.place, self.shots, self.held_out = place, shots, held_out
        self.address, self.problems = f"coop:FewShot:{place}", list[Problem]()
        self.source, self.part = open_source(unquote(place)), ""
        self._items: list[Any] | None = None

    @property
    def classes(self) -> list[str]:
        return self.source.concepts() if isinstance(self.source, Controlled) else self.source.classes  # type: ignore[attr-defined]

    @property
    def image_size(self) -> int | None:
        return getattr(self.source, "image_size", None)

    @property
    def items(self) -> list[Any]:
        """Samples, or places in the source."""
        if self._items is None:
            few = self.part in ("", "train")
            if isinstance(self.source, Controlled):
                drawn = self.source.concept_samples(len(self.classes) * self.shots if few else self.held_out)
                self._items = [self._sample(i, image, index) for i, (image, index) in enumerate(drawn)]
            else:
                self._items = self._first() if few else list(range(len(self.source)))
        return self._items

    def _sample(self, number: int, image: Any, index: int) -> Sample:
        name = self.classes[index]
        return Sample(f"{self.part}/{number}", {"labels": [name]}, image=image, label=Label(index, name), text=Captions([name]))

    def _first(self) -> list[int]:
        found: dict[int, list[int]] = {}
        for i in range(len(self.source)):
            of_class = found.setdefault(self.source[i].fields["label"].index, [])
            if len(of_class) < self.shots:
                of_class.append(i)
        return sorted(i for of_class in found.values() for i in of_class)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        return item if isinstance(item, Sample) else self.source[item]

    def captions(self, index: int) -> list[str]:
        """The class name: a tokenizer is trained on it where the recipe brings none."""
        return list(self.classes)

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}-{self.shots}-{self.held_out}"

    def split(self, name: str) -> Source:
        part = FewShot(self.place, shots=self.shots, held_out=self.held_out)
        part.source, part.part = self.source.split(name), name
        return part
