"""Model cards say what the run really used: replaced parts, other settings, data, weights, scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli_fixture
from cli_fixture import Cli
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.inference.export.used import changes, data_lines, differences, replaced_parts, shipped, started_lines

cli = cli_fixture.cli


def test_changed_settings_are_named() -> None:
    base = load_recipe("clip")
    assert shipped(base) is not None and not differences(base, base)
    assert changes(base)[-1] == "All settings are the recipe's own, apart from data and budget."
    other = load_recipe("clip", ["data.train=folder:p", "budget=10 samples", "seed=3", "stages.0.lr=0.25", "parts.text.kind=clip"])
    assert list(replaced_parts(base, other)) == ["text"]
    rows = {key: now for key, _, now in differences(base, other)}
    assert rows["stages.0.lr"] == 0.25 and rows["parts.text.kind"] == "clip" and not any(k.startswith("data.train") for k in rows)
    text = "\n".join(changes(other))
    assert "Not as in the recipe: 1 part. **text**: `clip` in place of `transformer`." in text
    assert "| `stages.0.lr` |" in text and "`parts.text.kind`" not in text and "All settings" not in text


def test_a_recipe_of_ones_own_is_called_so() -> None:
    own = load_recipe("clip").model_copy(update={"name": "mine-alone", "about": "A try"})
    assert shipped(own) is None and "not one of Diptych's own" in changes(own)[0] and "A try" in changes(own)[0]


def test_a_variant_is_compared_with_itself() -> None:
    tuned = load_recipe("maskvlm@tuned")
    assert shipped(tuned) is not None and not differences(shipped(tuned) or tuned, tuned)


def test_data_and_weights_have_their_hashes() -> None:
    recipe = load_recipe("clip")
    environment = {
        "sources": {"folder:p": {"samples": 8, "fingerprint": "aa"}, "folder:q": {"samples": 2, "fingerprint": "bb"}},
        "unpaired": {"texts:t": "cc"},
        "weights": {"address": "hf:w", "key": "dd", "loaded": ["parts.vision"], "fresh": ["parts.text"], "unused": []},
        "backbones": {"lm": {"address": "runs/lm", "key": "ee", "loaded": ["parts.lm"], "fresh": [], "unused": []}},
    }
    spent = {"drawn": {"folder:p": 32}, "pretraining": {"lm": {"recipe": "lm", "samples": 100, "flops": 2e12}}}
    lines = "\n".join(data_lines(recipe, environment, spent))
    assert "8 samples, fingerprint `aa`, 32 samples drawn" in lines and "2 samples, fingerprint `bb`." in lines and "`cc`" in lines
    started = "\n".join(started_lines(environment, spent))
    assert "`hf:w` (hash `dd`): loaded: parts.vision; began fresh: parts.text" in started and "Part `lm` started" in started
    assert "pretrained by the recipe `lm` on 100 samples, 2.00 TFLOP" in started


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diptych.training.loop import train

    out = tmp_path_factory.mktemp("cards") / "run"
    small = ["stages.0.batch_size=16", "precision=fp32", "trackers=[]", "parts.vision.depth=1", "parts.text.depth=1"]
    towers = ["parts.vision.kind=clip", "parts.text.kind=clip", "data.train=scenes:small?size=32", "budget=16 samples"]
    train(load_recipe("clip", [*towers, *small]), out)
    return out


def test_the_card_of_a_run_and_of_its_export(
    cli: Cli,
    run: Path,
    tmp_path: Path,
) -> None:
    spent = json.loads((run / "spent.json").read_text())
    assert 0 < spent["cpu_seconds"] < 600
    cli("card", run, "--out", tmp_path / "card.md", "--watts", "20", "--intensity", "0")
    card = (tmp_path / "card.md").read_text()
    for part in (
        "**vision**: `clip` in place of `vit`",
        "× 20 W",
        "**0 g CO2e**",
        "| text | `clip` |",
        "16 samples drawn",
        "OpenMoji",
    ):
        assert part in card
    out = tmp_path / "export"
    cli("export", run, "--out", out)
    first = (out / "README.md").read_text()
    assert "license: other" in first and "CLIPModel, checkpoint `last`" in first
    done = cli("card", out, "--licence", "cc-by-4.0", "--watts", "20")
    second = (out / "README.md").read_text()
    assert done.code == 0 and "license: cc-by-4.0" in second and "× 20 W" in second
    assert first.partition("## Use")[2].partition("## Parts")[0] == second.partition("## Use")[2].partition("## Parts")[0]
    (out / "export.json").write_text(json.dumps({**json.loads((out / "export.json").read_text()), "key": "other"}))
    refused = cli("card", out)
    assert refused.code == 1 and "has other weights now" in refused.err and (out / "README.md").read_text() == second
    assert "no such directory" in cli("card", tmp_path / "none").err
    (tmp_path / "empty").mkdir()
    assert "not an export" in cli("card", tmp_path / "empty").err


def test_a_card_without_its_run_is_refused(tmp_path: Path) -> None:
    from diptych.data.provenance.carbon import Assumptions
    from diptych.inference.export.rewrite import rewrite

    (tmp_path / "export.json").write_text(json.dumps({"run": str(tmp_path / "gone"), "checkpoint": "last", "key": "k"}))
    with pytest.raises(DiptychError, match="there is no run at"):
        rewrite(tmp_path, Assumptions())
