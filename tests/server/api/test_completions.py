"""The endpoint of raw completions: requests and events, in the engine's own bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from adjourn.policies.session.orders import InsertedText
from adjourn.policies.text.markers import MarkerKind, MarkerMatcher
from adjourn.server.api.completions import CompletionsEndpoint, can_separate_stops
from adjourn.server.api.endpoint import PolicyExtras
from adjourn.server.api.request import parse_completion
from adjourn.server.config import Settings
from adjourn.server.stream.chunk import Chunk, encode_event
from tests.gateway_client import metric_value
from tests.policies.session_helpers import CLOSING, CLOSING_ON_NEWLINE, DIALECT, END, PROMPT, START

PATH = "/v1/completions"
MODELS: dict[str, Any] = {"m": None}


def make_endpoint(**fields: Any) -> CompletionsEndpoint:
    body = json.dumps({"model": "m", "prompt": list(PROMPT), **fields}).encode()
    request = parse_completion(body, {}, Settings(), None, MODELS)
    return CompletionsEndpoint(request, dialect=DIALECT, separate_answer=request.has_stop_strings)


def make_event(text: str, ids: list[int], prompt: list[int] | None = None, **more: Any) -> bytes:
    """A chunk as vLLM 0.32 writes it if token ids were requested."""
    choice = {
        "index": 0, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None,
        "prompt_token_ids": prompt, "token_ids": ids, **more,
    }  # fmt: skip
    chunk = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m"}
    return encode_event(json.dumps({**chunk, "choices": [choice]}, separators=(",", ":")).encode())


def rendered_choice(endpoint: CompletionsEndpoint, event: bytes) -> dict[str, Any]:
    """The choice in this event as the client gets it."""
    rendered = endpoint.render_event(event, endpoint.decode(event[6:-2]))
    assert rendered is not None
    choice: dict[str, Any] = json.loads(rendered[6:])["choices"][0]
    return choice


def test_the_main_stream_requests_token_ids() -> None:
    """It is streamed. Choices and stop strings are not sent, as the gateway handles them."""
    endpoint = make_endpoint(n=2, stop="END", max_tokens=9)
    fields = {name: json.loads(bytes(value)) for name, value in endpoint.main_fields.items()}
    assert fields == {
        "model": "m", "prompt": list(PROMPT), "max_tokens": 9, "stream": True,
        "return_token_ids": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_n_is_sent_unchanged_if_there_is_one_choice() -> None:
    """Even null, which vLLM refuses."""
    assert "n" not in make_endpoint().main_fields
    assert bytes(make_endpoint(n=None).main_fields["n"]) == b"null"


def test_the_answer_request_continues_token_ids() -> None:
    """Their prompt is the prefix; it has the stop strings and the remaining token limit."""
    fields = make_endpoint(stop="END", max_tokens=90).answer_fields([1, 2], 7)
    assert [json.loads(bytes(fields[k])) for k in ("prompt", "stop", "max_tokens")] == [
        [1, 2], "END", 7,
    ]  # fmt: skip


@pytest.mark.parametrize(("fields", "limit"), [({}, 16), ({"max_tokens": 5}, 5)])
def test_the_default_token_limit_is_16(fields: dict[str, Any], limit: int) -> None:
    """As in the OpenAI API."""
    assert make_endpoint(**fields).token_limit == limit


def test_token_ids_that_the_client_did_not_request_are_hidden() -> None:
    """They become null, as in the engine's own chunk."""
    endpoint = make_endpoint()
    event = make_event('say "token_ids":[1]', [7, 8], list(PROMPT))
    chunk = endpoint.decode(event[6:-2])
    assert chunk.prompt_token_ids == list(PROMPT)
    assert (chunk.choices[0].delta.reasoning_text, chunk.choices[0].token_ids) == (
        'say "token_ids":[1]', [7, 8],
    )  # fmt: skip
    choice = rendered_choice(endpoint, event)
    assert (choice["token_ids"], choice["prompt_token_ids"]) == (None, None)
    assert choice["text"] == 'say "token_ids":[1]'


@pytest.mark.parametrize(
    ("closing", "text"),
    [
        (CLOSING, "\n</think>\n\n7"),
        (CLOSING_ON_NEWLINE, "</think>\n\n7"),
        ((START, *CLOSING), "<think>\n</think>\n\n7"),
        (
            (*CLOSING_ON_NEWLINE, START, *CLOSING),
            "</think>\n\n<think>\n</think>\n\n7",
        ),
    ],
)
def test_the_closing_sequence_is_sent_as_text(closing: tuple[int, ...], text: str) -> None:
    """Before the answer, where the model's own end marker would be."""
    endpoint = make_endpoint(return_token_ids=True)
    event = make_event("7", [30])
    chunk = endpoint.decode(event[6:-2])
    closed = endpoint.prepend_closing(event, chunk.choices[0], closing)
    choice = json.loads(closed[6:])["choices"][0]
    assert (choice["text"], choice["token_ids"]) == (text, [*closing, 30])


def test_text_offsets_continue_after_a_cut() -> None:
    """Those of the answer are counted from the start of the whole text."""
    endpoint = make_endpoint(logprobs=1)
    rendered_choice(endpoint, make_event("abc", [7]))
    logprobs = {"tokens": ["7"], "token_logprobs": [-1.0], "top_logprobs": [{}], "text_offset": [0]}
    for number, offset in enumerate((3 + 11, 3 + 11)):
        event = make_event("7", [30], logprobs=logprobs)
        chunk = endpoint.decode(event[6:-2])
        if number == 0:
            event = endpoint.prepend_closing(event, chunk.choices[0], CLOSING)
        rendered = endpoint.render_event(event, chunk)
        assert rendered is not None
        choice = json.loads(rendered[6:])["choices"][0]
        assert choice["logprobs"]["text_offset"] == [offset]


def test_an_event_is_trimmed_after_the_end_marker() -> None:
    """The rest belongs to the answer, which is generated again."""
    event = make_event("a</think>b", [7, END, 8], finish_reason="stop")
    trimmed = make_endpoint().trim_to_trace(event, 2)
    assert trimmed is not None
    choice = json.loads(trimmed[6:])["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("a</think>", [7, END])
    assert choice["finish_reason"] is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"prompt": "a<think>\n"}, None),
        ({"prompt": ["a"]}, None),
        ({"prompt": [[5, START]]}, None),
        ({"prompt": ["a", "b"]}, "several-prompts"),
        ({"prompt": [[5], [START]]}, "several-prompts"),
        ({"prompt": None, "prompt_embeds": "x"}, "not-text"),
        ({"echo": True}, "echo"),
        ({"prompt_logprobs": 1}, "prompt-logprobs"),
        ({"use_beam_search": True}, "beam-search"),
        ({"n": 2}, None),
    ],
)
def test_requests_that_cannot_be_cut_safely_are_ineligible(
    fields: dict[str, Any], expected: str | None
) -> None:
    """They are passed through, with a reason."""
    body = json.dumps({"model": "m", "prompt": [5], **fields}).encode()
    assert parse_completion(body, {}, Settings(), None, MODELS).ineligible_reason == expected


def test_a_list_of_one_prompt_is_one_prompt() -> None:
    """The gateway checks that it opens a trace; the engine gets the field unchanged."""
    body = b'{"model": "m", "prompt": [[5, %d]], "stop": "x"}' % START
    request = parse_completion(body, {}, Settings(), None, {"m": None})
    assert can_separate_stops(request.prompt, DIALECT)
    assert bytes(request.fields["prompt"]) == b"[[5, %d]]" % START


@pytest.mark.parametrize("streamed", [True, False])
def test_a_completion_without_a_stop_equals_the_engines(
    adjourn: str, standin: str, streamed: bool
) -> None:
    """Except for its id and time."""
    request = {"model": "standin", "prompt": [5, 6, 1, 7], "max_tokens": 3, "logprobs": 1}
    request["stream"] = streamed
    replies = [httpx.post(url + PATH, json=request) for url in (standin, adjourn)]
    if not streamed:
        direct, ours = (reply.json() for reply in replies)
        assert list(direct) == list(ours)
        assert direct["choices"] == ours["choices"]
        assert direct["usage"] == ours["usage"]
    assert replies[1].headers["x-adjourn-policy"] == "deer"
    assert metric_value(adjourn, "adjourn_requests_total", endpoint=PATH, policy="deer") > 0


def make_endpoint_with_extras(
    number: int = 3, bias: float = 0.0, **fields: Any
) -> CompletionsEndpoint:
    body = json.dumps({"model": "m", "prompt": list(PROMPT), **fields}).encode()
    request = parse_completion(body, {}, Settings(), None, {"m": None})
    return CompletionsEndpoint(request, 0, PolicyExtras(number, bias, END), dialect=DIALECT)


LOGPROBS = {
    "tokens": ["b"],
    "token_logprobs": [-2.5],
    "top_logprobs": [{"b": -2.5, "a": -0.1, "c": -2.0, "d": -2.0}],
    "text_offset": [0],
}


@pytest.mark.parametrize(("requested", "number"), [(None, 3), (1, 3), (5, 5)])
def test_the_main_stream_requests_enough_log_probabilities(
    requested: int | None, number: int
) -> None:
    """As many as the policy and the client need; the answer only as many as the client
    requested."""
    endpoint = make_endpoint_with_extras(**({} if requested is None else {"logprobs": requested}))
    assert bytes(endpoint.main_fields["logprobs"]) == b"%d" % number
    answer = endpoint.answer_fields([1], None).get("logprobs")
    assert (
        answer is None
        if requested is None
        else answer is not None and int(bytes(answer)) == requested
    )


@pytest.mark.parametrize(
    ("requested", "tokens"), [(None, None), (0, ["b"]), (1, ["b", "a"]), (2, ["b", "a", "c"])]
)
def test_a_client_gets_the_log_probabilities_it_requested(
    requested: int | None, tokens: list[str] | None
) -> None:
    """That of the sampled token and as many top ones as requested; the policy gets all."""
    endpoint = make_endpoint_with_extras(**({} if requested is None else {"logprobs": requested}))
    rendered = make_event("b", [7], logprobs=LOGPROBS)
    chunk = endpoint.decode(rendered[6:-2])
    assert endpoint.logprobs_of(chunk.choices[0]) == [[-0.1, -2.0, -2.0, -2.5]]
    logprobs = rendered_choice(endpoint, rendered)["logprobs"]
    assert (logprobs and list(logprobs["top_logprobs"][0])) == tokens


def test_only_the_main_stream_has_the_bias() -> None:
    """It is added to the client's biases. A continuation may change it; the answer has none."""
    endpoint = make_endpoint_with_extras(0, 1.5, logit_bias={"7": 1})
    assert json.loads(bytes(endpoint.main_fields["logit_bias"])) == {"7": 1.0, str(END): 1.5}
    more = endpoint.continuation_fields([1, 2], 5, 2.5)
    assert json.loads(bytes(more["logit_bias"])) == {"7": 1.0, str(END): 2.5}
    assert [json.loads(bytes(more[key])) for key in ("prompt", "max_tokens")] == [[1, 2], 5]
    assert json.loads(bytes(endpoint.answer_fields([1], None)["logit_bias"])) == {"7": 1}


def test_inserted_text_is_rendered_like_the_engines_chunks() -> None:
    """With token ids if the client requested them."""
    endpoint = make_endpoint(return_token_ids=True)
    rendered = endpoint.render_inserted_text(
        Chunk(id="cmpl-1", created=5), InsertedText("\nWait", (22, 23))
    )
    assert json.loads(rendered[6:]).keys() == json.loads(make_event("", [])[6:]).keys()
    choice = rendered_choice(endpoint, rendered)
    assert (choice["text"], choice["token_ids"]) == ("\nWait", [22, 23])
    assert choice.keys() == json.loads(make_event("", [])[6:])["choices"][0].keys()


@pytest.mark.parametrize(
    ("prompt", "end_ids", "expected"),
    [
        (None, (END,), True),
        ("a<think>\n", (END,), True),
        ("a<think></think>", (END,), False),
        ([5, START], (END,), True),
        ([5, START, END], (END,), False),
        ([5, START], (END, 8), False),
        (None, (END, 8), True),
    ],
)
def test_stop_strings_are_separable_inside_a_trace_with_a_one_token_end_marker(
    prompt: Any, end_ids: tuple[int, ...], expected: bool
) -> None:
    """A raw prompt must end inside a trace; for a chat prompt (None) it is always possible."""
    dialect = replace(
        DIALECT, matcher=MarkerMatcher({(START,): MarkerKind.START, end_ids: MarkerKind.END})
    )
    assert can_separate_stops(prompt, dialect) is expected
