"""The prompts to record, from a file or a dataset of the Hugging Face hub.

Column names, known or given, decide how a row becomes a conversation.
"""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from adjourn.lab import hub
from adjourn.lab.hub import BadPrompts
from adjourn.policies.evidence.answers import extract_final_answer

__all__ = [
    "ANSWER_COLUMNS",
    "QUESTION_COLUMNS",
    "BadPrompts",
    "Prompt",
    "PromptSource",
    "read_prompts",
]

HUB_PREFIX = "hf:"
QUESTION_COLUMNS = ("prompt", "question", "problem", "instruction", "query", "input")
ANSWER_COLUMNS = ("answer", "final_answer", "solution", "target", "label", "output")
"""Columns of a question and of its gold answer; the first that a row has is used."""
_CHOICE_COLUMNS = ("choices", "options")
_LETTERS = "ABCDEFGHIJ"
_FINAL_ANSWER_LINE = re.compile(r"\n\s*####\s*(.+?)\s*$")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation to record. ``gold``: its correct answer, if known."""

    id: str
    messages: list[dict[str, Any]]
    gold: str | None = None


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where the rows are, and which of them to take.

    ``name``: a file (JSONL, CSV, Parquet) or ``hf:OWNER/DATASET``. ``subset`` and ``split`` of a
    dataset: by default the only one or the most usual. ``question`` and ``answer``: names of
    columns; by default the first known one. ``limit``: take the first so many prompts, after
    ``shuffle_seed``, if given, has put all in a random order.
    """

    name: str
    subset: str | None = None
    split: str | None = None
    question: str | None = None
    answer: str | None = None
    limit: int | None = None
    shuffle_seed: int | None = None


class _Row(msgspec.Struct):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    answer: str | int | float | None = None
    id: str | int | None = None


def read_prompts(source: PromptSource) -> list[Prompt]:
    """The prompts, in their order. Raises BadPrompts with the row in its message."""
    found: dict[str, Prompt] = {}
    for row_name, row in _read_rows(source):
        try:
            prompt = _to_prompt(msgspec.convert(_standardize_columns(row, source), _Row))
        except (msgspec.ValidationError, BadPrompts) as error:
            raise BadPrompts(f"{source.name}, {row_name}: {error}") from None
        if prompt.id in found:
            raise BadPrompts(f"{source.name}, {row_name}: a second prompt {prompt.id!r}")
        found[prompt.id] = prompt
    prompts = list(found.values())
    if source.shuffle_seed is not None:
        random.Random(source.shuffle_seed).shuffle(prompts)
    return prompts[: source.limit]


def _standardize_columns(row: dict[str, Any], source: PromptSource) -> dict[str, Any]:
    """The row with our names of columns. Raises BadPrompts."""
    question = _find_column(row, source.question, QUESTION_COLUMNS)
    answer = _find_column(row, source.answer, ANSWER_COLUMNS)
    known = {key: row[key] for key in ("id", "messages") if row.get(key) is not None}
    if question is None and "messages" not in known:
        raise BadPrompts(
            f"no question in {', '.join(row) or 'the row'}: name its column with --question"
        )
    prompt = None if question is None else row[question]
    gold = None if answer is None else row[answer]
    options: list[Any] = next(
        (row[name] for name in _CHOICE_COLUMNS if isinstance(row.get(name), list)), []
    )
    if options and isinstance(prompt, str):
        lines = (f"({letter}) {text}" for letter, text in zip(_LETTERS, options, strict=False))
        prompt = "\n".join([prompt, *lines])
        gold = _LETTERS[gold] if isinstance(gold, int) and gold < len(options) else gold
    return {**known, "prompt": prompt, "answer": _extract_answer(gold)}


def _find_column(row: dict[str, Any], given: str | None, known: Sequence[str]) -> str | None:
    if given is not None and given not in row:
        raise BadPrompts(f"no column {given!r}: there are {', '.join(row)}")
    return given or next((name for name in known if row.get(name) is not None), None)


def _extract_answer(gold: Any) -> Any:
    """Of a worked solution the final line after ``####``, or the content of its last box; any other
    value as it is."""
    if isinstance(gold, str) and (match := _FINAL_ANSWER_LINE.search(gold)):
        return match[1]
    return extract_final_answer(gold) if isinstance(gold, str) and "\\boxed{" in gold else gold


def _to_prompt(row: _Row) -> Prompt:
    if (row.prompt is None) == (row.messages is None):
        raise BadPrompts('write either "prompt" or "messages"')
    messages = row.messages or [{"role": "user", "content": row.prompt}]
    digest = hashlib.blake2b(msgspec.json.encode(messages), digest_size=6).hexdigest()
    gold = None if row.answer is None else str(row.answer)
    return Prompt(digest if row.id is None else str(row.id), messages, gold)


def _read_rows(source: PromptSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place, for error messages."""
    if source.name.startswith(HUB_PREFIX):
        split, paths = hub.dataset_files(
            source.name.removeprefix(HUB_PREFIX), source.subset, source.split
        )
        # A dataset may have one question twice, so the row number is the id.
        for number, row in enumerate(chain.from_iterable(map(_read_parquet, paths))):
            yield f"row {number}", {"id": f"{split}-{number}", **row}
        return
    if source.subset or source.split:
        raise BadPrompts(f"{source.name} is a file: --subset and --split are for datasets")
    path = Path(source.name)
    try:
        if path.suffix == ".csv":
            yield from _read_csv(path)
        elif path.suffix == ".parquet":
            for number, row in enumerate(_read_parquet(path)):
                yield f"row {number}", row
        else:
            yield from _read_jsonl(path)
    except OSError as error:
        raise BadPrompts(f"{path}: {error.strerror or error}") from None


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                yield f"line {number}", msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.MsgspecError as error:
                raise BadPrompts(f"{path}, line {number}: {error}") from None


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield f"line {rows.line_num}", {name: value for name, value in row.items() if value}


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    with hub.require_hub_extra():
        from pyarrow import ArrowInvalid, parquet
    try:
        yield from parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise BadPrompts(f"{path}: {error}") from None
