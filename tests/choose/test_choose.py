"""``diptych choose`` and ``diptych adapt`` as a user runs them, and whether their numbers can be trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import choose_fixture
import diptych as dp
from choose_fixture import MODEL, Memory, RandomHeads, class_folders
from diptych.choose.cells import Cell, Data, chosen, inflation
from diptych.choose.cells import tested as judged
from diptych.choose.select import choose_settings, fold_of, learned, softmax
from diptych.choose.tower_cells import trained
from diptych.choose.verdict import verdict
from diptych.choose.ways import WAYS, Support, Way
from diptych.cli import app
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, read_jsonl
from diptych.inference.heads import Head, Linear

RUN = CliRunner()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def cli(*words: str) -> tuple[int, str]:
    result = RUN.invoke(app, list(words))
    if result.exception is not None and isinstance(result.exception, DiptychError):
        return 1, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


# --- as a user runs it ---


def test_choose_then_adapt_then_use(tmp_path: Path) -> None:
    data, out = f"classes:{class_folders(tmp_path / 'data')}", tmp_path / "out"
    status, text = cli(
        "choose", MODEL, "choose_fixture:Blind", "--data", data, "--ways", "zeroshot,probe", "--shots", "2,all", "--seeds", "3",
        "--out", str(out),
    )  # fmt: skip
    assert status == 0, text
    results = read_json(out / "results.json")
    assert len(results["cells"]) == 2 * 3 * 2 * 3  # models, ways with the control, shots, seeds
    skipped = {(c["model"], c["way"]) for c in results["cells"] if "skipped" in c}
    assert skipped == {("choose_fixture:Blind", "zeroshot")} and "the model has no text vectors" in text
    assert "To make it: diptych adapt" in text and (out / "report.html").stat().st_size > 10_000
    assert "zeroshot" in (out / "table.md").read_text()
    best = results["verdict"]["rows"][0]
    assert best["mean"] > 0.9
    adapted = tmp_path / "adapted"
    status, text = cli("adapt", MODEL, "--way", "probe", "--data", data, "--out", str(adapted))
    assert status == 0 and "out of fold (5 folds)" in text
    model = dp.load(adapted)
    assert model.classes == ("blue", "green", "grey", "red")
    named = model.classify([choose_fixture.picture("green", 900), choose_fixture.picture("red", 901)])
    assert named.argmax(1).tolist() == [1, 3] and np.allclose(named.sum(1), 1)
    status, text = cli("evaluate", str(adapted), "--data", data, "--tasks", "zeroshot")
    assert status == 0 and "top1" in text


def test_the_same_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "choose",
        MODEL,
        "--data",
        f"classes:{class_folders(tmp_path / 'data')}",
        "--ways",
        "probe",
        "--out",
        str(tmp_path / "o"),
    ]
    calls = 0

    def count(cell: Cell, data: Data) -> dict[str, object]:
        nonlocal calls
        calls += 1
        if calls == 2 and interrupt:
            raise KeyboardInterrupt
        return chosen(cell, data)

    interrupt = True
    monkeypatch.setattr("diptych.choose.cells.chosen", count)
    status, _ = cli(*words)
    assert status == 1 and calls == 2
    assert not (tmp_path / "o" / "test-opened.jsonl").exists()  # no test picture was seen
    interrupt, calls = False, 0
    assert cli(*words)[0] == 0 and calls == 1
    assert len(read_jsonl(tmp_path / "o" / "test-opened.jsonl")) == 1
    assert cli(*words)[0] == 0 and calls == 1
    assert len(read_jsonl(tmp_path / "o" / "test-opened.jsonl")) == 1  # nothing new to test
    assert cli(*words[:-3], "probe,zeroshot", *words[-2:])[0] == 0
    assert len(read_jsonl(tmp_path / "o" / "test-opened.jsonl")) == 2
    assert "opened 2 times" in (tmp_path / "o" / "report.html").read_text()


def test_wrong_labels_are_listed(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data")
    (folder / "red" / "003.png").rename(folder / "blue" / "wrong.png")
    (folder / "green" / "004.png").rename(folder / "grey" / "wrong.png")
    assert cli("choose", MODEL, "--data", f"classes:{folder}", "--ways", "probe", "--out", str(tmp_path / "o"))[0] == 0
    rows = (tmp_path / "o" / "labels-to-check.csv").read_text().splitlines()
    assert rows[0] == "picture,label,likelier,confidence,margin"
    listed = {tuple(row.split(",")[:3]) for row in rows[1:]}
    assert listed <= {("blue/wrong.png", "blue", "red"), ("grey/wrong.png", "grey", "green")} and listed


def test_one_model_that_cannot_be_had_costs_the_others_nothing(tmp_path: Path) -> None:
    data = f"classes:{class_folders(tmp_path / 'data')}"
    status, text = cli("choose", "hf:/no/such/model", MODEL, "--data", data, "--ways", "probe", "--out", str(tmp_path / "o"))
    assert status == 0 and "not tried:  hf:/no/such/model" in text.replace("\n", " ")
    assert [r["way"] for r in read_json(tmp_path / "o" / "results.json")["verdict"]["rows"]] == ["probe", "majority"]
    status, text = cli("choose", "hf:/no/such/model", "--data", data, "--ways", "probe", "--out", str(tmp_path / "p"))
    assert status == 1 and "/no/such/model" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ways", "probes"], "did you mean 'probe'"),
        (["--shots", "0"], "expected numbers of pictures"),
        (["--budget", "10k samples"], "expected a time such as 20m"),
        (["--data", "classes:/no/such/place"], "there is no such directory or table"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    given = dict(zip(words[::2], words[1::2], strict=True))
    given.setdefault("--data", f"classes:{class_folders(tmp_path / 'data', each=4)}")
    status, text = cli("choose", MODEL, *(x for pair in given.items() for x in pair), "--out", str(tmp_path / "o"))
    assert status == 1 and message in text


def test_results_of_other_data_are_not_continued(tmp_path: Path) -> None:
    first, second = (f"classes:{class_folders(tmp_path / n, each=10)}" for n in ("a", "b"))
    assert cli("choose", MODEL, "--data", first, "--ways", "probe", "--out", str(tmp_path / "o"))[0] == 0
    status, text = cli("choose", MODEL, "--data", second, "--ways", "probe", "--out", str(tmp_path / "o"))
    assert status == 1 and "holds results with another data" in text


def test_a_spent_budget_is_listed(tmp_path: Path) -> None:
    data = f"classes:{class_folders(tmp_path / 'data', each=8)}"
    status, text = cli("choose", MODEL, "--data", data, "--ways", "probe", "--budget", "0.000001s", "--out", str(tmp_path / "o"))
    assert status == 0 and "the budget was spent" in text


def test_an_adapted_model_of_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = f"classes:{class_folders(tmp_path / 'data', each=8)}"
    assert cli("adapt", "choose_fixture:Counting", "--data", data, "--out", str(tmp_path / "a"))[0] == 0
    dp.load(tmp_path / "a")
    monkeypatch.setattr(choose_fixture.Counting, "key", "other-weights")
    with pytest.raises(DiptychError, match="has other weights now"):
        dp.load(tmp_path / "a")


def test_adapt_refuses_wrong_settings_and_keeps_what_is_there(tmp_path: Path) -> None:
    data = f"classes:{class_folders(tmp_path / 'data', each=8)}"
    status, text = cli("adapt", MODEL, "--data", data, "--set", "d=1", "--out", str(tmp_path / "a"))
    assert status == 1 and "unknown setting 'd'" in text and not (tmp_path / "a").exists()
    assert cli("adapt", MODEL, "--data", data, "--set", "c=7", "--out", str(tmp_path / "a"))[0] == 0
    assert json.loads((tmp_path / "a" / "adapted.json").read_text())["about"]["settings"] == {"c": 7.0}
    assert "holds an adapted model already" in cli("adapt", MODEL, "--data", data, "--out", str(tmp_path / "a"))[1]


def test_a_model_that_only_scores_names_classes_and_adapts(tmp_path: Path) -> None:
    data = f"classes:{class_folders(tmp_path / 'data')}"
    model = "choose_fixture:Scores"
    assert cli("choose", model, "--data", data, "--ways", "zeroshot,probe", "--out", str(tmp_path / "o"))[0] == 0
    rows = {r["way"]: r["mean"] for r in read_json(tmp_path / "o" / "results.json")["verdict"]["rows"]}
    images = [choose_fixture.picture(c, 50 + i) for c in ("blue", "green", "grey", "red") for i in range(5)]
    scores = choose_fixture.Scores().score(images, [f"a photo of a {c}" for c in ("blue", "green", "grey", "red")])
    assert rows["zeroshot"] > 0.9 and (scores.argmax(1) == np.repeat(np.arange(4), 5)).all()
    assert cli("adapt", model, "--way", "probe", "--data", data, "--out", str(tmp_path / "a"))[0] == 0
    adapted = dp.load(tmp_path / "a")
    assert (adapted.classify(images).argmax(1) == np.repeat(np.arange(4), 5)).all()
    with pytest.raises(DiptychError, match="cannot embed_image or score"):
        from diptych.core.capabilities import Adapter
        from diptych.inference.scored import embedding

        embedding(Adapter(), ["a"])


# --- the rule of selection ---


def clusters(n: int, classes: int, *, gap: float, seed: int, width: int = 16) -> Support:
    """Unit vectors around a centre for each class; gap 0: the classes say nothing about the vectors."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, width))
    x = unit_rows(rng.normal(size=(n, width)) + gap * centres[y]).astype(np.float32)
    return Support(x=x, y=y, names=tuple(f"class {i}" for i in range(classes)), seed=seed)


def test_folds_keep_groups_and_spread_classes() -> None:
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 3, 90), np.repeat(np.arange(45), 2)
    y = np.repeat(y[::2], 2)
    fold = fold_of(y, groups, folds=5, seed=3)
    assert all(len(set(fold[groups == g])) == 1 for g in range(45))
    counts = np.array([[(y[fold == f] == c).sum() for c in range(3)] for f in range(5)])
    assert counts.max(0).max() - counts.min(0).min() <= 4 and set(fold) == set(range(5))
    alone = fold_of(np.array([0, 0, 1, 2, 2]), folds=5)
    assert alone[2] == -1 and (alone[[0, 1, 3, 4]] >= 0).all()  # the only picture of its class is never left out


def test_what_is_remembered_is_no_accuracy() -> None:
    support = clusters(300, 4, gap=0.0, seed=1)
    choice = choose_settings(Memory, support)
    right = learned(Memory, support, choice).logits(support.x).argmax(1) == support.y
    assert right.all() and abs(choice.accuracy - 0.25) < 0.1


def test_near_duplicates_across_folds_would_be_a_leak() -> None:
    base = clusters(120, 4, gap=0.0, seed=2)
    twice = Support(x=np.repeat(base.x, 2, 0), y=np.repeat(base.y, 2), names=base.names)
    leaky = choose_settings(Memory, twice).accuracy
    held = choose_settings(Memory, twice, np.repeat(np.arange(120), 2)).accuracy
    assert leaky > 0.6 and abs(held - 0.25) < 0.12


def test_shuffled_labels_have_few_winners() -> None:
    """A winner is named if it is better than a reference that learns nothing (p < .05): expected twice in 40 seeds."""
    winners = 0
    for seed in range(40):
        support = clusters(240, 4, gap=0.0, seed=seed)
        train = support.rows(np.arange(120))
        data = Data(train, np.arange(120), (), support.x[120:], support.y[120:])
        records = []
        for way in ("majority", "probe"):
            cell = Cell("model", way, 0, seed)
            records.append(judged(chosen(cell, data), cell, data))
        found = verdict(records, [str(i) for i in range(120)])
        winners += found["gain"]["p"] < 0.05 and found["gain"]["difference"] > 0
    assert winners <= 5


def test_a_way_that_peeks_is_ahead_by_the_inflation_shown() -> None:
    support = clusters(200, 4, gap=0.0, seed=5)
    data = Data(support.rows(np.arange(100)), np.arange(100), (), support.x[100:], support.y[100:])

    @dataclass(frozen=True)
    class Peeks(Way):
        """Takes the best of ``RandomHeads`` on the test pictures."""

        def fit(self, support: Support) -> Head:
            heads = [RandomHeads(draw=i).fit(support) for i in range(20)]
            assert data.test_x is not None
            return max(heads, key=lambda h: float((h.logits(data.test_x).argmax(1) == data.test_y).mean()))

    choice = choose_settings(RandomHeads, data.support)
    assert data.test_x is not None
    honest = (learned(RandomHeads, data.support, choice).logits(data.test_x).argmax(1) == data.test_y).mean()
    peeking = (Peeks().fit(data.support).logits(data.test_x).argmax(1) == data.test_y).mean()
    shown = inflation(RandomHeads, data.support, choice.settings, data)["inflation"]
    assert peeking > honest and shown == pytest.approx(peeking - honest)
    assert choose_settings(Peeks, data.support).accuracy < peeking  # cross-validation does not believe it


def test_one_picture_a_class_chooses_nothing() -> None:
    support = clusters(4, 4, gap=3.0, seed=0)
    support = Support(x=support.x, y=np.arange(4), names=support.names)
    choice = choose_settings(WAYS["probe"], support)
    assert choice.settings == {"c": 10.0} and np.isnan(choice.accuracy) and choice.folds == 0


def test_the_temperature_fits() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 4000)
    true = rng.normal(size=(4000, 3)) + 2 * np.eye(3)[y]
    posterior = 2 * true  # the log odds of equal classes under unit noise
    from diptych.choose.select import fitting_temperature

    assert fitting_temperature(5 * posterior, y) == pytest.approx(5, rel=0.1)
    assert softmax(posterior).sum(1) == pytest.approx(1)


def test_new_classes_are_measured_in_one_list_and_in_two() -> None:
    texts = unit_rows(np.eye(6, 16))
    rng = np.random.default_rng(0)
    y = np.arange(120) % 6
    x = unit_rows(texts[y] + 0.2 * rng.normal(size=(120, 16)) + 0.6 * texts[3]).astype(np.float32)  # all look a little like class 3
    support = Support(x=x[:60], y=y[:60], names=tuple("abcdef"), prompts=texts[:, None], scale=20.0)
    cell, data = Cell("m", "zeroshot", 0, 0), Data(support, np.arange(60), (), x[60:], y[60:])
    test = judged(chosen(cell, data), cell, data)["test"]
    assert test["joint"] == pytest.approx(test["accuracy"])  # zero-shot learns nothing from the first half
    assert test["base"] >= test["base_joint"] and test["base"] > test["base_joint"]  # class 3 is new and attracts
    assert "joint" not in judged(chosen(c := Cell("m", "probe", 0, 0), data), c, data)["test"]  # a probe cannot name new classes


# --- heads ---


@pytest.mark.parametrize("way", ["probe", "zeroshot", "majority"])
def test_heads_are_saved_as_they_are(tmp_path: Path, way: str) -> None:
    from diptych.inference.heads import load_head

    support = clusters(60, 3, gap=2.0, seed=0)
    support = Support(x=support.x, y=support.y, names=support.names, prompts=unit_rows(np.eye(3, 16))[:, None])
    head = WAYS[way]().fit(support)
    again = load_head(tmp_path, json.loads(json.dumps(head.save(tmp_path))))
    assert type(again) is type(head) and np.array_equal(again.logits(support.x), head.logits(support.x))


def test_a_probe_of_two_classes_is_the_regression(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    for classes in (2, 3):
        support = clusters(80, classes, gap=1.0, seed=4)
        head = WAYS["probe"](c=3.0).fit(support)
        oracle = LogisticRegression(C=3.0, max_iter=1000).fit(support.x.astype(np.float64), support.y)
        assert softmax(head.logits(support.x)) == pytest.approx(oracle.predict_proba(support.x.astype(np.float64)), abs=1e-5)


def test_a_class_without_pictures_is_never_named_by_a_probe() -> None:
    support = clusters(60, 3, gap=2.0, seed=0)
    support = Support(x=support.x, y=np.where(support.y == 1, 0, support.y), names=support.names)
    head = WAYS["probe"]().fit(support)
    assert isinstance(head, Linear) and not (head.logits(support.x).argmax(1) == 1).any()


# --- ways that train a tower ---


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    small = {"parts.vision.width": 16, "parts.vision.depth": 1, "parts.text.width": 16, "parts.text.depth": 1, "embed_dim": 16}
    run = dp.train("clip", data="scenes:small", budget="10 steps", out=folder / "run", set={**small, "stages.0.batch_size": 8})
    return Path(run.path)


def test_ways_that_train_a_tower_get_their_share_of_the_time(
    tmp_path: Path, clip_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = f"classes:{class_folders(tmp_path / 'data', each=10)}", tmp_path / "o"
    words = ["choose", str(clip_run), "--data", data, "--ways", "probe,lora,coop", "--shots", "4", "--out", str(out)]
    status, text = cli(*words, "--budget", "15s")
    assert status == 0 and "too little time for it" in text.replace("\n", " ")  # at most 15 seconds each
    shares: list[float] = []

    def short(cell: Cell, data: str, run: Path, seconds: float) -> dict[str, object]:
        shares.append(seconds)
        return trained(cell, data, run, 1.0)

    monkeypatch.setattr("diptych.choose.run.trained", short)
    status, text = cli(*words, "--budget", "1000s")
    assert 400 < shares[0] < 500 < shares[1] < 1000  # half of what is left, then all of it
    cells = {c["way"]: c for c in read_json(out / "results.json")["cells"]}
    assert set(cells) == {"majority", "probe", "lora", "coop"}, text
    for way in ("lora", "coop"):
        assert cells[way]["settings"]["hold"] == 0.2 and cells[way]["pictures"] == 12 and cells[way]["held_out"] == 4
        assert len(cells[way]["test"]["correct"]) == read_json(out / "results.json")["data"]["test"]
        run = dp.load(cells[way]["run"])
        assert run.classes == ("blue", "green", "grey", "red")
    assert not any("test" in c for c in cells.values() if "skipped" in c)
    assert len(read_jsonl(out / "test-opened.jsonl")) == 2  # ways were added after the test part was opened, which is logged


def test_adapt_trains_a_tower(tmp_path: Path, clip_run: Path) -> None:
    data = f"classes:{class_folders(tmp_path / 'data', each=10)}"
    words = ["adapt", str(clip_run), "--way", "lora", "--data", data, "--shots", "4", "--out", str(tmp_path / "a")]
    assert cli(*words, "--budget", "5 steps")[0] == 0
    assert dp.load(tmp_path / "a").classify([choose_fixture.picture("red", 3)]).shape == (1, 4)
    assert "works on vectors" in cli("adapt", str(clip_run), "--way", "probe", "--data", data, "--budget", "5s")[1]


def test_a_tower_is_tested_on_other_data_with_a_class_that_it_never_saw(
    tmp_path: Path, clip_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes are matched by name: those of the other data come in another order, and one is new."""
    data = f"classes:{class_folders(tmp_path / 'a', each=10, colours=('red', 'blue', 'grey'))}"
    other = class_folders(tmp_path / "b", each=4, colours=("blue", "red", "green"))
    for folder in other.iterdir():  # other pictures than in training
        for i, path in enumerate(sorted(folder.iterdir())):
            Image.fromarray(choose_fixture.picture(folder.name, 500 + i)).save(path)
    monkeypatch.setattr("diptych.choose.run.trained", lambda cell, data, run, seconds: trained(cell, data, run, 1.0))
    out = tmp_path / "o"
    words = [
        "choose",
        str(clip_run),
        "--data",
        data,
        "--test-data",
        f"classes:{other}",
        "--ways",
        "prototypes,coop",
        "--shots",
        "4",
    ]
    status, text = cli(*words, "--budget", "1000s", "--out", str(out))
    assert status == 0, text
    results = read_json(out / "results.json")
    names = list(results["data"]["classes"])
    assert set(names) == {"red", "blue", "grey", "green"} and results["data"]["test"] == 12
    cell = next(c for c in results["cells"] if c["way"] == "coop")
    run = dp.load(cell["run"])
    shown = [(folder.name, np.asarray(Image.open(p))) for folder in sorted(other.iterdir()) for p in sorted(folder.iterdir())]
    given = [run.classes[i] for i in run.classify([x for _, x in shown]).argmax(1)]
    right = [a == b for a, (b, _) in zip(given, shown, strict=True)]
    assert cell["test"]["accuracy"] == pytest.approx(np.mean(right)) and "green" not in given
    assert sorted(names[i] for i in cell["test"]["named"]) == sorted(given)
    assert any("no training picture: green" in note for note in results["data"]["notes"])
