"""From the server's settings to providers and the names that callers use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from server.tasks.chat.providers_file import (
    DEFAULT,
    EMBEDDED,
    BadProviders,
    Model,
    OpenAI,
    Providers,
    problems,
    read_providers,
)

_EMBEDDED_MODELS = {"default": "qwen2.5-coder-1.5b-instruct", "small": "smollm2-135m-instruct"}
_ENDPOINT = "endpoint"  # the provider's name if the settings name one endpoint


@dataclass(frozen=True)
class ChatSettings:
    """The settings that concern language models: those of the same names, QUINTET_LLM, QUINTET_LLM_BASE_URL etc."""

    models: Path  # folder of artefacts
    llm: str = "default"  # or "small" or "off"
    providers: Path | None = None
    base_url: str | None = None
    api_key: str = field(default="none", repr=False)
    model: str | None = None
    context_tokens: int = 4096
    slots: int = 2
    timeout_seconds: float = 120.0
    concurrency: int = 64  # of the one endpoint


@dataclass(frozen=True)
class Routes:
    """`names` has what callers may name, with the upstreams ("provider/model") in their order; the first is the
    default. `keys` are those of the providers. `embedded` is the embedded model's artefact, or empty. Relative paths in
    `providers` begin in `folder`.
    """

    providers: Providers
    names: Mapping[str, Sequence[str]]
    keys: Mapping[str, str] = field(repr=False)
    embedded: str
    folder: Path = Path()


def read_routes(settings: ChatSettings) -> Routes:
    """What the settings and the file of providers say together. Raises BadProviders."""
    embedded = _EMBEDDED_MODELS.get(settings.llm, "")
    if settings.providers:
        if settings.base_url:
            raise BadProviders("QUINTET_PROVIDERS and QUINTET_LLM_BASE_URL are both set: name the endpoint in the file")
        providers = read_providers(settings.providers)
        folder = settings.providers.parent
        return Routes(providers, _names(providers, embedded), providers.read_keys(folder), embedded, folder)
    if settings.base_url and settings.model:
        providers = _one_endpoint(settings, settings.base_url, settings.model)
        return Routes(providers, {settings.model: providers.routes[DEFAULT]}, {_ENDPOINT: settings.api_key}, embedded)
    return Routes(Providers(routes={}), {embedded: [EMBEDDED]} if embedded else {}, {}, embedded)


def _names(providers: Providers, embedded: str) -> dict[str, list[str]]:
    """The default route, the other routes, and every model by itself."""
    names = {DEFAULT: providers.routes[DEFAULT], **providers.routes}
    if any(EMBEDDED in upstreams for upstreams in names.values()):
        if not embedded:
            raise BadProviders(f'a route has "{EMBEDDED}", but QUINTET_LLM is off')
        names.setdefault(embedded, [EMBEDDED])
    return names | {ref: [ref] for ref, *_ in providers.models()}


def _one_endpoint(settings: ChatSettings, base_url: str, model: str) -> Providers:
    try:
        provider = OpenAI(
            kind="openai",
            base_url=base_url,
            concurrency=settings.concurrency,
            token_seconds=settings.timeout_seconds,
            models={model: Model(context_tokens=settings.context_tokens)},
        )
    except ValidationError as error:
        raise BadProviders(f"QUINTET_LLM_BASE_URL, QUINTET_LLM_MODEL: {'; '.join(problems(error))}") from None
    return Providers(providers={_ENDPOINT: provider}, routes={DEFAULT: [f"{_ENDPOINT}/{model}"]})
