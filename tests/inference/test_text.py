"""Classifier and embedder on onnxruntime, with a tiny graph: order, scores, limits, lanes."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from server.domain.errors import DeadlineExceeded, ModelUnavailable
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.domain.texts import Classification
from server.inference.computation import UNBATCHED, BatchPolicy
from server.inference.onnx_text import OnnxForward
from server.inference.reranker import OnnxReranker
from server.inference.scheduler import Scheduler
from server.inference.text import Outputs, TextClassifier, TextEmbedder, TextModel, softmax
from tests.small_artefacts import (
    LABELS,
    MAX_TOKENS,
    WIDTH,
    WORDS,
    is_gone_when_dropped,
    make_text_artefact,
    onnx_classifier,
    onnx_embedder,
    soon,
)


@pytest.fixture
def classifier(tmp_path: Path, scheduler: Scheduler) -> TextClassifier:
    return onnx_classifier(make_text_artefact(tmp_path, "logits"), scheduler)


@pytest.fixture
def embedder(tmp_path: Path, scheduler: Scheduler) -> TextEmbedder:
    return onnx_embedder(make_text_artefact(tmp_path, "embedding"), scheduler)


@pytest.fixture
def forward(tmp_path: Path) -> OnnxForward:
    return OnnxForward(make_text_artefact(tmp_path, "logits"), "onnx", "logits")


def classifier_of(
    forward: Callable[[Sequence[str]], Outputs], batch_policy: BatchPolicy, scheduler: Scheduler
) -> TextClassifier:
    description = ModelDescription(
        ModelIdentity("tiny", "1", ""), ModelTask.CLASSIFICATION, "onnx", tuple(LABELS), max_input_tokens=MAX_TOKENS
    )
    return TextClassifier(TextModel(description, forward, len(LABELS), batch_policy), scheduler)


sentences = st.lists(st.sampled_from(WORDS[4:]), min_size=1, max_size=30).map(" ".join)


@given(texts=st.lists(sentences, min_size=1, max_size=64))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_text_gets_the_same_answer_whatever_it_comes_with(classifier: TextClassifier, texts: list[str]) -> None:
    together = await classifier.classify(texts, deadline=soon())
    alone = [(await classifier.classify([text], deadline=soon()))[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one.truncated == other.truncated
        assert {label.name: label.score for label in one.labels} == pytest.approx(
            {label.name: label.score for label in other.labels}, abs=1e-6
        ), "float32 sums in another order; more than that is padding that was read"


async def test_labels_are_ranked_and_add_up_to_one(classifier: TextClassifier) -> None:
    for result in await classifier.classify([f"{a} {b}" for a in WORDS for b in WORDS[:6]], deadline=soon()):
        scores = [label.score for label in result.labels]
        assert sorted(label.name for label in result.labels) == sorted(LABELS)
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-12)


async def test_what_is_not_read_is_reported(classifier: TextClassifier) -> None:
    fits, cut = "good " * (MAX_TOKENS - 2), "good " * (MAX_TOKENS - 1)  # two tokens mark the ends
    tail = cut + "awful " * 900
    found = await classifier.classify([fits, cut, tail], deadline=soon())
    assert [result.truncated for result in found] == [False, True, True]
    assert found[1].labels == found[2].labels, "the end was read after all"


async def test_a_graph_reads_no_more_than_it_has_positions(tmp_path: Path, scheduler: Scheduler) -> None:
    """The manifest says 64; the graph has 11 positions."""
    classifier = onnx_classifier(make_text_artefact(tmp_path, "logits", positions=11, max_tokens=64), scheduler)
    embedder = onnx_embedder(make_text_artefact(tmp_path, "embedding", positions=11, max_tokens=64), scheduler)
    reranker = OnnxReranker(make_text_artefact(tmp_path / "pairs", "logits", positions=11, max_tokens=64), scheduler)
    assert {each.description.max_input_tokens for each in (classifier, embedder, reranker)} == {11}
    texts = ["good " * 9, "good " * 10, "good " * 600]
    found = await classifier.classify(texts, deadline=soon())
    assert [result.truncated for result in found] == [False, True, True]
    assert found[1].labels == found[2].labels
    assert len(await embedder.embed(texts, deadline=soon())) == 3
    assert len(await reranker.scores("good", [("", text) for text in texts], deadline=soon())) == 3


async def test_what_the_model_does_not_know_is_reported(classifier: TextClassifier, embedder: TextEmbedder) -> None:
    shares = {"good": 0.0, "good 👍": 0.5, "👍": 1.0, "the good x" + "y" * 119: 1 / 3, "zzz " * 100: 1.0}
    texts = list(shares)
    classified = await classifier.classify(texts, deadline=soon())
    embedded = await embedder.embed_detailed(texts, deadline=soon())
    for results in (classified, embedded):
        assert [result.unknown_share for result in results] == pytest.approx([*shares.values()])
        assert [result.truncated for result in results] == [False] * 4 + [True]


async def test_vectors_have_length_one_and_keep_their_order(embedder: TextEmbedder) -> None:
    texts = [" ".join(WORDS[i % 12 + 4 :]) for i in range(50)]
    vectors = await embedder.embed(texts, deadline=soon())
    assert vectors.shape == (50, WIDTH)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(50), abs=1e-6)
    for index in (0, 17, 49):
        assert (await embedder.embed([texts[index]], deadline=soon()))[0] == pytest.approx(vectors[index], abs=1e-6)


async def test_no_texts_give_no_rows(classifier: TextClassifier, embedder: TextEmbedder) -> None:
    assert await classifier.classify([], deadline=soon()) == []
    assert (await embedder.embed([], deadline=soon())).shape == (0, WIDTH)


async def test_the_description_is_that_of_the_manifest(classifier: TextClassifier) -> None:
    described = classifier.description
    assert (described.identity.name, described.identity.version) == ("tiny", "1")
    assert described.identity.digest.startswith("sha256:")
    assert (described.task, described.engine, described.labels) == (ModelTask.CLASSIFICATION, "onnx", tuple(LABELS))
    assert (described.max_input_tokens, described.metrics) == (MAX_TOKENS, {"accuracy": 0.5})
    assert described.create_time is not None


async def test_a_late_call_is_refused(classifier: TextClassifier) -> None:
    with pytest.raises(DeadlineExceeded):
        await classifier.classify(["good"] * 8, deadline=time.monotonic())


@pytest.mark.parametrize("count", [2, 64])
async def test_one_request_uses_every_lane(forward: OnnxForward, scheduler: Scheduler, count: int) -> None:
    threads: set[str] = set()
    both = threading.Barrier(2)

    def watched(texts: Sequence[str]) -> Outputs:
        name = threading.current_thread().name
        if name not in threads and name != here:
            threads.add(name)
            both.wait(5)
        return forward(texts)

    here = threading.current_thread().name  # where the engine is tried while it is made
    await classifier_of(watched, forward.batch_policy, scheduler).classify(["good"] * count, deadline=soon())
    assert len(threads) == 2
    assert all(name.startswith("lane") for name in threads)


@pytest.mark.parametrize(("scales", "expected"), [("row", [8]), ("tensor", [1] * 8), (None, [1] * 8)])
async def test_int8_is_batched_if_every_row_has_a_scale(
    tmp_path: Path, scales: str | None, expected: list[int]
) -> None:
    """A scale that spans the batch would make a text's scores depend on its neighbours."""
    changes: dict[str, Any] = {"int8_scales": scales} if scales else {}
    artefact = make_text_artefact(tmp_path, "logits", file="model-int8.onnx", engine="onnx-int8", **changes)
    one_lane = Scheduler(1, queue_limit=64)
    classifier = onnx_classifier(artefact, one_lane)
    await classifier.classify(["good"] * 8, deadline=soon())
    one_lane.close()
    assert list(one_lane.counters["tiny"].batches.elements()) == expected


async def test_cancelling_drops_what_has_not_begun(forward: OnnxForward, scheduler: Scheduler) -> None:
    begun: list[int] = []

    def slow(texts: Sequence[str]) -> Outputs:
        begun.append(len(texts))
        time.sleep(0.02)
        return forward(texts)

    classifier = classifier_of(slow, forward.batch_policy, scheduler)
    begun.clear()
    call = asyncio.create_task(classifier.classify(["good"] * 64, deadline=soon()))
    await asyncio.sleep(0.03)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.gather(*(scheduler.run(lambda: None, deadline=soon()) for _ in range(4)))
    assert 0 < sum(begun) < 64


@pytest.mark.parametrize(("kind", "output"), [(onnx_classifier, "logits"), (onnx_embedder, "embedding")])
def test_a_dropped_engine_is_gone_at_once(tmp_path: Path, scheduler: Scheduler, kind: Any, output: str) -> None:
    assert is_gone_when_dropped(lambda: kind(make_text_artefact(tmp_path, output), scheduler))


@pytest.mark.parametrize(
    ("changes", "engine", "reason"),
    [
        ({"labels": ["one", "two"]}, None, "gives 3 numbers for a text instead of 2"),
        ({"engine": "onnx-int8"}, None, r"it has no model-int8\.onnx"),
        ({}, "onnx-int8", r"it has no model-int8\.onnx"),
    ],
)
async def test_an_artefact_that_does_not_fit_is_refused(
    tmp_path: Path, scheduler: Scheduler, changes: dict[str, Any], engine: str | None, reason: str
) -> None:
    with pytest.raises(ModelUnavailable, match=reason):
        onnx_classifier(make_text_artefact(tmp_path, "logits", **changes), scheduler, engine)


async def test_a_schema_that_lacks_something_is_named(tmp_path: Path, scheduler: Scheduler) -> None:
    artefact = make_text_artefact(tmp_path, "logits")
    del artefact.manifest.schema["labels"]
    with pytest.raises(ModelUnavailable, match='its schema lacks "labels"'):
        onnx_classifier(artefact, scheduler)


async def test_a_model_that_answers_nonsense_does_not_become_ready(scheduler: Scheduler) -> None:
    def broken(texts: Sequence[str]) -> Outputs:
        return Outputs(np.full((len(texts), 3), np.nan, np.float32), [False] * len(texts), [0.0] * len(texts))

    with pytest.raises(ModelUnavailable, match="not finite"):
        classifier_of(broken, UNBATCHED, scheduler)


async def test_texts_that_recur_are_not_computed_again(tmp_path: Path, scheduler: Scheduler) -> None:
    classifier = onnx_classifier(make_text_artefact(tmp_path, "logits"), scheduler, cache_bytes=100_000)
    counters = scheduler.counters["tiny"]
    first = await classifier.classify(["good", "bad", "good"], deadline=soon())
    batches = counters.batches.copy()
    assert await classifier.classify(["bad", "good"], deadline=soon()) == [first[1], first[0]]
    assert (counters.batches, counters.cache_hits, counters.cache_misses) == (batches, 3, 2)


async def test_vectors_that_recur_are_the_same(tmp_path: Path, scheduler: Scheduler) -> None:
    embedder = onnx_embedder(make_text_artefact(tmp_path, "embedding"), scheduler, cache_bytes=100_000)
    first = await embedder.embed(["good", "bad"], deadline=soon())
    expected = first.copy()
    first[:] = 0  # a caller may change the vectors that it got
    assert (await embedder.embed(["good", "bad"], deadline=soon())).tolist() == expected.tolist()
    assert scheduler.counters["tiny"].cache_hits == 2


@given(arrays.arrays(np.float32, (3, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)))
def test_softmax_never_overflows(logits: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    scores = softmax(logits)
    assert np.isfinite(scores).all()
    assert scores.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-12)
    assert (scores[np.arange(3), logits.argmax(axis=1)] == scores.max(axis=1)).all()  # tiny differences become ties


async def test_calls_side_by_side_get_their_own_answers(classifier: TextClassifier) -> None:
    texts = [f"{a} {b}" for a in WORDS[4:] for b in WORDS[4:]]
    expected: list[Classification] = await classifier.classify(texts, deadline=soon())
    found = await asyncio.gather(*(classifier.classify([text], deadline=soon()) for text in texts[:60]))
    assert [result for (result,) in found] == expected[:60]


def test_serving_with_onnx_loads_no_torch_and_no_scikit_learn() -> None:
    engines = ("inference.onnx_text", "tasks.pricing.engine", "tasks.analysis.spacy_parser", "tasks.analysis.analyzer")
    code = f"""
import sys
{"; ".join(f"import server.{engine}" for engine in engines)}
unwanted = {{"torch", "transformers", "sentence_transformers", "sklearn", "joblib", "grpc", "quintet"}}
print(sorted(unwanted & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
