"""A model by its address: a run of ours, or a model of another library."""

from __future__ import annotations

from pathlib import Path

from diptych.config.untrained import UNTRAINED
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import resolve
from diptych.inference import adapted, mapped
from diptych.inference.fewer.open import SCHEME as FEWER
from diptych.inference.fewer.open import open_fewer
from diptych.inference.foreign import frames, is_foreign, open_model, opened, pooled
from diptych.inference.foreign.tuned import Tuned, tuned_part
from diptych.inference.onnx.open import is_onnx_address, open_onnx
from diptych.inference.run import TrainedModel
from diptych.inference.scored import opened_hidden
from diptych.inference.several import model as labelled
from diptych.training.run_files import RunFiles

HIDDEN = "hidden:"


def load(address: str | Path, device: str = "auto") -> Model:
    """A model: a run directory (its last checkpoint; ``RUN/checkpoints/best`` or ``…/step-00000500`` for another), one that needs
    no training by its name (``conse``, ``conse?classes=10``), the directory of an ONNX export (also ``…?threads=1``; docs/onnx.md),
    the hidden states of a run with a language model (``hidden:RUN``), a model of pictures that is shown clips
    (``pooled:MODEL?frames=8``), one that talks about several pictures, such as the frames of a clip (``frames:MODEL``), a run that
    reads pictures with fewer tokens (``fewer:RUN?keep=0.5``), or a model of another library by its address (``hf:NAME``,
    ``openai:URL?model=…``; docs/evaluation.md).

    Raises DiptychError if there is no run, no checkpoint in it, or no such model.
    """
    if str(address).startswith(pooled.SCHEME):
        place, options = pooled.split_address(str(address))
        return pooled.PooledModel(load(place, device), **options)
    if str(address).startswith(frames.SCHEME):
        place, count = frames.split_address(str(address))
        return frames.FramesModel(load(place, device), count)
    if str(address).startswith(FEWER):
        return open_fewer(str(address), load, device)
    path = Path(address)
    if is_onnx_address(address):
        return open_onnx(address, device)
    if str(address).startswith(HIDDEN):
        return opened_hidden(str(address), load(str(address).removeprefix(HIDDEN).partition("?")[0], device))
    if path.parent.name == "checkpoints" and RunFiles(path.parent.parent).exists():
        return _run(path.parent.parent, device, path.name)
    if not path.is_dir() and is_foreign(str(address)):
        return open_model(str(address), device)
    name, _, query = str(address).partition("?")
    if not path.is_dir() and name in UNTRAINED.names():
        return opened(resolve(UNTRAINED.load(name).model, {}, "model"), str(address), query, device)
    if not path.is_dir():
        raise DiptychError(
            f"no run at '{address}'{nearest(name, UNTRAINED.names())}; a run is a directory that `diptych train` made, another "
            "model is hf:NAME_OR_PATH"
        )
    if (path / adapted.FILE).is_file():
        return adapted.AdaptedModel.load(path, load, device)
    if (path / labelled.FILE).is_file():
        return labelled.LabelledModel.load(path, load, device)
    if (path / mapped.FILE).is_file():
        return mapped.MappedModel.load(path, load, device)
    if not RunFiles(path).exists() and (path / "config.json").is_file():
        raise DiptychError(f"{address} is not a run; a model of transformers is hf:{address}")
    return _run(path, device)


def _run(path: Path, device: str, checkpoint: str = "last") -> Model:
    """A run: a model of ours, or one of transformers that was tuned."""
    if RunFiles(path).exists() and tuned_part(RunFiles(path).recipe()):
        return Tuned.load(path, device, checkpoint)
    return TrainedModel.load(path, device, checkpoint=checkpoint)
