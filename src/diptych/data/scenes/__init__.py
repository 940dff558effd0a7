"""The built-in world: OpenMoji drawings on textured grounds, with exact truth. ``open_scenes("scenes:small")``."""

from typing import Any

from diptych.data.scenes.albums import Albums
from diptych.data.scenes.clips import Clips
from diptych.data.scenes.drawn import Drawn
from diptych.data.scenes.grounding.source import RegionScenes
from diptych.data.scenes.source import Scenes
from diptych.data.scenes.texts.source import TextScenes
from diptych.data.scenes.world import OF_CLIPS, parse

__all__ = ["Albums", "Clips", "Drawn", "RegionScenes", "Scenes", "TextScenes", "open_scenes"]
OTHERS = {
    "clips": Clips,
    "albums": Albums,
    "regions": RegionScenes,
    "text": TextScenes,
}  # worlds of other things than single pictures


def open_scenes(address: str) -> Scenes:
    """``scenes:``, ``scenes:small``, ``scenes:full?size=96`` …; ``scenes:clips``, ``scenes:albums``, ``scenes:regions`` and
    ``scenes:text`` give ``Clips``, ``Albums``, ``RegionScenes`` and ``TextScenes``, ``scenes:clips?actions=all`` ``ActionClips``.

    DiptychError for an unknown preset or option.
    """
    preset = address.partition(":")[2].partition("?")[0]
    kind: Any = OTHERS.get(preset, Scenes)
    world = parse(address)
    if any(getattr(world, name) for name in OF_CLIPS):
        from diptych.data.scenes.actions.source import ActionClips

        kind = ActionClips
    source: Scenes = kind(world, address)
    return source
