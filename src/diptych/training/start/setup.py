"""From a recipe to the objects that training needs: source, tokenizer, model, objectives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diptych.config.recipe import Recipe, Stage
from diptych.core.errors import DiptychError
from diptych.core.files import read_json_or
from diptych.core.registry import resolve
from diptych.data.fields import UNPAIRED, Context, build_fields, field_class, options_of
from diptych.data.loader import Loader
from diptych.data.neighbours import Table
from diptych.data.order import mixed
from diptych.data.source import BrokenItem, Source, all_texts
from diptych.data.sources import open_source
from diptych.data.sources.mixture import Mixture
from diptych.data.text import Tokenizer, tokenizer_class
from diptych.models.build import SIZES
from diptych.models.pretrained.tokenizer import kept_in
from diptych.models.vlm import KINDS, VLM, build_model
from diptych.objectives import Objective, build_objectives, fields_needed
from diptych.objectives.scores import score_of
from diptych.training.optim import OPTIMIZERS, SCHEDULES
from diptych.training.precision import use_bf16
from diptych.training.start.initialize import RunStart, Start, Started, open_start
from diptych.training.start.teachers import add_teachers, neighbour_tables

if TYPE_CHECKING:
    from diptych.data.conversations.template import Chat

CORPUS = 4000  # the tokenizer is trained on the captions of this many samples
TRAINING = "data.train"  # in data.unpaired: images, or texts, of the training data
SHOWN = 256  # samples that show which fields a source has


@dataclass
class Setup:
    """Everything that a run trains with."""

    recipe: Recipe
    source: Source
    tokenizer: Tokenizer
    model: VLM
    objectives: nn.ModuleDict
    device: torch.device
    autocast: bool
    started: Started | None = None  # the trained weights that the run starts from, if any
    backbones: dict[str, Started] = field(default_factory=dict)  # those of single parts
    given: Source | None = None  # a source given by the caller instead of the recipe's
    neighbours: dict[str, Table] = field(default_factory=dict)  # of the samples of the stages' sources, by address

    def held_out(self, stage: Stage) -> Source:
        """The validation part of a stage's data."""
        if stage.data is not None:
            return open_source(stage.data).split("validation")
        return (self.given or open_source(self.recipe.data.train)).split("validation")


def pick_device(name: str) -> torch.device:
    """A device by name; ``auto``: a GPU if there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def image_size_of(recipe: Recipe, source: Source) -> int:
    """The image size in pixels: the recipe's, else the source's own (scenes), else that of the vision tower, else the default of
    the recipe's ``size``.
    """
    given = recipe.data.image_size or getattr(source, "image_size", None)
    vision = recipe.parts.get("vision")
    if given or vision is None:
        return given or SIZES[recipe.size].image_size
    native = getattr(resolve(vision.kind, KINDS["vision"], "vision part"), "native_size", None)
    return (native(vision.options) if callable(native) else native) or SIZES[recipe.size].image_size


def corpus_of(source: Source, n: int = CORPUS) -> list[str]:
    """Captions of the first samples, for tokenizers and vocabularies; of a mixture, of those that are drawn first, so that each
    source has its share. Raises DiptychError if there are none.
    """
    captions: list[str] = []
    if not len(source):
        raise DiptychError(f"{source.address}: no samples to train on")
    indices: Iterable[int] = range(min(n, len(source)))
    if isinstance(source, Mixture) and n < len(source):
        order = source.order(0)
        indices = dict.fromkeys(order[position] for position in range(n))
    for i in indices:
        try:
            captions += all_texts(source, i)
        except BrokenItem:
            continue
    if not captions:
        raise DiptychError(f"{source.address}: no captions to learn from")
    return captions


def stage_objectives(setup: Setup, stage: Stage) -> list[Objective]:
    """The objectives of a stage, in its order."""
    return [setup.objectives[name] for name in stage.objectives]  # type: ignore[misc]


def loader_of(
    setup: Setup,
    stage: Stage,
    source: Source,
    batch_size: int,
    seed: int,
    augment: Any,
    workers: int = 0,
    text_mask: float = 0.0,
    debiased: bool = False,
    neighbours: Table | None = None,
) -> Loader:
    """Batches of the fields that the stage's objectives read. DiptychError if the source does not have one of them."""
    recipe, names = setup.recipe, own_fields(setup, stage)
    check_fields(source, names, recipe, f"stages.{stage.name}")
    chat = chat_of(recipe, setup.model) if any(field_class(name, recipe.data.fields).talks for name in names) else None
    context = Context(
        setup.tokenizer,
        setup.model.image_size,
        augment,
        text_mask,
        chat,
        pack=recipe.data.conversations.pack,
        views=recipe.data.views,
        source=source,
        own=recipe.data.fields,
    )
    near = neighbours.rows if neighbours else None
    return Loader(source, build_fields(names, context), batch_size, seed, workers, debiased, near)


def training_loader(setup: Setup, stage: Stage, source: Source) -> Loader:
    """``loader_of`` for training, with images and texts without a partner, if the recipe has any."""
    recipe = setup.recipe
    data = recipe.data
    near = setup.neighbours.get(source.address)
    loader = loader_of(
        setup, stage, source, stage.batch_size, recipe.seed, data.augment, data.workers, data.text_mask, data.debiased, near
    )
    wanted = fields_needed(stage_objectives(setup, stage), setup.model)
    for number, (name, kind) in enumerate(UNPAIRED.items(), 1):
        if kind in data.unpaired and name in wanted:
            other = unpaired_source(setup, data.unpaired[kind])
            context = Context(setup.tokenizer, setup.model.image_size, data.augment, source=other)
            loader.add_unpaired(name, Loader(other, build_fields([kind], context), stage.batch_size, mixed(recipe.seed, number)))
    return loader


def unpaired_source(setup: Setup, address: str) -> Source:
    """The training part of an address in ``data.unpaired``; ``data.train``: the training data itself, which the loader reads in
    another order.
    """
    return setup.source if address == TRAINING else open_source(address).split("train")


def check_fields(source: Source, names: Sequence[str], recipe: Recipe, where: str) -> None:
    """Raises DiptychError if a field that training reads is missing from a source: the source does not declare it, and none of its
    first samples has it.
    """
    classes = {name: field_class(name, recipe.data.fields) for name in names}
    wanted = [name for name, cls in classes.items() if not cls.derived]
    have = set(getattr(source, "fields", ()))

    def known(name: str) -> bool:
        """Whether the source has the field, or what it can be made of."""
        return name in have or (bool(classes[name].made_of) and have.issuperset(classes[name].made_of))

    for index in range(min(SHOWN, len(source))):
        if all(map(known, wanted)):
            return
        with suppress(BrokenItem):
            have |= source[index].fields.keys()
    missing = [name for name in wanted if not known(name)]
    if have and missing:  # if nothing can be read, the loader reports what is wrong with each
        raise DiptychError(
            f"{where}: its objectives read the field '{missing[0]}', which {source.address} does not have (it has: "
            f"{', '.join(sorted(have))}); "
            "take another --data, or other objectives"
        )


def own_fields(setup: Setup, stage: Stage) -> tuple[str, ...]:
    """The fields that a stage's objectives read from its own source."""
    names = fields_needed(stage_objectives(setup, stage), setup.model)
    return tuple(name for name in names if name not in UNPAIRED)


def reads_turns(stage: Stage, setup: Setup) -> bool:
    """Whether a stage learns from conversations."""
    own = setup.recipe.data.fields
    return any(field_class(name, own).talks for name in own_fields(setup, stage))


def chat_of(recipe: Recipe, model: VLM) -> Chat:
    """The language model's chat template, for images of the connector's size. DiptychError if conversations do not fit the
    model.
    """
    from diptych.data.conversations.template import Chat

    given = recipe.data.conversations
    context = getattr(model.part("lm").lm.model.config, "max_position_embeddings", None) or given.max_length
    if given.max_length > context:
        raise DiptychError(f"data.conversations.max_length is {given.max_length}, but the language model's context is {context}")
    tokens = 1 if model.part("lm").gated else model.part("connector").tokens  # words look at it from one position
    count = getattr(model.part("connector"), "count", None)  # of a picture, where it depends on the picture
    identifiers = options_of("turns", recipe.data.fields).get("identifiers") or {}
    return Chat(model.tokenizer, 1 if count else tokens, given.max_length, given.too_long, identifiers, count)


def check_data(setup: Setup) -> None:
    """Checks for errors that would otherwise appear in the middle of training: a field that is missing from the source,
    conversations that cannot be learned from, packed rows that see each other.
    """
    from diptych.data.conversations.check import check_conversations

    recipe = setup.recipe
    if recipe.data.debiased and not any(isinstance(stage_source(setup, stage), Mixture) for stage in recipe.stages):
        raise DiptychError(
            "data.debiased: each batch is to be of one source, but no stage learns from a mixture; set data.train to "
            "mix:WEIGHT*ADDRESS+WEIGHT*ADDRESS…, or data.debiased to false"
        )
    for stage in recipe.stages:
        check_fields(stage_source(setup, stage), own_fields(setup, stage), recipe, f"stages.{stage.name}")
        if not reads_turns(stage, setup):
            continue
        chat = chat_of(recipe, setup.model)
        if recipe.data.conversations.pack and not setup.model.part("lm").packs():
            raise DiptychError(
                "data.conversations.pack: this language model does not separate the conversations of one row; set it to false"
            )
        check_conversations(stage_source(setup, stage), chat)


def check_names(recipe: Recipe) -> None:
    """DiptychError for an optimizer or a schedule that does not exist, in any stage, so that a mistake in the last stage is found
    before the first is trained.
    """
    for stage in recipe.stages:
        resolve(stage.optimizer, OPTIMIZERS, "optimizer")
        resolve(stage.schedule, SCHEDULES, "schedule")


def stage_source(setup: Setup, stage: Stage) -> Source:
    """The training part of a stage's data."""
    return setup.source if stage.data is None else open_source(stage.data).split("train")


def set_up(
    recipe: Recipe,
    source: Source | None = None,
    device: torch.device | None = None,
    saved: Path | None = None,
    backbones: Mapping[str, Path] | None = None,
) -> Setup:
    """The initial weights of a recipe: fresh ones, determined by its seed, or trained ones. saved: the run that resumes and loads
    its own weights afterwards. backbones: the runs that give single parts their weights (``training.start.backbones``).
    """
    validation = source
    check_names(recipe)
    source = source or open_source(recipe.data.train).split("train")
    torch.manual_seed(recipe.seed)
    unknown = not (saved and (saved / "tokenizer.json").is_file())  # also of a run that resumes from its mirror
    start = open_start(recipe.weights) if recipe.weights and unknown else None
    parts = _open_backbones(recipe, backbones or {}) if unknown else {}
    tokenizer, kept = _words(recipe, source, [*([start] if start else []), *parts.values()], saved)
    device = device or pick_device(recipe.device)
    corpus = corpus_of(source) if tokenizer is None and kept is None else ()  # for a vocabulary that is trimmed to it
    known: dict[str, Any] = read_json_or(saved / "model.json", {}) if saved else {}
    size = recipe.data.image_size or known.get("image_size") or image_size_of(recipe, source)
    model = build_model(recipe, tokenizer, size, corpus, kept)
    model.remember_features(len(source))
    add_teachers(recipe, model)
    objectives = build_objectives(recipe, model)
    needed = {name for o in objectives.values() if isinstance(o, Objective) for name in o.needed()}
    model.graph.settle(needed)  # trial runs happen here, where they do not count as operations of a step
    if saved:
        start, parts = None, {}  # it has them
    started = start.load(recipe, model, objectives) if start else None
    of_parts = {part: each.load(recipe, model, objectives) for part, each in parts.items()}
    model.update_teachers(decay=0.0)  # from the weights that the model starts with
    score_of(recipe.score, model, objectives.values())  # a wrong score is reported before training
    setup = Setup(
        recipe,
        source,
        model.tokenizer,
        model.to(device),
        objectives.to(device),
        device,
        use_bf16(recipe.precision, device),
        started,
        of_parts,
        validation,
    )
    check_data(setup)
    pictured = [stage_source(setup, stage) for stage in recipe.stages if "image" in own_fields(setup, stage)]
    if recipe.data.neighbours is not None and not pictured:
        raise DiptychError("data.neighbours: no stage reads the field 'image', so no picture has neighbours; set it to null")
    setup.neighbours = neighbour_tables(recipe, pictured, saved)
    return setup


def _open_backbones(recipe: Recipe, places: Mapping[str, Path]) -> dict[str, RunStart]:
    """The runs that give single parts their weights, by part."""
    if missing := next((part for part in recipe.backbones if part not in places), None):
        raise DiptychError(f"backbones.{missing}: not trained; diptych train and diptych compare train it first")
    return {part: RunStart(str(places[part]), [part]) for part in recipe.backbones}


def _words(
    recipe: Recipe, source: Source, starts: Sequence[Start], saved: Path | None
) -> tuple[Tokenizer | None, list[int] | None]:
    """The tokenizer, or what a language model's own keeps of its vocabulary: those of the run that resumes, of the weights it
    starts from, or trained on the captions.
    """
    spec, file = recipe.data.tokenizer, saved / "tokenizer.json" if saved else None
    there = file if file and file.is_file() else None
    if spec.kind == "lm":
        return None, kept_in(there) if there else next((k for s in starts if (k := s.kept()) is not None), None)
    cls = tokenizer_class(spec.kind)
    assert cls is not None
    if there:
        return cls(there, spec.max_length), None
    known = [(s.address, own) for s in starts if (own := s.tokenizer(spec.max_length)) is not None]
    for place, own in known[1:]:
        if own.to_json() != known[0][1].to_json():
            raise DiptychError(f"weights: {known[0][0]} and {place} read words by different tokenizers; only one of them can")
    return known[0][1] if known else cls.train(corpus_of(source), spec.vocab_size, spec.max_length), None
