"""From ``teachers:`` of a recipe to models that give objectives their encodings."""

from __future__ import annotations

from pathlib import Path

from diptych.config.recipe import PartSpec, Recipe, TeacherSpec
from diptych.core.errors import DiptychError
from diptych.models.teachers import averaged_teacher, frozen_teacher
from diptych.models.vlm import VLM, build_model
from diptych.training.checkpoint import restored


def add_teachers(recipe: Recipe, model: VLM) -> None:
    """Build the teachers of a recipe, before its objectives are. DiptychError for one that does not fit the model."""
    for name, spec in recipe.teachers.items():
        where = f"teachers.{name}"
        if spec.from_ is None:
            decay = spec.decay if spec.after is None else None
            model.add_teacher(name, averaged_teacher(model, spec.of, decay, where))
        else:
            other = hub_tower(spec, model) if spec.from_.startswith("hf:") else run_model(spec.from_, where)
            check_fit(other, model, f"{where}.from: {spec.from_}")
            model.add_teacher(name, frozen_teacher(other.eval()))


def begin_stage(recipe: Recipe, model: VLM, stage: str, taken: set[str], resumed: bool) -> None:
    """Before a stage begins: take the teachers of stages that have ended, and note their names in ``taken``.

    resumed: whether the run continues within this stage. If a stage goes on after its teacher was taken (a larger budget), the
    teacher is given back, and taken anew when the stage ends.
    """
    order = [s.name for s in recipe.stages]
    for name, spec in recipe.teachers.items():
        if spec.after is None:
            continue
        teacher, left = model.teacher(name), order.index(stage) - order.index(spec.after)
        if left > 0 and name not in taken:
            if spec.restore:
                teacher.exchange(model.parts, model.adapters)  # type: ignore[arg-type]
            else:
                teacher.follow(model.parts, model.adapters, 0.0)  # type: ignore[arg-type]
            taken.add(name)
        elif left == 0 and name in taken:
            if spec.restore:
                teacher.exchange(model.parts, model.adapters)  # type: ignore[arg-type]
            taken.remove(name)
        elif left == 0 and not resumed:
            teacher.follow(model.parts, model.adapters, 0.0)  # type: ignore[arg-type]


def run_model(address: str, where: str) -> VLM:
    """The model of a run, with its averaged weights if it has any."""
    run = Path(address).expanduser()
    if not (run / "recipe.yaml").is_file():
        raise DiptychError(
            f"{where}.from: there is no run at '{address}'; give a run directory, or hf:NAME for a vision tower of transformers"
        )
    return restored(run).model


def hub_tower(spec: TeacherSpec, model: VLM) -> VLM:
    """A vision tower of transformers as a separate model."""
    recipe = Recipe(
        name="teacher",
        paradigm="pretrained",
        parts={"vision": PartSpec(kind="hf", frozen=True, **{"from": spec.from_})},  # type: ignore[arg-type]
        stages=[{"objectives": {}}],  # type: ignore[list-item]
    )
    return build_model(recipe, model.tokenizer, model.image_size)


def check_fit(other: VLM, model: VLM, where: str) -> None:
    """DiptychError if the batch's pixels or token ids have another meaning for the teacher."""
    if "vision" in other.parts and other.image_size != model.image_size:
        raise DiptychError(
            f"{where}: it reads images of {other.image_size} pixels, this model of {model.image_size}; set "
            f"data.image_size={other.image_size}"
        )
    reads_text = not {"text", "lm", "decoder"}.isdisjoint(other.parts)
    if reads_text and other.tokenizer is not model.tokenizer and other.tokenizer.to_json() != model.tokenizer.to_json():
        raise DiptychError(
            f"{where}: its token ids mean other words than this model's; start this run with that tokenizer: weights: "
            f"{where.rpartition(' ')[2]}?parts=text"
        )
    if reads_text and (room := other.tokenizer.max_length) < model.tokenizer.max_length:
        prompts = getattr(model.parts["text"], "prompts", ()) if "text" in model.parts else ()
        raise DiptychError(
            f"{where}: it has positions for texts of {room} tokens, this model for {model.tokenizer.max_length}; "
            f"set data.tokenizer.max_length={room + sum(len(p.vectors) for p in prompts)}"
        )
