"""Upstreams of the configured providers. Importing it imports the SDK, which takes a second."""

from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.domain.network import is_loopback
from server.models.artefact import open_part
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.configuration import Routes
from server.tasks.chat.dialect import Dialect
from server.tasks.chat.endpoint import Endpoint
from server.tasks.chat.openai_upstream import Upstream, limiter_of
from server.tasks.chat.providers_file import Azure, Model, OpenAI
from server.tasks.chat.tokens import TokenCounter, TokenizerCounter

_MAX_ERROR_BYTES = 64 * 1024
# Idle connections are given up before the endpoint gives them up, which is after 5 s for vLLM and others on uvicorn: a
# request that is sent while the endpoint closes fails, and is not repeated because the endpoint may have read it.
_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=4.0)


def provider_upstreams(
    routes: Routes, models: Path, breaker_of: Callable[[str], CircuitBreaker], made: Collection[str] = ()
) -> tuple[dict[str, Upstream], dict[str, str]]:
    """Those that are not `made`, by "provider/model", and why others could not be made, for instance because of a
    tokenizer that cannot be read. `models` is the folder of artefacts; `breaker_of` has a provider's circuit breaker.

    Blocks: each client reads the certificates of all authorities. A model without a tokenizer is counted with the
    embedded model's if its artefact is there, else by bytes.
    """
    upstreams: dict[str, Upstream] = {}
    missing: dict[str, str] = {}
    try:
        shared: TokenCounter = TokenizerCounter(open_part(models, routes.embedded, "tokenizer.json"))
    except (OSError, ValueError, ModelUnavailable):
        shared = TokenCounter()
    for name, provider in routes.providers.providers.items():
        breaker, limiter = breaker_of(name), limiter_of(provider.concurrency)
        for model_name, model in provider.models.items():
            ref = f"{name}/{model_name}"
            if ref in made:
                continue
            name_there = model.deployment or model_name
            identity = ModelIdentity(ref if ref in routes.names else model_name, "", "")
            try:
                counter = _own_counter(routes.folder, ref, model) or shared
                client = client_of(provider, routes.keys[name](), name_there)
            except ModelUnavailable as error:
                missing[ref] = error.message
                continue
            upstreams[ref] = Upstream(
                ModelDescription(identity, ModelTask.CHAT, provider.kind, max_input_tokens=model.context_tokens),
                Endpoint(
                    client,
                    name_there,
                    key=routes.keys[name],
                    dialect=_dialect_of(provider, model),
                    idempotency_header=provider.idempotency_header or "",
                ),
                limiter,
                counter,
                breaker,
                prices=routes.providers.prices(model),
                token_seconds=provider.token_seconds,
            )
    return upstreams, missing


def client_of(provider: OpenAI | Azure, key: str, model: str) -> openai.AsyncOpenAI:
    """The SDK's client for a provider; `model` is the deployment's name for Azure."""
    own = {header: value.get_secret_value() for header, value in provider.headers.items()}
    common: dict[str, Any] = {
        "api_key": key,
        "default_headers": {"Accept-Encoding": "identity", **own},  # small packets are not worth unpacking
        "max_retries": 0,  # Router repeats: it knows which requests may have cost something
        "http_client": _http_client(provider),
    }
    if isinstance(provider, OpenAI):
        return openai.AsyncOpenAI(base_url=provider.base_url, **common)
    return openai.AsyncAzureOpenAI(
        azure_endpoint=provider.endpoint, azure_deployment=model, api_version=provider.api_version, **common
    )


class _Beginning(httpx2.AsyncByteStream):
    """The first bytes of a body."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._body:
            yield piece
            size += len(piece)
            if size >= _MAX_ERROR_BYTES:
                return

    async def aclose(self) -> None:
        await self._body.aclose()


async def _shorten_error(response: httpx2.Response) -> None:
    """The SDK reads the body of an error whole, however long it is."""
    if response.is_error and isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Beginning(response.stream)


def _dialect_of(provider: OpenAI | Azure, model: Model) -> Dialect:
    limit_field = model.limit_field or provider.limit_field
    without = provider.without if model.without is None else model.without
    return Dialect("" if limit_field == "none" else limit_field, without)


def _http_client(provider: OpenAI | Azure) -> openai.DefaultAsyncHttpxClient:
    """Takes proxies from the environment, but for loopback, which they cannot reach."""
    timeout = openai.Timeout(None, connect=provider.connect_seconds)
    address = urlsplit(provider.base_url if isinstance(provider, OpenAI) else provider.endpoint)
    host = address.hostname or ""
    direct = f"all://[{host}]" if ":" in host else f"all://{host}"
    try:
        return openai.DefaultAsyncHttpxClient(
            timeout=timeout,
            limits=_LIMITS,
            event_hooks={"response": [_shorten_error]},
            mounts={direct: None} if is_loopback(host) else None,
        )
    except Exception as error:  # an address that is none, an unknown scheme, a missing package for SOCKS
        what = "a proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used"
        why = str(error) if isinstance(error, ImportError) else type(error).__name__  # others may show a password
        raise ModelUnavailable(f"{what}: {why}") from None


def _own_counter(folder: Path, ref: str, model: Model) -> TokenCounter | None:
    if model.tokenizer is None:
        return None
    path = folder / model.tokenizer.expanduser()
    if path.exists() and not path.is_file():  # opening a FIFO would wait for a writer
        raise ModelUnavailable(f'the tokenizer of "{ref}" is not a regular file; see QUINTET_PROVIDERS')
    try:
        return TokenizerCounter(path)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f'the tokenizer of "{ref}" cannot be read; see QUINTET_PROVIDERS') from error
