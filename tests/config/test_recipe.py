"""Recipes: what is refused, with which words; overrides; kinds from outside the tree."""

from __future__ import annotations

import pytest
import yaml

from diptych.config.budget import Budget, Spent, human, parse_budget
from diptych.config.recipe import load_recipe, recipe_names
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives

CAPTIONS = ["a red fox left of a blue heart", "two green keys"]


def small_model(recipe):
    return build_model(recipe, Tokenizer.train(CAPTIONS, 400, 16), 48)


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_load_and_repeat_themselves(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.about and recipe.cite
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(copy)) == recipe, "the resolved recipe is a recipe, and the same one"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stages.0.lrr=1"], ["clip.yaml", "stages.0.lrr", "did you mean 'lr'"]),
        (["stages.0.lr=fast"], ["stages.0.lr", "number", "fast"]),
        (["data.tokeniser.vocab_size=3"], ["data.tokeniser", "did you mean 'tokenizer'"]),
        (["sise=tiny"], ["sise", "did you mean 'size'"]),
        (["size=huge"], ["size", "tiny", "huge"]),
        (["parts.vison.kind=vit"], ["vison", "did you mean 'vision'"]),
        (["stages.0.train=[visoin]"], ["visoin", "did you mean 'vision'"]),
        (["budget=ten minutes"], ["budget", "10m"]),
        (["budget=-5s"], ["budget"]),
        (["stages.3.lr=1"], ["no entry '3'"]),
        (["nonsense"], ["key=value"]),
    ],
)
def test_mistakes_are_named_with_the_remedy(overrides, words):
    with pytest.raises(DiptychError) as caught:
        load_recipe("clip", overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["parts.vision.kind=vitt"], ["vision part 'vitt'", "did you mean 'vit'"]),
        (["parts.vision.dpeth=3"], ["parts.vision", "dpeth", "did you mean 'depth'"]),
        (["parts.vision.depth=deep"], ["parts.vision.depth", "int", "deep"]),
        (["parts.vision.stem=patch", "parts.vision.patch=20"], ["48", "multiple", "20"]),
        (["parts.decoder.kind=multimodal"], ["parts.decoder", "causal: true"]),
        (["stages.0.objectives.info_nse=1"], ["objective 'info_nse'", "did you mean 'info_nce'"]),
        (["stages.0.objectives.info_nce.temprature=1"], ["temprature", "did you mean 'temperature'"]),
        (["stages.0.objectives.next_token=1"], ["needs 'text.logits': nothing provides", "add a part decoder"]),
        (["stages.0.objectives.matching=1"], ["no part 'fusion'"]),
        (["parts.vision.kind=no_such_package.towers:Mine"], ["cannot import 'no_such_package.towers'"]),
        (["parts.vision.kind=diptych.models.vision.towers:VIT"], ["has no 'VIT'", "did you mean 'ViT'"]),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_training(overrides, words):
    with pytest.raises(DiptychError) as caught:
        recipe = load_recipe("clip", overrides)
        build_objectives(recipe, small_model(recipe))
    for word in words:
        assert word in str(caught.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(DiptychError, match="did you mean 'siglip'"):
        load_recipe("siglp")


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("parts: [", encoding="utf-8")
    with pytest.raises(DiptychError, match="mine.yaml"):
        load_recipe(str(path))
    path.write_text("- a list", encoding="utf-8")
    with pytest.raises(DiptychError, match="mapping"):
        load_recipe(str(path))


def test_overrides_reach_lists_objectives_and_sizes():
    recipe = load_recipe(
        "clip", ["stages.0.lr=5e-4", "stages.main.warmup=7", "stages.0.objectives.info_nce.temperature=0.1", "size=small"]
    )
    assert recipe.stages[0].lr == 5e-4 and recipe.stages[0].warmup == 7
    assert recipe.stages[0].objectives["info_nce"].weight == 1 and recipe.stages[0].objectives["info_nce"].options == {
        "temperature": 0.1
    }
    assert load_recipe("clip", {"stages.0.lr": 5e-4}).stages[0].lr == 5e-4
    sizes = [sum(p.numel() for p in small_model(load_recipe("clip", [f"size={s}"])).parameters()) for s in ("tiny", "small")]
    assert sizes[0] < 2e6 < 10e6 < sizes[1] < 50e6


def test_a_package_outside_the_tree_adds_a_part_and_an_objective(tmp_path, monkeypatch):
    (tmp_path / "outside_package.py").write_text(
        """
import torch
from torch import nn
from diptych.core.batch import Tokens
from diptych.models.part import VisionTower
from diptych.objectives import Objective

class Tower(VisionTower):
    def __init__(self, build, *, width: int = 8):
        super().__init__()
        self.width, self.tokens = width, 1
        self.layer = nn.Linear(3, width)

    def forward(self, pixels, keep=None):
        x = self.layer(pixels.mean((2, 3)))[:, None]
        return Tokens(x, x[:, 0])

class Distance(Objective):
    needs = ("image.embedding", "text.embedding")

    def __init__(self, model, *, power: float = 2.0):
        super().__init__(model)
        self.power = power

    def forward(self, p):
        return (p["image.embedding"] - p["text.embedding"]).norm(dim=-1).pow(self.power).mean()
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = yaml.safe_load(load_recipe("clip").to_yaml())
    tree["parts"]["vision"] = {"kind": "outside_package:Tower", "width": 12}
    tree["stages"][0]["objectives"] = {"distance": {"kind": "outside_package:Distance", "power": 1.5}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    recipe = load_recipe(str(path))
    model = small_model(recipe)
    objectives = build_objectives(recipe, model)
    assert model.parts["vision"].width == 12 and objectives["distance"].power == 1.5
    with pytest.raises(DiptychError, match="powr.*did you mean 'power'"):
        tree["stages"][0]["objectives"]["distance"] = {"kind": "outside_package:Distance", "powr": 1.5}
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        build_objectives(load_recipe(str(path)), model)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("90s", Budget(seconds=90)),
        ("10m", Budget(seconds=600)),
        ("1.5h", Budget(seconds=5400)),
        (30, Budget(seconds=30)),
        ("200k samples", Budget(samples=200_000)),
        ("5M tokens", Budget(tokens=5e6)),
        ("3e13 flops", Budget(flops=3e13)),
        ("30T flops", Budget(flops=3e13)),
        ("512 samples", Budget(samples=512)),
        ("500 steps", Budget(steps=500)),
        ("2k steps", Budget(steps=2000)),
        ({"steps": 1}, Budget(steps=1)),
        ({"seconds": 60, "flops": 1e12}, Budget(seconds=60, flops=1e12)),
    ],
)
def test_budgets_are_read(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "10 bananas", "m", "0s", "1 2 samples", "nan"])
def test_budgets_that_are_none(text):
    with pytest.raises(DiptychError, match="budget"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (float("nan"), "positive and finite"),
        (float("inf"), "positive and finite"),
        ("1e400s", "positive and finite"),
        ({"samples": float("nan"), "seconds": 5}, "positive and finite"),
        ({"samples": [1]}, r"samples: expected a number, got \[1\]"),
        ({"seconds": "10m"}, "seconds: expected a number, got '10m'"),
        ({"flops": True}, "flops: expected a number"),
        ({1: 2, "minutes": 3}, "unknown unit '1'"),
    ],
)
def test_budgets_of_wrong_types_or_without_end(given, words):
    with pytest.raises(ValueError, match=words):
        Budget.parse(given)
    with pytest.raises(DiptychError, match=rf"budget.*{words}"):
        load_recipe("clip", {"budget": given})


def test_the_first_limit_ends_the_run():
    budget = Budget(seconds=100, samples=1000)
    assert Spent(seconds=20, samples=900).share(budget) == 0.9
    assert human(1_234_567) == "1.23M" and human(12) == "12"
