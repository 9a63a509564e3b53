"""Settings: their sources, the precedence among these, and the errors in them."""

from __future__ import annotations

import os
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from adjourn.server.config import BadConfig, list_settings, load, variable
from tests.policies.readiness_fixtures import classifier_document, make_classifier


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("ADJOURN_"):
            monkeypatch.delenv(name)
    # So that a variable set by ``load`` is removed after the test.
    monkeypatch.setenv("ADJOURN_CONFIG", "")
    monkeypatch.delenv("ADJOURN_CONFIG")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "adjourn.yaml"


def test_no_setting_is_required() -> None:
    """The defaults are valid."""
    settings = load()
    assert (str(settings.upstream), settings.port) == ("http://127.0.0.1:8100/", 8000)
    assert (settings.policy, settings.mode, settings.hold_out) == ("deer", "enforce", 0.05)


def test_precedence_of_the_sources(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line, environment, file, default."""
    file.write_text("port: 1\nhost: file\nsalt: file\n")
    monkeypatch.setenv("ADJOURN_PORT", "2")
    monkeypatch.setenv("ADJOURN_HOST", "environment")
    settings = load(file, port=3, drain=None)
    seen = (settings.port, settings.host, settings.salt, settings.drain)
    assert seen == (3, "environment", "file", 30)


def test_the_environment_may_name_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ADJOURN_CONFIG`` applies if no path is given."""
    file.write_text("port: 1\n")
    monkeypatch.setenv("ADJOURN_CONFIG", str(file))
    assert load().port == 1


def test_a_path_applies_to_one_call_only(file: Path) -> None:
    """The next call does not read that file again."""
    file.write_text("port: 1\n")
    assert load(file).port == 1
    assert "ADJOURN_CONFIG" not in os.environ
    assert load().port == 8000


SETTINGS = dict(list_settings())
URLS = ("upstream", "embeddings_url", "reward_url")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_key_can_be_set_in_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each key has a variable; mappings are written as JSON."""
    (tmp_path / "lynx.json").write_bytes(classifier_document())
    values: dict[str, Any] = {
        **dict.fromkeys(URLS, ("http://engine:1", "http://engine:1/")),
        "engine": ("sglang", "sglang"),
        "policy": ("loop", "loop"),
        "mode": ("observe", "observe"),
        "hold_out": ("0.5", 0.5),
        "aliases": ('{"a": "b"}', {"a": "b"}),
        "dialects": ('{"qwen3": {"cues": ["Hm"]}}', {"qwen3": {"cues": ["Hm"]}}),
        "dialect": ("qwen3", "qwen3"),
        "probes": (f'{{"a": "{tmp_path}/lynx.json"}}', {"a": make_classifier()}),
        "log_level": ("debug", "debug"),
        "stop_in_answer": ("false", False),
        "reasoning_field": ("tags", "tags"),
        "dial": ("false", False),
        "end_escapes": ("false", False),
    }
    kind = SETTINGS[name].annotation
    written, expected = values.get(name, ("77", kind(77) if kind in (int, float) else "77"))
    monkeypatch.setenv(variable(name), written)
    value = attrgetter(name)(load())
    assert (str(value) if name in URLS else value) == expected


def test_the_environment_changes_one_key_of_a_group(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other keys keep what the file says."""
    file.write_text("limits: {open_files: 99}\n")
    assert load(file).limits.open_files == 99
    monkeypatch.setenv("ADJOURN_LIMITS__OPEN_FILES", "101")
    assert load(file).limits.open_files == 101
    monkeypatch.setenv("ADJOURN_LIMITS__OPEN_FILLS", "1")
    with pytest.raises(BadConfig, match="ADJOURN_LIMITS__OPEN_FILLS"):
        load(file)


def test_a_variable_may_set_one_key_of_a_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two underscores."""
    monkeypatch.setenv("ADJOURN_ALIASES__fast", "m:deer")
    assert load().aliases == {"fast": "m:deer"} or load().aliases == {"FAST": "m:deer"}


@pytest.mark.parametrize("written", ["off", "'off'", "Off", "no", "false"])
def test_policy_off_may_be_written_without_quotes(file: Path, written: str) -> None:
    """YAML reads an unquoted ``off`` as the boolean false."""
    file.write_text(f"policy: {written}\n")
    assert load(file).policy == "off"


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
def test_an_empty_file_gives_the_defaults(file: Path, text: str) -> None:
    """Also a file with comments only."""
    file.write_text(text)
    assert load(file) == load()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot: 1", "prot"),
        ("port: many", "port"),
        ("port: 70000", "port"),
        ("policy: dear", "policy: .*unknown policy 'dear': choose one of"),
        ("policy: deer(treshold=1)", "policy: .*threshold"),
        ("mode: watch", "mode"),
        ("hold_out: 2", "hold_out"),
        ("hold_out: -1", "hold_out"),
        ("upstream: engine", "upstream"),
        ("max_body_bytes: 0", "max_body_bytes"),
        ("probe_timeout: 0", "probe_timeout"),
        ("aliases: [a]", "aliases"),
        ("dialect: nope", "dialect: .*qwen3"),
        ("dialects: {mine: {start: <a>, end: </a>, closing: x}}", "dialects: .*mine.*closing"),
        ("dialects: {mine: {cuse: [a]}}", "dialects: .*mine.*cuse"),
        ("dialects: {mine: {cues: ['']}}", "dialects: .*mine.*cues"),
        ("dialects: {mine: {cues: Wait}}", "dialects: .*mine.*cues"),
        ("dialects: {mine: {end: 5}}", "dialects: .*mine.*end"),
        ("probes: {mine: nowhere.json}", r"probes\.mine: .*nowhere\.json: No such file"),
        ("probes: {mine: 5}", r"probes\.mine: "),
        ("probes: {mine: pyproject.toml}", r"probes\.mine: .*pyproject\.toml: not JSON"),
        ("policy: lynx", "policy: .*must name a probe .*none is configured"),
        ("- a", "mapping|dictionary"),
        ("port: [", r"adjourn\.yaml"),
    ],
)
def test_an_error_names_the_key_and_what_it_accepts(file: Path, text: str, named: str) -> None:
    file.write_text(text)
    with pytest.raises(BadConfig, match=named):
        load(file)


def test_a_classifier_is_read_once_at_start_up(file: Path) -> None:
    """The printed settings show its description, not its weights."""
    (file.parent / "lynx.json").write_bytes(classifier_document())
    file.write_text(f"probes: {{mine: {file.parent}/lynx.json}}\npolicy: lynx(probe='mine')\n")
    settings = load(file)
    (file.parent / "lynx.json").unlink()
    assert settings.probes == {"mine": make_classifier()}
    assert settings.model_dump(mode="json")["probes"] == {"mine": repr(make_classifier())}


def test_a_missing_file_is_an_error(file: Path) -> None:
    """The defaults are not used instead. A directory is no file."""
    with pytest.raises(BadConfig, match="no such file"):
        load(file)
    with pytest.raises(BadConfig, match="no such file"):
        load(file.parent)


def test_a_file_that_is_not_utf_8_is_an_error(file: Path) -> None:
    """The message names the file."""
    file.write_bytes(b"host: \xff\xfe\n")
    with pytest.raises(BadConfig, match=r"adjourn\.yaml"):
        load(file)


@pytest.mark.parametrize("name", ["ADJOURN_PROT", "ADJOURN_PORT__X", "ADJOURN_", "adjourn_prot"])
def test_an_unknown_variable_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled variable is not ignored, nor a key of a setting that is not a mapping."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(BadConfig, match=name):
        load()


def test_an_invalid_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the key, and no file if none was read."""
    monkeypatch.setenv("ADJOURN_ALIASES", "{bad")
    with pytest.raises(BadConfig, match="aliases") as caught:
        load()
    assert "None" not in str(caught.value)


def test_an_invalid_override_is_an_error() -> None:
    """The command line is checked like the other sources."""
    with pytest.raises(BadConfig, match="mode"):
        load(mode="watch")


def test_an_api_key_is_not_in_the_representation() -> None:
    assert "hush" not in repr(load(upstream_api_key="hush"))


def test_settings_are_immutable() -> None:
    with pytest.raises(Exception, match="frozen"):
        load().port = 5  # type: ignore[misc]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_key_has_a_description(name: str) -> None:
    """A sentence, which ``config --list`` prints."""
    assert (SETTINGS[name].description or "").endswith(".")


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        ("redundancy(by='embedding')", "embeddings_url"),
        ("any_of(deer, redundancy(by='embedding'))", "embeddings_url"),
        ("partial-reward", "reward_url"),
        ("early-consistency(redundancy(by='embedding'))", "embeddings_url"),
    ],
)
def test_a_policy_requires_its_auxiliary_model(policy: str, key: str) -> None:
    """The error at start-up names the missing key. With that key the policy is accepted."""
    with pytest.raises(BadConfig, match=f"set {key}"):
        load(policy=policy)
    assert load(policy=policy, **{key: "http://127.0.0.1:1"}).policy == policy
