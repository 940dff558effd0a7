"""The unmodified ``openai`` client against a server on a free port of loopback."""

from __future__ import annotations

import base64
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest

from diptych.serve.app import create_app
from diptych.serve.settings import Settings
from serve_fixture import Asker, Captioner, Colours, Parrot, StandIn, picture, png, running, url_of

COLOURS, PARROT = Colours(), Parrot()
RED = url_of(png(picture("red", "circle")))


@pytest.fixture(scope="module")
def address():
    models = {"colours": COLOURS, "parrot": PARROT, "captioner": Captioner(), "asker": Asker()}
    with running(create_app(StandIn(COLOURS), models, Settings(max_tokens=64))) as found:
        yield found


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=20)


def test_models(client) -> None:
    assert [model.id for model in client.models.list()] == ["colours", "parrot", "captioner", "asker"]
    assert client.models.retrieve("parrot").owned_by == "diptych"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_embeddings_of_texts_tokens_and_pictures(client) -> None:
    texts = ["a red circle", "a blue square"]
    found = client.embeddings.create(model="colours", input=texts)  # the client asks for base64 and decodes it
    assert np.array_equal(np.float32([row.embedding for row in found.data]), COLOURS.embed_text(texts))
    assert found.usage.prompt_tokens == 6 and [row.index for row in found.data] == [0, 1]
    plain = client.embeddings.create(model="colours", input=texts[0], encoding_format="float")
    assert np.array_equal(np.float32(plain.data[0].embedding), COLOURS.embed_text(texts[:1])[0])
    ids = COLOURS.token_ids(["red circle"])[0]
    for given in (ids, [ids]):
        tokens = client.embeddings.create(model="colours", input=given)
        assert np.array_equal(np.float32(tokens.data[0].embedding), COLOURS.embed_text(["red circle"])[0])
    seen = client.embeddings.create(model="colours", input=[RED, "red"])
    expected = [COLOURS.embed_image([picture("red", "circle")])[0], COLOURS.embed_text(["red"])[0]]
    assert np.array_equal(np.float32([row.embedding for row in seen.data]), expected)


def test_embeddings_of_messages(address) -> None:
    """As vLLM takes them; a text and a picture together have the direction of their sum, as a search has."""
    parts = [{"type": "image_url", "image_url": {"url": RED}}, {"type": "text", "text": "blue"}]
    body = {"model": "colours", "messages": [{"role": "user", "content": parts}], "encoding_format": "float"}
    found = np.float64(httpx.post(f"{address}/v1/embeddings", json=body).json()["data"][0]["embedding"])
    total = COLOURS.embed_image([picture("red", "circle")])[0].astype(np.float64) + COLOURS.embed_text(["blue"])[0]
    assert np.allclose(found, total / np.linalg.norm(total), atol=1e-6)


def test_dimensions_are_cut_and_of_length_one(client) -> None:
    whole = COLOURS.embed_text(["red"])[0]
    found = np.float32(client.embeddings.create(model="colours", input="red", dimensions=4).data[0].embedding)
    assert np.allclose(found, whole[:4] / np.linalg.norm(whole[:4]), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="have 16"):
        client.embeddings.create(model="colours", input="red", dimensions=17)


@pytest.mark.parametrize(
    ("given", "message"),
    [("", "empty text"), ([], "nothing in it"), ([[]], "expected a text"), ([1.5], "expected a text"), ([10**12], "no token"),
     (["a", None], "input.1"), ("data:image/svg+xml;base64,PHN2Zz4=", "SVG"), ("data:image/png;base64,!!!", "not base64"), (["x"] * 257, "at most 256")],
)  # fmt: skip
def test_inputs_that_cannot_be_embedded(client, given, message) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.embeddings.create(model="colours", input=given)


def test_models_that_do_not_embed_or_exist(client) -> None:
    with pytest.raises(openai.BadRequestError, match="model 'parrot' cannot embed; on this server colours can"):
        client.embeddings.create(model="parrot", input="a")
    with pytest.raises(openai.NotFoundError, match="there is no model 'text-embedding-3-small'"):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def ask(client, text="what?", images=(), model="parrot", system=None, **how):
    parts = [*({"type": "image_url", "image_url": {"url": url}} for url in images), {"type": "text", "text": text}]
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": parts}]
    return client.chat.completions.create(model=model, messages=messages, **how)


def test_chat(client) -> None:
    found = ask(client, images=[RED, RED], system="be brief")
    text = found.choices[0].message.content
    assert text == "seed 0 saw 128x96, 128x96 read system be brief / user [picture] [picture] what? é 漢 😀 end"
    assert found.choices[0].finish_reason == "stop" and found.usage.completion_tokens == len(text.split(" "))
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.system_fingerprint == "diptych-parrot-1"


def test_several_turns_and_unknown_fields(client) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why"},
             {"role": "user", "content": "and how"}]  # fmt: skip
    found = client.chat.completions.create(
        model="parrot",
        messages=turns,
        logprobs=False,
        presence_penalty=0.5,
        user="me",
        extra_body={"chat_template": None, "x": [1]},
    )
    assert "user hi / assistant yes / user why and how" in found.choices[0].message.content


def test_streams_with_usage(client) -> None:
    whole = ask(client, images=[RED]).choices[0].message.content
    chunks = list(ask(client, images=[RED], stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 5
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(whole.split(" "))
    assert chunks[-1].timings["tokens_per_second"] > 0 and all(c.usage is None for c in chunks[:-1])
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop" and chunks[0].choices[0].delta.role == "assistant"
    bare = list(ask(client, stream=True))
    assert bare[-1].choices[0].finish_reason == "stop" and bare[-1].timings and bare[-1].usage is None


def test_limits_stops_and_seeds(client) -> None:
    short = ask(client, max_tokens=3).choices[0]
    assert short.message.content == "seed 0 saw" and short.finish_reason == "length"
    assert ask(client, max_completion_tokens=2, max_tokens=9).choices[0].message.content == "seed 0"
    stopped = ask(client, stop=["read"]).choices[0]
    assert stopped.message.content == "seed 0 saw nothing" and stopped.finish_reason == "stop"
    drawn = ask(client, temperature=0.7, seed=11).choices[0].message.content
    assert drawn.startswith("seed 11 ") and ask(client, temperature=0, seed=11).choices[0].message.content.startswith("seed 0 ")
    other = {ask(client, temperature=1).choices[0].message.content.split()[1] for _ in range(3)}
    assert len(other) == 3, "without a seed each answer is another"


def test_a_mark_that_someone_types_is_no_picture(client) -> None:
    assert "read user <image > what?" in ask(client, "<image> what?").choices[0].message.content


@pytest.mark.parametrize(
    ("messages", "message"),
    [([{"role": "tool", "content": "x"}], "role"), ([{"role": "assistant", "content": "x"}], "first and last"),
     ([{"role": "user", "content": None}], "a text or a list"), ([{"role": "user", "content": [{"type": "input_audio"}]}], "input_audio"),
     ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}], "before all others"),
     ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}], "fetches no pictures"),
     ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}], "data: URL"),
     ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": RED}}] * 17}], "at most 16"),
     ([{"role": "user", "content": "fail"}], "it fails")],
)  # fmt: skip
def test_conversations_that_cannot_be_answered(client, messages, message) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(model="parrot", messages=messages, stream=stream)


def test_wrong_settings(client) -> None:
    for how in ({"n": 2}, {"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"stop": [""]}, {"stop": ["x"] * 17}):
        with pytest.raises(openai.BadRequestError):
            ask(client, **how)


def test_an_error_of_the_program_does_not_show_its_place(client) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "break x", max_tokens=20)
    assert "secret" not in str(caught.value)
    with pytest.raises(openai.APIError) as streamed:
        list(ask(client, "break x", stream=True))
    assert "secret" not in str(streamed.value)


def test_models_that_caption_or_take_one_question(client) -> None:
    found = ask(client, "what is it", [RED], model="captioner", temperature=0.3, seed=1)
    assert found.choices[0].message.content == "a picture of 128 by 96" and "writes captions" in found.note
    chunks = list(ask(client, "what", [RED], model="captioner", stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "a picture of 128 by 96" and "captions" in chunks[-1].note
    with pytest.raises(openai.BadRequestError, match="show it a picture"):
        ask(client, model="captioner")
    assert ask(client, "is it red", [RED], model="asker").choices[0].message.content == "is it red? 128"
    with pytest.raises(openai.BadRequestError, match="one question about one picture"):
        ask(client, images=[RED, RED], model="asker")
    with pytest.raises(openai.BadRequestError, match="model 'colours' cannot write text"):
        ask(client, model="colours")


def test_vectors_are_right_under_mixed_load(client) -> None:
    """Many clients at once, texts and pictures, one and many."""
    rng = np.random.default_rng(0)
    before = len(COLOURS.batches)

    def one(k: int) -> float:
        texts = [f"a {['red', 'blue', 'green'][int(i)]} thing {k}" for i in rng.integers(0, 3, 1 + k % 5)]
        image = picture(("red", "blue", "yellow")[k % 3], ("square", "circle")[k % 2], k)
        found = client.embeddings.create(model="colours", input=[*texts, url_of(png(image))])
        expected = np.concatenate([Colours().embed_text(texts), Colours().embed_image([image])])
        return float(np.abs(np.float64([row.embedding for row in found.data]) - expected).max())

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(one, range(64))) <= 1e-6
    assert max(size for _, size in COLOURS.batches[before:]) > 6, "requests were embedded together"


def test_an_answer_ends_when_the_client_goes_away() -> None:
    parrot = Parrot(slow=0.05)
    body = {"messages": [{"role": "user", "content": "word " * 300}], "stream": True, "max_tokens": 1000}
    with running(create_app(None, parrot, Settings(chats=1))) as place:
        with httpx.stream("POST", f"{place}/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            for _ in range(4):
                next(lines)
        until = time.monotonic() + 5
        while not parrot.closed and time.monotonic() < until:
            time.sleep(0.05)
        first = parrot.steps
        assert parrot.closed == 1 and first < 200
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{place}/v1/chat/completions", json={**body, "stream": False}, timeout=0.4)
        while parrot.closed < 2 and time.monotonic() < until + 5:
            time.sleep(0.05)
        assert parrot.closed == 2 and parrot.steps - first < 200
        short = httpx.post(f"{place}/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}, timeout=20)
        assert short.status_code == 200, "the thread is free again"


def test_a_full_line_is_refused_with_the_time_to_wait() -> None:
    parrot = Parrot(slow=0.1)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    with running(create_app(None, parrot, Settings(chats=1, max_waiting=1))) as place, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{place}/v1/chat/completions", json=body, timeout=20), range(6)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes.count(200) >= 2 and set(codes) == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)


def test_metrics(client, address) -> None:
    client.embeddings.create(model="colours", input="a red star")
    text = httpx.get(f"{address}/metrics").text
    assert 'diptych_requests_total{method="POST",route="/v1/embeddings",status="200"}' in text
    assert 'diptych_batch_items_bucket{kind="text",le="1.0",model="colours"}' in text and "diptych_tokens_total" in text
    assert "diptych_chat_waiting 0.0" in text and "diptych_embed_waiting 0.0" in text


def test_base64_is_little_endian_float32(address) -> None:
    body = {"input": "red", "encoding_format": "base64"}
    held = httpx.post(f"{address}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(held), "<f4"), COLOURS.embed_text(["red"])[0])
