"""`quintet tenants` edits the file that says who may call a server. It does not call the server."""

import argparse
import contextlib
import hashlib
import os
import re
import secrets
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from quintet_client.cli.failures import OK, UsageError, os_reason
from quintet_client.cli.options import AddCommand, duration
from quintet_client.cli.tenants_file import Table, edit_file, read_file, remove, table, tenant_of, written_aside
from quintet_client.cli.terminal import Cell, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import SERVICES

DEFAULT_FILE = "data/tenants.toml"
_ROLES = ("call", "ingest", "admin")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_HEADER = """\
# Who may call. The server reloads this file when it changes. Edit it with `quintet tenants` or by hand.
# Keys are stored as salted hashes: a lost key cannot be recovered, only replaced.
"""


def register(add: AddCommand) -> None:
    tenants = add(
        "tenants",
        run_list,
        "[ACTION]",
        "list or edit the tenants in a server's file",
        """  quintet tenants
  quintet tenants add acme --role call --role ingest > acme.key   the key is shown once
  quintet tenants rotate acme --expire-old 7d > acme.key          a new key, old ones expire""",
        has_actions=True,
    )
    listing = add("tenants list", run_list, "", "list the tenants and their keys")
    adding = add("tenants add", run_add, "NAME", "add a tenant and print its key")
    rotating = add(
        "tenants rotate",
        run_rotate,
        "NAME",
        "add a key to a tenant and print it",
        """  quintet tenants rotate acme --key-file acme.key
  quintet tenants rotate acme --expire-old 7d --key-file acme.key   old keys expire in a week""",
    )
    revoking = add(
        "tenants revoke",
        run_revoke,
        "NAME [KEY_ID ...]",
        "remove keys of a tenant at once",
        "  quintet tenants revoke acme k3f9a2b1\n  quintet tenants revoke acme --all",
    )
    for parser in (tenants, listing, adding, rotating, revoking):
        add_file_option(parser, default=None if parser is tenants else argparse.SUPPRESS)
    for parser in (adding, rotating, revoking):
        parser.add_argument("name", metavar="NAME", help="the tenant")
    services = [name.rpartition(".")[2] for name in SERVICES]
    adding.add_argument("--role", action="append", choices=_ROLES, help="may be repeated; default: call")
    adding.add_argument(
        "--service", action="append", choices=services, metavar="SERVICE", help="allow only this; may be repeated"
    )
    adding.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help="allow only this; may be repeated; collections need the embedder",
    )
    adding.add_argument("--certificate", action="append", metavar="IDENTITY", help="dns:NAME, uri:URI or cn:NAME")
    for parser in (adding, rotating):
        parser.add_argument("--expires", type=duration, metavar="TIME", help="when the key expires: 90d, 12h, 30m")
        parser.add_argument(
            "--key-file", metavar="FILE", help="write the key there, readable only by you; default: print it"
        )
    rotating.add_argument("--expire-old", type=duration, metavar="TIME", help="when the other keys expire; 0 is now")
    revoking.add_argument("keys", metavar="KEY_ID", nargs="*", help="'quintet tenants list' shows them")
    revoking.add_argument("--all", action="store_true", help="revoke every key")


def add_file_option(parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS) -> None:
    """The option of every action that edits the file; it may stand before the action."""
    parser.add_argument(
        "--file",
        metavar="FILE",
        default=default,
        help=f"the server's tenants file (TOML); default: QUINTET_TENANTS or {DEFAULT_FILE}",
    )


def path_of(args: argparse.Namespace) -> Path:
    """The tenants file to edit."""
    return Path(args.file or os.environ.get("QUINTET_TENANTS") or DEFAULT_FILE)


def run_add(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    path = path_of(args)
    if not _NAME.fullmatch(args.name):
        raise UsageError("a tenant's name has lower-case letters, digits and . _ - only, 63 at most")
    key_id, key, kept = new_key(args.expires)
    given = {"services": args.service, "models": args.model, "certificates": args.certificate}

    def edit(file: Table) -> None:
        tenants = table(file, "tenants")
        if args.name in tenants:
            raise UsageError(f"there is a tenant \"{args.name}\"; 'quintet tenants rotate {args.name}' adds a key")
        chosen = {name: values for name, values in given.items() if values}
        tenants[args.name] = {"roles": args.role or ["call"], **chosen, "keys": {key_id: kept}}

    with _key_file(args, key):
        edit_file(path, edit, new=_HEADER)
    _write_key(args, out, key_id, key, f"{args.name} was added to {path}")
    return OK


def run_rotate(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Add a key; optionally expire the others."""
    key_id, key, kept = new_key(args.expires)
    end = None if args.expire_old is None else _from_now(args.expire_old)  # computed once: edit() is called twice

    def edit(file: Table) -> None:
        keys = table(tenant_of(file, args.name), "keys")
        if end is not None:
            for old in keys.values():
                old["expires"] = min(_end(old) or end, end)
        keys[key_id] = kept

    with _key_file(args, key):
        edit_file(path_of(args), edit)
    _write_key(args, out, key_id, key, f"{args.name} has a new key")
    return OK


def run_revoke(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    if bool(args.keys) == args.all:
        raise UsageError("quintet tenants revoke: give key ids, or --all; 'quintet tenants list' shows them")

    def edit(file: Table) -> None:
        tenant = tenant_of(file, args.name)
        keys = table(tenant, "keys")
        for key_id in [*keys] if args.all else args.keys:
            if key_id not in keys:
                raise UsageError(f'tenant "{args.name}" has no key {key_id}; it has: {", ".join(keys) or "none"}')
            remove(keys, key_id)
        if not keys:
            remove(tenant, "keys")

    edit_file(path_of(args), edit)
    print(f"{args.name}: {'all keys' if args.all else ', '.join(args.keys)} revoked", file=sys.stderr)
    return OK


def run_list(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Show a table of tenants, keys and certificates."""
    tenants = table(tomllib.loads(read_file(path_of(args))), "tenants")
    if not out.as_json:
        header = ("TENANT", "ROLES", "SERVICES", "MODELS", "KEY OR CERTIFICATE", "CREATED", "EXPIRES")
        out.table(header, [row for name, tenant in tenants.items() for row in _rows(name, tenant)])
        return OK
    for name, tenant in tenants.items():
        keys = [
            {"id": key_id, **{field: str(key[field]) for field in ("created", "expires") if field in key}}
            for key_id, key in tenant.get("keys", {}).items()
        ]
        lists = {field: tenant.get(field) for field in ("services", "models")}
        certificates = tenant.get("certificates", [])
        roles = tenant.get("roles", ["call"])
        out.json({"tenant": name, "roles": roles, **lists, "certificates": certificates, "keys": keys})
    return OK


def _rows(name: str, tenant: Mapping[str, Any]) -> Iterator[list[Cell]]:
    """A row for each key and certificate."""
    lists = [", ".join(tenant[field]) if field in tenant else "all" for field in ("services", "models")]
    facts: list[Cell] = [name, ", ".join(tenant.get("roles", ["call"])), *lists]
    credentials: list[list[Cell]] = [
        [key_id, _day(key.get("created")), _expiry(key)] for key_id, key in tenant.get("keys", {}).items()
    ]
    credentials += [[identity, "-", "-"] for identity in tenant.get("certificates", [])]
    for credential in credentials or [["-", "-", "-"]]:
        yield [*facts, *credential]


def _day(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}" if moment else "-"


def _expiry(key: Mapping[str, Any]) -> Cell:
    end = _end(key)
    return _day(end), "red" if end and end <= datetime.now(UTC) else ""


def _end(key: Mapping[str, Any]) -> datetime | None:
    """When a key expires. Raises UsageError for a value that the server rejects too."""
    end = key.get("expires")
    if end is not None and not (isinstance(end, datetime) and end.tzinfo):
        raise UsageError(f"expires = {end}: must be a time with an offset, such as 2027-01-31T00:00:00Z")
    return end


def new_key(lasts: timedelta | None) -> tuple[str, str, dict[str, Any]]:
    """The key's id, the key, and the table that is stored: a salted hash. 256 random bits need no slow hash."""
    key_id = f"k{secrets.token_hex(4)}"
    key = f"qk_{key_id}_{secrets.token_urlsafe(32)}"
    salt = secrets.token_bytes(16)
    kept: dict[str, Any] = {
        "hash": f"sha256:{salt.hex()}:{hashlib.sha256(salt + key.encode()).hexdigest()}",
        "created": _from_now(timedelta()),
    }
    if lasts is not None:
        kept["expires"] = _from_now(lasts)
    return key_id, key, kept


@contextlib.contextmanager
def _key_file(args: argparse.Namespace, key: str) -> Iterator[None]:
    """With --key-file: the key is written before the edit, and in place after it, so that neither is lost."""
    if not args.key_file:
        yield
        return
    path = Path(args.key_file)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a regular file")  # replacing a device would break the system
    try:
        with written_aside(Path(os.path.realpath(path)), f"{key}\n"):
            yield
    except OSError as error:
        raise UsageError(f"{args.key_file}: {os_reason(error)}") from error


def _write_key(args: argparse.Namespace, out: Terminal, key_id: str, key: str, what: str) -> None:
    if args.key_file:
        if out.as_json:
            out.json({"tenant": args.name, "key_id": key_id, "key_file": args.key_file})
        print(f"{what}; key {key_id} is in {args.key_file}", file=sys.stderr)
        return
    _hide_from_others(sys.stdout)
    if out.as_json:
        out.json({"tenant": args.name, "key_id": key_id, "key": key})
    else:
        out.line(key)
    print(f"{what}; key {key_id} is shown only this once", file=sys.stderr)


def _hide_from_others(stream: TextIO) -> None:
    """Make a file that the output goes to, as with > acme.key, readable only by its owner."""
    with contextlib.suppress(OSError, ValueError):  # no file, or another user's
        descriptor = stream.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o600)


def _from_now(time: timedelta) -> datetime:
    return (datetime.now(UTC) + time).replace(microsecond=0)
