"""The compose file and what it mounts: right by their schemas, and right about each other."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from adjourn.server.config import Settings, load

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCKER = ROOT / "docker"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def interpolated(value: Any, env: dict[str, str]) -> Any:
    """As compose does it with ``${NAME:-default}`` and ``${NAME:?complaint}``."""

    def replace(found: re.Match[str]) -> str:
        given = env.get(found["name"], "")
        if not given and found["kind"] != "-":
            raise KeyError(found["name"])
        return given or found["rest"]

    if isinstance(value, dict):
        return {key: interpolated(inner, env) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, env) for inner in value]
    return VARIABLE.sub(replace, value) if isinstance(value, str) else value


RAW = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
STACK = interpolated(RAW, {"GRAFANA_PASSWORD": "secret"})
SERVICES = STACK["services"]
PROMETHEUS = yaml.safe_load((DOCKER / "prometheus.yml").read_text("utf-8"))


def provisioned(kind: str) -> dict[str, Any]:
    (file,) = (DOCKER / "grafana" / "provisioning" / kind).glob("*.yaml")
    parsed = yaml.safe_load(file.read_text("utf-8"))
    assert parsed["apiVersion"] == 1
    (one,) = parsed[kind if kind == "datasources" else "providers"]
    return dict(one)


def mounts(service: str) -> dict[str, str]:
    """Where in the container what lies: a path or a volume's name by its target."""
    parts = (mount.split(":") for mount in SERVICES[service].get("volumes", ()))
    return {target: source for source, target, *_ in parts}


def in_container(service: str, path: str) -> Path:
    """The file here that a path in the container is."""
    for target, source in mounts(service).items():
        if path == target or path.startswith(target + "/"):
            return DOCKER / (source + path.removeprefix(target))
    raise AssertionError(f"{path} is not mounted in {service}")


def seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


@pytest.mark.parametrize("stack", [RAW, STACK], ids=["as written", "interpolated"])
def test_compose_fits_its_published_schema(stack: dict[str, Any]) -> None:
    """compose.yaml is valid by the Compose Specification, before and after interpolation."""
    schema = json.loads((HERE / "compose-spec.json").read_text("utf-8"))

    jsonschema.Draft202012Validator(schema).validate(stack)


def test_grafana_has_no_default_password() -> None:
    """Without GRAFANA_PASSWORD nothing starts; every other variable has a default."""
    with pytest.raises(KeyError, match="GRAFANA_PASSWORD"):
        interpolated(RAW, {})


def test_every_variable_is_documented() -> None:
    """docker/README.md names each variable with its default."""
    readme = (DOCKER / "README.md").read_text("utf-8")
    for found in VARIABLE.finditer(json.dumps(RAW)):
        assert f"| `{found['name']}` |" in readme, found["name"]
        if found["kind"] == "-" and found["rest"]:
            assert f"| `{found['name']}` | `{found['rest']}` |" in readme


def test_ports_are_published_on_loopback() -> None:
    """Nothing is reachable from outside unless BIND says so."""
    for name, service in SERVICES.items():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), name


def test_images_are_pinned() -> None:
    """Each image has a version, and none is `latest`."""
    for service in SERVICES.values():
        assert service["image"].partition(":")[2] not in ("", "latest")


def test_the_gateway_takes_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ADJOURN_ variable is a setting, with the default that the setting itself has."""
    environment = SERVICES["gateway"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    settings = load()

    changed = settings.model_dump(exclude={"upstream"})
    assert changed == Settings.model_construct().model_dump(exclude={"upstream"})
    assert str(settings.upstream) == "http://vllm:8000/"


def test_running_streams_may_end_before_the_container_is_killed() -> None:
    """Compose waits longer than the gateway drains."""
    gateway = SERVICES["gateway"]

    assert seconds(gateway["stop_grace_period"]) > int(gateway["environment"]["ADJOURN_DRAIN"])


def test_who_waits_for_a_healthy_service_waits_for_a_health_check() -> None:
    """`service_healthy` is asked of services with a health check only."""
    for service in SERVICES.values():
        wanted = service.get("depends_on", {})
        for name in wanted:
            if isinstance(wanted, dict) and wanted[name]["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]


def test_mounts_exist() -> None:
    """Each path that is mounted is in docker/, read-only; each volume is declared."""
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
                assert rest.endswith(":ro"), name
            else:
                assert source in STACK["volumes"]


def test_the_build_has_its_dockerfile() -> None:
    """The gateway's build names the Dockerfile, from a context that is the repository."""
    build = SERVICES["gateway"]["build"]
    context = (DOCKER / build["context"]).resolve()

    assert context == ROOT
    assert context / build["dockerfile"] == DOCKER / "Dockerfile"


def test_prometheus_reads_the_mounted_configuration() -> None:
    """Its command line names a file that is mounted, and a data directory that is a volume."""
    flags = dict(flag.split("=", 1) for flag in SERVICES["prometheus"]["command"])

    assert in_container("prometheus", flags["--config.file"]) == DOCKER / "prometheus.yml"
    assert mounts("prometheus")[flags["--storage.tsdb.path"]] in STACK["volumes"]


def test_prometheus_scrapes_both() -> None:
    """Gateway and engine, each at its service's name and the port inside its container."""
    targets = [t for job in PROMETHEUS["scrape_configs"] for s in job["static_configs"]
               for t in s["targets"]]  # fmt: skip

    assert targets == ["gateway:8000", "vllm:8000"]
    for target in targets:
        name, _, port = target.partition(":")
        assert SERVICES[name]["ports"][0].endswith(f":{port}")


@pytest.mark.prometheus
def test_promtool_accepts_the_configuration(promtool: str) -> None:
    """`promtool check config` finds nothing."""
    checked = subprocess.run(
        [promtool, "check", "config", DOCKER / "prometheus.yml"], capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_is_provisioned() -> None:
    """Data source and dashboards are where Grafana looks, and the former at Prometheus' port."""
    source = provisioned("datasources")
    provider = provisioned("dashboards")
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert in_container("grafana", "/etc/grafana/provisioning/datasources").is_dir()
    assert in_container("grafana", "/etc/grafana/provisioning/dashboards").is_dir()
    assert in_container("grafana", provider["options"]["path"]).is_dir()
    assert in_container("grafana", home).is_file()
    assert source["url"] == "http://prometheus:9090"
    assert source["type"] == "prometheus"
    assert SERVICES["prometheus"]["ports"][0].endswith(":9090")


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    """$__rate_interval is made from it: with a wrong one, rates have gaps."""
    told = provisioned("datasources")["jsonData"]["timeInterval"]

    assert told == PROMETHEUS["global"]["scrape_interval"]
