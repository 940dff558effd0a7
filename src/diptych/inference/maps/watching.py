"""Records what a tower does while it reads a picture: attention matrices, and what its last block reads and gives.

Nothing that the tower computes changes by more than rounding: attention is computed step by step instead of by a fused kernel.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diptych.models.layers.attention import Attention, Block


@dataclass
class Watched:
    """What was recorded, in the order of computation; all of it belongs to the graph of the score.

    own: attention of tokens to each other [B, H, L, L]; pools: of learned queries to tokens [B, H, n, L]; cross: of the tokens of
    another modality to those of the picture [B, H, T, L]. read, given: what the last block reads and gives, [B, L, D]; of a
    convolutional tower ``given`` alone, [B, D, h, w]. thread: whose computation is recorded; others may use the model meanwhile.
    """

    own: list[Tensor] = field(default_factory=list)
    pools: list[Tensor] = field(default_factory=list)
    cross: list[Tensor] = field(default_factory=list)
    read: Tensor | None = None
    given: Tensor | None = None
    thread: int = field(default_factory=threading.get_ident)

    @property
    def here(self) -> bool:
        """Whether this is the thread that records."""
        return threading.get_ident() == self.thread


def attends(module: nn.Module) -> bool:
    """Whether a tower's tokens attend to each other."""
    return any(isinstance(m, Attention) or _is_theirs(m) for m in module.modules())


@contextmanager
def watching(module: nn.Module) -> Iterator[Watched]:
    """Record everything in a module of ours or of transformers until the end of the block."""
    seen = Watched()
    with ExitStack() as stack:
        roles = {id(a): role for m in module.modules() if isinstance(m, Block) for a, role in _attentions_of(m)}
        for m in module.modules():
            if isinstance(m, Attention):
                stack.enter_context(_replaced(m, "look", _Look(m, seen, getattr(seen, roles.get(id(m), "pools")))))
            elif isinstance(m, nn.MultiheadAttention) and m.batch_first:
                stack.enter_context(_replaced(m, "forward", _Pool(m, seen)))
            elif _is_theirs(m):
                stack.callback(m.register_forward_pre_hook(_ask, with_kwargs=True).remove)
                stack.callback(m.register_forward_hook(_record(seen)).remove)
        for config in _configurations(module):
            stack.enter_context(_plain(config))
        if (last := _last_block(module)) is not None:
            stack.callback(last.register_forward_pre_hook(_note_read(seen), with_kwargs=True).remove)
            stack.callback(last.register_forward_hook(_note_given(seen)).remove)
        yield seen


def _attentions_of(block: Block) -> list[tuple[Attention, str]]:
    cross = getattr(block, "cross", None)
    return [(block.attention, "own"), *([(cross, "cross")] if isinstance(cross, Attention) else [])]


def _is_theirs(module: nn.Module) -> bool:
    """Whether it is an attention layer of transformers, by the name of its class."""
    name = type(module).__name__.lower()
    return "attention" in name and type(module).__module__.startswith("transformers.") and not name.endswith("head")


class _Look:
    """In place of ``Attention.look``: the same with the matrix written out and recorded."""

    def __init__(self, module: Attention, seen: Watched, into: list[Tensor]):
        self.module, self.plain, self.seen, self.into = module, module.look, seen, into

    def __call__(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """[B, L, D]"""
        if not self.seen.here:
            return self.plain(x, k, v, bias)
        B, L, D = x.shape
        q = self.module.q(x).view(B, L, self.module.heads, -1).transpose(1, 2)
        logits = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
        weights = torch.softmax(logits if bias is None else logits + bias.to(logits.dtype), dim=-1)
        self.into.append(weights := with_gradient(weights))
        out: Tensor = self.module.out((weights @ v).transpose(1, 2).reshape(B, L, D))
        return out


class _Pool:
    """In place of ``nn.MultiheadAttention.forward``, such as SigLIP's pooling: the same without masks, recorded."""

    def __init__(self, module: nn.MultiheadAttention, seen: Watched):
        self.module, self.plain, self.seen = module, module.forward, seen

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        """[B, n, D], and no matrix."""
        if not self.seen.here or any(x is not None for x in options.values()) or self.module.in_proj_weight is None:
            return self.plain(query, key, value, **options)
        weights, biases = self.module.in_proj_weight.chunk(3), self.module.in_proj_bias.chunk(3)
        heads = self.module.num_heads
        q, k, v = (
            torch.unflatten(nn.functional.linear(x, w, b), 2, (heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        attention = torch.softmax((q * (q.shape[-1] ** -0.5)) @ k.transpose(-2, -1), -1)
        self.seen.pools.append(attention := with_gradient(attention))
        return self.module.out_proj((attention @ v).transpose(1, 2).flatten(2)), None


def with_gradient(x: Tensor) -> Tensor:
    """x as it is if it has a gradient, else as the beginning of a graph."""
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()


def _ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let a layer of transformers return its matrix, where it has to be asked for it."""
    takes = inspect.signature(module.forward)
    if "output_attentions" not in takes.parameters:
        return args, kwargs
    given = takes.bind(*args, **kwargs)
    given.arguments["output_attentions"] = True
    return given.args, given.kwargs


def _record(seen: Watched) -> Any:
    def hook(_: nn.Module, __: Any, out: Any) -> None:
        """Keep the matrix that a layer of transformers returns second."""
        matrix = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        if seen.here and isinstance(matrix, Tensor) and matrix.ndim == 4 and not any(matrix is known for known in seen.own):
            seen.own.append(matrix)

    return hook


def _note_read(seen: Watched) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Keep what the block reads, as a part of the graph."""
        if not seen.here:
            return args, kwargs
        if args:
            seen.read = with_gradient(args[0])
            return (seen.read, *args[1:]), kwargs
        seen.read = with_gradient(kwargs["hidden_states"])
        return args, {**kwargs, "hidden_states": seen.read}

    return hook


def _note_given(seen: Watched) -> Any:
    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        """Keep what the block gives, as a part of the graph."""
        if not seen.here:
            return out
        if isinstance(out, tuple):
            seen.given = with_gradient(out[0])
            return (seen.given, *out[1:])
        if not isinstance(out, Tensor):  # what a whole model of transformers gives
            seen.given = out.last_hidden_state
            return out
        seen.given = with_gradient(out)
        return seen.given

    return hook


def _last_block(module: nn.Module) -> nn.Module | None:
    """The last block of a tower: ours, or the last of the longest list of layers of transformers."""
    blocks = [m for m in module.modules() if isinstance(m, Block)]
    if blocks:
        return blocks[-1]
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) and any(map(_is_theirs, m[0].modules()))]
    return max(lists, key=len)[-1] if lists else None


@contextmanager
def watching_map(module: nn.Module) -> Iterator[Watched]:
    """Record the feature map [B, D, h, w] that a convolutional module gives."""
    seen = Watched()
    handle = module.register_forward_hook(_note_given(seen))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _replaced(module: nn.Module, name: str, by: Any) -> Iterator[None]:
    before = module.__dict__.get(name)
    module.__dict__[name] = by
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = before


def _configurations(module: nn.Module) -> list[Any]:
    found = {id(m.config): m.config for m in module.modules() if hasattr(getattr(m, "config", None), "_attn_implementation")}
    return list(found.values())


@contextmanager
def _plain(config: Any) -> Iterator[None]:
    """Attention of transformers step by step, which returns its matrices."""
    before, config._attn_implementation, config.watched = config._attn_implementation, "eager", True
    try:
        yield
    finally:
        config._attn_implementation = before
        config.__dict__.pop("watched", None)  # it is not part of what is saved


@contextmanager
def scrambled(modules: Sequence[nn.Module], seed: int = 0) -> Iterator[None]:
    """Each weight tensor of the modules with its entries in random order, until the end of the block: a model that has learned
    nothing but the sizes of its weights (Adebayo et al. 2018, arXiv:1810.03292: a map that stays the same shows no model).
    """
    tensors = [p for m in modules for p in m.parameters()]
    before = [p.detach().clone() for p in tensors]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tensors:
            order = torch.randperm(p.numel(), generator=generator).to(p.device)
            p.copy_(p.flatten()[order].view_as(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, kept in zip(tensors, before, strict=True):
                p.copy_(kept)
