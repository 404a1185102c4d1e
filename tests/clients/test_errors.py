"""From statuses to exceptions, through a real server."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from quintet.v1 import errors_pb2
from quintet_client import QuintetClient, QuintetError, errors

from tests.clients.recorder import Failure
from tests.clients.small_server import SmallServer

REASONS = [
    name.removeprefix("ERROR_REASON_")
    for name in errors_pb2.ErrorReason.keys()  # noqa: SIM118 - it is no dict
    if not name.endswith("UNSPECIFIED")
]


def fail(server: SmallServer, failure: Failure) -> QuintetError:
    """The exception that a client raises for a failed chat, which is not retried."""
    server.recorder.failures["Chat"].append(failure)
    with QuintetClient(server.address) as client, pytest.raises(QuintetError) as raised:
        client.chat("hello")
    return raised.value


def test_every_reason_of_the_contract_has_its_own_class() -> None:
    assert set(errors.BY_REASON) == set(REASONS)
    assert len(set(errors.BY_REASON.values())) == len(REASONS)


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_decides_not_the_code(server: SmallServer, reason: str) -> None:
    error = fail(server, Failure(grpc.StatusCode.ABORTED, reason, "so it is"))
    assert type(error) is errors.BY_REASON[reason]
    assert (error.reason, error.code, str(error)) == (reason, grpc.StatusCode.ABORTED, "so it is")


def test_details_arrive(server: SmallServer) -> None:
    violations = [("houses[0].neighborhood", "must be one of NAmes, Gilbert"), ("", "and 3 more")]
    failure = Failure(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "ungültig: 50 %", retry_after=1.25, violations=violations
    )
    error = fail(server, failure)
    assert isinstance(error, errors.InvalidRequest)
    assert error.message == "ungültig: 50 %"
    assert list(error.violations) == violations
    assert error.retry_after == 1.25
    assert error.request_id == server.recorder.seen[0].metadata["x-request-id"]


def test_the_servers_request_id_counts(server: SmallServer) -> None:
    failure = Failure(grpc.StatusCode.INTERNAL, "INTERNAL", more=[("request_id", "the-servers")])
    assert fail(server, failure).request_id == "the-servers"


def test_a_reason_from_the_future_is_a_plain_error(server: SmallServer) -> None:
    error = fail(server, Failure(grpc.StatusCode.UNAVAILABLE, "SOLAR_FLARE", retry_after=3))
    assert type(error) is QuintetError
    assert (error.reason, error.retry_after) == ("SOLAR_FLARE", 3)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, QuintetError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, QuintetError),
    ],
)
def test_without_error_info_the_code_decides(
    server: SmallServer, code: grpc.StatusCode, expected: type[QuintetError]
) -> None:
    error = fail(server, Failure(code))
    assert type(error) is expected
    assert (error.reason, error.retry_after, error.violations) == ("", None, ())
    assert error.request_id


class ProxiedError(grpc.RpcError):
    """A status whose details contradict the code, as a proxy can produce it."""

    def __init__(self, details: bytes) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "upstream connect error"

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", self._details),)


@pytest.mark.parametrize("details", [b"\xff\xff no message", status_pb2.Status(code=5).SerializeToString()])
def test_details_that_contradict_the_status_are_left_out(details: bytes) -> None:
    error = errors.translate(ProxiedError(details), "mine")
    assert isinstance(error, errors.Unreachable)
    assert error.request_id == "mine"


def test_error_info_of_another_service_is_not_ours() -> None:
    status = status_pb2.Status(code=14, message="upstream connect error")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="MODEL_LOADING", domain="elsewhere.example"))
    assert isinstance(errors.translate(ProxiedError(status.SerializeToString()), ""), errors.Unreachable)
