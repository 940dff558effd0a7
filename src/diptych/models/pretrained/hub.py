"""Models of transformers by name or by directory: how they are opened, and the messages if that fails."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.files import write_atomically
from diptych.models.pretrained.packages import quiet


def place(address: str) -> str:
    """``hf:NAME_OR_PATH`` or NAME_OR_PATH → what ``from_pretrained`` takes."""
    name = address.removeprefix("hf:")
    directory = Path(name).expanduser()
    return str(directory) if directory.exists() else name


def fetch(kind: Any, name: str, **options: Any) -> Any:
    """``kind.from_pretrained(name)``; raises DiptychError, with the remedy, if it cannot be downloaded or read."""
    try:
        with quiet():
            return kind.from_pretrained(name, **options)
    except Exception as error:  # configurations of others raise any error
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            remedy = "it brings its own code: read it, then add ?trust_remote_code=true"
        elif "torchvision" in reason.lower() or "VIDEO_PROCESSOR" in reason:
            remedy = "its processor needs torchvision: install the build that goes with your torch"
        elif Path(name).is_dir():
            remedy = "the directory must hold what save_pretrained writes for the model and its processor"
        else:
            remedy = (
                f"there is no directory '{name}' in {Path.cwd()}: if it is one, run the command where its path is right, or "
                f"give the whole path; otherwise, with a network, run `hf download {name} --local-dir DIR`, then use hf:DIR"
            )
        raise DiptychError(f"hf:{name}: cannot be loaded ({reason[:300]}); {remedy}") from error


def cache() -> Path:
    """The directory of converted weights."""
    return Path(os.environ.get("DIPTYCH_CACHE") or Path.home() / ".cache" / "diptych")


def from_gguf(file: Path) -> Path:
    """A GGUF file of a causal language model as a directory that transformers loads, converted once and kept by the file's hash."""
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer

    need("gguf", extra="weights", what=f"hf:{file}")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    directory = cache() / f"gguf-{digest}"
    directory.parent.mkdir(parents=True, exist_ok=True)

    def convert(target: Path) -> None:
        """Saves tokenizer and dequantised weights as transformers does."""
        options = {"gguf_file": file.name, "local_files_only": True}
        fetch(AutoTokenizer, str(file.parent), **options).save_pretrained(target)
        fetch(AutoModelForCausalLM, str(file.parent), **options, dtype=torch.bfloat16).save_pretrained(target)

    with FileLock(directory.parent / f".gguf-{digest}.lock"):  # two recipes of a comparison may start at once
        if not directory.is_dir():
            write_atomically(directory, convert)
    return directory


def statistics_of(name: str) -> tuple[list[float], list[float]]:
    """Mean and deviation that a vision model's pixels in [0, 1] are normalised with, as its image processor says.

    What its file leaves out is what the processor's class says, or the model's class if there is no file, of which a note is
    printed. DiptychError if neither is known.
    """
    says = _processor_file(Path(name)) if Path(name).is_dir() else None
    if says is None or ("image_mean" not in says and says.get("do_normalize", True)):
        says = {**(_of_class(name) if says is None and Path(name).is_dir() else _of_processor(name)), **(says or {})}
    factor = 255 * says.get("rescale_factor", 1 / 255) if says.get("do_rescale", True) else 255.0  # what a white pixel becomes
    plain = ([0.0] * 3, [1.0] * 3)
    mean, std = (says.get("image_mean"), says.get("image_std")) if says.get("do_normalize", True) else plain
    if mean is None or std is None:
        raise DiptychError(f"hf:{name}: its image processor says nothing of image_mean and image_std; add them to {FILES[0]}")
    return [m / factor for m in mean], [s / factor for s in std]


FILES = ("preprocessor_config.json", "processor_config.json")  # version 4's and version 5's


def _processor_file(directory: Path) -> dict[str, Any] | None:
    """The content of a directory's image processor; None if it has none."""
    for file in (directory / name for name in FILES):
        if file.is_file():
            says: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return dict(says.get("image_processor", says))
    return None


def _of_processor(name: str) -> dict[str, Any]:
    """What the processor says with the defaults of its class."""
    from transformers import AutoImageProcessor

    return dict(fetch(AutoImageProcessor, name).to_dict())


def _of_class(name: str) -> dict[str, Any]:
    """What the image processor of the model's class says by default."""
    from transformers import AutoConfig
    from transformers.models.auto import image_processing_auto

    auto: Any = image_processing_auto  # without types

    kind = fetch(AutoConfig, name).model_type
    kind = kind.removesuffix("_vision_model")  # half of a dual encoder
    classes = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(kind)
    listed = list(classes.values()) if isinstance(classes, dict) else list(classes or ())
    for candidate in [c for c in listed if c and c.lower().startswith(kind.replace("_", ""))]:  # not one that it borrows
        found = auto.get_image_processor_class_from_name(candidate)
        try:
            says = dict(found().to_dict()) if found is not None else {}
        except ImportError:  # a class that needs torchvision
            continue
        if says.get("image_mean") is not None:
            print(
                f"note: hf:{name} has no {FILES[0]}: pixels are normalised as {kind} is by default (mean {says['image_mean']});"
                " add the file if it was trained otherwise",
                file=sys.stderr,
            )
            return says
    raise DiptychError(
        f"hf:{name}: how its pixels were normalised is unknown; add a {FILES[0]} with image_mean and image_std"
        " (and do_normalize: false if they were not)"
    )
