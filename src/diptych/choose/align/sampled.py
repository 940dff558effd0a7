"""Data that a model writes itself: the best of several answers by the truth of each sentence (ViGoR), and questions with its own
answers as choices (DiVE-k). Both are files that ``preferences:`` reads.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.texts.facts import parse_caption, statements
from diptych.choose.align.rewards import exact_reward, plain
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.files import write_text
from diptych.core.sample import IMAGE, Sample
from diptych.data.conversations.turns import DESCRIBE
from diptych.data.preferences import preference_of
from diptych.data.source import BrokenItem, Source

SENTENCE = re.compile(r"[^.!?]+[.!?]*")
LETTERS = "ABCDEFGH"
BATCH = 32

Judge = Callable[[str, Sample], float]  # of an answer to a sample's question


def sentence_rewards(text: str, graph: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Each sentence with its reward: 1 if all its statements about the scene are true, −1 if one is false, 0 if none is known to be
    either (ViGoR, Yan et al. 2024, arXiv:2402.06118: rewards of single sentences, by people and by a detector; here the scene
    decides).
    """
    result = []
    for match in SENTENCE.finditer(text):
        sentence = match.group().strip()
        if not sentence:
            continue
        known = [true for _, true in statements(parse_caption(sentence.rstrip(".!?")), dict(graph)) if true is not None]
        result.append((sentence, 0.0 if not known else 1.0 if all(known) else -1.0))
    return result


def by_sentences(text: str, sample: Sample) -> float:
    """The mean reward of the sentences of a description of a scene; of an answer to another question, whether it is right."""
    pair, graph = preference_of(sample), sample.extra.get("graph")
    asked = sample.turns[-2].text.replace(IMAGE, "").strip() if len(sample.turns) > 1 else ""
    if asked == DESCRIBE and isinstance(graph, Mapping):
        rewards = [value for _, value in sentence_rewards(text, graph)]
        return float(np.mean(rewards)) if rewards else -1.0
    return exact_reward(text, pair.chosen) if pair else 0.0


def rollouts(
    model: Model, samples: Sequence[Sample], n: int, seed: int, max_tokens: int = 32, temperature: float = 1.0
) -> list[list[str]]:
    """n answers that the model writes to the question of each sample, drawn with a temperature."""
    result: list[list[str]] = [[] for _ in samples]
    for draw in range(n):
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            images = [s.images[0] for s in part]
            prompts = [prompt_of(s) for s in part]
            how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed + draw}
            for k, text in enumerate(model.generate(images, prompts, **how)):
                result[start + k].append(text)
    return result


def prompt_of(sample: Sample) -> str:
    """The question of a sample about one picture."""
    return sample.turns[0].text.replace(f"{IMAGE}\n", "").replace(IMAGE, "").strip()


def asked_samples(source: Source, n: int) -> list[Sample]:
    """The first n samples with one question about one picture and a pair of answers. DiptychError if there are none."""
    found: list[Sample] = []
    for index in range(len(source)):
        if len(found) == n:
            break
        try:
            sample = source[index]
        except BrokenItem:
            continue
        if preference_of(sample) and len(sample.images) == 1 and len(sample.turns) == 2:
            found.append(sample)
    if not found:
        raise DiptychError(f"{source.address}: no question about one picture with a pair of answers; preferences:ADDRESS has them")
    return found


def best_of(samples: Sequence[Sample], answers: Sequence[Sequence[str]], judge: Judge = by_sentences) -> list[dict[str, Any]]:
    """For each sample the best and the worst of its answers, where they differ in reward: rows with prompt, chosen and rejected
    (rejection sampling; the first of equal ones).
    """
    rows = []
    for sample, own in zip(samples, answers, strict=True):
        scored = [(judge(text, sample), text) for text in own if text.strip()]
        if not scored:
            continue
        best, worst = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
        if best[0] > worst[0]:
            rows.append({"id": sample.id, "prompt": prompt_of(sample), "chosen": best[1], "rejected": worst[1]})
    return rows


def choices(samples: Sequence[Sample], answers: Sequence[Sequence[str]], k: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Multiple choice among the k commonest distinct answers of the model to each question, with the right one added in place of
    the last if it is not among them (DiVE-k, 2025: differential visual reasoning over top-k answers). Samples with one answer alone
    are left out. The chosen answer is the letter of the right one, the rejected one the letter of the model's commonest other.
    """
    rows = []
    for sample, own in zip(samples, answers, strict=True):
        pair = preference_of(sample)
        if pair is None:
            continue
        right = plain(pair.chosen)
        listed = [text for text, _ in Counter(plain(text) for text in own if text.strip()).most_common(k)]
        wrong = [text for text in listed if text != right]
        if not wrong:
            continue
        offered = [*wrong[: k - 1], right]
        random.Random(f"{seed} {sample.id}").shuffle(offered)
        lines = "\n".join(f"{LETTERS[i]}. {text}" for i, text in enumerate(offered))
        asked = f"{prompt_of(sample)}\n{lines}\nAnswer with the letter of the right choice."
        letters = {text: LETTERS[i] for i, text in enumerate(offered)}
        rows.append({"id": sample.id, "prompt": asked, "chosen": letters[right], "rejected": letters[wrong[0]]})
    return rows


def written(rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample], folder: Path) -> str:
    """The address of the rows as a file with their pictures next to it. DiptychError if there are no rows."""
    from PIL import Image

    if not rows:
        raise DiptychError("all answers to each question are equally good: nothing to learn; take more rollouts or questions")
    by_id = {sample.id: sample for sample in samples}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        name = f"images/{number:06}.png"
        Image.fromarray(by_id[row["id"]].images[0]).save(folder / name)
        lines.append(json.dumps({**row, "image": name}))
    write_text(folder / "pairs.jsonl", "\n".join(lines) + "\n")
    return f"preferences:{folder / 'pairs.jsonl'}"
