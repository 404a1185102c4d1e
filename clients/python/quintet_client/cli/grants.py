"""`quintet tenants grant`, `ungrant` and `grants`: who may use a collection, in a server's tenants file."""

import argparse
import re
import sys
import tomllib

from quintet_client.cli.failures import OK, UsageError
from quintet_client.cli.options import AddCommand
from quintet_client.cli.tenants import add_file_option, path_of
from quintet_client.cli.tenants_file import Table, edit_file, read_file, remove, table, tenant_of
from quintet_client.cli.terminal import Terminal
from quintet_client.client import QuintetClient

_EVERYONE = "*"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def register(add: AddCommand) -> None:
    granting = add(
        "tenants grant",
        run_grant,
        "COLLECTION",
        "let tenants use a collection, or give it to an owner",
        """  quintet tenants grant wikipedia --read '*'                every tenant may read it
  quintet tenants grant handbook --owner docs --read shop   docs owns it, shop may read it""",
    )
    withdrawing = add(
        "tenants ungrant", run_ungrant, "COLLECTION [TENANT ...]", "withdraw what tenants may do with a collection"
    )
    listing = add("tenants grants", run_grants, "", "list who may use which collections, beside their owners")
    for parser in (granting, withdrawing, listing):
        add_file_option(parser)
    for parser in (granting, withdrawing):
        parser.add_argument("collection", metavar="COLLECTION", help="its name; it need not exist yet")
    for name, what in (("--read", "may read it"), ("--write", "may read and change it")):
        granting.add_argument(
            name, action="append", default=[], metavar="TENANT", help=f"{what}; '*' is every tenant; may be repeated"
        )
    granting.add_argument("--owner", metavar="TENANT", help="owns it, in place of the tenant that created it")
    withdrawing.add_argument("tenants", metavar="TENANT", nargs="*", help="as 'quintet tenants grants' shows them")
    withdrawing.add_argument("--all", action="store_true", help="remove the collection's entry")


def run_grant(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    if not _NAME.fullmatch(args.collection):
        raise UsageError("a collection's name has lower-case letters, digits, - and _ only, 63 at most")
    if not (args.read or args.write or args.owner):
        raise UsageError("quintet tenants grant: give --read, --write or --owner")

    def edit(file: Table) -> None:
        for tenant in {*args.read, *args.write} - {_EVERYONE}:
            tenant_of(file, tenant)
        entry = table(table(file, "collections"), args.collection)
        if args.owner:
            tenant_of(file, args.owner)
            entry["owner"] = args.owner
        for key, added in (("read", args.read), ("write", args.write)):
            if added:
                entry[key] = sorted({*_names(entry, key), *added})

    edit_file(path_of(args), edit)
    print(f"{args.collection}: granted; a running server knows within 2 s", file=sys.stderr)
    return OK


def run_ungrant(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    if bool(args.tenants) == args.all:
        raise UsageError("quintet tenants ungrant: give tenants, or --all; 'quintet tenants grants' shows them")

    def edit(file: Table) -> None:
        collections = table(file, "collections")
        if args.collection not in collections:
            known = ", ".join(collections) or "none"
            raise UsageError(f'there is no entry for collection "{args.collection}"; there are: {known}')
        entry = table(collections, args.collection)
        for tenant in args.tenants:
            keys = [key for key in ("read", "write") if tenant in _names(entry, key)]
            if not keys:
                raise UsageError(f'collection "{args.collection}" is not shared with "{tenant}"')
            for key in keys:
                entry[key] = [name for name in _names(entry, key) if name != tenant]
        if args.all:
            remove(collections, args.collection)

    edit_file(path_of(args), edit)
    print(f"{args.collection}: withdrawn; a running server knows within 2 s", file=sys.stderr)
    return OK


def run_grants(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    collections = table(tomllib.loads(read_file(path_of(args))), "collections")
    entries = [(name, table(collections, name)) for name in collections]
    shown = [
        (name, str(entry.get("owner", "")), _names(entry, "read"), _names(entry, "write")) for name, entry in entries
    ]
    if out.as_json:
        for name, owner, read, write in shown:
            out.json({"collection": name, "owner": owner or None, "read": read, "write": write})
    else:
        rows = [
            (name, owner or "-", ", ".join(read) or "-", ", ".join(write) or "-") for name, owner, read, write in shown
        ]
        out.table(("COLLECTION", "OWNER", "READ", "WRITE"), rows)
    return OK


def _names(entry: Table, key: str) -> list[str]:
    """The tenants in a list of an entry. Raises UsageError for a value that the server rejects too."""
    names = entry.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"the file is not a tenants file: {key} is not a list of tenants")
    return [str(name) for name in names]
