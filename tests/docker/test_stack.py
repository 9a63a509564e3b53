"""compose.yaml and the files it mounts: valid by their schemas, and consistent with each other."""

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


def interpolate(value: Any, env: dict[str, str]) -> Any:
    """Substitute ``${NAME:-default}`` and ``${NAME:?complaint}`` as Compose does. KeyError: a
    required variable is missing."""

    def replace(match: re.Match[str]) -> str:
        text = env.get(match["name"], "")
        if not text and match["kind"] != "-":
            raise KeyError(match["name"])
        return text or match["rest"]

    if isinstance(value, dict):
        return {key: interpolate(inner, env) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolate(inner, env) for inner in value]
    return VARIABLE.sub(replace, value) if isinstance(value, str) else value


RAW = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
STACK = interpolate(RAW, {"GRAFANA_PASSWORD": "secret"})
SERVICES = STACK["services"]
PROMETHEUS = yaml.safe_load((DOCKER / "prometheus.yml").read_text("utf-8"))


def read_provisioning(kind: str) -> dict[str, Any]:
    """The only data source or dashboard provider that is provisioned."""
    (file,) = (DOCKER / "grafana" / "provisioning" / kind).glob("*.yaml")
    parsed = yaml.safe_load(file.read_text("utf-8"))
    assert parsed["apiVersion"] == 1
    (entry,) = parsed[kind if kind == "datasources" else "providers"]
    return dict(entry)


def mounts(service: str) -> dict[str, str]:
    """By target path in the container: the mounted path or the volume's name."""
    parts = (mount.split(":") for mount in SERVICES[service].get("volumes", ()))
    return {target: source for source, target, *_ in parts}


def mounted_file(service: str, path: str) -> Path:
    """The file of the repository that is at this path in the container."""
    for target, source in mounts(service).items():
        if path == target or path.startswith(target + "/"):
            return DOCKER / (source + path.removeprefix(target))
    raise AssertionError(f"{path} is not mounted in {service}")


def parse_seconds(text: str) -> int:
    """A Compose duration, such as ``40s`` or ``30m``, in seconds."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


@pytest.mark.parametrize("stack", [RAW, STACK], ids=["as written", "interpolated"])
def test_compose_is_valid_by_its_published_schema(stack: dict[str, Any]) -> None:
    """That of the Compose Specification, before and after interpolation."""
    schema = json.loads((HERE / "compose-spec.json").read_text("utf-8"))

    jsonschema.Draft202012Validator(schema).validate(stack)


def test_grafana_has_no_default_password() -> None:
    """Without GRAFANA_PASSWORD nothing starts; every other variable has a default."""
    with pytest.raises(KeyError, match="GRAFANA_PASSWORD"):
        interpolate(RAW, {})


def test_every_variable_is_documented() -> None:
    """docker/README.md lists each variable with its default."""
    readme = (DOCKER / "README.md").read_text("utf-8")
    for found in VARIABLE.finditer(json.dumps(RAW)):
        assert f"| `{found['name']}` |" in readme, found["name"]
        if found["kind"] == "-" and found["rest"]:
            assert f"| `{found['name']}` | `{found['rest']}` |" in readme


def test_ports_are_published_on_loopback() -> None:
    """Unless the variable BIND has another address."""
    for name, service in SERVICES.items():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), name


def test_images_are_pinned() -> None:
    """Each image has a version other than `latest`."""
    for service in SERVICES.values():
        assert service["image"].partition(":")[2] not in ("", "latest")


def test_the_gateways_environment_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ADJOURN_ variable is a setting, and its default is that of the setting."""
    environment = SERVICES["gateway"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    settings = load()

    changed = settings.model_dump(exclude={"upstream"})
    assert changed == Settings.model_construct().model_dump(exclude={"upstream"})
    assert str(settings.upstream) == "http://vllm:8000/"


def test_compose_waits_longer_than_the_gateway_drains() -> None:
    """So that running streams may end before the container is killed."""
    gateway = SERVICES["gateway"]

    assert parse_seconds(gateway["stop_grace_period"]) > int(
        gateway["environment"]["ADJOURN_DRAIN"]
    )


def test_service_healthy_needs_a_health_check() -> None:
    """Each service in such a `depends_on` condition has one."""
    for service in SERVICES.values():
        dependencies = service.get("depends_on", {})
        for name in dependencies:
            if (
                isinstance(dependencies, dict)
                and dependencies[name]["condition"] == "service_healthy"
            ):
                assert "healthcheck" in SERVICES[name]


def test_mounts_exist() -> None:
    """Each mounted path is in docker/ and read-only; each volume is declared."""
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
                assert rest.endswith(":ro"), name
            else:
                assert source in STACK["volumes"]


def test_the_build_names_the_dockerfile() -> None:
    """The context is the repository's root."""
    build = SERVICES["gateway"]["build"]
    context = (DOCKER / build["context"]).resolve()

    assert context == ROOT
    assert context / build["dockerfile"] == DOCKER / "Dockerfile"


def test_prometheus_reads_the_mounted_configuration() -> None:
    """Its command line names a mounted file, and a data directory on a volume."""
    flags = dict(flag.split("=", 1) for flag in SERVICES["prometheus"]["command"])

    assert mounted_file("prometheus", flags["--config.file"]) == DOCKER / "prometheus.yml"
    assert mounts("prometheus")[flags["--storage.tsdb.path"]] in STACK["volumes"]


def test_prometheus_scrapes_gateway_and_engine() -> None:
    """Each at its service name and container port."""
    targets = [t for job in PROMETHEUS["scrape_configs"] for s in job["static_configs"]
               for t in s["targets"]]  # fmt: skip

    assert targets == ["gateway:8000", "vllm:8000"]
    for target in targets:
        name, _, port = target.partition(":")
        assert SERVICES[name]["ports"][0].endswith(f":{port}")


@pytest.mark.prometheus
def test_promtool_accepts_the_configuration(promtool: str) -> None:
    """With `promtool check config`."""
    checked = subprocess.run(
        [promtool, "check", "config", DOCKER / "prometheus.yml"], capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_finds_data_source_and_dashboards() -> None:
    """They are mounted where Grafana reads them, and the data source has Prometheus' port."""
    source = read_provisioning("datasources")
    provider = read_provisioning("dashboards")
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert mounted_file("grafana", "/etc/grafana/provisioning/datasources").is_dir()
    assert mounted_file("grafana", "/etc/grafana/provisioning/dashboards").is_dir()
    assert mounted_file("grafana", provider["options"]["path"]).is_dir()
    assert mounted_file("grafana", home).is_file()
    assert source["url"] == "http://prometheus:9090"
    assert source["type"] == "prometheus"
    assert SERVICES["prometheus"]["ports"][0].endswith(":9090")


def test_grafana_has_the_scrape_interval() -> None:
    """Grafana computes $__rate_interval from it; with a wrong value, rates have gaps."""
    interval = read_provisioning("datasources")["jsonData"]["timeInterval"]

    assert interval == PROMETHEUS["global"]["scrape_interval"]
