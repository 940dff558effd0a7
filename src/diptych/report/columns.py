"""The columns of the main table: which metrics they show, their names for a reader, and how numbers are written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from diptych.report.read import Comparison, Key, Measure, Recipe, Test

SKILLS = ("existence", "absence", "object", "attribute", "colour", "color", "size", "count", "position", "spatial",
          "relation", "binding", "negation")  # fmt: skip
GENERIC = {"accuracy", "acc", "credit", "score", "value", "mean", "skills", "skill", "controlled", "macro"}
NOT_SHARES = re.compile(
    r"cider|bleu|gap|cosine|perplexity|nll|loss|length|distance|median|correlation|slope|of \d+|mean_rank|skew|association|"
    r"brier_score|seconds|psnr"
)
TO_IMAGE = re.compile(r"t2i|text[ _.-]?(to|2)[ _.-]?image|caption[ _.-]?(to|2)[ _.-]?image|image[ _]retrieval")
TO_TEXT = re.compile(r"i2t|image[ _.-]?(to|2)[ _.-]?(text|caption)|text[ _]retrieval")
AT_ONE = re.compile(r"(r|recall|hit|top)[ _]?(@|_?at_?)?[ _]?1(?!\d)")
SIGNIFICANT = 0.05
FURTHER = "Further tasks"  # those that run only on request, with the metrics that represent them
FURTHER_METRICS = {
    "winoground": ("group",), "spec": ("image-to-text", "text-to-image"), "redteam": ("harmful",), "chair": ("chair_i",),
    "bias": ("naming",), "completion": ("exact",), "embedding": (), "retrieval": (), "captions": (),
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A metric of the main table."""

    key: Key
    group: str
    label: str
    order: int
    chance: float | None
    higher_is_better: bool

    @property
    def share(self) -> bool:
        """Whether the metric is a share."""
        return is_share(self.key[1])

    @property
    def name(self) -> str:
        """Group and label."""
        return f"{self.group}: {self.label}"


def is_share(metric: str) -> bool:
    """Whether a metric is a share, shown in per cent."""
    return not NOT_SHARES.search(metric.lower())


def classify(task: str, metric: str) -> tuple[str, str, int] | None:
    """Group, label and position of a metric of the main table; None for the others, which are under "all measurements"."""
    t, m = task.lower(), metric.lower()
    if t.startswith("temporal"):
        return ("Order in time", m, 40) if "/" not in m else None
    if t.startswith("actions"):
        return ("Actions", "named", 41) if m == "top1" else None
    if t.startswith("video-retrieval"):
        side = ("text → clip", 0) if TO_IMAGE.search(m) else ("clip → text", 1)
        return ("Retrieval of clips, R@1", *side) if m.endswith("recall@1") else None
    if t.startswith("retrieval"):
        if not AT_ONE.search(m):
            return None
        size = re.search(r"\d+", t)
        group = f"Retrieval of {int(size[0]):,}, R@1" if size else "Retrieval, R@1"
        place = 10 if size else 0
        if TO_IMAGE.search(m):
            return group, "caption → image", place
        if TO_TEXT.search(m):
            return group, "image → caption", place + 1
        return group, "all", place + 2
    if re.search(r"naming|zero.?shot|classif", t):
        return ("Zero-shot naming", "top-1", 20) if AT_ONE.search(m) or m in GENERIC else None
    if m.startswith("cider"):
        return "Captions", "CIDEr", 60
    skill = skill_name(t, m)
    if not skill and m in FURTHER_METRICS.get(re.split(r"[-?]", t)[0], ("accuracy",)):
        return FURTHER, t if m == "accuracy" else f"{t}: {m.replace('_', ' ')}", 70
    if skill:
        return "Skills", skill, 30 + (SKILLS.index(skill) if skill in SKILLS else len(SKILLS))
    return None


def skill_name(task: str, metric: str) -> str:
    """The skill of a metric, "relation" for ``controlled``/``relation`` and ``relation``/``accuracy``; empty if it has none."""
    if metric.endswith(("/text-to-image", "/group")):
        return ""
    words = [w for part in (task, metric) for w in re.split(r"[/:.]|(?<=skills)[-_]|(?<=skill)[-_]", part) if w]
    own = [w for w in words if w not in GENERIC]
    if re.match(r"skills?\b|controlled", task):
        return re.sub(r"[_-]+", " ", " ".join(own)) or "all skills"
    if task.split("/")[-1] in SKILLS and metric in GENERIC:
        return task.split("/")[-1]
    return ""


def columns(comparison: Comparison) -> list[Column]:
    """The columns of the main table, in order."""
    by_key: dict[Key, Column] = {}
    for recipe in comparison.recipes:
        for key, measure in recipe.measures.items():
            place = classify(*key)
            if place and key not in by_key:
                by_key[key] = Column(key, *place, chance=measure.chance, higher_is_better=measure.higher_is_better)
    return sorted(by_key.values(), key=lambda c: (c.order // 10 if c.order < 30 else 3 + c.order // 60, c.group, c.order))


@dataclass(frozen=True)
class Standing:
    """The ranking of a column. ``tied``: the best, and those that do not differ significantly from it; ``behind``: the others."""

    tied: list[Recipe]
    behind: list[Recipe]
    tested: bool  # by the stored paired tests; otherwise by whether the intervals overlap

    @property
    def ranked(self) -> list[Recipe]:
        """All recipes, best first."""
        return self.tied + self.behind


def standing(comparison: Comparison, key: Key) -> Standing:
    """The ranking of the recipes by one metric."""
    have = [r for r in comparison.recipes if key in r.measures]
    if not have:
        return Standing([], [], True)
    sign = 1 if have[0].measures[key].higher_is_better else -1
    ranked = sorted(have, key=lambda r: -sign * r.measures[key].value)
    best, tied, tested = ranked[0], [ranked[0]], True
    behind: list[Recipe] = []
    for other in ranked[1:]:
        p = p_holm(comparison.tests, key, best.name, other.name)
        if p is None:
            tested = False
            differs = not overlap(best.measures[key], other.measures[key])
        else:
            differs = p < SIGNIFICANT
        (behind if differs else tied).append(other)
    return Standing(tied, behind, tested)


def p_holm(tests: list[Test], key: Key, a: str, b: str) -> float | None:
    """The corrected p-value of a pair; the largest if it was tested more than once, for example for each seed."""
    values = [t.p_holm for t in tests if (t.task, t.metric) == key and {t.a, t.b} == {a, b} and t.p_holm is not None]
    return max(values) if values else None


def overlap(a: Measure, b: Measure) -> bool:
    """Whether two intervals overlap; true if one is missing."""
    return not (a.bounded and b.bounded) or (a.low <= b.high and b.low <= a.high)


def number(value: float | None, share: bool = True) -> str:
    """A number as text: shares in per cent without the sign, others with two decimals."""
    if value is None:
        return "—"
    return f"{100 * value:.1f}" if share else f"{value:.2f}"


def p_value(p: float | None) -> str:
    """A p-value as text; a dash for none."""
    return "—" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(measure: Measure, share: bool = True) -> str:
    """The 95 % interval as text."""
    return f"{number(measure.low, share)}–{number(measure.high, share)}" if measure.bounded else "no interval"


def seeds(measure: Measure, share: bool = True) -> str:
    """The value of each seed as text, or their range if there are many; empty for one seed."""
    values = [number(v, share) for _, v in sorted(measure.seeds.items())]
    if len(values) < 2:
        return ""
    return " · ".join(values) if len(values) <= 3 else f"{min(values, key=float)} … {max(values, key=float)}"


def amount(value: float | None) -> str:
    """A number with a unit prefix: 1234567 is 1.23 M."""
    if value is None:
        return "—"
    for size, suffix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration as text."""
    if value is None:
        return "—"
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"
