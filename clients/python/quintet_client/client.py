"""The client for ordinary code. `aio.py` has the same methods as coroutines."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TypeVar, Unpack

import grpc
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1 import health_pb2, health_pb2_grpc
from quintet.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    pricing_pb2,
    pricing_pb2_grpc,
    rag_pb2,
)

from quintet_client import inputs
from quintet_client.collections import Collections
from quintet_client.connection import POLL_SECONDS, ReadyWait
from quintet_client.errors import DeadlineExceeded, QuintetError, Unreachable
from quintet_client.filters import Where, filters
from quintet_client.inputs import ChatOptions, House, Message, Task
from quintet_client.usage import Usage

Q = TypeVar("Q", bound=ProtoMessage)
R = TypeVar("R", bound=ProtoMessage)


class QuintetClient(Collections, Usage):
    """A connection to Quintet. Safe to share between threads; make one and keep it.

    Methods return the messages of `quintet.v1` and raise `QuintetError`s. Every call has a deadline: `timeout` in
    seconds for the call, else the client's `timeout`, else 10 s (120 s for chat and ask, 300 s for changes to
    documents and collections, a day for imports and reindexing). What reads, and changes to documents by id, is tried
    up to 4 times while the server is UNAVAILABLE; chat and ask are not, for a generation that broke off may have cost
    something, nor are changes to collections and streams.

    `address` is "host:port", by default QUINTET_ADDRESS or 127.0.0.1:50051. `api_key`, by default QUINTET_API_KEY,
    is sent as a bearer token; without TLS it crosses the network in the clear. TLS is used with `tls` (the roots
    that come with gRPC) or `root_certificates` (PEM). `client_certificate` (its chain) and `client_key` (PEM, both)
    show the server who calls.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool = False,
        root_certificates: bytes | None = None,
        client_certificate: bytes | None = None,
        client_key: bytes | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(
            address,
            api_key=api_key,
            tls=tls,
            root_certificates=root_certificates,
            client_certificate=client_certificate,
            client_key=client_key,
            timeout=timeout,
        )
        self._classification = classification_pb2_grpc.ClassificationServiceStub(self._channel)
        self._pricing = pricing_pb2_grpc.PricingServiceStub(self._channel)
        self._chat = chat_pb2_grpc.ChatServiceStub(self._channel)
        self._analysis = analysis_pb2_grpc.AnalysisServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def classify(
        self,
        texts: str | Iterable[str],
        *,
        model: str | None = None,
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> classification_pb2.ClassifyResponse:
        """Labels of up to 64 texts, in their order; all labels of each, or the `top_k` most probable."""
        request = classification_pb2.ClassifyRequest(texts=inputs.listed(texts), model=model, top_k=top_k)
        return self._unary(self._classification.Classify, request, timeout)

    def predict_price(
        self, houses: Iterable[House | Mapping[str, object]], *, timeout: float | None = None
    ) -> pricing_pb2.PredictPriceResponse:
        """Prices of up to 256 houses, in their order, each with its 90 % interval."""
        request = pricing_pb2.PredictPriceRequest(houses=inputs.houses(houses))
        return self._unary(self._pricing.PredictPrice, request, timeout)

    def chat(
        self, messages: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[ChatOptions]
    ) -> chat_pb2.ChatResponse:
        """The model's next turn. `messages` are the turns so far, oldest first, or one question."""
        request = inputs.chat(chat_pb2.ChatRequest, messages, options)
        return self._unary(self._chat.Chat, request, timeout)

    def stream_chat(
        self, messages: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[ChatOptions]
    ) -> Generator[chat_pb2.StreamChatResponse, None, None]:
        """The same as it is generated: deltas, then one done. Closing the iterator stops the generation."""
        request = inputs.chat(chat_pb2.StreamChatRequest, messages, options)
        return self._stream(self._chat.StreamChat, request, timeout)

    def ask(
        self,
        question: str,
        *,
        collection: str | None = None,
        top_k: int | None = None,
        where: Where | None = None,
        min_generation: int | None = None,
        timeout: float | None = None,
    ) -> rag_pb2.AskResponse:
        """An answer from the `top_k` passages that fit best, with its sources.

        `where` has conditions on metadata (`quintet_client.filters`). `min_generation` is the state to wait for, for
        instance the one that a write has returned.
        """
        request = rag_pb2.AskRequest(
            question=question,
            collection=collection,
            top_k=top_k,
            filters=filters(where),
            min_generation=min_generation,
        )
        return self._unary(self._rag.Ask, request, timeout)

    def stream_ask(
        self,
        question: str,
        *,
        collection: str | None = None,
        top_k: int | None = None,
        where: Where | None = None,
        min_generation: int | None = None,
        timeout: float | None = None,
    ) -> Generator[rag_pb2.StreamAskResponse, None, None]:
        """The same as it is generated: sources, deltas, then one done. Closing the iterator stops the generation."""
        request = rag_pb2.StreamAskRequest(
            question=question,
            collection=collection,
            top_k=top_k,
            filters=filters(where),
            min_generation=min_generation,
        )
        return self._stream(self._rag.StreamAsk, request, timeout)

    def retrieve(
        self,
        query: str,
        *,
        collection: str | None = None,
        top_k: int | None = None,
        where: Where | None = None,
        min_generation: int | None = None,
        timeout: float | None = None,
    ) -> rag_pb2.RetrieveResponse:
        """The `top_k` passages that fit best, without a language model."""
        request = rag_pb2.RetrieveRequest(
            query=query,
            collection=collection,
            top_k=top_k,
            filters=filters(where),
            min_generation=min_generation,
        )
        return self._unary(self._rag.Retrieve, request, timeout)

    def analyze(
        self, text: str, tasks: Iterable[Task] | None = None, *, timeout: float | None = None
    ) -> analysis_pb2.AnalyzeResponse:
        """What `tasks` (all by default) find in the text. A task that fails is in `failures`."""
        request = analysis_pb2.AnalyzeRequest(text=text, tasks=inputs.tasks(tasks))
        return self._unary(self._analysis.Analyze, request, timeout)

    def stream_analyze(
        self, text: str, tasks: Iterable[Task] | None = None, *, timeout: float | None = None
    ) -> Generator[analysis_pb2.StreamAnalyzeResponse, None, None]:
        """The same, each result as soon as it is ready, then one done."""
        request = analysis_pb2.StreamAnalyzeRequest(text=text, tasks=inputs.tasks(tasks))
        return self._stream(self._analysis.StreamAnalyze, request, timeout)

    def list_models(self, *, timeout: float | None = None) -> model_pb2.ListModelsResponse:
        """Every model of the server, loaded or not."""
        return self._unary(self._models.ListModels, model_pb2.ListModelsRequest(), timeout)

    def get_model(self, name: str, *, timeout: float | None = None) -> model_pb2.GetModelResponse:
        """One model: labels, features, metrics, licence."""
        return self._unary(self._models.GetModel, model_pb2.GetModelRequest(name=name), timeout)

    def load_model(self, name: str, *, timeout: float | None = None) -> model_pb2.LoadModelResponse:
        """Bring a model into memory."""
        return self._unary(self._models.LoadModel, model_pb2.LoadModelRequest(name=name), timeout)

    def unload_model(self, name: str, *, timeout: float | None = None) -> model_pb2.UnloadModelResponse:
        """Take a model out of memory after its last reader; the next call that needs it loads it again."""
        return self._unary(self._models.UnloadModel, model_pb2.UnloadModelRequest(name=name), timeout)

    def reload_model(self, name: str, *, timeout: float | None = None) -> model_pb2.ReloadModelResponse:
        """Read and check a model's files again, and serve what they are now."""
        return self._unary(self._models.ReloadModel, model_pb2.ReloadModelRequest(name=name), timeout)

    def set_alias(
        self, name: str, alias: str, target: str, *, force: bool = False, timeout: float | None = None
    ) -> model_pb2.SetAliasResponse:
        """Move "current" or "candidate" to a version, or to that of another alias: "previous" is a rollback.

        "current" moves only to what answers its golden inputs as it did when it was made, unless `force` is given.
        """
        request = model_pb2.SetAliasRequest(name=name, alias=alias, target=target, force=force)
        return self._unary(self._models.SetAlias, request, timeout)

    def watch_models(self, *, timeout: float | None = None) -> Generator[model_pb2.WatchModelsResponse, None, None]:
        """All models, then each that changes, then done when the server stops. Closing the iterator ends it."""
        return self._stream(self._models.WatchModels, model_pb2.WatchModelsRequest(), timeout)

    def server_info(self, *, timeout: float | None = None) -> model_pb2.GetServerInfoResponse:
        """Version, limits and the state of every service with its reason."""
        return self._unary(self._models.GetServerInfo, model_pb2.GetServerInfoRequest(), timeout)

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """State of a service: "SERVING", "NOT_SERVING" or "SERVICE_UNKNOWN".

        "" is the server itself, "ready" all services together, others have full names ("quintet.v1.RagService").
        """
        try:
            response = self._unary(self._health.Check, health_pb2.HealthCheckRequest(service=service), timeout)
        except QuintetError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def wait_ready(self, timeout: float = 60.0, *, service: str = "ready") -> None:
        """Return when the service is SERVING. Raises DeadlineExceeded after `timeout` seconds."""
        wait = ReadyWait(service, timeout)
        while not wait.is_over(self._state(service, wait.left)):
            time.sleep(POLL_SECONDS)

    def _state(self, service: str, timeout: float) -> str:
        try:
            return self.health(service, timeout=timeout)
        except (Unreachable, DeadlineExceeded) as error:
            return error.message
