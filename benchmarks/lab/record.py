"""Record whole traces: the model reasons to its own end and is probed at every checkpoint.

Sessions find the checkpoints, as in the gateway: one session for each kind of checkpoint that was
requested. The main stream is never cut. Probes run concurrently with it, one at a time as in the
gateway, so the recording has the times that they take while streams run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from adjourn.lab import serialization
from adjourn.lab.auxiliary_calls import AuxiliaryCalls
from adjourn.lab.embedding_client import EmbeddingClient
from adjourn.lab.engine_client import EngineClient
from adjourn.lab.http_client import ENGINE_ERRORS, EngineError
from adjourn.lab.plan import RecordingPlan, probe_kind
from adjourn.lab.prompts import Prompt
from adjourn.lab.trace_log import (
    VERSION,
    CheckpointReached,
    LogEvent,
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
    Event,
    Probe,
    ProbeFailed,
    Query,
)
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import RequestEmbedding, SendProbe
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.text.dialect import TokenizedDialect

__all__ = ["Recorder", "record_samples"]


class _ProbeEverything:
    """A policy that sends all of ``probes`` at every checkpoint and never stops, so the session
    reports the ids from which each probe starts. It also embeds the step that ended there, if
    ``needs.embeddings``.

    State: ``checkpoint``, the one it probes now; the queries that are still to be sent there. Only
    ``observe`` changes them.
    """

    name: ClassVar[str] = "probe-everything"

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

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, Checkpoint):
            self.checkpoint, self._remaining = event, list(self._probes)
            if self._needs.embeddings and event.text:
                self._remaining.insert(0, Embed(event.text))
        # The recorder answers each query with a failure, and then the next one is due.
        due = isinstance(event, Checkpoint | ProbeFailed | EmbeddingFailed) and self._remaining
        return self._remaining.pop(0) if due else None


class _UnlimitedProbeCost(ProbeCostModel):
    """Allows every probe, whatever it costs."""

    def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
        return True


class Recorder:
    """Records samples of one engine according to ``plan``. ``embedder`` is required if the plan
    needs embeddings."""

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
        """The first line of the log."""
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
        """One trace with the results of all its probes. Raises ENGINE_ERRORS."""
        recording = _SampleRecording(self, prompt, sample_index)
        try:
            events = await recording.run()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return Trace(prompt.id, sample_index, prompt.messages, prompt.gold, events)


class _SampleRecording:
    """The recording of one sample.

    State: the events of the main stream so far; one session for each kind of checkpoint, and the
    main session, which runs under ``never`` and has the prompt and all generated ids. Only the
    methods that read the main stream change them. AuxiliaryCalls has the other events.
    """

    def __init__(self, recorder: Recorder, prompt: Prompt, sample_index: int) -> None:
        plan, dialect = recorder.plan, recorder.dialect
        self._engine = recorder.engine
        self._dialect = dialect
        self._probes = plan.probes
        # Two samples of one prompt differ; a sample that is recorded again is the same.
        seed = plan.body.get("seed")
        own = {} if seed is None else {"seed": seed + sample_index}
        self._request_body = {**plan.body, **own, "messages": prompt.messages}
        self._logprob_count = max(needs.logprobs for needs in plan.needs)
        self._probers = [_ProbeEverything(needs, plan.probes) for needs in plan.needs]
        self._sessions = [Session(p, dialect, _UnlimitedProbeCost()) for p in self._probers]
        self._main_session = Session(Never(), dialect, _UnlimitedProbeCost())
        self._stream_events: list[LogEvent] = []
        self._start_probed = self._has_ended = False
        self._started_at = time.perf_counter()
        self._calls = AuxiliaryCalls(
            recorder.engine,
            recorder.embedder,
            dialect,
            self._main_session,
            request_body=self._request_body,
            sample_key=f"{prompt.id}\0{sample_index}",
            cut_share=plan.cut_share,
            now=self._now,
        )

    async def run(self) -> list[LogEvent]:
        """All events of the sample, in the order of their times."""
        async with self._calls.tasks, aclosing(self._engine.chat(self._stream_body)) as chunks:
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
        return sorted([*self._stream_events, *self._calls.events], key=lambda event: event.at)

    @property
    def _stream_body(self) -> dict[str, Any]:
        """The main stream's body. Log-probabilities cost the engine time, so they are requested
        only if a policy needs them."""
        if not self._logprob_count:
            return self._request_body
        return {**self._request_body, "logprobs": True, "top_logprobs": self._logprob_count}

    def _now(self) -> float:
        return round(time.perf_counter() - self._started_at, 6)

    def _start_sessions(self, prompt_token_ids: tuple[int, ...], at: float) -> None:
        self._stream_events.append(PromptReceived(at, prompt_token_ids))
        for session in (self._main_session, *self._sessions):
            session.on_prompt(prompt_token_ids)

    def _process_chunk(self, chunk: StreamedChunk) -> None:
        self._stream_events.append(chunk)
        self._has_ended = self._has_ended or bool(chunk.finish_reason)
        self._feed(self._main_session, chunk)
        main = self._main_session
        if not self._start_probed and main.state is State.THINKING and main.generated:
            self._start_probed = True
            self._probe_start(chunk.at)
        for prober, session in zip(self._probers, self._sessions, strict=True):
            self._record_checkpoints(prober, session, chunk)

    def _record_checkpoints(
        self, prober: _ProbeEverything, session: Session, chunk: StreamedChunk
    ) -> None:
        """Feed the session and schedule each query that it sends, answering it at once with a
        failure so that it sends the next one."""
        order, recorded = self._feed(session, chunk), None
        while isinstance(order, SendProbe | RequestEmbedding) and prober.checkpoint is not None:
            if recorded is not prober.checkpoint:
                recorded = prober.checkpoint
                self._stream_events.append(
                    CheckpointReached(
                        chunk.at, recorded.kind, order.kept, order.position, recorded.cue
                    )
                )
            if isinstance(order, SendProbe):
                self._calls.schedule_probe(order)
                order = session.on_probe_failed("recorded", order, chunk.at)
            else:
                self._calls.schedule_embedding(order)
                failed = EmbeddingFailed(order.embed, order.position, "recorded", chunk.at)
                order = session.on_embedding(failed)

    def _probe_start(self, at: float) -> None:
        """Generate the trial answer before the first reasoning token, for the `no thinking`
        baseline."""
        kept, dialect = self._main_session.ledger.marker, self._dialect
        self._stream_events.append(CheckpointReached(at, "start", kept, 0))
        for probe in self._probes:
            if probe_kind(probe) == probe_kind(Probe()):
                self._calls.schedule_probe(
                    SendProbe(probe, kept, 0, dialect.closing_on_newline + dialect.header)
                )

    @staticmethod
    def _feed(session: Session, chunk: StreamedChunk) -> Any:
        return session.feed(
            chunk.text,
            chunk.token_ids,
            chunk.at,
            answering=chunk.has_answer,
            finish_reason=chunk.finish_reason,
        )


async def record_samples(
    recorder: Recorder,
    work: Sequence[tuple[Prompt, int]],
    concurrency: int,
    on_trace: Callable[[Trace], None],
) -> list[str]:
    """Record these samples, ``concurrency`` at a time. Calls ``on_trace`` with each trace as soon
    as it is complete. Returns a line for each sample that failed."""
    slots, failures = asyncio.Semaphore(concurrency), list[str]()

    async def record(prompt: Prompt, sample_index: int) -> None:
        async with slots:
            try:
                on_trace(await recorder.record_sample(prompt, sample_index))
            except ENGINE_ERRORS as error:
                failures.append(
                    f"{prompt.id}, sample {sample_index}: {error or type(error).__name__}"
                )

    await asyncio.gather(*(record(prompt, sample_index) for prompt, sample_index in work))
    return failures
