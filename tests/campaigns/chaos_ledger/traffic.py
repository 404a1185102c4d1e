"""The calls of the campaign: four methods, of which some are cancelled, some come too late and some come twice."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
from quintet.v1 import chat_pb2, chat_pb2_grpc, common_pb2, rag_pb2, rag_pb2_grpc

from tests.campaigns.chaos_ledger.provider import Manner

COLLECTION = "campaign"
CALLERS = 32  # at most: a small campaign has a tenth of its calls, or those that run would be most of it
METHODS = ("Chat", "StreamChat", "Ask", "StreamAsk")
MANNERS = {
    Manner.WELL: 60,
    Manner.NO_USAGE: 8,
    Manner.WRONG_USAGE: 4,
    Manner.CUT: 8,
    Manner.BROKEN: 8,
    Manner.FULL: 6,
    Manner.HANG_UP: 6,
}
CANCELLED, LATE, REPEATED = 0.25, 0.05, 0.05  # shares of the calls
_SECONDS = 30.0


@dataclass
class Sent:
    """What became of the calls. `usages` has the usage that callers got, by call, for those that succeeded."""

    attempts: Counter[str] = field(default_factory=Counter)  # by call
    codes: Counter[str] = field(default_factory=Counter)
    usages: dict[str, list[common_pb2.Usage]] = field(default_factory=dict)
    done: int = 0


async def send(address: str, key: str, calls: int, seed: int, on_call: Callable[[int], Awaitable[None]]) -> Sent:
    """Send `calls` calls from many callers at once. `on_call` is awaited before each, with how many came before."""
    sent, numbers = Sent(), iter(range(calls))
    lock = asyncio.Lock()

    async def work(channel: grpc.aio.Channel) -> None:
        for number in numbers:
            async with lock:  # the call that restarts the server holds back the others
                await on_call(number)
            await _call(channel, key, f"call-{seed}-{number}", random.Random(seed * 1_000_003 + number), sent)
            sent.done += 1

    # A channel a caller: calls that share one would all wait for its back-off after a restart.
    options = (("grpc.max_reconnect_backoff_ms", 500), ("grpc.use_local_subchannel_pool", 1))
    async with contextlib.AsyncExitStack() as stack:
        callers = min(CALLERS, max(1, calls // 10))
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(callers)
        ]
        await asyncio.gather(*map(work, channels))
    return sent


async def _call(channel: grpc.aio.Channel, key: str, name: str, chance: random.Random, sent: Sent) -> None:
    method = chance.choice(METHODS)
    manner = chance.choices(list(MANNERS), list(MANNERS.values()))[0]
    cancel_after = chance.uniform(0.0, 0.25) if chance.random() < CANCELLED else None
    seconds = chance.uniform(0.02, 0.2) if chance.random() < LATE else _SECONDS
    text = f"{'word ' * chance.randint(0, 40)}{name} {manner}"
    metadata = (("authorization", f"Bearer {key}"), ("x-request-id", name))
    for _ in range(2 if chance.random() < REPEATED else 1):
        sent.attempts[name] += 1
        call = asyncio.create_task(_usage(channel, method, text, seconds, metadata))
        if cancel_after is not None:
            await asyncio.wait({call}, timeout=cancel_after)
            call.cancel()
        try:
            sent.usages.setdefault(name, []).append(await call)
            sent.codes["OK"] += 1
        except asyncio.CancelledError:
            sent.codes["CANCELLED"] += 1
            return
        except grpc.aio.AioRpcError as error:
            sent.codes[error.code().name] += 1
            return


async def _usage(
    channel: grpc.aio.Channel, method: str, text: str, seconds: float, metadata: tuple[tuple[str, str], ...]
) -> common_pb2.Usage:
    """Make one call to its end and return the usage that it got.

    It waits for the server: failing until its channel has connected again would use up the calls that come next.
    """
    messages = [chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, content=text)]
    chat, rag = chat_pb2_grpc.ChatServiceStub(channel), rag_pb2_grpc.RagServiceStub(channel)
    if method == "Chat":
        conversation = chat_pb2.ChatRequest(messages=messages, max_output_tokens=64)
        return (await chat.Chat(conversation, timeout=seconds, metadata=metadata, wait_for_ready=True)).usage
    if method == "Ask":
        asked = rag_pb2.AskRequest(question=text, collection=COLLECTION)
        return (await rag.Ask(asked, timeout=seconds, metadata=metadata, wait_for_ready=True)).usage
    usage = common_pb2.Usage()
    if method == "StreamChat":
        request = chat_pb2.StreamChatRequest(messages=messages, max_output_tokens=64)
        async for said in chat.StreamChat(request, timeout=seconds, metadata=metadata, wait_for_ready=True):
            usage = said.done.usage if said.HasField("done") else usage
    else:
        question = rag_pb2.StreamAskRequest(question=text, collection=COLLECTION)
        async for event in rag.StreamAsk(question, timeout=seconds, metadata=metadata, wait_for_ready=True):
            usage = event.done.usage if event.HasField("done") else usage
    return usage
