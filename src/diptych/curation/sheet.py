"""The data sheet of a curated set, ``README.md``: sources with hashes, filters, terms, and an estimate of its carbon."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from diptych.core.errors import DiptychError, counted
from diptych.core.files import read_json, read_json_or, write_text
from diptych.curation.keep import Keep
from diptych.curation.plan import load_plan
from diptych.data.provenance.carbon import Assumptions, Carbon
from diptych.data.provenance.terms import NOT_STATED, counted_terms, curated_by, of_rows, of_weights, terms_of
from diptych.models.pretrained import WEIGHTS

SHEET = "README.md"
SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"), (1e8, "10M<n<100M"))
FILES = 30  # of inputs and outputs that are listed; the manifest has all
UNSEEN = (
    "Which persons are shown, and whether they agreed; whether anything in the pictures or texts is private or harmful; whether "
    "stated terms are true. No operator asks for these."
)


def write_sheet(out: Path, assumed: Assumptions | None = None, licence: str = "") -> Path:
    """Writes the sheet of a result of ``diptych curate`` and returns its path. assumed: of the estimate of carbon. licence: that of
    the set, as its owner states it; "": "other", with what is known of the source's.

    Raises DiptychError for a directory that holds no result.
    """
    if not (out / "manifest.json").is_file():
        raise DiptychError(f"{out}: no result of `diptych curate` (it has no manifest.json)")
    write_text(out / SHEET, sheet(out, assumed or Assumptions.stated(), licence))
    return out / SHEET


def sheet(out: Path, assumed: Assumptions, licence: str = "") -> str:
    """The sheet as Markdown, with the head that hubs read."""
    made: dict[str, Any] = read_json(out / "manifest.json")
    plan = load_plan(out / "plan.yaml")
    kept, rows = made["kept"], made["rows"]
    head = ["---", f"license: {licence or 'other'}", "tags: [diptych, image-text]", f"size_categories: [{_size(kept)}]"]
    if made["output"] != "wds" and kept:
        pattern = "packed/*.parquet" if made["output"] == "packed" else "data/*.parquet"
        head += ["configs:", "- config_name: default", f"  data_files: {pattern}"]
    what = f"{counted(kept, 'row')} that `diptych curate {made['plan']}` kept of {rows:,} from `{made['data']}`"
    lines = [
        f"# {plan.name}: {counted(kept, 'row')}",
        f"{what}, as {made['output']}; result `{made['result']}`. Every row's decision is in `decisions/`.",
        "## Source",
        *_source(made),
        "## Filters",
        _sentence(plan.about, plan.cite),
        "\n".join(_filters(made)),
        f"{counted(made['errors'], 'row')} could not be read or scored by some step.",
        *(["\n".join(models)] if (models := _models(made)) else []),
        "## Terms",
        "\n".join(_terms(out, made, licence)),
        "## Carbon",
        _carbon(out, assumed),
        "## Not asked",
        UNSEEN,
        "## Files",
        "\n".join(_files(made)),
        "## Plan",
        f"```yaml\n{(out / 'plan.yaml').read_text(encoding='utf-8').strip()}\n```",
    ]
    return "\n".join([*head, "---"]) + "\n\n" + "\n\n".join(lines) + "\n"


def _size(rows: int) -> str:
    return next((name for most, name in SIZES if rows < most), "n>100M")


def _sentence(*parts: str) -> str:
    return " ".join(f"{p.rstrip('.')}." for p in parts if p)


def _source(made: Mapping[str, Any]) -> list[str]:
    """Address, terms of origin and hashes of what was read."""
    keys = [s["input"] for s in made["shards"]]
    total = hashlib.blake2b("\n".join(keys).encode(), digest_size=16).hexdigest()
    before = curated_by(made["data"])
    return [
        f"`{made['data']}`: {counted(made['rows'], 'row')} in {counted(len(keys), 'shard')}, hash of all `{total}` (of each: "
        f"`manifest.json`).{f' These were {before}.' if before else ''}"
    ]


def _filters(made: Mapping[str, Any]) -> list[str]:
    """A row for each step, in order: settings, and how many rows it removed first."""
    lines = ["| step | settings | rows removed |", "|---|---|---:|"]
    reasons = dict(made["reasons"])
    for step in made["steps"]:
        if "keep" in step:
            rule = Keep.model_validate(step["keep"])
            settings = ", ".join(f"{k}: {_plain(v)}" for k, v in step["keep"].items() if k != "reason")
            lines.append(f"| keep | {_cell(settings)} | {reasons.pop(rule.label(), 0):,} ({_cell(rule.label())}) |")
        else:
            options = ", ".join(f"{k}: {_plain(v)}" for k, v in step["options"].items() if v not in (None, "", [], {}))
            lines.append(f"| {step['operator']} (version {step['version']}) | {_cell(options) or 'as usual'} | |")
    return lines + [f"| reading | | {count:,} ({_cell(reason)}) |" for reason, count in reasons.items()]


def _models(made: Mapping[str, Any]) -> list[str]:
    """Models that steps used, with their terms."""
    lines = []
    for step in made["steps"]:
        for option in ("model", "lm", "captioner"):
            name = step.get("options", {}).get(option)
            if isinstance(name, str) and name:
                terms = WEIGHTS[name].licence if name in WEIGHTS else of_weights(name).text
                lines.append(f"- {step['operator']} used `{name}`: {terms}")
    return list(dict.fromkeys(lines))


def _terms(out: Path, made: Mapping[str, Any], licence: str) -> list[str]:
    """What is known of the terms of pictures and texts."""
    source = terms_of(made["data"])
    lines = [f"- the set, as stated by who made it: {licence}"] if licence else []
    lines.append(f"- the source `{made['data']}`: {source.text}{f' ({source.by})' if source.by else ''}")
    by_row = counted_terms(_stated(out))
    lines += [f"- stated by rows: {line}" for line in by_row]
    if NOT_STATED in source.text and not by_row:
        lines += ["", "Terms that are not stated are unknown, not free: ask before you publish pictures or texts."]
    return lines


def _stated(out: Path) -> Counter[str]:
    """The terms that kept rows state in columns of their own, where the output is Parquet."""
    counts: Counter[str] = Counter()
    for path in sorted((out / "data").glob("*.parquet")):
        counts += of_rows(_extras(path))
    return counts


def _extras(path: Path) -> Iterator[str | None]:
    for batch in pq.ParquetFile(path).iter_batches(columns=["extra"]):
        yield from batch["extra"].to_pylist()


def _carbon(out: Path, assumed: Assumptions) -> str:
    costs: dict[str, Any] = read_json_or(out / "costs.json", {})
    if not costs:
        return "Not estimated: the costs are not recorded."
    seconds = sum(entry["seconds"] for entry in costs["operators"].values())
    measured = "seconds in which workers read, scored and wrote, over all calls; each is counted as one busy core."
    return Carbon(seconds, 0.0, assumed, measured).markdown()


def _files(made: Mapping[str, Any]) -> list[str]:
    """Output files with their hashes."""
    parts = [s for s in made["shards"] if "file" in s]
    if not parts:
        return ["Pictures as files, named in `data/*.parquet`." if made["output"] == "images" else "None: no row was kept."]
    lines = ["| file | rows | blake2b |", "|---|---:|---|"]
    lines += [f"| `data/{s['file']}` | {s['kept']:,} | `{s['blake2b']}` |" for s in parts[:FILES]]
    return lines + ([f"\n… and {counted(len(parts) - FILES, 'more file')}: `manifest.json`."] if len(parts) > FILES else [])


def _plain(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
