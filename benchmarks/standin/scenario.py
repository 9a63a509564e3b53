"""What one request is to see: how much, how fast, with which probes' results and which faults."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from benchmarks.standin import vocabulary as v

__all__ = ["BadScenario", "Scenario"]


class BadScenario(ValueError):
    """A `standin` field that is not one of Scenario's."""


@dataclass(frozen=True, slots=True)
class Scenario:
    # The stream
    tokens: int = 512  # of reasoning
    answer: str | None = None
    answer_tokens: int = 16  # where no answer is given
    rate: float = 0.0  # chunks per second; 0: as fast as they are read
    multi: int = 1  # tokens per chunk
    cues: tuple[int, ...] = ()  # positions of " Wait" in the reasoning, each followed by a comma
    writes_marker: bool = False  # the model opens the think block, not the prompt
    both_fields: bool = False  # end of reasoning and start of content in one chunk
    ends_in_trace: bool = False  # the sequence ends where the reasoning does, without an answer
    reopens: int = 0  # traces that it opens in its answer, one behind the other's closing
    empty: int = 0  # every n-th token holds its text back
    usage_each: bool = False  # usage on every chunk
    # Probes: one for all, or one after the other; the last goes on
    trial: str | tuple[str, ...] = "42"
    trial_logprob: float | tuple[float, ...] = -0.01  # of each token
    hidden: float | tuple[float, ...] | None = None  # what every hidden state is; None: not told
    hidden_layers: tuple[int, ...] = (2, 5)
    hidden_width: int = 2
    probe_delay: float = 0.0
    probe_status: int | None = None
    # Vectors and rewards
    pooling_delay: float = 0.0
    pooling_status: int | None = None
    # Faults
    delay_first: float = 0.0  # seconds from the headers to the first chunk
    status: int | None = None  # answer with this status
    retry_after: int | None = None
    die_after: int | None = None  # drop the connection after n tokens
    stall_after: int | None = None  # say nothing more after n tokens
    error_event_after: int | None = None  # as vLLM does: an error event, then [DONE]
    no_done: bool = False  # end cleanly without [DONE]
    ignore_prompt_ids: bool = False  # render the messages, whatever ids came with them
    # The byte stream
    crlf: bool = False
    comments: int = 0  # a keep-alive comment before every n-th chunk
    tiny_writes: bool = False  # in pieces of random size
    split_utf8: bool = False  # cut within each character that has several bytes
    seed: int = 0  # of the random sizes
    by_seed: tuple[tuple[int, Mapping[str, Any]], ...] = ()  # what differs for a request's seed

    def updated(self, overrides: Mapping[str, Any]) -> Scenario:
        """With the fields of a request's `standin`."""
        known = {field.name for field in fields(self)}
        if unknown := sorted(set(overrides) - known):
            raise BadScenario(f"no such standin field: {', '.join(unknown)}")
        changes: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in overrides.items()
        }
        return replace(self, **changes)

    def for_seed(self, seed: Any) -> Scenario:
        """For a request with this seed."""
        return self.updated(next((fields for own, fields in self.by_seed if own == seed), {}))

    def trace_ids(self) -> list[int]:
        """The reasoning's ids."""
        repeats = -(-self.tokens // len(v.REASONING_IDS))
        tokens = list((v.REASONING_IDS * repeats)[: self.tokens])
        for position in self.cues:
            tokens[position : position + 2] = v.encode(" Wait,")[: max(len(tokens) - position, 0)]
        if self.empty:
            tokens[:: self.empty] = [v.PARTIAL_CHAR] * len(tokens[:: self.empty])
        return tokens

    def answer_ids(self) -> list[int]:
        """The answer's ids."""
        if self.answer is not None:
            return v.encode(self.answer)
        return (v.encode("The answer is 42.") * self.answer_tokens)[: self.answer_tokens]

    def output_ids(self, *, starts_in_trace: bool, trace_count: int = 1) -> list[int]:
        """All that the model writes behind a prompt that ends in thinking, or behind it.

        ``traces``: those that the prompt holds.
        """
        if not starts_in_trace and trace_count <= self.reopens:
            return [
                *self.answer_ids(),
                v.THINK,
                *self.trace_ids(),
                v.END_THINK,
                *self.answer_ids(),
                v.IM_END,
            ]
        if not starts_in_trace:
            return [*self.answer_ids(), v.IM_END]
        opening = [v.THINK, v.NEWLINE] if self.writes_marker else []
        if self.ends_in_trace:
            return [*opening, *self.trace_ids(), v.IM_END]
        return [
            *opening,
            *self.trace_ids(),
            v.END_THINK,
            v.BLANK_LINE,
            *self.answer_ids(),
            v.IM_END,
        ]

    def trial_answer(self, probe_index: int) -> tuple[str, float]:
        """The trial answer of the turn-th probe, and its tokens' log-probability."""
        return _value_at(self.trial, probe_index), _value_at(self.trial_logprob, probe_index)

    def hidden_states(self, probe_index: int) -> dict[str, Any] | None:
        """What the turn-th probe is told of them, as engine/adjourn_hidden_states.py tells it."""
        if self.hidden is None:
            return None
        number = struct.pack("<f", _value_at(self.hidden, probe_index))[2:]
        data = number * self.hidden_width * len(self.hidden_layers)
        return {
            "layers": self.hidden_layers,
            "width": self.hidden_width,
            "dtype": "bfloat16",
            "data": base64.b64encode(data).decode(),
        }


def _value_at(value: Any, turn: int) -> Any:
    return value[min(turn, len(value) - 1)] if isinstance(value, tuple) else value
