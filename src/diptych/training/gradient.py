"""One batch's gradient: the same whether it is taken at once, in micro-batches, or by several processes.

Losses with independent terms are added up piece by piece, each piece weighted by its number of terms. A loss that couples the batch
is computed once, on the encodings of all pieces, and its gradient is passed back through the encoder of each piece (GradCache, Gao
et al. 2021): pieces are encoded twice, the first time without a graph. What is drawn at random (dropout, dropped patches, masked
words) is determined by (seed, step, position of the piece in the batch), so that both passes use the same draws, and a resumed run
the same ones as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diptych.core.batch import Batch
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.data.loader import Loader
from diptych.data.order import mixed
from diptych.models.vlm import VLM
from diptych.objectives import Objective
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gather import Encodings, encode, gathered, stack, tensors, with_tensors

HELD = 128 * 2**20  # bytes of a batch's pixels that are kept for the second encoding; larger batches are read again


class Share:
    """This process's part of every batch of a stage, in micro-batches; one ``Pieces`` per step, in order."""

    def __init__(self, loader: Loader, step: int, cluster: Cluster, micro_batch: int | None):
        share = loader.batch_size // cluster.size
        size = min(micro_batch or share, share)
        if loader.batch_size % cluster.size or share % size:
            raise DiptychError(
                f"batch_size {loader.batch_size} cannot be divided evenly among {cluster.size} processes in micro-batches of "
                f"{size}; "
                "make it a multiple of processes × micro_batch"
            )
        start = cluster.rank * share
        self.bounds = [(i, i + size) for i in range(start, start + share, size)]
        self.loader, self.device = loader, cluster.device
        self.hold = share * sum(field.memory() for field in loader.fields.values()) <= HELD
        gpu = cluster.device.type == "cuda"
        self.stream = loader.stream(step, start, start + share, size, ahead=gpu, pin=gpu)

    def close(self) -> None:
        """End the workers that read batches."""
        self.stream.close()  # type: ignore[attr-defined]


class Pieces:
    """One step's micro-batches on the device; they may be iterated over twice. fields: those that the step reads; None: all."""

    def __init__(self, share: Share, step: int, fields: Collection[str] | None = None):
        self.share, self.step, self.fields = share, step, fields
        self.held: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.share.bounds)

    def __iter__(self) -> Iterator[Batch]:
        share = self.share
        if self.held is None:
            self.held = []
            for _ in share.bounds:
                batch = next(share.stream)
                self.held += [batch] if share.hold and len(self) > 1 else []
                yield self._sent(batch)
        elif self.held:
            yield from map(self._sent, self.held)
        else:
            yield from (self._sent(share.loader.rows(self.step, *bounds)) for bounds in share.bounds)

    def _sent(self, batch: Batch) -> Batch:
        return (batch if self.fields is None else batch.only(self.fields)).to(self.share.device)


@dataclass
class BatchGradient:
    """Fills ``.grad`` of everything that learns; returns losses, tokens and floating-point operations of the whole batch."""

    model: VLM
    cluster: Cluster
    autocast: bool
    seed: int
    meter: FlopMeter

    def __call__(
        self, step: int, pieces: Pieces, objectives: Mapping[str, Objective], weights: Mapping[str, float], name: str = ""
    ) -> Taken:
        coupled = {n: o for n, o in objectives.items() if o.couples}
        free = {n: o for n, o in objectives.items() if not o.couples}
        work = _Work(self, step, name, weights, tuple(dict.fromkeys(need for o in objectives.values() for need in o.needed())))
        work.taken.losses = {n: torch.zeros((), device=self.cluster.device) for n in objectives}  # the same ones in every process
        if len(pieces) == 1:
            (batch,) = pieces
            work.at_once(batch, coupled, free)
        else:
            work.in_pieces(pieces, coupled, free)
        return work.taken

    def computing(self) -> AbstractContextManager[Any]:
        """The precision in which losses and encodings are computed."""
        return torch.autocast(self.cluster.device.type, torch.bfloat16) if self.autocast else nullcontext()


@dataclass
class Taken:
    """This process's part of a step; summed over processes it is the batch's."""

    losses: dict[str, Tensor]  # by objective, unweighted
    batch: Batch  # the last piece, for messages
    tokens: int = 0
    flops: float = 0.0
    samples: int = 0


class _Work:
    def __init__(self, of: BatchGradient, step: int, name: str, weights: Mapping[str, float], wanted: tuple[str, ...]):
        self.of, self.cluster, self.step, self.name, self.weights, self.wanted = of, of.cluster, step, name, weights, wanted
        self.taken = Taken({}, Batch())

    # --- the two ways ---

    def at_once(self, batch: Batch, coupled: Mapping[str, Objective], free: Mapping[str, Objective]) -> None:
        """Adds the gradient of a batch that fits into memory whole: one forward and one backward pass."""
        names = _names(coupled)

        def run() -> None:
            """Encodes, gathers what coupled losses need of other processes, and computes the gradient of the sum of losses."""
            p = self._open(batch)
            totals = self._totals({n: o.count(p) for n, o in free.items()}) if self.cluster.size > 1 else None
            with self.of.computing():
                if self.cluster.size > 1 and coupled:
                    alone, result = stack(self.of.model, [batch], [encode(p, names)])
                    total = self._coupled(coupled, self._gathered(coupled, alone, result))
                else:
                    total = self._coupled(coupled, dict.fromkeys(_groups(coupled), p))
                total = total + self._free(free, p, totals)
            torch.autograd.backward(total)

        self._counted(("at once", *batch.shapes()), run)
        self._note(batch)

    def in_pieces(self, pieces: Pieces, coupled: Mapping[str, Objective], free: Mapping[str, Objective]) -> None:
        """Adds the gradient of a batch piece by piece (GradCache, Gao et al. 2021): coupled losses get their gradients at the
        encodings of the whole batch first; then each piece is encoded again and passes them on to the weights.
        """
        names = _names(coupled)
        counts: dict[str, float] = dict.fromkeys(free, 0.0)
        light: list[Batch] = []
        first: list[Encodings] = []
        for batch in pieces:  # counts the terms, and computes the encodings for the coupled losses
            p = self._open(batch)
            for n, o in free.items():
                counts[n] += o.count(p)
            if coupled:
                with torch.no_grad(), self.of.computing():
                    first.append(self._counted(("encode", *batch.shapes()), partial(encode, p, names)))
                light.append(batch.light())
            self._note(batch)
        totals = self._totals(counts)
        dealt: list[tuple[Tensor | None, ...]] = [()] * len(pieces)
        if coupled:
            lengths = [[len(x) for x in tensors(piece)] for piece in first]
            dealt = _dealt(self._through_leaves(coupled, light, first), lengths)
        del first
        for batch, grads in zip(pieces, dealt, strict=True):

            def run(batch: Batch = batch, grads: tuple[Tensor | None, ...] = grads) -> None:
                """Encodes a piece again and computes the gradient of its encodings and of its own losses."""
                p = self._open(batch)
                with self.of.computing():
                    outputs = tensors(encode(p, names))
                    loss = self._free(free, p, totals)
                heads = [(x, g[:, : x.shape[1]] if x.ndim > 2 else g) for x, g in zip(outputs, grads, strict=True) if g is not None]
                heads = [(x, g) for x, g in heads if x.requires_grad]
                ends = [x for x, _ in heads] + ([loss] if loss.requires_grad else [])
                torch.autograd.backward(ends, [*(g for _, g in heads), *([None] if loss.requires_grad else [])])

            self._counted(("again", *batch.shapes()), run)

    # --- their steps ---

    def _open(self, batch: Batch) -> Pass:
        torch.manual_seed(mixed(self.of.seed, self.step, batch.start, 3))
        return self.of.model.encode(batch, self.wanted)

    def _through_leaves(
        self, coupled: Mapping[str, Objective], batches: list[Batch], pieces: list[Encodings]
    ) -> list[Tensor | None]:
        """The coupled losses on all pieces' encodings; their gradients with respect to these, one for each tensor."""
        with torch.no_grad():
            batch, joined = stack(self.of.model, batches, pieces)
        leaves = [x.requires_grad_() for x in tensors(joined)]
        result = with_tensors(joined, leaves)

        def run() -> None:
            """Computes the coupled losses and their gradients at the encodings."""
            torch.manual_seed(mixed(self.of.seed, self.step, batch.start, 4))
            with self.of.computing():
                total = self._coupled(coupled, self._gathered(coupled, batch, result))
            torch.autograd.backward(total)

        self._counted(("couple", batch.size, *batch.shapes()), run)
        return [x.grad for x in leaves]

    def _gathered(self, coupled: Mapping[str, Objective], batch: Batch, result: Encodings) -> dict[int, Pass]:
        """The passes over the samples of all processes that a coupled loss compares, by the size of its groups."""
        passes = {}
        for size in _groups(coupled):
            names = _names_gathered({n: o for n, o in coupled.items() if o.group == size})
            passes[size] = gathered(self.of.model, self.cluster.among(size, self.step), batch, result, names)
        return passes

    def _coupled(self, coupled: Mapping[str, Objective], whole: Mapping[int, Pass]) -> Tensor:
        total = torch.zeros((), device=self.cluster.device)
        for n, objective in coupled.items():
            loss = objective(whole[objective.group])
            self._add(n, loss.detach() / self.cluster.size)
            total = total + self.weights[n] * loss
        return total

    def _free(self, free: Mapping[str, Objective], p: Pass, totals: Mapping[str, float] | None) -> Tensor:
        """This piece's share of each loss, times the number of processes, since gradients are averaged over them."""
        total = torch.zeros((), device=self.cluster.device)
        for n, objective in free.items():
            share = 1.0 if totals is None else objective.count(p) / max(totals[n], 1.0)
            if share:
                loss = objective(p)
                self._add(n, loss.detach() * share)
                total = total + (self.weights[n] * share * self.cluster.size) * loss
        return total

    def _totals(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Terms of each loss in the whole batch."""
        return dict(zip(counts, self.cluster.total(*counts.values()), strict=True)) if counts else {}

    def _add(self, name: str, loss: Tensor) -> None:
        self.taken.losses[name] = self.taken.losses[name] + loss

    def _counted(self, key: tuple[Any, ...], run: Callable[[], Any]) -> Any:
        result, flops = self.of.meter.count((self.name, *key), run)
        self.taken.flops += flops
        return result

    def _note(self, batch: Batch) -> None:
        parts: Any = self.of.model.parts
        image_tokens = next((parts[name].tokens for name in ("vision", "quantizer") if name in parts), 0)
        self.taken.tokens += sum(field.count(image_tokens) for field in batch.fields.values())
        self.taken.samples += batch.size
        self.taken.batch = batch


def _names(coupled: Mapping[str, Objective]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for o in coupled.values() for name in o.coupled()))


def _groups(coupled: Mapping[str, Objective]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(o.group for o in coupled.values()))


def _names_gathered(coupled: Mapping[str, Objective]) -> set[str]:
    return {name for o in coupled.values() if o.gathers for name in o.coupled()}


def _dealt(grads: list[Tensor | None], lengths: list[list[int]]) -> list[tuple[Tensor | None, ...]]:
    """For each piece its rows of every tensor's gradient; ``lengths[piece][tensor]`` rows; these differ, since some captions have
    no hard negative.
    """
    columns = [[None] * len(lengths) if g is None else torch.split(g, [rows[k] for rows in lengths]) for k, g in enumerate(grads)]
    return list(zip(*columns, strict=True))
