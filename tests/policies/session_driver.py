"""Drives a session as the server does, and checks the invariants at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adjourn.policies.events import EmbeddingFailed, EmbeddingResult
from adjourn.policies.session.orders import Cut, Order, Reopen, RequestEmbedding, SendProbe
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from tests.policies.session_helpers import START, probe_result

__all__ = ["ANSWER", "END", "EOS", "VOCABULARY", "Chunk", "Driver", "chunks"]

END, EOS, ANSWER = 2, 3, 99
VOCABULARY = {
    START: "",
    EOS: "",
    30: " Wait",
    31: "Wait",
    32: " the",
    33: ".\n",
    34: "\n\n",
    35: " Hm",
    36: "m",
    37: " W",
    38: "ait",
    39: "ing",
    40: " But",
    41: " wait",
    42: ",",
    43: "",  # the first half of a character: its text comes with the next token
    44: "é",
    45: "```",
    46: "\u200d",  # a joiner: part of a character that has text
    47: '"',
}
"""The tokens of a trace and their texts."""


@dataclass(frozen=True)
class Chunk:
    """One streamed chunk of the engine."""

    text: str
    ids: tuple[int, ...]
    answering: bool = False
    finish_reason: str | None = None


def chunks(tokens: Sequence[int], sizes: Sequence[int], finish_reason: str | None) -> list[Chunk]:
    """These tokens in chunks of these sizes; those after the end marker are the answer's."""
    result, rest, turn, ended = [], list(tokens), 0, False
    while rest:
        size = sizes[turn % len(sizes)] if sizes else 1
        ids, rest, turn = rest[:size], rest[size:], turn + 1
        inside = [] if ended else ids[: ids.index(END)] if END in ids else ids
        answer = ended or (END in ids and ids[-1] != END)
        ended = ended or END in ids
        text = "".join(VOCABULARY[token] for token in inside)
        result.append(Chunk(text, tuple(ids), answer, None if rest else finish_reason))
    return result


class Driver:
    """``pending_query``, ``pending_cut`` and ``pending_reopen`` are orders of the session that the
    test has not carried out yet."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.pending_query: SendProbe | RequestEmbedding | None = None
        self.pending_cut: Cut | None = None
        self.pending_reopen: Reopen | None = None
        self.accepted_cut: Cut | None = None
        self.refused = False
        self.chunk_sizes: list[int] = []
        self.probe_tokens = 0
        self.answer_tokens = 0
        self.inserted_tokens = 0
        self.received_tokens = 0
        self._released = 0
        self._ids: list[int] = []
        self._texts: list[str] = []

    def feed(self, chunk: Chunk, at: float) -> None:
        self.received_tokens += len(chunk.ids)
        self.chunk_sizes.append(len(chunk.ids))
        self._ids.extend(chunk.ids)
        self._texts.append(chunk.text)
        order = self.session.feed(
            chunk.text, chunk.ids, at, answering=chunk.answering, finish_reason=chunk.finish_reason
        )
        self._handle_order(order)

    def deliver_result(self, probability: float | None, at: float) -> None:
        """The result of the pending query, with this probability of each token; None: it failed.
        All texts have the same vector."""
        assert self.pending_query is not None
        query, self.pending_query = self.pending_query, None
        if isinstance(query, RequestEmbedding) and probability is None:
            order = self.session.on_embedding(
                EmbeddingFailed(query.embed, query.position, "error", at)
            )
        elif isinstance(query, RequestEmbedding):
            order = self.session.on_embedding(
                EmbeddingResult(query.embed, (1.0,), query.position, 0.1, at)
            )
        elif probability is None:
            order = self.session.on_probe_failed("error", query, at)
        else:
            more = {"top_logprobs": ((-0.1,),), "end_logprob": -1.0 if query.end_ids else None}
            event = probe_result(query.position, "7", probability, query.probe, at=at, **more)
            self.probe_tokens += len(event.tokens)
            order = self.session.on_probe_result(event)
        self._handle_order(order)

    def reopen(self, at: float) -> None:
        """The engine continues the trace; the chunks it sent after the kept ids are dropped."""
        assert self.pending_reopen is not None
        reopen, self.pending_reopen = self.pending_reopen, None
        self.pending_query = None  # its result would come too late
        kept = reopen.chunks
        self.chunk_sizes = [*self.chunk_sizes[:kept], len(reopen.inserted.ids)]
        self._texts = [*self._texts[:kept], reopen.inserted.text]
        self._ids = [*self._ids[: reopen.kept], *reopen.inserted.ids]
        assert sum(self.chunk_sizes) == len(self._ids)
        self.inserted_tokens += len(reopen.inserted.ids)
        self._handle_order(self.session.on_reopened(at))

    def resume(self, answer_tokens: int) -> None:
        """The engine accepts the cut; ``answer_tokens`` tokens follow."""
        self.accepted_cut, self.pending_cut = self.pending_cut, None
        self.session.on_resumed()
        self._check_invariants()
        for _ in range(answer_tokens):
            self.session.on_answer_tokens(1)
            self.answer_tokens += 1
            self._check_invariants()

    def refuse(self) -> None:
        """The engine refuses; the session may order a cut for a separate answer now."""
        self.refused, self.pending_cut, self.pending_reopen = True, None, None
        self._handle_order(self.session.on_refused("resume-failed"))

    def end(self) -> None:
        self.session.on_stream_end()
        self._check_invariants()
        assert self.session.state is State.DONE
        if self.accepted_cut is None and self.pending_cut is None:
            assert self.session.released_chunks == len(self.chunk_sizes)

    def _handle_order(self, order: Order | None) -> None:
        if isinstance(order, SendProbe | RequestEmbedding):
            assert self.pending_query is None, "two queries at once"
            assert self.session.state is State.PROBING
            self._check_cut_point(order.kept, order.position)
            self.pending_query = order
        elif isinstance(order, Cut):
            assert self.pending_cut is None
            assert self.session.state is State.CLOSING
            if not self._is_separate_answer(order):
                self._check_cut_point(order.kept, order.position)
            self.pending_cut = order
        elif isinstance(order, Reopen):
            assert self.pending_cut is None
            assert self.session.state is State.REOPENING
            assert order.kept == sum(self.chunk_sizes[: order.chunks])
            self.pending_reopen = order
        self._check_invariants()

    def _is_separate_answer(self, cut: Cut) -> bool:
        """Whether the cut is not a stop's: it is where the trace ended, or there was no trace."""
        trigger = self.session.trigger
        if trigger is not None and trigger.action == "abandoned":
            return False
        assert cut.position == self.session.ledger.reasoning
        return True

    def _check_cut_point(self, kept: int, position: int) -> None:
        """A cut point is where the released chunks end, and never splits a character."""
        ids = self._ids
        before = sum(self.chunk_sizes[: self.session.released_chunks])
        opened = ids[:1] == [START]
        # The start marker in the first chunk is kept even if the rest of that chunk is not.
        assert kept == before or (kept == 1 and opened and before == 0)
        assert kept >= opened
        assert position == kept - opened
        # An id without text is part of a character, and so is a text that ends with a joiner.
        last = self._texts[: self.session.released_chunks][-1:]
        assert last != [""] or kept == opened
        assert not last or not last[0].endswith("\u200d")

    def _check_invariants(self) -> None:
        session, ledger = self.session, self.session.ledger
        assert self._released <= session.released_chunks <= len(self.chunk_sizes)
        self._released = session.released_chunks
        cut = self.pending_cut or self.accepted_cut
        if cut is not None:
            released = sum(self.chunk_sizes[: session.released_chunks])
            assert released + cut.unreleased_ids == cut.kept or (cut.kept == 1 and released == 0)
            client_ids = ledger.reasoning + ledger.marker + ledger.answer - self.answer_tokens
            assert client_ids == cut.kept + len(cut.inserted.ids)
            assert session.closing == cut.closing
        fed = ledger.reasoning + ledger.marker + ledger.answer + ledger.wasted
        inserted = self.inserted_tokens + (len(cut.inserted.ids) if cut else 0)
        assert fed == self.received_tokens + self.answer_tokens + inserted
        assert ledger.closing == (len(cut.closing) if cut else 0)
        assert ledger.probe == self.probe_tokens
        assert ledger.prompt == len(session.prompt)
        assert ledger.net == ledger.completion + ledger.probe + ledger.wasted
        assert ledger.completion == fed - ledger.wasted + ledger.closing
