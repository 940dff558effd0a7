"""Encodings by name, each with one provider.

A part declares what it computes and from what; a ``Pass`` caches the results of that graph for one batch:

    class TextTower(Part):
        @provides("{text}.tokens", "{text}")           # for every field of the kind "text": text, negatives, label.classes, …
        def encode(self, text: Texts) -> Tokens: ...

    p = model.encode(batch)
    p["image.embedding"]                # computed when first asked for, once
    p.view(text=masked)                 # with a field replaced; encodings that do not depend on it are shared
    p.pairs(image=rows, text=rows)      # rows next to rows, from encodings already made

Names are ``<field>.<encoding>``; a teacher's are ``<teacher>:<field>.<encoding>``; ``<name>@<part>`` asks a certain part where
several provide it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar, overload

import torch
from torch import Tensor

from diptych.core.batch import Batch, Collated, Images, Texts, Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import Graph, Provider, renamed

T = TypeVar("T")


class Key(str, Generic[T]):
    """The name of an encoding or a field, with its type: ``p[Key[Tensor]("image.embedding")]`` is a ``Tensor`` to mypy. A plain
    string is ``Any``.
    """

    __slots__ = ()


IMAGE = Key[Images]("image")
TEXT = Key[Texts]("text")
IMAGE_TOKENS, TEXT_TOKENS = Key[Tokens]("image.tokens"), Key[Tokens]("text.tokens")
IMAGE_EMBEDDING, TEXT_EMBEDDING = Key[Tensor]("image.embedding"), Key[Tensor]("text.embedding")
TEXT_LOGITS = Key[Tensor]("text.logits")
IMAGE_CODES = Key[Tensor]("image.codes")


class Computes(Protocol):
    """What a pass needs of a model."""

    graph: Graph

    def compute(self, provider: Provider, inputs: Sequence[Any]) -> Any:
        """What a provider makes of its inputs: one value, or a tuple if it has several outputs."""
        ...

    def teacher(self, name: str) -> Computes:
        """The teacher of this name. Raises DiptychError if there is none."""
        ...


class Pass:
    """A batch as objectives and scorers see it.

    given: encodings that are known already; others can be asked for only if the batch has what they are computed from.
    wanted: all encodings that will be asked for, as far as they are known: a part may then compute several at once.
    rows: the samples that this process answers for, where the batch is split among several; None: all.
    """

    rows: slice | None = None

    def __init__(
        self,
        model: Computes,
        batch: Batch,
        given: Mapping[str, Any] | None = None,
        wanted: Collection[str] = (),
        base: Pass | None = None,
    ):
        self.model, self.batch = model, batch
        self.wanted = model.graph.behind(wanted)
        self.given = {model.graph.short(name): value for name, value in (given or {}).items()}
        self.base = base
        self.changed: frozenset[str] = frozenset()  # fields that differ from the base's
        self.selected: dict[str, Tensor] = {}  # those of the changed fields that are rows of the base's
        self.names: Mapping[str, str] = {}
        self.memo: dict[tuple[str, bool], Any] = {}

    # --- asking ---

    @overload
    def __getitem__(self, name: Key[T]) -> T: ...

    @overload
    def __getitem__(self, name: str) -> Any: ...

    def __getitem__(self, name: str) -> Any:
        return self._get(renamed(name, self.names))

    def has(self, name: str) -> bool:
        """Whether the batch has what an encoding depends on, or the encoding is given."""
        return self._has(renamed(name, self.names))

    def _has(self, name: str) -> bool:
        graph = self.model.graph
        leaves, name = graph.leaves(name), graph.short(name)
        if name in self.given or (self.base is not None and self.base._has(name)):
            return True
        if graph.parent(name) or ":" in name:
            there = all(leaf in self.batch for leaf in leaves)
            return there and (":" in name or name in self.batch or self._field(name, graph.parent(name)) is not None)
        return all(self._has(i) for i in graph.plain(name).inputs if not i.endswith("?"))

    def _get(self, name: str) -> Any:
        name = self.model.graph.short(name)
        if name in self.given:
            return self.given[name]
        if self.base is not None and not (self.model.graph.leaves(name) & self.changed):
            return self.base._get(name)
        # An encoding made without gradients cannot be used where gradients are wanted; one made with gradients can be used for
        # both.
        for mode in (True,) if torch.is_grad_enabled() else (False, True):
            if (name, mode) in self.memo:
                return self.memo[name, mode]
        return self._make(name)

    def _make(self, name: str) -> Any:
        graph = self.model.graph
        leaves = graph.leaves(name)
        if self.base is not None and len(leaves) == 1 and (leaf := next(iter(leaves))) in self.selected:
            return self._note(name, self.base._get(name)[self.selected[leaf]])
        if field := graph.parent(name):
            return self._field(name, field)
        if ":" in name:
            teacher, _, rest = name.partition(":")
            with torch.no_grad():
                value = self._taught(teacher)._get(rest)
            self.memo[name, True] = self.memo[name, False] = value  # a constant, for every caller
            return value
        paired = bool(self.selected) and not torch.is_grad_enabled()
        wanted = self.wanted if torch.is_grad_enabled() and not self.selected else ()
        provider = graph.pick(name, paired, wanted)
        inputs = [self._input(i) for i in provider.inputs]
        if paired and len(leaves) > 1:  # no padding that only other rows need
            inputs = [x.trimmed() if isinstance(x, Texts | Tokens) else x for x in inputs]
        made = self.model.compute(provider, inputs)
        if len(provider.outputs) > 1:
            values = dict(zip(provider.outputs, made, strict=True))
            for output, value in values.items():
                self._note(output if graph.serves(provider, output) else f"{output}@{provider.part}", value)
            made = values[name.partition("@")[0]]
        return self._note(name, made)

    def _taught(self, teacher: str) -> Pass:
        key = f"{teacher}:", True
        if key not in self.memo:
            self.memo[key] = _Taught(self.model.teacher(teacher), self)
        taught: Pass = self.memo[key]
        return taught

    def _field(self, name: str, field: str) -> Any:
        if field not in self.batch:
            raise DiptychError(f"this batch has no '{field}'")
        value = self.batch[field]
        for inner in name.split(".")[1:]:
            value = getattr(value, inner)
        return value

    def _input(self, name: str) -> Any:
        if not name.endswith("?"):
            return self._get(name)
        name = name.rstrip("?")
        field = name.rpartition(".")[0] or name
        empty = field in self.model.graph.fields and self._has(field) and self._get(field) is None
        return self._get(name) if self._has(name) and not empty else None

    def _note(self, name: str, value: Any) -> Any:
        self.memo[name, torch.is_grad_enabled()] = value
        return value

    # --- other passes over the same batch ---

    def view(self, **fields: Collated) -> Pass:
        """The same batch with these fields replaced; encodings that do not depend on them are shared by both passes."""
        real = {renamed(name, self.names): value for name, value in fields.items()}
        view = self._based()
        view.batch = self.batch.with_(**real)
        view.changed = frozenset(real)
        return view

    def pairs(self, **rows: Tensor) -> Pass:
        """Row ``image[k]`` paired with row ``text[k]`` (index tensors by field). Encodings that depend on one of these fields alone
        are not computed again.
        """
        pairs = self._based()
        pairs.selected = {renamed(name, self.names): index for name, index in rows.items()}
        pairs.changed = frozenset(pairs.selected)
        pairs.batch = replace(self.batch, size=len(next(iter(rows.values()))))
        return pairs

    def _based(self) -> Pass:
        made = Pass(self.model, self.batch, wanted=self.wanted, base=self)
        made.names = self.names
        return made

    def renamed(self, fields: Mapping[str, str]) -> Pass:
        """The same pass for an objective that reads other fields than those named in its code: {"image": "video"}."""
        if not fields:
            return self
        other = copy.copy(self)  # shares the memo
        other.names = fields
        return other

    # --- samples ---

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.batch.size

    def some(self, share: float) -> Tensor:
        """Every 1/share-th sample of those that this process answers for, int64. They are chosen by their position in the whole
        batch, so that its pieces choose the same ones.
        """
        own = range(self.size) if self.rows is None else range(self.rows.start, self.rows.stop)
        start = self.batch.start
        chosen = [i for i in own if math.floor((start + i) * share) > math.floor((start + i - 1) * share)]
        device = next((x.device for f in self.batch.fields.values() for x in vars(f).values() if isinstance(x, Tensor)), None)
        return torch.tensor(chosen, dtype=torch.long, device=device)

    @property
    def alone(self) -> Pass:
        """Only this process's own samples."""
        return self

    def everyones(self, x: Tensor) -> Tensor:
        """The x [R, …] of every process about its own samples, in their order: [B, …]. Without gradients."""
        return x.detach()

    def around(self, x: Tensor, meaning: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
        """This process's x [B, E] and meaning [B], then those of each other process as they arrive around the ring: (x, meaning,
        whether they are its own).
        """
        yield x, meaning, True


class _Taught(Pass):
    """A teacher's encodings of the fields of a student's pass."""

    def __init__(self, model: Computes, student: Pass):
        super().__init__(model, student.batch)
        self.student = student

    def _field(self, name: str, field: str) -> Any:
        return self.student._get(name)
