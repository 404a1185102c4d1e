"""From the server's settings to providers and the names that callers use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from server.domain.reloading_file import BadFile
from server.tasks.chat.api_keys import NO_KEY, Key, KeyFile
from server.tasks.chat.providers_file import (
    DEFAULT,
    EMBEDDED,
    Model,
    OpenAI,
    Providers,
    problems,
    read_providers,
)

if TYPE_CHECKING:
    from server.settings import Settings

_EMBEDDED_MODELS = {"default": "qwen2.5-coder-1.5b-instruct", "small": "smollm2-135m-instruct"}
_ENDPOINT = "endpoint"  # the provider's name if the settings name one endpoint


@dataclass(frozen=True)
class Routes:
    """`names` has what callers may name, with the upstreams ("provider/model") in their order; the first is the
    default. `keys` give those of the providers. `embedded` is the embedded model's artefact, or empty. Relative paths
    in `providers` begin in `folder`.
    """

    providers: Providers
    names: Mapping[str, Sequence[str]]
    keys: Mapping[str, Key] = field(repr=False)
    embedded: str
    folder: Path = Path()


def read_routes(settings: "Settings") -> Routes:
    """What the settings and the file of providers say together. Raises BadFile."""
    embedded = _EMBEDDED_MODELS.get(settings.llm, "")
    if settings.providers:
        if settings.llm_base_url:
            raise BadFile("QUINTET_PROVIDERS and QUINTET_LLM_BASE_URL are both set: name the endpoint in the file")
        providers = read_providers(settings.providers)
        folder = settings.providers.parent
        return Routes(providers, _names(providers, embedded), providers.read_keys(folder), embedded, folder)
    if settings.llm_base_url and settings.llm_model:
        return _one_endpoint(settings, settings.llm_base_url, settings.llm_model, embedded)
    return Routes(Providers(routes={}), {embedded: [EMBEDDED]} if embedded else {}, {}, embedded)


def _names(providers: Providers, embedded: str) -> dict[str, list[str]]:
    """The default route, the other routes, and every model by itself."""
    names = {DEFAULT: providers.routes[DEFAULT], **providers.routes}
    if any(EMBEDDED in upstreams for upstreams in names.values()):
        if not embedded:
            raise BadFile(f'a route has "{EMBEDDED}", but QUINTET_LLM is off')
        names.setdefault(embedded, [EMBEDDED])
    return names | {ref: [ref] for ref, *_ in providers.models()}


def _one_endpoint(settings: "Settings", base_url: str, model: str, embedded: str) -> Routes:
    try:
        provider = OpenAI(
            kind="openai",
            base_url=base_url,
            concurrency=settings.max_concurrent_calls,
            token_seconds=settings.llm_timeout_seconds,
            models={model: Model(context_tokens=settings.llm_context_tokens)},
        )
    except ValidationError as error:
        raise BadFile(f"QUINTET_LLM_BASE_URL, QUINTET_LLM_MODEL: {'; '.join(problems(error))}") from None
    ref = f"{_ENDPOINT}/{model}"
    providers = Providers(providers={_ENDPOINT: provider}, routes={DEFAULT: [ref]})
    return Routes(providers, {model: [ref]}, {_ENDPOINT: _key_of_endpoint(settings)}, embedded)


def _key_of_endpoint(settings: "Settings") -> Key:
    if settings.llm_api_key_file:
        return KeyFile(_ENDPOINT, settings.llm_api_key_file.expanduser())
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else NO_KEY
    return lambda: key
