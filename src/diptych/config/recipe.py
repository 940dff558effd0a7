"""The schema of a recipe: data × parts × objectives × stages × budget. Mistakes are reported before anything runs.

Kinds and options of parts and objectives are checked where they are built (``models.vlm.build``); the schema here
checks everything else and refuses unknown keys.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from diptych.config.augment import Augment
from diptych.config.budget import Budget
from diptych.config.library import Library
from diptych.config.neighbours import PACKAGED, Neighbours
from diptych.config.overrides import Overrides
from diptych.config.typed import Kind, Strict
from diptych.config.untrained import why_not_trained
from diptych.config.upgrade import upgraded
from diptych.core.errors import nearest

RECIPES = Path(__file__).parent.parent / "recipes"  # a folder a family
START = "start"  # of a teacher: the model as it is when the run begins
IRRELEVANT = {"about", "cite", "device", "compile", "checkpoints", "trackers", "validation"}  # fields that change nothing learned
PARTS = (
    "quantizer",
    "vision",
    "time",
    "lm",
    "text",
    "connector",
    "fusion",
    "regions",
    "grounding",
    "decoder",
    "space",
)  # in the order in which they are built


class PartSpec(Kind):
    """``kind`` and the options of that kind; ``frozen`` keeps its weights as they are in every stage.

    fields: fields that it reads instead of those in its code, such as {image: video}.
    """

    frozen: bool = False
    fields: dict[str, str] = Field(default={})


class FieldSpec(Kind):
    """The ``kind`` of a field, a built-in name or ``package.module:Class``, and the options of that kind."""


class Backbone(Strict):
    """Where a part's weights come from: the same part of another recipe's run, which is trained first, once, beside the run
    (``training.start.backbones``); or of a run that exists. ``lm: RUN`` is ``lm: {run: RUN}``.

    data: an address, in which {train} stands for the run's own; set: overrides of the recipe by dotted key.
    """

    recipe: str | None = None
    budget: Annotated[Budget, BeforeValidator(Budget.parse)] | None = None  # None: the recipe's own
    data: str = "{train}"
    set: dict[str, Any] = Field(default={})
    run: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        return {"run": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one(self) -> Backbone:
        if (self.recipe is None) == (self.run is None):
            raise ValueError("a backbone names either a recipe to train or a run")
        return self


class AdapterSpec(Kind):
    """``kind`` and the options of that kind. part: that it is put into; None: the part of the adapter's own name."""

    part: str | None = None


class TeacherSpec(Strict):
    """A moving average of the model (``decay``; ``of``: of these parts), the model as it was when a stage ended, or another model.

    after: a stage, after which the teacher is taken; it does not change any more, and ``decay`` has no effect. restore: the parts
    that it was taken from then continue with the weights that they had before that stage.
    ``from``: a run directory, or hf:NAME for a vision tower; ``start``: the model as it is when the run begins, with the weights
    that it starts from.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    of: list[str] | Literal["all"] = "all"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    after: str | None = None
    restore: bool = False
    from_: str | None = Field(default=None, alias="from")

    @model_validator(mode="after")
    def _one_kind(self) -> TeacherSpec:
        if self.after is not None and self.from_ is not None:
            raise ValueError("after: a teacher is taken from this model after a stage, or comes from elsewhere (from), not both")
        if self.restore and self.after is None:
            raise ValueError("restore: only for a teacher that is taken after a stage; set after")
        return self


class ObjectiveSpec(Kind):
    """A weighted objective: ``info_nce: 1`` or ``info_nce: {weight: 1, temperature: 0.07}``. fields: as of ``PartSpec``."""

    weight: float = 1.0
    fields: dict[str, str] = Field(default={})


class Tokenizer(Strict):
    """A byte-level BPE tokenizer trained on the training captions (``bpe``), the language model's own (``lm``), or
    ``package.module:Class``.
    """

    kind: str = "bpe"
    vocab_size: Annotated[int, Field(ge=300)] = 4096
    max_length: Annotated[int, Field(ge=4)] = 32


class Conversations(Strict):
    """How conversations become rows of tokens."""

    max_length: Annotated[int, Field(ge=8)] = 512  # tokens of the longest, image tokens among them; of a row, if packed
    too_long: Literal["cut", "refuse"] = "cut"  # a longer one: cut, never within an image, or refused before training starts
    pack: bool = False  # several in a row, none of which sees another: no padding to compute


class Data(Strict):
    """The training data, and how images and texts become tensors."""

    train: str = "scenes:small"
    debiased: bool = False  # whether each batch is of one source of a mixture (mix:), whose weights are then shares of the batches
    # Addresses: each sample is accompanied by an image, or a text, without a partner. data.train: one of the training data.
    unpaired: dict[Literal["image", "text"], str] = Field(default={})
    # Fields of one's own, {sound: package.module:SoundField}, and options of fields, {video: {kind: video, frames: 4}}.
    fields: dict[str, str | FieldSpec] = Field(default={})
    image_size: Annotated[int, Field(ge=16)] | None = None  # None: the source's own size (scenes) or 224
    augment: Augment = Augment()  # of ``image``; a preset (none, crop, simclr) or operations (config/augment.py)
    views: Augment = Augment(preset="simclr", views=2)  # type: ignore[call-arg] # of the field ``views``: several a sample
    text_mask: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # share of a caption's tokens hidden in training; not where they are predicted
    )
    neighbours: Neighbours | None = None  # half of each batch: pictures that are near those of the other half
    tokenizer: Tokenizer = Tokenizer()
    conversations: Conversations = Conversations()

    workers: Annotated[int, Field(ge=0)] = 0  # processes that read and decode; 0: the training process itself

    @field_validator("augment")
    @classmethod
    def _one_view(cls, augment: Augment) -> Augment:
        if augment.views != 1:
            raise ValueError(
                f"views: {augment.views} has no effect here, since the field 'image' is one view; several are the field 'views': "
                "set data.views"
            )
        return augment


class Stage(Strict):
    """One stretch of training: what learns, from which objectives, how fast, for which share of the budget."""

    name: str = "main"
    train: list[str] | Literal["all"] = "all"  # parts that learn; the heads and temperatures of objectives always do
    objectives: dict[str, ObjectiveSpec]
    # Groups of its objectives by name, such as [[masked_text], [info_nce, matching]]: each step learns from one group, in turn.
    # Empty: every step from all objectives.
    round_robin: list[list[str]] = Field(default=[])
    data: str | None = None  # an address, where the stage learns from other data than data.train
    share: Annotated[float, Field(gt=0)] = 1.0  # of the budget, relative to the other stages
    batch_size: Annotated[int, Field(ge=1)] = 128  # of the whole step: all micro-batches of all processes
    micro_batch: Annotated[int, Field(ge=1)] | None = None  # samples encoded at a time; the gradient stays that of the whole batch
    gradient_checkpointing: bool = False  # compute blocks again in the backward pass: less memory, a third more time
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of each image's tokens left out while training (FLIP)
    optimizer: str = "muon"  # for the matrices in transformer blocks, AdamW for all else; adamw; or package.module:function
    lr: Annotated[float, Field(gt=0)] = 1e-3  # AdamW's
    rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}
    )  # parts and adapters that learn at a share of lr and muon_lr, such as {lm: 0.1}; an adapter defaults to the share of its part
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the learning rate, from each block to the one below it
    muon_lr: Annotated[float, Field(gt=0)] = 3e-3  # scaled to AdamW's size of step, so the two are comparable
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05  # on matrices only
    warmup: Annotated[int, Field(ge=0)] = 60  # steps
    schedule: str = "wsd"  # or cosine, constant, package.module:function
    decay: Annotated[float, Field(ge=0, le=1)] = 0.2  # wsd: the last share of the stage, over which lr falls to 0
    clip: Annotated[float, Field(gt=0)] = 1.0  # gradient norm
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99  # averaged weights for scoring; 0: none

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        """``name: 1`` and ``name: {weight: 1, …}`` become full specifications."""
        if isinstance(data, dict) and isinstance(data.get("objectives"), dict):
            expanded = {}
            for name, value in data["objectives"].items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    value = {"weight": float(value)}
                if isinstance(value, dict):
                    value = {"kind": name, **value}
                expanded[name] = value
            data = {**data, "objectives": expanded}
        return data

    @model_validator(mode="after")
    def _all_in_turn(self) -> Stage:
        """Each objective is in one group of the round robin."""
        named = [name for group in self.round_robin for name in group]
        for name in named:
            if name not in self.objectives:
                raise ValueError(f"round_robin: the stage has no objective '{name}'{nearest(name, self.objectives)}")
        if named and (sorted(named) != sorted(self.objectives) or not all(self.round_robin)):
            raise ValueError(f"round_robin: name each objective once, in groups that are not empty: {', '.join(self.objectives)}")
        return self

    def turn(self, step: int) -> list[str]:
        """The names of the objectives from which the stage's ``step``-th step learns."""
        return self.round_robin[step % len(self.round_robin)] if self.round_robin else list(self.objectives)


class Checkpoints(Strict):
    """When a run is saved, what is kept, and where a second copy goes."""

    seconds: Annotated[float, Field(gt=0)] = 120.0  # of wall time between two checkpoints
    steps: Annotated[int, Field(ge=1)] | None = None  # also after this many steps
    keep: Annotated[int, Field(ge=1)] = 2  # the last few; the best by validation loss is kept as well
    mirror: str | None = None  # a directory or fsspec URL for a copy of each, from which a run can resume


class Validation(Strict):
    """How often the training loss on held-out samples is computed, with the averaged weights."""

    steps: Annotated[int, Field(ge=1)] = 500
    samples: Annotated[int, Field(ge=2)] = 512


class Recipe(Strict):
    """A complete recipe."""

    name: str
    about: str = ""
    cite: str = ""
    paradigm: Literal["contrastive", "masking", "generative", "pretrained"]
    size: Literal["tiny", "small", "base"] = "tiny"
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the device multiplies it fast
    device: str = "auto"
    compile: bool = False  # torch.compile on every part's forward, and on transformers within parts
    sharding: Literal["none", "fsdp"] = "none"  # fsdp: processes share out weights, gradients and optimizer state
    data: Data = Data()
    embed_dim: Annotated[int, Field(ge=2)] | None = None  # width of the shared space; None: by size
    parts: dict[str, PartSpec]
    adapters: dict[str, AdapterSpec] = Field(default={})  # small weights inside parts that stay as they are
    teachers: dict[str, TeacherSpec] = Field(default={})  # frozen or averaged models; objectives ask for their encodings
    encodings: dict[str, str] = Field(default={})  # which part provides an encoding that several could: {text.logits: lm}
    backbones: dict[str, Backbone] = Field(default={})  # parts that start from runs of other recipes, which are trained first
    weights: str | None = None  # where they start: a run directory (RUN?parts=vision), or hf:PATH of transformers; None: fresh
    stages: Annotated[list[Stage], Field(min_length=1)]
    budget: Annotated[Budget, BeforeValidator(Budget.parse)] = Budget(seconds=600.0)
    checkpoints: Checkpoints = Checkpoints()
    validation: Validation | None = None
    # None: TensorBoard where it is installed. A tracker that is named here must be installed.
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] | None = None
    score: str = "similarity"  # how well a text fits an image: a name in ``objectives.scores``, or package.module:Class
    format: Literal[4] = 4

    @model_validator(mode="after")
    def _known_parts(self) -> Recipe:
        for name, part in self.parts.items():
            if name not in PARTS and ":" not in part.kind:
                raise ValueError(
                    f"parts.{name}: there is no such part{nearest(name, PARTS)}; one of your own has kind: package.module:Class"
                )
        for name, adapter in self.adapters.items():
            if (adapter.part or name) not in self.parts:
                raise ValueError(
                    f"adapters.{name}: the recipe has no part '{adapter.part or name}'{nearest(adapter.part or name, self.parts)}"
                )
        for name in self.backbones:
            if name not in self.parts:
                raise ValueError(f"backbones.{name}: the recipe has no part '{name}'{nearest(name, self.parts)}")
        for name, provider in self.encodings.items():
            if provider not in self.parts:
                raise ValueError(f"encodings.{name}: the recipe has no part '{provider}'{nearest(provider, self.parts)}")
        earlier = [stage.name for stage in self.stages[:-1]]
        for name, teacher in self.teachers.items():
            if teacher.after is not None and teacher.after not in earlier:
                raise ValueError(
                    f"teachers.{name}.after: '{teacher.after}' is no stage that another one follows"
                    f"{nearest(teacher.after, earlier)}"
                )
        for i, stage in enumerate(self.stages):
            if stage.name in [other.name for other in self.stages[:i]]:
                raise ValueError(f"stages.{i}.name: two stages are called '{stage.name}'; a run resumes by its stage's name")
            known = [*self.parts, *(f"adapters.{name}" for name in self.adapters)]
            for name in stage.train if isinstance(stage.train, list) else ():
                if name not in known:
                    raise ValueError(f"stages.{i}.train: the recipe has no part '{name}'{nearest(name, known)}")
            for name in stage.rates:
                if name not in known:
                    raise ValueError(f"stages.{i}.rates: the recipe has no part '{name}'{nearest(name, known)}")
        return self

    def to_yaml(self) -> str:
        """The recipe as YAML, with every default."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)

    def learned(self) -> dict[str, Any]:
        """All that decides what is learned, with every default: recipes in which this is equal train the same model."""
        return {k: v for k, v in self.model_dump(mode="json", by_alias=True).items() if k not in IRRELEVANT}

    def anchored(self) -> Recipe:
        """The recipe with absolute paths in place of relative ones that exist, for the weights that it names (``weights``, ``from``
        of parts and teachers, ``by`` of neighbours, ``run`` of backbones): a run is read from other working directories too.
        """
        tree = self.model_dump(mode="json", by_alias=True)
        tree["weights"] = _anchored(tree["weights"])
        if (near := tree["data"]["neighbours"]) and near["by"] != PACKAGED:
            near["by"] = _anchored(near["by"])
        for entry in (*tree["parts"].values(), *tree["teachers"].values()):
            if entry.get("from", START) != START:
                entry["from"] = _anchored(entry["from"])
        for entry in tree["backbones"].values():
            entry["run"] = _anchored(entry["run"])
        return Recipe.model_validate(tree)


def _anchored(address: Any) -> Any:
    """``hf:tower`` → ``hf:/home/me/tower`` if there is such a file or directory; options after a ``?`` stay."""
    if not isinstance(address, str):
        return address
    scheme = "hf:" if address.startswith("hf:") else ""
    name, mark, options = address.removeprefix(scheme).partition("?")
    place = Path(name).expanduser()
    return f"{scheme}{place.absolute()}{mark}{options}" if name and place.exists() else address


# ``info_nce: 1`` is ``info_nce: {weight: 1}``
LIBRARY = Library(
    Recipe,
    "recipe",
    RECIPES,
    saved_as="recipe.yaml",
    shorthands={"objectives": "weight"},
    upgrade=upgraded,
    explain=why_not_trained,
)


def saved_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """A recipe as it was saved with every default, read as this version reads it: in the current format, with fields that it has
    not yet at their defaults. where: the file, for messages.

    Raises DiptychError if this version does not know it.
    """
    return LIBRARY.check(tree, where)


@cache
def recipe_names() -> tuple[str, ...]:
    """The names of the built-in recipes, sorted."""
    return LIBRARY.names()


@cache
def recipe_variants() -> dict[str, str]:
    """What the variants of the built-in recipes are for: {"maskvlm@tuned": about}."""
    return {variant: about for name in recipe_names() for variant, about in LIBRARY.variants(name).items()}


def recipe_path(name_or_path: str) -> Path:
    """The file of a built-in recipe by name, of one's own by path, or of the resolved recipe of a run directory."""
    return LIBRARY.path(name_or_path)


def load_recipe(name_or_path: str, overrides: Overrides = None) -> Recipe:
    """A recipe, read, overridden and checked. ``NAME@VARIANT`` is a recipe with the settings of one of its variants.

    overrides: ``{"stages.0.lr": 5e-4}`` or ``["stages.0.lr=5e-4"]``; the latter's values are read as YAML.

    Raises DiptychError naming the file, the key, what was expected and the nearest valid key.
    """
    return LIBRARY.load(name_or_path, overrides)
