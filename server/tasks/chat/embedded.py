"""The embedded language model: a supervised llama.cpp process behind an ordinary upstream."""

import asyncio
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import server
from server.domain.models import ModelTask
from server.domain.threads import on_thread
from server.inference.supervised_process import Supervisor
from server.models.artefact import Artefact, unusable
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.control_tokens import ControlTokens

if TYPE_CHECKING:
    import openai

    from server.tasks.chat.openai_upstream import Upstream
    from server.tasks.chat.tokens import TokenizerCounter

# All that the child needs, and none of the server's secrets. libgomp's threads wait for each other by spinning: without
# a limit that is ten times slower as soon as another process wants a core, without spinning a third slower on an idle
# machine.
_ENVIRONMENT = {
    "PYTHONPATH": str(Path(server.__path__[0]).parent),
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2000",
}


@dataclass(eq=False, repr=False)
class EmbeddedModel:
    """Serves an artefact's model.gguf between start() and close(), to be asked through its upstream.

    It answers `slots` calls at once, each with `context_tokens` of context. `on_change` is called when `ready` changes.
    """

    artefact: Artefact
    breaker: CircuitBreaker
    _: KW_ONLY
    slots: int
    context_tokens: int
    token_seconds: float
    on_change: Callable[[], None] = lambda: None
    upstream: "Upstream | None" = field(default=None, init=False)  # once it is started

    def __post_init__(self) -> None:
        name = self.artefact.manifest.name
        self._key = secrets.token_urlsafe(32)
        self.supervisor = Supervisor(
            f'model "{name}"',
            [sys.executable, "-P", "-m", "server.tasks.chat.embedded_process"],
            {
                "model_path": str((self.artefact.path / "model.gguf").resolve()),
                "model_name": name,
                "api_key": self._key,
                "slots": self.slots,
                "slot_tokens": self.context_tokens,
                "threads": len(os.sched_getaffinity(0)),
            },
            environment=_ENVIRONMENT,
            on_change=self._moved,
        )

    @property
    def ready(self) -> bool:
        """False while the process is being restarted."""
        return self.supervisor.address is not None

    async def start(self) -> "Upstream":
        """Return when the model is loaded. Raises ModelUnavailable if it cannot be. Call it on the main thread."""
        starting = asyncio.create_task(self.supervisor.start())
        try:
            # Importing the SDK and reading the tokenizer take as long as the process takes to load the model.
            self.upstream = upstream = await on_thread("upstream", self._make_upstream)
            await starting
        finally:
            starting.cancel()
        self._point_upstream()
        return upstream

    async def close(self) -> None:
        await self.supervisor.stop()
        if self.upstream:
            await self.upstream.endpoint.client.close()

    def _make_upstream(self) -> "Upstream":
        from server.tasks.chat.endpoint import Endpoint
        from server.tasks.chat.openai_upstream import Upstream, limiter_of

        counter = read_counter(self.artefact)
        description = self.artefact.describe(ModelTask.CHAT, "llama.cpp", max_input_tokens=self.context_tokens)
        return Upstream(
            description,
            Endpoint(client_of("http://127.0.0.1/v1", self._key), description.identity.name),
            limiter_of(self.slots),
            counter,
            self.breaker,
            token_seconds=self.token_seconds,
            is_ready=lambda: self.ready,
            prepared=ControlTokens(counter.control_tokens).neutralised,
        )

    def _moved(self) -> None:
        self._point_upstream()
        self.on_change()

    def _point_upstream(self) -> None:
        if self.upstream and self.supervisor.address:
            self.upstream.endpoint.client.base_url = f"http://{self.supervisor.address}/v1"


def client_of(base_url: str, key: str) -> "openai.AsyncOpenAI":
    import openai

    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key,
        # llama.cpp closes the connection after a stream although its headers keep it: ask it to.
        default_headers={"Connection": "close"},
        max_retries=0,
        # A proxy cannot reach this machine's loopback.
        http_client=openai.DefaultAsyncHttpxClient(timeout=openai.Timeout(None, connect=5.0), trust_env=False),
    )


def read_counter(artefact: Artefact) -> "TokenizerCounter":
    """The tokenizer of an artefact with its chat template. Blocks for a second. Raises ModelUnavailable."""
    from server.tasks.chat.tokens import TokenizerCounter

    path, frame = artefact.part("tokenizer.json"), artefact.schema("frame")
    try:
        return TokenizerCounter(path, frame)
    except (OSError, ValueError, TypeError) as error:
        raise unusable(artefact.manifest.name, "its tokenizer cannot be read") from error
