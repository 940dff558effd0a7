"""data-juicer (PyPI `py-data-juicer`, in `bench/.datajuicer`, one process, the operators of its own executor with limits that drop
nothing, so that every row gets its number) and Diptych, with the operators that both have, on the same rows. Both read the rows
from memory and, if pictures are needed, the files from disk; wall time, median of three rounds (data-juicer: two)."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.harness import Bench, rate
from bench.peers import HERE, MissingPeer
from bench.pool import Pool
from diptych.curation.engine.apply import apply, rows_of
from diptych.curation.operators.duplicates.operators import SameText
from diptych.curation.operators.images.size import ImageSize
from diptych.curation.operators.text.length import TextLength
from diptych.curation.operators.text.quality import TextQuality

PYTHON = HERE / ".datajuicer" / "bin" / "python"
BIG = 10**9
THEIRS: list[dict[str, dict[str, Any]]] = [
    {"text_length_filter": {"min_len": 0, "max_len": BIG}},
    {"words_num_filter": {"min_num": 0, "max_num": BIG}},
    {"character_repetition_filter": {"rep_len": 10, "min_ratio": 0.0, "max_ratio": 1.0}},
    {"word_repetition_filter": {"rep_len": 4, "min_ratio": 0.0, "max_ratio": 1.0}},
    {"special_characters_filter": {"min_ratio": 0.0, "max_ratio": 1.0}},
    {"image_shape_filter": {"min_width": 1, "min_height": 1}},
    {"image_aspect_ratio_filter": {"min_ratio": 0.0001, "max_ratio": 10_000.0}},
    {"image_size_filter": {"min_size": "0", "max_size": "1TB"}},
    {"document_deduplicator": {"lowercase": True}},
]


def run(bench: Bench) -> None:
    if not PYTHON.is_file():
        raise MissingPeer("data-juicer is not installed: make bench-datajuicer")
    pool = Pool.make(200 if bench.quick else 800)
    with tempfile.TemporaryDirectory() as scratch:
        rows, theirs = _ask(Path(scratch), pool)
        texts, files = [r["text"] for r in rows], [Path(r["images"][0]) for r in rows]
        text_rows = rows_of({"text": texts, "id": [r["id"] for r in rows]})

        def pictures() -> pa.RecordBatch:
            return apply(ImageSize(), rows_of({"image": pa.array([f.read_bytes() for f in files], pa.binary())}))

        ours: dict[str, Callable[[], pa.RecordBatch]] = {
            "lengths": lambda: apply(TextLength(), text_rows),
            "quality": lambda: apply(TextQuality(), text_rows),
            "pictures": pictures,
            "copies": lambda: apply(SameText(), text_rows),
        }
        timed = {name: _timed(work) for name, work in ours.items()}
    pairs: list[tuple[str, str, str, Callable[[Any], float]]] = [
        ("text_length_filter", "lengths", "characters", lambda s: s["text_len"]),
        ("words_num_filter", "lengths", "words", lambda s: s["num_words"]),
        ("character_repetition_filter", "quality", "character_repetition", lambda s: s["char_rep_ratio"]),
        ("word_repetition_filter", "quality", "word_repetition", lambda s: s["word_rep_ratio"]),
        ("special_characters_filter", "quality", "special_characters", lambda s: s["special_char_ratio"]),
        ("image_shape_filter", "pictures", "width", lambda s: s["image_width"][0]),
        ("image_aspect_ratio_filter", "pictures", "aspect", lambda s: max(s["aspect_ratios"][0], 1 / s["aspect_ratios"][0])),
        ("image_size_filter", "pictures", "file_bytes", lambda s: s["image_sizes"][0]),
    ]
    table, slowest = [], float("inf")
    for name, group, column, read in pairs:
        seconds, batch = timed[group]
        their_values = np.array([read(s) for s in theirs[name]["stats"]], float)
        equal = float(np.isclose(their_values, np.array(batch[column].to_pylist(), float), rtol=1e-4, atol=1e-6).mean())
        table.append(_line(name, column, equal, len(rows), theirs[name]["seconds"], seconds))
        slowest = min(slowest, statistics.median(theirs[name]["seconds"]) / seconds)
    seconds, batch = timed["copies"]
    own = {r["id"] for r, twin in zip(rows, batch["same_text_as"].to_pylist(), strict=True) if twin is None}
    agree = 1 - len(own ^ set(theirs["document_deduplicator"]["kept"])) / len(rows)
    table.append(
        _line("document_deduplicator", "same_text_as", agree, len(rows), theirs["document_deduplicator"]["seconds"], seconds)
    )
    slowest = min(slowest, statistics.median(theirs["document_deduplicator"]["seconds"]) / seconds)
    bench.table(["data-juicer", "ours", "rows that agree", "theirs, rows/s", "ours, rows/s", "ratio"], table, f"{len(rows):,} rows")
    bench.goal("throughput ≥ 2× data-juicer's on every operator", f"{slowest:.1f}× at least", slowest >= 2)
    bench.note(
        "Diptych computes the operators of one group (lengths; repetition and special characters; sizes) in one pass, and the "
        "rate is that of the whole pass."
    )
    bench.note(
        "special_characters: data-juicer counts digits, white space and emoji as special and Diptych does not, so they disagree "
        "on captions with spaces: Diptych measures the share of punctuation and symbols."
    )
    letters = [sum(any(c.isalpha() for c in word) for word in text.split()) for text in texts]
    explained = np.mean(np.array(letters) == [s["num_words"] for s in theirs["words_num_filter"]["stats"]])
    bench.note(
        "words_num: data-juicer removes punctuation, digits and emoji from each word and does not count words that are then empty "
        "(`..`, `4 u`, `image 203`); "
        f"counted in this way, {explained:.1%} agree. Diptych counts numbers, and words by Unicode's boundaries."
    )
    bench.note("document_deduplicator compares lowercased texts; Diptych also normalises white space and outer punctuation.")
    bench.note("Not compared: language_id_score_filter (downloads lid.176.bin), perplexity_filter (downloads KenLM models), "
               "image_text_similarity_filter (downloads CLIP), image_deduplicator "
               "(on first use it installs imagededup with torchvision and torch).")  # fmt: skip


def _ask(place: Path, pool: Pool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows that both can read, and data-juicer's answer."""
    rows = []
    for name, text, image, fault in zip(pool.ids, pool.values("text"), pool.values("image"), pool.faults, strict=True):
        if fault != "broken":  # one unreadable file stops its whole run
            file = place / f"{name}.jpg"
            file.write_bytes(image)
            rows.append({"id": name, "text": text, "images": [str(file)]})
    (place / "rows.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    (place / "operators.json").write_text(json.dumps(THEIRS))
    command = [str(PYTHON), str(HERE / "datajuicer.py"), *(str(place / f) for f in ("rows.jsonl", "operators.json", "answer.json"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    if done.returncode:
        raise RuntimeError(f"data-juicer failed:\n{done.stderr[-2000:]}")
    return rows, json.loads((place / "answer.json").read_text())


def _timed(work: Callable[[], pa.RecordBatch]) -> tuple[float, pa.RecordBatch]:
    result, seconds = work(), []
    for _ in range(3):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def _line(name: str, column: str, equal: float, n: int, theirs: list[float], ours: float) -> list[str]:
    median = statistics.median(theirs)
    return [name, column, f"{equal:.1%}", rate(n / median), rate(n / ours), f"{median / ours:.0f}×"]
