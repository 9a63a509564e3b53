"""The token ledger of one request: how many tokens were spent on what."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Ledger"]


@dataclass(slots=True)
class Ledger:
    """Exact counts of tokens.

    ``prompt``: the request's prompt. ``reasoning``: the trace that the client got, without markers.
    ``answer``: what follows it. ``marker``: opening and closing markers that the model wrote.
    ``closing``: the closing sequences that cuts inserted. ``probe``: decoded by probes. ``wasted``:
    decoded by the main stream after a cut, until it was aborted (only what was received: the engine
    may have decoded more before it noticed the abort). ``prefilled``: prompt tokens of probes that
    the engine's cache did not hold; prefill is work of another kind, so no sum includes them.
    """

    prompt: int = 0
    reasoning: int = 0
    answer: int = 0
    marker: int = 0
    closing: int = 0
    probe: int = 0
    wasted: int = 0
    prefilled: int = 0

    @property
    def completion(self) -> int:
        """The ``completion_tokens`` of the client's usage: all tokens that the client got, from
        however many engine requests."""
        return self.reasoning + self.marker + self.closing + self.answer

    @property
    def as_wasted(self) -> Ledger:
        """The same ledger for a trace of which the client got nothing. The prompt is not counted:
        it is in the ledger of the response that the client got."""
        wasted = self.completion + self.wasted
        return Ledger(probe=self.probe, wasted=wasted, prefilled=self.prefilled)

    def __add__(self, other: Ledger) -> Ledger:
        names = self.__dataclass_fields__
        return Ledger(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def net(self) -> int:
        """All tokens decoded or inserted for this response (net tokens)."""
        return self.completion + self.probe + self.wasted
