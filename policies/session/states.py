"""The states of a request under a policy, and what leads from one to the next.

    state        input      next        what happens
    -----------  ---------  ----------  -----------------------------------------------------
    opening      think      thinking    the prompt's or the output's ids open a trace
    opening      answer     answering   no trace: everything is the answer
    opening      stop       closing     no trace, but the answer is to be drawn apart
    thinking     probe      probing     a checkpoint is held, a probe is on its way
    thinking     stop       closing     a trigger without a probe (budget, loop), or the trace ended
                                        and its answer is to be drawn apart
    thinking     extend     reopening   the model would end its trace too soon, or too late
    thinking     answer     answering   the model ended its trace
    probing      probe      probing     a second question at the same checkpoint
    probing      continue   thinking    the probe said no: what was held is released
    probing      stop       closing     the probe said yes
    probing      extend     reopening   it would, and was faster than the probe
    probing      answer     answering   the model was faster: what was held is released
    reopening    resumed    thinking    the trace goes on behind what was put into it
    reopening    refused    thinking    the engine would not: the model's own end comes after all
    closing      resumed    answering   the answer streams from the kept prefix
    closing      refused    thinking    the engine would not: the main stream goes on, unjudged
    closing      ended in place  thinking    the engine ends the trace itself, in the main stream
    any          end        done

A test keeps this and the table in force the same.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TRANSITIONS", "Input", "State"]


class State(Enum):
    OPENING = "opening"
    THINKING = "thinking"
    PROBING = "probing"
    CLOSING = "closing"
    REOPENING = "reopening"
    ANSWERING = "answering"
    DONE = "done"


class Input(Enum):
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
