"""What a way of adapting is: from labelled vectors to a head.

Shapes: N images, E width of the vectors, C classes, T templates or sentences of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.inference.heads import Head


@dataclass(frozen=True)
class Support:
    """What a way learns from: labelled images as vectors of the model, and its vectors of the class names.

    prompts: of each class the unit vectors of its texts, one for each template [C, T, E]; None for a model without texts.
    described: of each class the unit vectors of the sentences that describe it [T_c, E]; empty where there are none.
    scale: what cosines are multiplied by to be logits, as the model learned it (1 / temperature).
    unlabelled: unit vectors of further images of the training part without labels [U, E].
    """

    x: np.ndarray  # unit vectors of the images, float32 [N, E]
    y: np.ndarray  # their classes, int [N]
    names: tuple[str, ...]
    prompts: np.ndarray | None = None
    described: tuple[np.ndarray, ...] = ()
    scale: float = 100.0
    unlabelled: np.ndarray | None = None
    seed: int = 0

    @property
    def classes(self) -> int:
        """C."""
        return len(self.names)

    @property
    def texts(self) -> np.ndarray:
        """The unit vector of each class name, the mean over its templates [C, E]. DiptychError for a model without texts."""
        if self.prompts is None:
            raise DiptychError("the model has no text vectors; choose a way that needs images alone, such as probe or knn")
        return unit_rows(self.prompts.mean(1))

    @property
    def onehot(self) -> np.ndarray:
        """The classes as rows of zeros and a one, float32 [N, C]."""
        rows: np.ndarray = np.eye(self.classes, dtype=np.float32)[self.y]
        return rows

    def rows(self, which: np.ndarray) -> Support:
        """The same with some of the images."""
        return replace(self, x=self.x[which], y=self.y[which])


@dataclass(frozen=True)
class Way:
    """Base class of the ways that work on vectors: a frozen dataclass whose fields are its settings.

    ``grid`` gives the settings among which cross-validation on the training pictures chooses; the first is taken where there are
    too few pictures to choose. A way chooses nothing by itself, and never sees a test picture.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""  # one line, for tables and --help
    cite: ClassVar[str] = ""
    needs_text: ClassVar[bool] = False  # whether it needs vectors of the class names
    needs_images: ClassVar[bool] = True  # whether it learns from labelled images; zero-shot does not
    transductive: ClassVar[bool] = False  # whether ``predict`` sees all test images together, without their labels

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """Settings to choose among, the default first."""
        return [{}]

    def fit(self, support: Support) -> Head:
        """The head learned from the support."""
        raise NotImplementedError

    @classmethod
    def logits_of(cls, settings: Sequence[Mapping[str, Any]], support: Support, x: np.ndarray) -> list[np.ndarray]:
        """The logits of images [N, E] by the heads of several settings, each [N, C]; what cross-validation calls.

        A way whose settings share costly work does that work once here.
        """
        return [cls(**setting).fit(support).logits(x) for setting in settings]


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose for a way.

    accuracy: the mean over classes of the share named right, out of fold, where the settings for each fold were chosen on the
    other folds; NaN if nothing could be left out. The accuracy of the settings chosen on all folds is in ``tried``; it is the
    best of many, so it is too high for settings that were chosen by it. logits: of each training image by heads of the chosen
    settings that never saw it, before ``temperature`` [N, C]; NaN in the rows of images that were never left out. temperature: by
    which logits are divided so that these probabilities fit best.
    """

    settings: dict[str, Any]
    accuracy: float
    logits: np.ndarray
    temperature: float = 1.0
    tried: list[dict[str, Any]] = field(default_factory=list)  # each of the grid with its accuracy and its loss
    folds: int = 0
