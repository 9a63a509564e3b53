"""SGLang, as its 0.5.23 is written.

Raw completions are vLLM's. Chat takes ``input_ids`` to go on from, but its streams tell no ids yet
(``return_token_ids`` is refused there): until they do, the self-test finds that missing, and chats
are handed through.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from server.adapters.adapter import Headers
from server.adapters.vllm import VLLM, told_version
from server.chat import Chat
from server.surface import Fields

__all__ = ["SGLang"]


class SGLangChat(Chat):
    asking = dict.fromkeys(
        ("return_token_ids", "separate_reasoning", "stream_reasoning"), Raw(b"true")
    )

    @staticmethod
    def resuming(prompt: Sequence[int]) -> Fields:
        return {"input_ids": Raw(msgspec.json.encode(prompt))}


class SGLang(VLLM):
    name = "sglang"
    retold = False  # as vLLM tells them, and whether this one does so nobody tried
    chat = SGLangChat

    async def version(self, headers: Headers) -> str | None:
        for path in ("/server_info", "/get_server_info"):  # the latter is going
            if (version := await told_version(self.engine, path, headers)) is not None:
                return version
        return None
