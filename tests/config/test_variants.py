"""Variants: NAME@VARIANT is a recipe with the settings that its file lists under that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.config.recipe import load_recipe, recipe_names, recipe_variants
from diptych.config.variants import split_name
from diptych.core.errors import DiptychError

TUNED = """
variants:
  tuned:
    about: learns more in a minute
    set: {stages.0.objectives.info_nce.temperature: 0.2, stages.0.lr: 5e-4, parts.vision.pool: mean}
"""


def mine(tmp_path: Path, variants: str = TUNED) -> str:
    path = tmp_path / "mine.yaml"
    kept = [line for line in (load_recipe("clip").to_yaml()).splitlines() if not line.startswith(("format", "variants"))]
    path.write_text("\n".join(kept) + variants)
    return str(path)


def test_a_variant_changes_what_it_lists_and_nothing_else(tmp_path: Path) -> None:
    path = mine(tmp_path)
    plain, tuned = load_recipe(path), load_recipe(f"{path}@tuned")
    assert tuned.name == f"{plain.name}@tuned"
    assert tuned.stages[0].lr == 5e-4 and plain.stages[0].lr == 1e-3
    assert tuned.parts["vision"].options["pool"] == "mean"
    assert tuned.stages[0].objectives["info_nce"].options["temperature"] == 0.2
    by_hand = load_recipe(
        path,
        {"name": tuned.name, "stages.0.lr": 5e-4, "parts.vision.pool": "mean", "stages.0.objectives.info_nce.temperature": 0.2},
    )
    assert tuned == by_hand


def test_overrides_come_after_the_variant(tmp_path: Path) -> None:
    assert load_recipe(f"{mine(tmp_path)}@tuned", ["stages.0.lr=0.25"]).stages[0].lr == 0.25


def test_a_saved_variant_is_a_recipe_of_its_own(tmp_path: Path) -> None:
    tuned = load_recipe(f"{mine(tmp_path)}@tuned")
    run = tmp_path / "clip@tuned-s0"
    run.mkdir()
    (run / "recipe.yaml").write_text(tuned.to_yaml())
    assert load_recipe(str(run)) == tuned and load_recipe(str(run / "recipe.yaml")) == tuned


@pytest.mark.parametrize(
    ("name", "variants", "words"),
    [
        ("@tunde", TUNED, "no variant 'tunde'.*did you mean 'tuned'.*it has: tuned"),
        ("@small", "\n", "no variant 'small'.*it has none"),
        ("", "\nvariants: {tuned: {set: {seed: 1}}}", "missing key 'variants.tuned.about'"),
        ("", "\nvariants: {tuned: {about: why, sett: {seed: 1}}}", "unknown key 'variants.tuned.sett'"),
        ("", "\nvariants: {Tuned@2: {about: why, set: {seed: 1}}}", "Tuned@2"),
        ("@tuned", "\nvariants: {tuned: {about: why, set: {sede: 1}}}", "unknown key 'sede'.*did you mean 'seed'"),
        ("@tuned", "\nvariants: {tuned: {about: why, set: {stages.7.lr: 1}}}", "no entry '7'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, variants: str, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        load_recipe(mine(tmp_path, variants) + name)


def test_an_unknown_recipe_with_a_variant_is_named() -> None:
    with pytest.raises(DiptychError, match="no recipe 'clpi'.*did you mean 'clip'"):
        load_recipe("clpi@tuned")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("clip", ("clip", "")),
        ("clip@small", ("clip", "small")),
        ("a@b/clip.yaml", ("a@b/clip.yaml", "")),
        ("a@b/clip.yaml@c", ("a@b/clip.yaml", "c")),
        ("me@place.yaml", ("me@place.yaml", "")),
        ("@x", ("@x", "")),
    ],
)
def test_names(name: str, split: tuple[str, str]) -> None:
    assert split_name(name) == split


@pytest.mark.parametrize("name", sorted(recipe_variants()) or [None])
def test_every_built_in_variant_loads_and_differs(name: str | None) -> None:
    if name is None:
        pytest.skip("no built-in variants")
    base, _ = split_name(name)
    recipe, plain = load_recipe(name), load_recipe(base)
    assert base in recipe_names() and recipe.name == name
    assert recipe.model_copy(update={"name": base}) != plain
