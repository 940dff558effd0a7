"""Studies end to end on tiny budgets: what they leave, what an interruption costs, what is refused; measures on known models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import cli_fixture
from cli_fixture import Cli
from diptych.config.recipe import load_recipe
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.data.scenes import open_scenes
from diptych.data.source import usable_samples
from diptych.data.sources import open_source
from diptych.data.sources.repeated import Repeated, repeated
from diptych.study import Measured, Runs, load_study, measures, study_names
from diptych.study.derive import derive
from diptych.study.run import check_study

cli = cli_fixture.cli
SMALL = {"stages.0.batch_size": 16, "parts.vision.depth": 1, "parts.text.depth": 1}
STUDY = {
    "title": "Tiny",
    "data": "scenes:small?size=32",
    "budget": "32 samples",
    "seeds": 2,
    "set": SMALL,
    "arms": {"plain": "clip", "repeats": {"recipe": "clip", "derive": {"repeat": {"items": 4, "share": 0.5}}}},
    "measures": {
        "relation": {"task": "controlled?n=6&skills=relation", "metric": "relation"},
        "blind": {"task": "controlled?n=6&skills=relation", "metric": "relation", "control": "blind"},
        "colour": {"task": "controlled?n=4&skills=colour", "metric": "colour"},
        "length": {"function": "own_measures:name_length", "options": {"plus": 2}, "share": False},
        "impossible": {"function": "own_measures:impossible", "arms": ["plain"]},
    },
    "claims": [
        {"claim": "Blind is chance", "measure": "blind", "a": "plain", "b": 0.5, "expect": "same", "by": 0.7},
        {"claim": "Names differ", "measure": "length", "a": "repeats", "b": "plain", "expect": "higher"},
        {"claim": "Nobody knows", "measure": "impossible", "a": "plain", "b": 0, "expect": "higher"},
        {"claim": "Two measures", "measure": "relation", "measure_b": "blind", "a": "plain", "b": "repeats", "expect": "lower"},
    ],
    "figures": [{"title": "Drawn", "function": "own_measures:drawn", "options": {"word": "hello"}}],
    "quick": {"seeds": 1},
}
OWN = """
from diptych.core.errors import DiptychError
from diptych.study import Measured

def name_length(runs, arm, seed, *, plus: int = 0):
    assert runs.model(arm, seed).capabilities and runs.spent(arm, seed)["finished"]
    return Measured(len(arm) + plus, {"a": len(arm) + plus - 0.5, "b": len(arm) + plus + 0.5 + 0.01 * seed})

def impossible(runs, arm, seed):
    raise DiptychError("not for this model")

def drawn(runs, *, word: str):
    return f"<p>{word} {runs.measured('length', 'plain')[0].value:g}</p>"
"""


def one_core() -> None:
    """Two threads that share a busy machine wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def write(folder: Path, **changes: object) -> Path:
    (folder / "own_measures.py").write_text(OWN, encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with own measures that both this process and its jobs can import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)  # one thread, on a machine that may be busy
    sys.modules.pop("own_measures", None)
    return tmp_path


def test_a_study_from_yaml_to_verdicts_and_again(here: Path, cli: Cli) -> None:
    path = write(here)
    outcome = cli("study", path, "--out", "s")
    assert outcome.code == 0, outcome.err
    out = here / "s"
    found = read_json(out / "results.json")
    verdicts = {c["claim"]: c for c in found["claims"]}
    assert verdicts["Blind is chance"]["verdict"] == "holds here" and verdicts["Blind is chance"]["difference"] == 0
    assert verdicts["Names differ"]["difference"] == pytest.approx(2) and verdicts["Names differ"]["seeds"] == 2
    assert verdicts["Nobody knows"]["verdict"] == "cannot tell" and verdicts["Nobody knows"]["reason"] == "not for this model"
    assert verdicts["Two measures"]["verdict"] in ("holds here", "does not hold", "cannot tell")
    assert len(found["measures"]["relation"]["arms"]["plain"]["by_seed"]) == 2
    assert set(found["measures"]["impossible"]["arms"]) == {"plain"}
    spent = read_json(out / "repeats-s1" / "spent.json")
    assert spent["samples"] == 32 and load_recipe(str(out / "repeats-s1" / "recipe.yaml")).data.train.startswith("repeated:")
    records = [p.name for p in sorted((out / "plain-s0").glob("evaluation*"))]
    assert len(records) == 2, "two settings of one task are kept apart"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "hello 7" in page and "holds here" in page and not re.search(r'(?:src|href)="(?:https?:)?//[^"]+\.(?:js|css|png)', page)
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "Blind is chance" in table and "not for this model" in table and "holds here" in outcome.out
    # Again: nothing is trained twice; a new claim and a new measure cost only themselves.
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*-s*/spent.json")}
    measured = {p: p.stat().st_mtime_ns for p in out.glob("*-s*/measures/length.json")}
    more = {**STUDY["measures"], "shorter": {"function": "own_measures:name_length", "share": False}}  # type: ignore[dict-item]
    claims = [{"claim": "New", "measure": "shorter", "a": "repeats", "b": 5, "expect": "same", "by": 9}]
    again = cli("study", write(here, measures=more, claims=claims), "--out", "s", "--json")
    assert again.code == 0 and [c["verdict"] for c in json.loads(again.out)["claims"]] == ["holds here"]
    assert {p: p.stat().st_mtime_ns for p in out.glob("*-s*/spent.json")} == kept
    assert {p: p.stat().st_mtime_ns for p in out.glob("*-s*/measures/length.json")} == measured
    refused = cli("study", path, "--out", "s", "--budget", "33 samples")
    assert refused.code == 1 and "another --out" in refused.err


def test_an_interrupted_study_goes_on_to_the_same_numbers(here: Path) -> None:
    kept = {name: STUDY["measures"][name] for name in ("relation", "length")}  # type: ignore[index]
    path = write(here, arms={"plain": "clip"}, measures=kept, claims=[], figures=[], seeds=1, budget="960 samples")
    environment = {**os.environ, "COLUMNS": "200"}

    def start(out: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "diptych.cli", "study", str(path), "--out", str(here / out)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=environment, preexec_fn=one_core, **streams)  # type: ignore[call-overload]

    process = start("cut")
    deadline = time.monotonic() + 60
    while not (here / "cut" / "plain-s0" / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130 and "continues where it stopped" in words
    assert not read_json(here / "cut" / "plain-s0" / "spent.json")["finished"] and not (here / "cut" / "results.json").exists()
    for out in ("cut", "whole"):
        process = start(out)
        _, words = process.communicate(timeout=180)
        assert process.returncode == 0, words
    cut, whole = (read_json(here / out / "results.json") for out in ("cut", "whole"))
    assert cut["measures"] == whole["measures"]


def test_an_arm_that_fails_costs_only_what_rests_on_it(here: Path, cli: Cli) -> None:
    arms = {
        "plain": "clip",
        "boom": {"recipe": "clip", "set": {"stages.0.lr": 1e30, "stages.0.muon_lr": 1e30, "stages.0.warmup": 0}},
    }
    claims = [{"claim": "Boom", "measure": "relation", "a": "boom", "b": "plain", "expect": "higher"}]
    kept = {"relation": STUDY["measures"]["relation"]}  # type: ignore[index]
    outcome = cli("study", write(here, arms=arms, measures=kept, claims=claims, figures=[], seeds=1), "--out", "s")
    assert outcome.code == 1 and "1 of 2 runs failed" in outcome.err and "not finite" in outcome.err
    found = read_json(here / "s" / "results.json")
    assert found["claims"][0]["verdict"] == "cannot tell" and "the run failed" in found["claims"][0]["reason"]
    assert found["measures"]["relation"]["arms"]["plain"]["value"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arm": {}}, "unknown key 'arm'; did you mean 'arms'?"),
        ({"arms": {"a": {"recpie": "clip"}}}, "did you mean 'recipe'?"),
        ({"arms": {"plain": "clop", "repeats": "clip"}}, r"arms\.plain: there is no recipe 'clop'; did you mean 'c"),
        ({"arms": {"plain": {"recipe": "clip", "set": {"stages.0.lrr": 1}}, "repeats": "clip"}}, "did you mean 'lr'"),
        ({"claims": [{"claim": "", "measure": "relatoin", "a": "plain", "b": 0, "expect": "higher"}]}, "did you mean 'relation'"),
        ({"claims": [{"claim": "", "measure": "relation", "a": "plian", "b": 0, "expect": "higher"}]}, "did you mean 'plain'"),
        ({"claims": [{"claim": "", "measure": "relation", "a": "plain", "b": 0, "expect": "more"}]}, "'higher', 'lower' or 'same'"),
        ({"claims": [{"claim": "", "measure": "relation", "a": "plain", "b": 0, "expect": "same"}]}, "needs by"),
        ({"measures": {"m": {"task": "controlled"}}, "claims": []}, "task and metric go together"),
        ({"measures": {"m": {"task": "controled", "metric": "x"}}, "claims": []}, "did you mean 'controlled'"),
        ({"measures": {"m": {"function": "own_measures:nam_length"}}, "claims": []}, "did you mean 'name_length'"),
        (
            {"measures": {"m": {"function": "own_measures:name_length", "options": {"pluss": 1}}}, "claims": []},
            "did you mean 'plus'",
        ),
        ({"arms": {"plain": {"recipe": "clip", "derive": {"repat": {}}}, "repeats": "clip"}}, "did you mean 'repeat'"),
        ({"arms": {"plain": {"recipe": "clip", "derive": {"repeat": {"itms": 3}}}, "repeats": "clip"}}, "did you mean 'items'"),
        ({"budget": "3 parsecs"}, "budget"),
        ({"seeds": 0}, "seeds"),
        ({"arms": {"a/b": "clip", "plain": "clip"}, "claims": []}, "an arm's name"),
    ],
)
def test_mistakes_are_named_before_anything_runs(changes: dict, words: str, here: Path, cli: Cli) -> None:
    outcome = cli("study", write(here, **changes), "--out", "s")
    assert outcome.code == 1 and re.search(words, outcome.err.replace("\n", " ")), outcome.err
    assert not (here / "s" / "plain-s0").exists()


def test_studies_that_are_not_there_are_refused_and_those_that_are_listed(here: Path, cli: Cli) -> None:
    assert "did you mean 'memorization'" in cli("study", "memorisation").err
    assert "no study at" in cli("study", "nothing.yaml").err
    (here / "bad.yaml").write_text("- 1", encoding="utf-8")
    assert "mapping" in cli("study", "bad.yaml").err
    listed = cli("study", "--list")
    assert listed.code == 0 and all(name in listed.out for name in study_names())


@pytest.mark.parametrize("name", study_names())
def test_each_built_in_study_is_sound(name: str) -> None:
    for quick in (False, True):
        study = load_study(name, quick=quick)
        check_study(study)
        assert study.claims and study.title and study.cite
    assert study.seeds == 1


def test_quick_and_dotted_overrides() -> None:
    study = load_study("memorization", {"arms.masked.recipe": "siglip", "seeds": 2}, quick=True)
    assert study.arms["masked"].recipe == "siglip" and study.seeds == 2 and study.budget.samples < 2000


def test_steps_make_data_once(tmp_path: Path) -> None:
    plan = {"name": "long", "steps": ["text_length", {"keep": {"column": "words", "min": 4, "reason": "short"}}]}
    steps = {"dirty_pool": {"rows": 120}, "curate": {"plan": plan}, "repeat": {"items": 5, "share": 0.25}}
    said: list[str] = []
    address = derive("scenes:full", steps, tmp_path / "data", said.append)
    source = open_source(address)
    assert isinstance(source, Repeated) and 20 < len(source.base) < 120
    captions = [sample.captions[0] for sample in usable_samples(source, 10)]
    assert all(len(caption.split()) >= 4 for caption in captions)
    assert [words.partition(":")[0] for words in said] == ["dirty_pool", "curate", "repeat"]
    assert derive("scenes:full", steps, tmp_path / "data", said.append) == address and len(said) == 3
    changed = {**steps, "repeat": {"items": 6, "share": 0.25}}
    assert derive("scenes:full", changed, tmp_path / "data", said.append) != address and len(said) == 4


def test_balancing_leaves_more_of_what_is_rare(tmp_path: Path) -> None:
    """Concepts of ordinary tables: 80 pictures of one thing, 10 of another."""
    from PIL import Image

    rows = []
    for i in range(90):
        Image.new("RGB", (8, 8), (i, 2 * i, 0)).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "caption": f"a {'common' if i < 80 else 'rare'} thing, number {i}"}))
    (tmp_path / "mine.jsonl").write_text("\n".join(rows), encoding="utf-8")
    address = derive(
        f"jsonl:{tmp_path / 'mine.jsonl'}", {"balance": {"t": 10, "entries": ["common", "rare"]}}, tmp_path / "d", print
    )
    kept = open_source(address)
    common = sum("common" in kept[i].captions[0] for i in range(len(kept)))
    assert len(kept) - common == 10 and 2 <= common <= 22


# --- measures on models whose truth is known ---


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Two arms: one embeds a caption as all that its picture shows, as if it had seen it; the other as what the caption says."""
    base = "scenes:small?size=32&told=1&seed=3"
    source = open_scenes(base)
    names = source.concepts()
    shows: dict[bytes, list[str]] = {}
    for split in ("validation",):
        for i in range(300):
            sample = source.split(split)[i]
            shows[sample.image.tobytes()] = sample.extra["labels"]
    # Numbers 0 to 29 of the training part are repeated; ordinary captions are not in this table.
    remembered = {source[i].captions[0]: source[i].extra["labels"] for i in range(30)}

    def vector(labels: list[str]) -> np.ndarray:
        v = np.array([float(name in labels) for name in names]) + 1e-3
        return v / np.linalg.norm(v)

    def told(text: str) -> list[str]:
        return [name for name in names if name in text or (name[:-2] in text and len(name) > 4)]

    def arm(memory: dict[str, list[str]]) -> FunctionModel:
        return FunctionModel(
            "m",
            embed_image=lambda images: np.stack([vector(shows[i.tobytes()]) for i in images]),
            embed_text=lambda texts: np.stack([vector(memory.get(t) or told(t)) for t in texts]),
        )

    study = {
        "name": "s",
        "data": base,
        "arms": {"target": "clip", "reference": "clip"},
        "measures": {"m": {"function": "diptych.study.measures:deja_vu", "options": {"reference": "reference"}}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    runs = Runs(load_study(str(tmp_path / "s.yaml")), tmp_path)
    for name, part in (("target", "a"), ("reference", "b")):
        (tmp_path / f"{name}-s0").mkdir()
        recipe = load_recipe("clip", {"data.train": repeated(base, 30, 0.5, part)})
        (tmp_path / f"{name}-s0" / "job.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    models = {"target-s0": arm(remembered), "reference-s0": arm({})}
    monkeypatch.setattr(measures, "loaded", lambda path: models[path.name])
    return runs


def test_deja_vu_finds_a_model_that_remembers_and_clears_one_that_does_not(memory: Runs) -> None:
    options = {"public": 300, "neighbours": 2, "reference": "reference"}
    found = measures.deja_vu(memory, "target", 0, of="prg", **options)
    assert found.value > 0.5 and set(found.items.values()) <= {-1.0, 0.0, 1.0} and len(found.items) > 10
    recall = measures.deja_vu(memory, "target", 0, of="recall", **options)
    ours, theirs = np.mean(recall.more["ours"]), np.mean(recall.more["reference"])
    assert recall.value == pytest.approx(ours - theirs) and ours > 0.9 > 0.6 > theirs
    assert measures.deja_vu(memory, "target", 0, of="precision", **options).value > 0.1
    assert measures.deja_vu(memory, "target", 0, of="prg", members="ordinary", **options).value == 0
    assert measures.deja_vu(memory, "reference", 0, of="prg", **options).value == 0, "of its own, it remembers none"


def test_deja_vu_needs_repeats_and_labels(memory: Runs, tmp_path: Path) -> None:
    recipe = load_recipe("clip", {"data.train": "scenes:small?size=32"})
    (memory.path("target", 0) / "job.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    measures._deja_vu.cache_clear()
    with pytest.raises(DiptychError, match="repeats nothing"):
        measures.deja_vu(memory, "target", 0, reference="reference")
    with pytest.raises(DiptychError, match="there is no arm 'referense'; did you mean 'reference'"):
        check_study(load_study("memorization", {"measures.prg.options.reference": "referense"}))


def test_frequency_recovers_a_law_and_finds_none_where_there_is_none(memory: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    counts = {f"c{i}": float(10 ** rng.uniform(0, 4)) for i in range(60)}
    law = {n: 0.1 + 0.2 * np.log10(c) + rng.normal(0, 0.03) for n, c in counts.items()}
    flat = {n: 0.5 + rng.normal(0, 0.03) for n in counts}
    monkeypatch.setattr(measures, "_counts", lambda *_: counts)
    for truth, slope in ((law, 0.2), (flat, 0.0)):
        monkeypatch.setattr(measures, "_accuracy", lambda *_, truth=truth: truth)
        found = measures.frequency(memory, "target", 0, data="")
        assert found.value == pytest.approx(slope, abs=0.02) and np.mean(list(found.items.values())) == pytest.approx(found.value)
        spread = np.std(list(found.items.values()), ddof=1) / np.sqrt(60)
        x = np.log10(list(counts.values()))
        assert spread == pytest.approx(0.03 / (np.std(x) * np.sqrt(60)), rel=0.3), "the items' spread is the slope's standard error"
        r = measures.frequency(memory, "target", 0, of="r", data="").value
        binned = measures.frequency(memory, "target", 0, of="r_binned", data="").value
        assert (r > 0.95 and binned > 0.98) if slope else abs(r) < 0.4
    monkeypatch.setattr(measures, "_counts", lambda *_: dict.fromkeys(counts, 7.0))
    with pytest.raises(DiptychError, match="equally frequent"):
        measures.frequency(memory, "target", 0, data="")


def test_habit_tells_a_model_that_looks_from_one_that_guesses(memory: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    data = "scenes:small?size=32&habit=0.9"
    habits = open_scenes(data).split("test").habit_pairs(20)
    texts = {c: k for pictures, captions in habits.values() for k, c in enumerate(captions)}
    looks = {p.tobytes(): c for pictures, captions in habits.values() for p, c in zip(pictures, captions, strict=True)}

    def sees(images: list, captions: list) -> np.ndarray:
        return np.array([[float(looks.get(i.tobytes()) == c) for c in captions] for i in images])

    def guesses(images: list, captions: list) -> np.ndarray:
        return np.array([[-3.0 * texts[c] for c in captions] for _ in images])

    both = lambda images, captions: sees(images, captions) + guesses(images, captions)  # noqa: E731
    expected = {
        "sees": (sees, {"habitual": 1.0, "contrary": 1.0, "blind": 0.5}, 1.0),
        "guesses": (guesses, {"habitual": 1.0, "contrary": 0.0, "blind": 1.0}, 0.5),
        "both": (both, {"habitual": 1.0, "contrary": 0.0, "blind": 1.0}, 1.0),
    }
    for score, values, corrected in expected.values():
        monkeypatch.setattr(measures, "loaded", lambda path, score=score: FunctionModel("m", score=score))
        measures._habit_scores.cache_clear()
        for of, value in values.items():
            assert measures.habit(memory, "target", 0, of=of, data=data, pairs=20).value == value
        assert measures.habit(memory, "target", 0, of="contrary", data=data, pairs=20, alpha=1.0).value == corrected
    found = measures.habit(memory, "target", 0, data=data, pairs=20)
    assert len(set(found.clusters.values())) == 12, "a concept has one habit, however many of its pictures are asked about"
    with pytest.raises(DiptychError, match="option habit"):
        measures.habit(memory, "target", 0, data="scenes:small", pairs=2)


def test_measured_is_plain_data() -> None:
    assert Measured(0.5).items == {} and Measured(0.5, more={"a": [1]}).more["a"] == [1]
