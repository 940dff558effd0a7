"""A reader of scenes: a small network that recognises what a picture of the built-in world shows, trained on real scenes to
evaluate drawn ones.

It never sees captions, so they cannot influence it. It is trained on combinations that models are not shown, so that it can
evaluate these as well, and on half of its scenes somewhat blurred and noisy, as drawings are. Its errors on real scenes are
reported with its results on drawings.

It finds the centres of objects on one map for all concepts and one map per concept (Zhou, Wang & Krähenbühl 2019, Objects as
Points, arXiv:1904.07850): a count is the number of centres, and a colour is read at the place of the object, by weights that all
concepts share.

Shapes: B batch, C concepts, F features, h × w cells of the map, O objects.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.files import write_atomically
from diptych.data.fields.base import to_pixels
from diptych.data.scenes import Scenes
from diptych.data.scenes.graph import POSITIONS, Graph
from diptych.data.scenes.layout import CENTRES, picture
from diptych.data.scenes.world import RELATIONS, World
from diptych.training.precision import use_bf16

VERSION = 3  # counts up when the network, or how it is trained, changes
SAMPLES, BATCH, RATE = 32_000, 32, 3e-3
HELD_OUT_FROM = 2000  # scenes of held-out combinations before this one are never trained on
WIDTH, DEPTH = 64, 5
LARGEST = 64  # pixels; larger worlds are read at this size
SURE = 0.4  # the least probability of a centre
SPREAD = 0.8  # cells, of a centre's bell on the map
MOST_GROUPS = 3


class Group(NamedTuple):
    """The objects of one concept in a picture."""

    concept: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used
    colour: int
    sure: float
    features: Tensor  # [F], mean over its objects
    middle: Tensor  # [2], x and y of their mean, as shares of the picture


class Block(nn.Module):
    """A residual block: a convolution with its norm and activation, added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] → the same shape."""
        return x + F.relu(self.norm(self.conv(x)))


class SceneReader(nn.Module):
    """Convolutions to a map of a quarter of the side; then for each cell the concepts with a centre there, their colour, and the
    relation of two groups."""

    def __init__(self, world: World):
        super().__init__()
        self.names, self.colours, self.size = world.seen, ("", *world.palette), min(world.size, LARGEST)
        stem: list[nn.Module] = []
        for a, b in ((3, WIDTH // 2), (WIDTH // 2, WIDTH)):
            stem += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.see = nn.Sequential(*stem, *(Block(WIDTH) for _ in range(DEPTH)))
        self.centre = nn.Conv2d(WIDTH, len(self.names) + 1, 1)  # the last map: objects of all concepts
        nn.init.constant_(self.centre.bias, -4.0)  # type: ignore[arg-type]  # centres are rare
        self.gate = nn.Embedding(len(self.names), WIDTH)  # chooses between the features of overlapping objects
        nn.init.normal_(self.gate.weight, 1.0, 0.3)
        self.colour = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, len(self.colours)))
        self.relation = nn.Sequential(nn.Linear(2 * WIDTH + 2, 96), nn.ReLU(), nn.Linear(96, len(RELATIONS) + 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] → log-odds of a centre [B, C + 1, h, w], the last for all concepts, and features [B, F, h, w]"""
        x = self.see(pixels)
        return self.centre(x).float(), F.avg_pool2d(x, 3, 1, 1)

    def at(self, features: Tensor, rows: Tensor, y: Tensor, x: Tensor, concepts: Tensor) -> Tensor:
        """Features [O, F] of the objects with centres in these cells."""
        seen: Tensor = features[rows, :, y, x].float() * self.gate(concepts)
        return seen

    def pair(self, first: Tensor, second: Tensor, way: Tensor) -> Tensor:
        """Features of two groups [B, F] and the way from one to the other [B, 2] → logits [B, 2R + 1]: each relation of the
        first to the second, each of the second to the first, and none.
        """
        there = self.relation(torch.cat([first, second, 4 * way], 1))
        back = self.relation(torch.cat([second, first, -4 * way], 1))
        return torch.cat([there[:, :-1], back[:, :-1], there[:, -1:] + back[:, -1:]], 1)

    # --- learning ---

    def loss(self, pixels: Tensor, graphs: Sequence[Graph], boxes: Sequence[list[dict[str, Any]]]) -> Tensor:
        """The sum of the losses of centres, colours and relations. ``boxes``: of each scene, as from ``layout.picture``, for the
        reader's size."""
        odds, features = self(pixels)
        shape = torch.tensor(odds.shape[-2:])
        objects = [(row, box) for row, several in enumerate(boxes) for box in several]
        rows = torch.tensor([row for row, _ in objects])
        concepts = torch.tensor([self.names.index(box["concept"]) for _, box in objects])
        colours = torch.tensor([self.colours.index(box["colour"]) for _, box in objects])
        corners = torch.tensor([box["box"] for _, box in objects]).view(-1, 2, 2)
        middles = corners.float().mean(1) / self.size  # x, y
        y, x = (torch.minimum((middles[:, [1, 0]] * shape).long(), shape - 1)).T
        seen = self.at(features, rows, y, x, concepts)
        total = centre_loss(odds[:, :-1], rows, concepts, middles) + centre_loss(odds[:, -1:], rows, 0 * rows, middles)
        total = total + F.cross_entropy(self.colour(seen), colours)
        of: dict[tuple[int, int], list[int]] = {}
        for k, key in enumerate(zip(rows.tolist(), concepts.tolist(), strict=True)):
            of.setdefault(key, []).append(k)
        firsts, seconds, truth = [], [], []
        for row, graph in enumerate(graphs):
            groups = [of[row, self.names.index(things.concept)] for things in graph.things]
            for a, b in combinations(range(len(groups)), 2):
                firsts.append(groups[a])
                seconds.append(groups[b])
                related = graph.relation and (a, b) == (0, 1)
                truth.append(RELATIONS.index(graph.relation) if related else 2 * len(RELATIONS))
        if truth:
            ends = [torch.stack([v[k].mean(0) for k in several]) for several in (firsts, seconds) for v in (seen, middles)]
            first, start, second, end = ends
            total = total + F.cross_entropy(self.pair(first, second, end - start), torch.tensor(truth))
        return total

    # --- reading ---

    @torch.inference_mode()
    def read(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """uint8 images of the reader's size → graphs as of ``extra["graph"]``: things with count and colour, relation, position."""
        graphs = []
        for start in range(0, len(images), 256):
            odds, features = self(to_pixels(images[start : start + 256]))
            graphs += [self._graph(self._groups(o, f)) for o, f in zip(odds.sigmoid(), features, strict=True)]
        return graphs

    def _groups(self, here: Tensor, features: Tensor) -> list[Group]:
        """Chances of a centre [C + 1, h, w] and features [F, h, w] of a picture → groups, the most probable first; at least one.

        An object is at a centre of the last map, and has the concept that is most probable near it; so blurred objects are counted,
        too.
        """
        anything, near = here[-1], F.max_pool2d(here[None], 3, 1, 1)[0]
        peaks = (anything == near[-1]) & (anything > SURE)
        if not peaks.any():
            peaks[torch.unravel_index(anything.argmax(), anything.shape)] = True
        y, x = peaks.nonzero().T
        concepts, sure = near[:-1, y, x].argmax(0), anything[y, x]
        seen = self.at(features[None], torch.zeros_like(concepts), y, x, concepts)
        colours = self.colour(seen).log_softmax(-1)
        middles = torch.stack([(x + 0.5) / here.shape[2], (y + 0.5) / here.shape[1]], 1)
        groups = []
        for concept in sorted(set(concepts.tolist())):
            own = concepts == concept
            colour = int(colours[own].mean(0).argmax())
            groups.append(Group(concept, int(own.sum()), colour, float(sure[own].max()), seen[own].mean(0), middles[own].mean(0)))
        return sorted(groups, key=lambda group: -group.sure)[:MOST_GROUPS]

    def _graph(self, groups: list[Group]) -> dict[str, Any]:
        relation = position = ""
        if len(groups) > 1:
            pairs = list(combinations(groups, 2))
            logits = [self.pair(a.features[None], b.features[None], (b.middle - a.middle)[None])[0] for a, b in pairs]
            chances = torch.stack(logits).log_softmax(-1)[:, :-1]
            which, way = divmod(int(chances.argmax()), chances.shape[1])
            relation = RELATIONS[way % len(RELATIONS)]
            pair = pairs[which] if way < len(RELATIONS) else pairs[which][::-1]
            groups = [*pair, *(group for group in groups if group.concept not in {g.concept for g in pair})]
        elif groups[0].count == 1:
            x, y = groups[0].middle.tolist()
            position = min(POSITIONS, key=lambda name: (CENTRES[name][0] - x) ** 2 + (CENTRES[name][1] - y) ** 2)
        things = [{"concept": self.names[g.concept], "count": g.count, "colour": self.colours[g.colour]} for g in groups]
        return {"things": things, "relation": relation, "position": position}


def centre_loss(odds: Tensor, rows: Tensor, concepts: Tensor, middles: Tensor) -> Tensor:
    """Focal loss of a map of centres (Zhou et al. 2019, eq. 1, α = 2, β = 4): log-odds [B, C, h, w]; of each object the picture
    [O], the concept [O] and the centre [O, 2], x and y as shares of the picture. Cells near a centre count less as negatives.
    """
    B, C, h, w = odds.shape
    near = []
    for middle, cells in ((middles[:, 1] * h, h), (middles[:, 0] * w, w)):
        near.append(torch.exp(-((torch.arange(cells) + 0.5 - middle[:, None]) ** 2) / (2 * SPREAD**2)))
    bells = near[0][:, :, None] * near[1][:, None, :]  # [O, h, w]
    target = bells.new_zeros(B * C, h, w)
    target = target.scatter_reduce(0, (rows * C + concepts)[:, None, None].expand_as(bells), bells, "amax").view(B, C, h, w)
    here = torch.zeros_like(target, dtype=torch.bool)
    here[rows, concepts, (middles[:, 1] * h).long().clamp(max=h - 1), (middles[:, 0] * w).long().clamp(max=w - 1)] = True
    chance = odds.sigmoid()
    right = (1 - chance) ** 2 * F.logsigmoid(odds)
    wrong = (1 - target) ** 4 * chance**2 * F.logsigmoid(-odds)
    return -torch.where(here, right, wrong).sum() / len(rows)


def lessons(scenes: Scenes) -> Iterator[Graph]:
    """Training scenes; a quarter of them with the combinations that training holds out. Every second scene is skipped unless
    objects overlap: those are hard.
    """
    seen, held_out = scenes.split("train"), scenes.split("heldout-combinations")
    index = 0
    while True:
        of_these = HELD_OUT_FROM + index // 4 % (len(held_out) - HELD_OUT_FROM)
        graph = held_out.graph(of_these) if index % 4 == 0 else seen.graph(index % len(seen))
        if index // 4 % 2 == 0 or graph.relation == "front":
            yield graph
        index += 1


def worn(pixels: Tensor) -> Tensor:
    """The pictures [B, 3, H, W], half of them blurred and half noisy, to different degrees."""
    chance = [torch.rand(len(pixels), 1, 1, 1) * (torch.rand(len(pixels), 1, 1, 1) < 0.5) for _ in range(2)]
    blurred = F.interpolate(F.avg_pool2d(pixels, 2, ceil_mode=True), size=pixels.shape[-2:], mode="bilinear")
    return pixels + chance[0] * (blurred - pixels) + 0.15 * chance[1] * torch.randn_like(pixels)


def train_reader(scenes: Scenes, samples: int = SAMPLES, progress: Callable[[str], object] = lambda text: None) -> SceneReader:
    """A reader trained on the world of ``scenes``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = SceneReader(scenes.split("train").world).train()
        reader.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fast = use_bf16("auto", torch.device("cpu"))
        optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=0.01)
        steps, stream = max(samples // BATCH, 1), lessons(scenes)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1)
        for step in range(steps):
            graphs = [next(stream) for _ in range(BATCH)]
            images, boxes = zip(*(picture(graph, reader.size) for graph in graphs), strict=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                loss = reader.loss(worn(to_pixels(images)), graphs, boxes)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress(f"training the reader of scenes {step}/{steps}")
    return reader.eval()


def scene_reader(scenes: Scenes, samples: int = SAMPLES, progress: Callable[[str], object] = lambda text: None) -> SceneReader:
    """``train_reader``, once for each world: kept under $DIPTYCH_CACHE or ~/.cache/diptych."""
    from filelock import FileLock
    from safetensors.torch import load_file, save_file

    world = scenes.split("train").world
    key = hashlib.sha256(f"{world.fingerprint()} {VERSION} {samples}".encode()).hexdigest()[:16]
    path = Path(os.environ.get("DIPTYCH_CACHE") or Path.home() / ".cache" / "diptych") / "readers" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{key}.lock"):  # two runs of a comparison may need it at once
        if not path.is_file():
            reader = train_reader(scenes, samples, progress)
            write_atomically(path, lambda target: save_file({k: v.contiguous() for k, v in reader.state_dict().items()}, target))
    with torch.random.fork_rng(devices=[]):
        reader = SceneReader(world)
    reader.load_state_dict(load_file(path))
    return reader.eval()
