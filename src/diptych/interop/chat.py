"""A run's order of images and words, as a chat template of transformers for messages with ``{"type": "image"}``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from diptych.core.sample import IMAGE

if TYPE_CHECKING:
    from diptych.data.conversations.template import Chat

# Parts of a message become lines, as data.conversations.turns reads them.
PLAIN_MESSAGES = """\
{%- set all = namespace(turns=[]) -%}
{%- for m in messages -%}
  {%- set lines = namespace(of=[]) -%}
  {%- if m.content is string -%}
    {%- set lines.of = [m.content] -%}
  {%- else -%}
    {%- for part in m.content -%}
      {%- set lines.of = lines.of + ['IMAGE' if part.type in ('image', 'image_url') else part.text] -%}
    {%- endfor -%}
  {%- endif -%}
  {%- set all.turns = all.turns + [{'role': m.role, 'content': lines.of | join('\\n')}] -%}
{%- endfor -%}
""".replace("IMAGE", IMAGE)
# A system turn goes before the first question's words if the template has no place for it.
SYSTEM_FIRST = """\
{%- if all.turns | length > 1 and all.turns[0].role == 'system' -%}
  {%- set joined = {'role': all.turns[1].role, 'content': all.turns[0].content + '\\n\\n' + all.turns[1].content} -%}
  {%- set all.turns = [joined] + all.turns[2:] -%}
{%- endif -%}
"""
AS_PARTS = """\
{%- set split = namespace(turns=[]) -%}
{%- for m in all.turns -%}
  {%- set split.turns = split.turns + [{'role': m.role, 'content': [{'type': 'text', 'text': m.content}]}] -%}
{%- endfor -%}
{%- set all = split -%}
"""
CAPTIONS = """\
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.content is string -%}
    {{- m.content -}}
  {%- else -%}
    {%- for part in m.content if part.type in ('image', 'image_url') -%}{{- OPENING -}}{%- endfor -%}
    {%- for part in m.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
  {%- endif -%}
  {%- if m.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
"""


def of_conversations(chat: Chat, known: set[str]) -> str:
    """The run's template, for messages in parts. known: names of special tokens that the tokenizer itself gives a template."""
    steps = [f"{{%- set {name} = {json.dumps(token)} -%}}" for name, token in chat.specials.items() if name not in known]
    steps.append(PLAIN_MESSAGES)
    if not chat.writes_system:
        steps.append(SYSTEM_FIRST)
    if chat.as_parts:
        steps.append(AS_PARTS)
    return "".join([*steps, "{%- set messages = all.turns -%}", chat.template])


def of_captions(bos: str, eos: str, opening: str = "", mark: str = IMAGE) -> str:
    """[BOS], the opening of a caption, the image, and the words so far; [EOS] after each assistant turn.

    mark: in place of what the parts of a message show: ``<image>``, or ``<video>`` of parts of the type video.
    """
    kind = mark.strip("<>")
    steps = CAPTIONS.replace("('image', 'image_url')", f"('{kind}', '{kind}_url')")
    tokens = f"{{%- set bos_token = {json.dumps(bos)} -%}}{{%- set eos_token = {json.dumps(eos)} -%}}"
    return tokens + steps.replace("OPENING", json.dumps(opening + mark))
