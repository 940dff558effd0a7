"""What a language model says of pairs of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.graph import provides

if TYPE_CHECKING:
    from diptych.data.fields.preferences import Pairs
    from diptych.models.language.seen import Seen
    from diptych.models.pretrained import CausalLM


class Preferring:
    """Encodings of fields of the kind ``preferences``, for language models that read rows of words and images. Shapes: B pairs, T
    tokens of a row.
    """

    if TYPE_CHECKING:  # of the language model's part
        lm: CausalLM

        def words_and_images(self, ids: Tensor, shown: Tensor | None) -> Tensor:
            """Vectors of words, with images among them."""
            ...

        def _last_seen(self, ids: Tensor, shown: Tensor | None, positions: Tensor | None = None) -> Seen | None: ...

    @provides("{preferences}.logps", "{preferences}", "{preferences}.images.prefix?")
    def log_probabilities(self, pairs: Pairs, shown: Tensor | None) -> Tensor:
        """log P of each token of the answers given the images and all before, float32 [2, B, T − 1]: the chosen ones, then the
        rejected ones; 0 at all other tokens. Column t is of token t + 1.
        """
        both = pairs.both()
        hidden = self._rows_of(pairs, shown)[:, :-1]
        learned = both.learned[:, 1:]
        losses = F.cross_entropy(self.lm.head(hidden[learned]).float(), both.ids[:, 1:][learned], reduction="none")
        full = torch.zeros(learned.shape, dtype=losses.dtype, device=losses.device)
        full = full.masked_scatter(learned, -losses)
        return full.view(2, len(pairs), -1)

    @provides("{preferences}.states", "{preferences}", "{preferences}.images.prefix?")
    def answer_states(self, pairs: Pairs, shown: Tensor | None) -> Tensor:
        """The last hidden states, float32 [2, B, T, D]: of the chosen answers, then of the rejected ones."""
        states = self._rows_of(pairs, shown).float()
        return states.view(2, len(pairs), *states.shape[1:])

    def _rows_of(self, pairs: Pairs, shown: Tensor | None) -> Tensor:
        """The last hidden states of the rows, [2 B, T, D]."""
        both = pairs.both()
        images = None if shown is None else torch.cat([shown, shown])  # each pair's images are shown twice
        seen: Seen | None = self._last_seen(both.ids, images, both.positions)
        states: Tensor = self.lm.documents(self.words_and_images(both.ids, images), both.positions, seen)
        return states
