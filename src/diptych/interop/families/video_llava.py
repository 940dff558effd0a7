"""transformers' ``VideoLlavaForConditionalGeneration`` (Lin et al. 2024, arXiv:2311.10122) and
``LlavaNextVideoForConditionalGeneration`` (Zhang et al. 2024, "LLaVA-NeXT: A Strong Zero-shot Video Understanding Model").

For export only, as LLaVA. Video-LLaVA has a tower for pictures and one for clips: both get the run's one tower. It keeps the class
token of each frame, ours leaves it out, so that towers with one do not fit. LLaVA-NeXT-Video averages patches before its projector,
which is the same as after it (PLLaVA) if the projector is one linear layer. The video processors of transformers need torchvision;
their files are written without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from diptych.core.files import read_json, write_json
from diptych.core.sample import IMAGE
from diptych.interop import chat
from diptych.interop.base import Misfit, rename_tokenizer
from diptych.interop.families.llava import Llava, linear_layers, projector_misfits
from diptych.models.connectors.clips import AdaptivePool, ClipConnector, EachFrame, PooledFrames
from diptych.models.language.lm import IMAGE_PROMPTS
from diptych.models.vision.towers import HubTower
from diptych.objectives.base import learns_turns

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.data.conversations.template import Chat
    from diptych.interop.families.language import Language
    from diptych.models.vlm import VLM

VIDEO = "<video>"
SETTINGS = "video_preprocessor_config.json"
BICUBIC = 3  # Pillow's number


class ClipReader(Llava):
    """What both classes have in common: clips of one number of frames, before the words of a caption."""

    marks = (IMAGE, VIDEO)
    reader: ClassVar[str]  # the class that prepares clips

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty if the class computes exactly what our model does."""
        result = super().misfits(recipe, model, objectives)
        if "connector" in model.parts and any(map(learns_turns, objectives.values())):
            result.append(Misfit("it learned from conversations, of which clips are not exported"))
        return result

    def _lengths(self, connector: Any) -> dict[str, Any]:
        return {"image_seq_length": connector.tokens // connector.frames, "video_seq_length": connector.tokens}

    def _template(self, lm: Any, speaks: Chat | None, tokenizer: Any, words: Language) -> str:
        bos, eos = (tokenizer.convert_ids_to_tokens(i) for i in (words.ours.bos, words.ours.eos))
        return chat.of_captions(bos, eos, IMAGE_PROMPTS[0] if lm.prompted else "", VIDEO)

    def _describe_clips(self, directory: Path, model: VLM) -> None:
        """The file of the video processor, and its place in that of the whole."""
        path = directory / "processor_config.json"
        whole = read_json(path)
        clips = video_processor(self.reader, whole["image_processor"], model.part("connector").frames)
        write_json(directory / SETTINGS, {**clips, "processor_class": self.processor})
        write_json(path, {**whole, "video_token": VIDEO, "video_processor": clips, "processor_class": self.processor})
        rename_tokenizer(directory)

    def warnings(self, model: VLM) -> list[str]:
        """How many frames a clip must have, and from where in it."""
        frames = model.part("connector").frames
        return [
            f"a clip has {frames} frames, each the middle of as many equal parts: pass them as they are, with "
            "`do_sample_frames=False`, since the processor's own choice is the first of each part",
            "pictures are not read as the run reads them",
        ]


class VideoLlava(ClipReader):
    """``VideoLlavaForConditionalGeneration``."""

    name = "video_llava"
    architecture = "VideoLlavaForConditionalGeneration"
    processor = "VideoLlavaProcessor"
    reader = "VideoLlavaVideoProcessor"
    towers = ("model.video_tower", "model.image_tower")

    def _vision(self, model: VLM) -> list[Misfit]:
        result = super()._vision(model)
        vision = model.part("vision")
        if not result and isinstance(vision, HubTower) and vision.tower.extra:
            result.append(Misfit("it reads the class token of each frame, too", "parts.vision={kind: hf, from: hf:SIGLIP}"))
        return result

    def _connector(self, connector: Any) -> list[Misfit]:
        if not isinstance(connector, ClipConnector):
            return [Misfit(f"parts.connector is a {type(connector).__name__}, which reads pictures")]
        if not isinstance(connector, EachFrame):
            return [Misfit(f"parts.connector is a {type(connector).__name__}, it reads all patches of each frame")]
        if connector.together > 1:
            return [Misfit("each patch is a token of its own in it", "parts.connector.together=1")]
        return projector_misfits(connector)


class LlavaNextVideo(ClipReader):
    """``LlavaNextVideoForConditionalGeneration``."""

    name = "llava_next_video"
    architecture = "LlavaNextVideoForConditionalGeneration"
    processor = "LlavaNextVideoProcessor"
    reader = "LlavaNextVideoVideoProcessor"
    unused = ("model.image_newline",)  # between rows of pictures

    def _connector(self, connector: Any) -> list[Misfit]:
        if not isinstance(connector, ClipConnector):
            return [Misfit(f"parts.connector is a {type(connector).__name__}, which reads pictures")]
        if not isinstance(connector, (PooledFrames, AdaptivePool)):
            return [Misfit(f"parts.connector is a {type(connector).__name__}, it averages patches of each frame")]
        result = projector_misfits(connector)
        side = f"parts.connector.{'side' if isinstance(connector, AdaptivePool) else 'stride'}"
        if connector.grid != 2 * connector.side:  # its processor counts a quarter of the patches, whatever the stride is
            wanted = connector.grid // 2 if side.endswith("side") else 2
            even = connector.grid % 2 == 0
            why = f"it averages 2 × 2 patches, and {connector.grid} × {connector.grid} become {connector.side} × {connector.side}"
            result.append(Misfit(why, f"{side}={wanted}" if even else ""))
        if isinstance(connector, AdaptivePool):
            if connector.time != connector.frames:
                result.append(Misfit("it does not average over time", f"parts.connector.time={connector.frames}"))
            if len(linear_layers(connector)) > 1:
                result.append(
                    Misfit("it averages before its projector, which is the same only for one layer", "parts.connector.depth=1")
                )
        return result

    def _lengths(self, connector: Any) -> dict[str, Any]:
        return {**super()._lengths(connector), "spatial_pool_mode": "average", "spatial_pool_stride": 2}


def video_processor(kind: str, pictures: dict[str, Any], frames: int) -> dict[str, Any]:
    """The settings of a video processor of transformers that does to each frame what an image processor does to a picture."""
    same = ("do_resize", "size", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "do_convert_rgb")
    return {
        "video_processor_type": kind,
        **{name: pictures[name] for name in same if name in pictures},
        "image_mean": pictures["image_mean"],
        "image_std": pictures["image_std"],
        "resample": BICUBIC,
        "default_to_square": False,
        "do_sample_frames": False,
        "num_frames": frames,
        "return_metadata": False,
    }


FAMILIES = (VideoLlava(), LlavaNextVideo())
