"""Questions that samples of the data bring along: ``extra["questions"]``, as scenes have them."""

from __future__ import annotations

from collections.abc import Iterator

from diptych.benchmarks.answers.questions import Question
from diptych.benchmarks.base import Items, NotApplicable, readable
from diptych.core.sample import Sample
from diptych.data.source import Problem, Source

BUILT_IN = 300  # questions from a source without end


def sample_questions(source: Source, n: int, kinds: tuple[str, ...] = ()) -> Items:
    """The questions in ``extra["questions"]`` of the samples: question, answer or answers, perhaps kind and options."""
    items: list[Question] = []
    problems: list[Problem] = []
    limit = n or BUILT_IN
    for count, sample in enumerate(readable(source, problems), 1):
        if sample.image is not None:
            items += questions_of(source, sample, kinds)
        if len(items) >= limit or (not items and count == 100):
            break
    if len({q.cluster for q in items}) < 2:
        raise NotApplicable("the source has no questions (extra['questions'] of its samples); give ?file=")
    return Items(items[:limit], problems)


def questions_of(source: Source, sample: Sample, kinds: tuple[str, ...] = ()) -> Iterator[Question]:
    """The questions about one sample; ``kinds``: only these."""
    for number, given in enumerate(sample.extra.get("questions") or []):
        kind = given.get("kind", "")
        if kinds and kind not in kinds:
            continue
        options, statements = given.get("options") or [], given.get("statements") or []
        if not options and hasattr(source, "options"):
            options, statements = source.options(sample, given)
        answers = given.get("answers") or [given["answer"]]
        yield Question(
            f"{sample.id}#{number}",
            sample.id,
            sample.image,  # type: ignore[arg-type]
            given["question"],
            tuple(map(str, answers)),
            tuple(options),
            tuple(statements),
            {"kind": kind} if kind else {},
        )
