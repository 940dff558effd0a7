"""Several processes that train one model: their ranks, their exchanges, and how parameters are sharded.

Started by ``torchrun``, ``accelerate launch`` or ``diptych train --processes N``; otherwise a cluster of one process, for which
every exchange is the identity. gloo carries CPU tensors, NCCL a GPU's.

The convention for losses: each process's loss is the mean over its own samples (the same number in each), and the batch's loss is
the mean of these. So gradients are averaged over processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.core.graph import declarations

BUCKET = 32 * 2**20  # bytes of gradients averaged in one exchange
PATIENCE = timedelta(minutes=10)  # after this a process that waits for a dead one gives up
DIVISIONS = 8  # of the processes into groups; each needs channels of its own, so there are not as many as steps


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cluster:
    """The processes that train together, seen by one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    ours: bool = False  # whether this run set up the process group, and so also shuts it down
    group: Any = None  # torch's process group, if these are some of a larger cluster's; None: all
    ranks: tuple[int, ...] = ()  # of these in the larger cluster
    _made: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # groups that exist already

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def gather(self, x: Tensor) -> Tensor:
        """The x [B, …] of all processes, in the order of ranks: [ΣB, …]; B may differ. Gradients are summed over all processes."""
        if self.size == 1:
            return x
        counts = [int(n) for n in self._all(torch.tensor([len(x)], device=self.device))]
        return _gather(x, counts, self.rank, self.group)

    def _all(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return parts

    def pass_on(self, x: Tensor) -> Tensor:
        """Send x to the next process and receive the previous one's, of the same shape; gradients take the opposite way."""
        around = self.ranks or range(self.size)
        return _pass_on(x, around[(self.rank + 1) % self.size], around[(self.rank - 1) % self.size])

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        return self._reduced(values, dist.ReduceOp.SUM) if self.size > 1 else list(values)

    def maximum(self, value: int) -> int:
        """The largest value of all processes."""
        return int(self._reduced([value], dist.ReduceOp.MAX)[0]) if self.size > 1 else value

    def _reduced(self, values: Iterable[float], how: Any) -> list[float]:
        x = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(x, how, group=self.group)
        return x.tolist()

    def among(self, size: int, step: int) -> Cluster:
        """The group of ``size`` processes that this one belongs to at a step, as a cluster; 0, or all of them: this cluster.

        All processes must ask for the same groups in the same order. DiptychError if they cannot be divided evenly.
        """
        if size in (0, self.size) or self.size == 1:
            return self
        if self.size % size:
            raise DiptychError(f"objective group: {self.size} processes cannot be divided into groups of {size}; take a divisor")
        division = grouping(self.size, size, step)
        for ranks in division:
            if ranks not in self._made:
                self._made[ranks] = dist.new_group(list(ranks))
        own = next(ranks for ranks in division if self.rank in ranks)
        return Cluster(own.index(self.rank), size, self.device, group=self._made[own], ranks=own)

    def agree(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes, on every process."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """The mean over processes of every gradient, in place. Sharded parameters have already exchanged their gradients.

        A parameter that has none in any process keeps none, as in a single process: an optimizer leaves it alone, while it would
        apply its momentum and weight decay to one with a gradient of 0.
        """
        if self.size == 1:
            return
        whole = [p for p in parameters if not is_sharded(p)]
        used = torch.tensor([p.grad is not None for p in whole], dtype=torch.uint8, device=self.device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        whole = [p for p, wanted in zip(whole, used.tolist(), strict=True) if wanted]
        for bucket in _buckets(whole):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
            dist.all_reduce(flat)
            flat /= self.size
            for p, grad in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
                p.grad = grad.view_as(p).clone() if p.grad is None else p.grad.copy_(grad.view_as(p))

    def part(self) -> None:
        """Shut down the process group, if this run set it up."""
        if self.ours and dist.is_initialized():
            dist.destroy_process_group()


def grouping(processes: int, size: int, step: int) -> list[tuple[int, ...]]:
    """The ranks of 0 … processes − 1 in groups of ``size`` at a step: neighbours at every ``DIVISIONS``-th step, drawn at random,
    always in the same way, at the steps between (grouped aggregation, M2-Encoder, Guo et al. 2024, arXiv:2401.15896).
    """
    turn = step % DIVISIONS
    order = np.random.default_rng((turn, processes, size)).permutation(processes) if turn else np.arange(processes)
    return [tuple(sorted(order[i : i + size].tolist())) for i in range(0, processes, size)]


def join_cluster(device: torch.device) -> Cluster:
    """The processes that the launcher started, from its environment variables; a cluster of one if there are none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Cluster(device=device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return Cluster(dist.get_rank(), dist.get_world_size(), device, ours)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], rank: int, group: Any) -> Tensor:
        """x [n, …] of all processes in order of rank, [sum of counts, …]. Shorter ones are padded on the way."""
        ctx.rows, ctx.group = slice(sum(counts[:rank]), sum(counts[: rank + 1])), group
        longest = max(counts)
        padded = x if len(x) == longest else torch.cat([x, x.new_zeros((longest - len(x), *x.shape[1:]))])
        flags = padded.to(torch.uint8) if padded.dtype == torch.bool else padded
        parts = [torch.empty_like(flags) for _ in counts]
        dist.all_gather(parts, flags.contiguous(), group=group)
        return torch.cat([p[:n] for p, n in zip(parts, counts, strict=True)]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of this process's rows, summed over processes."""
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)  # gloo cannot scatter what it reduces
        return grad[ctx.rows], None, None, None


class _PassOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, after: int, before: int) -> Tensor:
        """The x of the process before this one."""
        ctx.after, ctx.before = after, before
        return _exchange(x, after, before)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of x, from the process after this one."""
        return _exchange(grad, ctx.before, ctx.after), None, None


_gather: Callable[..., Tensor] = _Gather.apply  # which torch leaves without types
_pass_on: Callable[..., Tensor] = _PassOn.apply


def _exchange(x: Tensor, to: int, of: int) -> Tensor:
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    sends = [dist.P2POp(dist.isend, x.contiguous(), to), dist.P2POp(dist.irecv, received, of)]
    for work in dist.batch_isend_irecv(sends):
        work.wait()
    return received


def _buckets(parameters: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    for p in parameters:
        if bucket and sum(q.nbytes for q in bucket) + p.nbytes > BUCKET:
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


# --- sharded parameters (FSDP2) ---


def check_sharding(parts: Iterable[nn.Module], objectives: Iterable[nn.Module], cluster: Cluster) -> None:
    """DiptychError for what computes with weights of a part outside that part: they are put together within it alone."""
    for module in (*parts, *objectives):
        if getattr(module, "borrows", False) or getattr(module, "works_in", ""):
            raise DiptychError(
                f"sharding: fsdp cannot shard a model in which {type(module).__name__} computes with another part's weights; "
                "remove `sharding`"
            )
    if cluster.size == 1:
        raise DiptychError("sharding: fsdp needs several processes; start with torchrun or --processes, or remove `sharding`")


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is split among processes (FSDP2)."""
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def whole(x: Tensor) -> Tensor:
    """A sharded tensor gathered on every process; any other as it is."""
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]


def local(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in the same memory; any other as it is."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def like(x: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, sharded like ``model``."""
    if not is_sharded(model) or is_sharded(x):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(model.device), model.device_mesh, model.placements)  # type: ignore[attr-defined]


def shard(module: nn.Module, cluster: Cluster) -> None:
    """Shard the module's parameters block by block (FSDP2, ``fully_shard``): each process keeps its part of the weights, gradients
    and optimizer state.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    from diptych.models.layers.attention import Block

    if not any(True for _ in module.parameters()):
        return
    mesh = init_device_mesh(cluster.device.type, (cluster.size,))
    for block in [m for m in module.modules() if isinstance(m, Block)]:
        fully_shard(block, mesh=mesh)
    replicated = {getattr(module, name) for name in getattr(module, "replicated", ())}
    fully_shard(module, mesh=mesh, ignored_params=replicated)
    for name in dict.fromkeys((*getattr(module, "called", ()), *declarations(type(module)))):  # besides ``forward``
        register_fsdp_forward_method(module, name)
