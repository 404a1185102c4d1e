"""Bad input gets a precise status with the paths of the fields, and nothing leaks."""

from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from quintet.v1 import (
    analysis_pb2,
    chat_pb2,
    chat_pb2_grpc,
    classification_pb2,
    model_pb2,
    pricing_pb2,
    rag_pb2,
)

from tests.e2e.tasks import HOUSE, conversation

Classify = classification_pb2.ClassifyRequest
Chat = chat_pb2.ChatRequest
ROLE_9 = cast("chat_pb2.ChatRole.ValueType", 9)
TASK_99 = cast("analysis_pb2.AnalysisTask.ValueType", 99)


def house(**changes: Any) -> pricing_pb2.PredictPriceRequest:
    changed = pricing_pb2.House()
    changed.CopyFrom(HOUSE)
    for name, value in changes.items():
        setattr(changed, name, value)
    return pricing_pb2.PredictPriceRequest(houses=[HOUSE, changed])


def without(field: str) -> pricing_pb2.PredictPriceRequest:
    request = house()
    request.houses[1].ClearField(cast("Any", field))
    return request


def call(channel: grpc.Channel, method: str, payload: bytes, **options: Any) -> grpc.RpcError:
    """Send raw bytes; return the error. Fails if there is none."""
    invoke: Any = channel.unary_unary(f"/quintet.v1.{method}")
    with pytest.raises(grpc.RpcError) as caught:
        invoke(payload, timeout=30, **options)
    return caught.value


_DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.QuotaFailure,
)


def details(error: grpc.RpcError) -> dict[str, Any]:
    """The google.rpc details of an error by message name."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in _DETAILS}
    found = {}
    for packed in status.details:
        message = kinds[packed.type_url.rpartition("/")[2]]()
        packed.Unpack(message)
        found[message.DESCRIPTOR.name] = message
    return found


CASES = [
    ("ClassificationService/Classify", Classify(), "texts"),
    ("ClassificationService/Classify", Classify(texts=["ok", ""]), "texts[1]"),
    ("ClassificationService/Classify", Classify(texts=["ok", " \t\n\u3000\u200b"]), "texts[1]"),
    ("ClassificationService/Classify", Classify(texts=["é" * 501]), "texts[0]"),
    ("ClassificationService/Classify", Classify(texts=["a"] * 65), "texts"),
    ("ClassificationService/Classify", Classify(texts=["a"], top_k=0), "top_k"),
    ("ClassificationService/Classify", Classify(texts=["a"], top_k=21), "top_k"),
    ("ClassificationService/Classify", Classify(texts=["a"], model=""), "model"),
    ("PricingService/PredictPrice", pricing_pb2.PredictPriceRequest(), "houses"),
    ("PricingService/PredictPrice", house(lot_area_sqft=float("nan")), "houses[1].lot_area_sqft"),
    ("PricingService/PredictPrice", house(lot_area_sqft=float("inf")), "houses[1].lot_area_sqft"),
    ("PricingService/PredictPrice", house(overall_quality=11), "houses[1].overall_quality"),
    ("PricingService/PredictPrice", house(year_remodeled=1950), "houses[1].year_remodeled"),
    ("PricingService/PredictPrice", house(neighborhood="Atlantis"), "houses[1].neighborhood"),
    ("PricingService/PredictPrice", house(kitchen_quality=""), "houses[1].kitchen_quality"),
    ("PricingService/PredictPrice", without("basement_area_sqft"), "houses[1].basement_area_sqft"),
    ("PricingService/PredictPrice", without("central_air"), "houses[1].central_air"),
    ("ChatService/Chat", Chat(), "messages"),
    ("ChatService/Chat", Chat(messages=[chat_pb2.ChatMessage(content="hi")]), "messages[0].role"),
    ("ChatService/Chat", Chat(messages=[chat_pb2.ChatMessage(role=ROLE_9, content="hi")]), "messages[0].role"),
    ("ChatService/Chat", Chat(messages=conversation("x" * 8001)), "messages[0].content"),
    ("ChatService/Chat", Chat(messages=conversation("x" * 8000) * 5), "messages"),
    ("ChatService/Chat", Chat(messages=conversation("hi"), temperature=float("nan")), "temperature"),
    ("ChatService/Chat", Chat(messages=conversation("hi"), top_p=0), "top_p"),
    ("ChatService/Chat", Chat(messages=conversation("hi"), max_output_tokens=4097), "max_output_tokens"),
    ("ChatService/Chat", Chat(messages=conversation("hi"), stop=["a", ""]), "stop[1]"),
    ("RagService/Ask", rag_pb2.AskRequest(question=" "), "question"),
    ("RagService/Ask", rag_pb2.AskRequest(question="x" * 1001), "question"),
    ("RagService/Retrieve", rag_pb2.RetrieveRequest(query="x", collection="../etc"), "collection"),
    ("RagService/Retrieve", rag_pb2.RetrieveRequest(query="x", top_k=101), "top_k"),
    (
        "RagService/Retrieve",
        rag_pb2.RetrieveRequest(query="x", filters=[rag_pb2.MetadataFilter(key="k")]),
        "filters[0].condition",
    ),
    (
        "RagService/Retrieve",
        rag_pb2.RetrieveRequest(query="x", filters=[rag_pb2.MetadataFilter(key="k", text_range=rag_pb2.TextRange())]),
        "filters[0].text_range",
    ),
    (
        "RagService/Ask",
        rag_pb2.AskRequest(
            question="x",
            filters=[rag_pb2.MetadataFilter(key="k", number_range=rag_pb2.NumberRange(at_most=float("nan")))],
        ),
        "filters[0].number_range.at_most",
    ),
    ("RagService/CreateCollection", rag_pb2.CreateCollectionRequest(), "collection"),
    ("RagService/ListDocuments", rag_pb2.ListDocumentsRequest(page_size=1001), "page_size"),
    ("RagService/AddDocuments", rag_pb2.AddDocumentsRequest(collection="c"), "documents"),
    (
        "RagService/AddDocuments",
        rag_pb2.AddDocumentsRequest(collection="c", documents=[rag_pb2.Document(id="a", text="t" * 200_001)]),
        "documents[0].text",
    ),
    (
        "RagService/AddDocuments",
        rag_pb2.AddDocumentsRequest(collection="c", documents=[rag_pb2.Document(id="a", text="t")] * 2),
        "documents[1].id",
    ),
    (
        "RagService/AddDocuments",
        rag_pb2.AddDocumentsRequest(
            collection="c", documents=[rag_pb2.Document(id="a", text="t", metadata={"k": "v" * 501})]
        ),
        'documents[0].metadata["k"]',
    ),
    (
        "RagService/DeleteDocuments",
        rag_pb2.DeleteDocumentsRequest(collection="c", document_ids=[""]),
        "document_ids[0]",
    ),
    ("AnalysisService/Analyze", analysis_pb2.AnalyzeRequest(text="x" * 5001), "text"),
    ("AnalysisService/Analyze", analysis_pb2.AnalyzeRequest(text="x", tasks=[TASK_99]), "tasks[0]"),
    (
        "AnalysisService/Analyze",
        analysis_pb2.AnalyzeRequest(text="x", tasks=[analysis_pb2.ANALYSIS_TASK_ENTITIES] * 2),
        "tasks",
    ),
    ("ModelService/GetModel", model_pb2.GetModelRequest(), "name"),
]


@pytest.mark.parametrize(("method", "request_message", "field"), CASES)
def test_a_broken_limit_names_its_field(channel: grpc.Channel, method: str, request_message: Any, field: str) -> None:
    error = call(channel, method, request_message.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    found = details(error)
    assert found["ErrorInfo"].reason == "INVALID_REQUEST"
    assert found["ErrorInfo"].domain == "quintet.v1"
    assert [violation.field for violation in found["BadRequest"].field_violations] == [field]


def test_an_unknown_category_names_the_allowed_values(channel: grpc.Channel) -> None:
    error = call(channel, "PricingService/PredictPrice", house(building_type="Castle").SerializeToString())
    violation = details(error)["BadRequest"].field_violations[0]
    assert violation.field == "houses[1].building_type"
    assert "1Fam" in violation.description
    assert "TwnhsE" in violation.description


def test_many_violations_still_fit_into_the_trailers(channel: grpc.Channel) -> None:
    request = Classify(texts=["é" * 501] * 64)
    error = call(channel, "ClassificationService/Classify", request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = details(error)["BadRequest"].field_violations
    assert violations[-1].description == "and 44 more"


@pytest.mark.parametrize(
    ("payload", "said"), [(b"\x0a\x02\xff\xfe", "UTF-8"), (b"\xff\xff\xff", "decoded"), (b"\x0a\x7f", "decoded")]
)
def test_what_is_no_message_is_the_callers_fault(channel: grpc.Channel, payload: bytes, said: str) -> None:
    error = call(channel, "ClassificationService/Classify", payload)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in str(error.details())


def test_a_message_over_the_limit_is_refused_with_the_sizes(channel: grpc.Channel) -> None:
    error = call(channel, "ClassificationService/Classify", b"\x0a" * (5 << 20))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(error)["ErrorInfo"].reason == "MESSAGE_TOO_LARGE"
    assert str(5 << 20) in str(error.details())
    assert call(channel, "ClassificationService/Classify", b"\x0a" * (9 << 20)).code() is (
        grpc.StatusCode.RESOURCE_EXHAUSTED
    )


@pytest.mark.parametrize(
    ("method", "request_message", "reason"),
    [
        ("ClassificationService/Classify", Classify(texts=["a"], model="nobody"), "MODEL_NOT_FOUND"),
        ("ChatService/Chat", Chat(messages=conversation("hi"), model="nobody"), "MODEL_NOT_FOUND"),
        ("ModelService/GetModel", model_pb2.GetModelRequest(name="nobody"), "MODEL_NOT_FOUND"),
        ("RagService/Ask", rag_pb2.AskRequest(question="hi", collection="nobody"), "COLLECTION_NOT_FOUND"),
        ("RagService/GetIndex", rag_pb2.GetIndexRequest(collection="nobody"), "COLLECTION_NOT_FOUND"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(
    channel: grpc.Channel, method: str, request_message: Any, reason: str
) -> None:
    error = call(channel, method, request_message.SerializeToString())
    assert error.code() is grpc.StatusCode.NOT_FOUND
    info = details(error)["ErrorInfo"]
    assert info.reason == reason
    assert info.metadata["known"]


def test_a_prompt_over_the_context_says_both_numbers(channel: grpc.Channel) -> None:
    words = " ".join(str(n) for n in range(1400))
    request = chat_pb2.StreamChatRequest(messages=[*conversation(words), *conversation(words), *conversation(words)])
    stream = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(request, timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)["BadRequest"].field_violations[0].field == "messages"
    assert "4096" in str(caught.value.details())


def test_the_request_id_comes_back(channel: grpc.Channel) -> None:
    error = call(channel, "ClassificationService/Classify", b"", metadata=(("x-request-id", "order-66"),))
    assert details(error)["ErrorInfo"].metadata["request_id"] == "order-66"
    assert ("x-request-id", "order-66") in list(cast("Any", error.trailing_metadata()))
    invoke: Any = channel.unary_unary("/quintet.v1.ModelService/GetServerInfo")
    answer, rpc = invoke.with_call(b"", timeout=10)
    assert answer
    assert len(dict(rpc.trailing_metadata())["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("method", "request_", "expected"),
    [
        ("ClassificationService/Classify", Classify(), {"texts": "must not be empty"}),
        ("ClassificationService/Classify", Classify(texts=["ok", ""]), {"texts[1]": "must not be empty"}),
        (
            "ChatService/Chat",
            chat_pb2.ChatRequest(messages=[chat_pb2.ChatMessage()]),
            {"messages[0].role": "must be given", "messages[0].content": "must not be empty"},
        ),
    ],
)
def test_common_mistakes_are_told_in_plain_words(
    channel: grpc.Channel, method: str, request_: Any, expected: dict[str, str]
) -> None:
    invoke: Any = channel.unary_unary(f"/quintet.v1.{method}")
    with pytest.raises(grpc.RpcError) as caught:
        invoke(request_.SerializeToString(), timeout=10)
    violations = details(caught.value)["BadRequest"].field_violations
    assert {each.field: each.description for each in violations} == expected


def test_an_expired_deadline_is_not_served(channel: grpc.Channel) -> None:
    invoke: Any = channel.unary_unary("/quintet.v1.ClassificationService/Classify")
    request = Classify(texts=[f"{n} is too much" * 30 for n in range(32)])  # gRPC may make a millisecond of it
    with pytest.raises(grpc.RpcError) as caught:
        invoke(request.SerializeToString(), timeout=1e-6)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
