"""The task ``preferences``: margins and the image-swap test, of a model that sees, a blind one, and one that hates words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.probes.preferences import METRICS
from diptych.benchmarks.records import Records
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import Adapter
from diptych.data.scenes import open_scenes
from diptych.data.sources import open_source

SCENES = "scenes:small?split=test"


class Knows(Adapter):
    """It knows the right answer to each question about each picture, by heart; ``sees`` 0: whatever the picture."""

    name = "knows"
    capabilities = frozenset({"loglikelihood", "prompt"})

    def __init__(self, items: Sequence[Any], sees: float):
        self.right = {(i.image.tobytes(), i.prompt): i.pair.chosen for i in items}
        self.any = {i.pair.chosen for i in items}
        self.sees = sees

    def loglikelihood(self, images: Any, texts: Any, prompt: Any = "", examples: Any = ()) -> np.ndarray:
        prompts = [prompt] * len(texts) if isinstance(prompt, str) else prompt
        seen = [self.right.get((i.tobytes(), p)) == t for i, t, p in zip(images, texts, prompts, strict=True)]
        return np.array([self.sees * s + (1 - self.sees) * (t in self.any) for s, t in zip(seen, texts, strict=True)], np.float32)


@pytest.mark.parametrize(("sees", "margin", "swap"), [(1.0, 1.0, 1.0), (0.0, None, 0.0), (0.5, None, 0.5)])
def test_margin_falls_with_the_picture_alone(sees: float, margin: float | None, swap: float) -> None:
    each: Any = task("preferences?n=40")
    items = each.items(open_source(SCENES))
    records = Records()
    each.run(Knows(items, sees), items, records)
    found = {r.metric: r for r in each.summarise(records.all())}
    assert tuple(found) == METRICS and all(r.n == 40 for r in found.values())
    assert found["swap"].value == pytest.approx(swap)
    if margin is not None:
        assert found["margin"].value == margin and found["accuracy"].value == 1.0
        assert found["margin"].controls == {"blind": 0.0, "shuffled": 0.0}
    facts = {s["slice"] for s in found["swap"].slices}
    assert {"fact=colour", "fact=count", "fact=object", "fact=relation"} <= facts
    credits = each.credits(records.all())
    assert np.mean(list(credits["swap"].values())) == pytest.approx(swap)


def test_data_without_pairs_is_not_applicable() -> None:
    each: Any = task("preferences")
    with pytest.raises(NotApplicable, match="pairs of answers"):
        each.items(open_source("facts:scenes:small"))
    assert len(each.items(open_scenes(SCENES))) == 200
