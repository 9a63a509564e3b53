"""llama.cpp's server, which ends a trace in place: it forces the end marker into the stream.

Its chat streams tell ids only with log-probabilities, and those of a prompt not at all: the prompt
is rendered and tokenized by calls of their own. A character of several tokens is told as its last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec import Raw

from policies.events import Probe
from server.adapters.adapter import Adapter, Drawn, Headers
from server.chat import ENDPOINT as CHAT
from server.chat import Chat
from server.engine import BadReply
from server.surface import Fields
from server.wire import Chunk, decode_chunk, given

__all__ = ["LlamaCpp"]

_ABSENT = Raw()


class _Likely(msgspec.Struct):
    logprob: float


class _Token(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_Likely] = []


class _Timings(msgspec.Struct):
    prompt_n: int = 0


class _Completion(msgspec.Struct):
    content: str
    stop_type: str = "none"
    tokens_predicted: int = 0
    timings: _Timings = msgspec.field(default_factory=_Timings)
    completion_probabilities: list[_Token] = []


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Prompt(msgspec.Struct):
    prompt: str


class _Props(msgspec.Struct):
    build_info: str


class _Ended(msgspec.Struct):
    success: bool
    message: str = ""


class _Id(msgspec.Struct):
    id: int


class _Told(msgspec.Struct):
    content: list[_Id] | None = None


_Reply = TypeVar("_Reply")
_decode_told = msgspec.json.Decoder(_Told).decode


class LlamaChat(Chat):
    """Log-probabilities are always asked for, as the ids stand there. Nobody pays for the whole
    vocabulary's where nobody reads them: those of the candidates left will do."""

    asking: ClassVar[Fields] = {
        "reasoning_control": Raw(b"true"),
        "logprobs": Raw(b"true"),
        "top_logprobs": Raw(b"1"),
        "post_sampling_probs": Raw(b"true"),
    }

    @staticmethod
    def decode(data: bytes, /) -> Chunk:
        chunk = decode_chunk(data)
        for choice in chunk.choices:
            if given(choice.logprobs):
                told = _decode_told(choice.logprobs).content
                choice.token_ids = [one.id for one in told or ()]
        return chunk

    @property
    def fields(self) -> Fields:
        fields = super().fields
        if self._asked is None and not self._wanted.logprobs:
            return fields
        number = max(self._asked or 1, self._wanted.logprobs)
        fields = fields | {"top_logprobs": Raw(b"%d" % number)}
        del fields["post_sampling_probs"]
        return fields

    def shown(self, event: bytes, chunk: Chunk) -> bytes | None:
        for choice in chunk.choices:
            if self._asked is None and given(choice.logprobs):
                event = event.replace(b',"logprobs":' + bytes(choice.logprobs), b"", 1)
                choice.logprobs = _ABSENT
        return super().shown(event, chunk)


class LlamaCpp(Adapter):
    name = "llamacpp"
    chat = LlamaChat
    completions = None
    in_place = True

    async def version(self, headers: Headers) -> str | None:
        status, content = await self.engine.get("/props", headers)
        try:
            return msgspec.json.decode(content, type=_Props).build_info if status == 200 else None
        except msgspec.MsgspecError:
            return None

    async def tokenize(self, model: str, text: str, headers: Headers) -> list[int]:
        return await self._tokens(model, text, headers, special=False)

    async def prompt(self, fields: Fields, headers: Headers) -> list[int]:
        content = await self.engine.post("/apply-template", msgspec.json.encode(fields), headers)
        model = msgspec.json.decode(fields.get("model", Raw(b'""')))
        text = _read(content, _Prompt).prompt
        return await self._tokens(model, text, headers, special=True)

    async def _tokens(self, model: str, text: str, headers: Headers, special: bool) -> list[int]:
        fields = {"model": model, "content": text, "add_special": special, "parse_special": True}
        content = await self.engine.post("/tokenize", msgspec.json.encode(fields), headers)
        return _read(content, _Tokens).tokens

    async def end_trace(self, stream: str, model: str, headers: Headers) -> None:
        fields = {"id": stream, "model": model, "action": "reasoning_end"}
        path = f"{CHAT}/control"
        ended = _read(await self.engine.post(path, msgspec.json.encode(fields), headers), _Ended)
        if not ended.success:
            raise BadReply(f"{path}: {ended.message}")

    async def probe(
        self,
        model: str,
        prompt: Sequence[int],
        probe: Probe,
        headers: Headers,
        extra: Mapping[str, Any],
        ending: Sequence[int] = (),
    ) -> Drawn:
        if ending:
            raise BadReply("llama.cpp scores no chosen tokens")
        fields = {
            "model": model,
            "prompt": prompt,
            "n_predict": probe.max_tokens,
            "n_probs": probe.top,
            "temperature": 0,
        }
        reply = _read(
            await self.engine.post("/completion", msgspec.json.encode(fields), headers), _Completion
        )
        drawn = reply.completion_probabilities
        if not drawn:
            raise BadReply("a probe's reply has no log-probabilities")
        return Drawn(
            text=reply.content,
            tokens=tuple(one.token for one in drawn),
            logprobs=tuple(one.logprob for one in drawn),
            finished=reply.stop_type in ("eos", "word"),
            prefilled=reply.timings.prompt_n,
            decoded=reply.tokens_predicted,
            top=tuple(
                tuple(sorted((likely.logprob for likely in one.top_logprobs), reverse=True))
                for one in drawn
            ),
        )


def _read(content: bytes, kind: type[_Reply]) -> _Reply:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise BadReply(f"llama.cpp answered with something else: {error}") from None
