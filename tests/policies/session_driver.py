"""Drives a session as the server would, and checks at every step what must always hold."""

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
    43: "",  # half of a character: its text comes with the next token
    44: "é",
    45: "```",
    46: "\u200d",  # a joiner: half of a character that is text
    47: '"',
}
"""Tokens of a trace, with what each says."""


@dataclass(frozen=True)
class Chunk:
    """What the engine sends at once."""

    text: str
    ids: tuple[int, ...]
    answering: bool = False
    finish_reason: str | None = None


def chunks(tokens: Sequence[int], sizes: Sequence[int], finish_reason: str | None) -> list[Chunk]:
    """These tokens, so many at once; what stands behind the end marker is the answer's."""
    made, rest, turn, ended = [], list(tokens), 0, False
    while rest:
        size = sizes[turn % len(sizes)] if sizes else 1
        ids, rest, turn = rest[:size], rest[size:], turn + 1
        inside = [] if ended else ids[: ids.index(END)] if END in ids else ids
        answer = ended or (END in ids and ids[-1] != END)
        ended = ended or END in ids
        text = "".join(VOCABULARY[token] for token in inside)
        made.append(Chunk(text, tuple(ids), answer, None if rest else finish_reason))
    return made


class Driver:
    """``asked``, ``cut`` and ``reopening`` are what the session wants carried out and nobody has
    yet."""

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

    # -- what a driver does ----------------------------------------------------------------

    def feed(self, chunk: Chunk, at: float) -> None:
        self.received_tokens += len(chunk.ids)
        self.chunk_sizes.append(len(chunk.ids))
        self._ids.extend(chunk.ids)
        self._texts.append(chunk.text)
        command = self.session.feed(
            chunk.text, chunk.ids, at, answering=chunk.answering, finish_reason=chunk.finish_reason
        )
        self._handle_order(command)

    def deliver_result(self, probability: float | None, at: float) -> None:
        """The probe's result: how sure it is, or None where it failed; every text's vector is the
        same."""
        assert self.pending_query is not None
        ask, self.pending_query = self.pending_query, None
        if isinstance(ask, RequestEmbedding) and probability is None:
            command = self.session.on_embedding(
                EmbeddingFailed(ask.embed, ask.position, "error", at)
            )
        elif isinstance(ask, RequestEmbedding):
            command = self.session.on_embedding(
                EmbeddingResult(ask.embed, (1.0,), ask.position, 0.1, at)
            )
        elif probability is None:
            command = self.session.on_probe_failed("error", ask, at)
        else:
            told = {"top_logprobs": ((-0.1,),), "end_logprob": -1.0 if ask.end_ids else None}
            event = probe_result(ask.position, "7", probability, ask.probe, at=at, **told)
            self.probe_tokens += len(event.tokens)
            command = self.session.on_probe_result(event)
        self._handle_order(command)

    def reopen(self, at: float) -> None:
        """The engine goes on with the trace; what it had sent behind the place is nobody's."""
        assert self.pending_reopen is not None
        reopen, self.pending_reopen = self.pending_reopen, None
        self.pending_query = None  # it came too late
        pieces = reopen.chunks
        self.chunk_sizes = [*self.chunk_sizes[:pieces], len(reopen.inserted.ids)]
        self._texts = [*self._texts[:pieces], reopen.inserted.text]
        self._ids = [*self._ids[: reopen.kept], *reopen.inserted.ids]
        assert sum(self.chunk_sizes) == len(self._ids)
        self.inserted_tokens += len(reopen.inserted.ids)
        self._handle_order(self.session.on_reopened(at))

    def resume(self, answer_tokens: int) -> None:
        """The engine took the prefix; ``answers`` tokens follow."""
        self.accepted_cut, self.pending_cut = self.pending_cut, None
        self.session.on_resumed()
        self._check_invariants()
        for _ in range(answer_tokens):
            self.session.on_answer_tokens(1)
            self.answer_tokens += 1
            self._check_invariants()

    def refuse(self) -> None:
        """The engine would not; an answer that is drawn apart may be asked for now."""
        self.refused, self.pending_cut, self.pending_reopen = True, None, None
        self._handle_order(self.session.on_refused("resume-failed"))

    def end(self) -> None:
        self.session.on_stream_end()
        self._check_invariants()
        assert self.session.state is State.DONE
        if self.accepted_cut is None and self.pending_cut is None:
            assert self.session.released_chunks == len(self.chunk_sizes)

    # -- what must hold --------------------------------------------------------------------

    def _handle_order(self, command: Order | None) -> None:
        if isinstance(command, SendProbe | RequestEmbedding):
            assert self.pending_query is None, "two questions at once"
            assert self.session.state is State.PROBING
            self._check_cut_point(command.kept, command.position)
            self.pending_query = command
        elif isinstance(command, Cut):
            assert self.pending_cut is None
            assert self.session.state is State.CLOSING
            if not self._is_separate_answer(command):
                self._check_cut_point(command.kept, command.position)
            self.pending_cut = command
        elif isinstance(command, Reopen):
            assert self.pending_cut is None
            assert self.session.state is State.REOPENING
            assert command.kept == sum(self.chunk_sizes[: command.chunks])
            self.pending_reopen = command
        self._check_invariants()

    def _is_separate_answer(self, cut: Cut) -> bool:
        """Whether it is no stop's cut: then it is where the trace ended, or where none began."""
        trigger = self.session.trigger
        if trigger is not None and trigger.action == "abandoned":
            return False
        assert cut.position == self.session.ledger.reasoning
        return True

    def _check_cut_point(self, kept: int, position: int) -> None:
        """A place is where the released pieces end, in ids of whole characters."""
        ids = self._ids
        before = sum(self.chunk_sizes[: self.session.released_chunks])
        opened = ids[:1] == [START]
        # The first piece's marker is kept even where the rest of that piece is not.
        assert kept == before or (kept == 1 and opened and before == 0)
        assert kept >= opened
        assert position == kept - opened
        # Ids that brought no text are part of a character, and so is what a joiner follows.
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
            told = ledger.reasoning + ledger.marker + ledger.answer - self.answer_tokens
            assert told == cut.kept + len(cut.inserted.ids)
            assert session.closing == cut.closing
        fed = ledger.reasoning + ledger.marker + ledger.answer + ledger.wasted
        said = self.inserted_tokens + (len(cut.inserted.ids) if cut else 0)
        assert fed == self.received_tokens + self.answer_tokens + said
        assert ledger.closing == (len(cut.closing) if cut else 0)
        assert ledger.probe == self.probe_tokens
        assert ledger.prompt == len(session.prompt)
        assert ledger.net == ledger.completion + ledger.probe + ledger.wasted
        assert ledger.completion == fed - ledger.wasted + ledger.closing
