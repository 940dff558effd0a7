"""64 tokens of captions by CoCa's decoder (size `small`, 96 px, random weights, so that no text ends early), in CPU-seconds: with
the key-value cache, and without it, processing the whole text again for each token. Then beam search with several widths, in tokens
of the final captions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.harness import Bench
from bench.models import Words
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Tokens
from diptych.inference.generate import Decoding, beam_search, generate
from diptych.models.vlm import VLM, build_model

TOKENS = 64


def encoded(model: VLM, n: int) -> Tokens:
    """What the tower makes of n random images."""
    tokens: Tokens = model.encode(Batch({"image": Images(torch.rand(n, 3, 96, 96) * 2 - 1)}, n))["image.tokens"]
    return tokens


def reading_again(model: VLM, image: Tokens) -> Tensor:
    """Greedy, the plain way."""
    text, decoder = model.part("text"), model.part("decoder")
    ids = torch.full((len(image.pooled), 1), model.tokenizer.bos)
    for _ in range(TOKENS):
        logits = decoder(text(ids, torch.ones_like(ids, dtype=torch.bool)), image)[:, -1]
        ids = torch.cat([ids, logits.argmax(-1)[:, None]], 1)
    return ids[:, 1:]


def run(bench: Bench) -> None:
    torch.manual_seed(0)
    recipe = load_recipe(
        "coca", {"size": "small", "data.image_size": 96, "data.tokenizer.max_length": TOKENS + 1, "precision": "fp32"}
    )
    model = build_model(recipe, Words(4096, TOKENS + 1), 96).eval()
    decoder = model.part("decoder")
    with torch.inference_mode():
        for n in (4,) if bench.quick else (1, 4, 16):
            seen = encoded(model, n)  # beforehand: all need it, and once

            def cached(seen: Tokens = seen) -> Tensor:
                return generate(decoder.step, decoder.start(seen), Decoding(max_tokens=TOKENS))

            def again(seen: Tokens = seen) -> Tensor:
                return reading_again(model, seen)

            same = float((cached() == again()).float().mean())
            bench.compare(
                f"greedy, {n} image{'s' if n > 1 else ''}",
                {"without cache": again, "cached": cached},
                "without cache",
                work=n * TOKENS,
                unit="tokens",
                rounds=3,
                clock="cpu",
                goals={"cached": 5} if n >= 4 else None,
            )
            bench.goal(f"the same tokens for {n} image{'s' if n > 1 else ''}", f"{same:.2%}", same == 1)
        if bench.quick:
            return
        seen = encoded(model, 4)

        def beams(k: int) -> Callable[[], object]:
            how = Decoding(max_tokens=TOKENS, beams=k)
            return lambda: beam_search(decoder.step, decoder.start(seen), how)

        contestants = {"1 beam": beams(1), **{f"{k} beams": beams(k) for k in (2, 4, 8)}}
        bench.compare("beam search, 4 images", contestants, "1 beam", work=4 * TOKENS, unit="tokens", rounds=3, clock="cpu")
