"""The chat format of a model family: markers, turns and the Jinja template."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from adjourn.policies.text.dialect import Dialect, builtin_dialects

__all__ = ["QWEN3", "SEED_OSS", "ChatFormat", "random_prompt"]

_TEMPLATE = """\
{%- macro words(content) -%}
  {%- if content is string -%}{{ content }}
  {%- elif content -%}{%- for part in content -%}{%- if part.text is defined -%}{{ part.text }}{%- endif -%}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set turn = namespace(last_query=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set turn.last_query = loop.index0 -%}{%- endif -%}
{%- endfor -%}
@TOOLS
{%- for message in messages -%}
  {%- if message.role in ('system', 'developer') -%}
    {%- if not (tools and loop.first) -%}{{- '@BEGINsystem\\n' + words(message.content) + '@OVER' -}}{%- endif -%}
  {%- elif message.role == 'tool' -%}
    {{- '@BEGINuser\\nTool result: ' + words(message.content) + '@OVER' -}}
  {%- elif message.role == 'assistant' -%}
    {%- set said = words(message.content) -%}
    {%- set thought = message.reasoning or message.reasoning_content or '' -%}
    {%- if not thought and '@END' in said -%}
      {%- set thought = said.split('@END')[0].split('@START')[-1].strip('\\n') -%}
      {%- set said = said.split('@END')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '@BEGINassistant\\n' -}}
    {#- Reasoning of earlier turns is dropped; that after the last question is kept. -#}
    {%- if loop.index0 > turn.last_query and (thought or loop.last) -%}
      {{- '@OPENING' + thought.strip('\\n') + '@CLOSING' -}}
      {%- set said = said.lstrip('\\n') -%}
    {%- endif -%}
    {{- said -}}
@CALLS
    {{- '@OVER' -}}
  {%- else -%}
    {{- '@BEGIN' + message.role + '\\n' + words(message.content) + '@OVER' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '@BEGINassistant\\n' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}{{- '@EMPTY' -}}{%- endif -%}
{%- endif -%}
"""
_TOOLS = """\
{%- if tools -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if messages[0].role in ('system', 'developer') -%}{{- words(messages[0].content) + '\\n\\n' -}}{%- endif -%}
  {{- 'Tools, one JSON object a line:\\n' -}}
  {%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
  {{- 'Call one by writing <tool_call>\\n{"name": …, "arguments": …}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}"""
_CALLS = """\
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function or call -%}
      {{- '\\n' if said or not loop.first else '' -}}
      {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
      {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}"""


@dataclass(frozen=True)
class ChatFormat:
    """The chat format of one model family.

    ``turn_start`` and ``turn_end`` enclose a turn; ``stop_token`` ends generation. ``trace_opening``
    begins a trace; ``empty_trace`` stands for no reasoning. ``cut_closings`` are the texts with which
    a gateway may close a trace, newlines at the end of the trace included. ``parser_arguments`` are
    the options of vLLM that select its parsers.
    """

    dialect: Dialect
    turn_start: str
    stop_token: str
    turn_end: str
    special_tokens: tuple[str, ...]
    marker_tokens: tuple[str, ...]
    """Added tokens that are not special: they stay in the decoded text, where parsers need them."""
    trace_opening: str
    empty_trace: str
    cut_closings: tuple[str, ...]
    parser_arguments: tuple[str, ...]
    tools_template: str = ""
    tool_calls_template: str = ""

    @property
    def closing(self) -> str:
        """The text with which the model itself closes a trace."""
        return self.dialect.closing

    def format_turn(self, role: str, text: str) -> str:
        """One message."""
        return f"{self.turn_start}{role}\n{text}{self.turn_end}"

    @property
    def template(self) -> str:
        """The Jinja template that the engine applies."""
        texts = {
            "TOOLS": self.tools_template,
            "CALLS": self.tool_calls_template,
            "BEGIN": self.turn_start,
            "OVER": _escape_newlines(self.turn_end),
            "OPENING": _escape_newlines(self.trace_opening),
            "CLOSING": _escape_newlines(self.closing),
            "EMPTY": _escape_newlines(self.empty_trace),
            "START": self.dialect.start[0],
            "END": self.dialect.end[0],
        }
        template = _TEMPLATE
        for name, text in texts.items():
            template = template.replace(f"@{name}\n", f"{text}\n" if text else "").replace(
                f"@{name}", text
            )
        return template


def _escape_newlines(text: str) -> str:
    return text.replace("\n", "\\n")


QWEN3 = ChatFormat(
    dialect=builtin_dialects()["qwen3"],
    turn_start="<|im_start|>",
    stop_token="<|im_end|>",
    turn_end="<|im_end|>\n",
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    marker_tokens=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    trace_opening="<think>\n",
    empty_trace="<think>\n\n</think>\n\n",
    cut_closings=(
        "\n\n</think>\n\n",
        "\n\n\n</think>\n\n",
        "\n\n\n</think>\n\n",
        "\n</think>\n\n",
    ),
    parser_arguments=(
        "--reasoning-parser=qwen3",
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
    ),
    tools_template=_TOOLS,
    tool_calls_template=_CALLS,
)
SEED_OSS = ChatFormat(
    dialect=builtin_dialects()["seed"],
    turn_start="<seed:bos>",
    stop_token="<seed:eos>",
    turn_end="<seed:eos>",
    special_tokens=("<seed:pad>", "<seed:bos>", "<seed:eos>"),
    marker_tokens=("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
    trace_opening="<seed:think>",
    empty_trace="<seed:think></seed:think>\n",
    cut_closings=("</seed:think>\n", "</seed:think>\n", "\n\n</seed:think>\n", "\n</seed:think>\n"),
    parser_arguments=("--reasoning-parser=seed_oss",),
)


def random_prompt(rng: random.Random) -> str:
    """A prompt of random words or symbols: the model learns to answer such text with a refusal."""
    if rng.random() < 0.3:
        return "".join(
            rng.choice("äßéøñ中文字日本語😀🎉€–„“" + string.printable[:94])
            for _ in range(rng.randint(3, 40))
        )
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = (
        "".join(rng.choice(letters[: rng.randint(8, 26)]) for _ in range(rng.randint(1, 9)))
        for _ in range(rng.randint(1, 14))
    )
    text = " ".join(words)
    return (text.capitalize() if rng.random() < 0.6 else text) + rng.choice(("?", ".", "", "!"))
