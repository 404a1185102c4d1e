"""`quintet tenants`: what it writes, what it keeps, and that the server accepts the file."""

import json
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quintet_client.cli import tenants as cli_tenants
from quintet_client.cli.failures import UsageError
from quintet_client.cli.tenants_file import edit_file, remove

from server.tenancy.api_keys import id_of
from server.tenancy.tenants_file import Directory, parse
from tests.clients.conftest import COMMAND, ENVIRONMENT, Quintet
from tests.conftest import ROOT
from tests.services import SERVICES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tenants.toml"


def served(file: Path) -> Directory:
    return parse(file.read_bytes(), SERVICES)


def fits(file: Path, key: str) -> bool:
    found = served(file).keys.get(id_of(key) or "")
    return found is not None and found[0].matches(key)


def test_a_tenant_and_its_keys(in_process: Quintet, file: Path) -> None:
    def tenants(*arguments: str) -> subprocess.CompletedProcess[str]:
        return in_process("tenants", *arguments, QUINTET_TENANTS=str(file))

    made = tenants("add", "acme", *("--role", "call", "--role", "ingest"), *("--service", "ChatService"))
    assert made.returncode == 0
    first = made.stdout.removesuffix("\n")
    assert fits(file, first)
    assert made.stderr == f"acme was added to {file}; key {id_of(first)} is shown only this once\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    more = ("--model", "topics", "--certificate", "dns:b.example", "--expires", "90d", "--json")
    other = json.loads(tenants("add", "bob", *more).stdout)
    assert other == {"tenant": "bob", "key_id": id_of(other["key"]), "key": other["key"]}
    found = served(file)
    assert found.tenants["acme"].roles == {"call", "ingest"}
    assert found.tenants["acme"].services == frozenset({"ChatService"})
    assert found.tenants["bob"].models == frozenset({"topics"})
    assert found.certificates["dns:b.example"].name == "bob"
    in_ninety_days = (datetime.now(UTC) + timedelta(days=90)).timestamp()
    assert found.keys[other["key_id"]][0].expires == pytest.approx(in_ninety_days, abs=60)

    second = tenants("rotate", "acme", "--expire-old", "7d").stdout.strip()
    third = tenants("rotate", "acme", "--expire-old", "0").stdout.strip()
    ends = [served(file).keys[str(id_of(key))][0].expires - datetime.now(UTC).timestamp() for key in (first, third)]
    assert ends[0] <= 0, "the earlier end counts"
    assert ends[1] == float("inf")
    assert all(fits(file, key) for key in (first, second, third))

    assert tenants("revoke", "acme", str(id_of(second))).stderr == f"acme: {id_of(second)} revoked\n"
    assert [fits(file, key) for key in (first, second, third)] == [True, False, True]
    wrong = tenants("revoke", "acme", "k0000")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith('error: tenant "acme" has no key k0000; it has: ')
    assert tenants("revoke", "acme", "--all").returncode == 0
    assert [tenant.name for _, tenant in served(file).keys.values()] == ["bob"]
    assert fits(file, tenants("rotate", "acme").stdout.strip())


def test_the_list_shows_no_hash(in_process: Quintet, file: Path) -> None:
    file.write_bytes((ROOT / "data/samples/tenants.toml").read_bytes())
    shown = in_process("tenants", "--file", str(file)).stdout
    assert "k5d0c7e2a" in shown
    assert "2027-11-29 09:00" in shown
    as_json = in_process("tenants", "list", "--file", str(file), "--json").stdout
    acme, operations = map(json.loads, as_json.splitlines())
    assert acme["keys"] == [
        {"id": "k5d0c7e2a", "created": "2026-11-29 09:00:00+00:00", "expires": "2027-11-29 09:00:00+00:00"}
    ]
    assert (operations["roles"], operations["services"], operations["keys"]) == (["admin"], None, [])
    assert "sha256" not in shown + as_json


def test_comments_and_limits_stay(in_process: Quintet, file: Path) -> None:
    before = (ROOT / "data/samples/tenants.toml").read_text()
    file.write_text(before)
    file.chmod(0o640)
    key = in_process("tenants", "--file", str(file), "rotate", "acme").stdout.strip()
    assert fits(file, key)
    after = file.read_text()
    assert next(line for line in after.splitlines() if line not in before.splitlines()).startswith(
        "[tenants.acme.keys.k"
    )
    assert all(line in after.splitlines() for line in before.splitlines())
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(file.parent.iterdir()) == [file], "nothing is left beside it"
    assert not re.search(r"[^\n#].*\n\[", re.sub(r"#.*", "#", after)), "tables stand apart"


def test_a_symbolic_link_is_kept(in_process: Quintet, file: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    file.symlink_to(tmp_path / "real" / "t.toml")
    assert fits(file, in_process("tenants", "add", "acme", "--file", str(file)).stdout.strip())
    assert file.is_symlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add",), "the following arguments are required: NAME"),
        (("list", "acme"), "unrecognized arguments: acme"),
        (("add", "Acme"), "a tenant's name has lower-case letters"),
        (("add", "acme", "k1"), "unrecognized arguments: k1"),
        (("add", "acme", "--role", "king"), "invalid choice: 'king'"),
        (("add", "acme", "--service", "Chat"), "invalid choice: 'Chat'"),
        (("add", "acme", "--expires", "soon"), "must be a time such as 90d, 12h or 30m, not 'soon'"),
        (("rotate", "acme"), "tenants.toml: no such file or directory"),
        (("revoke", "acme"), "give key ids, or --all"),
        (("list",), "tenants.toml: no such file or directory"),
        (("add", "acme", "--file", "missing/t.toml"), "missing: no such file or directory"),
    ],
)
def test_wrong_command_lines(in_process: Quintet, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = in_process("tenants", "--file", "tenants.toml", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[tenants", "is not TOML: "),
        ("tenants = 1", "the file is not a tenants file: tenants is not a table"),
        ("[tenants.bob]", 'there is no tenant "acme"; there are: bob'),
        ("[tenants.acme]\nkeys = 1", "keys is not a table"),
        ("[tenants.acme.keys.k1234]\nexpires = 2027-01-01", "expires = 2027-01-01: must be a time with an offset"),
    ],
)
def test_files_that_are_left_as_they_are(in_process: Quintet, file: Path, content: str, message: str) -> None:
    file.write_text(content)
    done = in_process("tenants", "rotate", "acme", "--expire-old", "1d", "--file", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert file.read_text() == content


def test_an_edit_that_spans_two_seconds_is_consistent(
    in_process: Quintet, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck = iter(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second) for second in range(1000))
    monkeypatch.setattr(cli_tenants, "_from_now", lambda time: next(struck) + time)
    for action in (["add", "acme"], ["rotate", "acme", "--expire-old", "1d"]):
        done = in_process("tenants", *action, "--file", str(file))
        assert done.returncode == 0, done.stderr


def test_edits_at_once_are_all_kept(file: Path) -> None:
    names = [f"tenant{number}" for number in range(5)]

    def add(name: str) -> str:
        command = [*COMMAND, "tenants", "add", name, "--file", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT, timeout=60)
        return done.stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(add, names))
    assert sorted(served(file).tenants) == sorted(names)
    assert all(fits(file, key) for key in keys)


NAMES = st.sampled_from(["a", "b", "c"])
PARTS = st.lists(
    st.one_of(
        NAMES.map(lambda name: f'[tenants.{name}]\nroles = ["call"]  # why\n'),
        st.tuples(NAMES, st.sampled_from(["k1", "k2"])).map(lambda at: f'[tenants.{at[0]}.keys.{at[1]}]\nhash = "x"\n'),
        NAMES.map(lambda name: f"# of {name}\n[tenants.{name}.limits]\nconcurrent_calls = 3\n"),
        NAMES.map(lambda name: f"[tenants.{name}.service_limits.X]\ntoken_burst = 1\n\n\n"),
    ),
    max_size=8,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@example(
    ["[tenants.b.keys.k1]\n", "# of a\n[tenants.a.limits]\nconcurrent_calls = 3\n", "[tenants.b.keys.k2]\n"],
    "b",
    "delete",
)
@given(PARTS, NAMES, st.sampled_from(["set", "delete", "extend"]))
def test_any_order_of_tables_is_edited_rightly_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], name: str, what: str
) -> None:
    text = "".join(parts)
    try:
        before = tomllib.loads(text)
        tomlkit.parse(text)
    except ValueError:
        return
    file = tmp_path_factory.mktemp("layout") / "t.toml"
    file.write_text(text)

    def edit(content: MutableMapping[str, Any]) -> None:
        keys = content.setdefault("tenants", {}).setdefault(name, {}).setdefault("keys", {})
        if what == "delete":
            if "k1" in keys:
                remove(keys, "k1")
        elif what == "extend" and "k1" in keys:
            keys["k1"]["expires"] = datetime(2027, 1, 1, tzinfo=UTC)
        keys["new"] = {"hash": "y"}

    expected = tomllib.loads(text)
    edit(expected)
    try:
        edit_file(file, edit)
    except UsageError:
        assert tomllib.loads(file.read_text()) == before
        return
    assert tomllib.loads(file.read_text()) == expected
    assert file.read_text().count("#") == text.count("#")


def test_keys_are_never_arguments() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quintet_client", "tenants", "--help"], capture_output=True, text=True, check=True
    )
    options = set(re.findall(r"--[a-z-]+", done.stdout))
    assert {option for option in options if "key" in option} == {"--api-key-file", "--tls-key"}


def test_key_files_are_readable_by_their_owner_alone(in_process: Quintet, file: Path, tmp_path: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    key_file = tmp_path / "acme.key"
    made = in_process("tenants", "add", "acme", "--file", str(file), "--key-file", str(key_file))
    assert (made.returncode, made.stdout) == (0, "")
    first = key_file.read_text().strip()
    assert fits(file, first)
    assert made.stderr == f"acme was added to {file}; key {id_of(first)} is in {key_file}\n"
    assert mode(key_file) == 0o600

    key_file.chmod(0o644)
    in_process("tenants", "rotate", "acme", "--file", str(file), "--key-file", str(key_file))
    second = key_file.read_text().strip()
    assert second != first
    assert fits(file, second)
    assert mode(key_file) == 0o600

    for arguments in (("add", "acme"), ("rotate", "nobody")):  # the edit fails
        assert in_process("tenants", *arguments, "--file", str(file), "--key-file", str(key_file)).returncode == 2
        assert key_file.read_text().strip() == second
    no_folder = in_process("tenants", "add", "bob", "--file", str(file), "--key-file", str(tmp_path / "no" / "key"))
    assert no_folder.returncode == 2
    assert no_folder.stderr == f"error: {tmp_path}/no/key: no such file or directory\n"
    device = in_process("tenants", "add", "bob", "--file", str(file), "--key-file", "/dev/null")
    assert (device.returncode, device.stderr) == (2, "error: /dev/null: not a regular file\n")
    assert "bob" not in file.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acme.key", "tenants.toml"]


def test_a_key_that_is_redirected_into_a_file_is_protected(file: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "tenants", "add", "acme", "--file", str(file)]
    with (tmp_path / "acme.key").open("w") as output:
        subprocess.run(command, stdout=output, check=True, env=ENVIRONMENT, timeout=60)
    assert stat.S_IMODE((tmp_path / "acme.key").stat().st_mode) == 0o600
