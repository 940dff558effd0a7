"""Spaces of frozen language models with maps that learn: behind their states, or behind the state at a learned token.

Shapes: B batch, T text tokens with [BOS] and [EOS], D width of the language model, E embedding, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.batch import Texts, Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.part import Part
from diptych.models.space import unit


class ProjectedStates(Part):
    """The language model's states at [EOS], those of images and those of texts each through a linear map of their own (HACL, Jiang
    et al. 2024, arXiv:2312.06968; the maps are in the authors' code).
    """

    can = frozenset({"embed_image", "embed_text"})

    def __init__(self, build: Build):
        super().__init__()
        self.width, inside = build.embed_dim, build.width_of("lm")
        self.image, self.text = nn.Linear(inside, self.width), nn.Linear(inside, self.width)

    @provides("{image}.embedding", "{image}.state")
    def image_embedding(self, state: Tensor) -> Tensor:
        """[B, E]"""
        return unit(self.image(state))

    @provides("{text}.embedding", "{text}.state")
    def text_embedding(self, state: Tensor) -> Tensor:
        """[B, E]"""
        return unit(self.text(state))


class QueriesAndStates(Part):
    """The language model's space: a text is its state at [EOS], which learns nothing; an image is the mean of the Q-Former's
    queries through a linear map (after Choraria et al. 2023, arXiv:2311.07449).
    """

    can = frozenset({"embed_image", "embed_text"})

    def __init__(self, build: Build):
        super().__init__()
        self.width = build.width_of("lm")
        self.image = nn.Linear(build.width_of("text"), self.width)

    @provides("{image}.projection", "{image}.queries")
    def image_projection(self, queries: Any) -> Tensor:
        """``embedding`` before it is normalised, [B, D], float32."""
        projection: Tensor = self.image(queries.tokens.mean(1)).float()
        return projection

    @provides("{image}.embedding", "{image}.projection")
    def image_embedding(self, projection: Tensor) -> Tensor:
        """[B, D]"""
        return unit(projection)

    @provides("{text}.embedding", "{text}.state")
    def text_embedding(self, state: Tensor) -> Tensor:
        """[B, D]"""
        return unit(state)


class RetrievalToken(Part):
    """A learned token [RET] behind a text, by which a frozen language model finds images (FROMAGe, Koh et al. 2023,
    arXiv:2301.13823, §3.2): the state at it, and the tower's pooled vector, each go through a linear map.

    The token is a further row of the word vectors. Where the model's output layer has the same vectors it is a further column of
    the logits too, so that writing it can be learned; otherwise a column of its own is. It takes the place of [EOS].
    """

    can = frozenset({"embed_image", "embed_text"})
    borrows = True

    def __init__(self, build: Build):
        super().__init__()
        lm: Any = build.parts.get("lm")
        build.require(hasattr(lm, "lm"), "needs a language model; add a part lm")
        self._lm = [lm.lm]  # in a list: shared, not owned
        self.width = build.embed_dim
        words, head = lm.lm.model.get_input_embeddings(), lm.lm.model.get_output_embeddings()
        self.grow = float(getattr(words, "embed_scale", 1.0))  # Gemma's word vectors are scaled when they are read
        self.token = nn.Parameter(torch.randn(lm.width))
        self.column = (
            None if head.weight is words.weight else nn.Parameter(torch.randn(lm.width) * float(head.weight.float().std()))
        )
        self.image = nn.Linear(build.width_of("vision"), self.width)
        self.text = nn.Linear(lm.width, self.width)
        self.rescale()

    @torch.no_grad()
    def rescale(self) -> None:
        """Gives the token the mean length of the word vectors, as the authors' code does after each step."""
        words = self._lm[0].model.get_input_embeddings().weight
        self.token.mul_(words.float().norm(dim=1).mean() / self.token.norm())

    @provides("{text}.retrieval_hidden", "{text}")
    def hidden(self, text: Texts) -> Tensor:
        """The states of the last layer [B, T, D] of texts that end in [RET] in place of [EOS], without an image."""
        lm = self._lm[0]
        words = lm.embed(text.ids)
        last = torch.arange(text.ids.shape[1], device=words.device) == text.mask.sum(1, keepdim=True) - 1  # [B, T]
        token = (self.token * self.grow).to(words.dtype)
        states: Tensor = lm.hidden(torch.where(last[..., None], token, words), text.mask)
        return states

    @provides("{text}.embedding", "{text}", "{text}.retrieval_hidden")
    def text_embedding(self, text: Texts, hidden: Tensor) -> Tensor:
        """[B, E], from the state at [RET]."""
        rows = torch.arange(len(hidden), device=hidden.device)
        return unit(self.text(hidden[rows, text.mask.sum(1) - 1].to(self.text.weight.dtype)))

    @provides("{image}.embedding", "{image}.tokens")
    def image_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.image(tokens.pooled))

    @provides("{text}.retrieval_logits", "{text}.retrieval_hidden")
    def logits(self, hidden: Tensor) -> Tensor:
        """[B, T − 1, V + 1], without an image: row t predicts token t + 1; the last column is [RET]."""
        lm = self._lm[0]
        column = self.token if self.column is None else self.column
        own = hidden[:, :-1] @ column.to(hidden.dtype)
        cap = getattr(lm.model.config, "final_logit_softcapping", None)
        own = own if cap is None else torch.tanh(own / cap) * cap
        return torch.cat([lm.head(hidden[:, :-1]), own[..., None]], -1)
