"""A recorded trace, made ready to be played: the pieces in order, and what was drawn where."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, chain, dropwhile, groupby
from pathlib import Path
from typing import Any

from benchmarks.lab import values
from benchmarks.lab.embedder import unpacked
from benchmarks.lab.plan import kind
from benchmarks.lab.traces import (
    BadTraces,
    Drawn,
    Opened,
    Piece,
    Place,
    Represented,
    Served,
    Trace,
    load,
)
from policies.answers import confidence, final_answer, trial_answer
from policies.appraisal import Appraiser
from policies.boundaries import BoundaryScanner
from policies.cues import CueScanner
from policies.dialect import Marks
from policies.events import Embed, Embedded, EmbedFailed, Probe, ProbeFailed, ProbeResult, Reply
from policies.hidden_states import Layer
from policies.ledger import Ledger
from policies.markers import NOWHERE
from policies.mathematics import equal
from policies.never import Never
from policies.session import Session
from policies.states import State

__all__ = ["SLACK", "Feed", "Found", "Run", "Tape", "Tapes", "Trial"]

SLACK = 32
"""Tokens: what was drawn so little before a place stands in for what was not drawn there."""
Logprobs = tuple[tuple[float, ...], ...]
Feed = tuple[str, tuple[int, ...], float, bool, str | None, Logprobs]
"""A piece as a session takes it: text, ids, time, whether it answers, the finish reason, and the
log-probabilities of its tokens."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a question would have brought. ``after``: seconds from the checkpoint to the result.
    ``exact``: it was drawn at this very place. ``decoded``: tokens that it took."""

    result: Reply
    after: float
    exact: bool
    decoded: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """The trial answer at a place, and how sure of it the model was, in [0, 1]."""

    position: int
    answer: str
    confidence: float


class Run:
    """Pieces of the thinking behind one another in none of which there is a place to look.
    ``ends``: the positions up to which they go. ``plain``: more than one, so that they may be fed
    as one where nothing else is due."""

    def __init__(self, feeds: list[Feed], before: int) -> None:
        self.feeds = feeds
        self.ends = list(accumulate((len(feed[1]) for feed in feeds), initial=before))[1:]
        self.plain = len(feeds) > 1
        self._text = "".join(feed[0] for feed in feeds)
        self._ids = tuple(chain.from_iterable(feed[1] for feed in feeds))

    def upto(self, begin: int, position: float) -> int:
        """The end of the pieces from ``begin`` on that end before ``position``."""
        return (
            len(self.feeds) if self.ends[-1] < position else bisect_left(self.ends, position, begin)
        )

    def merged(self, begin: int, end: int) -> Feed:
        """These pieces as one; several are told without log-probabilities."""
        if end - begin == 1:
            return self.feeds[begin]
        at = self.feeds[end - 1][2]
        if end - begin == len(self.feeds):
            return self._text, self._ids, at, False, None, ()
        part = self.feeds[begin:end]
        ids = tuple(chain.from_iterable(feed[1] for feed in part))
        return "".join(feed[0] for feed in part), ids, at, False, None, ()


@dataclass(frozen=True, slots=True)
class _Draw:
    kept: int
    after: float
    result: ProbeResult | ProbeFailed
    decoded: int


class Tape:
    """One trace. ``feeds`` are its pieces as a session takes them, ``runs`` the same put together
    where no cue is among them, ``fine_runs`` where nothing ends among them either. ``opening`` are
    the ids of the opening marker, where the model wrote it, which no cut takes away; ``ledger`` is
    what the whole trace cost, ``answer_tokens`` what its answer did. ``trials`` are its places'
    trial answers, by position: the one at a cut is the best estimate of what would have been
    answered there."""

    def __init__(self, trace: Trace, marks: Marks) -> None:
        self.prompt = trace.prompt
        self.sample = trace.sample
        self.messages = trace.messages
        self.gold = trace.gold
        self.opened: Sequence[int] = next(e.ids for e in trace.events if isinstance(e, Opened))
        self.pieces = [event for event in trace.events if isinstance(event, Piece)]
        self.places = [event for event in trace.events if isinstance(event, Place)]
        self.served = [event for event in trace.events if isinstance(event, Served)]
        self._represented = sorted(
            (event for event in trace.events if isinstance(event, Represented)),
            key=lambda event: event.kept,
        )
        self.feeds: list[Feed] = [
            (p.text, p.ids, p.at, p.answering, p.ending, p.logprobs) for p in self.pieces
        ]
        self.opening = 0
        self._marks = marks
        self.ledger = self._whole(marks)
        self.runs = self._runs(_plainness(marks))
        self.answer = final_answer("".join(piece.answer for piece in self.pieces))
        behind = dropwhile(lambda piece: not piece.answering, self.pieces)
        self.answer_tokens = sum(len(piece.ids) for piece in behind)
        self._draws = self._read(event for event in trace.events if isinstance(event, Drawn))
        self.trials = self._trials()
        self._positions = [trial.position for trial in self.trials]

    @cached_property
    def fine_runs(self) -> list[Run]:
        """Made for policies that look at ends; the others go faster without."""
        cueless, endless = _plainness(self._marks), _endlessness()
        return self._runs(lambda feed: cueless(feed) & endless(feed))

    def _runs(self, together: Callable[[Feed], bool]) -> list[Run]:
        runs, position = list[Run](), -self.opening
        for plain, group in groupby(self.feeds, together):
            for feeds in [list(group)] if plain else [[feed] for feed in group]:
                runs.append(Run(feeds, position))
                position = runs[-1].ends[-1]
        return runs

    def _whole(self, marks: Marks) -> Ledger:
        session = Session(Never(), marks, Appraiser())
        session.opened(self.opened)
        for text, ids, at, answering, ending, _ in self.feeds:
            session.feed(text, ids, at, answering=answering, ending=ending)
            if session.state is State.THINKING:
                self.opening = session.ledger.marker
        return session.ledger

    @staticmethod
    def _read(drawn: Iterable[Drawn]) -> dict[Probe, list[_Draw]]:
        """Draws by probe, whatever its length; each list in the order of its places."""
        draws = defaultdict(list)
        for event in drawn:
            result = values.read(event.result)
            draw = _Draw(event.kept, event.at - event.asked, result, event.decoded)
            draws[kind(result.probe)].append(draw)
        return {like: sorted(found, key=lambda draw: draw.kept) for like, found in draws.items()}

    def _trials(self) -> list[Trial]:
        results = (draw.result for draw in self._draws.get(kind(Probe()), []))
        return [
            Trial(r.position, trial_answer(r.text), confidence(r.tokens, r.logprobs))
            for r in results
            if isinstance(r, ProbeResult)
        ]

    @property
    def ending(self) -> str | None:
        return next((p.ending for p in reversed(self.pieces) if p.ending), None)

    @property
    def whole(self) -> bool:
        """Whether the model came to its own end. A truncated trace tells nothing of how long it
        would have been, nor whether it would have been right."""
        return self.ending not in (None, "length") and any(p.answering for p in self.pieces)

    def right(self, answer: str) -> bool:
        """Against the gold answer; without one, against the trace's own."""
        return equal(answer, self.answer if self.gold is None else self.gold)

    def trial(self, position: int) -> Trial:
        """The one at ``position``, or at the last place before it; an empty one before all."""
        index = bisect_right(self._positions, position)
        return self.trials[index - 1] if index else Trial(0, "", 0.0)

    def settled(self) -> int | None:
        """The position of the first place from which the trial answer is the final one for good."""
        found = None
        for trial in reversed(self.trials):
            if not equal(trial.answer, self.answer):
                break
            found = trial.position
        return found

    @property
    def layers(self) -> frozenset[Layer]:
        """Those behind which hidden states were told."""
        results = (draw.result for draw in chain.from_iterable(self._draws.values()))
        states = (r.hidden_states for r in results if isinstance(r, ProbeResult))
        return frozenset(
            Layer(number, one.width) for one in states if one is not None for number in one.layers
        )

    def pace(self) -> list[float]:
        """Seconds a drawn token, of each probe."""
        every = chain.from_iterable(self._draws.values())
        drawn = ((draw.after, draw.result) for draw in every)
        return [t / len(r.tokens) for t, r in drawn if isinstance(r, ProbeResult) and r.tokens]

    def find(self, probe: Probe, kept: int, position: int) -> Found | None:
        """What ``probe`` would have brought with so many ids kept; None where nothing near was
        drawn. A greedy probe's beginning is what a shorter one would have drawn."""
        near = (
            draw
            for draw in self._draws.get(kind(probe), ())
            if 0 <= kept - draw.kept <= SLACK and _told(draw, probe, position) is not None
        )
        # The nearest, and of those there the very probe before one that is only as good.
        draw = max(near, key=lambda d: (d.kept, d.result.probe == probe), default=None)
        if draw is None or (told := _told(draw, probe, position)) is None:
            return None
        decoded = draw.decoded if draw.result.probe == probe else 0
        return Found(told, draw.after * _share(draw, told), draw.kept == kept, decoded)

    def embedded(self, embed: Embed, kept: int, position: int) -> Found | None:
        """What the embedder said of the step that ended with so many ids kept, or just before."""
        near = [event for event in self._represented if 0 <= kept - event.kept <= SLACK]
        if not near:
            return None
        event = near[-1]
        seconds = event.at - event.asked
        told: Reply = EmbedFailed(embed, position, "error", event.at)
        if event.vector:
            told = Embedded(embed, unpacked(event.vector), position, seconds, event.at)
        return Found(told, seconds, event.kept == kept)


def _told(draw: _Draw, probe: Probe, position: int) -> ProbeResult | ProbeFailed | None:
    """The result as ``probe`` would have got it, or None where it would have drawn more."""
    result = replace(draw.result, position=position, probe=probe)
    drawn = draw.result.probe
    if isinstance(result, ProbeFailed) or drawn == probe:
        return result
    if len(result.tokens) <= probe.max_tokens:
        return result if result.finished or drawn.max_tokens >= probe.max_tokens else None
    # Only what is plainly one entry a token can be shortened.
    tuples = (f.name for f in fields(result) if isinstance(getattr(result, f.name), tuple))
    lists = [name for name in tuples if getattr(result, name)]
    if any(len(getattr(result, name)) != len(result.tokens) for name in lists):
        return None
    shorter: dict[str, Any] = {name: getattr(result, name)[: probe.max_tokens] for name in lists}
    share = probe.max_tokens / len(result.tokens)
    return replace(
        result,
        text="".join(shorter["tokens"]),
        finished=False,
        seconds=result.seconds * share,
        **shorter,
    )


def _share(draw: _Draw, told: ProbeResult | ProbeFailed) -> float:
    """Of a drawing's time, what its beginning took: it is decoding that takes it."""
    if isinstance(told, ProbeFailed) or isinstance(draw.result, ProbeFailed):
        return 1.0
    return len(told.tokens) / max(len(draw.result.tokens), 1)


def _plainness(marks: Marks) -> Callable[[Feed], bool]:
    """Tells, piece by piece, in which of them no part of a cue or of a marker is."""
    scanner, begun, place = CueScanner(marks.dialect.cues), False, NOWHERE

    def plain(feed: Feed) -> bool:
        nonlocal begun, place
        text, ids, _, answering, ending, _ = feed
        marked = False
        for token in ids:
            before, place = place, marks.markers.step(place, token)
            marked = marked or before != NOWHERE or place != NOWHERE
        skimmed = text != "" and scanner.skim(text)
        if not skimmed:
            scanner.feed(text)
        # The first piece of a trace starts clocks.
        first, begun = not begun, begun or text != ""
        return skimmed and not (first or answering or ending or marked)

    return plain


def _endlessness() -> Callable[[Feed], bool]:
    """Tells, piece by piece, in which of them nothing ends, or may have ended."""
    scanner = BoundaryScanner()

    def endless(feed: Feed) -> bool:
        found = scanner.feed(feed[0])
        return not found and scanner.settled == scanner.length

    return endless


class Tapes:
    """The traces of a file that came to their own end, with what holds for all of them.

    ``truncated`` were left out. ``logprobs``: so many were told with each token. ``embedded``:
    whether steps were. ``layers``: those behind which hidden states were told. ``resume``: seconds
    from a cut to the answer's first token.
    Raises BadTraces.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recording, traces = load(path)
        try:
            marks = values.read(self.recording.marks)
            needs = values.read(self.recording.needs)
            self.logprobs = max((one.logprobs for one in needs), default=0)
            self.embedded = any(one.embeddings for one in needs)
            every = [Tape(trace, marks) for trace in traces]
        except (values.BadValue, AttributeError, StopIteration) as error:
            raise BadTraces(f"{path}: {error}") from None
        self.marks = marks
        self.tapes = [tape for tape in every if tape.whole]
        self.truncated = len(every) - len(self.tapes)
        if not self.tapes:
            raise BadTraces(f"{path} holds no trace that came to its own end")
        self.layers = frozenset(layer for tape in self.tapes for layer in tape.layers)
        self.resume = _resume(self.tapes)

    def only(self, which: Callable[[Tape], bool]) -> Tapes:
        """Those of them."""
        some = copy(self)
        some.tapes = list(filter(which, self.tapes))
        return some


def _resume(tapes: Sequence[Tape]) -> float:
    """The median of the cuts that were tried; where none was, of a probe's time a token."""
    tried = [served.began for tape in tapes for served in tape.served]
    tried = tried or [seconds for tape in tapes for seconds in tape.pace()]
    return sorted(tried)[len(tried) // 2] if tried else 0.0
