"""Training steps (forward, loss, backward, AdamW) of the dual encoder with open_clip's configuration ViT-S-16, in Diptych and in open_clip: 224 px, patches of 16, both
towers width 384, depth 12, 6 heads, 49,408 words, InfoNCE, one fixed batch in memory. Diptych's is the recipe `clip` with these sizes (mean-pooled patches where
open_clip has a class token). open_clip's is what `open_clip_train` does by default, and once also with torch's fused AdamW, which is an option of it.
*Equal tokens*: 77 real tokens for both. *Captions*: 14 tokens per caption, about as in COCO, which open_clip pads to 77 and Diptych to the longest of the batch."""

from __future__ import annotations

from bench.harness import Bench
from bench.models import images, ours, recipe, theirs, token_ids

CAPTION = 16  # 14 tokens, [BOS] and [EOS]


def run(bench: Bench) -> None:
    n = 2 if bench.quick else 16
    rounds = 5
    pixels, full, padded = images(n), token_ids(n), token_ids(n, filled=CAPTION)
    for precision in ("fp32", "bf16"):
        contestants = {
            "diptych": ours(recipe(precision), pixels, full).step,
            "open_clip": theirs(precision, pixels, full).step,
            "open_clip, fused AdamW": theirs(precision, pixels, full, fused=True).step,
        }
        title = f"{precision}, equal tokens, batch {n}"
        bench.compare(title, contestants, "open_clip", work=n, unit="samples", rounds=rounds, goals={"diptych": 1.25})
    for precision in ("fp32", "bf16"):
        contestants = {
            "diptych": ours(recipe(precision), pixels, padded[:, :CAPTION]).step,
            "open_clip": theirs(precision, pixels, padded).step,
        }
        bench.compare(f"{precision}, captions, batch {n}", contestants, "open_clip", work=n, unit="samples", rounds=5)
