"""The shared space of images and texts, in which both have an embedding.

Shapes: B batch, N and T tokens, Q queries, D width, E embedding. Embeddings have unit length and are float32.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.part import Part
from diptych.models.pretrained.conse import LIKELIEST, TEMPERATURE, TEMPLATE, ClassSpace, class_vectors


def unit(x: Tensor) -> Tensor:
    """[..., E], unit length, float32"""
    return F.normalize(x.float(), dim=-1)


def projection(tower: Any, embed_dim: int, name: str) -> nn.Module:
    """Into the shared space: linear, ``affine`` or ``none``, as the tower's ``projection`` says."""
    if tower.projection == "none":
        if tower.width != embed_dim:
            raise DiptychError(f"embed_dim: parts.{name} gives its own embedding, which is {tower.width} wide, not {embed_dim}")
        return nn.Identity()
    return nn.Linear(tower.width, embed_dim, bias=tower.projection == "affine")


class LinearSpace(Part):
    """A linear map for each tower (CLIP, Radford et al. 2021, figure 3). ``image`` and ``text`` are the maps; a tower that does not
    exist has none.
    """

    image: nn.Module
    text: nn.Module
    can = frozenset({"embed_image", "embed_text"})

    def __init__(self, build: Build):
        super().__init__()
        self.width = build.embed_dim
        if "vision" in build.parts:
            self.image = projection(self._image_tower(build), self.width, "vision")
        if "text" in build.parts:
            self.text = projection(build.parts["text"], self.width, "text")

    def _image_tower(self, build: Build) -> Any:
        return build.parts["vision"]

    @provides("{image}.embedding", "{image}.tokens")
    @provides("{video}.embedding", "{video}.tokens")
    @provides("{regions}.embedding", "{regions}.tokens")
    def image_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.image(tokens.pooled))

    @provides("{video}.reversed_embedding", "{video}.reversed_tokens")
    def reversed_embedding(self, tokens: Tokens) -> Tensor:
        """``image_embedding`` of clips that a tower of whole clips read backwards."""
        embedding: Tensor = self.image_embedding(tokens)
        return embedding

    @provides("{image}.projection", "{image}.tokens")
    def image_projection(self, tokens: Tokens) -> Tensor:
        """``embedding`` before it is normalised, [B, E], float32."""
        projection: Tensor = self.image(tokens.pooled).float()
        return projection

    @provides("{image}.projected", "{image}.tokens")
    def image_projected(self, tokens: Tokens) -> Tensor:
        """Every token in the shared space, not normalised: [B, N, E], float32."""
        projected: Tensor = self.image(tokens.tokens).float()
        return projected

    @provides("{image}.token_embedding", "{image}.projected")
    def image_token_embedding(self, projected: Tensor) -> Tensor:
        """[B, N, E]"""
        return F.normalize(projected, dim=-1)

    @provides("{text}.embedding", "{text}.tokens")
    def text_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.text(tokens.pooled))

    @provides("{text}.projected", "{text}.tokens")
    def text_projected(self, tokens: Tokens) -> Tensor:
        """[B, T, E], float32, not normalised"""
        projected: Tensor = self.text(tokens.tokens).float()
        return projected

    @provides("{text}.token_embedding", "{text}.projected")
    def text_token_embedding(self, projected: Tensor) -> Tensor:
        """[B, T, E]"""
        return F.normalize(projected, dim=-1)


class PredictorSpace(LinearSpace):
    """A linear map for texts, and for images a predictor (NOVA): an MLP of ``layers`` linear maps with layer norm and GELU between
    them. Layer norm, not batch norm, so that micro-batches and processes change nothing. hidden: the width inside; None: four times
    that of the space.
    """

    def __init__(self, build: Build, *, layers: Annotated[int, Field(ge=2)] = 3, hidden: int | None = None):
        super().__init__(build)
        hidden = hidden or 4 * self.width
        widths = [build.width_of("vision"), *[hidden] * (layers - 1)]
        inner = [block for a, b in itertools.pairwise(widths) for block in (nn.Linear(a, b), nn.LayerNorm(b), nn.GELU())]
        self.image = nn.Sequential(*inner, nn.Linear(hidden, self.width))


class ResidualSpace(Part):
    """A space that needs no training, and what training adds to it.

    An embedding is the vector of ConSE (``models.pretrained.conse``) plus a learned map of the tower's pooled output, which is zero
    at first: a run begins exactly as ConSE. The vision tower gives the logits of ImageNet's classes, the text tower is the sentence
    encoder; the embeddings are as wide as its vectors. classes, temperature, template: of ConSE. hidden: the width inside a map of
    two layers with GELU; None: the map is linear. dropout: the share of a map's inputs that are left out in training.
    """

    can = frozenset({"embed_image", "embed_text"})

    def __init__(
        self,
        build: Build,
        *,
        classes: Annotated[int, Field(ge=1)] = LIKELIEST,
        temperature: Annotated[float, Field(gt=0)] = TEMPERATURE,
        template: str = TEMPLATE,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        super().__init__()
        widths = {"vision": build.width_of("vision"), "text": build.width_of("text")}
        vision, encoder = build.parts["vision"], getattr(build.parts["text"], "encoder", None)
        build.require(
            hasattr(vision, "class_logits"), "needs a vision tower that knows ImageNet's classes: parts.vision.kind: efficientnet"
        )
        build.require(hasattr(encoder, "embed"), "needs a sentence encoder: parts.text.kind: minilm")
        self.base = ClassSpace(class_vectors(encoder, template), classes, temperature)
        self.width = widths["text"]
        self.image, self.text = (residual_map(width, self.width, hidden, dropout) for width in widths.values())

    @provides("{image}.embedding", "{image}.class_logits", "{image}.tokens")
    def image_embedding(self, logits: Tensor, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.base.image(logits) + self.image(tokens.pooled).float())

    @provides("{text}.embedding", "{text}.tokens")
    def text_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.base.text(tokens.pooled) + self.text(tokens.pooled).float())


def residual_map(width: int, out: int, hidden: int | None = None, dropout: float = 0.0) -> nn.Sequential:
    """A linear map, or one of two layers, that gives zeros until its last layer has learned."""
    layers = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
    last = nn.Linear(hidden or width, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Dropout(dropout), *layers, last)


class QuerySpace(Part):
    """An image has one embedding per query of the text part, and no single vector (BLIP-2, Li et al. 2023,
    §3.1).
    """

    def __init__(self, build: Build):
        super().__init__()
        self.width = build.embed_dim
        self.image = projection(build.parts["text"], self.width, "vision")
        self.text = projection(build.parts["text"], self.width, "text")

    @provides("{image}.query_embedding", "{image}.queries")
    def query_embedding(self, queries: Any) -> Tensor:
        """[B, Q, E]"""
        return unit(self.image(queries.tokens))

    @provides("{text}.embedding", "{text}.tokens")
    def text_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.text(tokens.pooled))


class StateSpace(Part):
    """The language model's own states at [EOS] are the shared space (Ak et al., equation 1)."""

    can = frozenset({"embed_image", "embed_text"})

    def __init__(self, build: Build):
        super().__init__()
        self.width = build.width_of("lm")

    @provides("{image}.embedding", "{image}.state")
    def image_embedding(self, state: Tensor) -> Tensor:
        """[B, E]"""
        return unit(state)

    @provides("{text}.embedding", "{text}.state")
    def text_embedding(self, state: Tensor) -> Tensor:
        """[B, E]"""
        return unit(state)


SPACE: dict[str, Any] = {
    "linear": LinearSpace,
    "predictor": PredictorSpace,
    "residual": ResidualSpace,
    "queries": QuerySpace,
    "states": StateSpace,
    "deep": "diptych.models.vision.grouping:DeepSpace",
    "attention": "diptych.models.time.factorised:PooledSpace",
    "iterative": "diptych.models.time.approximation:IterativeSpace",
    "projected_states": "diptych.models.language.retrieval:ProjectedStates",
    "queries_and_states": "diptych.models.language.retrieval:QueriesAndStates",
    "retrieval_token": "diptych.models.language.retrieval:RetrievalToken",
    "region_queries": "diptych.models.regions.queries:RegionSpace",
}
