"""The pocket model's tasks: problems with one answer, and traces with slips and reflections."""

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

EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def traces(task: Task, count: int = 300):
    rng = random.Random(1)
    for problem in islice(task.training_problems(rng), count):
        yield problem, task.write_trace(problem, rng)


@EVERY_TASK
def test_held_out_problems_are_never_trained_on(task: Task) -> None:
    """In no wording; and each call returns the same held-out problems."""
    held_out = task.held_out_problems(30)
    assert held_out == task.held_out_problems(30)
    assert len({problem.key for problem in held_out}) == 30
    trained = {problem.key for problem in islice(task.training_problems(random.Random(2)), 2000)}
    assert not trained & {problem.key for problem in held_out}


@EVERY_TASK
def test_a_trace_closes_only_after_two_equal_candidates(task: Task) -> None:
    """And more traces end with the right candidate than begin with it."""
    first, last = 0, 0
    for problem, spans in traces(task):
        candidates = [span.candidate for span in spans if span.candidate is not None]
        assert spans[-1].candidate == candidates[-2]
        assert task.find_first_candidate("".join(span.text for span in spans)) == candidates[0]
        first += candidates[0] == problem.answer
        last += candidates[-1] == problem.answer
    assert 0.5 * 300 < first < 0.85 * 300
    assert last > 0.85 * 300


@EVERY_TASK
def test_only_hard_steps_slip(task: Task) -> None:
    """A derivation without a slip has the right result; one with a slip may have it by chance."""
    for problem, spans in traces(task):
        slipped = False
        for span in spans:
            slipped = slipped or span.slipped is True
            if span.candidate is not None:
                assert slipped or span.candidate == problem.answer
                assert problem.hard_steps or span.candidate == problem.answer
                slipped = False


@EVERY_TASK
def test_every_later_derivation_begins_with_a_cue_of_the_dialect(task: Task) -> None:
    """One cue each, of the task's list; a trace has no other cues."""
    for _, spans in traces(task, 100):
        scanner = CueScanner(task.chat.dialect.cues)
        cues = scanner.feed("".join(span.text for span in spans)) + scanner.close()
        derivations = sum(span.candidate is not None for span in spans)
        assert len(cues) == derivations - 1
        assert {cue.word for cue in cues} <= set(task.cues)


@EVERY_TASK
def test_every_wording_of_an_answer_is_extracted(task: Task) -> None:
    """Induced answers begin with an inducer of the dialect."""
    problem = task.held_out_problems(1)[0]
    words = task.texts
    for wording, _ in words.answers + words.induced:
        assert problem.is_correct(wording.format(problem.answer))
    inducer = task.chat.dialect.inducers[INDUCERS_BY_KIND[task.answer_kind]]
    assert any(inducer in wording.prefix + wording.template for wording, _ in words.induced)


@EVERY_TASK
def test_every_policy_of_the_sweep_uses_the_answer_kind_of_the_task(task: Task) -> None:
    """If it has an option for the kind."""
    for lines in RECORDINGS.values():
        for line in with_answer_kind(lines, task):
            for specification in expand(line):
                policy = parse_policy(specification)
                assert getattr(policy, "task", task.answer_kind) == task.answer_kind
