"""A dual encoder as two functions of tensors that torch can export: pixels → vectors, token ids → vectors.

Shapes: B batch, H and W of the square that the model reads, T tokens, E width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.batch import Batch, Images, Texts, Tokens
from diptych.core.capabilities import Model, in_words
from diptych.core.encodings import IMAGE_EMBEDDING, TEXT_EMBEDDING, Pass
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.inference.adapted import AdaptedModel
from diptych.inference.foreign.conse import Conse
from diptych.inference.foreign.dual import DualEncoder
from diptych.inference.mapped import MappedModel, SideMap
from diptych.inference.run import TrainedModel
from diptych.inference.scored import ScoreVectors
from diptych.models.pretrained.minilm import MAX_LENGTH, MiniLM
from diptych.models.vlm import VLM


@dataclass
class Exportable:
    """What is exported of a model.

    image: uint8 [B, H, W, 3] → unit vectors [B, E]; text: (ids int64 [B, T], mask bool [B, T]) → unit vectors [B, E], or ids alone.
    pictures, texts, tokenizer: preprocessing.json and tokenizer.json (``preprocessing``). head: classes on the image vectors.
    """

    image: nn.Module
    text: nn.Module
    size: tuple[int, int]  # H, W
    pictures: dict[str, Any]
    texts: dict[str, Any]
    tokenizer: str
    key: str | None
    scale: float = 100.0
    head: AdaptedModel | None = None
    parameters: int = 0
    notes: list[str] = field(default_factory=list)


def exportable(model: Model) -> Exportable:
    """The towers of a model. DiptychError, with what could be done, for a model that is not two towers."""
    missing = {"embed_image", "embed_text"} - model.capabilities
    if missing:
        raise DiptychError(
            f"model '{model.name}' cannot {in_words(sorted(missing))}, so it is not a dual encoder, and --to onnx writes the two "
            "towers of one; a run with a contrastive objective is (recipes clip, siglip, lit, sparc …), and so is `conse`. For "
            "search with this model's answers, make the index with a dual encoder and serve this model next to it"
        )
    for kind, make in KINDS.items():
        if isinstance(model, kind):
            made: Exportable = make(model)
            made.image.eval().requires_grad_(False)
            made.text.eval().requires_grad_(False)
            return made
    raise DiptychError(
        f"model '{model.name}' ({type(model).__name__}) is not exported as ONNX: only runs, conse, hf: dual encoders, and adapted "
        "and mapped models of these are"
    )


@contextmanager
def exact(model: Any) -> Iterator[None]:
    """A model of ours without bf16, so that differences are those of the export alone."""
    changed = []
    while model is not None:
        if getattr(model, "autocast", False):
            changed.append(model)
            model.autocast = False
        model = getattr(model, "base", None)
    try:
        yield
    finally:
        for each in changed:
            each.autocast = True


def _channels_first(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W], from 0 to 255"""
    return pixels.permute(0, 3, 1, 2).to(torch.float32)


# --- sentence encoders ---


def _minilm_texts(encoder: MiniLM) -> tuple[dict[str, Any], str]:
    words = {"kind": "pieces", "length": MAX_LENGTH, "pad": int(encoder.tokenizer.pad_token_id), "inputs": ["ids", "mask"]}
    return words, encoder.tokenizer.backend_tokenizer.to_str()


def _sentence(encoder: MiniLM, ids: Tensor, mask: Tensor) -> Tensor:
    """The mean over real word pieces, as ``MiniLM.encode`` has it: [B, 384]."""
    tokens = encoder.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    weight = mask[..., None].float()
    result: Tensor = (tokens * weight).sum(1) / weight.sum(1)
    return result


# --- runs ---


class RunImage(nn.Module):
    """The image side of a run."""

    def __init__(self, model: VLM):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] → [B, E]"""
        floats = _channels_first(pixels) * (1 / 127.5) - 1.0  # as core.batch.floats
        return self.model.encode(Batch({"image": Images(floats)}, 1))[IMAGE_EMBEDDING]


class RunText(nn.Module):
    """The text side of a run. With a sentence encoder, which reads strings, its vector is computed from ids instead."""

    def __init__(self, model: VLM):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [B, T] → [B, E]"""
        batch, given = Batch({"text": Texts(ids, mask)}, 1), {}
        if (encoder := _encoder_of(self.model)) is not None:
            pooled = _sentence(encoder, ids, mask)
            given = {"text.tokens": Tokens(pooled[:, None], pooled)}
        return Pass(self.model, batch, given)[TEXT_EMBEDDING]


def _encoder_of(model: VLM) -> MiniLM | None:
    encoder = getattr(model.parts["text"], "encoder", None) if "text" in model.parts else None
    return encoder if isinstance(encoder, MiniLM) else None


def _of_run(trained: TrainedModel) -> Exportable:
    model, name = trained.model, trained.name
    if trained.shows != "image":
        raise DiptychError(f"run '{name}' learned from clips; only models of pictures are exported as ONNX")
    if "lm" in model.parts and "text" not in model.parts:
        raise DiptychError(
            f"run '{name}' embeds by its language model (part lm), which is not exported as ONNX; a run with a text tower is: "
            "parts.text"
        )
    with suppress(DiptychError):  # prompts and the like stay as they are
        model.merge_adapters()
    if (encoder := _encoder_of(model)) is not None:
        texts, tokenizer = _minilm_texts(encoder)
    elif type(model.tokenizer) is Tokenizer:
        texts = {"kind": "captions", "length": model.tokenizer.max_length, "inputs": ["ids", "mask"]}
        tokenizer = model.tokenizer.to_json()
    else:
        raise DiptychError(
            f"run '{name}' reads texts by a tokenizer of its own ({type(model.tokenizer).__name__}), which cannot be run without "
            "its code; data.tokenizer.kind: bpe can"
        )
    return Exportable(
        RunImage(model),
        RunText(model),
        (model.image_size, model.image_size),
        {"kind": "square", "size": model.image_size},
        texts,
        tokenizer,
        trained.key,
        trained.scale,
    )


# --- conse ---


class ConseImage(nn.Module):
    """The image side of ConSE: a classifier, and the vectors of its likeliest classes."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Conse):
        super().__init__()
        self.net, self.space = model.net, model.space
        self.register_buffer("mean", torch.tensor(model.net.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.net.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] → [B, E]"""
        floats = _channels_first(pixels) / 255
        return self.space.image(self.net.logits((floats - self.mean) / self.std))


class ConseText(nn.Module):
    """The text side of ConSE: a sentence encoder."""

    def __init__(self, model: Conse):
        super().__init__()
        self.encoder, self.space = model.encoder, model.space

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [B, T] → [B, E]"""
        return self.space.text(_sentence(self.encoder, ids, mask))


def _of_conse(model: Conse) -> Exportable:
    side = model.resolution
    texts, tokenizer = _minilm_texts(model.encoder)
    pictures = {"kind": "square", "size": side}
    return Exportable(ConseImage(model), ConseText(model), (side, side), pictures, texts, tokenizer, model.key)


# --- transformers ---


class HubImage(nn.Module):
    """The image side of a dual encoder of transformers, with its processor's arithmetic."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, factor: float, mean: list[float], std: list[float]):
        super().__init__()
        self.model, self.factor = model, factor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] → [B, E]"""
        floats = (_channels_first(pixels) * self.factor - self.mean) / self.std
        return _vectors(self.model.get_image_features(pixel_values=floats))  # type: ignore[operator]


class HubText(nn.Module):
    """The text side of a dual encoder of transformers. masked: whether it reads the mask."""

    def __init__(self, model: nn.Module, masked: bool):
        super().__init__()
        self.model, self.masked = model, masked

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids, mask [B, T] → [B, E]"""
        more = {"attention_mask": mask.long()} if mask is not None else {}
        return _vectors(self.model.get_text_features(input_ids=ids, **more))  # type: ignore[operator]


def _vectors(out: Any) -> Tensor:
    vectors = getattr(out, "pooler_output", out).float()
    return F.normalize(vectors[:, 0] if vectors.ndim == 3 else vectors, dim=-1)


def _of_hub(model: DualEncoder) -> Exportable:
    pictures, size, arithmetic = _processor(model)
    tokenise = model.processor.tokenizer
    backend = getattr(tokenise, "backend_tokenizer", None)
    if backend is None:
        raise DiptychError(f"{model.name}: its tokenizer ({type(tokenise).__name__}) is not one of the tokenizers library")
    options = {"padding": model.padding, "truncation": True, "max_length": model.longest}
    names = tokenise(["a"], **options)
    masked = "attention_mask" in names
    padding = "full" if model.padding == "max_length" else "longest"
    inputs = ["ids", "mask"] if masked else ["ids"]
    texts = {"kind": "pieces", "length": model.longest, "padding": padding, "pad": int(tokenise.pad_token_id), "inputs": inputs}
    made = Exportable(
        HubImage(model.model, *arithmetic),
        HubText(model.model, masked),
        size,
        pictures,
        texts,
        backend.to_str(),
        model.key,
        model.scale,
    )
    _same_ids(model, made, options)
    return made


def _processor(model: DualEncoder) -> tuple[dict[str, Any], tuple[int, int], tuple[float, list[float], list[float]]]:
    """How its image processor resizes, the size that it gives, and its arithmetic: factor, mean, standard deviation."""
    own = model.processor.image_processor

    def value(name: str, default: Any = None) -> Any:
        """The processor's own value, or the default where it is None."""
        found = getattr(own, name, default)
        return default if found is None else found

    odd = [n for n in ("do_pad", "do_thumbnail", "do_align_long_axis", "do_image_splitting") if value(n, False)]
    side = dict(value("size", {}))
    steps: list[dict[str, Any]] = []
    size: tuple[int, int] | None = None
    if value("do_resize", False) and not odd:
        how = {"filter": int(value("resample", 2))}
        if side.get("height") and side.get("width"):
            size = (side["height"], side["width"])
            steps.append({"size": list(size), **how})
        elif side.get("shortest_edge") and not side.get("longest_edge"):
            steps.append({"shorter": side["shortest_edge"], **how})
    if steps and value("do_center_crop", False):
        crop = dict(value("crop_size", {}))
        size = (crop.get("height", 0), crop.get("width", 0))
        steps.append({"crop": list(size)})
    if not steps or size is None or not all(size):
        raise DiptychError(
            f"{model.name}: its image processor ({type(own).__name__}) is not a resize to one size, so it cannot be repeated "
            "without its code; processors as CLIP's and SigLIP's can"
        )
    factor = float(value("rescale_factor", 1 / 255)) if value("do_rescale", True) else 1.0
    given = value("do_normalize", True)
    mean = list(value("image_mean", [0.0] * 3)) if given else [0.0] * 3
    std = list(value("image_std", [1.0] * 3)) if given else [1.0] * 3
    return {"kind": "steps", "steps": steps}, size, (factor, mean, std)


ODD_TEXTS = ("", "a", "A Photo, of a DOG!  and  more\n", "Ünï códe 漢字 🦊", "x" * 300, "two words " * 200, "</s> [PAD] <s>")


def _same_ids(model: DualEncoder, made: Exportable, options: dict[str, Any]) -> None:
    """DiptychError if its tokenizer does something that is not in its file."""
    from diptych.inference.onnx.preprocessing import Texts as Read

    ids, _ = Read(made.tokenizer, **made.texts)(list(ODD_TEXTS))
    theirs = np.asarray(model.processor.tokenizer(list(ODD_TEXTS), **options)["input_ids"])
    if ids.shape != theirs.shape or (ids != theirs).any():
        raise DiptychError(
            f"{model.name}: its tokenizer ({type(model.processor.tokenizer).__name__}) changes texts in Python code, which "
            "tokenizer.json does not hold; it cannot be run without transformers"
        )


# --- on top of another model ---


class Mapped(nn.Module):
    """A side with a learned map behind it (``inference.mapped.SideMap``)."""

    centre: Tensor
    change: Tensor

    def __init__(self, side: nn.Module, by: SideMap):
        super().__init__()
        self.side = side
        self.register_buffer("centre", torch.from_numpy(np.array(by.centre, dtype=np.float32)))
        self.register_buffer("change", torch.from_numpy(np.array(by.change, dtype=np.float32)))

    def mapped(self, vectors: Tensor) -> Tensor:
        """Unit vectors [B, E] → unit vectors [B, E]"""
        centred = vectors - self.centre
        return F.normalize(centred + centred @ self.change.T, dim=-1)


class MappedImage(Mapped):
    """An image side with a map behind it."""

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] → [B, E]"""
        return self.mapped(self.side(pixels))


class MappedText(Mapped):
    """A text side with a map behind it."""

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids, mask [B, T] → [B, E]"""
        return self.mapped(self.side(ids) if mask is None else self.side(ids, mask))


def _of_mapped(model: MappedModel) -> Exportable:
    made = exportable(model.base)
    made.image, made.text = MappedImage(made.image, model.maps.image), MappedText(made.text, model.maps.text)
    made.key, made.head = model.key, None
    return made


def _of_adapted(model: AdaptedModel) -> Exportable:
    if isinstance(model.base, ScoreVectors):
        raise DiptychError(
            f"adapted model '{model.name}' is of a model that scores, not of a dual encoder; it is not exported as ONNX"
        )
    made = exportable(model.base)
    made.key, made.head = getattr(model.base, "key", None), model
    return made


KINDS: dict[type, Any] = {
    TrainedModel: _of_run,
    Conse: _of_conse,
    DualEncoder: _of_hub,
    MappedModel: _of_mapped,
    AdaptedModel: _of_adapted,
}
