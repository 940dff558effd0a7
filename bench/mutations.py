"""What is changed in mutation testing: each mutant is one operator, comparison, number or condition of a source file; a seeded
sample of each area is tried (``bench.mutants``)."""

from __future__ import annotations

import ast
import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAMPLE, SEED = 300, 0
BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Pow_Mul", "Mod_Mul", "BitOr_BitAnd", "BitAnd_BitOr")
COMPARISONS = ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "Gt_Lt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")
OTHERS = (
    *(f"ReplaceUnaryOperator_{name}" for name in ("USub_UAdd", "Delete_Not")),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop"),
)
OPERATORS = [
    f"core/{name}"
    for name in (*(f"ReplaceBinaryOperator_{n}" for n in BINARY), *(f"ReplaceComparisonOperator_{n}" for n in COMPARISONS), *OTHERS)
]


@dataclass(frozen=True)
class Area:
    """Sources, as files or folders of src/diptych, the folders of tests that should find their mutants, and how many are drawn
    (None: all)."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int | None = SAMPLE


AREAS = {
    "objectives": Area(("objectives",), ("tests/objectives", "tests/models")),
    "models": Area(("models/layers", "models/connectors", "models/decoders", "models/fusion", "models/space.py", "models/text", "models/vision"), ("tests/models",)),
    "training": Area(("training",), ("tests/training", "tests/core")),
    "generation": Area(("inference/generate.py", "inference/chat.py", "inference/fewshot.py", "inference/run.py"), ("tests/inference",)),
    "curation": Area(("curation",), ("tests/curation",)),
    "statistics": Area(("benchmarks/statistics.py", "benchmarks/crossed.py", "study/verdict.py", "core/special.py"), ("tests/benchmarks/test_statistics.py", "tests/comparison/test_paired.py", "tests/study/test_verdict.py", "tests/core/test_special.py"), None),
    "metrics": Area(("benchmarks/metrics",), ("tests/benchmarks",), None),
    "readers": Area(("data/sources",), ("tests/data",), None),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str  # relative to the root
    line: int
    operator: str
    occurrence: int
    source: str  # hash of the file

    @property
    def id(self) -> str:
        """Stays the same while the file does."""
        return hashlib.sha256(f"{self.file} {self.source} {self.operator} {self.occurrence}".encode()).hexdigest()[:10]


# --- mutants ---


def mutants(area: Area) -> list[Mutant]:
    """Every mutant of the area, in a fixed order."""
    files = [
        f for s in area.sources for p in [ROOT / "src" / "diptych" / s] for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p])
    ]
    return [m for file in files for m in mutants_of(file)]


def mutants_of(file: Path) -> Iterator[Mutant]:
    """The mutants of a file, without those in annotations, which are never evaluated."""
    from cosmic_ray.ast import get_ast
    from cosmic_ray.plugins import get_operator

    code = file.read_text(encoding="utf-8")
    idle = annotations(code)
    tree = get_ast(code)
    name, source = str(file.relative_to(ROOT)), hashlib.sha256(code.encode()).hexdigest()[:12]
    nodes = list(_nodes(tree))
    for operator in OPERATORS:
        instance = get_operator(operator)()
        places = ((node, place) for node in nodes for place in instance.mutation_positions(node))
        for occurrence, (node, ((line, column), _)) in enumerate(places):  # marks are counted, as ``mutated`` counts them
            if not _is_a_mark(node) and not any(first <= (line, column) < last for first, last in idle):
                yield Mutant(name, line, operator.removeprefix("core/"), occurrence, source)


def mutated(code: str, operator: str, occurrence: int) -> str | None:
    """The changed source; None if it stays the same."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(code, get_operator(operator)(), occurrence)
    return None if changed is None or changed == code else str(changed)


def difference(before: str, after: str) -> tuple[str, str]:
    """The first line that differs, of both."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    return next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("", ""))


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in getattr(node, "children", ()):
        yield from _nodes(child)


def _is_a_mark(node: Any) -> bool:
    """Whether an asterisk is not multiplication but a mark: of keyword-only arguments in a signature, or of a mapping in a
    display."""
    marks = ("parameters", "lambdef", "dictorsetmaker", "atom")
    return getattr(node, "value", None) in ("*", "/", "**") and node.parent.type in marks


def annotations(code: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end, (line, column)."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(code)):
        found += [a for a in (getattr(node, "annotation", None), getattr(node, "returns", None)) if a is not None]
    return [((a.lineno, a.col_offset), (a.end_lineno or a.lineno, a.end_col_offset or 0)) for a in found]


def body_of(file: Path, line: int) -> range:
    """The lines of the body of the function in whose signature a line is; none if it is in no signature."""
    functions = ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ()
    for node in functions:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.lineno <= line < node.body[0].lineno:
            return range(node.body[0].lineno, (node.body[-1].end_lineno or node.lineno) + 1)
    return range(0)


def drawn(area: Area, found: list[Mutant]) -> list[Mutant]:
    """The sample, in random order: each line is as likely as any other, so that lines with many operators do not fill it."""
    rng = random.Random(SEED)
    by_line: dict[tuple[str, int], list[Mutant]] = defaultdict(list)
    for mutant in found:
        by_line[mutant.file, mutant.line].append(mutant)
    lines = sorted(by_line)
    rng.shuffle(lines)
    if area.sample is None:
        return [m for line in lines for m in by_line[line]]
    return [rng.choice(by_line[line]) for line in lines[: area.sample]]
