"""``diptych export … --to onnx``: a dual encoder as two graphs, by torch's own exporter, with a certificate.

Shapes: B batch, H and W of the square that the model reads, T tokens, E width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError, counted, nearest
from diptych.core.extras import need
from diptych.core.files import write_atomically, write_json, write_text
from diptych.data.source import usable_samples
from diptych.data.sources import open_source
from diptych.inference.load import load
from diptych.inference.onbase import address_now, relative_to
from diptych.inference.onnx.card import card
from diptych.inference.onnx.certificate import BOUNDS, Certificate, Paired, Refused, certify
from diptych.inference.onnx.files import (
    CARD,
    FORMAT,
    IMAGE,
    MANIFEST,
    PRECISIONS,
    PREPROCESSING,
    TEXT,
    TOKENIZER,
    hashes,
    is_onnx,
    key_of,
    read_manifest,
    verified_files,
)
from diptych.inference.onnx.preprocessing import Pictures, Texts
from diptych.inference.onnx.quantize import WHAT, Inputs, agreement, quiet, to_fp16, to_int8
from diptych.inference.onnx.runtime import Runtime
from diptych.inference.onnx.towers import Exportable, exportable
from diptych.inference.run import TrainedModel
from diptych.training.run_files import RunFiles

Precision = Literal["fp32", "fp16", "int8"]
OUTPUT = "unit_vectors"  # a name that no operation has: the exporter gives the same name twice otherwise
EXAMPLES = (
    "a dog",
    "two red houses on the left of a tree",
    "light",
)  # three texts of unlike length, from which the graph is traced
CALIBRATION = 128  # pictures, and as many texts
RECALL = 200  # pictures with a caption


@dataclass(frozen=True)
class ExportedOnnx:
    """The directory, its key, its certificate, and what is not as it was asked for."""

    path: Path
    key: str
    certificate: Certificate
    notes: tuple[str, ...] = ()


def export_onnx(
    address: str,
    paired: Paired,
    out: Path | None = None,
    precision: Precision = "fp32",
    data: str = "",
    runtime: Runtime = "onnxruntime",
    threads: int = 0,
    checkpoint: str = "last",
    limit: int = RECALL,
    seconds: float = 2.0,
) -> ExportedOnnx:
    """Writes image.onnx, text.onnx, preprocessing, tokenizer, certificate and model card to ``out``.

    Without ``out``: RUN/export/onnx (onnx-int8 …), or a folder named after a model that has none. data: pictures with captions, for
    probes, recall (``limit`` of the part ``test``) and int8's ranges (of the part ``train``); "": those of the run. paired: the
    interval of a difference (``benchmarks.statistics.paired_test``). seconds: for each latency; 0: none.

    Raises DiptychError if the model is not a dual encoder that can be exported, or ``out`` is something else; Refused if the
    certificate is not passed: then nothing is left.
    """
    if precision not in PRECISIONS:
        raise DiptychError(f"precision '{precision}'{nearest(precision, PRECISIONS)}; valid: {', '.join(get_args(Precision))}")
    for package in ("onnx", "onnxscript", "onnxruntime", *(["openvino"] if runtime == "openvino" else [])):
        need(package, extra="openvino" if package == "openvino" else "onnx", what=WHAT)
    if is_onnx(address):
        raise DiptychError(f"{address} is an ONNX export already; --check makes its certificate again")
    place = out or _place(address, precision)
    _refuse_foreign(place)
    model = load(_address(address, checkpoint), "cpu")
    towers = exportable(model)
    data = data or _data_of(model)
    if precision == "int8" and not data:
        raise DiptychError(
            f"int8 needs pictures like those that it will see, for its ranges: --data ADDRESS (model '{model.name}')"
        )
    shown, captions = samples(data, "test", limit) if data else ([], [])
    made: list[Certificate] = []

    def write(folder: Path) -> None:
        """Graphs, files, certificate and card. Raises Refused."""
        folder.mkdir()
        sides = _graphs(folder, towers, precision, data)
        if precision not in sides.values():
            raise DiptychError(f"{model.name} in {precision} is refused: {'; '.join(towers.notes)}")
        source = {"model": str(address), "relative": relative_to(address, place), "key": getattr(model, "key", None)}
        head = towers.head.facts(folder) if towers.head is not None else None
        files = hashes(folder)
        manifest = {
            "format": FORMAT,
            "name": model.name,
            "precision": precision,
            "sides": sides,
            "key": key_of(towers.key, precision, files),
            "width": _width(towers),
            "size": list(towers.size),
            "scale": towers.scale,
            "inputs": {
                "image": {"pixels": ["batch", *towers.size, 3]},
                "text": {n: ["batch", "tokens"] for n in towers.texts["inputs"]},
            },
            "output": OUTPUT,
            "checkpoint": checkpoint,
            "source": source,
            "data": data,
            "head": head,
            "files": files,
        }
        write_json(folder / MANIFEST, manifest)
        certificate = certify(model, folder, paired, shown, captions, data, runtime, threads, seconds)
        made.append(certificate)
        if not certificate.passed:
            raise Refused(_refusal(model.name, precision, certificate), certificate)
        certificate.save(folder)
        write_text(folder / CARD, card(model, manifest, certificate))

    write_atomically(place, write)
    return ExportedOnnx(place, str(read_manifest(place)["key"]), made[0], tuple(towers.notes))


def check_onnx(
    folder: Path, paired: Paired, data: str = "", runtime: Runtime = "onnxruntime", threads: int = 0, limit: int = RECALL,
    seconds: float = 2.0,
) -> ExportedOnnx:  # fmt: skip
    """The certificate of an existing directory again, on its own data or other, and on this machine; it replaces the old one.

    Raises DiptychError if files have changed, or if the model that was exported is gone or another one now; Refused if a bound is
    not kept: the directory is then marked and cannot be opened.
    """
    if not is_onnx(folder):
        raise DiptychError(f"{folder} is not an ONNX export (it has no {MANIFEST})")
    manifest = verified_files(folder)
    source = manifest["source"]
    model = load(_address(address_now(source, folder), manifest["checkpoint"]), "cpu")
    if (now := getattr(model, "key", None)) != source["key"]:
        raise DiptychError(
            f"{folder}: {source['model']} has other weights now than when it was exported ({source['key']}, now {now}); "
            "export it again"
        )
    exportable(model)  # its adapters are merged, as they were
    data = data or manifest["data"]
    shown, captions = samples(data, "test", limit) if data else ([], [])
    certificate = certify(model, folder, paired, shown, captions, data, runtime, threads, seconds)
    certificate.save(folder)
    write_text(folder / CARD, card(model, manifest, certificate))
    if not certificate.passed:
        raise Refused(_refusal(str(folder), manifest["precision"], certificate), certificate)
    return ExportedOnnx(folder, str(manifest["key"]), certificate)


def _refusal(name: str, precision: str, certificate: Certificate) -> str:
    more = len(certificate.failures) - 1
    others = f", and {counted(more, 'further bound')} not kept" if more else ""
    hint = "" if precision == "fp32" else "; --precision fp32 loses nothing"
    return f"{name} in {precision} is refused: {certificate.failures[0]}{others}{hint}"


# --- where and what ---


def _place(address: str, precision: str) -> Path:
    """Where an export goes if the user names no directory."""
    kind = "onnx" if precision == "fp32" else f"onnx-{precision}"
    path = Path(address)
    if path.is_dir():
        run = path.parent.parent if path.parent.name == "checkpoints" else path
        return run / "export" / kind
    return Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', address).strip('-')}-{kind}")


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not is_onnx(out) and not (out.is_dir() and not any(out.iterdir())):
        raise DiptychError(f"{out} exists and is not an earlier ONNX export (it has no {MANIFEST}); choose another --out")


def _address(address: str, checkpoint: str) -> str:
    if checkpoint == "last":
        return str(address)
    if not RunFiles(Path(address)).exists():
        raise DiptychError(f"checkpoint '{checkpoint}': {address} is not a run, so it has no checkpoints")
    return str(Path(address) / "checkpoints" / checkpoint)


def _data_of(model: Any) -> str:
    """The data that a run learned from, if it is still there."""
    while not isinstance(model, TrainedModel):
        if (model := getattr(model, "base", None)) is None:
            return ""
    address = model.recipe.data.train
    try:
        open_source(address)
    except (DiptychError, OSError):
        return ""
    return address


def samples(address: str, split: str, n: int) -> tuple[list[Image], list[str]]:
    """The first n pictures of a part of the data, or of all if the part has fewer than eight, and the first caption of each; no
    captions unless every picture has one.
    """
    source = open_source(address)
    part = source.split(split)
    found = [s for s in usable_samples(part if len(part) >= 8 else source, n) if s.image is not None]
    if not found:
        raise DiptychError(f"{address}: no pictures that could be read; --data ADDRESS names other ones")
    images = [s.image for s in found if s.image is not None]
    return images, [s.captions[0] for s in found] if all(s.captions for s in found) else []


# --- graphs ---


def _graphs(folder: Path, towers: Exportable, precision: str, data: str) -> dict[str, str]:
    """Writes both graphs and what is needed to feed them; returns the precision of each side."""
    write_text(folder / TOKENIZER, towers.tokenizer)
    write_json(folder / PREPROCESSING, {"pictures": towers.pictures, "texts": towers.texts})
    pictures, texts = Pictures(**towers.pictures), Texts(towers.tokenizer, **towers.texts)
    pixels = torch.zeros(len(EXAMPLES), *towers.size, 3, dtype=torch.uint8)
    read = dict(zip(("ids", "mask"), map(torch.from_numpy, texts(EXAMPLES)), strict=True))
    given = {name: read[name] for name in towers.texts["inputs"]}
    free = {0: torch.export.Dim.DYNAMIC} | ({1: torch.export.Dim.DYNAMIC} if texts.padding == "longest" else {})
    _trace(towers.image, {"pixels": pixels}, {"pixels": {0: torch.export.Dim.DYNAMIC}}, folder / IMAGE)
    _trace(towers.text, given, dict.fromkeys(given, free), folder / TEXT)
    if precision == "fp16":
        for name in (IMAGE, TEXT):
            to_fp16(folder / name)
    if precision != "int8":
        return dict.fromkeys(("image", "text"), precision)
    shown, captions = samples(data, "train", CALIBRATION)
    batches: dict[str, list[Inputs]] = {
        IMAGE: [{"pixels": pictures(shown[i : i + 16])} for i in range(0, len(shown), 16)],
        TEXT: _text_batches(texts, captions or list(EXAMPLES), towers.texts["inputs"]),
    }
    return {Path(name).stem: _int8(folder / name, batches[name], towers) for name in (IMAGE, TEXT)}


def _int8(path: Path, batches: Sequence[Inputs], towers: Exportable) -> str:
    """A side in int8, or as it was if int8 loses too much of it (sentence encoders have a few very large activations)."""
    before, least = path.read_bytes(), BOUNDS["int8"].mean
    to_int8(path, batches)
    if (cosine := agreement(before, path, batches[-4:])) >= least:
        return "int8"
    path.write_bytes(before)
    towers.notes.append(
        f"the {path.stem} tower stays in fp32: in int8 its vectors have a cosine of {cosine:.3f} with those in fp32, and {least:g} "
        "is needed"
    )
    return "fp32"


def _text_batches(texts: Texts, captions: Sequence[str], names: Sequence[str]) -> list[Inputs]:
    """Captions, and texts that are as long as the model reads: positions that no caption reaches have ranges, too."""
    room = texts.length // max(1, len(captions[0].split())) + 1
    long = [" ".join(captions[(i + j) % len(captions)] for j in range(room)) for i in range(8)]
    batches = [captions[i : i + 16] for i in range(0, len(captions), 16)] + [long]
    read = [dict(zip(("ids", "mask"), texts(batch), strict=True)) for batch in batches]
    return [{name: each[name] for name in names} for each in read]


def _trace(module: nn.Module, given: dict[str, Tensor], free: dict[str, Any], path: Path) -> None:
    """Writes a module as ONNX with dimensions that may change. DiptychError if torch cannot trace it."""
    onnx = need("onnx", extra="onnx", what=WHAT)
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                module,
                (),
                kwargs=given,
                dynamo=True,
                input_names=list(given),
                output_names=[OUTPUT],
                dynamic_shapes=free,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            program.save(str(path))
        onnx.checker.check_model(str(path), full_check=True)
    except DiptychError:
        raise
    except Exception as error:  # the exporter's own have no common class
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip().startswith(("<class", "- "))), "")
        part = type(module).__name__
        raise DiptychError(
            f"{path.stem} tower ({part}) could not be written as ONNX: {type(error).__name__} {reason or str(error)[:200]}. "
            "A part of your own must not read sizes as plain numbers (len(x): write x.shape[0]) nor branch on values"
        ) from error


def _width(towers: Exportable) -> int:
    with torch.inference_mode():
        return int(towers.image(torch.zeros(1, *towers.size, 3, dtype=torch.uint8)).shape[-1])
