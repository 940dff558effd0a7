"""Recipes between frozen models in little: a small tower and a small language model with random weights, and a few steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from batch_fixture import batch_of, turns_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch
from diptych.core.registry import resolve
from diptych.core.sample import Turn
from diptych.data.conversations.rows import laid_out
from diptych.data.conversations.template import Chat
from diptych.data.conversations.turns import question
from diptych.models.build import SIZES, Build
from diptych.models.connectors import CONNECTOR
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives

CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house above a small pink star", "a key"]
TOWER, LM, PATCHES = 24, 20, 16  # widths and patches, where a connector is built alone
LITTLE = ["parts.vision={kind: vit, frozen: true, width: 16, depth: 1, heads: 2}", "parts.lm={kind: random, frozen: true}"]


def connector(kind: str, **options: Any) -> Any:
    """A connector alone, in float64, for a tower of width ``TOWER`` with one class token and a language model of width ``LM``."""
    torch.manual_seed(0)
    parts = {"vision": SimpleNamespace(width=TOWER, tokens=PATCHES, extra=1), "lm": SimpleNamespace(width=LM)}
    build = Build(SIZES["tiny"], 32, None, parts=parts, where="parts.connector")  # type: ignore[arg-type]
    return resolve(kind, CONNECTOR, "connector")(build, **options).double()


def built(name: str, *overrides: str) -> tuple[Any, Any, Any]:
    """Recipe, model and objectives."""
    torch.manual_seed(0)
    recipe = load_recipe(name, [*LITTLE, "precision=fp32", *overrides])
    model = build_model(recipe, None, 48, CAPTIONS)
    return recipe, model, build_objectives(recipe, model)


def captioned(model: Any, captions: list[str] = CAPTIONS) -> Batch:
    """Pictures of noise with captions."""
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(captions))
    pixels = torch.rand(len(captions), 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = pixels.to(next(model.parts["vision"].parameters()).dtype)
    meaning = torch.arange(len(captions))
    return batch_of(pixels=pixels, text=ids, text_mask=mask, captions=tuple(captions), meaning=meaning)


def requested(model: Any, questions: list[str], answers: list[str]) -> Batch:
    """Pictures of noise, each in a conversation of one question and its answer, a row each."""
    own = model.part("connector").tokens
    chat = Chat(model.tokenizer, own, room=200)
    lessons = [chat.lesson([question(q), Turn("assistant", a)]) for q, a in zip(questions, answers, strict=True)]
    ids, _, learns, places = map(torch.from_numpy, laid_out(lessons, [[i] for i in range(len(lessons))], model.tokenizer.pad))
    pixels = torch.rand(len(lessons), 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return turns_of(ids, learns, places, pixels.to(next(model.parts["vision"].parameters()).dtype))


def learned(
    recipe: Any, model: Any, objectives: Any, batch: Batch, stage: int = 0, steps: int = 25, lr: float = 1e-2
) -> tuple[list[float], set[str]]:
    """The losses of some steps of a stage on one batch, and the names of the weights that have changed."""
    spec = recipe.stages[stage]
    model.train()
    model.train_only(spec.train)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    own = [objectives[name] for name in spec.objectives]
    weights = [p for m in (model, *own) for p in m.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(weights, lr, weight_decay=0.0), []
    for _ in range(steps):
        torch.manual_seed(2)
        p = model.encode(batch)
        loss: Any = sum(spec.objectives[name].weight * objectives[name](p) for name in spec.objectives)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def seen(rows: int = 2, seed: int = 1) -> torch.Tensor:
    """A tower's tokens [rows, 1 + patches, width] in float64, the class token first."""
    return torch.randn(rows, 1 + PATCHES, TOWER, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parts_of(names: set[str]) -> set[str]:
    """The parts and adapters that weights belong to."""
    return {".".join(n.split(".")[:2]) for n in names}
