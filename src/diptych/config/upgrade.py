"""Recipes of older formats: files that people have, and those of saved runs, which go on as they began."""

from __future__ import annotations

from typing import Any, Literal

from diptych.core.files import check_format

FORMAT = 4  # of recipes and runs; counts up when older programs would misread them


def upgraded(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """A recipe in the current format, from one of an older format (the first edition had none). DiptychError for a newer one."""
    given = tree.get("format")
    if given == FORMAT:
        return tree
    if isinstance(given, int):  # anything else is refused with the schema
        check_format(given, FORMAT, where)
    tree = dict(tree)
    data, parts = tree.get("data"), tree.get("parts")
    if isinstance(data, dict) and {"lone_images", "lone_texts"} & set(data):
        old = {"image": data.get("lone_images"), "text": data.get("lone_texts")}
        tree["data"] = {k: v for k, v in data.items() if k not in ("lone_images", "lone_texts")}
        tree["data"]["unpaired"] = {k: v for k, v in old.items() if v is not None} | (data.get("unpaired") or {})
    saved = {"device", "checkpoints", "precision"} <= set(tree)  # a run's, with everything written out
    if (
        saved and isinstance(parts, dict) and {"lm", "decoder"} <= set(parts)
    ):  # the language model wrote captions where there was one
        tree.setdefault("encodings", {}).setdefault("text.logits", "lm")
    if isinstance(parts, dict) and isinstance(parts.get("lm"), dict) and "lora" in parts["lm"]:
        _lora_as_adapter(tree)
    if saved:
        number = given if isinstance(given, int) else 0
        tree["stages"] = [
            {**s, "objectives": _with_options(s["objectives"], "objectives", number)}
            if isinstance(s, dict) and isinstance(s.get("objectives"), dict)
            else s
            for s in tree.get("stages") or ()
        ]
        if isinstance(tree.get("parts"), dict):
            tree["parts"] = _with_options(tree["parts"], "parts", number)
    return tree | {"format": FORMAT} if isinstance(given, int) else tree


# Options of objectives and parts that had other defaults up to a format: a saved run continues as it began, with the same scores.
BEFORE: dict[int, dict[str, dict[str, dict[str, Any]]]] = {  # {format: {"objectives" or "parts": {kind: {option: value}}}}
    2: {
        "objectives": {
            "masked_words": {"end": True},
            "masked_text": {"end": True},
            "masked_both": {"end": True},
            "text_prediction": {"regularise": "tower", "views": 2, "least": 0.8, "local": 0, "regularity": 0.01},
        },
    },
    3: {
        "objectives": {
            "masked_both": {"text_share": 0.3},
            "masked_patches": {"loss": "l2", "normalise": True},
        },
        "parts": {
            "resampler": {"depth": 2, "heads": 4, "frames": 0, "activation": "gelu"},
            "gated": {"mlp": "gated"},
        },
    },
}


def before(what: Literal["objectives", "parts"], kind: str, format: int) -> dict[str, Any]:
    """The options that a kind had by default in runs of this format, where they have changed since."""
    found: dict[str, Any] = {}
    for last in sorted(BEFORE, reverse=True):  # the oldest format that still applies has the last word
        if format <= last:
            found |= BEFORE[last].get(what, {}).get(kind, {})
    return found


def _with_options(entries: dict[str, Any], what: Literal["objectives", "parts"], format: int) -> dict[str, Any]:
    """Objectives or parts of a saved run, with the options that they had without saying so."""
    found = {}
    for name, given in entries.items():
        options = {"weight": given} if isinstance(given, int | float) else given
        old = before(what, str(options.get("kind") or name), format) if isinstance(options, dict) else {}
        found[name] = {**old, **options} if old else given
    return found


def _lora_as_adapter(tree: dict[str, Any]) -> None:
    """``parts.lm.lora`` of the first edition is ``adapters.lm``; where the stages trained the part, they train the adapter."""
    parts = dict(tree["parts"])
    options = parts["lm"]["lora"]
    parts["lm"] = {k: v for k, v in parts["lm"].items() if k != "lora"}
    tree["parts"] = parts
    if not isinstance(options, dict):
        return
    tree["adapters"] = {**(tree.get("adapters") or {}), "lm": {"kind": "lora", **options}}
    if isinstance(tree.get("stages"), list):
        tree["stages"] = [
            {**s, "train": ["adapters.lm" if n == "lm" else n for n in s["train"]]}
            if isinstance(s, dict) and isinstance(s.get("train"), list)
            else s
            for s in tree["stages"]
        ]
