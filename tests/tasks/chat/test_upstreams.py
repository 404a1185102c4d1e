"""Clients of providers and the proxies of the environment."""

import pytest

from server.domain.errors import ModelUnavailable
from server.tasks.chat.providers_file import Model, OpenAI
from server.tasks.chat.upstreams import client_of
from tests.fakes import OpenAIServer


def provider(base_url: str) -> OpenAI:
    return OpenAI(kind="openai", base_url=base_url, models={"gpt": Model(context_tokens=4096)})


async def ask(base_url: str) -> str:
    async with client_of(provider(base_url), "test-key", "gpt") as client:
        stream = await client.chat.completions.create(
            model="gpt", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_a_provider_on_loopback_is_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with OpenAIServer().running() as server:
        assert await ask(server.base_url)
        assert await ask(server.base_url.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize(
    "proxy", ["foo://user:secret@proxy", "http://user:secret@proxy:x", "socks5://user:secret@proxy"]
)
async def test_a_proxy_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ModelUnavailable) as caught:
        client_of(provider("https://api.example/v1"), "test-key", "gpt")
    assert caught.value.message.startswith("a proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be")
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message
