"""Drives a session as the server would, and checks at every step what must always hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.events import Embedded, EmbedFailed
from policies.orders import Ask, Cut, Order, Reopen, Represent
from policies.session import Session
from policies.states import State
from tests.policies.lab import START, result

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
    ending: str | None = None


def chunks(tokens: Sequence[int], sizes: Sequence[int], ending: str | None) -> list[Chunk]:
    """These tokens, so many at once; what stands behind the end marker is the answer's."""
    made, rest, turn, ended = [], list(tokens), 0, False
    while rest:
        size = sizes[turn % len(sizes)] if sizes else 1
        ids, rest, turn = rest[:size], rest[size:], turn + 1
        inside = [] if ended else ids[: ids.index(END)] if END in ids else ids
        answer = ended or (END in ids and ids[-1] != END)
        ended = ended or END in ids
        text = "".join(VOCABULARY[token] for token in inside)
        made.append(Chunk(text, tuple(ids), answer, None if rest else ending))
    return made


class Driver:
    """``asked``, ``cut`` and ``reopening`` are what the session wants carried out and nobody has
    yet."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.asked: Ask | Represent | None = None
        self.cut: Cut | None = None
        self.reopening: Reopen | None = None
        self.standing: Cut | None = None
        self.refused = False
        self.sizes: list[int] = []
        self.drawn = 0
        self.after_cut = 0
        self.said = 0
        self.brought = 0
        self._released = 0
        self._ids: list[int] = []
        self._texts: list[str] = []

    # -- what a driver does ----------------------------------------------------------------

    def feed(self, chunk: Chunk, at: float) -> None:
        self.brought += len(chunk.ids)
        self.sizes.append(len(chunk.ids))
        self._ids.extend(chunk.ids)
        self._texts.append(chunk.text)
        command = self.session.feed(
            chunk.text, chunk.ids, at, answering=chunk.answering, ending=chunk.ending
        )
        self._saw(command)

    def answer(self, certainty: float | None, at: float) -> None:
        """The probe's result: how sure it is, or None where it failed; every text's vector is the
        same."""
        assert self.asked is not None
        ask, self.asked = self.asked, None
        if isinstance(ask, Represent) and certainty is None:
            command = self.session.embedded(EmbedFailed(ask.embed, ask.position, "error", at))
        elif isinstance(ask, Represent):
            command = self.session.embedded(Embedded(ask.embed, (1.0,), ask.position, 0.1, at))
        elif certainty is None:
            command = self.session.probe_failed("error", ask, at)
        else:
            told = {"top": ((-0.1,),), "ending": -1.0 if ask.ending else None}
            event = result(ask.position, "7", certainty, ask.probe, at=at, **told)
            self.drawn += len(event.tokens)
            command = self.session.probed(event)
        self._saw(command)

    def reopen(self, at: float) -> None:
        """The engine goes on with the trace; what it had sent behind the place is nobody's."""
        assert self.reopening is not None
        reopen, self.reopening = self.reopening, None
        self.asked = None  # it came too late
        pieces = reopen.pieces
        self.sizes = [*self.sizes[:pieces], len(reopen.said.ids)]
        self._texts = [*self._texts[:pieces], reopen.said.text]
        self._ids = [*self._ids[: reopen.kept], *reopen.said.ids]
        assert sum(self.sizes) == len(self._ids)
        self.said += len(reopen.said.ids)
        self._saw(self.session.reopened(at))

    def resume(self, answers: int) -> None:
        """The engine took the prefix; ``answers`` tokens follow."""
        self.standing, self.cut = self.cut, None
        self.session.resumed()
        self._check()
        for _ in range(answers):
            self.session.answered(1)
            self.after_cut += 1
            self._check()

    def refuse(self) -> None:
        """The engine would not; an answer that is drawn apart may be asked for now."""
        self.refused, self.cut, self.reopening = True, None, None
        self._saw(self.session.refused("resume-failed"))

    def end(self) -> None:
        self.session.ended()
        self._check()
        assert self.session.state is State.DONE
        if self.standing is None and self.cut is None:
            assert self.session.released == len(self.sizes)

    # -- what must hold --------------------------------------------------------------------

    def _saw(self, command: Order | None) -> None:
        if isinstance(command, Ask | Represent):
            assert self.asked is None, "two questions at once"
            assert self.session.state is State.PROBING
            self._check_place(command.kept, command.position)
            self.asked = command
        elif isinstance(command, Cut):
            assert self.cut is None
            assert self.session.state is State.CLOSING
            if not self._drawn_apart(command):
                self._check_place(command.kept, command.position)
            self.cut = command
        elif isinstance(command, Reopen):
            assert self.cut is None
            assert self.session.state is State.REOPENING
            assert command.kept == sum(self.sizes[: command.pieces])
            self.reopening = command
        self._check()

    def _drawn_apart(self, cut: Cut) -> bool:
        """Whether it is no stop's cut: then it is where the trace ended, or where none began."""
        trigger = self.session.trigger
        if trigger is not None and trigger.action == "abandoned":
            return False
        assert cut.position == self.session.ledger.reasoning
        return True

    def _check_place(self, kept: int, position: int) -> None:
        """A place is where the released pieces end, in ids of whole characters."""
        ids = self._ids
        before = sum(self.sizes[: self.session.released])
        opened = ids[:1] == [START]
        # The first piece's marker is kept even where the rest of that piece is not.
        assert kept == before or (kept == 1 and opened and before == 0)
        assert kept >= opened
        assert position == kept - opened
        # Ids that brought no text are part of a character, and so is what a joiner follows.
        last = self._texts[: self.session.released][-1:]
        assert last != [""] or kept == opened
        assert not last or not last[0].endswith("\u200d")

    def _check(self) -> None:
        session, ledger = self.session, self.session.ledger
        assert self._released <= session.released <= len(self.sizes)
        self._released = session.released
        cut = self.cut or self.standing
        if cut is not None:
            released = sum(self.sizes[: session.released])
            assert released + cut.edge == cut.kept or (cut.kept == 1 and released == 0)
            told = ledger.reasoning + ledger.marker + ledger.answer - self.after_cut
            assert told == cut.kept + len(cut.said.ids)
            assert session.closing == cut.closing
        fed = ledger.reasoning + ledger.marker + ledger.answer + ledger.wasted
        said = self.said + (len(cut.said.ids) if cut else 0)
        assert fed == self.brought + self.after_cut + said
        assert ledger.closing == (len(cut.closing) if cut else 0)
        assert ledger.probe == self.drawn
        assert ledger.prompt == len(session.prompt)
        assert ledger.net == ledger.completion + ledger.probe + ledger.wasted
        assert ledger.completion == fed - ledger.wasted + ledger.closing
