"""The built-in world: OpenMoji drawings on textured grounds, with exact truth. ``open_scenes("scenes:small")``."""

from diptych.data.scenes.source import Scenes, open_scenes

__all__ = ["Scenes", "open_scenes"]
