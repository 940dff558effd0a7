"""How well a text fits an image: the scores that a recipe may name (``score:``).

Most belong to an objective, which is then also the score (``scores_as``): late_interaction, contextual, matching,
pseudo_likelihood, cocoop, mmrl, multi_grained, tight. Those here need only encodings. Your own: ``package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import resolve
from diptych.objectives.base import Objective
from diptych.objectives.chameleon import image_log_likelihood
from diptych.objectives.filip import best_tokens_of_pairs, best_tokens_similarity, without_specials
from diptych.objectives.generative import caption_log_likelihood

if TYPE_CHECKING:
    from diptych.models.vlm import VLM


class Score:
    """Subclasses take the model. needs: encodings and fields that it reads. scores_all: whether ``all_scores`` is cheap; two_sided:
    whether it has ``pair_sides`` and ``all_sides`` (``Objective``).
    """

    needs: tuple[str, ...] = ()
    scores_all = False
    two_sided = False

    def __init__(self, model: VLM):
        pass

    def needed(self) -> tuple[str, ...]:
        """``needs``."""
        return self.needs

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        raise NotImplementedError

    def all_scores(self, p: Pass) -> Tensor:
        """Every image with every text, [M, N]."""
        raise NotImplementedError

    def pair_sides(self, p: Pass, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Objective.pair_sides``."""
        raise NotImplementedError

    def all_sides(self, p: Pass) -> tuple[Tensor, Tensor]:
        """As ``Objective.all_sides``."""
        raise NotImplementedError


class Similarity(Score):
    """The cosine of the two embeddings that it needs; a subclass may name others, such as a video's."""

    needs = ("image.embedding", "text.embedding")
    scores_all = True

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        image, text = (p[name] for name in self.needs)
        scores: Tensor = (image[images] * text[texts]).sum(-1)
        return scores

    def all_scores(self, p: Pass) -> Tensor:
        """Every image with every text, [M, N]."""
        image, text = (p[name] for name in self.needs)
        scores: Tensor = image @ text.T
        return scores


class VideoSimilarity(Similarity):
    """The cosine of a clip's embedding and a text's."""

    needs = ("video.embedding", "text.embedding")


class Likelihood(Score):
    """log P(text | image) in nats."""

    needs = ("text.logits", "text")

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        return caption_log_likelihood(p.pairs(image=images, text=texts))


class ImageLikelihood(Score):
    """log p(image codes | text): comparable over texts, so with equal priors the largest is Bayes' choice of a class."""

    needs: tuple[str, ...] = ("image.code_logits", "image.codes")

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        return image_log_likelihood(p.pairs(image=images, text=texts))


class ImageInformation(ImageLikelihood):
    """log p(image codes | text) − log p(image codes): comparable over images, too."""

    needs = ("image.code_logits", "image.codes", "image.log_prior")

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        information: Tensor = super().pair_scores(p, images, texts) - p["image.log_prior"][images]
        return information


class BestTokens(Score):
    """FILIP's similarities (``late_interaction`` with ``side: own``), of each image and text by the quarter of the tokens that fit
    best, the share that its training keeps (Yao et al. 2022, §3.1): patches of the background and words that say nothing of the
    image do not dilute it. The paper scores by all tokens. [BOS] and [EOS] are no words.
    """

    needs = ("image.token_embedding", "text.token_embedding", "text")
    scores_all = True
    two_sided = True
    share = 0.25

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for the choice of a text: [P]."""
        return self.pair_sides(p, images, texts)[0]

    def all_scores(self, p: Pass) -> Tensor:
        """Every image with every text, for the choice of a text: [M, N]."""
        return self.all_sides(p)[0]

    def pair_sides(self, p: Pass, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """By the image's tokens, for the choice of a text, and by the text's, for the choice of an image: [P] each."""
        q = p.pairs(image=images, text=texts)
        return best_tokens_of_pairs(*self._tokens(q), self.share)

    def all_sides(self, p: Pass) -> tuple[Tensor, Tensor]:
        """``pair_sides`` of every image with every text: [M, N] each."""
        return best_tokens_similarity(*self._tokens(p), self.share)

    def _tokens(self, p: Pass) -> tuple[Tensor, Tensor, Tensor]:
        return p["image.token_embedding"], p["text.token_embedding"], without_specials(p)


SCORES: dict[str, Any] = {
    "similarity": Similarity,
    "video_similarity": VideoSimilarity,
    "best_tokens": BestTokens,
    "best_region": "diptych.objectives.regions.queries:BestRegion",
    "likelihood": Likelihood,
    "image_likelihood": ImageLikelihood,
    "image_information": ImageInformation,
}
BY_OBJECTIVE = {
    "late_interaction": "late_interaction or query_contrast",
    "contextual": "contextual",
    "matching": "matching",
    "pseudo_likelihood": "masked_words",
    "cocoop": "cocoop",
    "mmrl": "mmrl",
    "multi_grained": "multi_grained",
}


def score_of(name: str, model: VLM, objectives: Iterable[nn.Module]) -> Score | Objective | None:
    """The score of the recipe; None for ``none`` (a language model alone), and for similarity if there are no embeddings at all, as
    with a quantizer. DiptychError if nothing in the recipe can compute it.
    """
    if name == "none":
        return None
    for objective in objectives:
        if isinstance(objective, Objective) and objective.scores_as == name:
            return objective
    if name in BY_OBJECTIVE:
        raise DiptychError(
            f"score: {name} needs the objective {BY_OBJECTIVE[name]}, which the recipe does not have; set score: similarity "
            "or likelihood"
        )
    if name not in SCORES and ":" not in name:
        raise DiptychError(
            f"score: there is no score '{name}'{nearest(name, [*SCORES, *BY_OBJECTIVE])}; your own: package.module:Class"
        )
    if name == "similarity" and not any(map(model.graph.gives, Similarity.needs)):
        return None
    score: Score = resolve(name, SCORES, "score")(model)
    for need in score.needed():
        try:
            model.graph.leaves(need)
        except DiptychError as error:
            raise DiptychError(
                f"score: {name} cannot be computed: {error}; set score: similarity or likelihood, or add what is missing"
            ) from None
    return score
