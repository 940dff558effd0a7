"""Explanations on the pages: what each task measures, what its numbers do not mean, and what each control removes."""

from __future__ import annotations

# What the task measures; what the number does not mean.
TASKS = {
    "retrieval": (
        "For each caption the model picks its picture among all pictures of the set, and for each picture its caption. Recall at K "
        "is the share of questions whose right answer is among the first K.",
        "A larger set is harder: numbers of sets of different sizes cannot be compared.",
    ),
    "zeroshot": (
        "The model names what a picture shows by choosing among the names of all classes, none of which it was trained to tell "
        "apart as a classifier.",
        "The set of names and the wording of the template are part of the question: other names, other numbers.",
    ),
    "controlled": (
        "Small groups of pictures and captions that differ in one thing only. A picture counts as right if its own caption scores "
        "higher than the others of its group.",
        "A high score shows the skill on scenes like these, not in general.",
    ),
    "captions": (
        "The model writes a caption, which is compared with captions that people or the scene’s description gave.",
        "These measures count agreement in wording. A true caption in other words scores low, a false one in the right words high.",
    ),
    "embedding": (
        "How the vectors of pictures and texts lie to each other.",
        "No measure of quality: a model with a wide gap may retrieve well.",
    ),
    "vqa": (
        "Questions about pictures, answered in a word or two. Where several people answered, an answer earns more the more of them "
        "gave it.",
        "Many questions can be answered by what is usual. What counts is the distance to the blind and the constant answer.",
    ),
    "open": (
        "Questions that ask for long answers, compared with a reference by the words they share in order (ROUGE-L).",
        "Agreement in wording is a poor stand-in for being right or helpful: read the answers.",
    ),
    "choices": (
        "One right answer among several that are named. Circular: a question counts only if it is answered rightly in every order of "
        "its options.",
        "A model may prefer a letter or a place. If plain is far above circular, part of the plain score is that.",
    ),
    "mme": (
        "Pairs of yes/no questions about one picture, one to be affirmed and one to be denied; the stricter figure asks for both.",
        "The total adds up unlike things; look at the parts.",
    ),
    "pairs": (
        "A true sentence about a picture against false ones that differ in little.",
        "If the false sentences are longer, or sound odd by themselves, reading is enough: look at shortest, longest and blind.",
    ),
    "winoground": (
        "Two pictures and two captions of the same words in another order. Text: each picture finds its caption. Image: each caption "
        "finds its picture. Group: all four are right.",
        "Chance is 25, 25 and 16.7 per cent, and a score below it is no better than guessing.",
    ),
    "spec": (
        "Sets of pictures that differ in one thing only (a count, a size, a place); each picture must find its caption, and each caption "
        "its picture.",
        "Chance depends on how many there are in a set: compare with the chance beside each number.",
    ),
    "facts": (
        "What a written caption claims about things, counts, colours, relations and places, checked against the scene’s own truth. Precision: the "
        "share of all single statements that are true.",
        "Saying little is safe: read it together with how much of the scene was told. Precision leaves out what could not be read (unread); its band "
        "is where it would lie if all of that was false, or all true.",
    ),
    "drawing": (
        "Captions are drawn, half of them of combinations that training never showed. A network trained on real scenes reads the drawings, and "
        "what it sees is compared with the caption. real/…: the same reader on the scenes themselves; codes/…: on these scenes put into the "
        "model’s image codes and back, the best that it could draw.",
        "Of blurred drawings the reader may see what is not there, or miss what is: compare with codes/…. Colours counted asks nothing of "
        "shapes. Whether drawings are varied or pretty is not measured.",
    ),
    "vqascore": (
        "How probable the model finds “yes” when asked whether a caption is true of a picture; accuracy: the own caption is found more "
        "probable than another’s.",
        "The probability depends on the wording of the question: compare numbers of the same prompt only.",
    ),
    "memorization": (
        "Déjà vu: from a caption alone, does the model know things of its training picture that the caption does not say, more often "
        "than a model that never saw that picture?",
        "Without such a reference model the numbers say nothing, as captions give away what usually goes together.",
    ),
    "frequency": (
        "How well a concept is named, against how often training showed it.",
        "A correlation is no cause: rare concepts may also be harder to draw or to tell from others.",
    ),
    "pope": (
        "“Is there an X in the picture?”, half of the time about things that are not there, which are drawn at random, from what "
        "is frequent, or from what often stands beside what is there. A model that says yes to what is absent hallucinates.",
        "It asks about the presence of listed objects alone, in answers of one word. A model may pass and still invent colours, "
        "counts, relations, or objects in longer texts.",
    ),
    "chair": (
        "Objects that a written caption mentions are looked up among the objects known to be in the picture. CHAIR-i: the share of "
        "mentions that are not there. CHAIR-s: the share of captions with at least one such mention. Lower is better.",
        "Only objects of a list with synonyms are found, and what the labels lack counts as invented. A short caption invents "
        "less: read it together with recall and length.",
    ),
    "priors": (
        "A true sentence against a false one, scored with the picture, without it (the language prior alone), and with the prior "
        "subtracted: score(text, picture) − α · score(text, no picture).",
        "“No picture” is a grey one, which is a picture that the model has never seen; what it says of that is the best stand-in "
        "for what it would say without looking, not the same.",
    ),
    "bias": (
        "Contrast sets: the same scene several times, changed in one attribute that should not matter to the question. If answers "
        "or scores change with it, the model treats the groups differently.",
        "It shows differences for these attributes, these questions and these pictures. Finding none does not show that the model "
        "is fair, and coloured drawings say nothing about people.",
    ),
    "bias-table": (
        "Pictures of several groups are ranked by how well they fit a sentence that names none of them. Skew compares a group’s "
        "share among the first K with its share in the set (0: the same; 0.69: twice, −0.69: half); association compares its mean "
        "score with that of the others, in standard deviations.",
        "Groups may differ in more than what they are named after: light, background, image quality. A skew shows a difference "
        "and not its cause, and depends on the sentences chosen.",
    ),
    "redteam": (
        "Requests that a careful model declines, one set for each kind of harm, and ordinary requests in similar words that it "
        "should answer. Answers are sorted by rules into refused, harmful, safe and unclear.",
        "The rules read words and not intentions: they miss harm in unusual words and take some refusals for answers. A low harm "
        "rate on this small set is no proof of safety.",
    ),
}  # fmt: skip

# name, what a model that is no better than the control has not shown
CONTROLS = {
    "blind": ("without the picture", "what is right here may come from the wording alone"),
    "shuffled": ("with another’s picture", "what is right here may not come from looking at this picture"),
    "constant": ("constant", "a scorer without an opinion may do as well"),
    "length": ("by length", "choosing by the length of the texts may do as well"),
    "shortest": ("shortest", "always choosing the shortest text may do as well"),
    "longest": ("longest", "always choosing the longest text may do as well"),
    "majority": ("most frequent answer", "always giving the most frequent answer may do as well"),
    "text_only": ("text alone", "the likelihood of the text alone may do as well"),
    "always_yes": ("always yes", "saying yes to everything may do as well"),
    "always_no": ("always no", "saying no to everything may do as well"),
    "dealt": ("groups dealt at random", "so much comes by luck"),
    "uncorrected": ("without the correction", "the correction brings nothing"),
    "chance": ("chance", "guessing may do as well"),
}


def explain_task(task: str) -> tuple[str, str] | None:
    """What a task or one of its variants measures, and what its number does not mean; None for other tasks."""
    name = task.partition("?")[0]
    while name:
        if name in TASKS:
            return TASKS[name]
        name = name.rpartition("-")[0]
    return None


def control(name: str) -> tuple[str, str]:
    return CONTROLS.get(name, (name.replace("_", " "), "this control may do as well"))
