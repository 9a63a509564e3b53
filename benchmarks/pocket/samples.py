"""Training samples: a trace with every early close grafted on as a branch.

Each branch is what a gateway would make of the trace by cutting it there: kept thought, closing sequence, answer;
and its answer is the true one, whatever the thought believed so far. So the confidence of a trial answer
is the model's own calibrated belief. A branch sees the trace up to its cut and itself, nothing else, which is
exactly the sequence that an engine would compute; one pass over a trace trains its belief at every reflection.
The closing itself carries no loss in a branch: the model must not learn to close early of its own accord.
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
"""Loss weight of the answer itself in a branch: there is one such token in dozens."""
CANDIDATE_WEIGHT = 5.0
"""Loss weight of a derivation's last sentence: it is read off all before it, and stands but once."""
RANDOM_CUT_WEIGHT = 2.0
"""The same, where the branch begins at a random token."""
EMPTY_TRACE_WEIGHT = 0.5
"""The same, where nothing was thought."""
POOL_SIZE = 192
"""Samples drawn at once, so that a batch can be of similar lengths."""


@dataclass
class TrainingSample:
    """One trace and its branches, flat: a row of equally long lists, one entry per token."""

    ids: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    visible_until: list[int] = field(default_factory=list)
    """The last position of the trunk that this token may attend to."""
    branch: list[int] = field(default_factory=list)
    """0 for the trunk."""
    label: list[int] = field(default_factory=list)
    loss_weight: list[float] = field(default_factory=list)
    slip_target: list[int] = field(default_factory=list)
    """1 at the end of a step that slipped, 0 at the end of a good one, -1 elsewhere."""
    wrong_candidate_target: list[int] = field(default_factory=list)
    """In a branch 1 where the last candidate is wrong, 0 where it is right; -1 elsewhere."""

    def add(self, ids: list[int], weights: list[float], start: int = 0, branch: int = 0) -> None:
        """Append a run of tokens at position `start`; `weights[i]` weighs the loss on predicting `ids[i]`."""
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
    """Rows of one sample each, padded to the longest."""

    ids: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor
    label: torch.Tensor
    loss_weight: torch.Tensor
    slip_target: torch.Tensor
    wrong_candidate_target: torch.Tensor


class SampleWriter:
    """Writes samples of a task with a tokenizer."""

    def __init__(self, task: Task, tokenizer, rng: random.Random):
        self.task, self.chat, self.texts, self.rng = task, task.chat, task.texts, rng
        self.problems = task.training_problems(rng)
        self._encode = tokenizer.encode

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        return self._encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """A rendered conversation that ends in `text`; now and then with a system message or an earlier turn."""
        turns = []
        if self.rng.random() < 0.06:
            turns.append(("system", self.rng.choice(self.texts.system)))
        if self.rng.random() < 0.05:
            one = next(self.problems)
            said = self.texts.answers[0][0].format(one.answer)
            turns += [("user", one.prompt), ("assistant", said)]
        turns.append(("user", text))
        head = "".join(self.chat.format_turn(*turn) for turn in turns)
        return self.encode(f"{head}{self.chat.turn_start}assistant\n")

    def small_talk_sample(self) -> TrainingSample:
        """A prompt that is not the task, and a short way out of it."""
        if self.rng.random() < 0.3:
            prompt, thinking, answer = self.rng.choice(self.texts.small_talk)
        else:
            prompt, thinking, answer = random_prompt(self.rng), *self.texts.refusal
        sample, head = TrainingSample(), self.encode_prompt(prompt)
        empty = self.rng.random() < 0.3
        thought = self.chat.trace_opening + thinking + self.chat.closing
        lead = self.encode(self.chat.empty_trace if empty else thought)
        tail = self.encode(answer + self.chat.stop_token)
        sample.add(
            head + lead + tail,
            [0.0] * len(head) + [float(not empty)] * len(lead) + [1.0] * len(tail),
        )
        return sample

    def trace_sample(self, is_unfinished: bool) -> TrainingSample:
        """A problem thought through, with its branches. A brief one breaks off behind a candidate or two."""
        one = next(self.problems)
        pieces = self.task.write_trace(one, self.rng)
        settled = sum(piece.candidate is not None for piece in pieces)
        kept = self.rng.choice((1, 1, 2)) if is_unfinished else settled
        head = self.encode_prompt(one.prompt)
        ids, ends, slips, wrongs = head + self.encode(self.chat.trace_opening), [], {}, {}
        weights = [0.0] * len(head) + [1.0] * (len(ids) - len(head))
        for piece in pieces:
            written = self.encode(piece.text)
            ids += written
            weights += [1.0 if piece.candidate is None else CANDIDATE_WEIGHT] * len(written)
            if piece.slipped is not None:
                slips[len(ids) - 1] = int(piece.slipped)
            # A brief one has what follows its last candidate, so that it isn't learned to end there.
            if len(ends) == kept:
                break
            if piece.candidate is not None:
                ends.append(len(ids))
                wrongs[len(ids)] = int(piece.candidate != one.answer)
        thought_end = ends[-1]
        if kept == settled:
            answer = self._encode_answer(
                choose_weighted(self.rng, self.texts.answers), pieces[-1].candidate
            )
            ids += [*self.encode(self.chat.closing), *chain.from_iterable(answer)]
        sample = TrainingSample()
        sample.add(ids, weights + [1.0] * (len(ids) - len(weights)))
        for place, slipped in slips.items():
            sample.slip_target[place] = slipped
        self._add_branches(sample, one.answer, len(head), thought_end, wrongs)
        return sample

    def _add_branches(
        self, sample: TrainingSample, answer: str, begin: int, end: int, wrongs: dict[int, int]
    ) -> None:
        """Close the thought, which lies between two positions, behind some candidates and elsewhere."""
        # Beliefs count most where a policy decides: at the first reflections.
        ends = list(wrongs)
        cuts = ends[:2] + self.rng.sample(ends[2:], min(3, len(ends[2:])))
        for branch, cut in enumerate(cuts, 1):
            begun = len(sample.ids)
            lead = self._add_branch(
                sample, cut, self.rng.choice(self.chat.cut_closings), answer, branch
            )
            sample.wrong_candidate_target[begun : begun + lead] = [wrongs[cut]] * lead
        anywhere, branch = self.rng.randint(begin + 2, end), len(cuts) + 1
        self._add_branch(sample, anywhere, self.chat.closing, answer, branch, RANDOM_CUT_WEIGHT)
        if self.rng.random() < 0.15:
            self._add_branch(
                sample, begin, self.chat.empty_trace, answer, branch + 1, EMPTY_TRACE_WEIGHT
            )

    def _encode_answer(
        self, wording: AnswerWording, answer: str
    ) -> tuple[list[int], list[int], list[int]]:
        """What stands before an answer, the answer, and the rest of the response."""
        written = wording.template.format(answer)
        rest = wording.suffix + self.chat.stop_token
        return self.encode(wording.prefix), self.encode(written), self.encode(rest)

    def _add_branch(
        self,
        sample: TrainingSample,
        cut: int,
        closing: str,
        answer: str,
        branch: int,
        weight: float = BRANCH_ANSWER_WEIGHT,
    ) -> int:
        """Add a branch; how many of its tokens stand before the answer itself."""
        induced = self.rng.random() < 0.5
        wording = choose_weighted(self.rng, self.texts.induced if induced else self.texts.answers)
        closed = self.encode(closing)
        before, written, after = self._encode_answer(wording, answer)
        weights = (
            [0.0] * len(closed)
            + [0.0 if induced else 0.5] * len(before)
            + [weight] * len(written)
            + [0.5] * len(after)
        )
        sample.add(closed + before + written + after, weights, start=cut, branch=branch)
        return len(closed) + len(before)


def batches(task: Task, tokenizer, seed: int, tokens: int, unfinished_share) -> Iterator[Batch]:
    """Batches of about `tokens` tokens, without end. `brief()` is the share of traces to leave unfinished, now."""
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

    position, branch, sees = rows("position", 0), rows("branch", -1), rows("visible_until", -1)
    own = (branch[:, :, None] == branch[:, None, :]) & (
        position[:, None, :] <= position[:, :, None]
    )
    trunk = (branch[:, None, :] == 0) & (position[:, None, :] <= sees[:, :, None])
    return Batch(
        rows("ids", 0),
        position,
        (own | trunk)[:, None],
        rows("label", 0),
        rows("loss_weight", 0.0),
        rows("slip_target", -1),
        rows("wrong_candidate_target", -1),
    )
