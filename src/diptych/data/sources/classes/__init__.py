"""``classes:``: images with one class each; ``labels:``: with several labels. source.py: class folders, tables; synsets.py: names
of folders called n01440764; several.py: tables of labels.
"""

from diptych.data.sources.classes.several import Labels
from diptych.data.sources.classes.source import Classes

__all__ = ["Classes", "Labels"]
