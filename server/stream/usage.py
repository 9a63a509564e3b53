"""The usage and the summary (field ``adjourn``) of a whole response."""

from __future__ import annotations

from typing import Any

import msgspec

from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.session import Session

__all__ = ["summarize_session", "token_counts", "with_total_usage"]

_TOKEN_KINDS = ("prompt", "reasoning", "answer", "marker", "closing", "probe", "wasted")


def summarize_session(session: Session) -> dict[str, Any]:
    """The summary of one choice: what the policy did and what it cost (docs/api.md)."""
    summary: dict[str, Any] = {"stopped": session.stopped, "policy": session.policy.name}
    if (trigger := session.trigger) is not None:
        summary["reason"] = trigger.stop.reason
        summary["action"] = trigger.action
        if trigger.stop.confidence is not None:
            summary["confidence"] = round(trigger.stop.confidence, 6)
        summary["position"] = trigger.position
    if session.rescued_finish_reason is not None:
        summary["rescued"] = session.rescued_finish_reason
    if session.mute_reason is not None:
        summary["muted"] = session.mute_reason
    if session.extensions:
        summary["extended"] = session.extensions
    summary["probes"] = session.probe_count
    summary["tokens"] = token_counts(session.ledger)
    return summary


def token_counts(ledger: Ledger) -> dict[str, int]:
    """The ledger's tokens by kind, as the summary shows them."""
    return {kind: getattr(ledger, kind) for kind in _TOKEN_KINDS}


def with_total_usage(data: bytes, ledger: Ledger) -> bytes:
    """A usage chunk whose usage is replaced by the whole response's: the prompt once, and all
    tokens that the client got. ``data``: the chunk's JSON."""
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
            uncached = ledger.prompt - details["cached_tokens"]
            details["created_cache_tokens"] = min(created, uncached)
    return msgspec.json.encode(chunk)
