"""Contact sheets."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych.core.sample import Sample, captioned
from diptych.data.scenes import open_scenes
from diptych.data.sheet import contact_sheet


def test_contact_sheet_takes_samples_of_any_shape(tmp_path):
    odd = [
        Sample("a", image=np.zeros((30, 90, 3), np.uint8), text=captioned(["a very long caption " * 12])),
        Sample("b"),
        Sample("c", image=np.full((900, 500, 3), 255, np.uint8), text=captioned(["plain", ""])),
    ]
    samples = [open_scenes("scenes:small")[0], *odd]
    path = contact_sheet(samples, tmp_path / "new" / "sheet.png", columns=3, side=120, boxes=True, title="t")
    with Image.open(path) as sheet:
        assert sheet.size[0] == 18 + 3 * 138 and sheet.size[1] > 2 * 120
        assert len(np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0)) > 50
