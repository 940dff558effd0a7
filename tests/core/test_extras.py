"""The core install: what works without any optional package, and which extra is named where one is needed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diptych
import without_extras_fixture
from diptych.core import extras
from diptych.core.errors import DiptychError

SOURCE = Path(diptych.__file__).parent
PROJECT = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {"PIL": "pillow", "yaml": "pyyaml", "jinja2": "torch"}  # modules of packages with another name, or that come with one
# Folders that are an extra of their own, whose command asks for all its packages first; and a map that does without one.
OF_FOLDER = {"serve": {"fastapi", "starlette", "uvicorn"}, "index": {"sklearn"}}
OUTSIDE = {"pycocoevalcap"}  # looked for with find_spec, and reported as a note


def packages(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[ ]", r)[0].lower() for r in requirements}


def alone(code: str, cwd: Path) -> str:
    """Standard output of Python code that sees none of the optional packages."""
    path = os.pathsep.join([str(SOURCE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, without_extras_fixture.__file__, code],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONPATH": path, "DIPTYCH_CACHE": str(cwd / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_core_imports_only_its_own_packages() -> None:
    """Every other import goes through ``need``, so that its error names the extra."""
    core = packages(PROJECT["dependencies"])
    wrong = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            allowed = OF_FOLDER.get(file.relative_to(SOURCE).parts[0], set())
            for name in {n.partition(".")[0] for n in names} - set(sys.stdlib_module_names) - {"diptych"} - OUTSIDE - allowed:
                # matplotlib is asked for its font and not missed: data/sheet.py
                if CORE.get(name, name) not in core and (file.name, name) != ("sheet.py", "matplotlib"):
                    wrong.append(f"{file.relative_to(SOURCE)}: {name}")
    assert not wrong


def test_every_named_extra_holds_the_package() -> None:
    groups = PROJECT["optional-dependencies"]
    calls = 0
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "need"):
                continue
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            extra = given.get("extra")
            if extra is None:
                continue
            calls += 1
            assert extra in groups, f"{file}: {extra}"
            if isinstance(node.args[0], ast.Constant):
                module = node.args[0].value.partition(".")[0]
                assert extras.PACKAGES.get(module, module).lower() in packages(groups[extra]), f"{file}: {module} is not in {extra}"
    assert calls > 10
    assert groups["lora"] == ["diptych[adapt]"]


def test_need() -> None:
    assert extras.need("json", extra="scenes", what="this").dumps([]) == "[]"
    with pytest.raises(
        DiptychError, match=r"^parts\.lm\.lora needs .* no_such_thing, .*not installed: pip install 'diptych\[adapt\]'$"
    ):
        extras.need("no_such_thing.part", extra="adapt", what="parts.lm.lora")
    with pytest.raises(DiptychError, match=r"no_such_thing, which is not installed: pip install no_such_thing$"):
        extras.need("no_such_thing", extra=None, what="this")
    assert extras.installed("json") and extras.installed("numpy.linalg") and not extras.installed("no_such_thing.part")


def test_a_package_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DiptychError, match=r"cannot be imported \(No module named 'no_such_thing'\): pip install 'diptych\[ocr\]'"):
        extras.need("half_there", extra="ocr", what="this")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core") / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        colour, name = ((220, 40, 40), "red") if i % 2 else ((40, 60, 220), "blue")
        pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {name} picture, number {i}")
    return folder


def test_train_load_score_and_evaluate(pictures: Path) -> None:
    code = f"""
import sys
import diptych as dp
from diptych.cli import main
def command(*words):
    sys.argv = ["diptych", *words]
    try: main()
    except SystemExit as end: assert not end.code, words
command("--help")
small = [f"parts.{{p}}.{{k}}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2")]
small += ["data.image_size=32", "parts.vision.patch=16", "stages.0.batch_size=16", "data.tokenizer.vocab_size=300"]
settings = (word for setting in small for word in ("--set", setting))
command("train", "clip", "--data", "folder:{pictures}", "--budget", "48 samples", "--out", "run", *settings)
import numpy as np
model = dp.load("run")
print("scores", model.score([np.zeros((40, 30, 3), np.uint8)], ["a red picture", "a blue picture"]).shape)
found = dp.evaluate("run", "folder:{pictures}", out="judged")
print("tasks", sorted({{r.task for r in found.results}}))
print("heavy", [m for m in ("transformers", "scipy", "sklearn", "matplotlib", "tensorboard") if m in sys.modules])
"""
    out = alone(code, pictures.parent)
    assert "TensorBoard is not installed" in out and out.count("pip install 'diptych[trackers]'") == 1
    assert "scores (1, 2)" in out and "tasks ['embedding', 'retrieval']" in out and "heavy []" in out


OPERATORS = "from diptych.curation.operators"
FEATURES = {  # code that needs a package, and the remedy that its error names
    "scenes": ("open_source('scenes:small')[0]", "'diptych[scenes]'"),
    "openmoji": ("open_source('openmoji:all')", "'diptych[scenes]'"),
    "pool": ("from diptych.curation.dirty_pool.pool import write_pool; write_pool(Path('pool'), 20)", "'diptych[scenes]'"),
    "gguf": ("from diptych.models.pretrained.hub import from_gguf; from_gguf(Path('x.gguf'))", "'diptych[weights]'"),
    "minilm": ("from diptych.models.pretrained.packages import require; require('minilm')", "'diptych[weights]'"),
    "demo": ("from diptych.cli.demo import demo; demo()", "'diptych[scenes]'"),
    "t-SNE": ("from diptych.report.drawing.plots import _neighbours as f; f(np.zeros((4, 2)))", "'diptych[report]'"),
    "maps": ("from diptych.study.figures import maps; maps(None)", "'diptych[report]'"),
    "concepts": (f"{OPERATORS}.text.concepts import Matcher; Matcher(['a'])", "'diptych[curate]'"),
    "languages": (f"{OPERATORS}.text.language import fasttext as f; f(['a'])", "'diptych[curate]'"),
    "py3langid": (f"{OPERATORS}.text.language import py3langid as f; f(['a'])", "py3langid"),
    "SemDeDup": (f"{OPERATORS}.duplicates.semantic import clusters as f; f(np.eye(4), 2)", "'diptych[curate]'"),
    "assign": (f"{OPERATORS}.documents import assign as f; f(np.eye(2))", "'diptych[curate]'"),
    "spotting": (f"{OPERATORS}.images.text_spotting import _reader as f; f()", "'diptych[ocr]'"),
    "ray": ("from diptych.curation.runners.ray import Ray; Ray(1, {}, 'store')", "'diptych[ray]'"),
    "lora": (
        'from diptych.models.adapters.lora import Lora; from diptych.models.part import Part; Lora(Part(), None, "adapters.lm")',
        "'diptych[adapt]'",
    ),
    "conse": ("load('conse')", "'diptych[weights]'"),
    "open_clip": ("load('open_clip:ViT-B-32')", "open_clip_torch"),
    "tensorboard": ("train('clip', 'folder:pictures', out='t', set=['trackers=[tensorboard]'])", "'diptych[trackers]'"),
    "wandb": ("train('clip', 'folder:pictures', out='t', set=['trackers=[wandb]'])", "'diptych[trackers]' wandb"),
}


def test_features_name_their_extra(pictures: Path) -> None:
    code = f"""
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from diptych.api import load, open_source, train
from diptych.core.errors import DiptychError
for name, (code, remedy) in {FEATURES!r}.items():
    try: exec(code)
    except DiptychError as error: print(name, "ok" if str(error).endswith("pip install " + remedy) else error)
    except Exception as error: print(name, type(error), error)
    else: print(name, "did not fail")
"""
    lines = alone(code, pictures.parent).splitlines()
    assert [line for line in lines if not line.endswith(" ok")] == []
    assert len(lines) == len(FEATURES)
    assert not (pictures.parent / "t").exists()
