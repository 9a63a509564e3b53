"""A stand-in for an adapter's tokenizer: its vocabulary is a few words and single characters."""

from __future__ import annotations

from collections.abc import Sequence


class Vocabulary:
    """Implements ``tokenize`` of an adapter. Text that is no word becomes its characters.

    ``has_unknown_token``: text that is no word becomes one unknown token instead.
    """

    def __init__(self, words: Sequence[str], *, has_unknown_token: bool = False) -> None:
        self.words = sorted(words, key=len, reverse=True)
        self.has_unknown_token = has_unknown_token

    async def tokenize(self, model: str, text: str, headers: object) -> list[int]:
        ids, rest = [], text
        while rest:
            word = next((word for word in self.words if rest.startswith(word)), rest[0])
            if word in self.words:
                ids.append(self.words.index(word))
            elif self.has_unknown_token:
                return [*ids, 1]
            else:
                ids.append(ord(word) + 1000)
            rest = rest[len(word) :]
        return ids


THINK = ("<think>", "</think>", "<tool_call>")
HARMONY = ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "assistant", "analysis", "final")
