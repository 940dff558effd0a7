"""Where a run's numbers go beside metrics.jsonl: TensorBoard, and what accelerate speaks to (Weights & Biases, MLflow, trackio)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from diptych.core.errors import DiptychError

BY_ACCELERATE = {"wandb": "WandBTracker", "mlflow": "MLflowTracker", "trackio": "TrackioTracker"}


class Tracker(Protocol):
    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class TensorBoard:
    def __init__(self, out: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


class _OfAccelerate:
    def __init__(self, kind: str, project: str, config: dict[str, Any]):
        try:
            from accelerate import PartialState, tracking

            PartialState()  # its trackers ask it which process they are in
            self.tracker: Any = getattr(tracking, BY_ACCELERATE[kind])(project)
            for start in ("start", "store_init_configuration"):  # older releases start in the constructor
                if hasattr(self.tracker, start):
                    getattr(self.tracker, start)(*([config] if start != "start" else []))
        except ImportError as error:
            raise DiptychError(f"trackers: {kind} is not installed ({error}); pip install 'diptych[trackers]' {kind}") from error

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log(values, step=step)

    def finish(self) -> None:
        self.tracker.finish()


def start_trackers(names: Sequence[str], out: Path, project: str, recipe: dict[str, Any]) -> list[Tracker]:
    """``recipe``: plain data; its leaves by dotted key are the run's configuration."""
    config = flat(recipe)
    return [TensorBoard(out) if name == "tensorboard" else _OfAccelerate(name, project, config) for name in names]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": [1]}}`` → ``{"a.b.0": 1}``"""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if entries is None:
        return {prefix: tree}
    return {k: v for key, value in entries for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}
