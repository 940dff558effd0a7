"""A sentence as the soft prompt that makes a language model say it (P-Former).

Shapes: B texts, T tokens, n prompt vectors, D width of the language model.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Texts
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Transformer
from diptych.models.layers.masks import attention_bias
from diptych.models.part import Part
from diptych.models.text.towers import sinusoids


class Prompter(Part):
    """A transformer reads a text both ways; its first token's state becomes ``tokens`` vectors for the language model: a linear map
    to as many states, tanh, a linear map to word vectors (P-Former, Jian et al. 2023, arXiv:2307.07063, §3.1). It learns from texts
    alone; later it says what the prompt of an image should be, whose caption it has read.

    dropout: within the transformer; two passes with other draws are the two views of a contrast (SimCSE, Gao et al. 2021).
    """

    def __init__(
        self,
        build: Build,
        *,
        tokens: Annotated[int, Field(ge=1)] = 32,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ):
        super().__init__()
        size = build.size
        inside, self.width, self.tokens = width or size.width, build.width_of("lm"), tokens
        build.require(build.tokenizer is not None, "needs a language model, whose words it reads; add a part lm")
        self.embedding = nn.Embedding(len(build.tokenizer), inside)
        self.positions = nn.Parameter(sinusoids(build.tokenizer.max_length, inside) * 0.7)
        self.transformer = Transformer(inside, depth or size.depth, heads or size.heads, dropout=dropout)
        self.spread = nn.Linear(inside, tokens * inside)
        self.layer = nn.Linear(inside, self.width)

    @provides("text.sentence", "text")
    @provides("text.sentence_again", "text")
    def sentence(self, text: Texts) -> Tensor:
        """The state at the first token of each text, [B, width of the transformer]; asked again, with another draw of dropout."""
        x = self.embedding(text.ids) + self.positions[: text.ids.shape[1]]
        states: Tensor = self.transformer(x, attention_bias(text.mask, x.shape[1], False, x))
        return states[:, 0]

    @provides("text.prompts", "text.sentence")
    def prompt(self, sentence: Tensor) -> Tensor:
        """What makes the language model say the text, [B, n, D], before it is scaled to word vectors."""
        x = torch.unflatten(self.spread(sentence), 1, (self.tokens, -1)).tanh()
        vectors: Tensor = self.layer(x)
        return vectors
