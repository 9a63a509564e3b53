"""Load on a gateway in front of the stand-in: one round of every kind of request and fault."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import httpx

__all__ = ["CUE", "TOKENS", "send_load"]

TOKENS, CUE = 200, 40  # length of a trace, and position of its cue, where probes are sent


async def send_load(gateway: str) -> None:
    """Send one round of requests concurrently: cuts, faults, disconnects, races and bad
    requests."""
    async with httpx.AsyncClient(
        base_url=gateway, trust_env=False, timeout=30, limits=httpx.Limits(max_connections=None)
    ) as client:
        load = ChatRequests(client)
        unsure = {"trial_logprob": -2.0}
        late_start = {"delay_first": 20.0}
        endless = {"tokens": 60_000, **unsure}
        budget = {"adjourn": {"policy": "budget", "max": 60}}
        jobs = [
            *(load.chat(f"sure-{n}") for n in range(12)),
            *(load.chat(f"whole-{n}", stream=False) for n in range(4)),
            *(load.chat(f"unsure-{n}", unsure) for n in range(4)),
            *(load.chat(f"budget-{n}", unsure, **budget) for n in range(6)),
            *(load.chat(f"refused-{n}", {"ignore_prompt_ids": True}) for n in range(8)),
            load.chat("bad-probe", {"probe_status": 500}),
            load.chat("late-probe", {"probe_delay": 3.0, "tokens": 500}),
            load.chat("dies", {"die_after": 30, **unsure}),
            load.chat("overloaded", {"status": 503}),
            load.chat("several", n=200),
            load.chat("off", adjourn={"policy": "off"}),
            load.chat("raced", adjourn={"policy": "first-finish", "traces": 2}),
            load.chat("rewarded", adjourn={"policy": "partial-reward", "traces": 2}),
            load.chat("unknown", model="nobody"),
            load.chat("wrong", messages="not a list"),
            load.disconnect("early", late_start),
            load.disconnect("midway", endless),
            load.disconnect("unstreamed", late_start, stream=False),
            client.get("/v1/models"),
        ]
        await asyncio.gather(*jobs)


class ChatRequests:
    """Chat requests; ``session``, sent as x-session-id, decides if a request is held out."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    def _request(self, session: str, standin: dict[str, Any], fields: dict[str, Any]) -> Any:
        scenario = {"tokens": TOKENS, "cues": [CUE], "rate": 250, "answer": "42", **standin}
        body = {
            "model": "standin",
            "messages": [{"role": "user", "content": session}],
            "stream": True,
            "standin": scenario,
        }
        return {"json": body | fields, "headers": {"x-session-id": session}}

    async def chat(self, session: str, standin: Any = None, **fields: Any) -> None:
        """Read the whole response."""
        request = self._request(session, standin or {}, fields)
        with suppress(httpx.RemoteProtocolError):  # if the stand-in closes the connection
            await self._client.post("/v1/chat/completions", **request)

    async def disconnect(self, session: str, standin: Any, **fields: Any) -> None:
        """Close the connection after half a second."""
        request = self._request(session, standin, fields)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._client.post("/v1/chat/completions", **request)
