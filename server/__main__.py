"""Run the server: python -m server. Settings come from the environment; --help lists them."""

# Numeric libraries read these when they are imported, so nothing may be imported before. One thread each, because
# lanes are the parallelism, and passive waiting: threads that spin take the cores from the others.
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # children are spawned with exec and use no gRPC
# gRPC's core writes bytes of strangers' requests to stderr, past the log and its format.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import argparse
import asyncio
import logging
import signal
import sys
import textwrap
import threading
import time

import uvloop
from pydantic import ByteSize, ValidationError

from server.app import App, running
from server.domain.network import bypass_proxies_on_loopback
from server.domain.reloading_file import BadFile
from server.observability import logs
from server.rpc.listener import CannotStart
from server.settings import Settings, explain, unknown_variables

log = logging.getLogger("server")

log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve quintet.v1 over gRPC. The settings are environment variables, shown with their [defaults]:",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    bypass_proxies_on_loopback(os.environ)
    try:
        settings = Settings()
    except ValidationError as error:
        for line in explain(error):
            print(f"error: {line}", file=sys.stderr)
        return 2
    logs.to_stderr(settings.log_level, settings.log_format)
    for line in unknown_variables(os.environ):
        log.warning(line)
    try:
        return uvloop.run(_serve(settings))
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BadFile as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


async def _serve(settings: Settings) -> int:
    stop = asyncio.Event()
    signals: list[int] = []
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(1)  # the second one: now
        signals.append(number)
        stop.set()
        limit = threading.Timer(settings.shutdown_seconds, _exit, [settings.shutdown_seconds])
        limit.daemon = True
        limit.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    async with running(settings) as app:
        announcing = None
        if settings.log_format == "text":  # the others are objects
            announcing = asyncio.create_task(_announce(app, settings))
        await stop.wait()
        if signals == [signal.SIGINT]:  # Ctrl-C: no load balancer sends calls to a server at a terminal
            app.no_pause.set()
        if announcing:
            announcing.cancel()
            print("Stopping: what runs may finish. Press Ctrl-C again to exit at once.", flush=True)
    return 0


def _exit(seconds: float) -> None:
    """Called on a thread, because what hangs may be the event loop."""
    log.critical("the stop took longer than %g s; exiting", seconds)
    os._exit(1)


async def _announce(app: App, settings: Settings) -> None:
    """Print the address now, and the table once nothing is loading any more."""
    started = time.monotonic()
    print(f"Quintet listens on {app.address}; loading models ...\n{_access(settings)}", flush=True)
    await app.loaded()
    print(f"\n{_table(app)}\n\n{_next_steps(app, settings)}\n", flush=True)
    print(f"Ready after {time.monotonic() - started:.1f} s. Ctrl-C stops.", flush=True)


def _table(app: App) -> str:
    lines = []
    services = {name.removeprefix("quintet.v1."): message for name, message in sorted(app.health.messages.items())}
    width = max(24, *(len(name) + 1 for name in services))
    for name, message in services.items():
        lines.append(f"  {name:{width}}{f'NOT SERVING  {message}' if message else 'SERVING'}")
    lines.append("")
    for handle in app.handles:
        version = handle.description.identity.version if handle.description else ""
        lines.append(f"  {handle.name:34}{handle.state.name:9}{version}")
    return "\n".join(lines)


def _next_steps(app: App, settings: Settings) -> str:
    address = app.address
    is_default = address == "127.0.0.1:50051"
    option, argument = ("", "") if is_default else (f" --address {address}", f'"{address}"')
    grpcurl = "grpcurl" if settings.tls_cert else "grpcurl -plaintext"
    if settings.tenants:
        grpcurl += ' -H "authorization: Bearer $QUINTET_API_KEY"'
    if settings.tls_cert:
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


def _access(settings: Settings) -> str:
    """Who may call, and how."""
    return _callers(settings) + (" Connections must use TLS." if settings.tls_cert else "")


def _callers(settings: Settings) -> str:
    if settings.tenants:
        return f"Callers need an API key or a certificate of a tenant in {settings.tenants}."
    if settings.is_local:
        return "Authentication is off (QUINTET_TENANTS is not set); only this machine can call."
    return "Authentication is off (QUINTET_ALLOW_ANONYMOUS); every client that reaches the port can call."


def _settings_help() -> str:
    lines = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default_factory else _written(field.default)
        described = f"{field.description} [{default}]" if default else str(field.description)
        text = textwrap.fill(described, 76, initial_indent="      ", subsequent_indent="      ")
        lines.append(f"  QUINTET_{name.upper()}\n{text}")
    return "\n".join(lines)


def _written(value: object) -> str:
    """A default as a person writes it into the environment."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case ByteSize():
            return value.human_readable().replace(".0", "")
        case float():
            return f"{value:g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
