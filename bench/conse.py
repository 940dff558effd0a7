"""Measures ``conse``, ``lit`` from scratch and ``lit@conse`` on captioned pictures, by cross-validation over the pictures.

``python -m bench.conse folder:my/photos`` (or any other data address)

Both towers are frozen, so their outputs are computed once; the maps are then trained in seconds. Each caption searches for its
picture: among the pictures of its own held-out part, and among all pictures, where those of the training parts are distractors that a
trained model has seen. Settings, and the number of steps, are chosen within the training parts. Tables in Markdown go to standard
output, progress to standard error. EfficientNet-Lite2 is measured where its package is installed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diptych.benchmarks.statistics import mean_interval
from diptych.config.recipe import Stage, load_recipe
from diptych.core.errors import DiptychError
from diptych.data.image import random_resized_crop, resize
from diptych.data.source import usable_samples
from diptych.data.sources import open_source
from diptych.models.pretrained import installed, load_efficientnet, load_minilm
from diptych.models.pretrained.conse import LIKELIEST, RESOLUTION, TEMPERATURE, TEMPLATE, ClassSpace, class_vectors
from diptych.models.space import residual_map, unit
from diptych.objectives.contrastive import info_nce
from diptych.training.optim import Averaged, build_optimizer, clip, rate_share

STEPS = (20, 40, 80, 160)  # of which early stopping chooses
INNER = 3  # parts of the training pictures, for choosing
VIEWS = 4  # random crops of each picture, with augmentation


class Setting(NamedTuple):
    """A form of conse. centre: the mean that is subtracted, that of all classes, or those of the training pictures and captions."""

    variant: str = "lite0"
    resolution: int = RESOLUTION
    template: str = TEMPLATE
    classes: int = LIKELIEST
    temperature: float = TEMPERATURE
    centre: str = "classes"

    def __str__(self) -> str:
        changed = [f"{k} {v}" for k, v in self._asdict().items() if v != Setting._field_defaults[k]]
        return ", ".join(changed) or "as `conse` is"


SMALL = Setting(resolution=224, template="{name}", classes=10)  # the first form that was tried
GRID = {
    "resolution": (224, 256),
    "template": ("{name}", "{names}", "a photo of a {name}", "{name}, {kind}", TEMPLATE),
    "classes": (5, 10, 20, 50, 1000),
    "temperature": (1.0, 2.0, 3.0),
    "centre": ("classes", "training"),
}


@dataclass
class Outputs:
    """What the frozen towers give, computed once. pooled [N, 1280] and logits [N, 1000] of a tower by (variant, resolution), those of
    random crops [N · VIEWS, …] in ``crops``; sentences [M, 384] of the captions, owner [M]: the picture of each.
    """

    sentences: Tensor
    owner: np.ndarray
    towers: dict[tuple[str, int], tuple[Tensor, Tensor]]
    crops: tuple[Tensor, Tensor]
    encoder: Any
    vectors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def pictures(self) -> int:
        """N"""
        return int(self.owner.max()) + 1

    def space(self, s: Setting) -> ClassSpace:
        """The space of a setting; class vectors are computed once for each template."""
        if s.template not in self.vectors:
            self.vectors[s.template] = class_vectors(self.encoder, s.template)
        return ClassSpace(self.vectors[s.template], s.classes, s.temperature)


def outputs_of(address: str, most: int) -> Outputs:
    """The towers' outputs for the first ``most`` pictures with captions of the data. DiptychError if there are fewer than ten."""
    samples = [s for s in usable_samples(open_source(address), most) if s.image is not None and s.captions]
    if len(samples) < 10:
        raise DiptychError(f"{address}: {len(samples)} pictures with captions; at least 10 are needed")
    images = [s.image for s in samples]
    towers = {}
    for variant in ("lite0", "lite2"):
        if installed(f"efficientnet-{variant}"):
            net = load_efficientnet(variant)
            for side in GRID["resolution"]:
                note(f"{variant} at {side} pixels")
                towers[variant, side] = run_tower(net, [resize(image, side) for image in images])
    note("random crops")
    rng = random.Random(0)
    crops = [random_resized_crop(image, RESOLUTION, rng) for image in images for _ in range(VIEWS)]
    note("captions")
    encoder = load_minilm()
    owner = np.repeat(np.arange(len(samples)), [len(s.captions) for s in samples])
    sentences = encoder.embed([caption for s in samples for caption in s.captions])
    return Outputs(sentences, owner, towers, run_tower(load_efficientnet(), crops), encoder)


@torch.inference_mode()
def run_tower(net: Any, squares: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pooled features [N, 1280] and logits [N, 1000] of square pictures."""
    pooled = []
    for start in range(0, len(squares), 32):
        pixels = torch.from_numpy(np.stack(squares[start : start + 32])).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - net.mean[0]) / net.std[0]
        pooled.append(net.features(pixels.contiguous(memory_format=torch.channels_last)).mean((2, 3)))
    features = torch.cat(pooled)
    return features.clone(), net.classifier(features).clone()


# --- parts of the data and recall ---


def parts_of(pictures: np.ndarray, n: int, seed: int) -> list[np.ndarray]:
    """The pictures in n disjoint parts of nearly equal size, drawn at random."""
    return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(pictures), n)]


def hits(image: Tensor, text: Tensor, owner: np.ndarray, asked: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Whether each caption of the pictures ``asked`` finds its picture first, and among the first five, in the gallery: float [m, 2].
    A picture that is as similar counts as more similar.
    """
    captions = np.flatnonzero(np.isin(owner, asked))
    scores = (text[captions] @ image[gallery].T).numpy()
    own = scores[np.arange(len(captions)), np.searchsorted(gallery, owner[captions])]
    better = (scores >= own[:, None]).sum(1) - 1
    return np.stack([better < 1, better < 5], 1).astype(np.float64)


Fitted = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # training pictures → vectors of all pictures and of all captions


def crossed(o: Outputs, parts: Sequence[np.ndarray], fit: Fitted) -> np.ndarray:
    """``fit`` on all parts but one, asked about that one: float [M, 4], R@1 and R@5 in the part and among all pictures."""
    every, found = np.arange(o.pictures), np.zeros((len(o.owner), 4))
    for part in parts:
        image, text = fit(np.setdiff1d(every, part))
        rows = np.isin(o.owner, part)
        found[rows] = np.hstack([hits(image, text, o.owner, part, gallery) for gallery in (part, every)])
    return found


# --- without training ---


@torch.inference_mode()
def conse(o: Outputs, s: Setting, train: np.ndarray) -> tuple[Tensor, Tensor]:
    """Vectors [N, E] of the pictures and [M, E] of the captions."""
    space, (_, logits) = o.space(s), o.towers[s.variant, s.resolution]
    if s.centre == "classes":
        return space.image(logits), space.text(o.sentences)
    image, text = space.mean(logits), unit(o.sentences)
    captions = torch.from_numpy(np.isin(o.owner, train))
    return unit(image - image[train].mean(0)), unit(text - text[captions].mean(0))


def settings(o: Outputs) -> list[Setting]:
    """The grid, for the variants that are there."""
    variants = sorted({variant for variant, _ in o.towers})
    return [Setting(v, *values) for v in variants for values in itertools.product(*GRID.values())]


def chosen_within(o: Outputs, candidates: Sequence[Setting], train: np.ndarray) -> Setting:
    """The setting with the greatest R@1 + R@5 of the training pictures among themselves."""

    def score(s: Setting) -> float:
        image, text = conse(o, s, train)
        return float(hits(image, text, o.owner, train, train).mean(0).sum())

    return max(candidates, key=score)


# --- with training ---


class Maps(nn.Module):
    """The two maps of ``lit`` (``base`` None), or those of ``lit@conse``."""

    def __init__(self, base: ClassSpace | None, dropout: float, wide: int):
        super().__init__()
        self.base = base
        if base is None:
            self.image, self.text = nn.Linear(1280, wide, bias=False), nn.Linear(384, wide, bias=False)
        else:
            self.image, self.text = residual_map(1280, 384, dropout=dropout), residual_map(384, 384, dropout=dropout)

    def forward(self, pooled: Tensor, logits: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of pictures and captions."""
        if self.base is None:
            return unit(self.image(pooled)), unit(self.text(sentences))
        return unit(self.base.image(logits) + self.image(pooled)), unit(self.base.text(sentences) + self.text(sentences))


def learned(o: Outputs, name: str, crops: bool, steps: int, train: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors of all pictures and captions by the maps of a recipe after this many steps on the training pictures, with its rates,
    batches and averaged weights. crops: it learns from random crops of the pictures.
    """
    recipe = load_recipe(name)
    stage: Stage = recipe.stages[0]
    space = recipe.parts["space"].options if "space" in recipe.parts else None
    size = int(recipe.parts["vision"].options.get("resolution") or 224)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    base = o.space(Setting()) if space is not None else None
    maps = Maps(base, float((space or {}).get("dropout", 0.0)), 128).train()
    scale = nn.Parameter(-torch.tensor(float(stage.objectives["info_nce"].options.get("temperature", 0.07))).log())
    together = nn.ModuleList([maps, nn.ParameterList([scale])])
    optimizer, averaged = build_optimizer([together], stage), Averaged(together, stage.ema)
    pooled, logits = o.towers["lite0", size]
    captions = [np.flatnonzero(o.owner == i) for i in range(o.pictures)]
    for step in range(steps):
        optimizer.set_rate(rate_share(stage, step, step / steps))
        rows = rng.permutation(train)[: stage.batch_size]
        texts = [rng.choice(captions[i]) for i in rows]
        seen = (pooled[rows], logits[rows])
        if crops:
            at = rows * VIEWS + rng.integers(VIEWS, size=len(rows))
            seen = (o.crops[0][at], o.crops[1][at])
        image, text = maps(*seen, o.sentences[texts])
        optimizer.zero_grad()
        info_nce(image, text, scale.exp().clamp(max=100)).backward()
        clip(optimizer.parameters, stage.clip)
        optimizer.step()
        averaged.update(step)
    with averaged.in_place(), torch.inference_mode():
        image, text = maps.eval()(pooled, logits, o.sentences)
    return image.clone(), text.clone()


def stopped_early(o: Outputs, name: str, crops: bool, train: np.ndarray, seed: int) -> tuple[tuple[Tensor, Tensor], int]:
    """``learned`` with the number of steps that is best by cross-validation within the training pictures, and that number."""

    def score(steps: int) -> float:
        found = []
        for part in parts_of(train, INNER, seed):
            image, text = learned(o, name, crops, steps, np.setdiff1d(train, part), seed)
            found.append(hits(image, text, o.owner, part, part))
        return float(np.concatenate(found).mean(0).sum())

    best = max(STEPS, key=score)
    return learned(o, name, crops, best, train, seed), best


# --- tables ---


def note(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text} …", file=sys.stderr, flush=True)


HEAD = "| | R@1 of the part | R@5 of the part | R@1 of all | R@5 of all |\n|---|---:|---:|---:|---:|"


def row(name: str, found: np.ndarray, clusters: Sequence[Any]) -> str:
    """A line of a table: means in per cent, with 95 % intervals over pictures for R@1."""
    cells = []
    for column in range(4):
        i = mean_interval(found[:, column], clusters)
        cells.append(f"{100 * i.value:.1f}" + (f" [{100 * i.low:.1f}–{100 * i.high:.1f}]" if column % 2 == 0 else ""))
    return f"| {name} | {' | '.join(cells)} |"


def difference(found: np.ndarray, before: np.ndarray, clusters: Sequence[Any]) -> str:
    """The paired differences of R@1, in points, with 95 % intervals over pictures."""
    both = [mean_interval(found[:, c] - before[:, c], clusters, share=False) for c in (0, 2)]
    return " and ".join(f"{100 * i.value:+.1f} [{100 * i.low:+.1f} to {100 * i.high:+.1f}]" for i in both)


def near(o: Outputs, usual: Setting) -> Iterator[Setting]:
    """``usual``, and the settings that differ from it in one respect."""
    yield usual
    for s in settings(o):
        if sum(a != b for a, b in zip(s, usual, strict=True)) == 1:
            yield s


def report(o: Outputs, parts: Sequence[np.ndarray], seed: int, train: bool) -> Iterator[str]:
    """The lines of the tables."""
    sizes = sorted({len(part) for part in parts})
    yield f"{o.pictures} pictures, {len(o.owner)} captions, {len(parts)} parts of {' or '.join(map(str, sizes))} pictures; per cent."
    yield "\nWithout training:\n\n" + HEAD
    by = o.owner.tolist()
    for s in [SMALL, *near(o, Setting())]:
        yield row(str(s), crossed(o, parts, lambda t, s=s: conse(o, s, t)), by)  # type: ignore[misc]
    note("choosing settings within the training parts")
    plain = crossed(o, parts, lambda t: conse(o, Setting(), t))
    for centre in (("classes",), ("classes", "training")):
        picked: list[str] = []

        def fit(t: np.ndarray, centre: tuple[str, ...] = centre, picked: list[str] = picked) -> tuple[Tensor, Tensor]:
            best = chosen_within(o, [s for s in settings(o) if s.centre in centre], t)
            picked.append(str(best))
            return conse(o, best, t)

        found = crossed(o, parts, fit)
        yield row(f"chosen within the training parts, centre: {' or '.join(centre)}", found, by)
        yield f"<!-- chosen: {'; '.join(picked)}; R@1 minus that of conse, of the part and of all: {difference(found, plain, by)} -->"
    if not train:
        return
    yield "\nTrained on the other parts, with the number of steps that is best within them:\n\n" + HEAD
    yield row("`conse`", plain, by)
    for name, crops in (("lit", False), ("lit@conse", False), ("lit@conse", True)):
        note(f"{name}{' with random crops' if crops else ''}")
        stopped: list[int] = []

        def fit_maps(t: np.ndarray, name: str = name, crops: bool = crops, stopped: list[int] = stopped) -> tuple[Tensor, Tensor]:
            vectors, steps = stopped_early(o, name, crops, t, seed)
            stopped.append(steps)
            return vectors

        found = crossed(o, parts, fit_maps)
        yield row(f"`{name}`{', random crops' if crops else ''}, steps: {', '.join(map(str, stopped))}", found, by)
        yield f"<!-- R@1 minus that of conse, of the part and of all: {difference(found, plain, by)} -->"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.conse", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", help="a data address, such as folder:my/photos")
    parser.add_argument("--folds", type=int, default=5, help="parts of the pictures (5)")
    parser.add_argument("--seed", type=int, default=0, help="draws the parts and the batches (0)")
    parser.add_argument("--most", type=int, default=2000, help="the first pictures that are used (2000)")
    parser.add_argument("--zero", action="store_true", help="nothing is trained")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        o = outputs_of(asked.data, asked.most)
        for line in report(o, parts_of(np.arange(o.pictures), asked.folds, asked.seed), asked.seed, not asked.zero):
            print(line, flush=True)
    except DiptychError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
