"""A random LLaVA-NeXT of 9.5 M parameters, forward and backward on captions of pictures of many shapes: Diptych's model against
transformers' `LlavaNextForConditionalGeneration`, which loads Diptych's export, so that the weights are the same. Tower, MLP and
language model are those of the case `llava`; pictures are cut into tiles of 112 pixels (grids 1 × 2, 2 × 1, 2 × 2, 1 × 3, 3 × 1) and
read whole, too: 150 to 330 tokens each. Useful tokens are those of pictures and captions, without padding; fp32. *All trained*: all
weights get a gradient. *Connector alone*: tower and language model are frozen. Memory is the peak of one forward and backward pass
beyond the model, each in a new process. Logits, losses and gradients are compared first."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cases.llava import LEARNING, MATRICES, SIZE, WIDTH, WORDS, batch_of, directories
from bench.harness import Bench, measure_memory, megabytes
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Texts
from diptych.data.fields.tiles import collated_pictures
from diptych.data.tiles.batch import Tiles
from diptych.interop.families.llava_next import FAMILY
from diptych.models.vlm import VLM, build_model
from diptych.objectives import build_objectives

SHAPES = [(224, 224), (110, 330), (330, 112), (150, 224), (100, 250), (224, 130), (90, 90), (300, 300)]
IGNORED = -100  # what transformers learns nothing from


def ours(root: Path, everything: bool) -> tuple[VLM, torch.nn.ModuleDict]:
    parts = [f"parts.vision={{kind: hf, from: 'hf:{root / 'tower'}', layer: -2}}", "adapters={}",
             "stages=[{objectives: {next_token: 1}}]", "precision=fp32", f"data.image_size={SIZE}",
             f"parts.lm={{kind: hf, from: 'hf:{root / 'lm'}', trim: false}}"]  # fmt: skip
    recipe = load_recipe("llava-next", parts)
    model = build_model(recipe, None, SIZE)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.part("connector").parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / WIDTH**0.5)
    model.freeze(set() if everything else {"vision", "lm"})
    return model.train(), build_objectives(recipe, model)


def theirs(root: Path, everything: bool) -> Any:
    from transformers import LlavaNextForConditionalGeneration

    model = LlavaNextForConditionalGeneration.from_pretrained(root / "out", dtype=torch.float32)
    if not everything:
        model.model.vision_tower.requires_grad_(False)
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    return model.train()


def tiled(n: int, model: VLM, texts: Texts) -> Batch:
    """n pictures of many shapes, as floats in [−1, 1], and their captions."""
    draw = np.random.default_rng(3)
    pictures = [draw.integers(0, 256, (*SHAPES[i % len(SHAPES)], 3), dtype=np.uint8) for i in range(n)]
    tiles = collated_pictures(pictures, SIZE, model.own_fields)
    assert isinstance(tiles, Tiles)
    tiles.pixels = tiles.floats
    return Batch({"image": tiles, "text": texts}, n)


class Contestant:
    """``forward_backward`` on a batch; ``logits`` over its words. useful: its tokens without padding."""

    def __init__(self, who: str, root: Path, everything: bool, n: int):
        own, objectives = ours(root, everything)
        config = own.part("lm").lm.model.config
        texts = batch_of(n, config.bos_token_id, config.eos_token_id, config.pad_token_id)["text"]
        self.who, self.batch = who, tiled(n, own, texts)
        with torch.no_grad():
            self.counts = own.encode(self.batch)["image.prefix"].counts if n > 1 else None
        self.model: Any = own
        self.objectives = objectives
        self.inputs: dict[str, Tensor] = {}
        self.useful = int(texts.mask.sum()) + (0 if self.counts is None else int(self.counts.sum()))
        if who != "diptych":
            length = own.encode(self.batch)["image.prefix"].shape[1]
            counts = [length] * n if self.counts is None else self.counts.tolist()
            self.model = theirs(root, everything)
            self.inputs = self._inputs(counts, config.pad_token_id)

    def _inputs(self, counts: list[int], pad: int) -> dict[str, Tensor]:
        """As a processor lays them out, padded on the right; nothing is to be learned at [BOS], images and padding."""
        text, tiles = self.batch["text"], self.batch["image"]
        shown = self.model.config.image_token_id
        rows = []
        for ids, seen, count in zip(text.ids, text.mask, counts, strict=True):
            words = ids[seen]
            rows.append(torch.cat([words[:1], words.new_full((count,), shown), words[1:]]))
        whole = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
        labels = whole.masked_fill((mask == 0) | (whole == shown), IGNORED)
        labels[:, 0] = IGNORED
        return {
            "input_ids": whole, "attention_mask": mask, "labels": labels, "pixel_values": tiles.pixels.contiguous(),
            "image_sizes": tiles.sizes,
        }  # fmt: skip

    def logits(self) -> Tensor:
        """At the places that predict words, one caption after the other."""
        with torch.no_grad():
            if self.who == "diptych":
                return self.model.encode(self.batch)["text.logits"][self.batch["text"].mask[:, 1:]]
            found = self.model(**{k: v for k, v in self.inputs.items() if k != "labels"}).logits
        learned: Tensor = found[:, :-1][self.inputs["labels"][:, 1:] != IGNORED][:, :WORDS]
        return learned

    def forward_backward(self) -> Tensor:
        """The loss of the batch."""
        self.model.zero_grad(set_to_none=True)
        if self.who == "diptych":
            loss = self.objectives["next_token"](self.model.encode(self.batch))
        else:
            loss = self.model(**self.inputs).loss
        loss.backward()
        return loss.detach()

    def gradients(self, parts: list[str]) -> dict[str, Tensor]:
        """Of one matrix of each part."""
        self.forward_backward()
        there = dict(self.model.named_parameters())
        return {part: there[MATRICES[part][self.who != "diptych"]].grad for part in parts}


def prepare(who: str, root: str, setting: str, n: int) -> Callable[[], float]:
    """One forward and backward, after one of a single sample that loads what torch loads late."""
    Contestant(who, Path(root), LEARNING[setting], 1).forward_backward()
    contestant = Contestant(who, Path(root), LEARNING[setting], n)
    return lambda: float(contestant.forward_backward())


def run(bench: Bench) -> None:
    n, rounds = (2, 1) if bench.quick else (8, 3)
    from transformers import CLIPImageProcessorPil

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        directories(root)
        CLIPImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(root / "tower")  # pixels as they are
        model, objectives = ours(root, True)
        (root / "out").mkdir()
        FAMILY.write(root / "out", model, objectives)
        rows = []
        for setting, everything in LEARNING.items():
            contestants = {who: Contestant(who, root, everything, n) for who in ("transformers", "diptych")}
            there, here = (c.logits() for c in contestants.values())
            apart = float((there - here).abs().max())
            bench.goal(f"{setting}: logits equal to 1e-5", f"{apart:.1e}", apart <= 1e-5)
            losses = [float(c.forward_backward()) for c in contestants.values()]
            bench.goal(f"{setting}: losses equal to 1e-5", f"{abs(losses[0] - losses[1]):.1e}", abs(losses[0] - losses[1]) <= 1e-5)
            parts = list(MATRICES)[: 3 if everything else 1]
            there, here = (c.gradients(parts) for c in contestants.values())
            apart = max(float((there[p] - here[p]).norm() / there[p].norm()) for p in parts)
            bench.goal(f"{setting}: gradients of {', '.join(parts)} equal to 1e-4", f"{apart:.1e}", apart <= 1e-4)
            bench.compare(
                f"{setting}, batch {n}", {who: c.forward_backward for who, c in contestants.items()}, "transformers",
                work=contestants["diptych"].useful, unit="useful tokens", clock="cpu", rounds=2 * rounds, warmup=1,
                goals={"diptych": 1.0},
            )  # fmt: skip
            taken: dict[str, list[int]] = {who: [] for who in contestants}
            for i in range(rounds):
                for who in contestants if i % 2 == 0 else reversed(contestants):
                    done = measure_memory("bench.cases.llava_next:prepare", who=who, root=str(root), setting=setting, n=n)
                    taken[who].append(done.extra)
            medians = {who: statistics.median(sizes) for who, sizes in taken.items()}
            ratio = medians["diptych"] / medians["transformers"]
            rows += [[setting, who, megabytes(size), f"{size / medians['transformers']:.2f}×"] for who, size in medians.items()]
            bench.goal(f"{setting}: peak memory ≤ 0.9× transformers", f"{ratio:.2f}×", ratio <= 0.9)
        bench.table(["", "", "peak memory", "relative to transformers"], rows)
