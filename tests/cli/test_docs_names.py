"""What README.md and docs/ name is there: recipes and their variants, tasks, pages of systems, commands within text, pictures; and
figures that a page repeats are those of the record or of the page that they come from."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from test_docs import BLOCK, PAGES, ROOT, parsed

from diptych.benchmarks.tasks import TASKS, task
from diptych.config.recipe import load_recipe, recipe_names, recipe_variants
from diptych.config.untrained import UNTRAINED
from diptych.core.errors import DiptychError

DOCS = ROOT / "docs"
SYSTEMS = sorted((DOCS / "systems").glob("*.md"))
TEXTS = [*PAGES, *SYSTEMS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
NAME = re.compile(r"\[?`([^`]+)`")
IDS = {"ids": lambda page: page.name}


def prose(page: Path) -> str:
    """A page without its fenced blocks, which test_docs.py checks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def tables(page: Path) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the heads first, without the line below them."""
    found: list[list[list[str]]] = [[]]
    for line in prose(page).splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[-1] += [] if all(re.fullmatch(r":?-+:?", cell) for cell in cells) else [cells]
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def named(page: Path, head: str) -> list[str]:
    """The names in backticks in the first column of the tables with this head."""
    rows = [row for table in tables(page) if table[0][0] == head for row in table[1:]]
    return [name for row in rows for name in NAME.findall(row[0])]


def check_recipe(name: str) -> None:
    """Raises DiptychError if there is no such recipe, variant or model without training."""
    if name not in UNTRAINED.names():
        load_recipe(name, [])


def spans(page: Path) -> list[str]:
    """Commands ``diptych …`` in the text of a page, without those that leave words out or stand for any verb."""
    found = [span.replace("\n", " ") for span in re.findall(r"`(diptych [^`]+)`", prose(page))]
    return [span for span in found if not re.search(r"…|\[| VERB", span)]


def check_command(span: str) -> None:
    """Raises an error for a command, option, recipe or task that is not there. In text a command may lack what it needs."""
    words = shlex.split(span)[1:]
    try:
        verb, given = parsed(words)
    except Exception as error:  # typer may bring its own click, with types of its own
        if type(error).__name__ in ("Exit", "NoArgsIsHelpError") or "Missing" in str(error):  # --help, or a mere mention
            return
        raise
    names = [given["recipe"]] if verb == "train" else given.get("recipes") or [] if verb == "compare" else []
    for name in names:
        if re.fullmatch(r"[a-z0-9@-]+", str(name)):  # RECIPE stands for any, and a path is the reader's own
            check_recipe(str(name))
    if verb in ("evaluate", "compare") and given.get("tasks"):
        for address in given["tasks"].split(","):
            if ":" not in address.partition("?")[0]:
                task(address.strip())


def test_the_checks_find_what_is_not_there() -> None:
    for wrong in ("clipp", "clip@untuned"):
        with pytest.raises(DiptychError, match=r"clipp|untuned"):
            check_recipe(wrong)
    for span in ("diptych trian clip", "diptych train clip --bugdet 5m", "diptych compare clip negclipp", "diptych data pakc"):
        with pytest.raises(Exception, match=r"No such|negclipp"):
            check_command(span)
    with pytest.raises(DiptychError, match="no task|retreival"):
        check_command('diptych evaluate RUN --tasks "retreival?n=50"')
    check_command("diptych train RECIPE --budget 5m")
    check_command("diptych data pack")


@pytest.mark.parametrize("page", TEXTS, **IDS)  # type: ignore[arg-type]
def test_commands_within_text_are_some(page: Path) -> None:
    for span in spans(page):
        check_command(span)


@pytest.mark.parametrize("page", TEXTS, **IDS)  # type: ignore[arg-type]
def test_recipes_in_tables_and_variants_are_there(page: Path) -> None:
    for name in named(page, "recipe"):
        if re.fullmatch(r"[a-z0-9@-]+", name):  # not a setting that stands beside the name
            check_recipe(name)
    for name in re.findall(r"`([a-z0-9-]+@[a-z0-9-]+)`", prose(page)):
        assert name in recipe_variants(), name


def test_the_list_of_recipes_is_complete() -> None:
    assert sorted(named(DOCS / "recipes.md", "recipe")) == sorted([*recipe_names(), *UNTRAINED.names()])
    counts = re.findall(r"(\d+) systems", (ROOT / "README.md").read_text(encoding="utf-8"))
    systems = [name for name in recipe_names() if load_recipe(name).score != "none"]  # not backbones of others
    assert counts == [str(len(systems))]


def test_the_list_of_tasks_is_complete() -> None:
    named_there = set(named(DOCS / "evaluation.md", "task"))
    assert named_there >= set(TASKS) and named_there - set(TASKS) <= set(recipe_names())  # some cells say for which recipes


def test_each_recipe_with_results_has_a_page_and_each_page_has_results() -> None:
    results = [DOCS / "results.md", DOCS / "results-clips.md"]
    # Variants are on the page of their recipe.
    shown = {name.partition("@")[0] for page in results for name in named(page, "recipe")}
    without = {n for page in results for n in re.findall(r"^- `([^`]+)`: not run", page.read_text(encoding="utf-8"), re.MULTILINE)}
    pages = {page.stem for page in SYSTEMS}
    alone = {
        name for name in recipe_names() if load_recipe(name).score == "none"
    }  # no images, so nothing to compare: a page, no row
    alone |= set(UNTRAINED.names())  # no training, so no budget at which to compare
    assert shown <= pages and alone <= pages and pages - shown <= without | alone
    for page in SYSTEMS:
        assert page.read_text(encoding="utf-8").startswith(f"# {page.stem}\n")
        check_recipe(page.stem)


def test_links_and_pictures_of_every_page_are_there() -> None:
    for page in TEXTS:
        text = re.sub(r"`[^`]*`", "", prose(page))
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) + re.findall(r"<img [^>]*src=\"([^\"]+)\"", text)
        broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
        assert not broken, (page.name, broken)


def test_every_picture_is_shown_somewhere() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in TEXTS)
    pictures = [path for path in DOCS.rglob("*") if path.suffix in (".png", ".svg", ".jpg")]
    assert pictures and not [path.name for path in pictures if path.name not in text]


# --- figures that are repeated ---


def values(page: Path) -> dict[tuple[str, str], str]:
    """(recipe, column) → the cell, of the tables of recipes with a column ``seeds`` (results) or ``samples`` (what was spent)."""
    found = {}
    for heads, *rows in tables(page):
        for row in rows if heads[0] == "recipe" and heads[1] in ("seeds", "samples") else ():
            for head, cell in zip(heads[1:], row[1:], strict=True):
                found[NAME.findall(row[0])[0], head] = cell
    return found


SHORT = {"Zero-shot naming: top-1": "naming", "Generated captions: CIDEr": "CIDEr"}


def column_of(row: str) -> str:
    """The column of results.md that a row of a system's page is of: "Skills: count" → "count"."""
    group, _, what = row.partition(": ")
    if group.startswith("Retrieval of clips"):
        return f"R@1 of clips, {what}"
    if group.startswith("Retrieval"):
        return f"R@1 of 1,000, {what}" if "1,000" in group else f"R@1, {what}"
    return SHORT.get(row, what)


def test_pages_of_systems_repeat_the_table_of_results() -> None:
    whole = values(DOCS / "results.md") | values(DOCS / "results-clips.md")
    assert len(whole) > 100
    for page in SYSTEMS:
        own = [table for table in tables(page) if "each seed" in table[0]]
        if not own and (
            page.stem in UNTRAINED.names()
            or "not run" in page.read_text(encoding="utf-8")
            or load_recipe(page.stem).score == "none"
        ):
            continue
        assert len(own) == 1, page.name
        name, compared = own[0][0][1].strip("`"), 0
        assert name.partition("@")[0] == page.stem
        for row in own[0][1:]:
            expected = whole.get((name, column_of(row[0])))
            if expected is not None:
                assert row[1].strip("*_") == expected.strip("*_"), (page.name, row[0])
                compared += 1
        assert compared >= 10, page.name
        assert {k: v for k, v in values(page).items()} == {k: v for k, v in whole.items() if k in values(page)}, page.name


DEMO = ROOT / "bench" / "results" / "demo.json"


@pytest.mark.skipif(not DEMO.is_file(), reason="no record of the demo is committed")
def test_the_tables_of_the_demo_are_those_of_its_record() -> None:
    from bench.demo import claims, main_table, seeds_table

    record = json.loads(DEMO.read_text(encoding="utf-8"))
    assert main_table(record) in (DOCS / "tour.md").read_text(encoding="utf-8")
    assert seeds_table(record) in (DOCS / "measured.md").read_text(encoding="utf-8")
    assert claims(record) == []
