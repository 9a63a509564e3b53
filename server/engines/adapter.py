"""The interface of an *adapter*: the calls to one kind of engine, and what that kind supports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from adjourn.policies.events import Probe
from adjourn.policies.evidence.hidden_states import HiddenStates
from adjourn.server.api.chat import ChatEndpoint
from adjourn.server.api.completions import COMPLETIONS_PATH as COMPLETIONS
from adjourn.server.api.completions import CompletionsEndpoint
from adjourn.server.api.endpoint import Fields
from adjourn.server.upstream.client import EngineClient

__all__ = ["Adapter", "Headers", "ProbeResponse"]

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """The engine's response to a probe.

    ``tokens`` and ``logprobs`` have one element per generated token. ``finished``: the model ended
    the text itself. ``prefilled``: prompt tokens that the engine's cache did not hold.
    ``decoded``: tokens that the engine generated. ``top_logprobs``, ``end_logprob`` and
    ``hidden_states`` are those of a ``ProbeResult``.
    """

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    finished: bool
    prefilled: int
    decoded: int
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    end_logprob: float | None = None
    hidden_states: HiddenStates | None = None


class Adapter(ABC):
    """The calls to an engine of one kind.

    They raise GatewayError if the engine cannot be reached, and BadReply if its reply is not what
    the call expects.

    ``chat_endpoint``, ``completions_endpoint``: the formats of these endpoints;
    ``completions_endpoint`` is None if raw completions cannot run under a policy.
    ``ends_in_place``: the engine itself ends a trace within the running stream. Then no second
    stream follows a cut: tokens that were generated stay, there is no separate answer and no
    rescue, and a trace that ended is not reopened.
    ``supports_translation``: the translation of other APIs to chat requests was compared with this
    engine's own endpoints of those APIs.
    """

    name: ClassVar[str]
    chat_endpoint: ClassVar[type[ChatEndpoint]] = ChatEndpoint
    completions_endpoint: ClassVar[type[CompletionsEndpoint] | None] = CompletionsEndpoint
    ends_in_place: ClassVar[bool] = False
    supports_translation: ClassVar[bool] = False

    def __init__(self, engine: EngineClient) -> None:
        self.engine = engine

    def supports(self, endpoint: str) -> bool:
        return endpoint != COMPLETIONS or self.completions_endpoint is not None

    @abstractmethod
    async def fetch_version(self, headers: Headers) -> str | None:
        """The version that the engine reports; None if it is of another kind."""

    @abstractmethod
    async def tokenize(self, model: str, text: str, headers: Headers) -> list[int]:
        """The token ids of ``text``, without the special tokens that begin a prompt."""

    @abstractmethod
    async def probe(
        self,
        model: str,
        prompt: Sequence[int],
        probe: Probe,
        headers: Headers,
        extra: Mapping[str, Any],
        ending_ids: Sequence[int] = (),
    ) -> ProbeResponse:
        """Generate greedily after the ids ``prompt``; with ``ending_ids``, score those ids instead.

        ``extra``: the fields that all engine calls of a client's request share. Raises BadReply if
        the reply has no log-probabilities, or lacks the hidden states that ``probe`` requests.
        """

    def hidden_state_flags(self, layers: Iterable[int]) -> str:
        """The command-line flags with which such an engine reports the hidden states after these
        layers; empty if it cannot."""
        return ""

    async def tokenize_chat(self, fields: Fields, headers: Headers) -> list[int]:
        """The token ids of a chat's prompt, for an engine whose streams do not contain them."""
        raise NotImplementedError

    async def end_trace(self, stream_id: str, model: str, headers: Headers) -> None:
        """Make the engine end the trace of the running stream with this id, in place."""
        raise NotImplementedError
