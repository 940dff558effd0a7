"""Sounds with captions, after CLAP (Elizalde et al. 2023): a source, a field kind, a tower and a score. See README.md for the commands.

Shapes: B batch, S points of a wave, T frames, D width, E embedding.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diptych as dp
from diptych.core.batch import Batch, Collated, Tokens
from diptych.core.graph import provides
from diptych.core.sample import Captions, Sample
from diptych.data.fields import Field
from diptych.data.fields.text import tokenized
from diptych.data.source import BrokenItem
from diptych.models.build import Build
from diptych.models.layers.attention import Transformer
from diptych.models.part import Part
from diptych.objectives.scores import Similarity

RATE = 8000  # points a second; a sound lasts one second
TIMBRES: dict[str, tuple[list[float], list[float], float]] = {  # overtones as multiples of the pitch, their strengths, the decay
    "flute": ([1], [1], 2),
    "clarinet": ([1, 3, 5], [1, 0.6, 0.4], 2),
    "violin": ([1, 2, 3, 4], [1, 0.7, 0.5, 0.4], 1),
    "bell": ([1, 2.76, 5.4], [1, 0.6, 0.3], 9),
}
PITCHES = {"deep": 110.0, "low": 220.0, "high": 440.0, "shrill": 880.0}  # in Hz
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
MELODIES = {"level": 0, "rising": 2, "falling": -2}  # semitones from note to note
RHYTHMS = {"even": 1.0, "ever faster": 0.6, "ever slower": 1.7}  # each gap as a multiple of the one before


class Sounds:
    """Sounds drawn on demand: ``sounds:Sounds:tones``. ``sounds[i]`` depends on the part and i alone."""

    instant = True  # to draw costs less than to keep

    def __init__(self, place: str = "", *, samples: int = 100_000, part: str = "train"):
        self.place, self.samples, self.part = place, samples, part
        self.address, self.problems = f"sounds:Sounds:{place}?part={part}", []

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        rng = random.Random(f"{self.part}/{index}")
        timbre, pitch, count = (rng.choice(list(table)) for table in (TIMBRES, PITCHES, COUNTS))
        n, note = COUNTS[count], "note" if count == "one" else "notes"
        melody = rng.choice(list(MELODIES)) if n > 1 else "level"  # one note has no melody, and two have no rhythm
        rhythm = rng.choice(list(RHYTHMS)) if n > 2 else "even"
        told = "".join(f", {word}" for word in (melody, rhythm)[: n - 1])
        texts = [f"{count} {pitch} {timbre} {note}{told}", f"a {timbre}: {count} {pitch} {note}{told}"]
        wave = synthesise(timbre, PITCHES[pitch], n, MELODIES[melody], RHYTHMS[rhythm], rng)
        return Sample(f"{self.part}/{index}", sound=wave, text=Captions(texts, [texts[0]] * 2))

    def fingerprint(self) -> str:
        return f"sounds 1 {self.part} {self.samples}"

    def split(self, name: str) -> Sounds:
        return Sounds(self.place, samples=self.samples, part=name)


def synthesise(timbre: str, pitch: float, count: int, step: int, ratio: float, rng: random.Random) -> np.ndarray:
    """One second, int16 [S]: ``count`` notes, detuned by up to a semitone and a half, with some noise."""
    overtones, strengths, decay = TIMBRES[timbre]
    gaps = ratio ** np.arange(count)
    starts = (rng.uniform(0.02, 0.1) + 0.85 * np.concatenate([[0.0], np.cumsum(gaps)[:-1]]) / gaps.sum()) * RATE
    wave = np.random.default_rng(rng.getrandbits(32)).normal(0, 0.02, RATE)
    detuned = pitch * 2 ** (rng.uniform(-1.5, 1.5) / 12)
    for k, start in enumerate(starts.astype(int)):
        t = np.arange(min(RATE - start, RATE // 3)) / RATE
        angle = 2 * np.pi * detuned * 2 ** (k * step / 12) * t
        tone = sum(s * np.sin(o * angle) for o, s in zip(overtones, strengths, strict=True))
        wave[start : start + len(t)] += tone * np.exp(-decay * t) * np.minimum(1, t * 200) * np.clip((1 / 3 - t) * 20, 0, 1)
    return (wave / np.abs(wave).max() * rng.uniform(0.3, 1) * 32767).astype(np.int16)


@dataclass
class Waves(Collated):
    wave: Tensor  # [B, S] int16
    owner: Tensor | None = None
    row_wise = heavy = ("wave",)


class SoundField(Field):
    kind = "sound"

    def fit(self, sample: Sample, rng: Any) -> np.ndarray:
        if self.name not in sample.fields:
            raise BrokenItem(sample.id, f"no {self.name}")
        return sample.fields[self.name]

    def collate(self, rows: Any) -> Waves:
        return Waves(torch.from_numpy(np.stack([row.fitted[self.name] for row in rows])))


class SpectrogramTower(Part):
    """A transformer over the frames of a spectrogram, each the logarithm of the energy in ``bands`` a sixth of an octave apart."""

    def __init__(self, build: Build, *, bands: int = 36, depth: int | None = None):
        super().__init__()
        self.width = build.size.width
        distance = (torch.linspace(0, RATE / 2, 257).clamp(min=1) / 62.5).log2()[:, None] * 6 - torch.arange(bands)
        self.filters = nn.Buffer((1 - distance.abs() / 1.5).clamp(min=0), persistent=False)  # [257, bands]
        self.stem = nn.Linear(2 * bands, self.width)
        self.places = nn.Parameter(torch.randn(31, self.width) * 0.02)
        self.transformer = Transformer(self.width, depth or build.size.depth, build.size.heads, activation=build.size.activation)
        self.out = nn.Linear(self.width, build.embed_dim)

    @provides("{sound}.tokens", "{sound}")
    def encode(self, sound: Waves) -> Tokens:  # [B, T, D]
        frames = (sound.wave.float() / 32768).unfold(1, 256, 128) * torch.hann_window(256, device=sound.wave.device)  # [B, 61, 256]
        with torch.autocast(frames.device.type, enabled=False):
            energy = (torch.fft.rfft(frames, 512).abs().square() @ self.filters + 1e-3).log()  # [B, 61, bands]
        x = self.stem(F.pad(energy, (0, 0, 0, 1)).unflatten(1, (31, 2)).flatten(2))
        x = self.transformer(x + self.places)
        return Tokens(x, x.mean(1))

    @provides("{sound}.embedding", "{sound}.tokens")
    def embed(self, tokens: Tokens) -> Tensor:  # [B, E]
        return F.normalize(self.out(tokens.pooled).float(), dim=-1)


class SoundSimilarity(Similarity):
    needs = ("sound.embedding", "text.embedding")


def recall(run: str, n: int = 100) -> tuple[float, float]:
    """Recall@1 among n sounds of the test part with n captions: the text of a sound, the sound of a text. Chance is 1/n."""
    trained, distinct = dp.load(run), {s.meanings[0]: s for s in map(Sounds(part="test").__getitem__, range(20 * n))}
    waves, texts = zip(*((s.fields["sound"], s.captions[1]) for s in list(distinct.values())[:n]), strict=True)
    batch = Batch({"sound": Waves(torch.from_numpy(np.stack(waves))), "text": tokenized(trained.model.tokenizer, texts)}, n)
    with torch.inference_mode():
        scores = trained.scorer.all_scores(trained.model.encode(batch.to(trained.device))).cpu()
    right = torch.arange(n)
    return (scores.argmax(1) == right).float().mean().item(), (scores.argmax(0) == right).float().mean().item()


if __name__ == "__main__":
    print("recall@1 of 100: text of a sound {:.2f}, sound of a text {:.2f}".format(*recall(sys.argv[1])))
