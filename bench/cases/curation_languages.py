"""Packaged language identifiers that work offline, on short texts: names of emoji in 14 languages (PyPI `emoji`), captions made of them, and captions of the
built-in world. *English found* and *English right* matter for a filter for English: the share of English captions that it keeps, and the share of kept captions that are English."""

from __future__ import annotations

import random
import time

from bench.harness import Bench, rate
from diptych.core.registry import resolve
from diptych.curation.dirty_pool.faults import SENTENCES
from diptych.curation.operators.text.language import IDENTIFIERS
from diptych.data.scenes import open_scenes

ENGLISH = ("a picture of {a} and {b}", "{a} next to {b}")


def run(bench: Bench) -> None:
    sets = _sets(40 if bench.quick else 400)
    for label, texts in sets.items():
        rows = []
        for name in IDENTIFIERS:
            identify = resolve(name, IDENTIFIERS, "identifier")
            identify([texts[0][1]])
            began = time.process_time()
            said = [code for code, _ in identify([text for _, text in texts])]
            speed = len(texts) / (time.process_time() - began)
            right = sum(a == code for a, (code, _) in zip(said, texts, strict=True)) / len(texts)
            english = [a for a, (code, _) in zip(said, texts, strict=True) if code == "en"]
            kept = [code for a, (code, _) in zip(said, texts, strict=True) if a == "en"]
            rows.append(
                [
                    name,
                    f"{right:.3f}",
                    f"{english.count('en') / len(english):.3f}",
                    f"{kept.count('en') / max(len(kept), 1):.3f}",
                    rate(speed),
                ]
            )
        bench.table(
            ["identifier", "right", "English found", "English right", "texts/CPU-s"], rows, f"{label}: {len(texts):,} texts"
        )
    bench.note("py3langid is the default: it makes the fewest errors on captions, rarely takes another language for English, and its model has 1 MB. Use cld2 for speed, and fasttext's small model for "
               "results comparable with DataComp's filters.")  # fmt: skip


def _sets(n: int) -> dict[str, list[tuple[str, str]]]:
    import emoji
    from emoji.unicode_codes import load_from_json

    draw = random.Random(0)
    languages = ["en", *SENTENCES]
    names: dict[str, list[str]] = {}
    for language in languages:
        load_from_json(language)
        found = [d[language] for d in emoji.EMOJI_DATA.values() if language in d and d.get("status") == 2]
        names[language] = [name.strip(":").replace("_", " ") for name in found]
    short = [(code, name) for code in languages for name in draw.sample(names[code], n)]
    made = {"en": ENGLISH, **SENTENCES}
    captions = [
        (code, draw.choice(made[code]).format(a=draw.choice(names[code]), b=draw.choice(names[code])))
        for code in languages
        for _ in range(n)
    ]
    world = [("en", s.captions[0]) for s, _ in zip(open_scenes("scenes:full?size=32"), range(5 * n), strict=False)]
    return {"names": short, "captions": captions, "captions of scenes": world}
