"""transformers' ``CLIPModel`` (Radford et al. 2021): two towers of kind ``clip`` under InfoNCE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diptych.interop.base import Misfit, Same, lacks, linear, norms_elsewhere, same
from diptych.interop.families.dual import DualEncoder
from diptych.objectives.contrastive import InfoNCE

if TYPE_CHECKING:
    from diptych.interop.base import State
    from diptych.models.vlm import VLM


class Clip(DualEncoder):
    """The class pools a text at ``eos_token_id``, except where that is 2, as ours is: then at its highest id. With [EOS] as the
    highest id, both agree.
    """

    name = "clip"
    architecture = "CLIPModel"
    end_last = True
    processor = "CLIPProcessor"
    contrast = InfoNCE
    wanted = "an InfoNCE, which gives logits their scale"

    def structure(self, model: VLM) -> list[Misfit]:
        """What differs between the model's towers and theirs, regardless of other parts and objectives."""
        result = []
        if "vision" in model.parts:
            vision = model.part("vision")
            wrong = lacks(vision, extra=1, learned=True, norm_sum=True, pooling="class")
            if not isinstance(getattr(vision, "stem", None), nn.Conv2d) or vision.stem.bias is not None:
                wrong.insert(0, "its stem is not one convolution without bias")
            if wrong:
                result.append(Misfit(f"parts.vision: {', '.join(wrong)}", "parts.vision.kind=clip"))
        if "text" in model.parts:
            text = model.part("text")
            wrong = lacks(text, causal=True, pool="eos", whole=False) + norms_elsewhere(text)
            if wrong:
                result.append(Misfit(f"parts.text: {', '.join(wrong)}", "parts.text.kind=clip"))
        return result

    def projections(self, model: VLM) -> list[Misfit]:
        """What differs between the projections into the shared space and theirs."""
        for side in ("image", "text"):
            layer: Any = getattr(model.part("space"), side, None)
            if not isinstance(layer, nn.Linear) or layer.bias is not None:
                return [Misfit(f"the {side} projection is not a matrix")]
        return []

    def ends(self, model: VLM) -> dict[str, list[Same]]:
        """By tower: the weights before and after its blocks, as in theirs."""
        return {
            "vision": [
                same("parts.vision.classes", "vision_model.embeddings.class_embedding", view=(-1,)),
                same("parts.vision.stem.weight", "vision_model.embeddings.patch_embedding.weight"),
                *linear("parts.vision.norm", "vision_model.pre_layrnorm"),
                same("parts.space.image.weight", "visual_projection.weight"),
            ],
            "text": [same("parts.space.text.weight", "text_projection.weight")],
        }

    def scale(self, prefix: str) -> list[Same]:
        """The objective's parameters, with names that begin with ``prefix``."""
        return [same(f"{prefix}.logit_scale", "logit_scale")]

    def sizes(self, model: VLM) -> dict[str, dict[str, Any]]:
        """Their configuration of the shared space: at the top level, in ``vision_config`` and in ``text_config``."""
        return {key: {"projection_dim": model.embed_dim} for key in ("whole", "vision", "text")}

    def embed_dim(self, config: Any) -> int:
        """The same options from one of their configurations."""
        return int(config.projection_dim)

    def settled(self, state: State, objectives: nn.ModuleDict) -> State:
        """Our state with the computations of every pass, such as a bound on a scale, applied once."""
        contrast = self.scaled(objectives)
        return state if contrast is None else {**state, f"{contrast[0]}.logit_scale": contrast[1].scale.detach().log()}

    def shift(self, state: State, shift: Tensor) -> State:
        """The weights with a shift of every patch: the stem has no bias, but each patch has a position."""
        name = "vision_model.embeddings.position_embedding.weight"
        return {**state, name: torch.cat([state[name][:1], state[name][1:] + shift])}


FAMILY = Clip()
