"""Conversions from domain values to messages that several services share."""

from collections.abc import Iterable

from quintet.v1 import common_pb2

from server.domain.chat import ChatDone
from server.domain.models import ModelIdentity
from server.domain.rag import IndexIdentity
from server.domain.texts import Label
from server.domain.usage import Usage


def model_ref(identity: ModelIdentity) -> common_pb2.ModelRef:
    """The model that answered."""
    return common_pb2.ModelRef(name=identity.name, version=identity.version, digest=identity.digest)


def index_ref(identity: IndexIdentity) -> common_pb2.IndexRef:
    """The state of a collection that answered."""
    return common_pb2.IndexRef(collection=identity.collection, generation=identity.generation)


def labels(values: Iterable[Label]) -> list[common_pb2.Label]:
    """Classes with their probabilities, in the given order."""
    return [common_pb2.Label(label=value.name, score=value.score) for value in values]


def usage(value: Usage) -> common_pb2.Usage:
    """Tokens and cost of a generation."""
    return common_pb2.Usage(
        prompt_tokens=value.prompt_tokens,
        completion_tokens=value.completion_tokens,
        total_tokens=value.total_tokens,
        source=common_pb2.UsageSource.ValueType(value.source.value),
        cost_micros=value.cost_micros,
        currency=value.currency,
        cached_tokens=value.cached_tokens,
    )


def finish_reason(done: ChatDone) -> common_pb2.FinishReason.ValueType:
    """Why a generation ended."""
    return common_pb2.FinishReason.ValueType(done.finish_reason.value)
