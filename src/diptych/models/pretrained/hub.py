"""Models of transformers by name or by directory: how they are opened, and the messages if that fails."""

from __future__ import annotations

import hashlib
import json
import os
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
            remedy = f"with a network, run `hf download {name} --local-dir DIR`, then use hf:DIR"
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
    """Mean and deviation that a vision model's pixels in [0, 1] are normalised with; ½ and ½ if its directory has none."""
    if Path(name).is_dir():
        files = (Path(name) / f"{kind}_config.json" for kind in ("preprocessor", "processor"))  # version 4's and version 5's
        says: dict[str, Any] = next((json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()), {})
        says = says.get("image_processor", says)
    else:
        from transformers import AutoImageProcessor

        says = fetch(AutoImageProcessor, name).to_dict()
    return says.get("image_mean") or [0.5] * 3, says.get("image_std") or [0.5] * 3
