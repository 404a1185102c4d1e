"""The embedded language model, for real: the small model on llama.cpp in its own process."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from server.domain.chat import ChatOptions, ChatStarted, FinishReason, Message, TextDelta
from server.domain.errors import InvalidRequest, ModelLoading, ModelUnavailable, UpstreamFailed, UpstreamRefused
from server.domain.priority import LANES
from server.domain.usage import UsageSource
from server.models.artefact import Artefact, open_artefact
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.embedded import EmbeddedModel, client_of
from server.tasks.chat.openai_upstream import Upstream
from server.tasks.chat.providers_file import EMBEDDED
from tests.chatting import chatting, complete
from tests.waiting import is_alive, until

QUESTION = [Message("user", "What is the capital of France? Answer in one word.")]
LONG = [Message("user", "Count from one to one thousand, in words.")]
GREEDY = ChatOptions(max_output_tokens=8, temperature=0.0)


@pytest.fixture(scope="session")
def small_llm(models: Path) -> Artefact:
    return open_artefact(models, "smollm2-135m-instruct")


@pytest.fixture(scope="module")
async def process(small_llm: Artefact) -> AsyncIterator[EmbeddedModel]:
    found = embedded(small_llm, slots=2)
    await found.start()
    yield found
    await found.close()


@pytest.fixture
def model(process: EmbeddedModel) -> Upstream:
    assert process.upstream
    return process.upstream


def embedded(artefact: Artefact, slots: int = 1, on_change: Callable[[], None] = lambda: None) -> EmbeddedModel:
    breaker = CircuitBreaker(EMBEDDED)
    return EmbeddedModel(artefact, breaker, slots=slots, context_tokens=512, token_seconds=20.0, on_change=on_change)


def soon() -> float:
    return time.monotonic() + 30.0


def proc(pid: int, file: str) -> bytes:
    return Path(f"/proc/{pid}/{file}").read_bytes()


def cpu_seconds(pid: int) -> float:
    fields = proc(pid, "stat").rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_answer(model: Upstream) -> None:
    answer = await complete(model, QUESTION, GREEDY, deadline=soon())
    assert "Paris" in answer.text
    assert answer.done.model == model.description.identity
    assert answer.done.model.digest.startswith("sha256:")
    usage = answer.done.usage
    assert (usage.source, usage.cost_micros) == (UsageSource.PROVIDER, 0)
    assert usage.prompt_tokens == await model.prompt_tokens(QUESTION)
    assert 0 < usage.completion_tokens <= 8
    again = await complete(model, QUESTION, GREEDY, deadline=soon())
    assert again.text == answer.text
    assert 0 < again.done.usage.cached_tokens < usage.prompt_tokens


async def test_limit_of_output_tokens(model: Upstream) -> None:
    answer = await complete(model, LONG, ChatOptions(max_output_tokens=2, temperature=0.0), deadline=soon())
    assert (answer.done.finish_reason, answer.done.usage.completion_tokens) == (FinishReason.LENGTH, 2)


async def test_prompt_over_the_context(model: Upstream) -> None:
    with pytest.raises(InvalidRequest, match=r"messages: has \d+ tokens; the model's context is 512"):
        await complete(model, [Message("user", "word " * 600)], GREEDY, deadline=soon())


async def test_closing_the_stream_stops_the_answer(process: EmbeddedModel, model: Upstream) -> None:
    assert process.supervisor.pid
    async with aclosing(model.stream(LONG, ChatOptions(max_output_tokens=400), deadline=soon())) as events:
        assert isinstance(await anext(events), ChatStarted)
        assert isinstance(await anext(events), TextDelta)
    async with asyncio.timeout(2.0):  # all 400 tokens take longer
        busy = 1.0
        while busy > 0.02:
            before = cpu_seconds(process.supervisor.pid)
            await asyncio.sleep(0.2)
            busy = cpu_seconds(process.supervisor.pid) - before


async def test_only_who_has_the_key_is_answered_and_it_is_not_visible(process: EmbeddedModel, model: Upstream) -> None:
    key, base_url = model.endpoint.client.api_key, str(model.endpoint.client.base_url)
    async with chatting(client_of(base_url, "wrong"), model="any") as stranger:
        with pytest.raises(UpstreamRefused, match="configuration"):
            await complete(stranger, QUESTION, GREEDY)
    assert process.supervisor.pid
    arguments, environment = (proc(process.supervisor.pid, file) for file in ("cmdline", "environ"))
    assert b"embedded_process" in arguments
    assert b"GOMP_SPINCOUNT=2000" in environment
    assert key.encode() not in arguments + environment
    assert b"\0PATH=" not in environment


async def test_ctrl_c_is_not_for_the_child_and_its_priority_counts(process: EmbeddedModel) -> None:
    pid = process.supervisor.pid
    assert pid
    assert os.getpgid(pid) == pid != os.getpgid(0)
    assert os.getsid(pid) == os.getsid(0)  # priorities of sessions may not be compared
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + LANES)


async def test_child_that_is_killed_comes_back(small_llm: Artefact) -> None:
    changes: list[bool] = []

    def note() -> None:
        changes.append(llm.ready)

    llm = embedded(small_llm, on_change=note)
    try:
        upstream = await llm.start()
        assert llm.supervisor.pid
        running = asyncio.create_task(complete(upstream, LONG, ChatOptions(max_output_tokens=400), deadline=soon()))
        before = cpu_seconds(llm.supervisor.pid)
        await until(lambda: cpu_seconds(llm.supervisor.pid or 0) > before + 0.05)
        os.kill(llm.supervisor.pid, signal.SIGKILL)
        with pytest.raises(UpstreamFailed):
            await running
        await until(lambda: not llm.ready)
        with pytest.raises(ModelLoading):
            await complete(upstream, QUESTION, GREEDY, deadline=soon())
        await until(lambda: llm.ready)
        assert (await complete(upstream, QUESTION, GREEDY, deadline=soon())).text
        assert changes == [True, False, True]
    finally:
        await llm.close()


@pytest.mark.parametrize("when", ["loading", "ready"])
def test_child_does_not_outlive_its_parent(small_llm: Artefact, models: Path, when: str) -> None:
    script = """
        import asyncio, sys
        from pathlib import Path
        from server.tasks.chat.circuit_breaker import CircuitBreaker
        from server.tasks.chat.embedded import EmbeddedModel
        from server.models.artefact import open_artefact
        async def main():
            artefact = open_artefact(Path(sys.argv[1]), "smollm2-135m-instruct")
            breaker = CircuitBreaker("embedded")
            model = EmbeddedModel(artefact, breaker, slots=1, context_tokens=512, token_seconds=20.0)
            start = asyncio.create_task(model.start())
            while not model.supervisor.pid:
                await asyncio.sleep(0.01)
            if sys.argv[2] == "ready":
                await start
            print(model.supervisor.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(models), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    give_up = time.monotonic() + 2.0
    while is_alive(child):
        assert time.monotonic() < give_up
        time.sleep(0.01)


async def test_broken_weights(small_llm: Artefact, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(small_llm.path / "tokenizer.json")
    (tmp_path / "model.gguf").write_bytes((small_llm.path / "model.gguf").read_bytes()[:1_000_000])
    model = embedded(replace(small_llm, path=tmp_path))
    with pytest.raises(ModelUnavailable, match="could not be started"):
        await model.start()
    await model.close()
