"""The reranker on a tiny graph that counts the words which query and passage share."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from server.domain.errors import DeadlineExceeded
from server.domain.rag import Document, Query
from server.inference.reranker import OnnxReranker
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact, open_artefact, write_manifest
from server.models.handle import Handle, Resident
from server.models.store import ModelStore
from server.tasks.rag.engine import RERANKED, RagEngine
from tests.small_artefacts import is_gone_when_dropped, soon
from tests.tasks.rag.hashing import HashingEmbedder

WORDS = ("[UNK]", "[CLS]", "[SEP]", "cat", "dog", "house", "tree")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    made = tmp_path / "made"
    made.mkdir()
    onnx.save(_shared_words(), made / "model.onnx")
    _pairs().save(str(made / "tokenizer.json"))
    write_manifest(made, name="reranker", version="1", licence="MIT", schema={"engine": "onnx", "max_tokens": 512})
    ModelStore(tmp_path / "models").publish(made)
    return open_artefact(tmp_path / "models", "reranker")


@pytest.fixture
async def engine(tmp_path: Path, artefact: Artefact, scheduler: Scheduler) -> AsyncIterator[RagEngine]:
    reranker: Handle[OnnxReranker] = Handle("reranker")
    reranker.install(Resident(OnnxReranker(artefact, scheduler)))
    made = RagEngine(tmp_path / "index", HashingEmbedder(), scheduler, reranker)
    await made.open()
    yield made
    await made.close()


async def test_scores_are_of_query_and_passage_together(artefact: Artefact, scheduler: Scheduler) -> None:
    reranker = OnnxReranker(artefact, scheduler)
    passages = [("", "dog"), ("cat", "tree"), ("", "cat cat tree"), ("", "house")]
    assert await reranker.scores("cat tree", passages, deadline=soon()) == [0, 2, 3, 0]
    assert await reranker.scores("cat", [], deadline=soon()) == []
    with pytest.raises(DeadlineExceeded):
        await reranker.scores("cat", passages, deadline=time.monotonic())


def test_a_dropped_engine_is_gone_at_once(artefact: Artefact, scheduler: Scheduler) -> None:
    assert is_gone_when_dropped(lambda: OnnxReranker(artefact, scheduler))


async def test_passages_come_in_the_rerankers_order(engine: RagEngine, tmp_path: Path, scheduler: Scheduler) -> None:
    documents = [Document(str(number), "cat " * number + "dog house tree") for number in range(1, RERANKED + 5)]
    await engine.ingester.add("notes", documents, deadline=soon())
    found = await engine.retrieve(Query("cat", "notes", 3), deadline=soon())
    without = RagEngine(tmp_path / "index", HashingEmbedder(), scheduler)
    await without.open()
    plain = await without.retrieve(Query("cat", "notes", RERANKED), deadline=soon())
    await without.close()
    read = {passage.document_id: passage for passage in plain.passages}
    best = sorted(read, key=int, reverse=True)[:3]
    assert [passage.document_id for passage in found.passages] == best
    assert found.passages == tuple(read[name] for name in best), "scores stay cosines"
    everything = await engine.retrieve(Query("cat", "notes", 100), deadline=soon())
    assert len({passage.document_id for passage in everything.passages}) == len(documents)
    tail = [passage.score for passage in everything.passages[RERANKED:]]
    assert tail == sorted(tail, reverse=True)


def _pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(mark, WORDS.index(mark)) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def _shared_words() -> onnx.ModelProto:
    """The number of pairs of equal words, one of the query and one of the passage; marks and unknown words are none."""
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["token_type_ids"], ["second"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["all"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["all", "second"], ["first"]),
        *(
            node
            for part in ("first", "second")
            for node in (
                helper.make_node("Unsqueeze", [part, "last"], [f"{part}.mask"]),
                helper.make_node("Mul", ["tokens", f"{part}.mask"], [f"{part}.tokens"]),
                helper.make_node("ReduceSum", [f"{part}.tokens", "sequence"], [f"{part}.sum"], keepdims=0),
            )
        ),
        helper.make_node("Mul", ["first.sum", "second.sum"], ["products"]),
        helper.make_node("ReduceSum", ["products", "sequence"], ["logits"], keepdims=1),
    ]
    vectors = np.eye(len(WORDS), dtype=np.float32)
    vectors[:3] = 0
    constants = {"vectors": vectors, "last": np.array([2]), "sequence": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "shared words",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence_length"]) for name in INPUTS],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
