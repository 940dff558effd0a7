"""What an objective is: a small module over the encodings of a batch, with the parameters that only it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from diptych.models.passes import Pass
    from diptych.models.vlm import VLM


class Objective(nn.Module):
    """Subclasses take the model and keyword-only options, and return a scalar from ``forward``.

    couples_batch: the loss is not a mean over samples (contrast within the batch), so micro-batches cannot simply be summed.
    predicts_text: its targets are the caption's tokens, so these may not be hidden from it (``data.text_mask``).
    needs: parts without which the objective cannot work; checked before training starts.
    """

    couples_batch = False
    predicts_text = False
    needs: tuple[str, ...] = ()

    def __init__(self, model: VLM):
        super().__init__()

    def forward(self, p: Pass) -> Tensor:
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Numbers worth a line in the log, such as a temperature."""
        return {}
