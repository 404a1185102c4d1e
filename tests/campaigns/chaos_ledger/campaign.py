"""One campaign: two providers, one server that is ended three times, the traffic, and the comparison."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from quintet.v1 import usage_pb2, usage_pb2_grpc
from quintet_client import AsyncQuintetClient, Document
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tests.campaigns.chaos_ledger.books import Books, compare
from tests.campaigns.chaos_ledger.provider import Provider
from tests.campaigns.chaos_ledger.traffic import COLLECTION, Sent, send
from tests.conftest import ServerProcess, start_server, wait_ready

SETTLED_SECONDS = 90.0  # within which the next server marks the rows of a killed one as lost
PROMPT_MICROS, COMPLETION_MICROS = 3, 12  # for a token: whole millionths, so that sums have no rounding in them
_NOT_NEEDED = ("sentiment", "topics", "house-prices", "en_core_web_sm", "lid.176")  # the campaign restarts often
_PROVIDERS = """\
price_table = "campaign-1"
currency = "USD"

[providers.first]
kind = "openai"
base_url = "{first.base_url}"
api_key_file = "first.key"
concurrency = 64

[providers.first.models.words]
tokenizer = "words.json"
context_tokens = 8192
prompt_price = "3.00"
completion_price = "12.00"

[providers.second]
kind = "openai"
base_url = "{second.base_url}"
api_key_file = "second.key"
concurrency = 64

[providers.second.models.words]
tokenizer = "words.json"
context_tokens = 8192
prompt_price = "3.00"
completion_price = "12.00"

[routes]
default = ["first/words", "second/words"]

"""


class Deployment:
    """The files of the server under test, and the server, which always restarts on the same port."""

    def __init__(self, folder: Path, models: Path, first: Provider, second: Provider) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._data.mkdir()
        (self._data / "models").symlink_to(models.resolve())
        for provider in (first, second):
            (folder / f"{provider.name}.key").write_text(provider.key)
        words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # any word is a token, as the providers count
        words.pre_tokenizer = WhitespaceSplit()
        words.save(str(folder / "words.json"))
        (folder / "providers.toml").write_text(_PROVIDERS.format(first=first, second=second))
        self.caller = self._new_key("campaign", "call", "ingest")
        self.admin = self._new_key("books", "admin")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self.server: ServerProcess | None = None

    def _new_key(self, tenant: str, *roles: str) -> str:
        command = [sys.executable, "-m", "quintet_client", "tenants", "add", tenant]
        command += [f"--role={role}" for role in roles] + [f"--file={self._folder / 'tenants.toml'}"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    def start(self) -> None:
        """Start the server and return when it serves."""
        self.server = start_server(
            self._data,
            self._folder / "log.txt",
            port=str(self._port),
            tenants=str(self._folder / "tenants.toml"),
            llm="off",
            models=json.dumps({name: {"preload": False} for name in _NOT_NEEDED}),
            providers=str(self._folder / "providers.toml"),
            shutdown_grace_seconds="2",
            log_level="WARNING",
        )
        wait_ready(self.address, "quintet.v1.RagService")

    async def restart(self, *, kill: bool) -> None:
        """End the server politely or not, and start it again."""
        assert self.server is not None
        if kill:
            self.server.process.kill()
        else:
            self.server.process.terminate()
        await asyncio.to_thread(self.server.process.wait, 30)
        await asyncio.to_thread(self.start)

    def stop(self) -> None:
        """End the server for good."""
        if self.server is not None:
            self.server.stop()


async def run(
    folder: Path, models: Path, calls: int, seed: int, *, report: Callable[[str], None]
) -> tuple[Books, Sent]:
    """Carry it out below `folder`: the server is restarted after a quarter and three quarters, killed after half."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Provider("first", seed, misbehaves=True).running())
        second = await stack.enter_async_context(Provider("second", seed + 1, misbehaves=False).running())
        deployment = await asyncio.to_thread(Deployment, folder, models, first, second)
        stack.callback(deployment.stop)
        await asyncio.to_thread(deployment.start)
        async with AsyncQuintetClient(deployment.address, api_key=deployment.caller) as client:
            await client.add_documents(COLLECTION, [Document(id="1", title="Words", text="word word word")])
        ends = {calls // 4: False, calls // 2: True, calls * 3 // 4: False}

        async def on_call(number: int) -> None:
            if number in ends:
                report(f"{number} of {calls} calls: the server is {'killed' if ends[number] else 'restarted'}")
                await deployment.restart(kill=ends[number])
            elif number % 500 == 0:
                report(f"{number} of {calls} calls")

        sent = await send(deployment.address, deployment.caller, calls, seed, on_call)
        records = await settled(deployment)
        prices = dict.fromkeys(("first", "second"), (PROMPT_MICROS, COMPLETION_MICROS))
        return compare(records, {"first": first, "second": second}, sent, prices), sent


async def settled(deployment: Deployment) -> list[usage_pb2.UsageRecord]:
    """All rows, once none is open any more, or when it takes too long: the comparison will say so."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLED_SECONDS
    while True:
        records = await _records(deployment)
        if loop.time() > until or not any(record.outcome == usage_pb2.USAGE_OUTCOME_OPEN for record in records):
            return records
        await asyncio.sleep(0.5)


async def _records(deployment: Deployment) -> list[usage_pb2.UsageRecord]:
    records: list[usage_pb2.UsageRecord] = []
    wanted = usage_pb2.ListUsageRequest(filter=usage_pb2.UsageFilter(tenant="campaign"), page_size=1000)
    metadata = (("authorization", f"Bearer {deployment.admin}"),)
    async with grpc.aio.insecure_channel(deployment.address) as channel:
        while True:
            page = await usage_pb2_grpc.UsageServiceStub(channel).ListUsage(wanted, timeout=10, metadata=metadata)
            records += page.records
            if not page.next_page_token:
                return records
            wanted.page_token = page.next_page_token
