"""From the settings to providers and the names that callers use for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from server.settings import Settings
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

EMBEDDED_LLMS = {"default": "qwen2.5-coder-1.5b-instruct", "small": "smollm2-135m-instruct"}
_ENDPOINT = "endpoint"  # the provider where the settings name but one


@dataclass(frozen=True)
class Lineup:
    """`names` has what callers may name, with whom to ask in which order; the first is the default. `keys` are those of
    the providers. `embedded` is the artefact of the embedded model, empty if the settings want none.
    """

    config: Providers
    names: Mapping[str, Sequence[str]]
    keys: Mapping[str, str] = field(repr=False)
    embedded: str


def lineup(settings: Settings) -> Lineup:
    """What the settings and the file of providers say together. Raises BadProviders."""
    embedded = EMBEDDED_LLMS.get(settings.llm, "")
    if settings.providers:
        if settings.llm_base_url:
            raise BadProviders("QUINTET_PROVIDERS and QUINTET_LLM_BASE_URL are both set: name the endpoint in the file")
        config = read_providers(settings.providers)
        return Lineup(config, _names(config, embedded), config.read_keys(), embedded)
    if settings.llm_base_url and settings.llm_model:
        config = _one_endpoint(settings, settings.llm_base_url, settings.llm_model)
        names = {settings.llm_model: config.routes[DEFAULT]}
        return Lineup(config, names, {_ENDPOINT: settings.read_llm_api_key()}, embedded)
    return Lineup(Providers(routes={}), {embedded: [EMBEDDED]} if embedded else {}, {}, embedded)


def _names(config: Providers, embedded: str) -> dict[str, list[str]]:
    """The default route, the other routes, and every model by itself."""
    names = {DEFAULT: config.routes[DEFAULT], **config.routes}
    if any(EMBEDDED in legs for legs in names.values()):
        if not embedded:
            raise BadProviders(f'a route has "{EMBEDDED}", but QUINTET_LLM is off')
        names.setdefault(embedded, [EMBEDDED])
    for name, _, model_name, _ in config.models():
        names[f"{name}/{model_name}"] = [f"{name}/{model_name}"]
    return names


def _one_endpoint(settings: Settings, base_url: str, model: str) -> Providers:
    try:
        provider = OpenAI(
            kind="openai",
            base_url=base_url,
            concurrency=settings.max_concurrent_calls,
            token_seconds=settings.llm_timeout_seconds,
            models={model: Model(context_tokens=settings.llm_context_tokens)},
        )
    except ValidationError as error:
        raise BadProviders(f"QUINTET_LLM_BASE_URL, QUINTET_LLM_MODEL: {'; '.join(problems(error))}") from None
    return Providers(providers={_ENDPOINT: provider}, routes={DEFAULT: [f"{_ENDPOINT}/{model}"]})
