"""The task ``classification``: numbers against plain loops and scikit-learn, controls, classes that the model does not know, and
``diptych evaluate`` on a real adapted model."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, log_loss

import cli_fixture
from cli_fixture import Cli
from diptych.benchmarks.matching.classification import METRICS, Classification
from diptych.benchmarks.metric_names import metric_names, metric_range
from diptych.benchmarks.run import evaluate, recompute
from diptych.core.capabilities import Adapter
from diptych.data.sources import open_source
from predict_fixture import make_adapted, make_classes

cli = cli_fixture.cli


class Tabled(Adapter):
    """Gives the probabilities that are written for a picture: its first pixel is the row; grey has the last row."""

    name, key = "tabled", "tabled-1"
    capabilities = frozenset({"classify"})

    def __init__(self, classes: tuple[str, ...], table: np.ndarray):
        self.classes, self.table = classes, table
        self.calls = 0

    def classify(self, images):
        self.calls += 1
        rows = [-1 if image[0, 0, 0] == 128 and image.std() == 0 else int(image[0, 0, 0]) for image in images]
        return self.table[rows].astype(np.float32)


def numbered(root: Path, classes: list[str]) -> str:
    """A picture for each entry, whose first pixel is its number."""
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4, 3), 200, np.uint8)
        pixels[0, 0] = i
        Image.fromarray(pixels).save(root / name / f"{i:03d}.png")
    return f"classes:{root}"


def nll_of_sklearn(truth: list[str], p: np.ndarray, classes: tuple[str, ...]) -> float:
    """Its columns are sorted by name."""
    rows = p[:60][:, np.argsort(classes)].astype(float)
    return log_loss(truth, rows / rows.sum(1, keepdims=True), labels=sorted(classes))


def case(tmp_path: Path, unknown: bool) -> tuple[Tabled, list[str], np.ndarray, str]:
    rng = np.random.default_rng(3)
    truth = [("cat", "dog", "sea_lion")[min(2, int(rng.integers(5)))] for _ in range(60)]
    if unknown:
        truth[:7] = ["yak"] * 7
    names = ("dog", "cat", "sea_lion", "never_seen")
    p = rng.dirichlet(np.ones(4), 61)
    for i, name in enumerate(truth):
        if name in names:
            p[i] = 0.6 * p[i] + 0.4 * np.eye(4)[names.index(name)]
    p = p.astype(np.float32).astype(float)
    return Tabled(names, p), truth, p, numbered(tmp_path / "data", truth)


@pytest.mark.parametrize("unknown", [False, True])
def test_the_numbers(tmp_path: Path, unknown: bool) -> None:
    model, truth, p, address = case(tmp_path, unknown)
    summary = evaluate(model, open_source(address), ["classification"], tmp_path / "out", key=model.key)
    found = {r.metric: r for r in summary.results}
    assert list(found) == list(METRICS) == metric_names(Classification())
    right = [model.classes[int(np.argmax(row))] == name for row, name in zip(p[:60], truth, strict=True)]
    assert found["accuracy"].value == pytest.approx(sum(right) / 60) and found["accuracy"].n == 60
    recalls = {c: np.mean([r for r, t in zip(right, truth, strict=True) if t == c]) for c in set(truth)}
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(list(recalls.values())))
    slices = {s["slice"]: s["value"] for s in found["accuracy"].slices}
    assert slices == pytest.approx({f"class={c.replace('_', ' ')}": v for c, v in recalls.items()})
    known = [i for i, t in enumerate(truth) if t in model.classes]
    nll = -np.mean([math.log(p[i, model.classes.index(truth[i])]) for i in known])
    assert found["nll"].value == pytest.approx(nll, rel=1e-5) and found["nll"].n == len(known)
    brier = 0.0
    for i, t in enumerate(truth):
        brier += sum((p[i, c] - (model.classes[c] == t)) ** 2 for c in range(4)) + (t not in model.classes)
    assert found["multiclass_brier"].value == pytest.approx(brier / 60, rel=1e-5)
    gap = 0.0
    for b in range(15):
        members = [i for i in range(60) if b / 15 < p[i].max() <= (b + 1) / 15]
        gap += abs(sum(p[i].max() for i in members) - sum(right[i] for i in members)) / 60
    assert found["ece"].value == pytest.approx(gap, abs=1e-6)
    for r in found.values():
        low, high = metric_range(r.metric)
        assert r.low <= r.value <= r.high and r.low >= low - 1e-9 and (high is None or r.high <= high + 1e-9)
    if not unknown:
        named = [model.classes[int(row.argmax())] for row in p[:60]]
        assert found["nll"].value == pytest.approx(nll_of_sklearn(truth, p, model.classes), rel=1e-5)
        with pytest.warns(UserWarning, match="y_pred contains classes not in y_true") if "never_seen" in named else nullcontext():
            assert found["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(truth, named))
    again = {r.metric: r for r in recompute(tmp_path / "out").results}
    assert {m: r.value for m, r in again.items()} == {m: r.value for m, r in found.items()}


def test_controls(tmp_path: Path) -> None:
    model, truth, p, address = case(tmp_path, True)
    found = {r.metric: r for r in evaluate(model, open_source(address), ["classification"]).results}
    counts = {c: truth.count(c) / 60 for c in set(truth)}
    accuracy = found["accuracy"]
    assert accuracy.controls["constant"] == pytest.approx(max(counts.values())) and accuracy.chance == 0.25
    grey = model.classes[int(p[-1].argmax())]
    assert accuracy.controls["blind"] == pytest.approx(counts.get(grey, 0.0))
    assert found["balanced_accuracy"].controls["constant"] == 0.25, "yak counts as a class of the data"
    assert found["multiclass_brier"].controls["constant"] == pytest.approx(
        np.mean([sum((v - (c == t)) ** 2 for c, v in counts.items()) for t in truth])
    )
    known = [t for t in truth if t in model.classes]
    shares = {c: known.count(c) / len(known) for c in set(known)}
    assert found["nll"].controls["constant"] == pytest.approx(-np.mean([math.log(shares[t]) for t in known]))
    assert found["nll"].chance == pytest.approx(math.log(4))
    # shuffled: each image has the probabilities of one of another class, so that a perfect model is never right
    perfect = Tabled(("cat", "dog"), np.array([*[[i % 2, 1 - i % 2] for i in range(20)], [0.5, 0.5]]))
    address = numbered(tmp_path / "even", ["cat" if i % 2 else "dog" for i in range(20)])
    best = {r.metric: r for r in evaluate(perfect, open_source(address), ["classification"]).results}
    assert best["accuracy"].value == 1 and best["accuracy"].controls == {"constant": 0.5, "blind": 0.5, "shuffled": 0.0}
    assert best["ece"].value == 0 and best["nll"].value == 0 and best["multiclass_brier"].controls["shuffled"] == 2.0
    equal = Tabled(("cat", "dog"), np.full((21, 2), 0.5))
    assert evaluate(equal, open_source(address), ["classification"]).value("classification", "accuracy") == 0.5


def test_classes_that_the_model_does_not_know_are_listed(tmp_path: Path) -> None:
    model, _, _, address = case(tmp_path, True)
    summary = evaluate(model, open_source(address), ["classification"], tmp_path / "out", key=model.key)
    (note,) = summary.notes
    assert note["note"] == "1 class of the data that the model does not know, all counted as wrong: 'yak' (7)"
    assert recompute(tmp_path / "out").notes == summary.notes
    alone = Tabled(("a", "b"), np.full((61, 2), 0.5))
    found = {r.metric: r.value for r in evaluate(alone, open_source(address), ["classification"]).results}
    assert found["accuracy"] == 0 and "nll" not in found


def test_broken_pictures_and_other_data(tmp_path: Path) -> None:
    model, _, _, address = case(tmp_path, False)
    (tmp_path / "data" / "cat" / "zz.png").write_bytes(b"no picture")
    summary = evaluate(model, open_source(address), ["classification"], tmp_path / "out", key=model.key)
    assert summary.results[0].n == 60
    problems = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert [p["item"] for p in problems] == ["cat/zz.png"]
    calls = model.calls
    evaluate(model, open_source(address), ["classification"], tmp_path / "out", key=model.key)
    assert model.calls == calls, "finished records are used"
    summary = evaluate(model, open_source(cli_fixture.make_photos(tmp_path / "photos", 4)), ["classification"])
    assert "no classes: read class folders" in summary.skipped[0]["reason"]
    spread = evaluate(model, open_source(address), ["classification?n=9"])
    assert spread.results[0].n in (8, 9)
    nan = Tabled(model.classes, np.full((61, 4), np.nan))
    found = {r.metric: r for r in evaluate(nan, open_source(address), ["classification"]).results}
    assert found["accuracy"].value == 0 and found["accuracy"].nans == 240


def test_stopped_and_continued(tmp_path: Path) -> None:
    model, _, _, address = case(tmp_path, False)
    given, seen = model.classify, []

    def stops(images):
        seen.append(len(images))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return given(images)

    model.classify = stops  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, open_source(address), ["classification"], tmp_path / "out", key=model.key)
    summary = evaluate(model, open_source(address), ["classification"], tmp_path / "out", key=model.key)
    assert seen == [1, 32, 28, 1, 28] and summary.results[0].n == 60


def test_adapt_evaluate_and_predict(cli: Cli, tmp_path: Path) -> None:
    """The way of a user: adapt to class folders, evaluate on the part that was kept back, name the classes of other pictures."""
    data = make_classes(tmp_path / "data", 40)
    assert cli("adapt", "colours_fixture:Mute", "--data", data, "--out", "runs/mine").code == 0
    result = cli("evaluate", "runs/mine", "--data", data)
    assert result.code == 0 and "classification" in result.out
    make_classes(tmp_path / "new", 30, seed=7_000)
    result = cli("predict", "runs/mine", "new", "--out", "table.jsonl", "--error", 0.1)
    assert result.code == 0 and "unsure at an error rate of 0.1" in result.out
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    covered = sum(row["id"].split("/")[0] in row["set"] for row in rows)
    assert len(rows) == 90 and covered >= 72, "0.9 of 90 are expected"
    sure = [row for row in rows if not row["unsure"]]
    assert sum(row["id"].split("/")[0] == row["class"] for row in sure) > 0.85 * len(sure) > 30


def test_evaluate_a_real_adapted_model(cli: Cli, tmp_path: Path) -> None:
    make_adapted(tmp_path / "adapted")
    data = make_classes(tmp_path / "data", 30)
    (tmp_path / "data" / "mauve").mkdir()
    Image.new("RGB", (8, 8), (200, 120, 200)).save(tmp_path / "data" / "mauve" / "a.png")
    result = cli("evaluate", "adapted", "--data", data, "--split", "all")
    assert result.code == 0, result.all
    for word in ("classification", "balanced_accuracy", "multiclass_brier", "ece", "'mauve' (1)"):
        assert word in result.all, result.all
    summary = json.loads((tmp_path / "adapted" / "evaluation" / "summary.json").read_text())
    found = {r["metric"]: r for r in summary["results"] if r["task"] == "classification"}
    assert 0.7 < found["accuracy"]["value"] < 1 and found["accuracy"]["controls"]["shuffled"] < 0.35
    assert found["accuracy"]["n"] == 91 and found["accuracy"]["low"] > 1 / 3
    assert found["ece"]["value"] < 0.2
    assert cli("evaluate", "adapted", "--data", data, "--split", "all", "--tasks", "classification").code == 0
    assert cli("evaluate", "--from-records", "adapted/evaluation").code == 0
