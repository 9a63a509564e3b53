"""What a client got as reasoning, sent back, is what the engine saw: token for token, on vLLM.

The pocket model's template does as Qwen3's: it keeps the reasoning of the turns behind the latest
question, which are those of tools, and drops that of earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.services import free_port, start_gateway
from tests.engine.pocket_client import PROMPTS, join_deltas, send_chat
from tests.gateway_client import CHAT

pytestmark = pytest.mark.engine

USER = {"role": "user", "content": PROMPTS[0]}
NAMES = ("reasoning", "reasoning_content")
SPELLINGS = {
    "upstream": NAMES[:1],
    "reasoning": NAMES[:1],
    "reasoning_content": NAMES[1:],
    "both": NAMES,
    "tags": (),
}
"""The keys under which a client finds reasoning."""
BLOCK = 32


@pytest.fixture(scope="module", params=SPELLINGS)
def spelt(vllm: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A gateway with this ``reasoning_field``, and the keys that it makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADJOURN_REASONING_FIELD", request.param)
        with start_gateway(vllm, free_port(), "--policy", "never", "--hold-out", "0") as url:
            yield url, SPELLINGS[request.param]


def turn(url: str, policy: str, streamed: bool) -> tuple[dict[str, Any], list[int], list[int]]:
    """The assistant's message as a client has it, the ids of prompt and trace, and the answer's."""
    fields: dict[str, Any] = {"return_token_ids": True, "adjourn": {"policy": policy}}
    if not streamed:
        reply = send_chat(url, PROMPTS[0], **fields)
        choice = reply["choices"][0]
        said = {key: choice["message"].get(key) for key in ("content", *NAMES)}
        prompt, ids = reply["prompt_token_ids"], choice["token_ids"]
    else:
        chunks = send_chat(url, PROMPTS[0], stream=True, **fields)[:-1]
        said = {key: join_deltas(chunks, key) for key in ("content", *NAMES)}
        prompt = chunks[0]["prompt_token_ids"]
        ids = [i for chunk in chunks for c in chunk["choices"] for i in c.get("token_ids") or ()]
        reply = chunks[-1]
    note = reply["adjourn"]
    assert note["stopped"] == (policy != "never")
    message = {"role": "assistant", **{key: text for key, text in said.items() if text}}
    thought = sum(note["tokens"][kind] for kind in ("reasoning", "marker", "closing"))
    return message, [*prompt, *ids[:thought]], ids[thought:]


def again(url: str, *messages: dict[str, Any]) -> tuple[list[int], int]:
    """What the engine makes of a history: its ids, and how many of them the cache held."""
    body = {"model": "pocket", "messages": [USER, *messages], "max_tokens": 1}
    body |= {"return_token_ids": True, "adjourn": {"policy": "off"}}
    reply = httpx.post(url + CHAT, json=body, timeout=120).json()
    cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return reply["prompt_token_ids"], cached


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("policy", ["never", "budget(max=40)"])
def test_reasoning_sent_back_hits_the_cache(
    spelt: tuple[str, tuple[str, ...]], policy: str, streamed: bool
) -> None:
    """Whole or cut, under any name: prompt, trace and closing are rendered to the ids that they
    had, and all of their full blocks are still there. Of an answer only the text is sure to come
    back: a model may have written it in other tokens than a tokenizer would."""
    url, names = spelt
    message, trace, answer = turn(url, policy, streamed)
    assert set(message) == {"role", "content", *names}
    assert names or message["content"].startswith("<think>\n")
    rendered, cached = again(url, message, {"role": "tool", "tool_call_id": "x", "content": "5"})
    assert rendered[: len(trace)] == trace
    assert cached >= len(trace) // BLOCK * BLOCK >= 2 * BLOCK
    if policy == "never":
        seen = [*trace, *answer]
        assert rendered[: len(seen)] == seen
        assert cached >= (len(seen) - 1) // BLOCK * BLOCK


def test_reasoning_that_the_template_drops(spelt: tuple[str, tuple[str, ...]]) -> None:
    """Behind the next question nothing of the trace is rendered, whatever the client sends: the
    cache can hold no more than what came before it."""
    url, _ = spelt
    message, trace, _ = turn(url, "budget(max=40)", False)
    question = {"role": "user", "content": "And now?"}
    rendered, _ = again(url, message, question)
    plain = {"role": "assistant", "content": message["content"].split("</think>\n\n")[-1]}
    assert rendered == again(url, plain, question)[0]
    assert rendered[: len(trace)] != trace
