"""Files of tenants for tests."""

from datetime import datetime
from pathlib import Path

from quintet_client.cli.tenants import new_key

from server.domain.money import Cost


def add_tenant(path: Path, name: str, body: str = "", *, key: str = "") -> str:
    """Add a tenant with one key; `body` and `key` are lines of its table and of its key's. Returns the key."""
    key_id, text, kept = new_key(None)
    before = path.read_text() if path.exists() else ""
    table = f'[tenants.{name}]\n{body}\n[tenants.{name}.keys.{key_id}]\nhash = "{kept["hash"]}"\n{key}\n'
    replace(path, before + table)
    return text


def replace(path: Path, text: str) -> None:
    """As editors and tools do it: written aside and renamed."""
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(text)
    aside.rename(path)


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata that shows a key."""
    return (("authorization", f"Bearer {key}"),)


async def nothing_spent(tenant: str, service: str | None, start: datetime) -> Cost:
    """A ledger without entries, for limiters."""
    return Cost()
