"""Models that give pictures any number of labels: heads.py, model.py, and predict.py for tables."""

from diptych.inference.several.heads import Shares
from diptych.inference.several.model import LabelledModel

__all__ = ["LabelledModel", "Shares"]
