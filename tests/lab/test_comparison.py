"""``adjourn replay`` as a user calls it, and the files that it writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.services import ROOT
from tests.lab.trace_factory import probe_completed, trace, write_log

ADJOURN = Path(sys.executable).with_name("adjourn")
HOSTILE = "</script><img src=x onerror=alert(1)><!-- ${x} {{data}} \u2028"
TEXTS = ["one", " two", " three", " Wait", ",", HOSTILE, *[" more"] * 40]


def traces(count: int = 12) -> list[Any]:
    return [
        trace(
            TEXTS,
            [probe_completed(0, "1"), probe_completed(3, "7" if number % 3 else HOSTILE, 0.97)],
            prompt=f"{HOSTILE}{number}",
            gold="7",
        )
        for number in range(count)
    ]


def replay(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(ADJOURN), "replay", str(path), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("replay")
    path = write_log(folder / "traces.jsonl", traces())
    ran = replay(path, "--policies", "deer(threshold={0.9,0.99}, gate=0)", "--policies", "never")
    assert ran.returncode == 0, ran.stderr
    return folder / "traces.replay", ran.stdout


def test_the_table_has_all_baselines_and_policies(done: tuple[Path, str]) -> None:
    """And names the best setting."""
    _, output = done
    for name in ("full thinking", "no thinking", "budget of", "random cue", "oracle", "never"):
        assert name in output
    assert "deer(threshold=0.9, gate=0)" in output
    assert "The best setting: never" in output


def test_replay_writes_plot_page_and_numbers(done: tuple[Path, str]) -> None:
    """The numbers are those of the table."""
    out, _ = done
    assert (out / "pareto.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    points = json.loads((out / "points.json").read_text())["points"]
    names = {point["name"] for point in points}
    assert len(names) == 5 + 3
    deer = next(p for p in points if p["name"] == "deer(threshold=0.9, gate=0)")
    assert deer["accuracy"]["value"] == pytest.approx(8 / 12)
    assert deer["crt"]["value"] < 0.7
    assert deer["stopped_share"] == 1.0


class Elements(HTMLParser):
    """The name and attributes of every element, and the text of the data element."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def test_the_page_is_self_contained(done: tuple[Path, str]) -> None:
    """It has no external links, and its Content-Security-Policy forbids them."""
    source = (done[0] / "explore.html").read_text("utf-8")
    page = Elements()
    page.feed(source)
    linked = [attrs for _, attrs in page.found if {"src", "href"} & set(attrs)]
    assert linked == []
    assert re.findall(r"\b(?:fetch|import|XMLHttpRequest|url)\(", source) == []
    assert set(re.findall(r"https?://[\w.]+", source)) <= {"http://www.w3.org"}
    assert "default-src 'none'" in source


def test_text_of_a_trace_never_becomes_markup(done: tuple[Path, str]) -> None:
    """Prompts, reasoning and answers are data, and the page inserts them as text only."""
    source = (done[0] / "explore.html").read_text("utf-8")
    page = Elements()
    page.feed(source)
    assert [tag for tag, _ in page.found if tag in ("img", "iframe", "object")] == []
    assert [tag for tag, _ in page.found].count("script") == 2
    data = json.loads(page.data)
    wrong = next(p for p in data["points"] if p["wrong"])["wrong"]
    assert HOSTILE in wrong[0]["trace"]
    assert HOSTILE in wrong[0]["after"]
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in source


def test_the_page_explains_wrong_traces(done: tuple[Path, str]) -> None:
    """Traces that the cut made wrong come first, with the place and the reason of the cut."""
    page = Elements()
    page.feed((done[0] / "explore.html").read_text("utf-8"))
    points = {p["name"]: p for p in json.loads(page.data)["points"]}
    wrong = points["deer(threshold=0.9, gate=0)"]["wrong"]
    assert len(wrong) == 4
    assert wrong[0]["broken_by_cut"]
    assert wrong[0]["why"].startswith("Cut after 3 of 46 tokens (confident, confidence 0.97")
    assert wrong[0]["before"] == "one two three"
    assert wrong[0]["after"].startswith(" Wait,")


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ("nonsense", "unknown policy 'nonsense'"),
        ("convergence(every=4)", "were not recorded"),
        ("deer(threshold=0.9..0.1)", "goes down"),
        ("deer-pro", "record with --for 'deer-pro'"),
        ("cusum", "log-probabilities were not recorded: record with --for 'cusum'"),
        ("tilt", "no recording shows what the model would generate"),
        ("tilt(bias=0, slope=100, every=4)", "no recording shows what the model would generate"),
        ("budget(min=20)", "no recording shows what the model would generate"),
    ],
)
def test_a_policy_that_cannot_be_replayed_is_refused(
    tmp_path: Path, policies: str, message: str
) -> None:
    """With one line, status 2 and no traceback."""
    many = [trace(TEXTS, [probe_completed(3)], prompt=str(number)) for number in range(4)]
    ran = replay(write_log(tmp_path / "t.jsonl", many), "--policies", policies)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_file_without_a_recording_is_refused(tmp_path: Path) -> None:
    """So is a missing file."""
    (tmp_path / "t.jsonl").write_text('{"prompt": "1"}\n')
    for name, message in (("t.jsonl", "header of a recording"), ("none.jsonl", "No such file")):
        ran = replay(tmp_path / name, "--policies", "never")
        assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)
        assert message in ran.stderr


def test_a_missing_library_is_reported(tmp_path: Path) -> None:
    """The message names the extra to install."""
    write_log(tmp_path / "t.jsonl", traces(1))
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        f"sys.argv = ['adjourn', 'replay', {str(tmp_path / 't.jsonl')!r}, '--policies', 'never']\n"
        "from adjourn.server.cli import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "adjourn[lab]" in ran.stderr


def test_a_policy_over_several_traces_is_refused(tmp_path: Path) -> None:
    """Traces are replayed one by one, so it would run as a race of one trace."""
    ran = replay(write_log(tmp_path / "traces.jsonl", traces(2)), "--policies", "first-finish")
    assert ran.returncode != 0
    assert "over several traces" in re.sub(r"\s+", " ", ran.stderr + ran.stdout)
