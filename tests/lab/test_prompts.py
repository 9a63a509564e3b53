"""Prompts from JSONL, CSV and Parquet files and from a hub."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow
import pytest
from pyarrow import parquet

from adjourn.lab.prompts import BadPrompts, Prompt, PromptSource, read_prompts
from adjourn.lab.trace_log import load
from benchmarks.services import ROOT, free_port

ADJOURN = Path(sys.executable).with_name("adjourn")
BODY = {"standin": {"tokens": 60, "cues": [30], "rate": 2000, "trial": "42"}}
ROWS = [
    {"question": f"What is {n} + {n}?", "answer": f"Twice {n} is {2 * n}.\n#### {2 * n}"}
    for n in range(5)
]
FILES = ("main/train/0000.parquet", "main/test/0000.parquet", "socratic/test/0000.parquet")


def jsonl(path: Path, *rows: dict[str, Any] | str) -> PromptSource:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return PromptSource(str(path))


def test_texts_and_conversations_are_read(tmp_path: Path) -> None:
    """With or without ids and answers; empty lines are skipped."""
    text, conversation = (
        {"prompt": "1+1?", "answer": 2, "id": 5},
        {"messages": [{"role": "user"}], "x": 1},
    )
    source = jsonl(tmp_path / "p.jsonl", text, "", conversation)
    first, second = read_prompts(source)
    assert first == Prompt("5", [{"role": "user", "content": "1+1?"}], "2")
    assert second.gold is None
    assert second.id == read_prompts(source)[1].id


@pytest.mark.parametrize(
    "line",
    [
        *("{}", '{"prompt": "a", "messages": []}', "[1]", "nothing", '{"prompt": "1", "id": "x"}'),
        *('{"prompt": 5}', '{"answer": "5"}'),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    """So is a second prompt with the same id."""
    source = jsonl(tmp_path / "p.jsonl", {"prompt": "0", "id": "x"}, line)
    with pytest.raises(BadPrompts, match="line 2"):
        read_prompts(source)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Q", "answer": "So 1,000.\n#### 1,000"}, ("Q", "1,000")),
        ({"problem": "Q", "solution": "Hence $\\boxed{\\frac{1}{2}}$."}, ("Q", "\\frac{1}{2}")),
        ({"problem": "Q", "solution": "Hence \\boxed{1}.", "answer": "2"}, ("Q", "2")),
        ({"input": "Q", "target": "#### is no mark in mid-line #### 3 ####"}, None),
        ({"question": "Q", "choices": ["a", "b"], "answer": 1}, ("Q\n(A) a\n(B) b", "B")),
        ({"question": "Q", "options": ["a", "b"], "answer": "A"}, ("Q\n(A) a\n(B) b", "A")),
        ({"question": "Q", "options": "a, b", "answer": 1}, ("Q", "1")),
        ({"question": "Q"}, ("Q", None)),
    ],
)
def test_known_columns_are_found(
    tmp_path: Path, row: dict[str, Any], expected: tuple[str, str | None] | None
) -> None:
    """A worked solution becomes its answer, the index of an option its letter."""
    (prompt,) = read_prompts(jsonl(tmp_path / "p.jsonl", row))
    expected = expected or (row["input"], row["target"])
    assert (prompt.messages[0]["content"], prompt.gold) == expected


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_columns_can_be_named(tmp_path: Path, name: str) -> None:
    """And a seed selects the same random prompts each time."""
    rows = [{"query_text": f'"{n}",\nwhat?', "result": n} for n in range(9)]
    path = str(table(tmp_path / name, rows))
    every = read_prompts(PromptSource(path, question="query_text", answer="result"))
    assert [(p.messages[0]["content"], p.gold) for p in every] == [
        (row["query_text"], str(row["result"])) for row in rows
    ]
    some = PromptSource(path, question="query_text", answer="result", limit=4, shuffle_seed=3)
    assert read_prompts(some) == read_prompts(some)
    assert read_prompts(some) != every[:4]
    assert {p.id for p in read_prompts(some)} < {p.id for p in every}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "nothing"}, "no column 'nothing': there are query_text, result"),
        ({}, "name its column with --question"),
        ({"split": "test"}, "are for datasets"),
    ],
)
def test_a_bad_selection_from_a_table_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = table(tmp_path / "p.csv", [{"query_text": "1", "result": "2"}])
    with pytest.raises(BadPrompts, match=message):
        read_prompts(PromptSource(str(path), **fields))


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none.parquet"])
def test_a_missing_file_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadPrompts, match="none"):
        read_prompts(PromptSource(str(tmp_path / name)))


def test_a_broken_parquet_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("no table")
    with pytest.raises(BadPrompts, match=r"p\.parquet"):
        read_prompts(PromptSource(str(tmp_path / "p.parquet")))


class Hub(BaseHTTPRequestHandler):
    """The routes of a hub that we use: the list of a dataset's files, and the files."""

    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path)
        if path == "/api/datasets/owner/sums/revision/refs/convert/parquet":
            siblings = [{"rfilename": file} for file in FILES]
            self.reply(json.dumps({"id": "owner/sums", "siblings": siblings}).encode())
        elif "/resolve/refs/convert/parquet/" in path:
            self.reply((self.folder / path.rpartition("/parquet/")[2]).read_bytes())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local hub with one dataset."""
    folder = tmp_path_factory.mktemp("hub")
    for file in FILES:
        rows = [{**row, "question": f"{file}: {row['question']}"} for row in ROWS]
        table(folder / file, rows)
    handler = type("Handler", (Hub,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def record(standin: str, folder: Path, hub: str, *options: str) -> subprocess.CompletedProcess[str]:
    line = [
        str(ADJOURN), "record", *options, "--upstream", standin, "--out",
        str(folder / "traces.jsonl"), "--body", json.dumps(BODY),
    ]  # fmt: skip
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(folder / "cache")}
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)


def test_a_dataset_is_recorded_by_name(standin: str, tmp_path: Path, hub: str) -> None:
    """Its default subset and its test split, with gold answers."""
    ran = record(standin, tmp_path, hub, "hf:owner/sums", "--limit", "3")
    assert ran.returncode == 0, ran.stderr
    _, traces = load(tmp_path / "traces.jsonl")
    recorded = {trace.prompt_id: trace for trace in traces}
    assert {name: trace.gold for name, trace in recorded.items()} == {
        "test-0": "0", "test-1": "2", "test-2": "4",
    }  # fmt: skip
    question = recorded["test-2"].messages[0]["content"]
    assert question == "main/test/0000.parquet: What is 2 + 2?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("hf:owner/sums", "--subset", "other"), "no subset 'other': there are main, socratic"),
        (("hf:owner/sums", "--split", "dev"), "no split 'dev': there are train, test"),
        (("hf:owner/sums", "--answer", "key"), "no column 'key': there are id, question, answer"),
        (("hf:owner/nothing",), "hf:owner/nothing: "),
        (("hf:a/b/c",), "write hf:OWNER/DATASET"),
    ],
)
def test_a_bad_selection_from_a_dataset_is_refused(
    standin: str, tmp_path: Path, hub: str, options: tuple[str, ...], message: str
) -> None:
    """The message lists the choices; no request is sent to the engine."""
    ran = record(standin, tmp_path, hub, *options)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert not (tmp_path / "traces.jsonl").exists()


def test_an_unreachable_hub_is_reported(standin: str, tmp_path: Path) -> None:
    """The message names the hub and the setting to change."""
    hub = f"http://127.0.0.1:{free_port()}"
    ran = record(standin, tmp_path, hub, "hf:owner/sums")
    assert ran.returncode == 2
    assert f"the hub at {hub} can't be reached" in ran.stderr
    assert "HF_ENDPOINT" in ran.stderr
