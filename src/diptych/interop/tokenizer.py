"""Our byte-level BPE tokenizer as a tokenizer of transformers, and its ids there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diptych.core.errors import DiptychError
from diptych.data.text import BOS, EOS, PAD, SPECIALS, Tokenizer

NAMES = ("pad_token", "bos_token", "eos_token", "mask_token")  # what transformers calls SPECIALS
SPACE = "Ġ"  # how byte-level vocabularies write a space
# What data.text.normalise does: lower case, single spaces, no full stop at the end. Python's white space is Unicode's and four
# control codes.
NORMALISER = {
    "type": "Sequence",
    "normalizers": [
        # The lower case of this letter depends on its position.
        {"type": "Replace", "pattern": {"Regex": r"(?<=\p{L})Σ(?!\p{L})"}, "content": "ς"},
        {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": r"[\s\x1c-\x1f\x85]+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": r"[ .]+\z"}, "content": ""},
    ],
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with its ids as another library needs them. end_last: [EOS] exchanges its id with the token of the highest id."""

    tokenizer: Tokenizer
    end_last: bool

    @cached_property
    def order(self) -> list[int]:
        """Our id of each of theirs."""
        order = list(range(len(self.tokenizer)))
        if self.end_last:
            order[EOS], order[-1] = order[-1], order[EOS]
        return order

    def rows(self, embedding: Tensor) -> Tensor:
        """The vectors of the vocabulary [V, D] in their order; further rows of a model keep their position."""
        return torch.cat([embedding[torch.tensor(self.order)], embedding[len(self.order) :]])

    def id(self, ours: int) -> int:
        """The id that a token has in the export."""
        return self.order.index(ours)

    def config(self) -> dict[str, Any]:
        """Ids of special tokens, for a configuration."""
        return {
            "vocab_size": len(self.order),
            "pad_token_id": self.id(PAD),
            "bos_token_id": self.id(BOS),
            "eos_token_id": self.id(EOS),
        }

    def backend(self) -> str:
        """The JSON of the ``tokenizers`` library."""
        tree = json.loads(self.tokenizer.to_json())
        there = {ours: theirs for theirs, ours in enumerate(self.order)}
        tree["model"]["vocab"] = dict(sorted(((t, there[i]) for t, i in tree["model"]["vocab"].items()), key=lambda item: item[1]))
        tree["added_tokens"] = sorted(
            ({**token, "id": there[token["id"]]} for token in tree["added_tokens"]), key=lambda t: t["id"]
        )
        tree["normalizer"] = NORMALISER
        ends = [{"SpecialToken": {"id": SPECIALS[i], "type_id": 0}} for i in (BOS, EOS)]
        tree["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]],
            "pair": [ends[0], *({"Sequence": {"id": x, "type_id": 0}} for x in "AB"), ends[1]],
            "special_tokens": {SPECIALS[i]: {"id": SPECIALS[i], "ids": [there[i]], "tokens": [SPECIALS[i]]} for i in (BOS, EOS)},
        }
        return json.dumps(tree, ensure_ascii=False)

    def of_transformers(self, masked: bool = True) -> Any:
        """A fast tokenizer. masked: whether it gives an attention mask, which SigLIP must not have."""
        import tokenizers
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(self.backend()),
            model_max_length=self.tokenizer.max_length,
            split_special_tokens=True,  # "[MASK]" in a caption is text
            model_input_names=["input_ids", "attention_mask"] if masked else ["input_ids"],
            padding_side="right",
            truncation_side="right",
            **dict(zip(NAMES, SPECIALS, strict=True)),
        )


def adopt(theirs: Any, max_length: int = 32) -> tuple[Tokenizer, list[int | None]]:
    """A fast tokenizer of transformers as ours, and its id of each of our ids; None if it has no such token.

    Our four special tokens come first, under any name there; [PAD] and [MASK] are added if they are missing or shared with another
    token. Raises DiptychError if it does not put a token before and one after every text, as ours does.
    """
    tree = json.loads(theirs.backend_tokenizer.to_str())
    vocabulary = tree["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        raise DiptychError("it has no plain vocabulary")
    given = {name: getattr(theirs, name, None) for name in NAMES}
    if given["bos_token"] is None or given["eos_token"] is None:
        raise DiptychError("it has no token for the beginning or for the end")
    for token, position in ((given["bos_token"], 0), (given["eos_token"], -1)):
        read = theirs("a")["input_ids"]
        if not read or read[position] != theirs.convert_tokens_to_ids(token):
            where = "after" if position else "before"
            raise DiptychError(f"it does not put {token} {where} a text, and its model never saw it there")
    taken = {given["bos_token"], given["eos_token"]}
    given |= {name: None for name in ("pad_token", "mask_token") if given[name] in taken}
    ids = {**vocabulary, **{token["content"]: token["id"] for token in tree["added_tokens"]}}
    specials = [given[name] for name in NAMES]
    first = len(SPECIALS)  # the token that made room for [EOS] in an export of ours goes back to the end
    rest = sorted((token for token in ids if token not in specials), key=lambda token: (ids[token] < first, ids[token]))
    order = [None if token is None else ids[token] for token in specials] + [ids[token] for token in rest]
    names = {**{token: name for token, name in zip(specials, SPECIALS, strict=True) if token}, **{token: token for token in rest}}
    there = {name: i for i, name in enumerate([*SPECIALS, *(names[token] for token in rest)])}
    added = {names[token["content"]]: token for token in tree["added_tokens"]}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added |= {name: {**plain, **added.get(name, {})} for name in SPECIALS}
    tree["model"]["vocab"] = {name: i for name, i in there.items() if name in SPECIALS or name in vocabulary}
    tree["added_tokens"] = sorted(({**t, "content": n, "id": there[n]} for n, t in added.items()), key=lambda t: t["id"])
    if tree["model"].get("unk_token") in names:  # CLIP's unknown word may be its [EOS]
        tree["model"]["unk_token"] = names[tree["model"]["unk_token"]]
    tree |= {"truncation": None, "padding": None, "post_processor": None}
    if suffix := tree["model"].get("end_of_word_suffix"):  # CLIP's "</w>", which its own decoder leaves to be replaced
        spaces = {"type": "Replace", "pattern": {"String": suffix}, "content": SPACE}
        tree["decoder"] = {"type": "Sequence", "decoders": [spaces, *([tree["decoder"]] if tree["decoder"] else [])]}
    if tree["normalizer"] == NORMALISER:  # ours does that itself
        tree["normalizer"] = None
    return Tokenizer(json.dumps(tree, ensure_ascii=False), max_length), order
