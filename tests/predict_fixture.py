"""Pictures in class folders, and a small adapted model of them: real files, a real head, a model that knows colours."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from colours_fixture import COLOURS, Mute
from diptych.choose.select import choose_settings, learned
from diptych.choose.ways import Support, way_named
from diptych.core.capabilities import Adapter
from diptych.inference.adapted import AdaptedModel
from diptych.inference.load import load
from diptych.inference.predict.calibration import FILE

ADDRESS = "colours_fixture:Mute"
CLASSES = ("blue", "green", "red")


def noisy(colour: str, seed: int, side: int = 8) -> np.ndarray:
    """A small picture of a colour that is not pure: mixed with another, so that some are hard to name."""
    rng = np.random.default_rng(seed)
    other = np.array(COLOURS[rng.choice(CLASSES)])
    mixed = (1 - (share := 0.6 * rng.random())) * np.array(COLOURS[colour]) + share * other
    return np.clip(mixed + rng.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)


def make_classes(root: Path, each: int = 20, seed: int = 0) -> str:
    """Class folders of noisy colours."""
    for c, colour in enumerate(CLASSES):
        (root / colour).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            Image.fromarray(noisy(colour, seed + 1000 * c + i)).save(root / colour / f"{i:03d}.png")
    return f"classes:{root}"


def make_adapted(folder: Path, each: int = 20, calibration: bool = True, seed: int = 50_000) -> AdaptedModel:
    """A linear probe on the vectors of the colour model, with the out-of-fold logits of its training pictures."""
    base = load(ADDRESS)
    pictures = [noisy(colour, seed + 1000 * c + i) for c, colour in enumerate(CLASSES) for i in range(each)]
    support = Support(base.embed_image(pictures), np.repeat(np.arange(3), each), CLASSES)
    way = way_named("probe")
    choice = choose_settings(way, support)
    model = AdaptedModel(folder.name, base, learned(way, support, choice), CLASSES, choice.temperature, {"id": "t"})
    model.save(folder, ADDRESS)
    if calibration:
        known = np.isfinite(choice.logits).all(1)  # as ``diptych adapt`` writes it
        save_file({"logits": choice.logits[known].astype(np.float32), "labels": support.y[known]}, folder / FILE)
    return load(str(folder))  # type: ignore[return-value]


class Slow(Mute):
    """The colour model, with time to be killed in, in a process of its own."""

    key = "slow-1"

    def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        time.sleep(float(os.environ.get("SLOW", 0)))
        return super().embed_image(images)


class Blind(Mute):
    """A model without vectors of images."""

    capabilities = frozenset({"generate"})


class Scorer(Adapter):
    """A model that only scores texts for images."""

    name = "scorer"
    capabilities = frozenset({"score"})

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        return 5 * Mute().score(images, texts, pairs)
