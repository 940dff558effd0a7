"""vladva: learned vectors before images and texts, contrast of short captions and next token of long ones, written out."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from frozen_fixture import CAPTIONS, built, captioned, learned
from plain_fixture import f64

LITTLE = ["parts.lm={kind: random, prompts: true, frozen: true}", "adapters.prompts.tokens=3", "adapters.lm.rank=2"]
LENGTHS = ["stages.tune.objectives.short_info_nce.most=16", "stages.tune.objectives.long_next_token.least=17"]


def made(*more: str) -> Any:
    return built("vladva", *LITTLE, *LENGTHS, *more)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    result: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def test_the_vectors_stand_before_image_and_text() -> None:
    """Sequences written out: [BOS] This photo: (vectors) image means: [EOS], [BOS] This sentence: (vectors) text means: [EOS]."""
    _, model, _ = made()
    model.eval()
    p, part, own = model.encode(captioned(model)), model.part("lm"), model.adapters["prompts"]
    lm, tokenizer = part.lm, part.lm.tokenizer
    opening, sentence, means = tokenizer.pieces(["This photo:", "This sentence:", "means:"])

    def words(ids: list[int]) -> torch.Tensor:
        out: torch.Tensor = lm.embed(torch.tensor([ids]))
        return out

    def last(*pieces: torch.Tensor) -> torch.Tensor:
        whole = torch.cat(pieces, 1)
        state: torch.Tensor = lm.hidden(whole, torch.ones(whole.shape[:2], dtype=torch.bool))[0, -1]
        return torch.nn.functional.normalize(state, dim=0)

    after = words([*means, tokenizer.eos])
    for i, caption in enumerate(CAPTIONS):
        text = last(words([tokenizer.bos, *sentence]), own.text[None], words(tokenizer.pieces([caption])[0]), after)
        torch.testing.assert_close(p["text.embedding"][i], text, atol=1e-5, rtol=1e-4)
        image = p["image.prefix"][i : i + 1] * part.scale
        state = last(words([tokenizer.bos, *opening]), own.image[None], image, after)
        torch.testing.assert_close(p["image.embedding"][i], state, atol=1e-5, rtol=1e-4)


def test_without_the_adapter_nothing_changes() -> None:
    _, with_it, _ = made()
    _, plain, _ = built("llava-joint", LITTLE[0], "data.tokenizer.max_length=48")
    state = {k: v for k, v in with_it.state_dict().items() if k.startswith(("parts.vision", "parts.connector"))}
    plain.load_state_dict(state, strict=False)
    with_it.part("lm").soft = {}
    batch = captioned(plain)
    for name in ("image.embedding", "text.embedding"):  # low-rank adapters begin as nothing
        torch.testing.assert_close(with_it.eval().encode(batch)[name], plain.eval().encode(batch)[name], atol=1e-5, rtol=1e-4)


def test_vectors_are_as_long_as_words_and_a_second_set_is_refused() -> None:
    _, model, _ = made()
    lm, own = model.part("lm").lm, model.adapters["prompts"]
    size = f64(lm.embed(torch.arange(lm.vocabulary)[None])[0])
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.mul_(3)
    own.restart()
    for vectors in (own.image, own.text):
        np.testing.assert_allclose(np.linalg.norm(f64(vectors), axis=1), 3 * np.linalg.norm(size, axis=1).mean(), rtol=1e-4)
    with pytest.raises(DiptychError, match=r"adapters\.more: parts\.lm has learned vectors already"):
        made("adapters.more={part: lm, kind: soft_prompt}")
    with pytest.raises(DiptychError, match=r"adapters\.vision: ViT is no language model"):
        made("adapters.vision={kind: soft_prompt}")
    with pytest.raises(DiptychError, match="cannot be merged into a language model"):
        own.merge()
    both = copy.deepcopy(torch.nn.ModuleList([model.parts, model.adapters]))
    twin: Any = both[0]["lm"]
    assert twin.soft["image"] is both[1]["prompts"].image and twin.soft["image"] is not own.image  # a copy has its own


def test_states_of_texts_are_computed_again_when_the_vectors_have_changed() -> None:
    _, model, _ = made()
    model.freeze({*model.parts, *(f"adapters.{n}" for n in model.adapters)})
    model.eval()
    batch, part = captioned(model), model.part("lm")
    assert not part.learns
    before = model.encode(batch)["text.embedding"]
    assert part._states
    with torch.no_grad():
        model.adapters["prompts"].text.add_(1.0)
    assert not torch.allclose(model.encode(batch)["text.embedding"], before, atol=1e-3)
    model.train_only(["adapters.prompts"])
    assert part.learns


class Known(dict):  # type: ignore[type-arg]
    rows: slice | None = None


def known(model: Any, rows: slice | None = None) -> tuple[Known, np.ndarray, np.ndarray, list[int]]:
    """A pass with embeddings made by hand, and which of its captions are short."""
    batch: Batch = captioned(model)
    torch.manual_seed(4)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 6, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
    given = Known({"image.embedding": image, "text.embedding": text, "text": batch["text"]})
    given.rows = rows
    counts = (batch["text"].mask.sum(1) - 2).tolist()
    return given, f64(image), f64(text), counts


@pytest.mark.parametrize("rows", [None, slice(1, 3), slice(2, 4)])
def test_only_short_captions_are_compared(rows: slice | None) -> None:
    _, model, objectives = made()
    own = objectives["short_info_nce"].double()
    p, image, text, counts = known(model, rows)
    own.most = sorted(counts)[2]  # three of four
    short = [i for i, n in enumerate(counts) if n <= own.most]
    assert len(short) == 3
    logits = image[short] @ text[short].T / 0.07
    to_text, to_image = log_softmax(logits), log_softmax(logits.T)
    counted = [k for k, i in enumerate(short) if rows is None or rows.start <= i < rows.stop]
    want = -np.mean([(to_text[k, k] + to_image[k, k]) / 2 for k in counted])
    assert float(own.forward(p).detach()) == pytest.approx(want, rel=1e-6) and own.terms(p) == 3
    own.most = 0
    assert float(own.forward(p).detach()) == 0.0 and own.terms(p) == 0


def test_gradient_of_the_contrast() -> None:
    _, model, objectives = made()
    own = objectives["short_info_nce"].double()
    p, _, _, counts = known(model)
    own.most = sorted(counts)[2]

    def loss(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = own.forward(Known({**p, "image.embedding": image, "text.embedding": text}))
        return out

    assert torch.autograd.gradcheck(loss, (p["image.embedding"], p["text.embedding"]))


def test_only_long_captions_are_written() -> None:
    _, model, objectives = made()
    own, batch = objectives["long_next_token"], captioned(model)
    counts = (batch["text"].mask.sum(1) - 2).tolist()
    own.least = sorted(counts)[2]
    long = [i for i, n in enumerate(counts) if n >= own.least]
    p = model.eval().encode(batch)
    logits, ids = f64(p["text.logits"]), batch["text"].ids
    terms = [-log_softmax(logits[i, t])[int(ids[i, t + 1])] for i in long for t in range(counts[i] + 1)]
    assert 0 < len(long) < 4 and own.terms(p) == len(terms)
    assert float(own(p).detach()) == pytest.approx(np.mean(terms), rel=1e-5)
    own.least = 99
    assert own.terms(p) == 0


def test_it_learns_and_only_what_is_said_learns() -> None:
    recipe, model, objectives = made()
    batch = captioned(model)
    losses, changed = learned(recipe, model, objectives, batch, stage=1, steps=12)
    assert losses[-1] < losses[0] - 0.05
    kinds = {"parts.connector": 0, "adapters.prompts": 0, "lora_": 0}
    for name in changed:
        kind = next((k for k in kinds if k in name), "")
        assert kind, name
        kinds[kind] += 1
    assert all(kinds.values()) and {"adapters.prompts.image", "adapters.prompts.text"} <= changed
