"""The bridge to transformers: towers and language models from directories, the joint alignment of Ak et al., PRIOR's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from diptych.models.pretrained import CausalLM, VisionTower
from diptych.models.pretrained.hub import fetch
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.generative import averaging_one, improbability
from diptych.training.start.setup import set_up

CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house above a small pink star"]


def little(kind: str) -> Any:
    """A small random image model of a family."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        ResNetConfig,
        ResNetModel,
        SiglipVisionConfig,
        SiglipVisionModel,
        ViTConfig,
        ViTModel,
    )

    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    torch.manual_seed(0)
    if kind == "clip":
        return CLIPModel(CLIPConfig(vision_config=size, text_config=text))
    if kind == "siglip":
        return SiglipVisionModel(SiglipVisionConfig(**size))
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(**size))
    if kind == "vit":
        return ViTModel(ViTConfig(**size))
    return ResNetModel(ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], image_size=32))


@pytest.mark.parametrize(
    ("kind", "tokens", "extra"), [("clip", 16, 1), ("siglip", 16, 0), ("dinov2", 16, 1), ("vit", 16, 1), ("resnet", None, 0)]
)
def test_a_tower_of_any_family_gives_what_the_model_gives(kind: str, tokens: int | None, extra: int, tmp_path: Path) -> None:
    model = little(kind).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}')
    tower = VisionTower.load(f"hf:{tmp_path}")
    assert tower.extra == extra and (tokens is None or tower.tokens == tokens)
    pixels = torch.rand(2, 3, tower.size, tower.size) * 2 - 1
    seen, pooled = tower(pixels)
    assert seen.shape == (2, tower.extra + tower.tokens, tower.width) and pooled.shape == (2, tower.width)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    given = {"pixel_values": ((pixels + 1) / 2 - mean) / std}
    theirs = (model.vision_model if kind == "clip" else model)(**given)
    expected = theirs.last_hidden_state
    expected = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


def test_the_layer_before_the_last(tmp_path: Path) -> None:
    little("clip").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    last, before = VisionTower.load(str(tmp_path)), VisionTower.load(str(tmp_path), layer=-2)
    pixels = torch.rand(1, 3, 32, 32)
    hidden = last.model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(before(pixels)[0], hidden)  # mean and deviation ½ bring [−1, 1] back to itself
    assert before.extra == 1


def test_what_cannot_be_had_is_told_with_the_remedy(tmp_path: Path) -> None:
    from transformers import AutoModel

    with pytest.raises(DiptychError, match="must hold what save_pretrained writes"):
        fetch(AutoModel, str(tmp_path))
    with pytest.raises(DiptychError, match=r"nowhere\.gguf: there is no such file"):
        build("llava-joint", "parts.lm.kind=hf", "parts.lm.from=nowhere.gguf")
    with pytest.raises(DiptychError, match=r"parts\.lm: missing option 'from'"):
        build("llava-joint", "parts.lm.kind=hf")


def build(name: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    recipe = load_recipe(name, ["parts.vision.kind=vit", "parts.vision.frozen=false", "parts.vision.depth=1", *overrides])
    model = build_model(recipe, None, 32, CAPTIONS)
    return model, build_objectives(recipe, model)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_any_language_model_from_a_directory(family: str, tmp_path: Path) -> None:
    """Saved by transformers, read by us, its vocabulary trimmed to the captions: the same likelihoods among what is kept."""
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tiny = CausalLM.random(family="llama" if family == "gpt2" else family, texts=CAPTIONS * 3)  # type: ignore[arg-type]
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=len(tiny.tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=1
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
    else:
        tiny.model.save_pretrained(tmp_path)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer.backend, **names).save_pretrained(tmp_path)
    model, _ = build("llava-joint", "parts.lm.kind=hf", f"parts.lm.from=hf:{tmp_path}", "parts.lm.frozen=false")
    lm = model.part("lm").lm
    assert lm.vocabulary < len(tiny.tokenizer) and lm.dtype == torch.float32
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids, mask = (torch.from_numpy(x) for x in lm.tokenizer.encode_batch(CAPTIONS))
    whole = torch.from_numpy(lm.tokenizer.kept)[ids]
    ours = model.eval().part("lm").text_logits(ids, mask)
    with torch.no_grad():
        expected = theirs(input_ids=whole, attention_mask=mask.long()).logits[:, :-1, torch.from_numpy(lm.tokenizer.kept)]
    real = mask[:, :-1]
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-5)


def batch_for(model: Any, captions: list[str] = CAPTIONS) -> Batch:
    ids, mask = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(captions))
    torch.manual_seed(1)
    return batch_of(pixels=torch.rand(len(captions), 3, 32, 32) * 2 - 1, text=ids, text_mask=mask, captions=tuple(captions))


@pytest.mark.parametrize("prompts", [False, True])
def test_the_shared_space_is_the_last_hidden_state_at_eos(prompts: bool) -> None:
    """Against the sequence written out, one sample at a time: [BOS] (This photo:) image (means:) [EOS], [BOS] (This sentence:) text
    (means:) [EOS]."""
    model, _ = build("llava-joint", "parts.lm.kind=random", f"parts.lm.prompts={str(prompts).lower()}")
    model.eval()
    p, part = model.encode(batch_for(model)), model.part("lm")
    lm, tokenizer = part.lm, part.lm.tokenizer
    opening, sentence, means = tokenizer.pieces(["This photo:", "This sentence:", "means:"]) if prompts else ([], [], [])
    for i, caption in enumerate(CAPTIONS):
        words = [tokenizer.bos, *sentence, *tokenizer.pieces([caption])[0], *means, tokenizer.eos]
        state = lm.hidden(lm.embed(torch.tensor([words])), torch.ones(1, len(words), dtype=torch.bool))[0, -1]
        torch.testing.assert_close(p["text.embedding"][i], torch.nn.functional.normalize(state, dim=0), atol=1e-5, rtol=1e-4)
        image = p["image.prefix"][i : i + 1] * part.scale
        before, after = (lm.embed(torch.tensor([ids])) for ids in ([tokenizer.bos, *opening], [*means, tokenizer.eos]))
        whole = torch.cat([before, image, after], 1)
        state = lm.hidden(whole, torch.ones(whole.shape[:2], dtype=torch.bool))[0, -1]
        torch.testing.assert_close(p["image.embedding"][i], torch.nn.functional.normalize(state, dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompts", [False, True])
def test_reading_the_image_once_for_both_losses_changes_nothing(prompts: bool) -> None:
    """Losses and gradients of the two objectives, each by itself and both from one reading."""
    model, objectives = build("llava-joint", "parts.lm.kind=random", f"parts.lm.prompts={str(prompts).lower()}")
    batch = batch_for(model)

    def gradients(passes: Any) -> tuple[list[float], torch.Tensor]:
        model.zero_grad()
        losses = [objectives[name](p) for name, p in passes]
        sum(losses).backward()
        return [loss.item() for loss in losses], torch.cat([p.grad.flatten() for p in model.part("connector").parameters()])

    model.eval()
    p = model.encode(batch, wanted=[name for o in objectives.values() for name in o.needed()])
    passes: list[int] = []
    hook = model.part("lm").lm.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    model.part("lm").text_state(batch["text"].ids, batch["text"].mask)  # the sentences are known, and are not read again
    passes.clear()
    assert model.part("lm").reads_both and len(passes) == 3  # the trial
    passes.clear()
    together = gradients([("info_nce", p), ("next_token", p)])
    assert len(passes) == 1
    hook.remove()
    apart = gradients([("next_token", model.encode(batch)), ("info_nce", model.encode(batch))])
    assert together[0][::-1] == pytest.approx(apart[0], abs=1e-5)
    torch.testing.assert_close(together[1], apart[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_two_continuations_of_one_beginning_in_one_sequence(family: str) -> None:
    """Each as if it stood alone, padding and sliding windows (gemma3 random: 8) or not; the first sees nothing of the second."""
    lm = CausalLM.random(family=family, texts=CAPTIONS * 3)  # type: ignore[arg-type]
    torch.manual_seed(0)
    embeds, beside = torch.randn(2, 14, lm.width), torch.randn(2, 3, lm.width)
    mask = torch.ones(2, 14, dtype=torch.bool)
    mask[1, 11:] = False
    found = lm.hidden_of_branch(embeds, mask, beside, after=10)
    alone = lm.hidden(embeds, mask)
    torch.testing.assert_close(found[:, :14][mask], alone[mask], atol=1e-5, rtol=1e-5)
    other = lm.hidden(torch.cat([embeds[:, :10], beside], 1), torch.ones(2, 13, dtype=torch.bool))
    torch.testing.assert_close(found[:, 14:], other[:, 10:], atol=1e-5, rtol=1e-5)
    assert lm.branches()


def test_reading_both_at_once_is_tried_before_the_first_step() -> None:
    """Or its operations would be counted as a step's; with dropout on, the trial is of the model without it, and draws nothing."""
    small = ["parts.lm.kind=random", "parts.vision={kind: vit, depth: 1}", "data.train=scenes:small"]
    assert "reads_both" in vars(set_up(load_recipe("llava-joint", small)).model.part("lm"))
    assert "reads_both" not in vars(set_up(load_recipe("llava", small)).model.part("lm"))
    setup = set_up(load_recipe("llava-joint", [*small, "parts.lm={kind: random, lora: {rank: 2, dropout: 0.9}}"]))
    lm = setup.model.train().part("lm").lm
    for name, parameter in lm.named_parameters():  # adapters begin as nothing
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = torch.get_rng_state()
    assert lm.training and lm.branches() and lm.training
    assert torch.equal(torch.get_rng_state(), before)


def test_texts_are_remembered_only_while_nothing_learns() -> None:
    model, _ = build("llava-joint", "parts.lm.kind=random")
    part = model.part("lm")
    batch = batch_for(model)
    first = model.encode(batch)["text.embedding"]
    assert len(part._states) == 3 and not first.requires_grad
    calls: list[int] = []
    part.lm.model.register_forward_hook(lambda *_: calls.append(1))
    longer = batch_for(model, [*CAPTIONS[::-1], "a new one"])
    again = model.encode(longer)["text.embedding"]
    torch.testing.assert_close(again[:3].flip(0), first, atol=1e-6, rtol=1e-5)
    assert len(part._states) == 4
    model.freeze(set())
    learning = model.encode(batch)["text.embedding"]
    assert learning.requires_grad
    torch.testing.assert_close(learning, first, atol=1e-5, rtol=1e-4)


def test_prompts_are_drawn_anew_in_training_and_never_in_scoring() -> None:
    model, _ = build("llava-joint", "parts.lm.kind=random", "parts.lm.prompts=true")
    part = model.part("lm")
    part._openings = [[5, 6], [7, 8], [9, 10]]
    prefix = torch.zeros(40, 2, part.width)
    model.train()
    drawn = part._opening(prefix)[:, 1]
    assert len({tuple(row.tolist()) for row in drawn}) == 3
    model.eval()
    assert len({tuple(row.tolist()) for row in part._opening(prefix)[:, 1]}) == 1


def test_prior_weighs_by_what_the_text_alone_does_not_tell() -> None:
    """NumPy, float64: (1 − p)^α of the reference, which sees no image, times the loss of the model that does. The weights of a
    caption average 1.
    """
    model, objectives = build("prior@self", "parts.lm.kind=random", "stages.0.objectives.prior_next_token.alpha=2")
    model.eval()
    batch = batch_for(model)
    p = model.encode(batch)
    lm = model.part("lm")

    def log_softmax(x: Any) -> np.ndarray:
        x = x.detach().numpy().astype(np.float64)
        return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)

    blind, seen = log_softmax(lm.text_logits(batch["text"].ids, batch["text"].mask)), log_softmax(p["text.logits"])
    total, n = 0.0, 0
    for b in range(3):
        words = [(t, int(batch["text"].ids[b, t + 1])) for t in np.flatnonzero(batch["text"].mask[b, 1:].numpy())]
        weights = np.array([(1 - np.exp(blind[b, t, word])) ** 2 for t, word in words])
        weights *= len(words) / weights.sum()
        total -= sum(w * seen[b, t, word] for w, (t, word) in zip(weights, words, strict=True))
        n += len(words)
    loss = objectives["prior_next_token"](model.encode(batch))
    assert loss.item() == pytest.approx(total / n, rel=1e-5)
    loss.backward()
    assert all(q.grad is None for q in lm.parameters()) and all(q.grad is not None for q in model.part("connector").parameters())
    assert improbability(torch.tensor([0.0, -50.0]), 1.0).tolist() == pytest.approx([0.0, 1.0])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    equal = averaging_one(torch.tensor([[0.2, 0.6, 9.0], [0.0, 0.0, 0.0]]), mask)
    assert equal.flatten().tolist() == pytest.approx([0.5, 1.5, 0, 1, 1, 1])  # a text that the reference knows by heart counts, too


@pytest.mark.parametrize("name", ["llava-joint", "prior", "frozen"])
def test_the_recipes_train_and_embed(name: str, tmp_path: Path) -> None:
    import diptych as dp

    small = {
        "parts.lm.kind": "random",
        "parts.vision": {"kind": "vit", "depth": 1},
        "stages.0.batch_size": 8,
        "stages.0.micro_batch": 4,
    }
    run = dp.train(name, data="scenes:small", budget="32 samples", out=tmp_path / "run", set=small)
    model = dp.load(run.path)
    images = [np.zeros((48, 48, 3), np.uint8), np.full((48, 48, 3), 255, np.uint8)]
    assert model.embed_image(images).shape == model.embed_text(CAPTIONS[:2]).shape == (2, 32)
    assert model.score(images, CAPTIONS).shape == (2, 3) and len(model.generate(images, max_tokens=3)) == 2


def test_frozen_parts_keep_no_gradients_and_checkpoints_hold_what_was_trained() -> None:
    recipe = load_recipe("llava-joint", ["parts.lm.kind=random", "parts.vision.kind=vit", "data.train=scenes:small"])
    setup = set_up(recipe)
    assert {k.split(".")[1] for k in setup.model.saved_state() if k.startswith("parts.")} == {"vision", "connector"}
    assert all(not p.requires_grad for p in setup.model.part("lm").parameters())
