"""One module imports httpx, and httpx works in the same process as the openai SDK's httpx2."""

from __future__ import annotations

import ast
import asyncio
import json
from pathlib import Path

import httpx
import httpx2
import openai
import pytest

from adjourn.server.upstream import http
from tests.server.upstream.loopback import (
    ScriptedServer,
    encode_response,
    fetch,
    make_request,
    open_transport,
    serve,
)

ROOT = Path(__file__).parents[3]
HTTP = ROOT / "server" / "upstream" / "http.py"
MODULES = sorted(
    path
    for folder in ("policies", "server", "benchmarks/lab")
    for path in (ROOT / folder).rglob("*.py")
)


def imported_packages(path: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module)):
                names.add(module)
    return {name.partition(".")[0] for name in names}


def test_only_one_module_imports_httpx() -> None:
    """So a move to another HTTP library changes one import. httpx2 and httpcore are not used."""
    libraries = {"httpx", "httpx2", "httpcore"}
    found = {path: imported_packages(path) & libraries for path in MODULES}
    assert {path: names for path, names in found.items() if names} == {HTTP: {"httpx"}}


@pytest.mark.parametrize("name", http.__all__)
def test_httpx2_has_the_same_names(name: str) -> None:
    """Each class has the same bases by name, so ``except`` clauses catch the same errors there."""
    ours, theirs = getattr(httpx, name), getattr(httpx2, name)
    assert getattr(http, name) is ours
    if isinstance(ours, type):
        assert [base.__name__ for base in ours.__mro__] == [b.__name__ for b in theirs.__mro__]


def test_the_openai_sdk_and_the_transport_work_in_one_process() -> None:
    """The SDK sends its requests with httpx2, the gateway's transport with httpx's types, to the
    same server on the same event loop."""
    message = {"role": "assistant", "content": "4"}
    completion = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    body = json.dumps(completion).encode()
    response = encode_response([body], "length").replace(
        b"\r\n\r\n", b"\r\nContent-Type: application/json\r\n\r\n", 1
    )

    async def run() -> tuple[str | None, tuple[int, bytes], type]:
        server = ScriptedServer(response, response)
        async with (
            serve(server) as url,
            open_transport() as transport,
            openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ):
            reply, fetched = await asyncio.gather(
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "2+2"}]
                ),
                fetch(transport, make_request(f"{url}/chat/completions", content=b"{}")),
            )
            return reply.choices[0].message.content, fetched, type(client._client)

    content, fetched, client_class = asyncio.run(run())
    assert content == "4"
    assert fetched == (200, body)
    assert issubclass(client_class, httpx2.AsyncClient)
