"""``backbones:``: runs of other recipes are trained first, once, and give a run the weights of single parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from diptych.comparison.run import Comparison, RecipeJob, plan, run_backbones
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json, write_text
from diptych.training.checkpoint import restored
from diptych.training.loop import train
from diptych.training.start.backbones import address, check_data, cost, digest, planned
from diptych.training.start.setup import set_up

LM = {"width": 16, "depth": 1, "heads": 2, "hidden": 24}
FAST = {"precision": "fp32", "trackers": [], "device": "cpu"}
MINI = {
    **FAST,
    "budget": "16 samples",
    "stages.0.batch_size": 8,
    "parts.vision": {"kind": "vit", "width": 16, "depth": 1, "heads": 2, "frozen": True},
    "parts.lm": {"kind": "llama", **LM, "frozen": True},
    "backbones.vision.budget": "8 samples",
    "backbones.vision.set": {
        "parts.vision": {"kind": "vit", "width": 16, "depth": 1, "heads": 2},
        "parts.text.width": 16, "parts.text.depth": 1, "parts.text.heads": 2, "stages.0.batch_size": 8, "trackers": [],
    },
    "backbones.lm.budget": "16 samples",
    "backbones.lm.set": {"parts.lm": {"kind": "llama", **LM}, "stages.0.batch_size": 8, "trackers": []},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with a trained llava@mini."""
    path = tmp_path_factory.mktemp("runs")
    train(load_recipe("llava@mini", MINI), path / "one")
    return path


def test_parts_start_from_the_runs_and_stay(folder: Path) -> None:
    found = planned(load_recipe("llava@mini", MINI), folder / "backbones")
    model = restored(folder / "one").model
    for part, each in found.items():
        theirs = restored(each.path).model.part(part).state_dict()
        ours = model.part(part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs), part
    assert (folder / "one" / "tokenizer.json").read_text() == (found["lm"].path / "tokenizer.json").read_text()
    said = read_json(folder / "one" / "environment.json")["backbones"]
    assert said["lm"]["loaded"] == ["parts.lm"] and said["vision"]["loaded"] == ["parts.vision"]


def test_the_cost_is_an_entry_of_its_own(folder: Path) -> None:
    spent = read_json(folder / "one" / "spent.json")
    found = planned(load_recipe("llava@mini", MINI), folder / "backbones")
    flops = {part: read_json(each.path / "spent.json")["flops"] for part, each in found.items()}
    assert {part: each["flops"] for part, each in spent["pretraining"].items()} == flops
    assert spent["pretraining_flops"] == sum(flops.values()) > 0 and spent["samples"] == 16
    assert cost({"vision": folder / "one"})["vision"]["flops"] == spent["flops"] + spent["pretraining_flops"]


def test_they_are_trained_once_for_all_that_ask_for_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "backbones").glob("*/spent.json")}
    assert len(before) == 2
    run = train(load_recipe("prior@mini", {**MINI, "seed": 3}), folder / "two")
    assert {p: p.stat().st_mtime_ns for p in (folder / "backbones").glob("*/spent.json")} == before
    assert "pretraining_flops" in run.spent and "trained first" not in capsys.readouterr().err
    recipe = load_recipe("llava@mini", MINI)
    place = Path("b")
    same = [load_recipe("llava@mini", {**MINI, "seed": 5}), load_recipe("flamingo@mini", MINI)]
    assert all(
        {k: v.path for k, v in planned(r, place).items()} == {k: v.path for k, v in planned(recipe, place).items()} for r in same
    )
    other = planned(load_recipe("llava@mini", {**MINI, "data.train": "scenes:medium"}), place)
    assert all(other[k].path != v.path for k, v in planned(recipe, place).items())
    assert other["lm"].recipe is not None and other["lm"].recipe.data.train == "facts:scenes:medium?repeat=2"


def test_a_run_goes_on_without_its_backbones(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "one", tmp_path / "one")
    before = read_json(tmp_path / "one" / "spent.json")["pretraining"]
    run = train(load_recipe("llava@mini", {**MINI, "budget": "32 samples"}), tmp_path / "one", resume=True)
    assert run.spent["samples"] == 32 and run.spent["pretraining"] == before and not (tmp_path / "backbones").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(folder: Path, tmp_path: Path) -> None:
    """Its files are there, but no weights: it needs those of its backbones, which are not trained again."""
    shutil.copytree(folder, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "one" / "checkpoints")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "backbones").glob("*/spent.json")}
    train(load_recipe("llava@mini", MINI), tmp_path / "runs" / "one", resume=True)
    again, first = (restored(path / "one").model.part("lm").state_dict() for path in (tmp_path / "runs", folder))
    assert all(torch.equal(again[k], first[k]) for k in first)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "backbones").glob("*/spent.json")} == before


def test_a_run_that_exists_can_be_one(folder: Path, tmp_path: Path) -> None:
    found = planned(load_recipe("llava@mini", MINI), folder / "backbones")
    given = {**MINI, "backbones": {part: str(each.path) for part, each in found.items()}}
    given = {k: v for k, v in given.items() if not k.startswith("backbones.")}
    run = train(load_recipe("llava@mini", given), tmp_path / "own")
    assert run.spent["pretraining"]["lm"]["run"] == str(found["lm"].path) and not (tmp_path / "backbones").exists()


def test_a_comparison_trains_them_before_its_jobs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("diptych.comparison.run.run_jobs", lambda jobs, n: ran.append([j.label for j in jobs]) or [])
    common = [f"{k}={v}" for k, v in MINI.items() if k in ("parts.lm",)]
    jobs, n = plan(Comparison(["llava@mini", "prior@mini", "clip"], "scenes:small", "8 samples", 2, tmp_path / "c", 1, common))
    assert {job.backbones for job in jobs} == {tmp_path / "backbones"}
    run_backbones(jobs, n)
    assert sorted(ran[0]) == ["clip (backbone)", "lm (backbone)"]
    job = RecipeJob("one", folder / "one", 1, load_recipe("llava@mini", MINI), [], backbones=tmp_path / "b")
    run_backbones([job], 1)  # the run is finished
    assert ran[1] == []


def test_mistakes_are_named(tmp_path: Path) -> None:
    for overrides, words in (
        ({"backbones.lm": {"recipe": "lm", "run": "x"}}, "names either a recipe to train or a run"),
        ({"backbones.lm": {}}, "names either a recipe to train or a run"),
        ({"backbones.text": {"recipe": "clip"}}, "backbones.text: the recipe has no part 'text'"),
        ({"backbones.lm.bugdet": "1s"}, "bugdet"),
    ):
        with pytest.raises(DiptychError, match=words):
            load_recipe("llava@mini", overrides)
    for overrides, words in (
        ({"backbones.lm.recipe": "clip"}, "backbones.lm.recipe: 'clip' has no part 'lm'"),
        ({"backbones.lm": "nowhere"}, "backbones.lm.run: there is no run at 'nowhere'"),
        ({"backbones.lm.set": {"sede": 1}}, "sede"),
    ):
        with pytest.raises(DiptychError, match=words):
            planned(load_recipe("llava@mini", overrides), tmp_path)
    with pytest.raises(DiptychError, match="backbones.vision: not trained"):
        set_up(load_recipe("llava@mini", MINI))


def test_the_backbone_of_an_earlier_version_is_used(tmp_path: Path) -> None:
    """Its recipe had fewer fields, so that its hash is another; the recipe is the same."""
    recipe = load_recipe("llava@mini", MINI)
    place = planned(recipe, tmp_path)["lm"]
    assert place.recipe is not None and not place.path.exists()
    older = place.recipe.model_dump(mode="json", by_alias=True)
    del older["sharding"], older["data"]["debiased"]
    write_text(tmp_path / "lm-0000000000" / "recipe.yaml", yaml.safe_dump(older))
    write_text(tmp_path / "lm-0000000001" / "recipe.yaml", yaml.safe_dump(older | {"embed_dim": 24}))  # another one
    write_text(tmp_path / "lm-0000000002" / "recipe.yaml", yaml.safe_dump(older | {"format": 99}))  # of a newer version
    assert planned(recipe, tmp_path)["lm"].path == tmp_path / "lm-0000000000"
    write_text(tmp_path / "lm-0000000003" / "recipe.yaml", yaml.safe_dump(older))
    write_json(tmp_path / "lm-0000000003" / "spent.json", {"finished": True})
    assert planned(recipe, tmp_path)["lm"].path == tmp_path / "lm-0000000003", "one that is finished comes first"
    write_text(place.path / "recipe.yaml", place.recipe.to_yaml())
    assert planned(recipe, tmp_path)["lm"].path == place.path


def photos(folder: Path) -> str:
    """A folder of pictures with captions, of which no facts are known."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"my dog, number {i}")
    return f"folder:{folder}"


@pytest.mark.parametrize("data", ["photos", "scenes:clips?size=32"])
def test_a_miniature_is_refused_where_no_facts_are_known(data: str, tmp_path: Path) -> None:
    """Before anything is trained, with the recipe for such data; the user may still ask for other data, or the captions alone."""
    data = photos(tmp_path / "photos") if data == "photos" else data
    refused = r"backbones\.lm\.data: .* knows no facts .*; or take 'llava', the recipe without @mini"
    with pytest.raises(DiptychError, match=refused):
        train(load_recipe("llava@mini", {**MINI, "data.train": data}), tmp_path / "runs" / "one")
    with pytest.raises(DiptychError, match=refused):
        run_backbones(*plan(Comparison(["llava@mini"], data, "8 samples", 1, tmp_path / "c")))
    assert not (tmp_path / "runs").exists() and not (tmp_path / "backbones").exists()
    for other in ("{train}", "facts:scenes:small"):
        recipe = load_recipe("llava@mini", {**MINI, "data.train": data, "backbones.lm.data": other})
        check_data(recipe, planned(recipe, tmp_path))
    mixed = f"mix:1*{data}+1*scenes:small"
    check_data(recipe := load_recipe("llava@mini", {**MINI, "data.train": mixed}), planned(recipe, tmp_path))


def test_a_backbone_that_fails_is_named(tmp_path: Path) -> None:
    recipe = load_recipe("flamingo@mini", {**MINI, "data.train": "scenes:clips", "backbones.lm.data": "facts:scenes:small"})
    with pytest.raises(DiptychError, match=r"backbones\.vision \(clip\): .*'image'.*--set backbones\.vision\.data=ADDRESS"):
        train(recipe, tmp_path / "run")


def test_addresses_and_digests() -> None:
    assert address("{train}", "scenes:small?ask=3") == "scenes:small?ask=3"
    assert address("facts:{train}?repeat=2", "scenes:small?ask=3") == "facts:scenes:small%3Fask%3D3?repeat=2"
    assert address("scenes:full", "scenes:small") == "scenes:full"
    recipe = load_recipe("clip")
    assert digest(recipe) == digest(load_recipe("clip", {"device": "cpu", "trackers": [], "about": "other words"}))
    assert digest(recipe) != digest(load_recipe("clip", {"stages.0.lr": 1e-4}))
