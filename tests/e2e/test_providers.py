"""A real server with a file of providers: routes, fallback, what is said of both, and that keys are said nowhere."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from quintet.v1 import chat_pb2, chat_pb2_grpc, model_pb2, model_pb2_grpc, rag_pb2, rag_pb2_grpc

from tests.conftest import ROOT, ServerProcess, start_server, wait_ready
from tests.e2e.tasks import conversation
from tests.fakes import OpenAIServer, Reply

PAID_KEY, AZURE_KEY, HEADER = "sk-paid-must-never-be-seen", "azure-must-never-be-seen", "header-must-never-be-seen"
FILE = """
price_table = "2026-11"
currency = "EUR"
[providers.paid]
kind = "openai"
base_url = "{paid}"
api_key_env = "QUINTET_TEST_KEY"
headers = {{ X-Team = "{header}" }}
[providers.paid.models.gpt]
context_tokens = 1000
prompt_price = "1"
completion_price = "2"
[providers.backup]
kind = "azure"
endpoint = "{azure}"
api_version = "2024-10-21"
api_key_file = "azure.key"
[providers.backup.models.gpt-4o]
deployment = "europe"
context_tokens = 1000
[routes]
default = ["paid/gpt", "backup/gpt-4o", "embedded"]
"""


@dataclass
class Served:
    process: ServerProcess
    paid: OpenAIServer
    azure: OpenAIServer
    chat: "chat_pb2_grpc.ChatServiceAsyncStub"
    models: "model_pb2_grpc.ModelServiceAsyncStub"
    rag: "rag_pb2_grpc.RagServiceAsyncStub"

    async def ask(self, model: str | None = None, text: str = "hi") -> chat_pb2.ChatResponse:
        request = chat_pb2.ChatRequest(messages=conversation(text), model=model, max_output_tokens=4)
        return await self.chat.Chat(request, timeout=60)

    async def model(self, name: str) -> model_pb2.Model:
        return (await self.models.GetModel(model_pb2.GetModelRequest(name=name), timeout=10)).model

    def metrics(self) -> str:
        found = re.search(r"metrics on (http://\S+)", self.process.log.read_text())
        assert found
        with urllib.request.urlopen(found.group(1), timeout=10) as response:
            return str(response.read().decode())


@pytest.fixture(scope="module")
async def served(data: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("providers")
    async with AsyncExitStack() as stack:
        paid = await stack.enter_async_context(OpenAIServer(PAID_KEY).running())
        azure = await stack.enter_async_context(OpenAIServer(AZURE_KEY).running())
        azure.default = Reply(deltas=["from Azure"])
        (folder / "azure.key").write_text(AZURE_KEY)
        file = folder / "providers.toml"
        file.write_text(FILE.format(paid=paid.base_url, azure=azure.base_url.removesuffix("/v1"), header=HEADER))
        process = start_server(
            data,
            folder / "log.txt",
            providers=str(file),
            test_key=PAID_KEY,
            llm_context_tokens="512",
            log_level="DEBUG",
            metrics_port="0",
        )
        stack.callback(process.stop)
        wait_ready(process.address, "quintet.v1.ChatService")
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(process.address))
        yield Served(
            process,
            paid,
            azure,
            chat_pb2_grpc.ChatServiceStub(channel),
            model_pb2_grpc.ModelServiceStub(channel),
            rag_pb2_grpc.RagServiceStub(channel),
        )


async def test_routes_and_models_have_names(served: Served) -> None:
    answer = await served.ask()
    assert (answer.message.content, answer.model.name, answer.model.version) == ("Hello there.", "paid/gpt", "gpt-2026")
    assert (answer.usage.cost_micros, answer.usage.currency) == (11 + 2 * 3, "EUR")
    assert (await served.ask("backup/gpt-4o")).message.content == "from Azure"
    assert served.paid.requests[-1].headers["x-team"] == HEADER
    listed = await served.models.ListModels(model_pb2.ListModelsRequest(), timeout=10)
    chats = {model.ref.name: model.engine for model in listed.models if model.task == model_pb2.MODEL_TASK_CHAT}
    assert chats == {
        "default": "route: paid/gpt, backup/gpt-4o, smollm2-135m-instruct",
        "smollm2-135m-instruct": "llama.cpp",
        "paid/gpt": "openai",
        "backup/gpt-4o": "azure",
    }
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("gpt")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(served: Served) -> None:
    asked = len(served.paid.requests)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("paid/gpt", "1 " * 1000)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(r"messages: has about 20\d\d tokens; the model's context is 1000", caught.value.details() or "")
    assert len(served.paid.requests) == asked


async def test_an_answer_from_documents_is_judged(served: Served) -> None:
    wait_ready(served.process.address, "quintet.v1.RagService")
    documents = [
        rag_pb2.Document(
            id="a4", title="Zorba A4", text="The Zorba A4 printer weighs 6 kg. It prints 20 pages a minute."
        ),
        rag_pb2.Document(
            id="a7", title="Zorba A7", text="The Zorba A7 printer weighs 11 kg. It prints 45 pages a minute."
        ),
    ]
    await served.rag.AddDocuments(rag_pb2.AddDocumentsRequest(collection="printers", documents=documents), timeout=60)
    request = rag_pb2.AskRequest(question="How heavy is the printer Zorba A4?", collection="printers")
    found = {}
    for answer in (
        "It weighs 6 kg.",
        "It weighs 11 kg.",
        "It weighs 6 g.",
        "The printer Zorba A4 is heavy.",
        "I don't know.",
    ):
        served.paid.default = Reply(deltas=[answer])
        response = await served.rag.Ask(request, timeout=60)
        found[answer] = (response.grounded, response.abstained)
    served.paid.default = Reply()
    assert found == {
        "It weighs 6 kg.": (True, False),
        "It weighs 11 kg.": (False, False),
        "It weighs 6 g.": (False, False),
        "The printer Zorba A4 is heavy.": (False, False),
        "I don't know.": (False, True),
    }


async def test_others_are_asked_and_everybody_can_see_why(served: Served) -> None:
    served.paid.default = served.azure.default = Reply(status=500, body=PAID_KEY)
    while not (await served.model("paid/gpt")).state_message:
        assert (await served.ask()).model.name == "smollm2-135m-instruct"
    alone, route = await served.model("paid/gpt"), await served.model("default")
    assert alone.state == model_pb2.MODEL_STATE_LOADING
    assert route.state == model_pb2.MODEL_STATE_READY
    assert 'provider "paid" is not asked for a while' in route.state_message
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("paid/gpt")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    text = served.metrics()
    assert 'quintet_provider_breaker_state{gen_ai_provider_name="paid"} 2.0' in text
    assert 'quintet_provider_breaker_state{gen_ai_provider_name="embedded"} 0.0' in text
    assert 'gen_ai_provider_name="paid",gen_ai_request_model="paid/gpt",gen_ai_token_type="input"' in text
    wait_ready(served.process.address, "quintet.v1.ChatService")


async def test_no_key_is_seen_anywhere(served: Served) -> None:
    served.paid.api_key = "another"  # the provider refuses ours from now on
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("paid/gpt")
    listed = await served.models.ListModels(model_pb2.ListModelsRequest(), timeout=10)
    info = await served.models.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=10)
    seen = f"{caught.value!r}{listed}{info}{commands()}{served.metrics()}{served.process.log.read_text()}"
    assert [key for key in (PAID_KEY, AZURE_KEY, HEADER) if key in seen] == []
    assert served.paid.base_url not in f"{listed}{info}"


def commands() -> str:
    """What every user of this machine sees of the processes."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_a_file_that_is_wrong_is_said_at_the_start(tmp_path: Path) -> None:
    broken = tmp_path / "mine.toml"
    broken.write_text('[routes]\ndefault = ["missing/gpt"]\n')
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env={"QUINTET_PROVIDERS": str(broken), "QUINTET_PORT": "0", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: mine.toml: [routes] default: there is no missing/gpt; known: embedded\n"
