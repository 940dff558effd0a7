"""From a model, a way and conversations to a run: its adapter as peft has it, and what it said before and says after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.choose.talk.held import Compared, Progress, as_table, compared, conversations
from diptych.choose.talk.ways import PART, ChatWay, settings_of
from diptych.choose.towers.fit import fit
from diptych.config.budget import Budget
from diptych.core.errors import DiptychError, Interrupted
from diptych.core.files import read_json, write_atomically, write_json, write_text
from diptych.data.conversations.check import check_conversations
from diptych.data.conversations.processed import ChatProcessor
from diptych.data.conversations.turns import DESCRIBE
from diptych.data.sources import open_source
from diptych.inference.foreign.tuned import REQUEST, Tuned
from diptych.interop.families.language import save_adapters
from diptych.models.adapters.lora import Injected
from diptych.models.pretrained.hub import place
from diptych.models.pretrained.processor import open_processor
from diptych.training.loop import Progress as Steps
from diptych.training.run_files import RunFiles

ADAPTER = "adapter"  # in the run: a directory of peft
TABLE = "before-after"


def tune(
    model: str,
    way: type[ChatWay],
    data: str,
    out: Path,
    *,
    other: Sequence[str] = (),
    seed: int = 0,
    budget: str | Budget | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    most: int | None = None,
    steps: Steps | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tune a model on the training part of conversations, and return what came of it, as in before-after.json.

    The run lies in ``out``: the adapter in ``adapter/``, in peft's own files; the table in ``before-after.md``, of the validation
    part of the data and of ``other`` data, at most ``most`` conversations of each (200; 0: no table). An interrupted run goes on
    where it stopped. The test part is not read. budget, overrides: as for ``towers.fit``; steps, progress: of training and of the
    comparison.

    Raises DiptychError for a model or conversations that cannot be used, Interrupted with everything saved.
    """
    chosen = settings_of(way, settings or {})
    begun = chosen.opened(model).tree["parts"][PART]
    source = open_source(data).split("train")
    if not RunFiles(out).exists():  # before anything is loaded that takes long
        trust = {"trust_remote_code": True} if begun.get("trust_remote_code") else {}
        check_conversations(source, ChatProcessor(open_processor(place(begun["from"]), **trust), model))  # type: ignore[arg-type]
    held = [open_source(address) for address in other]
    try:
        fit(model, chosen, data, out, seed=seed, budget=budget, overrides=overrides, progress=steps)
    except Interrupted as stopped:
        raise Interrupted(f"{str(stopped).partition(';')[0]}; the same command goes on from there") from None
    if "turns" not in getattr(source, "fields", ("turns",)):
        write_json(out / REQUEST, {"caption": DESCRIBE})
    tuned = Tuned.load(out)
    save_adapter(tuned, out / ADAPTER)
    result = {"path": str(out), "model": model, "way": way.name, "data": data, **_learned(tuned, out)}
    done = out / f"{TABLE}.json"
    if done.is_file() and read_json(done).get("key") == tuned.key and read_json(done).get("other") == list(other):
        return dict(read_json(done))
    number = {} if most is None else {"most": most}
    if most != 0:
        rows, notes = [], []
        for source, role in [(open_source(data), "held-out"), *((one, "other") for one in held)]:
            part = source.split("validation")
            asked = conversations(part, **number)
            if not asked and role == "other":
                asked = conversations(source, **number)  # small sets have no such part
            if asked:
                rows.append(compared(tuned, asked, source.address, role, progress))
            else:
                notes.append(f"{source.address}: its validation part has no conversation, so nothing is compared")
        result |= {"compared": [row.plain() for row in rows], "notes": notes}
        write_text(out / f"{TABLE}.md", table(rows, notes, model))
    result |= {"key": tuned.key, "other": list(other)}
    write_json(done, result)
    return result


def table(rows: Sequence[Compared], notes: Sequence[str], model: str) -> str:
    """The page of the comparison."""
    return f"# {model} before and after\n\n{as_table(rows, notes)}"


def save_adapter(tuned: Tuned, directory: Path) -> None:
    """The run's low-rank adapter as ``PeftModel.from_pretrained`` reads it; nothing if the model itself learned."""
    adapter = next((a for a in tuned.vlm.adapters.values() if isinstance(a, Injected)), None)
    if adapter is None:
        return
    part = tuned.vlm.part(PART)

    def write(path: Path) -> None:
        """Configuration and weights."""
        path.mkdir()
        save_adapters(path, adapter, part.model, place(part.address))

    try:
        write_atomically(directory, write)
    except OSError as error:
        raise DiptychError(f"cannot write the adapter {directory}: {error}; the run's checkpoints are intact") from error


def _learned(tuned: Tuned, out: Path) -> dict[str, Any]:
    """What the training was, from the run's files."""
    spent = RunFiles(out).spent()
    last: dict[str, Any] = next(iter(reversed(RunFiles(out).metrics())), {})
    return {
        "steps": spent.get("steps"),
        "samples": spent.get("samples"),
        "seconds": spent.get("seconds"),
        "trainable_parameters": spent.get("trainable_parameters"),
        "parameters": spent.get("parameters"),
        "loss": last.get("loss"),
    }


def next_commands(out: Path, data: str) -> list[str]:
    """What to do with the run."""
    return [
        f"diptych chat {out} PICTURE --prompt QUESTION",
        f"diptych evaluate {out} --data {data}",
        f"diptych caption {out} PICTURE",
        f"diptych serve --model {out}",
        f"diptych export {out}",
    ]
