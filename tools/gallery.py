"""Makes the pictures of docs/gallery.md: ``python tools/gallery.py [--work build/gallery] [--only NAME]``.

What the pictures show is made first, if it is not in the work folder: a comparison on the built-in world (some minutes), a curated
pool, a contact sheet, a map. Pages are photographed in Chromium (extra ``browser``) and stored with 256 colours, so that all of
them together stay small.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images" / "gallery"
MODELS, BUDGET, TASKS = ("clip", "negclip", "coca"), "1T flops", "retrieval-1000,controlled?n=100,captions?n=50,zeroshot"
SIZE = (1180, 760)  # of a photographed page
COLOURS, LARGEST = 256, 200_000  # of a picture; bytes of a file


def diptych(*words: object, within: Path) -> None:
    """A command of Diptych in a folder, so that no page names a place of this machine; stops at an error."""
    subprocess.run([sys.executable, "-m", "diptych.cli", *map(str, words)], check=True, cwd=within)


def comparison(work: Path) -> Path:
    """A comparison of three paradigms with its report and its summary."""
    place = work / "compare"
    if not (place / "report.html").is_file():
        diptych("compare", *MODELS, "--data", "scenes:small", "--budget", BUDGET, "--tasks", TASKS, "--out", "compare", within=work)
    diptych("report", "compare", "--summary", within=work)
    return place


def curated(work: Path) -> Path:
    """A dirty pool, cleaned, with its report and its data sheet."""
    place = work / "curated"
    if not (place / "report.html").is_file():
        if not (work / "pool").is_dir():
            diptych("curate", "pool", "pool", "--n", 600, within=work)
        diptych("curate", "own-photos", "--data", "parquet:pool/pool", "--out", "curated", "--runner", "inline", within=work)
    return place


def sheet(work: Path) -> Path:
    """A contact sheet of the built-in world."""
    from diptych.data.sheet import contact_sheet
    from diptych.data.sources import open_source

    source = open_source("scenes:small?split=test")
    samples = [source[i] for i in range(8)]
    return contact_sheet(samples, work / "sheet.png", columns=4, side=200, captions=2, title="scenes:small")


def small(picture: Image.Image, name: str) -> Path:
    """Stores a picture with few colours; one that is still too large is scaled down."""
    path = OUT / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture.convert("RGB")
    while True:
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            return path
        picture = picture.resize((round(picture.width * 0.85), round(picture.height * 0.85)), Image.Resampling.LANCZOS)


def photographed(
    page: Any, address: str, name: str, at: str = "", theme: str = "light", act: Callable[[Any], None] | None = None
) -> Path:
    """A picture of what is seen of a page. at: the element at the top; act: what is done before."""
    page.emulate_media(color_scheme=theme)
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_timeout(200)
    if act is not None:
        act(page)
    if at:
        page.locator(at).first.evaluate("(node) => scrollTo(0, node.getBoundingClientRect().top + scrollY - 70)")
    page.wait_for_timeout(200)
    target = OUT / f".{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=target)
    with Image.open(target) as picture:
        made = small(picture, name)
    target.unlink()
    return made


def flipped(page: Any) -> None:
    """Chooses the two contrastive models and the skill that they have learned."""
    for label, value in (("A", "clip"), ("B", "negclip"), ("Measure", "colour")):
        page.locator(".items-controls:visible label").filter(has_text=label).locator("select").first.select_option(label=value)


def pages(work: Path, wanted: set[str]) -> list[Path]:
    """Pictures of the report of the comparison and of the curated pool."""
    from playwright.sync_api import sync_playwright

    made: list[Path] = []
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        report = f"file://{(work / 'compare' / 'report.html').resolve()}"
        tasks = page.goto(report) and page.eval_on_selector_all("main > .page", "nodes => nodes.map(n => n.id)")
        judged = next((t for t in ("task-controlled", "task-retrieval") if t in tasks), tasks[-1])
        name = judged.removeprefix("task-")
        shots: dict[str, Callable[[], Path]] = {
            "report": lambda: photographed(page, report, "report"),
            "skills": lambda: photographed(page, f"{report}#skills", "skills", "#skills"),
            "learning": lambda: photographed(page, f"{report}#loss", "learning", "#loss", "dark"),
            "task": lambda: photographed(page, f"{report}#{judged}", "task", f"#results-{name}"),
            "items": lambda: photographed(page, f"{report}#{judged}", "items", f"#items-{name}", act=flipped),
            "curation": lambda: photographed(page, f"file://{(work / 'curated' / 'report.html').resolve()}", "curation"),
        }
        for shot, make in shots.items():
            if not wanted or shot in wanted:
                made.append(make())
        browser.close()
    return made


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gallery")
    parser.add_argument("--only", action="append", default=[], help="a picture's name; as often as you like")
    given = parser.parse_args()
    work, wanted = given.work.resolve(), set(given.only)
    work.mkdir(parents=True, exist_ok=True)
    comparison(work)
    curated(work)
    made = pages(work, wanted)
    drawn = {"summary": work / "compare" / "summary.png", "sheet": None}
    for name in drawn:
        if not wanted or name in wanted:
            with Image.open(drawn[name] or sheet(work)) as picture:
                made.append(small(picture, name))
    for path in made:
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
