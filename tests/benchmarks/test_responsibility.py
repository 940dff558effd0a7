"""Language priors and bias: models whose prejudice is known must be found out, and those without must not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from diptych.benchmarks.controls import constant
from diptych.benchmarks.probes.bias import Bias, mean_skew
from diptych.benchmarks.probes.priors import ALPHAS, Priors, corrected, credits_at, half_of
from diptych.benchmarks.records import Records, Result
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, captioned
from diptych.data.scenes import open_scenes
from diptych.data.scenes.contrast import ATTRIBUTES, contrast_sets
from diptych.data.source import Problem


def results(model: FunctionModel, source: Any, each: Any) -> dict[str, Result]:
    return {r.metric: r for r in evaluate(model, source, [each]).results}


# --- language priors


@dataclass
class Sentences:
    """Pictures of one number each, a true and a false sentence about it. The truth is the even one of the two words."""

    size: int = 80
    address: str = "memory:sentences"
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        image = np.full((4, 4, 3), index + 1, dtype=np.uint8)
        return Sample(f"s{index}", image=image, text=captioned([f"it is {index + 1}"]), negatives=[f"it is not {index + 1}"])

    def fingerprint(self) -> str:
        return str(self.size)

    def split(self, name: str) -> Sentences:
        return self


def scorer(looks: float, prior: float) -> FunctionModel:
    """Adds to what it sees a liking for short sentences; a grey picture (128) shows it nothing."""

    def score(images: list[np.ndarray], texts: list[str]) -> np.ndarray:
        said = np.array([int(t.split()[-1]) for t in texts])
        true = np.array(["not" not in t for t in texts])
        seen = np.array([int(i[0, 0, 0]) for i in images])
        return looks * ((seen[:, None] == said) & true) + prior * np.array([-len(t) for t in texts]) + 0.0 * seen[:, None]

    return FunctionModel("scorer", score=score)


def test_a_model_that_only_reads_is_as_good_blind() -> None:
    found = results(scorer(0.0, 1.0), Sentences(), Priors())
    assert found["accuracy"].value == found["accuracy"].controls["blind"] == 1.0
    assert found["corrected"].controls["uncorrected"] == 1.0


def test_a_model_that_looks_is_helped_by_the_correction() -> None:
    found = results(scorer(3.0, -1.0), Sentences(), Priors())  # likes long sentences, which here are false
    assert found["accuracy"].value == 0.0 and found["accuracy"].controls["blind"] == 0.0
    assert found["corrected"].value == 1.0


def test_constant_scores_are_chance_at_every_alpha() -> None:
    found = results(constant(), Sentences(), Priors())
    assert found["accuracy"].value == found["corrected"].value == 0.5
    assert found["accuracy"].ties == 80


def test_alpha_is_not_chosen_on_the_item_itself() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "item": f"i{i}",
            "cluster": f"i{i}",
            "scores": [rng.normal(size=2).tolist()],
            "blind_scores": [rng.normal(size=2).tolist()],
        }
        for i in range(60)
    ]
    best = max(credits_at(rows, a).mean() for a in ALPHAS)
    assert corrected(rows).mean() <= best
    for i in range(5):
        changed = [dict(r) for r in rows]
        changed[i] = {**changed[i], "scores": [rows[i]["scores"][0][::-1]], "blind_scores": [[0.0, 0.0]]}
        own, other = corrected(rows), corrected(changed)
        half = [j for j in range(60) if j != i and own[j] != other[j]]
        assert all(half_of(f"i{j}") != half_of(f"i{i}") for j in half), "an item may only change the α of the other half"


def test_a_score_that_is_no_number_earns_nothing_and_is_no_prior() -> None:
    def row(own: list, blind: list) -> dict:
        return {"item": "i", "cluster": "i", "scores": [own], "blind_scores": [blind]}

    rows = [row([None, 1.0], [0.0, 0.0]), row([1.0, None], [5.0, 0.0]), row([None, None], [0.0, 0.0]), row([2.0, 1.0], [None, 0.0])]
    for alpha in ALPHAS:
        assert credits_at(rows, alpha).tolist() == [0.0, 1.0, 0.5, 1.0]


def test_priors_on_scenes_are_balanced_for_words_alone() -> None:
    found = results(constant(), open_scenes("scenes:small?split=test"), Priors(n=30))
    assert found["accuracy"].n == 30 and found["accuracy"].value == 0.5


# --- contrast sets


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_contrast_set_differs_in_its_attribute_alone(attribute: str) -> None:
    source = open_scenes("scenes:small?split=test")
    sets = contrast_sets(source.world, attribute, 8)
    again = contrast_sets(source.world, attribute, 8)
    assert len({s.concept for s in sets}) == min(8, len({s.concept for s in sets})) > 2
    for s, same in zip(sets, again, strict=True):
        assert all((a == b).all() for a, b in zip(s.images, same.images, strict=True)), "the same set every time"
        assert len(s.images) == len(s.groups) > 1
        assert all((s.images[0] != other).any() for other in s.images[1:])
        if attribute == "colour":  # the ground is the same, the thing is not
            changed = np.any([(s.images[0] != other).any(-1) for other in s.images[1:]], axis=0)
            assert 0 < changed.mean() < 0.6
            assert not any((s.concept, g) in source.world.held_out_colours for g in s.groups)


def test_an_unknown_attribute_is_refused() -> None:
    with pytest.raises(DiptychError, match="did you mean 'colour'"):
        contrast_sets(open_scenes("scenes:small").world, "color", 2)


def known_scorer(names: list[str], truth: dict[bytes, tuple[str, str]], likes: str = "", blind_to: str = "") -> FunctionModel:
    """Knows every picture; likes those of one group better, and names all of another group the first name."""

    def score(images: list[np.ndarray], texts: list[str]) -> np.ndarray:
        rows = []
        for image in images:
            concept, group = truth.get(image.tobytes(), ("", ""))
            concept = names[0] if group == blind_to and group else concept
            rows.append([float(bool(concept) and text.endswith(concept)) + 0.5 * (group == likes) for text in texts])
        return np.array(rows)

    return FunctionModel("known", score=score)


@pytest.fixture(scope="module")
def world() -> tuple[Any, list[str], dict[bytes, tuple[str, str]], tuple[str, ...]]:
    source = open_scenes("scenes:small?split=test")
    sets = contrast_sets(source.world, "colour", 24)
    truth = {image.tobytes(): (s.concept, g) for s in sets for image, g in zip(s.images, s.groups, strict=True)}
    return source, source.concepts(), truth, sets[0].groups


def test_a_fair_model_is_found_fair(world: Any) -> None:
    source, names, truth, groups = world
    found = results(known_scorer(names, truth), source, Bias(n=24))
    assert found["naming"].value == found["consistency"].value == 1.0 and found["group_difference"].value == 0.0
    for g in groups:
        assert found[f"preference/{g}"].value == pytest.approx(1 / len(groups))
    assert found["max_skew"].value == pytest.approx(0.0) == found["max_skew"].controls["dealt"]


def test_a_preference_is_found(world: Any) -> None:
    source, names, truth, groups = world
    found = results(known_scorer(names, truth, likes=groups[1]), source, Bias(n=24))
    assert found["naming"].value == 1.0, "the names are right all the same"
    liked = found[f"preference/{groups[1]}"]
    assert liked.value == 1.0 and liked.low is not None and liked.low > 1 / len(groups)
    assert found["max_skew"].value == pytest.approx(np.log(len(groups)))
    assert found["max_skew"].controls["dealt"] < 0.6 * found["max_skew"].value  # type: ignore[operator]


def test_a_blind_spot_is_found(world: Any) -> None:
    source, names, truth, groups = world
    found = results(known_scorer(names, truth, blind_to=groups[0]), source, Bias(n=24))
    assert (
        found["group_difference"].value == pytest.approx(found["group_difference"].value) and found["group_difference"].value > 0.8
    )  # type: ignore[operator]
    assert found["consistency"].value < 0.2  # type: ignore[operator]


def test_a_constant_scorer_prefers_nobody(world: Any) -> None:
    source, names, _, groups = world
    found = results(constant(), source, Bias(n=24))
    assert found["naming"].value == pytest.approx(1 / len(names))
    assert all(found[f"preference/{g}"].value == pytest.approx(1 / len(groups)) for g in groups)


def test_skew_does_not_depend_on_the_order_of_items() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"item": str(i), "cluster": str(i // 2), "group": "ab"[i % 2], "class": "x", "fit": float(rng.normal())} for i in range(40)
    ]
    assert mean_skew(rows) == pytest.approx(mean_skew([rows[i] for i in rng.permutation(40)]))


# --- a table of one's own


@dataclass
class Staff(Sentences):
    """Pictures of two groups; the brightness of the picture is what the model goes by."""

    tilt: int = 0

    def __getitem__(self, index: int) -> Sample:
        group = "ab"[index % 2]
        image = np.full((4, 4, 3), 60 + index + self.tilt * (group == "b"), dtype=np.uint8)
        return Sample(f"p{index}", {"kind": group} if index != 4 else {}, image=image, text=captioned(["a person"]))


def bright() -> FunctionModel:
    return FunctionModel("bright", score=lambda images, texts: np.array([[float(i.mean()) for _ in texts] for i in images]))


def test_a_table_shows_association_and_skew() -> None:
    each = task("bias-table?group=kind&texts=a doctor&texts=a photo of a nurse&k=10")
    found = results(bright(), Staff(tilt=100), each)
    assert found["max_skew@10/a doctor"].value == pytest.approx(np.log(1 / (40 / 79)), abs=1e-6)
    b, a = found["association/b/a doctor"], found["association/a/a doctor"]
    assert b.value == pytest.approx(-a.value) and b.low > 1 and b.chance == 0  # type: ignore[operator]
    assert b.n == 79, "the picture without a group is left out"
    even = results(bright(), Staff(tilt=-1), each)
    assert abs(even["association/b/a doctor"].value) < 0.1  # type: ignore[operator]


def test_a_table_needs_sentences_and_groups() -> None:
    for address, reason in (("bias-table?group=kind", "name sentences"), ("bias-table?group=sex&texts=a doctor", "column 'sex'")):
        summary = evaluate(bright(), Staff(), [task(address)])
        assert reason in summary.skipped[0]["reason"]


def test_records_without_the_model_give_the_same_numbers() -> None:
    source = Staff(tilt=20)
    each = task("bias-table?group=kind&texts=a doctor")
    records = Records()
    each.run(bright(), each.items(source), records)
    assert each.summarise(records.all()) == each.summarise(list(reversed(records.all())))
