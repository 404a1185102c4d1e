"""The file of providers (QUINTET_PROVIDERS): their models, prices, and the order in which they are asked.

`data/samples/providers.toml` explains every key. API keys are never in it: it names the environment variables or files
that hold them.
"""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic import StringConstraints as Text

from server.domain.chat import Prices
from server.domain.money import micros
from server.domain.reloading_file import BadFile, read_file
from server.tasks.chat.api_keys import NO_KEY, Key, KeyFile, checked_key, is_header

EMBEDDED, DEFAULT = "embedded", "default"
_LONGEST_NAME = 128  # of a model, in requests


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 0) >= 0
    except ValueError:
        known = False
    if not known:
        raise ValueError("must be an address that begins with http:// or https://")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must have no user, password or query; keys belong to api_key_env or api_key_file")
    return url.rstrip("/")


def _header(value: SecretStr) -> SecretStr:
    if not is_header(value.get_secret_value()):
        raise ValueError("must be a line of printable ASCII")
    return value


Micros = Annotated[int, BeforeValidator(micros)]
Address = Annotated[str, AfterValidator(_address)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Name = Annotated[str, Text(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
LimitField = Literal["max_completion_tokens", "max_tokens", "none"]
Option = Literal["temperature", "top_p", "stop", "seed", "stream_options", "stream"]
Word = Annotated[str, Text(pattern=r"^[!-~]{1,128}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Model(_Table):
    """A model of a provider; prices are millionths of the currency for a million tokens. What it takes, where it says
    that, counts instead of the provider's.
    """

    context_tokens: int = Field(ge=16, le=100_000_000)
    prompt_price: Micros = 0
    completion_price: Micros = 0
    cached_price: Micros | None = None
    tokenizer: Path | None = None
    limit_field: LimitField | None = None
    without: frozenset[Option] | None = None
    deployment: Word | None = None  # azure alone


class _Provider(_Table):
    api_key_env: Annotated[str, Text(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    api_key_file: Path | None = None
    headers: dict[Word, Annotated[SecretStr, AfterValidator(_header)]] = Field(default_factory=dict)
    concurrency: int = Field(64, ge=1, le=10_000)
    connect_seconds: Seconds = 5.0
    token_seconds: Seconds = 60.0
    limit_field: LimitField = "max_completion_tokens"
    without: frozenset[Option] = frozenset()
    idempotency_header: Annotated[str, Text(pattern=r"^[A-Za-z0-9-]{1,128}$")] | None = None
    models: dict[Word, Model] = Field(min_length=1)

    def key(self, name: str, folder: Path) -> Key:
        """What gives the API key of this provider, called `name`. A relative path begins in `folder`.

        Raises BadFile, without the key.
        """
        if self.api_key_env and self.api_key_file:
            raise BadFile("has both api_key_env and api_key_file")
        if self.api_key_file:
            return KeyFile(name, folder / self.api_key_file.expanduser())
        key = NO_KEY
        if self.api_key_env:
            key = checked_key(os.environ.get(self.api_key_env, ""), f"environment variable {self.api_key_env}")
        return lambda: key


class OpenAI(_Provider):
    kind: Literal["openai"]
    base_url: Address


class Azure(_Provider):
    kind: Literal["azure"]
    endpoint: Address
    api_version: Word


Provider = Annotated[OpenAI | Azure, Field(discriminator="kind")]


class Providers(_Table):
    """The whole file. Relative paths in it begin in its folder."""

    price_table: Word = "unpriced"
    currency: Annotated[str, Text(pattern=r"^[A-Z]{3}$")] = "USD"
    providers: dict[Name, Provider] = Field(default_factory=dict)
    routes: dict[Name, Annotated[list[str], Field(min_length=1, max_length=8)]]

    def models(self) -> Iterator[tuple[str, OpenAI | Azure, Model]]:
        """Every model, with "provider/model" and its provider."""
        for name, provider in self.providers.items():
            for model_name, model in provider.models.items():
                yield f"{name}/{model_name}", provider, model

    def read_keys(self, folder: Path) -> dict[str, Key]:
        """What gives the API keys, by provider. Raises BadFile, without keys."""
        keys: dict[str, Key] = {}
        for name, provider in self.providers.items():
            try:
                keys[name] = provider.key(name, folder)
            except BadFile as error:
                raise BadFile(f"[providers.{name}]: {error}") from None
        return keys

    def prices(self, model: Model) -> Prices:
        return Prices(
            model.prompt_price, model.completion_price, model.cached_price, self.currency, version=self.price_table
        )


def read_providers(path: Path) -> Providers:
    """The file, checked. Raises BadFile."""
    try:
        content = read_file(path).decode("utf-8")
    except (OSError, UnicodeDecodeError, BadFile) as error:
        raise BadFile(f"QUINTET_PROVIDERS: {path.name} cannot be read: {_reason(error)}") from None
    try:
        return parse_providers(content)
    except BadFile as error:
        raise BadFile(f"{path.name}: {error}") from None


def parse_providers(content: str) -> Providers:
    """From TOML. Raises BadFile."""
    try:
        raw = tomllib.loads(content)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: int's own for 5,000 digits, too
        raise BadFile(f"it is not TOML: {_reason(error)}") from None
    try:
        found = Providers.model_validate(raw)
    except ValidationError as error:
        raise BadFile("; ".join(problems(error))) from None
    _check(found)
    return found


def _check(found: Providers) -> None:
    """What concerns several fields."""
    if DEFAULT not in found.routes:
        raise BadFile(f'[routes]: there must be a route "{DEFAULT}"')
    if EMBEDDED in found.providers:
        raise BadFile(f"[providers.{EMBEDDED}]: this name is the embedded model's")
    known = {EMBEDDED, *(ref for ref, *_ in found.models())}
    for name, refs in found.routes.items():
        for ref in refs:
            if ref not in known:
                raise BadFile(f"[routes] {name}: there is no {ref}; known: {', '.join(sorted(known))}")
        if len(set(refs)) < len(refs):
            raise BadFile(f"[routes] {name}: names one of them twice")
    for ref, provider, model in found.models():
        table = "[providers.{}.models.{}]".format(*ref.split("/", 1))
        if len(ref) > _LONGEST_NAME:
            raise BadFile(f"{table}: callers name it by at most {_LONGEST_NAME} characters")
        if model.deployment and not isinstance(provider, Azure):
            raise BadFile(f"{table} deployment: is for kind azure")


def problems(error: ValidationError) -> Iterator[str]:
    """The first five, each with its table and key and without the value."""
    for problem in error.errors(include_input=False, include_context=False, include_url=False)[:5]:
        path = [str(part) for part in problem["loc"]]
        if path[0] == "providers":
            del path[2:3]  # the kind, which the parser of the file adds
        *tables, key = path
        where = f"[{'.'.join(tables)}] {key}" if tables else key
        what = problem["msg"].removeprefix("Value error, ")
        yield f"{where}: {'there is no such key' if problem['type'] == 'extra_forbidden' else what}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "a file is not UTF-8"
    return str(error.strerror) if isinstance(error, OSError) else str(error)
