"""How the source is laid out: imports run downwards only, and files and folders stay small enough to find one's way."""

from __future__ import annotations

import ast
from pathlib import Path

import diptych

ROOT = Path(diptych.__file__).parent
# From the top to the bottom; the package itself stands above all.
ORDER = (
    "__main__", "cli", "api", "serve", "choose", "study", "plan", "report", "comparison", "curation", "benchmarks", "inference",
    "training", "interop", "objectives", "models", "data", "config", "core",
)  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diptych."):
            base = (node.module or "").removeprefix("diptych.")
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("diptych.") for a in node.names if a.name.startswith("diptych.")}
    return found


def layer(module: str) -> int:
    return ORDER.index(module.split(".")[0])


def test_imports_run_downwards_only() -> None:
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in FILES
        if path.parent != ROOT or path.name != "__init__.py"
        for module in imported(path)
        if layer(module) < layer(name_of(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_is_a_layer() -> None:
    assert {name_of(path).split(".")[0] for path in FILES} - {""} <= set(ORDER)


def test_files_are_short() -> None:
    long = {name_of(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_folders_are_small() -> None:
    counts = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in FILES}}
    assert not {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > 16}


def test_recipes_lie_in_a_folder_a_family() -> None:
    assert not list((ROOT / "recipes").glob("*.yaml")) and len(list((ROOT / "recipes").glob("*/*.yaml"))) >= 22


def test_public_functions_have_docstrings() -> None:
    """Functions and classes of modules; methods that override a documented one may go without."""
    wrong = []
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):  # type: ignore[arg-type]
                wrong.append(f"{name_of(path)}.{node.name}")  # type: ignore[attr-defined]
    assert not wrong, "\n".join(wrong)
