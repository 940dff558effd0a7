"""The command line as a sceptical user meets it: every verb, every exit status, bad input from end to end."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

import cli_fixture
import diptych as dp
from cli_fixture import SMALL, Cli, make_photos
from diptych.config.recipe import load_recipe, recipe_names
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, read_jsonl

cli = cli_fixture.cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained through the Python interface."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    small = {"stages.0.batch_size": 16, "parts.vision.depth": 1, "parts.text.depth": 1, "seed": 3}
    done = dp.train("clip", data="scenes:small", budget="64 samples", out=path, set=small)
    assert done.path == path and done.spent["samples"] == 64 and done.recipe.seed == 3
    return path


# --- what costs nothing ---


def test_the_package_runs_as_a_module() -> None:
    listed = subprocess.run([sys.executable, "-m", "diptych", "recipes"], capture_output=True, text=True)
    assert listed.returncode == 0 and all(name in listed.stdout for name in recipe_names()), listed.stderr
    wrong = subprocess.run([sys.executable, "-m", "diptych", "evaluate"], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: name models to evaluate")


@pytest.mark.parametrize("code", ["import diptych", "from diptych.cli import main; main()"])
def test_help_and_import_bring_no_heavy_package(code: str) -> None:
    heavy = "torch", "transformers", "numpy", "matplotlib", "sklearn", "pyarrow"
    script = f"import sys, atexit; sys.argv = ['diptych', '--help']\natexit.register(lambda: print('LOADED', [m for m in {heavy} if m in sys.modules]))\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


VERBS = ["recipes", "train", "evaluate", "compare", "report", "demo", "data", "data show", "data inspect"]


def test_help_names_every_verb_and_every_verb_has_help(cli: Cli) -> None:
    overview = cli("--help")
    assert overview.code == 0
    for verb in VERBS:
        shown = cli(*verb.split(), "--help")
        assert shown.code == 0 and f"diptych {verb}" in shown.out
        assert verb.split()[0] in overview.out


def test_recipes_are_listed_with_their_sources(cli: Cli) -> None:
    shown = cli("recipes")
    assert shown.code == 0
    for name in recipe_names():
        assert name in shown.out and load_recipe(name).cite.partition(",")[0] in shown.out


def test_wrong_usage_is_status_2(cli: Cli) -> None:
    for arguments, words in (
        (["trian"], "train"),
        (["train"], "recipe"),
        (["compare"], "recipes"),
        (["train", "clip", "--bugdet", "1s"], "--budget"),
        (["compare", "clip", "--seeds", "0"], "--seeds"),
        (["data", "inspect", "scenes:", "--limit", "none"], "--limit"),
    ):
        outcome = cli(*arguments)
        assert outcome.code == 2 and words in outcome.err, arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "clp"], "did you mean 'clip'"),
        (["train", "mine.yaml"], "no recipe at 'mine.yaml'"),
        (["train", "clip", "--set", "stages.0.lrr=1"], "unknown key 'stages.0.lrr'; did you mean 'lr'"),
        (["train", "clip", "--size", "huge"], "tiny"),
        (["train", "clip", "--budget", "soon"], "90s"),
        (["train", "clip", "--data", "foldr:x"], "did you mean 'folder'"),
        (["train", "clip", "--data", "scenes:smal"], "did you mean 'small'"),
        (["train", "clip", "--data", "folder:nowhere"], "nowhere: there is no such directory"),
        (["train", "clip", "--set", "parts.vision.dpeth=1"], "did you mean 'depth'"),
        (["train", "clip", "--set", "stages.0.objectives.next_token=1"], "add a part decoder or lm"),
        (["train", "clip", "--set", "parts.vision.stem=patch", "--set", "parts.vision.patch=20"], "multiple"),
        (["evaluate", "nowhere"], "no run at 'nowhere'"),
        (["evaluate", "."], "no checkpoint"),
        (["report", "nowhere"], "no such directory: nowhere"),
        (["report", "."], "not a comparison"),
        (["compare", "clip", "siglp"], "did you mean 'siglip'"),
        (["compare", "clip", "clip"], "named twice"),
        (["compare", "clip", "siglip", "--tasks", "retreival"], "did you mean 'retrieval'"),
        (["compare", "clip", "siglip", "--data", "csv:nowhere.csv"], "nowhere.csv: there is no such file"),
        (["data", "show", "scenes:small", "--split", "tset"], "did you mean 'test'"),
        (["data", "show", "scenes:small", "--out", "sheet.xyz"], "sheet.xyz"),
        (["data", "inspect", "nowhere.csv"], "nowhere.csv: there is no such file"),
    ],
)
def test_mistakes_are_status_1_and_leave_nothing_behind(cli: Cli, tmp_path: Path, arguments: list[str], words: str) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 1
    assert "error: " in outcome.err and words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    for command in (["train", "clip", *SMALL], ["data", "inspect", "scenes:small", "--limit", "2"]):
        outcome = cli(*command, "--out", "taken")
        assert outcome.code == 1 and "taken" in outcome.err


# --- looking at data ---


def test_show_draws_a_sheet(cli: Cli, tmp_path: Path) -> None:
    shown = cli("data", "show", make_photos(tmp_path / "photos", 5), "--out", tmp_path / "new" / "sheet.png", "-n", 3)
    assert shown.code == 0 and shown.out.strip().endswith("sheet.png")
    width, height = Image.open(tmp_path / "new" / "sheet.png").size
    assert width > 3 * 240 and height > 240
    assert cli("data", "show", "scenes:small", "--split", "heldout-combinations", "-n", 2).code == 0
    assert (tmp_path / "contact-sheet.png").is_file()


def test_inspect_counts(cli: Cli, tmp_path: Path) -> None:
    address = make_photos(tmp_path / "photos", 8)
    found = json.loads(cli("data", "inspect", address, "--json").out)
    assert (found["items"], found["good"], found["captions"], found["broken"]) == (8, 8, 8, [])
    assert found["width"]["median"] == 60 and sum(found["splits"].values()) == 8
    words = cli("data", "inspect", address, "--out", tmp_path / "seen").out
    assert "8 items, 8 good" in words and "number 8" in words
    assert (tmp_path / "seen" / "contact_sheet.png").is_file()
    assert read_json(tmp_path / "seen" / "inspection.json")["fingerprint"] == found["fingerprint"]


# --- bad input from end to end ---


def huge_png() -> bytes:
    """30,000 × 30,000 pixels by its header, a few hundred bytes in truth."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(90_001))) + chunk(b"IEND", b"")


@pytest.fixture
def spoilt(tmp_path: Path) -> str:
    """40 good pictures, five that cannot be used, and one with 10,000 words."""
    root = tmp_path / "spoilt"
    make_photos(root, 40)
    Image.open(root / "p000.png").save(root / "whole.jpg")
    jpeg = (root / "whole.jpg").read_bytes()
    (root / "whole.jpg").unlink()
    for name, data, caption in (
        ("text.jpg", b"this is no picture", "a text"),
        ("cut.jpg", jpeg[: len(jpeg) // 2], "half a picture"),
        ("huge.png", huge_png(), "far too large"),
        ("empty.jpg", jpeg + b"1", "\n"),
        ("long.jpg", jpeg + b"2", "word " * 10_000),
    ):
        (root / name).write_bytes(data)
        (root / name).with_suffix(".txt").write_text(caption)
    (root / "silent.jpg").write_bytes(jpeg + b"3")
    return f"folder:{root}"


REASONS = {
    "text.jpg": "not an image",
    "cut.jpg": "truncated",
    "huge.png": "above the limit of 100,000,000",
    "empty.jpg": "empty caption",
    "silent.jpg": "no caption",
}


def test_inspect_lists_what_cannot_be_used(cli: Cli, spoilt: str) -> None:
    shown = cli("data", "inspect", spoilt)
    assert shown.code == 0 and "44 items, 41 good, 5 problems" in shown.out and "10000" in shown.out
    broken = {p["item"]: p["reason"] for p in json.loads(cli("data", "inspect", spoilt, "--json").out)["broken"]}
    assert broken.keys() == REASONS.keys()
    assert all(reason in broken[item] for item, reason in REASONS.items())


def test_training_passes_over_what_cannot_be_used(cli: Cli, spoilt: str, tmp_path: Path) -> None:
    done = cli("train", "clip", "--data", spoilt, "--budget", "96 samples", "--out", "run", *SMALL)
    assert done.code == 0 and "96 samples" in done.out
    found = {p["item"]: p["reason"] for p in read_jsonl(tmp_path / "run" / "problems.jsonl")}
    in_training = {path.name for path in (tmp_path / "spoilt").iterdir()} & found.keys()
    assert {"empty.jpg", "silent.jpg"} <= in_training <= REASONS.keys()
    assert len(in_training) >= 3, "at least one of the three that only decoding finds is in the training part"
    assert all(REASONS[item] in reason for item, reason in found.items())
    shown = cli("evaluate", "run", "--split", "all", "--tasks", "retrieval", "--data", spoilt)
    assert shown.code == 0
    assert {p["item"] for p in read_jsonl(tmp_path / "run" / "evaluation" / "problems.jsonl")} == {
        "text.jpg",
        "cut.jpg",
        "huge.png",
    }
    assert read_json(tmp_path / "run" / "evaluation" / "summary.json")["results"][0]["n"] == 41


def test_data_of_which_nothing_can_be_used(cli: Cli, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_text(f"no picture {i}")
        (tmp_path / f"{i}.txt").write_text("a caption")
    for command in (["train", "clip", "--out", "run", *SMALL, "--data"], ["data", "inspect"], ["data", "show"]):
        outcome = cli(*command, f"folder:{tmp_path}")
        assert outcome.code == 1 and "no usable" in outcome.err, command
    assert "not an image" in cli("train", "clip", "--out", "again", *SMALL, "--data", f"folder:{tmp_path}").err


def test_tables_that_cannot_be_used(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    make_photos(tmp_path, 1)
    (tmp_path / "wrong.csv").write_text("image,words\np000.png,red\n")
    (tmp_path / "blank.csv").write_text("image,caption\n")
    (tmp_path / "gone.csv").write_text("image,caption\nnowhere.png,red\n")
    for address, words in (
        ("folder:none", "empty data set"),
        ("csv:wrong.csv", "no caption column (looked for caption"),
        ("csv:blank.csv", "empty data set"),
        ("csv:gone.csv", "there is no file"),
    ):
        for command in (["train", "clip", "--out", "run", "--data"], ["data", "inspect"], ["compare", "clip", "--data"]):
            outcome = cli(*command, address)
            assert outcome.code == 1 and words in outcome.err, (command, address)
    assert cli("data", "inspect", "csv:wrong.csv?caption=words").code == 0, "the remedy that the message names"


def test_a_missing_file_is_one_problem_among_good_items(cli: Cli, tmp_path: Path) -> None:
    make_photos(tmp_path, 30)
    rows = "".join(f"p{i:03d}.png,picture {i}\n" for i in range(31))
    (tmp_path / "t.csv").write_text(f"image,caption\n{rows}")
    assert "30 good, 1 problem," in cli("data", "inspect", "csv:t.csv").out
    assert cli("train", "clip", "--data", "csv:t.csv", "--budget", "32 samples", "--out", "run", *SMALL).code == 0
    problems = tmp_path / "run" / "problems.jsonl"
    assert [p["item"] for p in read_jsonl(problems)] == ["p030.png"]
    Image.new("RGB", (32, 32), "red").save(tmp_path / "p030.png")  # found again, and others lost
    lost = [f"p{i:03d}.png" for i in range(8)]
    for name in lost:
        (tmp_path / name).unlink()
    again = cli("train", "clip", "--data", "csv:t.csv", "--budget", "160 samples", "--out", "run", "--resume", *SMALL)
    assert again.code == 0, again.err
    found = [p["item"] for p in read_jsonl(problems)]
    assert "p030.png" in found and set(found) & set(lost), "a resumed run forgets no problem"


# --- train, evaluate, report ---


def test_train_evaluate_report(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", "clip", "--budget", "64 samples", "--seed", 5, *SMALL)
    assert done.code == 0 and "64 samples" in done.out and "diptych evaluate runs/clip" in done.out
    assert load_recipe("runs/clip").seed == 5
    assert (again := cli("train", "clip", "--budget", "64 samples", *SMALL)).code == 1
    assert "--resume" in again.err
    shown = cli("evaluate", "runs/clip", "--tasks", "retrieval,embedding,captions")
    assert shown.code == 0
    assert "image-to-text/recall@1" in shown.out and "captions: skipped, the model cannot write a text about an image" in shown.out
    made = cli("report", "runs/clip")
    page = (tmp_path / "runs" / "clip" / "report.html").read_text(encoding="utf-8")
    assert made.code == 0 and "Retrieval" in page and 'src="http' not in page
    again = cli("train", "runs/clip", "--out", "copy")
    assert again.code == 0 and load_recipe("copy") == load_recipe("runs/clip"), "a run directory repeats itself"


def test_a_summary_can_be_read_on_a_narrow_terminal(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli("evaluate", run, "--tasks", "retrieval", "--out", "here").out
    assert "image-to-text/recall@10" in shown and "…" not in shown
    other = ("evaluate", run, "--tasks", "retrieval", "--out", "here", "--split", "train")
    assert (refused := cli(*other)).code == 1 and "here holds records of other data" in refused.err
    assert cli(*other, "--overwrite").code == 0


def test_evaluate_where_nothing_can_be_judged(cli: Cli, run: Path, tmp_path: Path) -> None:
    outcome = cli("evaluate", run, "--tasks", "captions", "--out", "out")
    assert outcome.code == 1 and "nothing could be evaluated" in outcome.err
    assert "\n  captions: the model cannot write a text about an image\n" in outcome.err and not outcome.out
    assert re.search(r"tasks that this model can do: --tasks retrieval,[\w,-]+\n", outcome.err)
    assert '"task": "captions"' in cli("evaluate", run, "--tasks", "captions", "--out", "out", "--json").out
    few = make_photos(tmp_path / "few", 1)
    assert (
        "needs two usable items"
        in cli("evaluate", run, "--data", few, "--split", "all", "--tasks", "retrieval", "--out", "out").err
    )
    assert "did you mean 'retrieval'" in cli("evaluate", run, "--tasks", "retreival").err
    assert cli("evaluate", run, run, "--out", "x").code == 1


def test_resume_goes_on_with_what_the_run_was_started_with(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", "clip", "--budget", "32 samples", "--out", "a", *SMALL).code == 0
    more = cli("train", "clip", "--budget", "64 samples", "--out", "a", "--resume")
    assert more.code == 0 and "4 steps, 64 samples" in more.out
    assert dp.train("clip", budget="96 samples", out="a", resume=True).spent["steps"] == 6
    other = cli("train", "siglip", "--out", "a", "--resume")
    assert other.code == 1 and "holds a run of 'clip'" in other.err


def test_a_directory_named_as_a_recipe_does_not_hide_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "photo.txt").touch()
    assert cli("train", "clip", "--budget", "16 samples", "--out", "siglip", *SMALL).code == 0
    assert cli("train", "siglip", "--budget", "16 samples", "--out", "b", *SMALL).code == 0
    assert load_recipe("b").name == "siglip" and load_recipe("./siglip").name == "clip"
    assert dp.load("siglip").recipe.name == "clip", "where a run is expected, the directory is meant"


# --- from Python ---


def test_python_interface(run: Path, tmp_path: Path) -> None:
    model = dp.load(run, device="cpu")
    source = dp.open_source("scenes:small").split("test")
    images, texts = [source[i].image for i in range(3)], [source[i].captions[0] for i in range(4)]
    scores = model.score(images, texts)
    assert (
        scores.shape == (3, 4) and model.name == "mine" and model.capabilities == {"score", "embed_image", "embed_text", "locate"}
    )
    with pytest.raises(DiptychError, match="cannot generate"):
        model.generate(images)
    by_path = dp.evaluate(run, "scenes:small", tasks=["retrieval"])
    by_model = dp.evaluate(model, source, tasks=["retrieval"], out=tmp_path)
    assert (run / "evaluation" / "summary.json").is_file() and (tmp_path / "summary.json").is_file()
    assert [r.value for r in by_path.results] == [r.value for r in by_model.results]
    assert by_path.value("retrieval", "image-to-text/recall@1") is not None
    with pytest.raises(DiptychError, match="no run at"):
        dp.load(tmp_path / "nothing")
    with pytest.raises(DiptychError, match="did you mean 'siglip'"):
        dp.train("sigllip", out=tmp_path / "x")
    with pytest.raises(AttributeError):
        _ = dp.compares
