"""Language models: pretrained decoders that read image tokens before the words.

A sequence is [BOS], the image tokens, the caption, [EOS]. An ``lm`` part has ``width``, ``caption_logits``, ``remember``,
``continue_logits``, ``image_state``, ``text_state``, and ``start`` and ``step`` to write by. Shapes: B batch, N image tokens, T
text tokens with [BOS] and [EOS], D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diptych.core.batch import Texts, Turns
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.data.conversations.template import IMAGE_ID, Chat
from diptych.models.build import Build
from diptych.models.language.preferred import Preferring
from diptych.models.language.seen import Seen, at_end
from diptych.models.layers.cache import KVCache, Prefix
from diptych.models.layers.ragged import ImageTokens, Ragged, behind, flat, padded, real
from diptych.models.part import Part

if TYPE_CHECKING:
    from diptych.models.pretrained import CausalLM


IMAGE_PROMPTS, TEXT_PROMPT, MEANS = ("This photo:", "This image:", "This picture:"), "This sentence:", "means:"
REMEMBERED = 50_000  # texts with stored embeddings, while nothing in the model learns


class PretrainedLM(Part, Preferring):
    """A causal language model of transformers.

    trim: keep only the vocabulary that the training captions need. prompts: images are embedded as "This photo: … means:", with
    photo, image or picture drawn at random in training, and texts as "This sentence: … means:" (Ak et al., section 3.4). The image
    is then also captioned after "This photo:", so that it is read once for both.
    """

    scale: Tensor
    gated = False  # whether layers of a fusion part look at the image, which is then not among the words
    soft: Mapping[str, Tensor] = MappingProxyType({})  # learned vectors before an image or a text (adapter ``soft_prompt``)
    draws = False  # whether a prompt is drawn at random: set while the model trains, also if this part is frozen
    begins_with = "image.prefix"
    can = frozenset({"generate", "decoding", "loglikelihood", "examples", "complete"})
    packaged: tuple[str, ...] = ("",)  # all weights come from the package; a checkpoint holds none of them while the part is frozen

    def __init__(self, build: Build, open: Callable[[], CausalLM], trim: bool, prompts: bool = False):
        super().__init__()
        self.prompted = prompts
        self.open = open  # opens the original model, each time anew
        lm = open()
        if trim:
            text = [*IMAGE_PROMPTS, TEXT_PROMPT, MEANS] if prompts else []
            lm.trim([*build.corpus, *text, *template_words(lm.tokenizer)], kept=build.kept)
        self.lm = lm
        self.width = lm.width
        lm.tokenizer.max_length = build.max_length
        # Image tokens start at the size of word vectors: much larger or smaller ones would dominate or be ignored.
        words = lm.embed(torch.arange(lm.vocabulary)[None]).float()
        self.register_buffer("scale", words.pow(2).mean().sqrt(), persistent=False)
        self._openings, self._before, self._after = self._asked() if prompts else ([[]], [], [])
        self._states: dict[bytes, Tensor] = {}
        self._states_of = -1  # the version of the weights with which they were computed

    def _asked(self) -> tuple[list[list[int]], list[int], list[int]]:
        """Ids of the prompts; those of the three openings that are as long as the first, since a batch has one length."""
        openings = self.lm.tokenizer.pieces(IMAGE_PROMPTS)
        before, after = self.lm.tokenizer.pieces([TEXT_PROMPT, MEANS])
        return [o for o in openings if len(o) == len(openings[0])], before, after

    @property
    def own_tokenizer(self) -> Any:
        """The tokenizer of the whole model."""
        return self.lm.tokenizer

    def prepare(self, stage_training: bool) -> None:
        """Called when the model changes between training and evaluation, also if the part itself is frozen."""
        self.draws = stage_training

    @property
    def adapted_root(self) -> Any:
        """The module with the linear layers that adapters extend."""
        return self.lm.model

    def _words(self, ids: list[int], rows: int, device: torch.device) -> Tensor:
        """The same words in every row: vectors [rows, T, D]."""
        return self.lm.embed(torch.tensor(ids, dtype=torch.long, device=device).expand(rows, -1))

    def _opening(self, prefix: ImageTokens) -> Tensor:
        """[BOS], "This photo:" if there are prompts, and the image unless layers look at it: [B, P + N, D]."""
        B, device = len(prefix), prefix.device
        n = len(self._openings) if self.draws else 1
        which = torch.randint(n, (B,)) if n > 1 else torch.zeros(B, dtype=torch.long)
        ids = torch.tensor([[self.lm.tokenizer.bos, *o] for o in self._openings], device=device)[which.to(device)]
        before = self._softened(self.lm.embed(ids), "image")
        if self.gated:
            return before
        return behind(before, prefix * self.scale)

    def _softened(self, words: Tensor, side: str) -> Tensor:
        """Words before an image or a text [B, P, D], and behind them the learned vectors of that side, if there are any."""
        own = self.soft.get(side)
        return words if own is None else torch.cat([words, own.to(words.dtype).expand(len(words), -1, -1)], 1)

    @property
    def learns(self) -> bool:
        """Whether anything in it, or a vector before its words, is trained now."""
        return super().learns or any(vectors.requires_grad for vectors in self.soft.values())

    @provides("{image}.state", "{image}.kv_cache")
    def image_state(self, images: Prefix) -> Tensor:
        """f(g(x)): the last hidden state at an [EOS] after the image, [B, D] (Ak et al., equation 1)."""
        words = self._words([*self._after, self.lm.tokenizer.eos], len(images.last), images.last.device)
        seen = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
        return self.lm.hidden(words, seen, past=images.cache)[:, -1]

    @provides("{text}.state", "{text}")
    def state_of(self, text: Texts) -> Tensor:
        """f(y): [B, D]"""
        return self.text_state(text.ids, text.mask)

    def text_state(self, ids: Tensor, mask: Tensor) -> Tensor:
        """f(y): the last hidden state at a text's [EOS], [B, D]. Computed once per text while nothing here learns."""
        if self.learns:
            return self._text_state(ids, mask)
        now = sum(p._version for p in (*self.parameters(), *self.soft.values()))
        if now != self._states_of:  # loaded, or averaged (a teacher)
            self._states.clear()
            self._states_of = now
        rows = [row[keep].cpu().numpy().tobytes() for row, keep in zip(ids, mask, strict=True)]
        new = [i for i, key in enumerate(rows) if key not in self._states]
        with torch.no_grad():
            states = self._text_state(ids[new], mask[new]) if new else ids.new_zeros(0)
        fresh = {rows[i]: state for i, state in zip(new, states, strict=True)}
        result = torch.stack([fresh[key] if key in fresh else self._states[key].to(ids.device) for key in rows])
        if len(self._states) + len(fresh) > REMEMBERED:
            self._states.clear()
        self._states.update((key, state.cpu()) for key, state in fresh.items())
        return result

    def _text_state(self, ids: Tensor, mask: Tensor) -> Tensor:
        B = len(ids)
        last = mask.sum(1) - 1  # of [EOS], which moves after "means:"
        before = torch.tensor(self._before, dtype=torch.long, device=ids.device).expand(B, -1)
        room = ids.new_full((B, len(self._after)), self.lm.tokenizer.pad)
        ids = torch.cat([ids[:, :1], before, ids[:, 1:], room], 1)
        place = torch.arange(ids.shape[1], device=ids.device)
        end = last + len(self._before)
        for k, word in enumerate([*self._after, self.lm.tokenizer.eos]):
            ids = torch.where(place == (end + k)[:, None], word, ids)
        head = 1 + len(self._before)
        start = self._softened(self.lm.embed(ids[:, :head]), "text")
        words = torch.cat([start, self.lm.embed(ids[:, head:])], 1)
        end = end + len(self._after) + start.shape[1] - head
        hidden = self.lm.hidden(words, torch.arange(words.shape[1], device=ids.device) <= end[:, None])
        return hidden[torch.arange(B, device=ids.device), end]

    @cached_property
    def reads_both(self) -> bool:
        """Whether a caption and an [EOS] after one image can be read in one pass."""
        return not self.gated and self.lm.pruning is None and self.lm.branches()

    @provides(("text.logits", "image.state"), "image.prefix", "text", together="reads_both")
    def logits_and_state(self, prefix: ImageTokens, text: Texts) -> tuple[Tensor, Tensor]:
        """The captions' next-token logits and the images' states, in one pass."""
        return self.caption_and_state(prefix, text.ids, text.mask)

    def caption_and_state(self, prefix: ImageTokens, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """``caption_logits`` and ``image_state`` of the same images: one sequence, in which the words of one do not see those of
        the other.
        """
        if isinstance(prefix, Ragged):
            return self.caption_logits(prefix, ids, mask), self.image_state(self.remember(prefix))
        opening = self._opening(prefix)
        embeds = torch.cat([opening, self.lm.embed(ids[:, 1:-1])], 1)
        seen = torch.cat([real(opening, prefix), mask[:, 1:-1]], 1)
        words = self._words([*self._after, self.lm.tokenizer.eos], len(ids), ids.device)
        hidden = self.lm.hidden_of_branch(embeds, seen, words, after=opening.shape[1])
        return self.lm.head(hidden[:, opening.shape[1] - 1 : seen.shape[1]]), hidden[:, -1]

    @provides("text.logits", "image.prefix", "text")
    def logits(self, prefix: ImageTokens, text: Texts) -> Tensor:
        """[B, T − 1, V]: row t predicts token t + 1, given the image and the tokens up to t."""
        return self.caption_logits(prefix, text.ids, text.mask)

    @provides("text.logits", "image.kv_cache", "text", paired=True)
    def logits_from_cache(self, images: Prefix, text: Texts) -> Tensor:
        """Like ``logits``, for images that were read before."""
        return self.continue_logits(images, text.ids, text.mask)

    @provides("text.blind_logits", "text")
    def logits_without_image(self, text: Texts) -> Tensor:
        """[B, T − 1, V]: row t predicts token t + 1 from the text alone."""
        return self.text_logits(text.ids, text.mask)

    @provides("turns.logits", "turns", "turns.images.prefix?")
    def logits_of_turns(self, turns: Turns, shown: ImageTokens | None) -> Tensor:
        """[n, V] over the n learned tokens of conversations, row by row."""
        return self.answer_logits(turns.ids, shown, turns.positions, turns.learned)

    def caption_logits(self, prefix: ImageTokens, ids: Tensor, mask: Tensor) -> Tensor:
        """prefix [B, N, D], ids and mask [B, T] → [B, T − 1, V]; row t predicts text token t + 1."""
        if self.lm.pruning is not None:  # the image alone: words behind it cannot change what is left of it
            return self.continue_logits(self.remember(prefix), ids, mask)
        opening = self._opening(prefix)  # [B, P + N, D]
        embeds = torch.cat([opening, self.lm.embed(ids[:, 1:-1])], 1)
        seen = torch.cat([real(opening, prefix), mask[:, 1:-1]], 1)
        hidden = self.lm.hidden(embeds, seen, seen=self._look_at(prefix))
        return self.lm.head(hidden[:, opening.shape[1] - 1 :])

    def _look_at(self, prefix: ImageTokens) -> Seen | None:
        return Seen.one(padded(prefix)) if self.gated else None

    @provides("{image}.kv_cache", "{image}.prefix")
    @provides("{video}.kv_cache", "{video}.prefix")
    def remember(self, prefix: ImageTokens) -> Prefix:
        """[BOS] and an image, read once, so that many captions can be tried on it."""
        opening = self._opening(prefix)
        seen = real(opening, prefix)
        hidden, past = self.lm.step(opening, seen, None, self._look_at(prefix), None if self.gated else at_end(opening, prefix))
        return Prefix(hidden[:, -1:], past)

    def image_hidden(self, prefix: ImageTokens) -> Tensor:
        """The last layer's normalised states at an image's tokens [B, N, D]; if gated, at the last word before them [B, 1, D]."""
        opening = self._opening(prefix)
        hidden = self.lm.hidden(opening, real(opening, prefix), seen=self._look_at(prefix))
        return hidden[:, -1:] if self.gated else hidden[:, -prefix.shape[1] :]

    def continue_logits(self, images: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
        """Like ``caption_logits``, for images that were read before."""
        hidden = images.last
        if ids.shape[1] > 2:
            words = self.lm.hidden(self.lm.embed(ids[:, 1:-1]), mask[:, 1:-1], past=images.cache)
            hidden = torch.cat([hidden, words], 1)
        return self.lm.head(hidden)

    def text_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Without any image: ids and mask [B, T] → [B, T − 1, V]; row t predicts token t + 1."""
        return self.lm.head(self.lm.hidden(self.lm.embed(ids[:, :-1]), mask[:, :-1]))

    def words_and_images(self, ids: Tensor, shown: ImageTokens | None) -> Tensor:
        """Vectors [R, T, D] of ``ids`` [R, T], in which ids below 0 are replaced by the images ``shown`` [I, N, D], row by row.

        Among words an image takes N positions. In a gated model it takes one, with [BOS] in it, as before a single caption: this
        sees the image, as do the words after it.
        """
        words = self.lm.embed(ids.masked_fill(ids < 0, self.lm.tokenizer.bos))
        if shown is None or self.gated:
            return words
        return words.masked_scatter((ids < 0)[..., None], (flat(shown) * self.scale).to(words.dtype))

    def _last_seen(self, ids: Tensor, shown: ImageTokens | None, positions: Tensor | None = None) -> Seen | None:
        """What each of ``ids`` looks at in a gated model; ids below 0 are the positions of images."""
        return Seen.latest(ids < 0, None if shown is None else padded(shown), self.width, positions) if self.gated else None

    def place(self, tokens: int) -> list[int]:
        """Ids of an image of ``tokens`` tokens among words, with the ids that always precede it."""
        return [IMAGE_ID, *self._openings[0]] if self.gated else [*self._openings[0], *[IMAGE_ID] * tokens]

    def answer_logits(self, ids: Tensor, shown: ImageTokens | None, positions: Tensor, learned: Tensor) -> Tensor:
        """[n, V] over the n tokens of conversations that are ``learned`` [R, T]; computed for these alone."""
        hidden = self.lm.documents(self.words_and_images(ids, shown), positions, self._last_seen(ids, shown, positions))
        return self.lm.head(hidden[:, :-1][learned[:, 1:]])

    @torch.no_grad()
    def packs(self) -> bool:
        """Whether documents in one row do not see each other: transformers supports it for most models, not recurrent ones."""
        device, n, training = self.scale.device, 6, self.training
        self.eval()
        one, other, second = (torch.arange(k, k + n, device=device) % self.lm.vocabulary for k in (3, 3 + n, 5))
        positions = torch.arange(n, device=device).repeat(2)[None]
        a, b = (
            self.lm.documents(self.lm.embed(torch.cat([first, second])[None]), positions)[:, n:].float() for first in (one, other)
        )
        self.train(training)
        return bool((a - b).norm() <= 1e-3 * b.norm())

    def read(self, ids: Tensor, mask: Tensor, shown: ImageTokens | None, past: KVCache | None = None) -> Prefix:
        """Words and images [B, T], padded on the left: the state from which ``continue_logits`` and ``step`` continue.

        past: the state of earlier input, of one row or of B; these words then begin with an image.
        """
        words = self.words_and_images(ids, shown)
        hidden, past = self.lm.step(words, mask, past, self._last_seen(ids, shown), None if self.gated else ids < 0)
        return Prefix(hidden[:, -1:], past)

    def start(self, prefix: ImageTokens) -> tuple[Tensor, KVCache]:
        """Logits [B, V] over a caption's first token, and the state, as ``inference/generate.py`` expects it."""
        images = self.remember(prefix)
        return self.lm.head(images.last[:, -1]), images.cache

    def step(self, ids: Tensor, past: KVCache) -> tuple[Tensor, KVCache]:
        """Logits [B, V] over the token after ``ids`` [B]."""
        seen = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)
        hidden, past = self.lm.step(self.lm.embed(ids[:, None]), seen, past)
        return self.lm.head(hidden[:, -1]), past


class Gemma(PretrainedLM):
    """Gemma 3 270M (Gemma Team 2025), under the Gemma Terms of Use."""

    weights = "gemma-3-270m"

    def __init__(self, build: Build, *, trim: bool = True, prompts: bool = False):
        from diptych.models.pretrained import load_gemma

        dtype = precision(build)
        super().__init__(build, lambda: load_gemma(dtype=dtype), trim, prompts)
        build.licences.append("gemma-3-270m")


class HubLM(PretrainedLM):
    """A causal language model of transformers (Llama, Qwen, Gemma, SmolLM, GPT-2 …): ``from: hf:NAME_OR_PATH`` or a GGUF file."""

    def __init__(self, build: Build, *, from_: str, trim: bool = True, prompts: bool = False):
        from diptych.models.pretrained import load_causal_lm

        dtype = precision(build)
        super().__init__(build, lambda: load_causal_lm(from_, dtype), trim, prompts)


def precision(build: Build) -> torch.dtype:
    """Half precision if nothing learns but adapters; small steps would be lost in such weights."""
    return torch.bfloat16 if build.frozen or build.adapted else torch.float32


def template_words(tokenizer: Any) -> list[str]:
    """The text that the chat template adds to conversations: a trimmed vocabulary has to keep it."""
    try:
        return Chat(tokenizer, 1).words()
    except DiptychError:  # a template that no conversation can use; the error is raised if there are conversations
        return []


COMMON = (
    "there is a picture of an the with and no to in on at left right top bottom above below behind front big small one two three "
    "four five six red orange yellow green blue purple pink brown black white man woman people sitting standing large table "
    "street sign"
)


class RandomLM(PretrainedLM):
    """A tiny language model with random weights, for tests and for trying a recipe without the packages."""

    def __init__(self, build: Build, *, width: int = 32, depth: int = 2, prompts: bool = False):
        from diptych.models.pretrained import CausalLM

        # fixed words: a checkpoint holds no tokenizer and, while the part is frozen, no weights
        def open() -> CausalLM:
            """The model with random weights."""
            return CausalLM.random(width=width, depth=depth, texts=[COMMON] * 2)

        super().__init__(build, open, trim=False, prompts=prompts)


class Llama(PretrainedLM):
    """A Llama (Touvron et al. 2023) with fresh weights and the run's own tokenizer, to be trained here.

    By default it has the sizes of the recipe's ``size``. depth: layers; hidden: width of the MLPs. In another recipe it takes its
    weights from the run that trained it (``backbones``, or ``weights: RUN?parts=lm``).
    """

    packaged = ()

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        prompts: bool = False,
    ):
        from diptych.models.pretrained.causal_lm import fresh_llama

        build.require(build.tokenizer is not None, "it has no words of its own; set data.tokenizer.kind: bpe")
        width, heads = width or build.size.width, heads or build.size.heads
        build.require(width % (2 * heads) == 0, f"width: {width} is not a multiple of twice the number of heads, {heads}")

        def open() -> CausalLM:
            """The model with fresh weights."""
            return fresh_llama(build.tokenizer, width, depth or build.size.depth, heads, hidden or 4 * width)

        super().__init__(build, open, trim=False, prompts=prompts)

    @property
    def own_tokenizer(self) -> Any:
        """None: it has the run's."""
        return None


LM = {"hf": HubLM, "gemma": Gemma, "llama": Llama, "random": RandomLM}
