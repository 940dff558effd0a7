"""A model by its address; of an ONNX export without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.inference.onnx.files import MANIFEST, is_onnx
from diptych.inference.onnx.runtime import OnnxModel, Runtime


def open_model(address: str | Path, device: str = "auto") -> Model:
    """The model at ``address``: the directory of an ONNX export (``clip-onnx``, ``clip-onnx?threads=1&runtime=openvino``), without
    torch; anything else as ``inference.load.load`` opens it. Errors are those of ``load`` and of ``OnnxModel``.
    """
    if is_onnx_address(address):
        return open_onnx(address, device)
    from diptych.inference.load import load

    return load(address, device)


def is_onnx_address(address: str | Path) -> bool:
    """Whether an address names the directory of an ONNX export, with or without options."""
    return is_onnx(address) or is_onnx(str(address).partition("?")[0])


def open_onnx(address: str | Path, device: str = "auto") -> Model:
    """The model of an ONNX export's directory, with the options of its address."""
    from diptych.inference.foreign import opened

    name, _, query = (str(address), "", "") if is_onnx(address) else str(address).partition("?")
    return opened(_opened, str(address), query, device, name)


def _opened(
    name: str, *, runtime: Runtime = "onnxruntime", threads: Annotated[int, Field(ge=0)] = 0, device: str = "auto"
) -> Model:
    folder = Path(name)
    model = OnnxModel(folder, runtime, threads, device)
    if (head := model.facts.get("head")) is None:
        return model
    from diptych.inference.adapted import AdaptedModel
    from diptych.inference.heads import load_head

    try:
        made = load_head(folder, head["head"])
        return AdaptedModel(model.name, model, made, head["classes"], head["temperature"], head["about"])
    except (KeyError, TypeError) as error:
        raise DiptychError(f"{folder / MANIFEST}: head cannot be read ({error!r}); export the model again") from None
