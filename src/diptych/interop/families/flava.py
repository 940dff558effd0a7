"""FLAVA's weights (Singh et al. 2022) between transformers and ours: ``FlavaModel`` and ``FlavaForPreTraining``.

Ours: ``parts.vision: {kind: class, bare: true}``, ``parts.text: {kind: bert, post_norm: false, bare: true}``, ``parts.fusion:
{kind: joint}``. The heads of the objectives go into ``FlavaForPreTraining``; the quantizer goes into neither: the class's image
codebook is DALL-E's encoder, a different network from ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diptych.interop.base import Family, Geometry, Misfit, Same, lacks, linear, objective_of, options_of, same, to_ours
from diptych.models.fusion.cross import Joint
from diptych.models.layers.attention import Transformer
from diptych.models.text.towers import TextTransformer
from diptych.models.vision.towers import ViT
from diptych.objectives.base import Objective
from diptych.objectives.contrastive import InfoNCE
from diptych.objectives.flava import MaskedBoth, MaskedCodes, MaskedText
from diptych.objectives.matching import Matching

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.interop.base import State
    from diptych.interop.tokenizer import Vocabulary
    from diptych.models.vlm import VLM

TOWERS = {"vision": "image_model", "text": "text_model", "fusion": "multimodal_model"}
INSIDE = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attention.q": "attention.attention.query",
    "attention.out": "attention.output.dense", "mlp.0": "intermediate.dense", "mlp.2": "output.dense",
}  # fmt: skip
KINDS = "kinds"  # token types: two vectors, of which only the first is used
HEADS: tuple[tuple[type[Objective], str, str], ...] = (
    (MaskedCodes, "head", "mim_head"), (MaskedText, "head", "mlm_head"),
    (MaskedBoth, "image_head", "mmm_image_head"), (MaskedBoth, "text_head", "mmm_text_head"),
)  # fmt: skip
ANSWER = "answer"  # the matching head: two logits, of which only the difference counts


def layers(transformer: Transformer, ours: str, theirs: str) -> list[Same]:
    """A stack of ``FlavaLayer`` and its last norm as our ``Transformer``."""
    result = linear(f"{ours}.transformer.norm", f"{theirs}.layernorm")
    for i in range(len(transformer.blocks)):
        here, there = f"{ours}.transformer.blocks.{i}", f"{theirs}.encoder.layer.{i}"
        result += linear(f"{here}.attention.kv", [f"{there}.attention.attention.{n}" for n in ("key", "value")])
        for our_name, their_name in INSIDE.items():
            result += linear(f"{here}.{our_name}", f"{there}.{their_name}")
    return result


class Flava(Family):
    """The embeddings are the class tokens after the projections; users of the class select them and scale them to length 1.

    The class has poolers that FLAVA's objectives alone use: they are written as identities, so that no weights are random.
    """

    name = "flava"
    architecture = "FlavaModel"
    processor = "CLIPProcessor"  # theirs hides patches itself, and has BERT's vocabulary

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        kinds = {"vision": ViT, "text": TextTransformer, "fusion": Joint}
        result = [Misfit(f"part '{name}' has no place in it") for name in model.parts if name not in (*kinds, "quantizer", "space")]
        result += [Misfit(f"it has no part '{name}'") for name in kinds if name not in model.parts]
        result += [
            Misfit(f"parts.{name} is not a {kind.__name__}")
            for name, kind in kinds.items()
            if name in model.parts and not isinstance(model.parts[name], kind)
        ]
        if result:
            return result
        vision, text = model.part("vision"), model.part("text")
        wrong = lacks(vision, extra=1, learned=True, pooling="class") + lacks(vision.transformer, bare=True)
        if not isinstance(vision.stem, nn.Conv2d) or vision.stem.bias is None or not isinstance(vision.norm, nn.Identity):
            wrong.append("its stem is not one convolution with bias and no norm")
        if wrong:
            result.append(Misfit(f"parts.vision: {', '.join(wrong)}", "parts.vision.kind=class --set parts.vision.bare=true"))
        wrong = lacks(text, causal=False, pool="bos", whole=False) + lacks(text.transformer, bare=True)
        if isinstance(text.norm, nn.Identity) or isinstance(text.transformer.norm, nn.Identity):
            wrong.append("its norms are in other places")
        if wrong:
            remedy = "parts.text.kind=bert --set parts.text.post_norm=false --set parts.text.bare=true"
            result.append(Misfit(f"parts.text: {', '.join(wrong)}", remedy))
        for side in ("image", "text"):
            layer: Any = getattr(model.part("space"), side)
            if not result and (not isinstance(layer, nn.Linear) or layer.bias is None):
                result.append(Misfit(f"the {side} projection is not affine"))
        if recipe.score != "similarity":
            result.append(Misfit(f"it scores by {recipe.score}, not by similarity"))
        if objective_of(objectives, InfoNCE) is None:
            result.append(Misfit("no objective is an InfoNCE, which gives logits their scale"))
        return result

    def weights_of(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """The weights that both sides have."""
        vision, text = model.part("vision"), model.part("text")
        seen, of_text = "image_model.embeddings", "text_model.embeddings"
        result = [
            same("parts.vision.classes", f"{seen}.cls_token", view=(1, 1, -1)),
            same("parts.vision.positions", f"{seen}.position_embeddings", view=(1, *vision.positions.shape)),
            *linear("parts.vision.stem", f"{seen}.patch_embeddings.projection"),
            same("parts.text.embedding.weight", f"{of_text}.word_embeddings.weight"),
            same("parts.text.positions", f"{of_text}.position_embeddings.weight", view=tuple(text.positions.shape)),
            *linear("parts.text.norm", f"{of_text}.LayerNorm"),
            same("parts.fusion.class_token", "multimodal_model.cls_token", view=(1, 1, -1)),
            *linear("parts.fusion.from_image", "image_to_mm_projection"),
            *linear("parts.fusion.from_text", "text_to_mm_projection"),
            *linear("parts.space.image", "image_projection"),
            *linear("parts.space.text", "text_projection"),
        ]
        if vision.mask_token is not None:
            result.append(same("parts.vision.mask_token", f"{seen}.mask_token", view=(1, 1, -1)))
        for part, tower in TOWERS.items():
            result += layers(model.part(part).transformer, f"parts.{part}", tower)
        contrast = objective_of(objectives, InfoNCE)
        return [*result, same(f"{contrast[0]}.logit_scale", "logit_scale")] if contrast else result

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        poolers = [e for part, tower in TOWERS.items() for e in linear(f"pooler.{part}", f"{tower}.pooler.dense")]
        kinds = same(KINDS, "text_model.embeddings.token_type_embeddings.weight")
        return [*self.weights_of(model, objectives), kinds, *poolers]

    def settled(self, state: State, objectives: nn.ModuleDict) -> State:
        """Our state with the bound on the scale applied, and with the weights that only theirs has."""
        more = {KINDS: torch.zeros(2, state["parts.text.positions"].shape[1])}
        for part in TOWERS:
            width = len(state[f"parts.{part}.transformer.norm.weight"])
            more |= {f"pooler.{part}.weight": torch.eye(width), f"pooler.{part}.bias": torch.zeros(width)}
        contrast = objective_of(objectives, InfoNCE)
        if contrast:
            more[f"{contrast[0]}.logit_scale"] = contrast[1].scale.detach().log()
        return {**state, **more}

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        vision, text, fusion = (model.part(name) for name in TOWERS)
        return {
            "model_type": "flava",
            "hidden_size": fusion.width,
            "projection_dim": model.embed_dim,
            "image_config": {
                **Geometry.of(vision.transformer).config(),
                "model_type": "flava_image_model",
                "image_size": model.image_size,
                "patch_size": vision.patch,
                "mask_token": vision.mask_token is not None,
            },
            "text_config": {
                **Geometry.of(text.transformer).config(),
                **vocabulary.config(),
                "model_type": "flava_text_model",
                "max_position_embeddings": len(text.positions),
                "type_vocab_size": 2,
            },
            "multimodal_config": {**Geometry.of(fusion.transformer).config(), "model_type": "flava_multimodal_model"},
        }

    def options(self, config: Any) -> dict[str, Any]:
        """Overrides by dotted key that give a recipe of ours the geometry of theirs."""
        vision, text, fusion = config.image_config, config.text_config, config.multimodal_config
        towers = {
            "vision": {
                "kind": "class",
                "bare": True,
                "patch": vision.patch_size,
                "mask_token": vision.mask_token,
                **options_of(vision),
            },
            "text": {"kind": "bert", "post_norm": False, "bare": True, **options_of(text)},
            "fusion": {"kind": "joint", **options_of(fusion)},
        }
        return {
            "data.image_size": vision.image_size,
            "data.tokenizer.max_length": text.max_position_embeddings,
            "embed_dim": config.projection_dim,
            **{f"parts.{part}.{name}": value for part, options in towers.items() for name, value in options.items()},
        }


class FlavaPreTraining(Flava):
    """The model with the heads of masked modelling and matching. The codes of hidden patches are an input (``mim_labels``), since
    it does not have our quantizer.

    Matching must have a tanh between its two layers, as in FLAVA.
    """

    architecture = "FlavaForPreTraining"

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = super().misfits(recipe, model, objectives)
        result += [
            Misfit(f"no objective is a {kind.__name__}, for which it has a head")
            for kind in dict.fromkeys(kind for kind, _, _ in HEADS)
            if objective_of(objectives, kind) is None
        ]
        matching = objective_of(objectives, Matching)
        if matching is None or not (isinstance(matching[1].head, nn.Sequential) and isinstance(matching[1].head[1], nn.Tanh)):
            result.append(Misfit("no matching head has a tanh inside"))
        if not result:
            towers = [Geometry.of(model.part(name).transformer) for name in TOWERS]
            if len({t.width for t in towers}) > 1:
                result.append(Misfit("its towers are not of one width"))
            if any(t.activation != "gelu" for t in towers[:2]):
                result.append(Misfit("its towers have another activation than the heads, which is GELU"))
        return result

    def entries(self, model: VLM, objectives: nn.ModuleDict) -> list[Same]:
        """How weights of ours and theirs correspond."""
        result = [
            replace(entry, theirs=tuple(f"flava.{name}" for name in entry.theirs)) for entry in super().entries(model, objectives)
        ]
        return [*result, *heads_of(objectives, tied=True)]

    def settled(self, state: State, objectives: nn.ModuleDict) -> State:
        """Our state with the bound on the scale applied, and with the weights that only theirs has."""
        found = objective_of(objectives, Matching)
        assert found is not None
        more = {}
        for what in ("weight", "bias"):
            yes = state[f"{found[0]}.head.2.{what}"]
            more[f"{ANSWER}.{what}"] = torch.cat([torch.zeros_like(yes), yes])  # no, yes
        return {**super().settled(state, objectives), **more}

    def config(self, model: VLM, vocabulary: Vocabulary) -> dict[str, Any]:
        """The content of config.json, without ``architectures``."""
        result = super().config(model, vocabulary)
        result["image_config"]["vocab_size"] = model.part("quantizer").vocabulary
        return {**result, "init_codebook": False}


def heads_of(objectives: nn.ModuleDict, tied: bool = False) -> list[Same]:
    """The heads of the present objectives. tied: also write their biases under their second name."""
    result = []
    for kind, ours, theirs in HEADS:
        if objective := objective_of(objectives, kind):
            result += head(f"{objective[0]}.{ours}", theirs)
            result += [same(f"{objective[0]}.{ours}.3.bias", f"{theirs}.bias")] if tied else []
    if matching := objective_of(objectives, Matching):
        result += linear(f"{matching[0]}.head.0", "itm_head.pooler.dense")
        result += linear(ANSWER, "itm_head.seq_relationship")
    return result


def head(ours: str, theirs: str) -> list[Same]:
    """A ``FlavaMaskedPredictionHead`` as our ``prediction_head``."""
    pairs = {"0": "transform.dense", "2": "transform.LayerNorm", "3": "decoder"}
    return [e for mine, name in pairs.items() for e in linear(f"{ours}.{mine}", f"{theirs}.{name}")]


def from_transformers(theirs: Mapping[str, Tensor], model: VLM, objectives: nn.ModuleDict) -> None:
    """Put the weights of a ``FlavaForPreTraining``, heads and all, into a model of its geometry, in place. Raises RuntimeError if
    one does not fit.
    """
    state = {name.removeprefix("flava."): value for name, value in theirs.items()}
    of_text = "text_model.embeddings"  # all tokens are of the first type: added to their positions
    state[f"{of_text}.position_embeddings.weight"] = (
        state[f"{of_text}.position_embeddings.weight"] + state[f"{of_text}.token_type_embeddings.weight"][0]
    )
    if matching := objective_of(objectives, Matching):
        for what in ("weight", "bias"):
            no, yes = state[f"itm_head.seq_relationship.{what}"].chunk(2)
            state[f"itm_head.yes.{what}"] = yes - no
    entries = [*FAMILIES[0].weights_of(model, objectives), *(e for e in heads_of(objectives) if e.ours[0].split(".")[0] != ANSWER)]
    entries += linear(f"{matching[0]}.head.2", "itm_head.yes") if matching else []
    whole = {**model.state_dict(), **{f"objectives.{k}": v for k, v in objectives.state_dict().items()}}
    result = to_ours(state, entries, {k: v.shape for k, v in whole.items()})
    wanted = {name for name in whole if not name.startswith("parts.quantizer.")}
    if lacking := sorted(wanted - set(result)):
        raise RuntimeError(f"the weights do not have {', '.join(lacking)}")
    model.load_state_dict({k: v for k, v in result.items() if not k.startswith("objectives.")}, strict=False)
    objectives.load_state_dict({k.removeprefix("objectives."): v for k, v in result.items() if k.startswith("objectives.")})


FAMILIES = (Flava(), FlavaPreTraining())
