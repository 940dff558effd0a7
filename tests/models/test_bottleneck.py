"""Bottleneck adapters: nothing at the start, their formula in float64, on towers, decoders and language models."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import pass_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from diptych.data.fields.text import tokenized
from diptych.data.text import Tokenizer
from diptych.models.adapters.bottleneck import sublayers
from diptych.models.vlm import build_model
from diptych.training.start.setup import set_up
from plain_fixture import gelu, linear
from tower_fixture import CLIP, blocks, patches_of, places_of, words_of

TEXTS = ["a red fox", "two green keys to the left of a big yellow house", "a cat"]
BOTH = [f"adapters.{p}={{kind: bottleneck, rank: 2}}" for p in ("vision", "text")]


def made(*overrides: str) -> Any:
    torch.manual_seed(0)
    return set_up(load_recipe("clip", [*CLIP, *overrides])).model.eval()


def stirred(model: Any) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        for adapter in model.adapters.values():
            for p in adapter.own():
                p.copy_(torch.randn_like(p) * 0.5)
    return model


def encoded(model: Any) -> Any:
    with torch.no_grad():
        p = pass_of(model, pixels(), TEXTS)
        return p["image.tokens"], p["text.tokens"]


def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_begins_as_nothing() -> None:
    model = made(*BOTH)
    plain = made()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not model.adapter_owns(k)})
    for a, b in zip(encoded(model.double()), encoded(plain.double()), strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.pooled, b.pooled)


def test_what_attention_and_mlp_give_passes_it() -> None:
    model = stirred(made(*BOTH)).double()
    image, text = encoded(model)
    for side in ("vision", "text"):
        layers: Any = model.adapters[side].layers
        assert len(layers) == 6 and layers[0].down.weight.shape == (2, model.parts[side].width)

        def behind(i: int, name: str, h: np.ndarray, layers: Any = layers) -> np.ndarray:
            layer = layers[2 * i + (name == "mlp")]
            result: np.ndarray = h + linear(layer.up, gelu(linear(layer.down, h)))
            return result

        for k in range(3):
            if side == "vision":
                x = blocks(model.parts["vision"], patches_of(model, pixels()[k].numpy()), behind=behind)
                np.testing.assert_allclose(image.tokens[k], x, atol=1e-9)
            else:
                words = words_of(model, TEXTS[k])
                x = blocks(model.parts["text"], words + places_of(model)[: len(words)], behind=behind)
                np.testing.assert_allclose(text.tokens[k, : len(words)], x, atol=1e-9)


def test_gradients_are_true() -> None:
    model = stirred(made(*BOTH)).double()
    model.train_only(["adapters.vision", "adapters.text"])

    def loss() -> torch.Tensor:
        p = pass_of(model, pixels(), TEXTS)
        return p["image.tokens"].pooled.sin().sum() + p["text.tokens"].pooled.cos().sum()

    loss().backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learned == {n for n, _ in model.named_parameters() if n.startswith("adapters.")}
    for side in ("vision", "text"):
        for p in (model.adapters[side].layers[0].down.weight, model.adapters[side].layers[3].up.bias):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    p.view(-1)[3] += step
                    values.append(float(loss()))
                    p.view(-1)[3] -= step
            assert float(p.grad.view(-1)[3]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_a_copy_has_its_own() -> None:
    """Hooks are copied with their module."""
    model = stirred(made(*BOTH))
    both = copy.deepcopy(torch.nn.ModuleList([model.parts, model.adapters]))
    before = both[0]["vision"](pixels().float()).pooled
    with torch.no_grad():
        for p in model.adapters["vision"].parameters():
            p.zero_()
    torch.testing.assert_close(both[0]["vision"](pixels().float()).pooled, before)
    assert not torch.allclose(model.parts["vision"](pixels().float()).pooled, before)


def test_it_cannot_be_merged() -> None:
    with pytest.raises(DiptychError, match=r"adapters\.vision: bottleneck adapters are not linear.*kind: lora"):
        made(*BOTH).merge_adapters(but="lm")


# --- language models ---

SMALL = ["parts.lm.width=16", "parts.lm.depth=2", "parts.lm.heads=2", "parts.lm.hidden=24"]
ADAPTED = "adapters.lm={kind: bottleneck, rank: 3, activation: relu}"


def lm(*more: str) -> Any:
    torch.manual_seed(0)
    return build_model(load_recipe("lm", [*SMALL, *more]), Tokenizer.train(TEXTS * 3, 320, 24), 48).eval()


def test_a_language_model_reads_through_it() -> None:
    """Against the layers of transformers with the bottlenecks written between them."""
    plain, model = lm().double(), lm(ADAPTED).double()
    text = tokenized(model.tokenizer, TEXTS)
    batch = Batch({"text": text}, 3)
    with torch.no_grad():
        before = [m.part("lm").text_logits(text.ids, text.mask) for m in (plain, model)]
        assert torch.equal(*before)
        stirred(model)
        found = model.part("lm").text_logits(text.ids, text.mask)
        layers, place = model.adapters["lm"].layers, 0
        for block in plain.part("lm").lm.model.model.layers:
            for parent, name in ((block.self_attn, "o_proj"), (block, "mlp")):
                own = layers[place]
                down, up = own.down.weight, own.up.weight

                def behind(h: torch.Tensor, inner: Any, own: Any = own, down: Any = down, up: Any = up) -> torch.Tensor:
                    h = inner(h)
                    return h + torch.relu(h @ down.T + own.down.bias) @ up.T + own.up.bias

                setattr(parent, name, Wrapped(getattr(parent, name), behind))
                place += 1
        want = plain.part("lm").text_logits(text.ids, text.mask)
    assert place == len(layers) == 4 and batch.size == 3
    torch.testing.assert_close(found[text.mask[:, 1:]], want[text.mask[:, 1:]])
    assert not torch.allclose(found, before[0])


def test_an_export_does_not_leave_it_out_in_silence() -> None:
    """``merge_adapters(but="lm")`` leaves low-rank adapters alone, which are merged or written elsewhere."""
    with pytest.raises(DiptychError, match=r"adapters\.lm: bottleneck adapters are not linear"):
        lm(ADAPTED).merge_adapters(but="lm")


class Wrapped(torch.nn.Module):
    """A layer and what follows it."""

    def __init__(self, inner: Any, behind: Any):
        super().__init__()
        self.inner, self.behind = inner, behind

    def forward(self, x: torch.Tensor) -> Any:
        return self.behind(x, self.inner)


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "GPTNeoX", "Qwen2", "Gemma2", "Bloom"])
def test_names_of_other_language_models(kind: str) -> None:
    """Two layers a block, each of which gives vectors of the model's width."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more: dict[str, dict[str, Any]] = {
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
        "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
        "Bloom": {"n_layer": 2, "n_head": 2},
        "Qwen2": {"num_key_value_heads": 2},
        "Gemma2": {"num_key_value_heads": 2, "head_dim": 8},
    }
    config: Any = getattr(transformers, f"{kind}Config")(**sizes, **more.get(kind, {}))
    model = transformers.AutoModelForCausalLM.from_config(config)

    class Part:
        lm = type("LM", (), {"model": model})()

    places = list(sublayers(Part()))
    assert len(places) == 4
    seen: list[tuple[int, ...]] = []
    for module in places:
        module.register_forward_hook(lambda m, a, out: seen.append(tuple((out[0] if isinstance(out, tuple) else out).shape)))
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert len(seen) == 4 and all(shape[-1] == 16 for shape in seen)


def test_decoders_of_ours_are_read_step_by_step_through_it() -> None:
    """What is written token by token equals what is read at once."""
    options = ["data.train=scenes:small?length=64", "data.tokenizer.vocab_size=320", "precision=fp32", "trackers=[]", "device=cpu"]
    small = ["parts.decoder={kind: multimodal, depth: 1, heads: 2}", "adapters.decoder={kind: bottleneck, rank: 2}"]
    towers = [o for o in CLIP if o.startswith("parts.")]
    torch.manual_seed(0)
    model = stirred(
        set_up(load_recipe("clip", [*options, *towers, "embed_dim=10", "parts.text.width=16", *small])).model.eval()
    ).double()
    assert len(model.adapters["decoder"].layers) == 2
    with torch.no_grad():
        p = pass_of(model, pixels()[:1], TEXTS[:1])
        whole = p["text.logits"]
        decoder, ids = model.part("decoder"), p["text"].ids
        logits, state = decoder.start(p["image.tokens"])
        for t in range(1, whole.shape[1]):
            torch.testing.assert_close(logits[0], whole[0, t - 1], atol=1e-6, rtol=1e-5)
            logits, state = decoder.step(ids[:, t], state)


def test_a_part_without_blocks_is_refused() -> None:
    lean = [o for o in CLIP if not o.startswith("parts.vision")]
    with pytest.raises(DiptychError, match=r"adapters\.vision: EfficientNet has no blocks with attention and MLP"):
        set_up(load_recipe("clip", [*lean, "parts.vision={kind: efficientnet}", "adapters.vision={kind: bottleneck}"]))
