"""A run directory of any recipe as a ``Model`` with the capabilities that it has."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.config.recipe import Recipe
from diptych.core.batch import Batch
from diptych.core.capabilities import Example, Examples, Image, Prompt, all_pairs, examples_for, one_or_many, prompts_for
from diptych.core.encodings import IMAGE_CODES, IMAGE_EMBEDDING, TEXT, TEXT_EMBEDDING, Key, Pass
from diptych.core.errors import DiptychError
from diptych.core.graph import renamed
from diptych.core.streaming import cut
from diptych.data.clips import collated_clips
from diptych.data.fields import options_of
from diptych.data.fields.text import tokenized
from diptych.data.fields.tiles import collated_pictures
from diptych.data.image import as_pixels
from diptych.data.ocr import open_prompt
from diptych.inference.able import capabilities_of, missing_fields, read_from
from diptych.inference.chat import Answering, asked_with
from diptych.inference.clips.attended import frame_weights
from diptych.inference.compose import Composer, Following
from diptych.inference.fewshot import FewShot
from diptych.inference.generate import Decoding, decoding_of, draw, write
from diptych.inference.locating.run import Locates, ways_of
from diptych.inference.talking import Talking
from diptych.inference.texts.alone import TextAlone
from diptych.models.vlm import VLM
from diptych.objectives.scores import Likelihood, score_of
from diptych.training.checkpoint import checkpoint_key, restored
from diptych.training.precision import use_bf16
from diptych.training.start.setup import chat_of, pick_device

CHUNK = 256  # images or texts encoded at a time
PAIRS = 1024  # image-text pairs scored at a time

Scores = Tensor | tuple[Tensor, ...]  # of one kind, or of several at once
PairScorer = Callable[[Pass, Tensor, Tensor], Scores]


class TrainedModel(Talking, Locates):
    """Weights of a run behind the capabilities of ``diptych.core.capabilities.Model``."""

    def __init__(self, name: str, recipe: Recipe, model: VLM, objectives: torch.nn.ModuleDict, device: torch.device):
        self.name, self.recipe = name, recipe
        self.model, self.objectives = model.eval(), objectives.eval()
        self.device = device
        self.key: str | None = None  # identifies the weights, so that results can be kept
        self.place: Path | None = None  # the directory of the run
        self.autocast = use_bf16(recipe.precision, device)
        self.answering: Answering | None = None  # if it learned from conversations
        self.scorer = score_of(recipe.score, model, self.objectives.values())
        # shows: image or video, what it is shown; missing: other fields that it would need
        self.shows, needed, self.missing = read_from(model, self.scorer.needed() if self.scorer else ())
        self.names = {} if self.shows == "image" else {"image": self.shows}
        able = capabilities_of(model, self.objectives.values(), self.shows)
        can_score = {"score": bool(self.scorer), "score_all": self._all_at_once, "score_sides": self._two_sided}
        scored = not missing_fields(model, needed, self.shows)
        self.capabilities = able | {name for name, can in can_score.items() if can and scored}
        self.capabilities |= {"locate"} if ways_of(self) else set()
        self.refreshed()
        scales = [getattr(objective, "scale", None) for objective in self.objectives.values()]
        learned = [float(scale.detach()) for scale in scales if isinstance(scale, Tensor)]
        self.scale = learned[0] if learned else 100.0  # what cosines are multiplied by
        self.fewshot = FewShot(model, self._images, self._inference)

    @classmethod
    def load(cls, run: Path, device: str = "auto", averaged: bool = True, checkpoint: str = "last") -> TrainedModel:
        """A run's model. averaged: its averaged weights, if it has any. checkpoint: ``last``, ``best`` (by validation loss) or
        a name, ``step-00000500``.
        """
        found, where = restored(run, checkpoint, averaged), pick_device(device)
        torch.manual_seed(found.recipe.seed)
        trained = cls(run.name, found.recipe, found.model.to(where), found.objectives.to(where), where)
        trained.key, trained.place = checkpoint_key(found.checkpoint), run
        return trained

    def refreshed(self) -> None:
        """Called when the model gives its language model another number of tokens for a picture."""
        if "prompt" in self.capabilities:
            reader = open_prompt(options_of("turns", self.recipe.data.fields).get("reader"), self.recipe.data.train)
            self.answering = Answering(self.model, chat_of(self.recipe, self.model), self._images, self._inference, reader)

    # --- capabilities ---

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]. images: uint8 arrays [height, width, 3], Pillow images or paths, as in every method. One
        image on its own counts as one, and so does one text. A model that learned from clips (``shows`` is "video") takes a list of
        clips, uint8 [frames, height, width, 3]; a picture is a clip of one frame.
        """
        self._can("embed_image")
        return self._gather(one_or_many(images), self._images, IMAGE_EMBEDDING)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        self._can("embed_text")
        return self._gather(one_or_many(texts), self._texts, TEXT_EMBEDDING)

    def score(
        self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None, examples: Examples = ()
    ) -> np.ndarray:
        """By the recipe's ``score``: similarity, matching log-odds, log-likelihood or pseudo-log-likelihood of the text. examples:
        as for ``generate``. If the model can ``score_sides``, the score by which a text is chosen for an image.
        """
        self._can("score")
        images, texts = one_or_many(images), one_or_many(texts)
        assert self.scorer is not None
        before = self._examples(examples, len(images))
        if before and self.recipe.score != "likelihood":
            raise DiptychError(
                f"model '{self.name}' scores by {self.recipe.score}, which takes no examples; score: likelihood does"
            )
        if self.recipe.score == "similarity":
            matrix: np.ndarray = self.embed_image(images) @ self.embed_text(texts).T
            return matrix if pairs is None else matrix[pairs[:, 0], pairs[:, 1]]
        if pairs is None and not before and self._all_at_once:
            return self._score_all(images, texts, self.scorer.all_scores)[0]
        wanted = all_pairs(len(images), len(texts)) if pairs is None else np.asarray(pairs)
        if before or (self.answering and self.recipe.score == "likelihood"):
            shown, text = [images[i] for i in wanted[:, 0]], [texts[j] for j in wanted[:, 1]]
            scores = self.loglikelihood(shown, text, examples=[before[i] for i in wanted[:, 0]] if before else ())
        else:
            scores = self._score_pairs(images, texts, wanted, self.scorer.pair_scores)[0]
        return scores if pairs is not None else scores.reshape(len(images), len(texts))

    def score_sides(
        self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """``score`` by which a text is chosen for an image, and that by which an image is chosen for a text. DiptychError if the
        model has one score for both.
        """
        self._can("score_sides")
        images, texts = one_or_many(images), one_or_many(texts)
        assert self.scorer is not None
        if pairs is None and self._all_at_once:
            to_text, to_image = self._score_all(images, texts, self.scorer.all_sides)
            return to_text, to_image
        wanted = all_pairs(len(images), len(texts)) if pairs is None else np.asarray(pairs)
        sides = self._score_pairs(images, texts, wanted, self.scorer.pair_sides)
        to_text, to_image = sides if pairs is not None else (s.reshape(len(images), len(texts)) for s in sides)
        return to_text, to_image

    def _score_all(self, images: Sequence[Image], texts: Sequence[str], compare: Callable[[Pass], Scores]) -> list[np.ndarray]:
        """Scores for models that encode each side once and compare cheaply: a million scores are feasible. float32 [N, M] each."""
        out: list[np.ndarray] = []
        assert self.scorer is not None
        needs = [name for name in self.scorer.needed() if "." in name]
        read = [(j, self._texts(texts[j : j + CHUNK])) for j in range(0, len(texts), CHUNK)]
        for i in range(0, len(images), CHUNK):
            shown = self._images(images[i : i + CHUNK])
            for j, text in read:
                with self._inference():
                    both = shown.batch.with_(**text.batch.fields)
                    known = {renamed(name, self.names): p[name] for p in (shown, text) for name in needs if p.has(name)}
                    made = _arrays(compare(Pass(self.model, both, known).renamed(self.names)))
                out = out or [np.empty((len(images), len(texts)), dtype=np.float32) for _ in made]
                for every, scores in zip(out, made, strict=True):
                    every[i : i + len(scores), j : j + scores.shape[1]] = scores
        return out or [np.empty((len(images), len(texts)), dtype=np.float32)] * 2

    def frame_weights(self, clips: Sequence[Image], texts: Sequence[str]) -> list[np.ndarray] | None:
        """How much each frame of a clip counts for its text (``attended.frame_weights``); None: the model has no such weights."""
        return frame_weights(self, clips, texts)

    def loglikelihood(
        self, images: Sequence[Image], texts: Sequence[str], prompt: Prompt = "", examples: Examples = ()
    ) -> np.ndarray:
        """log P(text given image, prompt) in nats, float32 [N], for aligned pairs."""
        self._can("loglikelihood")
        images, texts = one_or_many(images), one_or_many(texts)
        before = self._examples(examples, len(images))
        prompts = prompts_for(prompt, len(images))
        if self.answering:
            return self.answering.loglikelihood(images, texts, prompts, before or [[]] * len(images))
        if before:
            return self.fewshot.loglikelihood(images, texts, prompts, before)
        self._no_prompt(prompts)
        aligned = np.stack([np.arange(len(images))] * 2, 1)
        return self._score_pairs(images, texts, aligned, Likelihood(self.model).pair_scores)[0]

    def generate(
        self, images: Sequence[Image], prompt: Prompt = "", max_tokens: int = 32, examples: Examples = (), **decoding: Any
    ) -> list[str]:
        """One caption per image, or answer to the prompt, greedy unless ``decoding`` (the fields of ``Decoding``: beams,
        temperature, top_p, …) says otherwise.

        examples: (image, caption) pairs that are shown first, a list for all images or one for each; (image, answer, prompt) if
        each answers its own prompt.
        """
        self._can("generate")
        images = one_or_many(images)
        how = decoding_of(max_tokens=max_tokens, **decoding)
        before = self._examples(examples, len(images))
        prompts = prompts_for(prompt, len(images))
        if self.answering:
            behind = list(zip(images, prompts, before or [[]] * len(images), strict=True))
            shown = [[*(e.image for e in row), image] for image, _, row in behind]
            return self.answering.converse(shown, [asked_with(p, row) for _, p, row in behind], how)
        if before:
            return self._written_behind(images, prompts, before, how)
        self._no_prompt(prompts)
        out: list[str] = []
        size = max(1, CHUNK // 4 // how.beams)
        for start in range(0, len(images), size):
            part = images[start : start + size]
            rows = [zlib.crc32(image.tobytes()) for image in part] if how.samples else None  # depends on the image
            with self._inference():
                ids = write(self.model, self._images(part), how, rows)
            out += [cut(self.model.tokenizer.decode(row), how.stop) for row in ids.tolist()]
        return out

    def _written_behind(
        self, images: Sequence[Image], prompts: Sequence[str], examples: Sequence[Sequence[Example]], how: Decoding
    ) -> list[str]:
        out = [""] * len(images)
        for members in self.fewshot.groups(prompts, max(1, CHUNK // 4 // how.beams)):
            part = [images[i] for i in members]
            rows = [zlib.crc32(image.tobytes()) for image in part] if how.samples else None
            with self._inference():
                read = self.fewshot.read(part, [prompts[i] for i in members], [examples[i] for i in members])
                ids = write(self.model, None, how, rows, (self.model.part("lm").lm.head(read.last[:, -1]), read.cache))
            for i, row in zip(members, ids.tolist(), strict=True):
                out[i] = cut(self.model.tokenizer.decode(row), how.stop)
        return out

    def complete(self, prompts: Sequence[str], max_tokens: int = 32, **decoding: Any) -> list[str]:
        """What follows each prompt, without an image (``core.capabilities.Completing``)."""
        self._can("complete")
        how = decoding_of(max_tokens=max_tokens, **decoding)
        return TextAlone(self.model, self._inference).complete(one_or_many(prompts), how)

    def text_loglikelihood(self, texts: Sequence[str], prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """log P(text, [EOS] given prompt) in nats, float32 [N], and the number of its tokens, int64 [N]."""
        self._can("complete")
        return TextAlone(self.model, self._inference).loglikelihood(prompts, texts)

    def draw(
        self,
        texts: Sequence[str],
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> list[Image]:
        """One image for each text (``core.capabilities.Drawing``)."""
        self._can("draw")
        texts = one_or_many(texts)
        how = decoding_of(temperature=temperature, top_k=top_k or None, top_p=top_p, seed=seed)
        ids, mask = (torch.from_numpy(x).to(self.device) for x in self.model.tokenizer.encode_batch(list(texts)))
        lengths = mask.sum(1)
        out: list[Image] = [np.zeros((0, 0, 3), dtype=np.uint8)] * len(texts)
        for length in sorted(set(lengths.tolist())):  # captions of one length together: no padding
            for members in (lengths == length).nonzero()[:, 0].split(CHUNK // 4):
                with self._inference():
                    codes = draw(self.model, ids[members, : length - 1], how, guidance, members.tolist())
                    for i, picture in zip(members.tolist(), self._pictures(codes), strict=True):
                        out[i] = picture
        return out

    def compose(
        self,
        documents: Sequence[Sequence[str | Image]],
        *,
        following: Following = None,
        most: int = 4,
        max_tokens: int = 32,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> list[list[str | Image]]:
        """What follows each document, a list of texts and images in order (``core.capabilities.Composing``)."""
        self._can("compose")
        how = decoding_of(max_tokens=max_tokens, temperature=temperature, top_k=top_k or None, top_p=top_p, seed=seed)
        composer = Composer(self.model, self._images, self.device)
        with self._inference():
            found = [composer.follow(document, following, most, how, guidance, i) for i, document in enumerate(documents)]
            return [composer.shown(parts, self._pictures) for parts in found]

    def reconstruct(self, images: Sequence[Image]) -> list[Image]:
        """Images after a round trip through the model's own codes."""
        self._can("reconstruct")
        images = one_or_many(images)
        out: list[Image] = []
        for start in range(0, len(images), CHUNK):
            with self._inference():
                out += self._pictures(self._images(images[start : start + CHUNK])[IMAGE_CODES])
        return out

    # --- how ---

    def _pictures(self, codes: Tensor) -> list[Image]:
        pixels = self.model.part("quantizer").decode(codes).float().clamp(-1, 1)
        return list(((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())

    def _can(self, capability: str) -> None:
        if capability not in self.capabilities:
            why = f": it learned from the field {' and '.join(self.missing)}, not from images" if self.missing else ""
            raise DiptychError(f"model '{self.name}' cannot {capability}{why}; it can: {', '.join(sorted(self.capabilities))}")

    def _no_prompt(self, prompts: Sequence[str]) -> None:
        if any(prompts):
            shown = "; show it examples of what is wanted" if "examples" in self.capabilities else ""
            raise DiptychError(f"model '{self.name}' writes captions only; it was not trained to follow a prompt{shown}")

    def _examples(self, examples: Examples, n: int) -> list[list[Example]]:
        """The examples of each image; empty if there are none."""
        rows = examples_for(examples, n)
        if not any(rows):
            return []
        if "examples" not in self.capabilities:
            raise DiptychError(f"model '{self.name}' takes no examples: only a language model reads several images (a part 'lm')")
        return rows

    @property
    def _all_at_once(self) -> bool:
        """Whether scoring all images with all texts is cheap, in another way than by embeddings."""
        return self.scorer is not None and self.scorer.scores_all and self.recipe.score != "similarity"

    @property
    def _two_sided(self) -> bool:
        """Whether images are chosen for a text by another score than texts for an image."""
        return self.scorer is not None and self.scorer.two_sided

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext():
            yield

    def _images(self, images: Sequence[Image]) -> Pass:
        """The pass over images alone; of a model that learned from clips, over clips."""
        if self.shows == "video":
            clips = collated_clips(images, self.model.image_size, self.recipe.data.fields).to(self.device)
            return self.model.encode(Batch({"video": clips}, len(images))).renamed(self.names)
        arrays = [as_pixels(image, f"image {i}") for i, image in enumerate(images)]
        shown = collated_pictures(arrays, self.model.image_size, self.recipe.data.fields).to(self.device)
        return self.model.encode(Batch({"image": shown}, len(images)))

    def _texts(self, texts: Sequence[str]) -> Pass:
        """The pass over texts alone."""
        return self.model.encode(Batch({"text": tokenized(self.model.tokenizer, texts).to(self.device)}, len(texts)))

    def _gather(self, items: Sequence[Any], of: Callable[[Any], Pass], name: Key[Tensor]) -> np.ndarray:
        parts = []
        for start in range(0, len(items), CHUNK):
            with self._inference():
                parts.append(of(items[start : start + CHUNK])[name].float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.model.embed_dim), dtype=np.float32)

    def _score_pairs(
        self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray, scorer: PairScorer
    ) -> list[np.ndarray]:
        """Pairs by blocks of images, so that no more than CHUNK images' encodings are held at a time; texts likewise. float32 [P]
        of each kind of score.
        """
        out: list[np.ndarray] = []
        for members in _blocks(pairs, CHUNK):
            block = pairs[members]
            image_ids, image_rows = np.unique(block[:, 0], return_inverse=True)
            text_ids, text_rows = np.unique(block[:, 1], return_inverse=True)
            with self._inference():
                shown, read = self._images([images[i] for i in image_ids]), self._texts([texts[i] for i in text_ids])
                p = self.model.encode(shown.batch.with_(**read.batch.fields)).renamed(self.names)
                lengths = p[TEXT].mask.sum(1).cpu().numpy()[text_rows]
                order = np.argsort(lengths, kind="stable")  # texts of similar length together: little padding
                members, image_rows, text_rows = members[order], image_rows[order], text_rows[order]
                for start in range(0, len(block), PAIRS):
                    rows = (torch.from_numpy(x[start : start + PAIRS]).to(self.device) for x in (image_rows, text_rows))
                    made = _arrays(scorer(p, *rows))
                    out = out or [np.empty(len(pairs), dtype=np.float32) for _ in made]
                    for every, scores in zip(out, made, strict=True):
                        every[members[start : start + PAIRS]] = scores
        return out or [np.empty(0, dtype=np.float32)] * 2


def _arrays(scores: Scores) -> list[np.ndarray]:
    return [x.float().cpu().numpy() for x in (scores if isinstance(scores, tuple) else (scores,))]


def _blocks(pairs: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Indices of pairs, so that each block touches at most ``size`` images and ``size`` texts."""
    image_block, text_block = pairs[:, 0] // size, pairs[:, 1] // size
    key = image_block * (math.ceil((pairs[:, 1].max(initial=0) + 1) / size) + 1) + text_block
    order = np.argsort(key, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(key[order])) + 1) if len(order) else ()
