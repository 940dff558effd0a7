"""The base class of objectives: small modules over the encodings of a batch, with the parameters that only they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.core.graph import renamed

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class Objective(nn.Module):
    """Subclasses take the model and keyword-only options, and return a scalar from ``forward``.

    needs: the encodings and fields that it reads, checked when the recipe is read; the loader collates only the fields that these
    are computed from.
    parts: parts without which it cannot work; ``text|lm``: one of the two.
    couples: the encodings through which the samples of a batch meet in the loss (contrast within the batch). The engine then gives
    the objective those of the whole batch, for any number of micro-batches and processes. Empty: the loss is a mean over
    independent terms.
    gathers: with several processes, each gets all of these encodings; False: the objective exchanges them itself (``Pass.alone``,
    ``Pass.around``).
    group: with several processes, how many of them share these encodings: the loss then couples the samples of such a group only,
    and traffic and memory fall by the number of groups, which are drawn anew at every step (``Cluster.among``). 0: all processes.
    helpers: modules of its own that provide encodings, besides itself.
    predicts_text: its targets are the caption's tokens, so these may not be hidden from it (``data.text_mask``).
    scores_as: the recipe's ``score`` for which ``pair_scores`` scores pairs; "": it does not score pairs.
    scores_all: whether ``all_scores`` scores every image of a pass with every text, each encoded once and compared cheaply.
    two_sided: whether images are chosen for a text by another score than texts for an image (``pair_sides``, ``all_sides``).
    trains: encodings that it trains without reading them. can: capabilities that a model has learned by it.
    borrows: it computes with a part's weights (tied word vectors, a norm), so the parts cannot be sharded.
    fields: fields that it reads instead of those in its code, from the recipe: {"image": "video"}.
    """

    needs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    couples: tuple[str, ...] = ()
    gathers: bool = True
    group: int = 0
    helpers: tuple[nn.Module, ...] = ()
    predicts_text = False
    scores_as = ""
    scores_all = False
    two_sided = False
    trains: tuple[str, ...] = ()
    borrows = False

    def __init__(self, model: VLM):
        super().__init__()
        self.fields: Mapping[str, str] = {}

    def __call__(self, p: Pass, *more: Any) -> Any:
        return super().__call__(p.renamed(self.fields), *more)

    @property
    def can(self) -> frozenset[str]:
        """Capabilities (``core.capabilities``) that a model has learned by it."""
        return frozenset()

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        raise NotImplementedError

    def terms(self, p: Pass) -> float:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return p.size

    def uses(self) -> dict[str, str]:
        """{option: the objective that it names}, for an objective that reads another's parameters; both must be in one stage."""
        return {}

    def attach(self, others: Mapping[str, nn.Module]) -> None:
        """Called by the builder when all objectives exist, with those that ``uses`` names, by option."""

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Called after the optimizer's step, for updates other than by gradients. ``total(*values)``:
        their sums over processes.
        """

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        raise NotImplementedError

    def all_scores(self, p: Pass) -> Tensor:
        """``pair_scores`` of every image with every text, M images and N texts: [M, N]."""
        raise NotImplementedError

    def pair_sides(self, p: Pass, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """``pair_scores`` by which a text is chosen for an image, and those by which an image is chosen for a text: [P] each."""
        raise NotImplementedError

    def all_sides(self, p: Pass) -> tuple[Tensor, Tensor]:
        """``all_scores`` by which a text is chosen for an image, and those by which an image is chosen for a text: [M, N] each."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as a temperature."""
        return {}

    # --- for the engine ---

    def coupled(self) -> tuple[str, ...]:
        """``couples``, as the batch names them."""
        return tuple(renamed(name, self.fields) for name in self.couples)

    def needed(self) -> tuple[str, ...]:
        """``needs`` and ``couples``, as the batch names them, without repeats."""
        return tuple(dict.fromkeys(renamed(name, self.fields) for name in (*self.couples, *self.needs)))

    def count(self, p: Pass) -> float:
        """``terms``, of a pass with the batch's names."""
        return self.terms(p.renamed(self.fields))


class Scaled(Objective):
    """An objective with CLIP's learned scale of similarities (Radford et al. 2021, §2.5): 1 / ``temperature`` at the start, never
    above ``max_scale`` after a step.

    scale_of: the name of another objective, whose scale takes the place of its own (``attach``); "": none.

    The parameter itself is limited, after each step of the optimizer, as in CLIP and open_clip. A limit in the forward pass would
    have no gradient above it, so that a scale that once went too far could never come back.
    """

    scale_of = ""

    def __init__(self, model: VLM, *, temperature: float = 0.07, max_scale: float = 100.0):
        super().__init__(model)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.max_log_scale = math.log(max_scale)

        self._followed: tuple[Scaled, ...] = ()  # a tuple: a module that is an attribute would be a submodule

    def uses(self) -> dict[str, str]:
        """The objective whose scale it shares."""
        return {"scale_of": self.scale_of} if self.scale_of else {}

    def attach(self, others: Mapping[str, nn.Module]) -> None:
        """Use the scale of another objective in place of one's own, which is removed: both losses then train one parameter."""
        if "scale_of" in others:
            other = others["scale_of"]
            if not isinstance(other, Scaled) or other.scale_of:
                raise DiptychError(f"{self.scale_of} has no learned scale of its own")
            del self.logit_scale
            self._followed = (other,)

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return self._followed[0].scale if self._followed else self.logit_scale.exp()

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Limit the scale."""
        if self._followed:
            return
        with torch.no_grad():
            self.logit_scale.clamp_(max=self.max_log_scale)

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as a temperature."""
        return {"scale": self.scale.item()}


def learns_turns(objective: Any) -> bool:
    """Whether an objective learns from conversations, or from pairs of answers."""
    return any(need.partition(".")[0] in ("turns", "preferences") for need in objective.needed())
