"""Recipes, plans and studies are named, overridden and checked in the same way."""

from __future__ import annotations

import pytest
import yaml

from diptych.config.overrides import parse_overrides, set_dotted
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.curation.plan import load_plan
from diptych.study.schema import load_study

LOADERS = {"recipe": (load_recipe, "clip"), "plan": (load_plan, "strict"), "study": (load_study, "memorization")}


@pytest.fixture(params=LOADERS)
def kind(request):
    return request.param, *LOADERS[request.param]


def test_an_unknown_key_is_refused_with_file_and_nearest_key(kind, tmp_path):
    _, load, name = kind
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(load(name).model_dump(mode="json") | {"abuot": "x"}), encoding="utf-8")
    with pytest.raises(DiptychError, match=r"mine\.yaml: unknown key 'abuot'; did you mean 'about'"):
        load(str(path))
    with pytest.raises(DiptychError, match=rf"{name}\.yaml: about: Input should be a valid string; got \[1\]"):
        load(name, ["about=[1]"])


def test_an_unknown_name_gets_the_nearest(kind, tmp_path):
    what, load, name = kind
    with pytest.raises(DiptychError, match=f"there is no {what} '{name[:-1]}'; did you mean '{name}'.*path ending in .yaml"):
        load(name[:-1])
    with pytest.raises(DiptychError, match=f"no {what} at '.*none.yaml'"):
        load(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a list")
    with pytest.raises(DiptychError, match=f"a {what} is a mapping of keys, got list"):
        load(str(tmp_path / "list.yaml"))


def test_overrides_are_the_same_for_all(kind):
    _, load, name = kind
    assert load(name, ["about=short"]).about == load(name, {"about": "short"}).about == "short"
    with pytest.raises(DiptychError, match="expected key=value"):
        load(name, ["about"])
    with pytest.raises(DiptychError, match="not valid YAML"):
        load(name, ["about={"])
    with pytest.raises(DiptychError, match="name is '.*', which has no keys; set name itself"):
        load(name, ["name.first=a"])


def test_a_shorthand_is_spelled_out_by_an_override():
    tree = {"arms": {"plain": "clip"}, "stages": [{"objectives": {"info_nce": 1}}]}
    set_dotted(tree, "arms.plain.data", "scenes:small", {"arms": "recipe"})
    set_dotted(tree, "stages.main.objectives.info_nce.temperature", 0.1, {"objectives": "weight"})
    assert tree["arms"] == {"plain": {"recipe": "clip", "data": "scenes:small"}}
    assert tree["stages"] == [{"objectives": {"info_nce": {"weight": 1, "temperature": 0.1}}}]


def test_a_star_is_every_entry_of_a_list():
    """A recipe of several stages is changed in all of them, each with a value of its own."""
    tree = {"stages": [{"lr": 1, "objectives": {"a": 1}}, {"name": "two"}], "x": []}
    set_dotted(tree, "stages.*.objectives.a.options", {"k": [1]}, {"objectives": "weight"})
    set_dotted(tree, "stages.*.lr", 3)
    first, second = (stage["objectives"]["a"] for stage in tree["stages"])
    assert first == {"weight": 1, "options": {"k": [1]}} and second == {"options": {"k": [1]}}
    assert first["options"]["k"] is not second["options"]["k"] and [s["lr"] for s in tree["stages"]] == [3, 3]
    with pytest.raises(DiptychError, match=r"no entry '\*' in a list of 0"):
        set_dotted(tree, "x.*.lr", 3)
    recipe = load_recipe("prior", ["stages.*.batch_size=8", "stages.1.batch_size=4"])
    assert len(recipe.stages) > 1 and [s.batch_size for s in recipe.stages] == [8, 4, *[8] * (len(recipe.stages) - 2)]
    with pytest.raises(DiptychError, match="did you mean 'batch_size'"):
        load_recipe("prior", ["stages.*.batch_sise=8"])


def test_steps_are_reached_by_operator_by_name_and_by_place():
    tree = {"steps": ["text_length", {"embed": {"as": "ours"}}, {"keep": {"column": "words"}}]}
    for key, value in parse_overrides(["steps.text_length.of=kept", "steps.ours.model=runs/a", "steps.2.keep.min=3e0"]).items():
        set_dotted(tree, key, value)
    assert tree["steps"] == [
        {"text_length": {"of": "kept"}},
        {"embed": {"as": "ours", "model": "runs/a"}},
        {"keep": {"column": "words", "min": 3.0}},
    ]


def test_plain_data_is_left_as_it_is():
    plan = {"name": "p", "steps": [{"text_length": {}}]}
    load_plan(plan, ["steps.text_length.of=kept"])
    assert plan["steps"] == [{"text_length": {}}]
