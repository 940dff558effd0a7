"""``python -m bench.curves MODEL``: learning curves of ways that train a tower, on the 12 concepts of the built-in world in their
natural colours: 1 to 16 pictures of each, several draws, 600 test pictures. With zero-shot, and two ways on vectors for comparison.

MODEL: a run of ``clip``, or ``hf:`` and its export. Cells are kept in OUT/cells.jsonl and not made again; cheap cells and the first
draws come first, so that an interrupted command has whole rows. ``--write`` only prints the table.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.towers import DATA, TEST
from diptych.api import load
from diptych.benchmarks.crossed import Measured, estimate
from diptych.choose.select import choose_settings, learned
from diptych.choose.support import class_texts, support_of
from diptych.choose.towers import TOWER_WAYS, fit
from diptych.choose.ways import way_named
from diptych.core.files import append_jsonl, read_jsonl
from diptych.data.sources import open_source
from diptych.data.subsets.shots import DRAWN, few
from diptych.inference.adapted import AdaptedModel

VECTORS = ("zeroshot", "clap", "tip-f")
WAYS = ("coop", "lora", "full", "maple")
RATES = {
    "coop": 10.0,
    "lora": 10.0,
    "full": 10.0,
    "maple": 1.0,
}  # times the paper's, which are for larger models (docs/measured.md)


def settings_of(way: str, rates: bool) -> dict[str, Any]:
    """Pictures as they are, since crops of this world do not show its small objects; and the rate."""
    return {"augment": "none", **({"lr": RATES.get(way, 1.0) * TOWER_WAYS[way]().lr} if rates else {})}


def on_vectors(model: Any, way: str, shots: int, seed: int, train: Any, test: Any, names: list[str]) -> str:
    """Whether each test picture is named right, "0110…"."""
    (x, y), (test_x, test_y) = train, test
    support = support_of(x, y, few(y, shots, seed), names, class_texts(model, names), seed)
    cls = way_named(way)
    head = learned(cls, support, choose_settings(cls, support))
    return "".join(str(int(c)) for c in np.asarray(head.logits(test_x)).argmax(1) == test_y)


def table(cells: list[dict[str, Any]]) -> str:
    """Accuracy in per cent over pictures of each class, with the 95 % interval over pictures and draws, Markdown."""
    shots = sorted({c["shots"] for c in cells})
    lines = ["| way | " + " | ".join(map(str, shots)) + " | draws |", "|---|" + "---:|" * (len(shots) + 1)]
    for way in dict.fromkeys(c["way"] for c in cells):
        row, draws = [], []
        for k in shots:
            runs = [c["correct"] for c in sorted(cells, key=lambda c: c["seed"]) if (c["way"], c["shots"]) == (way, k)]
            if not runs:
                row.append("—")
                continue
            items = [{str(i): float(v) for i, v in enumerate(run)} for run in runs]
            e = estimate([Measured(float(np.mean(list(of.values()))), of, range=(0.0, 1.0)) for of in items])
            row.append(f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]")
            draws.append(len(runs))
        few_, most = (min(draws), max(draws)) if draws else (0, 0)
        lines.append(f"| `{way}` | " + " | ".join(row) + f" | {few_ if few_ == most else f'{few_} to {most}'} |")
    return "\n".join(lines)


def main() -> None:
    """Makes what is missing, and prints the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("model")
    words.add_argument("--ways", default=",".join(WAYS))
    words.add_argument("--shots", default="1,2,4,8,16")
    words.add_argument("--seeds", type=int, default=5)
    words.add_argument("--budget", default="2k samples")
    words.add_argument("--published", action="store_true", help="the papers' rates, not those of bench/curves.py")
    words.add_argument("--out", type=Path, default=Path("runs/bench-curves"))
    words.add_argument("--write", action="store_true")
    asked = words.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    kept = asked.out / "cells.jsonl"
    cells = read_jsonl(kept)
    if not asked.write:
        done = {(c["way"], c["shots"], c["seed"]) for c in cells}
        source: Any = open_source(DATA)
        names = source.concepts()
        drawn, held = source.split("train").concept_samples(DRAWN), source.split("test").concept_samples(TEST)
        images, test_y = [image for image, _ in held], np.array([label for _, label in held])
        base: Any = load(asked.model, device="cpu")
        test = base.embed_image(images), test_y
        train = base.embed_image([image for image, _ in drawn]), np.array([label for _, label in drawn])
        shots = [int(k) for k in asked.shots.split(",")]
        for seed in range(asked.seeds):
            for way in (*VECTORS, *asked.ways.split(",")):
                for k in shots:
                    if (way, k, seed) in done:
                        continue
                    began = time.process_time()
                    if way in VECTORS:
                        correct = on_vectors(base, way, k, seed, train, test, names)
                    else:
                        run = asked.out / "runs" / f"{way}-{k}-{seed}"
                        settings = settings_of(way, not asked.published)
                        fit(asked.model, TOWER_WAYS[way], DATA, run, shots=k, seed=seed, budget=asked.budget, settings=settings)
                        model = load(run, device="cpu")
                        assert isinstance(model, AdaptedModel)
                        correct = "".join(str(int(c)) for c in model.logits(images).argmax(1) == test_y)
                        shutil.rmtree(run)  # a run for each cell would fill the disk
                    row = {"way": way, "shots": k, "seed": seed, "correct": correct, "seconds": time.process_time() - began}
                    append_jsonl(kept, row)
                    cells.append(row)
                    print(way, k, seed, f"{np.mean([c == '1' for c in correct]):.3f}", f"{row['seconds']:.0f} s", flush=True)
    print(table(cells))


if __name__ == "__main__":
    main()
