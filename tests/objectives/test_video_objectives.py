"""X-CLIP's similarity and Test of Time's loss against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Texts, Tokens
from diptych.core.files import read_jsonl
from diptych.data.sources import open_source
from diptych.objectives.video.grained import MultiGrained, attended
from diptych.objectives.video.order import TimeOrder, time_order_loss
from diptych.training.loop import train
from engine_fixture import tiny
from launch_fixture import launch

M, K, F, T, E = 3, 4, 5, 6, 7
FRAMES, WORDS = [5, 2, 3], [6, 3, 4, 2]
TAU = 0.1  # so that more than one word counts


class Known(dict):
    rows = None
    size = M


class Sizes:
    """What the objective reads of a model."""

    embed_dim = E

    class tokenizer:  # noqa: N801
        max_length = T

    @staticmethod
    def part(name):
        class Time:
            frames = F

        return Time


def units(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def given(seed=0):
    torch.manual_seed(seed)
    frame_mask = torch.arange(F) < torch.tensor(FRAMES)[:, None]
    word_mask = torch.arange(T) < torch.tensor(WORDS)[:, None]
    frames = Tokens(units(M, F, E) * frame_mask[..., None], units(M, E), frame_mask)
    ids = torch.full((K, T), 9)
    return Known(
        {
            "video.frame_embedding": frames,
            "text.embedding": units(K, E),
            "text.token_embedding": units(K, T, E),
            "text": Texts(ids, word_mask),
        }
    )


def objective(seed=1):
    torch.manual_seed(seed)
    made = MultiGrained(Sizes, temperature_of_attention=TAU).double()
    for mix in made.mix.values():
        mix.data += 0.3 * torch.randn_like(mix)
    return made


def sum_up(values, mix):
    """Σ_j (softmax(v / τ) · mix)_j v_j of real values alone."""
    weights = np.exp(values / TAU - (values / TAU).max())
    weights /= weights.sum()
    return float((weights @ mix[: len(values), : len(values)]) @ values)


def reference(p, made):
    mix = {name: m.detach().numpy() for name, m in made.mix.items()}
    video, text = p["video.frame_embedding"], p["text.token_embedding"].numpy()
    scores = np.zeros((M, K))
    for m in range(M):
        clip, frames = video.pooled[m].numpy(), video.tokens[m, : FRAMES[m]].numpy()
        for k in range(K):
            sentence, words = p["text.embedding"][k].numpy(), text[k, : WORDS[k]]
            whole = sentence @ mix["clip_sentence"] @ clip
            by_words = sum_up(words @ clip, mix["clip_words"])
            by_frames = sum_up(frames @ sentence, mix["frames_sentence"])
            fine = words @ mix["token"] @ frames.T  # [words, frames]
            by_frame = np.array([sum_up(fine[:, f], mix["words"]) for f in range(len(frames))])
            by_word = np.array([sum_up(fine[w], mix["frames"]) for w in range(len(words))])
            last = (sum_up(by_frame, mix["frames_again"]) + sum_up(by_word, mix["words_again"])) / 2
            scores[m, k] = (whole + by_words + by_frames + last) / 4
    return scores


def test_four_grains_against_loops():
    p, made = given(), objective()
    np.testing.assert_allclose(made.all_scores(p).detach().numpy(), reference(p, made), rtol=1e-9, atol=1e-9)


def test_weights_of_frames_against_loops():
    p, made = given(), MultiGrained(Sizes, temperature_of_attention=TAU).double()
    found = made.frame_weights(p).detach().numpy()
    frames, sentences = p["video.frame_embedding"], p["text.embedding"]
    for m in range(M):
        for k in range(K):
            raw = [math.exp(float(frames.tokens[m, f] @ sentences[k]) / TAU) for f in range(FRAMES[m])]
            expected = [x / sum(raw) for x in raw] + [0.0] * (F - FRAMES[m])
            np.testing.assert_allclose(found[m, k], expected, atol=1e-12)


def test_padding_takes_no_part():
    p, made = given(), objective()
    before = made.all_scores(p)
    p["text.token_embedding"] = torch.where(p["text"].mask[..., None], p["text.token_embedding"], 5.0)
    torch.testing.assert_close(made.all_scores(p), before)


def test_at_first_the_best_word_counts():
    """With identity matrices and a small temperature the attention is a maximum."""
    values = torch.tensor([0.1, 0.9, 0.3, 2.0], dtype=torch.float64)
    mask = torch.tensor([True, True, True, False])
    assert attended(values, mask, torch.eye(4, dtype=torch.float64), 0.01).item() == pytest.approx(0.9)
    assert attended(values, mask, torch.eye(4, dtype=torch.float64), 1e6).item() == pytest.approx((0.1 + 0.9 + 0.3) / 3, abs=1e-5)


def test_gradients_of_four_grains():
    p, made = given(), objective()

    def loss(*mixes):
        total = attended(p["video.frame_embedding"].tokens @ p["text.embedding"][0], p["video.frame_embedding"].mask, mixes[0], TAU)
        return total.sum()

    assert torch.autograd.gradcheck(loss, [made.mix["frames_sentence"].detach().clone().requires_grad_()])
    torch.autograd.backward(made.all_scores(p).square().sum())
    assert all(mix.grad.abs().sum() > 0 for mix in made.mix.values())


def order_reference(video, text, back, wrong, scale, same, cross, beta):
    B = len(video)
    videos, texts = np.concatenate([video, back]), np.concatenate([text, wrong])
    total = weight = 0.0
    for i in range(2 * B):
        for rows, columns in ((videos, texts), (texts, videos)):
            z = 0.0
            for j in range(2 * B):
                factor = 1.0 if (i < B) == (j < B) else (same if i % B == j % B else cross)
                z += factor * math.exp(scale * rows[i] @ columns[j])
            share = 1.0 if i < B else beta
            total += share * (math.log(z) - scale * rows[i] @ columns[i])
            weight += share
    return total / weight


@pytest.mark.parametrize(("same", "cross", "beta"), [(1, 1, 1), (0.5, 0.25, 0.7), (1, 0, 0), (0, 0, 1)])
def test_time_order_against_loops(same, cross, beta):
    torch.manual_seed(3)
    four = [units(5, E) for _ in range(4)]
    expected = order_reference(*(x.numpy() for x in four), 10.0, same, cross, beta)
    assert time_order_loss(*four, 10.0, same, cross, beta).item() == pytest.approx(expected, rel=1e-9)


def test_time_order_without_backward_clips_is_info_nce():
    from diptych.objectives.contrastive import info_nce

    torch.manual_seed(4)
    video, text, back, wrong = (units(5, E) for _ in range(4))
    loss = time_order_loss(video, text, back, wrong, 10.0, same=0, cross=0, beta=0)
    assert loss.item() == pytest.approx(info_nce(video, text, 10.0).item(), rel=1e-9)


def test_time_order_punishes_a_model_that_cannot_tell_time():
    torch.manual_seed(5)
    video, text = units(5, E), units(5, E)
    blind = time_order_loss(video, video, video, video, 50.0)  # forwards and backwards alike: half the mass at best
    seeing = time_order_loss(video, video, text, text, 50.0)
    assert blind > math.log(2) - 1e-6 and seeing < blind


def test_time_order_leaves_equal_meanings_out():
    torch.manual_seed(6)
    four = [units(4, E) for _ in range(4)]
    meaning = torch.tensor([7, 8, 7, 9])
    loss = time_order_loss(*four, 10.0, meaning=meaning)
    expected = 0.0
    videos, texts = torch.cat([four[0], four[2]]), torch.cat([four[1], four[3]])
    logits = (10.0 * videos @ texts.T).numpy()
    keep = np.ones((8, 8), dtype=bool)
    for block in (0, 4):
        keep[block, block + 2] = keep[block + 2, block] = False
    for matrix in (logits, logits.T):
        for i in range(8):
            expected += math.log(np.exp(matrix[i][keep[i]]).sum()) - matrix[i, i]
    assert loss.item() == pytest.approx(expected / 16, rel=1e-9)


def test_time_order_gradient():
    torch.manual_seed(7)
    raw = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(
        lambda *x: time_order_loss(*(torch.nn.functional.normalize(v, dim=-1) for v in x), 5.0, 0.5, 0.5, 0.5), raw
    )


def test_clips_without_a_backward_version():
    """Two of four clips run backwards: equal to the loss with all, in which the others' backward versions weigh nothing."""
    torch.manual_seed(8)
    video, text = units(4, E), units(4, E)
    back, wrong, owner = units(2, E), units(2, E), torch.tensor([1, 3])
    loss = time_order_loss(video, text, back, wrong, 10.0, 0.5, 0.25, 0.7, owner)
    videos, texts, of = torch.cat([video, back]).numpy(), torch.cat([text, wrong]).numpy(), [0, 1, 2, 3, 1, 3]
    total = weight = 0.0
    for i in range(6):
        for rows, columns in ((videos, texts), (texts, videos)):
            factors = [1.0 if (i < 4) == (j < 4) else (0.5 if of[i] == of[j] else 0.25) for j in range(6)]
            z = sum(f * math.exp(10.0 * rows[i] @ columns[j]) for j, f in enumerate(factors))
            share = 1.0 if i < 4 else 0.7
            total, weight = total + share * (math.log(z) - 10.0 * rows[i] @ columns[i]), weight + share
    assert loss.item() == pytest.approx(total / weight, rel=1e-9)


def test_time_order_of_a_batch_without_backward_captions():
    class Short(dict):
        rows = None

        def has(self, name):
            return name in self

        @property
        def alone(self):
            return self

        def everyones(self, x):
            return x

    texts = Texts(torch.full((3, 4), 9), torch.ones(3, 4, dtype=torch.bool))
    p = Short(
        {"video.embedding": units(3, E), "video.reversed_embedding": units(3, E), "text.embedding": units(3, E), "text": texts}
    )
    from diptych.objectives.contrastive import info_nce

    made = TimeOrder(Sizes)
    expected = info_nce(p["video.embedding"], p["text.embedding"], made.scale.detach())
    assert made.forward(p).item() == pytest.approx(expected.item(), rel=1e-6)


class _Processes:
    """Two processes of two clips each, seen by one of them: only the first has a clip that runs backwards."""

    def __init__(self, rank, encodings, meaning):
        self.rank, self.encodings, self.rows = rank, encodings, slice(2 * rank, 2 * rank + 2)
        ids = torch.full((4, 4), 9)
        self.fields = {"text": Texts(ids, ids > 0, meaning=meaning)}

    def __getitem__(self, name):
        return self.encodings[name] if name in self.encodings else self.fields[name]

    def has(self, name):
        return name in self.encodings or name in self.fields

    @property
    def alone(self):
        ids = torch.full((1, 4), 9)
        own = _Processes(self.rank, {}, None)
        if self.rank == 0:
            own.fields["negatives"] = Texts(ids, ids > 0, owner=torch.tensor([1]))
        return own

    def everyones(self, x):
        parts = [x if rank == self.rank else torch.tensor([[1], []][rank], dtype=torch.long) for rank in range(2)]
        return torch.cat(parts)


def test_a_process_without_backward_captions_leaves_the_others_theirs():
    torch.manual_seed(9)
    video, back, text, wrong = units(4, E), units(4, E), units(4, E), units(1, E)
    known = {"video.embedding": video, "video.reversed_embedding": back, "text.embedding": text, "negatives.embedding": wrong}
    made, meaning = TimeOrder(Sizes, same=0.5, cross=0.25, beta=0.7).double(), torch.arange(4)
    expected = time_order_loss(video, text, back[[1]], wrong, made.scale, 0.5, 0.25, 0.7, torch.tensor([1]), meaning)
    for rank in range(2):
        loss = made.forward(_Processes(rank, known, meaning))
        torch.testing.assert_close(loss, expected)


@pytest.mark.slow
def test_backward_captions_that_one_process_alone_has_count_as_with_one_process(tmp_path):
    """Of batches of two clips, in most of which one process has a backward caption and the other has none."""
    settings = [*(f"stages.0.{key}" for key in ("batch_size=2", "warmup=2", "optimizer=adamw", "lr=3e-4")), "budget=20 samples"]
    settings += ["data.train=scenes:clips?actions=move,return&size=32&concepts=6&clip_frames=8&backwards=1"]
    launch([["test-of-time", str(tmp_path / "two"), settings]])
    train(load_recipe("test-of-time", [*tiny("test-of-time"), *settings]), tmp_path / "one")
    ours, alone = (read_jsonl(tmp_path / d / "metrics.jsonl") for d in ("two", "one"))
    assert ours[-1]["samples"] == alone[-1]["samples"] == 20
    assert ours[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["clip4clip", "clip4clip@mean", "clip4clip@lstm", "x-clip", "cosa", "test-of-time"])
def test_recipes_of_clips_train_and_score(name, tmp_path):
    import diptych as dp
    from diptych.data.clips import clip_array

    clips_of = "scenes:clips?actions=all&size=32&concepts=6&colours=4"
    own = {"cosa": "stills:scenes:small%3Fsize=32&concepts=6?n=3", "test-of-time": f"{clips_of}&backwards=1"}.get(name, clips_of)
    small = {"stages.0.batch_size": 16, "precision": "fp32", "data.train": own, "data.image_size": 32}
    model = dp.load(dp.train(name, budget="32 samples", out=tmp_path / "run", set=small).path)
    assert {"embed_image", "embed_text", "score"} <= model.capabilities
    assert ("generate" in model.capabilities) == (name == "cosa")
    source = open_source(clips_of).split("test")
    clips = [clip_array(source[i].fields["video"], "c") for i in range(4)]
    texts = [source[i].captions[0] for i in range(3)]
    scores = model.score(clips, texts)
    assert scores.shape == (4, 3) and np.isfinite(scores).all()
    pairs = model.score(clips, texts, np.array([[3, 2], [0, 1]]))
    np.testing.assert_allclose(pairs, scores[[3, 0], [2, 1]], rtol=1e-3, atol=1e-4)
    alone = model.score(clips[:1], texts[:1])
    np.testing.assert_allclose(alone[0, 0], scores[0, 0], rtol=1e-3, atol=1e-4)
    weights = model.frame_weights(clips[:3], texts)
    if name == "x-clip":  # the frames that it reads, of each clip for its own text, whatever else is in the batch
        assert [len(w) for w in weights] == [len(c) for c in clips[:3]] and all(abs(w.sum() - 1) < 1e-5 for w in weights)
        assert all((w > 0).sum() <= 8 for w in weights)
        np.testing.assert_allclose(model.frame_weights(clips[1:2], texts[1:2])[0], weights[1], atol=1e-4)
    else:
        assert weights is None
    if name == "clip4clip@mean":  # the order of frames has no effect
        few = [c[::2].copy() for c in clips]  # as many frames as it sees
        np.testing.assert_allclose(model.score([c[::-1].copy() for c in few], texts), model.score(few, texts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["video-llava", "minigpt4-video", "pllava", "valley", "video-llama"])
def test_language_models_on_clips_train_write_and_score(name, tmp_path):
    import diptych as dp
    from diptych.data.clips import clip_array

    data = "scenes:clips?actions=all&size=32&concepts=6&colours=4"
    small = {"stages.0.batch_size": 8, "precision": "fp32", "data.train": data, "data.image_size": 32}
    model = dp.load(dp.train(name, budget="16 samples", out=tmp_path / "run", set=small).path)
    assert {"generate", "loglikelihood", "score"} <= model.capabilities
    source = open_source(data).split("test")
    clips = [clip_array(source[i].fields["video"], "c") for i in range(3)]
    texts = [source[i].captions[0] for i in range(2)]
    scores = model.score(clips, texts)
    assert scores.shape == (3, 2) and np.isfinite(scores).all() and (scores < 0).all()
    np.testing.assert_allclose(model.loglikelihood(clips[:2], texts), scores[[0, 1], [0, 1]], rtol=1e-4, atol=1e-3)
    written = model.generate(clips, max_tokens=4)
    assert len(written) == 3 and written == model.generate(clips, max_tokens=4)
