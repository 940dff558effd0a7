"""A summary of the comparison in sentences, generated from the numbers. ``**`` marks the names of recipes."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from diptych.report.columns import Column, Standing, amount, columns, interval, number, seconds, standing
from diptych.report.read import Comparison, Measure, Recipe

SOUGHT = ("relation", "binding")
BY_OVERLAP = " (by the overlap of the intervals, since no paired test is stored)"


def plain_words(comparison: Comparison) -> str:
    """One paragraph: the ranking in retrieval, relation and binding, the cost, and what is missing."""
    shown = columns(comparison)
    tasks = list(dict.fromkeys(task for r in comparison.recipes for task, _ in r.measures))
    if not tasks:
        return "Nothing has been measured yet: no run holds an evaluation with results."
    sentences = retrieval(comparison, shown)
    if not sentences:
        sentences = [f"Retrieval was not measured. What was: {join(tasks)}; each has a page with its controls and examples."]
    for skill in SOUGHT:
        sentences += skill_sentences(comparison, shown, skill)
    sentences += [*other_skills(comparison, shown), *overall(comparison, shown), *cost(comparison), *missing(comparison)]
    return " ".join(s for s in sentences if s)


def retrieval(comparison: Comparison, shown: Sequence[Column]) -> list[str]:
    """Sentences on retrieval."""
    main = headline(comparison, shown)
    if not main:
        return []
    standings = [standing(comparison, c.key) for c in main]
    where = main[0].group.split(", R@")[0].replace("Retrieval", "retrieval")
    if len(main) == 2 and {r.name for r in standings[0].tied} == {r.name for r in standings[1].tied}:
        also = values(main[1], standings[1].tied)
        return [f"In {where}, {lead(comparison, main[0], standings[0])}; the same holds for image → caption ({also})."]
    return [f"In {where}, {lead(comparison, column, s)}." for column, s in zip(main, standings, strict=True)]


def headline(comparison: Comparison, shown: Sequence[Column]) -> list[Column]:
    """The columns of the retrieval task that most recipes have; among equal ones the hardest, with the lowest chance."""
    tasks: dict[str, list[Column]] = {}
    for column in shown:
        if column.group.startswith("Retrieval"):
            tasks.setdefault(column.key[0], []).append(column)
    if not tasks:
        return []

    def rank(task: str) -> tuple[int, float]:
        """First the task that most recipes have, then the one with the lowest chance."""
        have = sum(any(c.key in r.measures for c in tasks[task]) for r in comparison.recipes)
        return have, -min((c.chance if c.chance is not None else 1.0) for c in tasks[task])

    return tasks[max(tasks, key=rank)]


def lead(comparison: Comparison, column: Column, s: Standing) -> str:
    """The best recipes of one column, and whether the lead is significant."""
    best = s.tied[0]
    measure = best.measures[column.key]
    caveat = "" if s.tested else BY_OVERLAP
    figure = f"{number(measure.value)} % right at first rank, interval {interval(measure)}"
    if all(not r.measures[column.key].better_than_chance for r in s.ranked):
        return f"{column.label}, no recipe does better than chance within its interval (highest: **{best.label}**, {figure})"
    if len(s.ranked) == 1:
        return f"{column.label}, **{best.label}** alone was measured ({figure})"
    if len(s.tied) == 1:
        second = f"**{s.behind[0].label}** ({number(s.behind[0].measures[column.key].value)} %)"
        others = f"the next, {second}" + (", and of all others" if len(s.behind) > 1 else "")
        return f"{column.label}, **{best.label}** is best ({figure}), significantly ahead of {others}{caveat}"
    if not s.behind:
        return f"{column.label}, the recipes are tied: none is significantly behind the best ({values(column, s.tied)}){caveat}"
    others = f"{names(s.behind)} {be(s.behind)} significantly behind{caveat}"
    return f"{column.label}, {values(column, s.tied)} are tied at the top; {others}"


def skill_sentences(comparison: Comparison, shown: Sequence[Column], skill: str) -> list[str]:
    """Sentences on one skill: which recipes are above, at or below chance."""
    sentences = []
    for column in (c for c in shown if c.group == "Skills" and skill in c.label and c.chance is not None):
        have = [r for r in standing(comparison, column.key).ranked if r.measures[column.key].bounded]
        above = [r for r in have if r.measures[column.key].better_than_chance]
        near = [r for r in have if r.measures[column.key].at_chance]
        below = [r for r in have if r not in above and r not in near]
        clauses = []
        if above:
            verb = f"{be(above)} above chance{among(comparison, column, above)}{split_seeds(column, above)}"
            clauses.append(f"{values(column, above)} {verb}")
        if near and len(near) == len(have) > 1:
            clauses.append(f"every recipe stays at chance within its interval ({values(column, near, True)})")
        elif near:
            clauses.append(f"{values(column, near, True)} {'stays' if len(near) == 1 else 'stay'} at chance within the interval")
        if below:
            clauses.append(f"{values(column, below)} {be(below)} below chance, which points to a consistent wrong preference")
        if clauses:
            sentences.append(f"{column.label.capitalize()} (chance {number(column.chance)} %): {'; '.join(clauses)}.")
        sentences += blind(column, have)
    return sentences


def among(comparison: Comparison, column: Column, above: Sequence[Recipe]) -> str:
    """How the recipes above chance differ from the best of them."""
    s = standing(comparison, column.key)
    if len(above) < 2 or above[0] is not s.tied[0]:
        return ""
    behind = [r for r in above if r in s.behind]
    caveat = "" if s.tested else BY_OVERLAP
    if not behind:
        return f", with no significant difference {'between' if len(above) == 2 else 'among'} them{caveat}"
    return f", with **{above[0].label}** significantly ahead of {names(behind)}{caveat}"


def split_seeds(column: Column, above: Sequence[Recipe]) -> str:
    """The recipes above chance of which single seeds are at chance, which the mean hides."""
    split = [r for r in above if r.measures[column.key].seeds_at_chance]
    parts = [
        f"**{r.label}** is at chance in {len(r.measures[column.key].seeds_at_chance)} of {len(r.measures[column.key].seeds)} seeds"
        for r in split
    ]
    return f" (but {join(parts)})" if parts else ""


def blind(column: Column, recipes: Sequence[Recipe]) -> list[str]:
    """A sentence on recipes above chance without the picture, since the captions then reveal the answer."""
    parts = [
        f"**{r.label}** {number(m.controls['blind'])} %"
        for r in recipes
        if (m := r.measures[column.key]).controls.get("blind", 0) > blind_limit(m)
    ]
    what = f"Caution: {column.label} is above chance even without the picture"
    return [f"{what} ({', '.join(parts)}), so part of that score comes from the wording."] if parts else []


def blind_limit(m: Measure) -> float:
    """The blind score that is clearly above chance."""
    chance = m.chance if m.chance is not None else 1.0
    return chance + 2 * sqrt(chance * (1 - chance) / max(1, m.clusters or m.n))


def other_skills(comparison: Comparison, shown: Sequence[Column]) -> list[str]:
    """A sentence on the remaining skills."""
    rest = [c for c in shown if c.group == "Skills" and not any(s in c.label for s in SOUGHT) and c.chance is not None]
    if not rest:
        return []
    weak = {r.label: [c.label for c in rest if c.key in r.measures and not r.measures[c.key].better_than_chance]
            for r in comparison.measured}  # fmt: skip
    parts = [f"**{label}** ({', '.join(skills)})" for label, skills in weak.items() if skills]
    kinds = f"the other {len(rest)} skills" if len(rest) > 1 else f"{rest[0].label}"
    if not parts:
        return [f"On {kinds} all recipes are above chance."]
    return [f"On {kinds}, not above chance: {join(parts)}."]


def overall(comparison: Comparison, shown: Sequence[Column]) -> list[str]:
    """A sentence on the recipes that are best, or tied with the best, over the measures above."""
    main = headline(comparison, shown) + [c for c in shown if c.group == "Skills" and any(s in c.label for s in SOUGHT)]
    if len(comparison.measured) < 2 or len(main) < 2:
        return []
    won: dict[str, list[str]] = {}
    for column in main:
        for r in standing(comparison, column.key).tied:
            if r.measures[column.key].better_than_chance:
                won.setdefault(r.label, []).append(column.label)
    if not won:
        return [f"No recipe beats chance on any of these {len(main)} measures, so they are no basis for a choice."]
    everywhere = [label for label, on in won.items() if len(on) == len(main)]
    if len(everywhere) == len(comparison.measured):
        return [f"All recipes tie for first on all {len(main)} of these measures: they are no basis for a choice."]
    if everywhere:
        verb = "leads or ties" if len(everywhere) == 1 else "lead or tie"
        return [f"Taken together, {join([f'**{t}**' for t in everywhere])} {verb} for first on all {len(main)} of these measures."]
    by_columns: dict[str, list[str]] = {}
    for label, on in won.items():
        by_columns.setdefault(join(on), []).append(f"**{label}**")
    parts = "; ".join(f"{join(who)} for {on}" for on, who in by_columns.items())
    return [f"No recipe leads everywhere; first or tied for first: {parts}."]


def cost(comparison: Comparison) -> list[str]:
    """A sentence on time, speed and size."""
    have = [r for r in comparison.recipes if r.spent.get("seconds")]
    if not have:
        return []
    times = [r.spent["seconds"] for r in have]
    low, high = min(times), max(times)
    duration = seconds(low) if high - low < 0.02 * high or seconds(low) == seconds(high) else f"{seconds(low)} to {seconds(high)}"
    sentence = f"Training took {duration} a run"
    speeds = sorted((r for r in have if r.spent.get("samples_per_second")), key=lambda r: -r.spent["samples_per_second"])
    if len(speeds) > 1:
        fast, slow = speeds[0], speeds[-1]
        sentence += (
            f"; **{fast.label}** was fastest ({amount(fast.spent['samples_per_second'])} samples/s), "
            f"**{slow.label}** slowest ({amount(slow.spent['samples_per_second'])})"
        )
    sizes = [r.spent["trainable_parameters"] for r in have if "trainable_parameters" in r.spent]
    if sizes:
        low, high = min(sizes), max(sizes)
        sentence += f"; trainable parameters: {amount(low)}" + (f" to {amount(high)}" if amount(low) != amount(high) else "")
    return [sentence + "."]


def missing(comparison: Comparison) -> list[str]:
    """Sentences on recipes without results and unfinished runs."""
    absent = [r for r in comparison.recipes if not r.measures]
    cut = [r for r in comparison.recipes if r.spent.get("finished") is False and r.measures]
    sentences = (
        [f"No results from {join([f'**{r.label}**' + (f' ({r.error})' if r.error else '') for r in absent])}."] if absent else []
    )
    return sentences + ([f"Not finished: {names(cut)}."] if cut else [])


def values(column: Column, recipes: Sequence[Recipe], with_interval: bool = False) -> str:
    """Recipes with their values."""
    parts = []
    for r in recipes:
        m = r.measures[column.key]
        around = f" [{interval(m, column.share)}]" if with_interval else ""
        parts.append(f"**{r.label}** {number(m.value, column.share)}{' %' if column.share else ''}{around}")
    return join(parts)


def names(recipes: Sequence[Recipe]) -> str:
    """The names of the recipes."""
    return join([f"**{r.label}**" for r in recipes])


def join(parts: Sequence[str]) -> str:
    """The parts as an enumeration."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def be(recipes: Sequence[Recipe]) -> str:
    """ "is" or "are"."""
    return "is" if len(recipes) == 1 else "are"
