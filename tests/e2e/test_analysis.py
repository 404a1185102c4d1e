"""Analyze and StreamAnalyze, through a real channel to a real server with real models."""

from typing import Any

import grpc
from quintet.v1 import analysis_pb2, analysis_pb2_grpc

from tests.e2e.tasks import TIMEOUT

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


def test_a_text_that_the_models_do_not_know_is_marked(channel: grpc.Channel) -> None:
    stub = analysis_pb2_grpc.AnalysisServiceStub(channel)
    tasks = [analysis_pb2.ANALYSIS_TASK_SENTIMENT, analysis_pb2.ANALYSIS_TASK_TOPICS]
    answer = stub.Analyze(analysis_pb2.AnalyzeRequest(text="😡👎", tasks=tasks), timeout=TIMEOUT)
    assert (answer.sentiment.unknown_share, answer.topics.unknown_share) == (1.0, 1.0)


def test_a_long_run_of_symbols_is_analyzed(channel: grpc.Channel) -> None:
    stub = analysis_pb2_grpc.AnalysisServiceStub(channel)
    request = analysis_pb2.AnalyzeRequest(text="$" * 990 + " It works.", tasks=[analysis_pb2.ANALYSIS_TASK_SYNTAX])
    tokens = stub.Analyze(request, timeout=TIMEOUT).syntax.tokens
    assert [(token.text, token.start) for token in tokens[-3:]] == [("It", 991), ("works", 994), (".", 999)]


def test_stream_analyze_sends_every_result_then_done(channel: grpc.Channel) -> None:
    stub = analysis_pb2_grpc.AnalysisServiceStub(channel)
    events = list(stub.StreamAnalyze(analysis_pb2.StreamAnalyzeRequest(text=TEXT), timeout=TIMEOUT))
    kinds = [str(event.WhichOneof("event")) for event in events]
    assert kinds[-1] == "done"
    assert sorted(kinds[:-1]) == [
        "entities", "key_phrases", "language", "sentences", "sentiment", "syntax", "topics",
    ]  # fmt: skip
    assert events[-1].done.succeeded_count == 7
