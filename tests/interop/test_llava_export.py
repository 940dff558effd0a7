"""Runs with pretrained backbones as ``LlavaForConditionalGeneration``: what the class computes from an export is what the run
computes, to 1e-5."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cli_fixture
from batch_fixture import batch_of
from cli_fixture import Cli
from conversations_fixture import CHATML, GEMMA, LLAMA3, VICUNA
from diptych.api import load
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.data.conversations.template import Chat
from diptych.data.conversations.turns import question
from diptych.data.provenance.terms import NOT_STATED
from diptych.interop import family_for
from diptych.interop.families.language import tokenizer_of, whole
from diptych.models.pretrained import CausalLM, installed, load_causal_lm
from diptych.models.vlm import VLM, build_model
from diptych.objectives import build_objectives
from diptych.training.loop import train
from diptych.training.start.setup import image_size_of

cli = cli_fixture.cli
SAID = ["a big red fox left of two small blue keys", "above the yellow house", "three green hearts"]
OFTEN = ["zebra crossing quietly", "never said in any scene"] * 9  # pieces that no corpus here needs
SIDE = 32
LITTLE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16}  # fmt: skip
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Language models and towers with random weights, as directories of transformers."""
    from tokenizers import processors
    from transformers import (
        AutoModelForCausalLM,
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        GPT2Config,
        Qwen2Config,
        SiglipVisionConfig,
        SiglipVisionModel,
        ViTConfig,
        ViTModel,
    )  # fmt: skip

    root = tmp_path_factory.mktemp("bases")
    for family in ("llama", "gemma3"):
        made = CausalLM.random(700, 32, 2, family=family, texts=[*SAID, *OFTEN])  # type: ignore[arg-type]
        loud(made.model).save_pretrained(root / family)
        tokenizer_of(made.tokenizer).save_pretrained(root / family)
    words = tokenizer_of(made.tokenizer)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )  # these two have no [BOS]
    words.bos_token = None
    for name, config in {
        "gpt2": GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=1),
        "qwen2": Qwen2Config(**LITTLE, vocab_size=len(words) + 9, bos_token_id=None, eos_token_id=1, num_key_value_heads=1),
    }.items():
        loud(AutoModelForCausalLM.from_config(config)).save_pretrained(root / name)
        words.save_pretrained(root / name)
    (root / "llama" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    text = {"vocab_size": 20, "hidden_size": 32, "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    for name, model in {
        "clip": CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text)),
        "siglip": SiglipVisionModel(SiglipVisionConfig(**SIZES)),
        "vit": ViTModel(ViTConfig(**SIZES)),
        "dinov2": Dinov2Model(Dinov2Config(**SIZES)),
    }.items():
        loud(model).save_pretrained(root / name)
        CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(root / name)
    return root


def loud(model: Any) -> Any:
    """With opinions: nothing uniform, every norm and bias at work."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def settings(
    bases: Path, tower: str = "clip", lm: str = "llama", frozen: bool = True, lora: str = "", lm_part: str = "", **more: str
) -> list[str]:
    vision = tower if tower.startswith("{") else f"{{kind: hf, from: 'hf:{bases / tower}', frozen: true}}"
    rest = lora or f"frozen: {str(frozen).lower()}"
    language = f"{{kind: hf, from: 'hf:{bases / lm}', {rest}}}"
    parts = {"vision": vision, "lm": lm_part or language, "connector": "{kind: mlp, norm: false}"} | more
    return [*(f"parts.{name}={value}" for name, value in parts.items()), "precision=fp32", f"data.image_size={SIDE}"]


def made_of(recipe_name: str, overrides: Sequence[str]) -> tuple[Any, VLM, torch.nn.ModuleDict]:
    """Recipe, model and objectives as a run has them, its vocabulary trimmed to ``SAID``; what learns has learned."""
    torch.manual_seed(0)
    recipe = load_recipe(recipe_name, overrides)
    model = build_model(recipe, None, SIDE, SAID)
    learning = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in learning:
            p.add_(torch.randn_like(p) * 0.1)
    return recipe, model.eval(), build_objectives(recipe, model)


def written(recipe: Any, model: VLM, objectives: torch.nn.ModuleDict, out: Path, adapters: str = "") -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    out.mkdir()
    family_for("transformers", recipe, model, objectives).write(out, model, objectives, adapters)
    there = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(out)
    assert (type(there).__name__, type(processor).__name__) == ("LlavaForConditionalGeneration", "LlavaProcessor")
    return there, processor


def pictures(n: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for i in range(n)]


def in_float(model: VLM) -> VLM:
    """The factor √D of Gemma's word vectors, too: in bf16 it was rounded, as it is where an export is loaded in bf16."""
    for module in model.float().modules():
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale.fill_(module.scalar_embed_scale)
    return model


def compare(model: VLM, there: Any, processor: Any, size: float = 1.0) -> None:
    """Logits over the run's words, at each place of captions of unlike length: equal to 1e-5, times the size that they have."""
    in_float(model)
    images = pictures(len(SAID))
    ids, seen = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(SAID))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    ours = model.encode(batch_of(pixels=pixels, text=ids, text_mask=seen, captions=tuple(SAID)))["text.logits"]
    shown = processor.image_processor([Image.fromarray(i) for i in images], return_tensors="pt")["pixel_values"]
    tokens = model.part("connector").tokens
    words = torch.tensor([model.tokenizer.original(row) for row in ids.tolist()])
    words = torch.cat([words[:, :1], torch.full((len(ids), tokens), there.config.image_token_id), words[:, 1:-1]], 1)
    mask = torch.cat([seen[:, :1].expand(-1, 1 + tokens), seen[:, 1:-1]], 1).long()
    kept = torch.tensor(model.tokenizer.original(list(range(len(model.tokenizer)))))
    with torch.no_grad():
        theirs = there(input_ids=words, attention_mask=mask, pixel_values=shown).logits[:, tokens:, kept]
    real = seen[:, 1:]
    assert ours[real].std() > 1e-2 and (ours[0, 0] - ours[1, 0]).abs().max() > 1e-4, "the image matters"
    torch.testing.assert_close(theirs[real], ours[real], atol=1e-5 * size, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not installed("gemma-3-270m"), reason="Gemma is not installed")
def test_the_real_gemma(bases: Path, tmp_path: Path) -> None:
    recipe, model, objectives = made_of("llava", settings(bases, lm_part="{kind: gemma, frozen: true}"))
    compare(model, *written(recipe, model, objectives, tmp_path / "out"), size=24)


OWN = "{kind: siglip, width: 32, heads: 2, depth: 2, hidden: 48, patch: 16}"


@pytest.mark.parametrize(
    ("tower", "lm", "layer"),
    [("clip", "llama", -1), ("clip", "gemma3", -2), ("siglip", "llama", -2), ("siglip", "gemma3", -1), ("vit", "gpt2", -1),
     ("dinov2", "qwen2", -2), (OWN, "gemma3", 0)],
)  # fmt: skip
def test_an_export_computes_what_the_run_does(bases: Path, tmp_path: Path, tower: str, lm: str, layer: int) -> None:
    which = [f"parts.vision.layer={layer}"] if layer else []
    recipe, model, objectives = made_of("llava", [*settings(bases, tower, lm), *which])
    there, processor = written(recipe, model, objectives, tmp_path / "out")
    compare(model, there, processor)
    assert len(model.tokenizer) < len(processor.tokenizer) <= there.config.text_config.vocab_size, "trimmed, and whole again"
    assert processor.vision_feature_select_strategy == ("full" if "siglip" in tower else "default")
    assert list(processor.image_processor.image_mean) == pytest.approx([0.5] * 3 if tower == OWN else MEAN)
    assert there.config.dtype == torch.float32  # as it was loaded
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16", "as the run has its language model"


@pytest.mark.parametrize("connector", ["{kind: linear, norm: false}", "{kind: mlp, norm: false, width: 20}"])
def test_one_layer_and_a_narrow_middle_fit_as_well(bases: Path, tmp_path: Path, connector: str) -> None:
    recipe, model, objectives = made_of("llava", settings(bases, connector=connector))
    compare(model, *written(recipe, model, objectives, tmp_path / "out"))


@pytest.mark.parametrize("lm", ["llama", "gemma3"])
def test_the_vocabulary_is_the_originals_but_for_what_was_learned(bases: Path, tmp_path: Path, lm: str) -> None:
    recipe, model, objectives = made_of("llava", settings(bases, lm=lm, frozen=False))
    there, processor = written(recipe, model, objectives, tmp_path / "out")
    compare(model, there, processor)
    original = load_causal_lm(f"hf:{bases / lm}", torch.float32)
    n, tokenizer = original.vocabulary, processor.tokenizer
    before, after = original.model.get_input_embeddings().weight, there.get_input_embeddings().weight
    kept = torch.tensor(model.tokenizer.kept)
    left = torch.ones(n, dtype=torch.bool).index_fill(0, kept, False)
    assert left.sum() > 20 and len(after) == n + 1
    assert torch.equal(after[:n][left], before[left])
    assert torch.equal(after[kept], model.part("lm").lm.model.get_input_embeddings().weight)
    assert (after[kept] - before[kept]).abs().max() > 0.01
    assert tokenizer.get_vocab() == {**original.tokenizer.backend.get_vocab(), "<image>": n}
    text = "zebra crossing a fox"
    assert tokenizer(text)["input_ids"] == [original.tokenizer.bos, *original.tokenizer.pieces([text])[0]]


@pytest.mark.parametrize("apart", [False, True])
def test_adapters_are_merged_or_lie_apart_for_peft(bases: Path, tmp_path: Path, apart: bool) -> None:
    peft = pytest.importorskip("peft")
    recipe, model, objectives = made_of("llava", settings(bases, lm="gemma3", lora="lora: {rank: 3, alpha: 12}"))
    out = tmp_path / "out"
    there, processor = written(recipe, model, objectives, out, str(out) if apart else "")
    if not apart:
        compare(model, there, processor)
        return
    with pytest.raises(AssertionError):
        compare(model, there, processor)
    compare(model, peft.PeftModel.from_pretrained(there, out / "adapter").eval(), processor)
    says = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (says["r"], says["lora_alpha"], says["base_model_name_or_path"]) == (3, 12, str(out))


@pytest.mark.parametrize("kind", ["dora", "vera", "qlora"])
def test_every_kind_of_adapter_is_merged_and_lies_apart(bases: Path, tmp_path: Path, kind: str) -> None:
    peft = pytest.importorskip("peft")
    given = [*settings(bases, lm="gemma3"), f"adapters.lm={{kind: {kind}, rank: 3}}", "stages.0.train=[connector, adapters.lm]"]
    recipe, model, objectives = made_of("llava", given)
    model.train_only(["adapters.lm"])
    with torch.no_grad():
        for p in model.adapters["lm"].own():  # type: ignore[operator]
            p.add_(torch.randn_like(p) * 0.1)
    out = tmp_path / "out"
    there, processor = written(recipe, model, objectives, out, str(out))
    with pytest.raises(AssertionError):
        compare(model, there, processor)
    compare(model, peft.PeftModel.from_pretrained(there, out / "adapter").eval(), processor)
    compare(model, *written(recipe, model, objectives, tmp_path / "merged"))


# --- what does not fit


@pytest.mark.parametrize(
    ("parts", "why", "remedy"),
    [
        ({"tower": "{kind: vit, width: 32, heads: 2, depth: 1}"}, "parts.vision: its stem", ["parts.vision=" + OWN]),
        ({"connector": "{kind: mlp}"}, "its projector has no norm", ["parts.connector.norm=false"]),
        ({"connector": "{kind: mlp, norm: false, depth: 3}"}, "two layers, not 3", ["parts.connector.depth=2"]),
        ({"connector": "{kind: mlp, norm: false, width: 40}"}, "as wide as", ["parts.connector.width=32"]),
        *(
            ({"connector": f"{{kind: {kind}}}"}, f"parts.connector is a {name}", ["parts.connector={kind: mlp, norm: false}"])
            for kind, name in (("average", "Average"), ("pixel_shuffle", "PixelShuffle"), ("c_abstractor, tokens: 4", "CAbstractor"),
                               ("resampler", "Resampler"), ("q_former", "QFormer"), ("merge, tokens: 3", "Merge"), ("downsample", "Downsample"))
        ),
        ({"tower": "dinov2"}, "last state after its norm", ["parts.vision.layer=-2"]),
        ({"fusion": "{kind: gated}"}, "part 'fusion' has no place in it", None),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_remedy(bases: Path, parts: dict[str, str], why: str, remedy: list[str] | None) -> None:
    given = settings(bases, **parts)  # type: ignore[arg-type]
    with pytest.raises(DiptychError) as told:
        family_for("transformers", *made_of("llava", given))
    line = next(line for line in str(told.value).split("\n") if "LlavaForConditionalGeneration" in line)
    assert why in line, line
    if remedy is None:
        assert "A new run" not in line
        return
    if remedy[0] == f"parts.vision={OWN}":
        assert "--set parts.vision.kind=siglip" in line
    else:
        assert all(f"--set {shlex.quote(r)}" in line for r in remedy), line
    assert family_for("transformers", *made_of("llava", [*given, *remedy])).name == "llava"


def test_pictures_are_scaled_once(bases: Path) -> None:
    given = [*settings(bases)[:-1], "data.image_size=48"]
    torch.manual_seed(0)
    recipe = load_recipe("llava", given)
    model = build_model(recipe, None, 48, SAID)
    with pytest.raises(DiptychError, match="--set data.image_size=32"):
        family_for("transformers", recipe, model, build_objectives(recipe, model))


def test_adapters_apart_need_adapters(bases: Path, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="this run has no adapters"):
        written(*made_of("llava", settings(bases)), tmp_path / "out", "out")


def test_a_quantised_language_model_is_refused_on_a_cpu(bases: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device can have it")
    shutil.copytree(bases / "llama", tmp_path / "lm")
    config = tmp_path / "lm" / "config.json"
    says = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": says}))
    with pytest.raises(DiptychError, match=r"quantised \(bitsandbytes\), which needs a CUDA device"):
        made_of("llava", settings(bases, lm=str(tmp_path / "lm"), lora="lora: {rank: 2}"))


# --- words and images in their order


TALK = [question("which is red?"), Turn("assistant", "the fox"), Turn("user", "why?")]


def messages(turns: Sequence[Turn], image: Any = None) -> list[dict[str, Any]]:
    """As users of transformers write them."""
    shown = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [
        {"role": t.role, "content": [*([shown] if "<image>" in t.text else []), {"type": "text", "text": t.text.removeprefix("<image>\n")}]}
        for t in turns
    ]  # fmt: skip


def with_tokenizer(lm: Path, tokenizer: Any, out: Path) -> Path:
    """A language model's directory with another tokenizer."""
    shutil.copytree(lm, out, ignore=shutil.ignore_patterns("tokenizer*"))
    tokenizer.save_pretrained(out)
    return out


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("form", [None, CHATML, LLAMA3, GEMMA, VICUNA])
def test_a_conversation_is_written_as_in_training(bases: Path, tmp_path: Path, form: str | None, system: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases / "llama")
    tokenizer.chat_template = form
    base = with_tokenizer(bases / "llama", tokenizer, tmp_path / "base")
    recipe, model, objectives = made_of("llava-instruct", settings(bases, lm=str(base)))
    _, processor = written(recipe, model, objectives, tmp_path / "out")
    turns = [Turn("system", "be brief"), *TALK] if system else TALK
    chat = Chat(whole(model.part("lm")).ours, model.part("connector").tokens)
    ours = chat.document(turns, ask=True)
    picture = Image.fromarray(pictures(1)[0])
    theirs = processor.apply_chat_template(
        messages(turns, picture), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = [i if i >= 0 else processor.image_token_id for i in ours.ids]
    assert theirs["input_ids"][0].tolist() == ids and theirs["pixel_values"].shape == (1, 3, SIDE, SIDE)


def test_a_caption_begins_as_in_training(bases: Path, tmp_path: Path) -> None:
    recipe, model, objectives = made_of("llava", [*settings(bases), "parts.lm.prompts=true"])
    _, processor = written(recipe, model, objectives, tmp_path / "out")
    turns = [*messages([question("a red")]), {"role": "assistant", "content": " fox"}]
    assert processor.apply_chat_template(turns) == "<bos>This photo:<image>a red fox<eos>"


def test_a_tokenizer_that_looks_at_what_stands_before_is_told(bases: Path, tmp_path: Path) -> None:
    """Llama's first word gets a space: of the whole text there, of each stretch between images here."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases / "llama")
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    base = with_tokenizer(bases / "llama", tokenizer, tmp_path / "base")
    recipe, model, objectives = made_of("llava-instruct", settings(bases, lm=str(base)))
    notes = family_for("transformers", recipe, model, objectives).write(tmp_path / "out", model, objectives)
    assert any("split into tokens a little otherwise" in note for note in notes)


# --- from the command line


def test_a_run_writes_the_same_captions_as_its_export(bases: Path, tmp_path: Path, cli: Cli) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    few = ["data.train=scenes:small", "trackers=[]", "budget=32 samples", "stages.0.batch_size=16", "stages.0.lr=1e-2"]
    train(load_recipe("llava", [*settings(bases), *few]), tmp_path / "run")
    done = cli("export", tmp_path / "run", "--json")
    assert done.code == 0, done.all
    out = Path(json.loads(done.out)["path"])
    trained = load(str(tmp_path / "run"), "cpu")
    in_float(trained.model)  # type: ignore[attr-defined]
    model, processor = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32), AutoProcessor.from_pretrained(out)
    images = pictures(4)
    said = [[{"role": "user", "content": [{"type": "image", "image": Image.fromarray(i)}]}] for i in images]
    inputs = processor.apply_chat_template(
        said, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
    written = model.generate(**inputs, max_new_tokens=12)[:, inputs["input_ids"].shape[1] :]
    theirs = [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]
    ours = trained.generate(images, max_tokens=12)  # type: ignore[attr-defined]
    assert theirs == ours and len(ours[0]) > 5
    assert processor.apply_chat_template(said[0]) == "<bos><image>"
    judged = load(f"hf:{out}", "cpu")
    assert judged.generate(images, max_tokens=12) == ours, "asked nothing, as in training"
    assert json.loads((out / "export.json").read_text())["caption"] == ""
    card = (out / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card and "- part `lm`, `" in card and "apache-2.0" in card
    assert NOT_STATED in next(line for line in card.splitlines() if line.startswith("- part `vision`")), "of the tower"
    assert "pieces of its language model's vocabulary" in card
    assert "byte-level BPE" not in card and "lower-cased" not in card
    again = cli("export", tmp_path / "run", "--adapters")
    assert again.code != 0 and "this run has no adapters" in again.all


def test_pictures_come_in_the_size_of_the_tower(bases: Path) -> None:
    class Photographs:
        pass

    assert image_size_of(load_recipe("llava", settings(bases)[:-1]), Photographs()) == SIDE  # type: ignore[arg-type]
