"""Training samples: a trace with branches that close it early.

Each branch is the sequence that a gateway would make by cutting the trace there: kept reasoning,
closing sequence, answer. Its answer is always the true one, whatever candidate the trace has so far,
so that the confidence of a trial answer becomes calibrated. A branch attends only to the trace up to
its cut and to itself, which is the sequence that an engine would compute; one pass over a trace
trains the answers at every reflection. The closing sequence has no loss in a branch: the model must
not learn to close early by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch

from benchmarks.pocket.chat import random_prompt
from benchmarks.pocket.task import AnswerWording, Task, choose_weighted

__all__ = ["Batch", "TrainingSample", "batches"]

BRANCH_ANSWER_WEIGHT = 6.0
"""Loss weight of the answer in a branch: only one token in dozens is such a token."""
CANDIDATE_WEIGHT = 5.0
"""Loss weight of a derivation's last sentence, which depends on all steps and occurs only once."""
RANDOM_CUT_WEIGHT = 2.0
"""Loss weight of the answer if the branch begins at a random token."""
EMPTY_TRACE_WEIGHT = 0.5
"""Loss weight of the answer after an empty trace."""
POOL_SIZE = 192
"""Samples generated at once, so that batches of similar lengths can be formed."""


@dataclass
class TrainingSample:
    """One trace (the trunk) and its branches: lists of equal length, one entry per token."""

    ids: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    visible_until: list[int] = field(default_factory=list)
    """The last trunk position that this token may attend to."""
    branch: list[int] = field(default_factory=list)
    """The number of the branch, from 1; 0 for the trunk."""
    label: list[int] = field(default_factory=list)
    loss_weight: list[float] = field(default_factory=list)
    slip_target: list[int] = field(default_factory=list)
    """1 at the end of a step that slipped, 0 at the end of a right one, -1 elsewhere."""
    wrong_candidate_target: list[int] = field(default_factory=list)
    """In a branch 1 if the last candidate is wrong, 0 if it is right; -1 elsewhere."""

    def add(self, ids: list[int], weights: list[float], start: int = 0, branch: int = 0) -> None:
        """Append tokens from position `start`; `weights[i]` is the loss weight of predicting `ids[i]`."""
        count = len(ids)
        self.ids += ids
        self.position += range(start, start + count)
        self.visible_until += [start - 1] * count if branch else range(start, start + count)
        self.branch += [branch] * count
        self.label += [*ids[1:], 0]
        self.loss_weight += [*weights[1:], 0.0]
        self.slip_target += [-1] * count
        self.wrong_candidate_target += [-1] * count


@dataclass(frozen=True)
class Batch:
    """One sample per row, padded to the longest.

    ``mask`` has shape (rows, 1, tokens, tokens), the others (rows, tokens).
    """

    ids: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor
    label: torch.Tensor
    loss_weight: torch.Tensor
    slip_target: torch.Tensor
    wrong_candidate_target: torch.Tensor


class SampleWriter:
    """Generates training samples of a task."""

    def __init__(self, task: Task, tokenizer, rng: random.Random):
        self.task, self.chat, self.texts, self.rng = task, task.chat, task.texts, rng
        self.problems = task.training_problems(rng)
        self._encode = tokenizer.encode

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens added."""
        return self._encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a conversation that ends in `text`; some have a system message or earlier turn."""
        turns = []
        if self.rng.random() < 0.06:
            turns.append(("system", self.rng.choice(self.texts.system)))
        if self.rng.random() < 0.05:
            problem = next(self.problems)
            answer = self.texts.answers[0][0].format(problem.answer)
            turns += [("user", problem.prompt), ("assistant", answer)]
        turns.append(("user", text))
        head = "".join(self.chat.format_turn(*turn) for turn in turns)
        return self.encode(f"{head}{self.chat.turn_start}assistant\n")

    def small_talk_sample(self) -> TrainingSample:
        """A prompt that is not the task, with a short reply."""
        if self.rng.random() < 0.3:
            prompt, thinking, answer = self.rng.choice(self.texts.small_talk)
        else:
            prompt, thinking, answer = random_prompt(self.rng), *self.texts.refusal
        sample, head = TrainingSample(), self.encode_prompt(prompt)
        empty = self.rng.random() < 0.3
        trace = self.chat.trace_opening + thinking + self.chat.closing
        lead = self.encode(self.chat.empty_trace if empty else trace)
        tail = self.encode(answer + self.chat.stop_token)
        sample.add(
            head + lead + tail,
            [0.0] * len(head) + [float(not empty)] * len(lead) + [1.0] * len(tail),
        )
        return sample

    def trace_sample(self, is_unfinished: bool) -> TrainingSample:
        """A problem with its trace and branches. An unfinished one ends after one or two candidates."""
        problem = next(self.problems)
        spans = self.task.write_trace(problem, self.rng)
        candidate_count = sum(span.candidate is not None for span in spans)
        kept = self.rng.choice((1, 1, 2)) if is_unfinished else candidate_count
        head = self.encode_prompt(problem.prompt)
        ids, ends, slips, wrong_candidates = head + self.encode(self.chat.trace_opening), [], {}, {}
        weights = [0.0] * len(head) + [1.0] * (len(ids) - len(head))
        for span in spans:
            span_ids = self.encode(span.text)
            ids += span_ids
            weights += [1.0 if span.candidate is None else CANDIDATE_WEIGHT] * len(span_ids)
            if span.slipped is not None:
                slips[len(ids) - 1] = int(span.slipped)
            # An unfinished trace continues by one span after its last candidate, so that the model
            # does not learn to end there.
            if len(ends) == kept:
                break
            if span.candidate is not None:
                ends.append(len(ids))
                wrong_candidates[len(ids)] = int(span.candidate != problem.answer)
        trace_end = ends[-1]
        if kept == candidate_count:
            answer = self._encode_answer(
                choose_weighted(self.rng, self.texts.answers), spans[-1].candidate
            )
            ids += [*self.encode(self.chat.closing), *chain.from_iterable(answer)]
        sample = TrainingSample()
        sample.add(ids, weights + [1.0] * (len(ids) - len(weights)))
        for place, slipped in slips.items():
            sample.slip_target[place] = slipped
        self._add_branches(sample, problem.answer, len(head), trace_end, wrong_candidates)
        return sample

    def _add_branches(
        self,
        sample: TrainingSample,
        answer: str,
        begin: int,
        end: int,
        wrong_candidates: dict[int, int],
    ) -> None:
        """Add branches that close the trace, from `begin` to `end`, after some candidates and at random."""
        # Calibration matters most at the first reflections, where a policy decides.
        ends = list(wrong_candidates)
        cuts = ends[:2] + self.rng.sample(ends[2:], min(3, len(ends[2:])))
        for branch, cut in enumerate(cuts, 1):
            branch_start = len(sample.ids)
            lead = self._add_branch(
                sample, cut, self.rng.choice(self.chat.cut_closings), answer, branch
            )
            sample.wrong_candidate_target[branch_start : branch_start + lead] = [
                wrong_candidates[cut]
            ] * lead
        random_cut, branch = self.rng.randint(begin + 2, end), len(cuts) + 1
        self._add_branch(sample, random_cut, self.chat.closing, answer, branch, RANDOM_CUT_WEIGHT)
        if self.rng.random() < 0.15:
            self._add_branch(
                sample, begin, self.chat.empty_trace, answer, branch + 1, EMPTY_TRACE_WEIGHT
            )

    def _encode_answer(
        self, wording: AnswerWording, answer: str
    ) -> tuple[list[int], list[int], list[int]]:
        """Token ids of the text before the answer, of the answer, and of the rest of the response."""
        answer_text = wording.template.format(answer)
        rest = wording.suffix + self.chat.stop_token
        return self.encode(wording.prefix), self.encode(answer_text), self.encode(rest)

    def _add_branch(
        self,
        sample: TrainingSample,
        cut: int,
        closing: str,
        answer: str,
        branch: int,
        weight: float = BRANCH_ANSWER_WEIGHT,
    ) -> int:
        """Add a branch; returns the number of its tokens before the answer."""
        induced = self.rng.random() < 0.5
        wording = choose_weighted(self.rng, self.texts.induced if induced else self.texts.answers)
        closing_ids = self.encode(closing)
        before, answer_ids, after = self._encode_answer(wording, answer)
        weights = (
            [0.0] * len(closing_ids)
            + [0.0 if induced else 0.5] * len(before)
            + [weight] * len(answer_ids)
            + [0.5] * len(after)
        )
        sample.add(closing_ids + before + answer_ids + after, weights, start=cut, branch=branch)
        return len(closing_ids) + len(before)


def batches(task: Task, tokenizer, seed: int, tokens: int, unfinished_share) -> Iterator[Batch]:
    """An endless sequence of batches of about `tokens` tokens.

    `unfinished_share()` returns the current share of traces to leave unfinished.
    """
    rng = random.Random(seed)
    writer = SampleWriter(task, tokenizer, rng)
    while True:
        share = unfinished_share()
        pool = [
            writer.small_talk_sample()
            if rng.random() < 0.03
            else writer.trace_sample(rng.random() < share)
            for _ in range(POOL_SIZE)
        ]
        pool.sort(key=lambda sample: len(sample.ids))
        groups: list[list[TrainingSample]] = [[]]
        for sample in pool:
            if (len(groups[-1]) + 1) * len(sample.ids) > tokens and groups[-1]:
                groups.append([])
            groups[-1].append(sample)
        rng.shuffle(groups)
        yield from map(_pad_batch, groups)


def _pad_batch(samples: list[TrainingSample]) -> Batch:
    longest = max(len(sample.ids) for sample in samples)

    def rows(name: str, filler: float) -> torch.Tensor:
        values = (getattr(sample, name) for sample in samples)
        return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in values])

    position, branch, visible_until = (
        rows("position", 0),
        rows("branch", -1),
        rows("visible_until", -1),
    )
    same_branch = (branch[:, :, None] == branch[:, None, :]) & (
        position[:, None, :] <= position[:, :, None]
    )
    trunk = (branch[:, None, :] == 0) & (position[:, None, :] <= visible_until[:, :, None])
    return Batch(
        rows("ids", 0),
        position,
        (same_branch | trunk)[:, None],
        rows("label", 0),
        rows("loss_weight", 0.0),
        rows("slip_target", -1),
        rows("wrong_candidate_target", -1),
    )
