"""Every method of every task, through a real channel to a real server with real models."""

import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from quintet.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    common_pb2,
    model_pb2,
    model_pb2_grpc,
    pricing_pb2,
    pricing_pb2_grpc,
    rag_pb2,
    rag_pb2_grpc,
)

TIMEOUT = 60.0
HOUSE = pricing_pb2.House(
    above_ground_area_sqft=1710,
    lot_area_sqft=8450,
    overall_quality=7,
    overall_condition=5,
    year_built=2003,
    year_remodeled=2003,
    basement_area_sqft=856,
    garage_cars=2,
    full_baths=2,
    half_baths=1,
    bedrooms=3,
    total_rooms=8,
    fireplaces=0,
    neighborhood="CollgCr",
    building_type="1Fam",
    house_style="2Story",
    central_air=True,
    kitchen_quality="Gd",
)


def made_by(model: common_pb2.ModelRef, name: str) -> bool:
    return model.name == name and bool(model.version) and model.digest.startswith("sha256:")


# ---------------------------------------------------------------- classification


def test_classify_keeps_the_order_and_ranks_the_labels(channel: grpc.Channel) -> None:
    stub = classification_pb2_grpc.ClassificationServiceStub(channel)
    texts = ["I love this, it is wonderful!", "Terrible. A complete waste of money.", "I love it" + "!" * 480]
    answer = stub.Classify(classification_pb2.ClassifyRequest(texts=texts), timeout=TIMEOUT)
    assert [result.labels[0].label for result in answer.results] == ["positive", "negative", "positive"]
    assert made_by(answer.model, "sentiment")
    for result in answer.results:
        scores = [label.score for label in result.labels]
        assert scores == sorted(scores, reverse=True)
        assert math.isclose(sum(scores), 1.0, abs_tol=1e-5)
    assert [result.truncated for result in answer.results] == [False, False, True]


def test_classify_topics_with_top_k(channel: grpc.Channel) -> None:
    stub = classification_pb2_grpc.ClassificationServiceStub(channel)
    text = "The electron is a subatomic particle with a negative electric charge."
    request = classification_pb2.ClassifyRequest(texts=[text], model="topics", top_k=2)
    answer = stub.Classify(request, timeout=TIMEOUT)
    assert len(answer.results[0].labels) == 2
    assert "science" in answer.results[0].labels[0].label.lower()
    assert made_by(answer.model, "topics")


def test_classify_sixty_four_texts(channel: grpc.Channel) -> None:
    stub = classification_pb2_grpc.ClassificationServiceStub(channel)
    texts = [("good " if n % 2 else "awful ") * (1 + n % 20) for n in range(64)]
    answer = stub.Classify(classification_pb2.ClassifyRequest(texts=texts), timeout=TIMEOUT)
    assert [r.labels[0].label for r in answer.results] == ["negative", "positive"] * 32


# ---------------------------------------------------------------- pricing


def test_predict_price_is_near_what_such_a_house_sold_for(channel: grpc.Channel) -> None:
    stub = pricing_pb2_grpc.PricingServiceStub(channel)
    poor = pricing_pb2.House()
    poor.CopyFrom(HOUSE)
    poor.overall_quality = 3
    poor.kitchen_quality = "Fa"
    answer = stub.PredictPrice(pricing_pb2.PredictPriceRequest(houses=[HOUSE, poor]), timeout=TIMEOUT)
    good, bad = answer.estimates
    assert 180_000 < good.price_usd < 240_000  # a house of Ames with these features sold for 208,500 dollars
    assert good.low_usd < good.price_usd < good.high_usd
    assert bad.price_usd < good.price_usd
    assert made_by(answer.model, "house-prices")


# ---------------------------------------------------------------- chat


def conversation(text: str) -> list[chat_pb2.ChatMessage]:
    return [chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, content=text)]


def test_chat_counts_its_tokens(channel: grpc.Channel) -> None:
    stub = chat_pb2_grpc.ChatServiceStub(channel)
    request = chat_pb2.ChatRequest(messages=conversation("Say hello."), max_output_tokens=16, temperature=0, seed=7)
    answer = stub.Chat(request, timeout=TIMEOUT)
    assert answer.message.role == chat_pb2.CHAT_ROLE_ASSISTANT
    assert answer.message.content.strip()
    assert answer.usage.source == common_pb2.USAGE_SOURCE_PROVIDER
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert made_by(answer.model, "smollm2-135m-instruct")
    assert stub.Chat(request, timeout=TIMEOUT).message.content == answer.message.content  # the same seed


def test_stream_chat_ends_with_exactly_one_done(channel: grpc.Channel) -> None:
    stub = chat_pb2_grpc.ChatServiceStub(channel)
    request = chat_pb2.StreamChatRequest(
        messages=conversation("Tell me a story about a fox."), max_output_tokens=24, temperature=0
    )
    events = list(stub.StreamChat(request, timeout=TIMEOUT))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["delta"] * (len(events) - 1) + ["done"]
    assert len(events) > 5  # it streams
    assert events[-1].done.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert events[-1].done.usage.completion_tokens == 24


def test_a_cancelled_stream_does_not_hold_the_model(channel: grpc.Channel) -> None:
    stub = chat_pb2_grpc.ChatServiceStub(channel)
    for _ in range(4):  # twice as many as the model has slots
        stream = stub.StreamChat(
            chat_pb2.StreamChatRequest(messages=conversation("Count to a thousand."), max_output_tokens=1024),
            timeout=TIMEOUT,
        )
        next(stream)
        stream.cancel()
    request = chat_pb2.ChatRequest(messages=conversation("Say hello."), max_output_tokens=4)
    stub.Chat(request, timeout=5.0)  # four running stories would take far longer than this


# ---------------------------------------------------------------- retrieval


@pytest.fixture
def collection(channel: grpc.Channel) -> Iterator[str]:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    documents = [
        rag_pb2.Document(
            id="leave", title="Leave", text="Employees of Zorbatron have 37 days of paid leave a year.", uri="x:leave"
        ),
        rag_pb2.Document(id="lunch", title="Lunch", text="The canteen serves lunch from noon to two o'clock."),
        rag_pb2.Document(id="long", text="The moon was bright. " * 500 + "The vault code is kept by the baker."),
    ]
    added = stub.AddDocuments(rag_pb2.AddDocumentsRequest(collection="handbook", documents=documents), timeout=TIMEOUT)
    assert added.added_count + added.unchanged_count == 3
    yield "handbook"
    stub.DeleteDocuments(
        rag_pb2.DeleteDocumentsRequest(collection="handbook", document_ids=["leave", "lunch", "long"]),
        timeout=TIMEOUT,
    )


def test_retrieve_finds_the_passage_and_names_its_place(channel: grpc.Channel, collection: str) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    request = rag_pb2.RetrieveRequest(query="Who keeps the code of the vault?", collection=collection, top_k=1)
    answer = stub.Retrieve(request, timeout=TIMEOUT)
    passage = answer.passages[0]
    assert passage.document_id == "long"
    assert passage.text.endswith("The vault code is kept by the baker.")
    assert passage.end - passage.start == len(passage.text)
    assert made_by(answer.model, "embedder")


def test_writes_grow_the_generation_and_are_idempotent(channel: grpc.Channel, collection: str) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    before = stub.GetIndex(rag_pb2.GetIndexRequest(collection=collection), timeout=TIMEOUT)
    assert before.document_count == 3
    assert before.passage_count > 10
    same = rag_pb2.Document(id="lunch", title="Lunch", text="The canteen serves lunch from noon to two o'clock.")
    again = stub.AddDocuments(rag_pb2.AddDocumentsRequest(collection=collection, documents=[same]), timeout=TIMEOUT)
    assert (again.added_count, again.updated_count, again.unchanged_count) == (0, 0, 1)
    changed = rag_pb2.Document(id="lunch", title="Lunch", text="There is no lunch on Sundays.")
    update = stub.AddDocuments(rag_pb2.AddDocumentsRequest(collection=collection, documents=[changed]), timeout=TIMEOUT)
    assert (update.added_count, update.updated_count) == (0, 1)
    assert update.index.generation > before.index.generation
    found = stub.Retrieve(rag_pb2.RetrieveRequest(query="lunch on Sundays", collection=collection, top_k=1))
    assert found.passages[0].text == "There is no lunch on Sundays."
    gone = stub.DeleteDocuments(
        rag_pb2.DeleteDocumentsRequest(collection=collection, document_ids=["lunch", "nobody"]), timeout=TIMEOUT
    )
    assert gone.deleted_count == 1


def test_stream_ask_sends_sources_text_and_done(channel: grpc.Channel, collection: str) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    question = "How many days of paid leave do employees of Zorbatron have?"
    events = list(
        stub.StreamAsk(rag_pb2.StreamAskRequest(question=question, collection=collection, top_k=1), timeout=TIMEOUT)
    )
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["sources"] + ["delta"] * (len(kinds) - 2) + ["done"]
    assert [citation.document_id for citation in events[0].sources.citations] == ["leave"]
    assert events[0].sources.citations[0].uri == "x:leave"
    assert "37" in "".join(event.delta.text for event in events)
    assert events[-1].done.grounded
    assert events[-1].done.usage.prompt_tokens > 0


def test_ask_says_so_when_the_collection_does_not_know(channel: grpc.Channel, collection: str) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    request = rag_pb2.AskRequest(question="What is the boiling point of tungsten?", collection=collection)
    answer = stub.Ask(request, timeout=TIMEOUT)
    assert not answer.grounded
    assert answer.answer


def test_the_demo_collection_answers(channel: grpc.Channel) -> None:
    stub = rag_pb2_grpc.RagServiceStub(channel)
    index = stub.GetIndex(rag_pb2.GetIndexRequest(), timeout=TIMEOUT)
    assert index.document_count >= 1000
    answer = stub.Ask(rag_pb2.AskRequest(question="Who was Ada Lovelace?"), timeout=TIMEOUT)
    assert any("Lovelace" in citation.title for citation in answer.citations)
    assert answer.index.collection == "wikipedia"


# ---------------------------------------------------------------- analysis

TEXT = "🙂 Ada Lovelace loved London. She wrote the first algorithm for Charles Babbage's engine in 1843!"


def test_analyze_everything_with_offsets_in_code_points(channel: grpc.Channel) -> None:
    stub = analysis_pb2_grpc.AnalysisServiceStub(channel)
    answer = stub.Analyze(analysis_pb2.AnalyzeRequest(text=TEXT), timeout=TIMEOUT)
    assert not answer.failures
    entities = {entity.text: entity for entity in answer.entities.entities}
    assert entities["London"].type == "GPE"
    assert entities["Ada Lovelace"].type == "PERSON"
    spans: list[Any] = [
        *answer.entities.entities,
        *answer.key_phrases.key_phrases,
        *answer.sentences.sentences,
        *answer.syntax.tokens,
    ]
    assert all(TEXT[span.start : span.end] == span.text for span in spans)
    assert len(answer.sentences.sentences) == 2
    assert answer.sentiment.labels[0].label == "positive"
    assert answer.language.labels[0].label == "en"
    assert answer.topics.labels
    wrote = next(token for token in answer.syntax.tokens if token.text == "wrote")
    assert (wrote.lemma, wrote.pos) == ("write", "VERB")
    assert answer.syntax.tokens[wrote.head].text == "wrote"


def test_analyze_only_what_was_asked_for(channel: grpc.Channel) -> None:
    stub = analysis_pb2_grpc.AnalysisServiceStub(channel)
    request = analysis_pb2.AnalyzeRequest(
        text="Wo ist der Bahnhof? Ich suche den Zug nach Hamburg.", tasks=[analysis_pb2.ANALYSIS_TASK_LANGUAGE]
    )
    answer = stub.Analyze(request, timeout=TIMEOUT)
    assert answer.language.labels[0].label == "de"
    assert [field.name for field, _ in answer.ListFields()] == ["language"]


def test_stream_analyze_sends_every_result_then_done(channel: grpc.Channel) -> None:
    stub = analysis_pb2_grpc.AnalysisServiceStub(channel)
    events = list(stub.StreamAnalyze(analysis_pb2.StreamAnalyzeRequest(text=TEXT), timeout=TIMEOUT))
    kinds = [str(event.WhichOneof("event")) for event in events]
    assert kinds[-1] == "done"
    assert sorted(kinds[:-1]) == [
        "entities", "key_phrases", "language", "sentences", "sentiment", "syntax", "topics",
    ]  # fmt: skip
    assert events[-1].done.succeeded_count == 7


# ---------------------------------------------------------------- models


def test_list_models_describes_all_of_them(channel: grpc.Channel) -> None:
    stub = model_pb2_grpc.ModelServiceStub(channel)
    listed = stub.ListModels(model_pb2.ListModelsRequest(), timeout=TIMEOUT).models
    names = [model.ref.name for model in listed]
    assert names == sorted(names)
    assert {"sentiment", "topics", "house-prices", "embedder", "smollm2-135m-instruct"} <= set(names)
    for model in listed:
        assert model.state == model_pb2.MODEL_STATE_READY, model
        assert model.licence, model
        assert model.size_bytes > 0, model
    prices = stub.GetModel(model_pb2.GetModelRequest(name="house-prices"), timeout=TIMEOUT).model
    features = {feature.name: feature for feature in prices.features}
    assert "CollgCr" in features["neighborhood"].allowed_values
    assert features["year_built"].minimum > 1800
    assert prices.metrics["r2"] >= 0.9
    assert 0.87 <= prices.metrics["interval_coverage"] <= 0.93


@pytest.mark.parametrize(
    ("model", "metric", "least"),
    # Some points below what was measured: training on another processor rounds differently.
    [("sentiment", "accuracy", 0.75), ("sentiment", "binary_accuracy", 0.86), ("topics", "accuracy", 0.86)],
)
def test_what_was_trained_is_good(channel: grpc.Channel, model: str, metric: str, least: float) -> None:
    stub = model_pb2_grpc.ModelServiceStub(channel)
    described = stub.GetModel(model_pb2.GetModelRequest(name=model), timeout=TIMEOUT).model
    assert described.metrics[metric] >= least


def test_server_info(channel: grpc.Channel) -> None:
    stub = model_pb2_grpc.ModelServiceStub(channel)
    info = stub.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=TIMEOUT)
    assert info.api_version == "quintet.v1"
    assert info.version
    assert info.current_time.seconds >= info.start_time.seconds > 0
    assert info.limits.max_request_bytes > 0
    assert [service.name for service in info.services if not service.serving] == []
