"""Models without image vectors, seen as ones that embed images: by their scores for a list of texts, or by the hidden states of
their language model.

So a model that answers or matches (a likelihood, a matching score) can name classes, and be adapted to them, like one with vectors.

Shapes: N images, C texts, D width of the language model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Adapter, Image, Model, one_or_many
from diptych.core.errors import DiptychError


class ScoreVectors(Adapter):
    """An image's vector: the model's scores for the texts minus their mean, as a unit vector. The vector of text c is the c-th unit
    vector of the basis, so that cosines are in the order of the scores.
    """

    def __init__(self, model: Model, texts: Sequence[str]):
        if "score" not in model.capabilities:
            raise DiptychError(f"model '{model.name}' cannot embed_image or score; it can: {', '.join(sorted(model.capabilities))}")
        self.model, self.texts = model, tuple(texts)
        self.name = model.name
        self.capabilities = model.capabilities | {"embed_image", "embed_text"}
        own = getattr(model, "key", None)
        digest = hashlib.blake2b(repr(self.texts).encode(), digest_size=6).hexdigest()
        self.key = None if own is None else f"{own}-scores-{digest}"

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """float32 [N, C]."""
        scores = np.asarray(self.model.score(one_or_many(images), list(self.texts)), dtype=np.float64)
        return unit_rows(scores - scores.mean(1, keepdims=True)).astype(np.float32)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [M, C], of texts in the list. DiptychError for others."""
        places = {text: i for i, text in enumerate(self.texts)}
        if unknown := [text for text in one_or_many(texts) if text not in places]:
            raise DiptychError(f"model '{self.name}' has scores for {len(places)} texts only, not for '{unknown[0]}'")
        rows: np.ndarray = np.eye(len(self.texts), dtype=np.float32)[[places[text] for text in one_or_many(texts)]]
        return rows

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """The model's own scores."""
        return self.model.score(images, texts, pairs)


def embedding(model: Model, texts: Sequence[str]) -> Model:
    """The model itself if it embeds images; else by its scores for the texts. DiptychError if it can do neither."""
    return model if "embed_image" in model.capabilities else ScoreVectors(model, texts)


POOLS = ("mean", "last")


class HiddenStates(Adapter):
    """A language model's own view of an image, ``hidden:RUN`` or ``hidden:RUN?pool=last``: it reads [BOS] and the image's tokens,
    as before it writes a caption, and the states of its last layer (after its norm, as the head reads them) become a unit vector.

    pool: ``mean``, over the image's tokens; ``last``, the state at the last of them, from which the first word is predicted. Where
    layers look at the image and it is not among the words (gated cross-attention), there is the state at [BOS] alone, and both are
    the same. No vectors of texts: a caption's states are not comparable with an image's unless a model was trained so.
    """

    capabilities = frozenset({"embed_image"})

    def __init__(self, model: Model, pool: str = "mean"):
        from diptych.inference.run import TrainedModel

        if pool not in POOLS:
            raise DiptychError(f"hidden:{model.name}: pool is '{pool}'; expected {' or '.join(POOLS)}")
        lm: Any = model.model.parts["lm"] if isinstance(model, TrainedModel) and "lm" in model.model.parts else None
        if not isinstance(model, TrainedModel) or not hasattr(lm, "image_hidden") or not model.model.graph.gives("image.prefix"):
            raise DiptychError(
                f"hidden:{model.name}: it has no language model that reads images, as runs of llava, frozen or flamingo have. "
                "Leave out hidden: for vectors of images, or scores of texts"
            )
        self.base, self.pool, self.lm = model, pool, lm
        self.name = f"{model.name}, hidden states ({pool})"
        own = getattr(model, "key", None)
        self.key = None if own is None else f"{own}-hidden-{pool}"

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, D]."""
        found = [self._states(one_or_many(images)[start : start + 32]) for start in range(0, len(one_or_many(images)), 32)]
        return unit_rows(np.concatenate(found)) if found else np.zeros((0, self.lm.width), dtype=np.float32)

    def _states(self, images: Sequence[Image]) -> np.ndarray:
        with self.base._inference():
            hidden = self.lm.image_hidden(self.base._images(images)["image.prefix"]).float()  # [B, N, D]
            result: np.ndarray = (hidden.mean(1) if self.pool == "mean" else hidden[:, -1]).cpu().numpy()
        return result


def opened_hidden(address: str, model: Model) -> HiddenStates:
    """The model at ``hidden:RUN?pool=…``, from the run itself. DiptychError for another option."""
    _, _, query = address.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    if unknown := set(options) - {"pool"}:
        raise DiptychError(f"{address}: unknown option '{sorted(unknown)[0]}'; expected pool=mean or pool=last")
    return HiddenStates(model, options.get("pool", "mean"))
