"""An export is opened and used where torch cannot be imported, nor any of the libraries that need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diptych.inference.adapted import AdaptedModel
from diptych.inference.heads import Linear
from onnx_fixture import exported, pictures, sentences, untrained

pytest.importorskip("onnxscript")
TEXTS = ["", "a red fox", *sentences(5, 20)]
CODE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx", "onnxscript"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from diptych.inference.onnx.open import open_model

model = open_model(sys.argv[1] + "?threads=1", "cpu")
data = np.load(sys.argv[2])
images = [data[name] for name in sorted(data.files) if name.startswith("image")]
np.testing.assert_allclose(model.embed_image(images), data["vectors"], atol=1e-5)
np.testing.assert_allclose(model.embed_text([str(t) for t in data["texts"]]), data["words"], atol=1e-5)
np.testing.assert_allclose(model.classify(images), data["classes"], atol=1e-4)
assert model.key and "torch" not in sys.modules
print("done")
"""


def test_torch_is_not_imported(tmp_path: Path) -> None:
    base = untrained("clip", ["parts.vision.kind=clip", "parts.text.kind=clip", "parts.vision.patch=16"])
    head = Linear(np.eye(3, 12, dtype=np.float32), np.zeros(3, dtype=np.float32))
    model, shown = AdaptedModel("mine", base, head, ("a", "b", "c")), pictures(4)
    exported(model, tmp_path / "out")
    np.savez(
        tmp_path / "data.npz",
        vectors=model.embed_image(shown),
        words=model.embed_text(TEXTS),
        classes=model.classify(shown),
        texts=np.array(TEXTS),
        **{f"image{i}": image for i, image in enumerate(shown)},
    )
    code = [sys.executable, "-c", CODE, str(tmp_path / "out"), str(tmp_path / "data.npz")]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr
