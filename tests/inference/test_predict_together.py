"""Predictions of models that judge all pictures together: the whole folder in one call, whatever the batch."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

import cli_fixture
from cli_fixture import Cli
from diptych.choose.ways import Support, way_named
from diptych.inference.adapted import AdaptedModel
from diptych.inference.load import load
from predict_fixture import ADDRESS, CLASSES, make_classes, noisy

cli = cli_fixture.cli


def make_transductive(folder: Path) -> AdaptedModel:
    base = load(ADDRESS)
    pictures = [noisy(colour, 1000 * c + i) for c, colour in enumerate(CLASSES) for i in range(4)]
    support = Support(base.embed_image(pictures), np.repeat(np.arange(3), 4), CLASSES)  # type: ignore[attr-defined]
    model = AdaptedModel(folder.name, base, way_named("unem-gaussian")().fit(support), CLASSES, 1.0, {"id": "u"})
    model.save(folder, ADDRESS)
    return model


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_judged_as_a_whole_whatever_the_batch(cli: Cli, tmp_path: Path) -> None:
    model = make_transductive(tmp_path / "adapted")
    assert model.together
    make_classes(tmp_path / "photos", each=5)
    (tmp_path / "photos" / "broken.png").write_bytes(b"not a picture")
    for batch in (2, 32):
        assert cli("predict", "adapted", "photos", "-o", f"b{batch}.csv", "--batch", batch).code == 1  # one is broken
    first, second = rows(tmp_path / "b2.csv"), rows(tmp_path / "b32.csv")
    assert first == second and len(first) == 16 and sum(bool(row["reason"]) for row in first) == 1
    images = [noisy(colour, 1000 * c + i) for c, colour in enumerate(CLASSES) for i in range(5)]
    whole = model.classify(images)
    named = {row["id"]: (row["class"], float(row["probability"])) for row in first if row["class"]}
    for i, p in enumerate(whole):
        name, probability = named[f"{CLASSES[i // 5]}/{i % 5:03d}.png"]
        assert name == CLASSES[int(p.argmax())] and abs(probability - p.max()) < 1e-5
    assert np.abs(whole - np.concatenate([model.classify([image]) for image in images])).max() > 1e-4  # alone they are others


def test_a_picture_that_is_added_asks_for_all_of_them_again(cli: Cli, tmp_path: Path) -> None:
    make_transductive(tmp_path / "adapted")
    make_classes(tmp_path / "photos", each=2)
    assert cli("predict", "adapted", "photos", "-o", "t.csv").code == 0
    assert "complete already" in cli("predict", "adapted", "photos", "-o", "t.csv").err
    make_classes(tmp_path / "photos", each=3)
    assert "other settings (data: " in cli("predict", "adapted", "photos", "-o", "t.csv").err
    assert cli("predict", "adapted", "photos", "-o", "t.csv", "--overwrite").code == 0 and len(rows(tmp_path / "t.csv")) == 9


def test_calibration_pictures_are_judged_together_too(cli: Cli, tmp_path: Path) -> None:
    make_transductive(tmp_path / "adapted")
    make_classes(tmp_path / "photos", each=2)
    known = make_classes(tmp_path / "known", each=8, seed=7)
    for batch in (3, 32):
        given = ("--error", 0.2, "--calibrate", known, "--batch", batch)
        assert cli("predict", "adapted", "photos", "-o", f"c{batch}.csv", *given).code == 0
    assert rows(tmp_path / "c3.csv") == rows(tmp_path / "c32.csv")
