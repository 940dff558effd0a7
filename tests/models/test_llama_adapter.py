"""LLaMA-Adapter: nothing at the start; a Llama written out in float64 with prefixes, gates and scales; what learns; refusals."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data.fields.text import tokenized
from diptych.data.text import Tokenizer
from diptych.models.vlm import build_model
from plain_fixture import f64
from tower_fixture import CLIP, softmax

TEXTS = ["a red fox", "two green keys to the left of a big yellow house", "a cat"]
SMALL = ["parts.lm.width=16", "parts.lm.depth=3", "parts.lm.heads=2", "parts.lm.hidden=24"]
ADAPTED = "adapters.lm={kind: llama_adapter, tokens: 3, layers: 2, std: 1}"


def made(*more: str) -> Any:
    torch.manual_seed(0)
    return build_model(load_recipe("lm", [*SMALL, *more]), Tokenizer.train(TEXTS * 3, 320, 24), 48).double().eval()


def stirred(model: Any) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.adapters["lm"].parameters():
            p.add_(torch.randn_like(p) * 0.5)
    return model


def logits(model: Any) -> Any:
    text = tokenized(model.tokenizer, TEXTS)
    return model.part("lm").text_logits(text.ids, text.mask)


def test_it_begins_as_nothing() -> None:
    plain, model = made(), made(ADAPTED)
    ids, mask = map(torch.from_numpy, model.tokenizer.encode_batch(TEXTS))
    with torch.no_grad():
        assert torch.equal(logits(model), logits(plain))
        two: list[Any] = [m.part("lm").lm for m in (plain, model)]  # other masks: two continuations, documents in a row, a prefix
        words = two[0].embed(ids)
        assert torch.equal(*(lm.hidden_of_branch(words, mask, words[:, :2], 3) for lm in two))
        places = torch.cat([torch.arange(4), torch.arange(words.shape[1] - 4)])[None].expand(3, -1)
        assert torch.equal(*(lm.documents(words, places) for lm in two))


def passed(scale: Any, x: np.ndarray) -> np.ndarray:
    result: np.ndarray = f64(scale.scale) * (x + f64(scale.bias))
    return result


def test_a_llama_reads_prefixes() -> None:
    """Every layer, head, query and key in loops; rotary positions as in RoFormer, in Llama's halves."""
    model = stirred(made(ADAPTED))
    adapter, llama = model.adapters["lm"], model.part("lm").lm.model
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    of = {  # a scale for each linear layer, in order of the modules; a factor for each norm
        (i, name): adapter.scales[7 * i + k] for i in range(3) for k, name in enumerate(names)
    }
    layers = [dict(layer.named_modules()) for layer in llama.model.layers]

    def linear(i: int, name: str, x: np.ndarray) -> np.ndarray:
        layer = next(m for n, m in layers[i].items() if n.endswith(name))
        return passed(of[i, name], x @ f64(layer.weight).T)

    def normed(i: int, which: int, x: np.ndarray) -> np.ndarray:
        layer = layers[i][("input_layernorm", "post_attention_layernorm")[which]]
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + layer.variance_epsilon)
        result: np.ndarray = x * f64(layer.weight) * f64(adapter.factors[2 * i + which].scale)
        return result

    def turned(x: np.ndarray, place: int) -> np.ndarray:
        half = len(x) // 2
        angle = place * 10_000.0 ** (-np.arange(half) / half)
        a, b = x[:half], x[half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    with torch.no_grad():
        found = logits(model)
    for row, text in enumerate(TEXTS):
        ids, mask = model.tokenizer.encode_batch([text])
        x = f64(llama.get_input_embeddings().weight)[ids[0, : int(mask.sum())]]
        T = len(x)
        for i in range(3):
            h = normed(i, 0, x)
            q, k, v = (linear(i, n, h) for n in names[:3])
            out = np.zeros((T, 16))
            for head in range(2):
                own = slice(8 * head, 8 * head + 8)
                for t in range(T):
                    query = turned(q[t, own], t)
                    keys = np.stack([turned(k[s, own], s) for s in range(t + 1)])
                    out[t, own] = softmax(keys @ query / 8**0.5) @ v[: t + 1, own]
                    if i >= 1:  # the last two layers
                        prefix = adapter.prefixes[i - 1]
                        pk, pv = (linear(i, n, f64(prefix.vectors))[:, own] for n in ("k_proj", "v_proj"))
                        out[t, own] += np.tanh(f64(prefix.gate)[head]) * (softmax(pk @ query / 8**0.5) @ pv)
            x = x + linear(i, "o_proj", out)
            h = normed(i, 1, x)
            gate = linear(i, "gate_proj", h)
            x = x + linear(i, "down_proj", gate / (1 + np.exp(-gate)) * linear(i, "up_proj", h))
        last = llama.model.norm
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + last.variance_epsilon) * f64(last.weight)
        x = x * f64(adapter.factors[6].scale)
        want = x @ f64(llama.get_output_embeddings().weight).T
        np.testing.assert_allclose(found[row, : T - 1], want[:-1], atol=1e-6)


def test_only_the_adapter_learns_by_its_gradient() -> None:
    model = stirred(made(ADAPTED, "parts.lm.frozen=true", "stages.0.train=[adapters.lm]", "stages.1.train=[adapters.lm]"))
    model.train_only(["adapters.lm"])
    logits(model).sin().sum().backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert learned == {n for n, _ in model.named_parameters() if n.startswith("adapters.")}
    for name in ("prefixes.0.vectors", "prefixes.1.gate", "scales.9.scale", "scales.20.bias", "factors.3.scale"):
        p = model.adapters["lm"].get_parameter(name)
        values = []
        for step in (3e-3, -3e-3):  # Llama's norms are in float32
            with torch.no_grad():
                p.view(-1)[1] += step
                values.append(float(logits(model).sin().sum()))
                p.view(-1)[1] -= step
        assert float(p.grad.view(-1)[1]) == pytest.approx((values[0] - values[1]) / 6e-3, rel=2e-3, abs=5e-4), name


def test_without_scales_only_prefixes_learn() -> None:
    adapter = made(ADAPTED.replace("std: 1", "unlock: false")).adapters["lm"]
    assert {n.rpartition(".")[2] for n, _ in adapter.named_parameters()} == {"vectors", "gate"}
    assert len(made("adapters.lm={kind: llama_adapter}").adapters["lm"].prefixes) == 2, "all layers but the first"


def test_a_copy_has_its_own_and_words_may_follow_one_by_one() -> None:
    model = stirred(made(ADAPTED))
    both = copy.deepcopy(torch.nn.ModuleList([model.parts, model.adapters]))
    with torch.no_grad():
        before = logits(model)
        lm, ids = model.part("lm").lm.model, torch.tensor([[5, 9, 7, 11]])
        whole, past = lm(input_ids=ids).logits, None
        for t in range(4):
            out = lm(input_ids=ids[:, t : t + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            torch.testing.assert_close(out.logits[:, 0], whole[:, t])
        for p in model.adapters["lm"].parameters():
            p.zero_()
        text = tokenized(model.tokenizer, TEXTS)
        torch.testing.assert_close(both[0]["lm"].text_logits(text.ids, text.mask), before)


@pytest.mark.parametrize("kind", ["Qwen3", "Gemma3Text", "Mistral"])
def test_key_heads_are_shared_and_keys_normed_as_the_model_does(kind: str) -> None:
    """A prefix token's keys and values are those of a word at that place, before positions; two query heads share a key head."""
    import transformers

    config: Any = getattr(transformers, f"{kind}Config")(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
    )
    model: Any = transformers.AutoModelForCausalLM.from_config(config).double().eval()

    class LanguageModel(torch.nn.Module):
        width = 16

        def __init__(self) -> None:
            super().__init__()
            self.lm = type("LM", (torch.nn.Module,), {})()
            self.lm.model = model

    from diptych.models.adapters.llama_adapter import LlamaAdapter

    ids = torch.tensor([[3, 4, 5]])
    before = model(input_ids=ids).logits
    adapter = LlamaAdapter(LanguageModel(), None, "adapters.lm", tokens=2, layers=1, std=1.0).double()  # type: ignore[arg-type]
    assert torch.equal(model(input_ids=ids).logits, before)
    seen: dict[str, torch.Tensor] = {}
    attention = model.model.layers[-1].self_attn
    attention.o_proj.register_forward_pre_hook(lambda m, args: seen.update(o=args[0].detach().clone()))
    queries = attention.q_proj.register_forward_hook(lambda m, args, out: seen.update(q=out.detach().clone()))
    model(input_ids=ids[:, :1])  # one word, at position 0, where rotary positions change nothing
    plain = seen["o"]
    queries.remove()
    with torch.no_grad():
        adapter.prefixes[0].gate.copy_(torch.tensor([0.3, -0.2, 0.8, 0.1]))  # type: ignore[operator, union-attr]
    model(input_ids=ids[:, :1])
    added = (seen["o"] - plain)[0, 0].view(4, 4)
    vectors = adapter.prefixes[0].vectors.detach()  # type: ignore[union-attr]
    q, k, v = seen["q"].view(4, 4), attention.k_proj(vectors).view(2, 2, 4), attention.v_proj(vectors).view(2, 2, 4)
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    for head in range(4):
        w = torch.softmax(k[:, head // 2] @ q[head] * attention.scaling, 0)
        gate = torch.tanh(adapter.prefixes[0].gate[head]).detach()  # type: ignore[index, union-attr]
        torch.testing.assert_close(added[head], (gate * (w @ v[:, head // 2])).detach(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([*CLIP, "adapters.text={kind: llama_adapter}"], r"adapters\.text: ClipText is no language model.*kind: prompt"),
        ([*SMALL, "adapters.lm={kind: llama_adapter, layers: 4}"], r"adapters\.lm\.layers: the language model has 3 layers only"),
    ],
)
def test_what_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        recipe = "clip" if overrides[0] == CLIP[0] else "lm"
        build_model(load_recipe(recipe, overrides), Tokenizer.train(TEXTS * 3, 320, 24), 48)


def test_beside_low_rank_adapters() -> None:
    """The matrices of LoRA get no scales, and prefixes pass the adapted maps."""
    low = "adapters.low={kind: lora, part: lm, rank: 2}"
    model = made(low, ADAPTED)
    assert len(model.adapters["lm"].scales) == 7 * 3 and len(model.adapters["lm"].prefixes[0].gate) == 2
    torch.manual_seed(5)
    with torch.no_grad():
        before = logits(model)
        for adapter in model.adapters.values():
            for p in adapter.own():
                p.add_(torch.randn_like(p) * 0.3)
        assert not torch.allclose(logits(model), before)


def test_it_cannot_be_exported() -> None:
    with pytest.raises(DiptychError, match=r"adapters\.lm: prefixes with gates cannot be merged.*kind: lora"):
        made(ADAPTED).merge_adapters(but="lm")
