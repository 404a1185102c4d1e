"""`quintet tenants`: who may call a server. It edits the server's file of tenants and speaks to no server."""

import argparse
import hashlib
import os
import re
import secrets
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from quintet_client.cli.failures import OK, UsageError
from quintet_client.cli.options import AddCommand
from quintet_client.cli.tenants_file import edit_file, read_file, remove
from quintet_client.cli.terminal import Cell, Styled, Terminal
from quintet_client.client import QuintetClient
from quintet_client.contract import SERVICES

DEFAULT_FILE = "data/tenants.toml"
_ROLES = ("call", "ingest", "admin")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DURATION = re.compile(r"(\d{1,6})([mhd])|0")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_HEADER = """\
# Who may call. The server reads this file anew when it changes; `quintet tenants` edits it, and so may you.
# Keys are kept as salted hashes: a key that is lost cannot be found again, only replaced.
"""
Table = MutableMapping[str, Any]


def register(add: AddCommand) -> None:
    """Add the command."""
    tenants = add(
        "tenants",
        run_tenants,
        "[ACTION] [NAME] [KEY_ID ...]",
        "list or edit the tenants of a server, in its file",
        """  quintet tenants add acme --role call --role ingest > acme.key   the key is shown this once
  quintet tenants rotate acme --expire-old 7d > acme.key         a new key; the old ones end in a week
  quintet tenants revoke acme k3f9a2b1                           end a key at once
  quintet tenants revoke acme --all                              end all of them
  quintet tenants list""",
    )
    tenants.add_argument("action", metavar="ACTION", nargs="?", default="list", choices=[*_ACTIONS], help="see below")
    tenants.add_argument("name", metavar="NAME", nargs="?", help="the tenant, for all actions but list")
    tenants.add_argument("keys", metavar="KEY_ID", nargs="*", help="for revoke; 'quintet tenants list' shows them")
    default = f"default: QUINTET_TENANTS or {DEFAULT_FILE}"
    tenants.add_argument("--file", metavar="FILE", help=f"the server's file of tenants (TOML); {default}")
    tenants.add_argument("--role", action="append", choices=_ROLES, help="of a new tenant, may be repeated; call")
    services = [name.rpartition(".")[2] for name in SERVICES]
    text = "that a new tenant may use, may be repeated; all"
    tenants.add_argument("--service", action="append", choices=services, metavar="SERVICE", help=f"service {text}")
    tenants.add_argument("--model", action="append", metavar="MODEL", help=f"model {text}")
    tenants.add_argument("--certificate", action="append", metavar="IDENTITY", help="dns:NAME, uri:URI or cn:NAME")
    tenants.add_argument("--expires", type=duration, metavar="TIME", help="end of the new key: 90d, 12h, 30m from now")
    tenants.add_argument("--expire-old", type=duration, metavar="TIME", help="rotate: end of the other keys; 0 is now")
    tenants.add_argument("--all", action="store_true", help="revoke: every key")


def duration(value: str) -> timedelta:
    """A time from now: 90d, 12h, 30m, 0."""
    found = _DURATION.fullmatch(value)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a time such as 90d, 12h or 30m, not {value!r}")
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found[1] else timedelta()


def run_tenants(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """One action."""
    if (args.name is None) != (args.action == "list"):
        missing = "its name is missing" if args.name is None else "list takes no name"
        raise UsageError(f"quintet tenants {args.action}: {missing}")
    if args.keys and args.action != "revoke":
        raise UsageError(f"quintet tenants {args.action} takes no key ids")
    path = Path(args.file or os.environ.get("QUINTET_TENANTS") or DEFAULT_FILE)
    _ACTIONS[args.action](args, path, out)
    return OK


def _add(args: argparse.Namespace, path: Path, out: Terminal) -> None:
    if not _NAME.fullmatch(args.name):
        raise UsageError("a tenant's name has lower-case letters, digits and . _ - only, 63 at most")
    key_id, key, kept = new_key(args.expires)
    given = {"services": args.service, "models": args.model, "certificates": args.certificate}

    def edit(file: Table) -> None:
        tenants = _table(file, "tenants")
        if args.name in tenants:
            raise UsageError(f"there is a tenant \"{args.name}\"; 'quintet tenants rotate {args.name}' adds a key")
        chosen = {name: values for name, values in given.items() if values}
        tenants[args.name] = {"roles": args.role or ["call"], **chosen, "keys": {key_id: kept}}

    edit_file(path, edit, new=_HEADER)
    _tell_key(args, out, key_id, key, f"{args.name} was added to {path}")


def _rotate(args: argparse.Namespace, path: Path, out: Terminal) -> None:
    key_id, key, kept = new_key(args.expires)
    end = None if args.expire_old is None else _from_now(args.expire_old)  # once: edit() is called twice

    def edit(file: Table) -> None:
        keys = _table(_tenant(file, args.name), "keys")
        if end is not None:
            for old in keys.values():
                old["expires"] = min(_end(old) or end, end)
        keys[key_id] = kept

    edit_file(path, edit)
    _tell_key(args, out, key_id, key, f"{args.name} has a new key")


def _revoke(args: argparse.Namespace, path: Path, out: Terminal) -> None:
    if bool(args.keys) == args.all:
        raise UsageError("quintet tenants revoke: give key ids, or --all; 'quintet tenants list' shows them")

    def edit(file: Table) -> None:
        tenant = _tenant(file, args.name)
        keys = _table(tenant, "keys")
        for key_id in [*keys] if args.all else args.keys:
            if key_id not in keys:
                raise UsageError(f'tenant "{args.name}" has no key {key_id}; it has: {", ".join(keys) or "none"}')
            remove(keys, key_id)
        if not keys:
            remove(tenant, "keys")

    edit_file(path, edit)
    print(f"{args.name}: {'all keys' if args.all else ', '.join(args.keys)} revoked", file=sys.stderr)


def _list(args: argparse.Namespace, path: Path, out: Terminal) -> None:
    tenants = _table(tomllib.loads(read_file(path)), "tenants")
    if not out.as_json:
        header = ("TENANT", "ROLES", "SERVICES", "MODELS", "KEY OR CERTIFICATE", "CREATED", "EXPIRES")
        out.table(header, [row for name, tenant in tenants.items() for row in _rows(name, tenant)])
        return
    for name, tenant in tenants.items():
        keys = [
            {"id": key_id, **{field: str(key[field]) for field in ("created", "expires") if field in key}}
            for key_id, key in tenant.get("keys", {}).items()
        ]
        lists = {field: tenant.get(field) for field in ("services", "models")}
        certificates = tenant.get("certificates", [])
        roles = tenant.get("roles", ["call"])
        out.json({"tenant": name, "roles": roles, **lists, "certificates": certificates, "keys": keys})


def _rows(name: str, tenant: Mapping[str, Any]) -> Iterator[list[Cell]]:
    """One for each way to show who one is."""
    lists = [", ".join(tenant[field]) if field in tenant else "all" for field in ("services", "models")]
    facts: list[Cell] = [name, ", ".join(tenant.get("roles", ["call"])), *lists]
    ways: list[list[Cell]] = [
        [key_id, _day(key.get("created")), _expiry(key)] for key_id, key in tenant.get("keys", {}).items()
    ]
    ways += [[identity, "-", "-"] for identity in tenant.get("certificates", [])]
    for way in ways or [["-", "-", "-"]]:
        yield [*facts, *way]


def _day(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}" if moment else "-"


def _expiry(key: Mapping[str, Any]) -> Cell:
    end = _end(key)
    return Styled(_day(end), "red" if end and end <= datetime.now(UTC) else None)


def _end(key: Mapping[str, Any]) -> datetime | None:
    """When a key expires. Raises UsageError for what the server would not take either."""
    end = key.get("expires")
    if end is not None and not (isinstance(end, datetime) and end.tzinfo):
        raise UsageError(f"expires = {end}: must be a time with an offset, such as 2027-01-31T00:00:00Z")
    return end


_ACTIONS: dict[str, Callable[[argparse.Namespace, Path, Terminal], None]] = {
    "list": _list,
    "add": _add,
    "rotate": _rotate,
    "revoke": _revoke,
}


def new_key(lasts: timedelta | None) -> tuple[str, str, dict[str, Any]]:
    """Its id, the key, and what is kept of it: a salted hash. 256 random bits need no slow one."""
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


def _tell_key(args: argparse.Namespace, out: Terminal, key_id: str, key: str, what: str) -> None:
    if out.as_json:
        out.json({"tenant": args.name, "key_id": key_id, "key": key})
    else:
        out.line(key)
    print(f"{what}; key {key_id} is shown this once", file=sys.stderr)


def _from_now(time: timedelta) -> datetime:
    return (datetime.now(UTC) + time).replace(microsecond=0)


def _table(parent: Table, name: str) -> Table:
    """A table within another; made if it is not there."""
    if name not in parent:
        parent[name] = {}
    found = parent[name]
    if not isinstance(found, MutableMapping):
        raise UsageError(f"the file is not one of tenants: {name} is no table")
    return found


def _tenant(file: Table, name: str) -> Table:
    tenants = _table(file, "tenants")
    if name not in tenants:
        raise UsageError(f'there is no tenant "{name}"; there are: {", ".join(tenants) or "none"}')
    return _table(tenants, name)
