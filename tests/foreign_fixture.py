"""Tiny models of transformers with random weights, saved as their authors save theirs, and an endpoint on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = "a an the red green blue cat dog star photo of picture two in on left right yes no is there question answer user : ? . what".split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "<image>"]


def images(n: int = 3, size: int = 40) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (size, size + 8, 3), dtype=np.uint8) for i in range(n)]


def _tokenizer(first: str, last: str, pad: str = "[PAD]", ends: bool = True) -> Any:
    """Whole words, each with a number of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = f"{first} $A {last}" if ends else f"{first} $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(t, vocabulary[t]) for t in (first, last)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token="[UNK]", bos_token=first, eos_token=last, cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=16 if ends else 512, additional_special_tokens=["<image>"],
    )  # fmt: skip
    return fast


VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(SPECIAL) + len(WORDS),
}


def _saved(model: Any, processor: Any, path: Path) -> Path:
    model.eval().save_pretrained(path)
    processor.save_pretrained(path)
    return path


def clip(path: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    text = {**TEXT, "max_position_embeddings": 16, "eos_token_id": 5, "bos_token_id": 4}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _saved(CLIPModel(config), CLIPProcessor(pictures, _tokenizer("<s>", "</s>")), path)


def siglip(path: Path) -> Path:
    from transformers import SiglipConfig, SiglipModel, SiglipProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(1)
    config = SiglipConfig(text_config={**TEXT, "max_position_embeddings": 16, "projection_size": 16}, vision_config=VISION)
    pictures = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return _saved(SiglipModel(config), SiglipProcessor(pictures, _tokenizer("<s>", "</s>")), path)


def flava(path: Path) -> Path:
    """As its authors publish it: with all that is for pretraining only."""
    from transformers import FlavaConfig, FlavaForPreTraining, FlavaProcessor
    from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

    torch.manual_seed(6)
    many = {k: v for k, v in VISION.items() if k not in ("image_size", "patch_size")}
    config = FlavaConfig(
        image_config={**VISION, "vocab_size": 32},
        text_config={**TEXT, "max_position_embeddings": 16},
        multimodal_config=many,
        image_codebook_config={"num_groups": 1, "num_blocks_per_group": 1, "hidden_size": 8, "vocab_size": 32},
        hidden_size=16,
        projection_dim=12,
    )
    pictures = FlavaImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    return _saved(FlavaForPreTraining(config), FlavaProcessor(pictures, _tokenizer("[CLS]", "[SEP]")), path)


def blip(path: Path, kind: str) -> Path:
    import transformers
    from transformers import BlipConfig, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(2)
    text = {
        **TEXT,
        "encoder_hidden_size": 16,
        "max_position_embeddings": 64,
        "bos_token_id": 4,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "eos_token_id": 3,
    }
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=12, image_text_hidden_size=12)
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    return _saved(getattr(transformers, kind)(config), BlipProcessor(pictures, _tokenizer("[CLS]", "[SEP]")), path)


def blip2(path: Path, kind: str) -> Path:
    """Over a language model that goes on from the prompt (opt), or one with an encoder of its own (t5)."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, OPTConfig, T5Config
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(4)
    sizes = {"vocab_size": TEXT["vocab_size"], "pad_token_id": 0, "eos_token_id": 5}
    language = (
        OPTConfig(
            **sizes,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
            bos_token_id=4,
        )
        if kind == "opt"
        else T5Config(**sizes, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )
    former = {**TEXT, "encoder_hidden_size": 16}
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=former,
        text_config=language.to_dict(),
        num_query_tokens=4,
        image_token_index=SPECIAL.index("<image>"),
    )
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = Blip2Processor(pictures, _tokenizer("<s>", "</s>", ends=kind == "t5"), num_query_tokens=4)
    return _saved(Blip2ForConditionalGeneration(config), processor, path)


def paligemma(path: Path) -> Path:
    """Looks ahead in the prompt, but not in the answer."""
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor, SiglipVisionConfig
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(5)
    ends = {"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 0}
    language = GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=8, max_position_embeddings=256, **ends)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=language,
        image_token_index=SPECIAL.index("<image>"),
        projection_dim=16,
    )
    pictures = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pictures.image_seq_length = 4
    processor = PaliGemmaProcessor(pictures, _tokenizer("<s>", "</s>", ends=False))
    return _saved(PaliGemmaForConditionalGeneration(config), processor, path)


TEMPLATE = (
    "{% for m in messages %}user : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}answer :{% endif %}"
)


def llava(path: Path) -> Path:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(3)
    language = LlamaConfig(
        **TEXT, max_position_embeddings=128, num_key_value_heads=2, bos_token_id=4, eos_token_id=5, pad_token_id=0
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=language,
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        pictures, _tokenizer("<s>", "</s>", ends=False), patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE, image_token="<image>",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = 0
    return _saved(model, processor, path)


class Requests(list[dict[str, Any]]):
    """What the endpoint was asked; ``url`` is where it is."""

    url: str
    authorization: list[str | None]


@contextmanager
def endpoint(answer: Any) -> Iterator[Requests]:
    """A server of chat completions: ``answer(number, body) -> (status, headers, reply)``, the reply a dict or bytes."""
    seen = Requests()
    seen.authorization = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append(body)
                seen.authorization.append(self.headers.get("Authorization"))
                number = len(seen)
            status, headers, reply = answer(number, body)
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}]}
