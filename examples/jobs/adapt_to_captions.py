"""Adapt a model to captioned pictures, and measure what it forgot.

python examples/jobs/adapt_to_captions.py --data folder:my/photos

Without --data some pictures of the built-in world are written into a folder and used.
"""

import argparse
from pathlib import Path

from PIL import Image

import diptych as dp
from diptych.choose.captions import adapt_to_captions


def pictures(folder: Path, n: int) -> str:
    """Writes n captioned pictures, each with its text next to it; returns their address."""
    folder.mkdir(parents=True, exist_ok=True)
    source = dp.open_source("scenes:small?size=96")
    for i in range(n):
        sample = source[i]
        Image.fromarray(sample.image).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(sample.captions[0])
    return f"folder:{folder}"


if __name__ == "__main__":  # processes that are started read this file again
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="your captioned pictures")
    parser.add_argument("--elsewhere", default="openmoji:all", help="other pictures, of which nothing should be forgotten")
    parser.add_argument("--model", default="conse")
    parser.add_argument("--n", type=int, default=100, help="pictures among which one is sought")
    parser.add_argument("--out", type=Path, default=Path("runs/jobs/adapted"))
    given = parser.parse_args()
    data = given.data or pictures(given.out.with_name("photos"), 120)

    before = dp.load(given.model)
    after = adapt_to_captions(given.model, before, "residual", data, given.out, overwrite=True)
    for name, address in (("here", data), ("elsewhere", given.elsewhere)):
        for which, model in (("before", before), ("after", after)):
            folder = given.out / "evaluation" / f"{name}-{which}"
            summary = dp.evaluate(model, address, [f"retrieval?n={given.n}"], folder, overwrite=True)
            (recall,) = [r for r in summary.results if r.metric == "text-to-image/recall@1"]
            print(f"{name}, {which}: R@1 {recall.value:.3f} [{recall.low:.3f}-{recall.high:.3f}]")
