"""Each policy over a small hand-made recording: it stops at the expected token."""

from __future__ import annotations

import math
from typing import Any

import pytest

from adjourn.lab.replay import Outcome, replay_trace
from adjourn.lab.replay_trace import ReplayTrace
from adjourn.lab.trace_log import LogEvent, ProbeCompleted, StreamedChunk, Trace
from adjourn.policies.events import Probe
from adjourn.policies.registry import BadPolicy, parse
from tests.lab.trace_factory import probe_completed, stream_events
from tests.policies.session_helpers import DIALECT, AlwaysProbe

SENTENCE = [" So", " it", " is", " 7", ".", " Now"]
PARAGRAPH = [" So", " it", " is", " 7", ".", "\n\n"]
SURE, UNSURE = (math.log(0.999),), (math.log(0.5), math.log(0.5))
END_PROBE = Probe("", 1, close_trace=False, score_end=True)
NEXT_TOKEN_PROBE = Probe("", 1, top_logprobs=20)


def with_logprobs(events: list[LogEvent], sure_from: int) -> list[LogEvent]:
    """The events with log-probabilities for each token: unsure, but sure from the n-th event on."""
    changed: list[LogEvent] = []
    for number, event in enumerate(events):
        logprobs = SURE if number > sure_from else UNSURE
        if isinstance(event, StreamedChunk) and event.text:
            event = StreamedChunk(
                event.at, event.text, event.token_ids, logprobs=(logprobs,) * len(event.token_ids)
            )
        changed.append(event)
    return changed


def replayed(policy: str, texts: list[str], *probes: ProbeCompleted, sure_from: int = 0) -> Outcome:
    events = with_logprobs(stream_events(texts), sure_from) + list(probes)
    trace = Trace("p", 0, [], "7", sorted(events, key=lambda event: event.at))
    return replay_trace(
        parse(policy), ReplayTrace(trace, DIALECT), DIALECT, AlwaysProbe(), instant=True
    )


def probed(position: int, probe: Probe, certainty: float = 0.99, **more: Any) -> ProbeCompleted:
    """A probe at ``position``, with further fields of its result."""
    event = probe_completed(position, "7", certainty, probe=probe)
    return ProbeCompleted(event.at, event.sent_at, position, position, event.result | more, 0, 2)


def test_replay_of_margin() -> None:
    """Scores the end of the trace without closing it, and counts the tokens of the score."""
    wide, narrow = probed(5, END_PROBE, end_logprob=-9.0), probed(11, END_PROBE, end_logprob=-0.5)
    outcome = replayed("margin(threshold=1)", SENTENCE * 4, wide, narrow)
    assert (outcome.stopped, outcome.kept_tokens, outcome.reason) == (True, 11, "narrow")
    assert (outcome.probe_count, outcome.probe_tokens, outcome.missing_probes) == (2, 4, 0)


def test_replay_of_entropy() -> None:
    """Stops when the entropy of the next token has settled."""
    probes = [
        probed(6 * n - 1, NEXT_TOKEN_PROBE, top_logprobs=[[-0.01, -5.0]]) for n in range(1, 9)
    ]
    outcome = replayed("entropy(at='sentence', alpha=0.9)", SENTENCE * 9, *probes)
    assert (outcome.stopped, outcome.kept_tokens, outcome.reason) == (True, 6 * 5 - 1, "settled")


def test_replay_of_utility() -> None:
    """Stops when the trial answer no longer becomes more certain."""
    trial = Probe(top_logprobs=20)
    probes = [probed(6 * n - 1, trial, top_logprobs=[[-0.01, -5.0]] * 2) for n in range(1, 9)]
    outcome = replayed("utility(at='sentence', patience=2)", SENTENCE * 9, *probes)
    assert (outcome.stopped, outcome.kept_tokens, outcome.reason) == (True, 6 * 3 - 1, "no-gain")


def test_replay_of_deer_pro() -> None:
    """Sends several inducers at one checkpoint, one after the other."""
    probes = [probe_completed(2, probe=Probe(name)) for name in ("answer", "answer-2")]
    outcome = replayed("deer-pro(inducers=2)", [" a", " b", " Wait", ",", " c"], *probes)
    assert (outcome.stopped, outcome.kept_tokens, outcome.probe_count) == (True, 2, 2)
    doubtful = [probes[0], probe_completed(2, probability=0.6, probe=Probe("answer-2"))]
    assert not replayed("deer-pro(inducers=2)", [" a", " b", " Wait", ",", " c"], *doubtful).stopped


def test_replay_of_learned() -> None:
    """Stops at the second equal answer if only agreement has a weight."""
    texts = [*[" a"] * 30, " Wait", *[" b"] * 30, " Wait", *[" c"] * 9]
    policy = "learned(threshold=0.9, bias=-3, confidence=0, agreement=6)"
    outcome = replayed(
        policy, texts, probe_completed(30, probability=0.6), probe_completed(61, probability=0.6)
    )
    assert (outcome.stopped, outcome.kept_tokens, outcome.reason) == (True, 61, "learned")
    assert not replayed(
        policy, texts, probe_completed(30, "8", 0.99), probe_completed(61, probability=0.99)
    ).stopped


def test_replay_of_redundancy() -> None:
    """Stops at a step that repeats an earlier one, with the trial answer after it."""
    step = [" one", " two", " three", " four"] * 30
    texts = [*step, ".", "\n\n"] * 3 + [" end"]
    probes = [probe_completed(position) for position in range(60, len(texts), 10)]
    outcome = replayed("redundancy(min_steps=2)", texts, *probes)
    assert (outcome.stopped, outcome.reason, outcome.missing_probes) == (True, "redundant", 0)


def test_replay_of_cusum() -> None:
    """Stops at the end of a sentence after the tokens have become certain."""
    policy = "cusum(reference=0.1, threshold=0.5, min_tokens=0)"
    assert not replayed(policy, SENTENCE * 6, sure_from=99).stopped
    outcome = replayed(policy, SENTENCE * 6, sure_from=12)
    assert (outcome.stopped, outcome.reason, outcome.probe_count) == (True, "sure", 0)
    assert outcome.kept_tokens == 6 * 3 - 1


def test_replay_of_deviation() -> None:
    """Stops at repeated cues whose first token is uncertain."""
    texts = [*[" a"] * 30, *[" Wait", ",", " b"] * 6]
    policy = "deviation(window=8, min_tokens=8)"
    assert replayed(policy, texts, sure_from=99).reason == "deviating"
    assert not replayed(policy, texts, sure_from=0).stopped


def test_replay_of_first_try() -> None:
    """Stops after the first stated answer."""
    texts = [" The", " answer", " is", " 7", ".", " But", " more"]
    outcome = replayed("first-try", texts)
    assert (outcome.stopped, outcome.kept_tokens) == (True, 5)


def test_replay_of_budget() -> None:
    """A maximum can be replayed, a minimum cannot."""
    assert replayed("budget(max=8)", SENTENCE * 4).kept_tokens == 11
    with pytest.raises(BadPolicy, match="no recording shows"):
        replayed("budget(max=90, min=50)", SENTENCE * 4)


def test_replay_of_no_thinking() -> None:
    """The inserted text counts as reasoning; the answer is the trial answer at the start."""
    outcome = replayed("no-thinking", SENTENCE * 4, probe_completed(0))
    assert (outcome.stopped, outcome.kept_tokens, outcome.answer) == (True, 3, "7")
