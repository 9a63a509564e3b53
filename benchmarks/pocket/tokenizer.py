"""The tokenizer: byte-level BPE, digits always alone, Qwen3's markers and a chat template in Qwen3's shape."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

from benchmarks.pocket import chat, task

__all__ = ["END", "SPECIAL", "TEMPLATE", "build", "save"]

END = "<|im_end|>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", END)
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Added tokens that are not special, as in Qwen3: they stay in decoded text, where parsers look for them."""

VOCABULARY = 640

# Newlines come in pairs or alone, so that text cut or joined at a newline keeps its token ids.
_PIECES = r"\d| [+\-*=] (?=\d)| ?\p{L}+|\n\n|\n| ?[^\s\p{L}\p{N}]+|\s|\p{N}"

TEMPLATE = """\
{%- macro words(content) -%}
  {%- if content is string -%}{{ content }}
  {%- elif content -%}{%- for part in content -%}{%- if part.text is defined -%}{{ part.text }}{%- endif -%}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set turn = namespace(last_query=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set turn.last_query = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if messages[0].role in ('system', 'developer') -%}{{- words(messages[0].content) + '\\n\\n' -}}{%- endif -%}
  {{- 'Tools, one JSON object a line:\\n' -}}
  {%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
  {{- 'Call one by writing <tool_call>\\n{"name": …, "arguments": …}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role in ('system', 'developer') -%}
    {%- if not (tools and loop.first) -%}{{- '<|im_start|>system\\n' + words(message.content) + '<|im_end|>\\n' -}}{%- endif -%}
  {%- elif message.role == 'tool' -%}
    {{- '<|im_start|>user\\nTool result: ' + words(message.content) + '<|im_end|>\\n' -}}
  {%- elif message.role == 'assistant' -%}
    {%- set said = words(message.content) -%}
    {%- set thought = message.reasoning or message.reasoning_content or '' -%}
    {%- if not thought and '</think>' in said -%}
      {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
      {%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\\n' -}}
    {#- Reasoning of earlier turns is dropped; that after the last question is kept. -#}
    {%- if loop.index0 > turn.last_query and (thought or loop.last) -%}
      {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}
      {%- set said = said.lstrip('\\n') -%}
    {%- endif -%}
    {{- said -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function or call -%}
      {{- '\\n' if said or not loop.first else '' -}}
      {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
      {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\\n' + words(message.content) + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""


def build(seed: int = 0):
    """Train a tokenizer on the task's own text (seconds)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(MARKERS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(random.Random(seed)), trainer)
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in MARKERS])
    return tokenizer


def save(tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": SPECIAL[0],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    )


def _corpus(rng: random.Random):
    for one in islice(task.training(rng), 4000):
        yield one.prompt
        yield "\n\n".join(task.thought(one, rng)[0])
        yield rng.choice(chat.ANSWERS).format(one.answer)
    for _ in range(100):
        for prompt, thinking, answer in chat.SMALL_TALK:
            yield f"{prompt}\n{thinking}\n{answer}"
        # Cues in mid-sentence too, so that each is one token wherever it stands.
        yield (
            "user\nassistant\nsystem\n"
            + "".join(chat.SYSTEM)
            + " Wait Hmm Alternatively But Let, hmm, but, let"
        )
