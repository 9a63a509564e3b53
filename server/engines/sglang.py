"""SGLang, as its 0.5.23 is written.

Raw completions are vLLM's. Chat takes ``input_ids`` to go on from, but its streams tell no ids yet
(``return_token_ids`` is refused there): until they do, the self-test finds that missing, and chats
are handed through.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from adjourn.server.api.chat import ChatEndpoint
from adjourn.server.api.endpoint import Fields
from adjourn.server.engines.adapter import Headers
from adjourn.server.engines.vllm import VLLM, fetch_version_from

__all__ = ["SGLang"]


class SGLangChatEndpoint(ChatEndpoint):
    extra_fields = dict.fromkeys(
        ("return_token_ids", "separate_reasoning", "stream_reasoning"), Raw(b"true")
    )

    @staticmethod
    def prompt_fields(prompt: Sequence[int]) -> Fields:
        return {"input_ids": Raw(msgspec.json.encode(prompt))}


class SGLang(VLLM):
    name = "sglang"
    supports_translation = False  # as vLLM tells them, and whether this one does so nobody tried
    chat_endpoint = SGLangChatEndpoint

    async def fetch_version(self, headers: Headers) -> str | None:
        for path in ("/server_info", "/get_server_info"):  # the latter is going
            if (version := await fetch_version_from(self.engine, path, headers)) is not None:
                return version
        return None
