"""Every panel of the dashboard shows something: its PromQL is run by a real Prometheus that has
scraped a gateway under load. What Grafana makes of the JSON is checked by its structure only."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric

from adjourn.server.metrics import Metrics
from benchmarks import services
from benchmarks.services import free_port, start_process

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BOARD = json.loads((ROOT / "docker/grafana/dashboards/adjourn.json").read_text("utf-8"))
ROWS = [
    "Is it worth it?",
    "Is it safe?",
    "What did it do?",
    "What does it cost?",
    "The engine (vLLM)",
]
UNITS = {"s", "short", "none", "bytes", "percentunit", "reqps", "cpm"}
UNITS |= {"count:tokens", "count:tokens/s", "count:traces"}
SELECTOR = re.compile(r"\b((?:adjourn_|vllm:)\w+)(\{[^}]*\})?")
NOT_SHOWN = {"adjourn_build_info"}  # says which version, to who asks


def panels() -> list[dict[str, Any]]:
    """All panels, those in collapsed rows too, without the rows themselves."""
    flat = [p for panel in BOARD["panels"] for p in (panel, *panel.get("panels", ()))]
    return [panel for panel in flat if panel["type"] != "row"]


def title_of(panel: dict[str, Any]) -> str:
    return str(panel["title"])


TARGETS = [
    pytest.param(panel, target, id=f"{panel['title']} {target['refId']}")
    for panel in panels()
    for target in panel["targets"]
]


# -- the file ------------------------------------------------------------------------------------


def test_the_board_is_found_where_it_was() -> None:
    """Its uid, which links are made of, never changes; its schema is one that Grafana 11 reads."""
    assert BOARD["uid"] == "adjourn"
    assert 39 <= BOARD["schemaVersion"] <= 41
    assert BOARD.get("id") is None


def test_rows_are_in_order() -> None:
    """Worth, safety, deeds, cost; and the engine's own, folded."""
    rows = [panel for panel in BOARD["panels"] if panel["type"] == "row"]

    assert [row["title"] for row in rows] == ROWS
    assert [row["collapsed"] for row in rows] == [False] * 4 + [True]
    assert all(bool(row["panels"]) == row["collapsed"] for row in rows)


@pytest.mark.parametrize("panel", panels(), ids=title_of)
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    """Title, description, unit, thresholds, and a legend for each of its lines."""
    defaults = panel["fieldConfig"]["defaults"]

    assert len(panel["description"]) > 30
    assert defaults["unit"] in UNITS
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["legendFormat"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_lie_side_by_side() -> None:
    """Ids are unique, and no two panels share a place of the grid."""
    everything = BOARD["panels"] + [p for row in BOARD["panels"] for p in row.get("panels", ())]
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in everything}) == len(everything)


def test_titles_differ() -> None:
    """No two panels of a row are called the same."""
    for row in BOARD["panels"]:
        titles = [panel["title"] for panel in row.get("panels", ())]
        assert len(set(titles)) == len(titles)


def test_variables() -> None:
    """Data source, model and policy can be chosen; the latter two begin with all."""
    source, *others = BOARD["templating"]["list"]

    assert (source["name"], source["type"], source["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    assert [variable["name"] for variable in others] == ["model", "policy"]
    for variable in others:
        assert variable["includeAll"]
        assert variable["multi"]
        assert variable["allValue"] == ".*"
        assert variable["query"]["query"] == variable["definition"]


def test_every_metric_is_shown() -> None:
    """Each family that the gateway exports is on a panel, but for those listed above."""
    shown = {name for panel in panels() for t in panel["targets"] for name in names(t["expr"])}

    for family in families():
        samples = {family.name + end for end in ("", "_total", "_bucket", "_sum", "_count")}
        assert samples & shown or family.name in NOT_SHOWN, family.name


def names(expression: str) -> set[str]:
    return {found[1] for found in SELECTOR.finditer(expression)}


def families() -> Iterator[Metric]:
    for family in Metrics().registry.collect():
        if not family.name.startswith("adjourn_process_"):
            yield family


# -- a gateway under load, scraped ---------------------------------------------------------------


@dataclass(frozen=True)
class Scraped:
    """A Prometheus, when to look at it, and how many seconds Grafana would put in for
    $__rate_interval and $__range."""

    url: str
    at: float | None = None
    window: int = 60
    quiet: float | None = None  # when there had been no request for a while

    def get(self, path: str, **params: str) -> Any:
        reply = httpx.get(f"{self.url}/api/v1/{path}", params=params, trust_env=False).json()
        assert reply["status"] == "success", f"{reply.get('error')}: {params}"
        return reply["data"]

    def query(self, expression: str, **variables: str) -> list[dict[str, Any]]:
        window = f"{self.window}s"
        values = {"model": ".*", "policy": ".*", "__rate_interval": window, "__range": window}
        for name, value in (values | variables).items():
            expression = expression.replace(f"${name}", value)
        assert "$" not in expression
        when = {} if self.at is None else {"time": str(self.at)}
        return list(self.get("query", query=expression, **when)["result"])

    def grown(self, selector: str) -> float:
        """How much the counters grew from the first scrape of the window to the last."""
        series = [found["values"] for found in self.query(f"{selector}[$__range]")]
        return sum(float(samples[-1][1]) - float(samples[0][1]) for samples in series)

    def values(self, expression: str, **variables: str) -> list[float]:
        return [float(series["value"][1]) for series in self.query(expression, **variables)]


@pytest.fixture(scope="module")
def scraped(prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder = tmp_path_factory.mktemp("scraped")
    standin = f"http://127.0.0.1:{(port := free_port())}"
    settings = f"probe_timeout: 1\nresume_timeout: 3\nreward_url: {standin}\n"
    (folder / "adjourn.yaml").write_text(settings, "utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "benchmarks.standin", "--port", str(port)]
    options = ["--config", str(folder / "adjourn.yaml"), "--policy", "deer", "--hold-out", "0.5"]
    observer = [
        prometheus,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--log.level=warn",
    ]
    with ExitStack() as stack:
        begin = stack.enter_context
        engine = begin(exporter())
        begin(start_process(command, f"{standin}/health", log=folder / "standin.log"))
        gateway = begin(services.start_gateway(standin, free_port(), *options))
        scrape(folder, gateway=gateway.removeprefix("http://"), engine=engine)
        begin(start_process(observer, f"{url}/-/ready", log=folder / "prometheus.log"))
        found = Scraped(url)
        # What the first round brings into being is scraped before the second round adds to it:
        # from a series that was not there, Prometheus knows no increase. So look at the second.
        asyncio.run(put_through(gateway))
        two_scrapes(found)
        began = time.time()
        two_scrapes(found)
        asyncio.run(put_through(gateway))
        two_scrapes(found)
        now = time.time()
        two_scrapes(found)
        two_scrapes(found)
        yield Scraped(url, now, math.ceil(now - began), quiet=time.time())


def scrape(folder: Path, **targets: str) -> None:
    """A configuration like docker/prometheus.yml, but faster."""
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [target]}]}
        for name, target in targets.items()
    ]
    configuration = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}}
    text = json.dumps(configuration | {"scrape_configs": jobs})  # JSON is YAML
    (folder / "prometheus.yml").write_text(text, "utf-8")


def two_scrapes(scraped: Scraped) -> None:
    """Until gateway and engine were both scraped twice from now on."""
    since = time.time()

    def scraped_twice() -> bool:
        times = scraped.values("timestamp(up == 1)")
        return len(times) == 2 and min(times) > since + 1.0

    limit = time.monotonic() + 30.0
    while not scraped_twice():
        assert time.monotonic() < limit, "gateway and engine are not both scraped"
        time.sleep(0.1)


@contextmanager
def exporter() -> Iterator[str]:
    """What a real vLLM 0.32.0 exported, its counters growing from scrape to scrape."""
    recorded = (HERE / "vllm.prom").read_text("utf-8").replace('"pocket"', '"standin"')
    scrapes = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal scrapes
            scrapes += 1
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(grown(recorded, scrapes).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def grown(recorded: str, times: int) -> str:
    lines, counts = [], False
    for line in recorded.splitlines():
        if line.startswith("#"):
            counts = not line.endswith(" gauge")
        elif counts:
            sample, _, value = line.rpartition(" ")
            line = f"{sample} {float(value) * times}"
        lines.append(line)
    return "\n".join(lines) + "\n"


# -- the load ------------------------------------------------------------------------------------

TOKENS, CUE = 200, 40  # a trace's length, and where it is looked at


async def put_through(gateway: str) -> None:
    """One round: something of everything that a gateway meets, all at once."""
    async with httpx.AsyncClient(
        base_url=gateway, trust_env=False, timeout=30, limits=httpx.Limits(max_connections=None)
    ) as client:
        load = Load(client)
        unsure = {"trial_logprob": -2.0}
        late = {"delay_first": 20.0}
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
            load.leave("early", late),
            load.leave("midway", endless),
            load.leave("unstreamed", late, stream=False),
            client.get("/v1/models"),
        ]
        await asyncio.gather(*jobs)


class Load:
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
        request = self._request(session, standin or {}, fields)
        with suppress(httpx.RemoteProtocolError):  # where the stand-in dies in mid-stream
            await self._client.post("/v1/chat/completions", **request)

    async def leave(self, session: str, standin: Any, **fields: Any) -> None:
        """Close the connection after half a second."""
        request = self._request(session, standin, fields)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._client.post("/v1/chat/completions", **request)


# -- what the panels show ------------------------------------------------------------------------


@pytest.mark.prometheus
@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_panel_shows_something(
    scraped: Scraped, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    """Its expression parses and brings numbers, for all models and policies and for one."""
    for variables in (
        {},
        {"model": "(standin|other)", "policy": "(deer|budget|first-finish|partial-reward|none)"},
    ):
        values = scraped.values(target["expr"], **variables)

        assert values
        assert all(math.isfinite(value) for value in values)


@pytest.mark.prometheus
@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_panel_asks_for_what_there_is(
    scraped: Scraped, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    """Each metric with its labels exists by itself: `or vector(0)` hides no wrong name."""
    for found in SELECTOR.finditer(target["expr"]):
        assert scraped.query(found[0]), found[0]


@pytest.mark.prometheus
@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_a_legend_names_labels_that_there_are(
    scraped: Scraped, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    """Every {{label}} of the legend is in every series, and tells the series apart."""
    labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
    series = [found["metric"] for found in scraped.query(target["expr"])]
    legends = {tuple(metric.get(label) for label in labels) for metric in series}

    assert all(label in metric for metric in series for label in labels)
    assert len(legends) == len(series)


@pytest.mark.prometheus
@pytest.mark.parametrize("panel", [p for p in panels() if p["type"] == "stat"], ids=title_of)
def test_a_large_number_is_never_not_a_number(scraped: Scraped, panel: dict[str, Any]) -> None:
    """Where nothing happened, a stat has no value, and says so in words: not 0 / 0."""
    quiet = replace(scraped, at=scraped.quiet, window=3)

    assert all(map(math.isfinite, quiet.values(panel["targets"][0]["expr"])))


@pytest.mark.prometheus
@pytest.mark.parametrize("name", ["model", "policy"])
def test_a_variable_offers_what_was_seen(scraped: Scraped, name: str) -> None:
    """label_values(metric, label), asked as Grafana asks it."""
    (variable,) = (v for v in BOARD["templating"]["list"] if v["name"] == name)
    called = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
    assert called is not None

    offered = scraped.get(f"label/{called[2]}/values", **{"match[]": called[1]})

    assert set(offered) >= {"model": {"standin", "other"}, "policy": {"deer", "budget"}}[name]


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("title", "low", "high"),
    [
        ("A cut saves (measured)", TOKENS - CUE - 1, TOKENS - CUE + 1),
        ("Median tokens at the stop", 32, 64),
        ("Engine", 1, 1),
        ("Net saving (estimate)", 0.001, 0.95),
        ("Upstream errors", 0.5, 20),
    ],
)
def test_a_number_is_right(scraped: Scraped, title: str, low: float, high: float) -> None:
    """The large numbers say what the load was."""
    assert low <= shown(scraped, title) <= high


JUDGED = 'adjourn_requests_total{policy="deer"}'
ANSWERED = 'adjourn_requests_total{policy=~"deer|none"%s}'


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("title", "part", "whole"),
    [
        (
            "Traces ended early",
            'adjourn_triggers_total{policy="deer",action="carried-out"}',
            JUDGED,
        ),
        ("Answered with an error", ANSWERED % ',status=~"5.."', ANSWERED % ""),
        ("Clients that left", ANSWERED % ',status="499"', ANSWERED % ""),
        (
            "Cuts refused",
            'adjourn_triggers_total{policy="deer",action="refused"}',
            'adjourn_triggers_total{policy="deer",action=~"refused|carried-out"}',
        ),
        ("Failed open", 'adjourn_fail_open_total{policy=~"deer|none"}', JUDGED),
    ],
)
def test_a_share_is_right(scraped: Scraped, title: str, part: str, whole: str) -> None:
    """It is the counters' own, whatever a busy machine made of the load. Prometheus reckons beyond
    the ends of the window, for each series a little otherwise."""
    share = scraped.grown(part) / scraped.grown(whole)

    assert share > 0
    assert 0.6 * share <= shown(scraped, title) <= 1.6 * share


def shown(scraped: Scraped, title: str) -> float:
    """What the panel of this title says of the load."""
    (panel,) = (p for p in panels() if p["title"] == title and p["type"] == "stat")
    (value,) = scraped.values(panel["targets"][0]["expr"], policy="(deer|none)")
    return value
