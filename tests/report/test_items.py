"""The list of items: its data, two evaluations side by side, the summary page, and the page in Chromium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cli_fixture
from cli_fixture import Cli
from diptych.benchmarks.statistics import paired_test
from diptych.core.errors import DiptychError
from diptych.report import build_against, build_report
from diptych.report.items.against import against
from diptych.report.items.gather import LETTERS, Strings, encoded
from report_fixture import Page, make_comparison, records, write

cli = cli_fixture.cli

MEASURE = "right"


def rows_of(n: int, share: float, seed: int, per_cluster: int = 1) -> list[dict[str, Any]]:
    """Records with a slice, an answer and a question of their own."""
    rng = np.random.default_rng(seed)
    rows = records(n, share, per_cluster=per_cluster)
    for i, row in enumerate(rows):
        credit = float(rng.random() < share)
        row["correct"] = {MEASURE: credit}
        row |= {"answer": "yes" if credit else "no", "answers": ["yes"], "slices": {"kind": ("odd", "even")[i % 2]}}
    return rows


def pair(root: Path, n: int = 300, per_cluster: int = 1) -> tuple[Path, Path, list[Any]]:
    """Two evaluations of the same items, and their records."""
    both = [rows_of(n, share, seed, per_cluster) for share, seed in ((0.7, 1), (0.6, 2))]
    return write(root / "first", both[0]), write(root / "second", both[1]), both


def data_of(page: Path, task: str = "mine") -> dict[str, Any]:
    text = page.read_text(encoding="utf-8").split(f'id="itemdata-{task}">', 1)[1].split("</script>", 1)[0]
    return dict(json.loads(text))


def test_the_data_are_the_records(tmp_path: Path) -> None:
    one, other, (a, b) = pair(tmp_path, 40)
    data = data_of(build_against(one, other, tmp_path / "both.html"))
    assert data["items"] == [r["item"] for r in a] and data["metrics"] == [MEASURE] and data["models"] == ["first", "second"]
    assert data["credits"][0] == [[r["correct"][MEASURE] for r in rows] for rows in (a, b)]
    assert [data["strings"][i] for i in data["text"]] == [r["question"] for r in a]
    assert [[data["strings"][i] for i in row] for row in data["answers"]] == [[r["answer"] for r in rows] for rows in (a, b)]
    kind = data["slices"]["kind"]
    assert [kind["values"][i] for i in kind["of"]] == [r["slices"]["kind"] for r in a]


def test_texts_are_stored_once_and_cannot_end_the_element() -> None:
    strings = Strings()
    assert [strings.of(t) for t in ("yes", "", "no", "yes")] == [0, -1, 1, 0]
    assert len(strings.all[strings.of("x" * 999)]) == LETTERS
    hostile = encoded({"a": "</script><img src=x>\u2028"})
    assert "<" not in hostile and "\u2028" not in hostile and json.loads(hostile)["a"].startswith("</script>")


def test_two_evaluations_side_by_side(cli: Cli, tmp_path: Path) -> None:
    one, other, (a, b) = pair(tmp_path, 120, per_cluster=3)
    made = against(one, other)
    test = made.tests[0]
    wanted = paired_test([r["correct"][MEASURE] for r in a], [r["correct"][MEASURE] for r in b], [r["cluster"] for r in a])
    assert (test.difference, test.p) == pytest.approx((wanted.difference, wanted.p))
    done = cli("report", one, "--against", other)
    page = Page((one / "against-second.html").read_text())
    assert done.code == 0 and "against-second.html" in done.out and not page.wrong and not page.open
    write(tmp_path / "third", [{"item": "z", "correct": {MEASURE: 1}}])
    with pytest.raises(DiptychError, match="no item of a task in common"):
        against(one, tmp_path / "third")
    assert "--out is the file of --against" in cli("report", one, "--out", tmp_path / "x.html").err
    assert "no such directory" in cli("report", one, "--against", tmp_path / "gone").err


def test_a_comparison_is_no_side(tmp_path: Path) -> None:
    root = make_comparison(tmp_path / "c")
    with pytest.raises(DiptychError, match="is a comparison; give a run"):
        against(root, root / "clip-s0")
    one, other = pair(tmp_path / "a", 20)[0], pair(tmp_path / "b", 20)[0]
    assert [r.label for r in against(one, other).recipes] == [str(one), str(other)]  # the same name: the paths tell them apart


def test_a_summary_is_a_page_for_a_talk(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    root = make_comparison(tmp_path / "c", seeds=1)
    done = cli("report", root, "--summary")
    assert done.code == 0 and "summary.png" in done.out
    with Image.open(root / "summary.png") as picture:
        assert picture.size == (1920, 1080)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):  # marks of the first recipes are there
        assert (pixels == colour).all(1).sum() > 40
    pdf = (root / "summary.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") == 1
    assert cli("report", root, "--summary").code == 0 and (root / "summary.pdf").read_bytes() == pdf


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    root = tmp_path_factory.mktemp("items")
    one, other, both = pair(root)
    return build_against(one, other, root / "both.html"), both


def status(page: Any) -> str:
    return str(page.inner_text(".items-test"))


@pytest.mark.browser
def test_who_is_right_where_the_other_is_not(browser: Any, page_file: tuple[Path, list[Any]]) -> None:
    path, (a, b) = page_file
    page, mistakes = browser.new_page(), []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.goto(f"file://{path}#task-mine")
    x, y = (np.array([r["correct"][MEASURE] for r in rows]) for rows in (a, b))
    first, second = (x, y) if x.mean() > y.mean() else (y, x)
    assert f"is better in {(first > second).sum()}, B (second) in {(second > first).sum()};" in status(page)
    p = float(page.get_attribute(".items-test", "data-p"))
    assert p == pytest.approx(paired_test(first, second, range(len(x))).p, abs=0.02)  # theirs is drawn, ours exact
    page.select_option(".items-controls label:has-text('Slice') select", label="kind = odd")
    odd = np.arange(len(x)) % 2 == 0
    assert f"Of {odd.sum()} items" in status(page) and f"is better in {(first > second)[odd].sum()}," in status(page)
    page.select_option(".items-controls label:has-text('Show') select", "b")
    assert page.locator(".items tbody tr").count() == min(50, (second > first)[odd].sum())
    page.fill(".items-controls input", "Is it 7?")
    assert page.locator(".items tbody tr").count() <= 1
    assert not mistakes


@pytest.mark.browser
def test_a_link_leads_to_any_item(browser: Any, page_file: tuple[Path, list[Any]]) -> None:
    path, _ = page_file
    page = browser.new_page()
    page.goto(f"file://{path}#item=mine/i263")  # not on the first page of rows, and perhaps not among those that differ
    assert page.inner_text("tr.chosen th") == "i263" and page.is_visible("tr.chosen")
    page.wait_for_timeout(200)
    assert page.evaluate("document.activeElement.textContent") == "i263"
    page.evaluate("location.hash = '#item=mine/i4'")
    page.wait_for_timeout(100)
    assert page.inner_text("tr.chosen th") == "i4"
    page.goto(f"file://{path}#item=mine/none")
    assert page.is_visible(".items")


@pytest.mark.browser
def test_keys_and_screen_readers_and_print(browser: Any, page_file: tuple[Path, list[Any]]) -> None:
    path, _ = page_file
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page()
    page.goto(f"file://{path}#task-mine")
    found = axe.run(page).response["violations"]
    assert not found, [(v["id"], v["nodes"][0]["html"][:120]) for v in found]
    page.select_option(".items-controls label:has-text('Show') select", "all")
    page.focus(".items tbody a")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "i1"
    page.keyboard.press("PageDown")
    assert page.evaluate("document.activeElement.textContent") == "i50"
    assert page.inner_text(".items-pages span") == "51–100 of 300"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.emulate_media(media="print")
    assert not page.is_visible(".items-controls") and page.is_visible(".items tbody tr")


@pytest.mark.browser
@pytest.mark.slow
def test_thirty_thousand_items_open_in_two_seconds(browser: Any, tmp_path: Path) -> None:
    one, other, _ = pair(tmp_path, 30_000)
    path = build_against(one, other, tmp_path / "both.html")
    page, times = browser.new_page(), []
    for _ in range(3):
        began = time.perf_counter()
        page.goto(f"file://{path}?{began}#task-mine")
        page.wait_for_selector(".items tbody tr")
        times.append(time.perf_counter() - began)
    assert "Of 30,000 items" in status(page) and page.locator(".items tbody tr").count() == 50
    print(f"30,000 items: {path.stat().st_size / 1e6:.1f} MB, open in {min(times):.2f} to {max(times):.2f} s")
    assert min(times) < 2


@pytest.mark.browser
def test_the_test_is_that_of_the_report(browser: Any, page_file: tuple[Path, list[Any]]) -> None:
    page = browser.new_page()
    page.goto(f"file://{page_file[0]}")
    rng = np.random.default_rng(3)
    for n, values, per in ((10, (0, 0.5, 1), 1), (60, (0, 0.25, 1), 1), (90, (0, 1), 3), (4, (1,), 1)):
        a, b = rng.choice(values, n), rng.choice(values, n)
        clusters = (np.arange(n) // per).tolist()
        found = page.evaluate("([d, c]) => DiptychItems.signFlip(d, c)", [(a - b).tolist(), clusters])
        assert found["p"] == pytest.approx(paired_test(a, b, clusters).p, abs=0.03), (n, values, per)


def test_one_model_has_a_list_too(tmp_path: Path) -> None:
    page = build_report(write(tmp_path / "one", rows_of(30, 0.5, 1)))
    data = data_of(page)
    assert data["models"] == ["one"] and len(data["items"]) == 30 and data["first"] == [0, 0]
