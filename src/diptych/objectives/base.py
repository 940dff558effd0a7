"""What an objective is: a small module over the encodings of a batch, with the parameters that only it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from diptych.models.passes import Pass
    from diptych.models.vlm import VLM


class Objective(nn.Module):
    """Subclasses take the model and keyword-only options, and return a scalar from ``forward``.

    couples: the encodings through which the samples of a batch meet in the loss (contrast within the batch), by their place in a ``Pass``:
    ``("images.embedding", "texts.embedding")``. The engine then shows the objective those of the whole batch, however many micro-batches
    or processes encoded them. Empty: the loss is a mean over terms that know nothing of each other.
    gathers: between processes everyone gets all of these; False: the objective passes them round itself (``Pass.alone``, ``Pass.around``).
    predicts_text: its targets are the caption's tokens, so these may not be hidden from it (``data.text_mask``).
    scores_as: the recipe's ``score`` for which ``pair_scores`` judges pairs; "": it judges none.
    scores_all: whether ``all_scores`` judges every image of a pass with every text, each encoded once and compared cheaply.
    reads_turns: it learns from conversations (``batch.learned``), not from captions.
    needs: parts without which the objective cannot work, ``text|lm`` being either; checked before training starts.
    """

    couples: tuple[str, ...] = ()
    gathers: bool = True
    predicts_text = False
    scores_as = ""
    scores_all = False
    reads_turns = False
    needs: tuple[str, ...] = ()

    def __init__(self, model: VLM):
        super().__init__()

    def forward(self, p: Pass) -> Tensor:
        raise NotImplementedError

    def terms(self, p: Pass) -> float:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to do."""
        return p.size

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Called when the optimizer has stepped: what changes by other means than a gradient changes here. ``total(*values)``: their sums over processes."""

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        raise NotImplementedError

    def all_scores(self, p: Pass) -> Tensor:
        """``pair_scores`` of every image with every text, of which there may be unlike numbers: [M, N]."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Numbers worth a line in the log, such as a temperature."""
        return {}
