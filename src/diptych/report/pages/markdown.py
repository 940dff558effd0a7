"""A comparison as Markdown: ``results.md`` with every recipe, and a page for each, from recipes, runs and tests on disk."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from diptych.config.recipe import load_recipe, recipe_names, recipe_path
from diptych.config.variants import split_name
from diptych.core.errors import DiptychError, counted
from diptych.core.files import write_text
from diptych.report.columns import SIGNIFICANT, Column, amount, columns, interval, number, p_holm, seconds
from diptych.report.read import Comparison, Recipe, load

REFERENCE = "clip"  # every recipe is compared with it, if it is one of them


def reference_of(comparison: Comparison) -> str:
    """The recipe that all others are compared with: ``REFERENCE``, or the first if it is none of them."""
    names = [r.name for r in comparison.recipes]
    return REFERENCE if REFERENCE in names or not names else names[0]


def write_markdown(
    directory: Path, out: Path, tests: Path | None = None, more: Sequence[str] = (), name: str = "results.md"
) -> Path:
    """The path of ``out/NAME``, written with ``out/systems/<recipe>.md`` from a comparison.

    tests: a JUnit file (``pytest --junitxml``); each page lists the tests that name its recipe. more: further lines of the page of
    all. name: of that page. A section "Notes" of a page that is there already is kept.
    """
    comparison = load(directory)
    if not comparison.measured:
        raise DiptychError(f"{directory}: no recipe has results yet; let `diptych compare` finish one first")
    shown = [c for c in columns(comparison) if sum(c.key in r.measures for r in comparison.recipes) > 1]
    passed = recipe_tests(tests, [r.name for r in comparison.recipes]) if tests else {}
    for recipe in comparison.recipes:
        if recipe.name in recipe_names():
            page = out / "systems" / f"{recipe.name}.md"
            write_text(page, system_page(comparison, recipe, shown, passed.get(recipe.name), notes_of(page), name))
    path = out / name
    write_text(path, results_page(comparison, shown) + "\n".join(["", *more, ""] if more else []))
    return path


# --- the page of all ---


def results_page(comparison: Comparison, shown: Sequence[Column]) -> str:
    """The page of all recipes, Markdown."""
    reference = reference_of(comparison)
    counts = sorted({len(r.runs) for r in comparison.measured})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else counted(counts[0], "seed")
    head = [
        f"# {comparison.title}",
        "",
        f"`{comparison.command}`",
        "",
        f"{counted(len(comparison.measured), 'recipe')}, each with the same budget of {comparison.budget} and {seeds}, on "
        f"`{comparison.data}`; {comparison.created}; {environment(comparison)}.",
        "",
        f"Per cent (CIDEr: points), mean over seeds; in brackets the 95 % interval {over(comparison)}. "
        "**Bold**: the best of a column. Italic: the interval includes chance.",
        "",
    ]
    rows = [
        [f"[`{r.name}`]({page_of(r.name)})", str(len(r.runs)), *(cell(comparison, c, r) for c in shown)]
        for r in comparison.measured
    ]
    lines = [*head, table(["recipe", "seeds", *(short(c) for c in shown)], rows), "", "## What each is good at", ""]
    lines += [
        f"Compared with `{reference}`. Only differences that a paired test on the same items shows (p < {SIGNIFICANT} after "
        f"Holm's correction over all {'pairs with it' if all(reference in (t.a, t.b) for t in comparison.tests) else 'pairs'}).",
        "",
    ]
    lines += [f"- [`{r.name}`]({page_of(r.name)}): {verdict(comparison, r, shown)}" for r in comparison.measured]
    lines += ["", "## What was spent", "", spent_table(comparison.measured)]
    missing = [r for r in comparison.recipes if not r.measures]
    if missing:
        lines += ["", "## Without results", "", *(f"- `{r.name}`: {r.error or 'not run'}" for r in missing)]
    return "\n".join(lines) + "\n"


def over(comparison: Comparison) -> str:
    """What the intervals cover."""
    kinds = {m.over_seeds for r in comparison.measured for m in r.measures.values()}
    both = "over test items and seeds"
    if kinds == {True}:
        return both
    return "over test items" if True not in kinds else f"{both} (over items alone where there are fewer than three seeds)"


def page_of(name: str) -> str:
    """The page of a recipe, relative to results.md; a variant is on that of its recipe."""
    return f"systems/{split_name(name)[0]}.md"


def notes_of(page: Path) -> str:
    """The section "Notes" of a page, which people write; empty if there is none."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = re.search(r"^## Notes\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[0].strip() if found else ""


def environment(comparison: Comparison) -> str:
    """The machine and the versions, in one line."""
    e = comparison.environment
    packages = e.get("packages") or {}
    facts = [f"{e['cores']} cores" if "cores" in e else "", str(e.get("platform", "")), f"Python {e.get('python', '?')}"]
    facts += [f"{name} {packages[name]}" for name in ("torch", "transformers") if packages.get(name)]
    return ", ".join(t for t in facts if t)


def cell(comparison: Comparison, column: Column, recipe: Recipe) -> str:
    """The value of a recipe in a column, with its interval."""
    m = recipe.measures.get(column.key)
    if m is None:
        return "—"
    sign = 1 if column.higher_is_better else -1
    best = max(sign * r.measures[column.key].value for r in comparison.measured if column.key in r.measures)
    value = number(m.value, column.share)
    value = f"**{value}**" if sign * m.value == best else f"*{value}*" if m.at_chance else value
    return f"{value} [{interval(m, column.share)}]"


def spent_table(recipes: Iterable[Recipe]) -> str:
    """What each recipe spent, Markdown."""
    recipes = list(recipes)
    pretrained = any("pretraining_flops" in r.spent for r in recipes)  # of backbones, which are trained once for several runs
    heads = [
        "recipe",
        "samples",
        "TFLOP",
        *(["pretraining TFLOP"] if pretrained else []),
        "seconds",
        "samples/s",
        "parameters",
        "trained",
        "peak memory",
    ]
    rows = []
    for r in recipes:
        s = r.spent
        flops = f"{s['flops'] / 1e12:.1f}" if "flops" in s else "—"
        before = f"{s['pretraining_flops'] / 1e12:.1f}" if s.get("pretraining_flops") is not None else "—"
        memory = f"{amount(s.get('peak_memory_bytes'))}B"
        rows.append(
            [f"`{r.name}`", amount(s.get("samples")), flops, *([before] if pretrained else []), seconds(s.get("seconds")),
             amount(s.get("samples_per_second")), amount(s.get("parameters")), amount(s.get("trainable_parameters")), memory]
        )  # fmt: skip
    return table(heads, rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


# --- a recipe in one line ---


def verdict(comparison: Comparison, recipe: Recipe, shown: Sequence[Column]) -> str:
    """The strengths and weaknesses of a recipe by the paired tests."""
    have = [c for c in shown if c.key in recipe.measures]
    if not have:
        return "not measured."
    chance = [short(c) for c in have if recipe.measures[c.key].at_chance]
    reference = next((r for r in comparison.measured if r.name == reference_of(comparison)), None)
    sentences = []
    if reference is None or reference.name == recipe.name:
        others = [r for r in comparison.measured if r.name != recipe.name]
        ahead = [
            c.name for c in have if others and all(_gain(comparison, c, recipe, r)[1] > 0 for r in others if c.key in r.measures)
        ]
        sentences += [f"significantly better than all others at {_list(ahead) or 'nothing'}"]
    else:
        both = [c for c in have if c.key in reference.measures]
        gains = {c: _gain(comparison, c, recipe, reference) for c in both}
        better = sorted((c for c in both if gains[c][1] > 0), key=lambda c: -gains[c][0])
        worse = sorted((c for c in both if gains[c][1] < 0), key=lambda c: gains[c][0])
        sentences += [f"better at {_list(_by(c, gains[c][0]) for c in better)}"] if better else []
        sentences += [f"worse at {_list(_by(c, gains[c][0]) for c in worse)}"] if worse else []
        if not better and not worse:
            sentences += ["no difference shown"]
        alone = [f"{short(c)} {number(recipe.measures[c.key].value, c.share)}" for c in have if c not in both]
        sentences += [f"not measured for `{reference_of(comparison)}`: {_list(alone)}"] if alone else []
    sentences += [f"at chance: {_list(chance)}"] if chance else []
    return "; ".join(sentences) + "."


def _gain(comparison: Comparison, column: Column, a: Recipe, b: Recipe) -> tuple[float, int]:
    """The difference of a from b, and whether the paired test shows it: 1, −1 or 0 (not significant)."""
    sign = 1 if column.higher_is_better else -1
    gain = sign * (a.measures[column.key].value - b.measures[column.key].value)
    p = p_holm(comparison.tests, column.key, a.name, b.name)
    return gain, 0 if p is None or p >= SIGNIFICANT or gain == 0 else 1 if gain > 0 else -1


def _by(column: Column, gain: float) -> str:
    return f"{short(column)} ({'+' if gain > 0 else ''}{number(gain, column.share)})"


def _list(names: Iterable[str], most: int = 5) -> str:
    """The first names, and the number of the others."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def short(column: Column) -> str:
    """A short name of a column, for wide tables."""
    if column.group.startswith("Retrieval"):
        return f"{column.group.replace('Retrieval of ', 'R@1 of ').replace('Retrieval, ', '').replace(', R@1', '')}, {column.label}"
    return "naming" if column.group == "Zero-shot naming" else column.label


# --- the page of one recipe ---


def system_page(
    comparison: Comparison,
    recipe: Recipe,
    shown: Sequence[Column],
    tests: Mapping[str, tuple[int, int]] | None,
    notes: str = "",
    name: str = "results.md",
) -> str:
    """The page of one recipe, Markdown, with its variants and the reference. notes: a section of that name. name: of the page of
    all.
    """
    path = recipe_path(recipe.name)
    source = path.read_text(encoding="utf-8")
    checked = load_recipe(recipe.name)
    comments = [line.lstrip("# ").rstrip() for line in source.splitlines() if line.startswith("#")]
    parts = [
        f"`{name}`: {_spec(p.kind, {**p.options, **({'frozen': True} if p.frozen else {})})}" for name, p in checked.parts.items()
    ]
    stages, whole = [], sum(stage.share for stage in checked.stages)
    for stage in checked.stages:
        losses = ", ".join(f"{o.weight:g} × {_spec(o.kind, o.options)}" for o in stage.objectives.values())
        trains = "all parts" if stage.train == "all" else ", ".join(stage.train)
        share = f"{stage.share / whole:.0%} of the budget, batches of {stage.batch_size}"
        stages.append(f"`{stage.name}` ({share}; trains {trains}): {losses}")
    lines = [f"# {recipe.name}", "", " ".join(comments) if comments else checked.about, "", f"{checked.cite}.", ""]
    lines += ["| | |", "|---|---|", f"| paradigm | {checked.paradigm} |", f"| parts | {'<br>'.join(parts)} |"]
    lines += [f"| stages | {'<br>'.join(stages)} |", f"| scored by | {checked.score.replace('_', ' ')} |", ""]
    lines += [notes, ""] if notes else []
    lines += ["## Measured", ""]
    others = [r for r in comparison.measured if r.name != recipe.name and split_name(r.name)[0] == recipe.name]
    first = recipe if recipe.measures or not others else others.pop(0)  # a variant, where the recipe itself was not measured
    others += [r for r in comparison.measured if r.name == reference_of(comparison) and r.name != first.name]
    if not recipe.measures:
        lines += [f"Not `{recipe.name}` itself: {recipe.error or 'not run'}.", ""]
    if first.measures:
        lines += [f"`{first.name}` compared with `{reference_of(comparison)}`: {verdict(comparison, first, shown)}", ""]
        rows = []
        for c in (c for c in shown if c.key in first.measures):
            m = first.measures[c.key]
            each = " · ".join(number(v, c.share) for _, v in sorted(m.seeds.items()))
            chance = number(m.chance, c.share) if m.chance is not None else "—"
            rows.append([c.name, cell(comparison, c, first), each, chance, *(cell(comparison, c, r) for r in others)])
        lines += [table(["", f"`{first.name}`", "each seed", "chance", *(f"`{r.name}`" for r in others)], rows), ""]
        lines += [spent_table([first, *others]), ""]
        lines += [f"`{comparison.command}`. All recipes, and the meaning of bold and italic: [results](../{name})."]
    if tests:
        lines += [
            "",
            "## Tested",
            "",
            *(f"- `{file}`: {counted(n, 'test')}{f', {bad} failed' if bad else ''}" for file, (n, bad) in tests.items()),
        ]
    lines += [
        "",
        "## The recipe",
        "",
        f"`recipes/{path.parent.name}/{path.name}`. Train it: `diptych train {recipe.name} --data ADDRESS --budget 10m`",
        "",
    ]
    body = "\n".join(line for line in source.splitlines() if not line.startswith("#"))
    return "\n".join([*lines, "```yaml", body, "```", ""])


def _spec(kind: str, options: Mapping[str, object]) -> str:
    listed = ", ".join(f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items())
    return f"{kind} ({listed})" if listed else kind


def recipe_tests(junit: Path, names: Sequence[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """{recipe: {test file: (tests that ran, failures)}}: those of ``test_<recipe>.py`` and those that name the recipe."""
    try:
        cases = list(ElementTree.parse(junit).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        raise DiptychError(f"{junit}: not a JUnit file ({error}); write one with `pytest --junitxml {junit}`") from None
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for case in cases:
        if case.find("skipped") is not None:
            continue
        place = case.get("classname", "").split(".")
        module = next((part for part in place if part.startswith("test_")), "")
        file = f"{'/'.join(place[: place.index(module) + 1])}.py" if module else ""
        bad = case.find("failure") is not None or case.find("error") is not None
        words = set(re.split(r"[^a-z0-9]+", f"{module} {case.get('name', '')}".lower()))
        for name in names:
            if set(name.split("-")) <= words:
                n, failed = counts.setdefault(name, {}).get(file, (0, 0))
                counts[name][file] = (n + 1, failed + bad)
    return counts
