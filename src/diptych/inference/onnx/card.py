"""The model card of an ONNX export: how to use it, what it loses, and of a run what it learned from."""

from __future__ import annotations

from typing import Any

from diptych.core.capabilities import Model
from diptych.inference.adapted import AdaptedModel
from diptych.inference.export.card import opening, origin
from diptych.inference.foreign.conse import Conse
from diptych.inference.mapped import MappedModel
from diptych.inference.onnx.certificate import BOUNDS, Certificate
from diptych.inference.run import TrainedModel
from diptych.models.pretrained import licences

USE = """\
```python
from diptych.inference.onnx.open import open_model  # does not import torch

model = open_model(".")  # ".?threads=2", ".?runtime=openvino"
image, text = model.embed_image(["photo.jpg"]), model.embed_text(["a caption"])  # unit vectors
print(image @ text.T)
```

Or with `onnxruntime` alone: `image.onnx` reads `pixels`, uint8 [batch, {size[0]}, {size[1]}, 3] in RGB; `text.onnx` reads \
{inputs}; both give `{output}`, float32 [batch, {width}]. `preprocessing.json` says how pictures are resized and texts are cut, \
`tokenizer.json` is of the tokenizers library."""


def card(model: Model, manifest: dict[str, Any], certificate: Certificate) -> str:
    """README.md of the directory."""
    inputs = " and ".join(f"`{n}`, {'int64' if n == 'ids' else 'bool'} [batch, tokens]" for n in manifest["inputs"]["text"])
    state = "passed" if certificate.passed else "REFUSED: " + certificate.failures[0]
    lines = [
        "---\nlibrary_name: onnx\npipeline_tag: zero-shot-image-classification\nlicense: other\n"
        "tags: [diptych, vision-language, onnx]\n---",
        f"# {manifest['name']}",
        f"A dual encoder as two ONNX graphs in {manifest['precision']}, exported from `{manifest['source']['model']}` "
        f"(weights `{manifest['source']['key']}`); key `{manifest['key']}`.",
        "## Use",
        USE.format(**{**manifest, "inputs": inputs}),
        "## Certificate",
        f"{state[0].upper()}{state[1:]}. Against torch in fp32, with {certificate.runtime}; all groups and the hashes of the files "
        "are in `certificate.json`.",
        "\n".join(_differences(certificate)),
        *(["\n".join(_recall(certificate))] if certificate.recall else []),
        "## Origin",
        *_origin(model),
    ]
    return "\n\n".join(lines) + "\n"


def _differences(certificate: Certificate) -> list[str]:
    bounds = BOUNDS[certificate.precision]
    rows = [
        "| side | vectors | largest difference | mean difference | least cosine | mean cosine |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for side in ("image", "text"):
        r = certificate.worst(side)
        rows.append(f"| {side} | {r.n} | {r.largest:.2g} | {r.mean:.2g} | {r.cosine_least:.7g} | {r.cosine_mean:.7g} |")
    rows.append(f"| allowed | | {bounds.largest:g} | | {bounds.least:g} | {bounds.mean:g} |")
    return rows


def _recall(certificate: Certificate) -> list[str]:
    rows = [f"| recall on `{certificate.data}` | torch | ONNX | difference [95 %] |", "|---|---:|---:|---|"]
    for r in certificate.recall:
        interval = f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]"
        rows.append(f"| {r.direction} @{r.k} of {r.n} | {r.torch:.3f} | {r.onnx:.3f} | {interval} |")
    return rows


def _origin(model: Any) -> list[str]:
    while isinstance(model, AdaptedModel | MappedModel):
        model = model.base
    if isinstance(model, TrainedModel):
        if model.place is None:
            return [f"{model.recipe.about}. Trained on `{model.recipe.data.train}`. Method: {model.recipe.cite or 'none given'}."]
        _, *what = opening(model.place, model, "The model in torch")
        return [*what, *origin(model.place, model, str(model.key))]
    if isinstance(model, Conse):
        names = [model.vision, "minilm"]
        return ["ConSE (Norouzi et al. 2014) of packaged towers:", "\n".join(f"- {n}: {t}" for n, t in licences(names).items())]
    return ["A model of transformers; its own card states its terms."]
