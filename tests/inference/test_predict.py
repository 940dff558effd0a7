"""``diptych predict`` as a user runs it: tables, sets, broken pictures, wrong places, crashes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cli_fixture
from cli_fixture import Cli
from diptych.core.errors import DiptychError
from diptych.inference.load import load
from diptych.inference.predict.classifier import SCALE, class_names_of, classifier_of
from diptych.inference.predict.conformal import Conformal
from diptych.inference.predict.predict import fitting_temperature, tempered
from predict_fixture import ADDRESS, CLASSES, Scorer, make_adapted, make_classes, noisy

cli = cli_fixture.cli
ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A nested folder of pictures without captions, one of them broken, one of a kind that is not read."""
    for i in range(12):
        path = tmp_path / "new" / ("deep/er" if i % 3 == 0 else "") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy(CLASSES[i % 3], i)).save(path)
    (tmp_path / "new" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "new" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "new" / "notes.txt").write_text("about them")
    return tmp_path / "new"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_pictures(cli: Cli, photos: Path, tmp_path: Path) -> None:
    model = make_adapted(tmp_path / "adapted")
    result = cli("predict", tmp_path / "adapted", photos, "--out", "table.csv", "--error", "0.2", "--batch", 5)
    assert result.code == 1 and "2 pictures of 14 could not be read" in result.err and "table.csv: 14 pictures" in result.out
    assert "unsure at an error rate of 0.2 (by lac, from 60 calibration pictures)" in result.out
    table = rows(tmp_path / "table.csv")
    names = ["id", "class", "probability", "class_2", "probability_2", "class_3", "probability_3", "set", "unsure", "reason"]
    assert list(table[0]) == names and len(table) == 14 and len({r["id"] for r in table}) == 14
    broken = {r["id"]: r["reason"] for r in table if r["reason"]}
    assert set(broken) == {"broken.jpg", "phone.heic"} and "not an image" in broken["broken.jpg"] and "HEIC" in broken["phone.heic"]
    about = json.loads((tmp_path / "table.csv.about.json").read_text())
    conformal = Conformal.from_dict(about["conformal"])
    assert about["pictures"] == 14 and about["broken"] == 2 and conformal.n == 60 and conformal.error == 0.2
    for row in table:
        if row["reason"]:
            assert not row["class"] and not row["unsure"]
            continue
        p = model.classify([np.asarray(Image.open(photos / row["id"]))])[0].astype(float)
        order = np.argsort(-p)
        assert [row["class"], row["class_2"], row["class_3"]] == [CLASSES[c] for c in order]
        np.testing.assert_allclose([float(row[k]) for k in names[2:7:2]], p[order], atol=1e-5)
        members = [CLASSES[c] for c in order if 1 - p[c] <= conformal.threshold]
        assert row["set"] == "|".join(members) and row["unsure"] == ("no" if len(members) == 1 else "yes")
    assert about["unsure"] == sum(r["unsure"] == "yes" for r in table)
    assert not (tmp_path / "table.csv.parts").exists() and not list(tmp_path.glob(".*"))


def test_broken_pictures_alone_are_neither_sure_nor_unsure(cli: Cli, tmp_path: Path) -> None:
    make_adapted(tmp_path / "adapted")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.jpg").write_bytes(b"no picture")
    result = cli("predict", "adapted", "only", "--out", "t.csv")
    assert result.code == 1 and "t.csv: 1 picture" in result.out and "unsure" not in result.out


def test_an_error_rate_in_each_class(cli: Cli, photos: Path, tmp_path: Path) -> None:
    make_adapted(tmp_path / "adapted")
    result = cli("predict", "adapted", photos, "-o", "t.jsonl", "--error", 0.2, "--each-class")
    assert "at an error rate of 0.2 in each class (by lac" in result.out
    about = json.loads((tmp_path / "t.jsonl.about.json").read_text())
    assert len(about["conformal"]["threshold"]) == 3 and about["each_class"] is True
    result = cli("predict", "adapted", photos, "-o", "u.jsonl", "--error", 0.03, "--each-class", "--json")
    assert "in each class needs 33 calibration pictures of it at least; every set holds the 3 classes with fewer: blue" in " ".join(result.err.split())  # fmt: skip
    done = json.loads(result.out)
    assert done["conformal"]["threshold"] == [None] * 3 and done["unsure"] == 12


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_all_forms_hold_the_same(cli: Cli, photos: Path, tmp_path: Path, ending: str) -> None:
    make_adapted(tmp_path / "adapted")
    out = tmp_path / "deep" / f"table.{ending}"
    assert cli("predict", "adapted", photos, "-o", out, "--top", 2, "--sets", "aps").code == 1
    if ending == "csv":
        found = [
            (r["id"], r["class"], float(r["probability"] or "nan"), r["set"].split("|"), r["unsure"] == "yes") for r in rows(out)
        ]
    else:
        read = pq.read_table(out).to_pylist() if ending == "parquet" else [json.loads(x) for x in out.read_text().splitlines()]
        assert list(read[0]) == ["id", "class", "probability", "class_2", "probability_2", "set", "unsure", "reason"]
        found = [
            (
                r["id"],
                r["class"] or "",
                float("nan") if r["probability"] is None else r["probability"],
                r["set"] or [""],
                bool(r["unsure"]),
            )
            for r in read
        ]
    assert cli("predict", "adapted", photos, "-o", "other.csv", "--top", 2, "--sets", "aps").code == 1
    for (name, label, p, members, unsure), row in zip(found, rows(tmp_path / "other.csv"), strict=True):
        assert (name, label, "|".join(members), unsure) == (row["id"], row["class"], row["set"], row["unsure"] == "yes")
        assert not label or abs(p - float(row["probability"])) < 1e-5
    assert cli("predict", "adapted", photos, "-o", out, "--top", 2, "--sets", "aps").err.startswith(f"note: {out} is complete")


def test_names_of_classes_for_a_dual_encoder(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").unlink()
    (photos / "phone.heic").unlink()
    (tmp_path / "names.txt").write_text("blue\ngreen\n\nred\n")
    result = cli("predict", ADDRESS, photos, "--out", "a.csv", "--classes", "blue,green, red")
    assert result.code == 0 and "set and unsure are empty: the classes are only names" in result.err and "--calibrate" in result.err
    assert all(r["set"] == r["unsure"] == "" for r in rows(tmp_path / "a.csv"))
    assert json.loads((tmp_path / "a.csv.about.json").read_text())["unsure"] is None
    known = make_classes(tmp_path / "known", 7)
    more = ["--classes", "names.txt", "--calibrate", known, "--error", 0.1]
    assert cli("predict", ADDRESS, photos, "--out", "b.csv", *more).code == 0
    assert json.loads((tmp_path / "b.csv.about.json").read_text())["conformal"]["n"] == 21
    temperature = json.loads((tmp_path / "b.csv.about.json").read_text())["temperature"]
    a, b = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    for before, after in zip(a, b, strict=True):  # odds to the power of 1 / T
        odds = [np.log(float(r["probability"]) / float(r["probability_2"])) for r in (before, after)]
        assert odds[1] == pytest.approx(odds[0] / temperature, rel=1e-3)
    assert [r["class"] for r in a] == [r["class"] for r in b] and {r["unsure"] for r in b} <= {"yes", "no"}
    base = load(ADDRESS)
    cosines = base.embed_image([np.asarray(Image.open(photos / a[0]["id"]))])[0].astype(float)[[2, 1, 0]]  # blue, green, red
    e = np.exp(SCALE * (cosines - cosines.max()))
    assert abs(float(a[0]["probability"]) - e.max() / e.sum()) < 1e-5
    result = cli("predict", ADDRESS, photos, "--out", "c.csv", "--classes", "blue,green", "--calibrate", known)
    assert result.code == 0 and "red: not among the model's classes" in result.err and "every set holds all classes" in result.err
    assert all(r["unsure"] == "yes" for r in rows(tmp_path / "c.csv"))


def test_what_is_missing_is_said(cli: Cli, photos: Path, tmp_path: Path) -> None:
    def refused(*given: object) -> str:
        result = cli("predict", *given)
        assert result.code == 1 and not list(tmp_path.glob("t.*")), result.all
        return result.err

    assert "has no classes of its own: give --classes" in refused(ADDRESS, photos, "-o", "t.csv")
    assert "it neither embeds nor scores texts for images" in refused(
        "predict_fixture:Blind", photos, "-o", "t.csv", "--classes", "a,b"
    )
    make_adapted(tmp_path / "adapted", calibration=False)
    assert "has 3 classes of its own; leave out --classes" in refused("adapted", photos, "-o", "t.csv", "--classes", "a,b")
    error = refused("adapted", photos, "-o", "t.csv", "--error", 0.1)
    assert "adapted/calibration.safetensors is missing" in error and "--calibrate classes:DIR" in error
    assert "expected a share between 0 and 1" in refused("adapted", photos, "-o", "t.csv", "--error", 10)
    assert "--sets raps: expected lac or aps" in refused("adapted", photos, "-o", "t.csv", "--sets", "raps")
    assert "ends in .csv or .parquet or .jsonl" in refused("adapted", photos, "-o", "t.xlsx")
    assert "no run at 'nowhere'" in refused("nowhere", photos, "-o", "t.csv")
    shutil.copytree(tmp_path / "adapted", tmp_path / "damaged")
    (tmp_path / "damaged" / "head.safetensors").write_bytes(b"half")
    assert "head.safetensors: cannot be read" in refused("damaged", photos, "-o", "t.csv")
    (tmp_path / "damaged" / "adapted.json").write_text("{")
    assert "adapted.json: cannot be read" in refused("damaged", photos, "-o", "t.csv")
    assert cli("predict", "adapted", photos, "-o", "t.csv").code == 1, "without --error the table is written, two are broken"
    assert len(rows(tmp_path / "t.csv")) == 14


def test_empty_and_unwritable_places(cli: Cli, photos: Path, tmp_path: Path) -> None:
    make_adapted(tmp_path / "adapted")
    (tmp_path / "empty").mkdir()
    result = cli("predict", "adapted", tmp_path / "empty", "-o", "t.csv")
    assert result.code == 1 and "no pictures in it" in result.err and not list(tmp_path.glob("t.csv*"))
    assert "cannot open" in cli("predict", "adapted", "no/such/folder", "-o", "t.csv").err
    (tmp_path / "file").write_text("")
    result = cli("predict", "adapted", photos, "-o", tmp_path / "file" / "t.csv")
    assert result.code == 1 and "cannot be written" in result.err and "choose another place" in result.err
    assert (
        "is a folder"
        in cli("predict", "adapted", photos, "-o", photos.with_suffix(".csv").mkdir() or photos.with_suffix(".csv")).err
    )
    assert "no picture with a class" in cli("predict", "adapted", photos, "-o", "t.csv", "--calibrate", cli_fixture.make_photos(tmp_path / "p", 4)).err  # fmt: skip
    assert not list(tmp_path.glob("t.csv*")), "nothing was done, so nothing is left"


def test_a_table_that_is_there_already(cli: Cli, photos: Path, tmp_path: Path) -> None:
    make_adapted(tmp_path / "adapted")
    out = tmp_path / "t.csv"
    out.write_text("name,price\nfox,3\n")
    result = cli("predict", "adapted", photos, "-o", out)
    assert (
        result.code == 1 and "did not make it (its columns: name, price)" in result.err and out.read_text().startswith("name,price")
    )
    assert cli("predict", "adapted", photos, "-o", out, "--overwrite").code == 1 and len(rows(out)) == 14
    before = out.read_bytes()
    result = cli("predict", "adapted", photos, "-o", out)
    assert "complete already" in result.err and out.read_bytes() == before and "2 pictures of 14 could not be read" in result.err
    result = cli("predict", "adapted", photos, "-o", out, "--error", 0.3)
    assert result.code == 1 and "with other settings (error: None, now 0.3)" in result.err and out.read_bytes() == before
    result = cli("predict", ADDRESS, photos, "-o", out, "--classes", "red,blue")
    assert "model: adapted, now colours_fixture:Mute" in result.err
    out.write_text("id,class,note\n")
    result = cli("predict", "adapted", photos, "-o", out)
    assert "its columns are id, class, note, not id, class, probability" in result.err and "it was changed" in result.err


def test_pictures_that_were_added_are_added(cli: Cli, photos: Path, tmp_path: Path) -> None:
    make_adapted(tmp_path / "adapted")
    cli("predict", "adapted", photos, "-o", "t.csv", "--sets", "aps")
    before = (tmp_path / "t.csv").read_text().splitlines()
    Image.fromarray(noisy("red", 99)).save(photos / "03a.png")
    assert "15 pictures" in cli("predict", "adapted", photos, "-o", "t.csv", "--sets", "aps").out
    after = (tmp_path / "t.csv").read_text().splitlines()
    assert after[:-1] == before and after[-1].startswith("03a.png,")
    assert json.loads((tmp_path / "t.csv.about.json").read_text())["broken"] == 2


def test_other_addresses(cli: Cli, tmp_path: Path) -> None:
    make_adapted(tmp_path / "adapted")
    known = make_classes(tmp_path / "known", 4)
    (tmp_path / "rows.csv").write_text("image,caption\nknown/red/000.png,a\nknown/gone.png,b\nknown/blue/001.png,c\n")
    result = cli("predict", "adapted", "csv:rows.csv", "-o", "t.csv")
    assert result.code == 1 and [r["id"] for r in rows(tmp_path / "t.csv")] == [
        "known/red/000.png",
        "known/blue/001.png",
        "known/gone.png",
    ]
    assert "there is no file" in rows(tmp_path / "t.csv")[-1]["reason"]
    assert cli("predict", "adapted", known, "-o", "u.csv", "--limit", 5).code == 0 and len(rows(tmp_path / "u.csv")) == 5
    assert "complete already" in cli("predict", "adapted", known, "-o", "u.csv", "--limit", 5).err
    result = cli("predict", "adapted", known, "-o", "u.csv", "--limit", 6)
    assert result.code == 1 and "other settings (data: " in result.err
    assert "has no end; say how many pictures: --limit" in cli("predict", "adapted", "scenes:small", "-o", "v.csv").err
    assert cli("predict", "adapted", "scenes:small", "-o", "v.csv", "-n", 3).code == 0
    assert cli("predict", "adapted", known, "-o", "w.csv", "--json").out.startswith("{")


ARGUMENTS = ["--out", "t.csv", "--classes", "blue,green,red", "--batch", "2"]


def started(folder: Path, verb: str, *more: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, with parts that are written at once."""
    code = (
        "import sys; import diptych.inference.predict.parts as p; p.SECONDS = 0.0\n"
        f"from diptych.cli import main; sys.argv = ['diptych', {verb!r}, 'predict_fixture:Slow', 'new', *{list(more)!r}]; main()"
    )
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": paths, "SLOW": "0.1"}, stderr=subprocess.PIPE
    )


def wait_for_parts(process: subprocess.Popen[bytes], folder: Path, number: int) -> None:
    until = time.monotonic() + 60
    while len(list(folder.glob("part-*.parquet"))) < number:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_and_continued(cli: Cli, photos: Path, tmp_path: Path, number: signal.Signals) -> None:
    for i in range(20, 40):
        Image.fromarray(noisy("red", i)).save(photos / f"{i}.png")
    process = started(tmp_path, "predict", *ARGUMENTS)
    wait_for_parts(process, tmp_path / "t.csv.parts", 3)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (-number if number == signal.SIGKILL else 130) and not (tmp_path / "t.csv").exists()
    if number != signal.SIGKILL:
        assert "kept in t.csv.parts; the same command continues" in said and "Traceback" not in said
    kept = len(list((tmp_path / "t.csv.parts").glob("part-*.parquet")))
    assert 3 <= kept < 17
    other = cli("predict", "predict_fixture:Slow", "new", *ARGUMENTS[:2], "--classes", "blue,red")
    assert other.code == 1 and "unfinished work with other settings" in other.err
    assert cli("predict", "predict_fixture:Slow", "new", *ARGUMENTS).code == 1
    continued = rows(tmp_path / "t.csv")
    assert cli("predict", "predict_fixture:Slow", "new", "--out", "whole.csv", *ARGUMENTS[2:]).code == 1
    assert continued == rows(tmp_path / "whole.csv") and len(continued) == 34, "nothing lost, nothing twice"


def test_two_at_once(cli: Cli, photos: Path, tmp_path: Path) -> None:
    process = started(tmp_path, "predict", *ARGUMENTS)
    try:
        wait_for_parts(process, tmp_path / "t.csv.parts", 1)
        result = cli("predict", "predict_fixture:Slow", "new", *ARGUMENTS)
        assert result.code == 1 and "another command is writing it" in result.err
    finally:
        process.kill()
        process.communicate()


def test_names_in_files(tmp_path: Path) -> None:
    assert class_names_of("fox, red owl ,hare") == ("fox", "red owl", "hare")
    path = tmp_path / "names.json"
    path.write_text('["a, b", "c"]')
    assert class_names_of(str(path)) == ("a, b", "c")
    for text, message in (
        ('{"a": 1}', "list of names"),
        ("[", "broken JSON"),
        ('["a"]', "1 class; expected two"),
        ('["a", "a"]', "twice"),
    ):
        path.write_text(text)
        with pytest.raises(DiptychError, match=message):
            class_names_of(str(path))
    with pytest.raises(DiptychError, match="no such file"):
        class_names_of(str(tmp_path / "none.txt"))
    with pytest.raises(DiptychError, match="a folder"):
        class_names_of(str(tmp_path))
    with pytest.raises(DiptychError, match="1 class"):
        class_names_of("fox")


def test_a_model_that_only_scores(cli: Cli, photos: Path, tmp_path: Path) -> None:
    cli("predict", "predict_fixture:Scorer", photos, "-o", "t.csv", "--classes", "blue,green,red")
    row = rows(tmp_path / "t.csv")[0]
    scores = (
        Scorer().score([np.asarray(Image.open(photos / row["id"]))], ["a photo of a blue", "a green", "a red"])[0].astype(float)
    )
    order, e = np.argsort(-scores), np.exp(scores)
    assert row["class"] == CLASSES[order[0]] and float(row["probability"]) == pytest.approx(e.max() / e.sum(), rel=1e-4)


def test_the_temperature_of_names_alone() -> None:
    """The least loss of a fine grid, by a plain loop; pictures of unknown classes are not used; ranks stay."""
    rng = np.random.default_rng(0)
    logits, y = 8 * rng.normal(size=(50, 3)), rng.integers(3, size=50)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def loss(t: float) -> float:
        return np.mean([np.log(np.sum(np.exp((row - row[label]) / t))) for row, label in zip(logits, y, strict=True)])

    found = fitting_temperature(p, y)
    assert loss(found) <= min(map(loss, np.geomspace(0.05, 100, 400))) + 1e-3
    some = np.where(np.arange(50) < 20, -1, y)
    assert fitting_temperature(p, some) == fitting_temperature(p[20:], y[20:])
    np.testing.assert_array_equal(tempered(p, 1.0), p)
    np.testing.assert_allclose(tempered(p, 4.0), np.exp(logits / 4) / np.exp(logits / 4).sum(1, keepdims=True), atol=1e-12)


def test_the_scale_that_a_model_learned() -> None:
    images, model = [noisy("red", 1), noisy("blue", 2)], load(ADDRESS)
    classifier = classifier_of(model, "m", "red,blue", lambda names: [[n] for n in names])
    assert classifier.names == ("red", "blue") and not classifier.learned
    cosines = model.embed_image(images).astype(float) @ np.eye(4)[[0, 2]].T
    for scale in (SCALE, 7.0):
        if scale != SCALE:
            model.scale = scale  # type: ignore[attr-defined]
            classifier = classifier_of(model, "m", "red,blue", lambda names: [[n] for n in names])
        e = np.exp(scale * cosines)
        np.testing.assert_allclose(classifier.probabilities(images), e / e.sum(1, keepdims=True), atol=1e-12)
