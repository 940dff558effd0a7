"""What the curation operators find in the dirty pool (`diptych curate pool`), compared with its known faults, which they never see.
*Found* is recall, the share of the rows with the fault that a rule flags. *Right* is precision, the share of the flagged rows that
have the fault (or another one that the rule is meant for, as named). A copy counts as found if at least one of the pair is removed,
and a removal as right if it points to a row with the same picture."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np

from bench.harness import Bench
from bench.pool import Pool
from diptych.config.recipe import load_recipe
from diptych.curation.dirty_pool.pool import COPIES

SAYS_NOTHING = ("boilerplate", "short", "repetitive")  # in no language to speak of


def run(bench: Bench) -> None:
    pool = Pool.make(400 if bench.quick else 3000)
    for name in ("image_size", "image_quality", "image_hash"):
        pool.score(name)
    for name in ("text_length", "text_quality", "language"):
        pool.score(name, rows=1000)
    sample = Pool(pool.place, pool.table, pool.truth)
    _rules(bench, pool)
    _copies(bench, pool)
    _leaks(bench, pool)
    _fit(bench, pool)
    _letters(bench, sample, 100 if bench.quick else 500)


def _row(
    bench: Bench, rule: str, flagged: np.ndarray, wanted: np.ndarray, faults: list[str | None], judged: np.ndarray | None = None
) -> list[str]:
    judged = np.ones(len(flagged), bool) if judged is None else judged
    hit = int((flagged & wanted & judged).sum())
    wrong = flagged & ~wanted & judged
    others = Counter("sound" if faults[i] is None else faults[i] for i in np.flatnonzero(wrong)).most_common(3)
    said = ", ".join(f"{count} {name}" for name, count in others)
    total, all_flagged = int((wanted & judged).sum()), int((flagged & judged).sum())
    bench.numbers[rule] = {"found": hit, "planted": total, "flagged": all_flagged}
    return [rule, f"{hit / max(total, 1):.3f}", f"{hit / max(all_flagged, 1):.3f}", f"{total:,}", said]


def _rules(bench: Bench, pool: Pool) -> None:
    faults = pool.faults
    planted, where = pool.planted, pool.where
    low_letters = ~planted(SAYS_NOTHING)
    rules: list[tuple[str, np.ndarray, np.ndarray, Any]] = [
        ("unreadable: the decoder's reason", np.array([p is None for p in pool.pixels]), planted(["broken"]), None),
        ("DataComp: words > 2 and characters > 5", ~(where("words", lambda w: w > 2) & where("characters", lambda c: c > 5)), planted(["short"]), ~planted(["boilerplate", "foreign"])),
        ("DataComp: shorter side ≥ 200", where("shorter_side", lambda s: s < 200), planted(["tiny"]), ~planted(["broken"])),
        ("DataComp: aspect ≤ 3", where("aspect", lambda a: a > 3), planted(["banner"]), ~planted(["tiny", "broken"])),
        ("DataComp: English (fasttext)", where("language", lambda code: code != "en"), planted(["foreign"]), low_letters),
        ("shorter side ≤ 2,500", where("shorter_side", lambda s: s > 2500), planted(["huge"]), None),
        ("brightness ≥ 0.2", where("brightness", lambda b: b < 0.2), planted(["dark"]), None),
        ("brightness ≤ 0.955", where("brightness", lambda b: b > 0.955), planted(["light"]), None),
        ("contrast ≥ 0.05", where("contrast", lambda c: c < 0.05), planted(["empty", "dark", "light"]), None),
        ("entropy ≥ 1", where("entropy", lambda e: e < 1), planted(["empty"]), ~planted(["text_only", "dark", "light"])),
        ("sharpness ≥ 20", where("sharpness", lambda s: s < 20), planted(["blurred"]), ~planted(["empty", "dark", "light", "tiny", "huge"])),
        ("blur ≤ 0.48", where("blur", lambda b: b > 0.48), planted(["blurred"]), ~planted(["empty", "dark", "light", "tiny", "huge"])),
        ("saturation ≥ 0.003", where("saturation", lambda s: s < 0.003), planted(["grey"]), ~planted(["empty", "dark", "light", "tiny"])),
        ("boilerplate", where("boilerplate", bool), planted(["boilerplate"]), None),
        ("word repetition ≤ 0.2", where("word_repetition", lambda r: r > 0.2), planted(["repetitive"]), None),
        ("character repetition ≤ 0.2", where("character_repetition", lambda r: r > 0.2), planted(["repetitive"]), None),
    ]  # fmt: skip
    rows = [_row(bench, rule, flagged, wanted, faults, judged) for rule, flagged, wanted, judged in rules]
    bench.table(["rule", "found", "right", "planted", "wrongly flagged"], rows, f"Rules of one row, {len(faults):,} rows")
    bench.note(
        "Rows with another fault that makes the question meaningless are not counted: the language of `IMG_2034.JPG`, the "
        "sharpness of a uniform picture."
    )


def _copies(bench: Bench, pool: Pool) -> None:
    """Each finder over the whole pool, by kind of copy."""
    place = {name: i for i, name in enumerate(pool.ids)}
    flat = pool.where("contrast", lambda c: c < 0.05)  # has no hash worth the name; the contrast rule removed it before
    pool.columns["phash"] = [None if f else h for f, h in zip(flat, pool.columns["phash"], strict=True)]
    meaning = [t["meaning"] for t in pool.truth]
    group = [t["twin"] or t["id"] for t in pool.truth]
    finders: dict[str, tuple[str, str, dict[str, Any]]] = {
        "same pixels": ("same_image", "same_image_as", {}),
        "pHash, distance 0": ("near_image", "near_image_of", {"distance": 0}),
        "pHash, distance 4": ("near_image", "near_image_of", {"distance": 4}),
        "pHash, distance 8": ("near_image", "near_image_of", {"distance": 8}),
    }
    rows = []
    for label, (name, pointer, options) in finders.items():
        pool.score(name, **options)
        cause = pool.columns[pointer]
        gone = [i for i, c in enumerate(cause) if c is not None]
        right = [i for i in gone if group[i] == group[cause[i]]]
        alike = [i for i in gone if group[i] == group[cause[i]] or meaning[i] == meaning[cause[i]]]
        wrong = Counter(pool.faults[i] or "sound" for i in gone if group[i] != group[cause[i]]).most_common(3)
        found = []
        for kind in COPIES:
            copies = [i for i, f in enumerate(pool.faults) if f == kind]
            hit = sum(cause[i] is not None or cause[place[pool.truth[i]["twin"]]] is not None for i in copies)
            found.append(f"{hit / max(len(copies), 1):.3f}")
        rows.append(
            [
                label,
                *found,
                f"{len(right) / max(len(gone), 1):.3f}",
                f"{len(alike) / max(len(gone), 1):.3f}",
                f"{len(gone):,}",
                ", ".join(f"{n} {k}" for k, n in wrong),
            ]
        )
        bench.numbers[label] = {"removed": len(gone), "right": len(right)}
    title = "Copies: share found of each kind, and share of removals that are right"
    bench.table(["finder", *COPIES, "right", "right or alike", "removed", "wrongly removed"], rows, title)


def _leaks(bench: Bench, pool: Pool) -> None:
    rows = []
    wanted = pool.planted(["leaked"])
    for distance in (0, 4):
        pool.score("leaks", rows=1000, against=(f"parquet:{pool.place}/evaluation",), distance=distance)
        rows.append(_row(bench, f"picture, pHash within {distance}", pool.where("leaked_image", bool), wanted, pool.faults))
    rows.append(_row(bench, "text, equal or 8 words in a row", pool.where("leaked_text", bool), wanted, pool.faults))
    bench.table(["leaks", "found", "right", "planted", "wrongly flagged"], rows, "Items of the evaluation set")


def _fit(bench: Bench, pool: Pool) -> None:
    """CLIPScore by the model at CURATION_MODEL: how far below sound pairs the others lie."""
    model = os.environ.get("CURATION_MODEL")
    if not model:
        bench.note("CLIPScore was not measured: set CURATION_MODEL to a run.")
        return
    part = Pool(pool.place, pool.table.slice(0, 1500), pool.truth[:1500])
    part.score("clip_score", model=model)
    scores, faults = np.array(part.columns["clip_score"], float), part.faults
    of = {
        kind: scores[[f == kind for f in faults]]
        for kind in (None, "mismatched", "foreign", "boilerplate", "text_only", "blurred", "leaked")
    }
    sound = of.pop(None)
    rows = []
    for kind, values in of.items():
        auc = float((sound[:, None] > values[None]).mean() + 0.5 * (sound[:, None] == values[None]).mean())
        found = [f"{(values < np.quantile(sound, share)).mean():.3f}" for share in (0.05, 0.1)]
        rows.append([kind, f"{auc:.3f}", *found, f"{len(values):,}"])
    columns = [
        "fault",
        "probability that a row without fault scores higher",
        "below the lowest 5 % of rows without fault",
        "lowest 10 %",
        "planted",
    ]
    bench.table(columns, rows, f"CLIPScore, {len(sound):,} rows without fault")
    recipe = load_recipe(f"{model}/recipe.yaml") if os.path.isfile(f"{model}/recipe.yaml") else None
    trained = f"the recipe `{recipe.name}` on `{recipe.data.train}`, {recipe.budget}" if recipe else f"`{model}`"
    bench.note(
        f"CLIPScore by {trained}, not by a large model. Leaked items are correct pairs, so 0.5 is the expected value for them."
    )


def _letters(bench: Bench, pool: Pool, n: int) -> None:
    """Reading is slow: over the first n rows."""
    part = Pool(pool.place, pool.table.slice(0, n), pool.truth[:n])
    part.columns = {}
    try:
        part.score("text_spotting", rows=32)
    except Exception as error:  # without the extra the other tables are still worth having
        bench.note(f"Text spotting was not measured: {error}")
        return
    wanted = part.planted(["text_only"])
    rows = [
        _row(bench, "text overlap ≥ 0.5", part.where("text_overlap", lambda v: v >= 0.5), wanted, part.faults),
        _row(bench, "text area ≥ 0.05", part.where("text_area", lambda v: v >= 0.05), wanted, part.faults),
    ]
    bench.table(["letters", "found", "right", "planted", "wrongly flagged"], rows, f"Pictures of their own caption, {n:,} rows")
