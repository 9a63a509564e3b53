"""The settings: keys of a YAML file, each also an environment variable ``ADJOURN_…``.

The environment overrides the file, and the command line overrides both. An unknown key or variable
is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    BaseModel,
    Field,
    HttpUrl,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
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
from adjourn.server.access.limits import LimitSettings
from adjourn.server.stream.reasoning_field import ReasoningField

__all__ = ["BadConfig", "Settings", "find_missing_setting", "list_settings", "load", "variable"]

ENV_PREFIX = "ADJOURN_"

# The file that ``Settings`` reads while ``load`` runs.
_config_file: ContextVar[str | None] = ContextVar("file", default=None)


class BadConfig(Exception):
    """The configuration is not valid. The message names the setting and what it accepts."""


def _load_readiness_probe(value: Any) -> ReadinessClassifier:
    """The classifier in the file at the path ``value``. Raises ValueError."""
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
    """Every setting, its default and its meaning. docs/configuration.md lists the same."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    upstream: HttpUrl = Field(
        HttpUrl("http://127.0.0.1:8100"), description="Base URL of the engine, without /v1."
    )
    upstream_api_key: str | None = Field(
        None, repr=False, description="Sent to the engine if the client sends no key."
    )
    engine: Literal["auto", "vllm", "sglang", "llamacpp"] = Field(
        "auto", description="Kind of engine; `auto` detects it."
    )
    embeddings_url: HttpUrl | None = Field(
        None, description="Base URL, without /v1, of an embedder."
    )
    embeddings_model: str | None = Field(
        None, description="The model that is named there; none: the endpoint takes its own."
    )
    embeddings_api_key: str | None = Field(None, repr=False, description="The key for it.")
    reward_url: HttpUrl | None = Field(
        None, description="Base URL of a vLLM that serves a reward model with `--runner pooling`."
    )
    reward_model: str | None = Field(
        None, description="The model that is named there; none: the endpoint takes its own."
    )
    reward_api_key: str | None = Field(None, repr=False, description="The key for it.")
    reward_step: str = Field(
        "",
        description="Text that a process reward model expects after each step, e.g. "
        "`<extra_0>`; empty: none.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    probes: dict[str, _ReadinessProbe] = Field(
        default_factory=dict,
        description="Classifiers for `lynx`, as `name: file`; files of "
        "`adjourn learn --policy lynx`.",
    )
    policy: str = Field("deer", description="Default policy, e.g. `any_of(deer, loop)`, or `off`.")
    mode: Literal["enforce", "observe"] = Field(
        "enforce", description="`observe`: policies decide, nothing is carried out."
    )
    hold_out: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of conversations whose triggers are not carried out, to measure the "
        "saving.",
    )
    salt: str = Field("", description="Changes which conversations are held out.")
    stop_in_answer: bool = Field(
        True, description="Check the client's stop strings in the answer, never in the trace."
    )
    rescue_tokens: int = Field(
        512,
        ge=0,
        description="Longest answer added to a response that would end inside its trace; 0: none.",
    )
    end_escapes: bool = Field(
        True, description="Close a trace that the model opens again after a cut, once."
    )
    reasoning_field: ReasoningField = Field(
        "upstream",
        description="Where chat clients find reasoning: `upstream`, `reasoning`, "
        "`reasoning_content`, `both`, or `tags` (in the content).",
    )
    dial: bool = Field(
        True, description="Let `reasoning_effort` and similar fields change the default policy."
    )
    aliases: dict[str, str] = Field(
        default_factory=dict,
        description="Model names of your own: `name: model` or `name: model:policy`.",
    )
    dialects: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Dialects to add, or keys of known ones to replace."
    )
    dialect: str | None = Field(None, description="Use this dialect for every model.")
    max_body_bytes: int = Field(64 * 2**20, ge=1, description="Larger request bodies get a 413.")
    limits: LimitSettings = Field(default_factory=LimitSettings)
    connect_timeout: float = Field(5.0, gt=0, description="Seconds to connect to the engine.")
    idle_timeout: float = Field(
        600.0, gt=0, description="Longest silence of the engine in a response, in seconds."
    )
    keep_alive: float = Field(
        5.0,
        gt=0,
        description="Seconds between comments on a stream while its traces race.",
    )
    probe_timeout: float = Field(
        5.0,
        gt=0,
        description="Seconds after which a probe, or a request to an auxiliary model, is "
        "abandoned.",
    )
    resume_timeout: float = Field(
        10.0,
        gt=0,
        description="Seconds for the answer to begin after a cut; then the trace continues uncut.",
    )
    recheck: float = Field(
        5.0,
        gt=0,
        description="Seconds between checks of an engine that is up; one that is down is checked "
        "every second.",
    )
    drain: int = Field(30, ge=0, description="Seconds for running streams to end at shutdown.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )

    @field_validator("policy", mode="before")
    @classmethod
    def _normalize_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads an unquoted `off` as false

    @field_validator("policy")
    @classmethod
    def _policy_exists(cls, value: str, info: ValidationInfo) -> str:
        if value != "off" and "probes" in info.data:  # if not, the error is in `probes`
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


def list_settings(
    model: type[BaseModel] = Settings, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting and its field; one of a group is named ``group.key``."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from list_settings(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def variable(name: str) -> str:
    """The environment variable of the setting ``name``."""
    return ENV_PREFIX + name.replace(".", "__").upper()


def find_missing_setting(policy: Policy, settings: Settings) -> str | None:
    """A message that names the setting that this policy requires and that is not set; else None."""
    if policy.needs.embeddings and settings.embeddings_url is None:
        return f"{policy.name} needs an embedder: set embeddings_url"
    if policy.needs.rewards and settings.reward_url is None:
        return f"{policy.name} needs a reward model: set reward_url"
    return None


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings. ``overrides`` that are not None take precedence over all sources.

    ``path`` None means the file that ``ADJOURN_CONFIG`` names, if set. Raises BadConfig.
    """
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX) and not _is_known_variable(name.upper()):
            raise BadConfig(f"{name} is not a setting; see `adjourn config --list`")
    file = str(path) if path is not None else os.environ.get(ENV_PREFIX + "CONFIG") or None
    if file and not Path(file).is_file():
        raise BadConfig(f"{file}: no such file")
    token = _config_file.set(file)
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, detail['loc'])) or 'configuration'}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise BadConfig("\n".join(lines)) from None
    except Exception as error:  # the YAML parser's, or of JSON in a variable
        raise BadConfig(f"{file}: {error}" if file else str(error)) from None
    finally:
        _config_file.reset(token)


def _is_known_variable(name: str) -> bool:
    """True if a variable, in upper case, is a setting, a group of settings, or one key of a
    mapping (``NAME__KEY``)."""
    if name == ENV_PREFIX + "CONFIG":
        return True
    for setting, field in list_settings():
        known = variable(setting)
        group = known.partition("__")[0]
        if name in (known, group) or (
            get_origin(field.annotation) is dict and name.startswith(known + "__")
        ):
            return True
    return False
