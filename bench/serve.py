"""Loads a server with many clients, and says how fast it answered, whether it answered rightly, and how its memory grew.

``python -m bench.serve folder:my/photos --clients 64 --minutes 5`` (default: pictures of ``scenes:small``)

Starts ``diptych serve`` in a process of its own on a free port of this machine: an index, the model of it, and a chat model (default: a
tiny one with random weights, of which the answers mean nothing and are always the same). What is right is computed first, without a
server, by the same library: the ids of searches, vectors, and the text of answers. Then each client does one thing after another,
drawn at random: searches by words and pictures, embeddings of both, chats as streams, thumbnails. A refusal with status 429 is counted and
tried again after the time that it names. Tables in Markdown go to standard output, progress to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.index.index import INFO, Index, Query

KINDS = {"search, words": 30, "search, picture": 10, "embed texts": 20, "embed pictures": 10, "chat, stream": 15, "thumbnail": 15}
WORDS = ["a red fox", "two keys", "a house above a star", "something blue", "a small pink heart", "a dog", "a green tree", "a yellow cup",
         "an animal", "fruit", "a car on the left", "three balls", "a big purple bird", "a fish", "flowers", "nothing at all"]  # fmt: skip
QUESTIONS = ["what is on the left?", "how many are there?", "what colour is it?", "describe the picture."]
TOKENS = 24
CLOSE, HALF = (
    1e-6,
    2e-2,
)  # allowed differences of numbers of a vector: in float32; in bfloat16, where the batch changes the rounding


def talker() -> Any:
    """A chat model of the recipe ``llava-instruct`` with a tiny random language model."""
    import torch

    from diptych.config.recipe import load_recipe
    from diptych.inference.run import TrainedModel
    from diptych.training.start.setup import set_up

    small = ["parts.lm={kind: random}", "parts.vision={kind: vit, depth: 1, width: 32, heads: 2}", "precision=fp32", "data.image_size=32",
             "data.train=scenes:small?ask=2"]  # fmt: skip
    torch.manual_seed(0)
    made = set_up(load_recipe("llava-instruct", small), device=torch.device("cpu"))
    model = TrainedModel("talker", made.recipe, made.model, made.objectives, torch.device("cpu"))
    model.key = "talker"
    return model


class Right:
    """What is right, computed without a server."""

    def __init__(self, index: Path, model: Any, chat: Any, pictures: int = 24):
        self.tolerance = HALF if getattr(model, "autocast", False) else CLOSE
        with Index.open(index, model) as held:
            ids = [hit.id for hit in held.search(Query(), model, n=pictures, fold=False).hits]
            self.urls, images = [], []
            for id in ids:
                url, image = as_png(held.read(id))
                self.urls.append(url)
                images.append(image)
            self.ids = ids
            self.by_words = [self._hits(held.search(Query(texts=(text,)), model, n=10)) for text in WORDS]
            self.by_picture = [self._hits(held.search(Query(images=(image,)), model, n=10)) for image in images]
        self.texts, self.images = model.embed_text(WORDS), model.embed_image(images)
        few = range(min(6, len(images)))
        from diptych.data.conversations.turns import question

        self.answers = {
            (q, i): chat.converse([images[i]], [question(text)], TOKENS) for q, text in enumerate(QUESTIONS) for i in few
        }

    def _hits(self, answer: Any) -> list[tuple[int, float]]:
        return [(hit.id, hit.score) for hit in answer.hits]

    def hits(self, found: list[dict[str, Any]], expected: list[tuple[int, float]]) -> bool:
        """Whether these are the hits, in an order that differs at most where scores are the same within the tolerance."""
        if len(found) != len(expected):
            return False
        return all(abs(hit["score"] - score) <= 10 * self.tolerance for hit, (_, score) in zip(found, expected, strict=True)) and (
            {hit["id"] for hit in found[:5]} <= {id for id, _ in expected}
        )

    def vectors(self, found: list[dict[str, Any]], expected: np.ndarray) -> bool:
        """Whether these are the vectors."""
        rows = np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in found])
        return rows.shape == expected.shape and bool(np.abs(rows - expected).max() <= self.tolerance)


def as_png(image: np.ndarray) -> tuple[str, np.ndarray]:
    """A picture as a client sends it, at most 512 pixels a side, and the pixels that arrive."""
    small = Image.fromarray(image)
    small.thumbnail((512, 512))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", np.array(small)


class Load:
    """The clients, and what they saw."""

    def __init__(self, address: str, right: Right, seconds: float):
        self.address, self.right, self.until = address, right, time.monotonic() + seconds
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.first: list[float] = []
        self.wrong: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.tokens = 0

    async def run(self, clients: int) -> None:
        """All clients, each with a connection of its own, until the time is over."""
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=self.address, timeout=180, limits=limits) as http:
            await asyncio.gather(*(self._client(http, random.Random(k)) for k in range(clients)))

    async def _client(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        while time.monotonic() < self.until:
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            begun = time.monotonic()
            try:
                status = await self._one(http, kind, rng)
            except httpx.HTTPError as error:
                self.failed[f"{kind}: {type(error).__name__}"] += 1
                continue
            if status == 200:
                self.seconds[kind].append(time.monotonic() - begun)

    async def _one(self, http: httpx.AsyncClient, kind: str, rng: random.Random) -> int:
        right = self.right
        k, p = rng.randrange(len(WORDS)), rng.randrange(len(right.urls))
        if kind == "thumbnail":
            answer = await http.get(f"/thumb/{right.ids[p]}?s=128")
            fine = answer.content[:3] == b"\xff\xd8\xff"
        elif kind == "search, words":
            answer = await http.post("/v1/search", json={"text": WORDS[k], "n": 10})
            fine = answer.status_code != 200 or right.hits(answer.json()["hits"], right.by_words[k])
        elif kind == "search, picture":
            answer = await http.post("/v1/search", json={"image": right.urls[p], "n": 10})
            fine = answer.status_code != 200 or right.hits(answer.json()["hits"], right.by_picture[p])
        elif kind == "chat, stream":
            return await self._chat(http, rng)
        else:
            texts = kind == "embed texts"
            some = rng.sample(range(len(WORDS) if texts else len(right.urls)), rng.randint(1, 8 if texts else 4))
            given = [WORDS[i] if texts else right.urls[i] for i in some]
            answer = await http.post("/v1/embeddings", json={"input": given, "encoding_format": "base64"})
            expected = (right.texts if texts else right.images)[some]
            fine = answer.status_code != 200 or right.vectors(answer.json()["data"], expected)
        return await self._seen(kind, answer.status_code, answer.headers, fine)

    async def _chat(self, http: httpx.AsyncClient, rng: random.Random) -> int:
        q, i = rng.choice(list(self.right.answers))
        parts = [{"type": "image_url", "image_url": {"url": self.right.urls[i]}}, {"type": "text", "text": QUESTIONS[q]}]
        body = {
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begun, text, done = time.monotonic(), "", False
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code == 200:
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        done = True
                    elif line.startswith("data: "):
                        event = json.loads(line[6:])
                        piece = event["choices"][0]["delta"].get("content") if event.get("choices") else None
                        if piece and not text:
                            self.first.append(time.monotonic() - begun)
                        text += piece or ""
                        self.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
            fine = answer.status_code != 200 or (done and text == self.right.answers[q, i])
            return await self._seen("chat, stream", answer.status_code, answer.headers, fine)

    async def _seen(self, kind: str, status: int, headers: httpx.Headers, fine: bool) -> int:
        if status == 429:
            self.refused[kind] += 1
            await asyncio.sleep(min(10.0, float(headers.get("Retry-After", 1))))
        elif status != 200:
            self.failed[f"{kind}: status {status}"] += 1
        elif not fine:
            self.wrong[kind] += 1
        return status


def memory_of(pid: int) -> float:
    """Megabytes that a process holds."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


async def watched(load: Load, clients: int, pid: int, seconds: float) -> list[tuple[float, float]]:
    """Runs the clients, and notes the memory of the server every five seconds."""
    begun, seen = time.monotonic(), []

    async def watch() -> None:
        while True:
            seen.append((time.monotonic() - begun, memory_of(pid)))
            print(f"{seen[-1][0]:5.0f} of {seconds:.0f} s, {seen[-1][1]:.0f} MB", file=sys.stderr, flush=True)
            await asyncio.sleep(5)

    watching = asyncio.create_task(watch())
    await load.run(clients)
    watching.cancel()
    return seen


def started(arguments: list[str]) -> tuple[subprocess.Popen[str], str]:
    """The server's process and its address."""
    command = [sys.executable, "-m", "diptych.cli", "serve", *arguments, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    address = next((line.strip() for line in process.stdout if line.startswith("http://")), None)
    if address is None:
        raise DiptychError("the server did not start")
    return process, address


def report(load: Load, memory: list[tuple[float, float]], seconds: float, clients: int) -> str:
    """The tables."""
    lines = [
        "| request | answers | per second | p50 | p95 | p99 | refused (429) | wrong |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in KINDS:
        times = np.array(load.seconds[kind] or [np.nan]) * 1000
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        count = len(load.seconds[kind])
        lines.append(
            f"| {kind} | {count:,} | {count / seconds:.1f} | {p50:,.0f} ms | {p95:,.0f} ms | {p99:,.0f} ms | {load.refused[kind]:,} | {load.wrong[kind]} |"
        )
    whole = sum(map(len, load.seconds.values()))
    warm = [mb for at, mb in memory if at >= seconds / 5]
    third = max(1, len(warm) // 3)
    first = np.percentile(np.array(load.first or [np.nan]) * 1000, [50, 95])
    lines += [
        "",
        f"- {clients} clients, {seconds:.0f} s: {whole:,} answers, {whole / seconds:.1f} a second; wrong: {sum(load.wrong.values())}; failed: {dict(load.failed) or 'none'}.",
        f"- First piece of an answer: p50 {first[0]:,.0f} ms, p95 {first[1]:,.0f} ms; {load.tokens / seconds:.0f} tokens a second over all.",
        f"- Memory of the server: {np.median(warm[:third]):.0f} MB after a fifth of the time, {np.median(warm[-third:]):.0f} MB at the end (medians of thirds).",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; 1 if an answer was wrong or failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", default="scenes:small", help="pictures to index")
    parser.add_argument("--model", default="conse")
    parser.add_argument("--chat", default="bench.serve:talker")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--limit", type=int, default=1000, help="at most this many pictures")
    parser.add_argument(
        "--index", default="", help="an index by --model, which is made if it is not there; default: in a temporary folder"
    )
    parser.add_argument("--serve", default="", help="further options of `diptych serve`, in one string")
    asked = parser.parse_args(arguments)
    from diptych.inference.onnx.open import open_model

    model, chat = open_model(asked.model, "cpu"), open_model(asked.chat, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        index = Path(asked.index or f"{folder}/my.index")
        if not (index / INFO).is_file():
            with Index.create(index, asked.data, model, asked.model, limit=asked.limit) as made:
                made.update(model)
        print("computing what is right", file=sys.stderr, flush=True)
        right = Right(index, model, chat)
        process, address = started([str(index), "--model", asked.model, "--model", asked.chat, *asked.serve.split()])
        try:
            load = Load(address, right, 60 * asked.minutes)
            memory = asyncio.run(watched(load, asked.clients, process.pid, 60 * asked.minutes))
            healthy = httpx.get(f"{address}/health", timeout=30).json() == {"status": "ok"}
        finally:
            process.terminate()
            process.wait(30)
    print(report(load, memory, 60 * asked.minutes, asked.clients))
    return int(bool(load.wrong or load.failed) or not healthy)


if __name__ == "__main__":
    sys.exit(main())
