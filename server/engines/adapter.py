"""What differs between engines: an *adapter* for each kind, which declares what it can do."""

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
    """What a probe brought. ``prefilled``: prompt tokens that the cache did not hold. ``decoded``:
    tokens that it took. ``top``, ``ending`` and ``hidden_states`` as in a ProbeResult."""

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
    """The calls to an engine of one kind. They raise GatewayError where it is not there and
    BadReply where it answers with something else.

    ``chat``, ``completions``: these endpoints as it speaks them; None where it speaks none that
    could be judged.
    ``in_place``: the engine ends a trace within the running stream. Then no second stream follows
    a cut: nothing that was decoded is taken back, no answer is drawn apart or beyond the
    response's own, and a trace that ended is not opened again.
    ``retold``: APIs that are asked for by a chat are told as this engine's own endpoints tell them.
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
        """What the engine calls itself; None where it is of another kind."""

    @abstractmethod
    async def tokenize(self, model: str, text: str, headers: Headers) -> list[int]:
        """Ids of a fixed text, without the special tokens that a prompt begins with."""

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
        """Draw greedily from these ids. ``extra``: what must be the same on all calls of a
        request. ``ending``: ids that are scored behind them, for a probe that asks for it.

        Raises BadReply where log-probabilities are missing, or hidden states that were asked for.
        """

    def hidden_state_flags(self, layers: Iterable[int]) -> str:
        """What to start such an engine with so that it tells the hidden states behind these layers;
        empty where nothing would make it."""
        return ""

    async def tokenize_chat(self, fields: Fields, headers: Headers) -> list[int]:
        """The ids of a chat's prompt, where its stream does not tell them."""
        raise NotImplementedError

    async def end_trace(self, stream_id: str, model: str, headers: Headers) -> None:
        """Have the engine end the trace of a running stream, named by its id, ``in_place``."""
        raise NotImplementedError
