"""Models that are not ours: our numbers against those of transformers called directly, and an endpoint of our own."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli_fixture
import foreign_fixture as tiny
from cli_fixture import Cli
from diptych.api import load as load_anywhere
from diptych.api import run_directory
from diptych.core.capabilities import Adapter, FunctionModel, Model
from diptych.core.errors import DiptychError
from diptych.inference.foreign import open_model
from foreign_fixture import images, said


def load(address: str | Path) -> Model:
    """On the processor, where numbers can be compared to the last digits."""
    return load_anywhere(address, device="cpu")


TEXTS = ["a red cat", "two dog on the left", "a picture of a green star in the blue photo"]


cli = cli_fixture.cli


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "clip": tiny.clip(root / "clip"),
        "siglip": tiny.siglip(root / "siglip"),
        "itm": tiny.blip(root / "itm", "BlipForImageTextRetrieval"),
        "blip": tiny.blip(root / "blip", "BlipForConditionalGeneration"),
        "llava": tiny.llava(root / "llava"),
    }


def unit(x: torch.Tensor) -> np.ndarray:
    return (x / x.norm(dim=-1, keepdim=True)).detach().numpy()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_dual_encoders_embed_as_transformers_does(made: dict[str, Path], name: str) -> None:
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(made[name]).eval(), AutoProcessor.from_pretrained(made[name])
    padding = {"clip": True, "siglip": "max_length"}[name]
    inputs = processor(
        images=[Image.fromarray(i) for i in images()], text=TEXTS, padding=padding, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(**inputs)
    ours = load(f"hf:{made[name]}?batch=2")
    assert isinstance(ours, Model)
    np.testing.assert_allclose(ours.embed_image(images()), unit(out.image_embeds), atol=1e-6)
    np.testing.assert_allclose(ours.embed_text(TEXTS), unit(out.text_embeds), atol=1e-6)
    cosines = unit(out.image_embeds) @ unit(out.text_embeds).T
    np.testing.assert_allclose(ours.score(images(), TEXTS), cosines, atol=1e-6)
    np.testing.assert_allclose(ours.score(images(), TEXTS, np.array([[2, 0], [0, 1]])), [cosines[2, 0], cosines[0, 1]], atol=1e-6)


def test_flava_embeds_what_its_contrastive_loss_sees(tmp_path: Path) -> None:
    from transformers import AutoProcessor, FlavaForPreTraining

    path = tiny.flava(tmp_path / "flava")
    model, processor = FlavaForPreTraining.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    pixels = processor.image_processor([Image.fromarray(i) for i in images()], return_tensors="pt")["pixel_values"]
    inputs = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, pixel_values=pixels, input_ids_masked=inputs["input_ids"], return_loss=False)
    scale = model.flava.logit_scale.exp().item()
    ours = load(f"hf:{path}?batch=2")
    assert ours.capabilities == {"embed_image", "embed_text", "score", "locate"}
    np.testing.assert_allclose(ours.score(images(), TEXTS), out.contrastive_logits_per_image.numpy() / scale, atol=1e-5)


def test_blip_matches_as_transformers_does(made: dict[str, Path]) -> None:
    from transformers import BlipForImageTextRetrieval, BlipProcessor

    model, processor = BlipForImageTextRetrieval.from_pretrained(made["itm"]).eval(), BlipProcessor.from_pretrained(made["itm"])
    odds, cosine = np.zeros((3, 3)), np.zeros((3, 3))
    for i, image in enumerate(images()):
        for j, text in enumerate(TEXTS):
            inputs = processor(images=Image.fromarray(image), text=text, return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs).itm_score[0]
                cosine[i, j] = model(**inputs, use_itm_head=False).itm_score.item()
            odds[i, j] = logits[1] - logits[0]
    matching = load(f"hf:{made['itm']}?batch=2")
    assert matching.capabilities == {"score"}
    np.testing.assert_allclose(matching.score(images(), TEXTS), odds, atol=1e-5)
    np.testing.assert_allclose(matching.score(images(), TEXTS, np.array([[2, 1], [0, 0]])), [odds[2, 1], odds[0, 0]], atol=1e-5)
    similar = load(f"hf:{made['itm']}?score=similarity")
    np.testing.assert_allclose(similar.score(images(), TEXTS), cosine, atol=1e-5)
    assert similar.key != matching.key


def chat(prompt: str) -> str:
    return f"user : <image> {prompt} answer :"


def test_llava_likelihoods_are_those_of_one_pass_each(made: dict[str, Path]) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(made["llava"]).eval()
    processor = AutoProcessor.from_pretrained(made["llava"])
    asked = [(0, "is there a cat ?", "yes"), (1, "what is in the picture ?", "a red star"), (0, "is there a cat ?", "no no no")]
    wanted = []
    for number, prompt, answer in asked:
        inputs = processor(images=Image.fromarray(images()[number]), text=f"{chat(prompt)} {answer}", return_tensors="pt")
        with torch.no_grad():
            logp = model(**inputs).logits[0].log_softmax(-1)
        n = len(answer.split())
        ids = inputs["input_ids"][0]
        wanted.append(sum(logp[t - 1, ids[t]].item() for t in range(len(ids) - n, len(ids))))
    ours = load(f"hf:{made['llava']}")
    pictures = images()
    found = ours.loglikelihood([pictures[n] for n, _, _ in asked], [a for _, _, a in asked], [p for _, p, _ in asked])
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    yes = load(f"hf:{made['llava']}?score=yes")
    question = 'Does this figure show "a cat"? Please answer yes or no.'
    np.testing.assert_allclose(yes.score(pictures, ["a cat"])[:, 0], ours.loglikelihood(pictures, ["Yes"] * 3, question), atol=1e-6)
    by_default = ours.score(pictures[:2], TEXTS)
    again = ours.loglikelihood([pictures[1]] * 3, TEXTS)
    np.testing.assert_allclose(by_default[1], again, atol=1e-5)


def test_llava_generates_as_transformers_does(made: dict[str, Path]) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(made["llava"]).eval()
    processor = AutoProcessor.from_pretrained(made["llava"])
    prompts = ["what is in the picture ?", "is there a dog on the left ?", "red ?"]
    wanted = []
    for image, prompt in zip(images(), prompts, strict=True):
        inputs = processor(images=Image.fromarray(image), text=chat(prompt), return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        wanted.append(processor.tokenizer.decode(out, skip_special_tokens=True).strip())
    assert load(f"hf:{made['llava']}?batch=2").generate(images(), prompts, max_tokens=5) == wanted
    assert len(set(wanted)) > 1


def test_blip_captions_as_transformers_does(made: dict[str, Path]) -> None:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model = BlipForConditionalGeneration.from_pretrained(made["blip"]).eval()
    processor = BlipProcessor.from_pretrained(made["blip"])
    ours = load(f"hf:{made['blip']}")
    for prompt in ("", "a picture of"):
        inputs = processor(images=[Image.fromarray(i) for i in images()], text=[prompt] * 3, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False, num_beams=1)
        skipped = len(prompt.split()) + 1
        wanted = [processor.decode(row[skipped:], skip_special_tokens=True).strip() for row in out]
        assert ours.generate(images(), prompt, max_tokens=5) == wanted
    inputs = processor(images=Image.fromarray(images()[0]), text="a red cat", return_tensors="pt")
    ids = inputs["input_ids"][:, :-1].clone()
    ids[:, 0] = model.config.text_config.bos_token_id
    with torch.no_grad():
        logp = model(pixel_values=inputs["pixel_values"], input_ids=ids).logits[0].log_softmax(-1)
    wanted = [sum(logp[t - 1, ids[0, t]].item() for t in range(1 + n, 4)) for n in (0, 1)]
    found = ours.loglikelihood([images()[0]] * 2, ["a red cat", "red cat"], ["", "a"])
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_blip2_whose_processor_places_the_image_itself(tmp_path: Path, kind: str) -> None:
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    path = tiny.blip2(tmp_path / kind, kind)
    model, processor = Blip2ForConditionalGeneration.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    inputs = processor(images=Image.fromarray(images()[0]), text="what is in the picture ?", return_tensors="pt")
    start, wanted = inputs["input_ids"].shape[1], []
    for answer in ("red cat", "dog"):
        ids = torch.tensor([processor.tokenizer(answer, add_special_tokens=kind == "t5")["input_ids"]])
        with torch.no_grad():
            if kind == "t5":
                wanted.append(-model(**inputs, labels=ids).loss.item() * ids.shape[1])
                continue
            whole = torch.cat([inputs["input_ids"], ids], 1)
            logp = model(inputs["pixel_values"], whole, attention_mask=torch.ones_like(whole)).logits[0].log_softmax(-1)
        wanted.append(sum(logp[t - 1, whole[0, t]].item() for t in range(start, whole.shape[1])))
    ours = load(f"hf:{path}")
    found = ours.loglikelihood([images()[0]] * 2, ["red cat", "dog"], "what is in the picture ?")
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    said = processor.tokenizer.decode(out[0, start if kind == "opt" else 0 :], skip_special_tokens=True)
    assert ours.generate(images()[:1], "what is in the picture ?", 4) == [said.strip()]


def test_paligemma_does_not_see_the_end_of_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

    path = tiny.paligemma(tmp_path / "pali")
    model, processor = PaliGemmaForConditionalGeneration.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    inputs = processor(images=Image.fromarray(images()[0]), text="what ?", suffix="red cat", return_tensors="pt")
    with torch.no_grad():
        logp = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits[0].log_softmax(-1)
    ids, at = inputs["input_ids"][0], [i for i, label in enumerate(inputs["labels"][0]) if label >= 0][:2]
    ours = load(f"hf:{path}")
    found = ours.loglikelihood([images()[0]], ["red cat"], "what ?")
    np.testing.assert_allclose(found, sum(logp[i - 1, ids[i]].item() for i in at), atol=1e-4)
    assert len(ours.generate(images(), "what ?", 3)) == 3
    fresh = load(f"hf:{path}")
    monkeypatch.setattr(fresh.model.config, "model_type", "another")  # then the answer would count as prompt
    with pytest.raises(DiptychError, match="looks ahead in its answers"):
        fresh.loglikelihood([images()[0]], ["red cat"], "what ?")


def test_keys_name_weights_and_settings(made: dict[str, Path], tmp_path: Path) -> None:
    first = load(f"hf:{made['clip']}").key
    assert first and first == load(f"hf:{made['clip']}?batch=3").key
    torch.manual_seed(9)
    other = tiny.clip(tmp_path / "other")
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\0\0")
    assert load(f"hf:{other}").key != first


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf:nobody/nothing-of-the-kind", "hf download nobody/nothing-of-the-kind --local-dir DIR"),
        ("hf:", "has no model name"),
        ("hf:x?bach=3", "unknown option 'bach'; did you mean 'batch'"),
        ("openai:localhost:1?model=x", "expected openai:http"),
        ("openai:http://localhost:1", "missing option 'model'"),
        ("no.such.module:Thing", "cannot import 'no.such.module'"),
        ("builtins:dict", "is not a model: dict does not have"),
        ("runs/nothing", "a run is a directory"),
    ],
)
def test_what_cannot_be_opened_says_what_to_do(address: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        load(address)


def test_open_clip_is_asked_for_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(DiptychError, match="pip install open_clip_torch"):
        load("open_clip:ViT-B-32")


def test_a_directory_of_transformers_is_named_as_such(made: dict[str, Path]) -> None:
    with pytest.raises(DiptychError, match=f"is hf:{made['clip']}"):
        load(made["clip"])


def test_wrong_scores_are_refused(made: dict[str, Path]) -> None:
    for name, wrong in (("clip", "yes"), ("itm", "yes"), ("llava", "matching")):
        with pytest.raises(DiptychError, match="score"):
            load(f"hf:{made[name]}?score={wrong}")
    with pytest.raises(DiptychError, match="cannot generate; it can: embed_image, embed_text, locate, score"):
        load(f"hf:{made['clip']}").generate(images())


def test_ones_own_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mymodels.py").write_text(
        "import numpy as np\nfrom diptych.core.capabilities import Adapter\n\n\nclass Bright(Adapter):\n"
        "    capabilities = frozenset({'score'})\n\n    def __init__(self, *, sign: float = 1.0):\n        self.sign = sign\n\n"
        "    def score(self, images, texts, pairs=None):\n"
        "        matrix = np.array([[self.sign * i.mean() for _ in texts] for i in images])\n"
        "        return matrix if pairs is None else matrix[pairs[:, 0], pairs[:, 1]]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert open_model("mymodels:Bright?sign=-2").score(images(1), ["x"])[0, 0] == pytest.approx(-2 * images(1)[0].mean())
    with pytest.raises(DiptychError, match="cannot generate"):
        open_model("mymodels:Bright").generate(images(1))
    assert str(run_directory("hf:a/b?x=1")) == "runs/hf-a-b-x-1"


def test_functions_get_a_prompt_for_each_image() -> None:
    model = FunctionModel("f", generate=lambda i, prompts, n: prompts, loglikelihood=lambda i, t, p: [len(x) for x in p])
    assert model.generate(images(2), "same") == ["same", "same"]
    assert model.loglikelihood(images(2), ["a", "b"], ["x", "yy"]).tolist() == [1, 2]
    assert {"prompt", "score"} <= model.capabilities
    with pytest.raises(DiptychError, match="1 prompt for 2 images"):
        model.generate(images(2), ["one"])
    plain = FunctionModel("p", loglikelihood=lambda i, t: [float(len(x)) for x in t])
    assert plain.score(images(2), ["a", "bb"]).tolist() == [[1, 2], [1, 2]]
    assert Adapter().capabilities == frozenset()


def test_endpoint_sends_pictures_and_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with tiny.endpoint(lambda n, body: (200, {}, said(f" {body['messages'][0]['content'][1]['text']}! "))) as asked:
        model = load(f"openai:{asked.url}?model=m&key=MY_KEY")
        assert model.generate(images(5), ["one", "two", "three", "four", "five"], 7) == ["one!", "two!", "three!", "four!", "five!"]
        assert model.capabilities == {"generate", "prompt"} and "secret" not in str(model.key)
        with pytest.raises(DiptychError, match="logprobs=true"):
            model.score(images(1), ["a cat"])
    assert set(asked.authorization) == {"Bearer secret"}
    body = next(b for b in asked if b["messages"][0]["content"][1]["text"] == "two")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0)
    data = body["messages"][0]["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == images(2)[1]).all()


def test_endpoint_scores_by_the_probability_of_yes() -> None:
    top = [("Yes", 0.5), (" yes", 0.1), ("No", 0.3), ("Maybe", 0.05)]
    content = [{"top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top]}]
    with tiny.endpoint(lambda n, body: (200, {}, said("Yes", logprobs={"content": content}))) as asked:
        model = load(f"openai:{asked.url}?model=m&logprobs=true")
        assert model.score(images(2), ["a cat"]) == pytest.approx(np.full((2, 1), math.log(0.6)))
        assert 'Does this figure show "a cat"?' in asked[0]["messages"][0]["content"][1]["text"]


@pytest.mark.parametrize("trouble", [(503, {}, b"busy"), (429, {"Retry-After": "0"}, b""), (200, {}, b"<html>"), (500, {}, b"")])
def test_endpoint_tries_again(trouble: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.inference.foreign.asking.time.sleep", lambda seconds: None)
    with tiny.endpoint(lambda n, body: trouble if n < 3 else (200, {}, said("done"))) as asked:
        assert load(f"openai:{asked.url}?model=m").generate(images(1)) == ["done"]
        assert len(asked) == 3
    with tiny.endpoint(lambda n, body: trouble) as asked:
        with pytest.raises(DiptychError, match="gave up after 3 attempts"):
            load(f"openai:{asked.url}?model=m&retries=2&patience=0").generate(images(1))
        assert len(asked) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {}, b"no such key"), "is the key in the environment variable OPENAI_API_KEY"),
        ((400, {}, b"images are not understood"), "status 400: images are not understood"),
        ((200, {}, {"error": "x"}), 'status 200 with an error: "x"'),
        ((200, {}, {"x": 1}), "not an answer of chat completions"),
    ],
)
def test_endpoint_gives_up_at_once_where_trying_does_not_help(reply: tuple, message: str) -> None:
    with tiny.endpoint(lambda n, body: reply) as asked:
        with pytest.raises(DiptychError, match=message):
            load(f"openai:{asked.url}?model=m").generate(images(1))
        assert len(asked) == 1
        json.dumps(asked)


def test_no_server_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.inference.foreign.asking.time.sleep", lambda seconds: None)
    with pytest.raises(DiptychError, match=r"refused.*gave up after 2 attempts"):
        load("openai:http://127.0.0.1:9/v1?model=m&retries=1").generate(images(1))


def test_the_command_line_judges_a_model_of_transformers_and_recomputes(made: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    told = cli(
        "evaluate",
        f"hf:{made['llava']}",
        "--data",
        "scenes:small",
        "--tasks",
        "vqa?n=12&by=likelihood",
        "--json",
        "--device",
        "cpu",
    )
    assert told.code == 0, told.all
    first = json.loads(told.out)
    assert {r["metric"] for r in first["results"]} >= {"accuracy", "ece", "brier"} and first["results"][0]["by"] == "likelihood"
    folder = run_directory(f"hf:{made['llava']}") / "evaluation"
    again = cli("evaluate", "--from-records", folder, "--json")
    assert json.loads(again.out)["results"] == first["results"]
    assert "vqa" in cli("evaluate", "--from-records", folder).out
    for wrong, message in ((("evaluate",), "name models to evaluate"), (("evaluate", f"hf:{made['llava']}"), "--data ADDRESS")):
        outcome = cli(*wrong)
        assert outcome.code == 1 and message in outcome.err


def test_answers_of_an_endpoint_stand_for_it_when_it_is_gone(cli: Cli) -> None:
    with tiny.endpoint(lambda n, body: (200, {}, said("yes"))) as asked:
        address = f"openai:{asked.url}?model=m&retries=0"
        assert cli("evaluate", address, "--data", "scenes:small", "--tasks", "pope?samples=4", "--out", "kept").code == 0
        before = len(asked)
    again = cli("evaluate", "--from-records", "kept", "--json")
    assert again.code == 0 and before > 10
    found = {r["metric"]: r["value"] for r in json.loads(again.out)["results"]}
    assert found["yes_ratio"] == found["recall"] == 1 and found["accuracy"] == 0.5
    gone = cli("evaluate", address, "--data", "scenes:small", "--tasks", "pope?samples=4", "--out", "kept")
    assert gone.code == 0  # all answers are there: nobody is asked
