"""Rows per CPU-second of each curation operator on the dirty pool (256² JPEG, captions of about nine words), one process, one
thread: the operator alone, on pictures that are already decoded. Then the parts that grow with the pool: copies among a million
pHashes, and MetaCLIP's matching against 500,000 entries."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np

from bench.harness import Bench, rate
from bench.pool import Pool
from diptych.core.arrays import unit_rows
from diptych.core.registry import resolve
from diptych.curation.engine.apply import apply, rows_of
from diptych.curation.operators import OPERATORS
from diptych.curation.operators.duplicates.operators import near_twins
from diptych.curation.operators.duplicates.semantic import semantic_twins
from diptych.curation.operators.text.concepts import Balance, Matcher
from diptych.data.hashes.hamming import pairs_within

METADATA = 100_000  # rows per CPU-second that an operator on captions and numbers alone should do


def run(bench: Bench) -> None:
    _operators(bench)
    _hashes(bench, 100_000 if bench.quick else 1_000_000)
    _concepts(bench, 50_000 if bench.quick else 500_000)
    _meaning(bench, 2_000 if bench.quick else 20_000)


def _operators(bench: Bench) -> None:
    pool = Pool.make(200 if bench.quick else 1500)
    rows = []
    for name in ("image_size", "image_quality", "image_hash"):
        pool.score(name)
        rows.append([name, rate(pool.rates[name])])
    small = 20 if bench.quick else 60
    part = Pool(pool.place, pool.table.slice(0, small), pool.truth[:small])
    try:
        part.score("text_spotting")
        rows.append(["text_spotting", rate(part.rates["text_spotting"])])
    except Exception as error:
        bench.note(f"text_spotting was not measured: {error}")
    captions = pool.values("text") * (10 if bench.quick else 40)
    many = rows_of({"text": captions, "id": [str(i) for i in range(len(captions))]})
    few = many.slice(0, len(pool.ids))  # for those that take milliseconds a row
    for label, name, options, batch in (
        ("text_length", "text_length", {}, many),
        ("text_quality", "text_quality", {}, many),
        ("same_text", "same_text", {}, many),
        ("language, fasttext", "language", {"identifier": "fasttext"}, few),
        ("language, py3langid", "language", {"identifier": "py3langid"}, few),
        ("language, cld2", "language", {"identifier": "cld2"}, few),
        ("negatives", "negatives", {}, few),
    ):
        operator = resolve(OPERATORS[name], {}, "operator")(**options)
        apply(operator, batch.slice(0, 100))
        began = time.process_time()
        apply(operator, batch)
        reached = batch.num_rows / (time.process_time() - began)
        rows.append([label, rate(reached)])
        if batch is many:
            bench.goal(f"{name} ≥ {METADATA:,} rows per CPU-second", rate(reached), reached >= METADATA)
    bench.table(["operator", "rows/CPU-s"], rows, "Operators with one result per row, computed in batches")


def _hashes(bench: Bench, n: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    copies = rng.choice(n, n // 20, replace=False)
    for at, copy in enumerate(copies):  # a twentieth are near copies of others, 0 to 4 bits away
        flips = rng.choice(64, at % 5, replace=False)
        hashes[copy] = hashes[(copy + 1) % n] ^ np.uint64(sum(1 << int(b) for b in flips))
    rows = []
    for distance in (0, 4, 8):
        some = hashes[: n if distance < 8 else n // 10]  # at 8 blocks are of 7 bits: candidates grow with the square
        began = time.perf_counter()
        cause = near_twins(some, np.arange(len(some)), distance)
        spent = time.perf_counter() - began
        rows.append(
            [f"own index: near_image, {len(some):,} hashes", str(distance), f"{spent:.1f} s", f"{int((cause >= 0).sum()):,}"]
        )
        if distance == 4:
            bench.goal(f"copies among {n:,} pHashes at distance 4 in 2 minutes", f"{spent:.1f} s", spent < 120)
    try:
        import faiss

        faiss.omp_set_num_threads(1)
        data = hashes.view(np.uint8).reshape(n, 8)
        began = time.perf_counter()
        index = faiss.IndexBinaryMultiHash(
            64, 4, 16
        )  # four blocks of 16 bits; exact up to 3 bits, so one bit of a block may differ
        index.nflip = 1
        index.add(data)
        found, theirs = 0, min(n, 2_000)
        limits, _, _ = index.range_search(data[:theirs], 5)
        found = int(limits[-1]) - theirs
        spent = (time.perf_counter() - began) * n / theirs
        rows.append(
            [f"faiss IndexBinaryMultiHash (from {theirs:,} queries)", "4", f"{spent:.0f} s", f"{found:,} pairs of the queries"]
        )
    except ModuleNotFoundError:
        bench.note("faiss is not installed, so it was not compared.")
    few = np.unique(hashes[:4000])  # equal ones are grouped before the index is asked
    i, _, _ = pairs_within(few, 4)
    bits = np.bitwise_count(few[:, None] ^ few[None])
    bench.note(
        f"Of {len(few):,} different hashes, comparing all pairs finds {int(np.triu(bits <= 4, 1).sum()):,} pairs within 4 bits, "
        f"the index {len(i):,}."
    )
    bench.table(["index", "distance", "wall time", "removed"], rows, f"{n:,} hashes")


def _concepts(bench: Bench, n: int) -> None:
    from diptych.models.pretrained.packages import require

    (package,) = require("minilm")
    vocabulary = (Path(package.__path__[0]) / "model" / "vocab.txt").read_text(encoding="utf-8")
    words = [w for w in vocabulary.split("\n") if w.isalpha()]
    draw = random.Random(0)
    entries = set(words)
    while len(entries) < n:
        entries.add(" ".join(draw.choices(words, k=draw.choice((2, 2, 3)))))
    captions = [" ".join(draw.choices(words, k=12)) for _ in range(2_000 if bench.quick else 30_000)]
    began = time.process_time()
    match = Matcher(sorted(entries))
    built = time.process_time() - began
    began = time.process_time()
    found = [match(caption) for caption in captions]
    speed = len(captions) / (time.process_time() - began)
    bench.goal(f"{n:,} entries, ≥ 20,000 captions per CPU-second", rate(speed), speed >= 20_000)
    lists = rows_of({"concepts": [[str(i) for i in f] for f in found]})
    balance = Balance(t=50)
    began = time.process_time()
    state = balance.combine(iter([balance.summarise(lists)]))
    balance.decide(lists, state)
    balanced = len(captions) / (time.process_time() - began)
    rows = [
        ["automaton built", f"{built:.1f} s", ""],
        ["captions matched", rate(speed), f"{sum(map(len, found)) / len(found):.1f} entries a caption"],
        ["rows balanced", rate(balanced), ""],
    ]
    bench.table(
        ["MetaCLIP", "per CPU-second", ""],
        rows,
        f"{n:,} entries (words of MiniLM's vocabulary, single and in twos and threes), captions of 12 words",
    )


def _meaning(bench: Bench, n: int) -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.normal(size=(n, 256)), np.float32)
    vectors[n // 2 : n // 2 + n // 10] = unit_rows(
        vectors[: n // 10] + 0.2 * unit_rows(rng.normal(size=(n // 10, 256)), np.float32)
    )
    rows = []
    for across in (False, True):
        began = time.process_time()
        cause, _ = semantic_twins(vectors, 0.05, across=across)
        rows.append(
            [
                "also across clusters" if across else "inside clusters (published)",
                f"{time.process_time() - began:.1f} s",
                f"{int((cause >= 0).sum()):,} of {n // 10:,}",
            ]
        )
    bench.table(
        ["SemDeDup, ε = 0.05", "CPU time", "planted duplicates removed"],
        rows,
        f"{n:,} vectors of 256 numbers, uniform on the sphere (the most difficult case for clusters)",
    )
