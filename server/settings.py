"""Settings, read once at the start from environment variables (QUINTET_HOST, QUINTET_PORT, ...)."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AnyHttpUrl, ByteSize, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.domain.network import is_loopback
from server.models.spec import ModelSettings
from server.usage import ledger_url

CLOSING_SECONDS = 5.0  # after the last call: the ledger's last entries, models, child processes
_PREFIX = "QUINTET_"
# Variables of the client, of `make train`, and those that Kubernetes makes for a Service named quintet.
_OTHERS = re.compile(r"QUINTET_(ADDRESS|API_KEY|CACHE|HUB|(\w+_)?SERVICE_(HOST|PORT\w*)|PORT_\d+_\w+)")


class Settings(BaseSettings):
    """All settings with their defaults. Every field is an environment variable with the prefix QUINTET_."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(50051, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    tenants: Path | None = Field(
        None,
        description="TOML file of tenants with their API keys, roles and limits; data/samples/tenants.toml explains "
        "it; unset: the server requires no authentication",
    )
    allow_anonymous: bool = Field(
        False,
        description="allow an address other than loopback without QUINTET_TENANTS: everyone who can connect may call",
    )
    tls_cert: Path | None = Field(
        None, description="the server's certificate chain (PEM); enables TLS; reloaded within 2 s of a change"
    )
    tls_key: Path | None = Field(None, description="private key of that certificate (PEM); reloaded with it")
    tls_client_ca: Path | None = Field(
        None, description="CA certificates (PEM) for client certificates; every client must then present one"
    )
    data: Path = Field(Path("data"), description="folder that contains models/, index/ and state/")
    models: Annotated[dict[str, ModelSettings], NoDecode] = Field(
        default_factory=dict,
        description="JSON with options for each model (engine, source, revision, device, preload, pinned), such as "
        '{"sentiment": {"engine": "torch"}, "topics": {"preload": false}}; a new name adds a classifier',
    )
    memory_budget: ByteSize | None = Field(
        None,
        description="most memory for all loaded models, in bytes or as 2GiB; the server evicts models to stay below it",
    )
    registry: str = Field("", description="URI of an MLflow server whose aliases select the versions to serve")
    result_cache: ByteSize = Field(
        ByteSize(16 * 1024 * 1024),
        description="size of each text model's cache of exact results, in bytes or as 16MiB; 0 disables it",
    )
    rerank: bool = Field(False, description="rerank the first ten passages with a cross-encoder; slower")
    lanes: int = Field(os.cpu_count() or 1, ge=1, description="threads that run models; one for each core")
    lane_queue: int = Field(256, ge=0, description="most computations that wait for a lane; more are refused")
    max_concurrent_calls: int = Field(512, ge=1, description="most calls that run at once; more are refused")
    max_wait_seconds: float = Field(
        1.0, gt=0, description="longest estimated wait for a lane, in seconds; a call that would wait longer is refused"
    )
    max_request_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="largest request in bytes")
    default_deadline_seconds: int = Field(300, ge=1, description="deadline of calls that set none, in seconds")
    shutdown_pause_seconds: float = Field(
        7.0,
        ge=0,
        description="time between reporting NOT_SERVING and refusing new calls after SIGTERM, in seconds; longer than "
        "the interval and the timeout of load balancers' health checks together; Ctrl-C skips it",
    )
    shutdown_grace_seconds: float = Field(
        13.0, ge=0, description="time that running calls then have to finish, in seconds"
    )
    shutdown_seconds: float = Field(
        25.0,
        ge=1,
        description="longest time of a whole stop, in seconds: pause, grace, and 5 s to write and close everything; "
        "then the process exits; what kills it (terminationGracePeriodSeconds in Kubernetes) must wait longer",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port for Prometheus metrics, on QUINTET_HOST; unset: no metrics are published",
    )
    traces: AnyHttpUrl | None = Field(
        None,
        description="OTLP/gRPC endpoint of an OpenTelemetry collector, such as http://127.0.0.1:4317; unset: no traces",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="lowest level of the server's log messages"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="format of the log: lines of text, or one JSON object a line"
    )
    git_commit: str = Field("", description="commit of the build; GetServerInfo returns it")
    reflection: bool = Field(True, description="offer gRPC server reflection")
    redis_url: SecretStr | None = Field(
        None,
        description="URL (redis:// or rediss://) of the Redis in which several servers share the tenants' limits; "
        "unset: this server keeps them in memory",
    )
    replicas: int = Field(
        1,
        ge=1,
        description="number of servers that share the limits; while Redis is unreachable, each grants one such share",
    )

    llm: Literal["default", "small", "off"] = Field(
        "default",
        description="the embedded language model: default (1.5 billion parameters), small (135 million) or off",
    )
    providers: Path | None = Field(
        None, description="TOML file of chat providers, prices and routes; data/samples/providers.toml explains it"
    )
    llm_base_url: str | None = Field(None, description="an OpenAI-compatible endpoint; replaces the embedded model")
    llm_api_key: SecretStr | None = Field(None, description="API key of that endpoint")
    llm_api_key_file: Path | None = Field(None, description="file with that API key")
    llm_model: str | None = Field(None, description="name of the model at that endpoint")
    llm_context_tokens: int = Field(4096, ge=512, description="context length in tokens: prompt and answer together")
    llm_slots: int = Field(2, ge=1, description="answers that the embedded model generates at once")
    llm_timeout_seconds: float = Field(120.0, gt=0, description="longest wait for the next token, in seconds")

    ledger_url: SecretStr | None = Field(
        None,
        description="postgresql:// URL of the ledger's database, which several servers can share; unset: "
        "state/ledger.sqlite in the data folder",
    )
    ledger_retention_days: int = Field(
        400, ge=32, description="days after which the ledger's rows are deleted; budgets need those of a month"
    )

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        return host.removeprefix("[").removesuffix("]")

    @field_validator("port", "metrics_port", mode="before")
    @classmethod
    def _port_is_a_number(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError(
                "is what Kubernetes sets for a Service named quintet: set enableServiceLinks: false in the pod's "
                "specification, or QUINTET_PORT itself"
            )
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _models_are_json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from None

    @field_validator("data")
    @classmethod
    def _data_can_be_a_folder(cls, data: Path) -> Path:
        for folder in (data, *(data / name for name in ("models", "index", "state"))):
            if not (found := _existing(folder)).is_dir():
                raise ValueError(f"{found} is not a folder")
        return data

    @field_validator("registry")
    @classmethod
    def _registry_is_a_uri(cls, uri: str) -> str:
        if uri and "://" not in uri and not uri.startswith("databricks"):
            raise ValueError("must be a URI such as http://127.0.0.1:5000")
        return uri

    @field_validator("ledger_url")
    @classmethod
    def _ledger_can_be_opened(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            if not url.get_secret_value().startswith("postgresql://"):
                raise ValueError("must begin with postgresql://")
            if find_spec("psycopg") is None:
                raise ValueError('needs the extra "postgres": pip install "quintet[postgres]"')
            ledger_url.check(url.get_secret_value())
        return url

    @property
    def ledger_target(self) -> Path | str:
        """The ledger's SQLite file, or the URL of its database."""
        return self.ledger_url.get_secret_value() if self.ledger_url else self.data / "state" / "ledger.sqlite"

    @field_validator("redis_url")
    @classmethod
    def _redis_url_can_be_read(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            from server.tenancy.limits.redis_url import check  # only if needed, because redis-py takes time to import

            check(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Settings":
        if self.llm_base_url and not self.llm_model:
            raise ValueError("QUINTET_LLM_BASE_URL needs QUINTET_LLM_MODEL, the name of the model at that endpoint")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("QUINTET_TLS_CERT and QUINTET_TLS_KEY must be set together")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("QUINTET_TLS_CLIENT_CA needs QUINTET_TLS_CERT and QUINTET_TLS_KEY")
        if self.shutdown_pause_seconds + self.shutdown_grace_seconds + CLOSING_SECONDS > self.shutdown_seconds:
            raise ValueError(
                f"QUINTET_SHUTDOWN_PAUSE_SECONDS ({self.shutdown_pause_seconds:g}), QUINTET_SHUTDOWN_GRACE_SECONDS "
                f"({self.shutdown_grace_seconds:g}) and {CLOSING_SECONDS:g} s to close everything are more than "
                f"QUINTET_SHUTDOWN_SECONDS ({self.shutdown_seconds:g})"
            )
        if not (self.tenants or self.allow_anonymous or self.is_local):
            raise ValueError(
                f"with QUINTET_HOST={self.host} every client could call: set QUINTET_TENANTS to a file of tenants "
                "('quintet tenants add' creates one), or set QUINTET_ALLOW_ANONYMOUS=true to allow it"
            )
        if not self.ledger_url and not os.access(folder := _existing(self.data / "state"), os.W_OK | os.X_OK):
            raise ValueError(f"QUINTET_DATA: {folder} cannot be written to by this user; the ledger is kept there")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server. Host names other than localhost count as reachable."""
        return is_loopback(self.host)


def explain(error: ValidationError) -> Iterator[str]:
    """A line for each problem, with the variable and, in JSON, the place, and without the value."""
    for problem in error.errors(include_input=False, include_url=False):
        field, *path = map(str, problem["loc"] or [""])
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            what = f"there is no such option{_closest(path[-1], ModelSettings.model_fields)}"
        # What concerns several variables names them itself.
        yield ": ".join(filter(None, (field and f"{_PREFIX}{field.upper()}", ".".join(path), what)))


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """A line for each variable that looks like a setting and is none."""
    lines = []
    for variable in sorted(environment):
        name = variable.upper().removeprefix(_PREFIX).lower()
        is_ours = variable.upper().startswith(_PREFIX) and not _OTHERS.fullmatch(variable)
        if is_ours and name not in Settings.model_fields:
            hint = _closest(name, Settings.model_fields, lambda found: f"{_PREFIX}{found.upper()}")
            lines.append(f"{variable} is set, but there is no such setting{hint}")
    return lines


def _closest(name: str, known: Iterable[str], written: Callable[[str], str] = str) -> str:
    found = get_close_matches(name, known, 1, 0.7)
    return f"; is {written(found[0])} meant?" if found else ""


def _existing(path: Path) -> Path:
    """The path, or the nearest of the folders above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if os.path.lexists(each))
