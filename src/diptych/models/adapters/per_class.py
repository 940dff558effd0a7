"""CoOp's contexts of single classes.

Shapes: C classes, n vectors, D width, B texts, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.core.sample import class_text
from diptych.data.text import PAD
from diptych.models.adapters.prompt import Position, Vectors, check_place, make_room

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class ClassPrompt(Vectors):
    """``tokens`` learned vectors for each of ``classes``, [C, n, D], among the words of its text (CoOp's class-specific context,
    Zhou et al. 2022, §3.2). A class is known by its text: the name as it is in ``classes``, through ``template``.

    Other texts are read as if there were no vectors, so a new class is scored as before; in training at least one text of each
    batch must be a class. std, position: as of ``prompt``. The token ids of the classes are saved with the vectors, which therefore
    keep their classes if another run names these in another order; a class that a run did not have keeps its random vectors.
    """

    ids: Tensor

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        classes: Annotated[list[str], Field(min_length=1)],
        tokens: Annotated[int, Field(ge=1)] = 16,
        template: str = "{}",
        std: Annotated[float, Field(gt=0)] = 0.02,
        position: Position = "end",
    ):
        super().__init__(part, build, where)
        check_place(part, build, where)
        if not hasattr(part, "embedding"):
            raise DiptychError(f"{where}: a vision tower reads no class names; adapt parts.text, or use kind: prompt")
        if getattr(part, "whole", False):
            raise DiptychError(
                f"{where}: parts.text reads texts with their padding, so it cannot read one as if there were no vectors; "
                "use kind: prompt"
            )
        make_room(tokens, build, where)
        longest = build.tokenizer.max_length
        ids = torch.full((len(classes), longest), PAD)
        rows, mask = build.tokenizer.encode_batch([template.format(class_text(name)) for name in classes])
        for i, (row, real) in enumerate(zip(rows, mask, strict=True)):
            ids[i, : int(real.sum())] = torch.from_numpy(row[real.astype(bool)])
        first: dict[bytes, str] = {}
        for name, row in zip(classes, ids, strict=True):
            if (key := row.numpy().tobytes()) in first:
                raise DiptychError(
                    f"{where}.classes: '{first[key]}' and '{name}' have the same tokens; rename one, or use kind: prompt"
                )
            first[key] = name
        self.register_buffer("ids", ids)
        self.vectors = nn.Parameter(torch.randn(len(classes), tokens, part.width) * std)
        self.count = tokens
        self.ahead = {"end": tokens, "middle": tokens // 2, "front": 0}[position]
        self._which: Tensor | None = None
        part.prompts = [*part.prompts, self]

    def used(self, ids: Tensor) -> Tensor | None:
        """Which of the texts [B, T] are classes. DiptychError in training if none is."""
        own = ids.new_full((len(ids), self.ids.shape[1]), PAD)
        own[:, : ids.shape[1]] = ids
        same = (own[:, None] == self.ids).all(-1)  # [B, C]
        known = same.any(1)
        if self.training and torch.is_grad_enabled() and not bool(known.any()):
            raise DiptychError(
                f"{self.where}: no text of this batch is one of its {len(self.ids)} classes, so nothing would be learned; name the "
                "classes as the data does, and set template to that of data.fields.label"
            )
        self._which = same.long().argmax(1)
        return known

    def forward(self, rows: int, dtype: torch.dtype) -> Tensor:
        """The vectors of the texts that ``used`` was asked about: [rows, n, D]."""
        assert self._which is not None and len(self._which) == rows
        which, self._which = self._which, None
        return self.vectors[which].to(dtype)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        given, vectors = state.get(f"{prefix}ids"), state.get(f"{prefix}vectors")
        if given is not None and vectors is not None and given.shape == self.ids.shape and vectors.shape == self.vectors.shape:
            given, vectors = given.to(self.ids.device), vectors.to(self.vectors.device)
            same = (self.ids[:, None] == given).all(-1)  # [C, C], ours by theirs
            theirs = vectors[same.long().argmax(1)].to(self.vectors.dtype)
            state = {**state, f"{prefix}ids": self.ids}
            state[f"{prefix}vectors"] = torch.where(same.any(1)[:, None, None], theirs, self.vectors.detach())
        super()._load_from_state_dict(state, prefix, *rest)
