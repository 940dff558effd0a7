"""Graphs in lower precision: fp16 by rounding the weights, int8 by scales that pictures and texts set once.

Scales are fixed (static quantisation). Dynamic ones would be those of the whole batch, so that a picture's vector would depend on
what else is embedded with it.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.extras import need

# Sums and norms, of which half precision would lose the small or the large values.
KEPT = ("LayerNormalization", "ReduceL2", "ReduceMean", "ReduceSum", "Softmax", "Pow", "Sqrt", "Clip", "Div", "Resize", "TopK")
WHAT = "an export as ONNX"

Inputs = Mapping[str, np.ndarray]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of exporters and converters, which name their own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def to_fp16(path: Path) -> None:
    """Rounds a graph's weights and arithmetic to fp16, in place; inputs, outputs and ``KEPT`` stay in fp32. A runtime without fp16
    arithmetic for an operation computes it in fp32.
    """
    onnx = need("onnx", extra="onnx", what=WHAT)
    float16 = need("onnxruntime.transformers.float16", extra="onnx", what=WHAT)
    with quiet():
        made = float16.convert_float_to_float16(
            onnx.load(str(path)), keep_io_types=True, op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *KEPT]
        )
    onnx.save(made, str(path))


def behind_pooling(graph: Any) -> list[str]:
    """Names of products with one vector for each item, [B, D]: the maps into the shared space, a classifier. They cost little, and
    what they read is hard to round: probabilities of a thousand classes are all near 0.
    """
    onnx = need("onnx", extra="onnx", what=WHAT)
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    known = [*inferred.value_info, *inferred.input, *inferred.output]
    rank = {v.name: len(v.type.tensor_type.shape.dim) for v in known if v.type.tensor_type.HasField("shape")}
    return [n.name for n in graph.graph.node if n.op_type in ("MatMul", "Gemm") and rank.get(n.input[0]) == 2]


def to_int8(path: Path, batches: Sequence[Inputs]) -> None:
    """Quantises the products and convolutions of a graph to int8, in place: weights by channel, activations by the range that they
    have on ``batches``. Products behind the pooling (``behind_pooling``) stay as they are.
    """
    onnx = need("onnx", extra="onnx", what=WHAT)
    quantization = need("onnxruntime.quantization", extra="onnx", what=WHAT)
    prepare = need("onnxruntime.quantization.shape_inference", extra="onnx", what=WHAT).quant_pre_process

    base: Any = quantization.CalibrationDataReader

    class Reader(base):  # type: ignore[misc]
        """Gives one batch after the other."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next batch; None: there is none."""
            batch = next(self.left, None)
            return None if batch is None else dict(batch)

    with tempfile.TemporaryDirectory() as folder, quiet():
        ready = Path(folder) / "ready.onnx"
        prepare(str(path), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=behind_pooling(onnx.load(str(ready))),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    onnx.checker.check_model(str(path))


def agreement(before: bytes, path: Path, batches: Sequence[Inputs]) -> float:
    """The mean cosine between what a graph gave before and what it gives now, on batches."""
    ort = need("onnxruntime", extra="onnx", what=WHAT)
    first, second = (ort.InferenceSession(g, providers=["CPUExecutionProvider"]) for g in (before, str(path)))
    cosines = [(unit_rows(first.run(None, dict(b))[0]) * unit_rows(second.run(None, dict(b))[0])).sum(1) for b in batches]
    return float(np.concatenate(cosines).mean())
