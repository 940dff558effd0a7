"""transformers' ``SiglipModel`` (Zhai et al. 2023): two towers of kind ``siglip`` under the pairwise sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diptych.interop.base import Misfit, Same, lacks, linear, norms_elsewhere, same
from diptych.interop.families.dual import DualEncoder
from diptych.objectives.contrastive import Sigmoid

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.base import State
    from diptych.models.vlm import VLM


PIPELINE_LENGTH = 64  # tokens, fixed in transformers' pipeline


class Siglip(DualEncoder):
    """``SiglipModel``."""

    name = "siglip"
    architecture = "SiglipModel"
    masked = False
    processor = "SiglipProcessor"
    contrast = Sigmoid
    wanted = "the pairwise sigmoid, which gives logits their scale and bias"

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """As of all; the objective must hold the offset too (``class_names`` with ``bias: true``)."""
        found = self.scaled(objectives)
        lacking = found is not None and not hasattr(found[1], "logit_bias")
        return [*super().misfits(recipe, model, objectives), *([Misfit(f"no objective is {self.wanted}")] if lacking else [])]

    def warnings(self, model: VLM) -> list[str]:
        """SigLIP reads its padding: texts need the whole length that the run was trained with."""
        length, result = model.tokenizer.max_length, []
        if length != PIPELINE_LENGTH:
            result.append(
                "transformers' pipeline('zero-shot-image-classification') pads the texts of a SigLIP to"
                f" {PIPELINE_LENGTH} tokens, and this model reads {length}: for the pipeline train with"
                f" --set data.tokenizer.max_length={PIPELINE_LENGTH}"
            )
        result.append(
            f"texts must be padded to {length} tokens (padding='max_length', max_length={length}); sentence-transformers pads to"
            " the longest text and gives wrong vectors"
        )
        return result

    def structure(self, model: VLM) -> list[Misfit]:
        """What differs between the model's towers and theirs, regardless of other parts and objectives."""
        result = []
        if "vision" in model.parts:
            vision = model.part("vision")
            wrong = lacks(vision, extra=0, learned=True, pooling="map")
            if not isinstance(getattr(vision, "stem", None), nn.Conv2d) or vision.stem.bias is None:
                wrong.insert(0, "its stem is not one convolution with bias")
            if not isinstance(getattr(vision, "norm", None), nn.Identity):
                wrong.append("it has a norm before its blocks")
            if wrong:
                result.append(Misfit(f"parts.vision: {', '.join(wrong)}", "parts.vision.kind=siglip"))
        if "text" in model.parts:
            text = model.part("text")
            wrong = lacks(text, causal=False, whole=True) + norms_elsewhere(text)
            if wrong:
                result.append(Misfit(f"parts.text: {', '.join(wrong)}", "parts.text.kind=siglip"))
        return result

    def projections(self, model: VLM) -> list[Misfit]:
        """What differs between the projections into the shared space and theirs."""
        result = []
        if not isinstance(model.part("space").image, nn.Identity):
            result.append(Misfit("the image projection has no place in it", "parts.vision.kind=siglip"))
        if not isinstance(model.part("space").text, nn.Linear) or model.part("space").text.bias is None:
            result.append(Misfit("the text projection is not affine", "parts.text.kind=siglip"))
        return result

    def ends(self, model: VLM) -> dict[str, list[Same]]:
        """By tower: the weights before and after its blocks, as in theirs."""
        return {
            "vision": [
                *linear("parts.vision.stem", "vision_model.embeddings.patch_embedding"),
                *pooling("parts.vision.pool", "vision_model.head"),
            ],
            "text": linear("parts.space.text", "text_model.head"),
        }

    def scale(self, prefix: str) -> list[Same]:
        """The objective's parameters, with names that begin with ``prefix``."""
        return [same(f"{prefix}.{name}", name, view=(1,)) for name in ("logit_scale", "logit_bias")]

    def sizes(self, model: VLM) -> dict[str, dict[str, Any]]:
        """Their configuration of the shared space: at the top level, in ``vision_config`` and in ``text_config``."""
        return {"whole": {}, "vision": {}, "text": {"projection_size": model.embed_dim}}

    def embed_dim(self, config: Any) -> int:
        """Options of the shared space from one of their configurations."""
        return int(config.vision_config.hidden_size)

    def shift(self, state: State, shift: Tensor) -> State:
        """Their weights with ``shift`` [D] added to the stem's output for every patch."""
        name = "vision_model.embeddings.patch_embedding.bias"
        return {**state, name: state[name] + shift}


def pooling(ours: str, theirs: str) -> list[Same]:
    """``MapPool``; theirs has queries, keys and values in one matrix."""
    return [
        same(f"{ours}.query", f"{theirs}.probe", view=(1, 1, -1)),
        *(same([f"{ours}.attention.{n}.{w}" for n in ("q", "kv")], f"{theirs}.attention.in_proj_{w}") for w in ("weight", "bias")),
        *linear(f"{ours}.attention.out", f"{theirs}.attention.out_proj"),
        *linear(f"{ours}.norm", f"{theirs}.layernorm"),
        *linear(f"{ours}.mlp.0", f"{theirs}.mlp.fc1"),
        *linear(f"{ours}.mlp.2", f"{theirs}.mlp.fc2"),
    ]


FAMILY = Siglip()
