"""What a request gets: length and pace of the stream, results of probes, faults."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from benchmarks.standin import vocabulary as v

__all__ = ["BadScenario", "Scenario"]


class BadScenario(ValueError):
    """A `standin` field that Scenario does not have."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The fields of a request's `standin` object.

    A tuple as `trial`, `trial_logprob` or `hidden` has one value per probed position; the last
    value is repeated.
    """

    # The stream
    tokens: int = 512  # reasoning tokens
    answer: str | None = None
    answer_tokens: int = 16  # used if `answer` is None
    rate: float = 0.0  # chunks per second; 0: as fast as they are read
    multi: int = 1  # tokens per chunk
    cues: tuple[int, ...] = ()  # positions of " Wait" in the reasoning, each followed by a comma
    writes_marker: bool = False  # the model, not the prompt, opens the think block
    both_fields: bool = False  # end of reasoning and start of content in one chunk
    ends_in_trace: bool = False  # finish with the reasoning, without an answer
    reopens: int = 0  # traces that the model opens in its answer, each after the last is closed
    empty: int = 0  # every n-th token is an incomplete character, without text
    usage_each: bool = False  # usage on every chunk
    # Probes
    trial: str | tuple[str, ...] = "42"
    trial_logprob: float | tuple[float, ...] = -0.01  # natural log, of each token
    hidden: float | tuple[float, ...] | None = (
        None  # every value of the hidden states; None: omit them
    )
    hidden_layers: tuple[int, ...] = (2, 5)
    hidden_width: int = 2
    probe_delay: float = 0.0  # seconds
    probe_status: int | None = None
    # Embeddings and rewards
    pooling_delay: float = 0.0  # seconds
    pooling_status: int | None = None
    # Faults
    delay_first: float = 0.0  # seconds from the headers to the first chunk
    status: int | None = None  # answer with this status
    retry_after: int | None = None
    die_after: int | None = None  # drop the connection after n tokens
    stall_after: int | None = None  # send nothing more after n tokens
    error_event_after: int | None = None  # after n tokens an error event and [DONE], as vLLM
    no_done: bool = False  # end cleanly without [DONE]
    ignore_prompt_ids: bool = False  # render the messages even if the request has prompt ids
    # The byte stream
    crlf: bool = False
    comments: int = 0  # a keep-alive comment before every n-th chunk
    tiny_writes: bool = False  # write parts of 1 to 40 bytes, at random
    split_utf8: bool = False  # split each multi-byte character across writes
    seed: int = 0  # of the random sizes
    by_seed: tuple[tuple[int, Mapping[str, Any]], ...] = ()  # (request seed, fields to override)

    def updated(self, overrides: Mapping[str, Any]) -> Scenario:
        """A copy with these fields replaced.

        Raises BadScenario for an unknown field.
        """
        known = {field.name for field in fields(self)}
        if unknown := sorted(set(overrides) - known):
            raise BadScenario(f"no such standin field: {', '.join(unknown)}")
        changes: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in overrides.items()
        }
        return replace(self, **changes)

    def for_seed(self, seed: Any) -> Scenario:
        """The scenario of a request with this seed."""
        return self.updated(next((fields for own, fields in self.by_seed if own == seed), {}))

    def trace_ids(self) -> list[int]:
        """The token ids of the reasoning."""
        repeats = -(-self.tokens // len(v.REASONING_IDS))
        tokens = list((v.REASONING_IDS * repeats)[: self.tokens])
        for position in self.cues:
            tokens[position : position + 2] = v.encode(" Wait,")[: max(len(tokens) - position, 0)]
        if self.empty:
            tokens[:: self.empty] = [v.PARTIAL_CHAR] * len(tokens[:: self.empty])
        return tokens

    def answer_ids(self) -> list[int]:
        """The token ids of the answer."""
        if self.answer is not None:
            return v.encode(self.answer)
        return (v.encode("The answer is 42.") * self.answer_tokens)[: self.answer_tokens]

    def output_ids(self, *, starts_in_trace: bool, trace_count: int = 1) -> list[int]:
        """All tokens that the model generates.

        ``starts_in_trace``: the prompt ends in an open trace. ``trace_count``: traces in the
        prompt.
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
        """(trial answer, log-probability of each of its tokens) of the probe with this index."""
        return _value_at(self.trial, probe_index), _value_at(self.trial_logprob, probe_index)

    def hidden_states(self, probe_index: int) -> dict[str, Any] | None:
        """The `hidden_states` of the probe with this index, as engine/adjourn_hidden_states.py
        returns them; None if they are omitted."""
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


def _value_at(value: Any, index: int) -> Any:
    return value[min(index, len(value) - 1)] if isinstance(value, tuple) else value
