"""Authentication and authorization in a real server: keys, roles, allow-lists, and a tenants file that changes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from quintet.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    rag_pb2,
    rag_pb2_grpc,
)
from quintet_client import QuintetClient, errors

from tests.conftest import ROOT, ServerProcess, start_server, wait_ready
from tests.e2e.tasks import conversation
from tests.e2e.test_bad_input import details
from tests.fakes import OpenAIServer, Reply
from tests.services import SERVICES, methods
from tests.tenants import add_tenant, bearer, replace
from tests.waiting import until

Code = grpc.StatusCode
UNKNOWN_KEY = "qk_k00000000_" + "A" * 43
METHODS = [method for service in SERVICES.values() for method in service.methods]
Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers without models, which takes a moment only."""
    started: list[ServerProcess] = []

    def start(**settings: str) -> ServerProcess:
        started.append(start_server(tmp_path, tmp_path / "log.txt", **{"llm": "off", **settings}))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def code_of(channel: grpc.Channel, method: Any, key: str, timeout: float = 10.0) -> grpc.StatusCode:
    """How a call without a message ends, or OK once a stream has sent something."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    metadata = bearer(key)
    try:
        if method.name.startswith(("Stream", "Watch", "Reindex")):
            stream: Any = channel.unary_stream(path)
            events = stream(b"", timeout=timeout, metadata=metadata)
            next(events)
            events.cancel()
        elif method.name == "ImportDocuments":
            upload: Any = channel.stream_unary(path)
            upload(iter([b""]), timeout=timeout, metadata=metadata)
        else:
            unary: Any = channel.unary_unary(path)
            unary(b"", timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


def server_info(channel: grpc.Channel, key: str) -> model_pb2.GetServerInfoResponse:
    stub = model_pb2_grpc.ModelServiceStub(channel)
    return stub.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=10, metadata=bearer(key))


def knows(channel: grpc.Channel, key: str) -> bool:
    method = model_pb2.DESCRIPTOR.services_by_name["ModelService"].methods_by_name["GetServerInfo"]
    code = code_of(channel, method, key)
    assert code in {Code.OK, Code.UNAUTHENTICATED}
    return code is Code.OK


def test_every_method_asks_for_its_role(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    keys = {role: add_tenant(file, role, f'roles = ["{role}"]') for role in ("call", "ingest", "admin")}
    table = methods()
    with grpc.insecure_channel(start(tenants=str(file)).address) as channel:
        for method in METHODS:
            needed = table[method.containing_service.name][method.name].role
            for role, key in keys.items():
                # WatchUsage says nothing before a call is settled.
                code = code_of(channel, method, key, timeout=2.0 if method.name == "WatchUsage" else 10.0)
                if code is Code.UNIMPLEMENTED:
                    continue
                allowed = needed in {None, role}
                assert (code is Code.PERMISSION_DENIED) != allowed, (method.full_name, role, code)
                assert code is not Code.UNAUTHENTICATED
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert check.status == health_pb2.HealthCheckResponse.SERVING, "health requires no authentication"


def test_unauthenticated_callers_learn_nothing(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    ago = datetime.now(UTC) - timedelta(seconds=1)
    good = add_tenant(file, "acme")
    expired = add_tenant(file, "late", key=f"expires = {ago.isoformat()}")
    bad: list[Any] = [
        (),
        bearer(""),
        bearer("secret"),
        bearer(UNKNOWN_KEY),
        bearer(good[:-1]),
        bearer(good[:-1] + ("A" if good[-1] != "A" else "B")),
        bearer(good.replace("qk_", "QK_")),
        bearer(expired),
        bearer(good) + bearer(good),
        (("authorization", f"Basic {good}"),),
        (("authorization", good),),
        (("authorization-bin", f"Bearer {good}".encode()),),
        bearer("x" * 4000),
    ]
    seen = set()
    with grpc.insecure_channel(start(tenants=str(file)).address) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        for metadata in bad:
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=10, metadata=metadata)
            error: Any = caught.value
            seen.add((error.code(), error.details(), details(error)["ErrorInfo"].reason))
            with pytest.raises(grpc.RpcError) as caught:  # whether the service or the method exists makes no difference
                list(stub.WatchModels(model_pb2.WatchModelsRequest(), timeout=10, metadata=metadata))
            assert caught.value.code() is Code.UNAUTHENTICATED
        for scheme in ("Bearer", "bearer"):
            metadata = (("authorization", f"{scheme} {good}"),)
            stub.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=10, metadata=metadata)
    ((code, message, reason),) = seen
    assert (code, reason) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert message == "a valid API key (authorization: Bearer KEY) or a known client certificate is required"
    log = (tmp_path / "log.txt").read_text()
    assert log.count("unauthenticated call from") == 1, "a flood of wrong keys must not flood the log"


def test_services_are_allowed_one_by_one(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    key = add_tenant(file, "acme", 'roles = ["call", "admin"]\nservices = ["ModelService"]')
    with QuintetClient(start(tenants=str(file)).address, api_key=key) as client:
        assert not client.server_info().warnings
        with pytest.raises(errors.PermissionDenied) as caught:
            client.chat("hello")
        assert caught.value.message == 'tenant "acme" may not use ChatService; services allowed: ModelService'
        with pytest.raises(errors.PermissionDenied):
            next(client.stream_chat("hello"))
    with QuintetClient(client.address, api_key=UNKNOWN_KEY) as client, pytest.raises(errors.Unauthenticated):
        client.server_info()


async def test_models_are_allowed_by_name_and_by_default(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    topics = bearer(add_tenant(file, "acme", 'models = ["topics"]'))
    remote = bearer(add_tenant(file, "bob", 'models = ["remote", "embedder"]'))
    async with OpenAIServer().running() as provider:
        remote_settings = {"llm_base_url": provider.base_url, "llm_model": "remote", "llm_api_key": provider.api_key}
        server = start(tenants=str(file), **remote_settings)
        await asyncio.to_thread(wait_ready, server.address, "quintet.v1.ChatService")
        async with grpc.aio.insecure_channel(server.address) as channel:
            classify = classification_pb2_grpc.ClassificationServiceStub(channel).Classify
            chat, rag = chat_pb2_grpc.ChatServiceStub(channel), rag_pb2_grpc.RagServiceStub(channel)
            classify_request = classification_pb2.ClassifyRequest
            ask = rag_pb2.AskRequest(question="why?")
            stream_ask = rag_pb2.StreamAskRequest(question="why?")
            request = chat_pb2.ChatRequest(messages=conversation("hi"))
            stream_request = chat_pb2.StreamChatRequest(messages=conversation("hi"))

            answer = await chat.Chat(request, metadata=remote, timeout=10)
            assert answer.message.content == "Hello there."
            for call in (
                classify(classify_request(texts=["a"]), metadata=topics, timeout=10),  # the default is sentiment
                classify(classify_request(texts=["a"], model="no-such-model"), metadata=topics, timeout=10),
                chat.Chat(request, metadata=topics, timeout=10),
                chat.StreamChat(stream_request, metadata=topics, timeout=10).read(),
                rag.Ask(ask, metadata=topics, timeout=10),
                rag.StreamAsk(stream_ask, metadata=topics, timeout=10).read(),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is Code.PERMISSION_DENIED
                assert "models allowed: topics" in str(caught.value.details())
            for call in (
                classify(classify_request(texts=["a"], model="topics"), metadata=topics, timeout=10),
                rag.Ask(ask, metadata=remote, timeout=10),
            ):  # allowed, but there are no models here
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() in {Code.FAILED_PRECONDITION, Code.UNAVAILABLE}


async def test_keys_are_rotated_while_calls_run(start: Start, tmp_path: Path) -> None:
    """A stream of the old key goes on; the file is broken and mended; no call of a good key fails."""
    file = tmp_path / "tenants.toml"
    old = add_tenant(file, "acme", 'roles = ["call"]')
    admin = add_tenant(file, "operations", 'roles = ["admin"]')
    async with OpenAIServer().running() as provider:
        provider.replies = [Reply(deltas=["word "] * 400, pause=0.02)]
        settings = {"llm_base_url": provider.base_url, "llm_model": "remote", "llm_api_key": provider.api_key}
        server = start(tenants=str(file), **settings)
        await asyncio.to_thread(wait_ready, server.address, "quintet.v1.ChatService")
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)
            stream = stub.StreamChat(chat_pb2.StreamChatRequest(messages=conversation("hi")), metadata=bearer(old))
            await stream.read()
            with grpc.insecure_channel(server.address) as sync:
                good = file.read_text()
                replace(file, good + "[tenants.")
                await until(lambda: server_info(sync, admin).warnings)
                (warning,) = server_info(sync, admin).warnings
                assert warning.startswith(f"{file}: not TOML: ")
                assert knows(sync, old)
                assert not server_info(sync, old).warnings, "it may name other tenants"
                replace(file, good.partition("[tenants.operations]")[0])
                await until(lambda: not knows(sync, admin))
                file.unlink()
                new = add_tenant(file, "acme", 'roles = ["call"]')
                await until(lambda: knows(sync, new))
                assert not knows(sync, old)
            event: Any = await stream.read()
            assert event.delta.text == "word ", "what runs may end"
            stream.cancel()


def test_plain_metadata_is_enough(start: Start, tmp_path: Path) -> None:
    """As `grpcurl -H "authorization: Bearer KEY"` sends it, without anything of ours; and the command with a file."""
    file = tmp_path / "tenants.toml"
    key = add_tenant(file, "acme")
    server = start(tenants=str(file), reflection="false")
    with grpc.insecure_channel(server.address) as channel:
        reflect: Any = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        assert reflect(iter([b""]), metadata=bearer(key), timeout=10).code() is Code.UNIMPLEMENTED
        invoke: Any = channel.unary_unary("/quintet.v1.ModelService/ListModels")
        assert invoke(b"", metadata=bearer(key), timeout=10)
    (tmp_path / "key").write_text(f"{key}\n")
    command = [sys.executable, "-m", "quintet_client", "models", "--address", server.address]
    for more, environment in ((["--api-key-file", str(tmp_path / "key")], {}), ([], {"QUINTET_API_KEY": key})):
        done = subprocess.run(
            [*command, *more], env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    without = subprocess.run(command, capture_output=True, text=True, check=False)
    assert without.returncode == 1
    assert "--api-key-file, QUINTET_API_KEY" in without.stderr


def refused(**settings: str) -> str:
    """What a server says that does not start."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QUINTET_")}
    environment |= {f"QUINTET_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env={**environment, "QUINTET_PORT": "0", "QUINTET_LLM": "off"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_settings_that_cannot_be_used_are_one_line() -> None:
    told = refused(models='{"sentiment": {"engin": "torch"}}')
    assert told == "error: QUINTET_MODELS: sentiment.engin: there is no such option; is engine meant?\n"


def test_without_tenants_only_this_machine_is_served(start: Start, tmp_path: Path) -> None:
    message = refused(host="0.0.0.0")
    assert message.startswith(
        "error: with QUINTET_HOST=0.0.0.0 every client could call: set QUINTET_TENANTS to a file of tenants"
    )
    (tmp_path / "tenants.toml").write_text("[tenants.a]\nroles = ['king']\n")
    broken = refused(tenants=str(tmp_path / "tenants.toml"))
    assert broken == f"error: {tmp_path}/tenants.toml: tenants.a.roles.0: Input should be 'call', 'ingest' or 'admin'\n"
    local, public = start(), start(host="0.0.0.0", allow_anonymous="true")
    for server, said in ((local, "only this machine can call"), (public, "QUINTET_ALLOW_ANONYMOUS")):
        assert server.process.stdout
        assert said in server.process.stdout.readline()
        with QuintetClient(server.address) as client:
            assert client.server_info().version


def test_keys_in_the_clear_are_warned_of(start: Start, tmp_path: Path) -> None:
    add_tenant(tmp_path / "tenants.toml", "acme")
    start(tenants=str(tmp_path / "tenants.toml"))
    assert "unencrypted" not in (tmp_path / "log.txt").read_text()
    start(tenants=str(tmp_path / "tenants.toml"), host="0.0.0.0")
    assert (tmp_path / "log.txt").read_text().count("cross the network unencrypted") == 1
