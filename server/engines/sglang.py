"""SGLang, according to the source of version 0.5.23.

Its raw completions have vLLM's format. Its chat endpoint continues from ``input_ids``, but refuses
``return_token_ids``, so its streams contain no token ids. Capability detection finds that missing,
and chats are passed through.
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
    """vLLM's chat endpoint, except for the name of the prompt's field and the added fields."""

    extra_fields = dict.fromkeys(
        ("return_token_ids", "separate_reasoning", "stream_reasoning"), Raw(b"true")
    )

    @staticmethod
    def prompt_fields(prompt: Sequence[int]) -> Fields:
        return {"input_ids": Raw(msgspec.json.encode(prompt))}


class SGLang(VLLM):
    """The calls to an SGLang engine."""

    name = "sglang"
    supports_translation = False  # not compared with SGLang's own endpoints
    chat_endpoint = SGLangChatEndpoint

    async def fetch_version(self, headers: Headers) -> str | None:
        for path in ("/server_info", "/get_server_info"):  # the second one is deprecated
            if (version := await fetch_version_from(self.engine, path, headers)) is not None:
                return version
        return None
