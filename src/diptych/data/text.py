"""From captions to token ids: a byte-level BPE tokenizer trained on the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from diptych.core.registry import resolve

SPECIALS = ("[PAD]", "[BOS]", "[EOS]", "[MASK]")
PAD, BOS, EOS, MASK = range(4)


def normalise(caption: str) -> str:
    """Lower case, single spaces, no full stop at the end: captions that are equal then have the same meaning."""
    return " ".join(caption.lower().split()).rstrip(" .")


class Tokenizer:
    """[BOS] tokens [EOS], at most ``max_length`` of them; byte-level, so it can encode any text."""

    pad, bos, eos, mask = PAD, BOS, EOS, MASK
    # What a language model also asks of its tokenizer (``models.pretrained.tokenizer.LMTokenizer``).
    template: str | None = None  # a chat template; None: the plain one
    given: Any = None  # the tokenizer of transformers from which it was made
    specials: Mapping[str, str] = MappingProxyType({})

    def __init__(self, path_or_json: str | Path, max_length: int):
        import tokenizers

        text = path_or_json.read_text(encoding="utf-8") if isinstance(path_or_json, Path) else path_or_json
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self.max_length = max_length

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, max_length: int) -> Tokenizer:
        """A byte-level BPE tokenizer that learned ``vocab_size`` tokens, special tokens included, from normalised captions."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(normalise, captions), trainer)
        return cls(tokenizer.to_str(), max_length)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def backend(self) -> Any:
        """The tokenizer of the tokenizers library."""
        return self._tokenizer

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as it is written, without [BOS] and [EOS]; special tokens that a chat template wrote are single ids."""
        sound = [text.encode("utf-8", "replace").decode() for text in texts]  # no lone surrogates: the backend raises on them
        return [e.ids for e in self._tokenizer.encode_batch(sound)]

    def caption_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as captions are read in training (``normalise``), without [BOS] and [EOS]."""
        return self.pieces([normalise(text) for text in texts])

    def token(self, i: int) -> str:
        """The piece of an id."""
        return str(self._tokenizer.id_to_token(i))

    def to_json(self) -> str:
        """The tokenizer in the format of the tokenizers library; ``Tokenizer(text, max_length)`` reads it."""
        return str(self._tokenizer.to_str(pretty=False))

    def save(self, path: Path) -> None:
        """Writes ``to_json`` to a file."""
        path.write_text(self.to_json(), encoding="utf-8")

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [B, T] and mask bool [B, T], T the longest of the batch rounded up to a multiple of 4."""
        room = self.max_length - 2
        rows = [[BOS, *ids[:room], EOS] for ids in self.caption_pieces(texts)]
        longest = max(map(len, rows), default=4)
        T = min(-(-longest // 4) * 4, self.max_length)
        ids = np.full((len(rows), T), PAD, dtype=np.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        return ids, ids != PAD

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens up to [EOS], without special tokens."""
        words = []
        for i in map(int, ids):
            if i == EOS:
                break
            if i not in (PAD, BOS, MASK):
                words.append(i)
        return self._tokenizer.decode(words).strip()


TOKENIZERS: dict[str, Any] = {
    "bpe": Tokenizer
}  # classes with ``train``, ``encode_batch``, ``decode``, ``to_json`` and ``save`` as ``Tokenizer`` has them


def tokenizer_class(kind: str) -> type[Tokenizer] | None:
    """The class of ``data.tokenizer.kind``; None: the language model brings its own. DiptychError for an unknown one."""
    if kind == "lm":
        return None
    result: type[Tokenizer] = resolve(kind, {**TOKENIZERS, "lm": None}, "tokenizer")
    return result
