"""``make results``: records, what is run next, and the pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import recipe_pages, recipe_records, recipes
from bench.recipe_records import LADDER, Entry, pack, unpack
from bench.recipes import next_rung, seconds_of
from diptych.comparison.run import RecipeJob
from diptych.config import recipe as recipe_module
from diptych.config.recipe import LIBRARY, load_recipe, recipe_names, saved_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json


@pytest.mark.parametrize("values", [[0.0, 1.0, 0.5, 1.0], [0.25, 3.14159], []])
def test_credits_are_kept(values: list[float]) -> None:
    assert unpack(pack(values)) == pytest.approx(values, abs=5e-5)


@pytest.mark.parametrize(
    ("known", "next_one"),
    [
        ({}, None),  # the common budget comes first
        ({"4T flops": 0.7}, "2T flops"),
        ({"4T flops": 0.7, "2T flops": 0.2}, None),
        ({"4T flops": 0.7, "2T flops": 0.6}, "1T flops"),
        ({"4T flops": 0.7, "2T flops": 0.6, "1T flops": 0.6}, None),
        ({"4T flops": 0.1}, "8T flops"),
        ({"4T flops": 0.1, "8T flops": 0.9}, None),
        ({"4T flops": 0.1, "8T flops": 0.2, "16T flops": 0.3}, "32T flops"),
    ],
)
def test_the_next_rung(known: dict[str, float], next_one: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "reached", lambda name, budget: known.get(budget))
    assert next_rung("clip") == next_one and (next_one is None or next_one in LADDER)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of clip and negclip with three seeds, and of one seed of siglip, made up."""
    monkeypatch.setattr(recipe_records, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(recipe_pages, "DOCS", tmp_path / "docs")
    items = [[f"i{n}", f"i{n}"] for n in range(50)]
    write_json(tmp_path / "records" / "items" / "all.json", items)
    for name, seeds, right in (("clip", 3, 10), ("negclip", 3, 40), ("siglip", 1, 12)):
        for seed in range(seeds):
            entry = Entry(name, seed, recipe_records.COMMON)
            hits = [float(n < right + seed) for n in range(50)]
            rows = [
                {"task": task, "metric": metric, "value": sum(hits) / 50, "low": 0.0, "high": 1.0, "n": 50, "clusters": 50}
                for task, metric in recipe_records.REACHED
            ]
            write_json(
                entry.record,
                {
                    "tasks": list(recipe_records.TASKS),
                    "hardware": "2 cores",
                    "software": "Python 3.11",
                    "date": "2026-11-30",
                    "spent": {"samples": 10, "flops": 6e12},
                    "results": rows,
                    "skipped": [],
                    "credits": {f"{r['task']} {r['metric']}": {"items": "all", "credits": pack(hits)} for r in rows},
                    "recipe": entry.job().recipe.model_dump(mode="json", by_alias=True),
                },
            )
    return tmp_path


def test_pages_of_the_records(records: Path) -> None:
    lacking = recipe_pages.write_pages(["clip", "negclip", "siglip"], None)
    assert lacking == ["`siglip` (seed 1, 2)"]
    page = (records / "docs" / "results.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| [`negclip`]"))
    assert "| 3 |" in row and "82.0" in row, "the mean of 80, 82 and 84 %"
    said = next(line for line in page.splitlines() if line.startswith("- [`negclip`]"))
    assert "better at R@1" in said
    assert "| `negclip` | 4T flops or less | 82.0 % |" in page and "| `clip` | more than 4T flops | 22.0 % at 4T flops |" in page
    assert "missing" in page and "`siglip` (seed 1, 2)" in page
    notes = "## Notes\n\nWhat people wrote.\n"
    target = records / "docs" / "systems" / "negclip.md"
    target.write_text(target.read_text().replace("## Measured", notes + "\n## Measured"))
    recipe_pages.write_pages(["clip", "negclip", "siglip"], None)
    assert notes in target.read_text() and target.read_text().count("## Notes") == 1


def test_a_record_of_a_changed_recipe_is_out_of_date(records: Path) -> None:
    entry = Entry("clip", 0, recipe_records.COMMON)
    assert entry.up_to_date() and not Entry("coca", 0, recipe_records.COMMON).up_to_date()
    content: dict[str, Any] = read_json(entry.record)
    content["recipe"]["stages"][0]["lr"] = 0.5
    write_json(entry.record, content)
    assert not entry.up_to_date() and entry in recipes.missing(["clip"], ladder=True)


def test_a_record_means_what_it_meant_when_the_schema_changes(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that came later, and those that are gone, change no run."""
    entry = Entry("clip", 0, recipe_records.COMMON)
    saved: dict[str, Any] = read_json(entry.record)

    def write(**fields: Any) -> bool:
        write_json(entry.record, saved | {"recipe": saved["recipe"] | fields})
        return entry.up_to_date()

    without = {**saved, "recipe": {k: v for k, v in saved["recipe"].items() if k not in ("sharding", "backbones", "teachers")}}
    del without["recipe"]["data"]["debiased"], without["recipe"]["stages"][0]["round_robin"]
    write_json(entry.record, without)
    assert entry.up_to_date(), "recorded before there were these fields"
    assert write(about="other words", trackers=[]) and not write(embed_dim=24)
    assert not write(gone=1), "a field that this version does not know"
    with monkeypatch.context() as patch:  # as an upgrade drops it
        known = LIBRARY.upgrade
        assert known is not None
        patch.setattr(
            recipe_module,
            "LIBRARY",
            replace(LIBRARY, upgrade=lambda tree, where: known({k: v for k, v in tree.items() if k != "gone"}, where)),
        )
        assert write(gone=1) and not write(gone=1, embed_dim=24)
    assert not write(format=99)
    saved["recipe"]["stages"][0]["objectives"] |= {"masked_patches": {"kind": "masked_patches", "weight": 1.0, "fields": {}}}
    now = saved_recipe(saved["recipe"], "")
    monkeypatch.setattr(Entry, "job", lambda entry: RecipeJob("", Path(), 1, now, []))
    assert write() and not write(format=3), "masked_patches had another default in runs of format 3"


def test_finished_runs_are_recorded_and_those_of_former_recipes_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the first, ``make results`` would find the same run missing again and again."""
    monkeypatch.setattr(recipe_records, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(RecipeJob, "done", lambda job: (job.path / "spent.json").is_file())
    saved: list[Entry] = []
    monkeypatch.setattr(recipes, "save_record", lambda entry, job: saved.append(entry))
    finished, former, begun, new = todo = [Entry(name, 0, recipe_records.COMMON) for name in ("clip", "negclip", "siglip", "coca")]
    for entry in todo[:3]:
        job = entry.job()
        if entry is former:
            job.recipe = load_recipe("negclip", {"stages.0.lr": 0.5, "budget": recipe_records.COMMON})
        job.prepare()
        if entry is not begun:
            write_json(job.path / "spent.json", {"finished": True})
    assert [entry for entry, _ in recipes.prepared(todo)] == [former, begun, new] and saved == [finished]
    assert not former.job().path.exists() and begun.job().path.exists()


def test_all_budgets_share_backbones_and_records_name_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Entry("llava@mini", 0, budget).job() for budget in ("2T flops", "4T flops")]
    assert jobs[0].backbones == jobs[1].backbones is not None and jobs[0].path.parent != jobs[1].path.parent
    monkeypatch.setattr(recipe_records, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(recipe_records, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(recipe_records, "commit", lambda: "0")
    entry = Entry("llava@mini", 0, "2T flops")
    run = entry.job().path
    write_json(run / "spent.json", {"flops": 1.0, "pretraining": {"lm": {"run": str(run), "flops": 2.0}}})
    write_json(run / "evaluation" / "summary.json", {"results": []})
    recipe_records.save_record(entry, entry.job())
    assert (
        read_json(entry.record)["spent"]["pretraining"] == {"lm": {"flops": 2.0}} and str(tmp_path) not in entry.record.read_text()
    )


def test_every_built_in_recipe_is_in_the_results() -> None:
    scored = {name for name in recipe_names() if load_recipe(name).score != "none"}
    assert {name.partition("@")[0] for name in recipe_records.names()} == scored >= set(recipe_names()) - {"lm"}


def test_times() -> None:
    assert seconds_of("30m") == 1800 and seconds_of("0") == 0
    with pytest.raises(DiptychError, match="--time 3k samples"):
        seconds_of("3k samples")


def test_a_variant_for_other_data_is_left_out() -> None:
    """lit@conse has a budget of its own, for a few hundred photographs; lit and its scenes stay."""
    found = recipe_records.names()
    assert "lit" in found and "lit@conse" not in found and "sparc@tuned" in found
