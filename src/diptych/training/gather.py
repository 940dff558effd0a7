"""A whole batch as coupled objectives see it, put together from the encodings of micro-batches and of other processes.

An encoding is named by its place in a ``Pass`` ("images.embedding") and is a tensor or ``Tokens``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.batch import Batch, Tokens
from diptych.models.passes import ImageSide, Pass, TextSide
from diptych.models.vlm import VLM
from diptych.training.distributed import Cluster

Encodings = dict[str, Tensor | Tokens]


def encode(p: Pass, names: Sequence[str]) -> Encodings:
    """The named encodings of a pass, computed in the order of the names; of hard negatives that the batch lacks, none, [0, E]."""
    places = [(name, *name.split(".")) for name in names]
    none = torch.zeros((0, p.model.embed_dim), device=p.text_ids.device)
    return {name: none if (side := getattr(p, where)) is None else getattr(side, what) for name, where, what in places}


def tensors(encodings: Encodings) -> list[Tensor]:
    """Those through which gradients flow."""
    return [x for v in encodings.values() for x in ((v.tokens, v.pooled) if isinstance(v, Tokens) else (v,))]


def with_tensors(encodings: Encodings, flat: Sequence[Tensor]) -> Encodings:
    """The same encodings of other tensors, in the order of ``tensors``."""
    given: Iterator[Tensor] = iter(flat)
    return {n: Tokens(next(given), next(given), v.mask) if isinstance(v, Tokens) else next(given) for n, v in encodings.items()}


def stack(batches: Sequence[Batch], pieces: Sequence[Encodings], length: int | None = None) -> tuple[Batch, Encodings]:
    """Consecutive micro-batches as one batch, texts padded to ``length`` or to the longest; gradients flow back into every piece."""
    texts = [b.text for b in batches if b.text is not None]
    length = length or max(t.shape[1] for t in texts)
    batch = Batch(
        text=torch.cat([_longer(t, length) for t in texts]),
        text_mask=torch.cat([_longer(b.text_mask, length) for b in batches if b.text_mask is not None]),
        meaning=torch.cat([b.meaning for b in batches if b.meaning is not None]) if batches[0].meaning is not None else None,
        start=batches[0].start,
    )
    names = dict.fromkeys(name for piece in pieces for name in piece)
    return batch, {n: _mapped(n, length, torch.cat, *(p[n] for p in pieces if n in p)) for n in names}


def _mapped(name: str, length: int, join: Callable[[list[Tensor]], Tensor], *values: Tensor | Tokens) -> Tensor | Tokens:
    """``join`` on each tensor of encodings of one name, the text's tokens padded to ``length``."""
    first = values[0]
    of_text = name.startswith("texts.")
    if isinstance(first, Tokens):
        parts = [v for v in values if isinstance(v, Tokens)]
        padded = of_text and first.mask is not None  # a tower may give one vector a text, without a mask
        masks = [_longer(v.mask, length) if padded else v.mask for v in parts if v.mask is not None]
        tokens = [_longer(v.tokens, length) if padded else v.tokens for v in parts]
        return Tokens(join(tokens), join([v.pooled for v in parts]), join(masks) if masks else None)
    given = [v for v in values if isinstance(v, Tensor)]
    return join([_longer(v, length) for v in given] if of_text and first.ndim == 3 else given)


def _longer(x: Tensor, length: int) -> Tensor:
    """[B, T] or [B, T, D] → [B, length, …], zeros (the padding's id) behind."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, length - x.shape[1]))


def filled(model: VLM, batch: Batch, encodings: Encodings) -> Pass:
    """A pass whose encodings are given. What is not given cannot be asked for."""
    p = Pass(model, *_sides(model, batch), batch)
    _fill(p, batch, encodings)
    return p


def gathered(model: VLM, cluster: Cluster, batch: Batch, encodings: Encodings, names: set[str]) -> Pass:
    """The pass over all processes' samples: the named encodings of every process, in the order of the whole batch.

    Gradients flow back to whoever computed an encoding, from every process that uses it.
    """
    alone = filled(model, batch, encodings)
    if cluster.size == 1:
        return alone
    assert batch.text is not None
    length = cluster.maximum(batch.text.shape[1])
    batch, encodings = stack([batch], [encodings], length)
    assert batch.text is not None and batch.text_mask is not None
    everyones = Batch(
        text=cluster.gather(batch.text),
        text_mask=cluster.gather(batch.text_mask),
        meaning=None if batch.meaning is None else cluster.gather(batch.meaning),
    )
    found = {n: _mapped(n, length, lambda v: cluster.gather(v[0]), v) for n, v in encodings.items() if n in names}
    return _Everyones(cluster, model, everyones, found, alone)


class _Everyones(Pass):
    def __init__(self, cluster: Cluster, model: VLM, batch: Batch, encodings: Encodings, alone: Pass):
        super().__init__(model, *_sides(model, batch), batch)
        _fill(self, batch, encodings)
        self._cluster, self._own = cluster, alone
        self.rows = slice(cluster.rank * alone.size, (cluster.rank + 1) * alone.size)

    @property
    def alone(self) -> Pass:
        return self._own

    def around(self, x: Tensor, meaning: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
        yield x, meaning, True
        for _ in range(1, self._cluster.size):
            x = self._cluster.pass_on(x)
            meaning = None if meaning is None else self._cluster.pass_on(meaning)
            yield x, meaning, False


def _sides(model: VLM, batch: Batch) -> tuple[ImageSide, TextSide]:
    assert batch.text is not None and batch.text_mask is not None
    return ImageSide(model, None), TextSide(model, batch.text, batch.text_mask)


def _fill(p: Pass, batch: Batch, encodings: Encodings) -> None:
    for name, value in encodings.items():
        side, _, what = name.partition(".")
        if side == "negatives" and p.negatives is None:
            assert batch.text is not None and batch.text_mask is not None
            p.__dict__["negatives"] = TextSide(p.model, batch.text[:0], batch.text_mask[:0])  # known by its embedding only
        vars(getattr(p, side))[what] = value
