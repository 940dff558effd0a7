"""Chat templates as the formats have them, a tokenizer that knows their marks, and a little model that learns from
conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch
from diptych.data.conversations.template import Chat
from diptych.data.sources import open_source
from diptych.models.pretrained.tokenizer import LMTokenizer
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.start.setup import loader_of, set_up

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim "
    "}}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL = (  # writes user and assistant alone: a system turn would be lost without a word
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
COUNTING = "{% for m in messages %}{{ loop.index }} of {{ messages | length }} {{ m.role }}: {{ m.content }}\n{% endfor %}"
MARKS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
         "<start_of_turn>", "<end_of_turn>"]  # fmt: skip


def tokenizer(template: str | None) -> LMTokenizer:
    """Bytes, and the marks of all formats."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(MARKS)
    pad, bos, eos = (backend.token_to_id(m) for m in MARKS[:3])
    made = LMTokenizer(backend, pad=pad, bos=bos, eos=eos)
    made.template = template
    return made


def chat(template: str | None, tokens: int = 3, **options: Any) -> Chat:
    return Chat(tokenizer(template), tokens, **options)


def said(chat: Chat, ids: list[int]) -> str:
    """Tokens as text, marks included."""
    return str(chat.tokenizer.backend.decode([i for i in ids if i >= 0], skip_special_tokens=False))


def answers(chat: Chat, document: Any) -> list[str]:
    """Each run of learned tokens as text."""
    runs: list[list[int]] = []
    for k, (i, learned) in enumerate(zip(document.ids, document.learned, strict=True)):
        if learned and (k == 0 or not document.learned[k - 1]):
            runs.append([])
        if learned:
            runs[-1].append(i)
    return [said(chat, run) for run in runs]


def picture(path: Path, colour: tuple[int, int, int]) -> str:
    Image.fromarray(np.full((32, 32, 3), colour, dtype=np.uint8)).save(path)
    return path.name


def table(folder: Path) -> str:
    """Conversations about no, one and two images, several turns, of very different lengths; the address of them."""
    red, blue = picture(folder / "red.png", (200, 20, 20)), picture(folder / "blue.png", (20, 20, 200))

    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"role": "assistant" if k % 2 else "user", "content": text} for k, text in enumerate(texts)]

    rows = [
        {"id": "none", "messages": turns("what is one and one?", "two")},
        {"id": "one", "images": [red], "messages": turns("<image>\nwhat colour?", "red", "are you sure?", "yes, it is red all over")},
        {"id": "two", "images": [red, blue], "messages": turns("<image> or <image>?", "the first is red, the second is blue")},
        {"id": "long", "images": [blue], "messages": turns("describe <image>", "blue, blue and blue again. " * 3)},
        {"id": "late", "images": [blue], "messages": turns("hello", "good day", "what is <image>?", "blue")},
        {"id": "short", "images": [red], "messages": turns("<image>?", "red")},
    ]  # fmt: skip
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"chat:{folder / 'talk.jsonl'}"


SMALL = ["parts.lm={kind: random}", "parts.vision={kind: vit, depth: 1, width: 32, heads: 2}", "precision=fp32",
         "data.image_size=32", "data.conversations.max_length=400"]  # fmt: skip


class Talker:
    """The second stage of ``llava-instruct`` with a tiny random language model."""

    def __init__(self, address: str, batch_size: int = 6, pack: bool = False, *overrides: str):
        which = [f"data.train={address}", f"data.conversations.pack={str(pack).lower()}"]
        self.recipe = load_recipe("llava-instruct", [*SMALL, *which, *overrides])
        torch.manual_seed(0)
        self.setup = set_up(self.recipe, device=torch.device("cpu"))
        self.model, self.stage = self.setup.model, self.recipe.stages[-1]
        self.model.freeze(set(self.model.parts) - set(self.stage.train))
        self.model.train()
        self.objectives = torch.nn.ModuleDict({"answers": self.setup.objectives["answers"]})
        self.loader = loader_of(self.setup, self.stage, open_source(address), batch_size, 0, "none")

    def batch(self) -> Batch:
        return self.loader.batch(0)

    def gradients(self, micro: int | None) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss and gradients of one step, however the batch is cut."""
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        for p in named.values():
            p.grad = None
        gradient = BatchGradient(self.model, Cluster(), False, 0, FlopMeter())
        taken = gradient(0, Pieces(Share(self.loader, 0, Cluster(), micro), 0), self.objectives, {"answers": 1.0})
        return float(taken.losses["answers"]), {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
