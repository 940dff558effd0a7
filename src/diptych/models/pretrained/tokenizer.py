"""Tokenizers of causal language models: whole, or trimmed to what a corpus needs.

They give numpy arrays, as the corpus tokenizer in ``diptych.data.text`` does.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.files import read_json, write_json

SPACE = "▁"  # how SentencePiece vocabularies write a space
LATIN = 0x250  # code points below it stay single-character pieces; they include the alphabet of byte-level vocabularies


class LMTokenizer:
    """[BOS] pieces [EOS] around the ``tokenizers`` backend of a language model."""

    template: str | None = None  # the chat template (Jinja), if the model has one
    given: Any = None  # the tokenizer of transformers from which it was made
    specials: Mapping[str, str] = {}  # bos_token, eos_token …: the special tokens that a template may write

    def __init__(self, backend: Any, *, pad: int, bos: int, eos: int, max_length: int = 64):
        self.backend = backend
        self.pad, self.bos, self.eos = pad, bos, eos
        self.max_length = max_length

    @classmethod
    def of(cls, tokenizer: Any, max_length: int = 64) -> LMTokenizer:
        """From a fast tokenizer of transformers. A model without [BOS] or [PAD] (Qwen, GPT-2) uses [EOS] instead."""
        eos = tokenizer.eos_token_id
        pad, bos = (eos if i is None else i for i in (tokenizer.pad_token_id, tokenizer.bos_token_id))
        made = cls(tokenizer.backend_tokenizer, pad=pad, bos=bos, eos=eos, max_length=max_length)
        made.given = tokenizer
        made.template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        made.specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        return made

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size())

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without [BOS] and [EOS]."""
        sound = [text.encode("utf-8", "replace").decode() for text in texts]  # no lone surrogates: the backend raises on them
        return [e.ids for e in self.backend.encode_batch(sound, add_special_tokens=False)]

    def caption_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """``pieces``: captions are read as they are written."""
        return self.pieces(texts)

    def encode_batch(self, texts: Sequence[str], max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [B, T] and mask bool [B, T], T the longest of the batch; a text that is too long still ends in [EOS]."""
        room = (max_length or self.max_length) - 2
        rows = [[self.bos, *ids[:room], self.eos] for ids in self.pieces(texts)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        T = int(lengths.max(initial=2))
        ids = np.full((len(rows), T), self.pad, dtype=np.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        return ids, np.arange(T) < lengths[:, None]

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first [EOS]."""
        words: list[int] = []
        for i in map(int, ids):
            if i == self.eos and words:
                break
            if i not in (self.pad, self.bos, self.eos):
                words.append(i)
        return str(self.backend.decode(self.original(words), skip_special_tokens=True)).strip()

    def token(self, i: int) -> str:
        """The piece of an id."""
        return str(self.backend.id_to_token(*self.original([i])))

    def original(self, ids: list[int]) -> list[int]:
        """The same pieces under the ids of the untrimmed vocabulary."""
        return ids

    def save(self, path: Path) -> None:
        """What is not in the model's own files; see ``kept_in``."""
        write_json(path, {"max_length": self.max_length, "kept": None})


class TrimmedTokenizer(LMTokenizer):
    """Splits text as the whole tokenizer does; a piece outside ``kept`` is spelled with shorter kept ones, or its bytes."""

    def __init__(self, whole: LMTokenizer, kept: Sequence[int]):
        self.kept = np.asarray(kept, dtype=np.int64)  # [V'] ids of the whole vocabulary, ascending
        self.new = {int(old): new for new, old in enumerate(self.kept)}
        pad, bos, eos = (self.new[i] for i in (whole.pad, whole.bos, whole.eos))
        super().__init__(whole.backend, pad=pad, bos=bos, eos=eos, max_length=whole.max_length)
        self.template, self.specials = whole.template, whole.specials
        self.spell = lru_cache(maxsize=100_000)(self._spell)

    def __len__(self) -> int:
        return len(self.kept)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Tokens that are kept."""
        return {str(self.backend.id_to_token(old)): new for old, new in self.new.items()}

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without [BOS] and [EOS]."""
        return [
            [i for old in ids for i in ([self.new[old]] if old in self.new else self.spell(old))] for ids in super().pieces(texts)
        ]

    def _spell(self, old: int) -> list[int]:
        """Longest kept piece first, then bytes; what has no bytes either is left out."""
        piece = str(self.backend.id_to_token(old))
        ids: list[int] = []
        while piece:
            for end in range(len(piece), 0, -1):
                if piece[:end] in self.vocabulary:
                    ids.append(self.vocabulary[piece[:end]])
                    break
            else:
                end = 1
                names = [f"<0x{byte:02X}>" for byte in piece[0].encode()]
                ids += [self.vocabulary[name] for name in names if name in self.vocabulary]
            piece = piece[end:]
        return ids

    def original(self, ids: list[int]) -> list[int]:
        """The same pieces under the ids of the untrimmed vocabulary."""
        return [int(self.kept[i]) for i in ids]

    def save(self, path: Path) -> None:
        """What of it is not in the model's own files; see ``kept_in``."""
        write_json(path, {"max_length": self.max_length, "kept": self.kept.tolist()})


def kept_in(path: Path) -> list[int] | None:
    """The kept ids of a saved tokenizer; None: it was not trimmed."""
    kept: list[int] | None = read_json(path)["kept"]
    return kept


def kept_ids(tokenizer: LMTokenizer, texts: Iterable[str]) -> list[int]:
    """Ids that a corpus needs, ascending: those of its texts, specials, bytes and single Latin characters."""
    kept = {tokenizer.pad, tokenizer.bos, tokenizer.eos}
    for ids in tokenizer.pieces(list(texts)):
        kept.update(ids)
    for piece, i in tokenizer.backend.get_vocab().items():
        letter = piece.removeprefix(SPACE)
        if not letter or (len(letter) == 1 and ord(letter) < LATIN) or (len(piece) == 6 and piece.startswith("<0x")):
            kept.add(i)
    return sorted(kept)


def tiny_tokenizer(texts: Iterable[str] = (), vocab: int = 512, max_length: int = 64) -> LMTokenizer:
    """A small one of Gemma's kind (spaces as ▁, bytes for the unknown), for tests and models made from scratch."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - 256,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"],
        initial_alphabet=[SPACE, *string.ascii_lowercase],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    parts = json.loads(backend.to_str())
    pieces = parts["model"]["vocab"]
    pieces |= {f"<0x{byte:02X}>": len(pieces) + byte for byte in range(256)}  # as special tokens they would not be decoded
    return LMTokenizer(tokenizers.Tokenizer.from_str(json.dumps(parts)), pad=0, bos=2, eos=1, max_length=max_length)
