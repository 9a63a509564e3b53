"""Orders: what a session asks its driver to do at the engine or the embedder."""

from __future__ import annotations

from dataclasses import dataclass

from adjourn.policies.events import Embed, Probe

__all__ = ["Cut", "InsertedText", "Order", "Reopen", "RequestEmbedding", "SendProbe"]


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send this probe: the prompt, the first ``kept`` generated ids, ``closing``, then the inducer.

    ``position``: tokens of the trace in ``kept``. ``closing`` includes the dialect's header; it is
    empty if the probe leaves the trace open. ``end_ids``: the closing sequence up to its end
    marker, to be scored after the kept ids if the probe asks for that log-probability.
    """

    probe: Probe
    kept: int
    position: int
    closing: tuple[int, ...]
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestEmbedding:
    """Ask the embedder for the vector of a text. ``kept`` and ``position`` as in ``SendProbe``."""

    embed: Embed
    kept: int
    position: int


@dataclass(frozen=True, slots=True)
class InsertedText:
    """A text that is inserted into the trace; the client gets it as reasoning."""

    text: str = ""
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cut:
    """Open the answer after the first ``kept`` generated ids, then ``inserted``, then ``closing``.

    ``unreleased_ids``: how many of the kept ids are in chunks that are not released; of those
    chunks' text, only reasoning goes to the client. ``rescued_finish_reason``: the finish reason of
    a response that would have ended within its trace.
    """

    kept: int
    position: int
    closing: tuple[int, ...]
    inserted: InsertedText = InsertedText()
    unreleased_ids: int = 0
    rescued_finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Reopen:
    """Continue the trace after the first ``kept`` generated ids, which came in ``chunks`` chunks,
    then ``inserted``.

    ``end_bias``: added to the end marker's logit from now on; None leaves it as it is.
    """

    kept: int
    position: int
    chunks: int
    inserted: InsertedText
    end_bias: float | None = None


Order = SendProbe | RequestEmbedding | Cut | Reopen
"""Carried out by the driver, which reports the result through the session's ``on_*`` methods."""
