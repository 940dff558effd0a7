"""Probes of what training left behind: memorisation, frequency of concepts; and naming on one's own labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_asking import grey, save_pictures, values
from test_truth import Labelled

from diptych.benchmarks.controls import constant
from diptych.benchmarks.matching.zeroshot import ZeroShot
from diptych.benchmarks.probes.frequency import Frequency
from diptych.benchmarks.probes.memorization import Memorization
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source


class Trained(Labelled):
    """Eight training samples; the validation part has one image for each of their labels."""

    def __init__(self, validation: bool = False):
        super().__init__([["dog"], ["cat"], ["cup"], ["sofa"]], 8)
        self.validation = validation

    def __getitem__(self, index: int):
        sample = super().__getitem__(index)
        sample.id = f"{'public' if self.validation else 'own'}{index}"
        return sample

    def split(self, name: str):
        return Trained(name == "validation")


def vectors(index: list[int]) -> np.ndarray:
    return np.eye(8, dtype=np.float32)[index]


def knowing(known: set[int]) -> FunctionModel:
    """Its captions find the picture of the same objects for the numbers it remembers, another one for the rest."""
    return FunctionModel(
        "m",
        embed_image=lambda images: vectors([grey(i) // 10 - 1 for i in images]),
        embed_text=lambda texts: vectors([n if (n := int(t.split()[1])) in known else (n + 1) % 8 for t in texts]),
    )


def test_deja_vu_finds_what_the_reference_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target recalls six of eight, the reference two; on four the target knows more, on none less."""
    monkeypatch.setattr("diptych.inference.load.load", lambda address, device="auto": knowing({0, 1}))
    asked = Memorization(k=1, reference="a reference")
    found = {r.metric: r for r in evaluate(knowing({0, 1, 2, 3, 4, 5}), Trained(), [asked], tmp_path).results}
    assert found["recall"].value == 0.75 and found["recall"].controls["reference"] == 0.25
    assert found["recall_gap"].value == found["precision_gap"].value == 0.5 and found["area"].value == pytest.approx(0.5)
    assert found["recall_gap"].chance == 0
    same = {r.metric: r for r in evaluate(knowing({0, 1}), Trained(), [asked]).results}
    assert same["recall_gap"].value == same["area"].value == 0
    alone = evaluate(knowing({0}), Trained(), [Memorization(k=1)])
    assert set(values(alone, "memorization")) == {"precision", "recall"}
    assert "k=50 need more" in evaluate(knowing({0}), Trained(), [Memorization(k=50)]).skipped[0]["reason"]


def test_the_log_linear_law_is_recovered(tmp_path: Path) -> None:
    """Names right in 1, 2, 3, 4 of 4 images of concepts seen 1, 10, 100, 1000 times: r = 1, a quarter for ten times the data."""
    names = ["ant", "bee", "cat", "dog"]
    save_pictures(tmp_path, [f"{i}.png" for i in range(16)])
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{i}.png,{names[i // 4]}\n" for i in range(16)))
    (tmp_path / "counts.json").write_text(json.dumps(dict(zip(names, (1, 10, 100, 1000), strict=True))))

    def score(images, texts):
        rows = []
        for image in images:
            number = grey(image) // 10 - 1
            label, turn = (number // 4, number % 4) if number < 16 else (0, 0)
            said = label if turn <= label else (label + 1) % 4
            rows.append([float(names[said] in t) for t in texts])
        return rows

    asked = Frequency(file=f"{tmp_path}/rows.csv", counts=f"{tmp_path}/counts.json")
    found = {r.metric: r for r in evaluate(FunctionModel("f", score=score), None, [asked]).results}
    assert found["correlation"].value == pytest.approx(1) and found["rank_correlation"].value == pytest.approx(1)
    assert found["slope"].value == pytest.approx(0.25) and found["slope"].n == 4
    flat = {r.metric: r.value for r in evaluate(constant(), None, [asked]).results}
    assert flat["slope"] == pytest.approx(0) and flat["correlation"] is None  # nothing varies
    (tmp_path / "counts.json").write_text('{"ant": -1}')
    with pytest.raises(DiptychError, match=r"counts.json: expected"):
        evaluate(constant(), None, [asked])
    assert "?counts=" in evaluate(constant(), open_source("scenes:small?split=test"), ["frequency"]).skipped[0]["reason"]


def test_counts_come_from_the_training_data() -> None:
    asked = Frequency(train="scenes:small", counted=100, n=24)
    assert {r.metric for r in evaluate(constant(), open_source("scenes:small?split=test"), [asked]).results} >= {"slope"}


def test_naming_on_ones_own_labels(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "rows.csv").write_text("image,label\na.png,cat\nb.png,dog\n")
    model = FunctionModel(
        "z", score=lambda images, texts: [[float(("cat" in t) == (grey(i) == 10)) for t in texts] for i in images]
    )
    assert values(evaluate(model, None, [ZeroShot(file=f"{tmp_path}/rows.csv")]), "zeroshot")["top1"] == 1
    found = evaluate(constant(), Labelled([["dog"], ["cat"], ["dog", "cat"]], 9), ["zeroshot"]).results[0]
    assert (found.n, found.chance) == (6, 0.5)  # images of one thing only


def test_classes_are_named_by_templates_by_descriptions_or_both(tmp_path: Path) -> None:
    """The class's weights by Radford et al.: texts normalised, averaged, normalised again; classes may have unlike numbers of
    texts."""
    file, names = tmp_path / "cupl.json", ["cat", "owl"]
    said = {"cat": ["It has whiskers.", "It purrs.", "A small animal."], "owl": ["A bird of the night."], "unused": ["x"]}
    file.write_text(json.dumps(said))
    rng, known = np.random.default_rng(0), {}

    def embed(texts: list[str]) -> np.ndarray:
        return np.stack([known.setdefault(t, rng.normal(size=5) * rng.uniform(1, 9)) for t in texts])

    seen = rng.normal(size=(3, 5))
    model = FunctionModel("e", embed_image=lambda images: seen, embed_text=embed)
    every = {
        "": [["a cat", "one cat"], ["an owl", "one owl"]],
        "&descriptions": [said["cat"], said["owl"]],
        "&both": [[*said["cat"], "a cat", "one cat"], [*said["owl"], "an owl", "one owl"]],
    }
    for setting, texts in every.items():
        options = f"&descriptions={file}" * bool(setting) + "&both=true" * (setting == "&both")
        asked = task(f"zeroshot?templates=a {{}}&templates=one {{}}{options}")
        assert isinstance(asked, ZeroShot) and asked.texts(names) == texts
        weights = np.zeros((5, 2))
        for c, of_class in enumerate(texts):
            for text in of_class:
                vector = embed([text])[0]
                weights[:, c] += vector / np.linalg.norm(vector) / len(of_class)
            weights[:, c] /= np.linalg.norm(weights[:, c])
        np.testing.assert_allclose(asked.scores(model, [np.zeros((4, 4, 3), np.uint8)] * 3, names), seen @ weights, atol=1e-6)
    scorer = FunctionModel("s", score=lambda images, texts: [[float(len(t)) for t in texts]] * len(images))
    found = ZeroShot(descriptions=str(file)).scores(scorer, [np.zeros((4, 4, 3), np.uint8)], names)
    np.testing.assert_allclose(found, [[(16 + 9 + 15) / 3, 20]])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"cats": ["x"]}', "no descriptions of the class 'cat'; did you mean 'cats'"),
        ('{"cat": []}', "one or more sentences"),
        ('{"cat": "x"}', "one or more sentences"),
        ('["x"]', "expected an object"),
    ],
)
def test_descriptions_that_do_not_fit_are_told(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "cupl.json").write_text(content)
    with pytest.raises(DiptychError, match=why):
        ZeroShot(descriptions=f"{tmp_path}/cupl.json").texts(["cat"])


def test_settings_that_are_lists_are_given_again_and_again() -> None:
    assert task("zeroshot?templates=a {}&templates=one {}").templates == ("a {}", "one {}")
    assert task("pope?kinds=random").kinds == ("random",)


def test_karpathys_json_brings_its_own_splits(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", ["a.png", "b.png", "c.png", "d.png"])
    said = [{"raw": "A dog runs .", "tokens": ["a", "dog", "runs"]}, {"tokens": ["it", "runs"]}]
    parts = {"a.png": "train", "b.png": "restval", "c.png": "val", "d.png": "test"}
    images = [{"filename": n, "split": p, "sentences": said, "imgid": i} for i, (n, p) in enumerate(parts.items())]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [*images, {"filename": "e.png"}], "dataset": "flickr30k"}))
    source = open_source(f"karpathy:{tmp_path}/dataset.json")
    assert len(source) == 4 and source[0].captions == ["A dog runs .", "it runs"]
    assert [p.reason for p in source.problems] == ["no field 'sentences'"]
    assert [s.id for s in (source.split("train")[i] for i in range(2))] == ["a.png", "b.png"]
    assert [len(source.split(name)) for name in ("train", "validation", "test")] == [2, 1, 1]
    assert open_source(f"karpathy:{tmp_path}/dataset.json?split=test")[0].id == "d.png"
    (tmp_path / "not.json").write_text('{"pictures": []}')
    with pytest.raises(DiptychError, match="needs the list 'images'"):
        open_source(f"karpathy:{tmp_path}/not.json")
