"""What a session has its driver carry out at the engine."""

from __future__ import annotations

from dataclasses import dataclass

from adjourn.policies.events import Embed, Probe

__all__ = ["Cut", "InsertedText", "Order", "Reopen", "RequestEmbedding", "SendProbe"]


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send this probe: the first ``kept`` generated ids, then ``closing`` (empty where the probe
    leaves the trace open; with what stands between it and the answer), then the inducer.
    ``ending``: ids up to the end marker's, which a probe that asks for their log-probability must
    score behind that."""

    probe: Probe
    kept: int
    position: int
    closing: tuple[int, ...]
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestEmbedding:
    """Ask the embedder for the vector of a text. ``kept`` and ``position`` as of a probe sent from
    here."""

    embed: Embed
    kept: int
    position: int


@dataclass(frozen=True, slots=True)
class InsertedText:
    """A text that is put into the trace; the client gets it as reasoning."""

    text: str = ""
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cut:
    """Open the answer: the first ``kept`` generated ids, then ``said``, then ``closing``.

    ``edge``: how many of the kept ids stand in pieces that are not released; those pieces say
    nothing but the trace's last text. ``rescue``: the finish reason of a response that would have
    ended within its trace.
    """

    kept: int
    position: int
    closing: tuple[int, ...]
    inserted: InsertedText = InsertedText()
    unreleased_ids: int = 0
    rescued_finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Reopen:
    """Go on with the trace: the first ``kept`` generated ids, which came in ``pieces``, then
    ``said``; with another bias on the end marker, where there is one."""

    kept: int
    position: int
    chunks: int
    inserted: InsertedText
    end_bias: float | None = None


Order = SendProbe | RequestEmbedding | Cut | Reopen
"""What the driver is to carry out."""
