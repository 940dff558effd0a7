"""Models that are not ours, by address: ``scheme:place?option=value``.

| address | model |
|---|---|
| ``hf:NAME_OR_PATH`` | CLIP, SigLIP, BLIP, LLaVA and all of transformers that embeds, matches or answers |
| ``open_clip:ARCHITECTURE?pretrained=TAG_OR_FILE`` | dual encoders of open_clip, if it is installed |
| ``openai:BASE_URL?model=NAME`` | any endpoint that speaks OpenAI's chat completions |
| ``pooled:MODEL?frames=8`` | any model of pictures, run or other, as one of clips: the mean of its frames (``pooled.py``) |
| ``mypackage.models:MyModel`` | your class (``MyModel(**options)``), function (called likewise) or object with capabilities |

``conse``, by its name alone, is opened from here too (``config.untrained``).
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, nearest

SCHEMES = {
    "hf": "diptych.inference.foreign.hub:load",
    "open_clip": "diptych.inference.foreign.open_clip:OpenClip",
    "openai": "diptych.inference.foreign.endpoint:Endpoint",
}
_OWN = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*")


def is_foreign(address: str) -> bool:
    """Whether an address names a model that is not a run."""
    place = address.partition("?")[0]
    return place.partition(":")[0] in SCHEMES or bool(_OWN.fullmatch(place))


def open_model(address: str, device: str = "auto") -> Model:
    """The model at ``address``. DiptychError names what is wrong with it and the remedy."""
    from diptych.core.registry import resolve

    place, _, query = address.partition("?")
    scheme, mark, name = place.partition(":")
    if not mark or not is_foreign(address):
        raise DiptychError(f"no model at '{address}'{nearest(scheme, SCHEMES)}; or package.module:Class, or a run directory")
    if scheme in SCHEMES and not name:
        raise DiptychError(f"'{address}' has no model name; expected {scheme}:NAME")
    make = resolve(SCHEMES.get(scheme, place), {}, "model")
    if not callable(make):
        return _checked(make, address)
    return opened(make, address, query, device, *([name] if scheme in SCHEMES else []))


def opened(make: Any, address: str, query: str, device: str = "auto", *given: str) -> Model:
    """The model that ``make(*given, **options)`` gives, with the options of the address's ``query``, which are checked."""
    from diptych.core.registry import check_options, option_names

    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    if "device" in option_names(make):
        options.setdefault("device", device)
    return _checked(make(*given, **check_options(make, options, address)), address)


def _checked(model: Any, address: str) -> Model:
    if not isinstance(model, Model):
        wanted = ("name", "capabilities", "embed_image", "embed_text", "score", "generate", "loglikelihood")
        lacks = [n for n in wanted if not hasattr(model, n)]
        raise DiptychError(
            f"'{address}' is not a model: {type(model).__name__} does not have {', '.join(lacks)}; "
            "subclass diptych.core.capabilities.Adapter"
        )
    return model
