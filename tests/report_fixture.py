"""A made-up comparison on disk: what ``compare`` leaves, with the holes that real ones have."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from diptych.report import build_report

SKILLS = ("object", "colour", "count", "size", "position", "relation", "binding", "negation")
RECIPES = {
    "clip": ("CLIP", "contrastive", "Radford et al. 2021, arXiv:2103.00020"),
    "siglip": ("SigLIP", "contrastive", "Zhai et al. 2023"),
    "coca": ("CoCa", "generative", "Yu et al. 2022"),
    "flava": ("FLAVA", "masking", "Singh et al. 2022"),
    "llava": ("LLaVA-joint", "pretrained", "Ak et al."),
}
KNOWN = {  # caption → image, image → caption, naming, and the skills in order; what the textbook says
    "clip": (0.92, 0.91, 0.88, 0.97, 0.93, 0.81, 0.77, 0.52, 0.52, 0.51, 0.83),
    "siglip": (0.915, 0.905, 0.86, 0.96, 0.92, 0.78, 0.76, 0.55, 0.51, 0.50, 0.80),
    "coca": (0.85, 0.83, 0.80, 0.96, 0.95, 0.90, 0.83, 0.91, 0.96, 0.95, 0.88),
    "llava": (0.31, 0.28, 0.55, 0.80, 0.71, 0.60, 0.62, 0.54, 0.55, 0.53, 0.60),
}
ITEMS, TESTED = 40, 400
PLAIN = "two things on a plain ground"
COLOURS = {"red": "#c33", "blue": "#36c", "green": "#383", "gold": "#da2", "purple": "#849"}
THINGS = ("disc", "box", "ring", "kite")
RETRIEVAL = ("text-to-image/recall@1", "image-to-text/recall@1")


VOID = {"meta", "img", "br", "hr", "input", "link", "wbr"}


class Page(HTMLParser):
    """Balanced tags, and what the page would fetch or run."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.scripts = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.scripts += tag == "script" and ("type", "application/json") not in attrs  # data is not run
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> closes {self.open[-1:] or 'nothing'} at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def credits(share: float, n: int) -> list[float]:
    """n credits of which ``share`` are 1, spread evenly."""
    return [float(int((i + 1) * share + 1e-9) > int(i * share + 1e-9)) for i in range(n)]


def records(n: int = 200, score: float = 0.8, chance: float = 0.5, per_cluster: int = 1, **controls: float) -> list[dict[str, Any]]:
    """Items of one metric, ``right``; ``controls``: their shares of right answers."""
    rng = np.random.default_rng(5)
    columns = {"correct": credits(score, n), **{k: list(rng.permutation(credits(v, n))) for k, v in controls.items()}}
    return [
        {"item": f"i{i}", "cluster": f"c{i // per_cluster}", "question": f"Is it {i}?", "chance": {"right": chance}}
        | {name: {"right": float(column[i])} for name, column in columns.items()}
        for i in range(n)
    ]


def write(folder: Path, rows: list[dict[str, Any]], task: str = "mine") -> Path:
    path = folder / "records" / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return folder


def page_of(folder: Path, only: str = "", **more: Any) -> Page:
    """The report; ``only``: the page of one task."""
    html = build_report(folder, **more).read_text(encoding="utf-8")
    if only:
        html = html.split(f'id="task-{only}"', 1)[1].split('<div class="page"', 1)[0]
    return Page(html)


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def make_comparison(
    root: Path, values: dict[str, tuple[float, ...]] | None = None, seeds: int = 2, hostile: str = "", blind: float = 0.5
) -> Path:
    """``values``: as ``KNOWN``. A recipe of ``RECIPES`` without values has failed."""
    values = KNOWN if values is None else values
    rng = np.random.default_rng(7)
    captions = _items(root / "items", rng, hostile)
    for name, row in values.items():
        for seed in range(seeds):
            if not (name == "siglip" and seed == 1):  # a seed that is missing
                _run(root / f"{name}-s{seed}", name, seed, row, captions, rng, blind)
    recipes = [
        {"name": n, "label": label, "paradigm": paradigm, "about": f"What {label} does.", "cite": cite, "score": "similarity"}
        | ({} if n in values else {"error": "loss was not finite at step 12"})
        for n, (label, paradigm, cite) in RECIPES.items()
    ]
    description = {
        "title": "Five paradigms on scenes",
        "created": "2025-06-01T12:30:00",
        "command": "diptych compare clip siglip coca flava llava --budget 5m --seeds 2",
        "data": "scenes:world=46,size=64",
        "data_fingerprint": "9f2c4e1ab8d07756aa",
        "budget": "5m",
        "seeds": seeds,
        "recipes": recipes,
        "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "threads": 1},
        "licences": [{"part": "EfficientNet-Lite0", "licence": "Apache-2.0", "source": "https://example.org/lite0"}],
    }
    _write(root / "compare.json", description)
    _write(root / "tests.json", paired_tests(values))
    return root


def paired_tests(values: dict[str, tuple[float, ...]]) -> list[dict[str, Any]]:
    rows = []
    tested = [("retrieval", m, i) for i, m in enumerate(RETRIEVAL)]
    tested += [("controlled", s, 3 + SKILLS.index(s)) for s in ("relation", "binding")]
    for task, metric, index in tested:
        for a, b in combinations(values, 2):
            x, y = values[a][index], values[b][index]
            error = math.sqrt((x * (1 - x) + y * (1 - y)) / TESTED) or 1e-9
            p = math.erfc(abs(x - y) / error / math.sqrt(2))
            ends = {"low": x - y - 1.96 * error, "high": x - y + 1.96 * error}
            rows.append(
                {"task": task, "metric": metric, "a": a, "b": b, "difference": x - y, **ends, "p": p, "p_holm": min(1.0, p * 6)}
            )
    return rows


def result(task: str, metric: str, value: float, chance: float | None, **more: Any) -> dict[str, Any]:
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / TESTED)
    own = {"task": task, "metric": metric, "value": value, "low": value - half, "high": min(value + half, max(1.0, value))}
    beside = {"n": TESTED, "clusters": TESTED, "chance": chance, "higher_is_better": True, "controls": {}, "ties": 0, "nans": 0}
    return own | beside | more


def _run(
    path: Path, name: str, seed: int, row: tuple[float, ...], captions: list[str], rng: np.random.Generator, blind: float
) -> None:
    shift = 0.004 * (1 if seed else -1)
    results = [result("retrieval", m, v + shift, 1 / ITEMS) for m, v in zip(RETRIEVAL, row, strict=False)]
    if name != "llava":
        results.append(result("retrieval", "text-to-image/recall@5", 0.99, 5 / ITEMS))
    results.append(result("zeroshot", "top1", row[2] + shift, 1 / 46))
    for skill, value in zip(SKILLS, row[3:], strict=True):
        chance = 0.25 if skill == "count" else 0.5
        controls = {"blind": blind if skill == "binding" else chance + 0.01, "shuffled": chance - 0.01}
        results.append(result("controlled", skill, min(value + shift, 1.0), chance, controls=controls))
    skipped, records = [], []
    if name in ("coca", "llava"):
        cider = 1.31 if name == "coca" else 0.42
        results.append(result("captions", "cider", cider, None, low=cider - 0.1, high=cider + 0.1))
        generated = [
            {"item": f"i{i:03}", "generated": c if i % 3 else c.replace("left", "right"), "references": [c, PLAIN]}
            for i, c in enumerate(captions)
        ]
        _lines(path / "evaluation" / "captions.jsonl", generated)
    else:
        skipped.append({"task": "captions", "reason": "the model cannot generate"})
    _write(
        path / "evaluation" / "summary.json",
        {"model": name, "data": "scenes:", "data_fingerprint": "9f", "seconds": 9.0, "results": results, "skipped": skipped},
    )
    if name == "coca":  # scores but keeps no embeddings
        for i in range(ITEMS):
            own, others = f"i{i:03}", [f"i{j:03}" for j in rng.permutation(ITEMS)[:3] if j != i]
            top, rank = ([own, *others], 1.0) if i % 6 else ([*others[:2], own], 3.0)
            ranks = {"text-to-image": rank, "image-to-text": 9.0}
            records.append({"item": own, "cluster": own, "caption": captions[i], "rank": ranks, "top": top[:3]})
        _lines(path / "evaluation" / "records" / "retrieval.jsonl", records)
    else:
        centre = rng.normal(size=(ITEMS, 24))
        image, text = centre + 1.2, centre + (1.4 - row[0]) * rng.normal(size=centre.shape) - 0.4
        unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text)]
        np.savez(path / "evaluation" / "embeddings.npz", image=unit[0], text=unit[1])
    speed = {"clip": 740, "siglip": 735, "coca": 410, "llava": 20}.get(name, 300)
    steps = 300
    metrics = []
    for step in range(1, steps + 1, 2):
        loss = 0.3 + 4.5 * math.exp(-step / 70) + 0.06 * float(rng.normal())
        stage = "align" if name == "llava" and step < 120 else "main"
        metrics.append(
            {"step": step, "stage": stage, "samples": step * speed, "seconds": step, "share": step / steps, "loss": loss}
        )
    _lines(path / "metrics.jsonl", metrics)
    spent = {
        "seconds": 300.4,
        "samples": 300 * speed,
        "tokens": 3e7,
        "flops": 4.1e13,
        "steps": steps,
        "trainable_parameters": 1_040_000,
    }
    spent |= {"parameters": 270_000_000 if name == "llava" else 1_040_000, "peak_memory_bytes": 9.1e8, "finished": True}
    _write(path / "spent.json", spent)


def _items(directory: Path, rng: np.random.Generator, hostile: str) -> list[str]:
    (directory / "images").mkdir(parents=True)
    rows, captions = [], []
    for i in range(ITEMS):
        a, b = rng.choice(list(COLOURS), 2, replace=False)
        x, y = rng.choice(THINGS, 2, replace=False)
        caption = f"a {a} {x} left of a {b} {y}" + (hostile if i == 3 else "")
        ground = rng.integers(190, 235, size=(64, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(ground)
        draw = ImageDraw.Draw(picture)
        for place, (colour, thing) in enumerate(((a, x), (b, y))):
            box = (6 + 30 * place, 18, 26 + 30 * place, 38)
            fill = COLOURS[colour]
            if thing == "disc":
                draw.ellipse(box, fill=fill)
            elif thing == "box":
                draw.rectangle(box, fill=fill)
            elif thing == "ring":
                draw.ellipse(box, outline=fill, width=5)
            else:
                draw.regular_polygon(((box[0] + box[2]) / 2, 28, 12), 4, rotation=45, fill=fill)
        picture.save(directory / "images" / f"i{i:03}.png")
        rows.append({"item": f"i{i:03}", "image": f"images/i{i:03}.png", "captions": [caption, PLAIN]})
        captions.append(caption)
    _lines(directory / "retrieval.jsonl", rows)
    return captions


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


if __name__ == "__main__":
    import sys

    make_comparison(Path(sys.argv[1]))
