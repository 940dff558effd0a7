"""A reader of scenes: a small network that says what a picture of the built-in world shows. Trained on real scenes, kept, and used to judge drawn ones.

It knows nothing of captions, so it cannot be talked into what they say. It sees combinations that models are not shown, so that it judges
these as well. What it gets wrong on real scenes stands beside what it says of drawings.

Shapes: B batch, C concepts, F features of a concept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.data.loader import to_pixels
from diptych.data.scenes import Scenes
from diptych.data.scenes.graph import POSITIONS
from diptych.data.scenes.world import RELATIONS, World
from diptych.files import write_atomically
from diptych.training.setup import use_bf16

VERSION = 1  # counts up when the network, or how it is trained, changes
SAMPLES, BATCH, RATE = 64_000, 64, 2e-3
HELD_OUT_FROM = 2000  # scenes of held-out combinations before this one are never trained on
WIDTH = 24  # features of a concept
TOLD_GROUPS = 3


class SceneReader(nn.Module):
    """Convolutions, then for each concept what is to be known of it: its count, colour, place and how it stands to another."""

    def __init__(self, world: World):
        super().__init__()
        self.names, self.colours, self.size = world.seen, ("", *world.palette), world.size
        widths = (3, 32, 64, 96)
        steps: list[nn.Module] = []
        for a, b in pairwise(widths):
            steps += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.see = nn.Sequential(*steps, nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(6), nn.Flatten())
        self.concepts = nn.Linear(96 * 36, len(self.names) * WIDTH)
        self.count = nn.Linear(WIDTH, world.max_objects + 1)
        self.colour = nn.Linear(WIDTH, len(self.colours))
        self.place = nn.Linear(WIDTH, 1 + len(POSITIONS))
        self.relation = nn.Sequential(nn.Linear(2 * WIDTH, 96), nn.ReLU(), nn.Linear(96, len(RELATIONS)))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] → features [B, C, F]"""
        return F.relu(self.concepts(self.see(pixels)).unflatten(1, (len(self.names), WIDTH)))

    def pair(self, first: Tensor, second: Tensor) -> Tensor:
        """Features [B, F] of two concepts → logits [B, R] that the first stands so to the second."""
        return self.relation(torch.cat([first, second], 1))

    # --- learning ---

    def loss(self, pixels: Tensor, graphs: Sequence[dict[str, Any]]) -> Tensor:
        x = self(pixels)
        count = torch.zeros(x.shape[:2], dtype=torch.long)
        rows, concepts, colours = [], [], []
        for i, graph in enumerate(graphs):
            for things in graph["things"]:
                c = self.names.index(things["concept"])
                count[i, c] = things["count"]
                rows.append(i)
                concepts.append(c)
                colours.append(self.colours.index(things["colour"]))
        total = F.cross_entropy(self.count(x).flatten(0, 1), count.flatten(), reduction="sum") / len(graphs)
        total = total + F.cross_entropy(self.colour(x[rows, concepts]), torch.tensor(colours))
        single = [i for i, g in enumerate(graphs) if len(g["things"]) == 1]
        if single:
            which = [self.names.index(graphs[i]["things"][0]["concept"]) for i in single]
            where = torch.tensor([("", *POSITIONS).index(graphs[i]["position"]) for i in single])
            total = total + F.cross_entropy(self.place(x[single, which]), where)
        related = [i for i, g in enumerate(graphs) if g["relation"]]
        if related:
            pairs = [[self.names.index(things["concept"]) for things in graphs[i]["things"][:2]] for i in related]
            first, second = (x[related, [p[k] for p in pairs]] for k in (0, 1))
            logits = torch.cat([self.pair(first, second), self.pair(second, first)], 1)  # as it is, then the other way round
            total = total + F.cross_entropy(logits, torch.tensor([RELATIONS.index(graphs[i]["relation"]) for i in related]))
        return total

    # --- reading ---

    @torch.inference_mode()
    def read(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """uint8 images of the world's size → graphs as of ``extra["graph"]``: things with count and colour, relation, position."""
        graphs = []
        for start in range(0, len(images), 256):
            x = self(to_pixels(images[start : start + 256]))
            counts, colours, places = self.count(x), self.colour(x).argmax(-1), self.place(x).argmax(-1)
            here = 1 - counts.softmax(-1)[..., 0]  # [B, C]
            for i in range(len(x)):
                order = here[i].argsort(descending=True)[:TOLD_GROUPS].tolist()
                shown = [c for c in order if here[i, c] > 0.5] or order[:1]
                relation = ""
                if len(shown) > 1:
                    a, b = shown[:2]
                    logits = torch.cat([self.pair(x[i, [a]], x[i, [b]]), self.pair(x[i, [b]], x[i, [a]])], 1)
                    best = int(logits.argmax())
                    relation = RELATIONS[best % len(RELATIONS)]
                    shown = [a, b, *shown[2:]] if best < len(RELATIONS) else [b, a, *shown[2:]]
                things = [
                    {
                        "concept": self.names[c],
                        "count": int(counts[i, c, 1:].argmax()) + 1,
                        "colour": self.colours[int(colours[i, c])],
                    }
                    for c in shown
                ]
                place = ("", *POSITIONS)[int(places[i, shown[0]])] if len(shown) == 1 else ""
                graphs.append({"things": things, "relation": relation, "position": place})
        return graphs


def train_reader(scenes: Scenes, samples: int = SAMPLES, progress: Callable[[str], object] = lambda text: None) -> SceneReader:
    """A reader of the world of ``scenes``, of its training scenes and, a quarter, of the combinations these hold out."""
    seen, held_out = scenes.split("train"), scenes.split("heldout-combinations")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = SceneReader(seen.world).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fast = use_bf16("auto", torch.device("cpu"))
        optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=0.01)
        steps = max(samples // BATCH, 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1)
        for step in range(steps):
            several = range(step * BATCH, (step + 1) * BATCH)
            found = [held_out[HELD_OUT_FROM + i // 4 % (len(held_out) - HELD_OUT_FROM)] if i % 4 == 0 else seen[i] for i in several]
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                loss = reader.loss(to_pixels([s.image for s in found if s.image is not None]), [s.extra["graph"] for s in found])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress(f"a reader of scenes learns {step}/{steps}")
    return reader.eval()


def scene_reader(scenes: Scenes, samples: int = SAMPLES, progress: Callable[[str], object] = lambda text: None) -> SceneReader:
    """``train_reader``, once for each world: kept under $DIPTYCH_CACHE or ~/.cache/diptych."""
    from filelock import FileLock
    from safetensors.torch import load_file, save_file

    world = scenes.split("train").world
    key = hashlib.sha256(f"{world.fingerprint()} {VERSION} {samples}".encode()).hexdigest()[:16]
    path = Path(os.environ.get("DIPTYCH_CACHE") or Path.home() / ".cache" / "diptych") / "readers" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{key}.lock"):  # two runs of a comparison may ask at once
        if not path.is_file():
            reader = train_reader(scenes, samples, progress)
            write_atomically(path, lambda target: save_file({k: v.contiguous() for k, v in reader.state_dict().items()}, target))
    with torch.random.fork_rng(devices=[]):
        reader = SceneReader(world)
    reader.load_state_dict(load_file(path))
    return reader.eval()
