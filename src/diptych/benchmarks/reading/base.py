"""Questions that earn several credits for one answer."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.benchmarks import results
from diptych.benchmarks.answers.vqa import Vqa
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.statistics import mean


@dataclass(frozen=True)
class Credited(Vqa):
    """``accuracy`` is the share of answers that are the same after normalisation; ``more_credits`` adds other metrics, with the
    same controls and slices.
    """

    def more_credits(self, record: Record, answer: str) -> dict[str, float]:
        """{metric: credit of an answer, 0 to 1}."""
        return {}

    def with_credits(self, record: Record) -> Record:
        """The record with the parsed answer and all its credits."""
        record = super().with_credits(record)
        names = list(self.more_credits(record, ""))
        for condition in self.conditions if names else ():
            if condition in record:
                earned = [self.more_credits(record, answer) for answer in self.parsed(record, condition)]
                more = {name: mean([e[name] for e in earned]) if earned else 0.0 for name in names}
                record[condition] = {**record[condition], **more}
        return record

    def more_results(self, records: list[Record]) -> list[Result]:
        """None: all metrics come from the credits."""
        return []

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """{metric: {item: credit}}: what a paired test compares."""
        return results.credits([self.with_credits(record) for record in records])
