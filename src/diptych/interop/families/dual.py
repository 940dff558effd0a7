"""What transformers' dual encoders have in common: a plain transformer per side, ``vision_model`` and ``text_model``, under a
contrastive loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from diptych.interop.base import Family, Geometry, Misfit, Same, blocks, linear, objective_of, options_of, same, towers
from diptych.objectives.adapting import ClassNames

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM


class DualEncoder(Family):
    """``name`` is their model_type and the ``kind`` of both of our towers."""

    starts = True
    contrast: ClassVar[type]  # the objective that gives logits their scale
    wanted: ClassVar[str]  # its description for messages, if there is none

    def scaled(self, objectives: nn.ModuleDict) -> tuple[str, Any] | None:
        """The objective that gives logits their scale, and the name of its parameters: a contrastive one, classification by class
        names, or one that keeps the scale of the weights that it started from (a buffer).
        """
        kept = ((f"objectives.{n}", o) for n, o in objectives.items() if "logit_scale" in dict(o.named_buffers(recurse=False)))
        return objective_of(objectives, self.contrast, ClassNames) or next(kept, None)

    def projections(self, model: VLM) -> list[Misfit]:
        """What differs between the projections into the shared space and theirs."""
        raise NotImplementedError

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = towers(model) or self.structure(model) or self.projections(model)
        if recipe.score != "similarity":
            result.append(Misfit(f"it scores by {recipe.score}, not by similarity"))
        if self.scaled(objectives) is None:
            result.append(Misfit(f"no objective is {self.wanted}"))
        return result or self.left_over(model, objectives)

    def ends(self, model: VLM) -> dict[str, list[Same]]:
        """By tower: the weights before and after its blocks, as in theirs."""
        raise NotImplementedError

    def scale(self, prefix: str) -> list[Same]:
        """The objective's parameters, with names that begin with ``prefix``."""
        raise NotImplementedError

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        result: list[Same] = []
        for part, last in (("vision", "post_layernorm"), ("text", "final_layer_norm")):
            if part in model.parts:
                ours, theirs = f"parts.{part}", f"{part}_model"
                result += [
                    same(f"{ours}.positions", f"{theirs}.embeddings.position_embedding.weight"),
                    *blocks(model.part(part).transformer, f"{ours}.transformer", f"{theirs}.encoder.layers"),
                    *linear(f"{ours}.transformer.norm", f"{theirs}.{last}"),
                    *self.ends(model)[part],
                ]
        if "text" in model.parts:
            result.append(same("parts.text.embedding.weight", "text_model.embeddings.token_embedding.weight"))
        contrast = self.scaled(objectives)
        return result + self.scale(contrast[0]) if contrast else result

    def sizes(self, model: VLM) -> dict[str, dict[str, Any]]:
        """Their configuration of the shared space: at the top level, in ``vision_config`` and in ``text_config``."""
        raise NotImplementedError

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        vision, text, sizes = model.part("vision"), model.part("text"), self.sizes(model)
        return {
            "model_type": self.name,
            **sizes["whole"],
            "vision_config": {
                **Geometry.of(vision.transformer).config(),
                "model_type": f"{self.name}_vision_model",
                "image_size": model.image_size,
                "patch_size": vision.patch,
                **sizes["vision"],
            },
            "text_config": {
                **Geometry.of(text.transformer).config(),
                **vocabulary.config(),
                "model_type": f"{self.name}_text_model",
                "max_position_embeddings": len(text.positions),
                **sizes["text"],
            },
        }

    def embed_dim(self, config: Any) -> int:
        """Options of the shared space from one of their configurations."""
        raise NotImplementedError

    def options(self, config: Any) -> dict[str, Any]:
        """Overrides by dotted key that give a recipe of ours the geometry of theirs."""
        vision, text = config.vision_config, config.text_config
        own = {
            "vision": {"kind": self.name, "patch": vision.patch_size, **options_of(vision)},
            "text": {"kind": self.name, **options_of(text)},
        }
        return {
            "data.image_size": vision.image_size,
            "data.tokenizer.max_length": text.max_position_embeddings,
            "embed_dim": self.embed_dim(config),
            **{f"parts.{part}.{name}": value for part, options in own.items() for name, value in options.items()},
        }
