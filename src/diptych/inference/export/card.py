"""The model card of an export: what it is, what it learned from, what it cost and what was measured, from the run's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.errors import counted
from diptych.data.provenance.carbon import Assumptions, of_training
from diptych.inference.export.use import USE
from diptych.inference.export.used import changes, data_lines, licence_lines, parts_table, started_lines
from diptych.interop.families.whole import whole_model
from diptych.training.run_files import EvaluationFiles, RunFiles

if TYPE_CHECKING:
    from diptych.inference.export import Exported
    from diptych.inference.run import TrainedModel

TAGS = {"VideoMAEModel": "feature-extraction", "VideoMAEForPreTraining": "feature-extraction"}
SIZES = (
    "A picture of another size than {size} × {size}: this processor scales the whole picture and cuts out the central "
    "square, Diptych scales the "
    "square; pixels, and with them scores, differ a little. Pictures of that size get equal scores."
)


def model_card(
    run: Path,
    trained: TrainedModel,
    made: Exported,
    notes: Sequence[str] = (),
    assumed: Assumptions | None = None,
    licence: str = "",
) -> str:
    """README.md of an export. notes: how to use it. assumed: of the estimate of carbon. licence: that of the weights, as their
    owner states it; "": "other", with what is known of the terms of data and parts.
    """
    tuned = whole_model(trained.model) is not None  # a model of transformers that was tuned: words and pictures are its processor's
    talks = tuned or "lm" in trained.model.parts
    head = [
        "---",
        f"library_name: {made.format}",
        f"pipeline_tag: {TAGS.get(made.architecture, 'image-text-to-text' if talks else 'zero-shot-image-classification')}",
        f"license: {licence or 'other'}",
        "tags: [diptych, vision-language]",
        "---",
    ]
    note = [*notes, *([] if tuned else [SIZES.format(size=trained.model.image_size)])]
    lines = [
        *opening(run, trained, f"{made.architecture}, checkpoint `{made.checkpoint}`, weights `{made.key}`"),
        "## Use",
        _use(trained, made),
        "\n".join(f"- {line}" for line in note),
        *origin(run, trained, made.key, assumed, licence),
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(lines) + "\n"


def opening(run: Path, trained: TrainedModel, what: str) -> list[str]:
    """The title, and what this model is: its size, its recipe, and what of the recipe was replaced. what: the export, in words."""
    recipe, model = trained.recipe, trained.model
    version = (RunFiles(run).environment().get("packages") or {}).get("diptych", "")
    count = sum(p.numel() for p in model.parameters())
    averaged = ", averaged" if recipe.stages[-1].ema else ""
    size = f"{count / 1e6:.2f} M parameters"
    if whole_model(model) is None:
        size += f" for images of {model.image_size} × {model.image_size} pixels"
    changed = changes(recipe)
    return [f"# {recipe.name}", f"{what}{averaged}: {size}, trained with Diptych {version}.".replace(" .", "."), *changed]


def origin(run: Path, trained: TrainedModel, key: str, assumed: Assumptions | None = None, licence: str = "") -> list[str]:
    """The sections on parts, data, budget, carbon, results, licences and method, from the files of the run. key: of the weights."""
    recipe = trained.recipe
    files = RunFiles(run)
    environment, spent = files.environment(), files.spent()
    carbon = of_training(spent, environment, assumed or Assumptions.stated())
    started = environment.get("weights") or {}
    texts = f"Tokenizer: {_tokenizer(trained, started)}; texts of at most {trained.model.tokenizer.max_length} tokens."
    if whole_model(trained.model) is not None:
        texts = "Tokenizer: that of the model."
    return [
        "## Parts",
        "What the model is made of, from the run's resolved recipe and its weights.",
        "\n".join(parts_table(trained, environment)),
        *(["\n".join(started_lines(environment, spent))] if started_lines(environment, spent) else []),
        "## Data",
        "\n".join(data_lines(recipe, environment, spent)),
        texts,
        "## Budget",
        _budget(spent),
        "## Carbon",
        carbon.markdown() if carbon else "Not estimated: the run did not record its time.",
        "## Measured",
        *_measured(files.evaluation(), key),
        "## Licences",
        "\n".join(licence_lines(trained, environment, licence)),
        "## Citation",
        f"Method: {recipe.cite or 'none given'}.",
        "## Recipe",
        "Every setting of this run.",
        f"```yaml\n{recipe.to_yaml().strip()}\n```",
    ]


def _use(trained: TrainedModel, made: Exported) -> str:
    text = USE.get(made.architecture, USE[made.format]).strip()
    asked = ', {"type": "text", "text": "what is this?"}' if trained.answering else ""
    text = text.replace("QUESTION", asked)
    if made.adapters:
        text += (
            "\n\nThe run's adapters are in `adapter`; without them the model is not the trained one: "
            '`model = peft.PeftModel.from_pretrained(model, "adapter")`.'
        )
    return text


def _tokenizer(trained: TrainedModel, started: dict[str, Any]) -> str:
    if "lm" in trained.model.parts:
        return "that of the language model, and `<image>`"
    words = f"that of `{started['address']}`" if started else "learned from its captions"
    return f"byte-level BPE of {len(trained.model.tokenizer)} tokens, {words}"


def _budget(spent: dict[str, Any]) -> str:
    if not spent:
        return "Not recorded."
    whole = "" if spent.get("finished") else " The run was not finished."
    return (
        f"{counted(spent['steps'], 'step')}, {counted(spent['samples'], 'sample')}, {spent['seconds']:.0f} s, "
        f"{spent['flops'] / 1e12:.2f} TFLOP, {spent['trainable_parameters'] / 1e6:.2f} M trainable parameters.{whole}"
    )


def _measured(evaluation: EvaluationFiles, key: str) -> list[str]:
    """The results of the run's evaluation, if it is of these weights."""
    results = evaluation.results()
    if results and evaluation.key() != key:
        return [
            "Nothing for these weights: the run's evaluation is of another checkpoint. `diptych evaluate` evaluates this directory."
        ]
    if not results:
        return ["Nothing yet: the run was not evaluated before it was exported."]
    rows = ["| task | metric | value | 95 % interval | chance | items |", "|---|---|---|---|---|---|"]
    for r in results:
        if r["value"] is not None:
            interval = f"{r['low']:.3f} to {r['high']:.3f}" if r["low"] is not None and r["high"] is not None else "–"
            chance = "–" if r["chance"] is None else f"{r['chance']:.3f}"
            rows.append(f"| {r['task']} | {r['metric']} | {r['value']:.3f} | {interval} | {chance} | {r['n']} |")
    summary = evaluation.summary()
    fingerprint = summary.get("data_fingerprint")
    where = f"`{summary['data']}`{f' (fingerprint `{fingerprint}`)' if fingerprint else ''}"
    skipped = [f"Not measured: {task} ({why})." for task, why in evaluation.skipped().items()]
    return [f"On the held-out part of {where}, by `diptych evaluate`.", "\n".join(rows), *skipped]
