"""`quintet tenants grant`, `ungrant` and `grants`: the entries of collections, as the server reads them."""

import json
from pathlib import Path

import pytest

from server.domain.access import Grants
from server.tenancy.tenants_file import parse
from tests.clients.conftest import Quintet
from tests.services import SERVICES
from tests.tenants import add_tenant


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.toml"
    for name in ("docs", "shop"):
        add_tenant(path, name)
    return path


def grants(file: Path) -> dict[str, Grants]:
    return dict(parse(file.read_bytes(), SERVICES).grants)


def test_grants_are_given_and_withdrawn(in_process: Quintet, file: Path) -> None:
    def tenants(*arguments: str) -> str:
        done = in_process("tenants", "--file", str(file), *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    tenants("grant", "wikipedia", "--read", "*")
    tenants("grant", "handbook", "--owner", "docs", "--write", "shop")
    tenants("grant", "handbook", "--read", "shop", "--read", "docs")
    assert grants(file) == {
        "wikipedia": Grants(read=frozenset({"*"})),
        "handbook": Grants("docs", frozenset({"shop", "docs"}), frozenset({"shop"})),
    }
    table = tenants("grants")
    assert [line.split() for line in table.splitlines()] == [
        ["COLLECTION", "OWNER", "READ", "WRITE"],
        ["wikipedia", "-", "*", "-"],
        ["handbook", "docs", "docs,", "shop", "shop"],
    ]
    shown = [json.loads(line) for line in tenants("grants", "--json").splitlines()]
    assert shown[1] == {"collection": "handbook", "owner": "docs", "read": ["docs", "shop"], "write": ["shop"]}
    tenants("ungrant", "handbook", "shop")
    assert grants(file)["handbook"] == Grants("docs", frozenset({"docs"}))
    tenants("ungrant", "wikipedia", "--all")
    assert list(grants(file)) == ["handbook"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grant", "Wiki", "--read", "*"), "a collection's name has lower-case letters"),
        (("grant", "wiki"), "give --read, --write or --owner"),
        (("grant", "wiki", "--read", "nobody"), 'there is no tenant "nobody"; there are: docs, shop'),
        (("grant", "wiki", "--owner", "*"), 'there is no tenant "*"'),
        (("ungrant", "wiki", "shop"), 'there is no entry for collection "wiki"; there are: notes'),
        (("ungrant", "notes", "shop"), 'collection "notes" is not shared with "shop"'),
        (("ungrant", "notes"), "give tenants, or --all"),
    ],
)
def test_wrong_grants_change_nothing(in_process: Quintet, file: Path, arguments: tuple[str, ...], message: str) -> None:
    before = file.read_text() + '[collections.notes]\nowner = "docs"\n'
    file.write_text(before)
    done = in_process("tenants", "--file", str(file), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert file.read_text() == before
