"""A random LLaVA of 9.5 M parameters, forward and backward on captions: Diptych's model against transformers'
`LlavaForConditionalGeneration`, which loads Diptych's export, so that the weights are the same. A CLIP tower (112 pixels, 64
patches, width 256, depth 5, last state but one), an MLP, a Llama (width 256, depth 4, 4,096 words); batch 16, captions of 24 to 48
tokens, fp32. *All trained*: all weights get a gradient. *Connector alone*: tower and language model are frozen. Memory is the peak
of one forward and backward pass beyond the model, each in a new process. Logits, losses and gradients are compared first."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness import Bench, measure_memory, megabytes
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Texts
from diptych.interop.families.llava import FAMILY
from diptych.models.pretrained import CausalLM
from diptych.models.vlm import VLM, build_model
from diptych.objectives import build_objectives

SIZE, WIDTH, WORDS, LEARNING = 112, 256, 4096, {"all trained": True, "connector alone": False}

MATRICES = {  # whose gradients are compared: ours, theirs
    "connector": ("parts.connector.layers.0.weight", "model.multi_modal_projector.linear_1.weight"),
    "tower": ("parts.vision.tower.model.encoder.layers.0.mlp.fc1.weight", "model.vision_tower.encoder.layers.0.mlp.fc1.weight"),
    "language model": (
        "parts.lm.lm.model.model.layers.0.self_attn.q_proj.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
    ),
}


def directories(root: Path) -> None:
    """Tower and language model with random weights, as transformers saves them."""
    from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig

    from diptych.interop.families.language import tokenizer_of

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**sizes, num_hidden_layers=5, image_size=SIZE, patch_size=14)).save_pretrained(root / "tower")
    tokenizer = CausalLM.random(600, 32, 1, texts=["a red fox left of two blue keys"]).tokenizer
    lm = LlamaConfig(
        **{**sizes, "intermediate_size": 688}, num_hidden_layers=4, vocab_size=WORDS, pad_token_id=tokenizer.pad,
        bos_token_id=tokenizer.bos, eos_token_id=tokenizer.eos,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(lm)
    i = len(tokenizer)  # the image token, to be: as an export makes it, so that both sides have the same words
    for rows in (model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data):
        rows[i] = torch.cat([rows[:i], rows[i + 1 :]]).mean(0)
    model.save_pretrained(root / "lm")
    tokenizer_of(tokenizer).save_pretrained(root / "lm")


def ours(root: Path, everything: bool) -> tuple[VLM, torch.nn.ModuleDict]:
    parts = [f"parts.vision={{kind: hf, from: 'hf:{root / 'tower'}', layer: -2}}", "parts.connector={kind: mlp, norm: false}",
             f"parts.lm={{kind: hf, from: 'hf:{root / 'lm'}', trim: false}}", "precision=fp32", f"data.image_size={SIZE}"]  # fmt: skip
    recipe = load_recipe("llava", parts)
    model = build_model(recipe, None, SIZE)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.part("connector").parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / WIDTH**0.5)
    model.freeze(set() if everything else {"vision", "lm"})
    return model.train(), build_objectives(recipe, model)


def theirs(root: Path, everything: bool) -> Any:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(root / "out", dtype=torch.float32)
    if not everything:
        model.model.vision_tower.requires_grad_(False)
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    return model.train()


def batch_of(n: int, bos: int, eos: int, pad: int) -> Batch:
    draw = torch.Generator().manual_seed(2)
    lengths = torch.randint(24, 49, (n,), generator=draw)
    ids = torch.randint(1000, WORDS, (n, int(lengths.max())), generator=draw)
    seen = torch.arange(ids.shape[1]) < lengths[:, None]
    ids[:, 0] = bos
    ids = ids.masked_fill(~seen, pad).scatter(1, lengths[:, None] - 1, eos)
    pixels = torch.rand(n, 3, SIZE, SIZE, generator=draw) * 2 - 1
    return Batch({"image": Images(pixels), "text": Texts(ids, seen)}, n)


class Contestant:
    """``forward_backward`` on a batch; ``logits`` over its words."""

    def __init__(self, who: str, root: Path, everything: bool, n: int):
        self.model: Any
        if who == "diptych":
            self.model, self.objectives = ours(root, everything)
        else:
            self.model = theirs(root, everything)
            self.image = self.model.config.image_token_id
        config = self.model.part("lm").lm.model.config if who == "diptych" else self.model.config.text_config
        self.who, self.batch = who, batch_of(n, config.bos_token_id, config.eos_token_id, config.pad_token_id)
        self.inputs = {} if who == "diptych" else self._inputs()

    def _inputs(self) -> dict[str, Tensor]:
        """As a processor lays them out; nothing is to be learned at [BOS], images and padding."""
        ids, seen = self.batch["text"].ids, self.batch["text"].mask
        shown = ids.new_full((len(ids), (SIZE // 14) ** 2), self.image)
        whole, mask = torch.cat([ids[:, :1], shown, ids[:, 1:]], 1), torch.cat([seen[:, :1], shown > 0, seen[:, 1:]], 1)
        labels = whole.masked_fill(~mask | (whole == self.image), -100)
        labels[:, 0] = -100
        return {"input_ids": whole, "attention_mask": mask.long(), "pixel_values": self.batch["image"].pixels, "labels": labels}

    def logits(self) -> Tensor:
        with torch.no_grad():
            if self.who == "diptych":
                logits = self.model.encode(self.batch)["text.logits"]
            else:
                logits = self.model(**self.inputs).logits[:, -self.batch["text"].ids.shape[1] : -1, :WORDS]
        return logits[self.batch["text"].mask[:, 1:]]

    def forward_backward(self) -> Tensor:
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
        found = {part: there[MATRICES[part][self.who != "diptych"]].grad for part in parts}
        assert all(gradient is not None for gradient in found.values())
        return found  # type: ignore[return-value]


def prepare(who: str, root: str, setting: str, n: int) -> Callable[[], float]:
    """One forward and backward, after one of a single sample that loads what torch loads late."""
    Contestant(who, Path(root), LEARNING[setting], 1).forward_backward()
    contestant = Contestant(who, Path(root), LEARNING[setting], n)
    return lambda: float(contestant.forward_backward())


def run(bench: Bench) -> None:
    n, rounds = (4, 1) if bench.quick else (16, 3)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        directories(root)
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
                f"{setting}, batch {n}", {who: c.forward_backward for who, c in contestants.items()}, "transformers", work=n,
                unit="samples", clock="cpu", rounds=3 * rounds, warmup=2, goals={"diptych": 1.0},
            )  # fmt: skip
            taken: dict[str, list[int]] = {who: [] for who in contestants}
            for i in range(rounds):
                for who in contestants if i % 2 == 0 else reversed(contestants):
                    done = measure_memory("bench.cases.llava:prepare", who=who, root=str(root), setting=setting, n=n)
                    taken[who].append(done.extra)
            medians = {who: statistics.median(sizes) for who, sizes in taken.items()}
            ratio = medians["diptych"] / medians["transformers"]
            rows += [[setting, who, megabytes(size), f"{size / medians['transformers']:.2f}×"] for who, size in medians.items()]
            bench.goal(f"{setting}: peak memory ≤ 1.0× transformers", f"{ratio:.2f}×", ratio <= 1.0)
        bench.table(["", "", "peak memory", "relative to transformers"], rows)
