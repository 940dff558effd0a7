"""``openai:http://localhost:8000/v1?model=NAME``: any endpoint that speaks OpenAI's chat completions.

Images go as data URLs. The key comes from an environment variable and is never written anywhere.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np

from diptych.core.capabilities import Adapter, Image, Prompt, all_pairs, prompts_for
from diptych.core.errors import DiptychError
from diptych.inference.foreign.hub import pil

CAPTION = "Describe this image in one short sentence."
YES = 'Does this figure show "{}"? Please answer yes or no.'  # VQAScore, Lin et al., arXiv:2404.01291
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # temporary states of a server


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
        parallel: int = 4,
    ):
        """key: the environment variable that holds the key; timeout: seconds for one answer; parallel: requests at a time."""
        self.name = f"openai:{model}"
        self.url, self.model = f"{base_url.rstrip('/')}/chat/completions", model
        if not base_url.startswith(("http://", "https://")):
            raise DiptychError(f"openai:{base_url}: expected openai:http(s)://HOST/v1?model=NAME")
        self.variable, self.caption = key, prompt
        self.timeout, self.retries, self.parallel = timeout, retries, parallel
        self.capabilities = frozenset({"generate", "prompt", *(["score"] if logprobs else [])})
        self.key = f"{self.url} {model} {prompt} {logprobs}"  # the model behind the server cannot be identified further

    def generate(self, images: Sequence[Image], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """One text for each image, asked of the endpoint."""
        if decoding:
            self.cannot("decode in another way")
        asked = zip(images, prompts_for(prompt, len(images)), strict=True)
        answers = self._all([(image, p or self.caption, {"max_tokens": max_tokens}) for image, p in asked])
        return [str(answer["message"].get("content") or "").strip() for answer in answers]

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """log P("yes") of the first token among the twenty likeliest; −inf becomes the least of these."""
        if "score" not in self.capabilities:
            self.cannot("score; add logprobs=true if the server gives log-probabilities")
        wanted = all_pairs(len(images), len(texts)) if pairs is None else np.asarray(pairs)
        more = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        answers = self._all([(images[i], YES.format(texts[j]), more) for i, j in wanted])
        result = np.array([self._yes(answer) for answer in answers], dtype=np.float32)
        return result if pairs is not None else result.reshape(len(images), len(texts))

    def _yes(self, answer: dict[str, Any]) -> float:
        try:
            likeliest = answer["logprobs"]["content"][0]["top_logprobs"]
            text = [(str(one["token"]).strip().lower(), float(one["logprob"])) for one in likeliest]
        except (KeyError, IndexError, TypeError, ValueError):
            raise DiptychError(f"{self.url} gave no log-probabilities; remove logprobs=true") from None
        yes = [p for token, p in text if token == "yes"]
        return math.log(math.fsum(map(math.exp, yes))) if yes else min(p for _, p in text)

    # --- how ---

    def _all(self, asked: Sequence[tuple[Image, str, dict[str, Any]]]) -> list[dict[str, Any]]:
        if self.parallel == 1 or len(asked) < 2:
            return [self._ask(*one) for one in asked]
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda one: self._ask(*one), asked))

    def _ask(self, image: Image, prompt: str, more: dict[str, Any]) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": prompt}]
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}], **more}
        reply = self._post(json.dumps(body).encode())
        try:
            choice: dict[str, Any] = reply["choices"][0]
            choice["message"]["role"]
        except (KeyError, IndexError, TypeError):
            raise DiptychError(f"{self.url}: not an answer of chat completions: {json.dumps(reply)[:200]}") from None
        return choice

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.variable):
            headers["Authorization"] = f"Bearer {os.environ[self.variable]}"
        for attempt in range(self.retries + 1):
            wait = min(60.0, 0.5 * 2**attempt)
            try:
                with urlopen(Request(self.url, body, headers), timeout=self.timeout) as reply:
                    return json.loads(reply.read())
            except HTTPError as error:
                said = error.read()[:300].decode("utf-8", "replace")
                reason = f"status {error.code}: {said or error.reason}"
                if error.code in (401, 403):
                    raise DiptychError(f"{self.url}: {reason}; is the key in the environment variable {self.variable}?") from None
                if error.code not in PASSING:
                    raise DiptychError(f"{self.url}: {reason}") from None
                after = error.headers.get("Retry-After", "")
                wait = min(60.0, float(after)) if after.isdigit() else wait
            except json.JSONDecodeError as error:
                reason = f"the answer is not JSON ({error})"
            except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
                reason = f"{getattr(error, 'reason', '') or error or type(error).__name__} (timeout {self.timeout:g} s)"
            if attempt < self.retries:
                time.sleep(wait)
        raise DiptychError(f"{self.url}: {reason}; gave up after {self.retries + 1} attempts. What was answered so far is kept")


def data_url(image: Image) -> str:
    """As PNG, which is lossless."""
    file = io.BytesIO()
    pil([image])[0].save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
