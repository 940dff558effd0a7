"""Pictures with several labels: data, measures, ways, selection, and ``choose``, ``adapt`` and ``predict`` as a user runs them."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from typer.testing import CliRunner

import diptych as dp
from diptych.benchmarks.crossed import Measured, estimate
from diptych.benchmarks.metrics.several import average_precision, f1_macro, f1_micro, mean_average_precision
from diptych.choose.several.data import SeveralSupport, few_of_each, folds_of, has_several_labels, tagged_parts
from diptych.choose.several.select import best_threshold, calibrate, choose_several, log_loss, platt
from diptych.choose.several.ways import REASONS, SEVERAL_WAYS, several_way
from diptych.choose.towers import TOWER_WAYS
from diptych.choose.ways import WAYS
from diptych.choose.ways.linear import NEVER
from diptych.cli import app
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, read_jsonl
from diptych.data.sources import open_source
from diptych.inference.several.model import probabilities_of
from several_fixture import MODEL, mixed, table

RUN = CliRunner()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def cli(*words: str) -> tuple[str, str]:
    result = RUN.invoke(app, list(words))
    if isinstance(result.exception, DiptychError):
        return str(result.exception), result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return "" if result.exit_code == 0 else f"exit {result.exit_code}", result.output


def drawn(n: int = 60, labels: int = 4, width: int = 12, seed: int = 0, noise: float = 0.6) -> SeveralSupport:
    """Pictures as the sum of the directions of their labels, some of which are rare, and noise."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((labels, width))
    targets = rng.random((n, labels)) < np.linspace(0.15, 0.6, labels)
    x = targets @ directions + noise * rng.standard_normal((n, width))
    prompts = unit_rows(directions[:, None] + 0.5 * rng.standard_normal((labels, 2, width)))
    names = tuple(f"label {i}" for i in range(labels))
    return SeveralSupport(unit_rows(x).astype(np.float32), targets, names, prompts.astype(np.float32), scale=20.0, seed=seed)


# --- data ---


def test_tables_of_labels(tmp_path: Path) -> None:
    folder = table(tmp_path / "a", n=12)
    source = open_source(f"labels:{folder}")
    with (folder / "metadata.csv").open() as file:
        written = {row["file_name"]: [w for w in row["labels"].split("|") if w] for row in csv.DictReader(file)}
    assert source.labels == ["blue", "green", "red"] and not source.classes and len(source) == 12 and not source.problems
    for i in range(12):
        sample = source[i]
        assert sample.extra["labels"] == written[sample.id] and "label" not in sample.fields
        assert sample.captions == [f"a photo of a {name}" for name in written[sample.id]]
    assert any(not labels for labels in written.values())  # a picture without a label is one, too
    assert sum(len(source.split(p)) for p in ("train", "validation", "test")) == 12
    assert source.split("train").labels == source.labels and has_several_labels(f"labels:{folder}")


def test_separators_lists_and_rows_of_the_same_picture(tmp_path: Path) -> None:
    folder = table(tmp_path, n=4)
    (folder / "t.csv").write_text("image,tags\n000.png,a thing + b\n001.png,\n000.png,c\n")
    source = open_source(f"labels:{folder}/t.csv?separator=%20%2B%20")
    assert [s.extra["labels"] for s in (source[0], source[1])] == [["a thing", "b", "c"], []]
    rows = pa.table({"image": ["000.png", "001.png", "002.png"], "label": [["x", "y"], [], ["y"]]})
    pq.write_table(rows, folder / "t.parquet")
    found = open_source(f"labels:{folder}/t.parquet")
    assert [found[i].extra["labels"] for i in range(3)] == [["x", "y"], [], ["y"]] and found.labels == ["x", "y"]


def test_what_cannot_be_read_as_labels_is_said(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="class folders are read by classes:"):
        (tmp_path / "cat").mkdir()
        open_source(f"labels:{tmp_path}")
    table(tmp_path, n=2)
    (tmp_path / "metadata.csv").write_text("file_name,note\n000.png,x\n")
    with pytest.raises(DiptychError, match="no column of labels.*label=NAME"):
        open_source(f"labels:{tmp_path}")
    assert open_source(f"labels:{tmp_path}?label=note").labels == ["x"]
    with pytest.raises(DiptychError, match="1 label"):
        tagged_parts(f"labels:{tmp_path}?label=note")


def test_a_near_copy_with_other_labels_is_not_on_both_sides(tmp_path: Path) -> None:
    folder = table(tmp_path / "a", n=40)
    parts = tagged_parts(f"labels:{folder}")
    assert not parts.leaks and len(np.unique(parts.groups)) == len(parts.train)
    copy = parts.train.read(0).astype(int) + 2
    name = parts.test.ids[0]
    from PIL import Image

    Image.fromarray(copy.clip(0, 255).astype(np.uint8)).save(folder / name)
    moved = tagged_parts(f"labels:{folder}", test_address=f"labels:{folder}?split=test")
    both = [set(p.ids) for p in (moved.train, moved.test)]
    assert not (name in both[1] and parts.train.ids[0] in both[0])


def test_few_pictures_of_each_label() -> None:
    targets = drawn(80).y
    some, more = few_of_each(targets, 2, 3), few_of_each(targets, 5, 3)
    assert set(some) <= set(more) and (targets[some].sum(0) >= 2).all() and (~targets[some].any(1)).sum() >= 1
    assert len(some) <= 2 * 5 and few_of_each(targets, 0, 3).tolist() == list(range(80))


def test_folds_keep_groups_and_spread_labels() -> None:
    rng = np.random.default_rng(1)
    targets = rng.random((100, 3)) < (0.05, 0.3, 0.7)
    groups = np.repeat(np.arange(50), 2)
    fold = folds_of(targets, groups, 5)
    assert all(len(set(fold[groups == g])) == 1 for g in range(50)) and sorted(set(fold)) == [0, 1, 2, 3, 4]
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() <= 4
    of_groups = np.array([[targets[(fold == k) & (groups == g)].any(0) for g in range(50)] for k in range(5)])  # [5, 50, 3]
    counts = of_groups.sum(1)
    assert (counts.max(0) - counts.min(0) <= 2).all(), counts
    assert (folds_of(targets, np.zeros(100, dtype=int), 5) == -1).all()


# --- measures ---


def weighted_map(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """By the definition, in loops, with a weight for each picture."""
    values = []
    for s, y in zip(scores.T, targets.T, strict=True):
        if not y.any() or y.all():
            continue
        total = 0.0
        for i in np.flatnonzero(y):
            above = s >= s[i]
            total += weights[i] * weights[above & y].sum() / weights[above].sum()
        values.append(total / weights[y].sum())
    return float(np.mean(values))


def weighted_f1(given: np.ndarray, targets: np.ndarray, weights: np.ndarray, micro: bool) -> float:
    hits = weights @ (given & targets)
    both = weights @ (given.astype(float) + targets)
    if micro:
        return float(2 * hits.sum() / both.sum())
    kept = targets.any(0) & ~targets.all(0)
    return float(np.mean(2 * hits[kept] / both[kept]))


def test_measures_are_those_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.integers(0, 6, (40, 3)).astype(float), rng.random((40, 3)) < 0.3
    value, _ = mean_average_precision(scores, targets)
    assert value == pytest.approx(average_precision_score(targets, scores, average="macro"), abs=1e-12)
    given = scores > 3
    assert f1_macro(given, targets)[0] == pytest.approx(f1_score(targets, given, average="macro"), abs=1e-12)
    assert f1_micro(given, targets)[0] == pytest.approx(f1_score(targets, given, average="micro"), abs=1e-12)
    with_empty = np.concatenate([targets, np.zeros((40, 1), bool), np.ones((40, 1), bool)], 1)
    padded = np.concatenate([scores, scores[:, :2]], 1)
    assert mean_average_precision(padded, with_empty)[0] == pytest.approx(value, abs=1e-12)  # these say nothing
    assert np.isnan(mean_average_precision(padded[:, 3:], with_empty[:, 3:])[0])
    assert f1_micro(np.zeros((3, 2), bool), np.zeros((3, 2), bool))[0] == 0


@pytest.mark.parametrize("measure", ["mAP", "macro", "micro"])
def test_the_number_of_a_picture_is_the_derivative_by_its_weight(measure: str) -> None:
    rng = np.random.default_rng(2)
    scores, targets = rng.integers(0, 8, (25, 3)).astype(float), rng.random((25, 3)) < 0.4
    given = scores > 4
    found = {"mAP": lambda: mean_average_precision(scores, targets), "macro": lambda: f1_macro(given, targets),
             "micro": lambda: f1_micro(given, targets)}[measure]()  # fmt: skip

    def at(weights: np.ndarray) -> float:
        if measure == "mAP":
            return weighted_map(scores, targets, weights)
        return weighted_f1(given, targets, weights, measure == "micro")

    value, credits = found
    assert at(np.ones(25)) == pytest.approx(value, abs=1e-12) and credits.mean() == pytest.approx(value, abs=1e-12)
    for i in range(25):
        up, down = np.ones(25), np.ones(25)
        up[i] += 1e-5
        down[i] -= 1e-5
        assert value + 25 * (at(up) - at(down)) / 2e-5 == pytest.approx(credits[i], abs=1e-6)


def test_the_interval_is_about_as_wide_as_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(3)
    targets = rng.random((200, 4)) < 0.3
    scores = targets + 0.8 * rng.standard_normal((200, 4))
    value, credits = mean_average_precision(scores, targets)
    e = estimate([Measured(value, {str(i): c for i, c in enumerate(credits)}, range=(0.0, 1.0))])
    again = []
    for _ in range(300):
        rows = rng.integers(0, 200, 200)
        again.append(np.mean([average_precision_score(targets[rows, k], scores[rows, k]) for k in range(4)]))
    assert np.std(again) == pytest.approx(e.error, rel=0.2)


def test_one_label_by_hand() -> None:
    value, _ = average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert value == pytest.approx((1 + 2 / 3) / 2)


# --- ways ---


def test_the_probe_is_scikit_learns_one_against_the_rest() -> None:
    s = drawn()
    head = SEVERAL_WAYS["probe"](c=10.0).fit(s)
    oracle = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=1000)).fit(s.x.astype(np.float64), s.y)
    want = np.stack([e.decision_function(s.x.astype(np.float64)) for e in oracle.estimators_], 1)
    assert np.allclose(head.logits(s.x), want, atol=2e-2)
    wide = drawn(n=20, width=64)
    own = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=1000)).fit(wide.x.astype(np.float64), wide.y)
    want = np.stack([e.decision_function(wide.x.astype(np.float64)) for e in own.estimators_], 1)
    assert np.allclose(SEVERAL_WAYS["probe"](c=10.0).fit(wide).logits(wide.x), want, atol=2e-2)


def test_neighbours_prototypes_gda_and_tip_by_their_definitions() -> None:
    s, new = drawn(), drawn(seed=5).x[:7].astype(np.float64)
    x, y = s.x.astype(np.float64), np.asarray(s.y)
    knn = SEVERAL_WAYS["knn"](k=3).fit(s).logits(new.astype(np.float32))
    for i, row in enumerate(new):
        near = sorted(range(len(x)), key=lambda j: -float(row @ x[j]))[:3]
        weights = np.array([np.exp(float(row @ x[j]) / 0.07) for j in near])
        share = (weights / weights.sum()) @ y[near]
        p = (3 * share + 0.5) / 4
        assert np.allclose(knn[i], np.log(p / (1 - p)), atol=1e-3)
    for unit in (False, True):
        found = SEVERAL_WAYS["prototypes"](unit=unit).fit(s).logits(new)
        for label in range(s.classes):
            means = [x[y[:, label] == side].mean(0) for side in (True, False)]
            if unit:
                means = [m / np.linalg.norm(m) for m in means]
            want = [-20 / 2 * (np.sum((row - means[0]) ** 2) - np.sum((row - means[1]) ** 2)) for row in new]
            assert np.allclose(found[:, label], want, atol=1e-3)
    texts = s.texts.astype(np.float64)
    found = SEVERAL_WAYS["gda"](alpha=0.1).fit(s).logits(new)
    for label in range(s.classes):
        a, b = (x[y[:, label] == side] for side in (True, False))
        scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in (a, b))
        precision = x.shape[1] * np.linalg.inv(scatter + np.trace(scatter) / (len(x) - 1) * np.eye(x.shape[1]))
        w = precision @ (a.mean(0) - b.mean(0))
        want = 20 * new @ texts[label] + 0.1 * (new @ w - (a.mean(0) + b.mean(0)) @ w / 2)
        assert np.allclose(found[:, label], want, atol=1e-2)
    tip = SEVERAL_WAYS["tip"](alpha=2.0, beta=5.5).fit(s).logits(new)
    want = 20 * new @ texts.T + 2 * np.exp(-5.5 * (1 - new @ x.T)) @ y
    assert np.allclose(tip, want, atol=1e-3)


@pytest.mark.parametrize("name", [n for n in SEVERAL_WAYS if n != "descriptions"])
def test_settings_that_share_work_give_the_same_scores(name: str) -> None:
    s, way = drawn(n=30), SEVERAL_WAYS[name]
    grid = list(itertools.islice(way.grid(s), 4))
    for setting, scores in zip(grid, way.logits_of(grid, s, s.x[:5]), strict=True):
        assert np.allclose(scores, way(**setting).fit(s).logits(s.x[:5]), atol=1e-3)


def test_a_label_without_pictures_scores_low_or_by_its_name() -> None:
    s = drawn(n=40)
    s.y[:, 1] = False
    for name in ("probe", "prototypes"):
        assert (SEVERAL_WAYS[name]().fit(s).logits(s.x)[:, 1] <= NEVER).all()
    assert np.allclose(SEVERAL_WAYS["gda"]().fit(s).logits(s.x)[:, 1], 20 * s.x @ s.texts[1], atol=1e-4)


def test_every_other_way_is_refused_with_a_reason() -> None:
    towers = {n for n, w in TOWER_WAYS.items() if w.learns == "classes"}
    assert (set(WAYS) | towers) - set(SEVERAL_WAYS) == set(REASONS)
    for name in REASONS:
        with pytest.raises(DiptychError, match="does not fit pictures with several labels"):
            several_way(name)
    with pytest.raises(DiptychError, match="made for one class each"):
        several_way("choose_fixture:Memory")


# --- selection ---


def test_probabilities_have_the_least_loss() -> None:
    rng = np.random.default_rng(4)
    targets = rng.random((80, 3)) < (0.1, 0.4, 0.7)
    scores = 5 * targets + 4 * rng.standard_normal((80, 3)) + 30

    def loss(slope: float, offsets: np.ndarray) -> float:
        p = probabilities_of(scores, slope, offsets)
        n = targets.sum(0)
        goal = np.where(targets, (n + 1) / (n + 2), 1 / (80 - n + 2))
        return float(-(goal * np.log(p) + (1 - goal) * np.log(1 - p)).sum())

    slope, offsets = platt(scores, targets)
    here = loss(slope, offsets)
    for change in itertools.product((-1e-3, 0, 1e-3), repeat=4):
        assert loss(slope * (1 + change[0]), offsets + np.array(change[1:])) >= here - 1e-9
    flat, base = platt(-scores, targets)
    assert flat == 0 and np.allclose(1 / (1 + np.exp(-base)), targets.mean(0), atol=0.02)
    apart = platt(np.where(targets, 900.0, -900.0), targets)  # nothing is infinite where they are told apart
    assert np.isfinite([apart[0], *apart[1]]).all()


def test_the_threshold_has_the_highest_f1() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        has, p = rng.random(15) < 0.4, rng.integers(0, 6, 15) / 5
        if not has.any():
            continue
        t = best_threshold(p, has)
        best = max(f1_score(has, p >= u, zero_division=0) for u in (*np.unique(p), 2))
        assert f1_score(has, p >= t) == pytest.approx(best)
    assert best_threshold(np.zeros(3), np.zeros(3, bool)) == 0.5
    few = calibrate(rng.standard_normal((30, 2)), np.eye(30, 2, dtype=bool)[rng.permutation(30)])
    assert few.thresholds[0] == few.thresholds[1]  # one picture each: they share theirs


def test_the_choice_is_that_of_the_highest_precision_out_of_fold() -> None:
    s, way = drawn(n=50, noise=1.5), SEVERAL_WAYS["knn"]
    choice = choose_several(way, s, np.arange(50))
    fold = folds_of(s.y, np.arange(50), 5, 0)
    values = []
    for setting in way.grid(s):
        scores = np.zeros(s.y.shape)
        for k in range(5):
            scores[fold == k] = way(**setting).fit(s.rows(np.flatnonzero(fold != k))).logits(s.x[fold == k])
        values.append(average_precision_score(s.y, scores, average="macro"))
    assert choice.settings == list(way.grid(s))[int(np.argmax(values))] and choice.folds == 5
    assert [t["precision"] for t in choice.tried] == pytest.approx(values, abs=1e-9) and choice.score <= max(values) + 1e-9
    assert log_loss(choice.calibration, choice.scores, s.y) == pytest.approx(choice.loss)
    names = choose_several(SEVERAL_WAYS["zeroshot"], s, np.arange(50))
    assert names.folds == 0 and names.score == pytest.approx(average_precision_score(s.y, 20 * s.x @ s.texts.T, average="macro"))


def test_shuffled_labels_are_at_chance_out_of_fold() -> None:
    scores = []
    for seed in range(12):
        s = drawn(n=60, seed=seed)
        s.y[:] = s.y[np.random.default_rng([seed, 1]).permutation(60)]
        scores.append(
            [choose_several(SEVERAL_WAYS[n], s, np.arange(60)).score - s.y.mean() for n in ("knn", "probe", "gda", "tip")]
        )
    mean, error = np.mean(scores, 0), np.std(scores, 0) / np.sqrt(12)
    assert (mean < 0.08 + 3 * error).all(), mean  # average precision is a little above the share of few pictures by chance


# --- as a user runs it ---


def test_choose_adapt_predict(tmp_path: Path) -> None:
    data, out = f"labels:{table(tmp_path / 'data', n=90)}", tmp_path / "o"
    ways = "zeroshot,knn,probe,prototypes,clap,lora"
    problem, text = cli("choose", MODEL, "--data", data, "--ways", ways, "--shots", "4,all", "--seeds", "3", "--out", str(out))
    assert problem == "", text
    results = read_json(out / "results.json")
    skipped = {c["way"]: c["skipped"] for c in results["cells"] if "skipped" in c}
    assert set(skipped) == {"clap", "lora"} and "one class exclude the others" in skipped["clap"]
    rows = {r["way"]: r for r in results["verdict"]["rows"]}
    assert results["verdict"]["measure"] == "mAP" and rows["probe"]["mean"] > 0.9 > rows["majority"]["mean"]
    assert (
        "mean average precision on the test pictures" in results["sentences"][0] and len(read_jsonl(out / "test-opened.jsonl")) == 1
    )
    cell = next(c for c in results["cells"] if c["way"] == "probe" and c["shots"] == 0 and c["seed"] == 0)
    assert np.mean(cell["test"]["credits"]["mAP"]) == pytest.approx(cell["test"]["values"]["mAP"], abs=1e-6)
    assert cell["test"]["values"]["F1 macro"] > 0.8
    markdown = (out / "table.md").read_text()
    assert "F1 macro" in markdown and "balanced" not in markdown and "infinitesimal" in (out / "report.html").read_text()
    assert "not tried: lora" in text and "To make it: diptych adapt" in text
    for way in ("probe", "knn"):
        adapted = tmp_path / way
        problem, text = cli("adapt", MODEL, "--way", way, "--data", data, "--out", str(adapted))
        assert problem == "" and "mean average precision" in text
        model: Any = dp.load(adapted)
        assert model.labels == ("blue", "green", "red") and "label" in model.capabilities
        assert model.given([mixed(["red", "blue"], 900), mixed(["green"], 901)]) == [["blue", "red"], ["green"]]
    new = tmp_path / "new"
    new.mkdir()
    from PIL import Image

    for i, labels in enumerate((["red", "green"], ["blue"], [])):
        Image.fromarray(mixed(labels, 800 + i)).save(new / f"{i}.png")
    (new / "9.png").write_bytes(b"no picture")
    problem, _ = cli("predict", str(tmp_path / "probe"), str(new), "--out", str(tmp_path / "t.csv"))
    assert "1 picture of 4 could not be read" in problem
    with (tmp_path / "t.csv").open() as file:
        table_ = list(csv.DictReader(file))
    assert [set(r["labels"].split("|")) for r in table_[:2]] == [{"red", "green"}, {"blue"}] and table_[3]["reason"]
    assert all(0 <= float(r[f"p {c}"]) <= 1 for r in table_[:3] for c in ("red", "green", "blue"))
    p = model_probabilities(tmp_path / "probe", new / "0.png")
    assert float(table_[0]["p red"]) == pytest.approx(p[2], abs=1e-5)
    assert (
        "leave it out" in cli("predict", str(tmp_path / "probe"), str(new), "--out", str(tmp_path / "u.csv"), "--error", "0.1")[0]
    )


def model_probabilities(folder: Path, path: Path) -> np.ndarray:
    from PIL import Image

    model: Any = dp.load(folder)
    return np.asarray(model.label([np.asarray(Image.open(path).convert("RGB"))])[0])


def test_ways_and_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = f"labels:{table(tmp_path / 'data', n=30)}"
    assert "one class exclude the others" in cli("adapt", MODEL, "--way", "clap", "--data", data, "--out", str(tmp_path / "o"))[0]
    assert (
        "classes that exclude each other" in cli("adapt", MODEL, "--way", "coop", "--data", data, "--out", str(tmp_path / "o"))[0]
    )
    assert cli("adapt", MODEL, "--way", "knn", "--data", data, "--out", str(tmp_path / "o"))[0] == ""
    assert "holds an adapted model" in cli("adapt", MODEL, "--way", "probe", "--data", data, "--out", str(tmp_path / "o"))[0]
    words = ["adapt", MODEL, "--way", "probe", "--data", data, "--out", str(tmp_path / "o"), "--overwrite", "--set", "c=1"]
    assert cli(*words)[0] == "" and dp.load(tmp_path / "o").about["settings"] == {"c": 1}
    assert "unknown setting" in cli(*words[:-1], "d=1")[0]
