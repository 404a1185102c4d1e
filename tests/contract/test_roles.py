"""Every method of the contract has a role and a cost, so that none is open by oversight."""

from typing import Any

import pytest
from quintet.v1 import chat_pb2_grpc

from server.domain.access import Right
from server.rpc.access import MANAGES_USAGE, SEES_SERVER
from server.rpc.service_spec import ANY_ROLE, FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role
from tests.services import SERVICES, methods


def test_every_method_has_a_row() -> None:
    assert {name: set(rows) for name, rows in methods().items()} == {
        name: {method.name for method in service.methods} for name, service in SERVICES.items()
    }


def test_what_writes_is_for_those_who_may_write() -> None:
    writes = ("Add", "Import", "Delete", "Create", "Compact", "Rollback", "Reindex")
    for rows in methods().values():
        for name, method in rows.items():
            assert (method.role is Role.INGEST) == name.startswith(writes), name
            assert (method.role is Role.ADMIN) == name.startswith(("Load", "Unload", "Reload", "Set", "Watch")), name


def test_rights_go_with_roles() -> None:
    writes = (Right.WRITE, Right.ADD, Right.CREATE, Right.DELETE)
    needed: dict[Right, set[Role | None]] = {right: {Role.INGEST} for right in writes}
    needed |= {Right.READ: {Role.CALL}, Right.USE: {Role.CALL, Role.INGEST}}
    needed |= {Right.MANAGE: {Role.ADMIN}, Right.SEE: {Role.CALL, ANY_ROLE}}
    for rows in methods().values():
        for name, method in rows.items():
            for touch in method.touches:
                assert method.role in needed[touch.right], (name, touch.right)


def test_what_asks_a_language_model_has_a_cost() -> None:
    asking = {name for rows in methods().values() for name, method in rows.items() if method.cost is not FREE}
    assert asking == {"Chat", "StreamChat", "Ask", "StreamAsk"}


def row(methods: dict[str, MethodSpec]) -> ServiceSpec:
    servicer = type("Servicer", (chat_pb2_grpc.ChatServiceServicer,), {})()
    return ServiceSpec(servicer, methods)


def test_a_forgotten_method_or_one_that_does_not_exist_stops_the_start() -> None:
    free: Any = MethodSpec(Role.CALL, FREE, (SEES_SERVER,))
    assert row({"Chat": free, "StreamChat": free})
    with pytest.raises(ValueError, match=r"quintet\.v1\.ChatService: no role and cost for StreamChat"):
        row({"Chat": free})
    with pytest.raises(ValueError, match=r"quintet\.v1\.ChatService has no method Listen"):
        row({"Chat": free, "StreamChat": free, "Listen": free})
    with pytest.raises(TypeError, match="touches"):
        MethodSpec(Role.CALL, FREE)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="must say what the method touches"):
        MethodSpec(Role.CALL, FREE, ())
    with pytest.raises(ValueError, match="needs the role admin"):
        MethodSpec(Role.CALL, FREE, (MANAGES_USAGE,))
