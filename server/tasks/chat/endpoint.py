"""Endpoints of the OpenAI protocol, and the SDK's client for one. Importing it imports the SDK: about a second."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import openai

from server.domain.chat import Prices

_FREE = Prices()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and for which model. Key and headers appear in no representation.

    With `azure_api_version` it is one of Azure's: `base_url` is the resource's, and `model` the deployment's name.
    """

    provider: str
    base_url: str
    model: str
    api_key: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    prices: Prices = _FREE
    is_embedded: bool = False
    azure_api_version: str = ""
    connect_seconds: float = 5.0
    token_seconds: float = 60.0  # the longest wait for the next token


def client_of(endpoint: Endpoint) -> openai.AsyncOpenAI:
    # llama.cpp closes the connection after a stream although its headers keep it: ask it to.
    closing = {"Connection": "close"} if endpoint.is_embedded else {}
    common: dict[str, Any] = {
        "api_key": endpoint.api_key,
        "default_headers": {**endpoint.headers, **closing},
        "max_retries": 0,  # the SDK would sleep through a provider's Retry-After
        "http_client": openai.DefaultAsyncHttpxClient(
            timeout=openai.Timeout(None, connect=endpoint.connect_seconds),
            trust_env=not endpoint.is_embedded,  # a proxy cannot reach this machine's loopback
        ),
    }
    if endpoint.azure_api_version:
        return openai.AsyncAzureOpenAI(
            azure_endpoint=endpoint.base_url,
            azure_deployment=endpoint.model,
            api_version=endpoint.azure_api_version,
            **common,
        )
    return openai.AsyncOpenAI(base_url=endpoint.base_url, **common)
