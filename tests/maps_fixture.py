"""Little runs for maps, and towers made by hand in which one patch alone matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diptych.benchmarks.maps.items import Item
from diptych.benchmarks.maps.measures import blob
from diptych.core.capabilities import Adapter, all_pairs
from diptych.inference.maps.base import Maps
from diptych.inference.run import TrainedModel
from diptych.models.layers.attention import Attention, Block, CascadePool
from engine_fixture import Little

SIDE = 48
PLAIN = ("parts.vision.stem=patch", "parts.vision.patch=16")


def run_of(name: str, *overrides: str) -> TrainedModel:
    little = Little(name, *overrides)
    return TrainedModel(name, little.recipe, little.model, little.objectives, torch.device("cpu"))


def noise(n: int, height: int = SIDE, width: int = SIDE) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8) for i in range(n)]


def one_white_patch(row: int, column: int, grid: int, height: int, width: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A black picture, white in one cell of the grid over its central square; and the cell: top, bottom, left, right."""
    side = min(height, width)
    y0, x0, step = (height - side) // 2, (width - side) // 2, side // grid
    top, left = y0 + row * step, x0 + column * step
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[top : top + step, left : left + step] = 255
    return picture, (top, top + step, left, left + step)


def inside(heat: np.ndarray, cell: tuple[int, int, int, int]) -> bool:
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    return bool(cell[0] <= y < cell[1] and cell[2] <= x < cell[3])


@torch.no_grad()
def watches_white(tower: nn.Module, local: bool = False) -> None:
    """Our ViT: channel 0 is how white a patch is, channel 2 is the same everywhere, and attention goes to what is white and writes
    it to channel 1. local: attention adds nothing.
    """
    vit: Any = tower
    width = vit.width
    vit.stem.weight.zero_()
    vit.stem.weight[0] = 1.0 / vit.stem.weight[0].numel()
    if vit.stem.bias is not None:
        vit.stem.bias.zero_()
    places = torch.zeros(vit.positions.shape)
    places[:, 2] = 1.0
    vit.positions.data.copy_(places) if isinstance(vit.positions, nn.Parameter) else vit.positions.copy_(places)
    if vit.classes is not None:
        vit.classes.zero_()
        vit.classes[:, 2] = 0.0 if vit.learned else 1.0
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        if isinstance(module, Attention):
            for layer in (module.q, module.kv, module.out):
                layer.weight.zero_()
                layer.bias.zero_()
            module.q.bias.fill_(1.0)
            module.kv.weight[:width, 0] = 0.05
            module.kv.weight[width + 1, 0] = 1.0
            module.kv.weight[width + 2, 2] = 1.0
            if not isinstance(owner_of(vit, module), Block):  # the second pooler of a cascade reads what the first wrote
                module.kv.weight[width + 1, 1] = 1.0
            if not (local and isinstance(owner_of(vit, module), Block)):
                module.out.weight.copy_(torch.eye(width))
    for module in list(vit.modules()):  # a norm undoes the size of a token, and with it most of its gradient
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm) and module is not vit:
                setattr(module, name, nn.Identity())
    if isinstance(vit.pool, CascadePool):  # some of its queries look for what is black
        tokens = vit.pool.tokens
        tokens.queries.zero_()
        tokens.queries[:, 0] = torch.where(torch.arange(len(tokens.queries)) % 2 == 0, 1.0, -1.0)
        tokens.attention.q.bias.zero_()
        tokens.attention.q.weight[:, 0] = 1.0
    for module in vit.modules():
        mlp = getattr(module, "mlp", None)
        if isinstance(mlp, nn.Sequential):
            for layer in mlp:
                if isinstance(layer, nn.Linear):
                    layer.weight.zero_()
                    layer.bias.zero_()


def owner_of(root: nn.Module, wanted: nn.Module) -> nn.Module:
    return next(m for m in root.modules() if any(child is wanted for child in m.children()))


@torch.no_grad()
def reads_channel(run: TrainedModel, text: str, channel: int) -> None:
    """The image's embedding turns to that of the text with a channel, away from it with channel 2."""
    t: Tensor = torch.from_numpy(run.embed_text([text])[0])
    other = torch.zeros_like(t)
    other[0], other[1] = t[1], -t[0]
    weight = torch.zeros(len(t), run.model.parts["vision"].width)
    weight[:, channel], weight[:, 2] = t, other / other.norm()
    space: Any = run.model.parts["space"]
    space.image = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    space.image.weight.copy_(weight)


class Colours(Maps):
    """A score that is known: the share of a picture's pixels that are of the text's colour, and maps of it.

    which: ``colour`` (where that colour is, by a layer that can be scrambled), ``any`` (where any colour is), ``blob``.
    """

    methods = ("colour", "any", "blob")
    name = "colours"

    def __init__(self) -> None:
        self.layer = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]))
        self.asked = 0

    @property
    def modules(self):
        return [self.layer]

    def score(self, images, texts):
        self.asked += 1
        return np.array([self._where(i, t).mean() for i, t in zip(images, texts, strict=True)], dtype=np.float32)

    def _where(self, image, text):
        channel = ("red", "green", "blue").index(text.split()[-1])
        values = torch.from_numpy(image.astype(np.float32) / 255) @ self.layer.weight[channel].detach()
        return values.numpy()

    def _grids(self, images, texts, method):
        found = []
        for image, text in zip(images, texts, strict=True):
            if method == "blob":
                found.append(blob(8, 8))
                continue
            where = (
                np.maximum(self._where(image, text), 0) if method == "colour" else np.ptp(image.astype(np.float32), axis=2) / 255
            )
            h, w = where.shape
            found.append(where.reshape(8, h // 8, 8, w // 8).mean((1, 3)).astype(np.float32))
        return found


class ColourModel(Adapter):
    """``Colours`` as a model, for the command line: ``maps_fixture:ColourModel``."""

    name = "colours"
    capabilities = frozenset({"score", "locate"})

    def __init__(self, key: str = "k1"):
        self.key = key
        self.maps = Colours()

    def score(self, images, texts, pairs=None):
        wanted = all_pairs(len(images), len(texts)) if pairs is None else pairs
        values = self.maps.score([images[i] for i, _ in wanted], [texts[j] for _, j in wanted])
        return values if pairs is not None else values.reshape(len(images), len(texts))


def two_squares(seed: int, size: int = 48) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """A black picture with two squares of different colours, in two of its quarters; and each colour with its mask."""
    rng = np.random.default_rng(seed)
    picture, parts = np.zeros((size, size, 3), dtype=np.uint8), []
    half = size // 2
    corners = rng.permutation(4)[:2]
    for channel, corner in zip(rng.permutation(3)[:2], corners, strict=True):
        top, left = (corner // 2) * half + rng.integers(2, half // 2), (corner % 2) * half + rng.integers(2, half // 2)
        mask = np.zeros((size, size), dtype=bool)
        mask[top : top + half // 2, left : left + half // 2] = True
        picture[mask, channel] = 255
        parts.append((("red", "green", "blue")[channel], mask))
    return picture, parts


def colour_items(n: int = 12) -> list[Item]:
    items = []
    for seed in range(n):
        picture, ((a, mask), (b, other)) = two_squares(seed)
        items += [Item(str(seed), picture, a, b, mask), Item(str(seed), picture, b, a, other)]
    return items


SCORED_LLAVA = ("llava", "parts.lm.kind=random", "parts.vision={kind: vit, depth: 1, width: 32, heads: 2}")
