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

import torch

from benchmarks.pocket import chat, task
from benchmarks.pocket.tokenizer import END

__all__ = ["Batch", "Sample", "batches"]

BELIEF_WEIGHT = 6.0
"""Loss weight of an answer's digits in a branch: there is one such token in dozens."""
POOL = 192
"""Samples drawn at once, so that a batch can be of similar lengths."""


@dataclass
class Sample:
    """One trace and its branches, flat: a row of equally long lists, one entry per token."""

    ids: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    sees: list[int] = field(default_factory=list)
    """The last position of the trunk that this token may attend to."""
    branch: list[int] = field(default_factory=list)
    """0 for the trunk."""
    label: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    slip: list[int] = field(default_factory=list)
    """1 at the end of a line that slipped, 0 at the end of a good one, -1 elsewhere."""
    wrong: list[int] = field(default_factory=list)
    """In a branch 1 where the last candidate is wrong, 0 where it is right; -1 elsewhere."""

    def add(self, ids: list[int], weights: list[float], start: int = 0, branch: int = 0) -> None:
        """Append a run of tokens at position `start`; `weights[i]` weighs the loss on predicting `ids[i]`."""
        count = len(ids)
        self.ids += ids
        self.position += range(start, start + count)
        self.sees += [start - 1] * count if branch else range(start, start + count)
        self.branch += [branch] * count
        self.label += [*ids[1:], 0]
        self.weight += [*weights[1:], 0.0]
        self.slip += [-1] * count
        self.wrong += [-1] * count


@dataclass(frozen=True)
class Batch:
    """Rows of one sample each, padded to the longest."""

    ids: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor
    slip: torch.Tensor
    wrong: torch.Tensor


class Writer:
    """Writes samples with a tokenizer."""

    def __init__(self, tokenizer, rng: random.Random):
        self.rng = rng
        self.problems = task.training(rng)
        self._encode = tokenizer.encode

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        return self._encode(text, add_special_tokens=False).ids

    def prompt(self, text: str) -> list[int]:
        """A rendered conversation that ends in `text`; now and then with a system message or an earlier turn."""
        head = ""
        if self.rng.random() < 0.06:
            head = f"<|im_start|>system\n{self.rng.choice(chat.SYSTEM)}{END}\n"
        if self.rng.random() < 0.05:
            one = next(self.problems)
            said = chat.ANSWERS[0].format(one.answer)
            head += f"<|im_start|>user\n{one.prompt}{END}\n<|im_start|>assistant\n{said}{END}\n"
        return self.encode(f"{head}<|im_start|>user\n{text}{END}\n<|im_start|>assistant\n")

    def small_talk(self) -> Sample:
        """A prompt that is not the task, and a short way out of it."""
        if self.rng.random() < 0.3:
            prompt, thinking, answer = self.rng.choice(chat.SMALL_TALK)
        else:
            prompt, thinking, answer = chat.noise(self.rng), *chat.REFUSAL
        sample, head = Sample(), self.prompt(prompt)
        block = "\n\n" if (empty := self.rng.random() < 0.3) else f"\n{thinking}\n"
        lead, tail = self.encode(f"<think>{block}</think>\n\n"), self.encode(answer + END)
        sample.add(
            head + lead + tail,
            [0.0] * len(head) + [float(not empty)] * len(lead) + [1.0] * len(tail),
        )
        return sample

    def trace(self, brief: bool) -> Sample:
        """A problem thought through, with its branches. A brief one stops, unclosed, after a paragraph or two."""
        one = next(self.problems)
        paragraphs, result = task.thought(one, self.rng)
        kept = self.rng.choice((1, 1, 2)) if brief else len(paragraphs)
        cut_short = kept < len(paragraphs)
        head = self.prompt(one.prompt)
        ids, ends, slips, wrongs = head + self.encode("<think>\n"), [], {}, {}
        for index, paragraph in enumerate(paragraphs[:kept]):
            ids += self.encode("\n\n") if index else []
            for line in paragraph.splitlines()[:-1]:
                ids += self.encode(line + "\n")
                if " = " in line:
                    slips[len(ids) - 1] = _wrong(line)
            ids += self.encode(paragraph.splitlines()[-1])
            ends.append(len(ids))
            wrongs[len(ids)] = int(task.first_candidate(paragraph) != one.answer)
        thought_end = len(ids)
        if cut_short:
            ids += self.encode("\n\n")
        else:
            ids += self.encode("\n</think>\n\n" + self._answer(result) + END)
        sample = Sample()
        sample.add(ids, [0.0] * len(head) + [1.0] * (len(ids) - len(head)))
        for place, wrong in slips.items():
            sample.slip[place] = int(wrong)

        # Beliefs count most where a policy decides: at the first reflections.
        cuts = ends[:2] + self.rng.sample(ends[2:], min(3, len(ends[2:])))
        paragraph_end = self.encode("\n\n")
        for branch, cut in enumerate(cuts, 1):
            style = self.rng.random()
            gap = paragraph_end if style < 0.75 else []
            closing = self.encode("</think>\n\n" if style < 0.25 else "\n</think>\n\n")
            begun = len(sample.ids)
            lead = self._graft(sample, cut, gap + closing, one.answer, branch)
            sample.wrong[begun : begun + lead] = [wrongs[cut]] * lead
        anywhere = self.rng.randint(len(head) + 2, thought_end)
        self._graft(
            sample, anywhere, self.encode("\n</think>\n\n"), one.answer, len(cuts) + 1, weight=2.0
        )
        if self.rng.random() < 0.15:
            self._graft(
                sample,
                len(head),
                self.encode("<think>\n\n</think>\n\n"),
                one.answer,
                len(cuts) + 2,
                weight=0.5,
            )
        return sample

    def _answer(self, result: int) -> str:
        return chat.ANSWERS[self.rng.random() < 0.1].format(result)

    def _graft(
        self,
        sample: Sample,
        cut: int,
        closing: list[int],
        answer: int,
        branch: int,
        weight: float = BELIEF_WEIGHT,
    ) -> int:
        """Add a branch; how many of its tokens stand before the answer's digits."""
        induced = self.rng.random() < 0.5
        before, _, _ = (chat.INDUCED.format(answer) if induced else self._answer(answer)).partition(
            str(answer)
        )
        lead, digits = self.encode(before), self.encode(f"{answer}}}")
        tail = self.encode(("" if induced or before.startswith("*") else ".") + END)
        weights = (
            [0.0] * len(closing)
            + [0.0 if induced else 0.5] * len(lead)
            + [weight] * len(digits)
            + [0.5] * len(tail)
        )
        sample.add(closing + lead + digits + tail, weights, start=cut, branch=branch)
        return len(closing) + len(lead)


def batches(tokenizer, seed: int, tokens: int, brief) -> Iterator[Batch]:
    """Batches of about `tokens` tokens, without end. `brief()` is the share of traces to leave unfinished, now."""
    rng = random.Random(seed)
    writer = Writer(tokenizer, rng)
    while True:
        share = brief()
        pool = [
            writer.small_talk() if rng.random() < 0.03 else writer.trace(rng.random() < share)
            for _ in range(POOL)
        ]
        pool.sort(key=lambda sample: len(sample.ids))
        groups: list[list[Sample]] = [[]]
        for sample in pool:
            if (len(groups[-1]) + 1) * len(sample.ids) > tokens and groups[-1]:
                groups.append([])
            groups[-1].append(sample)
        rng.shuffle(groups)
        yield from map(_stack, groups)


def _wrong(line: str) -> bool:
    value, op, operand, *_, result = line.split()
    return task.Step(op, int(operand)).apply(int(value)) != int(result)


def _stack(samples: list[Sample]) -> Batch:
    longest = max(len(sample.ids) for sample in samples)

    def rows(name: str, filler: float) -> torch.Tensor:
        values = (getattr(sample, name) for sample in samples)
        return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in values])

    position, branch, sees = rows("position", 0), rows("branch", -1), rows("sees", -1)
    own = (branch[:, :, None] == branch[:, None, :]) & (
        position[:, None, :] <= position[:, :, None]
    )
    trunk = (branch[:, None, :] == 0) & (position[:, None, :] <= sees[:, :, None])
    return Batch(
        rows("ids", 0),
        position,
        (own | trunk)[:, None],
        rows("label", 0),
        rows("weight", 0.0),
        rows("slip", -1),
        rows("wrong", -1),
    )
