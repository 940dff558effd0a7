"""The data sheet of a curated set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import cli_fixture
from cli_fixture import Cli
from diptych.core.errors import DiptychError
from diptych.curation import curate
from diptych.curation.sheet import write_sheet
from diptych.data.provenance.carbon import Assumptions

cli = cli_fixture.cli

PLAN = {
    "name": "few",
    "about": "A test",
    "steps": ["text_length", {"keep": {"column": "words", "min": 3, "reason": "few words"}}],
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sheet")
    rows = ["image,caption,license"]
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'a red square' if i < 4 else 'red'},{'cc-by' if i < 3 else ''}")
    (folder / "table.csv").write_text("\n".join(rows))
    curate(PLAN, f"csv:{folder}/table.csv", folder / "out", runner="inline")
    return folder / "out"


def test_the_sheet_says_what_was_kept_and_why(result: Path) -> None:
    sheet, made = (result / "README.md").read_text(), json.loads((result / "manifest.json").read_text())
    for part in (
        "license: other", "size_categories: [n<1K]", "data_files: data/*.parquet", "4 rows that `diptych curate few` kept of 6",
        f"`{made['data']}`: 6 rows in 1 shard", "2 (few words)", "column: words, min: 3", "stated by rows: cc-by: 3 rows",
        "none stated: 1 row", made["shards"][0]["blake2b"], "CO2e", "No operator asks",
    ):  # fmt: skip
        assert part in sheet, part


def test_terms_and_assumptions_are_the_owners(result: Path, cli: Cli) -> None:
    cli("card", result, "--licence", "cc-by-4.0", "--overhead", "1")
    sheet = (result / "README.md").read_text()
    assert "license: cc-by-4.0" in sheet and "as stated by who made it: cc-by-4.0" in sheet and "× 1 / 3.6e6" in sheet
    seconds = sum(e["seconds"] for e in json.loads((result / "costs.json").read_text())["operators"].values())
    assert f"{seconds:.3g} CPU-s × 10 W" in sheet


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="no result of"):
        write_sheet(tmp_path, Assumptions())
