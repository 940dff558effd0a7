"""transformers' ``LlavaNextForConditionalGeneration`` (Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world
knowledge").

For export only, as LLaVA: one that reads a picture whole and in tiles (connector ``any_resolution``). The learned vector at the end
of a row is, like the projector's last layer, scaled to the size of word vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from diptych.data.fields.tiles import cutting_of
from diptych.interop.base import Misfit, State
from diptych.interop.families.llava import Llava, projector_misfits
from diptych.models.connectors.tiles import AnyResolution

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.models.vlm import VLM


class LlavaNext(Llava):
    """``LlavaNextForConditionalGeneration``."""

    name = "llava_next"
    architecture = "LlavaNextForConditionalGeneration"
    processor = made_processor = "LlavaNextProcessor"

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = super().misfits(recipe, model, objectives)
        cutting = cutting_of(model.own_fields, model.image_size)
        if cutting is None or cutting.stretched:
            result.append(Misfit("it reads pictures in tiles, with their shape kept", "data.fields={image: {kind: tiles}}"))
        return result

    def _connector(self, connector: Any) -> list[Misfit]:
        if not isinstance(connector, AnyResolution):
            kind = "parts.connector={kind: any_resolution, norm: false}"
            return [Misfit(f"parts.connector is a {type(connector).__name__}, it reads a picture whole and in tiles", kind)]
        return projector_misfits(connector)

    def _lengths(self, connector: Any) -> dict[str, Any]:
        return {"image_seq_length": connector.patches_each}

    def _more_options(self, model: VLM) -> dict[str, Any]:
        return {"image_grid_pinpoints": pinpoints(model)}

    def _more_weights(self, connector: Any, scale: float) -> State:
        return {"model.image_newline": connector.newline.detach().float() * scale}

    def _pictures(self, model: VLM, mean: list[float], std: list[float]) -> Any:
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        size = model.image_size
        return LlavaNextImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_grid_pinpoints=pinpoints(model),
            image_mean=list(mean),
            image_std=list(std),
        )


def pinpoints(model: VLM) -> list[list[int]]:
    """Height and width in pixels of each grid of tiles."""
    cutting = cutting_of(model.own_fields, model.image_size)
    assert cutting is not None
    return [[rows * model.image_size, columns * model.image_size] for rows, columns in cutting.grids]


FAMILY = LlavaNext()
