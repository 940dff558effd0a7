"""Weights in and out: what another library computes from an export, or we from its weights, is the same to 1e-5."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import cli_fixture
from batch_fixture import batch_of
from cli_fixture import Cli
from diptych.api import load
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data.fields.base import to_pixels
from diptych.data.text import Tokenizer, normalise
from diptych.inference.export import export
from diptych.inference.run import TrainedModel
from diptych.interop import export_note, families_of, family_for
from diptych.interop.base import state_of, to_ours
from diptych.interop.tokenizer import Vocabulary
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.contrastive import info_nce, sigmoid_loss
from diptych.training.loop import train

cli = cli_fixture.cli
TEXTS = ["a red fox", "two green keys to the left of a big yellow house and above it one more.", "", "A  [MASK] Fox. "]
KINDS = ("clip", "siglip")


def tiny(kind: str) -> list[str]:
    sizes = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("kind=" + kind, "depth=2", "width=32", "heads=2", "hidden=48")]
    return [*sizes, "embed_dim=32", "parts.vision.patch=16", "data.tokenizer.vocab_size=320", "precision=fp32", "trackers=[]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        recipe = load_recipe(kind, [*tiny(kind), "budget=96 samples", "stages.0.batch_size=16", "stages.0.ema=0.5"])
        train(recipe, root / kind)
    return {kind: root / kind for kind in KINDS}


def pictures(size: int, n: int = 4) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_computes_what_the_run_does(runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    from transformers import AutoModel, AutoProcessor

    ours = TrainedModel.load(runs[kind], "cpu")
    made = export(runs[kind], out=tmp_path / "export")
    model, processor = AutoModel.from_pretrained(made.path).eval(), AutoProcessor.from_pretrained(made.path)
    assert type(model).__name__ == made.architecture and made.key == ours.key
    images = pictures(ours.model.image_size)
    padding = "max_length" if kind == "siglip" else True
    inputs = processor(
        images=[Image.fromarray(i) for i in images], text=TEXTS, padding=padding, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(**inputs, return_loss=True)
    image, text = (torch.from_numpy(x) for x in (ours.embed_image(images), ours.embed_text(TEXTS)))
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(out.image_embeds, dim=-1), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(unit(out.text_embeds, dim=-1), text, atol=1e-5, rtol=0)
    assert (text[0] - text[1]).abs().max() > 1e-3  # texts of unlike length, each read at its own end
    objective = next(iter(ours.objectives.values()))
    bias = objective.logit_bias if kind == "siglip" else 0.0
    scale = objective.logit_scale.exp()
    again = load(f"hf:{made.path}", device="cpu")  # as diptych evaluate hf:PATH does
    np.testing.assert_allclose(again.score(images, TEXTS), ours.score(images, TEXTS), atol=1e-5)
    torch.testing.assert_close(out.logits_per_image, (scale * image @ text.T + bias).detach(), atol=1e-4, rtol=1e-5)


def test_an_exported_tokenizer_reads_as_ours(runs: dict[str, Path]) -> None:
    ours = Tokenizer(runs["clip"] / "tokenizer.json", 32)
    odd = [
        "",
        " . ",
        "Ünï  códe…",
        "a\tb\n\nc\x1fd\x85e",
        "ends... . .",
        "x" * 200,
        "[EOS] [PAD]",
        "two. red. hearts.",
        "ÀÉ İ 漢字 🦊",
        "ΟΔΟΣ ΣΟΦΟΣ. Σ 3Σ",
    ]
    for last in (True, False):
        vocabulary = Vocabulary(ours, last)
        theirs = vocabulary.of_transformers()
        ids, mask = ours.encode_batch([*TEXTS, *odd])
        for text, row, seen in zip([*TEXTS, *odd], ids, mask, strict=True):
            found = theirs(text, truncation=True, max_length=32)["input_ids"]
            assert [vocabulary.order[i] for i in found] == row[seen].tolist(), text
            if last:
                assert found.count(max(found)) == 1 and found[-1] == theirs.eos_token_id == len(ours) - 1
    assert theirs.decode(theirs("a Red  fox.")["input_ids"], skip_special_tokens=True).strip() == normalise("a Red  fox.")


def of_theirs(kind: str):
    """A model of transformers with random weights, and a batch."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 48, "patch_size": 16}
    text = {**sizes, "vocab_size": 320, "max_position_embeddings": 32, "eos_token_id": 319, "pad_token_id": 0, "bos_token_id": 1}
    more = {"projection_dim": 24} if kind == "clip" else {}
    if kind == "siglip":
        text["projection_size"] = 32
    config = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}[kind](
        text_config=text, vision_config=vision, **more
    )
    model = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}[kind](config).eval()
    for p in model.parameters():  # norms and biases, too, are no ones and zeros
        p.data += 0.05 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_of_transformers_give_the_same_here(runs: dict[str, Path], kind: str) -> None:
    theirs = of_theirs(kind)
    family = next(f for f in families_of("transformers") if f.name == kind)
    tokenizer = Tokenizer(runs[kind] / "tokenizer.json", 32)
    recipe = load_recipe(kind, {**family.options(theirs.config), "precision": "fp32"})
    model = build_model(recipe, tokenizer, 48).eval()
    objectives = build_objectives(recipe, model).eval()
    assert family_for("transformers", recipe, model, objectives) is family
    vocabulary = Vocabulary(tokenizer, family.end_last)
    state = state_of(model, objectives)
    found = to_ours(theirs.state_dict(), family.entries(model, objectives), {k: v.shape for k, v in state.items()})
    assert set(found) == set(state)  # everything, and nothing else
    order = torch.tensor(vocabulary.order)
    found["parts.text.embedding.weight"] = found["parts.text.embedding.weight"][torch.argsort(order)]
    model.load_state_dict({k: v for k, v in found.items() if not k.startswith("objectives.")})
    objectives.load_state_dict({k.removeprefix("objectives."): v for k, v in found.items() if k.startswith("objectives.")})

    ids, mask = (torch.from_numpy(x) for x in tokenizer.encode_batch(TEXTS))
    their_ids = torch.argsort(order)[ids]
    if kind == "siglip":
        their_ids = torch.nn.functional.pad(their_ids, (0, 32 - ids.shape[1]))
    pixels = torch.rand(len(TEXTS), 3, 48, 48) * 2 - 1
    with torch.no_grad():
        out = theirs(input_ids=their_ids, pixel_values=pixels, return_loss=True)
        p = model.encode(batch_of(pixels, ids, mask, captions=tuple(TEXTS)))
        loss = next(iter(objectives.values()))(p)
    torch.testing.assert_close(p["image.embedding"], out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(p["text.embedding"], out.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, out.loss, atol=1e-5, rtol=1e-5)


def test_a_run_that_does_not_fit_is_told_why_and_how(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a red fox"], 300, 32)
    for name, overrides, wanted in (
        ("clip", [], "CLIPModel: .*--set parts.vision.kind=clip --set parts.text.kind=clip"),
        ("siglip", [], "SiglipModel: .*--set parts.vision.kind=siglip --set parts.text.kind=siglip"),
        ("coca", [], "part 'decoder' has no place"),
        ("filip", ["parts.vision.kind=clip", "parts.text.kind=clip"], "late_interaction"),
    ):
        recipe = load_recipe(name, overrides)
        model = build_model(recipe, tokenizer, 48)
        with pytest.raises(DiptychError, match=wanted):
            family_for("transformers", recipe, model, build_objectives(recipe, model))
    for name in ("flip", "negclip"):  # what it is made of counts, not its name
        recipe = load_recipe(name, tiny("clip"))
        model = build_model(recipe, tokenizer, 48)
        assert family_for("transformers", recipe, model, build_objectives(recipe, model)).name == "clip"


def test_another_library_that_has_the_class_is_named() -> None:
    """coca has no class in transformers, but one in open_clip: with other parts, or as it is."""
    tokenizer = Tokenizer.train(["a red fox"], 300, 32)
    theirs = [f"parts.{part}={{kind: coca}}" for part in ("vision", "text", "decoder")]
    sets = " ".join(f"--set '{setting}'" for setting in theirs)
    for overrides, wanted in (
        ([], f"\n  CoCa of open_clip, with --to open_clip: .* A new run fits with {re.escape(sets)}\n"),
        (theirs, "\n  open_clip has CoCa, which does: --to open_clip\n"),
    ):
        recipe = load_recipe("coca", overrides)
        model = build_model(recipe, tokenizer, 48)
        objectives = build_objectives(recipe, model)
        with pytest.raises(DiptychError, match=wanted):
            family_for("transformers", recipe, model, objectives)
    assert family_for("open_clip", recipe, model, objectives).architecture == "CoCa"
    with pytest.raises(DiptychError) as refused:  # the class that the user asks for is answered alone
        family_for("transformers", recipe, model, objectives, "CLIPModel")
    assert "open_clip" not in str(refused.value)


def test_transformers_pipeline_reads_a_siglip_of_its_length(tmp_path: Path) -> None:
    from transformers import pipeline

    recipe = load_recipe("siglip", [*tiny("siglip"), "data.tokenizer.max_length=64", "budget=32 samples", "stages.0.batch_size=16"])
    train(recipe, tmp_path / "run")
    made, ours = export(tmp_path / "run"), TrainedModel.load(tmp_path / "run", "cpu")
    assert len(made.notes) == 1 and "sentence-transformers" in made.notes[0]
    picture, labels = pictures(ours.model.image_size, 1)[0], ["red fox", "two blue keys"]
    found = pipeline("zero-shot-image-classification", model=str(made.path), device="cpu")(
        Image.fromarray(picture), candidate_labels=labels, hypothesis_template="{}"
    )
    theirs = {entry["label"]: entry["score"] for entry in found}
    objective = next(iter(ours.objectives.values()))
    logits = torch.from_numpy(ours.score([picture], labels)[0]) * objective.logit_scale.exp().item() + objective.logit_bias.item()
    assert [theirs[label] for label in labels] == pytest.approx(torch.sigmoid(logits).tolist(), abs=1e-4)


def test_what_pipelines_read_otherwise_is_said(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    done = cli("export", runs["siglip"], "--out", tmp_path / "siglip")
    for words in ("this model reads 32", "--set data.tokenizer.max_length=64", "sentence-transformers pads to the longest text"):
        assert words in done.err and words in (tmp_path / "siglip" / "README.md").read_text()
    assert "note" not in cli("export", runs["clip"], "--out", tmp_path / "clip").err


@pytest.mark.parametrize(
    ("recipe", "given", "note"),
    [
        ("clip", [], "one with --set parts.vision.kind=clip --set parts.text.kind=clip can (CLIPModel)"),
        ("siglip", [], "one with --set parts.vision.kind=siglip --set parts.text.kind=siglip can (SiglipModel)"),
        ("clip", ["parts.vision.kind=clip"], "one with --set parts.text.kind=clip can (CLIPModel)"),
        ("clip", ["parts.vision.kind=clip", "parts.text.kind=clip"], ""),
        ("coca", [], ""),  # no other towers would help
        ("filip", [], ""),
    ],
)
def test_a_run_says_at_its_start_what_an_export_would_need(recipe: str, given: list[str], note: str) -> None:
    checked = load_recipe(recipe, given)
    tokenizer = Tokenizer.train(TEXTS, 300, 32)
    model = build_model(checked, tokenizer, 48)
    said = export_note(checked, model, build_objectives(checked, model))
    assert (note in said) if note else not said


def test_the_note_is_printed_before_the_first_step(cli: Cli, tmp_path: Path) -> None:
    fast = ["stages.0.batch_size=16", "precision=fp32", "trackers=[]", "parts.vision.depth=1", "parts.text.depth=1"]
    options = [word for setting in fast for word in ("--set", setting)]
    done = cli("train", "clip", "--data", "scenes:small?size=32", "--budget", "16 samples", "--out", tmp_path / "r", *options)
    assert "note: this run cannot be exported to transformers; one with --set parts.vision.kind=clip" in done.err


def test_export_from_the_command_line(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "there"
    made = json.loads(cli("export", runs["clip"], "--out", out, "--json").out)
    assert (made["architecture"], made["path"]) == ("CLIPModel", str(out))
    (out / "rest").write_text("x")
    cli("export", runs["clip"], "--out", out)  # again: replaced as a whole
    names = {p.name for p in out.iterdir()}
    assert "rest" not in names
    assert names == {
        "README.md", "config.json", "export.json", "model.safetensors", "preprocessor_config.json", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    card = (out / "README.md").read_text()
    for part in ("arXiv:2103.00020", "96 samples", "fingerprint", "not evaluated", "CC BY-SA 4.0", "AutoProcessor"):
        assert part in card
    cli("evaluate", runs["clip"], "--tasks", "retrieval?n=20")
    cli("export", runs["clip"], "--out", out)
    assert "| retrieval | image-to-text/recall@1 | " in (out / "README.md").read_text()
    state = runs["clip"] / "evaluation" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "key": "other"}))
    cli("export", runs["clip"], "--out", out)
    card = (out / "README.md").read_text()
    assert "of another checkpoint" in card and "| retrieval |" not in card
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    refused = cli("export", runs["clip"], "--out", mine)
    assert refused.code == 1 and "not an earlier export" in refused.err and (mine / "thesis.tex").is_file()
    assert "did you mean 'transformers'" in cli("export", runs["clip"], "--to", "transformer").err


@pytest.fixture(scope="module")
def open_clip():
    from bench.peers import MissingPeer
    from bench.peers import open_clip as peer

    try:
        return peer()
    except MissingPeer as missing:
        pytest.skip(str(missing))


def test_an_export_computes_the_same_in_open_clip(open_clip, runs: dict[str, Path], tmp_path: Path) -> None:
    """Needs make bench-peers."""
    ours = TrainedModel.load(runs["clip"], "cpu")
    made = export(runs["clip"], "open_clip", tmp_path / "export")
    address = f"local-dir:{made.path}"
    model, tokenise = open_clip.create_model(address).eval(), open_clip.get_tokenizer(address)
    assert set(model.state_dict()) == set(load_file(made.path / "open_clip_model.safetensors"))
    assert model.visual.preprocess_cfg["mean"] == model.visual.preprocess_cfg["std"] == [0.5] * 3
    images = pictures(ours.model.image_size)
    with torch.no_grad():
        image, text, scale = model(to_pixels(images), tokenise(TEXTS))
    np.testing.assert_allclose(image, ours.embed_image(images), atol=1e-5)
    np.testing.assert_allclose(text, ours.embed_text(TEXTS), atol=1e-5)
    assert scale.item() == pytest.approx(next(iter(ours.objectives.values())).scale.item())


def test_losses_equal_those_of_open_clip(open_clip) -> None:
    """Needs make bench-peers."""
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1).requires_grad_() for _ in range(2))
    scale, bias = torch.tensor(12.0), torch.tensor(-7.0)
    for ours, theirs in (
        (info_nce(image, text, scale), open_clip.ClipLoss()(image, text, scale)),
        (sigmoid_loss(image, text, scale, bias), open_clip.loss.SigLipLoss()(image, text, scale, bias)),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        for a, b in zip(*(torch.autograd.grad(x, (image, text)) for x in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_what_open_clip_does_not_have_is_named() -> None:
    tokenizer = Tokenizer.train(["a red fox"], 300, 32)
    for activation, wanted in (
        ("relu", "activation is relu.*--set parts.vision.activation=gelu"),
        ("gelu", "one tower has quick_gelu"),
    ):
        recipe = load_recipe("clip", [*tiny("clip"), f"parts.vision.activation={activation}"])
        model = build_model(recipe, tokenizer, 48)
        with pytest.raises(DiptychError, match=wanted):
            family_for("open_clip", recipe, model, build_objectives(recipe, model))
