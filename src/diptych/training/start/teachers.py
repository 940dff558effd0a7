"""From ``teachers:`` of a recipe to models that give objectives their encodings, and from ``data.neighbours`` to the features of a
model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diptych.config.neighbours import PACKAGED
from diptych.config.recipe import START, PartSpec, Recipe, TeacherSpec
from diptych.core.batch import Batch, Images, Tokens, floats
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.core.registry import resolve
from diptych.data.fields.base import stacked
from diptych.data.neighbours import Embed, Table, neighbours_of, neighbours_of_run
from diptych.data.source import Source
from diptych.models.pretrained import load_efficientnet, require
from diptych.models.pretrained.hub import place
from diptych.models.pretrained.tower import VisionTower
from diptych.models.teachers import averaged_teacher, frozen_teacher
from diptych.models.vlm import VLM, build_model
from diptych.training.checkpoint import checkpoint_key, find_checkpoint, restored


def add_teachers(recipe: Recipe, model: VLM) -> None:
    """Build the teachers of a recipe, before its objectives are. DiptychError for one that does not fit the model."""
    for name, spec in recipe.teachers.items():
        where = f"teachers.{name}"
        if spec.from_ in (None, START):
            decay = spec.decay if spec.after is None and spec.from_ is None else None
            model.add_teacher(name, averaged_teacher(model, spec.of, decay, where))
        else:
            other = hub_tower(spec, model) if spec.from_.startswith("hf:") else run_model(spec.from_, where)
            check_fit(other, model, f"{where}.from: {spec.from_}")
            model.add_teacher(name, frozen_teacher(other.eval()))


def begin_stage(recipe: Recipe, model: VLM, stage: str, taken: set[str], resumed: bool) -> None:
    """Before a stage begins: take the teachers of stages that have ended, and note their names in ``taken``.

    resumed: whether the run continues within this stage. If its stage, or an earlier one, goes on after a teacher was taken (a
    larger budget), the teacher is given back, and taken anew when its stage ends.
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
        elif left <= 0 and name in taken:
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
        taken = getattr(model.parts["text"], "places_taken", 0) if "text" in model.parts else 0
        raise DiptychError(
            f"{where}: it has positions for texts of {room} tokens, this model for {model.tokenizer.max_length}; "
            f"set data.tokenizer.max_length={room + taken}"
        )


# --- features of pictures, for data.neighbours ---


def neighbour_tables(recipe: Recipe, sources: Iterable[Source], run: Path | None) -> dict[str, Table]:
    """The neighbours (``data.neighbours``) of the samples of each source, by its address; none if the recipe has none. run: of a
    run that resumes. DiptychError for a model that does not exist.
    """
    given, tables = recipe.anchored().data.neighbours, {}  # anchored: a run that resumes knows its tables by this address
    if given is not None:
        with torch.random.fork_rng():
            for source in sources:
                table = neighbours_of_run(run, source, given.of, given.first, given.by) if run else None
                if table is None:
                    size, stamp, embed = features_by(given.by, getattr(source, "image_size", None))
                    table = neighbours_of(source, given.of, given.first, given.by, stamp, size, embed)
                tables[source.address] = table
    return tables


def features_by(address: str, own: int | None) -> tuple[int, str, Callable[[], Embed]]:
    """(size of the pictures that are read, a hash of the weights, how to open the model) for ``by`` of ``data.neighbours``. own:
    the source's own size of pictures.
    """
    if address == PACKAGED:
        try:
            require("efficientnet-lite0")
        except DiptychError as error:
            raise DiptychError(
                f"data.neighbours.by: {error}; or name another model (a run directory, hf:NAME), or set data.neighbours to null"
            ) from None
        return max(64, min(own or 224, 224) // 32 * 32), "lite0", _packaged
    run = Path(address.partition("?")[0]).expanduser()
    if (run / "recipe.yaml").is_file():
        size = read_json(run / "model.json")["image_size"]
        return size, checkpoint_key(find_checkpoint(run / "checkpoints", "last")), partial(_of_run, run)
    if address.startswith("hf:"):
        return 224, _stamp(place(address)), partial(_of_tower, address)
    if ":" in address:
        function: Embed = resolve(address, {}, "function")
        return own or 224, "", lambda: function
    raise DiptychError(
        f"data.neighbours.by: there is no run at '{address}'; give a run directory, hf:NAME of a vision tower, {PACKAGED}, or "
        "package.module:function"
    )


def _stamp(folder: str) -> str:
    """A hash that changes with the files of a local model; "" for one of the hub, which keeps its name."""
    files = sorted(path for path in Path(folder).glob("*") if path.is_file())
    content = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.blake2b("\n".join(content).encode(), digest_size=12).hexdigest() if files else ""


def _packaged() -> Embed:
    """The mean of EfficientNet-Lite0's last feature map, [B, 1280]."""
    net = load_efficientnet("lite0").to(_device())

    @torch.inference_mode()
    def embed(images: np.ndarray) -> np.ndarray:
        """uint8 [B, size, size, 3] → float32 [B, 1280]"""
        pixels = floats(stacked(list(images)).to(_device()))
        mean, std = (torch.as_tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (net.mean, net.std))
        x = ((pixels * 0.5 + 0.5) - mean) / std
        return _array(net.features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3)))

    return embed


def _of_run(run: Path) -> Embed:
    """The image's embedding in a run's shared space; its tower's pooled vector if it has none."""
    model = restored(run).model.eval().to(_device())
    name = "image.embedding" if model.graph.gives("image.embedding") else "image.tokens"

    @torch.inference_mode()
    def embed(images: np.ndarray) -> np.ndarray:
        """uint8 [B, size, size, 3] → float32 [B, E]"""
        found = model.encode(Batch({"image": Images(stacked(list(images)).to(_device()))}, len(images)))[name]
        return _array(found.pooled if isinstance(found, Tokens) else found)

    return embed


def _of_tower(address: str) -> Embed:
    """The pooled vector of a vision tower of transformers."""
    tower = VisionTower.load(address).to(_device())

    @torch.inference_mode()
    def embed(images: np.ndarray) -> np.ndarray:
        """uint8 [B, size, size, 3] → float32 [B, E]"""
        return _array(tower(floats(stacked(list(images)).to(_device())))[1])

    return embed


def _array(x: torch.Tensor) -> np.ndarray:
    found: np.ndarray = x.float().cpu().numpy()
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
