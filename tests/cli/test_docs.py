"""What README.md and docs/ show works: commands parse, recipes, tasks and plans exist, imports resolve; README.md is run as it
stands, with small budgets."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image

import cli_fixture
from cli_fixture import Cli, make_photos
from diptych.benchmarks.tasks import chosen
from diptych.cli import app
from diptych.config.recipe import load_recipe
from diptych.curation.plan import load_plan
from diptych.study import load_study

cli = cli_fixture.cli
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(kind: str, pages: list[Path] = PAGES) -> list[Any]:
    """The fenced blocks of a kind, as parameters with the place as their name."""
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == kind:
                found.append(pytest.param(match[2], id=f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}"))
    return found


def commands(pages: list[Path] = PAGES) -> list[Any]:
    """The commands ``diptych …`` of all blocks without a language, as words."""
    found = []
    for block in blocks("", pages) + blocks("sh", pages):
        for line in block.values[0].replace("\\\n", " ").splitlines():
            if line.startswith("diptych "):
                found.append(pytest.param(shlex.split(line, comments=True)[1:], id=f"{block.id} {line[8:40].strip()}"))
    return found


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb of a command line and its parameters; a usage error of click is raised."""
    command: Any = typer.main.get_command(app)
    name, context = "", command.make_context("diptych", list(words))
    while hasattr(command, "commands"):
        verb, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        name, context = f"{name} {verb}".strip(), command.make_context(verb, rest, parent=context)
    return name, context.params


def test_commands_are_found() -> None:
    assert len(commands()) > 60 and len(blocks("python")) > 10 and len(blocks("yaml")) > 5


@pytest.mark.parametrize("words", commands())
def test_a_command_of_the_docs_is_one(words: list[str]) -> None:
    verb, given = parsed(words)
    if verb == "train":
        load_recipe(str(given["recipe"]), list(given["set_"] or []))
    elif verb == "evaluate":
        chosen(given["tasks"])
    elif verb == "compare":
        for name in given["recipes"] or ():
            load_recipe(name, [])
    elif verb == "curate run":
        load_plan(given["plan"])
    elif verb == "study" and given.get("study") and not str(given["study"]).endswith(".yaml"):
        load_study(str(given["study"]))


def test_a_command_that_is_none_is_found() -> None:
    for words in (["trian", "clip"], ["train", "clip", "--bugdet", "5m"], ["curate", "explain"]):
        with pytest.raises(Exception, match="No such|Missing"):
            parsed(words)


@pytest.mark.parametrize("code", blocks("python"))
def test_imports_of_the_docs_resolve(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("diptych"):
            module = importlib.import_module(str(node.module))
            assert not [a.name for a in node.names if not hasattr(module, a.name)], node.module
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("diptych"):
                    importlib.import_module(name.name)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_of_the_docs_is_yaml(text: str) -> None:
    assert yaml.safe_load(text)


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {name for block in blocks("") for name in re.findall(r"^make ([\w-]+)", block.values[0], re.MULTILINE)}
    assert {"demo", "test"} <= shown <= targets


def test_links_of_the_docs_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8")))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


@pytest.mark.slow
def test_the_readme_runs_as_it_stands(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "my" / "photos", 40)
    small = ["--set", "stages.0.batch_size=8", "--set", "data.image_size=32"]
    for command in commands([ROOT / "README.md"]):
        words = ["32 samples" if word in ("5m", "10m") else word for word in command.values[0]]
        done = cli(*words, *(small if words[0] in ("train", "compare") else []))
        assert done.code == 0, (words, done.err)
    (snippet,) = blocks("python", [ROOT / "README.md"])
    code = snippet.values[0].replace('"10m"', '"32 samples", set=["stages.0.batch_size=8", "data.image_size=32"]')
    assert code.count("32 samples") == 2
    code = code.replace('budget="32 samples"', 'out="runs/again", budget="32 samples"')
    pictures = [str(path) for path in sorted((tmp_path / "my" / "photos").glob("*.png"))[:3]]
    names: dict[str, Any] = {"images": pictures, "texts": ["red beside green", "a dog"]}
    exec(compile(code, "README.md", "exec"), names)
    assert names["scores"].shape == (3, 2)


@pytest.mark.slow
def test_the_pages_of_curation_and_export_run_as_they_stand(cli: Cli, tmp_path: Path) -> None:
    make_photos(tmp_path / "my" / "photos", 40)
    for path in (tmp_path / "my" / "photos").glob("*.png"):
        Image.open(path).resize((360, 240)).save(path)
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "my" / "photos" / "p000.png").read_bytes())
    small = ["--set", "stages.0.batch_size=8", "--set", "data.image_size=32", "--budget", "32 samples"]
    pages = [ROOT / "docs" / name for name in ("curation.md", "exporting.md")]
    first = {page: commands([page])[:count] for page, count in zip(pages, (6, 2), strict=True)}
    cli("curate", "strict", "--data", "folder:my/photos", "--out", "runs/stricter")
    for page, shown in first.items():
        shutil.rmtree(tmp_path / "runs" / "clip", ignore_errors=True)  # of the page before
        for command in shown:
            words = ["p001.png" if word == "000285.jpg" else word for word in command.values[0]]
            data = ["--data", "folder:my/photos"] if page.name == "exporting.md" else []
            done = cli(*words, *([*small, *data] if words[0] == "train" else []))
            assert done.code == 0, (words, done.err)
        exec(compile(blocks("python", [page])[0].values[0], page.name, "exec"), names := {})
        assert names["model" if page.name == "exporting.md" else "done"] is not None
    assert (tmp_path / "runs" / "photos" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_page_of_tuning_runs_as_it_stands(cli: Cli, tmp_path: Path) -> None:
    """With a tiny model and tiny budgets."""
    import talk_fixture

    talk_fixture.llava(tmp_path / "models" / "talker")
    talk_fixture.conversations(tmp_path / "talk")
    shutil.copy(tmp_path / "talk" / "mine.json", tmp_path / "talk" / "other.json")
    shutil.copy(tmp_path / "talk" / "red-0.png", tmp_path / "talk" / "cat.png")
    shown = commands([ROOT / "docs" / "adapting-chat.md"])
    assert len(shown) == 7
    for command in shown:
        words = [word for word in command.values[0] if word not in ("--budget", "30m")]
        more = ["--budget", "2steps", "--set", "batch_size=4"] if words[0] == "adapt" else []
        done = cli(*words, *more)
        assert done.code == 0, (words, done.err)
    assert (tmp_path / "runs" / "mine" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "exports" / "apart" / "adapter" / "adapter_config.json").is_file()
    assert "talk/other.json (other)" in (tmp_path / "runs" / "mine-kept" / "before-after.md").read_text()
