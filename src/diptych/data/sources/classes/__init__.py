"""``classes:``: images with one class each. source.py: class folders, tables; synsets.py: names of folders called n01440764."""

from diptych.data.sources.classes.source import Classes

__all__ = ["Classes"]
