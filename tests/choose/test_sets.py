"""Selection of training sets: which arms are made, what is kept, and what is written; runs are imitated by records."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from diptych.choose.sets.plan import Selection, achieved
from diptych.choose.sets.run import select_sets
from diptych.choose.sets.table import verdict
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source

SETS = {"plain": "scenes:small?ask=2&length=100", "good": "instruct:scenes:small", "useless": "scenes:small?ask=1&length=900",
        "harmful": "scenes:medium?ask=1&length=50"}  # fmt: skip
GAIN = {"plain": 0.0, "good": 0.25, "useless": 0.0, "harmful": -0.25}
TASKS = ["instruct-count?n=100", "instruct-yes-no"]


def selection(tmp_path, sets=SETS, **more):
    return Selection("llava-instruct@mini", dict(sets), "scenes:small?split=test", TASKS, "1T flops", out=tmp_path / "out", **more)


class Imitated:
    """Writes the records of runs that are right with a chance that depends on their sets."""

    def __init__(self):
        self.made = []

    def __call__(self, chosen, arms):
        for arm in arms:
            for seed in range(chosen.seeds):
                folder = chosen.folder(arm, seed)
                if folder.exists():
                    continue
                self.made.append((arm, seed))
                chance = 0.5 + sum(GAIN[chosen.names[k - 1]] for k in arm if k)
                rng = np.random.default_rng([seed, *arm])
                for task, n in (("instruct-count", 100), ("instruct-yes-no", 300)):
                    path = folder / "evaluation" / "records" / f"{task}.jsonl"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text("".join(json.dumps(record(task, i, rng.random() < chance)) + "\n" for i in range(n)))


def record(task, i, right):
    count = task == "instruct-count"
    said = ("1 left + 1 right = 2" if right else "3") if count else "yes" if right else "no"
    truth = {"total": 2, "parts": [1, 1]} if count else {}
    answers = ["1 left + 1 right = 2" if count else "yes"]
    both = {"answer": said, "blind_answer": "", "shuffled_answer": ""}
    return {
        "item": f"{task}/{i}",
        "cluster": f"{i // 2}",
        "slices": {},
        "question": "?",
        "answers": answers,
        "truth": truth,
        **both,
    }


def test_what_helps_is_kept_and_what_does_not_is_not(tmp_path):
    made = Imitated()
    result = select_sets(selection(tmp_path), made)
    assert [row["verdict"] for row in result["add"]["steps"]] == ["helps", "no difference shown", "costs"]
    assert result["add"]["kept"] == ["plain", "good"]
    assert [row["arm"] for row in result["add"]["steps"]] == [[1, 2], [1, 2, 3], [1, 2, 4]]
    left = {row["set"]: row["verdict"] for row in result["leave_one_out"]["steps"]}
    assert left["good"] == "helps" and left["harmful"] == "costs" and result["leave_one_out"]["kept"] == ["good"]
    assert len(set(made.made)) == len(made.made), "no run twice"
    arms = {arm for arm, _ in made.made}
    assert arms == {(1,), (1, 2), (1, 2, 3), (1, 2, 4), (1, 2, 3, 4), (2, 3, 4), (1, 3, 4)}
    written = (tmp_path / "out" / "table.md").read_text()
    assert "leaving it out costs: kept" in written and "| harmful |" in written and verdict(result) in written
    assert "Both searches agree on good." in verdict(result)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["add"]["kept"] == ["plain", "good"]


def test_differences_are_those_of_a_plain_mean_in_which_tasks_count_alike(tmp_path):
    chosen = selection(tmp_path, ways=("leave-one-out",))
    result = select_sets(chosen, Imitated())
    row = result["leave_one_out"]["steps"][1]

    def mean_of(arm):
        values = []
        for seed in range(3):
            folder = chosen.folder(tuple(arm), seed) / "evaluation" / "records"
            for task in ("instruct-count", "instruct-yes-no"):
                rows = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]
                values.append(sum(r["answer"] == r["answers"][0] for r in rows) / len(rows))
        return sum(values) / len(values)

    assert row["score"]["difference"] == pytest.approx(mean_of(row["arm"]) - mean_of(row["against"]))
    assert row["score"]["low"] < row["score"]["difference"] < row["score"]["high"]
    assert set(row["tasks"]) == {"instruct-count", "instruct-yes-no"}
    assert result["arms"]["plain + useless + harmful"]["all"] == pytest.approx(mean_of(row["against"]))
    credits = achieved(chosen, chosen.whole())[0]["all", "score"]
    assert len(credits) == 400 and sum(c for c, _ in credits.values()) / 400 == pytest.approx(
        result["arms"]["plain + good + useless + harmful"]["all"], abs=0.1
    )


def test_it_continues_and_takes_more_sets_and_seeds(tmp_path):
    made = Imitated()
    few = dict(list(SETS.items())[:2])
    select_sets(selection(tmp_path, few, seeds=1, ways=("add",)), made)
    first = list(made.made)
    select_sets(selection(tmp_path, few, seeds=1, ways=("add",)), made)
    assert made.made == first == [((1,), 0), ((1, 2), 0)]
    select_sets(selection(tmp_path, seeds=2, ways=("add",)), made)
    assert ((1,), 1) in made.made and len(set(made.made)) == len(made.made)
    with pytest.raises(DiptychError, match="budget = '1T flops'"):
        select_sets(Selection(**{**vars(selection(tmp_path)), "budget": "2T flops"}), made)
    with pytest.raises(DiptychError, match="among other sets"):
        select_sets(selection(tmp_path, dict(reversed(SETS.items()))), made)


def test_arms_are_mixtures_of_equal_weights_or_by_size(tmp_path):
    chosen = selection(tmp_path, base="scenes:full?length=400", rule="T=2;")
    assert chosen.first() == (0,) and chosen.whole() == (0, 1, 2, 3, 4) and chosen.called((0, 3)) == "base + useless"
    assert open_source(chosen.address((0, 3))).weights == pytest.approx([20, 30])
    assert chosen.address((0,)) == "scenes:full?length=400"
    plain = selection(tmp_path)
    assert open_source(plain.address((1, 2))).weights == [1, 1]
    assert all(plain.folder(a, 0) != plain.folder(b, 0) for a, b in pairwise([(1,), (1, 2), (1, 2, 3)]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sets": {"a": "scenes:small"}}, "1 set"),
        ({"budget": "3m"}, "not in operations"),
        ({"ways": ("adding",)}, "no way 'adding'"),
        ({"rule": "cap=2"}, "begin with T=2;"),
        ({"sets": {"a": "scenes:small", "b": "mix:1*scenes:small"}}, "is a mixture"),
        ({"tasks": ["nothing"]}, "nothing"),
    ],
)
def test_unfair_or_wrong_settings_are_refused_before_any_run(tmp_path, more, said):
    with pytest.raises(DiptychError, match=said):
        select_sets(Selection(**{**vars(selection(tmp_path)), **more}), Imitated())
