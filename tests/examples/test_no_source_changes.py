"""A new system is a YAML and a file: the examples use what is public, and the package knows none of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

import diptych
from diptych.choose.towers import TOWER_WAYS
from diptych.choose.ways import WAYS

SOURCE = Path(diptych.__file__).parent
EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(path for path in EXAMPLES.iterdir() if (path / "recipe.yaml").is_file())
PAPERS = ("clap", "ipot")  # what the examples are named after, beside their folders


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_an_example_is_a_yaml_and_at_most_one_file(folder):
    files = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
    python = {name for name in files if name.endswith(".py")}
    assert len(python) <= 1 and {"README.md", "recipe.yaml"} <= files
    recipes = {name for name in files if name.endswith(".yaml")}
    assert files == python | recipes | {"README.md"}
    assert yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["cite"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_an_example_uses_public_names_only(folder):
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                names = [node.attr]
            else:
                continue
            private = [part for name in names for part in name.split(".") if part.startswith("_") and not part.startswith("__")]
            assert not private, f"{path.name}, line {node.lineno}: {', '.join(private)}"
            # to set something in a module or class of the package would be a change of it
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and isinstance(node.value, ast.Name):
                assert node.value.id not in imported(path), f"{path.name}, line {node.lineno}: sets {node.value.id}.{node.attr}"


def imported(path: Path) -> set[str]:
    """Names that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {(alias.asname or alias.name).split(".")[0] for node in nodes for alias in node.names}


def spoken(path: Path) -> tuple[set[str], list[str]]:
    """Identifiers of a file, and its strings that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names, strings, documentation = set(), [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                documentation.add(id(body[0].value))
            names |= {getattr(node, "name", "")}
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.alias):
            names |= set(node.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            strings.append(node.value)
    return names, strings


def test_the_package_knows_no_example():
    classes = {
        node.name
        for folder in FOLDERS
        for path in folder.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    own = {
        node.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    classes -= own  # the package may have a class of the same name
    called = ({folder.name for folder in FOLDERS} | set(PAPERS)) - {*WAYS, *TOWER_WAYS}  # a way of adapting may have an example
    assert classes and called
    words = re.compile(rf"\b({'|'.join(sorted(called))})\b", re.IGNORECASE)
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        names, strings = spoken(path)
        where = path.relative_to(SOURCE)
        found += [f"{where}: {name}" for name in names & (called | classes)]
        found += [f"{where}: {text!r}" for text in strings if words.search(text)]
    for path in sorted(SOURCE.rglob("*.yaml")):
        found += [f"{path.relative_to(SOURCE)}: {m[0]}" for m in words.finditer(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)
