"""Conversions from domain values to messages that several services share."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TypeVar

from google.protobuf.message import Message
from quintet.v1 import common_pb2

from server.domain.chat import ChatDone
from server.domain.models import ModelIdentity
from server.domain.rag import IndexIdentity
from server.domain.texts import Label

M = TypeVar("M", bound=Message)


def by_name(kind: type[M], value: Any, **more: Any) -> M:
    """A message of the fields that it has in common with a dataclass, and of `more`. Enums must be IntEnums.

    It takes some ten microseconds: messages of which a response has many are written out.
    """
    known = kind.DESCRIPTOR.fields_by_name
    return kind(**{**{name: each for name, each in asdict(value).items() if name in known}, **more})


def model_ref(identity: ModelIdentity) -> common_pb2.ModelRef:
    """The model that answered."""
    return common_pb2.ModelRef(name=identity.name, version=identity.version, digest=identity.digest)


def index_ref(identity: IndexIdentity) -> common_pb2.IndexRef:
    """The state of a collection that answered."""
    return common_pb2.IndexRef(collection=identity.collection, generation=identity.generation)


def labels(values: Iterable[Label]) -> list[common_pb2.Label]:
    """Classes with their probabilities, in the given order."""
    return [common_pb2.Label(label=value.name, score=value.score) for value in values]


def end_of_answer(done: ChatDone) -> dict[str, Any]:
    """The fields by which the last message of an answer says how it was made."""
    usage = by_name(common_pb2.Usage, done.usage, total_tokens=done.usage.total_tokens)
    return {"finish_reason": done.finish_reason.value, "usage": usage, "model": model_ref(done.model)}
