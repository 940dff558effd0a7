"""Compare the losses of the first training steps of every built-in recipe between two versions of Diptych, on this machine.

``python -m bench.losses 4da3e92 HEAD`` or ``python -m bench.losses 4da3e92 .``

A version is a commit, or a directory that holds ``src/diptych`` (``.`` is the working tree). Each version trains every recipe
for 8 steps a stage: float32, one thread, 8 samples a step, seed 0. The exit status is 1 if a loss differs by more than
``--tolerance``. Gemma is replaced by a small language model with random weights, unless ``--real`` is given.

Learning rates warm up as the recipe says: so what another order of additions changes stays below 1e-5. Code that was moved and
does the same arithmetic gives the same bits: ``--tolerance 0`` then also finds what 8 small steps hardly show, such as another
weight decay.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FLOOR = 1e-3  # differences of values below it are not taken relative to them
STEPS, BATCH = 8, 8  # steps of each stage, samples of each step
RANDOM_LM = {"kind": "random", "depth": 3}  # deep enough for one gated layer of Flamingo
LM_OPTIONS = ("frozen", "lora", "prompts")  # of Gemma's options those that a random language model has too
LONE = {"data.lone_images": "scenes:small?seed=1", "data.lone_texts": "scenes:small?seed=2"}

Losses = dict[str, list[float]]  # "stage/objective" to its value at each step
Found = dict[str, Any]  # {"losses": Losses} or {"error": text}


# --- the child: trains recipes with the version that PYTHONPATH names ---


def child(order: dict[str, Any]) -> None:
    """Train recipes one after the other, and append a line of JSON for each to the file ``order["out"]``."""
    import torch

    import diptych

    assert Path(order["source"]) in Path(diptych.__file__).parents, f"imported {diptych.__file__}, not {order['source']}"
    torch.set_num_threads(1)
    setattr(importlib.import_module("diptych.training.loop"), "LOG_EVERY", 1)  # noqa: B010 - mypy would look for it
    full_precision()
    recipes = recipe_module()
    for name in order["recipes"] or recipes.recipe_names():
        try:
            found: Found = {"losses": train(recipes.load_recipe(name), order)}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        with open(order["out"], "a") as out:
            out.write(json.dumps({"recipe": name, **found}) + "\n")
        print(f"  {name}: {found.get('error', 'done')}", file=sys.stderr, flush=True)


def full_precision() -> None:
    """The log rounds losses to 5 places, which is too coarse to compare them to 1e-5. Rounding to 5 places is turned off."""
    original = builtins.round

    def exact(number: Any, ndigits: int | None = None) -> Any:
        return number if ndigits == 5 else original(number, ndigits)

    builtins.round = exact  # type: ignore[assignment]


def recipe_module() -> Any:
    """The module with ``recipe_names`` and ``load_recipe``; the second edition has it in another place."""
    try:
        return importlib.import_module("diptych.recipe")
    except ModuleNotFoundError:
        return importlib.import_module("diptych.config.recipe")


def train(recipe: Any, order: dict[str, Any]) -> Losses:
    """The loss and the value of every objective at each step, by stage."""
    import diptych

    rows: list[dict[str, Any]] = []
    budget = f"{STEPS * BATCH * len(recipe.stages)} samples"
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"{k}={json.dumps(v)}" for k, v in overrides(recipe, order["real"], Path(folder)).items()]
        out = Path(folder) / "run"
        diptych.train(recipe.name, budget=budget, out=out, set=[*settings, *order["set"]], progress=rows.append)
    losses: Losses = {}
    for row in rows:
        for name, value in {"loss": row["loss"], **row["losses"]}.items():
            losses.setdefault(f"{row['stage']}/{name}", []).append(value)
    for name, values in losses.items():
        assert len(values) == STEPS, f"{name}: {len(values)} steps, not {STEPS}"
    return losses


def overrides(recipe: Any, real: bool, folder: Path) -> dict[str, Any]:
    """Settings that make a few steps of any recipe quick and repeatable."""
    settings: dict[str, Any] = {"seed": 0, "precision": "fp32", "device": "cpu", "trackers": [], "validation": None}
    for i, stage in enumerate(recipe.stages):
        settings |= {f"stages.{i}.batch_size": BATCH, f"stages.{i}.share": 1}
        if "answers" in stage.objectives:
            settings[f"stages.{i}.data"] = conversations(folder)
    if "masked_both" in recipe.stages[-1].objectives:
        settings |= LONE
    lm = recipe.parts.get("lm")
    if lm is not None and lm.kind == "gemma" and not real:
        given = lm.model_dump()
        settings["parts.lm"] = {**RANDOM_LM, **{k: given[k] for k in LM_OPTIONS if k in given}}
    return settings


def conversations(folder: Path) -> str:
    """A file of conversations about no, one and two images, of different lengths; returns its address."""
    from PIL import Image

    rows: list[dict[str, Any]] = []
    for k in range(16):
        names = [f"{k}-{i}.png" for i in range(k % 3)]
        for i, name in enumerate(names):
            Image.new("RGB", (32, 32), (16 * k, 255 - 16 * k, 120 * i)).save(folder / name)
        asked = " and ".join(["<image>"] * len(names)) + " what is there on the left?"
        said = [asked, "one big red table. " * (1 + k % 4), "and on the right?", "two small blue signs"][: 2 + 2 * (k % 2)]
        turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(said)]
        rows.append({"id": str(k), "images": names, "messages": turns})
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"chat:{folder / 'talk.jsonl'}"


# --- the parent: runs a child for each version, and compares ---


@contextmanager
def tree_of(version: str) -> Iterator[Path]:
    """The directory of a version: the one that is named, or a temporary worktree of the commit."""
    if (Path(version) / "src" / "diptych").is_dir():
        yield Path(version).resolve()
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), version], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def losses_of(version: str, arguments: argparse.Namespace) -> dict[str, Found]:
    """What a version's child found, by recipe."""
    print(f"{version} …", file=sys.stderr, flush=True)
    with tree_of(version) as tree, tempfile.TemporaryDirectory() as folder:
        out, source = Path(folder) / "losses.jsonl", tree / "src"
        order = {k: getattr(arguments, k) for k in ("recipes", "real", "set")} | {"source": str(source), "out": str(out)}
        alone = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = {**os.environ, **alone, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(source)}
        command = [sys.executable, "-m", "bench.losses", "--child", json.dumps(order)]
        ended = subprocess.run(command, cwd=ROOT, env=environment)
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
        if ended.returncode:
            raise SystemExit(f"{version}: the training process ended with status {ended.returncode} after {len(rows)} recipes")
        return {row.pop("recipe"): row for row in rows}


def difference(a: float, b: float) -> float:
    """Relative to the larger of the two; two that are both not a number are equal."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    found = abs(a - b) / max(abs(a), abs(b), FLOOR)
    return found if math.isfinite(found) else math.inf


def compare(old: Found | None, new: Found | None) -> dict[str, Any]:
    """The largest difference of one recipe and where it is; ``why`` instead if the two cannot be compared."""
    for which, found in (("first", old), ("second", new)):
        if found is None:
            return {"why": f"not in the {which} version"}
        if "error" in found:
            return {"why": f"{which} version: {found['error']}"}
    assert old is not None and new is not None
    if old["losses"].keys() != new["losses"].keys():
        return {"why": f"other objectives: {', '.join(sorted(old['losses'].keys() ^ new['losses'].keys()))}"}
    pairs = [
        (difference(a, b), f"{name}, step {step}")
        for name in old["losses"]
        for step, (a, b) in enumerate(zip(old["losses"][name], new["losses"][name], strict=True), 1)
    ]
    largest, where = max(pairs, key=lambda pair: pair[0])
    return {"difference": largest, "where": where if largest else ""}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m bench.losses", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("first", help="a commit or a directory with src/diptych")
    parser.add_argument("second", help="the same; `.` is the working tree")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="default: all built-in recipes of each version")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative (default 1e-5)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override for all recipes")
    parser.add_argument("--real", action="store_true", help="train with Gemma where the recipe names it (slow)")
    parser.add_argument("--out", type=Path, help="write losses and differences to this JSON file")
    arguments = parser.parse_args()
    old, new = (losses_of(version, arguments) for version in (arguments.first, arguments.second))
    table = {name: compare(old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())}
    if arguments.out:
        found = {"first": arguments.first, "second": arguments.second, "differences": table, "losses": [old, new]}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    failed = 0
    print(f"{'recipe':<16} | max relative difference | equal to {arguments.tolerance:g}?")
    for name, row in table.items():
        equal = row.get("difference", math.inf) <= arguments.tolerance
        fresh = name not in old  # a recipe that only the second version has is no fault
        failed += not equal and not fresh
        said = row["why"] if "why" in row else f"{row['difference']:<23.3g}"
        print(f"{name:<16} | {said} | {'new' if fresh else 'yes' if equal else 'NO'} {row.get('where', '')}".rstrip())
    print(f"{len(table)} recipes, {failed} differ" if table else "no recipes")
    return 1 if failed or not table else 0


if __name__ == "__main__":
    sys.exit(main())
