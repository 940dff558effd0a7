"""Tiny models of transformers that talk about images, with random weights, saved as their authors save theirs: LLaVA, LLaVA-NeXT,
Qwen2-VL, Qwen2.5-VL, Idefics 3, Gemma 3, InternVL. And conversations about coloured squares.

The templates are those that trl ships for these models, where it is installed.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diptych.core.files import read_json, write_json

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}"
    "{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAID = [
    "what colour is it? red green blue yellow",
    "is the second one the same? yes no it is not, they differ",
    "user assistant model",
]
MARKS = [
    "<pad>", "<s>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>",
    "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>",
    *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
]  # fmt: skip
LITTLE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHOWN = {**LITTLE, "image_size": 32, "patch_size": 16}
COLOURS = {"red": (210, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}


@cache
def backend() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        SAID, trainers.BpeTrainer(vocab_size=420, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    )
    return str(made.to_str())


def tokenizer(**extra: str) -> Any:
    """A byte-level BPE trained on a few sentences; extra: further special tokens by their names."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    bos = extra.pop("bos", "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend()), pad_token="<pad>", bos_token=bos, eos_token=extra.pop("eos", "</s>"),
        unk_token="<unk>", extra_special_tokens=extra,
    )  # fmt: skip


def vocabulary() -> dict[str, int]:
    return dict(tokenizer().get_vocab())


def of_trl(name: str) -> str | None:
    """A chat template of trl, if it is installed."""
    import importlib.util

    spec = importlib.util.find_spec("trl")
    file = Path(spec.origin).parent / "chat_templates" / f"{name}.jinja" if spec and spec.origin else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else None


def language(**more: Any) -> dict[str, Any]:
    v = vocabulary()
    ends = {"bos_token_id": v["<s>"], "eos_token_id": v["<|im_end|>"], "pad_token_id": v["<pad>"]}
    sizes = {"vocab_size": len(v), "num_key_value_heads": 1, "max_position_embeddings": 1024}
    return {**LITTLE, **sizes, **ends, "tie_word_embeddings": False, **more}


def loud(model: Any, seed: int = 0) -> Any:
    """With opinions: nothing uniform, every norm and bias at work."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.08)
    return model.eval()


def saved(model: Any, path: Path, words: Any, pictures: Any, kind: str, template: str, **rest: Any) -> Path:
    """As the files of these models lie on the hub."""
    end = next(mark for mark in ("<end_of_turn>", "<end_of_utterance>", "<|im_end|>", "</s>") if mark in template)
    model.generation_config.update(pad_token_id=words.pad_token_id, eos_token_id=words.convert_tokens_to_ids(end))
    loud(model)
    if not model.config.tie_word_embeddings:
        with torch.no_grad():
            model.get_output_embeddings().weight[: len(MARKS)] = 0  # so that it writes words
    model.save_pretrained(path)
    words.chat_template = None
    words.save_pretrained(path)
    pictures.save_pretrained(path)
    file = path / "preprocessor_config.json"
    write_json(file, {**read_json(file), "processor_class": kind})
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(path / "processor_config.json", {"processor_class": kind, **rest})
    return path


def clip_pictures() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def llava(path: Path) -> Path:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **SHOWN}, text_config={"model_type": "llama", **language()},
        image_token_index=vocabulary()["<image>"], vision_feature_layer=-1,
    )  # fmt: skip
    rest = {
        "patch_size": 16,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    words = tokenizer(image_token="<image>")
    return saved(LlavaForConditionalGeneration(config), path, words, clip_pictures(), "LlavaProcessor", PLAIN, **rest)


def llava_next(path: Path) -> Path:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    grids = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **SHOWN}, text_config={"model_type": "llama", **language()},
        image_token_index=vocabulary()["<image>"], vision_feature_layer=-1, image_grid_pinpoints=grids,
    )  # fmt: skip
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grids
    )
    rest = {
        "patch_size": 16,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    template = of_trl("llava_next") or PLAIN
    words = tokenizer(image_token="<image>")
    return saved(LlavaNextForConditionalGeneration(config), path, words, pictures, "LlavaNextProcessor", template, **rest)


def qwen(path: Path, kind: str = "Qwen2_5_VL") -> Path:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    v = vocabulary()
    tower = {"depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    tower |= (
        {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 16, "window_size": 32, "fullatt_block_indexes": [1]}
        if kind == "Qwen2_5_VL"
        else {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}
    )
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=tower, text_config=language(rope_parameters=rope), image_token_id=v["<|image_pad|>"],
        video_token_id=v["<|video_pad|>"], vision_start_token_id=v["<|vision_start|>"], vision_end_token_id=v["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    pictures = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=48 * 48)
    template = of_trl("qwen2_5_vl") or PLAIN.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    words = tokenizer(image_token="<|image_pad|>", video_token="<|video_pad|>", eos="<|im_end|>")
    return saved(model, path, words, pictures, f"{kind}Processor".replace("Qwen2_VL", "Qwen2VL"), template)


def qwen2_vl(path: Path) -> Path:
    return qwen(path, "Qwen2VL")


def idefics3(path: Path) -> Path:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    config = Idefics3Config(
        vision_config=SHOWN, text_config={"model_type": "llama", **language()}, image_token_id=vocabulary()["<image>"],
        scale_factor=2, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True)
    words = tokenizer(bos="<|im_start|>")
    template = of_trl("smolvlm") or PLAIN
    return saved(Idefics3ForConditionalGeneration(config), path, words, pictures, "Idefics3Processor", template, image_seq_len=1)


def gemma3(path: Path) -> Path:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    v = vocabulary()
    config = Gemma3Config(
        vision_config={**SHOWN, "vision_use_head": False},
        text_config=language(head_dim=8, sliding_window=64, query_pre_attn_scalar=8, tie_word_embeddings=True),
        mm_tokens_per_image=4, boi_token_index=v["<start_of_image>"], eoi_token_index=v["<end_of_image>"],
        image_token_index=v["<image_soft_token>"],
    )  # fmt: skip
    pictures = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    words = tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    template = of_trl("gemma3") or PLAIN.replace("<image>", "<start_of_image>")
    return saved(Gemma3ForConditionalGeneration(config), path, words, pictures, "Gemma3Processor", template, image_seq_length=4)


def internvl(path: Path) -> Path:
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    v = vocabulary()
    config = InternVLConfig(
        vision_config={**LITTLE, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config={"model_type": "qwen2", **language()}, image_token_id=v["<IMG_CONTEXT>"], image_seq_length=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    pictures = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=2)
    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    template = PLAIN.replace("<image>", "<IMG_CONTEXT>\n")
    return saved(InternVLForConditionalGeneration(config), path, words, pictures, "InternVLProcessor", template, image_seq_length=4)


FAMILIES = {
    "llava": llava, "llava_next": llava_next, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen, "idefics3": idefics3, "gemma3": gemma3,
    "internvl": internvl,
}  # fmt: skip


def square(name: str, side: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A picture of one colour with a little noise."""
    noise = np.random.default_rng(len(name)).integers(-9, 10, (*side, 3))
    return (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)


def conversations(folder: Path, copies: int = 3) -> str:
    """Conversations about one, two and no squares, of one and two exchanges, in LLaVA's JSON; the address of them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(COLOURS)
    rows = []

    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"from": "gpt" if k % 2 else "human", "value": text} for k, text in enumerate(texts)]

    for k in range(copies):
        for i, name in enumerate(names):
            other = names[(i + 1) % len(names)]
            for which in (name, other):
                file = folder / f"{which}-{k}.png"
                if not file.is_file():
                    Image.fromarray(square(which, (40 + k, 48))).save(file)
            one, two = f"{name}-{k}.png", f"{other}-{k}.png"
            rows.append({"id": f"one-{k}-{name}", "image": one, "conversations": turns("<image>\nwhat colour is it?", name)})
            said = turns("<image>\n<image>\nwhat colour is it?", name, "is the second one the same?", f"no, it is {other}")
            rows.append({"id": f"two-{k}-{name}", "image": [one, two], "conversations": said})
        rows.append({"id": f"none-{k}", "conversations": turns(f"is red the {k} same?", "yes it is not")})
    file = folder / "mine.json"
    file.write_text(json.dumps(rows))
    return f"llava:{file}"
