"""Settings: one YAML file, every key also as an environment variable ``ADJOURN_…``.

The environment goes before the file, and the command line before both. A key that nobody knows
is an error, in either.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    Field,
    HttpUrl,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from adjourn.policies.evidence.readiness import BadReadinessClassifier, ReadinessClassifier
from adjourn.policies.policy import Policy
from adjourn.policies.registry import parse
from adjourn.policies.text.dialect import builtin_dialects, override_dialects
from adjourn.server.stream.reasoning_field import ReasoningField

__all__ = ["BadConfig", "Settings", "find_missing_setting", "load"]

ENV_PREFIX = "ADJOURN_"

_config_file: ContextVar[str | None] = ContextVar("file", default=None)


class BadConfig(Exception):
    """The configuration is wrong; the message says where and what would be right."""


def _load_readiness_probe(value: Any) -> ReadinessClassifier:
    if isinstance(value, ReadinessClassifier):
        return value
    try:
        return ReadinessClassifier.parse(Path(value).read_bytes())
    except OSError as error:
        raise ValueError(f"{value}: {error.strerror}") from None
    except (BadReadinessClassifier, TypeError) as error:
        raise ValueError(f"{value}: {error}") from None


_ReadinessProbe = Annotated[
    ReadinessClassifier, PlainValidator(_load_readiness_probe), PlainSerializer(repr)
]


class Settings(BaseSettings):
    """Every key, its default and its meaning."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    upstream: HttpUrl = Field(
        HttpUrl("http://127.0.0.1:8100"), description="The engine's base URL, without /v1."
    )
    upstream_api_key: str | None = Field(
        None, repr=False, description="Sent to the engine where the client sends no key."
    )
    engine: Literal["auto", "vllm", "sglang", "llamacpp"] = Field(
        "auto", description="Of which kind the engine is; `auto` asks it."
    )
    embeddings_url: HttpUrl | None = Field(
        None, description="Base URL, without /v1, of an endpoint for embeddings."
    )
    embeddings_model: str | None = Field(
        None, description="The model that is named there; none: the endpoint takes its own."
    )
    embeddings_api_key: str | None = Field(None, repr=False, description="The key for it.")
    reward_url: HttpUrl | None = Field(
        None, description="Base URL of a vLLM that serves a reward model by pooling."
    )
    reward_model: str | None = Field(
        None, description="The model that is named there; none: the endpoint takes its own."
    )
    reward_api_key: str | None = Field(None, repr=False, description="The key for it.")
    reward_step: str = Field(
        "",
        description="What a process reward model reads behind each step, e.g. `<extra_0>`; "
        "empty: nothing.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    probes: dict[str, _ReadinessProbe] = Field(
        default_factory=dict,
        description="Probes for `lynx`: `name: file`, files of `adjourn learn --policy lynx`.",
    )
    policy: str = Field("deer", description="Default policy, e.g. `any_of(deer, loop)`, or `off`.")
    mode: Literal["enforce", "observe"] = Field(
        "enforce", description="`observe` lets policies decide and carries nothing out."
    )
    hold_out: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of conversations whose stops are not carried out, to measure.",
    )
    salt: str = Field("", description="Changes which conversations are held out.")
    stop_in_answer: bool = Field(
        True, description="The client's stop strings end the answer, never the trace."
    )
    rescue_tokens: int = Field(
        512,
        ge=0,
        description="Longest answer to a response that would end within its trace; 0: none.",
    )
    end_escapes: bool = Field(
        True, description="A trace that the model opens again behind a cut is closed, once."
    )
    reasoning_field: ReasoningField = Field(
        "upstream",
        description="Where a chat client finds reasoning: `upstream`, `reasoning`, "
        "`reasoning_content`, `both`, or `tags` (in the content).",
    )
    dial: bool = Field(
        True, description="`reasoning_effort` and the like set the default policy's patience."
    )
    aliases: dict[str, str] = Field(
        default_factory=dict,
        description="Model names of your own: `name: model` or `name: model:policy`.",
    )
    dialects: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Dialects to add, or keys of known ones to replace."
    )
    dialect: str | None = Field(
        None, description="Use this dialect, whatever the model's markers say."
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1, description="Larger request bodies get a 413.")
    connect_timeout: float = Field(5.0, gt=0, description="Seconds to connect to the engine.")
    idle_timeout: float = Field(
        600.0, gt=0, description="Longest silence of the engine in a response, in seconds."
    )
    keep_alive: float = Field(
        5.0,
        gt=0,
        description="Seconds between comments on a stream whose traces still race.",
    )
    probe_timeout: float = Field(
        5.0,
        gt=0,
        description="Seconds after which a probe, or a question to another model, is given up.",
    )
    resume_timeout: float = Field(
        10.0, gt=0, description="Seconds for the answer to begin behind a cut, else no cut."
    )
    recheck: float = Field(
        5.0, gt=0, description="Seconds between looks at an engine that is down."
    )
    drain: int = Field(30, ge=0, description="Seconds for running streams to end at shutdown.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )

    @field_validator("policy", mode="before")
    @classmethod
    def _normalize_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # to YAML, a bare `off` is a boolean

    @field_validator("policy")
    @classmethod
    def _policy_exists(cls, value: str, info: ValidationInfo) -> str:
        if value != "off" and "probes" in info.data:  # else their fault is told
            parse(value, readiness_probes=info.data["probes"])
        return value

    @model_validator(mode="after")
    def _check_policy_requirements(self) -> Settings:
        if self.policy != "off" and (
            why := find_missing_setting(parse(self.policy, readiness_probes=self.probes), self)
        ):
            raise ValueError(f"policy: {why}")
        return self

    @field_validator("dialects")
    @classmethod
    def _check_dialects(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        override_dialects(builtin_dialects(), value)
        return value

    @model_validator(mode="after")
    def _dialect_exists(self) -> Settings:
        known = override_dialects(builtin_dialects(), self.dialects)
        if self.dialect is not None and self.dialect not in known:
            raise ValueError(f"dialect: no {self.dialect!r}, choose one of {', '.join(known)}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = YamlConfigSettingsSource(settings_cls, yaml_file=_config_file.get())
        return init_settings, env_settings, file


def find_missing_setting(policy: Policy, settings: Settings) -> str | None:
    """What this policy needs beside the engine and is not configured, in words; or None."""
    if policy.needs.embeddings and settings.embeddings_url is None:
        return f"{policy.name} needs an embedder: set embeddings_url"
    if policy.needs.rewards and settings.reward_url is None:
        return f"{policy.name} needs a reward model: set reward_url"
    return None


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings; ``overrides`` that are not None go before everything.

    ``path`` defaults to ``$ADJOURN_CONFIG``. Raises BadConfig.
    """
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX) and not _is_known_variable(
            name.upper().removeprefix(ENV_PREFIX)
        ):
            raise BadConfig(f"{name} is not a setting; see `adjourn config --list`")
    file = str(path) if path is not None else os.environ.get(ENV_PREFIX + "CONFIG") or None
    if file and not Path(file).is_file():
        raise BadConfig(f"{file}: no such file")
    reading = _config_file.set(file)
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, fault['loc'])) or 'configuration'}: {fault['msg']}"
            for fault in error.errors()
        ]
        raise BadConfig("\n".join(lines)) from None
    except Exception as error:  # the reader's own, of the file or of the environment
        raise BadConfig(f"{file}: {error}" if file else str(error)) from None
    finally:
        _config_file.reset(reading)


def _is_known_variable(variable: str) -> bool:
    """Whether a variable, less the prefix, sets anything: only mappings are set key by key."""
    name, deeper, _ = variable.partition("__")
    return name == "CONFIG" or name in {
        key.upper()
        for key, field in Settings.model_fields.items()
        if not deeper or get_origin(field.annotation) is dict
    }
