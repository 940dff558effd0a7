"""What the ways of adapting on image vectors cost: ``OMP_NUM_THREADS=1 python -m bench.ways [WAY …] [--classes 10] [--fit]``.

Vectors are Gaussian clusters, 16 images of each class. Without ``--fit``: settings by 5-fold cross-validation over the whole grid, then
the chosen head (what ``diptych adapt`` does with stored vectors). With it: one head with the default settings. A Markdown table is
printed; docs/measured.md shows it. Vectors that are easy to tell apart are the slow case for ways that are trained, since their
gradients vanish; ``--noise`` sets how easy.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from diptych.choose.select import choose_settings, learned
from diptych.choose.ways import WAYS, Support
from diptych.core.arrays import unit_rows
from diptych.report.pages.markdown import table


def clusters(classes: int, shots: int, width: int, noise: float) -> Support:
    """Clusters around random centres, and names near these in four templates."""
    random = np.random.default_rng(0)
    centres, all_share = random.standard_normal((classes, width)), 1.5 * random.standard_normal(width)
    y = np.repeat(np.arange(classes), shots)
    x = unit_rows(all_share + centres[y] + noise * random.standard_normal((len(y), width)))
    prompts = unit_rows(centres[:, None] - all_share / 3 + random.standard_normal((classes, 4, width)))
    return Support(x.astype(np.float32), y, tuple(f"class {i}" for i in range(classes)), prompts.astype(np.float32))


def main() -> None:
    ways = [name for name in WAYS if name != "descriptions"]
    parser = argparse.ArgumentParser(prog="python -m bench.ways", description=f"Ways: {', '.join(ways)}. None named: all.")
    parser.add_argument("ways", nargs="*", metavar="WAY", default=ways)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--noise", type=float, default=6.0)
    parser.add_argument("--fit", action="store_true", help="one head with the default settings, without cross-validation")
    options = parser.parse_args()
    support = clusters(options.classes, options.shots, options.width, options.noise)
    WAYS["taskres"](epochs=2).fit(support)  # libraries load on first use
    WAYS["probe"]().fit(support.rows(np.flatnonzero(support.y < 2)))
    rows, total = [], np.zeros(2)
    for name in options.ways:
        way = WAYS[name]
        began = np.array([time.perf_counter(), time.process_time()])
        if options.fit:
            way().fit(support)
            accuracy, settings = float("nan"), 1
        else:
            choice = choose_settings(way, support)
            learned(way, support, choice)
            accuracy, settings = choice.accuracy, len(way.grid(support))
        took = np.array([time.perf_counter(), time.process_time()]) - began
        total += took
        rows.append(
            [f"`{name}`", str(settings), f"{took[0]:.2f}", f"{took[1]:.2f}", "" if options.fit else f"{100 * accuracy:.1f}"]
        )
        print(*rows[-1], flush=True)
    rows.append(["all", "", f"{total[0]:.1f}", f"{total[1]:.1f}", ""])
    print(f"\n{options.classes} classes × {options.shots} images, {options.width}-d; load {os.getloadavg()[0]:.1f}\n")
    print(table(["way", "settings", "seconds", "CPU-seconds", "accuracy out of fold, %"], rows))


if __name__ == "__main__":
    main()
