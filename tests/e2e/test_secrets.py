"""Keys of tenants and of providers reach no log, error, metric, description or process list."""

import asyncio
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc
from quintet_client import errors

from tests.conftest import start_server, wait_ready
from tests.e2e.tasks import conversation
from tests.fakes import OpenAIServer, Reply
from tests.tenants import add_tenant, bearer
from tests.waiting import until

PROVIDER_KEY = "sk-provider-0f9e8d7c6b5a49382716"


def command_lines(pid: int) -> list[bytes]:
    """Of the process and all that it started, and they started."""
    rows = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split()[2:]
    parents = {int(child): int(parent) for child, parent in zip(rows[::2], rows[1::2], strict=True)}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return [Path(f"/proc/{each}/cmdline").read_bytes() for each in found]


def reflected(channel: grpc.Channel) -> list[Any]:
    """All that reflection says."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = reflection_pb2.ServerReflectionRequest
    (names,) = stub.ServerReflectionInfo(iter([ask(list_services="")]), timeout=10)
    symbols = [each.name for each in names.list_services_response.service]
    files = stub.ServerReflectionInfo(iter([ask(file_containing_symbol=name) for name in symbols]), timeout=10)
    return [names, *files]


async def events(call: Any) -> list[Any]:
    """All of a stream."""
    return [event async for event in call]


async def calls(address: str, good: str, bad: list[str], provider: OpenAIServer) -> list[object]:
    """Everything that a server says to callers with good and bad keys, trailers included."""
    said: list[object] = []
    async with grpc.aio.insecure_channel(address) as channel:
        models, chat = model_pb2_grpc.ModelServiceStub(channel), chat_pb2_grpc.ChatServiceStub(channel)
        classify = classification_pb2_grpc.ClassificationServiceStub(channel).Classify
        request = chat_pb2.ChatRequest(messages=conversation("hi"))
        stream = chat_pb2.StreamChatRequest(messages=conversation("hi"))
        rejected = (
            f'{{"error": {{"message": "Incorrect API key provided: {PROVIDER_KEY}", "code": "invalid_api_key"}}}}'
        )
        replies = [Reply(), Reply(status=401, body=rejected), Reply(status=500, body=rejected)]
        for key in (good, *bad):
            options: Any = {"metadata": bearer(key), "timeout": 60}
            unary: list[Any] = [
                models.GetServerInfo(model_pb2.GetServerInfoRequest(), **options),
                models.ListModels(model_pb2.ListModelsRequest(), **options),
                classify(classification_pb2.ClassifyRequest(texts=["a"]), **options),
                classify(classification_pb2.ClassifyRequest(), **options),
            ]
            said += await asyncio.gather(*unary, return_exceptions=True)
            for reply in replies if key == good else [Reply()]:
                provider.replies = [reply] * 5  # it may be asked again
                whole, streamed = chat.Chat(request, **options), chat.StreamChat(stream, **options)
                said += await asyncio.gather(whole, events(streamed), return_exceptions=True)
                unary += [whole, streamed]
            for call in unary:
                said += [await call.trailing_metadata(), await call.initial_metadata()]
    return said


async def test_no_key_gets_out(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    good = add_tenant(file, "acme", 'roles = ["call", "ingest", "admin"]')
    expired = add_tenant(file, "late", key="expires = 2020-01-01T00:00:00Z")
    unable = add_tenant(file, "unable", "roles = []")
    wrong = good[:-4] + "AAAA"
    hashes = [part for found in re.findall(r"sha256:(\w+):(\w+)", file.read_text()) for part in found]
    async with OpenAIServer(PROVIDER_KEY).running() as provider:
        server = start_server(
            data,
            tmp_path / "log.txt",
            tenants=str(file),
            llm_base_url=provider.base_url,
            llm_model="remote",
            llm_api_key=PROVIDER_KEY,
            metrics_port="0",
            log_level="DEBUG",
        )
        try:
            await asyncio.to_thread(wait_ready, server.address)
            said = await calls(server.address, good, [wrong, expired, unable, f"{good} ", PROVIDER_KEY], provider)
            file.write_text(f'{file.read_text()}[tenants.new]\nkey = "{good}"\n"{wrong}" = 1\n')  # an honest mistake
            with grpc.insecure_channel(server.address) as channel:
                info = model_pb2_grpc.ModelServiceStub(channel).GetServerInfo

                def described() -> model_pb2.GetServerInfoResponse:
                    return info(model_pb2.GetServerInfoRequest(), metadata=bearer(good), timeout=10)

                await until(lambda: described().warnings)
                said += [described(), *await asyncio.to_thread(reflected, channel)]
                said.append(health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=10))
            metrics = re.search(r"metrics on (\S+)", server.log.read_text())
            assert metrics
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(metrics[1], timeout=10).read())
            processes = await asyncio.to_thread(command_lines, server.process.pid)
        finally:
            server.stop()
    assert server.process.stdout
    everything = {
        "answers": repr(said),
        "log": server.log.read_text(),
        "output": server.process.stdout.read(),
        "metrics": page.decode(),
        "processes": repr(processes),
    }
    # The test itself: that it saw what it is about.
    assert len(processes) > 1, "spaCy has a process of its own"
    assert "Hello there." in everything["answers"]
    assert "Code.UNAUTHENTICATED" in everything["answers"]
    assert "UPSTREAM_FAILED" in everything["answers"]
    assert "PERMISSION_DENIED" in everything["log"]
    assert 'quintet_auth_refusals_total{reason="UNAUTHENTICATED"}' in everything["metrics"]
    assert 'quintet_file_broken{file="tenants"} 1.0' in everything["metrics"]
    secrets = [good, wrong, expired, unable, PROVIDER_KEY, *hashes]
    secrets += [key[-43:] for key in (good, expired, unable)]
    leaks = [
        f"{where}: {text[max(0, text.index(secret) - 200) :][:300]}"
        for where, text in everything.items()
        for secret in secrets
        if secret in text
    ]
    assert leaks == []


def test_errors_of_the_client_show_no_key(tmp_path: Path) -> None:
    from quintet_client import QuintetClient

    key = add_tenant(tmp_path / "tenants.toml", "acme")
    with QuintetClient("127.0.0.1:1", api_key=key, timeout=1) as client, pytest.raises(errors.QuintetError) as caught:
        client.server_info()
    assert key not in repr(caught.value) + repr(client) + repr(vars(client))
