"""LLaVA in miniature: a vision tower, a connector and a small language model, trained in minutes; then questions about pictures.

python examples/jobs/llava_in_miniature.py --budget 20m
"""

import argparse
from pathlib import Path

import diptych as dp

if __name__ == "__main__":  # processes that are started read this file again
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="llava-instruct@mini", help="its backbones are trained first")
    parser.add_argument("--data", default="scenes:small?ask=3", help="pictures with conversations")
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--set", nargs="*", default=[], help="other settings, such as backbones.lm.budget=1m")
    parser.add_argument("--out", type=Path, default=Path("runs/jobs/llava"))
    given = parser.parse_args()

    run = dp.train(given.recipe, given.data, given.budget, given.out, given.set)
    model = dp.load(run.path)
    for sample in list(dp.open_source("scenes:small").split("test"))[:3]:
        for question in ("what is in the picture?", "is there a fish?"):
            print(f"{sample.captions[0]!r}: {question} {model.generate([sample.image], question, 16)[0]}")
