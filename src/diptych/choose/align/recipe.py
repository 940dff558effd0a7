"""From a run and a method of alignment to the recipe of the run that continues it."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any

from diptych.config.overrides import Overrides, parse_overrides, set_dotted
from diptych.config.recipe import START, Recipe
from diptych.config.typed import check
from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import option_names, resolve
from diptych.training.run_files import RunFiles

REFERENCE = "reference"
FIELD = "preferences"


@dataclass(frozen=True)
class Method:
    """A way of alignment: what it does, the objective that learns it, and whether trl has a trainer for it.

    compared: whether it needs the model as it was, as a reference. field: the field of pairs, with its options.
    samples: what the model writes first: ``best`` of several answers, ``choices`` among its answers (``sampled``); "": nothing.
    """

    name: str
    about: str
    source: str
    objective: str = ""
    options: dict[str, Any] = default(default_factory=dict)
    compared: bool = False
    trl: bool = False
    field: Any = FIELD
    samples: str = ""


METHODS = {
    m.name: m
    for m in (
        Method("sft", "the chosen answers as instructions", "Liu et al. 2023", "answers", trl=True),
        Method("dpo", "direct preference optimisation", "Rafailov et al. 2023", "dpo", {"beta": 0.1}, True, True),
        Method(
            "segments",
            "DPO in which the wrong words weigh 5 times as much",
            "RLHF-V, Yu et al. 2024",
            "dpo",
            {"beta": 0.5, "span_weight": 5.0, "normalise": True},
            True,
        ),
        Method(
            "mpo",
            "DPO, each answer judged alone, and the chosen one learned",
            "Wang et al. 2024",
            "dpo",
            {"beta": 0.1, "preference": 0.8, "quality": 0.2, "generation": 1.0},
            True,
            True,
        ),
        Method("reward", "a reward model: one number for each answer", "Ouyang et al. 2022", "reward", {"centre": 0.01}),
        Method(
            "facts",
            "a reward model that is told facts of the picture",
            "LLaVA-RLHF, Sun et al. 2023",
            "reward",
            {"centre": 0.01},
            field={"kind": FIELD, "facts": "behind"},
        ),
        Method(
            "vigor",
            "the best of several answers of its own, by the truth of each sentence, as instructions",
            "ViGoR, Yan et al. 2024",
            "answers",
            samples="best",
        ),
        Method(
            "dive-k",
            "its own commonest answers as choices, of which the right one is rewarded",
            "DiVE-k, 2025",
            samples="choices",
            trl=True,
        ),
        Method("grpo", "answers that the model writes, rewarded where they are exactly right", "Shao et al. 2024", trl=True),
    )
}


def method_named(name: str) -> Method:
    """The method of a name. DiptychError if there is none."""
    if name not in METHODS:
        raise DiptychError(f"--method: there is no method '{name}'{nearest(name, METHODS)}; known: {', '.join(METHODS)}")
    return METHODS[name]


def aligned_recipe(run: Path, method: Method, data: str, budget: str | None = None, overrides: Overrides = None) -> Recipe:
    """The recipe that continues a run by a method: the run's parts and adapters with its weights, and one stage.

    overrides: of the recipe by dotted key, or options of the method's objective by their names alone. DiptychError for a run that
    does not follow prompts, or a method that only trl has.
    """
    if not method.objective:
        raise DiptychError(f"--method {method.name}: only trl has it; add --through trl")
    files = RunFiles(run)
    if not files.exists():
        raise DiptychError(f"{run} is not a run; a run is a directory that `diptych train` made")
    before = files.recipe()
    if "lm" not in before.parts:
        raise DiptychError(
            f"{run} has no language model (a part 'lm') that could learn answers; start from a run of llava-instruct"
        )
    last = before.stages[-1]
    tree = before.model_dump(mode="json", by_alias=True)
    options = {"weight": 1.0, **method.options, **({"reference": REFERENCE} if method.compared else {})}
    stage = {
        "name": method.name,
        "train": tree["stages"][-1]["train"],
        "objectives": {method.objective: options},
        "batch_size": min(last.batch_size, 32),
        "warmup": 10,
        "optimizer": "adamw",
        "lr": last.lr / 3 if last.optimizer == "adamw" else 1e-4,
        "rates": tree["stages"][-1]["rates"],
    }
    tree |= {
        "name": f"{before.name}-{method.name}",
        "about": f"{method.about}, from {run.name}",
        "stages": [stage],
        "teachers": {REFERENCE: {"from": START}} if method.compared else {},
        "score": before.score if method.objective != "reward" else "none",
        "backbones": {},
        "weights": str(run),
    }
    tree["data"] |= {
        "train": data,
        "unpaired": {},
        "neighbours": None,
        "image_size": tree["data"]["image_size"] or files.model().get("image_size"),
        "fields": {**tree["data"]["fields"], FIELD: method.field},
        "conversations": {**tree["data"]["conversations"], "pack": False},
    }
    if budget is not None:
        tree["budget"] = budget
    known = set(option_names(_objective(method.objective)))
    for key, value in parse_overrides(overrides).items():
        where = f"stages.0.objectives.{method.objective}.{key}" if key in known else key
        set_dotted(tree, where, value, {"objectives": "weight"})
    recipe: Recipe = check(Recipe, tree, f"diptych align {run}")
    return recipe.anchored()


def _objective(name: str) -> Any:
    """The class of an objective."""
    from diptych.objectives import OBJECTIVES

    return resolve(name, OBJECTIVES, "objective")
