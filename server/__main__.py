"""Run the server: python -m server. Settings come from the environment; --help lists them."""

# Numeric libraries read these when they are imported, so nothing may be imported before. One thread each, because
# lanes are the parallelism, and passive waiting: threads that spin take the cores from the others.
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # children are spawned with exec and use no gRPC

import argparse
import asyncio
import signal
import sys
import textwrap

import uvloop
from pydantic import ValidationError

from server.app import running
from server.banner import announce
from server.domain.reloading_file import BadFile
from server.observability import logs
from server.rpc.listener import CannotStart
from server.settings import Settings
from server.tasks.chat.providers_file import BadProviders


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve quintet.v1 over gRPC. The settings are environment variables, shown with their [defaults]:",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            where = f"QUINTET_{name}: " if name else ""  # what concerns several names them itself
            print(f"error: {where}{problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    logs.to_stderr(settings.log_level, settings.log_format)
    try:
        return uvloop.run(_serve(settings))
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (BadFile, BadProviders) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


async def _serve(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)  # the second one: now
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    async with running(settings) as app:
        if settings.log_format == "json":  # no line that is not one
            await stop.wait()
            return 0
        announcing = asyncio.create_task(announce(app))
        await stop.wait()
        announcing.cancel()
        print("Stopping: what runs may finish. Press Ctrl-C again to exit at once.", flush=True)
    return 0


def _settings_help() -> str:
    lines = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None or field.default_factory else f" [{field.default}]"
        text = textwrap.fill(f"{field.description}{default}", 76, initial_indent="      ", subsequent_indent="      ")
        lines.append(f"  QUINTET_{name.upper()}\n{text}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
