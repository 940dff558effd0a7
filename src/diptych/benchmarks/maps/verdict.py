"""The verdict on a map of a model: faithful, or not, and in what it does not win."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.maps.items import SCENES, Item, open_items
from diptych.benchmarks.maps.measures import areas, blob, pointing, random_grid
from diptych.benchmarks.statistics import mean, paired_test
from diptych.inference.maps.base import Maps
from diptych.inference.maps.geometry import placed

FORMAT = 1  # counts up when the same model would be judged in another way
ITEMS = 80  # pairs of a picture and a phrase, two or three of a scene
MEASURES = {
    "pointing": "the highest pixel lies in the object",
    "insertion": "the score with the highest pixels alone",
    "deletion": "the score without the highest pixels, lower is better",
}
CONTROLS = {
    "blob": "a hill in the middle of the picture",
    "random": "random numbers on the same grid",
    "weights": "the same map of the model with its tower's weights in random order",
    "caption": "the same map for another phrase that is true of the picture",
}

IN_WORDS = {"blob": "a blob in the middle", "random": "a random map", "weights": "scrambled weights", "caption": "a wrong caption"}


@dataclass(frozen=True)
class Against:
    """Map against control on the same items: the mean difference, positive where the map is better, and its 95 % interval."""

    measure: str
    control: str
    difference: float
    low: float
    high: float

    @property
    def won(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


@dataclass(frozen=True)
class Verdict:
    """What was measured. values: {map or control: {measure: mean}}; missing: controls that this model does not allow."""

    model: str
    method: str
    scenes: str
    items: int
    values: dict[str, dict[str, float]]
    tests: tuple[Against, ...]
    missing: tuple[str, ...] = ()
    chance: float = 0.0  # the mean share of the picture that the object covers: pointing at random
    format: int = FORMAT
    key: str = ""  # of the weights

    @property
    def faithful(self) -> bool:
        """Whether the map wins against every control in every measure."""
        return not self.missing and bool(self.tests) and all(test.won for test in self.tests)

    def lost(self) -> dict[str, list[str]]:
        """{control: the measures in which the map does not win against it}"""
        found: dict[str, list[str]] = {}
        for test in self.tests:
            if not test.won:
                found.setdefault(test.control, []).append(test.measure)
        return found

    def words(self) -> str:
        """The verdict in a sentence."""
        hits = self.values["map"]["pointing"]
        share = f"it points at the object in {hits:.0%} of {self.items} cases (by chance {self.chance:.0%})"
        if self.faithful:
            return f"faithful: {share} and wins against every control in pointing, insertion and deletion"
        why = [f"does not beat {IN_WORDS[c]} in {' and '.join(m)}" for c, m in self.lost().items()]
        why += [f"could not be tested against {IN_WORDS[c]}" for c in self.missing]
        return f"not faithful: {share}, but {'; '.join(why)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ``from_dict`` reads it."""
        return {**asdict(self), "faithful": self.faithful, "words": self.words()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verdict:
        """The verdict again."""
        kept = {k: v for k, v in data.items() if k not in ("faithful", "words")}
        return cls(**{**kept, "tests": tuple(Against(**t) for t in kept["tests"]), "missing": tuple(kept["missing"])})


def measure(
    maps: Maps,
    method: str = "",
    n: int = ITEMS,
    *,
    scenes: str = SCENES,
    split: str = "test",
    items: Sequence[Item] | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Measure a map of a model on scenes that it has not seen. items: these instead. note: called with what is done."""
    method = maps.method(method)
    judged = list(items) if items is not None else open_items(n, scenes, split)
    images, texts = [item.image for item in judged], [item.text for item in judged]
    note(f"judging the map {method} of {maps.name} on {len(judged)} phrases of {scenes}")
    grids = maps.grids(images, texts, method)
    shapes = [(int(image.shape[0]), int(image.shape[1])) for image in images]

    def heats(found: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Maps on the grid, in pixels."""
        return [placed(g, h, w, maps.view(h, w)) for g, (h, w) in zip(found, shapes, strict=True)]

    shown = {
        "map": heats(grids),
        "blob": [blob(h, w) for h, w in shapes],
        "random": heats([random_grid(g.shape, seed + i) for i, g in enumerate(grids)]),
        "caption": heats(maps.grids(images, [item.other for item in judged], method)),
    }
    if maps.modules:
        with maps.random(seed):
            shown["weights"] = heats(maps.grids(images, texts, method))
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, drawn in shown.items():
        inserted, deleted = areas(maps.score, images, texts, drawn)
        hits = np.array([pointing(heat, item.mask) for heat, item in zip(drawn, judged, strict=True)])
        found[name] = {"pointing": hits, "insertion": inserted, "deletion": deleted}
    clusters = [item.scene for item in judged]
    tests = tuple(
        _against(measured, control, found, clusters, seed) for control in CONTROLS if control in found for measured in MEASURES
    )
    return Verdict(
        maps.name,
        method,
        scenes if items is None else "given items",
        len(judged),
        {name: {m: mean(values) for m, values in of.items()} for name, of in found.items()},
        tests,
        tuple(c for c in CONTROLS if c not in found),
        mean([float(item.mask.mean()) for item in judged]),
    )


def _against(measured: str, control: str, found: dict[str, dict[str, np.ndarray]], clusters: Sequence[str], seed: int) -> Against:
    sign = -1.0 if measured == "deletion" else 1.0
    test = paired_test(sign * found["map"][measured], sign * found[control][measured], clusters, seed=seed)
    return Against(measured, control, test.difference, test.low, test.high)
