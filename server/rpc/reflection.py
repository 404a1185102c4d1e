"""grpc.reflection v1alpha and v1. The package has only v1alpha; v1 uses the same messages."""

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

_VERSIONS = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")


def add_reflection(server: Any, services: Sequence[str]) -> None:
    """Serve the descriptors of `services` to clients. `server` takes handlers like a grpc.aio.Server."""
    servicer = reflection.aio.ReflectionServicer([*services, *_VERSIONS])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in _VERSIONS:
        server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})
