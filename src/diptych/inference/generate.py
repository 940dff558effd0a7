"""Writing token by token: greedy, sampled, or the likeliest of several beams.

Every writer has the same interface: a beginning, ``(logits [B, V], state)``, and ``step(ids [B], state) -> (logits [B, V],
state)``, where ``state[rows]`` is the state of those rows, which may repeat, and a state is never changed. Restrictions and
mixtures (a grammar, classifier-free guidance) are up to the step.

Shapes: B sequences, K beams, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diptych.core.errors import DiptychError, nearest

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class State(Protocol):
    """The state between steps of generation, indexable by rows."""

    def __getitem__(self, rows: Tensor) -> Any: ...


Begun = tuple[Tensor, Any]  # logits over the first token [B, V], and the state
Step = Callable[[Tensor, Any], Begun]


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. By default: greedily. With ``beams`` > 1: beam search. With a temperature, ``top_k`` or ``top_p``:
    sampling.

    length_penalty: beams are ranked by log-likelihood / length^length_penalty, so higher values favour longer texts (Wu et al.
    2016, §7, in the simpler form that transformers has). top_k: only the k likeliest tokens (Fan et al. 2018); top_p: only the
    likeliest that together reach p (Holtzman et al. 2020). repetition_penalty: above 1 makes tokens written before less likely
    (Keskar et al. 2019, §4.1).
    stop: strings that end a text; they are cut off. seed: the same image, settings and seed give the same text in any batch.
    """

    max_tokens: int = 32
    beams: int = 1
    length_penalty: float = 1.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("beams", self.beams >= 1, "at least 1"),
            ("temperature", self.temperature is None or 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0 (1: none)"),
            ("stop", not isinstance(self.stop, str) and all(self.stop), "strings, none of them empty"),
            ("seed", self.seed >= 0, "0 or more"),
        ]
        for name, fine, expected in wrong:
            if not fine:
                raise DiptychError(f"decoding: {name} is {getattr(self, name)!r}; expected {expected}")
        if self.beams > 1 and self.samples:
            raise DiptychError("decoding: beams look for the likeliest text, temperature, top_k and top_p draw one; choose either")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature != 0 and not (self.temperature is None and self.top_k is None and self.top_p is None)


def decoding_of(**settings: Any) -> Decoding:
    """Settings by their names."""
    known = [f.name for f in fields(Decoding)]
    for name in settings:
        if name not in known:
            raise DiptychError(f"decoding: unknown setting '{name}'{nearest(name, known)}")
    return Decoding(**settings)


def penalise(scores: Tensor, written: Tensor, penalty: float) -> Tensor:
    """Scores [B, V] with those of the tokens in ``written`` [B, t] divided by the penalty, or multiplied where negative."""
    if penalty == 1 or not written.shape[1]:
        return scores
    old = scores.gather(1, written)
    return scores.scatter(1, written, torch.where(old < 0, old * penalty, old / penalty))


def warp(logits: Tensor, decoding: Decoding) -> Tensor:
    """Logits [B, V] for sampling: divided by the temperature, and −∞ outside ``top_k`` and then ``top_p``."""
    if decoding.temperature:
        logits = logits / decoding.temperature
    if decoding.top_k is not None and decoding.top_k < logits.shape[-1]:
        least = logits.topk(decoding.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if decoding.top_p is not None and decoding.top_p < 1:
        ranked, order = logits.sort(descending=True, dim=-1)
        p = ranked.softmax(-1)
        beyond = p.cumsum(-1) - p >= decoding.top_p  # the tokens before it are enough
        beyond[..., 0] = False
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits


def choose(logits: Tensor, decoding: Decoding, draws: Tensor | None = None) -> Tensor:
    """The next token [B] from logits [B, V]. draws: a number in [0, 1) per row, if ``decoding`` samples."""
    if not decoding.samples:
        return logits.argmax(-1)
    assert draws is not None, "sampling needs draws"
    below = warp(logits.double(), decoding).softmax(-1).cumsum(-1)
    at = draws.to(below)[:, None].clamp_max(1 - 1e-12) * below[:, -1:]  # below the sum, for any rounding
    return torch.searchsorted(below, at, right=True)[:, 0]


def draws_of(decoding: Decoding, rows: Sequence[int]) -> Tensor:
    """Random numbers [B, max_tokens], with one stream per row by its own number: no row depends on another."""
    return torch.from_numpy(
        np.stack([np.random.default_rng([decoding.seed, row]).random(decoding.max_tokens) for row in rows])
        if len(rows)
        else np.zeros((0, decoding.max_tokens))
    )


@torch.no_grad()
def generate(
    step: Step,
    begun: Begun,
    decoding: Decoding,
    *,
    eos: Sequence[int] = (),
    pad: int = 0,
    rows: Sequence[int] | None = None,
    stopped: Callable[[list[int]], bool] | None = None,
) -> Tensor:
    """Token ids [B, ≤ max_tokens], greedy or sampled, padded after the first of ``eos``; without ``eos``, as many as allowed.

    rows: numbers of the rows' random streams; default: their indices. stopped: whether a row's tokens so far end it.
    """
    return torch.stack(list(tokens(step, begun, decoding, eos=eos, pad=pad, rows=rows, stopped=stopped)), 1)


def tokens(
    step: Step,
    begun: Begun,
    decoding: Decoding,
    *,
    eos: Sequence[int] = (),
    pad: int = 0,
    rows: Sequence[int] | None = None,
    stopped: Callable[[list[int]], bool] | None = None,
) -> Iterator[Tensor]:
    """The columns [B] of ``generate``, each as soon as it is chosen. The caller turns gradients off, for each of them anew."""
    logits, state = begun
    B, device = len(logits), logits.device
    draws = draws_of(decoding, range(B) if rows is None else rows).to(device) if decoding.samples else None
    ends = torch.tensor(list(eos), dtype=torch.long, device=device)
    done = torch.zeros(B, dtype=torch.bool, device=device)
    out = torch.zeros(B, 0, dtype=torch.long, device=device)
    for t in range(decoding.max_tokens):
        scores = penalise(logits.float(), out, decoding.repetition_penalty)
        ids = choose(scores, decoding, None if draws is None else draws[:, t]).masked_fill(done, pad)
        out = torch.cat([out, ids[:, None]], 1)
        done |= torch.isin(ids, ends)
        if stopped is not None:
            done |= torch.tensor([stopped(row) for row in out.tolist()], dtype=torch.bool, device=device)
        yield ids
        if t + 1 == decoding.max_tokens or bool(done.all()):
            return
        logits, state = step(ids, state)


@torch.no_grad()
def beam_search(step: Step, begun: Begun, decoding: Decoding, *, eos: Sequence[int] = (), pad: int = 0) -> tuple[Tensor, Tensor]:
    """The best text that ``beams`` hypotheses find: ids [B, ≤ max_tokens], padded after the first of ``eos``, and its score [B].

    The score is log P / length^length_penalty, [EOS] counted. A hypothesis that ends among the K best is kept aside; at the last
    token all end. The search continues as long as a running hypothesis could still beat the best that has ended (transformers'
    ``early_stopping="never"``).
    """
    logits, state = begun
    (B, V), K, T, device = logits.shape, decoding.beams, decoding.max_tokens, logits.device
    alpha = decoding.length_penalty
    ends = torch.tensor(list(eos), dtype=torch.long, device=device)
    each = torch.arange(B, device=device)[:, None]
    written = torch.full((B, K, T), pad, device=device)
    sums = torch.full((B, K), -torch.inf, device=device)
    sums[:, 0] = 0  # at first all beams are the same
    logits, state = logits.repeat_interleave(K, 0), state[each.expand(B, K).reshape(-1)]
    best, text = torch.full((B,), -torch.inf, device=device), torch.full((B, T), pad, device=device)
    longest = torch.zeros(B, dtype=torch.long, device=device)
    for t in range(T):
        logp = penalise(logits.float().log_softmax(-1), written[:, :, :t].reshape(B * K, t), decoding.repetition_penalty)
        totals, at = (sums[:, :, None] + logp.view(B, K, V)).flatten(1).topk(min(K * (1 + len(eos)), K * V))
        beam, ids = at // V, at % V
        texts = written[each, beam]  # [B, candidates, T]
        texts[:, :, t] = ids
        ended = torch.isin(ids, ends)
        closed = (ended | (t == T - 1))[:, :K]
        score, which = (totals[:, :K] / (t + 1) ** alpha).masked_fill(~closed, -torch.inf).max(1)
        better = score > best
        text = torch.where(better[:, None], texts[each[:, 0], which], text)
        longest = longest.masked_fill(better, t + 1)
        best = torch.maximum(score, best)
        sums, order = totals.masked_fill(ended, -torch.inf).topk(K)
        length = T if alpha > 0 else t + 2  # the length at which a sum that can only decrease would score best
        if t == T - 1 or bool((sums[:, 0] / length**alpha <= best).all()):
            break
        written, ids, beam = texts[each, order], ids.gather(1, order), beam.gather(1, order)
        logits, state = step(ids.reshape(-1), state[(each * K + beam).reshape(-1)])
    return text[:, : int(longest.max())] if B else text, best


@torch.no_grad()
def write(
    model: VLM,
    p: Pass | None,
    decoding: Decoding,
    rows: Sequence[int] | None = None,
    begun: Begun | None = None,
    eos: Sequence[int] = (),
) -> Tensor:
    """Captions of a pass's images: token ids [B, ≤ max_tokens] after [BOS], each padded after its [EOS]. rows: as in ``generate``.

    begun: a beginning other than that of an image, such as a prompt that was read; eos: other tokens that end a text.
    """
    writer = _writer(model)
    if begun is None:
        assert p is not None
        begun = writer.start(p[writer.begins_with])
    decoding, how = _limits(model, decoding, eos)
    if decoding.beams > 1:
        return beam_search(writer.step, begun, decoding, eos=how["eos"], pad=how["pad"])[0]
    return generate(writer.step, begun, decoding, **how, rows=rows)


def written(
    model: VLM, begun: Begun, decoding: Decoding, rows: Sequence[int] | None = None, eos: Sequence[int] = ()
) -> Iterator[Tensor]:
    """The columns of ``write`` as they are chosen (``tokens``). DiptychError for beams: which one is best is known at the end."""
    if decoding.beams > 1:
        raise DiptychError("decoding: beams give their text at the end, not piece by piece; use beams=1")
    decoding, how = _limits(model, decoding, eos)
    return tokens(_writer(model).step, begun, decoding, **how, rows=rows)


def _writer(model: VLM) -> Any:
    return model.part(model.graph.plain("text.logits").part)


def _limits(model: VLM, decoding: Decoding, eos: Sequence[int]) -> tuple[Decoding, dict[str, Any]]:
    """The settings with as many tokens as there are positions, and what ends a text: ``eos``, ``pad`` and ``stopped``."""
    tokenizer = model.tokenizer
    if _writer(model).limited:
        decoding = replace(decoding, max_tokens=min(decoding.max_tokens, tokenizer.max_length - 1))
    how: dict[str, Any] = {"eos": (*dict.fromkeys((tokenizer.eos, *eos)),), "pad": tokenizer.pad}
    if decoding.stop:

        def stopped(ids: list[int]) -> bool:
            """Whether the text of these tokens contains a stop string."""
            return any(s in tokenizer.decode(ids) for s in decoding.stop)

        how["stopped"] = stopped
    return decoding, how


@torch.no_grad()
def draw(model: VLM, ids: Tensor, decoding: Decoding, guidance: float = 1.0, rows: Sequence[int] | None = None) -> Tensor:
    """Image codes [B, N] for captions of one length, ids [B, t]: [BOS] words. rows: as in ``generate``."""
    decoder = model.part("decoder")
    decoding = replace(decoding, max_tokens=decoder.tokens)
    return generate(decoder.step_image, decoder.start_image(ids, guidance), decoding, rows=rows)
