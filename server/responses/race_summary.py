"""The ``adjourn`` summary that a client gets for a response chosen from several traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adjourn.policies.sampling import ChooseTrace, SamplingPolicy
from adjourn.server.responses.trace_buffer import TraceBuffer
from adjourn.server.stream.usage import summarize_session, token_counts

__all__ = ["summarize_race"]


def summarize_race(
    policy: SamplingPolicy,
    traces: Sequence[TraceBuffer],
    chosen: TraceBuffer,
    choice: ChooseTrace,
    muted_reason: str | None,
) -> dict[str, Any]:
    """The choice, the token counts summed over all traces, and a summary of each trace.

    The tokens of the other traces count as wasted. ``muted_reason`` names why the policy was
    switched off, or is None.
    """
    spent = chosen.session.ledger
    for trace in traces:
        if trace is not chosen:
            spent += trace.session.ledger.as_wasted
    summary: dict[str, Any] = {
        "stopped": chosen.session.stopped,
        "policy": policy.name,
        "reason": choice.reason,
        "chosen": chosen.index,
        "votes": choice.votes,
    }
    if choice.confidence is not None:
        summary["confidence"] = round(choice.confidence, 6)
    if muted_reason is not None:
        summary["muted"] = muted_reason
    summary["tokens"] = token_counts(spent)
    summary["traces"] = [_summarize_trace(trace, policy.trace_policy.name) for trace in traces]
    return summary


def _summarize_trace(trace: TraceBuffer, policy_name: str) -> dict[str, Any]:
    summary = {"outcome": trace.outcome, **summarize_session(trace.session)}
    summary["policy"] = policy_name
    if trace.answer_label is not None:
        summary["answer"] = trace.answer_label
    if trace.lowest_confidence is not None:
        summary["lowest"] = round(trace.lowest_confidence, 6)
    if trace.reward is not None:
        summary["reward"] = round(trace.reward, 6)
    return summary
