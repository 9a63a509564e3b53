"""The pocket model's tasks: problems with one answer, and thoughts that slip, doubt and settle."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from adjourn.lab.grid import expand
from adjourn.lab.policy_parser import parse_policy
from adjourn.policies.evidence.answers import INDUCERS_BY_KIND
from adjourn.policies.text.cues import CueScanner
from benchmarks.pocket import TASKS
from benchmarks.pocket.task import Task
from benchmarks.policy_sweep import RECORDINGS, with_answer_kind

EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def thoughts(task: Task, count: int = 300):
    rng = random.Random(1)
    for problem in islice(task.training_problems(rng), count):
        yield problem, task.write_trace(problem, rng)


@EVERY
def test_what_is_held_out_is_never_trained_on(task: Task) -> None:
    """In no wording; and the same problems are held out each time."""
    kept = task.held_out_problems(30)
    assert kept == task.held_out_problems(30)
    assert len({problem.key for problem in kept}) == 30
    drawn = {problem.key for problem in islice(task.training_problems(random.Random(2)), 2000)}
    assert not drawn & {problem.key for problem in kept}


@EVERY
def test_a_thought_closes_where_it_has_settled(task: Task) -> None:
    """Its last two derivations agree; more thoughts settle on the answer than begin with it."""
    first, last = 0, 0
    for problem, pieces in thoughts(task):
        candidates = [piece.candidate for piece in pieces if piece.candidate is not None]
        assert pieces[-1].candidate == candidates[-2]
        assert task.find_first_candidate("".join(piece.text for piece in pieces)) == candidates[0]
        first += candidates[0] == problem.answer
        last += candidates[-1] == problem.answer
    assert 0.5 * 300 < first < 0.85 * 300
    assert last > 0.85 * 300


@EVERY
def test_nothing_slips_where_nothing_is_hard(task: Task) -> None:
    """And what has slipped somewhere may yet be right, but what has not is."""
    for problem, pieces in thoughts(task):
        slipped = False
        for piece in pieces:
            slipped = slipped or piece.slipped is True
            if piece.candidate is not None:
                assert slipped or piece.candidate == problem.answer
                assert problem.hard_steps or piece.candidate == problem.answer
                slipped = False


@EVERY
def test_every_second_look_opens_with_a_cue_of_the_dialect(task: Task) -> None:
    """One each, of those that the task names, and no other stands in a thought."""
    for _, pieces in thoughts(task, 100):
        scanner = CueScanner(task.chat.dialect.cues)
        cues = scanner.feed("".join(piece.text for piece in pieces)) + scanner.close()
        derivations = sum(piece.candidate is not None for piece in pieces)
        assert len(cues) == derivations - 1
        assert {cue.word for cue in cues} <= set(task.cues)


@EVERY
def test_every_wording_of_an_answer_is_read(task: Task) -> None:
    """As the project reads answers; what is induced begins with the dialect's own text."""
    problem = task.held_out_problems(1)[0]
    words = task.texts
    for wording, _ in words.answers + words.induced:
        assert problem.is_correct(wording.format(problem.answer))
    inducer = task.chat.dialect.inducers[INDUCERS_BY_KIND[task.answer_kind]]
    assert any(inducer in wording.prefix + wording.template for wording, _ in words.induced)


@EVERY
def test_every_policy_is_asked_for_answers_of_the_tasks_kind(task: Task) -> None:
    """Where it draws a kind at all."""
    for lines in RECORDINGS.values():
        for line in with_answer_kind(lines, task):
            for specification in expand(line):
                policy = parse_policy(specification)
                assert getattr(policy, "task", task.answer_kind) == task.answer_kind
