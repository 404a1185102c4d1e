"""Handles of chat models: what fills them, what they say while no upstream can be asked, and missing upstreams."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from server.domain.chat import ChatModel, ChatOptions
from server.domain.context import Context, set_current
from server.domain.errors import ModelLoading, UpstreamFailed
from server.models.handle import State
from server.models.manager import ModelManager
from server.models.store import ModelStore
from server.settings import Settings
from server.tasks.chat import registry as registry_module
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.registry import ChatModels
from tests.chatting import MESSAGES, answer_of, soon
from tests.fakes import MemoryLedger, OpenAIServer, Reply
from tests.small_artefacts import tiny_tokenizer
from tests.waiting import until

ROUTES = """
[providers.one]
kind = "openai"
base_url = "{address}"
[providers.one.models.gpt]
context_tokens = 1000
[routes]
default = [{upstreams}]
"""


@asynccontextmanager
async def chatting(folder: Path, upstream: OpenAIServer, upstreams: str) -> AsyncIterator[ChatModels]:
    file = folder / "providers.toml"
    file.write_text(ROUTES.format(address=upstream.base_url, upstreams=upstreams))
    settings = Settings(data=folder, providers=file)
    async with aclosing(ModelManager(ModelStore(folder / "models"), None)) as manager:
        found = ChatModels(settings, manager, MemoryLedger())
        try:
            yield found
        finally:
            await found.close()


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer("none").running() as server:
        yield server


async def answer(model: ChatModel) -> str:
    set_current(Context("/quintet.v1.ChatService/Chat", "1", soon()))
    return answer_of([event async for event in model.stream(MESSAGES, ChatOptions(), deadline=soon())]).text


async def test_health_hears_of_an_open_breaker_and_calls_pass(
    tmp_path: Path, upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "CircuitBreaker", partial(CircuitBreaker, failures=1, open_seconds=0.2))
    async with chatting(tmp_path, upstream, '"one/gpt"') as chats:
        assert list(chats.handles) == ["default", "one/gpt"]
        with pytest.raises(ModelLoading):
            chats.default.get()
        await chats.load()
        assert [handle.trouble() for handle in chats.handles.values()] == ["", ""]
        upstream.default = Reply(status=500)
        with pytest.raises(UpstreamFailed):
            await answer(chats.default.get())
        assert [(handle.state, handle.is_away) for handle in chats.handles.values()] == [(State.LOADING, True)] * 2
        assert 'provider "one" is not asked for a while' in chats.default.trouble()
        upstream.default = Reply()
        await until(lambda: not chats.default.trouble())  # by itself, without a call
        assert await answer(chats.default.get()) == "Hello there."
        assert chats.default.message == ""


async def test_a_route_does_without_what_cannot_be_had(tmp_path: Path, upstream: OpenAIServer) -> None:
    async with chatting(tmp_path, upstream, '"embedded", "one/gpt"') as chats:
        await chats.load()
        assert await answer(chats.default.get()) == "Hello there."
        assert (chats.default.state, chats.default.trouble()) == (State.READY, "")
        assert "make train ONLY=qwen2.5-coder-1.5b-instruct" in chats.default.message
        alone = chats.handles["qwen2.5-coder-1.5b-instruct"]
        assert alone.state is State.FAILED
        assert "make train" in alone.message


async def test_a_tokenizer_that_cannot_be_read_is_a_fault_of_its_model_and_heals(
    tmp_path: Path, upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_FIRST_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(registry_module, "_LOOK_SECONDS", 0.05)
    other = '[providers.one.models.other]\ncontext_tokens = 1000\ntokenizer = "tokenizer.json"\n[routes]'
    monkeypatch.setattr(f"{__name__}.ROUTES", ROUTES.replace("[routes]", other))
    async with chatting(tmp_path, upstream, '"one/other", "one/gpt"') as chats:
        chats.start()
        await until(lambda: chats.default.state is State.READY)
        assert 'the tokenizer of "one/other" cannot be read' in chats.default.message
        assert chats.handles["one/other"].state is State.FAILED
        assert await answer(chats.handles["one/gpt"].get()) == "Hello there."
        tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
        await until(lambda: chats.handles["one/other"].state is State.READY)
        assert (chats.default.state, chats.default.message) == (State.READY, "")
        assert await answer(chats.default.get()) == "Hello there."
        assert upstream.requests[-1].body["model"] == "other"
