"""Every method of the contract has a role, so that none is open by oversight."""

from quintet.v1 import usage_pb2

from server.rpc.auth import ROLES
from server.tenancy.tenants import Role
from tests.contract.test_limits import FILES


def test_every_method_has_a_row() -> None:
    services = {s.name: s for file in {*FILES, usage_pb2} for s in file.DESCRIPTOR.services_by_name.values()}
    assert {name: set(methods) for name, methods in ROLES.items()} == {
        name: {method.name for method in service.methods} for name, service in services.items()
    }


def test_what_writes_is_for_those_who_may_write() -> None:
    writes = ("Add", "Import", "Delete", "Create", "Compact", "Rollback", "Reindex")
    for methods in ROLES.values():
        for method, role in methods.items():
            assert (role is Role.INGEST) == method.startswith(writes), method
            assert (role is Role.ADMIN) == method.startswith(("Load", "Unload", "Reload", "Set", "Watch")), method
