"""``first-try`` stops at the first answers that a trace states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import Stop
from adjourn.policies.stopping.first_try import FirstTry
from adjourn.policies.text.boundaries import BoundaryScanner
from tests.policies.session_helpers import boundary_checkpoint, cue_checkpoint, probe_result

ANSWER = "So the answer is 7."


def stops(policy: FirstTry, sentences: list[tuple[int, str]]) -> int | None:
    """Where it stops, in a trace of (end position, sentence)."""
    stopper = policy.start()
    for position, text in sentences:
        if (stop := stopper.observe(boundary_checkpoint("sentence", position, text))) is not None:
            assert stop == Stop("answered", position)
            return position
    return None


@pytest.mark.parametrize(
    ("sentence", "states"),
    [
        ("So the result is 165.", True),
        ("The answer is 7", True),
        ("Thus the final answer: the answer is \\frac{1}{2}.", True),
        ("I get \\boxed{42}.", True),
        ("The ANSWER should be -3.", True),
        ("The solution is x = 3.", True),
        ("Put it in \\boxed{}.", False),
        ("What is the result?", False),
        ("Is the answer 7?", False),
        ("If the answer is 7, then 3 + 4 must be too.", False),
        ("The answer is not 7.", False),
        ("The answer is wrong.", False),
        ("22 * 7 = 154", False),
        ("The answers are many.", False),
        ("My answerer is 7.", False),
        ("The answer is", False),
    ],
)
def test_sentences_that_state_an_answer(sentence: str, states: bool) -> None:
    """A boxed answer or "the answer is …"; not a question, a condition or a negation."""
    assert (stops(FirstTry(), [(9, sentence)]) == 9) == states


def test_an_easy_question_needs_one_answer() -> None:
    """It is easy because the first answer came within ``easy_tokens``."""
    assert stops(FirstTry(easy_tokens=100), [(50, "Hm."), (100, ANSWER), (150, ANSWER)]) == 100


def test_a_hard_question_needs_three_answers() -> None:
    """It is hard because the first answer took longer; the later ones do not matter."""
    tries = [(101, ANSWER), (150, "Wait."), (200, ANSWER), (201, ANSWER), (300, ANSWER)]
    assert stops(FirstTry(easy_tokens=100), tries) == 201


def test_a_trace_without_answers_is_never_stopped() -> None:
    """Trap 6: over a long trace, and whatever other events come."""
    stopper = FirstTry().start()
    events = [boundary_checkpoint("sentence", n, "Hm.") for n in range(500)] + [
        cue_checkpoint(500),
        probe_result(500),
    ]
    assert [stopper.observe(event) for event in events] == [None] * len(events)
    assert stopper.observe(boundary_checkpoint("paragraph", 501, ANSWER)) is None


@given(st.lists(st.integers(1, 6), max_size=40))
def test_answers_are_counted_however_the_text_is_split(sizes: list[int]) -> None:
    """Trap 2: an answer that is split over chunks counts once."""
    text = "So the answer is 7. Wait.\n\nI get \\boxed{8}! The result is 3.5 or so.\nNext"
    scanner, stopper, count = BoundaryScanner(), FirstTry(easy=9, hard=9).start(), 0
    for size in [*sizes, len(text)]:
        for end in scanner.feed(text[:size]):
            if end.kind == "sentence":
                stopper.observe(boundary_checkpoint("sentence", 0, end.text))
        text = text[size:]
    while stopper.observe(boundary_checkpoint("sentence", 0, ANSWER)) is None:
        count += 1
    assert count == 9 - 3 - 1


@pytest.mark.parametrize("options", [{"easy": 0}, {"easy": 4}, {"easy_tokens": -1}])
def test_invalid_options_are_refused(options: dict[str, int]) -> None:
    """No answers for an easy question, or fewer for a hard one than for an easy one."""
    with pytest.raises(ValueError, match="at least"):
        FirstTry(**options)
