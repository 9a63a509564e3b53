"""Each policy over a small recording, made by hand: it stops where the numbers say so."""

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
ENDING = Probe("", 1, close_trace=False, score_end=True)
NEXT = Probe("", 1, top_logprobs=20)


def told(events: list[LogEvent], sure_from: int) -> list[LogEvent]:
    """The pieces with what was told of each token: unsure, and sure from the n-th on."""
    made: list[LogEvent] = []
    for number, event in enumerate(events):
        logprobs = SURE if number > sure_from else UNSURE
        if isinstance(event, StreamedChunk) and event.text:
            event = StreamedChunk(
                event.at, event.text, event.token_ids, logprobs=(logprobs,) * len(event.token_ids)
            )
        made.append(event)
    return made


def played(policy: str, texts: list[str], *draws: ProbeCompleted, sure_from: int = 0) -> Outcome:
    events = told(stream_events(texts), sure_from) + list(draws)
    trace = Trace("p", 0, [], "7", sorted(events, key=lambda event: event.at))
    return replay_trace(
        parse(policy), ReplayTrace(trace, DIALECT), DIALECT, AlwaysProbe(), instant=True
    )


def asked(position: int, probe: Probe, certainty: float = 0.99, **more: Any) -> ProbeCompleted:
    """A probe there, with what else it was told."""
    made = probe_completed(position, "7", certainty, probe=probe)
    return ProbeCompleted(made.at, made.sent_at, position, position, made.result | more, 0, 2)


def test_margin() -> None:
    """The end is scored where the trace was left open, and its tokens are counted."""
    wide, narrow = asked(5, ENDING, end_logprob=-9.0), asked(11, ENDING, end_logprob=-0.5)
    outcome = played("margin(threshold=1)", SENTENCE * 4, wide, narrow)
    assert (outcome.stopped, outcome.kept_tokens, outcome.reason) == (True, 11, "narrow")
    assert (outcome.probe_count, outcome.probe_tokens, outcome.missing_probes) == (2, 4, 0)


def test_entropy() -> None:
    """What the model thinks of next, once that has settled."""
    looks = [asked(6 * n - 1, NEXT, top_logprobs=[[-0.01, -5.0]]) for n in range(1, 9)]
    outcome = played("entropy(at='sentence', alpha=0.9)", SENTENCE * 9, *looks)
    assert (outcome.stopped, outcome.kept_tokens, outcome.reason) == (True, 6 * 5 - 1, "settled")


def test_utility() -> None:
    """An answer that becomes no surer, from the distributions of its own tokens."""
    trial = Probe(top_logprobs=20)
    looks = [asked(6 * n - 1, trial, top_logprobs=[[-0.01, -5.0]] * 2) for n in range(1, 9)]
    outcome = played("utility(at='sentence', patience=2)", SENTENCE * 9, *looks)
    assert (outcome.stopped, outcome.kept_tokens, outcome.reason) == (True, 6 * 3 - 1, "no-gain")


def test_deer_pro() -> None:
    """Several ways to ask at one place, one after the other."""
    draws = [probe_completed(2, probe=Probe(name)) for name in ("answer", "answer-2")]
    outcome = played("deer-pro(inducers=2)", [" a", " b", " Wait", ",", " c"], *draws)
    assert (outcome.stopped, outcome.kept_tokens, outcome.probe_count) == (True, 2, 2)
    doubtful = [draws[0], probe_completed(2, probability=0.6, probe=Probe("answer-2"))]
    assert not played("deer-pro(inducers=2)", [" a", " b", " Wait", ",", " c"], *doubtful).stopped


def test_learned() -> None:
    """The second answer that says the same, where that is what counts."""
    texts = [*[" a"] * 30, " Wait", *[" b"] * 30, " Wait", *[" c"] * 9]
    policy = "learned(threshold=0.9, bias=-3, confidence=0, agreement=6)"
    outcome = played(
        policy, texts, probe_completed(30, probability=0.6), probe_completed(61, probability=0.6)
    )
    assert (outcome.stopped, outcome.kept_tokens, outcome.reason) == (True, 61, "learned")
    assert not played(
        policy, texts, probe_completed(30, "8", 0.99), probe_completed(61, probability=0.99)
    ).stopped


def test_redundancy() -> None:
    """A step that says again what was said, and the trial answer behind it."""
    step = [" one", " two", " three", " four"] * 30
    texts = [*step, ".", "\n\n"] * 3 + [" end"]
    draws = [probe_completed(position) for position in range(60, len(texts), 10)]
    outcome = played("redundancy(min_steps=2)", texts, *draws)
    assert (outcome.stopped, outcome.reason, outcome.missing_probes) == (True, "redundant", 0)


def test_cusum() -> None:
    """From what was told with each token: sure from one on, and stopped at a sentence's end."""
    policy = "cusum(reference=0.1, threshold=0.5, min_tokens=0)"
    assert not played(policy, SENTENCE * 6, sure_from=99).stopped
    outcome = played(policy, SENTENCE * 6, sure_from=12)
    assert (outcome.stopped, outcome.reason, outcome.probe_count) == (True, "sure", 0)
    assert outcome.kept_tokens == 6 * 3 - 1


def test_deviation() -> None:
    """Cues whose first token was unsure, one behind the other."""
    texts = [*[" a"] * 30, *[" Wait", ",", " b"] * 6]
    policy = "deviation(window=8, min_tokens=8)"
    assert played(policy, texts, sure_from=99).reason == "deviating"
    assert not played(policy, texts, sure_from=0).stopped


def test_first_try() -> None:
    """An answer that the trace states."""
    texts = [" The", " answer", " is", " 7", ".", " But", " more"]
    outcome = played("first-try", texts)
    assert (outcome.stopped, outcome.kept_tokens) == (True, 5)


def test_budget() -> None:
    """A maximum is replayed, a minimum is not."""
    assert played("budget(max=8)", SENTENCE * 4).kept_tokens == 11
    with pytest.raises(BadPolicy, match="no recording shows"):
        played("budget(max=90, min=50)", SENTENCE * 4)


def test_no_thinking() -> None:
    """What is put into the trace is its reasoning; the answer is the one at the start."""
    outcome = played("no-thinking", SENTENCE * 4, probe_completed(0))
    assert (outcome.stopped, outcome.kept_tokens, outcome.answer) == (True, 3, "7")
