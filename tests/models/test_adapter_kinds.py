"""DoRA, VeRA and QLoRA on towers: their formulas in float64, what learns, merging, saving, resuming, export and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_adapters import BOTH, FROZEN, TEXTS, adapted, base, encodings, last, made, pictures, stir  # noqa: F401 - a fixture

from batch_fixture import pass_of
from diptych.core.errors import DiptychError
from diptych.inference.export import export
from diptych.inference.load import load
from diptych.models.adapters.lora import linear_layers

KINDS = ["dora", "vera", "qlora"]


def of(kind: str) -> list[str]:
    """Adapters of a kind on both towers."""
    return [f"adapters.vision={{kind: {kind}, rank: 3}}", f"adapters.text={{kind: {kind}, rank: 2, dropout: 0.1}}"]


def doubles(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [x.detach().double().numpy() for x in tensors]


def layer_of(model: Any) -> Any:
    return model.parts["vision"].transformer.blocks[0].mlp[0]


# --- formulas ---


def test_dora_has_a_magnitude_for_each_output() -> None:
    """Against loops in float64; and peft's own entry with the same numbers."""
    import copy

    import peft

    plain = made().model
    model = made("adapters.vision={kind: dora, rank: 3, alpha: 5}").model
    stir(model)
    layer, x = layer_of(model), torch.randn(4, 32)
    W, b, A, B, m = doubles(
        layer.base_layer.weight, layer.base_layer.bias, layer.lora_A.default.weight, layer.lora_B.default.weight,
        layer.lora_magnitude_vector.default.weight,
    )  # fmt: skip
    assert m.shape == (48,) and W.shape == (48, 32)
    want = np.zeros((4, 48))
    for i in range(4):
        for o in range(48):
            v = [W[o, k] + 5 / 3 * sum(B[o, r] * A[r, k] for r in range(3)) for k in range(32)]
            norm = sum(c * c for c in v) ** 0.5
            want[i, o] = b[o] + m[o] * sum(c * float(x[i, k]) for k, c in enumerate(v)) / norm
    np.testing.assert_allclose(layer(x).detach().numpy(), want, atol=1e-5)
    theirs = copy.deepcopy(plain.parts["vision"])
    config = peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=linear_layers(theirs))  # type: ignore[arg-type]
    other = peft.get_peft_model(theirs, config)  # type: ignore[arg-type]
    other.base_model.model.load_state_dict(model.parts["vision"].state_dict())
    pixels = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.parts["vision"](pixels).tokens, other(pixels).tokens)


def test_the_norm_of_dora_counts_as_a_constant() -> None:
    """Liu et al. 2024, §4.3: the gradient of m · V / sg(‖V‖)."""
    model = made("adapters.vision={kind: dora, rank: 3, alpha: 5}").model.double()
    stir(model)
    layer, x, upstream = layer_of(model), torch.randn(4, 32, dtype=torch.float64), torch.randn(4, 48, dtype=torch.float64)
    (layer(x) * upstream).sum().backward()
    A, B, m = (
        p.detach() for p in (layer.lora_A.default.weight, layer.lora_B.default.weight, layer.lora_magnitude_vector.default.weight)
    )
    V = layer.base_layer.weight.detach() + 5 / 3 * B @ A
    norm = V.norm(dim=1)
    for_V = (m / norm)[:, None] * (upstream.T @ x)
    torch.testing.assert_close(layer.lora_A.default.weight.grad, 5 / 3 * B.T @ for_V)
    torch.testing.assert_close(layer.lora_B.default.weight.grad, 5 / 3 * for_V @ A.T)
    torch.testing.assert_close(layer.lora_magnitude_vector.default.weight.grad, ((upstream.T @ x) * V).sum(1) / norm)


def test_vera_scales_shared_random_matrices() -> None:
    """W0 + diag(b) B diag(d) A in loops, for layers of different sizes, of one A and one B that never learn."""
    model = made("adapters.vision={kind: vera, rank: 3}").model
    stir(model)
    adapter: Any = model.adapters["vision"]
    A, B = doubles(adapter.A, adapter.B)
    assert A.shape == (3, 48) and B.shape == (64, 3), "the most inputs and outputs of any layer (mlp.2, attention.kv)"
    for name in ("mlp.0", "mlp.2", "attention.kv"):
        layer = model.parts["vision"].transformer.blocks[1].get_submodule(name)
        W, bias, b, d = doubles(
            layer.base_layer.weight, layer.base_layer.bias, layer.vera_lambda_b.default, layer.vera_lambda_d.default
        )
        out, width = W.shape
        assert b.shape == (out,) and d.shape == (3,)
        x = torch.randn(2, width)
        want = np.zeros((2, out))
        for i in range(2):
            inner = [d[r] * sum(A[r, k] * float(x[i, k]) for k in range(width)) for r in range(3)]
            for o in range(out):
                own = sum(W[o, k] * float(x[i, k]) for k in range(width)) + bias[o]
                want[i, o] = own + b[o] * sum(B[o, r] * inner[r] for r in range(3))
        np.testing.assert_allclose(layer(x).detach().numpy(), want, atol=1e-5)
    learning = [n for n, p in model.named_parameters() if any(p is q for q in adapter.own())]
    assert learning and all("vera_lambda_" in n for n in learning)
    assert torch.equal(made("adapters.vision={kind: vera, rank: 3}").model.adapters["vision"].A, adapter.A), "of a seed"
    assert not torch.equal(made("adapters.vision={kind: vera, rank: 3, seed: 1}").model.adapters["vision"].A, adapter.A)


def normal_float() -> list[float]:
    """The 16 levels from their definition (Dettmers et al. 2023, §3 and appendix E): quantiles of the normal distribution at evenly
    spaced probabilities, eight of the positive half and seven of the negative one beside a 0, scaled to [−1, 1].
    """
    from statistics import NormalDist

    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    return [x / max(positive) for x in sorted([*positive, 0.0, *negative])]


def test_qlora_packs_weights_to_normal_floats() -> None:
    """Each block of 64 by its largest absolute value, each weight to the nearest level; LoRA on that, in float64."""
    plain = made().model
    torch.manual_seed(0)
    model = made("adapters.vision={kind: qlora, rank: 3, alpha: 5}").model
    layer = layer_of(model)
    full = layer_of(plain).weight.detach()
    layer.base_layer.load_state_dict({"weight": full, "bias": layer.base_layer.bias})
    blocks = full.double().numpy().reshape(-1, 64)
    W, levels = np.zeros_like(blocks), normal_float()
    for i, block in enumerate(blocks):
        scale = max(abs(v) for v in block)
        W[i] = [min(levels, key=lambda level, v=v: abs(v / scale - level)) * scale for v in block]  # type: ignore[misc]
    W = W.reshape(full.shape)
    np.testing.assert_allclose(layer.base_layer.weight.numpy(), W, atol=1e-6)
    assert 0.005 < np.abs(W - full.numpy()).max() < np.abs(blocks).max() / 6
    stir(model)
    A, B, b = doubles(layer.lora_A.default.weight, layer.lora_B.default.weight, layer.base_layer.bias)
    x = torch.randn(4, 32, requires_grad=True)
    y, upstream = layer(x), torch.randn(4, 48)
    whole = W + 5 / 3 * B @ A
    np.testing.assert_allclose(y.detach().numpy(), x.detach().double().numpy() @ whole.T + b, atol=1e-5)
    y.backward(upstream)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), upstream.double().numpy() @ whole, atol=1e-4)
    assert layer.base_layer.packed.numel() == full.numel() / 2 and layer.base_layer.packed.dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_what_was_unpacked_loses_nothing(dtype: torch.dtype) -> None:
    from diptych.models.adapters.qlora import NF4Linear

    for shape in ((64, 48), (33, 50), (8, 5)):
        first = NF4Linear(torch.nn.Linear(*shape, dtype=dtype))
        second = NF4Linear(torch.nn.Linear(*shape, dtype=dtype))
        assert not torch.equal(first.weight, second.weight)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.packed, second.packed) and torch.equal(first.scales, second.scales)
        assert torch.equal(first.weight, second.weight) and second.weight.dtype == dtype
        second.to(torch.bfloat16)
        assert second.scales.dtype == torch.float32 and torch.equal(first.scales, second.scales)
    with pytest.raises(RuntimeError, match="size mismatch"):
        second.load_state_dict({"weight": torch.zeros(3, 3), "bias": torch.zeros(5)})
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict({"bias": torch.zeros(5)})


# --- starting, learning, merging ---


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_has_not_learned_changes_nothing(base: Path, kind: str) -> None:  # noqa: F811
    """Also after the part has taken over other weights: DoRA's magnitudes are those of the weights that it starts with."""
    model = made(*of(kind), f"weights={base}").model
    plain = load(base, "cpu").model  # type: ignore[attr-defined]
    for x, y in zip(encodings(model), encodings(plain), strict=True):
        if kind != "qlora":
            torch.testing.assert_close(x.tokens, y.tokens, atol=1e-5, rtol=1e-5)
        else:  # four bits are not the weights, but near them
            assert 1e-4 < (x.tokens - y.tokens).norm() / y.tokens.norm() < 0.5
    if kind == "dora":
        layer = layer_of(model)
        torch.testing.assert_close(
            layer.lora_magnitude_vector.default.weight.detach(), layer.base_layer.weight.detach().norm(dim=1)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_merged_computes_what_it_did(kind: str) -> None:
    plain, model = made().model, made(*of(kind)).model
    stir(model)
    before = [x.tokens for x in encodings(model)]
    model.merge_adapters()
    assert not model.adapters and model.state_dict().keys() == plain.state_dict().keys()
    for x, y in zip(before, encodings(model), strict=True):
        torch.testing.assert_close(x, y.tokens, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_reaches_the_adapters_alone_and_by_the_true_gradient(kind: str) -> None:
    model = made(*FROZEN, *(o.replace(", dropout: 0.1", "") for o in of(kind)), BOTH).model
    stir(model)
    model.train_only(["adapters.vision", "adapters.text"])
    model.train()

    def loss() -> torch.Tensor:
        p = pass_of(model, pictures(), TEXTS)
        image, text = (p[f"{f}.tokens"].pooled for f in ("image", "text"))
        return (image.sin().sum() + text.cos().sum()) / 10

    loss().backward()
    mine = {id(p) for adapter in model.adapters.values() for p in adapter.own()}  # type: ignore[operator]
    with_gradient = {n: p for n, p in model.named_parameters() if p.grad is not None}
    assert {id(p) for p in with_gradient.values()} <= mine
    count = {"dora": 3, "vera": 2, "qlora": 2}[kind]
    assert len(mine) == count * sum(len(a.layers()) for a in model.adapters.values())  # type: ignore[operator]
    if kind == "dora":
        return  # its norm counts as a constant: a test of its own
    moved = 0.0
    for name in sorted(with_gradient)[:: max(1, len(with_gradient) // 6)]:
        p, grad = with_gradient[name], with_gradient[name].grad
        assert grad is not None
        direction = grad / (grad.norm() + 1e-12)
        with torch.no_grad():
            values = []
            for step in (1e-3, -1e-3):
                p += step * direction
                values.append(float(loss()))
                p -= step * direction
        moved += float(grad.norm())
        assert float(grad.norm()) == pytest.approx((values[0] - values[1]) / 2e-3, rel=0.03, abs=2e-3), name
    assert moved > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_and_loads_to_the_bit(base: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    settings = [*of(kind), BOTH, "stages.0.schedule=constant", "stages.0.lr=0.01"]
    whole = adapted(base, tmp_path / "whole", *settings, budget=32)
    adapted(base, tmp_path / "parts", *settings, budget=16)
    parts = adapted(base, tmp_path / "parts", *settings, budget=32, resume=True)
    for name in ("model", "ema", "optimizer"):
        a, b = last(whole, name), last(parts, name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    model = load(whole, "cpu").model  # type: ignore[attr-defined]
    held, averaged = last(whole, "model"), last(whole, "ema")
    state = model.state_dict()
    assert all(torch.equal(state[k], averaged.get(f"0.{k}", held[k])) for k in held)
    if kind == "vera":
        assert {"adapters.vision.A", "adapters.vision.B"} <= held.keys() and not any("vera_A" in k for k in held)
    again = made(*of(kind), f"weights={whole}").model  # another run starts from it, with the same adapters
    for x, y in zip(encodings(again), encodings(model), strict=True):
        assert torch.equal(x.tokens, y.tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_exported_merged(base: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    run = adapted(base, tmp_path / "run", *of(kind), BOTH, "stages.0.lr=0.01")
    ours: Any = load(run, "cpu")
    there = export(run, out=tmp_path / "export").path
    assert not [k for k in load_file(there / "model.safetensors") if "lora" in k or "vera" in k]
    model, processor = AutoModel.from_pretrained(there).eval(), AutoProcessor.from_pretrained(there)
    inputs = processor(images=[Image.fromarray(x) for x in pictures()], text=TEXTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs)
    np.testing.assert_allclose(ours.embed_image(pictures()), found.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.embed_text(TEXTS), found.text_embeds.numpy(), atol=1e-5)
    changed = np.abs(ours.embed_image(pictures()) - load(base, "cpu").embed_image(pictures())).max()  # type: ignore[attr-defined]
    assert changed > 1e-4, "the adapters say something"


@pytest.mark.parametrize("kind", ["dora", "vera"])
def test_an_averaged_teacher_follows(kind: str) -> None:
    setup = made(*of(kind), "teachers.ema={of: all, decay: 0.5}")
    teacher: Any = setup.model.teachers["ema"]
    stir(setup.model)
    setup.model.update_teachers(decay=0.0)
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        setup.model.eval()
        torch.testing.assert_close(teacher.parts["vision"](x).tokens, setup.model.parts["vision"](x).tokens)
        for p in setup.model.adapters["vision"].own():  # type: ignore[operator]
            p.add_(1.0)
        assert not torch.allclose(teacher.parts["vision"](x).tokens, setup.model.parts["vision"](x).tokens)


# --- refusals ---


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["adapters.text={kind: vera, alpha: 2}"], r"adapters\.text: unknown option 'alpha'.*"),
        (["adapters.text={kind: dora, rank: 0}"], r"adapters\.text\.rank: expected .*, got 0"),
        (["adapters.text={kind: vera, targets: [nothing]}"], r"adapters\.text: .*nothing"),
        (["adapters.a={kind: vera, part: text}", "adapters.b={kind: lora, part: text}"], r"adapters\.b: .* already"),
        (["adapters.a={kind: dora, part: text}", "adapters.b={kind: vera, part: text}"], r"adapters\.b: .* already"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        made(*overrides)


def test_weights_in_four_bits_cannot_learn() -> None:
    with pytest.raises(DiptychError, match=r"adapters\.text: .*4 bits and cannot learn; train adapters\.text without text"):
        made("adapters.text={kind: qlora}", "stages.0.train=[text, adapters.text]")


def test_packing_agrees_with_bitsandbytes() -> None:
    """The same bytes and scales; widths are multiples of a block, since its product on the CPU is wrong for others (0.50.2)."""
    bits = pytest.importorskip("bitsandbytes", reason="bitsandbytes, which nothing else here needs, is not installed").functional
    from diptych.models.adapters.qlora import packed_nf4, unpacked_nf4

    weight = torch.randn(48, 128)
    theirs, state = bits.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    packed, scales = packed_nf4(weight)
    assert torch.equal(packed, theirs.flatten()) and torch.equal(scales, state.absmax)
    assert torch.equal(unpacked_nf4(packed, scales, (48, 128), torch.float32), bits.dequantize_4bit(theirs, state))
