"""Settings, read once at start from the environment (QUINTET_HOST, QUINTET_PORT, ...)."""

import ipaddress
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import AnyHttpUrl, BaseModel, ByteSize, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ModelSettings(BaseModel):
    """How one model is run and kept; engine, source, revision and device are for text models."""

    engine: Literal["onnx", "onnx-int8", "torch"] | None = Field(
        None, description="what runs it; unset: what the artefact's manifest recommends"
    )
    source: str | None = Field(None, description="a model hub's repository or a folder, for engine torch")
    revision: str | None = Field(None, description="the hub's commit to load; name one in production")
    device: str = Field("cpu", description="where torch runs: cpu, cuda, cuda:1, mps")
    preload: bool = Field(True, description="load it at the start, not when it is first asked for")
    pinned: bool = Field(False, description="never evict it")


class Settings(BaseSettings):
    """All settings with their defaults. Every field is an environment variable with the prefix QUINTET_."""

    model_config = SettingsConfigDict(env_prefix="QUINTET_", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(50051, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    tenants: Path | None = Field(
        None, description="file of tenants, their keys, roles and limits (TOML); unset: nobody is asked who they are"
    )
    allow_anonymous: bool = Field(
        False, description="listen on other addresses than loopback without a file of tenants; anybody may call then"
    )
    tls_cert: Path | None = Field(
        None, description="certificate chain (PEM) to encrypt with; read anew when it changes"
    )
    tls_key: Path | None = Field(None, description="its key (PEM)")
    tls_client_ca: Path | None = Field(
        None, description="authorities (PEM) of clients' certificates; every client must bring one then"
    )
    data: Path = Field(Path("data"), description="folder of models/, index/ and state/")
    models: dict[str, ModelSettings] = Field(
        default_factory=dict,
        description='per model, as JSON: {"sentiment": {"engine": "torch"}, "topics": {"preload": false}}; '
        "a new name adds a classifier",
    )
    memory_budget: ByteSize | None = Field(
        None, description="memory of all models together, in bytes or as 2GiB; models are evicted to keep it"
    )
    registry: str = Field("", description="URI of an MLflow server whose aliases decide what is served")
    result_cache: ByteSize = Field(
        ByteSize(16 * 1024 * 1024),
        description="exact results that each text model keeps for texts that recur, in bytes or as 16MiB; 0 keeps none",
    )
    rerank: bool = Field(False, description="let the reranker put the first passages in order, which takes time")
    lanes: int = Field(os.cpu_count() or 1, ge=1, description="threads that compute, one a core")
    lane_queue: int = Field(256, ge=0, description="computations that may wait for a lane")
    max_concurrent_calls: int = Field(512, ge=1, description="calls at once; more are refused")
    max_wait_seconds: float = Field(1.0, gt=0, description="estimated wait for a lane over which calls are refused")
    max_request_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="largest request")
    default_deadline_seconds: int = Field(300, ge=1, description="for calls that bring no deadline")
    shutdown_grace_seconds: float = Field(20.0, ge=0, description="time for running calls after SIGTERM")
    shutdown_pause_seconds: float = Field(0.5, ge=0, description="between NOT_SERVING and refusing calls")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="port of Prometheus metrics on the same address; unset: none"
    )
    traces: AnyHttpUrl | None = Field(
        None, description="OTLP/gRPC endpoint of an OpenTelemetry collector (http://127.0.0.1:4317); unset: no traces"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="of the server's own log")
    log_format: Literal["text", "json"] = Field("text", description="lines for people, or a JSON object a line")
    git_commit: str = Field("", description="the commit that was built, for GetServerInfo")
    reflection: bool = Field(True, description="let clients ask for the contract")
    redis_url: SecretStr | None = Field(
        None,
        description="redis:// or rediss:// URL of the Redis in which several servers keep the tenants' limits; "
        "unset: each has its own",
    )
    replicas: int = Field(
        1, ge=1, description="servers that share the limits: while Redis is away, each grants this part of them"
    )

    llm: Literal["default", "small", "off"] = Field(
        "default", description="the embedded language model: 1.5 billion parameters, 135 million, or none"
    )
    providers: Path | None = Field(
        None, description="TOML file of providers, prices and routes for chat; data/samples/providers.toml explains it"
    )
    llm_base_url: str | None = Field(None, description="an OpenAI-compatible endpoint; no model is embedded then")
    llm_api_key: SecretStr | None = Field(None, description="its key; or QUINTET_LLM_API_KEY_FILE")
    llm_api_key_file: Path | None = Field(None, description="file that holds the key")
    llm_model: str | None = Field(None, description="the model's name at that endpoint")
    llm_context_tokens: int = Field(4096, ge=512, description="context of one conversation")
    llm_slots: int = Field(2, ge=1, description="generations at once")
    llm_timeout_seconds: float = Field(120.0, gt=0, description="longest wait for the next token")

    ledger_url: SecretStr | None = Field(
        None,
        description="postgresql:// URL of the ledger's database, for several servers; unset: state/ledger.sqlite in "
        "the data folder",
    )

    @field_validator("ledger_url")
    @classmethod
    def _ledger_can_be_opened(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            if not url.get_secret_value().startswith("postgresql://"):
                raise ValueError("must begin with postgresql://")
            if find_spec("psycopg") is None:
                raise ValueError('needs the extra "postgres": pip install "quintet[postgres]"')
        return url

    @property
    def ledger_target(self) -> Path | str:
        """The ledger's SQLite file, or the URL of its database."""
        return self.ledger_url.get_secret_value() if self.ledger_url else self.data / "state" / "ledger.sqlite"

    @field_validator("redis_url")
    @classmethod
    def _redis_url_can_be_read(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                url = urlsplit(value.get_secret_value())
                fits = url.scheme in {"redis", "rediss", "unix"} and (url.port or True)
            except ValueError:  # its text has parts of the password
                fits = False
            if not fits:
                raise ValueError("must be redis://, rediss:// or unix://, with what is special in a password as %XX")
        return value

    @model_validator(mode="after")
    def _endpoint_has_a_model(self) -> "Settings":
        if self.llm_base_url and not self.llm_model:
            raise ValueError("QUINTET_LLM_BASE_URL needs QUINTET_LLM_MODEL, the model's name at that endpoint")
        return self

    @model_validator(mode="after")
    def _certificates_are_complete(self) -> "Settings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("QUINTET_TLS_CERT and QUINTET_TLS_KEY need each other")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("QUINTET_TLS_CLIENT_CA needs QUINTET_TLS_CERT and QUINTET_TLS_KEY")
        return self

    @model_validator(mode="after")
    def _strangers_are_meant(self) -> "Settings":
        if not (self.tenants or self.allow_anonymous or self.is_local):
            raise ValueError(
                f"on QUINTET_HOST={self.host} anybody could call: set QUINTET_TENANTS to a file of tenants "
                "('quintet tenants add' makes one), or QUINTET_ALLOW_ANONYMOUS=true if that is meant"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server. Names other than localhost may be anything."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def read_llm_api_key(self) -> str:
        """The endpoint's key. Endpoints without one still want a word in its place."""
        if self.llm_api_key_file:
            return self.llm_api_key_file.read_text().strip() or "none"
        return self.llm_api_key.get_secret_value() if self.llm_api_key else "none"
