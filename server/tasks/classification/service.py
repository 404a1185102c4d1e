"""quintet.v1.ClassificationService"""

from collections.abc import Collection, Mapping
from typing import Any

from quintet.v1 import classification_pb2, classification_pb2_grpc

from server.domain.context import current
from server.domain.texts import Classifier
from server.models.handle import Handle, find
from server.rpc.access import uses_chosen
from server.rpc.convert import labels, model_ref
from server.rpc.service_spec import FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role

DEFAULT_MODEL = "sentiment"
_MAX_LABELS = 20


class ClassificationServicer(classification_pb2_grpc.ClassificationServiceServicer):
    def __init__(self, classifiers: Mapping[str, Handle[Classifier]]) -> None:
        self._classifiers = classifiers

    async def Classify(
        self, request: classification_pb2.ClassifyRequest, context: Any
    ) -> classification_pb2.ClassifyResponse:
        deadline = current().deadline
        handle = find(self._classifiers, request.model or DEFAULT_MODEL)
        async with handle.use(deadline) as classifier:
            results = await classifier.classify(request.texts, deadline=deadline)
            model = model_ref(classifier.description.identity)
        top_k = request.top_k or _MAX_LABELS
        return classification_pb2.ClassifyResponse(
            results=[
                classification_pb2.ClassificationResult(
                    labels=labels(r.labels[:top_k]), truncated=r.truncated, unknown_share=r.unknown_share
                )
                for r in results
            ],
            model=model,
        )


def spec(classifiers: Mapping[str, Handle[Classifier]], required: Collection[str]) -> ServiceSpec:
    """The service over the classifiers that callers can name. It serves while the required ones can be used."""
    methods = {"Classify": MethodSpec(Role.CALL, FREE, (uses_chosen(DEFAULT_MODEL),))}
    extras = {name: handle for name, handle in classifiers.items() if name not in required}
    needs = tuple(classifiers[name] for name in required)
    return ServiceSpec(ClassificationServicer(classifiers), methods, needs=needs, extras=extras)
