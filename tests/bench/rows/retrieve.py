"""Retrieve against embedding and searching in one process."""

import json

import grpc
from quintet.v1 import rag_pb2, rag_pb2_grpc

from tests.bench import load
from tests.bench.requests import RETRIEVE
from tests.bench.row import Figures, Row, Target
from tests.bench.stand import Stand

_SECONDS = 3.0


def _measure(stand: Stand) -> Figures:
    with grpc.insecure_channel(stand.quintet.address) as channel:
        index = rag_pb2_grpc.RagServiceStub(channel).GetIndex(rag_pb2.GetIndexRequest(), timeout=10)
    ours = load.grpc(stand.quintet.address, "RagService/Retrieve", RETRIEVE, seconds=_SECONDS)
    arguments = ("retrieve", str(stand.models), str(_SECONDS), str(index.passage_count))
    raw = json.loads(stand.output("tests.bench.raw", *arguments))
    return {
        "p50, ms": ours.p50_ms,
        "embed + search in-process p50, ms": raw["p50_ms"],
        "p50 over in-process": ours.p50_ms / raw["p50_ms"],
    }


ROW = Row("Retrieve, 1 client", _measure, (Target("p50, ms"), Target("p50 over in-process", at_most=1.3)))
