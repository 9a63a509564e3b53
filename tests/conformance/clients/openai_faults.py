"""openai-python before an engine that fails, as the stand-in does on request."""

from __future__ import annotations

from typing import Any

import openai
from feature import KEY, MODEL, QUESTION, URL, feature, report

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)


def ask(stream: bool = True, **scenario: Any) -> Any:
    """All that came, and what was raised at the end of it."""
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        stream=stream,
        extra_body={"standin": {"tokens": 200} | scenario},
    )
    if not stream:
        return reply
    events: list[Any] = []
    try:
        events.extend(reply)
    except openai.OpenAIError as error:
        return {"raised": type(error).__name__}
    return {"stream": events}


def fault(name: str, kind: str = "thinks", stream: bool = True, **scenario: Any) -> None:
    feature(name, kind)(lambda: ask(stream, **scenario))


fault("several tokens a chunk", multi=5)
fault("reasoning and content in one chunk", both_fields=True)
fault("the model opens its think block itself", writes_marker=True)
fault("empty deltas", empty=3)
fault("usage on every chunk", usage_each=True)
fault("CRLF", crlf=True)
fault("keep-alive comments", comments=3)
fault("writes of a few bytes", tiny_writes=True)
fault("characters split", split_utf8=True, answer="café „42“ 😀")
fault("no [DONE]", no_done=True)
fault("an error event in mid-stream", "plain", error_event_after=3)
fault("the engine dies in mid-stream", "plain", die_after=3)
fault("the engine dies, unstreamed", "error", stream=False, die_after=3)
fault("429", "error", status=429, retry_after=1)
fault("500", "error", status=500)
fault("503", "error", status=503, retry_after=1)

if __name__ == "__main__":
    report()
