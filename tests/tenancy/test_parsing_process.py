"""Large tenants files are parsed in another process, with the same result."""

import secrets
import sys
from pathlib import Path

import pytest

from server.domain import reloading_file
from server.domain.reloading_file import BadFile
from server.tenancy import parsing_process, tenants_file
from server.tenancy.parsing_process import parse_apart
from server.tenancy.tenants_file import TenantsFile, parse
from tests.services import SERVICES
from tests.waiting import until


def large(count: int = 350) -> str:
    return "".join(
        f'[tenants.t{number}]\nroles = ["ingest"]\ncertificates = ["dns:t{number}.example"]\n'
        f'[tenants.t{number}.limits]\nmoney_per_day = "1.50"\n'
        f"[tenants.t{number}.keys.k{number:08d}]\nexpires = 2030-01-01T00:00:00Z\n"
        f'hash = "sha256:{secrets.token_hex(16)}:{secrets.token_hex(32)}"\n'
        for number in range(count)
    )


async def test_the_result_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = large()
    (tmp_path / "tenants.toml").write_text(content)
    expected = parse(content.encode(), SERVICES)
    file = TenantsFile(tmp_path / "tenants.toml", SERVICES)
    (tmp_path / "tenants.toml").write_text("# changed\n" + content)
    monkeypatch.setattr(parsing_process, "parse", None)  # this process does not parse any more
    monkeypatch.setattr(tenants_file, "parse", None)
    monkeypatch.setattr(reloading_file, "_POLL_SECONDS", 0.02)
    before = file.latest
    async with file.reloading():
        await until(lambda: file.latest is not before, 60)
    found = file.latest
    assert found == expected
    assert all(found.tenants[tenant.name] is tenant for _, tenant in found.keys.values())
    assert all(found.tenants[tenant.name] is tenant for tenant in found.certificates.values())


def test_problems_are_the_same() -> None:
    content = large(1).replace("money_per_day", "money").encode() + b"role = 1"
    with pytest.raises(BadFile) as expected:
        parse(content, SERVICES)
    with pytest.raises(BadFile) as found:
        parse_apart(content, SERVICES)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("program", ["/bin/false", "/no/such/program"])
def test_without_the_process_the_server_parses(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program)
    content = large().encode()
    assert parse_apart(content, SERVICES) == parse(content, SERVICES)
