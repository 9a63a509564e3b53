"""The states of a request under a policy, and the transitions between them.

    state        input           next        when
    -----------  --------------  ----------  -----------------------------------------------------
    opening      think           thinking    the prompt's or the output's ids open a trace
    opening      answer          answering   no trace: everything is the answer
    opening      stop            closing     no trace, but the answer comes from a second request
    thinking     probe           probing     a checkpoint is held back, a probe is in flight
    thinking     stop            closing     a stop without a probe (budget, loop), or the trace
                                             ended and its answer comes from a second request
    thinking     extend          reopening   the model would end its trace too soon, or too late
    thinking     answer          answering   the model ended its trace
    probing      probe           probing     a second query at the same checkpoint
    probing      continue        thinking    the probe brought no stop: release what was held back
    probing      stop            closing     the probe brought a stop
    probing      extend          reopening   the model would end its trace before the probe's result
    probing      answer          answering   the model ended its trace before the probe's result
    reopening    resumed         thinking    the trace continues after the inserted text
    reopening    refused         thinking    the engine refused: the model's own end applies
    closing      resumed         answering   the answer streams from the kept prefix
    closing      refused         thinking    the engine refused: the main stream goes on, muted
    closing      ended in place  thinking    the engine ends the trace itself, in the main stream
    any          end             done        the response is over

A test compares this text with ``TRANSITIONS``.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TRANSITIONS", "Input", "State"]


class State(Enum):
    """Where a request is. ``DONE`` and ``ANSWERING`` have no way back to the trace."""

    OPENING = "opening"
    THINKING = "thinking"
    PROBING = "probing"
    CLOSING = "closing"
    REOPENING = "reopening"
    ANSWERING = "answering"
    DONE = "done"


class Input(Enum):
    """What moves a request from one state to the next."""

    THINK = "think"
    ANSWER = "answer"
    PROBE = "probe"
    CONTINUE = "continue"
    STOP = "stop"
    EXTEND = "extend"
    RESUMED = "resumed"
    REFUSED = "refused"
    ENDED_IN_PLACE = "ended in place"
    END = "end"


TRANSITIONS: dict[State, dict[Input, State]] = {
    State.OPENING: {
        Input.THINK: State.THINKING,
        Input.ANSWER: State.ANSWERING,
        Input.STOP: State.CLOSING,
    },
    State.THINKING: {
        Input.PROBE: State.PROBING,
        Input.STOP: State.CLOSING,
        Input.EXTEND: State.REOPENING,
        Input.ANSWER: State.ANSWERING,
    },
    State.PROBING: {
        Input.PROBE: State.PROBING,
        Input.CONTINUE: State.THINKING,
        Input.STOP: State.CLOSING,
        Input.EXTEND: State.REOPENING,
        Input.ANSWER: State.ANSWERING,
    },
    State.CLOSING: {
        Input.RESUMED: State.ANSWERING,
        Input.REFUSED: State.THINKING,
        Input.ENDED_IN_PLACE: State.THINKING,
    },
    State.REOPENING: {Input.RESUMED: State.THINKING, Input.REFUSED: State.THINKING},
    State.ANSWERING: {},
    State.DONE: {},
}
for _row in TRANSITIONS.values():
    _row[Input.END] = State.DONE
