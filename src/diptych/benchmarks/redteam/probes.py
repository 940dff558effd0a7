"""Reads probe files: YAML with ``probes:`` and perhaps ``harms:``, or JSON lines with one probe per line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, nearest

SAMPLE = "sample"
KINDS = ("harmful", "ordinary")
FIELDS = ("id", "harm", "kind", "prompt", "image", "harmful", "group")
GREY = 224  # side in pixels of the image for probes without one


@dataclass(frozen=True)
class Harm:
    """A category of harm."""

    name: str
    title: str
    about: str = ""


@dataclass(frozen=True)
class Probe:
    """One request. ``harmful``: patterns of answers that do the harm; ``group``: paraphrases share it."""

    id: str
    harm: str
    kind: str
    prompt: str
    image: Any = None
    harmful: tuple[re.Pattern[str], ...] = ()
    group: str = ""
    folder: Path | None = field(default=None, compare=False)  # relative paths of pictures start here


def taxonomy() -> dict[str, Harm]:
    """{name: harm} of the built-in kinds of harm."""
    return _harms(_yaml(resources.files("diptych.benchmarks.redteam").joinpath("harms.yaml").read_text("utf-8"), "harms.yaml"))


def read_probes(file: str = SAMPLE) -> tuple[list[Probe], dict[str, Harm]]:
    """The probes of a file and the kinds of harm; ``sample`` is the built-in set.

    Raises DiptychError, with file and probe, for a field that is missing, unknown or repeated, and for an invalid pattern.
    """
    if file == SAMPLE:
        text = resources.files("diptych.benchmarks.redteam").joinpath("probes.yaml").read_text("utf-8")
        return _checked(_yaml(text, SAMPLE), taxonomy(), SAMPLE, None)
    path = Path(file)
    if not path.is_file():
        raise DiptychError(
            f"no probe file '{file}'; expected a .yaml with `probes:` or a .jsonl, or '{SAMPLE}' for the built-in set"
        )
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix in (".jsonl", ".ndjson"):
        content: dict[str, Any] = {
            "probes": [_json(line, f"{file}, line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        }
    else:
        content = _yaml(text, file)
    return _checked(content, taxonomy() | _harms(content), file, path.parent)


def _yaml(text: str, file: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DiptychError(f"{file}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise DiptychError(f"{file}: expected `probes:` with a list below it")
    return content


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DiptychError(f"{where}: broken JSON: {error}") from None


def _harms(content: dict[str, Any]) -> dict[str, Harm]:
    given = content.get("harms") or {}
    return {str(n): Harm(str(n), str((v or {}).get("title", n)), str((v or {}).get("about", ""))) for n, v in given.items()}


def _checked(
    content: dict[str, Any], harms: dict[str, Harm], file: str, folder: Path | None
) -> tuple[list[Probe], dict[str, Harm]]:
    rows = content.get("probes")
    if not isinstance(rows, list) or not rows:
        raise DiptychError(f"{file}: expected `probes:` with a list below it")
    probes: dict[str, Probe] = {}
    for number, row in enumerate(rows, 1):
        where = f"{file}, probe {number}"
        if not isinstance(row, dict):
            raise DiptychError(f"{where}: expected fields {', '.join(FIELDS)}, found {type(row).__name__}")
        for name in row:
            if name not in FIELDS:
                raise DiptychError(f"{where}: unknown field '{name}'{nearest(str(name), FIELDS)}")
        missing = [n for n in ("id", "harm", "prompt") if not str(row.get(n) or "").strip()]
        if missing:
            raise DiptychError(f"{where}: no '{missing[0]}'")
        probe = _probe(row, where, folder)
        if probe.harm not in harms:
            raise DiptychError(f"{where}: unknown harm '{probe.harm}'{nearest(probe.harm, harms)}; or describe it under `harms:`")
        if probe.id in probes:
            raise DiptychError(f"{where}: id '{probe.id}' occurs twice")
        probes[probe.id] = probe
    return list(probes.values()), harms


def _probe(row: dict[str, Any], where: str, folder: Path | None) -> Probe:
    kind = str(row.get("kind", "harmful"))
    if kind not in KINDS:
        raise DiptychError(f"{where}: kind must be harmful or ordinary, not '{kind}'")
    given = row.get("harmful") or ()
    patterns = []
    for pattern in [given] if isinstance(given, str) else given:
        try:
            patterns.append(re.compile(str(pattern), re.IGNORECASE | re.MULTILINE | re.DOTALL))
        except re.error as error:
            raise DiptychError(f"{where}: '{pattern}' is not a regular expression: {error}") from None
    image = row.get("image")
    if isinstance(image, dict) and set(image) not in ({"scene"}, {"text"}):
        raise DiptychError(f"{where}: image: expected {{scene: number}}, {{text: words}} or a path, found {image}")
    return Probe(
        str(row["id"]), str(row["harm"]), kind, str(row["prompt"]), image, tuple(patterns), str(row.get("group") or ""), folder
    )


def picture_of(probe: Probe) -> np.ndarray:
    """uint8 [height, width, 3]: a scene, words on white, a file, or plain grey."""
    from diptych.data.image import decode
    from diptych.data.scenes import open_scenes

    if probe.image is None:
        return np.full((GREY, GREY, 3), 128, dtype=np.uint8)
    if isinstance(probe.image, dict) and "scene" in probe.image:
        image = open_scenes("scenes:small?split=test&size=224")[int(probe.image["scene"])].image
        assert image is not None
        return image
    if isinstance(probe.image, dict):
        return written(str(probe.image["text"]))
    path = (probe.folder or Path()) / str(probe.image)
    if not path.is_file():
        raise DiptychError(f"probe '{probe.id}': there is no picture {path}")
    return decode(path.read_bytes(), str(path))


def written(words: str) -> np.ndarray:
    """Black words on white, broken into lines."""
    from textwrap import wrap

    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (GREY, GREY), "white")
    draw = ImageDraw.Draw(image)
    lines = wrap(words, 14) or [""]
    font = ImageFont.load_default(size=24)
    for i, line in enumerate(lines):
        draw.text((GREY / 2, GREY / 2 + 30 * (i - (len(lines) - 1) / 2)), line, fill="black", font=font, anchor="mm")
    return np.asarray(image)
