"""Does a model of clips know what came first? The same frames in another order are another clip, with another caption.

python examples/jobs/order_in_a_clip.py --budget "16T flops"
"""

import argparse
from pathlib import Path

import diptych as dp

CLIPS = "scenes:clips?actions=all&size=32&concepts=12&colours=4&clip_frames=8"

if __name__ == "__main__":  # processes that are started read this file again
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["clip4clip@mean", "test-of-time"])
    parser.add_argument("--budget", default="1T flops")
    parser.add_argument("--n", type=int, default=20, help="pairs of clips of each kind")
    parser.add_argument("--out", type=Path, default=Path("runs/jobs/order"))
    given = parser.parse_args()

    for name in given.recipes:
        run = dp.train(name, budget=given.budget, out=given.out / name)
        summary = dp.evaluate(run.path, CLIPS, [f"temporal?n={given.n}&skills=direction&skills=order&skills=presence"])
        for r in summary.results:
            if "/" not in r.metric:
                print(f"{name} {r.metric}: {r.value:.2f} [{r.low:.2f}-{r.high:.2f}], one frame {r.controls['one_frame']:.2f}")
