"""Plans: what is wrong with one is said before anything runs, with the place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation_fixture import plan
from diptych.core.errors import DiptychError
from diptych.curation.plan import load_plan, plan_names, steps_of
from diptych.curation.run import curate


@pytest.mark.parametrize("name", plan_names())
def test_presets_hold_together(name):
    preset = load_plan(name)
    assert preset.name == name and preset.about
    steps = steps_of(preset)
    assert any(s.rule for s in steps)
    labels = [s.label for s in steps if s.rule]
    assert len(labels) == len(set(labels))
    assert load_plan(preset.model_dump(mode="json")) == preset


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["text_lenght"], r"steps\.0: there is no operator 'text_lenght'; did you mean 'text_length'"),
        ([{"text_length": {"colour": 3}}], r"steps.0.text_length: unknown option 'colour'"),
        ([{"curation_fixture:Mean": {"wait": "long"}}], "wait: expected float, got 'long'"),
        ([{"curation_fixture:Loud": {}}], "missing option 'log'"),
        (
            ["text_length", {"keep": {"column": "word", "min": 3}}],
            "steps.1: no step before this one makes a column 'word'; did you mean 'words'",
        ),
        ([{"keep": {"column": "words", "min": 3}}, "text_length"], "no step before this one makes a column 'words'"),
        (["text_length", "text_length"], "'text_length' comes twice; name one with `as: NAME`"),
        ([{"keep": {"column": "text", "mim": 3}}], "unknown key 'mim'; did you mean 'min'"),
        ([{"text_length": {}, "image_size": {}}], "expected one operator or `keep` in each step, got text_length, image_size"),
        ([{"curation_fixture:plan": {}}], "is not an operator"),
        ([{"text_length": {"of": "some"}}], "of: expected kept or all, got 'some'"),
    ],
)
def test_mistakes_are_named(steps, said):
    with pytest.raises(DiptychError, match=said):
        load_plan(plan(*steps))


def test_unknown_keys_get_the_nearest(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("abuot: x\npool: {shards: 3}\nsteps: [text_length]\n")
    with pytest.raises(DiptychError) as error:
        load_plan(str(path))
    assert "unknown key 'abuot'; did you mean 'about'" in str(error.value)
    assert "unknown key 'pool.shards'; did you mean 'shard'" in str(error.value)
    with pytest.raises(DiptychError, match="there is no plan 'own-photo'; did you mean 'own-photos'"):
        load_plan("own-photo")


def test_as_puts_a_name_before_the_columns():
    steps = steps_of(
        load_plan(plan("text_length", {"text_length": {"as": "again"}}, {"keep": {"column": "again_words", "min": 2}}))
    )
    assert list(steps[1].outputs) == ["again_characters", "again_words"]


def test_overrides_reach_options_by_name_and_by_place():
    base = plan("text_length", {"curation_fixture:Mean": {"wait": 1}}, {"keep": {"column": "words", "min": 3}})
    changed = load_plan(base, ["output.format=wds", "pool.shard=5", "steps.curation_fixture:Mean.wait=2e-1", "steps.2.keep.min=4"])
    assert changed.output.format == "wds" and changed.pool.shard == 5
    assert changed.steps[1] == {"curation_fixture:Mean": {"wait": 0.2}}
    assert changed.steps[2] == {"keep": {"column": "words", "min": 4}}
    with pytest.raises(DiptychError, match="there is no entry 'nothing'"):
        load_plan(base, ["steps.nothing.x=1"])


def test_a_missing_list_is_told_before_the_source_is_read(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(DiptychError, match=r"--set steps\.concepts\.file=FILE"):
        curate("metaclip", "folder:nowhere", tmp_path / "out", progress=lambda phase, *_: told.append(phase))
    assert told == []
