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

from adjourn.lab import serialization
from adjourn.lab.embedding_client import EmbeddingClient, pack_vector
from adjourn.lab.engine_client import ENGINE_ERRORS, Chunk, EngineClient, EngineError
from adjourn.lab.plan import RecordingPlan, probe_kind
from adjourn.lab.prompts import Prompt
from adjourn.lab.trace_log import (
    VERSION,
    CheckpointReached,
    CutExecuted,
    EmbeddingCompleted,
    LogEvent,
    ProbeCompleted,
    PromptReceived,
    RecordingHeader,
    StreamedChunk,
    Trace,
)
from adjourn.policies.events import (
    Checkpoint,
    Command,
    Embed,
    EmbeddingFailed,
    Probe,
    ProbeFailed,
    ProbeResult,
    Query,
)
from adjourn.policies.events import Event as Seen
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import RequestEmbedding, SendProbe
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.text.dialect import TokenizedDialect

__all__ = ["Recorder", "record_samples"]


class _ProbeEverything:
    """A policy that asks all of its probes at every checkpoint, so that the session tells where
    each starts from, and has the text that ended there embedded where that is needed. ``seen`` is
    the checkpoint that it asks at."""

    name: ClassVar[str] = "scout"

    def __init__(self, needs: Needs, probes: Sequence[Probe]) -> None:
        self.checkpoint: Checkpoint | None = None
        self._needs = needs
        self._probes = probes
        self._remaining: list[Query] = []

    @property
    def needs(self) -> Needs:
        return self._needs

    def start(self) -> _ProbeEverything:
        return self

    def observe(self, event: Seen) -> Command | None:
        if isinstance(event, Checkpoint):
            self.checkpoint, self._remaining = event, list(self._probes)
            if self._needs.embeddings and event.text:
                self._remaining.insert(0, Embed(event.text))
        asking = isinstance(event, Checkpoint | ProbeFailed | EmbeddingFailed) and self._remaining
        return self._remaining.pop(0) if asking else None


class _UnlimitedProbeCost(ProbeCostModel):
    """Every probe is worth its price."""

    def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
        return True


class Recorder:
    """Records samples of one engine as planned; ``embedder`` is there where the plan needs one."""

    def __init__(
        self,
        engine: EngineClient,
        dialect: TokenizedDialect,
        plan: RecordingPlan,
        embedder: EmbeddingClient | None = None,
    ) -> None:
        self.engine = engine
        self.dialect = dialect
        self.plan = plan
        self.embedder = embedder

    def make_header(self, engine_version: str) -> RecordingHeader:
        """The line above the traces; ``version`` is the engine's."""
        return RecordingHeader(
            version=VERSION,
            model=self.engine.model,
            dialect=serialization.to_json_value(self.dialect),
            needs=serialization.to_json_value(self.plan.needs),
            probes=serialization.to_json_value(self.plan.probes),
            body=self.plan.body,
            engine_version=engine_version,
            embedder_name=self.embedder.name if self.embedder else "",
        )

    async def record_sample(self, prompt: Prompt, sample_index: int) -> Trace:
        """One trace, all that was drawn beside it included. Raises what the engine's calls do."""
        taking = _SampleRecording(self, prompt, sample_index)
        try:
            await taking.run()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        events = sorted(taking.events, key=lambda event: event.at)
        return Trace(prompt.id, sample_index, prompt.messages, prompt.gold, events)


class _SampleRecording:
    """One trace in the making."""

    def __init__(self, recorder: Recorder, prompt: Prompt, number: int) -> None:
        self.events: list[LogEvent] = []
        self._recorder = recorder
        self._sample_key = f"{prompt.id}\0{number}"
        # Two samples of one prompt differ; the same sample taken again is the same.
        seed = recorder.plan.body.get("seed")
        own = {} if seed is None else {"seed": seed + number}
        self._request_body = {**recorder.plan.body, **own, "messages": prompt.messages}
        self._logprob_count = max(needs.logprobs for needs in recorder.plan.needs)
        self._probers = [
            _ProbeEverything(needs, recorder.plan.probes) for needs in recorder.plan.needs
        ]
        self._sessions = [
            Session(s, recorder.dialect, _UnlimitedProbeCost()) for s in self._probers
        ]
        self._main_session = Session(Never(), recorder.dialect, _UnlimitedProbeCost())
        self._scheduled: set[tuple[int, Query]] = set()
        self._auxiliary_tasks = asyncio.TaskGroup()
        # One at a time, as in the gateway: what has to wait is sent later, behind the trace's end
        # if need be. Otherwise it is the recording's own load whose times would be recorded.
        self._auxiliary_lock = asyncio.Lock()
        self._started_at = time.perf_counter()

    async def run(self) -> None:
        async with (
            self._auxiliary_tasks,
            aclosing(self._recorder.engine.chat(self._stream_body)) as chunks,
        ):
            async for chunk in chunks:
                at = self._now()
                if chunk.prompt_token_ids is not None and not self._main_session.prompt:
                    self._start_sessions(tuple(chunk.prompt_token_ids), at)
                for choice in chunk.choices[:1]:
                    delta = choice.delta
                    self._process_chunk(
                        StreamedChunk(
                            at,
                            delta.reasoning_text,
                            tuple(choice.token_ids or ()),
                            delta.content or "",
                            bool(delta.tool_calls),
                            choice.finish_reason,
                            choice.sorted_logprobs if self._logprob_count else (),
                        )
                    )
            if not self._has_ended:
                raise EngineError("the stream ended before the response did")

    @property
    def _stream_body(self) -> dict[str, Any]:
        """The main stream's body; log-probabilities cost the engine, so only where they are
        needed."""
        if not self._logprob_count:
            return self._request_body
        return {**self._request_body, "logprobs": True, "top_logprobs": self._logprob_count}

    @property
    def _has_ended(self) -> bool:
        return any(
            isinstance(event, StreamedChunk) and event.finish_reason for event in self.events
        )

    def _now(self) -> float:
        return round(time.perf_counter() - self._started_at, 6)

    # -- the main stream -----------------------------------------------------------------------

    def _start_sessions(self, ids: tuple[int, ...], at: float) -> None:
        self.events.append(PromptReceived(at, ids))
        for session in (self._main_session, *self._sessions):
            session.on_prompt(ids)

    def _process_chunk(self, piece: StreamedChunk) -> None:
        self.events.append(piece)
        self._feed(self._main_session, piece)
        if (
            not self._scheduled
            and self._main_session.state is State.THINKING
            and self._main_session.generated
        ):
            self._probe_start(piece.at)
        for scout, session in zip(self._probers, self._sessions, strict=True):
            command, seen = self._feed(session, piece), None
            while (
                isinstance(command, SendProbe | RequestEmbedding) and scout.checkpoint is not None
            ):
                if seen is not scout.checkpoint:
                    seen = scout.checkpoint
                    place = CheckpointReached(
                        piece.at, seen.kind, command.kept, command.position, seen.cue
                    )
                    self.events.append(place)
                if isinstance(command, SendProbe):
                    self._schedule_probe(command)
                    command = session.on_probe_failed("recorded", command, piece.at)
                else:
                    self._schedule_embedding(command)
                    position = command.position
                    failed = EmbeddingFailed(command.embed, position, "recorded", piece.at)
                    command = session.on_embedding(failed)

    def _probe_start(self, at: float) -> None:
        """The trial answer before the first token, for those who would not think at all."""
        kept, marks = self._main_session.ledger.marker, self._recorder.dialect
        self.events.append(CheckpointReached(at, "start", kept, 0))
        for probe in self._recorder.plan.probes:
            if probe_kind(probe) == probe_kind(Probe()):
                self._schedule_probe(
                    SendProbe(probe, kept, 0, marks.closing_on_newline + marks.header)
                )

    @staticmethod
    def _feed(session: Session, piece: StreamedChunk) -> Any:
        return session.feed(
            piece.text,
            piece.token_ids,
            piece.at,
            answering=piece.has_answer,
            finish_reason=piece.finish_reason,
        )

    # -- beside it -------------------------------------------------------------------------------

    def _schedule_probe(self, ask: SendProbe) -> None:
        if (ask.kept, ask.probe) in self._scheduled:
            return
        self._scheduled.add((ask.kept, ask.probe))
        kept = [*self._main_session.prompt, *self._main_session.generated[: ask.kept]]
        self._auxiliary_tasks.create_task(self._record_probe(ask, [*kept, *ask.closing]))
        if probe_kind(ask.probe) == probe_kind(Probe()) and self._should_cut(ask.position):
            # The header is the model's to write.
            closing = ask.closing[: len(ask.closing) - len(self._recorder.dialect.header)]
            self._auxiliary_tasks.create_task(self._execute_cut(ask, [*kept, *closing]))

    def _schedule_embedding(self, represent: RequestEmbedding) -> None:
        if (represent.kept, represent.embed) not in self._scheduled:
            self._scheduled.add((represent.kept, represent.embed))
            self._auxiliary_tasks.create_task(self._record_embedding(represent))

    async def _record_embedding(self, represent: RequestEmbedding) -> None:
        embedder = self._recorder.embedder
        assert embedder is not None
        vector = b""
        async with self._auxiliary_lock:
            sent = self._now()
            with contextlib.suppress(*ENGINE_ERRORS):
                vector = pack_vector(await embedder.embed(represent.embed.text))
        kept, position = represent.kept, represent.position
        self.events.append(EmbeddingCompleted(self._now(), sent, kept, position, vector))

    def _should_cut(self, position: int) -> bool:
        """The same places whenever this sample is taken."""
        digest = hashlib.blake2b(f"{self._sample_key}\0{position}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._recorder.plan.cut_share * 2**64

    async def _record_probe(self, ask: SendProbe, prefix: list[int]) -> None:
        async with self._auxiliary_lock:
            sent = self._now()
            result, *spent = await self._run_probe(ask, prefix, sent)
        written = serialization.to_json_value(result)
        self.events.append(ProbeCompleted(result.at, sent, ask.kept, ask.position, written, *spent))

    async def _run_probe(
        self, ask: SendProbe, prefix: list[int], sent: float
    ) -> tuple[ProbeResult | ProbeFailed, int, int]:
        """The probe's result, and the tokens that it prefilled and decoded."""
        try:
            name = ask.probe.inducer
            inducer = self._recorder.dialect.inducers[name] if name else ()
            drawn = await self._recorder.engine.run_probe(
                [*prefix, *inducer], ask.probe, ask.end_ids
            )
        except (*ENGINE_ERRORS, KeyError) as error:
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
            top_logprobs=drawn.top_logprobs,
            end_logprob=drawn.end_logprob,
            hidden_states=drawn.hidden_states,
        )
        return result, drawn.prefilled_tokens, drawn.decoded_tokens

    async def _execute_cut(self, ask: SendProbe, prefix: list[int]) -> None:
        """Open the answer from here, as the gateway would. An engine that fails or does not honour
        the ids has served nothing."""
        body = {**self._request_body, "kv_transfer_params": {"prompt_token_ids": prefix}}
        if (limit := body.get("max_tokens")) is not None:
            body["max_tokens"] = max(limit - len(prefix) + len(self._main_session.prompt), 1)
        chunks: list[Chunk] = []
        began = 0.0
        async with self._auxiliary_lock:
            asked = self._now()
            with contextlib.suppress(*ENGINE_ERRORS):
                async for chunk in self._recorder.engine.chat(body):
                    began = began or self._now() - asked
                    chunks.append(chunk)
        if chunks and chunks[0].prompt_token_ids == prefix:
            self.events.append(self._cut_event(ask, asked, began, chunks))

    def _cut_event(
        self, ask: SendProbe, asked: float, began: float, chunks: list[Chunk]
    ) -> CutExecuted:
        choices = [choice for chunk in chunks for choice in chunk.choices[:1]]
        return CutExecuted(
            at=self._now(),
            sent_at=asked,
            first_chunk_seconds=round(began, 6),
            kept=ask.kept,
            position=ask.position,
            answer="".join(choice.delta.content or "" for choice in choices),
            tokens=sum(len(choice.token_ids or ()) for choice in choices),
            finish_reason=choices[-1].finish_reason if choices else None,
        )


async def record_samples(
    recorder: Recorder,
    work: Sequence[tuple[Prompt, int]],
    concurrency: int,
    on_trace: Callable[[Trace], None],
) -> list[str]:
    """Take all these samples, so many at a time; each goes to ``keep`` as soon as it is whole.
    Answers what went wrong, a line a trace."""
    turns, failures = asyncio.Semaphore(concurrency), list[str]()

    async def one(prompt: Prompt, number: int) -> None:
        async with turns:
            try:
                on_trace(await recorder.record_sample(prompt, number))
            except ENGINE_ERRORS as error:
                failures.append(f"{prompt.id}, sample {number}: {error or type(error).__name__}")

    await asyncio.gather(*(one(prompt, number) for prompt, number in work))
    return failures
