"""What a run was really made of, for its model card: parts, settings that are not the recipe's own, data, weights and terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diptych.config.recipe import Recipe, load_recipe
from diptych.core.errors import DiptychError, counted
from diptych.data.notes import recorded_data
from diptych.data.provenance.terms import NOT_STATED, curated_by, of_weights, terms_of
from diptych.models.pretrained import WEIGHTS

if TYPE_CHECKING:
    from diptych.inference.run import TrainedModel

# Settings that are no part of the method, or that another section of the card shows.
ELSEWHERE = ("about", "cite", "name", "size", "seed", "budget", "device", "compile", "sharding", "checkpoints", "trackers",
             "validation", "format", "data.train", "data.workers", "weights")  # fmt: skip
MOST = 24  # changed settings that are listed; the recipe at the end has all
MISSING = "—"


def changes(recipe: Recipe) -> list[str]:
    """Paragraphs: what the recipe is for, which of its parts were replaced, and which other settings are not its own."""
    about = recipe.about.rstrip(".")
    base = shipped(recipe)
    if base is None:
        return [f"Its recipe is not one of Diptych's own. What its author says of it: {about or 'nothing'}."]
    rows = differences(base, recipe)
    replaced = list(replaced_parts(base, recipe))
    other = [(key, was, now) for key, was, now in rows if not key.startswith("parts.") or key.split(".")[1] not in replaced]
    lines = [f"Recipe `{recipe.name}`: {about}."]
    if replaced:
        listed = "; ".join(f"**{name}**: {_was_and_is(base, recipe, name)}" for name in replaced)
        lines.append(f"Not as in the recipe: {counted(len(replaced), 'part')}. {listed}.")
    if other:
        shown = "\n".join(f"| `{key}` | {_cell(was)} | {_cell(now)} |" for key, was, now in other[:MOST])
        rest = f"\n\n… and {counted(len(other) - MOST, 'more setting')}." if len(other) > MOST else ""
        lines.append(f"Settings that are not the recipe's own:\n\n| setting | recipe | here |\n|---|---|---|\n{shown}{rest}")
    if not rows:
        lines.append("All settings are the recipe's own, apart from data and budget.")
    return lines


def shipped(recipe: Recipe) -> Recipe | None:
    """The built-in recipe of that name in the same size; None if there is none."""
    if "/" in recipe.name or recipe.name.endswith((".yaml", ".yml")):
        return None
    try:
        return load_recipe(recipe.name, {"size": recipe.size})
    except DiptychError:
        return None


def differences(base: Recipe, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """(dotted key, value of the recipe, value of the run) of the settings that differ; ``MISSING`` for one that is not there."""
    was, now = (dict(_flat(r.anchored().model_dump(mode="json", by_alias=True))) for r in (base, recipe))
    keys = [k for k in dict.fromkeys([*was, *now]) if was.get(k, MISSING) != now.get(k, MISSING)]
    return [(k, was.get(k, MISSING), now.get(k, MISSING)) for k in keys if not _under(k, ELSEWHERE)]


def replaced_parts(base: Recipe, recipe: Recipe) -> Iterator[str]:
    """Names of parts with another kind or other weights than in the recipe, or that only one of both has."""
    for name in dict.fromkeys([*base.parts, *recipe.parts]):
        was, now = base.parts.get(name), recipe.parts.get(name)
        if was is None or now is None or was.kind != now.kind or was.options.get("from") != now.options.get("from"):
            yield name


def _was_and_is(base: Recipe, recipe: Recipe, name: str) -> str:
    was, now = (_named(r.parts[name]) if name in r.parts else "" for r in (base, recipe))
    return f"{now} in place of {was}" if was and now else f"{now}, added" if now else f"{was}, left out"


def _named(spec: Any) -> str:
    source = spec.options.get("from")
    return f"`{spec.kind}`{f' from `{source}`' if source else ''}{', frozen' if spec.frozen else ''}"


def parts_table(trained: TrainedModel, environment: Mapping[str, Any]) -> list[str]:
    """A row for each part of the model: kind, weights at the start, whether it was trained, parameters."""
    started = environment.get("weights") or {}
    rows = ["| part | kind | weights at the start | in training | parameters |", "|---|---|---|---|---:|"]
    recipe, model = trained.recipe, trained.model
    trains = [stage.train for stage in recipe.stages]
    for name, module in model.parts.items():
        spec = recipe.parts.get(name)
        kind = f"`{spec.kind}`" if spec else "made by the parts around it"
        source = str(spec.options.get("from") or "") if spec else ""
        weights = _weights(recipe, name, source, started)
        fixed = (spec is not None and spec.frozen) or not any(t == "all" or name in t for t in trains)
        adapted = [f"`{a.kind}`" for n, a in recipe.adapters.items() if (a.part or n) == name]
        state = ("frozen" if fixed else "trained") + (f", with adapters {', '.join(adapted)}" if adapted else "")
        count = sum(p.numel() for p in module.parameters())
        rows.append(f"| {name} | {kind} | {weights} | {state} | {count:,} |")
    return rows


def _weights(recipe: Recipe, name: str, source: str, started: Mapping[str, Any]) -> str:
    """Where a part's weights came from when training began. source: its option ``from``."""
    if f"parts.{name}" in (started.get("loaded") or ()):
        return f"`{started['address']}`"
    if source:
        return f"`{source}`"
    if name in recipe.backbones:
        backbone = recipe.backbones[name]
        return f"pretrained by `{backbone.recipe or backbone.run}`"
    return "as its kind begins"


def started_lines(environment: Mapping[str, Any], spent: Mapping[str, Any]) -> list[str]:
    """Which weights the run started from, with their hashes; and what its backbones cost."""
    lines = []
    for what, started in (("The run", environment.get("weights")), *(environment.get("backbones") or {}).items()):
        if not started:
            continue
        who = what if what == "The run" else f"Part `{what}`"
        lists = (("loaded", "loaded"), ("fresh", "began fresh"), ("unused", "not used"))
        told = "; ".join(f"{title}: {', '.join(started[key])}" for key, title in lists if started.get(key))
        lines.append(
            f"- {who} started from the weights of `{started['address']}` (hash `{started['key']}`){f': {told}' if told else ''}."
        )
    for part, cost in (spent.get("pretraining") or {}).items():
        flops = f", {cost['flops'] / 1e12:.2f} TFLOP" if cost.get("flops") else ""
        samples = counted(cost["samples"], "sample") if cost.get("samples") else "an unknown number of samples"
        lines.append(
            f"- Part `{part}` was pretrained by the recipe `{cost.get('recipe')}` on {samples}{flops}; not in the budget below."
        )
    return lines


def data_lines(recipe: Recipe, environment: Mapping[str, Any], spent: Mapping[str, Any]) -> list[str]:
    """A line for each data that the run learned from: address, samples, fingerprint, how much was drawn, terms and origin."""
    held = recorded_data(environment) or {recipe.data.train: {}}
    drawn = spent.get("drawn") or {}
    lines = []
    for address, entry in held.items():
        samples = counted(entry["samples"], "sample") if entry.get("samples") and entry["samples"] < 1e12 else ""
        facts = [samples, f"fingerprint `{entry.get('fingerprint') or 'unknown'}`"]
        facts += [f"{counted(drawn[address], 'sample')} drawn"] if address in drawn else []
        made = curated_by(address)
        lines.append(f"- `{address}`: {', '.join(f for f in facts if f)}.{f' These were {made}.' if made else ''}")
    for address, fingerprint in (environment.get("unpaired") or {}).items():
        if address not in held:
            lines.append(f"- `{address}`, images or texts without a partner: fingerprint `{fingerprint}`.")
    for entry in environment.get("resumed") or ():
        lines.append(
            f"- The data had changed when the run was resumed at step {entry['step']}; the lines above are of its last start."
        )
    return lines


def licence_lines(trained: TrainedModel, environment: Mapping[str, Any], licence: str = "") -> list[str]:
    """The terms of weights, packages and data, as far as files or packages state them. licence: of the model, by its owner."""
    lines = [f"- the model, as stated by who exported it: {licence}"] if licence else []
    for name in dict.fromkeys(trained.model.licences):
        entry = WEIGHTS[name]
        lines.append(f"- weights `{name}` ({entry.what}; {entry.source}): {entry.licence}")
    sources = {f"part `{n}`": str(p.options["from"]) for n, p in trained.recipe.parts.items() if p.options.get("from")}
    sources |= {f"teacher `{n}`": t.from_ for n, t in trained.recipe.teachers.items() if t.from_ not in (None, "start")}
    if started := environment.get("weights"):
        sources["weights at the start"] = str(started["address"])
    for what, address in sources.items():
        if address not in WEIGHTS:
            terms = of_weights(address)
            lines.append(f"- {what}, `{address}`: {terms.text}{f' (its {terms.by})' if terms.by else ''}")
    for address in recorded_data(environment) or {trained.recipe.data.train: {}}:
        terms = terms_of(address)
        lines.append(f"- data `{address}`: {terms.text}{f' ({terms.by})' if terms.by else ''}")
    unknown = any(NOT_STATED in line for line in lines)
    end = "The weights were learned from this data, and its terms may apply to them."
    end += " Terms that are not stated are unknown, not free: ask before you publish." if unknown else ""
    return [*lines, "", end]


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all leaves; lists by position, empty ones as they are."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list) and any(isinstance(v, (Mapping, list)) for v in tree):
        for i, value in enumerate(tree):
            yield from _flat(value, f"{prefix}.{i}")
    else:
        yield prefix, tree


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == p or key.startswith(f"{p}.") for p in prefixes)


def _cell(value: Any) -> str:
    text = "not there" if value == MISSING else str(value).replace("|", "\\|")
    return text if len(text) <= 80 else f"{text[:77]}…"
