"""A whole batch as coupled objectives see it, put together from the encodings of micro-batches and of other processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from diptych.core.batch import Batch, Collated, Tokens, lengthened
from diptych.core.encodings import Pass
from diptych.models.vlm import VLM, has_gradient
from diptych.training.distributed import Cluster

Encodings = dict[str, Tensor | Tokens]


def encode(p: Pass, names: Sequence[str]) -> Encodings:
    """The named encodings of a pass, computed in the order of the names; for a field that is missing from the batch (hard
    negatives), an empty one, [0, E].
    """
    model: Any = p.model
    none = torch.zeros((0, model.embed_dim), device=next(model.parameters()).device)
    return {name: p[name] if p.has(name) else none for name in names}


def tensors(encodings: Encodings) -> list[Tensor]:
    """The tensors through which gradients flow."""
    return [x for v in encodings.values() for x in ((v.tokens, v.pooled) if isinstance(v, Tokens) else (v,))]


def with_tensors(encodings: Encodings, flat: Sequence[Tensor]) -> Encodings:
    """The same encodings with other tensors, in the order of ``tensors``."""
    given: Iterator[Tensor] = iter(flat)
    return {n: Tokens(next(given), next(given), v.mask) if isinstance(v, Tokens) else next(given) for n, v in encodings.items()}


def stack(model: VLM, batches: Sequence[Batch], pieces: Sequence[Encodings], length: int | None = None) -> tuple[Batch, Encodings]:
    """Consecutive micro-batches as one batch, without pixels, texts padded to ``length`` or to the longest; gradients flow back
    into every piece.
    """
    batch = Batch.cat([b.light() for b in batches], length)
    names = dict.fromkeys(name for piece in pieces for name in piece)
    return batch, {
        n: _mapped(_is_text(model, n), batch_length(batch, n), torch.cat, *(p[n] for p in pieces if n in p)) for n in names
    }


def batch_length(batch: Batch, name: str) -> int:
    """The length in tokens to which the field of an encoding is padded; 0: it is not padded."""
    field, *inner = name.rpartition(":")[2].split(".")
    value = batch.get(field)
    for part in inner:  # a field within a field: label.classes
        value = getattr(value, part, value)
    return 0 if value is None or not value.padded else int(getattr(value, value.padded[0]).shape[1])


def _is_text(model: VLM, name: str) -> bool:
    return model.graph.fields.get(name.rpartition(":")[2].rpartition(".")[0]) == "text"


def _mapped(of_text: bool, length: int, join: Callable[[list[Tensor]], Tensor], *values: Tensor | Tokens) -> Tensor | Tokens:
    """``join`` on each tensor of encodings of one name, a text's tokens padded to ``length``."""
    first = values[0]
    if isinstance(first, Tokens):
        parts = [v for v in values if isinstance(v, Tokens)]
        padded = of_text and first.mask is not None  # a tower may give one vector a text, without a mask
        masks = [lengthened(v.mask, length) if padded else v.mask for v in parts if v.mask is not None]
        tokens = [lengthened(v.tokens, length) if padded else v.tokens for v in parts]
        return Tokens(join(tokens), join([v.pooled for v in parts]), join(masks) if masks else None)
    given = [v for v in values if isinstance(v, Tensor)]
    return join([lengthened(v, length) for v in given] if of_text and first.ndim == 3 else given)


def gathered(model: VLM, cluster: Cluster, batch: Batch, encodings: Encodings, names: Collection[str]) -> Pass:
    """The pass over all processes' samples: the named encodings of every process, in the order of the whole batch.

    Gradients flow back to the process that computed an encoding, from every process that uses it.
    """
    alone = Pass(model, batch, encodings)
    if cluster.size == 1:
        return alone
    inner = (n for n in model.graph.fields if n.partition(".")[0] in batch)  # texts within a field, such as regions.phrases, too
    length = cluster.maximum(max((batch_length(batch, n) for n in (*batch.fields, *inner)), default=0))
    batch, encodings = stack(model, [batch], [encodings], length)
    known, wanted = list(model.graph.fields), {n: v for n, v in encodings.items() if n in names}
    noted = cluster.total(*(float(n in batch) for n in known), *(float(has_gradient(v)) for v in wanted.values()))
    common = [
        n for n, k in zip(known, noted, strict=False) if k == cluster.size
    ]  # for hard negatives, which some processes may not have, the encodings are enough
    everyones = Batch({n: _field(cluster, batch[n], batch.size) for n in common}, batch.size * cluster.size)
    for v, learning in zip(wanted.values(), noted[len(known) :], strict=True):
        if learning and isinstance(v, Tensor) and not v.requires_grad:
            v.requires_grad_()  # empty, [0, E]; each process that gathers also takes part in the backward pass
    result = {n: _mapped(_is_text(model, n), batch_length(batch, n), lambda v: cluster.gather(v[0]), v) for n, v in wanted.items()}
    return _Everyones(cluster, model, everyones, result, alone)


def _field(cluster: Cluster, field: Collated, size: int) -> Any:
    """A field of every process's samples."""
    changed: dict[str, Any] = {}
    for f in fields(field):  # type: ignore[arg-type]
        value = getattr(field, f.name)
        if f.name in field.of_rows:  # some processes may have none: the encodings are enough then
            first = sum(cluster.collect(len(field))[: cluster.rank])
            everywhere = cluster.total(float(value is not None))[0] == cluster.size
            changed[f.name] = _field(cluster, value, size) if everywhere else None
            if everywhere:
                starts = cluster.collect((first, len(value)))
                own = torch.cat([value.owner.new_full((n,), start - rank * size) for rank, (start, n) in enumerate(starts)])
                changed[f.name].owner = changed[f.name].owner + own
        elif isinstance(value, Collated) and f.name in (*field.row_wise, *field.beside):
            changed[f.name] = _field(cluster, value, size)
        elif isinstance(value, Tensor) and f.name in (*field.row_wise, "owner"):
            changed[f.name] = cluster.gather(value + cluster.rank * size if f.name == "owner" else value)
        elif isinstance(value, tuple):
            changed[f.name] = ()
    return replace(field, **changed)  # type: ignore[type-var]


class _Everyones(Pass):
    """A batch that is split among processes, seen by one of them."""

    def __init__(self, cluster: Cluster, model: VLM, batch: Batch, encodings: Mapping[str, Any], alone: Pass):
        super().__init__(model, batch, encodings)
        self._cluster, self._own = cluster, alone
        self.rows = slice(cluster.rank * alone.size, (cluster.rank + 1) * alone.size)

    @property
    def alone(self) -> Pass:
        """Only this process's own samples."""
        return self._own.renamed(self.names)

    def everyones(self, x: Tensor) -> Tensor:
        """The x [R, …] of every process about its own samples, in their order: [B, …]. Without gradients."""
        return self._cluster.gather(x.detach())

    def around(self, x: Tensor, meaning: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
        """This process's x [B, E] and meaning [B], then those of each other process as they arrive around the ring: (x, meaning,
        whether they are its own).
        """
        yield x, meaning, True
        for _ in range(1, self._cluster.size):
            x = self._cluster.pass_on(x)
            meaning = None if meaning is None else self._cluster.pass_on(meaning)
            yield x, meaning, False
