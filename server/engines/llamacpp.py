"""llama.cpp's server, which ends a trace in place: it inserts the end marker into the stream.

Its chat streams contain token ids only next to log-probabilities, and never those of the prompt, so
the prompt is rendered and tokenized by separate requests. A character of several tokens is reported
as its last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec import Raw

from adjourn.policies.events import Probe
from adjourn.server.api.chat import CHAT_PATH as CHAT
from adjourn.server.api.chat import ChatEndpoint
from adjourn.server.api.endpoint import Fields
from adjourn.server.engines.adapter import Adapter, Headers, ProbeResponse
from adjourn.server.stream.chunk import Chunk, decode_chunk, has_value
from adjourn.server.upstream.client import BadReply

__all__ = ["LlamaCpp"]

_ABSENT = Raw()


class _TopLogprob(msgspec.Struct):
    logprob: float


class _TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_TopLogprob] = []


class _Timings(msgspec.Struct):
    prompt_n: int = 0


class _Completion(msgspec.Struct):
    content: str
    stop_type: str = "none"
    tokens_predicted: int = 0
    timings: _Timings = msgspec.field(default_factory=_Timings)
    completion_probabilities: list[_TokenLogprob] = []


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Prompt(msgspec.Struct):
    prompt: str


class _Props(msgspec.Struct):
    build_info: str


class _ControlResponse(msgspec.Struct):
    success: bool
    message: str = ""


class _TokenId(msgspec.Struct):
    id: int


class _ChunkLogprobs(msgspec.Struct):
    content: list[_TokenId] | None = None


_Reply = TypeVar("_Reply")
_decode_logprobs = msgspec.json.Decoder(_ChunkLogprobs).decode


class LlamaCppChatEndpoint(ChatEndpoint):
    """A chat that always requests log-probabilities, because they contain the token ids.

    If neither the client nor the policy reads them, ``post_sampling_probs`` requests those of the
    remaining candidates only, which is cheaper than those of the whole vocabulary.
    """

    extra_fields: ClassVar[Fields] = {
        "reasoning_control": Raw(b"true"),
        "logprobs": Raw(b"true"),
        "top_logprobs": Raw(b"1"),
        "post_sampling_probs": Raw(b"true"),
    }

    @staticmethod
    def decode(data: bytes, /) -> Chunk:
        chunk = decode_chunk(data)
        for choice in chunk.choices:
            if has_value(choice.logprobs):
                tokens = _decode_logprobs(choice.logprobs).content
                choice.token_ids = [token.id for token in tokens or ()]
        return chunk

    @property
    def main_fields(self) -> Fields:
        fields = super().main_fields
        if self._requested_logprobs is None and not self._extras.logprobs:
            return fields
        number = max(self._requested_logprobs or 1, self._extras.logprobs)
        fields = fields | {"top_logprobs": Raw(b"%d" % number)}
        del fields["post_sampling_probs"]
        return fields

    def render_event(self, event: bytes, chunk: Chunk) -> bytes | None:
        for choice in chunk.choices:
            if self._requested_logprobs is None and has_value(choice.logprobs):
                event = event.replace(b',"logprobs":' + bytes(choice.logprobs), b"", 1)
                choice.logprobs = _ABSENT
        return super().render_event(event, chunk)


class LlamaCpp(Adapter):
    """The calls to llama.cpp's server."""

    name = "llamacpp"
    chat_endpoint = LlamaCppChatEndpoint
    completions_endpoint = None
    ends_in_place = True

    async def fetch_version(self, headers: Headers) -> str | None:
        status, content = await self.engine.get("/props", headers)
        try:
            return msgspec.json.decode(content, type=_Props).build_info if status == 200 else None
        except msgspec.MsgspecError:
            return None

    async def tokenize(self, model: str, text: str, headers: Headers) -> list[int]:
        return await self._tokenize_text(model, text, headers, special=False)

    async def tokenize_chat(self, fields: Fields, headers: Headers) -> list[int]:
        content = await self.engine.post("/apply-template", msgspec.json.encode(fields), headers)
        model = msgspec.json.decode(fields.get("model", Raw(b'""')))
        text = _parse(content, _Prompt).prompt
        return await self._tokenize_text(model, text, headers, special=True)

    async def _tokenize_text(
        self, model: str, text: str, headers: Headers, special: bool
    ) -> list[int]:
        fields = {"model": model, "content": text, "add_special": special, "parse_special": True}
        content = await self.engine.post("/tokenize", msgspec.json.encode(fields), headers)
        return _parse(content, _Tokens).tokens

    async def end_trace(self, stream_id: str, model: str, headers: Headers) -> None:
        fields = {"id": stream_id, "model": model, "action": "reasoning_end"}
        path = f"{CHAT}/control"
        reply = _parse(
            await self.engine.post(path, msgspec.json.encode(fields), headers), _ControlResponse
        )
        if not reply.success:
            raise BadReply(f"{path}: {reply.message}")

    async def probe(
        self,
        model: str,
        prompt: Sequence[int],
        probe: Probe,
        headers: Headers,
        extra: Mapping[str, Any],
        ending_ids: Sequence[int] = (),
    ) -> ProbeResponse:
        if ending_ids:
            raise BadReply("llama.cpp cannot score given tokens")
        fields = {
            "model": model,
            "prompt": prompt,
            "n_predict": probe.max_tokens,
            "n_probs": probe.top_logprobs,
            "temperature": 0,
        }
        reply = _parse(
            await self.engine.post("/completion", msgspec.json.encode(fields), headers), _Completion
        )
        generated = reply.completion_probabilities
        if not generated:
            raise BadReply("the reply to a probe has no log-probabilities")
        return ProbeResponse(
            text=reply.content,
            tokens=tuple(token.token for token in generated),
            logprobs=tuple(token.logprob for token in generated),
            finished=reply.stop_type in ("eos", "word"),
            prefilled=reply.timings.prompt_n,
            decoded=reply.tokens_predicted,
            top_logprobs=tuple(
                tuple(sorted((top.logprob for top in token.top_logprobs), reverse=True))
                for token in generated
            ),
        )


def _parse(content: bytes, kind: type[_Reply]) -> _Reply:
    """Raises BadReply."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise BadReply(f"the reply of llama.cpp cannot be read: {error}") from None
