"""What a tuned model said before, and says after, on conversations that it did not learn from."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diptych.benchmarks.statistics import PairedTest, paired_test
from diptych.core.capabilities import Image
from diptych.core.errors import counted
from diptych.core.sample import IMAGE, Turn
from diptych.data.conversations.turns import captioned
from diptych.data.source import BrokenItem, Source
from diptych.inference.foreign.hub import move
from diptych.inference.foreign.tuned import Tuned

ASKED = 200  # conversations of each source
WRITTEN = 64  # tokens of an answer that is compared
FEW = 10  # conversations below which an interval says little

Conversation = tuple[str, list[Turn], list[Image]]  # id, turns, pictures
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Compared:
    """One source, before and after. likelihood: mean log P of a token of an answer, in nats; exact: the share of answers that the
    model writes word for word. Each with the paired difference, its 95 % interval and p, by conversation.
    """

    data: str
    role: str  # held-out: of the data that it learned from; other: data on which it should stay as it was
    conversations: int
    answers: int
    likelihood: tuple[float, float]
    exact: tuple[float, float]
    likelihood_test: PairedTest
    exact_test: PairedTest

    def plain(self) -> dict[str, Any]:
        """As plain data."""

        def pair(values: tuple[float, float], test: PairedTest) -> dict[str, float | None]:
            """Before, after, and the difference; an interval that is not known (of one conversation) is None."""
            known = math.isfinite(test.low) and math.isfinite(test.high)
            bounds = {"low": test.low, "high": test.high} if known else {"low": None, "high": None}
            return {"before": values[0], "after": values[1], "difference": test.difference, **bounds, "p": test.p}

        return {
            "data": self.data,
            "role": self.role,
            "conversations": self.conversations,
            "answers": self.answers,
            "likelihood": pair(self.likelihood, self.likelihood_test),
            "exact": pair(self.exact, self.exact_test),
        }


def conversations(source: Source, most: int = ASKED) -> list[Conversation]:
    """The first conversations of a source; a caption is the answer to a request for one."""
    found: list[Conversation] = []
    for i in range(len(source)):
        if len(found) == most:
            break
        try:
            sample = source[i]
        except BrokenItem:
            continue
        if sample.turns:
            found.append((sample.id, list(sample.turns), list(sample.images)))
        elif sample.image is not None and sample.captions:
            found.append((sample.id, captioned(sample.captions[0]), [sample.image]))
    return [one for one in found if any(turn.role == "assistant" for turn in one[1])]


def compared(model: Tuned, asked: Sequence[Conversation], data: str, role: str, progress: Progress | None = None) -> Compared:
    """A tuned model against itself before, on the same conversations. Every answer is written after the true words before it."""
    measured: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    states: tuple[AbstractContextManager[Any], ...] = (model.before(), nullcontext())
    for k, state in enumerate(states):
        with state:
            rows = []
            for i, (_, turns, images) in enumerate(asked):
                rows.append(_measured(model, turns, images))
                if progress is not None:
                    progress(f"{data}, {('before', 'after')[k]}", i + 1, len(asked))
        measured.append(tuple(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))  # type: ignore[arg-type]
    (total, exact, answers), (total_after, exact_after, _) = measured
    tokens = np.array([_tokens(model, turns, images) for _, turns, images in asked], dtype=np.float64)
    mean, mean_after = total / tokens, total_after / tokens
    share, share_after = exact / answers, exact_after / answers
    groups = [name for name, _, _ in asked]
    return Compared(
        data,
        role,
        len(asked),
        int(answers.sum()),
        (float(mean.mean()), float(mean_after.mean())),
        (float(share.mean()), float(share_after.mean())),
        paired_test(mean_after, mean, groups),
        paired_test(share_after, share, groups),
    )


def _batch(model: Tuned, turns: Sequence[Turn], images: Sequence[Image]) -> Any:
    return model.chat.batch([(turns, images)])


def _tokens(model: Tuned, turns: Sequence[Turn], images: Sequence[Image]) -> int:
    """How many tokens of a conversation are answers."""
    return max(1, int(_batch(model, turns, images).learned[:, 1:].sum()))


def _measured(model: Tuned, turns: Sequence[Turn], images: Sequence[Image]) -> tuple[float, float, float]:
    """log P of all answers of a conversation, in nats; how many are written word for word; how many there are."""
    made = _batch(model, turns, images)
    inputs = move(made.inputs, model.device, model.dtype)
    learned = made.learned[:, 1:].to(model.device)
    with torch.inference_mode():
        logits = model.model(**inputs).logits[:, :-1][learned].float()
    total = -float(F.cross_entropy(logits, inputs["input_ids"][:, 1:][learned], reduction="sum"))
    hits = answers = 0
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            before = turns[:i]
            shown = images[: sum(t.text.count(IMAGE) for t in before)]
            hits += normal(model.converse(shown, before, WRITTEN)) == normal(turn.text)
            answers += 1
    return total, float(hits), float(answers)


def normal(text: str) -> str:
    """A text without capitals, outer punctuation and repeated spaces, for comparison word for word."""
    return " ".join(text.casefold().split()).strip(string.punctuation + " ")


def as_table(rows: Sequence[Compared], notes: Sequence[str] = ()) -> str:
    """The comparison as a table of Markdown."""
    lines = [
        "| data | conversations | | before | after | difference (95 % interval) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        where = f"{row.data} ({row.role})"
        for what, values, test in (
            ("log P of a token of an answer", row.likelihood, row.likelihood_test),
            ("answers word for word", row.exact, row.exact_test),
        ):
            value, signed = ("{:.3f}", "{:+.3f}") if what.startswith("log") else ("{:.1%}", "{:+.1%}")
            known = math.isfinite(test.low) and math.isfinite(test.high)
            bounds = f"{signed.format(test.low)} to {signed.format(test.high)}" if known else "not known"
            lines.append(
                f"| {where} | {row.conversations} | {what} | {value.format(values[0])} | {value.format(values[1])} | "
                f"{signed.format(test.difference)} ({bounds}) |"
            )
    few = [row for row in rows if row.conversations < FEW]
    notes = [*notes, *(f"{row.data}: {counted(row.conversations, 'conversation')}, so the intervals say little" for row in few)]
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"
