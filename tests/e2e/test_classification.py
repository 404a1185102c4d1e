"""Classify, through a real channel to a real server with real models."""

import math

import grpc
import pytest
from quintet.v1 import classification_pb2, classification_pb2_grpc

from tests.e2e.tasks import TIMEOUT, made_by


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


def test_texts_that_the_model_does_not_know_are_marked(channel: grpc.Channel) -> None:
    stub = classification_pb2_grpc.ClassificationServiceStub(channel)
    unknown = ["👍", "👎", "😡👎", "a" * 120, "\u0301", "\ufffd\ufffd"]
    known = ["good", "I love it", "b" * 99]
    for model in ("sentiment", "topics"):
        request = classification_pb2.ClassifyRequest(texts=[*unknown, *known, "It is 👍"], model=model)
        shares = [result.unknown_share for result in stub.Classify(request, timeout=TIMEOUT).results]
        assert shares == pytest.approx([1.0] * len(unknown) + [0.0] * len(known) + [1 / 3])
