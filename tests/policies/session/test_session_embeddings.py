"""Embedding requests of a policy: held back like probes, but not in the ledger."""

from __future__ import annotations

from typing import Any

from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.events import (
    Checkpoint,
    Embed,
    EmbeddingFailed,
    EmbeddingResult,
    Event,
    Probe,
    ProbeFailed,
    ProbeResult,
    Stop,
)
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import Cut, RequestEmbedding, SendProbe
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from tests.policies.session_helpers import (
    CUE_NEEDS,
    EAGER_DEER,
    AlwaysProbe,
    NeverProbe,
    ScriptedPolicy,
    cue_checkpoint,
    feed_all,
    make_session,
    probe_result,
    token_counts,
)

STEP = Embed("step")


def embedding(then: Any) -> ScriptedPolicy:
    """Requests an embedding at each cue, and answers its vector with ``then``."""

    def script(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            return STEP
        return then(event) if isinstance(event, EmbeddingResult) else None

    return ScriptedPolicy(script, CUE_NEEDS | Needs(embeddings=True))


def at_a_cue(session: Session) -> RequestEmbedding:
    """The order at a cue after two tokens."""
    *_, order = feed_all(session, ("One", 31), (" two.", 32), (" Wait", 33), (",", 34))
    assert isinstance(order, RequestEmbedding)
    return order


def result(order: RequestEmbedding, *vector: float, at: float = 1.0) -> EmbeddingResult:
    return EmbeddingResult(order.embed, vector or (1.0,), order.position, 0.5, at)


def test_chunks_are_held_during_an_embedding_request() -> None:
    """A result without a command releases them."""
    session = make_session(embedding(lambda event: None))
    order = at_a_cue(session)
    assert (order, session.state, session.released_chunks) == (
        RequestEmbedding(STEP, 2, 2),
        State.PROBING,
        2,
    )
    feed_all(session, (" so", 35))
    assert session.released_chunks == 2
    assert session.on_embedding(result(order)) is None
    assert (session.state, session.released_chunks) == (State.THINKING, 5)
    assert token_counts(session) == {"reasoning": 5}
    assert session.probe_count == 0


def test_a_stop_after_an_embedding_cuts_at_its_checkpoint() -> None:
    """However late the result: tokens generated meanwhile are wasted."""
    session = make_session(embedding(lambda event: Stop("alike", event.position)))
    order = at_a_cue(session)
    feed_all(session, (" and", 35), (" on", 36))
    cut = session.on_embedding(result(order))
    assert isinstance(cut, Cut)
    assert (cut.kept, cut.position) == (2, 2)
    assert token_counts(session) == {"reasoning": 2, "closing": 3, "wasted": 4}


def test_a_failed_embedding_continues_the_trace() -> None:
    """The policy sees the failure, and without a command nothing changes."""
    session = make_session(embedding(lambda event: Stop("alike", event.position)))
    order = at_a_cue(session)
    assert session.on_embedding(EmbeddingFailed(STEP, order.position, "timeout", 1.0)) is None
    assert (session.state, session.mute_reason) == (State.THINKING, None)


def test_an_embedding_after_the_end_of_the_trace_is_ignored() -> None:
    """The model ended its trace first."""
    session = make_session(embedding(lambda event: Stop("alike", event.position)))
    order = at_a_cue(session)
    session.feed("", (2, 99), 1.0, answering=True)
    assert session.on_embedding(result(order)) is None
    assert session.state is State.ANSWERING


def test_a_probe_after_an_embedding_is_weighed_by_its_cost() -> None:
    """Embeddings use no slot in the engine's batch and are always sent; probes may be refused."""
    failures = []

    def script(event: Event) -> Any:
        if isinstance(event, ProbeFailed):
            failures.append(event.reason)
        if isinstance(event, Checkpoint):
            return STEP
        return Probe() if isinstance(event, EmbeddingResult) else None

    policy = ScriptedPolicy(script, CUE_NEEDS | Needs(embeddings=True))
    expensive = make_session(policy, cost_model=NeverProbe())
    assert expensive.on_embedding(result(at_a_cue(expensive))) is None
    assert (failures, expensive.state, expensive.released_chunks, expensive.probe_count) == (
        ["price"],
        State.THINKING,
        4,
        0,
    )
    session = make_session(policy, cost_model=AlwaysProbe())
    order = session.on_embedding(result(at_a_cue(session)))
    assert isinstance(order, SendProbe)
    assert (order.kept, order.position, session.probe_count) == (2, 2, 1)


def alike(event: EmbeddingResult) -> Stop:
    return Stop("alike", event.position)


def test_members_ask_one_after_the_other() -> None:
    """An embedding and then a probe at one cue; the first member to stop decides."""
    stopper = AnyOf((embedding(lambda event: None), EAGER_DEER)).start()
    assert stopper.observe(cue_checkpoint(5)) == STEP
    assert stopper.observe(EmbeddingResult(STEP, (1.0,), 5, 0.1, 0.0)) == Probe()
    command = stopper.observe(probe_result(5, "7", 0.99))
    assert isinstance(command, Stop)
    assert command.reason == "confident"


def test_all_members_must_agree_at_the_same_position() -> None:
    """A member that embeds is asked again at each checkpoint, like one that probes."""

    def sure(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            return Probe()
        certain = isinstance(event, ProbeResult) and event.logprobs[0] > -0.1
        return Stop("sure", 5, 0.9) if certain else None

    stopper = AllOf((embedding(alike), ScriptedPolicy(sure))).start()
    assert stopper.observe(cue_checkpoint(5)) == STEP
    assert stopper.observe(EmbeddingResult(STEP, (1.0,), 5, 0.1, 0.0)) == Probe()
    assert stopper.observe(probe_result(5, "7", 0.5)) is None
    assert stopper.observe(cue_checkpoint(9)) == STEP
    assert stopper.observe(EmbeddingResult(STEP, (1.0,), 9, 0.1, 0.0)) == Probe()
    assert stopper.observe(probe_result(9, "7", 0.99)) == Stop("alike+sure", 9, 0.9)


def test_members_share_the_embedding_of_the_same_text() -> None:
    """One request for both; a failure is shared too."""
    stopper = AllOf((embedding(alike), embedding(alike))).start()
    assert stopper.observe(cue_checkpoint(5)) == STEP
    assert stopper.observe(EmbeddingFailed(STEP, 5, "error", 0.0)) is None
    assert stopper.observe(cue_checkpoint(9)) == STEP
    assert stopper.observe(EmbeddingResult(STEP, (1.0,), 9, 0.1, 0.0)) == Stop("alike", 9)
