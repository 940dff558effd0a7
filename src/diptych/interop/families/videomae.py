"""VideoMAE's weights (Tong et al. 2022) between transformers and ours: ``VideoMAEModel``, ``VideoMAEForPreTraining``.

Ours: ``parts.vision: {kind: tubelets}``; the decoder is that of the objective ``masked_tubes``. A run's text tower and shared space
have no place in either class, and are left out. Their keys have no bias: a bias of keys adds the same number to all logits of a
query, and changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diptych.core.files import write_json
from diptych.interop.base import (
    Family,
    Geometry,
    Misfit,
    Same,
    image_processor,
    linear,
    objective_of,
    options_of,
    same,
    state_of,
    to_theirs,
)
from diptych.models.layers.attention import Transformer
from diptych.models.vision.tubelets import TubeletViT
from diptych.objectives.video.tubes import MaskedTubes

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.base import State
    from diptych.models.vlm import VLM

INSIDE = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attention.q": "attention.attention.query",
    "attention.out": "attention.output.dense", "mlp.0": "intermediate.dense", "mlp.2": "output.dense",
}  # fmt: skip
KEYS = "attention.attention.key.bias"


def layers(transformer: Transformer, ours: str, theirs: str) -> list[Same]:
    """A stack of ``VideoMAELayer`` as the blocks of our ``Transformer``."""
    result: list[Same] = []
    for i in range(len(transformer.blocks)):
        here, there = f"{ours}.blocks.{i}", f"{theirs}.{i}"
        result += linear(f"{here}.attention.kv", [f"{there}.attention.attention.{n}" for n in ("key", "value")])
        for our_name, their_name in INSIDE.items():
            result += linear(f"{here}.{our_name}", f"{there}.{their_name}")
    return result


class VideoMAE(Family):
    """The encoder alone."""

    name = "videomae"
    architecture = "VideoMAEModel"
    kind = "tubelets"
    starts = True

    def structure(self, model: VLM) -> list[Misfit]:
        """What differs between the model's tower and theirs, regardless of other parts and objectives."""
        vision = model.parts["vision"] if "vision" in model.parts else None
        fits = isinstance(vision, TubeletViT)
        return [] if fits else [Misfit("parts.vision is no tower of tubelets", "parts.vision.kind=tubelets")]

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what the run's tower of clips does. No remedy: another tower is another recipe."""
        return [Misfit(m.why) for m in self.structure(model)]

    def encoder(self, model: VLM, theirs: str) -> list[Same]:
        """The weights of the tower, with names of theirs that begin with ``theirs``."""
        vision: Any = model.parts["vision"]
        there = f"{theirs}embeddings.patch_embeddings.projection"
        shape = (vision.width, 3, vision.tubelet, vision.patch, vision.patch)
        result = [
            same("parts.vision.stem.weight", f"{there}.weight", view=shape),
            same("parts.vision.stem.bias", f"{there}.bias"),
            *layers(vision.transformer, "parts.vision.transformer", f"{theirs}encoder.layer"),
        ]
        norm = "parts.vision.transformer.norm"
        return result if vision.transformer.bare else [*result, *linear(norm, f"{theirs}layernorm")]

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        return self.encoder(model, "")

    def shift(self, state: State, shift: Tensor) -> State:
        """Their weights with ``shift`` [D] added to the stem's output, and with biases of keys, which are 0."""
        name = "embeddings.patch_embeddings.projection.bias"
        keys = {n.replace("key.weight", "key.bias"): torch.zeros(len(w)) for n, w in state.items() if n.endswith("key.weight")}
        return {**state, **keys, name: state[name] + shift}

    def sizes(self, model: VLM, objectives: nn.ModuleDict) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        vision: Any = model.parts["vision"]
        return {
            "model_type": "videomae",
            **Geometry.of(vision.transformer).config(),
            "image_size": model.image_size,
            "patch_size": vision.patch,
            "num_frames": vision.frames,
            "tubelet_size": vision.tubelet,
            "use_mean_pooling": vision.transformer.bare,
        }

    def write(self, directory: Path, model: VLM, objectives: nn.ModuleDict, adapters: str = "") -> list[str]:
        """Write all files that the class loads; returns notes for the model card, one line each."""
        from safetensors.torch import save_file

        weights = to_theirs(state_of(model, objectives), self.entries(model, objectives))
        kept = {n: w.detach().float().cpu().contiguous().clone() for n, w in weights.items() if not n.endswith(KEYS)}
        save_file(kept, directory / self.weights, metadata={"format": "pt"})
        image_processor(model.image_size).save_pretrained(directory)
        config = {"architectures": [self.architecture], "dtype": "float32", **self.sizes(model, objectives)}
        write_json(directory / "config.json", config)
        left = [name for name in model.parts if name != "vision"]
        return [f"It has no place for the run's other parts, which are left out: {', '.join(left)}."] if left else []

    def options(self, config: Any) -> dict[str, Any]:
        """Overrides by dotted key that give a recipe of ours the geometry of theirs."""
        own = {
            "kind": self.kind,
            "patch": config.patch_size,
            "frames": config.num_frames,
            "tubelet": config.tubelet_size,
            "bare": config.use_mean_pooling,
            **options_of(config),
        }
        return {"data.image_size": config.image_size, **{f"parts.vision.{name}": value for name, value in own.items()}}


class VideoMAEPreTraining(VideoMAE):
    """The encoder and the decoder of ``masked_tubes``.

    Their loss undoes the normalisation of pixels by ImageNet's mean and deviation, which ours do not have: the predicted pixels are
    those of our objective, and so is the loss of normalised targets, on pixels in [−1, 1] as ours are.
    """

    architecture = "VideoMAEForPreTraining"
    starts = False

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what the run's tower of clips and its decoder do."""
        result = super().misfits(recipe, model, objectives)
        found = objective_of(objectives, MaskedTubes)
        if found is None:
            result.append(Misfit("no objective is a MaskedTubes, for which it has a decoder"))
        elif not result and model.part("vision").transformer.bare:
            result.append(Misfit("parts.vision returns tokens without a last norm", "parts.vision.bare=false"))
        return result

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        found = objective_of(objectives, MaskedTubes)
        assert found is not None
        ours, objective = found
        return [
            *self.encoder(model, "videomae."),
            same(f"{ours}.embed.weight", "encoder_to_decoder.weight"),
            same(f"{ours}.token", "mask_token", view=(1, 1, -1)),
            *layers(objective.decoder, f"{ours}.decoder", "decoder.decoder_layers"),
            *linear(f"{ours}.decoder.norm", "decoder.norm"),
            *linear(f"{ours}.head", "decoder.head"),
        ]

    def sizes(self, model: VLM, objectives: nn.ModuleDict) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        found = objective_of(objectives, MaskedTubes)
        assert found is not None
        decoder = Geometry.of(found[1].decoder)
        return {
            **super().sizes(model, objectives),
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": decoder.hidden,
            "norm_pix_loss": found[1].normalise,
        }


FAMILIES = (VideoMAE(), VideoMAEPreTraining())
