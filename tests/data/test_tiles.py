"""Pictures in tiles: grids, pixels and reading order against plain loops and transformers' own functions."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from diptych.core.batch import Images, Tokens
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.fields.base import Draw
from diptych.data.fields.tiles import Cutting, TilesField
from diptych.data.tiles.batch import Tiles
from diptych.data.tiles.grid import GRIDS, NEWLINE, best_grid, cut, inside, reading_order, unpadded
from diptych.models.build import SIZES, Build
from diptych.models.connectors.tiles import AnyResolution
from diptych.models.layers.ragged import Ragged
from diptych.models.part import VisionTower


def test_the_grid_is_the_one_that_transformers_chooses() -> None:
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    rng = random.Random(0)
    chosen = set()
    for _ in range(300):
        height, width, side = rng.randint(8, 400), rng.randint(8, 400), rng.choice([16, 32, 48])
        theirs = select_best_resolution((height, width), [[r * side, c * side] for r, c in GRIDS])
        rows, columns = best_grid(height, width, GRIDS, side)
        assert (rows * side, columns * side) == tuple(theirs)
        chosen.add((rows, columns))
        n = 4
        there = unpad_image(torch.arange(rows * columns * n * n).view(1, rows * n, columns * n), (height, width))
        here = torch.arange(rows * columns * n * n).view(rows * n, columns * n)[unpadded((height, width), rows * n, columns * n)]
        assert torch.equal(there[0], here)
    assert chosen == set(GRIDS)


def test_a_picture_keeps_its_shape_in_the_tiles() -> None:
    image = np.full((20, 50, 3), 200, np.uint8)
    tiled = cut(image, 16, GRIDS)
    assert (tiled.grid, tiled.size, tiled.tiles.shape) == ((1, 3), (20, 50), (4, 16, 16, 3))
    assert inside(20, 50, 16, 48) == (16, 40)
    large = np.concatenate(list(tiled.tiles[1:]), 1)
    assert (large[:, 4:-4] == 200).all() and not large[:, :4].any() and not large[:, -4:].any()
    assert (tiled.tiles[0] == 200).all(), "the whole picture fills its tile"


def in_order(size: tuple[int, int], grid: tuple[int, int], side: int) -> list[int]:
    """The reading order by plain loops over the large map."""
    rows, columns = grid
    high, wide = rows * side, columns * side
    down, across = unpadded(size, high, wide)
    result = list(range(side * side))
    for y in range(high)[down]:
        for x in range(wide)[across]:
            tile = 1 + (y // side) * columns + x // side
            result.append(tile * side * side + (y % side) * side + x % side)
        result.append(NEWLINE)
    return result


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (40, 40), (33, 64)])
def test_patches_are_read_row_by_row_of_the_large_map(size: tuple[int, int]) -> None:
    for grid in GRIDS:
        assert reading_order(size, grid, 3).tolist() == in_order(size, grid, 3)


class Tower(VisionTower):
    """Each patch is the mean of its pixels, in a grid of 2 × 2; a class token first."""

    tokens, width, extra = 4, 3, 1

    def forward(self, pixels: torch.Tensor, keep: None = None) -> Tokens:
        x = torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)
        return Tokens(torch.cat([x.new_full((len(x), 1, 3), 99.0), x], 1), x.mean(1))


class Words(torch.nn.Module):
    width = 6


def connector(**options: object) -> AnyResolution:
    torch.manual_seed(0)
    build = Build(SIZES["tiny"], 8, None, parts={"vision": Tower(), "lm": Words()})
    return AnyResolution(build, **options).double()  # type: ignore[arg-type]


def some(*shapes: tuple[int, int]) -> Tiles:
    field = TilesField("image", 8)
    samples = [Sample(str(i), {}, image=np.random.default_rng(i).integers(0, 256, (*s, 3), np.uint8)) for i, s in enumerate(shapes)]
    draws = [Draw(0, i, s, {"image": field.fit(s, random.Random)}) for i, s in enumerate(samples)]
    return field.collate(draws)


def test_the_connector_is_what_plain_loops_make_of_the_tiles() -> None:
    part, tower = connector(norm=False), Tower()
    tiles = some((8, 20), (16, 16), (30, 9))
    tokens = tower.encode(tiles)
    assert torch.allclose(tokens.pooled, tower(Images(tiles.pixels[:, 0]).floats).pooled), "of the whole picture"
    tokens = Tokens(tokens.tokens.double().requires_grad_(), tokens.pooled, tokens.mask)
    found = part.prefix(tiles, tokens)
    assert isinstance(found, Ragged)
    weights = {name: p.detach().numpy() for name, p in part.named_parameters()}
    for i, picture in enumerate(tiles.sizes.tolist()):  # type: ignore[union-attr]
        grid = tuple(tiles.grids[i].tolist())  # type: ignore[index]
        rows = []
        for k in in_order(tuple(picture), grid, 2):
            if k == NEWLINE:
                rows.append(weights["newline"])
                continue
            patch = Images(tiles.pixels[i, k // 4][None]).floats.reshape(3, 2, 4, 2, 4).mean((2, 4))[:, k % 4 // 2, k % 2].double()
            middle = weights["layers.0.weight"] @ patch.numpy() + weights["layers.0.bias"]
            active = torch.nn.functional.gelu(torch.from_numpy(middle)).numpy()
            rows.append(weights["layers.2.weight"] @ active + weights["layers.2.bias"])
        real = found.tokens[i][found.mask[i]]
        torch.testing.assert_close(real, torch.from_numpy(np.stack(rows)), atol=1e-6, rtol=1e-6)
        assert part.count(Cutting(8)(np.zeros((*picture, 3), np.uint8))) == len(rows) == found.counts[i]
        assert found.mask[i, -1] and not found.tokens[i][~found.mask[i]].any(), "padding on the left"
    found.tokens.pow(2).sum().backward()
    gradient = tokens.tokens.grad
    assert gradient is not None
    seen = torch.unflatten(gradient, 1, (-1, 5)).abs().sum(-1)
    assert not seen[:, :, 0].any(), "class tokens are left out"
    assert (seen[:, 0, 1:] > 0).all()
    assert not seen[~tiles.real].any()


def test_gradients_are_right() -> None:
    part, tiles = connector(), some((8, 20), (16, 16))
    n = tiles.pixels.shape[1]
    x = torch.randn(2, n * 5, 3, dtype=torch.double, requires_grad=True)

    def made(x: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(part, {"newline": newline}, (x,))
        return found

    part.forward = lambda x: part.prefix(tiles, Tokens(x, x[:, 0])).tokens  # type: ignore[method-assign, assignment, union-attr]
    assert torch.autograd.gradcheck(made, (x, part.newline.detach().requires_grad_()))


def test_batches_of_pictures_are_joined_and_picked() -> None:
    one, two = some((8, 8)), some((40, 8), (8, 40))
    both = Tiles.cat([one, two], [0, 1], length=40)
    assert both.pixels.shape[:2] == (3, max(one.pixels.shape[1], two.pixels.shape[1])), "not the length of texts"
    assert both.count(7) == 7 * int(both.real.sum())
    picked = both[torch.tensor([2, 0])]
    assert picked.sizes.tolist() == [[8, 40], [8, 8]]  # type: ignore[union-attr]
    tower = Tower()
    torch.testing.assert_close(tower.encode(picked).pooled, tower.encode(both).pooled[[2, 0]])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(DiptychError, match="at least 1"):
        Cutting(8, [(0, 2)])
    with pytest.raises(DiptychError, match=r"data\.augment"):
        TilesField("image", 8, "crop")
