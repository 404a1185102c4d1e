"""A server process with limits and next to nothing behind them: python -m tests.limited_server URL REPLICAS LIMITS.

URL is that of Redis. LIMITS are JSON, those of the one tenant. It prints its address, and ends when its input ends.
Every classification takes as many milliseconds as its first text says. The first message of a chat is how many tokens
it reserves, the second how many it spends.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2, classification_pb2_grpc

from server.domain.access import Caller
from server.domain.context import current
from server.domain.money import Cost
from server.rpc.admission import Admission
from server.rpc.pipeline import Registrar
from server.rpc.tenant_limits import TenantLimits
from server.tenancy.limits.limiter import open_limiter
from server.tenancy.tenants import Limits, Tenant
from tests.tenants import nothing_spent

CHAT = "/quintet.v1.ChatService/Chat"


def identify(method: str, metadata: Any, context: Any) -> Caller:
    """Every caller is the tenant acme."""
    return Caller("acme")


class Classification(classification_pb2_grpc.ClassificationServiceServicer):
    async def Classify(self, request: Any, context: Any) -> classification_pb2.ClassifyResponse:
        await asyncio.sleep(int(request.texts[0]) / 1000)
        return classification_pb2.ClassifyResponse()


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """The messages say what is reserved and what is spent."""

    async def Chat(self, request: Any, context: Any) -> chat_pb2.ChatResponse:
        current().spent_tokens = int(request.messages[1].content)
        return chat_pb2.ChatResponse()

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        yield chat_pb2.StreamChatResponse()


def estimate(request: Any) -> Cost:
    return Cost(int(request.messages[0].content))


async def serve(redis_url: str, replicas: str, limits: str) -> None:
    tenant = Tenant("acme", frozenset(), limits=Limits(**json.loads(limits)))
    async with open_limiter(redis_url or None, int(replicas), nothing_spent) as limiter:
        tenant_limits = TenantLimits(limiter, {"acme": tenant}.get, {CHAT: estimate})
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        admission = Admission(5000, 10.0, max_wait_seconds=100.0, lanes=1)
        registrar: Any = Registrar(server, admission, 1 << 20, identify=identify, limits=tenant_limits)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(Classification(), registrar)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(Chat(), registrar)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the test closes it
        await server.stop(1.0)


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
