"""Adapters on any part: what they compute, what of a run they change, how they are named, saved, resumed, merged and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from batch_fixture import pass_of
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json
from diptych.inference.export import export
from diptych.inference.load import load
from diptych.training.loop import train
from diptych.training.optim import build_optimizer
from diptych.training.start.setup import Setup, set_up

SIZES = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("kind=clip", "depth=2", "width=32", "heads=2", "hidden=48")]
FAST = ["stages.0.batch_size=8", "precision=fp32", "trackers=[]", "device=cpu", "stages.0.warmup=1", "checkpoints.steps=2"]
CLIP = [
    "data.train=scenes:small?length=64",
    *SIZES,
    "embed_dim=24",
    "parts.vision.patch=16",
    "data.tokenizer.vocab_size=320",
    *FAST,
]
FROZEN = ["parts.vision.frozen=true", "parts.text.frozen=true", "parts.space={kind: linear, frozen: true}"]
LORA = ["adapters.vision={kind: lora, rank: 3, alpha: 5}", "adapters.text={kind: lora, rank: 2}"]
PROMPT = ["adapters.vision={kind: prompt, tokens: 3}", "adapters.text={kind: prompt, tokens: 4}"]
BOTH = "stages.0.train=[adapters.vision, adapters.text]"
TEXTS = ["a red fox", "two green keys to the left of a big yellow house", "a cat"]


def pictures(n: int = 3, size: int = 48) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(n)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of clip, a few steps old."""
    path = tmp_path_factory.mktemp("runs") / "clip"
    train(load_recipe("clip", [*CLIP, "budget=32 samples", "stages.0.lr=0.01"]), path)
    return path


def adapted(base: Path, out: Path, *overrides: str, budget: int = 32, **more: Any) -> Path:
    """A run that starts from ``base`` and trains its adapters alone."""
    train(load_recipe("clip", [*CLIP, *FROZEN, f"weights={base}", f"budget={budget} samples", *overrides]), out, **more)
    return out


def made(*overrides: str) -> Setup:
    return set_up(load_recipe("clip", [*CLIP, *overrides]))


def encodings(model: Any, texts: list[str] = TEXTS) -> tuple[Any, Any]:
    model.eval()
    with torch.no_grad():
        p = pass_of(model, pictures(len(texts)), texts)
        return p["image.tokens"], p["text.tokens"]


def stir(model: Any) -> None:
    """Adapters as if they had learned: LoRA's B begins at nothing."""
    torch.manual_seed(5)
    with torch.no_grad():
        for adapter in model.adapters.values():
            for p in adapter.own():
                p.copy_(torch.randn_like(p) * 0.3)


def last(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / f"{name}.safetensors")


# --- low-rank adapters ---


def test_lora_computes_what_peft_does_and_its_formula() -> None:
    """The same part given to peft's own entry, with the same numbers in A and B; and W x + (alpha / rank) B A x written out."""
    import copy

    import peft

    plain = made()
    torch.manual_seed(0)
    setup = made(*LORA)
    setup.model.load_state_dict(
        {
            k: plain.model.state_dict()[setup.model.bare_name(k)]
            for k in setup.model.state_dict()
            if not setup.model.adapter_owns(k)
        },
        strict=False,
    )
    before = [x.tokens for x in encodings(setup.model)]
    for x, y in zip(before, encodings(plain.model), strict=True):
        torch.testing.assert_close(x, y.tokens)  # B begins at 0: nothing is changed
    stir(setup.model)
    for side, rank, alpha in (("vision", 3, 5), ("text", 2, 16)):
        ours = setup.model.parts[side]
        theirs = copy.deepcopy(plain.model.parts[side])
        targets = [n for n, m in theirs.named_modules() if isinstance(m, torch.nn.Linear)]
        other = peft.get_peft_model(theirs, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))  # type: ignore[arg-type]
        other.base_model.model.load_state_dict(ours.state_dict())
        with torch.no_grad():
            if side == "vision":
                x = torch.rand(2, 3, 48, 48)
                a, b = ours(x), other(x)
            else:
                ids, mask = (torch.from_numpy(v) for v in setup.tokenizer.encode_batch(TEXTS))
                a, b = ours(ids, mask), other(ids, mask)
        torch.testing.assert_close(a.tokens, b.tokens)
        layer = ours.transformer.blocks[0].mlp[0]
        x = torch.randn(4, 32)
        W, A, B = (v.detach().double().numpy() for v in (layer.weight, layer.lora_A.default.weight, layer.lora_B.default.weight))
        want = x.double().numpy() @ (W + alpha / rank * B @ A).T + layer.bias.detach().double().numpy()
        np.testing.assert_allclose(layer(x).detach().numpy(), want, atol=1e-4)


def test_merged_lora_computes_what_it_did() -> None:
    model = made(*LORA).model
    stir(model)
    before = [x.tokens for x in encodings(model)]
    model.merge_adapters()
    assert not model.adapters and not [n for n in model.state_dict() if "lora" in n or "base_layer" in n]
    for x, y in zip(before, encodings(model), strict=True):
        torch.testing.assert_close(x, y.tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [LORA, PROMPT], ids=["lora", "prompt"])
def test_only_adapters_change_and_a_checkpoint_holds_them(base: Path, tmp_path: Path, kind: list[str]) -> None:
    run = adapted(base, tmp_path / "run", *kind, BOTH, "stages.0.lr=0.01")
    model = load(run, "cpu").model  # type: ignore[attr-defined]
    was, now = last(base, "model"), last(run, "model")
    averaged = {k[2:]: v for k, v in last(base, "ema").items() if k.startswith("0.")}
    mine = {k for k in now if model.adapter_owns(k)}
    assert mine and {model.bare_name(k) for k in now} - mine >= set(was)
    for name in set(now) - mine:  # to the bit; a run gives its averaged weights
        bare = model.bare_name(name)
        assert torch.equal(now[name], averaged.get(bare, was[bare])), name
    learned = {k.removeprefix("0.") for k in last(run, "optimizer")}
    assert {k.rsplit(".", 1)[0] for k in learned if k.startswith(("parts", "adapters"))} == mine
    assert any(bool(now[k].abs().max() > 0) for k in mine if "lora_B" in k or "vectors" in k)
    spent = read_json(run / "spent.json")
    assert spent["trainable_parameters"] == sum(now[k].numel() for k in mine) + 1  # and the temperature


@pytest.mark.parametrize("kind", [LORA, PROMPT], ids=["lora", "prompt"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(base: Path, tmp_path: Path, kind: list[str]) -> None:
    whole = adapted(base, tmp_path / "whole", *kind, BOTH, "stages.0.schedule=constant", budget=32)
    adapted(base, tmp_path / "parts", *kind, BOTH, "stages.0.schedule=constant", budget=16)
    parts = adapted(base, tmp_path / "parts", *kind, BOTH, "stages.0.schedule=constant", budget=32, resume=True)
    for name in ("model", "ema", "optimizer"):
        a, b = last(whole, name), last(parts, name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name


def test_a_run_with_lora_is_exported_merged(base: Path, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    run = adapted(base, tmp_path / "run", *LORA, BOTH, "stages.0.lr=0.01")
    ours: Any = load(run, "cpu")
    there = export(run, out=tmp_path / "export").path
    assert not [k for k in load_file(there / "model.safetensors") if "lora" in k]
    model, processor = AutoModel.from_pretrained(there).eval(), AutoProcessor.from_pretrained(there)
    inputs = processor(images=[Image.fromarray(x) for x in pictures()], text=TEXTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs)
    for mine, theirs in ((ours.embed_image(pictures()), found.image_embeds), (ours.embed_text(TEXTS), found.text_embeds)):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)
    changed = np.abs(ours.embed_image(pictures()) - load(base, "cpu").embed_image(pictures())).max()  # type: ignore[attr-defined]
    assert changed > 1e-4, "the adapters say something"


def test_a_run_with_prompts_has_no_weights_to_export(base: Path, tmp_path: Path) -> None:
    run = adapted(base, tmp_path / "run", PROMPT[1], "stages.0.train=[adapters.text]")
    with pytest.raises(DiptychError, match=r"adapters\.text: prompts cannot be merged"):
        export(run, out=tmp_path / "export")


def test_adapters_stay_in_place_if_one_cannot_be_merged() -> None:
    model = made(*LORA[:1], PROMPT[1]).model
    stir(model)
    before = [x.tokens for x in encodings(model)]
    with pytest.raises(DiptychError, match=r"adapters\.text: prompts cannot be merged.*kind: lora"):
        model.merge_adapters(but="vision")
    assert set(model.adapters) == {"vision", "text"}
    for x, y in zip(before, encodings(model), strict=True):
        assert torch.equal(x, y.tokens)


# --- prompts ---


def test_prompts_stand_behind_the_first_token_and_leave_with_the_last_block() -> None:
    """Against the tower's own layers, with the sequence written out by hand."""
    setup = made(*PROMPT)
    stir(setup.model)
    model, tokenizer = setup.model.eval(), setup.tokenizer
    assert tokenizer.max_length == 32 - 4  # places that are the prompt's
    seen, read = encodings(model)
    text, vision = model.parts["text"], model.parts["vision"]
    context, visual = model.adapters["text"].vectors, model.adapters["vision"].vectors
    with torch.no_grad():
        for i, caption in enumerate(TEXTS):
            ids, mask = (torch.from_numpy(x) for x in tokenizer.encode_batch([caption]))
            n = int(mask.sum())
            words = text.embedding(ids[0, :n])
            x = torch.cat([words[:1], context, words[1:]]) + text.positions[: n + 4]  # words move back by the prompt
            future = torch.full((n + 4, n + 4), -1e4).triu(1)[None, None]
            x = text.transformer(x[None], future)[0]
            torch.testing.assert_close(read.tokens[i, :n], torch.cat([x[:1], x[5:]]), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(read.pooled[i], x[-1], atol=1e-5, rtol=1e-4)  # at [EOS], wherever it has moved to
        assert torch.equal(read.mask.sum(1), torch.tensor([int(tokenizer.encode_batch([t])[1].sum()) for t in TEXTS]))
        p = pass_of(model, pictures())["image"].floats
        x = torch.cat([vision.classes.expand(3, -1, -1), vision.stem(p).flatten(2).transpose(1, 2)], 1) + vision.positions
        x = vision.norm(x)
        x = vision.transformer(torch.cat([x[:, :1], visual.expand(3, -1, -1), x[:, 1:]], 1))
        torch.testing.assert_close(seen.tokens, torch.cat([x[:, :1], x[:, 4:]], 1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.pooled, x[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "recipe, kinds",
    [
        ("clip", ["parts.vision.kind=vit", "parts.text.kind=transformer"]),
        ("siglip", ["embed_dim=32", "parts.vision.kind=siglip", "parts.text.kind=siglip"]),
        ("clip", ["parts.vision.kind=class", "parts.text.kind=bert"]),
    ],
)
def test_towers_with_prompts_give_the_shapes_that_they_gave(recipe: str, kinds: list[str]) -> None:
    small = [o for o in CLIP if "kind=" not in o and "embed_dim" not in o and ("hidden" not in o)]
    plain, prompted = (set_up(load_recipe(recipe, [*small, *kinds, *more])).model for more in ([], PROMPT))
    for a, b in zip(encodings(plain), encodings(prompted), strict=True):
        assert (a.tokens.shape, a.pooled.shape) == (b.tokens.shape, b.pooled.shape)
        assert (a.mask is None) == (b.mask is None) and (a.mask is None or torch.equal(a.mask, b.mask))
        assert not torch.allclose(a.pooled, b.pooled)


def test_a_loss_reaches_the_vectors_alone_and_by_the_true_gradient() -> None:
    setup = made(*FROZEN, *PROMPT, BOTH)
    model = setup.model.double()
    objective: Any = setup.objectives.double()["info_nce"]
    model.train_only(["adapters.vision", "adapters.text"])
    model.train()

    def loss() -> torch.Tensor:
        p = pass_of(model, pass_of(model, pictures())["image"].floats.double(), TEXTS)
        image, text = (p[f"{f}.tokens"].pooled for f in ("image", "text"))
        return (image.sin().sum() + text.cos().sum()) / 10

    loss().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"adapters.vision.vectors", "adapters.text.vectors"}
    for adapter in model.adapters.values():
        vectors = adapter.vectors
        for at in ((0, 0), (1, 7), (2, 31)):
            with torch.no_grad():
                values = []
                for step in (1e-4, -1e-4):
                    vectors[at] += step
                    values.append(loss())
                    vectors[at] -= step
            assert float(vectors.grad[at]) == pytest.approx(float(values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-9)
    assert objective.logit_scale.grad is None


def test_a_prompt_begins_as_words() -> None:
    setup = made("adapters.text={kind: prompt, words: a photo of a}")
    ids, mask = setup.tokenizer.encode_batch(["a photo of a"])
    words = setup.model.parts["text"].embedding(torch.from_numpy(ids[0, 1 : int(mask.sum()) - 1]))
    torch.testing.assert_close(setup.model.adapters["text"].vectors, words)
    assert setup.model.adapters["text"].vectors.requires_grad


# --- names, starts, refusals ---


def test_stages_name_what_learns() -> None:
    setup = made(*LORA)
    model = setup.model

    def learning() -> set[str]:
        return {n for n, p in model.named_parameters() if p.requires_grad}

    model.train_only(["adapters.text"])
    assert {n.split(".")[1] for n in learning()} == {"text", "space"}  # maps into the shared space are heads
    assert all("lora_" in n for n in learning() if n.startswith("parts.text"))
    assert "vision" in model.frozen and not model.parts["vision"].training
    model.train_only("all")
    assert all("lora_" in n for n in learning() if not n.startswith("parts.space"))
    model.train_only(["text", "adapters.vision"])
    assert any("base_layer" in n for n in learning() if n.startswith("parts.text"))
    assert not any("lora_" in n for n in learning() if n.startswith("parts.text"))


def test_two_adapters_share_a_part() -> None:
    setup = made("adapters.low={kind: lora, part: text, rank: 2}", "adapters.words={kind: prompt, part: text, tokens: 3}")
    assert {setup.model.part_of(n) for n in setup.model.adapters} == {"text"}
    assert encodings(setup.model)[1].pooled.shape == (3, 32)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["adapters.tex={kind: lora}"], r"adapters\.tex: the recipe has no part 'tex'.*text"),
        (["adapters.a={kind: lora, part: decoder}"], r"adapters\.a: the recipe has no part 'decoder'"),
        (["adapters.text={kind: lor}"], r"there is no adapter 'lor'.*lora.*package\.module:Class"),
        (["adapters.text={kind: lora, rang: 2}"], r"adapters\.text: unknown option 'rang'.*rank"),
        (["adapters.text={kind: lora, rank: 0}"], r"adapters\.text\.rank: expected .*, got 0"),
        (["adapters.text={kind: lora, targets: [nothing]}"], r"adapters\.text: .*nothing"),
        ([LORA[1], "stages.0.train=[adapters.vision]"], r"train: the recipe has no part 'adapters\.vision'.*adapters\.text"),
        (["adapters.text={kind: prompt, tokens: 30}"], r"adapters\.text: 30 prompt tokens leave no room .*max_length"),
        (["adapters.vision={kind: prompt, words: a photo}"], r"adapters\.vision\.words: a vision tower has no words; set tokens"),
        (["adapters.a={kind: lora, part: text}", "adapters.b={kind: lora, part: text}"], r"adapters\.b: .* already"),
        (["parts.vision={kind: efficientnet}", "adapters.vision={kind: prompt}"], r"adapters\.vision: .*no place .*vit, clip"),
        (["parts.text={kind: minilm}", "adapters.text={kind: prompt}"], r"adapters\.text: .*no place .*transformer, clip"),
        (["parts.text={kind: coca}", "adapters.text={kind: prompt}"], r"adapters\.text: .*CocaText.* no place .*transformer, clip"),
        (["parts.text={kind: med}", "adapters.text={kind: prompt}"], r"adapters\.text: .*MedText.* no place .*transformer, clip"),
        (
            ["parts.decoder={kind: multimodal, depth: 1, heads: 2}", "adapters.text={kind: prompt}"],
            r"parts\.decoder: it writes without prompts; adapt parts\.text by kind: lora, or remove the decoder",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_remedy(overrides: list[str], message: str) -> None:
    kept = [
        o
        for o in CLIP
        if not any(x.startswith(f"parts.{p}=") and o.startswith(f"parts.{p}.") for x in overrides for p in ("vision", "text"))
    ]
    with pytest.raises(DiptychError, match=message):
        set_up(load_recipe("clip", [*kept, *overrides]))


def test_a_prompt_on_another_part_is_named_by_its_part() -> None:
    kept = [o for o in CLIP if not o.startswith("parts.vision")]
    with pytest.raises(DiptychError, match=r"adapters\.mine: parts\.vision \(EfficientNet\) has no place"):
        set_up(load_recipe("clip", [*kept, "parts.vision={kind: efficientnet}", "adapters.mine={kind: prompt, part: vision}"]))


def test_a_run_with_adapters_starts_another(base: Path, tmp_path: Path) -> None:
    """With the same adapters they come along; without prompts the rest does; a part with LoRA fits only with it, as the message
    says."""
    prompts = adapted(base, tmp_path / "prompts", *PROMPT, BOTH, "stages.0.lr=0.01")
    again = made(*PROMPT, f"weights={prompts}")
    torch.testing.assert_close(again.model.adapters["text"].vectors, load(prompts, "cpu").model.adapters["text"].vectors)  # type: ignore[attr-defined]
    bare = made(f"weights={prompts}")
    assert bare.started and {"adapters.text", "adapters.vision"} <= set(bare.started.unused)
    low = adapted(base, tmp_path / "low", *LORA, BOTH, "stages.0.lr=0.01")
    with pytest.raises(DiptychError, match="it fits with --set adapters.vision=") as refused:
        made(f"weights={low}")
    assert "'rank': 3" in str(refused.value)
    with pytest.raises(DiptychError, match=r"does not fit adapters\.text.*--set adapters\.text=.*'tokens': 4"):
        made(PROMPT[0], "adapters.text={kind: prompt, tokens: 5}", f"weights={prompts}")
    mine = made(*LORA, f"weights={low}")
    for x, y in zip(encodings(mine.model), encodings(load(low, "cpu").model), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(x.tokens, y.tokens)


def test_lora_on_a_checkpoint_of_transformers(base: Path, tmp_path: Path) -> None:
    there = export(base, out=tmp_path / "export").path
    started = made(*LORA, f"weights=hf:{there}")
    assert started.started and {"parts.vision", "parts.text"} <= set(started.started.loaded)
    for x, y in zip(encodings(started.model), encodings(load(base, "cpu").model), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(x.pooled, y.pooled, atol=1e-5, rtol=1e-5)


def test_a_language_model_of_the_first_edition_keeps_its_lora(tmp_path: Path) -> None:
    old = load_recipe("llava-instruct").model_dump(mode="json", by_alias=True)
    old.pop("format")
    old["parts"]["lm"]["lora"] = {"rank": 2}
    write_json(tmp_path / "old.yaml", old)
    recipe = load_recipe(str(tmp_path / "old.yaml"))
    assert recipe.adapters["lm"].kind == "lora" and recipe.adapters["lm"].options == {"rank": 2}
    assert "lora" not in recipe.parts["lm"].options
    trained = [n for s in recipe.stages if isinstance(s.train, list) for n in s.train]
    assert "lm" not in trained and "adapters.lm" in trained


# --- rates ---


@pytest.mark.parametrize(
    "rates, low, prompts, vision",
    [
        ({}, 1, 1, 1),
        ({"text": 0.5}, 0.5, 0.5, 1),  # an adapter learns as its part
        ({"text": 0.5, "adapters.low": 0.1}, 0.1, 0.5, 1),  # or as is said of it
        ({"adapters.words": 0.2, "vision": 0.3}, 1, 0.2, 0.3),
    ],
)
def test_adapters_have_rates(rates: dict[str, float], low: float, prompts: float, vision: float) -> None:
    adapters = ["adapters.low={kind: lora, part: text, rank: 2}", "adapters.words={kind: prompt, part: text, tokens: 3}"]
    setup = made(*adapters, f"stages.0.rates={rates}", "stages.0.train=[adapters.low, adapters.words, vision]", "stages.0.lr=0.01")
    model, stage = setup.model, setup.recipe.stages[0]
    model.train_only(stage.train)
    optimizers = build_optimizer([model], stage)
    peak = {id(p): g["lr"] for m in optimizers.members for g in m.param_groups for p in g["params"]}
    of = {"low": model.adapters["low"].own(), "words": model.adapters["words"].own(), "vision": model.parts["vision"].parameters()}
    found = {name: {round(peak[id(p)] / (stage.lr if name != "vision" else 1), 6) for p in ps} for name, ps in of.items()}
    assert found["low"] == {low} and found["words"] == {prompts}, "by AdamW, whatever the matrices beside them learn by"
    assert found["vision"] == {round(rate * vision, 6) for rate in (stage.lr, stage.muon_lr)}


def test_a_rate_of_what_is_not_there_is_refused() -> None:
    for wrong in ("adapters.tex", "txet"):
        with pytest.raises(
            DiptychError, match=rf"stages\.0\.rates: the recipe has no part '{wrong}'; did you mean '(adapters\.)?text'"
        ):
            load_recipe("clip", [*CLIP, LORA[1], f"stages.0.rates={{{wrong}: 0.5}}"])
