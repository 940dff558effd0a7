"""``hf:NAME_OR_PATH``: any model of transformers that embeds, matches or answers, by its configuration; vision towers too."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.models.pretrained.hub import fetch, place
from diptych.training.start.setup import pick_device

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def load(
    name: str,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch: int = 0,
    score: str = "",
    prompt: str = "",
) -> Model:
    """The model ``name``, a directory or a name on the hub, in half precision on a GPU and in float32 elsewhere.

    score: how ``score`` is computed, if there is a choice; matching models: "matching" or "similarity"; generative ones:
    "likelihood" or "yes". prompt: the request for a caption to a generative model. batch: how many at a time.
    trust_remote_code: runs code that comes with the model. Read it first.
    """
    from transformers import AutoConfig, logging
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_MAPPING_NAMES as VISION,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as GENERATIVE,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as DUAL,
    )

    from diptych.inference.foreign.dual import DualEncoder
    from diptych.inference.foreign.matching import Matching
    from diptych.inference.foreign.vision import VisionOnly

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()  # advice for programmers, printed at every call
    where = pick_device(device)
    dtype = (torch.bfloat16 if where.type == "cuda" else torch.float32) if precision == "auto" else getattr(torch, precision)
    opened = Opened(name, revision, trust_remote_code, where, dtype)
    config = opened.get(AutoConfig)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    kind, remote = config.model_type, getattr(config, "auto_map", None) or {}
    if architecture in Matching.ARCHITECTURES:
        return Matching(opened, batch or 64, score or "matching")
    if kind in (*DUAL, *DualEncoder.BESIDE) and not architecture.endswith("ForConditionalGeneration"):
        _only("similarity", score, name)
        return DualEncoder(opened, batch or 64)
    if kind in GENERATIVE or "AutoModelForImageTextToText" in remote:
        return generative(opened, batch or 8, score or "likelihood", prompt)
    if kind in (*VISION, "clip_vision_model"):
        _only("", score, name)
        return VisionOnly(opened, batch or 64)
    raise DiptychError(
        f"hf:{name}: a model of type '{kind}' ({architecture or 'no architecture named'}) does not embed image and text, and "
        "does not write text from an image; wrap it yourself in diptych.core.capabilities.Adapter and give package.module:Class"
    )


def _only(kind: str, score: str, name: str) -> None:
    if score not in ("", kind):
        how = f"it scores by {kind}" if kind else "a vision tower scores no texts"
        raise DiptychError(f"hf:{name}: {how}; remove score={score}")


def generative(opened: Opened, batch: int, score: str, prompt: str) -> Model:
    """A model that writes text; one with a chat template also talks about several pictures."""
    from diptych.inference.foreign.chat import Generative
    from diptych.inference.foreign.talk import Talker

    processor = opened.processor()
    words = getattr(processor, "tokenizer", None)
    talks = getattr(words, "is_fast", False) and (
        getattr(processor, "chat_template", None) or getattr(words, "chat_template", None)
    )
    return (Talker if talks else Generative)(opened, batch, score, prompt)


class Opened:
    """The place of a model and how to load it."""

    def __init__(self, name: str, revision: str | None, trust: bool, device: torch.device, dtype: torch.dtype):
        self.name, self.device, self.dtype = place(name), device, dtype
        self.options: dict[str, Any] = {"trust_remote_code": trust}
        if revision:
            self.options["revision"] = revision

    def get(self, kind: Any, **more: Any) -> Any:
        """An attribute of the configuration, or the default."""
        return fetch(kind, self.name, **self.options, **more)

    def model(self, kind: Any) -> Any:
        """The model, loaded at first use."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.get(kind, dtype=self.dtype).to(self.device).eval()

    def processor(self) -> Any:
        """The processor."""
        from diptych.models.pretrained.processor import open_processor

        return open_processor(self.name, **self.options)

    def key(self, model: Any, *settings: Any) -> str:
        """Names weights and settings: the commit on the hub, or a hash of the directory's files."""
        commit = getattr(model.config, "_commit_hash", None)
        result = hashlib.blake2b(repr((commit, str(self.dtype), settings)).encode(), digest_size=16)
        for path in sorted(Path(self.name).glob("*")) if commit is None else []:
            if path.is_file():
                result.update(path.name.encode())
                with path.open("rb") as file:
                    while part := file.read(1 << 22):
                        result.update(part)
        return result.hexdigest()


def pil(images: Any) -> list[Any]:
    """Arrays as PIL images."""
    from PIL import Image

    return [Image.fromarray(image) for image in images]


def move(inputs: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Tensors on the device, floating ones in the model's precision."""
    moved = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            value = value.to(device, dtype) if value.is_floating_point() else value.to(device)
        moved[name] = value
    return moved
