"""Zero-shot: nothing is learned; a class is the mean vector of its name in several templates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.choose.ways.base import Support, Way
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.inference.heads import Head, Linear


@dataclass(frozen=True)
class ZeroShot(Way):
    """Class names in templates (Radford et al. 2021, arXiv:2103.00020, §3.1.4)."""

    name = "zeroshot"
    about = "class names in templates; nothing is learned"
    cite = "Radford et al. 2021, arXiv:2103.00020"
    needs_text = True
    needs_images = False

    def fit(self, support: Support) -> Head:
        """Logits are scaled cosines with the class vectors."""
        return Linear(support.scale * support.texts, np.zeros(support.classes), open=True)


@dataclass(frozen=True)
class Descriptions(Way):
    """Sentences that describe the classes, as a language model or a person writes them: the cosine with their mean vector (CuPL) or
    the mean of the cosines (DCLIP). Both have the same order of images for one class; the mean vector has unit length.
    """

    name = "descriptions"
    about = "sentences that describe each class; nothing is learned"
    cite = "Pratt et al. 2023, arXiv:2209.03320; Menon & Vondrick 2023, arXiv:2210.07183"
    needs_text = True
    needs_images = False
    unit: bool = True  # CuPL; False: DCLIP

    def fit(self, support: Support) -> Head:
        """Logits are scaled cosines. DiptychError if a class has no sentences."""
        lacking = [name for name, s in zip(support.names, support.described, strict=bool(support.described)) if not len(s)]
        for name in lacking if support.described else support.names:
            raise DiptychError(f"no descriptions of the class '{name}': give --descriptions FILE, {{class: [sentence, …]}}")
        means = np.stack([sentences.mean(0) for sentences in support.described])
        return Linear(support.scale * (unit_rows(means) if self.unit else means), np.zeros(support.classes), open=True)
