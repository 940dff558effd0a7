"""``python -m bench.choose --shuffled 40``: labels that say nothing of the pictures. How often does ``choose`` name a winner?

Vectors of pictures are Gaussian clusters and class names lie near their centres, so a model knows something; then the labels are
shuffled over all pictures, so no way can be better than chance on the test pictures. All ways on vectors are compared as ``choose``
does it. A false winner is one that is recommended over the best that learns nothing. At p < 0.05, two-sided, one in forty seeds is
expected if the tests hold what they promise.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from diptych.choose.cells import Cell, Data, chosen, tested
from diptych.choose.verdict import CONTROL, LEVEL, verdict
from diptych.choose.ways import WAYS, Support
from diptych.core.arrays import unit_rows
from diptych.core.files import append_jsonl, read_jsonl

CLASSES, EACH, TEST, WIDTH = 4, 8, 80, 16
OFF = ("descriptions",)  # needs a file of sentences


def drawn(seed: int) -> Data:
    """Training and test pictures as vectors, with shuffled labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, WIDTH))
    n = CLASSES * EACH
    true = rng.integers(0, CLASSES, n + TEST)
    x = unit_rows(centres[true] + rng.standard_normal((len(true), WIDTH))).astype(np.float32)
    prompts = unit_rows(centres[:, None] + 0.5 * rng.standard_normal((CLASSES, 3, WIDTH))).astype(np.float32)
    labels = rng.permutation(np.arange(n + TEST) % CLASSES)
    names = tuple(f"class {i}" for i in range(CLASSES))
    support = Support(x[:n], labels[:n], names, prompts, scale=20.0, seed=seed)
    return Data(support, np.arange(n), tuple(map(str, range(n))), x[n:], labels[n:])


def of_seed(seed: int) -> dict[str, Any]:
    """What ``choose`` concludes of one draw."""
    began, data = time.process_time(), drawn(seed)
    records = []
    for way in [CONTROL, *(name for name in WAYS if name not in (CONTROL, *OFF))]:
        cell = Cell("shuffled", way, 0, seed)
        record = chosen(cell, data)
        records.append(record if "skipped" in record else tested(record, cell, data))
    found = verdict(records, [str(i) for i in range(TEST)])
    gain = found["gain"]
    false = bool(gain and gain["p"] < LEVEL and gain["difference"] > 0)
    return {
        "seed": seed,
        "winner": found["winner"][1],
        "reference": found["reference"][1],
        "difference": gain["difference"] if gain else None,
        "p": gain["p"] if gain else None,
        "false": false,
        "cross_validation": {r["way"]: r["cross_validation"] for r in found["rows"]},
        "test": {r["way"]: r["mean"] for r in found["rows"]},
        "skipped": sorted(r["way"] for r in records if "skipped" in r),
        "seconds": time.process_time() - began,
    }


def shuffled(seeds: int, out: Path) -> list[dict[str, Any]]:
    """The records of this many seeds; those in the file are not computed again."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {r["seed"]: r for r in (read_jsonl(out) if out.is_file() else [])}
    for seed in range(seeds):
        if seed not in done:
            done[seed] = of_seed(seed)
            append_jsonl(out, done[seed])
            print(f"seed {seed}: {done[seed]['winner']}, p {done[seed]['p']}, false {done[seed]['false']}", flush=True)
    return [done[seed] for seed in range(seeds)]


def summary(records: list[dict[str, Any]]) -> str:
    """How many false winners, and the mean of all ways out of fold and on the test pictures, which chance makes 1 / classes."""
    false = [r["seed"] for r in records if r["false"]]
    ways = sorted(records[0]["test"])
    held = {w: [r["cross_validation"][w] for r in records if r["cross_validation"].get(w) is not None] for w in ways}
    far = [w for w in ways if held[w] and abs(np.mean(held[w]) - 1 / CLASSES) > 3 * np.std(held[w]) / len(held[w]) ** 0.5]
    return (
        f"{len(ways)} ways, {len(records)} seeds of shuffled labels: {len(false)} false winners (seeds {false}); out of fold more than "
        f"three standard errors from chance: {', '.join(far) or 'none'}"
    )
