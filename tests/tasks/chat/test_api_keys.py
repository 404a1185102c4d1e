"""Keys of providers in files: a replaced key is used without a restart, through a real channel to a real server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from quintet.v1 import chat_pb2, chat_pb2_grpc, model_pb2, model_pb2_grpc

from server.app import running
from server.settings import Settings
from tests.e2e.tasks import conversation
from tests.fakes import OpenAIServer

FILE = """
[providers.one]
kind = "openai"
base_url = "{address}"
api_key_file = "key"
models.gpt.context_tokens = 1000
[providers.two]
kind = "azure"
endpoint = "{azure}"
api_version = "2024-10-21"
api_key_file = "key"
models.gpt.context_tokens = 1000
[routes]
default = ["one/gpt"]
"""


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer("first-key").running() as server:
        yield server


def in_providers_file(folder: Path, upstream: OpenAIServer) -> dict[str, Any]:
    azure = upstream.base_url.removesuffix("/v1")
    (folder / "providers.toml").write_text(FILE.format(address=upstream.base_url, azure=azure))
    return {"providers": folder / "providers.toml"}


def in_settings(folder: Path, upstream: OpenAIServer) -> dict[str, Any]:
    return {"llm_base_url": upstream.base_url, "llm_model": "gpt", "llm_api_key_file": folder / "key"}


@pytest.mark.parametrize(("place", "models"), [(in_providers_file, ["one/gpt", "two/gpt"]), (in_settings, ["gpt"])])
async def test_a_replaced_key_is_used(
    tmp_path: Path,
    upstream: OpenAIServer,
    place: Callable[[Path, OpenAIServer], dict[str, Any]],
    models: list[str],
) -> None:
    (tmp_path / "models").mkdir()
    key = tmp_path / "key"
    key.write_text("first-key\n")
    async with AsyncExitStack() as stack:
        settings = Settings(data=tmp_path, port=0, llm="off", lanes=1, **place(tmp_path, upstream))
        app = await stack.enter_async_context(running(settings.model_copy(update={"shutdown_pause_seconds": 0})))
        await app.loaded()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(app.address))
        chat, info = chat_pb2_grpc.ChatServiceStub(channel), model_pb2_grpc.ModelServiceStub(channel)

        async def sent(model: str) -> str:
            """The key of a call."""
            request = chat_pb2.ChatRequest(messages=conversation("hi"), model=model)
            await chat.Chat(request, timeout=20)
            headers = upstream.requests[-1].headers
            return headers.get("api-key") or headers["authorization"].removeprefix("Bearer ")

        async def until_warned(is_warned: bool) -> None:
            async with asyncio.timeout(10.0):
                while True:
                    found = await info.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=20)
                    if any("key is missing, empty" in warning for warning in found.warnings) == is_warned:
                        return
                    await asyncio.sleep(0.05)

        assert [await sent(model) for model in models] == ["first-key"] * len(models)
        key.write_text("")
        await until_warned(True)
        assert [await sent(model) for model in models] == ["first-key"] * len(models)
        (tmp_path / "new").write_text("second-key")
        (tmp_path / "new").replace(key)
        upstream.api_key = "second-key"
        await until_warned(False)
        assert [await sent(model) for model in models] == ["second-key"] * len(models)
