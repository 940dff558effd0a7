"""Tasks end to end on a source in memory: an oracle, a scorer without opinion, interruptions, strangers' tasks."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from PIL import Image

from diptych.benchmarks.base import Task
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.matching.controlled import Controlled
from diptych.benchmarks.matching.retrieval import LargeRetrieval, Retrieval
from diptych.benchmarks.matching.zeroshot import prompt
from diptych.benchmarks.records import Records, plain
from diptych.benchmarks.run import Summary, evaluate, save_items
from diptych.benchmarks.tasks import DEFAULT, TASKS
from diptych.benchmarks.texts.captions import Captions
from diptych.comparison.paired import compare_runs
from diptych.core.capabilities import IN_WORDS, FunctionModel, in_words
from diptych.core.errors import DiptychError
from diptych.core.files import read_jsonl
from diptych.core.sample import captioned
from evaluation_fixture import Plain, World, constant, oracle, phrase, text_only, truth

SMALL = set(DEFAULT) - {"retrieval-1000"}  # what a source of 24 items can be asked
RIGHT = {"matched_cosine", "modality_gap", "separability", "cider"}  # 1.0 is not what these aim at


@pytest.fixture(scope="module")
def by_oracle() -> Summary:
    return evaluate(oracle(), World())


def test_tasks_satisfy_the_protocol() -> None:
    assert all(isinstance(kind(), Task) and kind().name == name for name, kind in TASKS.items())


def test_oracle_is_right_everywhere(by_oracle: Summary) -> None:
    assert {r.task for r in by_oracle.results} == SMALL
    assert by_oracle.skipped == [{"task": "retrieval-1000", "reason": "needs 1,000 usable items, the source has 24"}]
    assert evaluate(oracle(), World(), [LargeRetrieval(n=24)]).value("retrieval-1000", "image-to-text/recall@1") == 1
    values = {(r.task, r.metric): r.value for r in by_oracle.results if r.metric not in RIGHT}
    wrong = {key: value for key, value in values.items() if value != pytest.approx(1.0)}
    references = {key: value for key, value in wrong.items() if key[0] == "captions"}
    assert wrong == references == {}
    assert by_oracle.value("embedding", "matched_cosine") == pytest.approx(1.0)
    assert by_oracle.value("captions", "cider") > 5


def test_oracle_with_the_wrong_image_falls_to_about_chance(by_oracle: Summary) -> None:
    """Less than a quarter of the way from chance to 1, or below chance."""
    for r in by_oracle.results:
        if r.task == "captions":
            assert r.controls["shuffled"] < (0.8 if r.metric == "rouge_l" else 0.5) * r.value  # all captions share two words
        elif r.chance is not None and r.metric != "separability":
            assert r.controls["shuffled"] <= r.chance + 0.25 * (1 - r.chance), (r.task, r.metric)
            assert r.controls["blind"] <= r.chance + 0.25 * (1 - r.chance), (r.task, r.metric)
        elif r.metric == "matched_cosine":
            assert max(r.controls.values()) < 0.3


def test_no_opinion_is_exactly_chance_in_every_task() -> None:
    found = evaluate(constant(), World())
    judged = [r for r in found.results if r.chance is not None]
    assert {r.task for r in judged} == SMALL - {"captions"}
    for r in judged:
        assert r.value == pytest.approx(r.chance, abs=1e-12), (r.task, r.metric)
        assert all(v == pytest.approx(r.chance, abs=1e-12) for v in r.controls.values()), (r.task, r.metric)
        assert r.ties > 0 or r.metric == "separability" or r.chance == 1.0
        assert r.low < r.value < r.high
    assert {r.metric: r.chance for r in judged if r.task == "retrieval"}["image-to-text/recall@5"] == 5 / 24
    assert {r.metric: r.chance for r in judged if r.task == "controlled"}["colour/group"] == 1 / 6
    assert {r.metric: r.chance for r in judged if r.task == "zeroshot"}["per_class_recall"] == 1 / 8


@pytest.mark.parametrize("k", [2, 3])
def test_whoever_does_not_look_gets_exactly_one_in_k(k: int) -> None:
    found = evaluate(text_only(), World(k=k), ["controlled"])
    for skill in ("colour", "relation"):
        assert found.value("controlled", skill) == pytest.approx(1 / k, abs=1e-12)
        assert found.value("controlled", f"{skill}/text-to-image") == pytest.approx(1 / k, abs=1e-12)


def test_blind_scores_land_on_one_in_k_whatever_the_model(by_oracle: Summary) -> None:
    skills = [r for r in by_oracle.results if r.task == "controlled" and "group" not in r.metric]
    assert len(skills) == 4 and all(r.controls["blind"] == 0.5 for r in skills)


def test_order_of_items_does_not_matter() -> None:
    model, forwards = noisy(), World()
    backwards = World(order=tuple(reversed(range(24))))
    for name in ("retrieval", "embedding"):
        a, b = (evaluate(model, source, [name]) for source in (forwards, backwards))
        assert [r.value for r in a.results] == pytest.approx([r.value for r in b.results], abs=1e-6)


def noisy() -> FunctionModel:
    """Right about half the time."""

    def embed(keys: list[str], seed: int) -> np.ndarray:
        rows = []
        for key in keys:
            shared = np.random.default_rng(list(key.encode()))
            own = np.random.default_rng([seed, *key.encode()])
            rows.append(shared.normal(size=6) + 0.7 * own.normal(size=6))
        return np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)

    return FunctionModel("noisy", embed_image=lambda i: embed([truth(x) for x in i], 1), embed_text=lambda t: embed(list(t), 2))


def test_a_noisy_model_is_in_between() -> None:
    value = evaluate(noisy(), World(), ["retrieval"]).value("retrieval", "image-to-text/recall@1")
    assert 0.2 < value < 0.9


class Swapped(World):
    """The captions of the first two items have changed places."""

    def __getitem__(self, index: int):
        sample = super().__getitem__(index)
        if index < 2:
            return sample.with_(text=captioned([phrase(1 - index)]))
        return sample


def test_swapping_two_captions_costs_exactly_two_items() -> None:
    found = evaluate(oracle(), Swapped(), ["retrieval"])
    assert found.value("retrieval", "image-to-text/recall@1") == pytest.approx(22 / 24)
    assert found.value("retrieval", "text-to-image/recall@1") == pytest.approx(22 / 24)


def test_all_captions_of_an_image() -> None:
    """Two captions each: 48 texts ask, 24 images ask; at random an image has one of its two among the first 5 of 48
    with 1 − C(46, 5) / C(48, 5)."""
    found = {r.metric: r for r in evaluate(constant(), World(), [Retrieval(captions=None)]).results}
    assert found["text-to-image/recall@5"].n == 48 and found["text-to-image/recall@5"].clusters == 24
    assert found["image-to-text/recall@5"].n == 24
    assert found["image-to-text/recall@5"].chance == pytest.approx(1 - (43 * 42) / (48 * 47))
    assert evaluate(oracle(), World(), [Retrieval(captions=None)]).value("retrieval", "text-to-image/recall@1") == 1


def test_scores_that_are_not_numbers_lose_and_are_counted(tmp_path: Path) -> None:
    broken = FunctionModel("broken", score=lambda i, t: np.where(oracle().score(i, t) > 0, np.nan, 0.0))
    found = evaluate(broken, World(), ["retrieval", "controlled"], tmp_path)
    assert found.value("retrieval", "image-to-text/recall@10") == 0
    assert {r.nans for r in found.results if r.task == "retrieval"} == {24}
    assert found.value("controlled", "colour") == 0
    assert "NaN" not in (tmp_path / "records" / "controlled.jsonl").read_text()


def test_what_cannot_be_asked_is_skipped_with_the_reason() -> None:
    blind = FunctionModel("blind", score=constant().score)
    found = {s["task"]: s["reason"] for s in evaluate(blind, Plain()).skipped}
    assert set(found) == set(DEFAULT) - {"retrieval"}
    assert found["captions"] == "the model cannot write a text about an image"
    assert found["controlled"] == "the source has no controlled groups"
    assert "needs two usable items" in evaluate(oracle(), Plain(size=1), ["retrieval"]).skipped[0]["reason"]
    assert "no groups for smell" in evaluate(oracle(), World(), [Controlled(skills=("smell",))]).skipped[0]["reason"]


def test_broken_items_are_passed_over_and_listed(tmp_path: Path) -> None:
    found = evaluate(oracle(), Plain(size=12, broken=(0, 5)), ["retrieval"], tmp_path)
    assert found.results[0].n == 10 and found.results[0].value == 1
    assert [p["item"] for p in read_jsonl(tmp_path / "problems.jsonl")] == ["item0", "item5"]


def test_problems_of_earlier_tasks_stay(tmp_path: Path) -> None:
    def noted() -> list[tuple[str, str]]:
        return [(p["task"], p["item"]) for p in read_jsonl(tmp_path / "problems.jsonl")]

    source = Plain(size=12, broken=(0, 5))
    evaluate(oracle(), source, ["retrieval"], tmp_path, key="k")
    evaluate(oracle(), source, ["captions"], tmp_path, key="k")
    both = [(name, item) for name in ("retrieval", "captions") for item in ("item0", "item5")]
    assert noted() == both
    evaluate(oracle(), source, ["retrieval"], tmp_path, key="k")  # finished before: nothing is read again
    evaluate(oracle(), source, [Captions(max_tokens=5)], tmp_path, key="k")  # done again: noted once
    assert noted() == both
    evaluate(oracle(), Plain(size=12), ["captions"], tmp_path, key="k", overwrite=True)
    assert not (tmp_path / "problems.jsonl").exists()


def test_files_are_as_documented(tmp_path: Path) -> None:
    evaluate(oracle(), World(), out=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {"model", "data", "data_fingerprint", "seconds", "results", "skipped", "notes"}
    fields = "task metric value low high n clusters chance higher_is_better controls ties nans seconds by unparsed band slices"
    assert all(set(r) == set(fields.split()) for r in summary["results"])
    embeddings = np.load(tmp_path / "embeddings.npz")
    assert embeddings["image"].shape == embeddings["text"].shape == (24, 256)
    assert embeddings["image"].dtype == np.float32
    captions = read_jsonl(tmp_path / "captions.jsonl")
    assert captions[3] == {"item": "item3", "generated": phrase(3), "references": [phrase(3), f"{phrase(3)} indeed"]}
    for path in (tmp_path / "records").glob("*.jsonl"):
        task = TASKS[path.stem]()
        stored = [r for r in summary["results"] if r["task"] == path.stem]
        again = plain(task.summarise(read_jsonl(path)))  # every number can be had from the records alone
        assert [{**r, "seconds": 0} for r in stored] == [{**r, "seconds": 0} for r in again]


class Counted:
    """An oracle that counts the images it is asked about, and may break down."""

    def __init__(self, limit: int | None = None):
        self.asked, self.limit = 0, limit

    def generate(self, images, prompt, max_tokens):
        self.asked += sum(truth(i) != "nothing to be seen here" for i in images)
        if self.limit is not None and self.asked > self.limit:
            raise RuntimeError("the power is gone")
        return [truth(i) for i in images]

    @property
    def model(self) -> FunctionModel:
        return FunctionModel("counted", generate=self.generate)


def test_an_interrupted_task_goes_on_where_it_stopped(tmp_path: Path) -> None:
    task = Captions(batch=8)
    with pytest.raises(RuntimeError):
        evaluate(Counted(limit=16).model, World(), [task], tmp_path, key="k")
    path = tmp_path / "records" / "captions.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # the last of 16 lines is cut short
    second = Counted()
    found = evaluate(second.model, World(), [task], tmp_path, key="k")
    assert second.asked == 9
    whole = evaluate(oracle(), World(), [task])
    assert [(r.metric, r.value, r.low, r.controls) for r in found.results] == [
        (r.metric, r.value, r.low, r.controls) for r in whole.results
    ]
    assert len(read_jsonl(path)) == 24


@pytest.mark.parametrize("change", ["nothing", "key", "no key", "data", "settings"])
def test_finished_records_serve_again_only_if_all_is_the_same(tmp_path: Path, change: str) -> None:
    evaluate(Counted().model, World(), [Captions()], tmp_path, key=None if change == "no key" else "k")
    key = {"key": "other", "no key": None}.get(change, "k")
    again = Counted()
    source = World(size=20) if change == "data" else World()
    task = Captions(max_tokens=5 if change == "settings" else 32)
    evaluate(again.model, source, [task], tmp_path, key=key, overwrite=True)
    assert again.asked == (0 if change == "nothing" else len(source))


def test_seeds_are_averaged(tmp_path: Path) -> None:
    folders = [tmp_path / name / "evaluation" for name in ("a-s0", "a-s1", "b-s0")]
    for folder, model in zip(folders, [oracle(), constant(), constant()], strict=True):
        evaluate(model, World(), ["retrieval"], folder)
    found = {r["metric"]: r for r in compare_runs(folders)[0]}
    assert found["text-to-image/recall@1"]["difference"] == pytest.approx((1 + 1 / 24) / 2 - 1 / 24)


def test_tasks_asked_for_one_by_one_stand_in_one_summary(tmp_path: Path) -> None:
    told: list[str] = []
    for name in ("retrieval", "captions"):
        found = evaluate(oracle(), World(), [name], tmp_path, progress=told.append, key="k")
    assert {r.task for r in found.results} == {"retrieval", "captions"}
    assert found.seconds == pytest.approx(sum({r.task: r.seconds for r in found.results}.values()))
    assert told == ["retrieval", "captions", "captions 24/24"]
    found = evaluate(oracle(), World(), ["retrieval"], tmp_path, key="other", overwrite=True)
    assert {r.task for r in found.results} == {"retrieval"}
    assert not (tmp_path / "captions.jsonl").exists()  # another model's


def test_a_world_too_small_is_skipped() -> None:
    class Small(World):
        def retrieval(self, n: int) -> list:
            raise DiptychError("too small a world")

    found = evaluate(oracle(), Small(), ["retrieval", "captions", "controlled"])
    assert [s["reason"] for s in found.skipped] == ["too small a world"] * 2
    assert found.value("controlled", "colour") == 1


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"item": "a"}\n{"item": \n{"item": "c"}\n')
    with pytest.raises(DiptychError, match="line 2"):
        Records(path)


def test_records_are_added_once(tmp_path: Path) -> None:
    records = Records(tmp_path / "r.jsonl")
    records.add([{"item": "a", "value": np.float32(0.1)}, {"item": "b", "value": float("nan")}])
    records.add([{"item": "a", "value": 2}])
    assert read_jsonl(tmp_path / "r.jsonl") == [{"item": "a", "value": 0.1}, {"item": "b", "value": None}] == records.all()


def test_a_task_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").touch()
    (tmp_path / "elsewhere" / "tasks.py").write_text(
        dedent("""
        from dataclasses import dataclass
        from diptych.benchmarks.results import shares

        @dataclass(frozen=True)
        class Longer:
            name: str = "longer"
            needs: tuple[str, ...] = ("score",)

            def items(self, source):
                return [source[i] for i in range(4)]

            def run(self, model, items, records, progress=None):
                for item in items:
                    a, b = model.score([item.image], item.captions)[0]
                    records.add([{"item": item.id, "cluster": item.id, "correct": {"longer": float(b > a)}}])

            def summarise(self, records):
                return shares(self.name, records)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    long = FunctionModel("long", score=lambda images, texts: np.array([[len(t) for t in texts]] * len(images)))
    found = evaluate(long, World(), ["elsewhere.tasks:Longer"])
    assert found.value("longer", "longer") == 1 and found.results[0].chance is None
    with pytest.raises(DiptychError, match="retrieval"):
        evaluate(long, World(), ["retreival"])


def test_paired_tests_between_recipes(tmp_path: Path) -> None:
    folders = [tmp_path / name / "evaluation" for name in ("o-s0", "s-s0", "s-s1", "c-s0")]
    for folder, model in zip(folders, [oracle(), oracle(), oracle(), constant()], strict=True):
        evaluate(model, World(), ["retrieval", "captions", "embedding"], folder)
    rows, _ = compare_runs(folders)
    assert set(rows[0]) == {"task", "metric", "a", "b", "difference", "low", "high", "p", "p_holm"}
    found = {(r["task"], r["metric"], r["a"], r["b"]): r for r in rows}
    same, different = (found["retrieval", "image-to-text/recall@1", "o", b] for b in "sc")
    assert same["difference"] == 0 and same["p"] == same["p_holm"] == 1
    assert different["difference"] == pytest.approx(23 / 24)
    assert different["p"] == 1 / 10_001 and different["p_holm"] == pytest.approx(3 / 10_001)
    assert found["captions", "cider", "o", "c"]["p"] < 0.001


def test_items_for_the_report(tmp_path: Path) -> None:
    save_items(World(), tmp_path, 3)
    rows = read_jsonl(tmp_path / "retrieval.jsonl")
    assert [r["item"] for r in rows] == ["item0", "item1", "item2"]
    stored = np.asarray(Image.open(tmp_path / rows[2]["image"]))
    assert (stored == World()[2].image).all()


@pytest.mark.parametrize("labels", [None, [0, 0, 1, 1, 2], [0, 1] * 10, list(range(7))])
def test_derangement_leaves_none_at_its_place(labels: list[int] | None) -> None:
    names = np.arange(9) if labels is None else np.array(labels)
    order = derangement(len(names), None if labels is None else names)
    assert sorted(order) == list(range(len(names)))
    assert (names[order] != names).all()


def test_derangement_that_cannot_be() -> None:
    assert derangement(1) is None
    assert derangement(3, np.array([0, 0, 1])) is None


def test_blank_and_prompt() -> None:
    assert (blank(World()[0].image) == 128).all() and blank(World()[0].image).shape == (6, 6, 3)
    assert prompt("a photo of a {}", "apple") == "a photo of an apple"
    assert prompt("a {}", "unicorn") == "a unicorn"


def test_settings_of_a_task_stand_in_its_address() -> None:
    from diptych.benchmarks.tasks import task
    from diptych.core.errors import DiptychError

    assert task("controlled?n=7&seed=3") == Controlled(n=7, seed=3)
    with pytest.raises(DiptychError, match="unknown setting 'm'"):
        task("controlled?m=7")
    with pytest.raises(DiptychError, match="'retrieval': n: .*integer.*'many'"):
        task("retrieval?n=many")


def test_every_capability_that_a_task_needs_has_words() -> None:
    """What a model cannot do is said in words, each thing once."""
    for cls in TASKS.values():
        assert {name for need in ([cls.needs] if isinstance(cls.needs, str) else cls.needs) for name in need.split("|")} <= set(
            IN_WORDS
        )
    reason = evaluate(FunctionModel("mute"), World(), ["retrieval-1000"]).skipped[0]["reason"]
    assert reason == (
        "the model cannot score a thousand images with a thousand texts at once, turn an image into a vector or turn a text into "
        "a vector"
    )
    assert in_words(["own|score"]) == "own or score how well a text fits an image" and in_words(["own"]) == "own"


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    """The second one's results would replace the first one's without a word."""
    with pytest.raises(DiptychError, match="two tasks have the name 'retrieval'"):
        evaluate(constant(), World(), ["retrieval?n=10", "controlled?n=2", "retrieval?n=20"], tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()
