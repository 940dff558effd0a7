"""``python -m bench.towers MODEL``: each way that trains a tower, with 16 pictures of each of the 12 concepts of the built-in world in
their natural colours, on 600 test pictures. One seed; the settings are the papers', the budget is a number of samples.

MODEL: a run of ``clip``, or ``hf:`` and its export (docs/measured.md has the commands). Results are kept in OUT/results.json, and what
is there is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from diptych.api import load
from diptych.choose.select import log_loss
from diptych.choose.towers import TOWER_WAYS, fit
from diptych.choose.towers.held import scorer
from diptych.core.arrays import unit_rows
from diptych.core.files import read_json_or, read_jsonl, write_json
from diptych.core.sample import in_template
from diptych.data.sources import open_source
from diptych.inference.run import TrainedModel

DATA = "scenes:small?natural=0.9"
OLD = "scenes:small?placed=1&counted=0"
TEST = 600
SCORES = {"a photo of a {}": "zero-shot, a photo of a {}", "{}": "zero-shot, the name alone"}


def interval(right: np.ndarray, draws: int = 2000) -> list[float]:
    """The 95 % bootstrap interval of a share over pictures."""
    rng = np.random.default_rng(0)
    means = right[rng.integers(0, len(right), (draws, len(right)))].mean(1)
    return [float(x) for x in np.quantile(means, (0.025, 0.975))]


def captions(model: str, out: Path, budget: str, rate: float) -> None:
    """Recall at 1 of 200 pairs, the mean of both directions, on the new pictures and on those of the model's own training."""
    judges = {address: scorer(open_source(address).split("test"), 200) for address in (DATA, OLD)}
    results: dict[str, Any] = read_json_or(out / "captions.json", {})
    for keep, of in ((None, ""), (0.0, "similarities"), (1.0, "similarities"), (1.0, "vectors")):
        name = "the model" if keep is None else f"keep={keep:g}, of={of}"
        if name in results:
            continue
        run = Path(model)
        if keep is not None:
            way = TOWER_WAYS["captions"]
            settings = {"keep": keep, "of": of, "lr": rate * way().lr}
            run = fit(model, way, DATA, out / f"captions-{keep:g}-{of}", budget=budget, settings=settings)
        results[name] = {address: judge(TrainedModel.load(run, "cpu")) for address, judge in judges.items()}
        write_json(out / "captions.json", results)
        print(name, results[name], flush=True)


def main() -> None:
    """Prints a line for each way."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("model")
    words.add_argument("--ways", default=",".join(name for name in TOWER_WAYS if name != "captions"))
    words.add_argument("--budget", default="4k samples")
    words.add_argument("--out", type=Path, default=Path("runs/towers"))
    words.add_argument("--rate", type=float, default=1.0, help="times the paper's learning rate")
    words.add_argument(
        "--whole", action="store_true", help="pictures as they are, not cropped: the objects of this world are small"
    )
    words.add_argument("--captions", action="store_true", help="the way captions, with and without the term against forgetting")
    asked = words.parse_args()
    results: dict[str, dict[str, Any]] = read_json_or(asked.out / "results.json", {})
    drawn = open_source(DATA).split("test").concept_samples(TEST)  # type: ignore[attr-defined]
    names = open_source(DATA).concepts()  # type: ignore[attr-defined]
    images, y = [image for image, _ in drawn], np.array([label for _, label in drawn])

    def keep(name: str, logits: np.ndarray, **more: Any) -> None:
        """Note and print a way's accuracy."""
        right = (logits.argmax(1) == y).astype(float)
        low, high = interval(right)
        results[name] = {"top1": float(right.mean()), "low": low, "high": high, "loss": log_loss(logits, y), **more}
        write_json(asked.out / "results.json", results)
        print(name, results[name], flush=True)

    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.captions:
        captions(asked.model, asked.out, asked.budget, asked.rate)
        return
    base: Any = load(asked.model, device="cpu")
    vectors = base.embed_image(images)
    for template, name in SCORES.items():
        if name not in results:
            texts = unit_rows(base.embed_text([in_template(template, n) for n in names]))
            keep(name, getattr(base, "scale", 100.0) * vectors @ texts.T)
    for way in asked.ways.split(","):
        name = way if asked.rate == 1 else f"{way}, {asked.rate:g} times the rate"
        if name in results:
            continue
        out = asked.out / name.replace(", ", "-").replace(" ", "-")
        settings: dict[str, Any] = {} if asked.rate == 1 else {"lr": asked.rate * TOWER_WAYS[way]().lr}
        settings |= {"augment": "none"} if asked.whole else {}
        fit(asked.model, TOWER_WAYS[way], DATA, out, shots=16, seed=0, budget=asked.budget, settings=settings)
        model: Any = load(out, device="cpu")
        inner = out / "fine-tuned" if (out / "fine-tuned").is_dir() else out
        losses = [row["loss"] for row in read_jsonl(inner / "metrics.jsonl")]
        spent = read_json_or(inner / "spent.json", {})
        logits = np.log(np.maximum(model.classify(images), 1e-30))
        cost = {key: spent[key] for key in ("seconds", "samples", "trainable_parameters")}
        keep(name, logits, before=float(np.mean(losses[:5])), after=float(np.mean(losses[-5:])), **cost)


if __name__ == "__main__":
    main()
