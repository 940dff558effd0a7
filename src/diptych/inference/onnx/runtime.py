"""An ONNX export as a ``Model``, without torch: ONNX Runtime, or OpenVINO, which reads the same files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Adapter, Image, one_or_many
from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.files import read_json
from diptych.inference.onnx.files import IMAGE, PREPROCESSING, TEXT, TOKENIZER, read_manifest, verified
from diptych.inference.onnx.preprocessing import Pictures, Texts

IMAGES_AT_ONCE = 16  # more do not fit into a processor's cache: python -m bench onnx
TEXTS_AT_ONCE = 64
SORTED = 4096  # texts that are put in the order of their lengths together, so that little is padded

Runtime = Literal["onnxruntime", "openvino"]


class Engine(Protocol):
    """One graph, ready to run."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Its only output."""
        ...


class OnnxRuntime:
    """A graph in ONNX Runtime."""

    def __init__(self, path: Path, threads: int, device: str, precision: str):
        ort = need("onnxruntime", extra="onnx", what=f"the ONNX model {path.parent}")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Idle threads wait in the system instead of spinning: index and serve decode pictures on the same processors.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.version = f"onnxruntime {ort.__version__}"
        self.session = ort.InferenceSession(str(path), options, providers=_providers(ort, device))

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Its only output. Calls from several threads at once are safe."""
        result: np.ndarray = self.session.run(None, dict(inputs))[0]
        return result


def _providers(ort: Any, device: str) -> list[str]:
    has, name = ort.get_available_providers(), device.partition(":")[0]
    if name in ("auto", "cpu") and not (name == "auto" and "CUDAExecutionProvider" in has):
        return ["CPUExecutionProvider"]
    if name in ("auto", "cuda") and "CUDAExecutionProvider" in has:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    raise DiptychError(f"device '{device}': this ONNX Runtime runs on {', '.join(has)}; for a GPU: pip install onnxruntime-gpu")


class OpenVino:
    """A graph in OpenVINO. Its results are those of the graph's own precision, not of the fastest that the processor has."""

    def __init__(self, path: Path, threads: int, device: str, precision: str):
        ov = need("openvino", extra="openvino", what=f"the ONNX model {path.parent} with runtime=openvino")
        if device not in ("auto", "cpu"):
            raise DiptychError(f"device '{device}': runtime=openvino runs on cpu here")
        hint = {"fp16": "f16"}.get(precision, "f32")
        self.version = f"openvino {ov.__version__.partition('-')[0]}"
        core = ov.Core()
        made = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = core.compile_model(core.read_model(str(path)), "CPU", made)
        self.lock = threading.Lock()  # one request at a time

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Its only output. Calls from several threads wait for each other."""
        with self.lock:
            return np.array(self.compiled(dict(inputs))[0])


ENGINES: dict[str, Any] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def usual_threads() -> int:
    """``OMP_NUM_THREADS`` if it is set, as torch reads it, else the processors that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxModel(Adapter):
    """A dual encoder from its ONNX export. Vectors do not depend on what else is embedded in the same call, up to rounding.

    precision: of the graphs. width: E. scale: what cosines are multiplied by. facts: the manifest.
    """

    capabilities = frozenset({"embed_image", "embed_text", "score"})

    def __init__(
        self, folder: Path, runtime: Runtime = "onnxruntime", threads: int = 0, device: str = "auto", checked: bool = True
    ):
        """Raises DiptychError for a directory that is not as it was exported, and for a missing package. threads: 0 is
        ``usual_threads``. checked: whether the hashes and the certificate are verified.
        """
        self.facts = verified(folder) if checked else read_manifest(folder)
        self.folder, self.runtime, self.threads = folder, runtime, threads or usual_threads()
        self.name, self.key = folder.resolve().name, str(self.facts["key"])
        self.precision, self.width = str(self.facts["precision"]), int(self.facts["width"])
        self.scale = float(self.facts.get("scale") or 100.0)
        if runtime != "onnxruntime":
            self.name, self.key = f"{self.name}?runtime={runtime}", f"{self.key}-{runtime}"
        data = read_json(folder / PREPROCESSING)
        self.pictures = Pictures(**data["pictures"])
        self.texts = Texts((folder / TOKENIZER).read_text(encoding="utf-8"), **data["texts"])
        self.image, self.text = (ENGINES[runtime](folder / n, self.threads, device, self.precision) for n in (IMAGE, TEXT))

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]. images: uint8 arrays [height, width, 3], Pillow images or paths."""
        images = one_or_many(images)
        out = np.zeros((len(images), self.width), dtype=np.float32)
        done = 0
        for pixels in self._prepared(images):
            out[done : done + len(pixels)] = self._unit(self.image({"pixels": pixels}))
            done += len(pixels)
        return out

    def _prepared(self, images: Sequence[Image]) -> Iterator[np.ndarray]:
        """Pixels, uint8 [B, H, W, 3], of ``IMAGES_AT_ONCE`` pictures after another. With more threads than one, the next ones are
        resized while the graph runs.
        """
        groups = [range(i, min(i + IMAGES_AT_ONCE, len(images))) for i in range(0, len(images), IMAGES_AT_ONCE)]
        if self.threads == 1 or len(images) == 1:
            for group in groups:
                yield np.stack([self.pictures.one(images[i], f"image {i}") for i in group])
            return
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: list[list[Future[np.ndarray]]] = []
            for group in [*groups, range(0)]:
                waiting.append([pool.submit(self.pictures.one, images[i], f"image {i}") for i in group])
                if len(waiting) > 1:
                    yield np.stack([each.result() for each in waiting.pop(0)])

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        texts = list(one_or_many(texts))
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        for first in range(0, len(texts), SORTED):
            ids, mask = self.texts(texts[first : first + SORTED])
            order = np.argsort(mask.sum(1), kind="stable")
            for start in range(0, len(order), TEXTS_AT_ONCE):
                rows = order[start : start + TEXTS_AT_ONCE]
                given = dict(zip(("ids", "mask"), self.texts.cut(ids[rows], mask[rows]), strict=True))
                out[first + rows] = self._unit(self.text({name: given[name] for name in self.texts.inputs}))
        return out

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without those that mark beginning and end."""
        return self.texts.tokens(texts)

    def text_from(self, ids: Sequence[int]) -> str:
        """The text of tokens. DiptychError for a number that is no token."""
        return self.texts.text(ids)

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        """In fp32 the graph's own; otherwise made as long as 1 again, which rounding has changed."""
        return vectors if self.precision == "fp32" else unit_rows(vectors)

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """Cosines, float32 [N, M], or [P] for ``pairs``."""
        return super().score(one_or_many(images), one_or_many(texts), pairs)
