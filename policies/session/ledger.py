"""The token ledger of one request: what was spent on what."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Ledger"]


@dataclass(slots=True)
class Ledger:
    """Counts in tokens, exact.

    ``reasoning``: the trace as the client got it, markers not counted. ``answer``: what follows.
    ``probe``: decoded by probes. ``closing``: the closing sequence put behind a cut.
    ``wasted``: decoded by the main stream behind the cut, until it was aborted (as received; what
    the engine decoded between our closing the socket and its noticing never reaches us).
    ``marker``: the opening and closing markers that the model itself wrote, so that nothing is
    uncounted. ``prefilled`` are prompt tokens of probes that the engine's cache did not hold,
    which is work of another kind and in no sum.
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
        """What the client's usage says: all that it got, however many calls drew it."""
        return self.reasoning + self.marker + self.closing + self.answer

    @property
    def as_wasted(self) -> Ledger:
        """The same where the client got nothing of it; the prompt is another response's."""
        wasted = self.completion + self.wasted
        return Ledger(probe=self.probe, wasted=wasted, prefilled=self.prefilled)

    def __add__(self, other: Ledger) -> Ledger:
        names = self.__dataclass_fields__
        return Ledger(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def net(self) -> int:
        """All that was spent for this response."""
        return self.completion + self.probe + self.wasted
