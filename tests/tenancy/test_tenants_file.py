"""The tenants file: its content, its errors, and its reloading."""

import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain import reloading_file
from server.domain.access import Grants, Quotas
from server.domain.money import micros
from server.domain.reloading_file import BadFile
from server.tenancy.tenants import Limits, Role
from server.tenancy.tenants_file import TenantsFile, parse
from tests.conftest import ROOT
from tests.services import SERVICES
from tests.tenants import add_tenant, replace
from tests.waiting import until

GOOD = f'[tenants.a.keys.k12345678]\nhash = "sha256:{"0" * 32}:{"0" * 64}"\n'


def test_the_example_says_all() -> None:
    found = parse((ROOT / "data/samples/tenants.toml").read_bytes(), SERVICES)
    acme, operations = found.tenants["acme"], found.tenants["operations"]
    assert acme.roles == {Role.CALL, Role.INGEST}
    assert acme.services == frozenset({"ChatService", "RagService", "ClassificationService", "UsageService"})
    assert acme.models == frozenset({"sentiment", "embedder", "qwen2.5-coder-1.5b-instruct"})
    assert acme.limits == Limits(
        requests_per_minute=600,
        request_burst=100,
        tokens_per_minute=200_000,
        token_burst=100_000,
        concurrent_calls=16,
        tokens_per_day=5_000_000,
        tokens_per_month=100_000_000,
        micros_per_day=12_500_000,
        micros_per_month=250_000_000,
    )
    assert acme.service_limits == {"ChatService": Limits(tokens_per_minute=50_000, concurrent_calls=4)}
    assert (operations.roles, operations.services, operations.models) == (frozenset({Role.ADMIN}), None, None)
    assert found.grants == {
        "handbook": Grants("acme", frozenset({"operations"})),
        "wikipedia": Grants(read=frozenset({"*"})),
    }
    assert found.quotas == {"acme": Quotas(10, 100_000, 10_000_000_000)}
    assert [(id, tenant.name) for id, (_, tenant) in found.keys.items()] == [("k5d0c7e2a", "acme")]
    assert {identity: tenant.name for identity, tenant in found.certificates.items()} == {
        "dns:worker.acme.example": "acme",
        "uri:spiffe://acme.example/worker": "acme",
        "cn:operations": "operations",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "tenants: Field required"),
        ("[tenants]", "tenants: Dictionary should have at least 1 item"),
        ("[tenants.a]\nroles = [", "not TOML: Invalid value (at end of document)"),
        ("[tenants.a]\n\n[tenants.a]", "(at line 3, column 11)"),
        ("[tenants.A]", "tenants.A: String should match pattern"),
        ("[tenants.a]\nrole = 1", "tenants.a.role: Extra inputs are not permitted"),
        ("[tenants.a]\nroles = ['root']", "tenants.a.roles.0: Input should be 'call', 'ingest' or 'admin'"),
        ("[tenants.a]\nservices = ['Chat']", 'tenants.a.services: no service "Chat"; there are AnalysisService, Ch'),
        ("[tenants.a.service_limits.Chat]", 'tenants.a.service_limits: no service "Chat"'),
        ("[tenants.a]\ncertificates = ['x']", 'tenants.a.certificates.0: must be "dns:NAME", "uri:URI" or "cn:NAME"'),
        ("[tenants.a.limits]\nmoney_per_day = 1.5", "tenants.a.limits.money_per_day: must be a decimal in quotes"),
        (
            "[tenants.a.limits]\nrequests_per_minute = 0",
            "tenants.a.limits.requests_per_minute: Input should be greater",
        ),
        ("[tenants.a.limits]\nconcurrent_calls = true", "tenants.a.limits.concurrent_calls: Input should be a valid"),
        ("[tenants.a.limits]\ntoken_burst = 5", "tenants.a.limits: token_burst needs tokens_per_minute"),
        ("[tenants.a.keys.k1234]", "tenants.a.keys.k1234.hash: Field required"),
        ("[tenants.a.keys.K_]\nhash = 'x'", "tenants.a.keys.K_: String should match pattern"),
        ("[tenants.a.keys.k1234]\nhash = 'hunter2'", "tenants.a.keys.k1234.hash: must be sha256:SALT:DIGEST"),
        (GOOD + "expires = 2027-01-01T00:00:00", "tenants.a.keys.k12345678.expires: Input should have timezone info"),
        (GOOD + GOOD.replace("tenants.a", "tenants.b"), 'keys.k12345678: "k12345678" belongs to tenants.a'),
        (
            "[tenants.a]\ncertificates = ['dns:X.example']\n[tenants.b]\ncertificates = ['dns:x.EXAMPLE']",
            'tenants.b.certificates: "dns:x.example" belongs to tenants.a',
        ),
        ("[tenants.a.quotas]\ndocuments = -1", "tenants.a.quotas.documents: Input should be greater"),
        ("[tenants.a.quotas]\nfiles = 1", "tenants.a.quotas.files: Extra inputs are not permitted"),
        ("[tenants.a]\n[collections.X]", "collections.X: String should match pattern"),
        ("[tenants.a]\n[collections.x]\nreaders = []", "collections.x.readers: Extra inputs are not permitted"),
        ("[tenants.a]\n[collections.x]\nowner = '*'", 'collections.x.owner: must be one tenant, not "*"'),
        ("x = " + "[" * 100_000, "nested too deeply"),
        ("x = " + "9" * 5_000, "not TOML: Exceeds the limit"),
        ("[tenants.a]\n" + "\n".join(f"x{n} = 1" for n in range(9)), "; and 4 more"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(BadFile) as caught:
        parse(text.encode(), SERVICES)
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_content_is_taken_or_refused(content: bytes) -> None:
    with contextlib.suppress(BadFile):
        assert parse(content, SERVICES).tenants


@given(st.integers(0, 10**9 - 1), st.integers(0, 6), st.data())
def test_money_is_exact(whole: int, places: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, 10**places - 1))
    text = f"{whole}.{part:0{places}d}" if places else str(whole)
    assert micros(text) == whole * 1_000_000 + part * 10 ** (6 - places)


@given(st.text(max_size=12) | st.floats() | st.integers() | st.booleans())
def test_what_is_no_money_is_refused(value: object) -> None:
    try:
        found = micros(value)
    except ValueError:
        return
    assert isinstance(value, str)
    assert value.isascii()
    assert found == Decimal(value) * 1_000_000


@pytest.fixture
async def reloading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TenantsFile]:
    monkeypatch.setattr(reloading_file, "_POLL_SECONDS", 0.05)
    path = tmp_path / "tenants.toml"
    add_tenant(path, "acme")
    file = TenantsFile(path, SERVICES)
    async with file.reloading():
        yield file


@pytest.mark.parametrize("how", ["renamed", "in place"])
async def test_a_change_is_noticed(reloading: TenantsFile, tmp_path: Path, how: str) -> None:
    path = tmp_path / "tenants.toml"
    if how == "renamed":
        add_tenant(path, "bob", 'roles = ["admin"]')
    else:
        path.write_text(path.read_text() + '[tenants.bob]\nroles = ["admin"]')
    await until(lambda: reloading.tenant("bob"))
    assert reloading.tenant("acme")
    bob = reloading.tenant("bob")
    assert bob
    assert bob.roles == {Role.ADMIN}
    path.write_text(path.read_text().replace('["admin"]', '["call"] '))  # of the same size, perhaps in the same tick
    await until(lambda: (bob := reloading.tenant("bob")) and bob.roles == {Role.CALL})


@pytest.mark.parametrize("broken", ["", "[tenants.acme", "[tenants.acme]\nroles = 1", None])
async def test_broken_content_changes_nothing_but_the_problem(
    reloading: TenantsFile, tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tenants.toml"
    good, before = path.read_text(), reloading.latest
    if broken is None:
        path.unlink()
    else:
        replace(path, broken)
    await until(lambda: reloading.problem)
    assert reloading.problem.startswith(f"{path}: ")
    assert reloading.latest is before
    assert f"invalid tenants are ignored, the current ones stay: {path}: " in caplog.text
    replace(path, good)
    await until(lambda: not reloading.problem)
    assert reloading.tenant("acme")


def test_a_server_does_not_start_without_its_tenants(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file or directory"):
        TenantsFile(tmp_path / "none.toml", SERVICES)
    (tmp_path / "large.toml").write_bytes(b"#" * (16 * 2**20 + 1))
    with pytest.raises(BadFile, match="larger than 16777216 bytes"):
        TenantsFile(tmp_path / "large.toml", SERVICES)


def test_a_removed_tenant_is_gone_although_grants_name_it(tmp_path: Path) -> None:
    """An operator who removes a table in haste is not told to mend other tables first."""
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.a]\n[collections.x]\nowner = 'b'\nread = ['a', 'c', '*']\n")
    file = TenantsFile(path, SERVICES)
    assert list(file.latest.tenants) == ["a"]
    assert file.warnings == [
        f'{path}: collections.x.owner: there is no tenant "b"',
        f'{path}: collections.x.read: there is no tenant "c"',
    ]
