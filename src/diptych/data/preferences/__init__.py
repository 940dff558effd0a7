"""Preferences: a question about images, an answer that is right and one that is wrong, and where exactly it is wrong.

A sample of such a source holds the question with the right answer as its conversation (``turns``), so that instruction tuning can
read it as it is, and what is known of the wrong answer in ``extra["preference"]`` (``Preference``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diptych.core.sample import Sample

Span = tuple[int, int]  # first character and the one after the last


class Preference(NamedTuple):
    """What is known of a pair of answers to one question.

    spans: of ``rejected``, what is wrong; chosen_spans: of ``chosen``, what stands there instead. Empty: not known. fact: the kind
    of fact that was changed; "": not known. facts: true statements about the images, such as captions.
    """

    chosen: str
    rejected: str
    spans: tuple[Span, ...] = ()
    chosen_spans: tuple[Span, ...] = ()
    fact: str = ""
    facts: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain data, for ``extra``."""
        spans = {name: [list(span) for span in getattr(self, name)] for name in ("spans", "chosen_spans")}
        return {**self._asdict(), **spans, "facts": list(self.facts)}

    @classmethod
    def from_plain(cls, known: Mapping[str, Any]) -> Preference:
        """The preference of which ``plain`` returned this."""
        spans = {name: tuple((int(a), int(b)) for a, b in known.get(name, ())) for name in ("spans", "chosen_spans")}
        return cls(known["chosen"], known["rejected"], **spans, fact=known.get("fact", ""), facts=tuple(known.get("facts", ())))


def preference_of(sample: Sample) -> Preference | None:
    """What is known of a sample's pair of answers; None if it has no pair."""
    known = sample.extra.get("preference")
    return Preference.from_plain(known) if isinstance(known, Mapping) else None
