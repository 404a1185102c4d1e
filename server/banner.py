"""What a person sees when the server starts: what is ready, what is not and why, and what to try next."""

import time
from typing import TYPE_CHECKING

from server.domain.models import Described

if TYPE_CHECKING:
    from server.app import App


async def announce(app: "App") -> None:
    """Print the address now, and the table once nothing is loading any more."""
    started = time.monotonic()
    print(f"Quintet listens on {app.address}; loading models ...\n{app.access}", flush=True)
    await app.loaded()
    print(f"\n{_table(app)}\n\n{_next_steps(app)}\n", flush=True)
    print(f"Ready after {time.monotonic() - started:.1f} s. Ctrl-C stops.", flush=True)


def _table(app: "App") -> str:
    lines = []
    for service, message in sorted(app.health.messages.items()):
        state = f"NOT SERVING  {message}" if message else "SERVING"
        lines.append(f"  {service.removeprefix('quintet.v1.'):24}{state}")
    lines.append("")
    for slot in sorted(app.slots, key=lambda slot: slot.name):
        lines.append(f"  {slot.name:34}{slot.state.name:9}{_version(slot.loaded)}")
    return "\n".join(lines)


def _next_steps(app: "App") -> str:
    address = app.address
    option = "" if address == "127.0.0.1:50051" else f" --address {address}"
    argument = "" if address == "127.0.0.1:50051" else f'"{address}"'
    grpcurl = "grpcurl" if app.is_encrypted else "grpcurl -plaintext"
    if app.requires_keys:
        grpcurl += ' -H "authorization: Bearer $QUINTET_API_KEY"'
    if app.is_encrypted:
        option += " --tls"
        argument += ", tls=True" if argument else "tls=True"
    return "\n".join(
        (
            "Try:",
            f'  {grpcurl} -d \'{{"texts": ["What a day!"]}}\' {address} quintet.v1.ClassificationService/Classify',
            f'  .venv/bin/quintet{option} ask "Who discovered penicillin?"',
            "  .venv/bin/python -c 'from quintet_client import QuintetClient as Q; "
            f'print(Q({argument}).analyze("Ada Lovelace lived in London."))\'',
        )
    )


def _version(engine: object) -> str:
    return engine.description.identity.version if isinstance(engine, Described) else ""
