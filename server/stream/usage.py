"""What a client is told of the whole of a response: one usage, and a note on what was done."""

from __future__ import annotations

from typing import Any

import msgspec

from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.session import Session

__all__ = ["summarize_session", "token_counts", "with_total_usage"]

_TOKEN_KINDS = ("prompt", "reasoning", "answer", "marker", "closing", "probe", "wasted")


def summarize_session(session: Session) -> dict[str, Any]:
    note: dict[str, Any] = {"stopped": session.stopped, "policy": session.policy.name}
    if (trigger := session.trigger) is not None:
        note["reason"] = trigger.stop.reason
        note["action"] = trigger.action
        if trigger.stop.confidence is not None:
            note["confidence"] = round(trigger.stop.confidence, 6)
        note["position"] = trigger.position
    if session.rescued_finish_reason is not None:
        note["rescued"] = session.rescued_finish_reason
    if session.mute_reason is not None:
        note["muted"] = session.mute_reason
    if session.extensions:
        note["extended"] = session.extensions
    note["probes"] = session.probe_count
    note["tokens"] = token_counts(session.ledger)
    return note


def token_counts(ledger: Ledger) -> dict[str, int]:
    return {kind: getattr(ledger, kind) for kind in _TOKEN_KINDS}


def with_total_usage(data: bytes, ledger: Ledger) -> bytes:
    """A chunk with one usage for the whole response: the prompt once, and all that the client
    got."""
    chunk = msgspec.json.decode(data)
    usage = chunk["usage"]
    usage["prompt_tokens"] = ledger.prompt
    usage["completion_tokens"] = ledger.completion
    usage["total_tokens"] = ledger.prompt + ledger.completion
    if isinstance(details := usage.get("completion_tokens_details"), dict):
        details["reasoning_tokens"] = ledger.reasoning
    if isinstance(details := usage.get("prompt_tokens_details"), dict):
        details["cached_tokens"] = min(details.get("cached_tokens") or 0, ledger.prompt)
        if created := details.get("created_cache_tokens"):
            left = ledger.prompt - details["cached_tokens"]
            details["created_cache_tokens"] = min(created, left)
    return msgspec.json.encode(chunk)
