"""Vectors of many requests at once: the same as alone, to the bit with a fixed batch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from diptych.config.recipe import load_recipe
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.data.text import Tokenizer
from diptych.inference.run import TrainedModel
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.serve.app import create_app
from diptych.serve.batching import Batched, Batcher, FixedBatch
from diptych.serve.errors import ApiError
from diptych.serve.settings import Settings
from serve_fixture import Colours, StandIn, picture, png, url_of

CAPTIONS = [
    "a red fox left of a blue heart",
    "two green keys",
    "there is a big yellow house above a small pink star and no tree",
    "a dog",
]
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def clip() -> TrainedModel:
    """With random weights: as a run of ``clip`` begins, in the precision that is used here."""
    torch.manual_seed(0)
    recipe = load_recipe("clip", ["precision=fp32"])
    model = build_model(recipe, Tokenizer.train(CAPTIONS, 400, 32), 48)

    return TrainedModel("clip", recipe, model, build_objectives(recipe, model), torch.device("cpu"))


def mixed(model, settings: Settings, n: int = 24) -> float:
    """The largest difference between vectors that many clients get at once and those of the model alone, one at a time."""
    images = [picture(COLOURS[k % 4], ("square", "circle")[k % 2], k) for k in range(n)]
    wanted = [(CAPTIONS[k % 4] + " again" * (k % 3), url_of(png(images[k]))) for k in range(n)]
    alone = FixedBatch(model, settings.fixed_batch) if settings.fixed_batch else model
    with TestClient(create_app(None, model, settings), base_url="http://127.0.0.1") as client:

        def one(k: int) -> np.ndarray:
            body = {"input": list(wanted[k]), "encoding_format": "float"}
            return np.float32([row["embedding"] for row in client.post("/v1/embeddings", json=body).json()["data"]])

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(one, range(n)))
    expected = [
        np.concatenate([alone.embed_text([text]), alone.embed_image([image])])
        for (text, _), image in zip(wanted, images, strict=True)
    ]
    return float(np.abs(np.stack(found) - np.stack(expected)).max())


def test_a_run_under_mixed_load(clip: TrainedModel) -> None:
    assert mixed(clip, Settings()) <= 1e-6


@pytest.mark.parametrize("size", [1, 4])
def test_a_run_with_a_fixed_batch_to_the_bit(clip: TrainedModel, size: int) -> None:
    assert mixed(clip, Settings(fixed_batch=size)) == 0.0


class Placed(FunctionModel):
    """A model of which the vectors depend on how many there are, and, if asked for, on their place."""

    def __init__(self, by_place: bool):
        super().__init__("placed", embed_text=self.texts, embed_image=self.pictures)
        self.by_place, self.sizes = by_place, []

    def texts(self, texts):
        self.sizes.append(len(texts))
        rows = np.array([[len(t), len(texts), k if self.by_place else 1.0] for k, t in enumerate(texts)], dtype=np.float64).reshape(
            -1, 3
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def pictures(self, images):
        return self.texts([f"{int(image.sum())}" for image in images])


def test_a_fixed_batch_is_filled_up_and_a_place_is_noticed() -> None:
    model = Placed(False)
    fixed = FixedBatch(model, 4)
    fixed.check()
    model.sizes.clear()
    together = fixed.embed_text(["a", "bb", "ccc", "dddd", "eeeee"])
    assert set(model.sizes) == {4} and np.array_equal(together[2], fixed.embed_text(["ccc"])[0])
    with pytest.raises(DiptychError, match="depend on their place in a batch; use --fixed-batch 1"):
        FixedBatch(Placed(True), 4).check()
    FixedBatch(Placed(True), 1).check()
    assert fixed.embed_text([]).shape[0] == 0


def taken(batcher: Batcher) -> None:
    """Waits until the thread has taken what was there."""
    until = time.monotonic() + 20
    while batcher.waiting and time.monotonic() < until:
        time.sleep(0.005)


def test_what_waits_is_computed_together_in_order() -> None:
    gate, sizes = threading.Event(), []

    def slow(texts):
        gate.wait(20)
        sizes.append(len(texts))
        return np.eye(8)[[int(t) for t in texts]]

    batcher = Batcher(FunctionModel("m", embed_text=slow), most=5, queue=100)
    futures = [batcher.submit("text", ["0"])]
    taken(batcher)
    futures += [batcher.submit("text", [str(k % 8)]) for k in range(1, 9)]
    big = batcher.submit("text", ["1"] * 7)  # larger than a batch: alone
    gate.set()
    assert [int(np.argmax(f.result(20)[0])) for f in futures] == [k % 8 for k in range(9)]
    assert big.result(20).shape == (7, 8) and sizes[0] == 1 and max(sizes[1:-1]) == 5 and sizes[-1] == 7
    batcher.close()


def test_one_bad_input_does_not_spoil_the_others() -> None:
    gate = threading.Event()

    def picky(texts):
        gate.wait(20)
        if "bad" in texts:
            raise DiptychError("not that")
        return np.ones((len(texts), 2))

    batcher = Batcher(FunctionModel("m", embed_text=picky), most=16, queue=100)
    futures = [batcher.submit("text", ["a"])]
    taken(batcher)
    futures += [batcher.submit("text", [text]) for text in ("b", "bad", "c")]
    gate.set()
    assert [f.result(20).shape for f in (futures[0], futures[1], futures[3])] == [(1, 2)] * 3
    with pytest.raises(DiptychError, match="not that"):
        futures[2].result(20)
    nan = Batcher(FunctionModel("n", embed_text=lambda texts: np.full((len(texts), 2), np.nan)), 4, 4)
    with pytest.raises(DiptychError, match="gave no vector"):
        nan.submit("text", ["a"]).result(20)
    for each in (batcher, nan):
        each.close()


def test_a_full_queue_and_a_cancelled_request() -> None:
    gate, seen = threading.Event(), []

    def slow(texts):
        gate.wait(20)
        seen.extend(texts)
        return np.ones((len(texts), 2))

    batcher = Batcher(FunctionModel("m", embed_text=slow), most=2, queue=3)
    first = batcher.submit("text", ["a"])
    taken(batcher)
    waiting, other = batcher.submit("text", ["b", "c"]), batcher.submit("text", ["d"])
    with pytest.raises(ApiError, match="too many inputs wait") as caught:
        batcher.submit("text", ["e"])
    assert caught.value.status == 429 and int(caught.value.headers["Retry-After"]) >= 1
    assert waiting.cancel()
    gate.set()
    assert other.result(20).shape == (1, 2) and first.result(20).shape == (1, 2) and seen == ["a", "d"]
    with pytest.raises(CancelledError):
        waiting.result(1)
    batcher.close()
    with pytest.raises(ApiError, match="stopping"):
        batcher.submit("text", ["f"])


def test_a_search_uses_the_same_batches() -> None:
    model = Colours()
    index = StandIn(model)
    batcher = Batcher(model, 2, 100)
    used = Batched(model, batcher)
    texts = ["red", "green", "blue circle", "white", "black"]
    assert np.array_equal(used.embed_text(texts), model.embed_text(texts)) and used.key == model.key
    assert used.embed_image([]).shape == (0, 16) and len(index.vectors) == 48
    batcher.close()


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'transformers'):
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Block())
from fastapi.testclient import TestClient
from diptych.serve.app import create_app
import diptych.serve.opening, diptych.serve.server, diptych.serve.pictures.fetch
from serve_fixture import Colours, Parrot, StandIn
model = Colours()
app = create_app(StandIn(model), {'colours': model, 'parrot': Parrot()})
with TestClient(app, base_url='http://127.0.0.1') as client:
    assert client.post('/v1/search', json={'text': 'red circle'}).json()['hits']
    assert client.post('/v1/embeddings', json={'input': 'red'}).status_code == 200
    answer = client.post('/v1/chat/completions', json={'messages': [{'role': 'user', 'content': 'hi'}]})
    assert answer.json()['choices'][0]['message']['content']
assert 'torch' not in sys.modules
print('fine')
"""


def test_serving_needs_no_torch() -> None:
    import subprocess
    import sys

    path = ":".join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", BLOCK], env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "fine", done.stderr[-2000:]
