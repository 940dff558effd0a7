"""The words of the page, explained."""

from __future__ import annotations

from diptych.report.drawing.marks import escape

GLOSSARY = {
    "R@1": "The share of queries whose right answer comes first among all candidates.",
    "Interval": (
        "Which values fit, given the luck of which test items were drawn (95 %, bootstrap over pictures). What a new training "
        "seed changes is another matter, and seen from the seeds’ own values."
    ),
    "Chance": (
        "What guessing gives. A value whose interval includes chance shows no sign of the skill, however it compares to others."
    ),
    "Blind": "The same questions without the picture. What is right here can be guessed from the wording.",
    "Shuffled": "The same questions with another item’s picture. What is right here does not come from looking.",
    "Tied, significant": (
        "Two recipes are compared on the same items. With many comparisons some differ by luck; within one measure, Holm’s "
        "correction keeps the probability of even one such mistake below 5 %. Tied means that no difference was shown, not that "
        "there is none."
    ),
    "Relation, binding": (
        "Relation: who is where (“a cat left of a dog” or the reverse). Binding: which property belongs to which thing "
        "(“a red cup and a blue hat” or the reverse). A bag of words cannot tell these apart."
    ),
    "CIDEr": (
        "How well a written caption agrees with the references, rare words counting more; 0 is nothing in common, higher is better."
    ),
    "Modality gap": "How far apart the images’ and the texts’ embeddings lie as groups.",
}


def glossary() -> str:
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in GLOSSARY.items())
    return f'<dl class="glossary">{rows}</dl>'
