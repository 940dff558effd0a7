"""Does a collection hold what a query is for? Ways of deciding it, over many random collections: ``python -m bench.cutoff``.

one: scenes of one object each, twelve in a collection, and which of twelve concepts is there. two: scenes of one or two kinds of
objects. photographs: pictures with captions of any data set (``--photographs``), and which of COCO's objects their captions mention.
drawings: OpenMoji, and which of its names are there. Ways are compared on one half of the pictures, from which the default was
chosen, and on the other half. ``--one RUN …`` and ``--two RUN …`` name runs; each is a scorer of its own, so that the second model of
``diptych search --rerank`` is one of the rows: in collections of up to 20 pictures it judges all of them. What is computed is kept in runs/bench-cutoff; ``--write`` only writes the page.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import environment
from diptych.api import load
from diptych.benchmarks.statistics import function_interval, mean_interval
from diptych.benchmarks.texts.chair import coco_vocabulary, objects_in
from diptych.core.capabilities import Model, sides_of
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, read_json_or, write_json, write_text
from diptych.data.scenes.concepts import article
from diptych.data.source import usable_samples
from diptych.data.sources import open_source
from diptych.index.cutoff.background import (
    PICTURES,
    TEXTS,
    Background,
    Captioned,
    captioned,
    embedded_texts,
    preference,
    unrelated_texts,
)
from diptych.index.cutoff.chance import Chance
from diptych.index.cutoff.pairs import PICTURES as PAIRS
from diptych.index.cutoff.pairs import TEXTS as FEW
from diptych.index.cutoff.pairs import PairBackground, small
from diptych.index.cutoff.words import content
from diptych.training.run_files import RunFiles

ROOT = Path(__file__).parent.parent
RUNS, RESULTS, PAGE = Path("runs") / "bench-cutoff", ROOT / "bench" / "results" / "cutoff.json", ROOT / "docs" / "search-cutoff.md"
SIZES = {"one": 12, "two": 12, "photographs": 20, "drawings": 20}  # pictures in a collection
TITLES = {
    "one": "Scenes of one object",
    "two": "Scenes of one or two kinds of objects",
    "photographs": "Photographs",
    "drawings": "Drawings",
}
COLLECTIONS, RATE, RESAMPLES = 300, 0.05, 500
DRAWINGS = "openmoji:noflags"
ABSENT = 40  # names of drawings that are not there, asked of each collection
BEGIN, END = "<!-- figures: python -m bench.cutoff -->", "<!-- end of figures -->"
WAYS = {
    "cosine": "the cosine",
    "query": "z over other pictures (the query's noise)",
    "picture": "z over other texts (the picture's noise)",
    "both": "z over both",
    "csls": "CSLS, 20 neighbours on both sides",
    "alone": "preference over other texts",
    "mentions": "preference, with texts that mention the query",
    "read": "as a search does: words that were learned are read, others by the row above",
}


# --- what is scored ---


def questions(name: str, address: str, most: int) -> tuple[list[np.ndarray], list[str], np.ndarray]:
    """Pictures, queries [K], and which picture shows what, bool [N, K]."""
    source = open_source(address)
    if name == "drawings":  # of all kinds, which the list has one after the other
        samples = [source[i] for i in sorted(random.Random(0).sample(range(len(source)), min(most, len(source))))]
        random.Random(1).shuffle(samples)
    else:
        samples = [s for s in usable_samples(source, most) if s.image is not None]
    if name in ("one", "two"):
        names = list(source.classes)  # type: ignore[attr-defined]
        shown = [{t["concept"] if isinstance(t, dict) else t[1] for t in s.extra["graph"]["things"]} for s in samples]
        queries = [article(n) for n in names]
    elif name == "photographs":
        words = coco_vocabulary()
        names = queries = sorted({w for w in words.values() if w is not None})
        shown = [set(objects_in(" . ".join(s.captions), words)) for s in samples]
    else:
        names = queries = [s.captions[0] for s in samples]
        shown = [{s.captions[0]} for s in samples]
    return [np.asarray(s.image) for s in samples], list(queries), np.array([[n in those for n in names] for those in shown])


def matrices(
    model: Model, images: list[np.ndarray], queries: list[str], background: Background | None, data: str
) -> dict[str, Any]:
    """Scores of all queries and all background texts for all pictures, and for the background's pictures."""
    half = len(images) // 2
    if background is not None:
        x, q = model.embed_image(images), embedded_texts(model, queries)
        # Photographs and drawings have no pictures from elsewhere: for the ways that need them, those of the other half.
        outside = [background.pictures] * 2 if len(background.pictures) else [x[half:], x[:half]]
        both = np.concatenate([q, background.texts])
        near, plain = np.stack([background.near(v) for v in both]), x @ both.T
        read = [background.readers.scores(x, t) if background.reads(t) else np.full(len(x), np.nan) for t in queries]
        if background.bridge is not None:
            x, both = background.bridge.images(x), background.bridge.texts(both)
        return {
            "plain": plain,
            "scores": x @ both.T,
            "usual": np.stack([o @ both.T for o in (o[: min(map(len, outside))] for o in outside)]),
            "near": near,
            "words": np.array(list(background.words)),
            "absent": background.absent,
            "read": np.stack(read, 1),
            "read_absent": background.readers.absent,
        }
    compared = PairBackground.fit(model, Captioned.read(data, PAIRS, FEW, small))
    words = list(compared.words)
    scores = sides_of(model, images, queries + words)[1]
    usual = np.concatenate([sides_of(model, compared.images, queries)[1], compared.usual], 1)
    near = np.zeros((len(queries) + len(words), len(words)), bool)
    near[len(queries) :] = np.eye(len(words), dtype=bool)
    return {
        "scores": scores,
        "usual": np.stack([usual, usual]),
        "near": near,
        "words": np.array(words),
        "absent": compared.absent,
    }


def ways(held: dict[str, Any], queries: list[str], side: int) -> dict[str, np.ndarray]:
    """{way: [N, K + M]}: the score of each query and of each background text for each picture. side: which pictures are compared with."""
    scores, usual = held["scores"].astype(np.float64), held["usual"][side].astype(np.float64)
    plain = held.get("plain", scores).astype(np.float64)
    words, near, k = held["words"].tolist(), held["near"], len(queries)
    z = (scores - usual.mean(0)) / np.maximum(usual.std(0), 1e-6)
    texts, ztexts = scores[:, k:], z[:, k:]
    contents = [content(t) for t in words]
    out: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for j, text in enumerate([*queries, *words]):
        wanted = content(text)
        mentions = np.array([bool(wanted) and wanted <= c for c in contents])
        others = ~near[j] & ~mentions
        rest, zrest = (texts[:, others], ztexts[:, others]) if others.sum() > 1 else (texts, ztexts)
        out["cosine"].append(plain[:, j])
        out["query"].append(z[:, j])
        out["picture"].append((scores[:, j] - rest.mean(1)) / np.maximum(rest.std(1), 1e-6))
        out["both"].append((z[:, j] - zrest.mean(1)) / np.maximum(zrest.std(1), 1e-6))
        out["csls"].append(2 * scores[:, j] - np.sort(usual[:, j])[-20:].mean() - np.sort(rest, 1)[:, -20:].mean(1))
        out["alone"].append(preference(z[:, j], ztexts, np.zeros_like(mentions), near[j] | mentions))
        out["mentions"].append(preference(z[:, j], ztexts, mentions, near[j]))
    return {way: np.stack(columns, 1) for way, columns in out.items() if columns}


# --- how well ---


def asked(scores: np.ndarray, shown: np.ndarray, pictures: np.ndarray, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The best score of each query in many collections: score, present, collection, and the rank among unrelated texts (p)."""
    rng, k = np.random.default_rng(seed), shown.shape[1]
    parts: dict[str, list[np.ndarray]] = {"score": [], "present": [], "collection": [], "p": []}
    for c in range(COLLECTIONS):
        pool = rng.choice(pictures, size, replace=False)
        best, present = scores[pool].max(0), shown[pool].any(0)
        which = np.arange(k)
        if k > 100:
            which = np.concatenate([np.flatnonzero(present), rng.choice(np.flatnonzero(~present), ABSENT, replace=False)])
        null = np.sort(best[k:])
        p = (1 + len(null) - np.searchsorted(null, best[:k], side="left")) / (len(null) + 1)
        for name, values in {"score": best[:k], "present": present, "collection": np.full(k, c), "p": p}.items():
            parts[name].append(values[which])
    return {name: np.concatenate(values) for name, values in parts.items()}


def area(score: np.ndarray, present: np.ndarray) -> float:
    """Area under the ROC curve, ties by half."""
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
    n = int(present.sum())
    return float((rank[present].sum() - n * (n + 1) / 2) / (n * (len(present) - n)))


def recall(score: np.ndarray, present: np.ndarray) -> float:
    """The share of what is there that scores above 95 % of what is not."""
    return float((score[present] > np.quantile(score[~present], 1 - RATE)).mean())


def figures(a: dict[str, np.ndarray]) -> dict[str, Any]:
    """AUROC, recall at 5 % false alarms, and false alarms and recall at the threshold of the calibration; with 95 % intervals."""

    def over(metric: Callable[[np.ndarray, np.ndarray], float]) -> list[float]:
        found = function_interval(
            lambda i: metric(a["score"][i], a["present"][i]), a["collection"].tolist(), share=True, resamples=RESAMPLES
        )
        return [found.value, found.low, found.high]

    def share(of: np.ndarray) -> list[float]:
        found = mean_interval((a["p"][of] <= RATE).astype(float), a["collection"][of].tolist())
        return [found.value, found.low, found.high]

    return {"auroc": over(area), "recall": over(recall), "alarms": share(~a["present"]), "found": share(a["present"])}


def as_used(held: dict[str, Any], mentions: dict[str, np.ndarray], read: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """What a search does: words that are read by their readers, others by preference. The score is 1 minus the chance (p), which is
    comparable between both.
    """
    known = ~np.isnan(read["score"])
    p = mentions["p"].copy()
    p[known] = Chance(held["read_absent"]).of(read["score"][known], size)
    return {**mentions, "p": p, "score": -p}


def run(name: str, label: str, address: str, data: str, budget: str, most: int) -> dict[str, Any]:
    """All figures of one setting and one model."""
    images, queries, shown = questions(name, data, most)
    print(f"{name}: {label}: {len(images)} pictures, {len(queries)} queries", file=sys.stderr, flush=True)
    place = RUNS / f"{name}-{label}.npz"
    if place.is_file():
        held: dict[str, Any] = dict(np.load(place, allow_pickle=False))
    else:
        model = load(address)
        against = background_of(name, model, address)
        held = matrices(model, images, queries, against, training_data(address) or data)
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez(place, **held)
    half, rows, chance = len(images) // 2, {}, Chance(held["absent"])
    for part, pictures, side in (("chosen on", np.arange(half), 0), ("held out", np.arange(half, len(images)), 1)):
        found = ways(held, queries, side)
        results = {way: asked(scores, shown, pictures, SIZES[name]) for way, scores in found.items()}
        if chance.known:
            results["mentions"]["p"] = chance.of(results["mentions"]["score"], SIZES[name])
        if "read" in held and not np.isnan(held["read"]).all():
            results["read"] = as_used(held, results["mentions"], asked(held["read"], shown, pictures, SIZES[name]), SIZES[name])
        for way, result in results.items():
            rows[f"{part}/{way}"] = figures(result)
            print(f"  {part}: {way}: recall {rows[f'{part}/{way}']['recall'][0]:.3f}", file=sys.stderr, flush=True)
    return {"label": label, "budget": budget, "pictures": len(images), "texts": len(held["words"]), "rows": rows}


def background_of(name: str, model: Model, address: str) -> Background | None:
    """What the model is compared with; None for one that scores pairs alone."""
    if not {"embed_image", "embed_text"} <= model.capabilities:
        return None
    if name in ("one", "two") and RunFiles(Path(address)).recipe().score != "similarity":
        return None
    if name in ("one", "two"):
        return captioned(str(training_data(address)), model, PICTURES, TEXTS)
    if name == "drawings":  # other drawings, with their annotations
        return captioned(DRAWINGS + "?split=train", model, PICTURES, TEXTS)
    words = unrelated_texts()
    vectors = embedded_texts(model, words)
    return Background(words, vectors, np.zeros((0, vectors.shape[1]), np.float32))


def training_data(address: str) -> str | None:
    """The data of a run of ours."""
    files = RunFiles(Path(address))
    return files.recipe().data.train if files.exists() else None


# --- the page ---


def page(found: dict[str, Any]) -> list[str]:
    """The tables."""
    lines = []
    for name, title in TITLES.items():
        results = [r for key, r in found["results"].items() if key.startswith(f"{name}/")]
        if not results:
            continue
        lines += [
            "", f"### {title}", "", f"{SIZES[name]} pictures in a collection; {COLLECTIONS} collections from pictures that no way was chosen on.", "",
            "| scorer | way | AUROC | recall at 5 % false alarms | with the calibrated threshold: false alarms | recall |", "|---|---|---:|---:|---:|---:|",
        ]  # fmt: skip
        for r in results:
            pairs = r["texts"] <= FEW  # compared with fewer, and without vectors
            for way, text in ({"cosine": "its score", "mentions": WAYS["mentions"]} if pairs else WAYS).items():
                if (f := r["rows"].get(f"held out/{way}")) is None:
                    continue
                trained = f", {r['budget']}" if r["budget"] else ""
                cells = [interval(f["auroc"]), interval(f["recall"]), interval(f["alarms"]), interval(f["found"])]
                lines.append(f"| `{r['label']}`{trained} | {text} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def interval(values: Sequence[float]) -> str:
    value, low, high = values
    return f"{value:.3f} [{low:.3f}–{high:.3f}]"


def write(found: dict[str, Any]) -> None:
    """Puts the tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    where = found["environment"]
    note = f"{where['hardware']}; {where['software']}; {where['date']}. Intervals of 95 % over collections, which share pictures."
    write_text(PAGE, before + "\n".join([BEGIN, "", note, *page(found), END]) + after)


def main() -> int:
    """Measures what is missing and writes the page. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.cutoff", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--one", nargs="*", default=[], metavar="RUN", help="runs trained on scenes of one object")
    parser.add_argument("--two", nargs="*", default=[], metavar="RUN", help="runs trained on scenes:small")
    parser.add_argument("--photographs", metavar="ADDRESS", help="pictures with captions (default: scenes in natural colours)")
    parser.add_argument("--model", default="conse", help="for photographs and drawings")
    parser.add_argument("--only", nargs="*", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--pictures", type=int, default=600, help="at most so many of each data set")
    parser.add_argument("--write", action="store_true", help="only write the page")
    given = parser.parse_args()
    found: dict[str, Any] = read_json_or(RESULTS, {"results": {}})
    jobs = []
    for name in ("one", "two"):
        for address in getattr(given, name):
            recipe = RunFiles(Path(address)).recipe()
            data = recipe.data.train
            jobs.append((name, Path(address).name, address, f"{data}{'&' if '?' in data else '?'}split=test", str(recipe.budget)))
    jobs.append(("photographs", given.model, given.model, given.photographs or "scenes:small?natural=0.9&split=test", ""))
    jobs.append(("drawings", given.model, given.model, DRAWINGS + "?split=test", ""))
    for name, label, address, data, budget in [] if given.write else jobs:
        key = f"{name}/{label}" + ("" if name != "photographs" or given.photographs else "/stand-in")
        if name in given.only and key not in found["results"]:
            found["results"][key] = run(name, label, address, data, budget, given.pictures)
            found["environment"] = environment()
            write_json(RESULTS, found)
    write(read_json(RESULTS))
    print(f"written: {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except DiptychError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
