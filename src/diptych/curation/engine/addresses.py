"""The address of every result of a plan on a list of shards, known before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.curation.engine.intake import ShardInfo
from diptych.curation.engine.shards import Keys
from diptych.curation.engine.store import address
from diptych.curation.plan import Plan, Step

VERSION = 2  # of the output format


def addresses(plan: Plan, steps: Sequence[Step], shards: Sequence[ShardInfo]) -> list[Keys]:
    """The addresses of the results of each shard.

    An operator's result depends on the operators of its inputs and, if it sees kept rows only, on all decisions before it.
    A state depends on every shard's summary, and a summary on its shard's position, since pointers are positions.
    """
    form = "parquet" if plan.output.format == "packed" else plan.output.format
    descriptions = [step.describe() for step in steps]
    columns: list[list[str | None]] = [[] for _ in shards]
    summaries: list[list[str | None]] = [[] for _ in shards]
    states: list[str | None] = []
    decided = [address("all", shard.key, plan.errors) for shard in shards]
    maker = {name: step.index for step in steps for name in step.outputs}
    for step, description in zip(steps, descriptions, strict=True):
        reads = [[columns[n][maker[name]] if name in maker else name for name in step.inputs] for n in range(len(shards))]
        sees = [(shard.key, decided[n] if step.of == "kept" else None) for n, shard in enumerate(shards)]
        place = [n if step.two_passes or "row" in step.inputs else None for n in range(len(shards))]
        state = None
        for n in range(len(shards)):
            summaries[n].append(address("summary", description, reads[n], sees[n], place[n]) if step.two_passes else None)
        if step.two_passes:
            state = address("state", description, [s[-1] for s in summaries])
        states.append(state)
        for n in range(len(shards)):
            key = address("columns", description, reads[n], sees[n], place[n], state) if step.operator else None
            columns[n].append(key)
            if step.rule or plan.errors == "drop":
                salt = (plan.seed, step.label) if step.rule and step.rule.random is not None else None
                decided[n] = address(decided[n], description, reads[n], state, key, salt)
    return [
        Keys(
            n,
            shard.key,
            tuple(columns[n]),
            tuple(summaries[n]),
            tuple(states),
            decided=address("decided", VERSION, n, decided[n], columns[n], [s.label for s in steps]),
            part=address("part", VERSION, decided[n], form, n if form in ("wds", "images") else None),
        )
        for n, shard in enumerate(shards)
    ]
