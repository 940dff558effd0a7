"""Caption metrics as the COCO evaluation server computes them (Chen et al., arXiv:1504.00325), without Java.

All take ``references`` {id: [texts]} and ``hypotheses`` {id: text} as plain text; tokenising happens inside.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

References = Mapping[str, Sequence[str]]
Hypotheses = Mapping[str, str]
Ngrams = Counter[tuple[str, ...]]

# What the server drops after tokenising. Its list has the brackets in capitals, but the tokens come in lower case:
# "-lrb-" stays, and so it does here.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_NORMALISE = str.maketrans(
    {"’": "'", "‘": "`", '"': "''", "“": "``", "”": "''", "–": "--", "—": "--", "…": "...", "½": "1/2", "£": "#", "€": "$"}
)
_SPLIT = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "¢": "cents",
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me", "lemme": "lem me",
}  # fmt: skip
_ABBREVIATIONS = "mr|mrs|ms|dr|st|jr|sr|prof|etc|vs|inc|ltd|co|corp|ave|blvd|rd|ft|oz|lb|lbs|mt|approx|dept"
_CLITIC = r"'(?:s|m|d|re|ve|ll)\b"
_TOKEN = re.compile(
    rf"""
      https?://\S+ | www\.\S+ | [\w.+-]+@[\w-]+\.[\w.]+ | [#@][^\W\d]\w*    # addresses, hash tags
    | (?:[a-z]\.)+[a-z](?![\w]) \.? | \b[a-z]\.(?!\w)                       # u.s. p.m, vitamin c.
    | (?:{_ABBREVIATIONS})\.(?!\w) | no\.(?=\ *\d)                          # mr. etc. no. 7
    | \d+(?:[.,:/]\d+)+                                                     # 3,000 5.00 3/4 5:30
    | '(?:\d0s|n'|n\b|em\b|tis\b|twas\b) | o'clock\b | y'(?=all\b)          # '90s 'n' 'em
    | {_CLITIC} | n't\b
    | at&t\b | \w+?(?=n't\b) | \w+(?:(?:[-/_]|(?<=[^\W\d])[.!](?=[^\W\d])|'(?!(?:s|m|d|re|ve|ll|n)\b))\w+?(?=n't\b|\b))*
    | \.\.\. | -+ | [!?]+ | '' | `` | [^\w\s]
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=65536)
def tokenise(text: str) -> tuple[str, ...]:
    """Lower-case Penn Treebank tokens as Stanford CoreNLP 3.4.1 makes them, less punctuation."""
    found = _TOKEN.findall(text.lower().translate(_NORMALISE))
    tokens = " ".join(_SPLIT.get(token, token) for token in found).split()
    return tuple(t for t in tokens if t not in PUNCTUATION)


def _ngrams(tokens: Sequence[str], n: int = 4) -> Ngrams:
    return Counter(tuple(tokens[i : i + k]) for k in range(1, n + 1) for i in range(len(tokens) - k + 1))


def bleu_counts(references: References, hypotheses: Hypotheses) -> np.ndarray:
    """Per item: hypothesis length, closest reference length, 4 × n-grams matched, 4 × n-grams made; int [N, 10].

    Corpus BLEU is a function of the column sums, so a resample of items needs no second look at the text.
    """
    rows = []
    for key, hypothesis in hypotheses.items():
        tokens = tokenise(hypothesis)
        most: Ngrams = Counter()
        for reference in references[key]:
            most |= _ngrams(tokenise(reference))
        length = len(tokens)
        closest = min((abs(r - length), r) for r in (len(tokenise(t)) for t in references[key]))[1]
        matched = [0] * 4
        for gram, count in (_ngrams(tokens) & most).items():
            matched[len(gram) - 1] += count
        rows.append([length, closest, *matched, *(max(0, length - k) for k in range(4))])
    return np.array(rows, dtype=np.int64).reshape(-1, 10)


def bleu_of_counts(counts: np.ndarray) -> list[float]:
    """BLEU-1..4 of (a resample of) the rows of ``bleu_counts``."""
    return [float(v) for v in bleu_of_sums(counts.sum(0))]


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4, float [..., 4], of column sums [..., 10] of ``bleu_counts``."""
    sums = np.asarray(sums, dtype=np.float64)
    length, closest, matched, made = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.minimum(0.0, 1 - closest / length)
        logs = np.cumsum(np.log(matched / made), axis=-1) / np.arange(1, 5)
        values = np.exp(brevity[..., None] + logs)
    return np.where((matched > 0).cumprod(axis=-1) > 0, values, 0.0)  # no smoothing


def bleu(references: References, hypotheses: Hypotheses) -> list[float]:
    """Corpus BLEU-1..4, closest reference length (tie: the shorter), no smoothing (Papineni et al. 2002)."""
    return bleu_of_counts(bleu_counts(references, hypotheses))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous = 0
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], previous + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l_items(references: References, hypotheses: Hypotheses, beta: float = 1.2) -> dict[str, float]:
    """ROUGE-L of each item (Lin 2004); best precision and best recall are taken over the references separately."""
    values = {}
    for key, hypothesis in hypotheses.items():
        tokens, best_p, best_r = tokenise(hypothesis), 0.0, 0.0
        for reference in map(tokenise, references[key]):
            common = _common(tokens, reference)
            best_p = max(best_p, common / max(1, len(tokens)))
            best_r = max(best_r, common / max(1, len(reference)))
        f = 0.0 if not best_p or not best_r else (1 + beta**2) * best_p * best_r / (best_r + beta**2 * best_p)
        values[key] = f
    return values


def rouge_l(references: References, hypotheses: Hypotheses) -> float:
    return _mean(rouge_l_items(references, hypotheses))


def cider_d_items(references: References, hypotheses: Hypotheses, sigma: float = 6.0) -> dict[str, float]:
    """CIDEr-D of each item (Vedantam et al., arXiv:1411.5726), document frequencies from the references given."""
    frequency: Ngrams = Counter()
    for key in hypotheses:
        frequency.update({gram for text in references[key] for gram in _ngrams(tokenise(text))})
    log_n = math.log(max(1, len(hypotheses)))

    def vector(text: str) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(4)]
        tokens = tokenise(text)
        for gram, count in _ngrams(tokens).items():
            weights[len(gram) - 1][gram] = count * (log_n - math.log(max(1, frequency[gram])))
        norms = [math.sqrt(math.fsum(w * w for w in part.values())) for part in weights]
        return weights, norms, max(0, len(tokens) - 1)  # the reference code counts bigrams as the length

    values = {}
    for key, hypothesis in hypotheses.items():
        h, h_norm, h_length = vector(hypothesis)
        total = 0.0
        for text in references[key]:
            r, r_norm, r_length = vector(text)
            penalty = math.exp(-((h_length - r_length) ** 2) / (2 * sigma**2))
            for n in range(4):
                if h_norm[n] and r_norm[n]:
                    dot = math.fsum(min(w, r[n][g]) * r[n][g] for g, w in h[n].items() if g in r[n])
                    total += penalty * dot / (h_norm[n] * r_norm[n])
        values[key] = 10 * total / 4 / len(references[key])
    return values


def cider_d(references: References, hypotheses: Hypotheses) -> float:
    return _mean(cider_d_items(references, hypotheses))


def _mean(values: Mapping[str, float]) -> float:
    return math.fsum(values.values()) / max(1, len(values))


def caption_scores(references: References, hypotheses: Hypotheses) -> dict[str, float]:
    """All of them: bleu1..bleu4, rouge_l, cider."""
    values = {f"bleu{n}": v for n, v in enumerate(bleu(references, hypotheses), 1)}
    return {**values, "rouge_l": rouge_l(references, hypotheses), "cider": cider_d(references, hypotheses)}
