"""Relative paths of weights in the recipe that a run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.models.pretrained.hub import fetch


def test_paths_of_weights_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tower").mkdir()
    (tmp_path / "runs/first").mkdir(parents=True)
    recipe = load_recipe(
        "clip",
        {
            "parts.vision": {"kind": "hf", "from": "hf:tower", "frozen": True},
            "parts.text": {"kind": "hf", "from": "hf:someone/a-model"},
            "teachers": {"a": {"from": "runs/first"}, "b": {"from": "hf:tower"}, "c": {"decay": 0.9}},
            "weights": "runs/first?parts=vision",
        },
    )
    kept = recipe.anchored()
    assert kept.parts["vision"].options["from"] == f"hf:{tmp_path}/tower"
    assert kept.parts["text"].options["from"] == "hf:someone/a-model"
    assert {name: t.from_ for name, t in kept.teachers.items()} == {
        "a": f"{tmp_path}/runs/first",
        "b": f"hf:{tmp_path}/tower",
        "c": None,
    }
    assert kept.weights == f"{tmp_path}/runs/first?parts=vision"
    assert kept.anchored() == kept and load_recipe("clip").anchored() == load_recipe("clip")


def test_a_name_that_may_be_a_directory_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        @classmethod
        def from_pretrained(cls, name: str) -> None:
            raise OSError("no connection")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiptychError, match=f"no directory 'tower' in {tmp_path}: .*the whole path.*hf download tower"):
        fetch(Model, "tower")
