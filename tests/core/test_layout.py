"""How the source is laid out: imports run downwards only, and files and folders stay small enough to find one's way."""

from __future__ import annotations

import ast
from pathlib import Path

import diptych

ROOT = Path(diptych.__file__).parent
# From the top to the bottom; the package itself stands above all.
ORDER = (
    "__main__", "cli", "api", "serve", "choose", "study", "plan", "report", "comparison", "curation", "benchmarks", "inference",
    "training", "interop", "objectives", "models", "index", "data", "config", "core",
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


def undocumented(text: str, module: str) -> list[str]:
    """``module:line name`` of public functions, methods and classes without a docstring; ``@overload`` aside."""
    found = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for name in ("body", "orelse", "handlers", "finalbody"):  # definitions under ``if`` and ``try``
                    visit(getattr(node, name, None) or [], prefix)
                continue
            if node.name.startswith("_"):
                continue
            # A setter is documented with its property.
            marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
            if not marks & {"overload", "setter", "deleter"} and not ast.get_docstring(node):
                found.append(f"{module}:{node.lineno} {prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(text).body, "")
    return found


def test_public_names_have_docstrings() -> None:
    """Of methods also those that override another: they say what this class does differently."""
    wrong = [entry for path in FILES for entry in undocumented(path.read_text(encoding="utf-8"), name_of(path))]
    assert not wrong, "\n".join(wrong)


def test_a_missing_docstring_is_found() -> None:
    text = (
        "class A:\n    'It.'\n    def run(self):\n        def inner(): ...\n    def _own(self): ...\nif True:\n    def f(): ...\n"
    )
    assert undocumented(text, "m") == ["m:3 A.run", "m:7 f"]
