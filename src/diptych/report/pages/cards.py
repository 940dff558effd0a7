"""Examples of a task with pictures: wrong, nearly right and right, chosen by a fixed rule."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diptych.report.drawing.marks import escape, figure, key
from diptych.report.drawing.pictures import Pictures, img
from diptych.report.pages.explain import explain_task
from diptych.report.records import finite, own_scores
from diptych.report.sections.answers import Answers, TaskAnswers
from diptych.training.run_files import Record

PER_PAGE = 72  # pictures: more make the page slow to open and to mail
EACH = 3  # cards of a kind and recipe
NEAR_RANK = 3  # a right answer at this rank is a near miss
KINDS = (("wrong", "✗ Wrong"), ("near", "≈ Nearly right"), ("right", "✓ Right"))
QUESTIONS = ("question", "prompt", "caption", "text", "query")
SAID = ("said", "answer", "generated", "predicted", "prediction", "raw", "response", "parsed")
WANTED = ("class", "label", "truth", "target", "expected", "correct_answer", "references", "answers")
SHOWN_TEXT = 240  # letters of an answer
MOST_PICTURES, MOST_TEXTS = 4, 6  # of a small table of scores


def example_cards(gathered: TaskAnswers, pictures: Pictures) -> str:
    """Examples of each recipe, HTML."""
    if is_private(gathered.task):
        return ""
    parts, left = [], PER_PAGE
    share = max(4, PER_PAGE // max(1, len(gathered.answers)))
    for a in gathered.answers:
        html, used = _recipe(gathered, a, pictures, min(share, left))
        left -= used
        if html:
            state = " open" if len(gathered.answers) <= 4 else ""
            head = f"<summary><h3>{key(a.index, a.recipe.label)}</h3></summary>"
            parts.append(f'<details class="recipe"{state}>{head}<div class="sides">{html}</div></details>')
    if not parts:
        return ""
    caption = (
        f"Chosen by a fixed rule: up to {EACH} of each kind, in a random order of the items that is the same for all recipes, "
        "alternating between the metrics, each picture once for each kind. Nearly right: the right answer is second or third, or "
        "part of the item is right, or the scores are the closest of all mistakes. Small tables: the score of each caption for "
        f"each picture, the best of a picture bold, ✓ at the right one. At most {PER_PAGE} pictures on a page."
    )
    return figure("".join(parts), caption)


def is_private(task: str) -> bool:
    """Whether a task is a red team's: its own section shows requests and answers, on request only."""
    return explain_task(task) == explain_task("redteam")


def _recipe(gathered: TaskAnswers, a: Answers, pictures: Pictures, limit: int) -> tuple[str, int]:
    sides, used = [], 0
    chosen = choose(gathered, a)
    for kind, title in KINDS:
        cards = []
        for record in chosen[kind]:
            shown = pictures.of(gathered.task, a, record)[: max(0, limit - used)]
            used += len(shown)
            cards.append(card(gathered, a, record, shown, pictures))
        if cards:
            sides.append(f"<div><h4>{title}</h4>{''.join(cards)}</div>")
    return "".join(sides), used


def choose(gathered: TaskAnswers, a: Answers) -> dict[str, list[Record]]:
    """Up to ``EACH`` wrong, nearly right and right records, alternating between the main metrics."""
    by_kind: dict[str, dict[str, list[Record]]] = {kind: {} for kind, _ in KINDS}
    margins: dict[str, list[tuple[float, Record]]] = {}
    for record in shuffled(a.records):
        item = str(record["item"])
        head = gathered.head_of(a, item)
        if head is None:
            continue
        credit = gathered.goodness(a, head, item)
        if not 0 <= credit <= 1:
            continue
        kind = "right" if credit == 1 else "near" if credit > 0 or _near(record) else "wrong"
        by_kind[kind].setdefault(head, []).append(record)
        if kind == "wrong" and (m := margin(record)) is not None:
            margins.setdefault(head, []).append((m, record))
    if not by_kind["near"]:  # the closest mistakes
        for head, by_margin in margins.items():
            nearest = [r for _, r in sorted(by_margin, key=lambda pair: pair[0])[: 8 * EACH]]
            names = {r["item"] for r in nearest}
            by_kind["near"][head] = nearest
            others = [r for r in by_kind["wrong"][head] if r["item"] not in names]
            by_kind["wrong"][head] = others or by_kind["wrong"][head]
    return {kind: list(_in_turn(groups, EACH)) for kind, groups in by_kind.items()}


def shuffled(records: Sequence[Record]) -> list[Record]:
    """The records in a random order that is always the same."""
    order = sorted(records, key=lambda r: str(r["item"]))
    random.Random(0).shuffle(order)
    return order


def _in_turn(groups: dict[str, list[Record]], n: int) -> Iterator[Record]:
    """Records of the groups in alternation, each picture once."""
    lists = [list(g) for _, g in sorted(groups.items(), key=lambda pair: -len(pair[1]))]
    taken: set[str] = set()
    while n and any(lists):
        for records in lists:
            while records and n:
                record = records.pop(0)
                cluster = str(record.get("cluster", record["item"]))
                if cluster not in taken:
                    taken.add(cluster)
                    yield record
                    n -= 1
                    break


def _near(record: Record) -> bool:
    ranks = record.get("rank")
    values = list(ranks.values()) if isinstance(ranks, dict) else [ranks]
    return any(1 < v <= NEAR_RANK for r in values if (v := finite(r)) is not None)


def margin(record: Record) -> float | None:
    """The difference between the best score and the next; None without a list of scores."""
    scores = own_scores(record)
    if len(scores) < 2 or isinstance(scores[0], list):
        return None
    values = sorted((v for s in scores if (v := finite(s)) is not None), reverse=True)
    return values[0] - values[1] if len(values) > 1 else None


def card(
    gathered: TaskAnswers, a: Answers, record: Record, shown: Sequence[str], pictures: Pictures, other: Answers | None = None
) -> str:
    """One item, HTML: the question, the answer (also of another model, if given), the correct answer, and its pictures."""
    question = next((str(record[k]) for k in QUESTIONS if isinstance(record.get(k), str) and record[k]), "")
    head = gathered.head_of(a, str(record["item"]))
    rows: list[tuple[str, Any]] = []
    options = _options(gathered, a, record, pictures)
    rivals = [(a, record)] if other is None else [(a, record), (other, other.by_item.get(str(record["item"]), {}))]
    for who, own in rivals:
        answer = _value(own, SAID) or (_best(own, options) if options else None)
        if answer is not None:
            rows.append((key(who.index, who.recipe.label) if other else "Said", answer))
    if (wanted := _value(record, WANTED)) is not None:
        rows.append(("Wanted", wanted))
    table = _scores(record)
    if other is not None and table and (rival := _scores(rivals[1][1])):
        table = f"<p>{key(a.index, a.recipe.label)}</p>{table}<p>{key(other.index, other.recipe.label)}</p>{rival}"
    query_text = question or ("" if table or rows else str(record["item"]))
    alt = question or _written(_value(record, WANTED) or f"item {record['item']}")
    thumbs = "".join(
        f'<span class="thumb">{img(src, alt if len(shown) == 1 else f"picture {i} of {len(shown)}: {_caption(record, i) or alt}")}'
        f"{f'<span class=note>{i}</span>' if len(shown) > 1 else ''}</span>"
        for i, src in enumerate(shown, 1)
    )
    of = f'<p class="note">{escape(head)}, item {escape(record["item"])}</p>' if head else ""
    query = f'<p class="query">{escape(_cut(query_text))}</p>' if query_text else ""
    pictured = f'<div class="thumbs">{thumbs}</div>' if thumbs else ""
    listed = "".join(f"<dt>{title}</dt><dd>{escape(_written(value))}</dd>" for title, value in rows)
    listed = f"<dl>{listed}</dl>" if rows else ""
    kind = " side" if len(shown) == 1 and (listed or table) else ""
    return f'<article class="card example{kind}">{query}{pictured}<div>{listed}{table}</div>{of}</article>'


def _value(record: Record, names: Sequence[str]) -> Any:
    value = next((record[k] for k in names if record.get(k) not in (None, "", [])), None)
    return value.get("correct") if isinstance(value, dict) else value


def _texts(record: Record) -> list[str]:
    """The captions that are scored against pictures."""
    given = record.get("captions") or record.get("texts")
    return [str(t) for t in given] if isinstance(given, list) else []


def _caption(record: Record, place: int) -> str:
    captions = _texts(record)
    return captions[place - 1] if len(captions) >= place else ""


def _scores(record: Record) -> str:
    """The scores of texts × pictures, HTML, with the best text of each picture in bold."""
    scores, captions = own_scores(record), _texts(record)
    if not scores or len(scores) > MOST_PICTURES or not 1 <= len(captions) <= MOST_TEXTS:
        return ""
    if not all(isinstance(row, list) and len(row) == len(captions) for row in scores):
        return ""
    values = np.array([[v if (v := finite(s)) is not None else np.nan for s in row] for row in scores], dtype=float)
    given = np.array(record.get("fits") or [], dtype=object)
    fits = given if given.shape == values.shape else np.eye(*values.shape)
    rows = []
    for j, caption in enumerate(captions):
        cells = []
        for i in range(len(scores)):
            best = np.isfinite(values[i]).any() and values[i, j] == np.nanmax(values[i])
            written = f"{values[i, j]:.3g}"
            cells.append(f'<td class="num">{f"<b>{written}</b>" if best else written}{" ✓" if fits[i][j] else ""}</td>')
        rows.append(f'<tr><th scope="row">{escape(_cut(caption))}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col">{i if len(scores) > 1 else "score"}</th>' for i in range(1, len(scores) + 1))
    return (
        f'<table class="small"><thead><tr><td><span class="hear">Text</span></td>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _options(gathered: TaskAnswers, a: Answers, record: Record, pictures: Pictures) -> list[str]:
    """The options of the model, from the record or from the task's item (image, label, names)."""
    own = record.get("options") or record.get("choices")
    if isinstance(own, list):
        return [str(o) for o in own]
    item = pictures.item(gathered.task, a, str(record["item"])) if own_scores(record) else None
    named = item[-1] if isinstance(item, tuple) and isinstance(item[-1], list) else None
    return [str(n) for n in named] if named else []


def _best(record: Record, options: Sequence[str]) -> str | None:
    scores = own_scores(record)
    if len(scores) != len(options) or any(finite(s) is None for s in scores):
        return None
    return options[int(np.argmax(scores))]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return " · ".join(_cut(str(v)) for v in value[:3])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT].rstrip() + " …"
