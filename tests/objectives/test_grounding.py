"""GLIP, DetCLIP, GRAIN: prompts, targets, losses and boxes against plain loops in float64, and that they locate what they learned."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from diptych.core.errors import DiptychError
from diptych.data.fields.text import tokenized
from diptych.data.text import Tokenizer
from diptych.models.regions.anchors import centres, responsible, words_among
from diptych.models.regions.boxes import iou
from diptych.objectives.regions.anchors import AnchorConcepts, Grounding, box_loss, focal, named_in, prompts
from diptych.objectives.regions.base import on_whole_images
from diptych.objectives.regions.queries import BestRegion, QueryRegions, matched
from engine_fixture import Little
from plain_fixture import f64
from regions_fixture import BOXES, PHRASES, batch_for, model_of

OWNER = [0, 1, 1]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def focal_by_loops(logits, target):
    total = np.zeros(logits.shape)
    for at in np.ndindex(*logits.shape):
        p = sigmoid(logits[at])
        right, alpha = (p, 0.25) if target[at] else (1 - p, 0.75)
        total[at] = -alpha * (1 - right) ** 2 * math.log(right)
    return total


def giou_by_hand(a, b):
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union - (hull - union) / hull


def who_answers(box, grid, radius=1.5):
    """The patches of one box, by loops."""
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    away = {}
    chosen = set()
    for row, column in itertools.product(range(grid), range(grid)):
        x, y = (column + 0.5) / grid, (row + 0.5) / grid
        k = row * grid + column
        away[k] = max(abs(x - middle[0]), abs(y - middle[1]))
        if box[0] < x < box[2] and box[1] < y < box[3] and away[k] <= radius / grid + 1e-9:
            chosen.add(k)
    return chosen | {min(away, key=lambda k: round(away[k], 6))}


def test_focal_loss_equals_the_loops_and_has_a_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 4) > 0.5
    np.testing.assert_allclose(
        focal(logits, target).detach().numpy(), focal_by_loops(logits.detach().numpy(), target.numpy()), atol=1e-12
    )
    assert torch.autograd.gradcheck(lambda x: focal(x, target), (logits,))


def test_patches_that_answer_for_a_box() -> None:
    boxes = [[0.1, 0.2, 0.6, 0.9], [0.41, 0.42, 0.43, 0.44], [0.0, 0.0, 1.0, 1.0], [0.7, 0.7, 0.99, 0.95]]
    here = responsible(torch.tensor(boxes), 6)
    assert [set(row.nonzero()[:, 0].tolist()) for row in here] == [who_answers(box, 6) for box in boxes]
    assert centres(2, torch.device("cpu")).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_a_patch_that_answers_for_two_boxes_takes_the_smaller() -> None:
    torch.manual_seed(0)
    proposed = torch.cat([torch.rand(1, 4, 2) * 0.4, 0.5 + torch.rand(1, 4, 2) * 0.4], -1).double()
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.4, 0.4]], dtype=torch.float64)
    here = torch.tensor([[True, True, False, False], [True, False, False, False]])
    expected = sum(1 - giou_by_hand(proposed[0, patch].tolist(), boxes[box].tolist()) for patch, box in ((0, 1), (1, 0)))
    assert float(box_loss(proposed, boxes, torch.tensor([0, 0]), here)) == pytest.approx(expected, abs=1e-12)


def test_a_prompt_is_the_phrases_one_after_the_other() -> None:
    tokenizer = Tokenizer.train(PHRASES, 400, 16)
    phrases = tokenized(tokenizer, [*PHRASES, "a red fox left of two green keys above a blue heart"])
    words = [
        [i for i, real in zip(row, mask, strict=True) if real][1:]
        for row, mask in zip(phrases.ids.tolist(), phrases.mask.tolist(), strict=True)
    ]
    text, which = prompts(phrases, torch.tensor([1, 0, 1, -1]), 3, 16)
    assert text.ids[1][text.mask[1]].tolist() == [tokenizer.bos, *words[0], *words[2]]
    assert which[1][text.mask[1]].tolist() == [-1, *[0] * len(words[0]), *[2] * len(words[2])]
    assert text.ids[0][text.mask[0]].tolist() == [tokenizer.bos, *words[1]]
    assert text.ids[2][text.mask[2]].tolist() == [tokenizer.bos] and (which[~text.mask] == -1).all()
    short, _ = prompts(phrases, torch.tensor([0, 0, 0, -1]), 1, 1 + len(words[0]) + len(words[1]))
    assert short.ids[0].tolist() == [tokenizer.bos, *words[0], *words[1]], "the third does not fit"


@pytest.fixture(scope="module")
def glip():
    return model_of("glip")


def test_glip_equals_the_loops(glip) -> None:
    p = glip.encode(batch_for(glip))
    objective = Grounding(glip, negatives=0)
    torch.manual_seed(3)
    loss = float(objective(p).detach())
    torch.manual_seed(3)
    order = torch.randperm(3)
    phrases = p["regions"].phrases
    text, which = prompts(phrases[order], torch.tensor(OWNER)[order], 2, 64)
    q = p.view(text=text)
    logits, proposed = f64(q["text.anchor_logits"]), f64(q["text.anchor_boxes"])
    answers = [who_answers(box, 6) for box in BOXES]
    total, count = 0.0, sum(map(len, answers))
    for b, t in itertools.product(range(2), range(which.shape[1])):
        if which[b, t] < 0:
            continue
        region = int(order[which[b, t]])
        target = np.array([k in answers[region] for k in range(36)])
        total += focal_by_loops(logits[b, :, t], target).sum()
    for patch, b in itertools.product(range(36), range(2)):
        mine = [k for k in range(3) if OWNER[k] == b and patch in answers[k]]
        if mine:
            smallest = min(mine, key=lambda k: (BOXES[k][2] - BOXES[k][0]) * (BOXES[k][3] - BOXES[k][1]))
            total += 2 * (1 - giou_by_hand(proposed[b, patch], BOXES[smallest]))
    assert loss == pytest.approx(total / count, rel=1e-4) and objective.terms(p) == count


def test_wrong_phrases_of_a_prompt_match_nothing_unless_they_mean_the_same(glip) -> None:
    objective = Grounding(glip, negatives=1)
    p = glip.encode(batch_for(glip, ["a red fox", "a blue heart", "a red fox"]))
    regions = p["regions"]
    region = torch.tensor([[1], [0]])  # image 0 reads image 1's heart, image 1 reads image 0's fox, which it shows too
    alike = objective._alike(regions.phrases, torch.tensor(OWNER), objective.here(p), region, torch.ones(2, 1, dtype=torch.bool))
    assert not alike[0].any() and torch.equal(alike[1, :, 0], objective.here(p)[2])
    rows, images = objective._drawn(regions.phrases, torch.tensor(OWNER), 2)
    assert sorted(rows[:].tolist())[:1] and (images >= -1).all() and len(rows) == 5


def test_where_glip_locates_a_text(glip) -> None:
    p = glip.encode(batch_for(glip, text=True))
    logits, boxes, text = p["text.anchor_logits"], p["text.anchor_boxes"], p["text"]
    for b in range(2):
        length = int(text.mask[b].sum())
        scores = sigmoid(f64(logits[b, :, 1 : length - 1])).mean(1)  # its words: without [BOS] and [EOS]
        np.testing.assert_allclose(p["text.heat"][b].flatten().detach().numpy(), scores, atol=1e-5)
        torch.testing.assert_close(p["text.box"][b], boxes[b, int(scores.argmax())])
    assert p["text.heat"].shape == (2, 6, 6)
    empty = tokenized(glip.tokenizer, [""])
    assert torch.equal(words_among(empty), empty.mask), "a text without words counts whole"


def test_both_sides_read_what_the_other_was_before_the_layer(glip) -> None:
    head = glip.part("grounding")
    p = glip.encode(batch_for(glip, text=True))
    x, y = p["image.tokens"].tokens, p["text.tokens"].tokens
    for see, say in zip(head.image_side, head.text_side, strict=True):
        x, y = see(x[:1], None, y[:1, :4]), say(y[:1, :4], None, x[:1])
    assert y.shape[1] == 4  # texts differ in length: here the first four tokens of the first, without a mask
    one = glip.encode(batch_for(glip, text=True))["text"]
    assert int(one.mask[0].sum()) >= 4


@pytest.fixture(scope="module")
def detclip():
    return model_of("detclip")


def test_detclip_equals_the_loops(detclip) -> None:
    phrases = ["a red fox", "a blue heart", "a red fox"]
    p = detclip.encode(batch_for(detclip, phrases))
    objective = AnchorConcepts(detclip)
    anchors, text, proposed = f64(p["image.anchor_embedding"]), f64(p["regions.phrases.embedding"]), f64(p["image.anchor_boxes"])
    answers, total = [who_answers(box, 6) for box in BOXES], 0.0
    for b, patch, k in itertools.product(range(2), range(36), range(3)):
        logit = 10 * anchors[b, patch] @ text[k] - math.log(99)
        right = any(OWNER[r] == b and phrases[r] == phrases[k] and patch in answers[r] for r in range(3))
        total += focal_by_loops(np.array([logit]), np.array([right]))[0]
    for patch, b in itertools.product(range(36), range(2)):
        mine = [k for k in range(3) if OWNER[k] == b and patch in answers[k]]
        if mine:
            smallest = min(mine, key=lambda k: (BOXES[k][2] - BOXES[k][0]) * (BOXES[k][3] - BOXES[k][1]))
            total += 2 * (1 - giou_by_hand(proposed[b, patch], BOXES[smallest]))
    assert float(objective(p).detach()) == pytest.approx(total / sum(map(len, answers)), rel=1e-4)


def test_concepts_that_an_image_names_are_no_negatives() -> None:
    concepts = ["a photo of a fox", "a photo of a butterfly", "a photo of a key", "a photo of a cat"]
    phrases = ["two foxes", "three yellow butterflies", "a blue key"]
    assert named_in(concepts, phrases, torch.device("cpu")).int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.fixture(scope="module")
def grain():
    return model_of("grain")


def test_queries_are_matched_within_each_image(grain) -> None:
    p = grain.encode(batch_for(grain))
    proposed, boxes = p["image.region_boxes"].detach(), torch.tensor(BOXES)
    query, region = matched(proposed, boxes, torch.tensor(OWNER))
    assert region.tolist() == [0, 1, 2]

    def cost(b: int, q: int, k: int) -> float:
        a, c = proposed[b, q].tolist(), BOXES[k]
        l1 = sum(abs((a[i] + a[i + 2] - c[i] - c[i + 2]) / 2) + abs(a[i + 2] - a[i] - c[i + 2] + c[i]) for i in (0, 1))
        return 5 * l1 - 2 * giou_by_hand(a, c)

    assert int(query[0]) == min(range(8), key=lambda q: cost(0, q, 0))
    least = min(itertools.permutations(range(8), 2), key=lambda pair: cost(1, pair[0], 1) + cost(1, pair[1], 2))
    assert query[1:].tolist() == list(least)
    few = matched(proposed[:, :1], boxes, torch.tensor(OWNER))
    assert few[0].tolist() == [0, 0] and len(few[1]) == 2, "one query an image: one region of the second is left out"


def test_grain_equals_the_loops(grain) -> None:
    p = grain.encode(batch_for(grain))
    query, region = matched(p["image.region_boxes"].detach(), torch.tensor(BOXES), torch.tensor(OWNER))
    image = f64(p["image.region_embedding"])[np.array(OWNER)[region], query]
    text, boxes = f64(p["regions.phrases.embedding"]), f64(p["image.region_boxes"])[np.array(OWNER)[region], query]
    logits = image @ text.T / 0.07
    loss = np.mean([np.log(np.exp(m).sum(1)) - m.diagonal() for m in (logits, logits.T)])
    for a, c in zip(boxes, BOXES, strict=True):
        l1 = sum(abs((a[i] + a[i + 2] - c[i] - c[i + 2]) / 2) + abs(a[i + 2] - a[i] - c[i + 2] + c[i]) for i in (0, 1))
        loss += (l1 + 1 - giou_by_hand(a, c)) / 3
    assert float(QueryRegions(grain)(p).detach()) == pytest.approx(loss, abs=1e-4)


def test_grain_locates_and_scores_by_the_nearest_query(grain) -> None:
    p = grain.encode(batch_for(grain, text=True))
    regions, text, image = f64(p["image.region_embedding"]), f64(p["text.embedding"]), f64(p["image.embedding"])
    scores = BestRegion(grain).all_scores(p).detach().numpy()
    for m, n in itertools.product(range(2), range(2)):
        cosines = regions[m] @ text[n]
        assert scores[m, n] == pytest.approx(image[m] @ text[n] + cosines.max(), abs=1e-5)
        if m == n:
            torch.testing.assert_close(p["text.box"][m], p["image.region_boxes"][m, int(cosines.argmax())])
    pairs = BestRegion(grain).pair_scores(p, torch.tensor([0, 1]), torch.tensor([1, 1])).detach().numpy()
    np.testing.assert_allclose(pairs, scores[[0, 1], [1, 1]], atol=1e-6)


def test_a_part_that_gives_no_anchors_is_refused(grain) -> None:
    with pytest.raises(DiptychError, match=r"set parts\.grounding\.kind: glip"):
        Grounding(grain)
    with pytest.raises(DiptychError, match="kind: queries"):
        model_of("grain", "parts.grounding={kind: anchors}")


@pytest.mark.parametrize(
    ("name", "exact"), [("glip", ["stages.0.objectives.grounding.negatives=0"]), ("detclip", []), ("grain", [])]
)
def test_in_pieces_the_gradient_is_the_same_and_the_loss_falls(
    name: str, exact: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))  # the order of phrases in a prompt
    little = Little(name, *exact, batch_size=6)
    whole, pieces = little.gradients(None), little.gradients(3)
    for n, gradient in whole.items():
        assert (pieces[n] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, n
    own = next(n for n in little.objectives if n != "info_nce")
    little.objectives = nn.ModuleDict({own: little.objectives[own]})
    optimizer = torch.optim.AdamW(little.parameters().values(), lr=1e-3)
    losses = []
    for _ in range(15):
        losses.append(float(little.step(None).losses[own]))
        optimizer.step()
    assert losses[-1] < 0.85 * losses[0]
    batch = next(iter(little.loader.stream(0)))
    with torch.no_grad():
        p = little.model.encode(batch)
        assert iou(on_whole_images(p)["text.box"], p["regions"].boxes).shape == (len(batch["regions"]),)
