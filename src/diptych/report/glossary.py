"""The terms of the report, explained."""

from __future__ import annotations

from diptych.report.drawing.marks import escape

GLOSSARY = {
    "R@1": "The share of queries with the right answer first among all candidates.",
    "Interval": (
        "The values that are compatible with the random choice of test items (95 %, bootstrap over pictures). The effect of a new "
        "training seed is separate; the values of the seeds show it."
    ),
    "Chance": (
        "The result of guessing. A value with an interval that includes chance is no evidence of the skill, even if others are "
        "lower."
    ),
    "Blind": "The same questions without the picture. Correct answers here can be guessed from the wording.",
    "Shuffled": "The same questions with another item’s picture. Correct answers here do not come from the picture.",
    "Tied, significant": (
        "Two recipes are compared on the same items. With many comparisons some differ by luck; within one measure, Holm’s "
        "correction keeps the probability of even one such mistake below 5 %. Tied means that no difference was shown, not that "
        "there is none."
    ),
    "Relation, binding": (
        "Relation: what is where (“a cat left of a dog” or the reverse). Binding: which attribute belongs to which object "
        "(“a red cup and a blue hat” or the reverse). A bag of words cannot distinguish these."
    ),
    "CIDEr": (
        "The agreement of a generated caption with the references, with more weight on rare words; 0: nothing in common; higher is "
        "better."
    ),
    "Modality gap": "The distance between the centres of the image and the text embeddings.",
}


def glossary() -> str:
    """The terms and their meanings, HTML."""
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in GLOSSARY.items())
    return f'<dl class="glossary">{rows}</dl>'
