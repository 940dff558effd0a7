"""Honest judging of trained models: who cannot know lands on chance, who is lied to falls, and pairs are worth what a matrix is."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch

import cli_fixture
from cli_fixture import SMALL, Cli, make_photos
from diptych.benchmarks.controls import constant
from diptych.benchmarks.matching.controlled import Controlled
from diptych.benchmarks.matching.retrieval import LargeRetrieval, Retrieval
from diptych.benchmarks.matching.zeroshot import ZeroShot
from diptych.benchmarks.probes.embedding import Embedding
from diptych.benchmarks.records import Result
from diptych.benchmarks.run import evaluate
from diptych.config.recipe import load_recipe
from diptych.core.capabilities import FunctionModel
from diptych.core.files import read_json, read_jsonl
from diptych.data.sources import open_source
from diptych.inference.run import TrainedModel
from diptych.training.loop import Trainer, train

cli = cli_fixture.cli
SHALLOW = ["parts.vision.depth=1", "parts.text.depth=1"]
RECIPES = {
    "clip": SHALLOW,
    "coca": [*SHALLOW, "parts.decoder.depth=1"],
    "maskvlm": [*SHALLOW, "parts.fusion.depth=1"],
    "llava": ["parts.vision.kind=vit", "parts.vision.depth=1", "parts.lm.kind=random"],
}
# 96 singles are 8 of each of the 12 concepts of scenes:small: whoever always names the same is right in exactly 1 of 12
TASKS = [Retrieval(n=30), LargeRetrieval(n=40), ZeroShot(n=96), Controlled(n=8), Embedding(n=30)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few steps of each recipe: enough to have opinions, not enough to be right."""
    root = tmp_path_factory.mktemp("runs")
    common = ["data.train=scenes:small", "stages.0.batch_size=16", "stages.0.warmup=2", "budget=64 samples"]
    for name, options in RECIPES.items():
        train(load_recipe(name, [*common, *options]), root / name)
    return {name: root / name for name in RECIPES}


@pytest.fixture(scope="module")
def test_part():
    return open_source("scenes:small").split("test")


def at_chance(result: Result) -> bool:
    return result.chance is None or result.value == pytest.approx(result.chance, abs=1e-9)


# --- who cannot know ---


def test_a_scorer_without_opinion_is_exactly_at_chance_everywhere(test_part) -> None:
    found = evaluate(constant(), test_part, TASKS)
    assert {r.task for r in found.results} == {"retrieval", "zeroshot", "controlled"}
    assert len({r.metric for r in found.results if r.task == "controlled"}) == 24, "eight skills, three ways to count"
    assert [f"{r.task}/{r.metric}: {r.value}" for r in found.results if not at_chance(r)] == []
    chance = {r.metric: r.chance for r in found.results}
    known = {f"{way}/recall@{k}": k / 30 for way in ("image-to-text", "text-to-image") for k in (1, 5, 10)}
    known |= {"top1": 1 / 12, "top5": 5 / 12, "binding": 1 / 2, "binding/text-to-image": 1 / 2, "binding/group": 1 / 6}
    assert {metric: chance[metric] for metric in known} == pytest.approx(known), "by arithmetic, not by the code that is judged"


@pytest.mark.parametrize("name", RECIPES)
def test_a_zeroed_model_is_at_chance_in_every_test(runs: dict[str, Path], test_part, name: str) -> None:
    model = TrainedModel.load(runs[name], "cpu")
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.zero_()
        for parameter in model.objectives.parameters():
            parameter.zero_()
    found = evaluate(model, test_part, TASKS)
    judged = [r for r in found.results if r.chance is not None and r.metric != "separability"]
    # A likelihood without weights still knows how long a caption is. That decides groups of captions of different length
    # alike for every image: the group is then never wholly right, which is below chance, not above.
    groups = [r for r in judged if r.metric.endswith("/group")]
    assert all(r.value <= r.chance + 1e-9 for r in groups)
    assert [f"{r.task}/{r.metric}: {r.value} for {r.chance}" for r in judged if r not in groups and not at_chance(r)] == []
    assert {"retrieval", "zeroshot", "controlled"} <= {r.task for r in judged}


@pytest.mark.parametrize("name", RECIPES)
def test_the_blind_control_of_every_skill_is_exactly_a_half(runs: dict[str, Path], test_part, name: str, tmp_path: Path) -> None:
    found = evaluate(TrainedModel.load(runs[name], "cpu"), test_part, [Controlled(n=8)], tmp_path)
    skills = {r.metric: r.controls["blind"] for r in found.results if not r.metric.endswith("/group")}
    assert len(skills) == 16 and set(skills.values()) == {0.5}
    scores = [np.array(r["scores"]) for r in read_jsonl(tmp_path / "records" / "controlled.jsonl")]
    assert np.mean([not np.array_equal(s[0], s[1]) for s in scores]) > 0.9, (
        "the model itself looks: there was something to take away"
    )


# --- who is lied to ---


class Lied:
    """The data with the captions of neighbours exchanged, for a share of the items."""

    def __init__(self, source, share: float):
        self.source, self.share = source, share
        self.address, self.problems = source.address, []

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int):
        sample = self.source[index]
        if index % 10 < 10 * self.share:
            return sample.with_(text=self.source[index ^ 1].fields["text"])
        return sample

    def fingerprint(self) -> str:
        return f"lied {self.share}"

    def split(self, name: str):
        return self


def knower(source, n: int) -> FunctionModel:
    """Knows the first n pictures by heart."""
    said = {source[i].image.tobytes(): set(source[i].captions) for i in range(n)}
    return FunctionModel(
        "knower", score=lambda images, texts: np.array([[float(t in said.get(i.tobytes(), ())) for t in texts] for i in images])
    )


def test_exchanged_captions_lower_the_numbers_of_who_knows_by_their_share(tmp_path: Path) -> None:
    photos = open_source(make_photos(tmp_path, 40))
    values = [
        evaluate(knower(photos, 40), Lied(photos, share), [Retrieval(n=40)]).value("retrieval", "text-to-image/recall@1")
        for share in (0, 0.2, 0.6, 1)
    ]
    assert values == pytest.approx([1, 0.8, 0.4, 0])


# --- one score, however asked ---


@pytest.mark.parametrize("name", RECIPES)
def test_pairs_are_scored_as_the_matrix_is(runs: dict[str, Path], test_part, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import diptych.inference.run

    model = TrainedModel.load(runs[name], "cpu")
    model.autocast = False
    samples = [test_part[i] for i in range(7)]
    images, texts = [s.image for s in samples], [s.captions[0] for s in samples[:5]]
    matrix = model.score(images, texts)
    assert matrix.shape == (7, 5) and np.isfinite(matrix).all() and matrix.std() > 0
    pairs = np.array([(i, j) for i in range(7) for j in range(5)])[np.random.default_rng(0).permutation(35)]
    np.testing.assert_allclose(model.score(images, texts, pairs), matrix[pairs[:, 0], pairs[:, 1]], atol=2e-3, rtol=1e-4)
    monkeypatch.setattr(diptych.inference.run, "CHUNK", 3)
    monkeypatch.setattr(diptych.inference.run, "PAIRS", 4)
    np.testing.assert_allclose(model.score(images, texts), matrix, atol=2e-3, rtol=1e-4, err_msg="in small blocks")
    alone = [model.score([images[i]], [texts[j]])[0, 0] for i, j in pairs[:6]]
    np.testing.assert_allclose(alone, matrix[tuple(pairs[:6].T)], atol=2e-3, rtol=1e-4, err_msg="whatever else is in the batch")


@pytest.mark.parametrize("name", RECIPES)
def test_a_loaded_run_is_the_model_that_was_trained(test_part, tmp_path: Path, name: str) -> None:
    options = ["data.train=scenes:small", "stages.0.batch_size=8", "budget=16 samples", "precision=fp32", *RECIPES[name]]
    trainer = Trainer(load_recipe(name, options), tmp_path / name)
    trainer.run()
    setup = trainer.setup
    trained = TrainedModel(name, setup.recipe, setup.model, setup.objectives, setup.device)
    loaded = TrainedModel.load(tmp_path / name, "cpu", averaged=False)
    images, texts = [test_part[i].image for i in range(3)], [test_part[i].captions[0] for i in range(4)]
    np.testing.assert_allclose(loaded.score(images, texts), trained.score(images, texts), atol=1e-4)


# --- whatever comes from elsewhere ---


def test_a_strangers_task_and_source_through_the_command_line(
    runs: dict[str, Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "__init__.py").touch()
    (tmp_path / "stranger" / "grey.py").write_text(
        dedent("""
        from dataclasses import dataclass

        import numpy as np

        from diptych.core.sample import Sample, captioned
        from diptych.benchmarks.results import shares

        class Greys:
            def __init__(self, rest, *, size: int = 20):
                self.address, self.problems, self.rest, self.size = f"greys:{rest}", [], rest, size

            def __len__(self):
                return 24

            def __getitem__(self, i):
                image = np.full((self.size, self.size, 3), i * 10, dtype=np.uint8)
                return Sample(f"{self.rest}{i}", image=image, text=captioned([f"grey of {i}"]))

            def fingerprint(self):
                return "greys"

            def split(self, name):
                return self

        @dataclass(frozen=True)
        class Finite:
            name: str = "finite"
            needs: tuple[str, ...] = ("score",)

            def items(self, source):
                return [source[i] for i in range(6)]

            def run(self, model, items, records, progress=None):
                for item in items:
                    score = model.score([item.image], item.captions)[0, 0]
                    records.add([{"item": item.id, "cluster": item.id, "correct": {"finite": float(np.isfinite(score))}}])

            def summarise(self, records):
                return shares(self.name, records)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    address = "stranger.grey:Greys:shade-?size=30"
    asked = ["--data", address, "--tasks", "stranger.grey:Finite,retrieval", "--out", "judged"]
    outcome = cli("evaluate", runs["clip"], *asked)
    assert outcome.code == 0, outcome.err
    results = {(r["task"], r["metric"]): r for r in read_json(tmp_path / "judged" / "summary.json")["results"]}
    assert results["finite", "finite"]["value"] == 1 and results["finite", "finite"]["n"] == 6
    assert results["retrieval", "text-to-image/recall@1"]["n"] == 24
    assert "shade-0" in (tmp_path / "judged" / "records" / "finite.jsonl").read_text()
    assert cli("train", "clip", "--data", address, "--budget", "16 samples", "--out", "trained", *SMALL).code == 0
    assert cli("data", "inspect", address).code == 0
    wrong = cli("evaluate", runs["clip"], "--data", "stranger.grey:Grays:x")
    assert wrong.code == 1 and "did you mean 'Greys'" in wrong.err
    wrong = cli("evaluate", runs["clip"], "--tasks", "stranger.grey:Finit")
    assert wrong.code == 1 and "did you mean 'Finite'" in wrong.err
    assert (
        "unknown option 'sise'"
        in cli("data", "inspect", "stranger.grey:Greys:x?sise=3").err + cli("data", "show", address + "&sise=1").err
    )
