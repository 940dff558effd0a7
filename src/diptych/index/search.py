"""A search in an index: the vector of the query, the nearest pictures, near-duplicates as one, and whether there is anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.index.calibrate import TOP
from diptych.index.cutoff.rerank import Reranker
from diptych.index.filters import Where, sql_of
from diptych.index.judging import judge, readable, rejudged
from diptych.index.query import Answer, Hit, Query, vector_of

if TYPE_CHECKING:
    from diptych.index.index import Index

ATTEMPTS = 3  # of a search during updates
MOST = 100_000  # hits that one search may go through
SOME = 400  # values in one statement


def steady(index: Index, search: Callable[[], Answer]) -> Answer:
    """The answer of a search. An update may change the index under it, so that rows and vectors do not fit: it begins again."""
    for _ in range(ATTEMPTS):
        before = index.catalog.generation()
        try:
            return search()
        except DiptychError:
            if index.catalog.generation() == before:
                raise
    return search()


def search(
    index: Index,
    query: Query,
    model: Model,
    n: int,
    offset: int,
    filters: Mapping[str, Any] | None,
    fold: bool,
    cutoff: bool,
    rerank: Reranker | None,
) -> Answer:
    """``Index.search``, of an index that does not change meanwhile."""
    began = time.perf_counter()
    if n < 1 or offset < 0 or n + offset > MOST:
        raise DiptychError(f"n={n}, offset={offset}: expected n from 1 and offset from 0, together at most {MOST:,}")
    where = index.where(filters) if filters else None
    if where is not None and not where.conditions:
        where = None
    store = index.store
    if query.empty and not (query.without or query.without_images or query.without_like):
        return _listed(index, where, n, offset, fold, began)
    for id in (*query.like, *query.without_like):
        if (known := index.picture(id)) is None or known.state != "ok":
            raise DiptychError(f"{index.path}: there is no picture {id} to compare with")
    vector = vector_of(query, model, store.vectors)
    total = len(index) if where is None else len(where.ids())
    part, again = slice(offset, offset + n), rerank is not None and readable(query)
    wanted = max(n + offset, TOP) if again or cutoff else n + offset
    ids, scores, leader = _nearest(index, vector, where, wanted, fold, set(query.like), total)
    if again:
        assert rerank is not None
        verdict, order = rejudged(index, query, vector, ids, total, part, rerank)
        ids, scores = [ids[i] for i in order], [scores[i] for i in order]
    else:
        verdict = judge(index, query, vector, ids, total, part) if cutoff else None
    relevance = (verdict.relevance if verdict is not None else [None] * len(ids))[part]
    ids, scores = ids[part], scores[part]
    twins = _twins(index, vector, where, ids, leader, set(query.like)) if fold else {}
    known_facts = index.catalog.facts(ids, index.addresses)
    hits = tuple(
        Hit(id, score, fit, known_facts[id], twins.get(id, ()))
        for id, score, fit in zip(ids, scores, relevance, strict=True)
        if id in known_facts
    )
    nothing, reason = (verdict.nothing, verdict.reason) if verdict is not None and cutoff else (False, "")
    return Answer(hits, nothing, reason, total, time.perf_counter() - began, again)


def _nearest(
    index: Index, vector: np.ndarray, where: Where | None, wanted: int, fold: bool, without: set[int], total: int
) -> tuple[list[int], list[float], dict[int, int]]:
    """The ``wanted`` best ids, scores, and the leader of each; one of each group if ``fold``."""
    if where is None:
        total = len(index.store)  # after a crash there may be vectors of which the catalog knows nothing
    k = min(wanted + len(without) + (wanted // 4 + 4 if fold else 0), max(total, 1))
    while True:
        found = index.store.search(vector[None], k, where)
        pairs = [(int(i), float(s)) for i, s in zip(found.ids[0], found.scores[0], strict=True) if i >= 0 and int(i) not in without]
        groups = _leaders(index, [i for i, _ in pairs])
        seen: set[int] = set()
        ids: list[int] = []
        scores: list[float] = []
        for id, score in pairs:
            if id not in groups or (fold and groups[id] in seen):  # not in the catalog: it was deleted meanwhile
                continue
            seen.add(groups[id])
            ids.append(id)
            scores.append(score)
        if len(ids) >= wanted or k >= total:
            return ids[:wanted], scores[:wanted], groups
        k = min(k * 2, total)


def _leaders(index: Index, ids: list[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for start in range(0, len(ids), SOME):
        some = ids[start : start + SOME]
        marks = ",".join("?" * len(some))
        found.update(index.catalog.rows(f"SELECT id, leader FROM pictures WHERE state = 'ok' AND id IN ({marks})", some))
    return found


def _twins(
    index: Index, vector: np.ndarray, where: Where | None, ids: list[int], leader: Mapping[int, int], without: set[int]
) -> dict[int, tuple[int, ...]]:
    """For each hit the other pictures of its group that fulfil the filters, best first."""
    text, values = sql_of(where.conditions if where else (), index.addresses)
    groups: dict[int, list[int]] = {}
    heads = [leader[id] for id in ids]
    for start in range(0, len(heads), SOME):
        some = heads[start : start + SOME]
        sql = f"SELECT id, leader FROM pictures WHERE {text} AND leader IN ({','.join('?' * len(some))}) ORDER BY id"
        for other, head in index.catalog.rows(sql, [*values, *some]):
            groups.setdefault(head, []).append(other)
    result = {}
    for id in ids:
        others = [i for i in groups.get(leader[id], ()) if i != id and i not in without]
        if others:
            scores = index.store.vectors(np.array(others, np.int64)) @ vector
            result[id] = tuple(others[i] for i in np.lexsort((others, -scores)))
    return result


def _listed(index: Index, where: Where | None, n: int, offset: int, fold: bool, began: float) -> Answer:
    """Pictures without a query, the latest first."""
    text, values = sql_of(where.conditions if where else (), index.addresses)
    total = index.catalog.one(f"SELECT count(*) FROM pictures WHERE {text}", values)
    if fold:  # the first of each group among those that fulfil the filters
        sql = f"SELECT min(id) AS first, group_concat(id) FROM pictures WHERE {text} GROUP BY leader ORDER BY max(date) DESC, first"
    else:
        sql = f"SELECT id, id FROM pictures WHERE {text} ORDER BY date DESC, id"
    rows = index.catalog.rows(f"{sql} LIMIT ? OFFSET ?", [*values, n, offset])
    facts = index.catalog.facts([row[0] for row in rows], index.addresses)
    hits = tuple(
        Hit(id, 0.0, None, facts[id], tuple(sorted(int(i) for i in str(group).split(",") if int(i) != id)))
        for id, group in rows
        if id in facts
    )
    return Answer(hits, False, "", total, time.perf_counter() - began)
