"""Models of transformers that write text from an image and a prompt: LLaVA and similar models, Qwen-VL, BLIP, BLIP-2, GIT …

Everything that ``AutoModelForImageTextToText`` opens. Prompts go through the processor's chat template if it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.capabilities import Adapter, Image, Prompt, all_pairs, prompts_for
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.inference.foreign.hub import Opened, move, pil

MARK = "export.json"  # in a directory that `diptych export` wrote
CAPTION = "Describe this image in one short sentence."
ENDS_IN_SEPARATOR = ("blip", "git")  # their tokenizers close the prompt, which must stay open for the answer
YES = 'Does this figure show "{}"? Please answer yes or no.'  # VQAScore, Lin et al., arXiv:2404.01291


class Generative(Adapter):
    """``score`` is log P(text | image, caption prompt), or with score=yes log P("Yes" | image, question), as in VQAScore."""

    capabilities = frozenset({"score", "generate", "loglikelihood", "prompt"})

    def __init__(self, opened: Opened, batch: int, score: str, prompt: str):
        from transformers import AutoModelForImageTextToText

        if score not in ("likelihood", "yes"):
            raise DiptychError(f"hf:{opened.name}: score={score}; it scores by likelihood or yes")
        self.name = f"hf:{opened.name}"
        self.by, self.batch, self.device, self.dtype = score, batch, opened.device, opened.dtype
        self.model, self.processor = opened.model(AutoModelForImageTextToText), opened.processor()
        self.tokenizer = self.processor.tokenizer
        self.chats = bool(getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None))
        self.causal = False  # found out when first needed
        self.placeholder = "" if self.chats else self._placeholder()
        self.exported = exported(opened.name)
        asks = self.exported.get("caption", CAPTION if self.chats else "")
        self.caption = prompt or asks
        if self.exported.get("whole"):  # a tuned model of transformers reads prompts as it did before
            self.exported = {}
        self.key = opened.key(self.model, score, self.caption)

    # --- capabilities ---

    def generate(self, images: Sequence[Image], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """One text for each image, by the model's own chat template."""
        if decoding:
            self.cannot("decode in another way")
        prompts = prompts_for(prompt, len(images))
        texts = [""] * len(images)
        for rows in self._batches(prompts):
            inputs = self._inputs([images[i] for i in rows], [prompts[i] for i in rows])
            asked = inputs["input_ids"]
            if self.model.config.model_type == "blip":
                inputs = _closed(inputs, self.tokenizer.sep_token_id)  # its generate drops the last token
            never = getattr(self.model.generation_config, "suppress_tokens", None)  # BLIP-2's generate does not look it up itself
            noted = {"suppress_tokens": never} if never else {}
            with torch.inference_mode():
                out = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1, **noted)
            if out.shape[1] >= asked.shape[1] and torch.equal(out[:, : asked.shape[1]], asked):
                out = out[:, asked.shape[1] :]
            for i, text in zip(rows, self.tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
                texts[i] = text.strip()
        return texts

    def loglikelihood(self, images: Sequence[Image], texts: Sequence[str], prompt: Prompt = "") -> np.ndarray:
        """log P of the text's own tokens, without an end of turn, float32 [N]. All texts of one image and prompt share a pass."""
        prompts = prompts_for(prompt, len(images))
        result = np.empty(len(images), dtype=np.float32)
        together: dict[tuple[int, str], list[int]] = {}
        for i, image in enumerate(images):
            together.setdefault((id(image), prompts[i]), []).append(i)
        for (_, asked), rows in together.items():
            for start in range(0, len(rows), self.batch):
                part = rows[start : start + self.batch]
                result[part] = self._answers(images[part[0]], asked, [texts[i] for i in part])
        return result

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """log P(text given image), float32 [N, M], or [P] for ``pairs``."""
        if self.by == "likelihood":
            return super().score(images, texts, pairs)
        wanted = all_pairs(len(images), len(texts)) if pairs is None else np.asarray(pairs)
        result = self.loglikelihood(
            [images[i] for i in wanted[:, 0]], ["Yes"] * len(wanted), [YES.format(texts[j]) for j in wanted[:, 1]]
        )
        return result if pairs is not None else result.reshape(len(images), len(texts))

    # --- how ---

    def _batches(self, prompts: Sequence[str]) -> list[list[int]]:
        """Rows that can share a batch. Older models do not support padded prompts, so their batches have equal prompts."""
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault("" if self.chats else prompt, []).append(i)
        return [rows[i : i + self.batch] for rows in groups.values() for i in range(0, len(rows), self.batch)]

    def _rendered(self, prompt: str) -> str:
        """The text that comes before the answer, with a placeholder where the image belongs."""
        prompt = prompt or self.caption
        if self.chats:
            text: str = self.processor.apply_chat_template(_conversation(None, prompt), add_generation_prompt=True, tokenize=False)
            return text
        return f"{self.placeholder}{prompt}"

    def _placeholder(self) -> str:
        """What a prompt without a chat template must have where the image belongs: nothing if the processor puts it there."""
        marked = getattr(self.processor, "image_token", None)
        token: str | None = getattr(marked, "content", marked)
        if not token:
            return ""
        blank = pil([np.full((64, 64, 3), 128, dtype=np.uint8)])
        try:
            ids = self.processor(images=blank, text="a", return_tensors="pt")["input_ids"]
        except Exception:  # it reports the missing placeholder by its own error
            return token
        return "" if (ids == self.tokenizer.convert_tokens_to_ids(token)).any() else token

    def _inputs(self, images: Sequence[Image], prompts: Sequence[str]) -> dict[str, Any]:
        """A batch as the model takes it, padded on the left."""
        self.tokenizer.padding_side = "left"
        if self.chats:
            turns = [_conversation(picture, p or self.caption) for picture, p in zip(pil(images), prompts, strict=True)]
            inputs = self.processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                processor_kwargs={"padding": True},
            )  # fmt: skip
        else:
            texts = [self._rendered(p) for p in prompts]
            inputs = self.processor(images=pil(images), text=texts, padding=True, return_tensors="pt")
        inputs = move(inputs, self.device, self.dtype)
        inputs.pop("labels", None)
        if self.model.config.model_type in ENDS_IN_SEPARATOR:
            inputs = _open(inputs, self.tokenizer.sep_token_id)
            if self.model.config.model_type == "blip":
                inputs["input_ids"][:, 0] = self.model.config.text_config.bos_token_id
        return inputs

    def _answer_ids(self, prompt: str, text: str) -> list[int]:
        """Tokens of the text as they follow the prompt: the space between the two belongs to the text. A run of ours never saw one
        there.
        """
        before = self._rendered(prompt)
        gap = "" if not before or before[-1].isspace() or self.exported else " "
        head = self.tokenizer(before, add_special_tokens=False)["input_ids"]
        whole = self.tokenizer(before + gap + text, add_special_tokens=False)["input_ids"]
        joined = whole[: len(head)] == head and not self.exported
        ids = whole[len(head) :] if joined else self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise DiptychError(f"model '{self.name}': '{text}' has no tokens, so it has no likelihood")
        return list(ids)

    def _answers(self, image: Image, prompt: str, texts: Sequence[str]) -> np.ndarray:
        """log P of each text after one image and prompt, so that only the ends of the texts need padding."""
        inputs = {k: _repeated(v, len(texts)) for k, v in self._inputs([image], [prompt]).items()}
        if self.model.config.is_encoder_decoder:
            return self._decoded(inputs, texts)
        answers = [self._answer_ids(prompt, text) for text in texts]
        if not self.causal:
            self._check_causal(inputs)
        logits, ids, real = self._continued(inputs, answers)
        logp = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return (logp * real).sum(1).cpu().numpy()

    def _continued(self, inputs: dict[str, Any], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of every token of the answers [k, T, V], the tokens and which of them are real, both [k, T]."""
        longest = max(map(len, answers))
        ids = torch.zeros(len(answers), longest, dtype=torch.long)
        real = torch.zeros(len(answers), longest, dtype=torch.long)
        for row, answer in enumerate(answers):
            ids[row, : len(answer)], real[row, : len(answer)] = torch.tensor(answer), 1
        ids, real = ids.to(self.device), real.to(self.device)
        along = {"input_ids": ids, "attention_mask": real}
        if self.model.config.model_type == "paligemma":
            along["token_type_ids"] = torch.ones_like(ids)  # its type 0 is the prompt, which is not causal
        shape, whole = inputs["input_ids"].shape, dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.shape == shape:  # masks and types run along with the ids
                whole[name] = torch.cat([value, along.get(name, torch.zeros_like(ids)).to(value.dtype)], 1)
        with torch.inference_mode():
            return self.model(**whole).logits[:, -longest - 1 : -1], ids, real

    def _check_causal(self, inputs: dict[str, Any]) -> None:
        """An answer that sees its own end has no likelihood: later tokens must not change the probability of earlier ones."""
        one = {k: v[: len(v) // len(inputs["input_ids"])] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        prompt = one["input_ids"][0]
        last = int(prompt[prompt != getattr(self.model.config, "image_token_id", None)][-1])  # a word, not an image's position
        logits, _, _ = self._continued({k: _repeated(v, 2) for k, v in one.items()}, [[last, last], [last, max(0, last - 1)]])
        tolerance = 1e-5 if self.dtype == torch.float32 else 1e-2
        if not torch.allclose(logits[0, :2].float(), logits[1, :2].float(), atol=tolerance, rtol=tolerance):
            raise DiptychError(
                f"model '{self.name}' looks ahead in its answers, which therefore have no likelihood; use &by=generate"
            )
        self.causal = True

    def _decoded(self, inputs: dict[str, Any], texts: Sequence[str]) -> np.ndarray:
        labels = [self.tokenizer(text)["input_ids"] for text in texts]
        target = torch.full((len(texts), max(map(len, labels))), -100)
        for row, answer in enumerate(labels):
            target[row, : len(answer)] = torch.tensor(answer)
        target = target.to(self.device)
        with torch.inference_mode():
            logits = self.model(**inputs, labels=target).logits.float()
            logp = logits.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
        total: np.ndarray = (logp * (target >= 0)).sum(1).cpu().numpy()
        return total


def exported(name: str) -> dict[str, Any]:
    """The metadata of an export of our runs; empty for other models."""
    mark = Path(name) / MARK
    says: dict[str, Any] = read_json(mark) if mark.is_file() else {}
    return says


def _conversation(image: Any, prompt: str) -> list[dict[str, Any]]:
    shown = {"type": "image"} if image is None else {"type": "image", "image": image}
    return [{"role": "user", "content": [shown, {"type": "text", "text": prompt}]}]


def _repeated(value: Any, k: int) -> Any:
    return value.repeat(k, *[1] * (value.dim() - 1)) if isinstance(value, torch.Tensor) else value


def _open(inputs: dict[str, Any], separator: int) -> dict[str, Any]:
    """Without the separator at the end of the prompt (prompts are padded on the left)."""
    shape, ids = inputs["input_ids"].shape, inputs["input_ids"]
    if not bool((ids[:, -1] == separator).all()):
        return inputs
    return {k: v[:, :-1] if isinstance(v, torch.Tensor) and v.shape == shape else v for k, v in inputs.items()}


def _closed(inputs: dict[str, Any], separator: int) -> dict[str, Any]:
    """The inverse, for a ``generate`` that drops the last token itself."""
    shape = inputs["input_ids"].shape
    last = {"input_ids": separator}
    return {
        k: torch.cat([v, torch.full_like(v[:, :1], last.get(k, 1))], 1) if isinstance(v, torch.Tensor) and v.shape == shape else v
        for k, v in inputs.items()
    }
