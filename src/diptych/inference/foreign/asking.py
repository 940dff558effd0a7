"""Requests to a server of chat completions: what to wait for, what to try again, and what a failure means.

| outcome | meaning |
|---|---|
| ``Unanswered`` | this item has no answer (a content filter, an image that is refused); the others go on |
| DiptychError | no item can be answered (a wrong key, no such model, no server), or ten in a row were not |
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from diptych.core.capabilities import Unanswered
from diptych.core.errors import DiptychError
from diptych.core.files import read_jsonl, write_text

LIMITED = (429, 529)  # too many requests, or the server is overloaded: it says when to come back
NO_SERVER = 0  # instead of a status
PASSING = (NO_SERVER, 408, 409, 425, 500, 502, 503, 504)  # temporary states of a server
HOPELESS = (401, 402, 403, 404, 405)  # every request would fail in this way
FILTERS = ("content_filter", "content management", "content policy", "moderation", "inspection", "safety", "sensitive")
MOST_IN_A_ROW = 10  # failures after which the whole run fails
HINTS = {
    "max_completion_tokens": "add &tokens=max_completion_tokens to the address",
    "temperature": "add &temperature=none to the address",
    "reasoning_effort": "remove or change &effort",
}


class Asking:
    """Posts requests, at most ``parallel`` at a time by the caller, and waits for all of them where a server asks one to wait.

    ``retries``: how often a passing failure is tried again; ``patience``: seconds to wait for a server that limits requests.
    """

    def __init__(self, url: str, variable: str, timeout: float, retries: int, patience: float):
        self.url, self.variable, self.timeout, self.retries, self.patience = url, variable, timeout, retries, patience
        self._lock = threading.Lock()
        self._free = 0.0  # monotonic time before which no request is sent
        self.answered = False  # whether any request had an answer
        self._first = ""  # what failed first
        self._in_a_row = 0

    def post(self, body: dict[str, Any]) -> dict[str, Any] | Unanswered:
        """The first choice of the reply, or why there is none. Raises DiptychError if no request can succeed."""
        data, waited, attempt = json.dumps(body).encode(), 0.0, 0
        while True:
            self._wait_for_all()
            status, reason, after = self._once(data)
            if isinstance(reason, dict):
                with self._lock:
                    self.answered, self._in_a_row = True, 0
                return reason
            if status in HOPELESS:
                remedy = f"; is the key in the environment variable {self.variable}?" if status in (401, 403) else ""
                raise DiptychError(f"{self.url}: {reason}{remedy}")
            limited = status in LIMITED or (status in PASSING and after > 0)
            if not limited and status not in PASSING:
                return self._failed(status, reason)
            wait = max(after, min(60.0, 0.5 * 2**attempt))
            if limited:
                if waited + wait > self.patience and (attempt >= self.retries or after > 60):
                    raise DiptychError(
                        f"{self.url}: {reason}; gave up after {attempt + 1} attempts and {waited:.0f} s. What was answered so far "
                        "is kept, and the same command goes on from there; &patience=SECONDS waits longer, &parallel=1 asks less "
                        "often"
                    )
                with self._lock:
                    self._free = max(self._free, time.monotonic() + wait)
            elif attempt >= self.retries:
                return self._failed(status, f"{reason}; gave up after {attempt + 1} attempts")
            time.sleep(wait)
            waited, attempt = waited + wait, attempt + 1

    def _wait_for_all(self) -> None:
        """Waits until the time that the server named to any of the requests."""
        with self._lock:
            left = self._free - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _failed(self, status: int, reason: str) -> Unanswered:
        """The failure of one item. Raises DiptychError if the server is gone, or many items in a row were not answered."""
        if status != NO_SERVER and any(word in reason.lower() for word in FILTERS):
            return Unanswered(reason)
        hint = next((f"; {remedy}" for word, remedy in HINTS.items() if word in reason), "")
        message = f"{self.url}: {reason}{hint}. What was answered so far is kept"
        with self._lock:
            self._in_a_row += 1
            self._first = self._first or message
            hopeless = self._in_a_row >= MOST_IN_A_ROW
        if hopeless or status == NO_SERVER:
            raise DiptychError(message)
        return Unanswered(reason)

    def check(self) -> None:
        """Raises DiptychError if there were failures and no answer yet: then the request is wrong, not one item."""
        if self._first and not self.answered:
            raise DiptychError(self._first)

    def _once(self, data: bytes) -> tuple[int, dict[str, Any] | str, float]:
        """Status, the first choice of the reply or what went wrong, and the seconds that the server asks to wait."""
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.variable):
            headers["Authorization"] = f"Bearer {os.environ[self.variable]}"
        try:
            with urlopen(Request(self.url, data, headers), timeout=self.timeout) as reply:
                status, text, after = reply.status, reply.read(), seconds_after(reply.headers)
        except HTTPError as error:
            message = error.read()[:300].decode("utf-8", "replace")
            return error.code, f"status {error.code}: {message or error.reason}", seconds_after(error.headers)
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            cause = getattr(error, "reason", "") or error
            status = 504 if isinstance(cause, TimeoutError) else 502 if isinstance(error, HTTPException) else NO_SERVER
            return status, f"{cause or type(error).__name__} (timeout {self.timeout:g} s)", 0.0
        try:
            found = json.loads(text)
        except ValueError as error:
            return 502, f"the answer is not JSON ({error})", 0.0
        return (*first_choice(status, found), after)


class Answers:
    """The answers of an evaluation that is under way, one line each in ``path`` as they come, so that an interrupted one asks
    nothing twice. An answer that was withheld is not taken up again. Without ``path`` nothing is kept.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self._lock = threading.Lock()
        self._kept: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            rows = [row for row in read_jsonl(path) if not isinstance(text_of(row["choice"]), Unanswered)]
            self._kept = {row["request"]: row["choice"] for row in rows}
            write_text(path, "".join(self._line(*entry) for entry in self._kept.items()))  # without half a line at the end

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, url: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to the same request, if there is one."""
        return self._kept.get(self._name(url, body)) if self.path is not None else None

    def add(self, url: str, body: dict[str, Any], choice: dict[str, Any]) -> None:
        """Keep an answer, on disk at once."""
        if self.path is None:
            return
        name = self._name(url, body)
        with self._lock:
            self._kept[name] = choice
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(name, choice))

    def _name(self, url: str, body: dict[str, Any]) -> str:
        return hashlib.blake2b(json.dumps([url, body], sort_keys=True).encode(), digest_size=16).hexdigest()

    def _line(self, name: str, choice: dict[str, Any]) -> str:
        return json.dumps({"request": name, "choice": choice}, ensure_ascii=False) + "\n"


def first_choice(status: int, reply: Any) -> tuple[int, dict[str, Any] | str]:
    """The status and the first choice of a reply, or what is wrong with it; some servers send errors with status 200."""
    error = reply.get("error") if isinstance(reply, dict) else None
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        message = f"status {status} with an error: {json.dumps(error, ensure_ascii=False)[:300]}"
        if isinstance(code, int) or str(code).isdigit():
            return int(str(code)), message
        return (429 if "rate" in str(code).lower() else 400), message
    try:
        choice = reply["choices"][0]
    except IndexError:
        return 502, "the answer has no choices"
    except (KeyError, TypeError):
        choice = None
    if not isinstance(choice, dict) or not ("text" in choice or isinstance(choice.get("message"), dict)):
        return 400, f"not an answer of chat completions: {json.dumps(reply)[:200]}"
    return status, choice


def text_of(choice: dict[str, Any]) -> str:
    """The text of a choice: its content as text or parts, a refusal, else what the model wrote while it thought.

    If the answer ends within the thinking, the text is marked so (``<think>…``): it holds no answer.
    """
    message = choice.get("message") or {}
    content = message.get("content", choice.get("text"))
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    text = str(content or message.get("refusal") or "").strip()
    thought = str(message.get("reasoning_content") or message.get("reasoning") or "").strip()
    if not text and choice.get("finish_reason") == "content_filter":
        return Unanswered("finish_reason content_filter: the server withheld the answer")
    if text or not thought:
        return text
    return f"<think>{thought}" if choice.get("finish_reason") == "length" else thought


def seconds_after(headers: Any) -> float:
    """The seconds to wait by ``Retry-After`` (seconds or a date) or ``retry-after-ms``; 0 if the server does not say."""
    milliseconds, after = headers.get("retry-after-ms", ""), headers.get("Retry-After", "")
    try:
        return max(0.0, float(milliseconds) / 1000 if milliseconds else float(after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return 0.0
