"""Processors of transformers, also where a part of them needs a package that is not there."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.models.pretrained.hub import FILES, fetch


def open_processor(name: str, **options: Any) -> Any:
    """The processor of a model, by a directory or a name on the hub.

    Where it has a part for videos that cannot be opened without torchvision, it is opened without that part: pictures and words do
    not need it. DiptychError as of ``hub.fetch``.
    """
    from transformers import AutoProcessor

    try:
        return fetch(AutoProcessor, name, **options)
    except DiptychError as error:
        if "torchvision" not in str(error):
            raise
        try:
            return without_video(name, **options)
        except DiptychError:
            raise error from None


def without_video(name: str, **options: Any) -> Any:
    """A processor of tokenizer and image processor alone. DiptychError if its class or its image processor cannot be opened."""
    import transformers
    from transformers import AutoImageProcessor, AutoTokenizer

    says = _says(name)
    cls: Any = getattr(transformers, str(says.get("processor_class")), None)
    attributes = cls.get_attributes() if cls is not None else []
    if "video_processor" not in attributes:
        raise DiptychError(f"hf:{name}: its processor has no part for videos that could be left out")
    tokenizer = fetch(AutoTokenizer, name, **options)
    pictures = fetch(AutoImageProcessor, name, backend="pil", **options)

    class Pictures(cls):  # type: ignore[misc]
        """The processor without its part for videos."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            """No part for videos is right, too."""
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

        def save_pretrained(self, directory: Any, **more: Any) -> Any:
            """What the whole processor has but for videos."""
            return save_parts(self, cls.__name__, Path(directory))

    taken = inspect.signature(cls.__init__).parameters
    rest = {k: v for k, v in says.items() if k in taken and k not in attributes and not isinstance(v, dict)}
    template = getattr(tokenizer, "chat_template", None)
    written = Path(name) / "chat_template.jinja"
    if written.is_file():
        template = written.read_text(encoding="utf-8")
    parts = {"image_processor": pictures, "tokenizer": tokenizer, "video_processor": None}
    made: Any = Pictures(**parts, **{"chat_template": template, **rest})
    made.video_processor_class = None
    return made


def save_parts(processor: Any, kind: str, directory: Path) -> list[str]:
    """Tokenizer, image processor and chat template of a processor, in the files that its class reads."""
    from diptych.core.files import write_json, write_text

    processor.tokenizer.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
    file = directory / FILES[0]
    write_json(file, {**read_json(file), "processor_class": kind})
    if processor.chat_template:
        write_text(directory / "chat_template.jinja", processor.chat_template)
    taken = [n for n in inspect.signature(type(processor).__mro__[1]).parameters if n not in ("self", "chat_template")]
    plain = {n: v for n in taken if isinstance(v := getattr(processor, n, None), int | float | str | bool)}
    write_json(directory / FILES[1], {"processor_class": kind, **plain})
    return [str(file)]


def _says(name: str) -> dict[str, Any]:
    """What the files of a processor say, the newer one first."""
    from transformers.utils.hub import cached_file

    says: dict[str, Any] = {}
    for file in reversed(FILES):
        found = Path(name) / file if Path(name).is_dir() else cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        if found and Path(found).is_file():
            says = {**read_json(Path(found)), **says}
    return says
