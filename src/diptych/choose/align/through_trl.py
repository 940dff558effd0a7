"""A run's export trained by trl, and read back as a run: SFT, DPO, MPO (``DPOTrainer`` with three losses), and GRPO with rewards
that can be verified.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from diptych.choose.align.recipe import Method
from diptych.choose.align.rewards import reward
from diptych.choose.towers.average import Weights, write_run
from diptych.config.overrides import Overrides, parse_overrides
from diptych.config.recipe import Recipe
from diptych.core.errors import DiptychError, nearest
from diptych.core.extras import need
from diptych.core.files import read_json, write_json
from diptych.core.sample import IMAGE, Sample
from diptych.data.conversations.turns import DESCRIBE
from diptych.data.preferences import preference_of
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.inference.export import export
from diptych.training.run_files import RunFiles
from diptych.training.start.exported import MARK
from diptych.training.start.setup import set_up

EXPORT, TRAINED = "export", "trained"  # folders within the run that is made: before, and after trl


@dataclass(frozen=True)
class Settings:
    """What ``--set`` changes. samples: of the training part that are read; generations: answers to each question (GRPO); clip: ε of
    its ratio; kl: the weight of its divergence from the reference; max_tokens: of an answer.
    """

    samples: int = 256
    epochs: float = 1.0
    steps: int = 0  # 0: as many as the epochs need
    batch_size: int = 8
    lr: float = 1e-5
    beta: float = 0.1
    seed: int = 0
    generations: int = 8
    clip: float = 0.2
    kl: float = 0.0
    max_tokens: int = 32

    @classmethod
    def of(cls, overrides: Overrides) -> Settings:
        """The settings with these changes. DiptychError for one that is not known or of another type."""
        made = cls()
        known = {f.name: type(getattr(made, f.name)) for f in fields(cls)}
        for name, value in parse_overrides(overrides).items():
            if name not in known:
                raise DiptychError(
                    f"--set {name}: --through trl has no such setting{nearest(name, known)}; it has {', '.join(known)}"
                )
            if isinstance(value, bool) or not isinstance(value, (int, float)) or (known[name] is int and value != int(value)):
                raise DiptychError(f"--set {name}: expected {known[name].__name__}, got {value!r}")
            made = replace(made, **{name: known[name](value)})
        return made


def train_through_trl(run: Path, method: Method, data: str, out: Path, overrides: Overrides = None) -> None:
    """Export a run, train the export by trl's trainer of the method, and write the result as a run to ``out``."""
    trl = need("trl", extra="align", what="--through trl")
    settings = Settings.of(overrides)
    if not RunFiles(run).exists():
        raise DiptychError(f"{run} is not a run; a run is a directory that `diptych train` made")
    rows = rows_of(data, settings.samples)
    out.mkdir(parents=True, exist_ok=True)
    made = export(run, out=out / EXPORT)
    trainer = trainer_of(trl, method, made.path, made.architecture, rows, settings, out, learning_parts(RunFiles(run).recipe()))
    trainer.train()
    save(trainer, made.path, out / TRAINED, run)
    write_json(out / "trl.json", {"method": method.name, "data": data, "log": trainer.state.log_history})
    read_back(run, out / TRAINED, out, {"method": method.name, "trl": trl.__version__, "data": data})


def learning_parts(recipe: Recipe) -> set[str]:
    """The modules of the export that learn: what the run's last stage trained, adapters counting as their part."""
    train = recipe.stages[-1].train
    names = set(recipe.parts) if train == "all" else {name.removeprefix("adapters.") for name in train}
    names = {recipe.adapters[n].part or n if n in recipe.adapters else n for n in names}
    return {name for name in names if name in recipe.parts and not recipe.parts[name].frozen}


def rows_of(data: str, n: int) -> list[dict[str, Any]]:
    """Rows as trl reads them: prompt, chosen and rejected as messages, images, and for rewards the answer and the scene.
    DiptychError if there are none.
    """
    source = open_source(data).split("train")
    rows: list[dict[str, Any]] = []
    for index in range(len(source)):
        if len(rows) == n:
            break
        try:
            row = row_of(source[index])
        except BrokenItem:
            continue
        if row is not None:
            rows.append(row)
    if not rows:
        raise DiptychError(f"{data}: no pair of answers with its images before the question; preferences:ADDRESS has such pairs")
    return rows


def row_of(sample: Sample) -> dict[str, Any] | None:
    """One row; None for a sample without a pair, or with an image elsewhere than before the first question, where trl puts all."""
    from PIL import Image

    pair = preference_of(sample)
    if pair is None:
        return None
    images = [Image.fromarray(image) for image in sample.images]
    messages, first = [], True
    for turn in sample.turns[:-1]:
        text = turn.text
        if turn.role == "user" and first:
            text, first = text.removeprefix(f"{IMAGE}\n" * len(images)), False
        if IMAGE in text:
            return None
        messages.append({"role": turn.role, "content": text})
    asks = messages[-1]["content"].strip() == DESCRIBE
    return {
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "images": images,
        "answer": pair.chosen,
        "graph": json.dumps(sample.extra.get("graph")),
        "description": asks,
    }


COLUMNS = {
    "sft": ("prompt", "completion", "images"),
    "dpo": ("prompt", "chosen", "rejected", "images"),
    "mpo": ("prompt", "chosen", "rejected", "images"),
    "dive-k": ("prompt", "images", "answer", "graph", "description"),
    "grpo": ("prompt", "images", "answer", "graph", "description"),
}


def verifiable(
    completions: Sequence[Any], answer: Sequence[str], graph: Sequence[str], description: Sequence[bool], **_: Any
) -> list[float]:
    """trl's form of ``rewards.reward``: one number for each completion."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [reward(t, a, json.loads(g), d) for t, a, g, d in zip(texts, answer, graph, description, strict=True)]


def trainer_of(
    trl: Any,
    method: Method,
    directory: Path,
    architecture: str,
    rows: Sequence[Mapping[str, Any]],
    settings: Settings,
    out: Path,
    learning: set[str],
) -> Any:
    """trl's trainer of the method for an export. learning: parts that are trained."""
    import torch
    import transformers

    datasets = need("datasets", extra="align", what="--through trl")
    model = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(directory)
    places = {"vision": "vision_tower", "connector": "multi_modal_projector", "lm": "language_model"}
    for name, p in model.named_parameters():
        p.requires_grad_("lm" in learning if "lm_head" in name else any(places[n] in name for n in learning if n in places))
    if not any(p.requires_grad for p in model.parameters()):
        raise DiptychError("the run's last stage trained none of vision, connector and lm, so nothing would learn")
    columns = COLUMNS[method.name]
    table = datasets.Dataset.from_list(
        [{name: row["chosen" if name == "completion" else name] for name in columns} for row in rows]
    )
    common: dict[str, Any] = {
        "output_dir": str(out / "trl"),
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.lr,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.steps or -1,
        "seed": settings.seed,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
    }
    given = {"model": model, "processing_class": processor, "train_dataset": table}
    if method.name == "sft":
        return trl.SFTTrainer(args=trl.SFTConfig(**common, max_length=None, completion_only_loss=True), **given)
    if method.name in ("grpo", "dive-k"):
        args = trl.GRPOConfig(
            **common,
            num_generations=settings.generations,
            epsilon=settings.clip,
            beta=settings.kl,
            loss_type="grpo",
            max_completion_length=settings.max_tokens,
        )
        return trl.GRPOTrainer(args=args, reward_funcs=verifiable, **given)
    kinds = {"loss_type": ["sigmoid"]}
    if method.name == "mpo":
        o = method.options
        kinds = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [o["preference"], o["quality"], o["generation"]]}
    return trl.DPOTrainer(args=trl.DPOConfig(**common, **kinds, beta=settings.beta, max_length=None), **given)


def save(trainer: Any, before: Path, directory: Path, run: Path) -> None:
    """The trained export: its weights, and all else as it was before."""
    shutil.copytree(before, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(directory)
    write_json(directory / MARK, {**read_json(before / MARK), "run": str(run.resolve())})


def read_back(run: Path, directory: Path, out: Path, note: Mapping[str, Any]) -> None:
    """The run that ``weights: hf:DIRECTORY`` begins, written with what is known of the run before; adapters are merged."""
    before = RunFiles(run).recipe()
    tree = before.model_dump(mode="json", by_alias=True)
    for stage in tree["stages"]:
        stage |= {"train": "all", "rates": {}}
    learned = learning_parts(before)
    parts = {name: {**part, "frozen": part["frozen"] and name not in learned} for name, part in tree["parts"].items()}
    name = f"{before.name}-{note['method']}"
    tree |= {"name": name, "adapters": {}, "teachers": {}, "backbones": {}, "parts": parts, "weights": f"hf:{directory.resolve()}"}
    tree["data"]["image_size"] = tree["data"]["image_size"] or RunFiles(run).model().get("image_size")
    recipe = Recipe.model_validate(tree)
    setup = set_up(recipe)
    state = {k: v.detach().cpu().clone() for k, v in setup.model.saved_state().items()}
    objectives = {k: v.detach().cpu().clone() for k, v in setup.objectives.state_dict().items()}
    write_run(out, Weights(recipe, state, objectives), run, dict(note))
