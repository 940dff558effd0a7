"""``openai:http://localhost:8000/v1?model=NAME``: any endpoint that speaks OpenAI's chat completions.

Images go as data URLs, large ones as bounded JPEGs. The key comes from an environment variable and is never written anywhere.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diptych.core.capabilities import Adapter, Image, Prompt, Unanswered, all_pairs, prompts_for
from diptych.core.errors import DiptychError
from diptych.inference.foreign.asking import Answers, Asking, text_of
from diptych.inference.foreign.hub import pil

CAPTION = "Describe this image in one short sentence."
YES = 'Does this figure show "{}"? Please answer yes or no.'  # VQAScore, Lin et al., arXiv:2404.01291
SMALL_PNG = 64 << 10  # bytes up to which an image is sent without loss
QUALITIES = (90, 75, 60)  # of JPEG, before the picture is made smaller


class Endpoint(Adapter):
    """It generates; with logprobs=true, if the server gives those, it also scores by P("yes"), as in VQAScore."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        key: str = "OPENAI_API_KEY",
        prompt: str = CAPTION,
        logprobs: bool = False,
        timeout: float = 60.0,
        retries: int = 5,
        patience: float = 600.0,
        parallel: int = 4,
        temperature: float | Literal["none"] = 0.0,
        tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        max_tokens: int = 0,
        effort: str = "",
        body: str = "",
        image: Literal["auto", "png"] = "auto",
        side: int = 2048,
        bytes: int = 700_000,
    ):
        """key: the environment variable that holds the key; timeout: seconds for one answer; parallel: requests at a time.

        retries: of passing failures; patience: seconds to wait for a server that limits requests. temperature: ``none`` sends none.
        tokens: the field for the number of tokens; max_tokens: instead of the task's (models that think need more). effort:
        ``reasoning_effort``. body: further fields as a JSON object. image: ``png`` sends every picture without loss; else a picture
        whose PNG is larger than 64 KiB goes as JPEG with at most ``side`` pixels a side and ``bytes`` bytes. Raises DiptychError
        for an address or a body that cannot be used.
        """
        self.name = f"openai:{model}"
        self.url, self.model = f"{base_url.rstrip('/')}/chat/completions", model
        if not base_url.startswith(("http://", "https://")):
            raise DiptychError(f"openai:{base_url}: expected openai:http(s)://HOST/v1?model=NAME")
        self.caption, self.parallel, self.at_once, self.max_tokens = prompt, max(1, parallel), max(1, parallel), max_tokens
        self.tokens, self.format = tokens, (image == "png", side, bytes)
        self.fixed = {"model": model, **({} if temperature == "none" else {"temperature": temperature})}
        self.fixed |= {"reasoning_effort": effort} if effort else {}
        self.fixed |= _fields(body, base_url)
        self.answers = Answers()
        self.asking = Asking(self.url, key, timeout, retries, patience)
        self.capabilities = frozenset({"generate", "prompt", *(["score"] if logprobs else [])})
        # The model behind the server cannot be identified further; settings that change answers are part of the key.
        self.key = f"{self.url} {model} {prompt} {logprobs} {json.dumps([self.fixed, max_tokens, self.format])}"

    def generate(self, images: Sequence[Image], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """One text for each image, asked of the endpoint; ``Unanswered`` where it gave none. Raises DiptychError if it can give
        none at all.
        """
        if decoding:
            self.cannot("decode in another way")
        asked = zip(images, prompts_for(prompt, len(images)), strict=True)
        limit: dict[str, Any] = {self.tokens: self.max_tokens or max_tokens}
        answers = self._all([(image, p or self.caption, limit) for image, p in asked])
        return [answer if isinstance(answer, Unanswered) else text_of(answer) for answer in answers]

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """log P("yes") of the first token among the twenty likeliest; −inf becomes the least of these. NaN where the endpoint gave
        no answer.
        """
        if "score" not in self.capabilities:
            self.cannot("score; add logprobs=true if the server gives log-probabilities")
        wanted = all_pairs(len(images), len(texts)) if pairs is None else np.asarray(pairs)
        more = {self.tokens: 1, "logprobs": True, "top_logprobs": 20}
        answers = self._all([(images[i], YES.format(texts[j]), more) for i, j in wanted])
        result = np.array([self._yes(answer) for answer in answers], dtype=np.float32)
        return result if pairs is not None else result.reshape(len(images), len(texts))

    def _yes(self, answer: dict[str, Any] | Unanswered) -> float:
        if isinstance(answer, Unanswered):
            return math.nan
        try:
            likeliest = answer["logprobs"]["content"][0]["top_logprobs"]
            text = [(str(one["token"]).strip().lower(), float(one["logprob"])) for one in likeliest]
        except (KeyError, IndexError, TypeError, ValueError):
            raise DiptychError(f"{self.url} gave no log-probabilities; remove logprobs=true") from None
        yes = [p for token, p in text if token == "yes"]
        return math.log(math.fsum(map(math.exp, yes))) if yes else min(p for _, p in text)

    # --- how ---

    def _all(self, asked: Sequence[tuple[Image, str, dict[str, Any]]]) -> list[dict[str, Any] | Unanswered]:
        if self.parallel == 1 or len(asked) < 2:
            answers = [self._ask(*one) for one in asked]
        else:
            with ThreadPoolExecutor(self.parallel) as pool:
                answers = list(pool.map(lambda one: self._ask(*one), asked))
        self.asking.check()
        return answers

    def _ask(self, image: Image, prompt: str, more: dict[str, Any]) -> dict[str, Any] | Unanswered:
        picture = {"type": "image_url", "image_url": {"url": data_url(image, *self.format)}}
        content = [picture, {"type": "text", "text": prompt}]
        body = {"messages": [{"role": "user", "content": content}], **more, **self.fixed}
        kept = self.answers.get(self.url, body)
        if kept is not None:
            return kept
        answer = self.asking.post(body)
        if not isinstance(answer, Unanswered):
            self.answers.add(self.url, body, answer)
        return answer

    def keep_in(self, path: Path) -> None:
        """Keep every answer in this file as it comes, and do not ask again what it holds. Where there are answers, or records of
        them next to it, requests as such are right: what fails is an item.
        """
        self.answers = Answers(path)
        recorded = any(file.stat().st_size for file in (path.parent / "records").glob("*.jsonl"))
        self.asking.answered = self.asking.answered or bool(len(self.answers)) or recorded


def _fields(body: str, address: str) -> dict[str, Any]:
    """The further fields of a request. Raises DiptychError unless the text is a JSON object."""
    try:
        found = json.loads(body or "{}")
    except ValueError as error:
        raise DiptychError(f'openai:{address}: body: not JSON ({error}); write &body={{"top_p": 0.9}}') from None
    if not isinstance(found, dict):
        raise DiptychError(f'openai:{address}: body: expected a JSON object such as {{"top_p": 0.9}}, got {body}')
    return found


def data_url(image: Image, lossless: bool = True, side: int = 2048, bytes: int = 700_000) -> str:
    """A picture as a data URL: as PNG, which is lossless; else, if that is large, as JPEG within ``side`` pixels and ``bytes``."""
    picture = pil([image])[0]
    data = _encoded(picture, "PNG")
    if lossless or len(data) <= SMALL_PNG:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"
    picture.thumbnail((side, side))
    data = _encoded(picture, "JPEG", quality=QUALITIES[0])
    while len(data) > bytes and max(picture.size) > 32:
        for quality in QUALITIES[1:]:
            data = _encoded(picture, "JPEG", quality=quality)
            if len(data) <= bytes:
                break
        else:
            picture.thumbnail((picture.width * 3 // 4, picture.height * 3 // 4))
            data = _encoded(picture, "JPEG", quality=QUALITIES[0])
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _encoded(picture: Any, format: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=format, **settings)
    return file.getvalue()
