"""Each dialect against its family's own parser, in the engine's environment."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from typing import Any

import pytest

from benchmarks.services import ROOT
from tests.engine.families import ANSWER, FAMILIES, TRACE_SENTENCES

pytestmark = pytest.mark.engine

THOUGHT = "".join(TRACE_SENTENCES)
NEEDS = {
    "cohere": "cohere_melody",
    "cohere-plus": "cohere_melody",
    "harmony": "o200k_base.tiktoken",
}
GARBLED = {
    "deepseek-r1-0528": "it shows the opening marker where that comes with other tokens",
    "granite-3.2": "it shows the beginning of the closing phrase",
    "olmo3": "it loses what comes with the closing marker",
}
"""Where vLLM's parser itself garbles an unstopped text, at one token a chunk or at three."""


@cache
def examined() -> dict[tuple[str, int], dict[str, Any]]:
    """The facts of every family, at one token a chunk and at three."""
    command = [str(ROOT / ".engine" / "bin" / "python"), "-m", "tests.engine.families"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, timeout=600)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr.decode()[-2000:]
    return {(facts["family"], facts["size"]): facts for facts in lines}


@pytest.fixture(params=[(name, size) for name in FAMILIES for size in (1, 3)], ids=str)
def facts(request: pytest.FixtureRequest) -> dict[str, Any]:
    name, _ = request.param
    found = examined()[request.param]
    if "error" in found and name in NEEDS:
        pytest.skip(f"{name} needs {NEEDS[name]}: {found['error']}")
    assert "error" not in found, found["error"]
    return found


def kept(facts: dict[str, Any]) -> str:
    """What the model keeps of its trace at the cut, less markers, headers and outer spaces."""
    family = FAMILIES[facts["family"]]
    text = facts["kept"].removeprefix(family.trace_start)
    return str(
        text.replace(family.message_separator, "") if family.message_separator else text
    ).strip()


def test_a_natural_trace_is_told_to_the_token(facts: dict[str, Any]) -> None:
    """The session, over the parser's own stream, counts what stands between the markers."""
    natural = facts["natural"]
    assert (natural["state"], natural["muted"]) == ("answering", None)
    assert natural["ledger"]["reasoning"] == facts["trace"]
    if facts["family"] not in GARBLED:
        assert natural["reasoning"].strip() == THOUGHT
        assert natural["content"].strip() == ANSWER


def test_behind_a_cut_everything_is_the_answer(facts: dict[str, Any]) -> None:
    """Streamed behind the closing sequence, the parser takes all for content, and all of it."""
    assert facts["after"] == {"reasoning": "", "content": ANSWER}


def test_the_client_saw_what_the_model_keeps(facts: dict[str, Any]) -> None:
    """The reasoning that went out is the kept trace, less markers, headers and outer spaces."""
    shown = facts["cut"]["shown"].strip()
    assert shown.endswith(kept(facts)) if facts["family"] in GARBLED else shown == kept(facts)


def test_unstreamed_the_closing_sequence_parts_them_too(facts: dict[str, Any]) -> None:
    """The kept trace, the closing sequence and the answer as one text: reasoning, then content."""
    reasoning, content = facts["whole"]
    assert content.strip() == ANSWER
    assert reasoning.replace("\n", "").strip() == kept(facts)


def test_a_tool_call_ends_a_trace(facts: dict[str, Any]) -> None:
    """With the first token of a tool call there is nothing left to cut."""
    if "call" not in facts:
        pytest.skip("its parser takes no tool call for the end")
    call = facts["call"]
    assert call["state"] == "answering"
    markers = call["ledger"]["marker"] - facts["natural"]["ledger"]["marker"]
    if not FAMILIES[
        facts["family"]
    ].message_separator:  # where it is a header's, the header is the marker
        assert (call["ledger"]["answer"], markers) == (1, -1)
