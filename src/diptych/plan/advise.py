"""Advice for a user's data: which paradigm, what to do first, each with what in the data says so and where that is shown.

The rules are those of the literature (Bordes et al. 2024, *An Introduction to Vision-Language Modeling*, arXiv:2405.17247: which
model to use, when) and of figures measured with Diptych, which the advice names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from diptych.core.errors import counted
from diptych.data.inspect import Inspection

Want = Literal["search", "classes", "captions", "answers", "boxes", "any"]
TUTORIAL = "Bordes et al. 2024, An Introduction to Vision-Language Modeling, arXiv:2405.17247"

FEW, SCRATCH = 2_000, 100_000  # captioned pictures: below, adapt; above, training from nothing begins to pay
SHOTS = 50  # pictures of a class up to which ways on vectors are tried first
LONG = 40  # words of a caption; the text towers of CLIP read about 50 words, and learned from shorter ones
SHORT = 3


@dataclass(frozen=True)
class Advice:
    """What to do, the command for it, what in the data says so, and where that is shown."""

    what: str
    command: str
    because: str
    source: str


Rule = Callable[[Inspection, Want], Iterator[Advice]]


def _data_first(i: Inspection, want: Want) -> Iterator[Advice]:
    if i.broken and len(i.broken) > 0.005 * i.looked_at:
        share = len(i.broken) / i.looked_at
        yield Advice(
            "mend what is broken first",
            f"diptych data inspect {i.address}",
            f"{counted(len(i.broken), 'item')} of {i.looked_at:,} ({share:.1%}) cannot be used, such as {i.broken[0].item}: "
            f"{i.broken[0].reason}",
            "docs/data.md",
        )
    copies = sum(len(group) - 1 for group in i.duplicates)
    if copies > 0.02 * max(1, i.good):
        yield Advice(
            "take out copies before anything is measured",
            f"diptych curate run own-photos --data {i.address} --out curated",
            f"{counted(copies, 'picture')} of {i.good:,} repeat another one to the pixel; on both sides of a split they make "
            "tests too good, and in training they cost without teaching",
            "docs/curation.md; Abbas et al. 2023, SemDeDup, arXiv:2303.09540",
        )


def _classes(i: Inspection, want: Want) -> Iterator[Advice]:
    if not i.classes or want not in ("any", "classes"):
        return
    typical = i.class_size.get("median", 0.0)
    yield Advice(
        "compare models and ways of adapting them, before any training",
        f"diptych choose --data {i.address}",
        f"{len(i.classes)} classes, {typical:.0f} pictures in the middle one"
        + (": ways on vectors need seconds, and with so few pictures they are hard to beat" if typical <= SHOTS else ""),
        "docs/choose-results.md: with 16 pictures a class, the best ways on vectors gain 50 points over zero-shot on textiles",
    )
    if typical > SHOTS:
        yield Advice(
            "also let a tower learn",
            f"diptych choose --data {i.address} --ways gda,probe,lora,full,wise-ft --budget 20m",
            f"{typical:.0f} pictures a class are enough to move weights without forgetting",
            "docs/adapting-towers.md; Wortsman et al. 2022, arXiv:2109.01903",
        )
    if i.lone_classes:
        yield Advice(
            "give these classes a second picture, or leave them out",
            "",
            f"{counted(len(i.lone_classes), 'class', 'classes')} with one picture, such as {i.lone_classes[0]!r}: none can be left "
            "out to choose settings or to test",
            "docs/choosing.md",
        )


def _captions(i: Inspection, want: Want) -> Iterator[Advice]:
    if not i.captions or i.classes or "video" in i.fields or "regions" in i.fields:
        return
    middle = i.words.get("median", 0.0)
    if want in ("any", "search"):
        if i.good < FEW:
            yield Advice(
                "adapt a model, do not train one",
                f"diptych choose --data {i.address}",
                f"{counted(i.good, 'captioned picture')}: contrast from nothing needs very many, and large batches",
                f"{TUTORIAL} (when to use contrastive models); docs/choosing.md: from `conse` .257, from nothing .157 recall at 1 "
                "with 142 photographs",
            )
        elif i.good < SCRATCH:
            yield Advice(
                "contrast with a frozen text tower, or with one that is pretrained",
                f"diptych compare lit sparc siglip clip --data {i.address} --budget 20m --seeds 3",
                f"{i.good:,} captioned pictures: enough to teach a picture tower, few for both",
                "docs/results.md: `sparc` and `lit` lead at a small budget; Zhai et al. 2022, LiT, arXiv:2111.07991",
            )
        else:
            yield Advice(
                "contrast; the sigmoid loss if batches must be small",
                f"diptych compare clip siglip flip --data {i.address} --budget 4h",
                f"{i.good:,} captioned pictures",
                f"{TUTORIAL} (when to use contrastive models); Zhai et al. 2023, SigLIP, arXiv:2303.15343",
            )
    if want in ("captions", "answers"):
        pretrained = i.good < SCRATCH
        yield Advice(
            "a language model with a connector" if pretrained else "a captioner that also contrasts",
            f"diptych {'train llava' if pretrained else 'compare coca blip'} --data {i.address} --budget 1h",
            f"you want texts, and there are {i.good:,} captioned pictures: "
            + ("only the way between the two models must be learned" if pretrained else "enough to learn to write from nothing"),
            f"{TUTORIAL} (when to use an LLM on a pretrained backbone, and when a generative model). It inherits what its language "
            "model makes up: measure with --tasks pope,facts",
        )
    if middle > LONG:
        yield Advice(
            "use what the long captions say",
            f"diptych compare dreamlip clip --data {i.address} --budget 20m",
            f"a caption has {middle:.0f} words in the middle: one vector for all loses most, and a text tower of CLIP cuts them",
            "Zheng et al. 2024, DreamLIP, arXiv:2403.17007",
        )
    if 0 < middle <= SHORT:
        yield Advice(
            "treat these captions as classes, if there are few different ones",
            f"diptych choose --data classes:{i.address.partition(':')[2]}",
            f"a caption has {counted(middle, 'word')} in the middle: it names, it does not describe",
            "docs/choosing.md",
        )


def _more_than_pairs(i: Inspection, want: Want) -> Iterator[Advice]:
    if "video" in i.fields:
        yield Advice(
            "begin with a model of pictures, and see what the order of frames is worth",
            f"diptych compare clip4clip test-of-time --data {i.address} --budget 20m",
            f"clips of {i.clip_frames.get('median', 0):.0f} frames; many questions about clips are answered by one frame",
            "docs/results-clips.md: contrast alone does not learn order, backward clips as negatives do",
        )
    if "regions" in i.fields and want in ("any", "boxes", "search"):
        yield Advice(
            "learn from the boxes, not only from whole pictures",
            f"diptych compare x-vlm fg-clip clip --data {i.address} --budget 20m",
            f"{counted(i.fields['regions'], 'picture')} with boxes and phrases",
            "Zeng et al. 2022, X-VLM, arXiv:2111.08276",
        )
    if "document" in i.fields:
        yield Advice(
            "train on whole documents",
            f"diptych train chameleon --data {i.address} --budget 1h",
            f"{counted(i.fields['document'], 'document')} of texts and pictures in order",
            "docs/recipes.md",
        )
    if "turns" in i.fields and want in ("any", "answers"):
        yield Advice(
            "instruction tuning in two stages",
            f"diptych train llava-instruct --data {i.address} --budget 1h",
            f"{counted(i.fields['turns'], 'conversation')}",
            "docs/instruct.md; Liu et al. 2023, LLaVA, arXiv:2304.08485",
        )


def _loader(i: Inspection, want: Want) -> Iterator[Advice]:
    sides = [q["median"] for q in (i.width, i.height) if "median" in q]
    if sides and min(sides) > 500 and i.good > 1000 and not i.address.startswith("packed:"):
        yield Advice(
            "pack the pictures once, so that training does not wait for them",
            f"diptych data pack {i.address} --out packed",
            f"{i.good:,} pictures of {sides[0]:.0f} pixels: decoding them anew in every epoch can cost more than the model",
            f"docs/engine.md; {TUTORIAL} (data loading as a bottleneck)",
        )


RULES: tuple[Rule, ...] = (_data_first, _classes, _captions, _more_than_pairs, _loader)


def advise(inspection: Inspection, want: Want = "any") -> list[Advice]:
    """What fits the data, most urgent first. Empty if no item of it can be used, or nothing can be said."""
    if not inspection.good:
        return []
    made = [advice for rule in RULES for advice in rule(inspection, want)]
    if not made and "image" in inspection.fields:
        made = [
            Advice(
                "search them; nothing needs to be trained",
                f"diptych index {inspection.address} --out my.index",
                f"{counted(inspection.good, 'picture')} without captions or classes",
                "docs/search.md",
            )
        ]
    return made
