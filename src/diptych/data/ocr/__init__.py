"""Text that a reader (an OCR engine) sees in a picture, as words in the prompt (Lumos, Shenoy et al., arXiv:2402.08017)."""

from diptych.data.ocr.prompt import OcrPrompt, open_prompt, ordered, told
from diptych.data.ocr.readers import Line, Reader

__all__ = ["Line", "OcrPrompt", "Reader", "open_prompt", "ordered", "told"]
