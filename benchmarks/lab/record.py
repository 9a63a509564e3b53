"""Record whole traces: the model thinks to its own end, and at every checkpoint it is asked.

The checkpoints are found by sessions, as in the gateway, one for each kind of place that was asked
for; nothing is ever cut. Probes run beside the stream, one at a time, as there, so that what is
recorded holds how long they take while streams run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from benchmarks.lab import values
from benchmarks.lab.embedder import Embedder, packed
from benchmarks.lab.engine import TROUBLE, BadEngine, Chunk, Engine
from benchmarks.lab.plan import Plan, kind
from benchmarks.lab.prompts import Prompt
from benchmarks.lab.traces import (
    VERSION,
    Drawn,
    Event,
    Opened,
    Piece,
    Place,
    Recording,
    Represented,
    Served,
    Trace,
)
from policies.appraisal import Appraiser
from policies.dialect import Marks
from policies.events import (
    Checkpoint,
    Command,
    Embed,
    EmbedFailed,
    Probe,
    ProbeFailed,
    ProbeResult,
    Question,
)
from policies.events import Event as Seen
from policies.never import Never
from policies.orders import Ask, Represent
from policies.policy import Needs
from policies.session import Session
from policies.states import State

__all__ = ["Recorder", "record"]


class _Scout:
    """A policy that asks all of its probes at every checkpoint, so that the session tells where
    each starts from, and has the text that ended there embedded where that is needed. ``seen`` is
    the checkpoint that it asks at."""

    name: ClassVar[str] = "scout"

    def __init__(self, needs: Needs, probes: Sequence[Probe]) -> None:
        self.seen: Checkpoint | None = None
        self._needs = needs
        self._probes = probes
        self._left: list[Question] = []

    @property
    def needs(self) -> Needs:
        return self._needs

    def start(self) -> _Scout:
        return self

    def observe(self, event: Seen) -> Command | None:
        if isinstance(event, Checkpoint):
            self.seen, self._left = event, list(self._probes)
            if self._needs.embeddings and event.text:
                self._left.insert(0, Embed(event.text))
        asking = isinstance(event, Checkpoint | ProbeFailed | EmbedFailed) and self._left
        return self._left.pop(0) if asking else None


class _Patient(Appraiser):
    """Every probe is worth its price."""

    def worth(self, position: int, asked: int, looks: int = 1) -> bool:
        return True


class Recorder:
    """Records samples of one engine as planned; ``embedder`` is there where the plan needs one."""

    def __init__(
        self, engine: Engine, marks: Marks, plan: Plan, embedder: Embedder | None = None
    ) -> None:
        self.engine = engine
        self.marks = marks
        self.plan = plan
        self.embedder = embedder

    def recording(self, version: str) -> Recording:
        """The line above the traces; ``version`` is the engine's."""
        return Recording(
            version=VERSION,
            model=self.engine.model,
            marks=values.write(self.marks),
            needs=values.write(self.plan.needs),
            probes=values.write(self.plan.probes),
            body=self.plan.body,
            engine=version,
            embedder=self.embedder.name if self.embedder else "",
        )

    async def sample(self, prompt: Prompt, number: int) -> Trace:
        """One trace, all that was drawn beside it included. Raises what the engine's calls do."""
        taking = _Taking(self, prompt, number)
        try:
            await taking.run()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        events = sorted(taking.events, key=lambda event: event.at)
        return Trace(prompt.id, number, prompt.messages, prompt.gold, events)


class _Taking:
    """One trace in the making."""

    def __init__(self, recorder: Recorder, prompt: Prompt, number: int) -> None:
        self.events: list[Event] = []
        self._recorder = recorder
        self._name = f"{prompt.id}\0{number}"
        # Two samples of one prompt differ; the same sample taken again is the same.
        seed = recorder.plan.body.get("seed")
        own = {} if seed is None else {"seed": seed + number}
        self._body = {**recorder.plan.body, **own, "messages": prompt.messages}
        self._logprobs = max(needs.logprobs for needs in recorder.plan.needs)
        self._scouts = [_Scout(needs, recorder.plan.probes) for needs in recorder.plan.needs]
        self._sessions = [Session(s, recorder.marks, _Patient()) for s in self._scouts]
        self._watch = Session(Never(), recorder.marks, _Patient())
        self._asked: set[tuple[int, Question]] = set()
        self._beside = asyncio.TaskGroup()
        # One at a time, as in the gateway: what has to wait is sent later, behind the trace's end
        # if need be. Otherwise it is the recording's own load whose times would be recorded.
        self._turn = asyncio.Lock()
        self._began = time.perf_counter()

    async def run(self) -> None:
        async with self._beside, aclosing(self._recorder.engine.chat(self._asking)) as chunks:
            async for chunk in chunks:
                at = self._now()
                if chunk.prompt_token_ids is not None and not self._watch.prompt:
                    self._open(tuple(chunk.prompt_token_ids), at)
                for choice in chunk.choices[:1]:
                    delta = choice.delta
                    self._take(
                        Piece(
                            at,
                            delta.thought,
                            tuple(choice.token_ids or ()),
                            delta.content or "",
                            bool(delta.tool_calls),
                            choice.finish_reason,
                            choice.told if self._logprobs else (),
                        )
                    )
            if not self._ended:
                raise BadEngine("the stream ended before the response did")

    @property
    def _asking(self) -> dict[str, Any]:
        """The main stream's body; log-probabilities cost the engine, so only where they are
        needed."""
        if not self._logprobs:
            return self._body
        return {**self._body, "logprobs": True, "top_logprobs": self._logprobs}

    @property
    def _ended(self) -> bool:
        return any(isinstance(event, Piece) and event.ending for event in self.events)

    def _now(self) -> float:
        return round(time.perf_counter() - self._began, 6)

    # -- the main stream -----------------------------------------------------------------------

    def _open(self, ids: tuple[int, ...], at: float) -> None:
        self.events.append(Opened(at, ids))
        for session in (self._watch, *self._sessions):
            session.opened(ids)

    def _take(self, piece: Piece) -> None:
        self.events.append(piece)
        self._feed(self._watch, piece)
        if not self._asked and self._watch.state is State.THINKING and self._watch.generated:
            self._start(piece.at)
        for scout, session in zip(self._scouts, self._sessions, strict=True):
            command, seen = self._feed(session, piece), None
            while isinstance(command, Ask | Represent) and scout.seen is not None:
                if seen is not scout.seen:
                    seen = scout.seen
                    place = Place(piece.at, seen.kind, command.kept, command.position, seen.cue)
                    self.events.append(place)
                if isinstance(command, Ask):
                    self._ask(command)
                    command = session.probe_failed("recorded", command, piece.at)
                else:
                    self._represent(command)
                    position = command.position
                    failed = EmbedFailed(command.embed, position, "recorded", piece.at)
                    command = session.embedded(failed)

    def _start(self, at: float) -> None:
        """The trial answer before the first token, for those who would not think at all."""
        kept, marks = self._watch.ledger.marker, self._recorder.marks
        self.events.append(Place(at, "start", kept, 0))
        for probe in self._recorder.plan.probes:
            if kind(probe) == kind(Probe()):
                self._ask(Ask(probe, kept, 0, marks.closing_on_newline + marks.header))

    @staticmethod
    def _feed(session: Session, piece: Piece) -> Any:
        return session.feed(
            piece.text, piece.ids, piece.at, answering=piece.answering, ending=piece.ending
        )

    # -- beside it -------------------------------------------------------------------------------

    def _ask(self, ask: Ask) -> None:
        if (ask.kept, ask.probe) in self._asked:
            return
        self._asked.add((ask.kept, ask.probe))
        kept = [*self._watch.prompt, *self._watch.generated[: ask.kept]]
        self._beside.create_task(self._draw(ask, [*kept, *ask.closing]))
        if kind(ask.probe) == kind(Probe()) and self._chosen(ask.position):
            # The header is the model's to write.
            closing = ask.closing[: len(ask.closing) - len(self._recorder.marks.header)]
            self._beside.create_task(self._cut(ask, [*kept, *closing]))

    def _represent(self, represent: Represent) -> None:
        if (represent.kept, represent.embed) not in self._asked:
            self._asked.add((represent.kept, represent.embed))
            self._beside.create_task(self._embed(represent))

    async def _embed(self, represent: Represent) -> None:
        embedder = self._recorder.embedder
        assert embedder is not None
        vector = b""
        async with self._turn:
            sent = self._now()
            with contextlib.suppress(*TROUBLE):
                vector = packed(await embedder.embed(represent.embed.text))
        kept, position = represent.kept, represent.position
        self.events.append(Represented(self._now(), sent, kept, position, vector))

    def _chosen(self, position: int) -> bool:
        """The same places whenever this sample is taken."""
        digest = hashlib.blake2b(f"{self._name}\0{position}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._recorder.plan.serve * 2**64

    async def _draw(self, ask: Ask, prefix: list[int]) -> None:
        async with self._turn:
            sent = self._now()
            result, *spent = await self._drawn(ask, prefix, sent)
        written = values.write(result)
        self.events.append(Drawn(result.at, sent, ask.kept, ask.position, written, *spent))

    async def _drawn(
        self, ask: Ask, prefix: list[int], sent: float
    ) -> tuple[ProbeResult | ProbeFailed, int, int]:
        """The probe's result, and the tokens that it prefilled and decoded."""
        try:
            name = ask.probe.inducer
            inducer = self._recorder.marks.inducers[name] if name else ()
            drawn = await self._recorder.engine.draw([*prefix, *inducer], ask.probe, ask.ending)
        except (*TROUBLE, KeyError) as error:
            reason = "timeout" if isinstance(error, TimeoutError) else "error"
            return ProbeFailed(ask.probe, ask.position, reason, self._now()), 0, 0
        now = self._now()
        result = ProbeResult(
            probe=ask.probe,
            position=ask.position,
            text=drawn.text,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            finished=drawn.finished,
            seconds=round(now - sent, 6),
            at=now,
            top=drawn.top,
            ending=drawn.ending,
            hidden_states=drawn.hidden_states,
        )
        return result, drawn.prefilled, drawn.decoded

    async def _cut(self, ask: Ask, prefix: list[int]) -> None:
        """Open the answer from here, as the gateway would. An engine that fails or does not honour
        the ids has served nothing."""
        body = {**self._body, "kv_transfer_params": {"prompt_token_ids": prefix}}
        if (limit := body.get("max_tokens")) is not None:
            body["max_tokens"] = max(limit - len(prefix) + len(self._watch.prompt), 1)
        chunks: list[Chunk] = []
        began = 0.0
        async with self._turn:
            asked = self._now()
            with contextlib.suppress(*TROUBLE):
                async for chunk in self._recorder.engine.chat(body):
                    began = began or self._now() - asked
                    chunks.append(chunk)
        if chunks and chunks[0].prompt_token_ids == prefix:
            self.events.append(self._served(ask, asked, began, chunks))

    def _served(self, ask: Ask, asked: float, began: float, chunks: list[Chunk]) -> Served:
        choices = [choice for chunk in chunks for choice in chunk.choices[:1]]
        return Served(
            at=self._now(),
            asked=asked,
            began=round(began, 6),
            kept=ask.kept,
            position=ask.position,
            answer="".join(choice.delta.content or "" for choice in choices),
            tokens=sum(len(choice.token_ids or ()) for choice in choices),
            ending=choices[-1].finish_reason if choices else None,
        )


async def record(
    recorder: Recorder,
    work: Sequence[tuple[Prompt, int]],
    concurrency: int,
    keep: Callable[[Trace], None],
) -> list[str]:
    """Take all these samples, so many at a time; each goes to ``keep`` as soon as it is whole.
    Answers what went wrong, a line a trace."""
    turns, failures = asyncio.Semaphore(concurrency), list[str]()

    async def one(prompt: Prompt, number: int) -> None:
        async with turns:
            try:
                keep(await recorder.sample(prompt, number))
            except TROUBLE as error:
                failures.append(f"{prompt.id}, sample {number}: {error or type(error).__name__}")

    await asyncio.gather(*(one(prompt, number) for prompt, number in work))
    return failures
