"""A run that resumes while its data or its batch size is another: what is kept, and what the user reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.config.recipe import load_recipe
from diptych.core.files import read_json, write_json
from diptych.training.loop import Trainer, train
from diptych.training.record import order_of

SMALL = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2")]
GIVEN = [*SMALL, "parts.vision.patch=16", "data.image_size=32", "embed_dim=32", "stages.0.warmup=2", "stages.0.batch_size=8"]
GIVEN += ["precision=fp32", "trackers=[]", "device=cpu"]


def photos(path: Path, numbers: range, words: str = "picture") -> None:
    path.mkdir(exist_ok=True)
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"{words} number {i}\n")


def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    photos(tmp_path / "data", range(20))
    given = [*GIVEN, f"data.train=folder:{tmp_path / 'data'}"]
    train(load_recipe("clip", [*given, "budget=16 samples"]), tmp_path / "run")
    return given


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("more", "has changed: "),
        ("fewer", " now"),
        ("caption", "pictures or texts differ"),
        ("other", "other?split=train is new; the run began with "),
    ],
)
def test_changed_data_is_named_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str, words: str
) -> None:
    given = start(tmp_path, monkeypatch)
    first = read_json(tmp_path / "run/environment.json")
    data = tmp_path / "data"
    if change == "more":
        photos(data, range(20, 40))
    elif change == "fewer":
        for i in range(8):
            (data / f"{i}.png").unlink()
    elif change == "caption":
        photos(data, range(20), "quite another")
    else:
        photos(tmp_path / "other", range(20, 40))
        given = [*given, f"data.train=folder:{tmp_path / 'other'}"]
    capsys.readouterr()
    train(load_recipe("clip", [*given, "budget=32 samples"]), tmp_path / "run", resume=True)
    note = capsys.readouterr().err
    assert words in note and "goes on from step 2 with its own tokenizer" in note and "another --out" in note
    now = read_json(tmp_path / "run/environment.json")
    (entry,) = now.pop("resumed")
    assert now == first and entry["step"] == 2 and entry["sources"] != first["sources"]
    train(load_recipe("clip", [*given, "budget=48 samples"]), tmp_path / "run", resume=True)
    assert "has changed" not in capsys.readouterr().err  # it is what the last start recorded


def test_unchanged_data_gets_no_note_and_older_runs_are_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = start(tmp_path, monkeypatch)
    environment = tmp_path / "run/environment.json"
    write_json(environment, {k: v for k, v in read_json(environment).items() if k != "sources"})
    capsys.readouterr()
    train(load_recipe("clip", [*given, "budget=32 samples"]), tmp_path / "run", resume=True)
    assert "changed" not in capsys.readouterr().err and "resumed" not in read_json(environment)
    photos(tmp_path / "data", range(20, 40))
    train(load_recipe("clip", [*given, "budget=48 samples"]), tmp_path / "run", resume=True)
    assert "has changed: " in capsys.readouterr().err


def test_another_seed_is_another_order_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = start(tmp_path, monkeypatch)
    for budget, seed, noted in ((32, 0, False), (48, 3, True), (64, 3, False)):
        capsys.readouterr()
        train(load_recipe("clip", [*given, f"budget={budget} samples", f"seed={seed}"]), tmp_path / "run", resume=True)
        assert ("seed was 0 and is 3 now: from step 4 on" in capsys.readouterr().err) == noted


def test_other_settings_of_the_order_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = start(tmp_path, monkeypatch)
    photos(tmp_path / "more", range(40, 60))
    given[-1] = f"data.train=mix:1*folder:{tmp_path / 'data'}+1*folder:{tmp_path / 'more'}"
    near = "data.neighbours={of: 2}"
    train(load_recipe("clip", [*given, "budget=16 samples"]), tmp_path / "mixed")
    for budget, debiased, noted in ((32, "false", False), (48, "true", True), (64, "true", False)):
        capsys.readouterr()
        recipe = load_recipe("clip", [*given, f"budget={budget} samples", f"data.debiased={debiased}"])
        train(recipe, tmp_path / "mixed", resume=True)
        assert ("data.debiased was false and is true now: from step 4 on" in capsys.readouterr().err) == noted
    assert order_of(load_recipe("clip", [near]))["data.neighbours"] != order_of(load_recipe("clip"))["data.neighbours"] is None


def test_a_resumed_run_keeps_the_size_of_its_images(tmp_path: Path) -> None:
    given = [g for g in GIVEN if not g.startswith("data.image_size")]
    train(load_recipe("clip", [*given, "data.train=scenes:small?size=32", "budget=8 samples"]), tmp_path / "run")
    other = load_recipe("clip", [*given, "data.train=scenes:small?size=64", "budget=16 samples"])
    trainer = Trainer(other, tmp_path / "run", resume=True)
    assert trainer.setup.model.image_size == 32
    assert trainer.run().spent["samples"] == 16


@pytest.mark.parametrize("size", [4, 16])
def test_another_batch_size_goes_on_at_the_same_place(tmp_path: Path, size: int) -> None:
    """16 samples in steps of 8, then 32 in steps of another size, then 32 more: each sample of the stream once."""
    read: list[str] = []

    class Listener(Trainer):
        def _begin(self, stage):  # type: ignore[no-untyped-def]
            learning = super()._begin(stage)
            take = learning.loader.rows

            def rows(step: int, start: int, stop: int):  # type: ignore[no-untyped-def]
                batch = take(step, start, stop)
                read.extend(batch.ids)
                return batch

            learning.loader.rows = rows  # type: ignore[method-assign]
            return learning

    given = [*GIVEN, "data.train=scenes:small", "data.workers=0"]
    whole = Listener(load_recipe("clip", [*given, "budget=80 samples"]), tmp_path / "whole")
    whole.run()
    expected, read[:] = list(read), []
    Listener(load_recipe("clip", [*given, "budget=16 samples"]), tmp_path / "run").run()
    changed = [*given, f"stages.0.batch_size={size}"]
    for budget in (48, 80):
        run = Listener(load_recipe("clip", [*changed, f"budget={budget} samples"]), tmp_path / "run", resume=True).run()
    assert read == expected
    assert list(run.spent["drawn"].values()) == [80]
