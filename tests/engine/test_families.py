"""Each built-in dialect against its family's own vLLM parser, in the engine's environment."""

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

TRACE = "".join(TRACE_SENTENCES)
NEEDS = {
    "cohere": "cohere_melody",
    "cohere-plus": "cohere_melody",
    "harmony": "o200k_base.tiktoken",
}
KNOWN_PARSER_FAULTS = {
    "deepseek-r1-0528": "it shows the opening marker where that comes with other tokens",
    "granite-3.2": "it shows the beginning of the closing phrase",
    "olmo3": "it loses what comes with the closing marker",
}
"""Families whose vLLM parser loses or adds text even in an uncut response, at one token per chunk
or at three."""


@cache
def examined() -> dict[tuple[str, int], dict[str, Any]]:
    """The results of every family, at one token per chunk and at three."""
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
    """The kept trace of the cut, without markers, headers and surrounding whitespace."""
    family = FAMILIES[facts["family"]]
    text = facts["kept"].removeprefix(family.trace_start)
    return str(
        text.replace(family.message_separator, "") if family.message_separator else text
    ).strip()


def test_an_uncut_trace_is_counted_to_the_token(facts: dict[str, Any]) -> None:
    """The session, fed from the parser's stream, counts the tokens between the markers."""
    natural = facts["natural"]
    assert (natural["state"], natural["muted"]) == ("answering", None)
    assert natural["ledger"]["reasoning"] == facts["trace"]
    if facts["family"] not in KNOWN_PARSER_FAULTS:
        assert natural["reasoning"].strip() == TRACE
        assert natural["content"].strip() == ANSWER


def test_all_text_after_a_cut_is_the_answer(facts: dict[str, Any]) -> None:
    """Streamed after the closing sequence, the parser returns all of it as content."""
    assert facts["after"] == {"reasoning": "", "content": ANSWER}


def test_the_client_got_the_kept_trace(facts: dict[str, Any]) -> None:
    """The released reasoning is the kept trace, without markers, headers and surrounding
    whitespace."""
    shown = facts["cut"]["shown"].strip()
    assert (
        shown.endswith(kept(facts))
        if facts["family"] in KNOWN_PARSER_FAULTS
        else shown == kept(facts)
    )


def test_an_unstreamed_cut_is_parsed_into_reasoning_and_answer(facts: dict[str, Any]) -> None:
    """From one text: kept trace, closing sequence, answer."""
    reasoning, content = facts["whole"]
    assert content.strip() == ANSWER
    assert reasoning.replace("\n", "").strip() == kept(facts)


def test_a_tool_call_ends_a_trace(facts: dict[str, Any]) -> None:
    """The first token of a tool call belongs to the answer: nothing is left to cut."""
    if "call" not in facts:
        pytest.skip("the family's parser does not end a trace at a tool call")
    call = facts["call"]
    assert call["state"] == "answering"
    markers = call["ledger"]["marker"] - facts["natural"]["ledger"]["marker"]
    if not FAMILIES[
        facts["family"]
    ].message_separator:  # else the header of the tool call counts as marker
        assert (call["ledger"]["answer"], markers) == (1, -1)
