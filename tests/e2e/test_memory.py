"""Models that come and go: loaded when they are asked for, and evicted for others."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest

from tests.e2e.desk import Serve, States
from tests.e2e.test_bad_input import details

MIB = 2**20


async def test_an_unloaded_model_is_loaded_once_for_all_who_ask(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        assert (await desk.get()).state == States.MODEL_STATE_READY
        before = await desk.unload()
        assert (before.state, before.memory_bytes) == (States.MODEL_STATE_UNLOADED, 0)
        answers = await asyncio.gather(*(desk.classify() for _ in range(20)))
        assert {answer.model.version for answer in answers} == {"1"}
        after = await desk.get()
        assert (after.state, after.load_count) == (States.MODEL_STATE_READY, before.load_count + 1)
        assert (await desk.load()).load_count == after.load_count, "it is there already"
        assert (published / "tiny" / "1.use.json").is_file()


def pretend_use(models: Path, name: str, size: int) -> None:
    """As if loading it had once taken so much; what is measured later is less, and the largest counts."""
    use = {"resident_bytes": size, "peak_bytes": size, "seconds": 0.1}
    (models / name / "1.use.json").write_text(json.dumps({"recommended": use}))


async def test_the_budget_evicts_who_was_used_longest_ago(published: Path, serve: Serve) -> None:
    for name in ("tiny", "other"):
        pretend_use(published, name, 100 * MIB)
    async with serve(memory_budget=150 * MIB) as desk:
        assert await desk.version() == "1"
        assert await desk.version("other") == "1"
        assert (await desk.get()).state == States.MODEL_STATE_UNLOADED
        assert (await desk.get("other")).memory_bytes == 100 * MIB
        assert await desk.version() == "1"
        assert (await desk.get("other")).state == States.MODEL_STATE_UNLOADED


async def test_what_cannot_fit_is_refused_with_the_numbers(published: Path, serve: Serve) -> None:
    for name in ("tiny", "other"):
        pretend_use(published, name, 100 * MIB)
    async with serve(memory_budget=150 * MIB, tiny={"pinned": True}) as desk:
        assert (await desk.get()).pinned
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.classify("other")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = details(caught.value)["ErrorInfo"]
        assert info.reason == "MODEL_DOES_NOT_FIT"
        numbers = {key: int(info.metadata[key]) for key in ("needed", "budget", "in_use")}
        assert numbers == {"needed": 100 * MIB, "budget": 150 * MIB, "in_use": 100 * MIB}
        assert await desk.version() == "1"
