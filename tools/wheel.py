"""Builds the wheel, installs it in a new environment without the source, and tries it: ``make wheel [EXTRAS="scenes serve"]``.

Each extra is installed alone, in an environment of its own, and the modules that it promises are imported. Without extras only the
plain package is tried, which takes a few minutes for the download of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
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


def run(*command: str | Path) -> None:
    """A command away from the source, so that what is imported is what was installed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([str(word) for word in command], check=True, cwd=tempfile.gettempdir(), env=environment)


def main() -> None:
    """The command."""
    extras = os.environ.get("EXTRAS", "").split()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, ROOT)
        (wheel,) = place.glob("diptych-*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        for extra in ["", *extras]:
            home = place / f"env-{extra or 'plain'}"
            venv.create(home, with_pip=True)
            python = home / "bin" / "python"
            wanted = f"{wheel}[{extra}]" if extra else str(wheel)
            constraints = ("--constraint", ROOT / "constraints.txt")
            run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraints, wanted)
            run(python, "-c", TRY)
            run(home / "bin" / "diptych", "doctor", "--quick")
            print(f"installed and tried: {wanted if extra else wheel.name}")


if __name__ == "__main__":
    main()
