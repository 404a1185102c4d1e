"""Both clients against a real server: every method, what is sent, health, keys."""

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

import pytest
from quintet.v1 import pricing_pb2, rag_pb2
from quintet_client import AsyncQuintetClient, House, QuintetClient, errors
from quintet_client.cli.price import EXAMPLE

from tests.clients.small_server import SmallServer, running
from tests.waiting import until

DOCUMENT = {"id": "1", "text": "The office closes at six.", "metadata": {"by": "me"}}

# Every method, with what to call it with and the deadline in seconds that is sent to the server.
CALLS: list[tuple[str, tuple[Any, ...], str, float]] = [
    ("classify", (["I love it"],), "Classify", 10),
    ("predict_price", ([EXAMPLE],), "PredictPrice", 10),
    ("chat", ("hello",), "Chat", 120),
    ("stream_chat", ("hello",), "StreamChat", 120),
    ("ask", ("six?",), "Ask", 120),
    ("stream_ask", ("six?",), "StreamAsk", 120),
    ("retrieve", ("six",), "Retrieve", 10),
    ("add_documents", ("notes", [DOCUMENT]), "AddDocuments", 300),
    ("delete_documents", ("notes", ["1"]), "DeleteDocuments", 300),
    ("import_documents", ("notes", [DOCUMENT]), "ImportDocuments", 86_400),
    ("list_documents", ("notes",), "ListDocuments", 10),
    ("get_index", ("notes",), "GetIndex", 10),
    ("create_collection", ("new",), "CreateCollection", 10),
    ("delete_collection", ("notes",), "DeleteCollection", 300),
    ("list_collections", (), "ListCollections", 10),
    ("list_generations", ("notes",), "ListGenerations", 10),
    ("rollback", ("notes", 1), "Rollback", 300),
    ("compact", ("notes",), "Compact", 300),
    ("reindex", ("notes",), "Reindex", 86_400),
    ("analyze", ("Ada was here.", ["entities"]), "Analyze", 10),
    ("stream_analyze", ("Ada was here.", ["entities"]), "StreamAnalyze", 10),
    ("list_models", (), "ListModels", 10),
    ("get_model", ("topics",), "GetModel", 10),
    ("server_info", (), "GetServerInfo", 10),
    ("get_usage", (), "GetUsage", 10),
    ("list_usage", (), "ListUsage", 10),
    ("watch_usage", (), "WatchUsage", 86_400),
]
NAMES = [call[0] for call in CALLS]


def finish(result: Any) -> Any:
    """A response, or a stream's responses as a list."""
    return list(result) if inspect.isgenerator(result) else result


async def finish_async(result: Any) -> Any:
    return [each async for each in result] if inspect.isasyncgen(result) else await result


@pytest.mark.parametrize(("name", "arguments", "method", "seconds"), CALLS, ids=NAMES)
async def test_both_clients_send_the_same(
    server: SmallServer, name: str, arguments: tuple[Any, ...], method: str, seconds: float
) -> None:
    def begin() -> None:
        server.rag.collections = {"notes": {"0": rag_pb2.Document(id="0", text="kept")}}
        server.rag.generation = 0

    begin()
    with QuintetClient(server.address) as client:
        received = finish(getattr(client, name)(*arguments))
    begin()
    async with AsyncQuintetClient(server.address) as async_client:
        received_async = await finish_async(getattr(async_client, name)(*arguments))
    first, second = (call for call in server.recorder.seen if call.method == method)
    assert received == received_async
    assert first.request == second.request
    for call in (first, second):
        # gRPC rounds a deadline up on its way, by less than a part in a hundred.
        assert seconds - 2 < call.seconds < seconds * 1.01 + 2
        assert len(call.metadata["x-request-id"]) == 32
        assert "authorization" not in call.metadata


def test_both_clients_have_the_same_methods() -> None:
    for name, method in inspect.getmembers(QuintetClient, inspect.isfunction):
        if not name.startswith("_"):
            twin = getattr(AsyncQuintetClient, name)
            assert inspect.signature(method).parameters == inspect.signature(twin).parameters
            assert method.__doc__ == twin.__doc__
    assert {name for name, _ in inspect.getmembers(QuintetClient, inspect.isfunction)} >= set(NAMES)


def test_conversations_and_options(server: SmallServer) -> None:
    with QuintetClient(server.address) as client:
        client.chat(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            model="m",
            max_output_tokens=5,
            temperature=0.0,
            top_p=None,
            stop="END",
            seed=-1,
        )
    request: Any = server.recorder.seen[0].request
    assert [(turn.role, turn.content) for turn in request.messages] == [(1, "Be brief."), (2, "Hello")]
    assert (request.model, request.max_output_tokens, request.temperature, request.seed) == ("m", 5, 0, -1)
    assert request.HasField("temperature")
    assert not request.HasField("top_p")
    assert list(request.stop) == ["END"]


def without(house: House, *names: str) -> dict[str, object]:
    return {name: value for name, value in house.items() if name not in names}


@pytest.mark.parametrize(
    ("house", "field", "description"),
    [
        (without(EXAMPLE, "garage_cars"), "houses[1].garage_cars", "is missing"),
        ({**EXAMPLE, "fireplaces": None}, "houses[1].fireplaces", "is missing"),
        ({**EXAMPLE, "fire_places": 1}, "houses[1].fire_places", 'is not a field; did you mean "fireplaces"?'),
        ({**EXAMPLE, "bedrooms": 2.5}, "houses[1].bedrooms", "must be a whole number, 0 or more"),
        ({**EXAMPLE, "bedrooms": -1}, "houses[1].bedrooms", "must be a whole number, 0 or more"),
        ({**EXAMPLE, "bedrooms": True}, "houses[1].bedrooms", "must be a whole number, 0 or more"),
        ({**EXAMPLE, "lot_area_sqft": "large"}, "houses[1].lot_area_sqft", "must be a number"),
        ({**EXAMPLE, "lot_area_sqft": float("nan")}, "houses[1].lot_area_sqft", "must be a number"),
        ({**EXAMPLE, "central_air": "Y"}, "houses[1].central_air", "must be true or false"),
        ({**EXAMPLE, "neighborhood": 7}, "houses[1].neighborhood", "must be a text"),
    ],
)
def test_invalid_houses_are_not_sent(
    server: SmallServer, house: Mapping[str, object], field: str, description: str
) -> None:
    with QuintetClient(server.address) as client, pytest.raises(errors.InvalidRequest) as raised:
        client.predict_price([EXAMPLE, house])
    assert raised.value.violations == ((field, description),)
    assert server.recorder.seen == []


def test_houses_have_the_fields_of_the_contract() -> None:
    names = [field.name for field in pricing_pb2.House.DESCRIPTOR.fields]
    assert list(House.__annotations__) == list(EXAMPLE) == names


def test_unknown_tasks_roles_and_missing_fields_are_not_sent(server: SmallServer) -> None:
    with QuintetClient(server.address) as client:
        with pytest.raises(errors.InvalidRequest, match=r"tasks\[1\]: must be one of entities"):
            client.analyze("hello", ["syntax", "mood"])  # type: ignore[list-item]
        with pytest.raises(errors.InvalidRequest, match=r"messages\[0\]\.role: must be one of system"):
            client.chat([{"role": "bot", "content": "hello"}])  # type: ignore[typeddict-item]
        with pytest.raises(errors.InvalidRequest, match=r"documents\[0\]\.text: is missing"):
            client.add_documents("notes", [{"id": "1"}])
    assert server.recorder.seen == []


async def test_health(server: SmallServer) -> None:
    server.set_health("quintet.v1.RagService", False)
    async with AsyncQuintetClient(server.address) as async_client:
        with QuintetClient(server.address) as client:
            for service, state in [
                ("", "SERVING"),
                ("ready", "SERVING"),
                ("quintet.v1.RagService", "NOT_SERVING"),
                ("no-such", "SERVICE_UNKNOWN"),
            ]:
                assert client.health(service) == await async_client.health(service) == state


async def test_waiting_until_the_server_is_ready(server: SmallServer) -> None:
    server.set_health("ready", False)
    async with AsyncQuintetClient(server.address) as client:
        waiting = asyncio.create_task(client.wait_ready(10))
        await until(lambda: server.recorder.seen)
        assert not waiting.done()
        server.set_health("ready", True)
        await asyncio.wait_for(waiting, 5)
    server.set_health("ready", False)
    with QuintetClient(server.address) as sync_client, pytest.raises(errors.DeadlineExceeded, match="NOT_SERVING"):
        sync_client.wait_ready(0.3)


def test_waiting_for_a_server_that_is_not_there_yet() -> None:
    with running() as first:
        address = first.address
    with QuintetClient(address) as client:
        with pytest.raises(errors.DeadlineExceeded, match=r"ready is not serving after 0\.5 s"):
            client.wait_ready(0.5)
        with running(port=int(address.split(":")[1])):
            client.wait_ready(10)


def test_the_environment_gives_defaults(server: SmallServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_ADDRESS", server.address)
    monkeypatch.setenv("QUINTET_API_KEY", "sesame\n")
    with QuintetClient() as client:
        client.list_models()
    with QuintetClient(api_key="other") as client:
        client.list_models()
    monkeypatch.delenv("QUINTET_ADDRESS")
    assert QuintetClient().address == "127.0.0.1:50051"
    assert [call.metadata["authorization"] for call in server.recorder.seen] == ["Bearer sesame", "Bearer other"]


async def test_the_key_is_shown_nowhere(server: SmallServer) -> None:
    for client in (QuintetClient(api_key="sesame"), AsyncQuintetClient(api_key="sesame")):
        assert "sesame" not in repr(client) + repr(vars(client))
    for bad in ("se same", "sésame", "sesame\nx-admin: 1"):
        with pytest.raises(ValueError, match="API key must be printable") as raised:
            QuintetClient(api_key=bad)
        assert "same" not in str(raised.value).replace("API key", "")


def test_a_text_alone_is_one_text(server: SmallServer) -> None:
    with QuintetClient(server.address) as client:
        assert len(client.classify("I love it").results) == 1
        client.delete_documents("notes", "an-id")
    request: Any = server.recorder.seen[1].request
    assert list(request.document_ids) == ["an-id"]
