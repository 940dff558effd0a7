"""llavar, lumos and s4: their mixtures, prompts and stages as the recipes say, and that each learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.sample import Turn
from diptych.data.ocr import OcrPrompt
from diptych.data.ocr.readers import Truth
from diptych.data.sources import open_source
from diptych.training.start.setup import loader_of, set_up

LITTLE = [
    "parts.vision={kind: vit, patch: 16, width: 32, depth: 1, heads: 2}", "parts.lm={kind: llama, width: 32, depth: 1, heads: 2, hidden: 64}",
    "data.tokenizer={kind: bpe, vocab_size: 400}", "precision=fp32", "parts.connector={kind: linear}",
]  # fmt: skip


def learned(name: str, stage: int, steps: int = 12, *overrides: str) -> tuple[list[float], Any]:
    """The losses of some steps of a stage on one batch, everything learning; and its loader."""
    torch.manual_seed(0)
    recipe = load_recipe(name, [*LITTLE, *overrides])
    setup = set_up(recipe, device=torch.device("cpu"))
    spec = recipe.stages[stage]
    source = open_source(spec.data or recipe.data.train)
    loader = loader_of(setup, spec, source, 8, 0, "none")
    model, batch, losses = setup.model, loader.batch(0), []
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        loss: Any = setup.objectives[next(iter(spec.objectives))](model.encode(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, loader


def words(loader: Any, step: int = 0) -> list[str]:
    """The rows of a batch as text."""
    tokenizer = loader.fields["turns"].chat.tokenizer
    ids = loader.batch(step).fields["turns"].ids
    return [tokenizer.decode([i for i in row.tolist() if i > 0]) for row in ids]


def test_llavar_mixes_requests_to_read_with_captions_and_then_with_questions() -> None:
    recipe = load_recipe("llavar")
    align, instruct = (open_source(s.data or recipe.data.train) for s in recipe.stages)
    assert [w / sum(align.weights) for w in align.weights] == pytest.approx([595 / 1017, 422 / 1017], abs=1e-3)
    assert [w / sum(instruct.weights) for w in instruct.weights] == pytest.approx([158 / 174, 16 / 174], abs=1e-3)
    assert align.image_size == instruct.image_size == recipe.data.image_size == 96
    print_of_align = align.sources[1][5]
    assert print_of_align.turns[0].text == "<image>\nread all words in the picture."
    losses, loader = learned("llavar", 0, 12, "adapters={}", "stages.0.train=all", "stages.1.train=all")
    assert losses[-1] < losses[0] - 0.3
    text = " ".join(words(loader, 0) + words(loader, 1) + words(loader, 2))
    assert "read all words in the picture." in text and "describe the picture." in text


def test_lumos_reads_before_it_is_asked() -> None:
    losses, loader = learned("lumos", 1, 12, "adapters={}", "stages.0.train=all", "stages.1.train=all")
    assert losses[-1] < losses[0] - 0.3
    field = loader.fields["turns"]
    sample = open_source("scenes:text?ask=3")[9]
    (line,) = OcrPrompt(Truth()).of_sample(sample)
    own = sample.extra["words"][0]
    assert (
        line.startswith(f"text in the picture: {own['text']}")
        and f"<{' '.join(str(round(100 * edge / 96)) for edge in own['box'])}>" in line
    ) or own["on"] == "note"
    row = type("Row", (), {"sample": field.rest(sample), "fitted": {"turns": field.fit(sample, lambda: None)}})
    by_hand = [Turn("user", sample.turns[0].text.replace("<image>\n", f"<image>\n{line}\n")), *sample.turns[1:]]
    assert field._lesson(row) == field.chat.lesson(by_hand)
    rapid = load_recipe("lumos@rapidocr").data.fields["turns"]
    assert rapid.options["reader"] == {"kind": "rapidocr"}


def test_s4_learns_the_tasks_of_pages_and_then_questions_about_print() -> None:
    losses, loader = learned("s4", 0)
    assert losses[-1] < losses[0] - 0.3
    text = " ".join(words(loader) + words(loader, 1))
    assert (
        sum(
            part in text
            for part in (
                "parse the page.",
                "read the text in <",
                "which element is at <",
                "list the blocks",
                "where is the",
                "title",
            )
        )
        >= 4
    )
    recipe = load_recipe("s4")
    assert open_source(recipe.stages[0].data).image_size == open_source(recipe.data.train).image_size == recipe.data.image_size
    assert load_recipe("s4@untrained").stages[0].data == recipe.data.train


@pytest.mark.parametrize("name", ["llavar@mini", "lumos@mini", "s4@mini", "llavar@even"])
def test_variants_are_recipes(name: str) -> None:
    recipe = load_recipe(name)
    for backbone in recipe.backbones.values():
        assert open_source(backbone.data).fields
