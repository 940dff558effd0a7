"""Budgets: how much a run may spend, in seconds, samples, tokens, floating-point operations or steps, and a meter of what it has
spent.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from diptych.core.errors import DiptychError

SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
UNITS = ("samples", "tokens", "flops", "steps")
FORMS = "90s, 10m, 2h, 200k samples, 5M tokens, 30T flops, 500 steps"


@dataclass(frozen=True)
class Budget:
    """Limits of a run; the first one reached ends it. Seconds count training only: no evaluation, checkpoints or set-up. Steps are
    the optimizer's: those of different recipes cost different amounts, so recipes are compared by flops or samples.
    """

    seconds: float | None = None
    samples: float | None = None
    tokens: float | None = None
    flops: float | None = None
    steps: float | None = None

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """A budget from ``10m``, ``90s``, ``200k samples``, ``5M tokens``, ``30T flops``, ``500 steps``, a mapping, or a number of
        seconds.

        Raises ValueError for anything else.
        """
        if isinstance(text, Budget):
            return text
        if isinstance(text, dict):
            unknown = set(text) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown unit '{min(unknown, key=str)}'; valid: seconds, {', '.join(UNITS)}")
            budget = cls(**{k: None if v is None else _number(k, v) for k, v in text.items()})
        elif isinstance(text, int | float) and not isinstance(text, bool):
            budget = cls(seconds=_number("seconds", text))
        else:
            budget = cls._from_text(str(text).strip())
        amounts = [v for v in asdict(budget).values() if v is not None]
        if not amounts or not all(0 < amount < math.inf for amount in amounts):  # not NaN either, which no run would reach
            raise ValueError(f"a budget must be positive and finite, got '{text}'; forms: {FORMS}")
        return budget

    @classmethod
    def _from_text(cls, text: str) -> Budget:
        match = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*([a-zA-Z]*)\s*(samples?|tokens?|flops?|steps?)?", text)
        try:
            assert match
            amount, suffix, unit = float(match[1]), match[2], match[3]
            if unit:
                unit = unit if unit.endswith("s") else unit + "s"
                return cls(**{unit: amount * SUFFIXES[suffix]})
            if suffix.rstrip("s") + "s" in UNITS:
                return cls(**{suffix.rstrip("s") + "s": amount})
            return cls(seconds=amount * SECONDS[suffix or "s"])
        except (AssertionError, ValueError, KeyError):
            raise ValueError(f"'{text}' is not a budget; forms: {FORMS}") from None

    def scaled(self, factor: float) -> Budget:
        """The budget with every limit multiplied by ``factor``."""
        return Budget(**{k: None if v is None else v * factor for k, v in asdict(self).items()})

    def __str__(self) -> str:
        parts = []
        if self.seconds is not None:
            parts.append(f"{self.seconds:g} s")
        for unit in UNITS:
            amount = getattr(self, unit)
            if amount is not None:
                parts.append(f"{human(amount)} {unit}")
        return ", ".join(parts)


def _number(unit: str, value: Any) -> float:
    """A limit in a mapping: a number, or one written as text."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{unit}: expected a number, got {value!r}; as text a budget has one of the forms {FORMS}") from None


def human(amount: float) -> str:
    """1234567 → 1.23M."""
    for suffix in ("E", "P", "T", "G", "M", "k"):
        if amount >= SUFFIXES[suffix]:
            return f"{amount / SUFFIXES[suffix]:.3g}{suffix}"
    return f"{amount:.3g}"


@dataclass
class Spent:
    """What a run has used so far; part of every checkpoint, so that a resumed run continues the count."""

    seconds: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0  # image tokens and text tokens that entered the model
    flops: float = 0.0  # forward and backward, as torch's counter sees them
    steps: int = 0

    def share(self, budget: Budget) -> float:
        """The share of the budget that is used, 0 to 1 and above."""
        shares: list[float] = [getattr(self, unit) / limit for unit, limit in asdict(budget).items() if limit is not None]
        return max(shares)


def parse_budget(text: str) -> Budget:
    """A budget from the command line. Raises DiptychError if it is not one."""
    try:
        return Budget.parse(text)
    except ValueError as error:
        raise DiptychError(f"--budget: {error}") from None
