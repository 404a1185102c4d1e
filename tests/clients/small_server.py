"""Analysis, models and health of the small server, and the server itself."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from quintet.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    chat_pb2_grpc,
    classification_pb2_grpc,
    common_pb2,
    errors_pb2,
    model_pb2,
    model_pb2_grpc,
    pricing_pb2_grpc,
    rag_pb2_grpc,
    usage_pb2_grpc,
)
from quintet_client.contract import SERVICES

from tests.clients.rag_servicer import Rag
from tests.clients.recorder import Recorder, RecordingInterceptor
from tests.clients.servicers import MODEL, Chat, Classification, Context, Pricing
from tests.clients.usage_servicer import Usage


class Analysis(analysis_pb2_grpc.AnalysisServiceServicer):
    """Names are capitalised words, sentences end with a full stop; the rest of the tasks fail."""

    def Analyze(self, request: analysis_pb2.AnalyzeRequest, context: Context) -> analysis_pb2.AnalyzeResponse:
        response = analysis_pb2.AnalyzeResponse()
        for event in self._events(request):
            kind = event.WhichOneof("event")
            if kind == "failure":
                response.failures.append(event.failure)
            elif kind != "done":
                getattr(response, str(kind)).CopyFrom(getattr(event, str(kind)))
        return response

    def StreamAnalyze(
        self, request: analysis_pb2.StreamAnalyzeRequest, context: Context
    ) -> Iterator[analysis_pb2.StreamAnalyzeResponse]:
        yield from self._events(request)

    def _events(
        self, request: analysis_pb2.AnalyzeRequest | analysis_pb2.StreamAnalyzeRequest
    ) -> Iterator[analysis_pb2.StreamAnalyzeResponse]:
        failed = 0
        for task in request.tasks:
            if (event := self._result(task, request.text)) is None:
                failed += 1
                reason = errors_pb2.ERROR_REASON_MODEL_UNAVAILABLE
                failure = analysis_pb2.TaskFailure(task=task, reason=reason, message="run: make models")
                event = analysis_pb2.StreamAnalyzeResponse(failure=failure)
            yield event
        done = analysis_pb2.AnalyzeDone(succeeded_count=len(request.tasks) - failed, failed_count=failed)
        yield analysis_pb2.StreamAnalyzeResponse(done=done)

    @staticmethod
    def _result(task: int, text: str) -> analysis_pb2.StreamAnalyzeResponse | None:
        a = analysis_pb2
        if task == a.ANALYSIS_TASK_ENTITIES:
            names = re.finditer(r"[A-Z]\w+", text)
            found = [a.Entity(text=m[0], type="PERSON", start=m.start(), end=m.end()) for m in names]
            return a.StreamAnalyzeResponse(entities=a.EntitiesResult(entities=found, model=MODEL))
        if task == a.ANALYSIS_TASK_SENTENCES:
            spans = [a.TextSpan(start=m.start(), end=m.end(), text=m[0]) for m in re.finditer(r"\S[^.]*\.", text)]
            return a.StreamAnalyzeResponse(sentences=a.SentencesResult(sentences=spans, model=MODEL))
        if task == a.ANALYSIS_TASK_LANGUAGE:
            labels = [common_pb2.Label(label="en", score=0.97), common_pb2.Label(label="nl", score=0.001)]
            return a.StreamAnalyzeResponse(language=a.LanguageResult(labels=labels, model=MODEL))
        if task == a.ANALYSIS_TASK_KEY_PHRASES:
            phrases = [a.KeyPhrase(text=m[0], score=1, count=1) for m in re.finditer(r"\w{6,}", text)]
            return a.StreamAnalyzeResponse(key_phrases=a.KeyPhrasesResult(key_phrases=phrases, model=MODEL))
        if task == a.ANALYSIS_TASK_SYNTAX:
            tokens = [
                a.Token(text=m[0], lemma=m[0].lower(), pos="X", dependency="dep", head=max(0, n - 1), start=m.start())
                for n, m in enumerate(re.finditer(r"\w+", text))
            ]
            return a.StreamAnalyzeResponse(syntax=a.SyntaxResult(tokens=tokens, model=MODEL))
        return None


class Models(model_pb2_grpc.ModelServiceServicer):
    """Two models: one is ready, one has failed."""

    def __init__(self) -> None:
        self.services = [model_pb2.ServiceStatus(name=name, serving=True) for name in sorted(SERVICES)]
        self.models = [
            model_pb2.Model(
                ref=common_pb2.ModelRef(name="house-prices", version="1-abc", digest="sha256:0"),
                task=model_pb2.MODEL_TASK_REGRESSION,
                state=model_pb2.MODEL_STATE_READY,
                engine="sklearn",
                features=[
                    model_pb2.Feature(name="year_built", minimum=1872, maximum=2010),
                    model_pb2.Feature(name="kitchen_quality", allowed_values=["Ex", "Gd", "TA"]),
                ],
                metrics={"r2": 0.90713, "error_usd": 14901.4},
                licence="GPL-3",
                size_bytes=1_234_567,
                create_time=Timestamp(seconds=1_780_000_000),
            ),
            model_pb2.Model(
                ref=common_pb2.ModelRef(name="topics"),
                task=model_pb2.MODEL_TASK_CLASSIFICATION,
                state=model_pb2.MODEL_STATE_FAILED,
                state_message="the artefact is missing; run: make models",
            ),
        ]

    def ListModels(self, request: model_pb2.ListModelsRequest, context: Context) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=self.models)

    def GetModel(self, request: model_pb2.GetModelRequest, context: Context) -> model_pb2.GetModelResponse:
        return model_pb2.GetModelResponse(model=next(each for each in self.models if each.ref.name == request.name))

    def LoadModel(self, request: model_pb2.LoadModelRequest, context: Context) -> model_pb2.LoadModelResponse:
        return model_pb2.LoadModelResponse(model=self._moved(request.name, model_pb2.MODEL_STATE_READY))

    def UnloadModel(self, request: model_pb2.UnloadModelRequest, context: Context) -> model_pb2.UnloadModelResponse:
        return model_pb2.UnloadModelResponse(model=self._moved(request.name, model_pb2.MODEL_STATE_UNLOADED))

    def ReloadModel(self, request: model_pb2.ReloadModelRequest, context: Context) -> model_pb2.ReloadModelResponse:
        return model_pb2.ReloadModelResponse(model=self._moved(request.name, model_pb2.MODEL_STATE_READY))

    def SetAlias(self, request: model_pb2.SetAliasRequest, context: Context) -> model_pb2.SetAliasResponse:
        model = self._moved(request.name, model_pb2.MODEL_STATE_READY)
        model.aliases[request.alias] = request.target
        return model_pb2.SetAliasResponse(model=model)

    def WatchModels(
        self, request: model_pb2.WatchModelsRequest, context: Context
    ) -> Iterator[model_pb2.WatchModelsResponse]:
        yield model_pb2.WatchModelsResponse(snapshot=model_pb2.ModelsSnapshot(models=self.models))
        yield model_pb2.WatchModelsResponse(changed=self.models[1])
        yield model_pb2.WatchModelsResponse(done=model_pb2.WatchModelsDone())

    def _moved(self, name: str, state: model_pb2.ModelState.ValueType) -> model_pb2.Model:
        model = next(each for each in self.models if each.ref.name == name)
        model.state, model.state_message = state, ""
        return model

    def GetServerInfo(
        self, request: model_pb2.GetServerInfoRequest, context: Context
    ) -> model_pb2.GetServerInfoResponse:
        return model_pb2.GetServerInfoResponse(
            version="9.9.9",
            api_version="quintet.v1",
            start_time=Timestamp(seconds=1_780_000_000),
            current_time=Timestamp(seconds=1_780_003_723),
            limits=model_pb2.ServerLimits(
                max_request_bytes=4194304, max_concurrent_calls=512, default_deadline_seconds=300
            ),
            services=self.services,
        )


@dataclass
class SmallServer:
    """A running server: the calls that it recorded, its documents, models and health."""

    recorder: Recorder
    rag: Rag
    models: Models
    health: health.HealthServicer
    address: str = ""

    def set_health(self, service: str, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set(service, status.SERVING if serving else status.NOT_SERVING)


@contextmanager
def running(credentials: grpc.ServerCredentials | None = None, port: int = 0) -> Iterator[SmallServer]:
    """Serve on a port of 127.0.0.1 while the body runs."""
    recorder = Recorder()
    small = SmallServer(recorder, Rag(), Models(), health.HealthServicer())
    with ThreadPoolExecutor(8) as pool:
        options = [("grpc.max_receive_message_length", 8 << 20), ("grpc.so_reuseport", 0)]
        server = grpc.server(pool, interceptors=[RecordingInterceptor(recorder)], options=options)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(Classification(), server)
        pricing_pb2_grpc.add_PricingServiceServicer_to_server(Pricing(), server)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(Chat(recorder), server)
        rag_pb2_grpc.add_RagServiceServicer_to_server(small.rag, server)
        analysis_pb2_grpc.add_AnalysisServiceServicer_to_server(Analysis(), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(small.models, server)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(Usage(), server)
        health_pb2_grpc.add_HealthServicer_to_server(small.health, server)
        for service in ("", "ready", *SERVICES):
            small.set_health(service, True)
        host = "localhost" if credentials else "127.0.0.1"
        target = f"{host}:{port}"
        bound = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
        small.address = f"{host}:{bound}"
        server.start()
        try:
            yield small
        finally:
            recorder.ended.set()
            server.stop(None).wait()
