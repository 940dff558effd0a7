"""Conversations by the processor of a model of transformers: its chat template, its image processor, and which tokens are answers.

What is learned are the tokens of the assistant's turns. Where the template marks them (``{% generation %}``), these marks count;
otherwise an answer is what the template adds to the conversation up to its question, the end mark and the line end behind it
included: the completion of trl's ``SFTTrainer``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError
from diptych.core.files import write_json
from diptych.core.sample import IMAGE, Turn
from diptych.data.conversations.template import PLAIN, answer_spans, without_system
from diptych.data.conversations.turns import Mistake, check_images

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MARKED = "{% generation"  # in a template that says itself which words are the assistant's
PLACES = "text_replacement_offsets"  # what a processor calls the places of images in a text
Spans = list[tuple[int, int]]


@dataclass
class Processed:
    """Conversations as a model takes them. inputs: everything that its ``forward`` is given, ``input_ids`` [B, T] among it.

    learned: bool [B, T], True at the tokens of answers. pictured: the place of the last token of an image in each row, −1: none.
    """

    inputs: dict[str, Any]
    learned: Tensor
    pictured: list[int]


class ChatProcessor:
    """A processor of transformers, for conversations. name: of its model, for messages.

    It also stands for the tokenizer of a recipe's model (``data.tokenizer.kind: lm``). DiptychError if it has no tokenizer or its
    template cannot be used.
    """

    max_length = 64  # of a caption; conversations have the limit of their field

    def __init__(self, processor: Any, name: str = ""):
        self.processor, self.name = processor, name
        self.tokenizer: Any = getattr(processor, "tokenizer", None)
        if self.tokenizer is None or not getattr(self.tokenizer, "is_fast", False):
            raise DiptychError(f"{name}: its processor has no fast tokenizer, which says where each token comes from")
        template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template or PLAIN
        self.template: str = template.get("default", next(iter(template.values()))) if isinstance(template, dict) else template
        marked = getattr(processor, "image_token", None) or getattr(self.tokenizer, "image_token", None) or IMAGE
        self.mark = str(getattr(marked, "content", marked))  # what stands for an image in a text
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.eos, self.pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.in_parts = True
        probe = [Turn("user", "one"), Turn("assistant", "two")]
        try:
            if not self._writes(probe, "one", "two"):  # a template that wants texts
                self.in_parts = False
                if not self._writes(probe, "one", "two"):
                    raise Mistake("it does not write the content of the turns")
        except Mistake as mistake:
            raise DiptychError(f"{name}: its chat template cannot be used: {mistake}") from None

    # --- text ---

    def _writes(self, turns: Sequence[Turn], *words: str) -> bool:
        """Whether the template writes these words of the turns."""
        try:
            text = self.written(turns)
        except Mistake:
            if self.in_parts:
                return False
            raise
        return all(word in text for word in words) and "'type'" not in text  # a list written as if it were a text

    def message(self, turn: Turn) -> dict[str, Any]:
        """A turn as the template takes it; a line end next to an image's mark is not part of the text."""
        pieces = turn.text.split(IMAGE)
        if not self.in_parts:
            return {"role": turn.role, "content": self.mark.join(pieces)}
        content: list[dict[str, Any]] = []
        for k, piece in enumerate(pieces):
            content += [{"type": "image"}] if k else []
            piece = piece.removeprefix("\n") if k else piece
            piece = piece.removesuffix("\n") if k < len(pieces) - 1 else piece
            content += [{"type": "text", "text": piece}] if piece or len(pieces) == 1 else []
        return {"role": turn.role, "content": content}

    def written(self, turns: Sequence[Turn], ask: bool = False) -> str:
        """The turns by the template. ask: up to where an answer is to be written. Mistake if the template refuses them."""
        return self._rendered(turns, ask, False)[0]

    def _rendered(self, turns: Sequence[Turn], ask: bool, marked: bool) -> tuple[str, Spans]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered: Any = render_jinja_template(
                conversations=[[self.message(turn) for turn in turns]],
                chat_template=self.template,
                add_generation_prompt=ask,
                return_assistant_tokens_mask=marked,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, KeyError, AttributeError) as error:  # a template that cannot read lists fails anyhow
            raise Mistake(f"the chat template refuses it: {error}") from None
        texts, spans = rendered
        return str(texts[0]), [(int(a), int(b)) for a, b in spans[0]] if marked else []

    @cached_property
    def writes_system(self) -> bool:
        """Whether the template has a place for a system turn."""
        try:
            return "three" in self.written([Turn("system", "three"), Turn("user", "one"), Turn("assistant", "two")])
        except Mistake:
            return False

    def fitted(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns, a system turn moved into the first question if the template has no place for it."""
        return list(turns) if turns[0].role != "system" or self.writes_system else without_system(turns)

    def spans(self, turns: Sequence[Turn], ask: bool = False) -> tuple[str, Spans]:
        """The whole as text, and where the answers are in it. Mistake for a template that rewrites earlier turns."""
        turns = self.fitted(turns)
        if MARKED in self.template.replace("{%-", "{%"):
            return self._rendered(turns, ask, True)
        return answer_spans(self.written, turns, ask, line_ends=True)

    def lesson(self, turns: Sequence[Turn]) -> None:
        """Mistake for a conversation that cannot be learned from; for ``check_conversations``."""
        if not self.spans(turns)[1]:
            raise Mistake("no learned token at all: it has no answer, and its loss would be exactly 0")

    # --- batches ---

    def batch(
        self, conversations: Sequence[tuple[Sequence[Turn], Sequence[np.ndarray]]], ask: bool = False, side: str = "right"
    ) -> Processed:
        """Conversations with their images, uint8 [height, width, 3] each, padded to one length.

        ask: each ends where an answer is to be written. side: of the padding. Mistake for a conversation that cannot be used;
        DiptychError if the processor cannot take them.
        """
        from PIL import Image

        texts, spans = [], []
        for turns, images in conversations:
            check_images(turns, len(images))
            text, found = self.spans(turns, ask)
            texts.append(text)
            spans.append(found)
        pictures = [[Image.fromarray(image) for image in images] for _, images in conversations]
        options: dict[str, Any] = {
            "padding": True,
            "padding_side": side,
            "return_tensors": "pt",
            "return_offsets_mapping": True,
            f"return_{PLACES}": True,
        }
        if self.tokenizer.bos_token and texts[0].startswith(self.tokenizer.bos_token):
            options["add_special_tokens"] = False  # the template writes it
        try:
            made = dict(self._call(texts, pictures, options))
        except Exception as error:  # processors raise any error
            raise DiptychError(
                f"{self.name}: its processor cannot take a conversation: {' '.join(str(error).split())[:300]}"
            ) from error
        offsets, replaced = made.pop("offset_mapping"), made.pop(PLACES, None)
        if replaced is None and any(pictures):
            raise DiptychError(
                f"{self.name}: its processor does not say where it writes the tokens of an image, so answers cannot be found; "
                "this needs a processor of transformers 5, without code of its own"
            )
        return self._found(made, spans, offsets.tolist(), replaced or [[] for _ in texts])

    def _call(self, texts: list[str], pictures: list[list[Any]], options: Mapping[str, Any]) -> Any:
        """What the processor makes of texts and images; of texts alone, without its image processor."""
        if not any(pictures):
            return self.processor(text=texts, **options)
        try:
            return self.processor(text=texts, images=pictures, **options)
        except ValueError as error:  # Idefics 3's makes a tensor of the places too, if the first row has no image
            if PLACES not in str(error):
                raise
        plain = {name: value for name, value in options.items() if name != f"return_{PLACES}"}
        made = self.processor(text=texts, images=pictures, **plain)
        shown = self.processor(text=texts, images=pictures, **{**options, "return_tensors": None})
        return {**made, PLACES: shown[PLACES]}

    def _found(self, inputs: dict[str, Any], spans: Sequence[Spans], offsets: Sequence[Any], replaced: Sequence[Any]) -> Processed:
        """Answers and images as places among the tokens. offsets [B, T, 2]: the characters of each token in the text after images
        were written out; replaced: what was written for them.
        """
        import torch

        learned = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        pictured = []
        for row, (found, places, changes) in enumerate(zip(spans, offsets, replaced, strict=True)):
            ends = [change["span"][1] for change in changes]
            gained = [0, *(change["new_span"][1] - change["span"][1] for change in changes)]
            for span in found:
                start, stop = (at + gained[bisect_right(ends, at)] for at in span)
                for place, (a, b) in enumerate(places):
                    if a < stop and b > start:
                        learned[row, place] = True
            shown = [change["new_span"] for change in changes]
            covered = [place for place, (a, b) in enumerate(places) if any(a < stop and b > start for start, stop in shown)]
            pictured.append(covered[-1] if covered else -1)
        learned &= inputs["attention_mask"].bool()
        return Processed(inputs, learned, pictured)

    # --- as the tokenizer of a recipe's model ---

    def __len__(self) -> int:
        return len(self.tokenizer)

    def save(self, path: Path) -> None:
        """What is not in the model's own files: nothing."""
        write_json(path, {"max_length": self.max_length, "kept": None})
