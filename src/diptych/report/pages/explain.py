"""Explanations on the pages: what each task measures, what its numbers do not mean, and what each control removes."""

from __future__ import annotations

CLIP_QUESTIONS = (
    "Questions about clips, by choice, by yes or no, or open. Next to the accuracy stands what is left of it with one frame, with "
    "shuffled or reversed frames, and with the text alone.",
    "Many questions about clips can be answered from one frame or from the text: read the temporal gain, and the accuracy of each "
    "task.",
)
# What the task measures; what the number does not mean.
TWINS = (
    "Made scenes are simpler than photographs. The same about grey pictures (blind), and about pictures of which another answer is "
    "right (shuffled), says what is read off the picture."
)
TASKS = {
    "retrieval": (
        "For each caption the model ranks all pictures of the set, and for each picture all captions. Recall at K is the share of "
        "queries with the correct answer among the first K.",
        "A larger set is harder: results on sets of different sizes are not comparable.",
    ),
    "zeroshot": (
        "The model classifies a picture by choosing among the names of all classes. It was not trained as a classifier of them.",
        "The class names and the prompt template are part of the task: other names give other results.",
    ),
    "classification": (
        "The model names the class of each picture among the classes that it learned, and its probabilities are compared with how "
        "often it is right. Classes of the pictures that it does not know count as wrong.",
        "With unequal classes, accuracy can be high without the rare ones: read balanced accuracy and the recall of each class.",
    ),
    "controlled": (
        "Small groups of pictures and captions that differ in one thing only. A picture counts as right if its own caption scores "
        "higher than the others of its group.",
        "A high score shows the skill on scenes like these, not in general.",
    ),
    "captions": (
        "The model writes a caption, which is compared with reference captions by people or of the scene.",
        "These metrics measure agreement in wording. A true caption in other words scores low, a false one in the same words high.",
    ),
    "refer": (
        "A phrase that is true of one object: the model gives one box, which is right if it overlaps the true one by half "
        "(intersection over union of .5).",
        "One box a phrase counts. A model without boxes of its own answers by a map, which is coarse.",
    ),
    "phrase": (
        "A phrase of a caption: the model gives one box, which is right if it overlaps a true one by half.",
        "With several true boxes, `any` asks for one of them and `merged` for the box around all.",
    ),
    "pointing": (
        "The point where a model's map of a phrase is highest, or the middle of its box: a hit lies on the object.",
        "Nothing is said about how large the object is taken to be.",
    ),
    "refer-masks": (
        "A phrase that is true of one object: the overlap of the model's pixels with the true ones.",
        "A box or a map is made into pixels first, so a model without masks is limited by its shape.",
    ),
    "segmentation": (
        "Every pixel is given the name that fits it best, or none: the mean overlap over classes (mIoU), background included.",
        "The threshold of the background is part of the method.",
    ),
    "open-vocabulary": (
        "Boxes for names that the model may not have learned as classes: average precision over overlaps, as COCO computes it.",
        "Models here give one box a name and picture, which limits what can be reached; a note says by how much.",
    ),
    "crops": (
        "Parts of a picture and what is said of each: the model matches them, among parts of the same picture.",
        "Parts are cut out, so nothing around them helps.",
    ),
    "box-convention": (
        "A card with shapes at known places: which convention of coordinates explains the boxes that a model writes.",
        "It says how to read the numbers, not how good the boxes are.",
    ),
    "cola": (
        "Two pictures and two captions with the attributes of objects exchanged: the right picture for each caption.",
        "Chance is 25 % where both must be right.",
    ),
    "inpaint-coco": (
        "A photograph and a copy with one thing repainted, and a caption of each: the right caption for each picture.",
        "Repainting can leave traces, which are no understanding.",
    ),
    "mmhal": (
        "Open questions that tempt a model to name what is not there. An answer earns its longest common word sequence with the "
        "reference (ROUGE-L).",
        "The published score is a judgement by a language model and cannot be compared with this one. Read the answers.",
    ),
    "read": (
        "What signs, labels and small print say, in pictures whose print has a known height. An answer counts if it is the text; "
        "ANLS gives credit for the share of right letters, from a half on.",
        "Words that a model has often seen can be recognised without reading: held-out words (`split=heldout-concepts`) show it.",
    ),
    "textvqa": (
        "Questions about photographs with text. An answer earns as much as ten people agree with it.",
        "An answer by other words than those of the people earns nothing. With OCR tokens in the prompt it is another task.",
    ),
    "docvqa": (
        "Questions about scanned documents. ANLS gives credit for the share of right letters, from a half on.",
        "Half a credit for an answer of which half is wrong: read the accuracy next to it.",
    ),
    "chartqa": (
        "Questions about charts. Relaxed accuracy lets a number differ from the right one by 5 %.",
        "Years and counts are numbers as well, so a year that is off by 50 counts as right.",
    ),
    "ocrbench": (
        "Reading and understanding text of many kinds. An answer counts if it contains a right one.",
        "Long answers contain more: an answer that names everything counts as right.",
    ),
    "completion": (
        "A language model reads text alone: how likely it finds a text (perplexity), and whether it completes a given beginning "
        "with one of the right continuations, word for word.",
        "Perplexity depends on the tokens: compare models with the same tokenizer only.",
    ),
    "video-retrieval": (
        "As retrieval, with clips in the place of pictures. Next to each score stands what is left of it with one frame, with "
        "shuffled or reversed frames, and with the text alone.",
        "A high score does not show that motion is seen: the temporal gain, the score minus that with shuffled frames, does.",
    ),
    "temporal": (
        "Pairs of clips that differ in one thing only, most of them in the order of the same frames. A clip counts as right if its "
        "own caption scores higher than the other one.",
        "A model that ignores the order of frames is at chance by construction. A high score shows the skill on clips like these.",
    ),
    "moments": (
        "The model scores windows of a long clip against the text of one event. The best window is right if it overlaps the true "
        "interval by half of both together.",
        "Only windows of certain sizes are tried, so that not every interval can be found exactly.",
    ),
    "actions": (
        "The model names the action of a clip by choosing among the texts of all actions.",
        "The texts of the actions are part of the task: other words give other results.",
    ),
    "video-questions": CLIP_QUESTIONS,
    "mvbench": CLIP_QUESTIONS,
    "tvbench": CLIP_QUESTIONS,
    "egoschema": CLIP_QUESTIONS,
    "tempcompass": CLIP_QUESTIONS,
    "grasp": CLIP_QUESTIONS,
    "video-chatgpt": (
        "Open questions about clips. An answer earns its longest common word sequence with the reference (ROUGE-L).",
        "The published score is a judgement by a language model, from 0 to 5: do not compare it with this one. Read the answers.",
    ),
    "embedding": (
        "The positions of image and text embeddings relative to each other.",
        "Not a measure of quality: a model with a wide gap may retrieve well.",
    ),
    "vqa": (
        "Questions about pictures with answers of a word or two. If several people answered, an answer scores higher the more of "
        "them gave it.",
        "Many questions can be answered by frequent answers. The difference from the blind and the constant control matters.",
    ),
    "open": (
        "Questions with long answers, compared with a reference by their longest common word sequence (ROUGE-L).",
        "Agreement in wording is a poor substitute for correctness or helpfulness: read the answers.",
    ),
    "choices": (
        "One correct answer among several options. Circular: a question counts only if it is answered correctly in every order of "
        "the options.",
        "A model may prefer a letter or a position. If plain is far above circular, part of the plain score comes from that.",
    ),
    "mme": (
        "Pairs of yes/no questions about one picture, one with the answer yes and one with no; the stricter score requires both.",
        "The total adds scores of different kinds; read the parts.",
    ),
    "pairs": (
        "A true sentence about a picture against false ones that differ slightly.",
        "If the false sentences are longer or sound unnatural, reading is enough: compare with shortest, longest and blind.",
    ),
    "winoground": (
        "Two pictures and two captions of the same words in different order. Text: each picture matches its caption. Image: each "
        "caption matches its picture. Group: all four are right.",
        "Chance is 25, 25 and 16.7 per cent; a lower score is no better than guessing.",
    ),
    "spec": (
        "Sets of pictures that differ in one thing only (a count, a size, a position). Each picture must match its caption, and "
        "each caption its picture.",
        "Chance depends on the size of a set: compare with the chance next to each number.",
    ),
    "facts": (
        "The claims of a generated caption about objects, counts, colours, relations and positions, checked against the scene. "
        "Precision: the share of single statements that are true.",
        "A short caption makes few errors: read precision together with how much of the scene is covered. Precision leaves out "
        "statements that could not be parsed (unread); its band is the range from all of them false to all of them true.",
    ),
    "drawing": (
        "The model draws captions, half of them with combinations that were not in training. A network trained on real scenes "
        "reads the drawings, and the result is compared with the caption. real/…: the same reader on the scenes; codes/…: on these "
        "scenes encoded into the model’s image codes and decoded, the best possible drawing.",
        "In blurred drawings the reader may see absent objects or miss present ones: compare with codes/…. The metric of counted "
        "colours ignores shapes. Variety and appearance of the drawings are not measured.",
    ),
    "vqascore": (
        "The probability of “yes” when the model is asked whether a caption is true of a picture; accuracy: the own caption is "
        "more probable than another’s.",
        "The probability depends on the wording of the question: compare results of the same prompt only.",
    ),
    "memorization": (
        "Déjà vu: given only a caption, the model knows details of its training picture that the caption does not mention, more "
        "often than a model that was not trained on that picture.",
        "The numbers need such a reference model, since captions reveal what usually occurs together.",
    ),
    "frequency": (
        "The accuracy on a concept against its frequency in training.",
        "Correlation is not causation: rare concepts may also be harder to draw or to distinguish.",
    ),
    "instruct-yes-no": (
        "Yes/no questions about made scenes. Each is asked of two pictures, and is true of one.",
        TWINS,
    ),
    "instruct-count": (
        "How many things there are, as a sum over the sides of the picture or over kinds: “2 left + 1 right = 3”. The number "
        "counts, and separately whether the summands are right (reason) and add up (sum).",
        TWINS,
    ),
    "instruct-refuse": (
        "Questions about a thing that half of the pictures do not show, where “there is none” is the right answer. Precision and "
        "recall are of that answer.",
        TWINS,
    ),
    "instruct-correct": (
        "A statement that is wrong of half of the pictures, and a question. A wrong statement has to be corrected with the right "
        "fact. Precision and recall are of saying that it is wrong.",
        TWINS,
    ),
    "instruct-box": (
        "Where something is, as a box in the text. An answer is right if its box overlaps the true one by half of both together.",
        "Boxes are read in one convention only; box-convention finds that of a model. " + TWINS,
    ),
    "instruct-follow": (
        "A question and what follows from its answer: “what colour is it?”. Earlier answers are given as they should be.",
        TWINS,
    ),
    "instruct-which": ("Which of two to four pictures a description is true of.", TWINS),
    "instruct-differs": ("What differs between two pictures, in one fixed wording.", "Another wording counts as wrong. " + TWINS),
    "pope": (
        "“Is there an X in the picture?”, half of the questions about absent objects: random ones, frequent ones, or ones that "
        "often occur with the objects in the picture. A model that says yes to absent objects hallucinates.",
        "It covers only the presence of listed objects in answers of one word. A model may pass and still invent colours, counts, "
        "relations, or objects in longer texts.",
    ),
    "chair": (
        "Objects mentioned in a generated caption are compared with the objects known to be in the picture. CHAIR-i: the share of "
        "mentions that are absent. CHAIR-s: the share of captions with at least one such mention. Lower is better.",
        "Only objects in a list with synonyms are found, and objects that are missing from the labels count as invented. A short "
        "caption invents less: read it together with recall and length.",
    ),
    "priors": (
        "A true sentence against a false one, scored with the picture, without it (the language prior), and with the prior "
        "subtracted: score(text, picture) − α · score(text, no picture).",
        "“No picture” is a grey picture, which the model has never seen. Its score approximates the language prior; it is not the "
        "same. The mean over noise pictures (prior=noise) and log P(text) of a language model (prior=ADDRESS) are two others.",
    ),
    "preferences": (
        "A right answer against the same answer with one wrong fact: how much likelier the model finds the right one (margin), and "
        "by how much this margin falls when the pictures are exchanged (swap).",
        "A margin alone may come from words: wrong facts that are improbable in general. Read it together with swap, which only a "
        "model that uses the picture can raise.",
    ),
    "bias": (
        "Contrast sets: the same scene several times, changed in one attribute that should not affect the answer. If answers "
        "or scores change with it, the model treats the groups differently.",
        "It shows differences for these attributes, questions and pictures. Finding none does not show that the model is fair, and "
        "results on coloured drawings do not transfer to people.",
    ),
    "bias-table": (
        "Pictures of several groups are ranked by their fit to a sentence that names none of them. Skew compares a group’s share "
        "among the first K with its share in the set (0: the same; 0.69: twice, −0.69: half); association compares its mean score "
        "with that of the others, in standard deviations.",
        "Groups may differ in more than their attribute: light, background, image quality. A skew shows a difference, not its "
        "cause, and depends on the chosen sentences.",
    ),
    "redteam": (
        "Requests that a careful model declines, one set for each kind of harm, and ordinary requests in similar words that it "
        "should answer. Rules sort the answers into refused, harmful, safe and unclear.",
        "The rules match words, not intentions: they miss harm in unusual words and take some refusals for answers. A low harm "
        "rate on this small set does not prove safety.",
    ),
}  # fmt: skip

# {control: (name, what a model that is no better than it has not shown)}
CONTROLS = {
    "blind": ("without the picture", "correct answers here may come from the wording"),
    "shuffled": ("with another’s picture", "correct answers here may not depend on this picture"),
    "constant": ("constant", "a constant answer may do as well"),
    "length": ("by length", "choosing by the length of the texts may do as well"),
    "one_frame": ("one frame", "the middle frame alone may do as well"),
    "shuffled_frames": ("shuffled frames", "the order of the frames may have no part in it"),
    "reversed": ("reversed", "the direction of time may have no part in it"),
    "shortest": ("shortest", "always choosing the shortest text may do as well"),
    "longest": ("longest", "always choosing the longest text may do as well"),
    "majority": ("most frequent answer", "always giving the most frequent answer may do as well"),
    "text_only": ("text only", "the likelihood of the text without the picture may do as well"),
    "always_yes": ("always yes", "answering yes to everything may do as well"),
    "always_no": ("always no", "answering no to everything may do as well"),
    "dealt": ("groups assigned at random", "differences of this size arise by chance"),
    "uncorrected": ("without the correction", "the correction has no effect"),
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
    """The name of a control, and what a model that is no better than it has not shown."""
    return CONTROLS.get(name, (name.replace("_", " "), "this control may do as well"))
