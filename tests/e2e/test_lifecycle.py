"""Starting, health, reflection, broken artefacts, a killed language model, and stopping."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from quintet.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    pricing_pb2,
    pricing_pb2_grpc,
)

from tests.campaigns.fuzz.http2 import Connection, message, request_headers
from tests.conftest import ROOT, ServerProcess, start_server, wait_ready
from tests.e2e.tasks import HOUSE, conversation
from tests.e2e.test_bad_input import details
from tests.services import SERVICES

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = [service.full_name for service in SERVICES.values()]


def check(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status)


def child_of(pid: int) -> int:
    """The process id of the language model's child."""
    for line in subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        child, parent, *command = line.split(maxsplit=2)
        if parent == str(pid) and "embedded_process" in command[0]:
            return int(child)
    raise AssertionError(f"{pid} has no language model")


def test_health_knows_every_service(channel: grpc.Channel) -> None:
    assert [check(channel, name) for name in ("", "ready", *NAMES)] == [SERVING] * (2 + len(NAMES))
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "quintet.v1.NoService")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    listed = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=5)
    assert set(listed.statuses) == {"", "ready", *NAMES}


def test_serving_needs_no_torch(server: ServerProcess, channel: grpc.Channel) -> None:
    assert check(channel, "ready") == SERVING
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in mapped
    assert "libtorch" not in mapped


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_and_describes(channel: grpc.Channel, version: str) -> None:
    invoke = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="quintet.v1.RagService"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="buf/validate/validate.proto"),
    ]
    names, rag, validate = invoke(iter(asked), timeout=10)
    assert {service.name for service in names.list_services_response.service} >= {*NAMES, "grpc.health.v1.Health"}
    assert rag.file_descriptor_response.file_descriptor_proto
    assert validate.file_descriptor_response.file_descriptor_proto


def test_a_broken_artefact_takes_only_its_service_down(models: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(models, folder / "models", copy_function=os.link)
    (folder / "index").symlink_to(data / "index")
    version = (models / "house-prices" / "current").read_text().strip()
    broken = folder / "models" / "house-prices" / version / "model.joblib"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.unlink()  # a hard link: the original must stay as it is
    broken.write_bytes(content)
    shutil.rmtree(folder / "models" / "lid.176")
    running = start_server(folder, tmp_path / "log.txt", llm="off")
    try:
        with grpc.insecure_channel(running.address) as channel:
            wait_ready(running.address, "quintet.v1.ClassificationService")
            wait_ready(running.address, "quintet.v1.RagService")
            pricing = pricing_pb2_grpc.PricingServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                pricing.PredictPrice(pricing_pb2.PredictPriceRequest(houses=[HOUSE]), timeout=20)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert details(caught.value)["ErrorInfo"].reason == "MODEL_UNAVAILABLE"
            assert "model.joblib" in str(caught.value.details())
            assert "make train ONLY=house-prices" in str(caught.value.details())
            assert str(folder) not in str(caught.value.details())
            assert check(channel, "quintet.v1.PricingService") == NOT_SERVING
            assert check(channel, "quintet.v1.AnalysisService") == NOT_SERVING
            assert check(channel, "ready") == NOT_SERVING
            info = model_pb2_grpc.ModelServiceStub(channel).GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=5)
            messages = {service.name: service.message for service in info.services}
            assert "make train ONLY=house-prices" in messages["quintet.v1.PricingService"]
            assert "make train ONLY=lid.176" in messages["quintet.v1.AnalysisService"]
            assert messages["quintet.v1.ClassificationService"] == ""
    finally:
        running.stop()


def test_a_killed_language_model_comes_back(data: Path, tmp_path: Path) -> None:
    running = start_server(data, tmp_path / "log.txt")
    try:
        wait_ready(running.address)
        first = child_of(running.process.pid)
        with grpc.insecure_channel(running.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="quintet.v1.ChatService"), timeout=60
            )
            assert next(watch).status == SERVING
            os.kill(first, signal.SIGKILL)
            assert next(watch).status == NOT_SERVING
            others = [name for name in NAMES if name not in {"quintet.v1.ChatService", "quintet.v1.RagService"}]
            assert [check(channel, name) for name in others] == [SERVING] * len(others)
            assert next(watch).status == SERVING
            assert child_of(running.process.pid) != first
            answer = chat_pb2_grpc.ChatServiceStub(channel).Chat(
                chat_pb2.ChatRequest(messages=conversation("Say hello."), max_output_tokens=8), timeout=30
            )
            assert answer.message.content
    finally:
        running.stop()


def test_sigterm_finishes_what_runs_and_refuses_the_rest(data: Path, tmp_path: Path) -> None:
    running = start_server(
        data, tmp_path / "log.txt", shutdown_pause_seconds="0.3", shutdown_grace_seconds="50", shutdown_seconds="60"
    )
    wait_ready(running.address)
    child = child_of(running.process.pid)
    with grpc.insecure_channel(running.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        request = chat_pb2.StreamChatRequest(messages=conversation("Tell a long story."), max_output_tokens=120)
        stream = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(request, timeout=60)
        next(stream)
        running.process.terminate()
        assert next(watch).status == NOT_SERVING
        with pytest.raises(StopIteration):
            next(watch)  # an open Watch must not hold the stop
        events = list(stream)
        assert events[-1].WhichOneof("event") == "done"
    assert running.process.wait(60) == 0
    assert not Path(f"/proc/{child}").exists()
    assert "Traceback" not in running.log.read_text()


def test_a_log_for_machines_has_nothing_but_objects(data: Path, tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("QUINTET_")},
        "QUINTET_DATA": str(data),
        "QUINTET_PORT": "0",
        "QUINTET_LLM": "off",
        "QUINTET_LOG_FORMAT": "json",
        "QUINTET_SHUTDOWN_PAUSE_SECONDS": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "server"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        listening = json.loads(process.stderr.readline())
        assert listening["message"].startswith("listening on 127.0.0.1:")
        address = listening["message"].rpartition(" ")[2]
        wait_ready(address, seconds=180)
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
            classification_pb2_grpc.ClassificationServiceStub(channel).Classify(
                classification_pb2.ClassifyRequest(), metadata=(("x-request-id", "mine"),), timeout=20
            )
        process.terminate()
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == b""
    lines = [json.loads(line) for line in errors.splitlines()]
    assert {"quintet.v1.ClassificationService: SERVING", "ready: SERVING", "no calls run any more"} <= {
        line["message"] for line in lines
    }
    (refused,) = [line for line in lines if line["logger"] == "server.access"]
    assert (refused["request_id"], refused["code"], refused["reason"]) == (
        "mine",
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
    )
    assert not [line for line in lines if line["level"] in {"WARNING", "ERROR"}]


def test_a_second_signal_exits_at_once(data: Path, tmp_path: Path) -> None:
    running = start_server(data, tmp_path / "log.txt", shutdown_pause_seconds="20", shutdown_grace_seconds="0")
    running.process.terminate()
    assert running.process.stdout is not None
    assert any(line.startswith("Stopping") for line in running.process.stdout)
    assert running.process.poll() is None
    running.process.terminate()
    assert running.process.wait(3) != 0


def test_a_stop_pauses_for_load_balancers_but_not_at_a_terminal(tmp_path: Path) -> None:
    servers = [start_server(tmp_path, tmp_path / "log.txt", llm="off", shutdown_pause_seconds="2") for _ in range(2)]
    times = []
    for running, number in zip(servers, (signal.SIGINT, signal.SIGTERM), strict=True):
        begun = time.monotonic()
        running.process.send_signal(number)
        if number == signal.SIGTERM:
            with grpc.insecure_channel(running.address) as channel:
                assert check(channel, "") == NOT_SERVING
                stub = model_pb2_grpc.ModelServiceStub(channel)
                assert stub.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=5).version
        assert running.process.wait(20) == 0
        times.append(time.monotonic() - begun)
    assert times[0] < 2 <= times[1]


async def test_clients_that_do_not_read_hold_neither_calls_nor_the_stop(tmp_path: Path) -> None:
    running = await asyncio.to_thread(
        start_server, tmp_path, tmp_path / "log.txt", llm="off", default_deadline_seconds="1"
    )
    try:
        port = int(running.address.rpartition(":")[2])
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(window=1), "127.0.0.1", port)
        headers = request_headers("/quintet.v1.ModelService/ListModels", [])
        async with asyncio.timeout(15):
            ended = await asyncio.gather(*(connection.call(headers, message(b"")) for _ in range(20)))
        assert {each.status for each in ended} == {grpc.StatusCode.CANCELLED.value[0]}
        watch = request_headers("/grpc.health.v1.Health/Watch", [])
        open_calls = [asyncio.create_task(connection.call(each, message(b""))) for each in (headers, watch)]
        await asyncio.sleep(0.2)
    finally:
        begun = time.monotonic()
        assert await asyncio.to_thread(running.stop) == 0
    assert time.monotonic() - begun < 10, "the grace is 13 s"
    await asyncio.gather(*open_calls)
    assert "Traceback" not in running.log.read_text()


def test_a_stop_that_hangs_ends_in_time() -> None:
    """Here what hangs is the event loop itself."""
    script = """
        import asyncio, os, signal, sys, time
        from contextlib import asynccontextmanager
        from server import __main__, settings

        @asynccontextmanager
        async def never_closes(_):
            os.kill(os.getpid(), signal.SIGTERM)
            yield
            time.sleep(60)

        async def announce(*_): pass

        settings.CLOSING_SECONDS = 0
        __main__.running, __main__._announce = never_closes, announce
        stop = settings.Settings(shutdown_pause_seconds=0, shutdown_grace_seconds=0, shutdown_seconds=1)
        sys.exit(asyncio.run(__main__._serve(stop)))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "the stop took longer than 1 s; exiting" in done.stderr


def test_a_used_port_is_said_in_a_sentence(server: ServerProcess, data: Path, tmp_path: Path) -> None:
    port = server.address.rpartition(":")[2]
    log = tmp_path / "log.txt"
    with pytest.raises(pytest.fail.Exception, match=f"cannot listen on 127.0.0.1:{port}.*QUINTET_PORT"):
        start_server(data, log, port=port)
    assert "Traceback" not in log.read_text()


def test_an_outage_of_the_provider_takes_nothing_else_down_and_secrets_stay_inside(data: Path, tmp_path: Path) -> None:
    """A key never shows in log, errors or process list."""
    secret = "sk-this-must-never-be-seen"
    running = start_server(
        data,
        tmp_path / "log.txt",
        llm_base_url="http://127.0.0.1:9/v1",
        llm_model="gpt-x",
        llm_api_key=secret,
        log_level="DEBUG",
    )
    try:
        wait_ready(running.address)
        with grpc.insecure_channel(running.address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                chat_pb2_grpc.ChatServiceStub(channel).Chat(
                    chat_pb2.ChatRequest(messages=conversation("hi")), timeout=20
                )
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert details(caught.value)["ErrorInfo"].reason == "UPSTREAM_FAILED"
            for _ in range(2):  # until the circuit is open
                with pytest.raises(grpc.RpcError):
                    chat_pb2_grpc.ChatServiceStub(channel).Chat(
                        chat_pb2.ChatRequest(messages=conversation("hi")), timeout=20
                    )
            assert check(channel, "quintet.v1.ChatService") == NOT_SERVING
            assert check(channel, "ready") == SERVING, "no other replica could do better"
            listed = model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), timeout=5)
            classified = classification_pb2_grpc.ClassificationServiceStub(channel).Classify(
                classification_pb2.ClassifyRequest(texts=["hello"]), timeout=30
            )
            seen = f"{caught.value!r}{caught.value.details()}{listed}{classified}"
        commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    finally:
        running.stop()
    assert secret not in seen + commands + running.log.read_text()
