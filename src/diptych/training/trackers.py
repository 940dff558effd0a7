"""Destinations of a run's metrics besides metrics.jsonl: TensorBoard, and through accelerate to Weights & Biases, MLflow and
trackio.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from diptych.core import extras
from diptych.core.errors import DiptychError
from diptych.core.extras import need

BY_ACCELERATE = {"wandb": "WandBTracker", "mlflow": "MLflowTracker", "trackio": "TrackioTracker"}


class Tracker(Protocol):
    """A destination of metrics besides the run's own log."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Send metrics by name at a step."""
        ...

    def finish(self) -> None:
        """Send what is still to be sent and close."""
        ...


class TensorBoard:
    """TensorBoard's event files in the run directory."""

    def __init__(self, out: Path):
        need("tensorboard", extra="trackers", what="trackers: tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        """Send metrics by name at a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Close the event file."""
        self.writer.close()


class _OfAccelerate:
    def __init__(self, kind: str, project: str, config: dict[str, Any]):
        accelerate = need("accelerate", extra="trackers", what=f"trackers: {kind}")
        tracking = need("accelerate.tracking", extra="trackers", what=f"trackers: {kind}")
        accelerate.PartialState()  # its trackers learn from it which process they are in
        try:
            self.tracker: Any = getattr(tracking, BY_ACCELERATE[kind])(project)
            for start in ("start", "store_init_configuration"):  # older releases start in the constructor
                if hasattr(self.tracker, start):
                    getattr(self.tracker, start)(*([config] if start != "start" else []))
        except ImportError as error:
            remedy = extras.install("trackers", kind)
            raise DiptychError(f"trackers: {kind} cannot be imported ({error}): {remedy}") from error

    def log(self, values: dict[str, float], step: int) -> None:
        """Send metrics by name at a step."""
        self.tracker.log(values, step=step)

    def finish(self) -> None:
        """Send what is still to be sent and close."""
        self.tracker.finish()


def check_trackers(names: Sequence[str] | None) -> list[str]:
    """The trackers of a run: those that the recipe names or, for None, TensorBoard if it is installed.

    Nothing is imported. Raises DiptychError for a named tracker that is not installed.
    """
    if names is None:
        return ["tensorboard"] if extras.installed("tensorboard") else []
    for name in names:
        packages = ["tensorboard"] if name == "tensorboard" else ["accelerate", name]
        missing = [package for package in packages if not extras.installed(package)]
        if missing:
            remedy = extras.install("trackers", *(m for m in missing if m not in ("tensorboard", "accelerate")))
            raise DiptychError(f"trackers: {name} is not installed (no package {' or '.join(missing)}): {remedy}")
    return list(names)


def start_trackers(names: Sequence[str] | None, out: Path, project: str, recipe: dict[str, Any]) -> list[Tracker]:
    """Trackers of a run, open for writing. ``names``: see ``check_trackers``.

    out: the run's directory. project: the name under which a service files the run.
    recipe: plain data; its leaves by dotted key are the run's configuration.
    """
    chosen, config = check_trackers(names), flat(recipe)
    if names is None and not chosen:
        print(
            f"note: TensorBoard is not installed, metrics go to metrics.jsonl only ({extras.install('trackers')})", file=sys.stderr
        )
    return [TensorBoard(out) if name == "tensorboard" else _OfAccelerate(name, project, config) for name in chosen]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": [1]}}`` → ``{"a.b.0": 1}``"""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if entries is None:
        return {prefix: tree}
    return {k: v for key, value in entries for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}
