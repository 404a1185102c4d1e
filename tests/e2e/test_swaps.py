"""Models that are replaced while they are served: a real server, a real channel, small real models."""

import asyncio
from pathlib import Path

import grpc
import pytest

from tests.e2e.desk import Serve, States, damage, published_aside, reason


async def test_aliases_flip_and_roll_back(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        first = await desk.classify()
        await published_aside(published, "2", alias="candidate")
        assert (await desk.get()).aliases == {"current": "1", "candidate": "2"}
        flipped = await desk.alias("candidate")
        assert (flipped.ref.version, flipped.aliases["previous"]) == ("2", "1")
        second = await desk.classify()
        assert second.model.version == "2"
        assert second.results[0].labels[0].score != first.results[0].labels[0].score
        await desk.alias("previous")
        assert (await desk.classify()) == first
        await desk.alias("2", alias="candidate")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.alias("7")
        assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.NOT_FOUND, "MODEL_VERSION_NOT_FOUND")


async def test_other_golden_outputs_refuse_the_flip_unless_forced(published: Path, serve: Serve) -> None:
    await published_aside(published, "2", alias="candidate", wrong_by=0.02)
    async with serve() as desk:
        for is_loaded in (True, False):
            if not is_loaded:
                await desk.unload()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await desk.alias("candidate")
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason(caught.value) == "MODEL_CHECK_FAILED"
            assert "0.02 off, 0.001 is allowed" in str(caught.value.details())
            assert (published / "tiny" / "current").read_text() == "1\n"
            assert await desk.version() == "1"
        kept = await desk.get()
        assert kept.failed_load_count == 2
        forced = await desk.alias("candidate", force=True)
        assert (forced.ref.version, forced.state) == ("2", States.MODEL_STATE_READY)
        assert "gives another output" in forced.state_message


async def test_a_pointer_moved_by_another_process_is_followed(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        await published_aside(published, "2")
        await desk.serves("2")
        (published / "tiny" / "current").write_text("1")  # by hand
        await desk.serves("1")


async def test_a_damaged_version_replaces_nothing(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        damage(await published_aside(published, "2", alias="candidate"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.alias("candidate")
        assert reason(caught.value) == "MODEL_UNAVAILABLE"
        assert "model.onnx does not match its SHA-256" in str(caught.value.details())
        damage(published / "tiny" / "1")
        with pytest.raises(grpc.aio.AioRpcError):
            await desk.reload()
        kept = await desk.get()
        assert (kept.state, kept.failed_load_count) == (States.MODEL_STATE_READY, 2)
        assert "another version was not loaded" in kept.state_message
        assert await desk.version() == "1", "what is in memory is whole"


async def test_the_last_good_version_stands_in_for_a_damaged_one(published: Path, serve: Serve) -> None:
    damage(await published_aside(published, "2"))
    async with serve() as desk:
        found = await desk.get()
        assert (found.ref.version, found.state) == ("1", States.MODEL_STATE_READY)
        assert "does not match its SHA-256" in found.state_message
        assert "version 1 is served, the last good one" in found.state_message
        await published_aside(published, "3")
        await desk.serves("3")
        assert (await desk.get()).state_message == ""


async def test_a_failed_model_comes_back_when_it_is_published(serve: Serve, tmp_path: Path) -> None:
    models = tmp_path / "models"
    async with serve() as desk:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.classify()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (await desk.get()).state == States.MODEL_STATE_FAILED
        await published_aside(models, "1")
        async with asyncio.timeout(10):
            while (await desk.get()).state != States.MODEL_STATE_READY:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.05)
        assert await desk.version() == "1"


async def test_nobody_notices_a_swap(published: Path, serve: Serve) -> None:
    await published_aside(published, "2", alias="candidate")
    async with serve() as desk:
        wanted = {"1": (await desk.classify()).results}
        await desk.alias("2")
        wanted["2"] = (await desk.classify()).results
        done = asyncio.Event()
        seen: set[str] = set()

        async def read() -> None:
            while not done.is_set():
                answer = await desk.classify()
                assert answer.results == wanted[answer.model.version]
                seen.add(answer.model.version)

        readers = [asyncio.create_task(read()) for _ in range(4)]
        for target in ("1", "2") * 4:
            await desk.alias(target)
        done.set()
        await asyncio.gather(*readers)
        assert seen == {"1", "2"}
