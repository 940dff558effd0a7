"""The part of a model's text that is its answer: behind the thinking, and inside marks such as ``\\boxed{B}``."""

from __future__ import annotations

import re

_NAMES = r"think|thinking|thought|reasoning|analysis"
_END = re.compile(rf"</(?:{_NAMES})>|◁/think▷|<\|end_of_thought\|>|\[/THINK\]", re.IGNORECASE)
_START = re.compile(rf"<(?:{_NAMES})>|◁think▷|<\|begin_of_thought\|>|\[THINK\]", re.IGNORECASE)
_MARKED = re.compile(r"<answer>(.*?)</answer>|<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.IGNORECASE | re.DOTALL)
_JSON = re.compile(r'"(?:final[_ ]?)?answer"\s*:\s*(?:"((?:[^"\\]|\\.)*)"|([\w.]+))', re.IGNORECASE)
_TOKENS = re.compile(r"</?s>|<\|\w+\|>|<(?:eos|bos|pad|end_of_turn|end_of_utterance)>")  # special tokens that were not removed
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|rm)\s*\{([^{}]*)\}")
NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10",
}  # fmt: skip
WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0x3010: 0x20, 0x3011: 0x20}  # ＡＢ（）：and 【】


def without_thinking(text: str) -> str:
    """What follows the thinking of a model; "" if the text ends within it."""
    ends = list(_END.finditer(text))
    text = text[ends[-1].end() :] if ends else text
    start = _START.search(text)
    return (text[: start.start()] if start else text).strip()


def marked(text: str) -> list[str]:
    """The texts in ``<answer>…</answer>``, ``\\boxed{…}``, box tokens and a JSON field ``answer``; empty without such a mark."""
    outer = [next(part for part in m.groups() if part is not None) for m in _MARKED.finditer(text)]
    found = [inner for part in outer for inner in _boxed(part) or [part]] + _boxed(_MARKED.sub("", text))
    if not found:
        found = [m[1] if m[1] is not None else m[2] for m in _JSON.finditer(text)]
    return [_WRAPPED.sub(r"\1", part).strip() for part in found]


def _boxed(text: str) -> list[str]:
    found, open_ = [], list[tuple[int, bool]]()  # where braces open, and whether they are a box
    for m in re.finditer(r"\\(?:boxed|fbox)\s*\{|[{}]", text):
        if m[0] != "}":
            open_.append((m.end(), m[0] != "{"))
        elif open_:
            start, box = open_.pop()
            if box:
                found.append(text[start : m.start()])
    return found


def plain_text(text: str) -> str:
    """A text without Markdown, quotation marks and full-width forms."""
    text = _TOKENS.sub(" ", text).translate(WIDE).replace("’", "'")
    text = re.sub(r"""[*`"“”‘「」]|__|(?m:^\s*(?:\#+|>)\s*)|(?m:^')|(?m:'$)""", "", text)
    return text.strip()


def spoken(text: str) -> str:
    """The answer as text: behind the thinking, and what stands in the last mark if there is one."""
    text = without_thinking(text)
    inside = marked(text)
    return inside[-1] if inside else text


# Words before an answer in English, German, Spanish and Chinese: "The correct answer is", "Antwort:", "正确答案是".
HEAD = (
    r"(?:(?<![^\W_])(?:answer|solution|antwort|lösung|respuesta|solución)(?:\s+(?:correcta|final))?"
    r"(?:\s+(?:to|for)\s+(?:this|the|your)\s+question)?(?![^\W_])"
    r"|(?<![^\W_])(?:correct|right|best|most\s+(?:likely|appropriate)|richtige|korrekte|beste)\s+(?:option|choice|one|letter|wahl)"
    r"|(?<![^\W_])(?:selected\s+option|option|choice|selection|response|assistant|output|label|result|wahl|auswahl|opción)\s*(?=:)|答(?=:)"
    r"|(?<![^\W_])my\s+(?:guess|choice|pick|prediction)(?![^\W_])"
    r"|(?<![^\W_])answer\s+that\s+(?:\w+\s+){1,4}(?=is\s)"
    r"|(?<![^\W_])opción\s+correcta|(?<![^\W_])richtig\s+(?=ist)|答案|正确的?选项)(?:,[^,.;\n]{1,30},)?"
)
LINK = (
    r"(?:\s|[:=→–—-]|是|为|应为|应该是|选项"
    r"|(?<![^\W_])(?:is|would\s+be|should\s+be|must\s+be|will\s+be|has\s+to\s+be|ist|lautet|wäre|es|sería|option|choice|letter"
    r"|the|la|el|opción|most\s+likely|likely|probably|clearly|definitely|indeed|therefore)(?![^\W_]))*"
)
CORRECTION = re.compile(
    r"(?:^|[.!?…,;:\n]|\bno,?)\s*(?:but\s+)?"
    r"(?:(?:wait|actually|hmm|correction|on second thought|espera|halt|moment)(?=\s*[,.:!…—-])|(?:等等|不对)(?=[,.。!，]))",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?。\n]+[.!?。\n]?|[?]")  # never fails to match, which would take quadratic time


def without_questions(text: str) -> str:
    """The text without its questions, which say nothing: "Is it A?"."""
    return _SENTENCE.sub(lambda m: " " if m[0].endswith("?") else m[0], text)
