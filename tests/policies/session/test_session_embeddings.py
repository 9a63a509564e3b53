"""A session whose policy has texts embedded: held and answered as probes are, and in no ledger."""

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
    """Has a text embedded at each cue, and says ``then`` to its vector."""

    def script(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            return STEP
        return then(event) if isinstance(event, EmbeddingResult) else None

    return ScriptedPolicy(script, CUE_NEEDS | Needs(embeddings=True))


def at_a_cue(made: Session) -> RequestEmbedding:
    """What it asks at a cue behind two tokens."""
    *_, order = feed_all(made, ("One", 31), (" two.", 32), (" Wait", 33), (",", 34))
    assert isinstance(order, RequestEmbedding)
    return order


def told(order: RequestEmbedding, *vector: float, at: float = 1.0) -> EmbeddingResult:
    return EmbeddingResult(order.embed, vector or (1.0,), order.position, 0.5, at)


def test_a_step_is_held_while_it_is_embedded() -> None:
    """What stands behind it goes out with the vector that changes nothing."""
    made = make_session(embedding(lambda event: None))
    order = at_a_cue(made)
    assert (order, made.state, made.released_chunks) == (
        RequestEmbedding(STEP, 2, 2),
        State.PROBING,
        2,
    )
    feed_all(made, (" so", 35))
    assert made.released_chunks == 2
    assert made.on_embedding(told(order)) is None
    assert (made.state, made.released_chunks) == (State.THINKING, 5)
    assert token_counts(made) == {"reasoning": 5}
    assert made.probe_count == 0


def test_a_stop_is_where_it_was_asked() -> None:
    """However late the vector comes: what was thought meanwhile is wasted."""
    made = make_session(embedding(lambda event: Stop("alike", event.position)))
    order = at_a_cue(made)
    feed_all(made, (" and", 35), (" on", 36))
    cut = made.on_embedding(told(order))
    assert isinstance(cut, Cut)
    assert (cut.kept, cut.position) == (2, 2)
    assert token_counts(made) == {"reasoning": 2, "closing": 3, "wasted": 4}


def test_a_failure_goes_on() -> None:
    """The policy is told, and what it does not mind changes nothing."""
    made = make_session(embedding(lambda event: Stop("alike", event.position)))
    order = at_a_cue(made)
    assert made.on_embedding(EmbeddingFailed(STEP, order.position, "timeout", 1.0)) is None
    assert (made.state, made.mute_reason) == (State.THINKING, None)


def test_what_comes_behind_the_trace_is_nobodys() -> None:
    """The model was faster."""
    made = make_session(embedding(lambda event: Stop("alike", event.position)))
    order = at_a_cue(made)
    made.feed("", (2, 99), 1.0, answering=True)
    assert made.on_embedding(told(order)) is None
    assert made.state is State.ANSWERING


def test_a_probe_behind_a_vector_is_weighed() -> None:
    """An embedding takes no place in the engine's batch and is never refused; the probe is."""
    failures = []

    def script(event: Event) -> Any:
        if isinstance(event, ProbeFailed):
            failures.append(event.reason)
        if isinstance(event, Checkpoint):
            return STEP
        return Probe() if isinstance(event, EmbeddingResult) else None

    policy = ScriptedPolicy(script, CUE_NEEDS | Needs(embeddings=True))
    dear = make_session(policy, appraiser=NeverProbe())
    assert dear.on_embedding(told(at_a_cue(dear))) is None
    assert (failures, dear.state, dear.released_chunks, dear.probe_count) == (
        ["price"],
        State.THINKING,
        4,
        0,
    )
    made = make_session(policy, appraiser=AlwaysProbe())
    ask = made.on_embedding(told(at_a_cue(made)))
    assert isinstance(ask, SendProbe)
    assert (ask.kept, ask.position, made.probe_count) == (2, 2, 1)


def alike(event: EmbeddingResult) -> Stop:
    return Stop("alike", event.position)


def test_members_take_turns() -> None:
    """A vector and a probe at one cue, one behind the other; the first to stop is enough."""
    stopper = AnyOf((embedding(lambda event: None), EAGER_DEER)).start()
    assert stopper.observe(cue_checkpoint(5)) == STEP
    assert stopper.observe(EmbeddingResult(STEP, (1.0,), 5, 0.1, 0.0)) == Probe()
    said = stopper.observe(probe_result(5, "7", 0.99))
    assert isinstance(said, Stop)
    assert said.reason == "confident"


def test_both_must_agree_at_the_same_place() -> None:
    """One that asks for vectors is asked again at each checkpoint, as one that probes is."""

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


def test_members_that_embed_the_same_share_the_vector() -> None:
    """One request for both; a failure is shared too."""
    stopper = AllOf((embedding(alike), embedding(alike))).start()
    assert stopper.observe(cue_checkpoint(5)) == STEP
    assert stopper.observe(EmbeddingFailed(STEP, 5, "error", 0.0)) is None
    assert stopper.observe(cue_checkpoint(9)) == STEP
    assert stopper.observe(EmbeddingResult(STEP, (1.0,), 9, 0.1, 0.0)) == Stop("alike", 9)
