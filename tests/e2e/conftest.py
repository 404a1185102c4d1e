"""A server with small real models, for the tests of replacing them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.app import running
from server.settings import Settings
from tests.e2e.desk import Desk, Serve
from tests.tiny_models import add


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def start(*, tiny: dict[str, Any] | None = None, **changes: Any) -> AsyncIterator[Desk]:
        settings = Settings(
            port=0,
            data=tmp_path,
            llm="off",
            shutdown_pause_seconds=0,
            models={"tiny": tiny or {}, "other": {"preload": False}},
            **changes,
        )
        async with AsyncExitStack() as channels:  # they outlive the server, so that its last words are heard
            async with running(settings) as app:
                channel = await channels.enter_async_context(grpc.aio.insecure_channel(app.address))
                await app.loaded()
                desk = Desk(channel, tmp_path / "models")
                yield desk
            if desk.hearing:
                await desk.hearing

    (tmp_path / "models").mkdir()
    return start


@pytest.fixture
def published(tmp_path: Path, serve: Serve) -> Path:
    """Version 1 of both models."""
    models = tmp_path / "models"
    add(models, "1")
    add(models, "1", name="other")
    return models
